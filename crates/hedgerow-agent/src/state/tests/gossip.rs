//! Signed lists that come by gossip or from a file, with no controller anywhere.

use hedgerow_linux::tunnel::Report;
use hedgerow_mesh::items::ItemKind;
use hedgerow_model::address::Underlay;
use hedgerow_model::path::Path;
use hedgerow_model::statement::Revoked;
use hedgerow_sync::message::ResolvedPeer;

use super::fixture::{Domain, Machine, POLICY, at};
use super::*;

fn place(number: usize) -> Path {
    let text = format!("192.0.2.{}:7117", number + 10);
    Underlay(text.parse().unwrap()).into()
}

/// Two sensors and their collector, in session with it, cut off from the controller.
fn plant() -> (Domain, Vec<Machine>) {
    let domain = Domain::new();
    let roles = [
        ("sensor-1", "role=sensor"),
        ("collector-1", "role=collector"),
        ("sensor-9", "role=sensor"),
    ];
    let mut all: Vec<Machine> = roles
        .iter()
        .map(|(name, labels)| Machine::started(&domain, name, labels))
        .collect();
    for machine in &mut all {
        machine.state.handle_uplink_up(at(1));
        let set = [domain.config(2), domain.program(2, POLICY, machine)];
        machine.adopt(&domain, 2, set);
    }
    for sensor in [0, 2] {
        let dst = Overlay(all[1].body.addresses.v6.into());
        let ticket = all[1].ticket.clone();
        let now = at(10);
        let asking = &mut all[sensor];
        asking.state.handle_report(Report::Wanted { dst }, now);
        asking.run(now);
        for id in std::mem::take(&mut asking.asked) {
            let peer = ResolvedPeer {
                ticket: ticket.clone(),
                endpoints: vec![place(1).to],
                relays: None,
                own_relays: None,
            };
            asking.state.handle_resolved(id, Some(peer), now);
        }
        carry(&mut all, now);
        for (at_end, other) in [(sensor, 1), (1, sensor)] {
            let device = all[other].id();
            let endpoint = place(other);
            all[at_end].state.handle_report(
                Report::Established {
                    device,
                    endpoint,
                    psk: false,
                },
                now,
            );
        }
        carry(&mut all, now);
    }
    for machine in &mut all {
        machine.state.handle_uplink_down("cut", at(11));
        machine.run(at(11));
        machine.log.clear();
    }
    (domain, all)
}

/// Carries datagrams, and messages inside tunnels, until all is quiet.
fn carry(all: &mut [Machine], now: Now) {
    for _ in 0..30 {
        for from in 0..all.len() {
            all[from].run(now);
            let id = all[from].id();
            let datagrams = std::mem::take(&mut all[from].sent);
            for (to, bytes) in datagrams {
                let to = (0..all.len()).find(|n| place(*n) == to).unwrap();
                let from = place(from);
                all[to]
                    .state
                    .handle_report(Report::Datagram { from, bytes }, now);
            }
            for (device, bytes) in std::mem::take(&mut all[from].messages) {
                let to = all.iter_mut().find(|m| m.id() == device).unwrap();
                let report = Report::Message {
                    device: id,
                    from: place(from),
                    bytes,
                };
                to.state.handle_report(report, now);
            }
        }
    }
}

/// Lets some seconds pass.
fn wait(all: &mut [Machine], from: u64, to: u64) {
    for second in from..=to {
        for machine in all.iter_mut() {
            machine.state.handle_timeout(at(second));
        }
        carry(all, at(second));
    }
}

#[test]
fn a_list_that_one_device_takes_from_a_file_cuts_the_revoked_one_off_everywhere() {
    let (domain, mut all) = plant();
    let revoked = all[2].id();
    assert!(all[1].tunnel_peers.contains(&revoked));
    let list = domain.revocations(7, &[Revoked::Device(revoked)]);
    let taken = all[0].state.handle_import(&list.bytes, at(20));
    assert_eq!(taken, Ok((ItemKind::Revocations, true)));
    wait(&mut all, 20, 24);
    let collector = &all[1];
    assert_eq!(
        collector.state.standing().revocation_version(),
        list.version
    );
    assert!(!collector.tunnel_peers.contains(&revoked));
    let log = &collector.log;
    let place = |name: &str| log.iter().position(|l| l == name).unwrap();
    assert!(place("remove element") < place("remove peer"), "{log:?}");
    assert!(place("remove peer") < place("cut"), "{log:?}");
    assert!(
        log.contains(&"store".to_owned()),
        "a reboot does not forget it"
    );
    assert!(
        collector.tunnel_peers.contains(&all[0].id()),
        "the other stays"
    );
    let again = all[0].state.handle_import(&list.bytes, at(30));
    assert_eq!(again, Ok((ItemKind::Revocations, false)), "no news");
}

