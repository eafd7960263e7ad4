//! Every invariant is seen to fail: the part that holds it is broken, and the run must say so.

use super::super::hostile::Hostility;
use super::super::plant::{Flow, Kind};
use super::*;

/// Runs one seed with a part broken; returns what was found.
fn found(broken: Broken, seed: u64) -> Vec<String> {
    let shape = Shape {
        broken: Some(broken),
        ..shape(seed, 16, 16)
    };
    let outcome = run(shape, |_| ControlFlow::Continue(())).unwrap().unwrap();
    outcome.findings
}

fn assert_says(findings: &[String], part: &str) {
    assert!(
        findings.iter().any(|f| f.contains(part)),
        "nothing says \"{part}\": {findings:#?}"
    );
}

#[test]
fn a_device_that_keeps_whom_it_knows_to_be_revoked_is_found() {
    let findings = found(Broken::Revocation, 1);
    assert_says(&findings, "who are revoked");
}

#[test]
fn what_a_relay_could_read_is_found() {
    let findings = found(Broken::Sealing, 1);
    assert_says(&findings, "could read what it passed on");
}

#[test]
fn a_strict_device_that_does_not_wait_for_its_key_is_found() {
    let findings = found(Broken::Waiting, 1);
    assert_says(&findings, "without a pre-shared key");
}

#[test]
fn devices_that_gossip_too_much_are_found() {
    let findings = found(Broken::Chatter, 1);
    assert_says(&findings, "of gossip per device while nothing happens");
}

/// Two sensors, of which one tries the other.
fn trying(broken: Option<Broken>) -> Vec<String> {
    let mut plant = plant(
        3,
        vec![
            Member::new(Kind::Relay, 0),
            Member::new(Kind::Sensor, 1),
            Member::new(Kind::Sensor, 2),
        ],
    );
    plant.flows = vec![Flow { from: 1, to: 2 }];
    let at = |secs| Mono::ZERO + Duration::from_secs(secs);
    let faults = vec![(at(60), Fault::Probe), (at(180), Fault::Judged)];
    let mut world = quiet(plant, faults, broken);
    pass(&mut world, Duration::from_secs(200));
    world.outcome.findings
}

#[test]
fn a_peer_whom_policy_keeps_apart_is_found() {
    assert_eq!(trying(None), Vec::<String>::new());
    let findings = trying(Some(Broken::Policy));
    assert_says(&findings, "must not reach");
    assert_says(&findings, "whom policy keeps apart");
}

/// A spoofer, whom it sends to, and its victim elsewhere.
fn spoofing(broken: Option<Broken>) -> Vec<String> {
    let spoofer = Member {
        hostility: Some(Hostility::Spoofs(3)),
        ..Member::new(Kind::Collector, 1)
    };
    let mut plant = plant(
        3,
        vec![
            Member::new(Kind::Relay, 0),
            spoofer,
            Member::new(Kind::Collector, 2),
            Member::new(Kind::Collector, 2),
        ],
    );
    plant.flows = vec![Flow { from: 1, to: 2 }];
    let mut world = quiet(plant, Vec::new(), broken);
    pass(&mut world, Duration::from_secs(1200));
    assert!(world.outcome.figures.spoofed > 0);
    world.outcome.findings
}

#[test]
fn a_packet_in_anothers_name_is_found() {
    assert_eq!(spoofing(None), Vec::<String>::new());
    assert_says(&spoofing(Some(Broken::Sources)), "in the name of");
}
