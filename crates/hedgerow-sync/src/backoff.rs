//! When to connect again.

use std::time::Duration;

use hedgerow_model::Mono;

/// First and smallest bound of the wait.
const BASE: Duration = Duration::from_secs(1);
/// Largest bound of the wait.
const CAP: Duration = Duration::from_secs(60);

/// Full-jitter exponential back-off: agents that lost their controller together do not come back
/// together.
#[derive(Debug, Clone)]
pub struct Backoff {
    failures: u32,
    dice: Dice,
}

impl Backoff {
    /// Starts without a failure. `seed` differs from device to device and start to start.
    pub fn new(seed: u64) -> Self {
        Self {
            failures: 0,
            dice: Dice(seed),
        }
    }

    /// Notes that a connection failed or broke and returns when to try again.
    pub fn handle_failure(&mut self, now: Mono) -> Mono {
        let bound = BASE
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(CAP);
        self.failures = self.failures.saturating_add(1).min(16);
        now + BASE / 4 + self.dice.below(bound)
    }

    /// Notes that the controller asked for a pause and returns when to try again: never earlier than
    /// asked, spread over half as much again.
    pub fn handle_busy(&mut self, retry_after: Duration, now: Mono) -> Mono {
        let wait = retry_after.min(CAP * 10);
        now + wait + self.dice.below(wait / 2 + BASE)
    }

    /// Notes that a session opened: the next failure starts from the smallest wait.
    pub fn handle_success(&mut self) {
        self.failures = 0;
    }
}

/// A small generator for jitter; nothing secret comes from it (`SplitMix64`).
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a duration from zero to `bound`.
    pub(crate) fn below(&mut self, bound: Duration) -> Duration {
        let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.next() % millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_spread_and_stay_bounded() {
        let mut backoff = Backoff::new(7);
        let mut latest = Duration::ZERO;
        for _ in 0..40 {
            let wait = backoff.handle_failure(Mono::ZERO).0;
            assert!(wait <= CAP + BASE);
            latest = latest.max(wait);
        }
        assert!(latest > CAP / 2);
        backoff.handle_success();
        assert!(backoff.handle_failure(Mono::ZERO).0 <= BASE * 2);
        let busy = backoff.handle_busy(Duration::from_secs(10), Mono::ZERO).0;
        assert!(busy >= Duration::from_secs(10) && busy <= Duration::from_secs(16));
    }
}
