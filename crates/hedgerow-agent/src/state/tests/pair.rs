//! Two machines that find each other through the introduction protocol.

use hedgerow_linux::tunnel::Report;
use hedgerow_mesh::measure::{self, Answer};
use hedgerow_model::message::{self, MessageKind};
use hedgerow_sync::message::ResolvedPeer;

use super::fixture::{Domain, Machine, POLICY, at};
use super::*;
use hedgerow_model::address::Underlay;

const A: &str = "192.0.2.10:7117";
const B: &str = "192.0.2.20:7117";

fn underlay(text: &str) -> Underlay {
    Underlay(text.parse().unwrap())
}

/// Lets `a` want a packet for `b`, answers its question, and carries datagrams until all is quiet.
fn meet(a: &mut Machine, b: &mut Machine) {
    let now = at(10);
    let wanted = Overlay(b.body.addresses.v6.into());
    a.state.handle_report(Report::Wanted { dst: wanted }, now);
    a.run(now);
    for id in std::mem::take(&mut a.asked) {
        let peer = ResolvedPeer {
            ticket: b.ticket.clone(),
            endpoints: vec![underlay(B)],
            relays: None,
            own_relays: None,
        };
        a.state.handle_resolved(id, Some(peer), now);
    }
    carry(a, b, now);
}

/// Carries datagrams until all is quiet.
fn carry(a: &mut Machine, b: &mut Machine, now: Now) {
    for _ in 0..10 {
        a.run(now);
        b.run(now);
        for (_, bytes) in std::mem::take(&mut a.sent) {
            let from = underlay(A).into();
            b.state.handle_report(Report::Datagram { from, bytes }, now);
        }
        for (_, bytes) in std::mem::take(&mut b.sent) {
            let from = underlay(B).into();
            a.state.handle_report(Report::Datagram { from, bytes }, now);
        }
    }
}

fn two(policy: &str, labels: (&str, &str)) -> (Domain, Machine, Machine) {
    let domain = Domain::new();
    let mut a = Machine::started(&domain, "sensor-1", labels.0);
    let mut b = Machine::started(&domain, "collector-1", labels.1);
    for machine in [&mut a, &mut b] {
        machine.state.handle_uplink_up(at(1));
        let set = [domain.config(2), domain.program(2, policy, machine)];
        machine.adopt(&domain, 2, set);
        machine.log.clear();
        machine.asked.clear();
    }
    (domain, a, b)
}

/// A sensor and its collector, introduced.
pub(super) fn introduced(policy: &str) -> (Domain, Machine, Machine) {
    let (domain, mut a, mut b) = two(policy, ("role=sensor", "role=collector"));
    meet(&mut a, &mut b);
    assert_eq!(a.tunnel_peers, [b.id()], "{:?}", a.log);
    assert_eq!(b.tunnel_peers, [a.id()], "{:?}", b.log);
    (domain, a, b)
}

#[test]
fn peers_that_may_speak_are_set_up_kernel_first() {
    let (_, a, b) = introduced(POLICY);
    for machine in [&a, &b] {
        let log = &machine.log;
        let place = |n: &str| log.iter().position(|l| l == n);
        let kernel = place("load").or_else(|| place("element"));
        assert!(kernel.is_some() && kernel < place("set peer"), "{log:?}");
    }
    let table = a.state.table().0.unwrap();
    let id = table.peers[&Overlay(b.body.addresses.v6.into())];
    assert!(!table.profiles[&id].is_closed());
    assert_eq!(a.released, [Overlay(b.body.addresses.v6.into())]);
}

