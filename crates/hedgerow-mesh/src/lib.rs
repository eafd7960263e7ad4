//! Which peers a device talks to, and how it gets to know them.
//!
//! ```text
//!  tunnel: packet for an unknown address
//!    │ handle_wanted
//!    ▼
//!  cache ── or ── Resolve ─▶ ticket, endpoints ─▶ Admit (policy?) ─▶ Introduce ──▶ other device
//!                                                                                    │ checks, Admit
//!  Release ◀── SetPeer ◀── Admit (policy?) ◀── ticket, binding verified ◀── Introduced ┘
//! ```
//!
//! One machine, [`Mesh`], without a socket, a clock or a key store: bytes, answers and time go in,
//! [`Output`]s come out (the contract is `hedgerow_model::machine`).
//!
//! # Invariants
//!
//! - A peer is set only with a ticket and a binding that both verified, and after the parent admitted it.
//! - Who fails a check gets silence. Nothing is answered with more bytes than came.
//! - Whatever a stranger sends costs a hash; key agreements and signatures have budgets.
//! - An introduction never moves the endpoint of a peer; the tunnel's authenticated handshake does.
//! - Every table has a bound and says what it does when full.
//! - Nothing here needs a controller: two devices that met before meet again from their caches.
//!
//! # Not here
//!
//! The tunnel itself (`hedgerow-linux`), signatures and trust (`hedgerow-identity`), what a peer may do
//! (`hedgerow-policy`). What agents say inside a tunnel has a module each: [`path`], [`relay`],
//! [`lookup`], [`psk`], [`membership`], [`items`], [`measure`].
//!
//! Start reading at [`Mesh`].
#![forbid(unsafe_code)]

pub mod budget;
mod content;
pub mod introduction;
pub mod items;
pub mod lookup;
pub mod measure;
pub mod membership;
mod memory;
mod mesh;
pub mod names;
mod noise;
mod output;
pub mod path;
mod peer;
pub mod psk;
mod random;
pub mod relay;
mod timers;

pub use content::MalformedContent;
pub use introduction::IntroductionSecret;
pub use items::ItemRefusal;
pub use memory::{ENDPOINTS_MAX, Memory, REMEMBERED_MAX};
pub use mesh::{
    ANSWER_WITHIN, ANSWERING_MAX, ASKING_MAX, Admission, CLOCK_AHEAD_MAX, GossipStatus, HEARD_MAX,
    IDLE_FORGET, KEY_OVERLAP, LOOKUPS_MAX, Mesh, OwnError, OwnIdentity, PEERS_MAX, PeerStatus,
    REJOIN_MAX, REPORT_EVERY, Resolved, Session, Status, UNREACHABLE_FOR, UNREACHABLE_MAX, View,
    Work,
};
pub use output::{Output, Psk, Refusal, Removal, TunnelOrder, Unreachable};
