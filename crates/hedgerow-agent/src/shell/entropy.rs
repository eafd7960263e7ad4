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

/// Returns a random seed for jitter.
pub(crate) fn seed() -> u64 {
    u64::from_ne_bytes(bytes())
}

/// Lets the TLS provider's generator gather what it begins with, so that no handshake waits for it.
pub(crate) fn warm() {
    if aws_lc_rs::rand::fill(&mut [0; 1]).is_err() {
        tracing::warn!("the TLS provider has no randomness");
    }
}

/// Fills `dst`. The kernel's generator fails only when the kernel has no entropy source at all;
/// then there is no safe way on, and waiting for one is the safest state.
fn fill(dst: &mut [u8]) {
    while hedgerow_linux::random::fill(dst).is_err() {
        std::thread::yield_now();
    }
}
