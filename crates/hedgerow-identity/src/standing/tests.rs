use hedgerow_model::id::DeviceId;
use hedgerow_model::program::DeviceState;

use super::*;
use crate::statement::sign_states;
use crate::testing::{DAY, NOW, Plant, now_at, site};

const END: u64 = NOW + 7 * DAY;

fn validity(standing: &Standing, of: Option<&str>, at: u64) -> Validity {
    let of = of.map(site);
    standing.validity(END, of.as_ref(), now_at(at))
}

#[test]
fn age_takes_a_ticket_through_its_states() {
    let standing = Standing::new(Some(site("s1")));
    let at = |at| validity(&standing, Some("s1"), at);
    assert_eq!(at(END), Validity::Valid);
    assert_eq!(at(END + 1), Validity::Grace);
    assert_eq!(at(END + 30 * DAY), Validity::Grace);
    assert_eq!(at(END + 30 * DAY + 1), Validity::RenewOnly);
    assert_eq!(at(END + 180 * DAY), Validity::RenewOnly);
    assert_eq!(at(END + 180 * DAY + 1), Validity::Dead);
}

#[test]
fn grace_ends_where_a_beacon_shows_that_renewal_was_possible() {
    let plant = Plant::new();
    for (issued, expected) in [
        (END - DAY, Validity::Grace),
        (END - DAY + 1, Validity::RenewOnly),
        (END + DAY, Validity::RenewOnly),
    ] {
        let mut standing = Standing::new(Some(site("s1")));
        standing.adopt_beacon(plant.beacon(issued));
        assert_eq!(validity(&standing, Some("s1"), END + 2 * DAY), expected);
    }
}

#[test]
fn grace_reaches_only_the_same_site() {
    let device = Standing::new(Some(site("s1")));
    let controller = Standing::new(None);
    let at = END + 1;
    assert_eq!(validity(&device, Some("s2"), at), Validity::RenewOnly);
    assert_eq!(validity(&device, None, at), Validity::RenewOnly);
    assert_eq!(validity(&controller, Some("s1"), at), Validity::RenewOnly);
    assert_eq!(validity(&controller, None, at), Validity::RenewOnly);
}

#[test]
fn grace_can_be_configured_away_and_is_bounded() {
    let mut standing = Standing::new(Some(site("s1")));
    standing.set_grace(Duration::ZERO);
    assert_eq!(
        validity(&standing, Some("s1"), END + 1),
        Validity::RenewOnly
    );
    standing.set_grace(Duration::MAX);
    assert_eq!(
        validity(&standing, Some("s1"), END + 366 * DAY),
        Validity::Dead
    );
}

#[test]
fn a_time_that_cannot_be_trusted_is_a_lower_bound() {
    let standing = Standing::new(Some(site("s1")));
    let mut now = now_at(END + 200 * DAY);
    now.wall_is_trusted = false;
    assert_eq!(
        standing.validity(END, Some(&site("s1")), now),
        Validity::Dead
    );
}

#[test]
fn lists_only_go_forward() {
    let plant = Plant::new();
    let mut standing = Standing::new(Some(site("s1")));
    let device = Revoked::Device(DeviceId([7; 16]));
    let two = plant.revocations(2, std::slice::from_ref(&device));
    let news = standing.adopt_revocations(two.clone()).unwrap();
    assert_eq!(news, std::slice::from_ref(&device));
    assert_eq!(standing.adopt_revocations(two).unwrap(), []);
    let older = standing.adopt_revocations(plant.revocations(1, &[]));
    assert_eq!(older.unwrap_err().what, "revocation list");
    assert!(standing.is_revoked(&device));
    let other = Revoked::Site(site("s2"));
    let three = plant.revocations(3, &[device.clone(), other.clone()]);
    assert_eq!(standing.adopt_revocations(three).unwrap(), [other]);
    let four = plant.revocations(4, &[]);
    standing.adopt_revocations(four).unwrap();
    assert!(!standing.is_revoked(&device));
}

#[test]
fn a_beacon_never_goes_back() {
    let plant = Plant::new();
    let mut standing = Standing::new(Some(site("s1")));
    assert!(standing.adopt_beacon(plant.beacon(NOW)));
    assert!(!standing.adopt_beacon(plant.beacon(NOW)));
    assert!(!standing.adopt_beacon(plant.beacon(NOW - 1)));
    assert!(standing.adopt_beacon(plant.beacon(NOW + 1)));
    assert_eq!(standing.beacon().unwrap().issued_secs, NOW + 1);
}

#[test]
fn states_are_found_by_device() {
    let plant = Plant::new();
    let mut standing = Standing::new(None);
    let id = |byte| DeviceId([byte; 16]);
    let states = |number, entries: Vec<(DeviceId, DeviceState)>| {
        let revision = Revision {
            timeline: 0,
            number,
        };
        let signed = sign_states(&States { revision, entries }, &plant.policy).unwrap();
        plant.trust.verify_states(&signed).unwrap()
    };
    let entries = vec![(id(1), DeviceState::Held), (id(3), DeviceState::Quarantine)];
    standing.adopt_states(states(2, entries)).unwrap();
    assert_eq!(standing.state(id(1)), Some(DeviceState::Held));
    assert_eq!(standing.state(id(2)), None);
    assert_eq!(standing.state(id(3)), Some(DeviceState::Quarantine));
    assert!(standing.adopt_states(states(1, vec![])).is_err());
    assert_eq!(standing.state(id(3)), Some(DeviceState::Quarantine));
}

#[test]
fn a_key_that_is_no_key_is_revoked_as_soon_as_keys_are() {
    let plant = Plant::new();
    let nonsense = P256Public([0xff; 33]);
    let id = DeviceId([7; 16]);
    let before = plant.standing_without(&[]);
    assert_eq!(before.revocation_of(id, &site("s1"), &nonsense), None);
    let after = plant.standing_without(&[Revoked::Key(crate::testing::digest(1))]);
    assert!(after.revocation_of(id, &site("s1"), &nonsense).is_some());
}
