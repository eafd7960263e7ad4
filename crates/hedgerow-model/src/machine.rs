//! The contract of every sans-IO state machine in Hedgerow.
//!
//! ```text
//! handle_<what>(&mut self, …, now)   feed: a message, an answer, a local command
//! handle_timeout(&mut self, now)     feed: time passed; early, late and repeated calls are harmless
//! poll(&mut self) -> Option<Output>  drain: one queue, one enum, until None
//! deadline(&self) -> (Mono, &str)    when to call handle_timeout next, and why (for logs)
//! ```
//!
//! - One output queue; outputs name effects in domain words.
//! - Time is a [`crate::Now`] argument; randomness is a seed or a generator given at construction.
//! - Order is deterministic: `BTreeMap`, never iteration over a `HashMap`.
//! - Every queue and decoder has a `…_MAX` constant and a stated behaviour when full.
//! - A parent translates its children's outputs; it does not forward them.
