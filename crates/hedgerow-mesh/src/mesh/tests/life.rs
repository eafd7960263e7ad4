//! What honest devices live through.

use hedgerow_model::message::{self, MessageKind};

use super::super::*;
use super::world::*;
use crate::output::Output;
use crate::relay::{Connect, RelayMessage};

const SECOND: Duration = Duration::from_secs(1);

fn released(world: &World, node: usize, address: Overlay) -> usize {
    let log = &world.nodes[node].log;
    log.iter()
        .filter(|output| **output == Output::Release { address })
        .count()
}

#[test]
fn a_first_packet_makes_peers_of_both_ends() {
    let mut world = World::new(1, 2);
    world.want(0, 1);
    world.run(SECOND);
    assert!(world.linked(0, 1));
    assert_eq!(released(&world, 0, world.address(1)), 1);
    assert_eq!(
        world.nodes[1].tunnel[&world.id(0)].endpoint,
        None,
        "the handshake sets it"
    );
    assert_eq!(world.sent.len(), 2, "one question, one answer");
    let position =
        |wanted: fn(&Output) -> bool| world.nodes[0].log.iter().position(wanted).unwrap();
    let set = position(|o| matches!(o, Output::SetPeer { .. }));
    let release = position(|o| matches!(o, Output::Release { .. }));
    let admit = position(|o| matches!(o, Output::Admit { .. }));
    assert!(
        admit < set && set < release,
        "policy, then the peer, then its packets"
    );
}

#[test]
fn a_peer_that_introduced_itself_and_never_came_is_looked_for() {
    let mut world = World::new(1, 2);
    world.want(0, 1);
    world.run(Duration::from_millis(30));
    assert!(world.nodes[1].tunnel.contains_key(&world.id(0)));
    // The answer finds nobody: power and disk are gone, and with them the key that was shown.
    world.nodes[0].disk.clear();
    world.reboot(0);
    world.run(SECOND);
    world.want(1, 0);
    world.run(SECOND);
    assert!(world.linked(1, 0));
    let tunnel = &world.nodes[1].tunnel[&world.id(0)];
    assert_eq!(tunnel.endpoint, Some(world.nodes[0].at.into()));
}