#[test]
fn one_key_at_two_places_is_told_of_by_the_peer_that_is_shown_both() {
    let (domain, mut all) = plant();
    let device = all[0].id();
    // A copy of its disk runs elsewhere, and signed its own key first.
    let twin = all[0].reborn(Stored::default()).0;
    let holder = std::mem::replace(&mut all[0].state, twin);
    all[0].state.handle_start(at(50));
    all[0].run(at(50));
    let twin = std::mem::replace(&mut all[0].state, holder);
    all[0].bind(at(100));
    wait(&mut all, 100, 140);
    let disputed = |machine: &mut Machine| {
        let events = machine.events();
        events
            .iter()
            .filter(|k| **k == EventKind::KeyDisputed)
            .count()
    };
    assert_eq!(disputed(&mut all[1]), 0, "a new key is no dispute");
    let established = Report::Established {
        device,
        endpoint: place(0),
        psk: false,
    };
    all[1].state.handle_report(established, at(140));
    carry(&mut all, at(140));

    all[0].state = twin;
    all[0].state.handle_uplink_up(at(150));
    let set = [domain.config(2), domain.program(2, POLICY, &all[0])];
    all[0].adopt(&domain, 2, set);
    let dst = Overlay(all[1].body.addresses.v6.into());
    let peer = ResolvedPeer {
        ticket: all[1].ticket.clone(),
        endpoints: vec![place(1).to],
        relays: None,
        own_relays: None,
    };
    for round in 0..6 {
        let from = 150 + 60 * round;
        all[0].state.handle_report(Report::Wanted { dst }, at(from));
        all[0].run(at(from));
        for id in std::mem::take(&mut all[0].asked) {
            all[0]
                .state
                .handle_resolved(id, Some(peer.clone()), at(from));
        }
        wait(&mut all, from, from + 59);
    }
    assert_eq!(disputed(&mut all[1]), 1, "once an hour");
    assert_eq!(disputed(&mut all[2]), 0, "nobody showed it anything");
}

#[test]
fn an_old_beacon_that_a_peer_passes_on_is_past_and_not_the_time_of_day() {
    let (domain, mut all) = plant();
    let an_hour_ago = at(20).wall.secs() - 3600;
    let beacon = domain.beacon(an_hour_ago);
    assert_eq!(
        all[0].state.handle_beacon(&beacon, at(20)),
        Some(an_hour_ago)
    );
    wait(&mut all, 20, 24);
    assert_eq!(all[1].past, [Wall::from_secs(an_hour_ago)]);
    assert_eq!(all[0].past, [], "the controller says what time it is");
    let said = all[1].state.handle_beacon(&beacon, at(25));
    assert_eq!(said, Some(an_hour_ago), "now it says so to this one too");
    // It says so once, and an older one is no news at all.
    let before = domain.beacon(an_hour_ago - 3600);
    assert_eq!(all[0].state.handle_beacon(&before, at(30)), None);
    wait(&mut all, 30, 34);
    assert_eq!(all[1].past.len(), 1);
}

#[test]
fn a_quarantine_that_one_device_hears_of_is_in_force_at_those_that_are_cut_off() {
    let (domain, mut all) = plant();
    let quarantined = all[0].id();
    let states = domain.states(9, &[(quarantined, DeviceState::Quarantine)]);
    // One still hears the controller.
    all[2].adopt(&domain, 9, [states]);
    wait(&mut all, 20, 24);
    for machine in &all[1..] {
        let state = machine.state.standing().state(quarantined);
        assert_eq!(state, Some(DeviceState::Quarantine));
    }
    let table = all[1].state.table().0.unwrap();
    let left = table.peers.get(&Overlay(all[0].body.addresses.v6.into()));
    assert!(left.is_none_or(|id| table.profiles[id].is_closed()));
}

#[test]
fn a_device_that_is_cut_off_hears_that_it_misses_a_policy() {
    let (domain, mut all) = plant();
    let heads = [2, 5].map(|n| domain.policy_head(n));
    // The controller tells one end alone, which holds that policy.
    let set = [domain.program(5, POLICY, &all[0])];
    all[0].adopt(&domain, 5, set);
    all[0].state.handle_policy_head(&heads[0], at(20));
    wait(&mut all, 20, 24);
    for machine in &all {
        let missed = machine.state.missed_policy();
        assert_eq!(missed, None, "everybody holds revision 2 or a later one");
    }
    all[0].state.handle_policy_head(&heads[1], at(25));
    wait(&mut all, 25, 29);
    let missed: Vec<_> = all.iter().map(|m| m.state.missed_policy()).collect();
    let newest = Some(rev(5));
    assert_eq!(missed, [None, newest, newest]);
    let mut forged = domain.policy_head(9);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    all[0].state.handle_policy_head(&forged, at(30));
    wait(&mut all, 30, 34);
    assert_eq!(all[1].state.missed_policy(), newest);
}

#[test]
fn a_forged_or_older_file_is_refused_and_changes_nothing() {
    let (domain, mut all) = plant();
    let target = Revoked::Device(all[2].id());
    let mut forged = domain.revocations(7, std::slice::from_ref(&target)).bytes;
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(all[0].state.handle_import(&forged, at(20)).is_err());
    let foreign = Domain::seeded(9)
        .revocations(7, std::slice::from_ref(&target))
        .bytes;
    assert!(all[0].state.handle_import(&foreign, at(20)).is_err());
    assert!(all[0].state.handle_import(b"no list", at(20)).is_err());
    let newer = domain.revocations(8, &[]);
    all[0].state.handle_import(&newer.bytes, at(20)).unwrap();
    let older = domain.revocations(7, &[target]).bytes;
    let taken = all[0].state.handle_import(&older, at(21));
    assert_eq!(taken, Ok((ItemKind::Revocations, false)));
    wait(&mut all, 21, 25);
    for machine in &all {
        let version = machine.state.standing().revocation_version();
        assert_eq!(version, newer.version);
    }
}

#[test]
fn peers_agree_on_a_pre_shared_key_by_themselves() {
    let (_, mut all) = plant();
    wait(&mut all, 12, 14);
    for (end, other) in [(0, 1), (1, 0)] {
        let device = all[other].id();
        let status = all[end].state.psk_status(device).unwrap();
        assert!(status.agreed_at.is_some(), "end {end}");
    }
}