#[test]
fn after_a_restart_the_first_table_has_who_was_a_peer_and_nobody_waits() {
    let (_, mut a, mut b) = introduced(POLICY);
    let (mut again, complaints) = a.reborn(a.state.stored());
    assert!(complaints.is_empty(), "{complaints:?}");
    for memory in a.memories.values() {
        again.handle_memory(memory.clone());
    }
    a.state = again;
    for of_before in [&mut a.log, &mut b.log] {
        of_before.clear();
    }
    (a.tunnel_peers, a.sent, a.elements) = Default::default();
    let now = at(20);
    a.state.handle_start(now);
    a.run(now);
    assert!(a.elements.contains(&Overlay(b.body.addresses.v6.into())));
    a.state.handle_timeout(now);
    carry(&mut a, &mut b, now);
    assert_eq!(a.tunnel_peers, [b.id()], "{:?}", a.log);
    let loads = a.log.iter().filter(|step| *step == "load").count();
    assert_eq!(loads, 1, "{:?}", a.log);
}

#[test]
fn peers_that_may_not_speak_are_never_set_up() {
    let (_, mut a, mut b) = two(POLICY, ("role=sensor", "role=plc"));
    meet(&mut a, &mut b);
    assert!(a.tunnel_peers.is_empty() && b.tunnel_peers.is_empty());
    assert!(a.log.contains(&"prohibit".to_owned()), "{:?}", a.log);
    assert!(a.state.table().0.unwrap().peers.is_empty());
}

#[test]
fn a_policy_that_closes_a_pair_takes_the_peer_away() {
    let (domain, mut a, b) = introduced(POLICY);
    let closed = POLICY.replace(
        "r-mqtt, from: \"role=sensor\"",
        "r-mqtt, from: \"role=plc\"",
    );
    let program = domain.program(3, &closed, &a);
    a.adopt(&domain, 3, [program]);
    assert!(a.tunnel_peers.is_empty(), "{:?}", a.log);
    let address = Overlay(b.body.addresses.v6.into());
    assert!(!a.state.table().0.unwrap().peers.contains_key(&address));
}

/// The mesh took the ticket that followed, which says the same: policy was not asked about it again.
#[test]
fn a_peer_stays_when_states_change_after_its_first_ticket_has_ended() {
    let (domain, mut a, _) = two(POLICY, ("role=sensor", "role=plc"));
    let mut b = Machine::until(&domain, "collector-1", "role=collector", 1800);
    b.state.handle_start(at(0));
    b.run(at(0));
    b.state.handle_uplink_up(at(1));
    let set = [domain.config(2), domain.program(2, POLICY, &b)];
    b.adopt(&domain, 2, set);
    meet(&mut a, &mut b);
    let (a_id, b_id) = (a.id(), b.id());
    for (machine, device, place) in [(&mut a, b_id, B), (&mut b, a_id, A)] {
        let report = Report::Established {
            device,
            endpoint: underlay(place).into(),
            psk: false,
        };
        machine.state.handle_report(report, at(11));
    }
    b.renew(&domain, 86_400);
    b.state.handle_rotation_wanted(at(100));
    for secs in 100..=111 {
        b.state.handle_timeout(at(secs));
        carry(&mut a, &mut b, at(secs));
    }
    assert_eq!(a.tunnel_keys.len(), 2, "it showed its new key and ticket");
    // There was a controller to renew it: no grace.
    let beacon = domain.beacon(at(3600).wall.secs());
    assert!(a.state.handle_beacon(&beacon, at(3600)).is_some());
    let states = domain.states(3, &[(DeviceId([9; 16]), DeviceState::Quarantine)]);
    let update = domain.update(3, Some(2), [states]);
    a.state.handle_update(update, at(3600));
    a.run(at(3600));
    assert!(a.tunnel_peers.contains(&b.id()), "{:?}", a.log);
    let address = Overlay(b.body.addresses.v6.into());
    assert!(a.elements.contains(&address), "{:?}", a.log);
}

#[test]
fn a_quarantined_peer_can_do_nothing_any_more() {
    let (domain, mut a, b) = introduced(POLICY);
    let states = domain.states(3, &[(b.id(), DeviceState::Quarantine)]);
    a.adopt(&domain, 3, [states]);
    let table = a.state.table().0.unwrap();
    let left = table.peers.get(&Overlay(b.body.addresses.v6.into()));
    assert!(left.is_none_or(|id| table.profiles[id].is_closed()));
}