#[test]
fn every_pair_meets_through_loss_duplicates_and_reordering() {
    for seed in 0..20 {
        let mut world = World::new(seed, 3);
        (world.loss, world.duplicates, world.reorder) = (25, 20, true);
        for round in 0..6 {
            for (a, b) in [(0, 1), (1, 2), (2, 0), (1, 0)] {
                if world.nodes[a].tunnel.contains_key(&world.id(b)) {
                    continue;
                }
                world.want(a, b);
            }
            world.run(Duration::from_secs(20));
            if round > 1
                && [(0, 1), (1, 2), (2, 0)]
                    .iter()
                    .all(|(a, b)| world.linked(*a, *b))
            {
                break;
            }
        }
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            assert!(world.linked(a, b), "seed {seed}: {a} and {b}");
        }
        for (from, to, bytes) in &world.sent {
            let limit = if bytes[0] == INTRODUCE { 1088 } else { 1024 };
            assert_eq!(bytes.len(), limit, "{from} to {to}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = World::new(7, 3);
        (world.loss, world.duplicates, world.reorder) = (25, 20, true);
        world.want(0, 1);
        world.want(2, 1);
        world.run(Duration::from_secs(30));
        world.sent
    };
    assert_eq!(run(), run());
}

#[test]
fn two_who_want_each_other_at_once_meet_once() {
    let mut world = World::new(2, 2);
    world.want(0, 1);
    world.want(1, 0);
    world.run(Duration::from_secs(5));
    assert!(world.linked(0, 1));
    for (a, b) in [(0, 1), (1, 0)] {
        assert_eq!(released(&world, a, world.address(b)), 1);
        assert_eq!(world.nodes[a].mesh.status().asking, 0);
        let sets = world.nodes[a]
            .log
            .iter()
            .filter(|o| matches!(o, Output::SetPeer { .. }));
        assert_eq!(sets.count(), 1);
        assert_eq!(
            world.nodes[a].tunnel[&world.id(b)].endpoint,
            Some(world.nodes[b].at.into())
        );
    }
    assert!(world.sent.len() <= 4);
}

#[test]
fn two_who_want_each_other_meet_although_one_question_is_lost() {
    let mut world = World::new(3, 2);
    world.loss = 100;
    world.want(0, 1);
    world.loss = 0;
    world.want(1, 0);
    world.run(Duration::from_secs(5));
    assert!(world.linked(0, 1));
}

#[test]
fn both_ends_rebooted_meet_again_with_nobody_to_ask() {
    let mut world = World::new(4, 3);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    world.controller = false;
    world.reboot(0);
    world.reboot(1);
    assert!(!world.linked(0, 1));
    world.want(0, 1);
    world.run(Duration::from_secs(5));
    assert!(world.linked(0, 1));

    world.want(0, 2);
    world.run(Duration::from_secs(5));
    assert!(!world.linked(0, 2), "never met, and nobody to ask");
    let reason = Unreachable::Unresolved;
    assert!(world.nodes[0].log.contains(&Output::Reject {
        address: world.address(2),
        reason
    }));
}

#[test]
fn a_device_that_restarts_finds_its_peers_before_anybody_sends() {
    let mut world = World::new(5, 2);
    world.want(1, 0);
    world.run(SECOND);
    world.establish(0, 1);
    world.controller = false;
    world.reboot(0);
    world.run(Duration::from_secs(5));
    assert!(world.linked(0, 1), "the restarted one asked");
}

#[test]
fn who_is_asked_while_it_ceases_to_be_a_peer_is_admitted_anew() {
    let mut world = World::new(5, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    let device = world.id(1);
    let secs = world.now_of(0).wall.secs();
    world.nodes[0].device.rotate(secs + 60, &mut world.rng);
    world.renew(0);
    while !world.nodes[0].mesh.asking.is_asking(device) {
        world.run(Duration::from_millis(1));
    }
    // Its introduction is on the way.
    world.nodes[0].log.clear();
    world.with(0, |mesh, view| {
        mesh.handle_session(device, Session::Unanswered, view);
    });
    world.run(Duration::from_secs(20));
    assert!(world.linked(0, 1), "it answered");
    let log = &world.nodes[0].log;
    let place = |is: fn(&Output) -> bool| log.iter().position(is).unwrap();
    let removed = place(|o| matches!(o, Output::RemovePeer { .. }));
    let admitted = place(|o| matches!(o, Output::Admit { .. }));
    let set = place(|o| matches!(o, Output::SetPeer { .. }));
    assert!(removed < admitted && admitted < set, "{log:?}");
}

#[test]
fn a_new_key_stands_beside_the_old_one_for_the_overlap() {
    let mut world = World::new(6, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    let first = world.nodes[1].tunnel[&world.id(0)].key;
    world.run(Duration::from_secs(DAY));
    let secs = world.now_of(0).wall.secs();
    let n = &mut world.nodes[0];
    n.device.rotate(secs, &mut world.rng);
    world.renew(0);
    world.run(Duration::from_secs(30));
    assert!(world.linked(0, 1));
    let tunnel = &world.nodes[1].tunnel[&world.id(0)];
    assert_eq!(tunnel.old_key, Some(first));
    assert_eq!(tunnel.endpoint, Some(world.nodes[0].at.into()), "not moved");
    for node in &world.nodes {
        let moves = |o: &&Output| {
            matches!(
                o,
                Output::SetPeer {
                    endpoint: Some(_),
                    ..
                }
            )
        };
        assert!(
            node.log.iter().filter(moves).count() <= 1,
            "only when the peer is new"
        );
    }
    world.nodes[1].device.rotate(secs + 60, &mut world.rng);
    world.renew(1);
    world.run(Duration::from_secs(30));
    let moves = |o: &&Output| {
        matches!(
            o,
            Output::SetPeer {
                endpoint: Some(_),
                ..
            }
        )
    };
    assert_eq!(
        world.nodes[0].log.iter().filter(moves).count(),
        1,
        "nor by the answer"
    );
    world.run(KEY_OVERLAP);
    assert_eq!(world.nodes[1].tunnel[&world.id(0)].old_key, None);
    assert!(world.linked(0, 1));
}

#[test]
fn weeks_of_daily_keys_and_tickets_lose_nobody() {
    let mut world = World::new(8, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    for day in 0..30u64 {
        world.run(Duration::from_secs(DAY - 60));
        for node in 0..2 {
            let secs = world.now_of(node).wall.secs();
            let device = &mut world.nodes[node].device;
            device.rotate(secs, &mut world.rng);
            device.body.not_after_secs = secs + 7 * DAY;
            let domain = &world.domain;
            device.sign(domain);
            world.renew(node);
        }
        world.run(Duration::from_secs(60));
        assert!(world.linked(0, 1), "day {day}");
    }
    let removed = |n: &Node| n.log.iter().any(|o| matches!(o, Output::RemovePeer { .. }));
    assert!(!world.nodes.iter().any(removed));
}

#[test]
fn new_labels_reach_peers_within_a_second_and_the_policy_sees_them_first() {
    let mut world = World::new(9, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    let device = &mut world.nodes[0].device;
    device.body.labels = "role=collector".parse().unwrap();
    device.body.epoch = 2;
    device.sign(&world.domain);
    world.renew(0);
    world.run(SECOND);
    let mut seen = vec![];
    for output in &world.nodes[1].log {
        if let Output::Admit { ticket, .. } = output {
            seen.push(ticket.labels.to_string());
        }
    }
    assert_eq!(seen.last().map(String::as_str), Some("role=collector"));

    let list = world.domain.revocations(1, &[], &[(world.id(0), 2)]);
    world.nodes[1].standing.adopt_revocations(list).unwrap();
    world.with(1, |mesh, view| mesh.handle_standing_changed(view));
    assert!(world.linked(0, 1), "the new ticket is in force already");
}

#[test]
fn an_answer_brings_the_newer_ticket() {
    let mut world = World::new(10, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.reboot(0);
    let device = &mut world.nodes[1].device;
    device.body.labels = "role=collector".parse().unwrap();
    device.body.epoch = 2;
    device.sign(&world.domain);
    world.renew(1);
    world.controller = false;
    world.want(0, 1);
    world.run(Duration::from_secs(5));
    assert!(world.linked(0, 1));
    let memory = &world.nodes[0].disk[&world.id(1)];
    assert_eq!(memory.ticket, world.nodes[1].device.ticket);
}

#[test]
fn a_spare_relay_that_does_not_answer_is_asked_twice_and_not_five_times() {
    let mut world = World::new(31, 3);
    make_relays(&mut world, &[1, 2]);
    // The second keeps silent.
    let silent = world.nodes[2].at;
    let asker = world.id(0);
    world.nodes[2].denied.insert(asker);
    let relays = [world.id(1), world.id(2)];
    let to_silent = |world: &World| world.sent.iter().filter(|(_, to, _)| *to == silent).count();
    world.with(0, |mesh, view| {
        mesh.handle_relays_named(&relays[..1], view);
    });
    world.run(SECOND);
    // Nobody here answers probes: that its tunnel stands is said by hand.
    let (first, at) = (relays[0], world.nodes[1].at);
    world.with(0, |mesh, view| {
        let client = &mut mesh.ways.client;
        client.handle_tunnel(first, at, view.now.mono);
        mesh.handle_relays_named(&relays[1..], view);
    });
    while world.nodes[0].mesh.asking.is_asking(relays[1]) {
        world.run(SECOND / 20);
    }
    assert_eq!(to_silent(&world), 2);
    // With no relay left it is worth more.
    world.with(0, |mesh, view| {
        mesh.handle_session(first, Session::Idle, view);
    });
    world.run(SECOND * 60);
    assert!(to_silent(&world) >= 2 + 5, "{}", to_silent(&world));
}

/// Makes relays of some nodes.
fn make_relays(world: &mut World, relays: &[usize]) {
    for relay in relays {
        world.nodes[*relay].device.body.labels = "relay=yes".parse().unwrap();
        let World { domain, nodes, .. } = &mut *world;
        nodes[*relay].device.sign(domain);
        world.renew(*relay);
    }
}

#[test]
fn news_of_others_make_nobody_forget_a_relay_that_was_never_reached() {
    let mut world = World::new(32, 3);
    make_relays(&mut world, &[1]);
    let (asker, relay, other) = (world.id(0), world.id(1), world.id(2));
    world.nodes[1].denied.insert(asker);
    world.with(0, |mesh, view| mesh.handle_relays_named(&[relay], view));
    world.run(SECOND * 60);
    let known = |world: &World| world.nodes[0].mesh.relay_status().relays.len();
    assert_eq!(known(&world), 1);
    for (version, revoked, left) in [(1, vec![other], 1), (2, vec![other, relay], 0)] {
        let list = world.domain.revocations(version, &revoked, &[]);
        world.nodes[0].standing.adopt_revocations(list).unwrap();
        world.with(0, |mesh, view| mesh.handle_standing_changed(view));
        assert_eq!(known(&world), left, "{version}");
    }
}

#[test]
fn of_a_device_that_left_its_remembered_relays_newer_ones_are_asked_for() {
    let mut world = World::new(34, 3);
    make_relays(&mut world, &[1]);
    let (relay, at) = (world.id(1), world.nodes[1].at);
    world.with(0, |mesh, view| mesh.handle_relays_named(&[relay], view));
    world.run(SECOND);
    let far = &world.nodes[2].device;
    let memory = Memory {
        device: far.body.id,
        addresses: far.body.addresses,
        introduction_key: far.body.introduction_key,
        ticket: far.ticket.clone(),
        endpoints: vec![],
        heard_ms: 0,
        live: false,
        relays: Some(vec![DeviceId([6; 16])]),
    };
    world.with(0, |mesh, view| {
        mesh.ways.client.handle_tunnel(relay, at, view.now.mono);
        mesh.handle_memory(memory);
    });
    world.nodes[0].log.clear();
    world.want(0, 2);
    world.run(SECOND * 2);
    let query = PeerQuery::Device(world.id(2));
    let asked = world.nodes[0].log.iter();
    let asked = asked.filter(|o| matches!(o, Output::Resolve { query: of } if *of == query));
    assert_eq!(asked.count(), 1);
    assert!(world.linked(0, 2), "by what the controller knew");
}

#[test]
fn a_relay_looks_for_another_that_only_its_guest_names() {
    let mut world = World::new(33, 4);
    make_relays(&mut world, &[0, 2]);
    world.want(1, 0);
    world.run(SECOND);
    world.establish(0, 1);
    let (guest, named, far) = (world.id(1), world.id(2), world.id(3));
    let connect = RelayMessage::Connect(Connect {
        number: 1,
        destination: far,
        through: Some(named),
        origin: None,
    });
    let wish = message::encode(MessageKind::Relay, &connect.encode()).unwrap();
    let from = Path::direct(world.nodes[1].at);
    assert!(!world.nodes[0].mesh.ways.client.knows(named));
    let wishes = |world: &mut World| {
        world.with(0, |mesh, view| {
            mesh.handle_message(guest, from, &wish, view);
        });
        world.run(SECOND);
    };
    wishes(&mut world);
    assert!(
        world.nodes[0].mesh.ways.client.knows(named),
        "its ticket says so"
    );
    wishes(&mut world);
    assert!(world.linked(0, 2));
}

#[test]
fn revocation_cuts_first_and_keeps_out() {
    let mut world = World::new(11, 3);
    world.want(0, 1);
    world.want(0, 2);
    world.run(SECOND);
    world.establish(0, 1);
    let revoked = world.id(1);
    let list = world.domain.revocations(1, &[revoked], &[]);
    world.nodes[0].standing.adopt_revocations(list).unwrap();
    let from = world.nodes[0].log.len();
    world.with(0, |mesh, view| mesh.handle_standing_changed(view));
    let addresses = world.nodes[1].device.body.addresses;
    let want = Output::RemovePeer {
        device: revoked,
        addresses,
        reason: Removal::Revoked,
    };
    assert_eq!(world.nodes[0].log.get(from), Some(&want));
    assert!(!world.nodes[0].disk.contains_key(&revoked));
    assert!(world.linked(0, 2), "others stay");
    world.want(0, 1);
    world.reboot(1);
    world.want(1, 0);
    world.run(Duration::from_secs(30));
    assert!(!world.nodes[0].tunnel.contains_key(&revoked));
}

#[test]
fn a_state_asks_the_policy_again_and_a_held_device_goes() {
    let mut world = World::new(12, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    let device = world.id(1);
    let from = world.nodes[0].log.len();
    let states = world.domain.states(
        1,
        &[(device, hedgerow_model::program::DeviceState::Quarantine)],
    );
    world.nodes[0].standing.adopt_states(states).unwrap();
    world.with(0, |mesh, view| mesh.handle_standing_changed(view));
    assert!(matches!(world.nodes[0].log[from], Output::Admit { .. }));
    assert!(world.linked(0, 1));
    let states = world
        .domain
        .states(2, &[(device, hedgerow_model::program::DeviceState::Held)]);
    world.nodes[0].standing.adopt_states(states).unwrap();
    world.with(0, |mesh, view| mesh.handle_standing_changed(view));
    assert!(!world.nodes[0].tunnel.contains_key(&device));
    world.want(1, 0);
    world.run(Duration::from_secs(30));
    assert!(!world.nodes[0].tunnel.contains_key(&device));
}

#[test]
fn who_is_not_admitted_gets_silence_and_its_packets_are_rejected() {
    let mut world = World::new(13, 2);
    let (a, b) = (world.id(0), world.id(1));
    world.nodes[1].denied.insert(a);
    world.want(0, 1);
    world.run(Duration::from_secs(30));
    assert_eq!(world.sent_by(1), 0);
    let reason = Unreachable::Unanswered;
    assert!(world.nodes[0].log.contains(&Output::Reject {
        address: world.address(1),
        reason
    }));

    world.nodes[0].denied.insert(b);
    world.run(UNREACHABLE_FOR);
    let before = world.sent_by(0);
    world.want(0, 1);
    assert_eq!(
        world.sent_by(0),
        before,
        "our own policy is asked before anything is sent"
    );
    let reason = Unreachable::NotAdmitted;
    assert!(world.nodes[0].log.contains(&Output::Reject {
        address: world.address(1),
        reason
    }));
}

#[test]
fn a_policy_change_opens_what_was_not_admitted_a_moment_ago() {
    let mut world = World::new(27, 2);
    let device = world.id(1);
    world.nodes[0].denied.insert(device);
    world.want(0, 1);
    world.nodes[0].denied.clear();
    world.want(0, 1);
    assert!(world.sent.is_empty(), "for a while the answer stands");
    world.with(0, |mesh, _| mesh.handle_policy_changed());
    world.want(0, 1);
    world.run(SECOND);
    assert!(world.linked(0, 1));
}

#[test]
fn a_policy_change_asks_again_for_whom_the_controller_did_not_name() {
    let mut world = World::new(28, 2);
    world.controller = false;
    world.want(0, 1);
    let reason = Unreachable::Unresolved;
    assert!(world.nodes[0].log.contains(&Output::Reject {
        address: world.address(1),
        reason
    }));
    world.controller = true;
    world.with(0, |mesh, _| mesh.handle_policy_changed());
    world.want(0, 1);
    world.run(SECOND);
    assert!(world.linked(0, 1));
}

#[test]
fn a_policy_change_removes_a_peer() {
    let mut world = World::new(14, 2);
    world.want(0, 1);
    world.run(SECOND);
    let device = world.id(1);
    world.with(0, |mesh, view| {
        mesh.handle_admitted(device, Admission::Denied, view)
    });
    assert!(world.nodes[0].tunnel.is_empty());
}

#[test]
fn an_idle_peer_is_forgotten_and_comes_back() {
    let mut world = World::new(15, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    world.run(Duration::from_secs(7200));
    assert!(world.linked(0, 1), "a session keeps a peer");
    let device = world.id(1);
    world.with(0, |mesh, view| {
        mesh.handle_session(device, Session::Idle, view)
    });
    world.run(IDLE_FORGET + SECOND);
    assert!(world.nodes[0].tunnel.is_empty());
    assert_eq!(world.nodes[0].mesh.deadline().0, Mono::NEVER);

    // The other end still has us, and sends: its handshake is under a key we have forgotten.
    let key = world.nodes[1]
        .device
        .own(&world.domain, world.now_of(1))
        .binding
        .wireguard_key;
    world.controller = false;
    world.with(0, |mesh, view| mesh.handle_unknown_handshake(key, view));
    world.run(Duration::from_secs(5));
    assert!(world.linked(0, 1));
    let sent = world.sent.len();
    world.with(0, |mesh, view| mesh.handle_unknown_handshake(key, view));
    world.run(Duration::from_secs(5));
    assert_eq!(world.sent.len(), sent, "once");
}

#[test]
fn a_peer_that_moved_is_found_where_it_is_now() {
    let mut world = World::new(16, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    world.nodes[1].at = Underlay("198.51.100.9:7117".parse().unwrap());
    let device = world.id(1);
    world.with(0, |mesh, view| {
        mesh.handle_session(device, Session::Unanswered, view)
    });
    world.want(0, 1);
    world.run(Duration::from_secs(10));
    assert!(
        world.linked(0, 1),
        "the remembered endpoint failed, and somebody was asked"
    );
}

#[test]
fn grace_reaches_whom_nobody_could_renew_and_ends() {
    let mut world = World::new(17, 2);
    world.want(0, 1);
    world.run(SECOND);
    world.establish(0, 1);
    let mut day = 0u64;
    while world.linked(0, 1) && day < 100 {
        world.run(Duration::from_secs(DAY));
        for node in 0..2 {
            let secs = world.now_of(node).wall.secs();
            world.nodes[node].device.rotate(secs, &mut world.rng);
            world.renew(node);
        }
        world.run(Duration::from_secs(60));
        day += 1;
    }
    assert_eq!(day, 37, "seven days of ticket and thirty of grace");
    let expired = |o: &Output| {
        matches!(
            o,
            Output::RemovePeer {
                reason: Removal::Expired,
                ..
            }
        )
    };
    assert!(world.nodes[0].log.iter().any(expired));
}

#[test]
fn clocks_at_1970_meet_as_well() {
    let mut world = World::new(18, 2);
    for node in 0..2 {
        world.nodes[node].wall_offset = -i64::try_from(NOON).unwrap();
        world.nodes[node].device.rotate(1000, &mut world.rng);
        world.renew(node);
    }
    world.want(0, 1);
    world.run(SECOND);
    assert!(world.linked(0, 1));
}

#[test]
fn a_clock_that_was_at_2200_does_not_lock_its_device_out_for_good() {
    let mut world = World::new(19, 2);
    let far = 174 * 365 * i64::try_from(DAY).unwrap();
    // The responder's clock cannot tell either, so it takes what comes.
    world.nodes[1].wall_offset = -1;
    world.nodes[0].wall_offset = far;
    let secs = world.now_of(0).wall.secs();
    world.nodes[0].device.rotate(secs, &mut world.rng);
    world.nodes[0].device.body.not_after_secs = secs + 7 * DAY;
    world.nodes[0].device.sign(&world.domain);
    world.nodes[1].device.body.not_after_secs = secs + 7 * DAY;
    world.nodes[1].device.sign(&world.domain);
    world.renew(0);
    world.want(0, 1);
    world.run(SECOND);
    assert!(world.nodes[1].tunnel.contains_key(&world.id(0)));

    world.nodes[0].wall_offset = 0;
    world.nodes[1].wall_offset = 0;
    world.reboot(0);
    world.want(0, 1);
    world.run(Duration::from_secs(20));
    assert!(world.linked(0, 1));
}

#[test]
fn nothing_is_sent_before_there_is_an_identity() {
    let mut mesh = Mesh::new([1; 32]);
    let world = World::new(20, 1);
    let view = View {
        trust: &world.domain.trust,
        standing: &world.nodes[0].standing,
        now: world.now_of(0),
    };
    let address = world.address(0);
    mesh.handle_wanted(address, view);
    assert_eq!(
        mesh.poll(),
        Some(Output::Reject {
            address,
            reason: Unreachable::NotReady
        })
    );
    assert_eq!(mesh.poll(), None);
}

#[test]
fn an_identity_that_does_not_belong_together_is_refused() {
    let mut world = World::new(21, 2);
    let now = world.now_of(0);
    let own = world.nodes[0].device.own(&world.domain, now);
    let other = world.nodes[1].device.own(&world.domain, now);
    let mixed = OwnIdentity {
        binding: other.binding.clone(),
        ..own.clone()
    };
    let wrong_key = OwnIdentity {
        introduction: other.introduction,
        ..own
    };
    world.with(0, |mesh, view| {
        assert!(matches!(
            mesh.handle_own(mixed, view),
            Err(OwnError::OtherDevice { .. })
        ));
        assert_eq!(mesh.handle_own(wrong_key, view), Err(OwnError::OtherKey));
    });
}

#[test]
fn a_question_to_nobody_ends_and_is_not_repeated_at_once() {
    let mut world = World::new(22, 1);
    let address = Overlay(world.domain.addresses(99).v6.into());
    let resolves = |world: &World| {
        world.nodes[0]
            .log
            .iter()
            .filter(|o| matches!(o, Output::Resolve { .. }))
            .count()
    };
    for _ in 0..50 {
        world.with(0, |mesh, view| mesh.handle_wanted(address, view));
    }
    assert_eq!(resolves(&world), 1);
    world.run(UNREACHABLE_FOR + SECOND);
    world.with(0, |mesh, view| mesh.handle_wanted(address, view));
    assert_eq!(resolves(&world), 2);
}
