//! The one place where randomness comes from.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};

/// The system's generator, as the nouns take it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemRandom;

impl TryRng for SystemRandom {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_ne_bytes(bytes()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_ne_bytes(bytes()))
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        fill(dst);
        Ok(())
    }
}

impl TryCryptoRng for SystemRandom {}

/// Returns `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}

/// Fills `dst`. The provider's generator fails only when the kernel has no entropy source at all;
/// then there is no safe way on, and waiting for one is the safest state.
fn fill(dst: &mut [u8]) {
    while aws_lc_rs::rand::fill(dst).is_err() {
        std::thread::yield_now();
    }
}
