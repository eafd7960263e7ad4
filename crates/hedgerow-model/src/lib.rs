//! The nouns that every other crate speaks in.
//!
//! ```text
//!  statements (signed, travel)      program (signed, travels)      ruleset (local)
//!  Ticket, Binding, Manifest,  ──▶  rules over peer labels    ──▶  addresses, profiles,
//!  RevocationList, States           for one class of device        limits: what the kernel loads
//! ```
//!
//! # Invariants
//!
//! - Values only: no I/O, no clock, no randomness, no `unsafe`.
//! - Everything that crosses a wire or rests on a disk has a named bound, checked on decoding.
//! - An [`address::Overlay`] cannot be confused with an [`address::Underlay`].
//!
//! # Not here
//!
//! Signatures and trust (`hedgerow-identity`), the policy language (`hedgerow-policy`), and every
//! effect on the world (`hedgerow-linux` and the programs' shells).
#![forbid(unsafe_code)]

pub mod address;
pub mod base32;
pub mod config;
pub mod event;
pub mod fault;
pub mod id;
pub mod internet;
pub mod machine;
pub mod message;
pub mod packet;
pub mod path;
pub mod program;
pub mod resource;
pub mod ruleset;
pub mod service;
pub mod statement;
pub mod time;
pub mod wire;

pub use fault::Fault;
pub use time::{Mono, Now, Wall};
