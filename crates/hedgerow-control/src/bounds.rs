//! Bounds on what a peer can cause: how often it is noted, how often it is answered.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;

/// At most one event of a kind in this time.
const NOTED_EVERY: Duration = Duration::from_secs(10);
/// Most kinds remembered; beyond them the oldest are forgotten.
const KINDS_MAX: usize = 4096;

/// Who caused it, when that is proven, and what it was.
type Cause = (Option<DeviceId>, &'static str);

/// Lets one of many equal events through now and then, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    noted: Mutex<BTreeMap<Cause, (Mono, u64)>>,
}

impl Sampler {
    /// Returns how many such events the one at `now` stands for; `None` leaves it out.
    pub(crate) fn due(
        &self,
        device: Option<DeviceId>,
        what: &'static str,
        now: Mono,
    ) -> Option<u64> {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() >= KINDS_MAX {
            noted.retain(|_, (at, _)| now.since(*at) < NOTED_EVERY);
        }
        if noted.len() >= KINDS_MAX && !noted.contains_key(&(device, what)) {
            return None;
        }
        match noted.get_mut(&(device, what)) {
            Some((at, more)) if now.since(*at) < NOTED_EVERY => {
                *more += 1;
                None
            }
            Some(known) => {
                let (_, more) = std::mem::replace(known, (now, 0));
                Some(more + 1)
            }
            None => {
                noted.insert((device, what), (now, 0));
                Some(1)
            }
        }
    }
}

/// A bucket of permits that fills again.
#[derive(Debug)]
pub(crate) struct Rate {
    left: u32,
    most: u32,
    every: Duration,
    filled_at: Mono,
}

impl Rate {
    /// Begins full, with `most` permits; a new one comes each `every`.
    pub(crate) fn new(most: u32, every: Duration, now: Mono) -> Self {
        Self {
            left: most,
            most,
            every,
            filled_at: now,
        }
    }

    /// Takes a permit, if there is one.
    pub(crate) fn take(&mut self, now: Mono) -> bool {
        let since = now.since(self.filled_at).as_millis();
        let fresh = since / self.every.as_millis().max(1);
        if fresh > 0 {
            let fresh = u32::try_from(fresh).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(fresh).min(self.most);
            self.filled_at = now;
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Mono {
        Mono(Duration::from_secs(secs))
    }

    #[test]
    fn a_stranger_cannot_push_out_events_by_asking_often() {
        let sampler = Sampler::default();
        assert_eq!(sampler.due(None, "token_unknown", at(1)), Some(1));
        for _ in 0..9999 {
            assert_eq!(sampler.due(None, "token_unknown", at(2)), None);
        }
        let other = Some(DeviceId([1; 16]));
        assert_eq!(sampler.due(other, "token_unknown", at(2)), Some(1));
        assert_eq!(sampler.due(None, "token_unknown", at(11)), Some(10_000));
    }

    #[test]
    fn what_is_remembered_of_causes_is_bounded() {
        let sampler = Sampler::default();
        for i in 0..20_000u32 {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&i.to_be_bytes());
            sampler.due(Some(DeviceId(id)), "hand_up", at(1));
        }
        assert!(sampler.noted.lock().unwrap().len() <= KINDS_MAX);
        assert_eq!(sampler.due(None, "malformed", at(20)), Some(1));
    }

    #[test]
    fn permits_come_back_at_their_rate_and_no_faster() {
        let mut rate = Rate::new(3, Duration::from_millis(500), at(0));
        assert!((0..3).all(|_| rate.take(at(0))));
        assert!(!rate.take(at(0)));
        assert!(rate.take(at(1)) && rate.take(at(1)));
        assert!(!rate.take(at(1)));
        let later = (0..10).filter(|_| rate.take(at(1000))).count();
        assert_eq!(later, 3, "a long silence saves up no more than the bucket");
    }
}