#[test]
fn without_a_controller_a_stranger_stays_unknown_and_the_packet_is_refused() {
    let (_, mut a, b) = two(POLICY, ("role=sensor", "role=collector"));
    a.state.handle_uplink_down("cut", at(5));
    let dst = Overlay(b.body.addresses.v6.into());
    a.state.handle_report(Report::Wanted { dst }, at(10));
    a.run(at(10));
    assert!(a.asked.is_empty());
    assert!(a.log.contains(&"unreachable".to_owned()), "{:?}", a.log);
}

/// The address may be another device's soon.
#[test]
fn a_peer_whose_addresses_changed_leaves_nothing_under_the_old_one() {
    let (domain, mut a, mut b) = introduced(POLICY);
    let old = Overlay(b.body.addresses.v6.into());
    b.move_to(&domain, 900);
    let new = Overlay(b.body.addresses.v6.into());
    a.log.clear();
    meet(&mut a, &mut b);
    let peers = &a.state.table().0.unwrap().peers;
    assert!(peers.contains_key(&new), "{:?}", a.log);
    assert!(!a.elements.contains(&old), "{:?}", a.log);
    assert!(a.elements.contains(&new));
}

#[test]
fn garbage_on_the_mesh_port_changes_nothing() {
    let (_, mut a, _) = two(POLICY, ("role=sensor", "role=collector"));
    for length in 0..200usize {
        let bytes = vec![0x81; length];
        let from = underlay(B).into();
        a.state
            .handle_report(Report::Datagram { from, bytes }, at(10));
    }
    a.run(at(10));
    assert!(a.tunnel_peers.is_empty() && a.sent.is_empty());
}

#[test]
fn a_label_that_comes_back_opens_what_it_had_opened_at_once() {
    let (domain, mut a, mut b) = introduced(POLICY);
    let plc = Machine::new(&domain, "plc-1", "role=plc");
    let closed = [
        domain.ticket_resource(&a, 3, "role=plc"),
        domain.program(3, POLICY, &plc),
    ];
    a.adopt(&domain, 3, closed);
    assert!(a.tunnel_peers.is_empty(), "{:?}", a.log);
    meet(&mut a, &mut b);
    assert!(a.tunnel_peers.is_empty(), "{:?}", a.log);
    let open = [
        domain.ticket_resource(&a, 4, "role=sensor"),
        domain.program(3, POLICY, &a),
    ];
    a.adopt(&domain, 4, open);
    a.log.clear();
    meet(&mut a, &mut b);
    assert_eq!(a.tunnel_peers, [b.id()], "{:?}", a.log);
}

fn binds_at(machine: &mut Machine, secs: u64) -> bool {
    machine.state.handle_timeout(at(secs));
    machine.run(at(secs)).contains(&"bind".to_owned())
}

#[test]
fn a_key_that_an_operator_orders_is_made_at_once_and_the_peer_learns_it() {
    let (_, mut a, mut b) = introduced(POLICY);
    let before = b.tunnel_keys.clone();
    assert!(!binds_at(&mut a, 99), "its time has not come");
    a.state.handle_rotation_wanted(at(100));
    assert_eq!(a.state.deadline(at(100)).0, at(100).mono);
    assert!(binds_at(&mut a, 100));
    for secs in 100..=111 {
        a.state.handle_timeout(at(secs));
        carry(&mut a, &mut b, at(secs));
    }
    let news = b.tunnel_keys.get(before.len()..).unwrap();
    assert!(
        !news.is_empty() && !before.contains(&news[0]),
        "{:?}",
        b.log
    );
    assert!(!binds_at(&mut a, 200), "one order makes one key");
}

