//! How an agent and its controller keep each other informed: frames, messages, two sessions.
//!
//! ```text
//!  AgentSession                                             ControllerSession
//!    hello(heads) ───────────────────────────────────────────▶ admit, hold or busy
//!    ◀───────────────────────────── welcome(time, beacon), update(previous → revision)
//!    received ────────▶   (reconciler, kernel)   verified(table hash) ────────▶
//!    ping(revision, root of heads) ───────────▶ equal: pong; else: repair by heads
//! ```
//!
//! Both ends are machines without sockets: the shells move bytes and time (see
//! [`hedgerow_model::machine`]). Outputs come from `poll`; frames are *pulled* by `next_frame` when
//! the socket has room, so that nothing waits in a socket that a more urgent frame should overtake.
//!
//! # Invariants
//!
//! - A slow agent costs its controller nothing: what it lacks is computed when it can be sent.
//! - Revisions form a chain per agent. A gap is repaired by what the agent says it holds.
//! - A resource older than one held is refused with the whole update that carries it.
//! - What is taken away (trust, revocations, states) never waits behind a refused gift.
//! - Unknown is never encoded as empty: an absent resource is removed by name.
//!
//! # Not here
//!
//! Signatures (`hedgerow-identity`), what a resource means (the agent's reconciler), who gets which
//! resource (`hedgerow-control`), sockets and TLS (the shells).
#![forbid(unsafe_code)]

pub mod agent;
pub mod backoff;
pub mod controller;
mod deterministic;
pub mod error;
pub mod frame;
pub mod message;
mod offer;
mod outbox;
#[cfg(test)]
mod tests;

pub use agent::AgentSession;
pub use backoff::Backoff;
pub use controller::ControllerSession;
pub use error::SessionError;

/// The ALPN of this protocol. The other end is who its certificate says.
pub const ALPN: &[u8] = b"hedgerow/1";
/// The capability this crate speaks. One more per step, with a line here.
///
/// - 1: the first.
/// - 2: the controller asks for live flows.
pub const CAPABILITY: u32 = 2;
/// The oldest capability this crate still speaks.
pub const CAPABILITY_MIN: u32 = 1;
