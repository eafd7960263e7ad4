//! The only source of chance: everything in a run follows from its seed.

use std::convert::Infallible;
use std::time::Duration;

use rand_core::{TryCryptoRng, TryRng};

/// SplitMix64 (Steele, Lea, Flood 2014). Keys made from it are for simulated devices alone.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a generator of its own for one purpose, so that draws for one do not shift another's.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.draw())
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws a number below `n`; zero when `n` is.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.draw() % n).unwrap_or_default()
    }

    /// Says yes so many times in a thousand.
    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        self.draw() % 1000 < u64::from(per_mille)
    }

    pub(super) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }

    /// Draws a time from zero up to `most`.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.draw() % micros.max(1))
    }

    pub(super) fn fill(&mut self, dst: &mut [u8]) {
        for part in dst.chunks_mut(8) {
            let bytes = self.draw().to_le_bytes();
            part.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.bytes()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.draw())
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        self.fill(dst);
        Ok(())
    }
}

impl TryCryptoRng for Random {}
