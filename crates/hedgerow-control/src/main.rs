//! `hedgerow-control`: who belongs to the fleet, what each may do, and telling them.
//!
//! ```text
//!  operators ── REST ──▶ service ──▶ store (one change, one revision) ──▶ Snapshot
//!  devices ── enroll ──▶    │                                                │
//!  agents ◀── sync ─────────┴──────────────── offers, signed once ◀──────────┘
//! ```
//!
//! # Invariants
//!
//! - A change is durable before anyone hears of it, and has a number that nothing else ever has.
//! - Everything served comes from one immutable snapshot; an agent can be served by any process that
//!   has it.
//! - Nothing that comes from the network is believed before it is verified, or stored without bound.
//! - The root key is not needed for anything that happens from day to day.
//!
//! # Not here
//!
//! What statements mean (`hedgerow-identity`), what a policy allows (`hedgerow-policy`), the protocol
//! with agents (`hedgerow-sync`), and anything a device does with what it is told.
#![forbid(unsafe_code)]

mod api;
mod backup;
mod bounds;
mod cli;
mod clock;
mod config;
mod control;
mod crowd;
mod disk;
mod distribute;
mod enroll;
mod entropy;
mod hub;
mod init;
mod issue;
mod journal;
mod keys;
mod listen;
mod names;
mod notify;
mod operator;
mod refusal;
mod root_file;
mod rules;
mod run;
mod service;
mod shards;
mod sign;
mod snapshot;
mod store;
mod tls;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
