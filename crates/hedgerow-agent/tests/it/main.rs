//! The program itself on a machine that lacks something: it says what, how to mend it, and loses nothing.
//!
//! Each device lives in namespaces of its own, which end with the script that runs in them. Needs root
//! and the Debian packages that `cargo xtask test` installs.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod configuration;
mod device;
mod disk;
mod machine;
mod tokens;

use self::device::Device;
