//! What somebody tries who is not to be served: with an expired certificate, with a revoked one, as
//! somebody else, and against a controller that was restored.

use std::time::Duration;

use hedgerow_identity::enroll::wire::EnrollReply;
use hedgerow_identity::key::SoftwareEd25519;
use hedgerow_identity::statement::sign_revocations;
use hedgerow_model::id::{Revision, SiteName};
use hedgerow_model::resource::ResourceKind;
use hedgerow_model::statement::{Revocation, RevocationList, Revoked};
use hedgerow_sync::agent::Output;
use serde_json::json;

use crate::agent::{self, Device, Uplink};
use crate::central::{Central, FAKETIME};
use crate::{POLICY, fleet};

/// Beyond the life of a device's certificate, within its grace.
const EXPIRED: &str = "+8d";

fn is_held(o: &Output, why: &str) -> bool {
    matches!(o, Output::Held(said) if said.contains(why))
}

/// A controller that knows two devices whose certificates have expired.
fn with_expired_devices() -> (Central, Device, Device) {
    let mut central = Central::started();
    let (sensor, collector) = fleet(&central);
    let (status, answer) = central.ask("POST", "policy/apply", POLICY);
    assert_eq!(status, 200, "{answer}");
    central.stop();
    central.start_with(&[
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME", EXPIRED),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]);
    (central, sensor, collector)
}

/// Tries everything that only a served agent may do, then renews.
fn gets_only_renewal(central: &Central, a: &mut Uplink<'_>, other: &Device) {
    let elsewhere = "192.0.2.66:7117".parse().unwrap();
    a.session
        .endpoints(vec![hedgerow_model::address::Underlay(elsewhere)], vec![])
        .unwrap();
    assert!(!a.resolves(other.id));
    a.session.leave().unwrap();
    a.settle(Duration::from_millis(300));
    let (status, answer) = central.ask("POST", "policy/apply", &POLICY.replace("mqtts", "ssh"));
    assert_eq!(status, 200, "{answer}");
    a.renew(&agent::new_key());
    a.expect("a certificate", |o| matches!(o, Output::Renewed(_)));
    a.settle(Duration::from_millis(300));
    assert!(a.session.is_open(), "it did not leave");
    assert_eq!(a.updates, 0, "it is told nothing");
    assert!(!central.has_event("device_left"));
    assert_eq!(central.get("devices/a")["endpoints"], json!([]));
}

#[test]
fn an_expired_certificate_gets_nothing_but_renewal() {
    let (central, mut sensor, collector) = with_expired_devices();
    sensor.claim("192.0.2.65:7117");
    let mut a = sensor.connect(&central);
    a.expect("being held", |o| is_held(o, "expired"));
    gets_only_renewal(&central, &mut a, &collector);
}

#[test]
fn an_expired_certificate_that_waited_for_its_place_gets_nothing_but_renewal() {
    let (central, mut sensor, collector) = with_expired_devices();
    sensor.claim("192.0.2.65:7117");
    let mut later = sensor.copied();
    later.age(5);
    let mut a = sensor.connect(&central);
    a.expect("being held", |o| is_held(o, "expired"));
    let mut b = later.connect(&central);
    b.expect("being held", |o| is_held(o, "another session"));
    drop(a);
    b.expect("being promoted", |o| is_held(o, "expired"));
    gets_only_renewal(&central, &mut b, &collector);
}

#[test]
fn a_session_does_not_outlive_its_certificate() {
    let mut central = Central::new();
    let time = central.dir.join("time");
    std::fs::write(&time, "+0").unwrap();
    central.start_with(&[
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME_TIMESTAMP_FILE", time.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]);
    let (mut sensor, _) = fleet(&central);
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    central.until("all is said", || {
        a.settle(Duration::from_millis(50));
        central.get("devices/a")["verified"] == json!(true)
    });
    // As when the days went by; the session looks at the clock when something wakes it.
    std::fs::write(&time, EXPIRED).unwrap();
    a.speak();
    let why = a.until_closed();
    assert!(why.contains("expired"), "{why}");
    let mut a = sensor.connect(&central);
    a.expect("being held", |o| is_held(o, "expired"));
}

/// A list that the controller's own key signed, as after a restore when only a device has it left.
fn revocations(central: &Central, what: Revoked) -> Vec<u8> {
    let pem = std::fs::read_to_string(central.dir.join("keys/revocation.pem")).unwrap();
    let key = SoftwareEd25519::from_pkcs8_pem(&pem).unwrap();
    let list = RevocationList {
        version: Revision {
            timeline: 1,
            number: 1000,
        },
        issued_secs: 1,
        entries: vec![Revocation {
            what,
            at_secs: 1,
            drop_after_secs: u64::MAX >> 1,
            reason: "stolen".to_owned(),
        }],
        min_epochs: Vec::new(),
    };
    sign_revocations(&list, &key).unwrap()
}

fn ends_an_open_session(what: impl FnOnce(&Device) -> Revoked) {
    let central = Central::started();
    central.post("sites", &json!({"name": "s1"}));
    central.post("sites", &json!({"name": "s2"}));
    let mut stolen = central.enroll(json!({"site": "s1", "name": "a"}));
    let mut other = central.enroll(json!({"site": "s2", "name": "b"}));
    let list = revocations(&central, what(&stolen));
    let (mut a, mut b) = (stolen.connect(&central), other.connect(&central));
    a.until("a program", |u| u.holds(ResourceKind::Program));
    b.until("a program", |u| u.holds(ResourceKind::Program));
    b.hand_up(ResourceKind::Revocations, list);
    b.settle(Duration::from_millis(50));
    a.until_closed();
    drop((a, b));
    let why = stolen.try_connect(&central).err().unwrap();
    assert!(why.contains("revoked"), "{why}");
}

#[test]
fn a_revoked_key_ends_its_open_session() {
    ends_an_open_session(|d| Revoked::Key(d.key_digest()));
}

#[test]
fn a_revoked_site_ends_its_open_sessions() {
    ends_an_open_session(|_| Revoked::Site(SiteName::new("s1").unwrap()));
}

#[test]
fn a_revoked_issuer_ends_every_open_session() {
    ends_an_open_session(|d| Revoked::Issuer(d.issuer()));
}

#[test]
fn a_revocation_between_the_door_and_the_greeting_is_not_missed() {
    let central = Central::started();
    let (mut stolen, mut other) = fleet(&central);
    let list = revocations(&central, Revoked::Key(stolen.key_digest()));
    let door = stolen.pass_door(&central).unwrap();
    let mut b = other.connect(&central);
    b.until("a program", |u| u.holds(ResourceKind::Program));
    b.hand_up(ResourceKind::Revocations, list);
    b.until("the revocation", |u| !u.revocations().entries.is_empty());
    let why = match stolen.greet(door) {
        Ok(mut a) => {
            let why = a.until_closed();
            assert_eq!(a.updates, 0, "it is told nothing");
            why
        }
        Err(why) => why,
    };
    assert!(why.contains("revoked"), "{why}");
}

#[test]
fn after_a_restore_an_unknown_device_is_not_told_to_remove_its_program() {
    let mut central = Central::started();
    central.post("sites", &json!({"name": "s1"}));
    let file = central.dir.with_extension("backup");
    central.run(&["backup", file.to_str().unwrap(), "--config"]);
    central.post("sites", &json!({"name": "s2"}));
    let mut foreign = central.enroll(json!({"site": "s2", "name": "foreign"}));
    let mut silent = central.enroll(json!({"site": "s1", "name": "silent"}));
    for device in [&mut foreign, &mut silent] {
        let mut a = device.connect(&central);
        a.until("a program", |u| u.holds(ResourceKind::Program));
        a.close();
    }
    central.restore(&file);
    // One hands up a ticket of a site that is not there, one nothing at all.
    silent.fall_silent();
    for device in [&mut foreign, &mut silent] {
        let mut a = device.connect(&central);
        let why = a.until_closed();
        assert!(why.contains("does not know the device"), "{why}");
        assert_eq!(a.updates, 0, "unknown is not the same as nothing to hold");
        assert!(a.holds(ResourceKind::Program));
    }
}

#[test]
fn a_stranger_is_not_approved_by_its_hostname_or_a_short_fingerprint() {
    let central = Central::started();
    central.post("sites", &json!({"name": "s1"}));
    let reply = central.enroll_without(&agent::new_key(), agent::new_introduction_key());
    let EnrollReply::Pending { fingerprint, .. } = reply else {
        panic!("{reply:?}");
    };
    let plain = fingerprint.replace('-', "");
    let body = json!({"site": "s1", "name": "approved"}).to_string();
    let approve = |text: &str| {
        let path = format!("devices/{text}/approve");
        central.ask("POST", &path, &body).0
    };
    assert_eq!(
        (approve("test-host"), approve(plain.get(..7).unwrap())),
        (404, 404)
    );
    assert_eq!(approve(plain.get(..8).unwrap()), 200);
}