/// Otherwise peers would only know a key that its tunnel has forgotten.
#[test]
fn orders_for_keys_in_quick_succession_make_one_now_and_one_when_peers_have_learnt_of_it() {
    let (_, mut a, _) = introduced(POLICY);
    a.state.handle_rotation_wanted(at(100));
    assert!(binds_at(&mut a, 100));
    for secs in 100..130 {
        a.state.handle_rotation_wanted(at(secs));
        assert!(!binds_at(&mut a, secs), "{secs}");
    }
    assert!(binds_at(&mut a, 130));
    assert!(!binds_at(&mut a, 161), "the last order is fulfilled");
}

/// What a peer's agent says about measuring, as the tunnel reports it.
fn says(machine: &mut Machine, from: DeviceId, message: measure::Message) {
    let bytes = message::encode(MessageKind::Measure, &message.encode()).unwrap();
    let from_path = underlay(B).into();
    let report = Report::Message {
        device: from,
        from: from_path,
        bytes,
    };
    machine.state.handle_report(report, at(10));
    machine.run(at(10));
}

#[test]
fn a_ping_makes_a_stranger_a_peer_and_goes_once_a_session_lives() {
    let (_, mut a, mut b) = two(POLICY, ("role=sensor", "role=collector"));
    let who = (b.id(), b.body.addresses);
    a.state.handle_ping((1, 42), who, at(10));
    a.run(at(10));
    let id = a.asked.pop().unwrap();
    let peer = ResolvedPeer {
        ticket: b.ticket.clone(),
        endpoints: vec![underlay(B)],
        relays: None,
        own_relays: None,
    };
    a.state.handle_resolved(id, Some(peer), at(10));
    carry(&mut a, &mut b, at(10));
    assert_eq!(a.tunnel_peers, [b.id()], "{:?}", a.log);
    let sent = |log: &[String]| log.iter().any(|l| l.contains("SendMessage"));
    assert!(!sent(&a.log), "there is no session yet: {:?}", a.log);
    let report = Report::Established {
        device: b.id(),
        endpoint: underlay(B).into(),
        psk: false,
    };
    a.state.handle_report(report, at(10));
    assert!(sent(&a.run(at(10))));
    // Not the token that was sent, then not the peer that was asked, then the answer.
    let pong = |token| measure::Message::Pong {
        token,
        is_relayed: false,
    };
    says(&mut a, b.id(), pong(43));
    says(&mut a, DeviceId([3; 16]), pong(42));
    assert!(a.answers.is_empty());
    says(&mut a, b.id(), pong(42));
    assert!(
        matches!(a.answers[..], [Answer::Pong { .. }]),
        "{:?}",
        a.answers
    );
}

#[test]
fn a_ping_of_a_device_that_policy_closes_says_so() {
    let (_, mut a, mut b) = two(POLICY, ("role=sensor", "role=plc"));
    a.state
        .handle_ping((1, 42), (b.id(), b.body.addresses), at(10));
    meet(&mut a, &mut b);
    let denied = Answer::Unreachable(hedgerow_mesh::Unreachable::NotAdmitted);
    assert_eq!(a.answers, [denied]);
}

#[test]
fn attack_a_stranger_gets_no_answer_to_a_ping_and_nobody_bulk_without_consent() {
    let (_, mut a, b) = introduced(POLICY);
    let ping = measure::Message::Ping { token: 7 };
    says(&mut a, DeviceId([3; 16]), ping);
    assert!(!a.log.iter().any(|l| l.contains("SendMessage")));
    says(&mut a, b.id(), ping);
    let answers = |a: &Machine| a.log.iter().filter(|l| l.contains("SendMessage")).count();
    assert_eq!(answers(&a), 1);
    let ask = measure::Message::Ask {
        token: 8,
        seconds: 10,
        bytes: 1 << 30,
    };
    says(&mut a, b.id(), ask);
    says(&mut a, b.id(), measure::Message::Turn { token: 8 });
    assert_eq!(answers(&a), 2, "a refusal, and nothing else");
}
