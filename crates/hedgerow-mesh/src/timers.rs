//! Deadlines by key: one per key, the earliest found at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_model::Mono;

/// A set of timers. As large as the tables whose entries it times.
pub(crate) struct Timers<K> {
    by_key: BTreeMap<K, Nanos>,
    by_time: BTreeSet<(Nanos, K)>,
}

/// A moment in half the room: each peer has several timers, each of which is kept twice. The last one is never.
type Nanos = u64;

fn nanos(at: Mono) -> Nanos {
    Nanos::try_from(at.0.as_nanos()).unwrap_or(Nanos::MAX)
}

fn mono(at: Nanos) -> Mono {
    match at {
        Nanos::MAX => Mono::NEVER,
        at => Mono(Duration::from_nanos(at)),
    }
}

impl<K: Copy + Ord> Timers<K> {
    pub(crate) fn new() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    pub(crate) fn set(&mut self, key: K, at: Mono) {
        let at = nanos(at);
        if let Some(old) = self.by_key.insert(key, at) {
            self.by_time.remove(&(old, key));
        }
        self.by_time.insert((at, key));
    }

    pub(crate) fn clear(&mut self, key: K) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
    }

    pub(crate) fn is_set(&self, key: K) -> bool {
        self.by_key.contains_key(&key)
    }

    pub(crate) fn first(&self) -> Option<(Mono, K)> {
        self.by_time.first().map(|(at, key)| (mono(*at), *key))
    }

    /// Takes one timer that is due.
    pub(crate) fn due(&mut self, now: Mono) -> Option<K> {
        let (at, key) = self.first()?;
        if at > now {
            return None;
        }
        self.clear(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_timer_moves_and_fires_once() {
        let at = |s| Mono::ZERO + Duration::from_secs(s);
        let mut timers = Timers::new();
        timers.set('a', at(5));
        timers.set('b', at(3));
        timers.set('a', at(1));
        assert_eq!(timers.first(), Some((at(1), 'a')));
        assert_eq!(timers.due(at(0)), None);
        assert_eq!(
            (timers.due(at(4)), timers.due(at(4)), timers.due(at(9))),
            (Some('a'), Some('b'), None)
        );
        timers.set('c', Mono::NEVER);
        assert_eq!(timers.first(), Some((Mono::NEVER, 'c')));
    }
}
