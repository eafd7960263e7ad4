//! One identity at two places, as peers see it: a disk was copied, both run, and no controller is there to tell.
//!
//! Each copy signs a WireGuard key of its own; a peer takes the newer statement and refuses the other. A device that
//! took a new key has forgotten the one before, so whoever shows an older statement in a new introduction, while
//! the newer one's holder is in session, is somebody else with the same identity. One such introduction
//! may have been under way when the key changed; three are not.

use std::collections::BTreeMap;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;

/// Devices that are watched at once; with more, one is not, until another has been quiet for [`WATCHED_FOR`].
pub(super) const WATCHED_MAX: usize = 256;
/// How long introductions are counted together, and how often at most a device is told of.
pub(super) const WATCHED_FOR: Duration = Duration::from_secs(3600);
/// So many older statements are no accident.
const OLDER_TOLD: u64 = 3;

/// Who shows older statements, and how often.
#[derive(Debug, Default)]
pub(super) struct Twins {
    watched: BTreeMap<DeviceId, Watched>,
}

#[derive(Debug)]
struct Watched {
    since: Mono,
    older: u64,
    is_told: bool,
}

impl Twins {
    /// Notes that `count` introductions of a device showed an older statement while the newer one's holder was in
    /// session; returns how many there were when that is to be told.
    pub(super) fn handle_older(&mut self, device: DeviceId, count: u64, now: Mono) -> Option<u64> {
        self.watched.retain(|_, w| now.since(w.since) < WATCHED_FOR);
        if self.watched.len() >= WATCHED_MAX && !self.watched.contains_key(&device) {
            return None;
        }
        let watched = self.watched.entry(device).or_insert(Watched {
            since: now,
            older: 0,
            is_told: false,
        });
        watched.older = watched.older.saturating_add(count);
        let tells = watched.older >= OLDER_TOLD && !watched.is_told;
        watched.is_told |= tells;
        tells.then_some(watched.older)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: usize) -> DeviceId {
        DeviceId(u128::try_from(n).unwrap().to_be_bytes())
    }

    fn at(secs: u64) -> Mono {
        Mono::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_copied_key_is_told_of_once_an_hour_and_a_change_of_keys_is_not() {
        let mut twins = Twins::default();
        assert_eq!(twins.handle_older(device(1), 1, at(0)), None, "under way");
        assert_eq!(
            twins.handle_older(device(2), 1, at(1)),
            None,
            "another device"
        );
        assert_eq!(twins.handle_older(device(1), 1, at(10)), None);
        assert_eq!(twins.handle_older(device(1), 2, at(20)), Some(4));
        for secs in (30..3600).step_by(10) {
            assert_eq!(
                twins.handle_older(device(1), 1, at(secs)),
                None,
                "it is told"
            );
        }
        assert_eq!(twins.handle_older(device(1), 2, at(3600)), None, "anew");
        assert_eq!(twins.handle_older(device(1), 1, at(3610)), Some(3));
        assert_eq!(
            twins.handle_older(device(2), 2, at(3700)),
            None,
            "too long ago"
        );
    }

    #[test]
    fn a_crowd_of_copied_keys_is_bounded() {
        let mut twins = Twins::default();
        for n in 0..10 * WATCHED_MAX {
            twins.handle_older(device(n), 9, at(5));
        }
        assert_eq!(twins.watched.len(), WATCHED_MAX);
        let last = device(10 * WATCHED_MAX);
        assert_eq!(twins.handle_older(last, 9, at(6)), None);
        assert_eq!(twins.handle_older(last, 9, at(3605)), Some(9));
    }
}
