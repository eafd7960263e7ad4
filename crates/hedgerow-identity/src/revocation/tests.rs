use hedgerow_model::id::SiteName;
use proptest::prelude::*;

use super::*;
use crate::testing::{DAY, NOW, now_at};

fn entry(byte: u8, drop_after_secs: u64) -> Revocation {
    Revocation {
        what: Revoked::Device(DeviceId([byte; 16])),
        at_secs: NOW,
        drop_after_secs,
        reason: "lost".into(),
    }
}

fn version(number: u64) -> Revision {
    Revision {
        timeline: 0,
        number,
    }
}

fn list(bytes: &[u8]) -> RevocationList {
    let entries = bytes.iter().map(|b| entry(*b, NOW + DAY));
    next_list(version(1), entries, [], now_at(NOW))
}

#[test]
fn only_new_entries_are_acted_upon() {
    let (old, new) = (list(&[1, 2]), list(&[2, 3]));
    let three = Revoked::Device(DeviceId([3; 16]));
    assert_eq!(newly_revoked(Some(&old), &new), [three]);
    assert_eq!(newly_revoked(None, &new).len(), 2);
    assert_eq!(newly_revoked(Some(&new), &new), []);
}

#[test]
fn a_longer_stay_is_not_news() {
    let old = next_list(version(1), [entry(1, NOW + DAY)], [], now_at(NOW));
    let new = next_list(version(2), [entry(1, NOW + 9 * DAY)], [], now_at(NOW));
    assert_eq!(newly_revoked(Some(&old), &new), []);
}

#[test]
fn raised_epochs_are_news() {
    let id = |byte| DeviceId([byte; 16]);
    let make = |epochs: &[(u8, u64)]| {
        let epochs: Vec<_> = epochs.iter().map(|(b, e)| (id(*b), *e)).collect();
        next_list(version(1), [], epochs, now_at(NOW))
    };
    let (old, new) = (make(&[(1, 3), (2, 5)]), make(&[(1, 4), (2, 5), (3, 1)]));
    assert_eq!(raised_epochs(Some(&old), &new), [(id(1), 4), (id(3), 1)]);
    assert_eq!(raised_epochs(None, &old).len(), 2);
}

#[test]
fn entries_leave_when_their_time_has_passed_and_the_clock_is_trusted() {
    let entries = || [entry(1, NOW - 1), entry(2, NOW)];
    let kept = next_list(version(2), entries(), [], now_at(NOW));
    assert_eq!(kept.entries, [entry(2, NOW)]);
    let mut untrusted = now_at(NOW);
    untrusted.wall_is_trusted = false;
    let kept = next_list(version(2), entries(), [], untrusted);
    assert_eq!(kept.entries.len(), 2);
}

#[test]
fn what_is_doubled_stays_as_long_as_the_longest() {
    let entries = [entry(1, NOW + 9), entry(1, NOW + 5), entry(1, NOW + 7)];
    let list = next_list(version(1), entries, [], now_at(NOW));
    assert_eq!(list.entries, [entry(1, NOW + 9)]);
    let id = DeviceId([1; 16]);
    let epochs = [(id, 5), (id, 9), (id, 7)];
    let list = next_list(version(1), [], epochs, now_at(NOW));
    assert_eq!(list.min_epochs, [(id, 9)]);
}

proptest! {
    #[test]
    fn any_next_list_keeps_the_bounds_that_receivers_check(
        devices: Vec<u8>,
        sites in prop::collection::vec("[a-z]{1,3}", 0..8),
        epochs: Vec<(u8, u64)>,
    ) {
        let by_site = sites.iter().map(|name| Revocation {
            what: Revoked::Site(SiteName::new(name).unwrap()),
            ..entry(0, NOW + DAY)
        });
        let entries = devices.iter().map(|b| entry(*b, NOW + DAY)).chain(by_site);
        let epochs = epochs.iter().map(|(b, e)| (DeviceId([*b; 16]), *e));
        let list = next_list(version(1), entries, epochs, now_at(NOW));
        prop_assert_eq!(check(&list), Ok(()));
    }
}
