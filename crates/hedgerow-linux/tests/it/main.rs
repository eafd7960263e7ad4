//! What this crate does to a real kernel, in network namespaces of its own.
//!
//! Every test needs root and the Debian packages named in [`namespace::tool`]; a test that lacks one
//! fails with its name.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod coexistence;
mod enforcement;
mod firewalls;
mod fixture;
mod foreign;
mod lifeline;
mod limits;
mod machine;
mod namespace;
mod scale;
