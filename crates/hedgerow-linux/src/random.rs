//! Random bytes straight from the kernel.
//!
//! The TLS provider's own generator gathers entropy of its own for tens of milliseconds when it is first
//! used; an agent that starts again has packets waiting for less than that.

use std::io;

/// Fills `dst` with random bytes; waits only while a machine that just booted has none.
///
/// # Errors
///
/// When the kernel has no source of randomness at all.
pub fn fill(dst: &mut [u8]) -> io::Result<()> {
    getrandom::fill(dst).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_differ() {
        let (mut one, mut other) = ([0; 32], [0; 32]);
        fill(&mut one).unwrap();
        fill(&mut other).unwrap();
        assert_ne!(one, other);
        assert_ne!(one, [0; 32]);
    }
}
