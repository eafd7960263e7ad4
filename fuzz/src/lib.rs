//! Fuzz targets for every decoder of bytes from the network or from a file that others wrote.
//!
//! Run one with `cargo +nightly fuzz run TARGET`; the corpora under `corpus/` are replayed by the
//! workspace's tests, with any toolchain.

pub mod targets;
