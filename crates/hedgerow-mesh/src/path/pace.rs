//! What paths under suspicion may cost, all peers together.
//!
//! A peer that fell silent is probed fast, because somebody may wait for it. When thousands fall silent at
//! once, because they were switched off or this device lost its network, that would be all that this device
//! does: so each round of probes comes out of a budget. Peers to which packets go have one of their own, large
//! enough for a relay that dies under a thousand of them.

use std::time::Duration;

use hedgerow_model::Mono;

use crate::budget::{Bucket, Rate};

/// Probes per second, and at once, of suspected paths to peers to which packets go.
pub const WANTED_PROBES: Rate = Rate {
    per_second: 512,
    burst: 4096,
};
/// The same to peers to which none go.
pub const IDLE_PROBES: Rate = Rate {
    per_second: 64,
    burst: 256,
};
/// Peers per second, and at once, that are looked for elsewhere although no packet goes to them.
pub const IDLE_LOST: Rate = Rate {
    per_second: 1,
    burst: 16,
};
/// How long a peer is put off for which nothing is left; each next time twice as long.
const PUT_OFF: Duration = Duration::from_millis(250);
/// The longest, where packets go to it.
const PUT_OFF_WANTED_MAX: Duration = Duration::from_secs(2);
/// The longest, where none do.
const PUT_OFF_IDLE_MAX: Duration = Duration::from_secs(16);

/// The budgets.
pub(super) struct Pace {
    wanted: Bucket,
    idle: Bucket,
    lost: Bucket,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            wanted: Bucket::full(WANTED_PROBES, Mono::ZERO),
            idle: Bucket::full(IDLE_PROBES, Mono::ZERO),
            lost: Bucket::full(IDLE_LOST, Mono::ZERO),
        }
    }

    /// Takes up to `probes`; returns how many may be sent.
    pub(super) fn take(&mut self, is_wanted: bool, probes: usize, now: Mono) -> usize {
        let (bucket, rate) = match is_wanted {
            true => (&mut self.wanted, WANTED_PROBES),
            false => (&mut self.idle, IDLE_PROBES),
        };
        (0..probes).take_while(|_| bucket.take(rate, now)).count()
    }

    /// Returns whether a peer that no path leads to may be looked for elsewhere.
    pub(super) fn may_look_for(&mut self, is_wanted: bool, now: Mono) -> bool {
        is_wanted || self.lost.take(IDLE_LOST, now)
    }
}

/// Returns how long a peer waits that was put off so often in a row.
pub(super) fn put_off(is_wanted: bool, times: u32) -> Duration {
    let most = match is_wanted {
        true => PUT_OFF_WANTED_MAX,
        false => PUT_OFF_IDLE_MAX,
    };
    (PUT_OFF * 2u32.saturating_pow(times.min(10))).min(most)
}

#[cfg(test)]
mod tests;
