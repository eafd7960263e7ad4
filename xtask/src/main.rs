//! Hedgerow.
fn main() {}
