//! Randomness from one seed: unpredictable outside, repeatable in a test.

use std::time::Duration;

use blake2::{Blake2s256, Digest as _};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// A generator whose past outputs cannot be computed from its present state.
pub(crate) struct Random {
    state: Zeroizing<[u8; 32]>,
}

impl Random {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self {
            state: Zeroizing::new(seed),
        }
    }

    pub(crate) fn bytes(&mut self) -> Zeroizing<[u8; 32]> {
        let step = |label: &[u8]| -> [u8; 32] {
            Blake2s256::new()
                .chain_update(label)
                .chain_update(self.state.as_slice())
                .finalize()
                .into()
        };
        let (out, next) = (step(b"hedgerow mesh out"), step(b"hedgerow mesh next"));
        *self.state = next;
        Zeroizing::new(out)
    }

    pub(crate) fn secret(&mut self) -> StaticSecret {
        StaticSecret::from(*self.bytes())
    }

    /// Returns a duration between three quarters and five quarters of `mean`.
    pub(crate) fn jitter(&mut self, mean: Duration) -> Duration {
        mean * 3 / 4 + self.up_to(mean / 2)
    }

    /// Returns a duration from zero to `most`.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        let bytes = self.bytes();
        let part = bytes
            .first_chunk::<2>()
            .map_or(0, |two| u16::from_be_bytes(*two));
        most * u32::from(part) / u32::from(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_keeps_its_bounds() {
        let mut random = Random::new([1; 32]);
        let mean = Duration::from_secs(4);
        let drawn: Vec<_> = (0..200).map(|_| random.jitter(mean)).collect();
        assert!(
            drawn
                .iter()
                .all(|d| (mean * 3 / 4..=mean * 5 / 4).contains(d))
        );
        assert!(drawn.iter().any(|d| *d < mean) && drawn.iter().any(|d| *d > mean));
    }
}
