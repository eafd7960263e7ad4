//! Paths, messages of agents, relays and pre-shared keys.

use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};
use hedgerow_model::path::{Path, RelaySession, relay_header};

use hedgerow_model::Now;
use std::time::Duration;

use super::pair::*;
use crate::tunnel::{
    Command, Cut, PresharedKey, PskSlot, Report, Roaming, SILENT_MIN, SILENT_PACKETS, Secrecy,
};

fn psk(n: u8) -> PresharedKey {
    PresharedKey::from_bytes([n; 32])
}

fn say(to: &Node, via: Option<Path>, content: &[u8]) -> Command {
    Command::SendMessage {
        device: to.device(),
        via,
        bytes: message::encode(MessageKind::Path, content).unwrap(),
        cut: Cut::Allowed,
    }
}

/// Two nodes in session whose endpoints only the mesh moves.
fn reporting_pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let (mut to_a, mut to_b) = (a.config(), b.config());
    to_a.roaming = Roaming::Report;
    to_b.roaming = Roaming::Report;
    a.tell(Command::SetPeer(to_b), at(0));
    b.tell(Command::SetPeer(to_a), at(0));
    a.send(&packet(v6(1), v6(2), b"x"), at(1));
    pump(&mut a, &mut b, at(1));
    a.said();
    b.said();
    b.got();
    (a, b)
}

#[test]
fn tunnel_messages_of_agents_are_handed_up_and_never_delivered() {
    let (mut a, mut b) = reporting_pair();
    a.tell(say(&b, None, b"hello"), at(2));
    pump(&mut a, &mut b, at(2));
    let said = b.said();
    let [
        Report::Message {
            device,
            from,
            bytes,
        },
    ] = &said[..]
    else {
        panic!("{said:?}");
    };
    assert_eq!((*device, *from), (a.device(), a.at.into()));
    assert_eq!(
        message::decode(bytes),
        Some((MessageKind::Path, &b"hello"[..]))
    );
    assert!(b.got().is_empty());
    // Without a session nothing is sent, nothing waits.
    let mut lonely = Node::new(3);
    lonely.tell(Command::SetPeer(b.config()), at(2));
    lonely.tell(say(&b, None, b"hello"), at(2));
    assert!(lonely.sent.is_empty());
    assert_eq!(lonely.core.stats().dropped_messages, 1);
}

#[test]
fn tunnel_an_answer_by_the_path_in_use_is_a_keepalive() {
    let (mut a, mut b) = reporting_pair();
    pass(&mut a, &mut b, 2..30);
    for (second, via, keepalives) in [(30, a.at, 0), (60, Node::new(7).at, 1)] {
        a.tell(say(&b, None, b"probe"), at(second));
        pump(&mut a, &mut b, at(second));
        b.tell(say(&a, Some(via.into()), b"reply"), at(second + 1));
        b.sent.clear();
        b.timeout(at(second + 11));
        assert_eq!(b.sent.len(), keepalives, "{via:?}");
        b.sent.clear();
    }
}

#[test]
fn tunnel_a_probe_by_another_path_moves_nothing_and_packets_from_there_are_reported() {
    let (mut a, mut b) = reporting_pair();
    let other = a.at;
    a.at = Node::new(7).at;
    a.tell(say(&b, Some(b.at.into()), b"probe"), at(2));
    pump(&mut a, &mut b, at(2));
    assert!(matches!(b.said()[..], [Report::Message { from, .. }] if from == a.at.into()));
    for second in [3, 3] {
        a.send(&packet(v6(1), v6(2), b"y"), at(second));
        pump(&mut a, &mut b, at(second));
    }
    let (device, from) = (a.device(), a.at.into());
    assert_eq!(b.said(), [Report::Heard { device, from }], "once");
    assert_eq!(b.got().len(), 2, "and delivered");
    b.send(&packet(v6(2), v6(1), b"z"), at(3));
    assert_eq!(b.sent.pop().unwrap().0, other, "still there");
    b.tell(Command::MovePeer { device, path: from }, at(4));
    b.send(&packet(v6(2), v6(1), b"z"), at(4));
    assert_eq!(b.sent.pop().unwrap().0, a.at);
}

#[test]
fn tunnel_a_relay_passes_on_what_its_sides_send_and_nobody_else() {
    let (mut a, mut b) = reporting_pair();
    let mut relay = Node::new(9);
    for node in [&mut a, &mut b] {
        let mut config = node.config();
        config.roaming = Roaming::Report;
        relay.tell(Command::SetPeer(config), at(2));
    }
    let (of_a, of_b) = (RelaySession(0xa), RelaySession(0xb));
    for (session, from, to) in [
        (of_a, a.device(), (b.device(), of_b)),
        (of_b, b.device(), (a.device(), of_a)),
    ] {
        relay.tell(Command::SetRelay { session, from, to }, at(2));
    }
    let path = Path::relayed(relay.at, of_a);
    a.tell(
        Command::MovePeer {
            device: b.device(),
            path,
        },
        at(2),
    );
    a.send(&packet(v6(1), v6(2), b"through"), at(3));
    let (to, frame) = a.sent.pop().unwrap();
    assert_eq!((to, &frame[..8]), (relay.at, &relay_header(of_a)[..]));
    relay.receive(Node::new(66).at, &frame, at(3));
    assert!(relay.sent.is_empty(), "not from where its side is");
    assert_eq!(relay.core.stats().dropped_relay, 1);
    relay.receive(a.at, &frame, at(3));
    let (to, frame) = relay.sent.pop().unwrap();
    assert_eq!((to, &frame[..8]), (b.at, &relay_header(of_b)[..]));
    b.receive(relay.at, &frame, at(3));
    assert_eq!(b.got(), [packet(v6(1), v6(2), b"through")]);
    let from = Path::relayed(relay.at, of_b);
    let device = a.device();
    assert_eq!(b.said(), [Report::Heard { device, from }]);
    relay.tell(Command::ForgetRelay { session: of_a }, at(4));
    relay.receive(a.at, &frame, at(4));
    assert!(relay.sent.is_empty(), "a frame for the relay itself");
}

#[test]
fn tunnel_a_handshake_through_a_relay_is_answered_through_it() {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let relay = Node::new(9).at;
    let session = RelaySession(5);
    let mut to_b = b.config();
    to_b.endpoint = Some(Path::relayed(relay, session));
    let mut to_a = a.config();
    to_a.endpoint = None;
    to_a.roaming = Roaming::Report;
    a.tell(Command::SetPeer(to_b), at(0));
    b.tell(Command::SetPeer(to_a), at(0));
    a.send(&packet(v6(1), v6(2), b"x"), at(1));
    for _ in 0..4 {
        for (to, frame) in std::mem::take(&mut a.sent) {
            assert_eq!(to, relay);
            b.receive(relay, &frame, at(1));
        }
        for (to, frame) in std::mem::take(&mut b.sent) {
            assert_eq!(to, relay);
            a.receive(relay, &frame, at(1));
        }
    }
    assert_eq!(b.got().len(), 1);
    let endpoint = Path::relayed(relay, session);
    let said = b.said();
    assert!(matches!(said[..], [Report::Established { endpoint: e, .. }] if e == endpoint));
}

#[test]
fn tunnel_a_new_pre_shared_key_works_while_only_one_side_has_it() {
    let (mut a, mut b) = reporting_pair();
    // A has it and begins: B answers under what it has, and A takes that as the former key.
    for (first, key) in [(1, 5), (100, 6)] {
        let device = b.device();
        a.tell(
            Command::SetPsk {
                device,
                keys: None,
                slot: PskSlot::Used,
                psk: Some(psk(key)),
            },
            at(first),
        );
        a.tell(Command::Rekey { device }, at(first + 1));
        pump(&mut a, &mut b, at(first + 1));
        let said = a.said();
        let had = key == 6;
        assert!(
            matches!(said[..], [Report::Established { psk, .. }] if psk == had),
            "{said:?}"
        );
        let device = a.device();
        b.tell(
            Command::SetPsk {
                device,
                keys: None,
                slot: PskSlot::Used,
                psk: Some(psk(key)),
            },
            at(first + 2),
        );
        b.tell(Command::Rekey { device }, at(first + 3));
        pump(&mut a, &mut b, at(first + 3));
        for node in [&mut a, &mut b] {
            let said = node.said();
            let newest = said.last();
            assert!(matches!(
                newest,
                Some(Report::Established { psk: true, .. })
            ));
        }
    }
}

#[test]
fn tunnel_a_session_under_the_new_key_ends_the_former_one() {
    let (mut a, mut b) = reporting_pair();
    for (node, other) in [(&mut a, b.device()), (&mut b, Node::new(1).device())] {
        node.tell(
            Command::SetPsk {
                device: other,
                keys: None,
                slot: PskSlot::Used,
                psk: Some(psk(5)),
            },
            at(2),
        );
    }
    let device = b.device();
    a.tell(Command::Rekey { device }, at(2));
    pump(&mut a, &mut b, at(2));
    assert!(matches!(
        a.said()[..],
        [Report::Established { psk: true, .. }]
    ));
    // B forgets it, as an attacker who could break the key agreement would want it to.
    let other = a.device();
    b.tell(
        Command::SetPsk {
            device: other,
            keys: None,
            slot: PskSlot::Used,
            psk: None,
        },
        at(3),
    );
    a.tell(Command::Rekey { device }, at(4));
    pump(&mut a, &mut b, at(4));
    assert!(a.said().is_empty(), "no way back to no key");
    assert!(a.core.stats().dropped_forged > 0);
}

#[test]
fn tunnel_where_a_pre_shared_key_is_required_packets_wait_for_it_and_messages_do_not() {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let (mut to_a, mut to_b) = (a.config(), b.config());
    to_b.secrecy = Secrecy::PostQuantum;
    a.tell(Command::SetPeer(to_b), at(0));
    b.tell(Command::SetPeer(to_a.clone()), at(0));
    a.send(&packet(v6(1), v6(2), b"secret"), at(1));
    pump(&mut a, &mut b, at(1));
    a.send(&packet(v6(1), v6(2), b"secret too"), at(1));
    pump(&mut a, &mut b, at(1));
    assert!(b.got().is_empty(), "nothing under the classical session");
    a.tell(say(&b, None, b"exchange"), at(2));
    b.send(&packet(v6(2), v6(1), b"careless"), at(2));
    pump(&mut a, &mut b, at(2));
    assert!(a.got().is_empty());
    assert_eq!(a.core.stats().dropped_not_secret, 1);
    assert!(b.said().iter().any(|r| matches!(r, Report::Message { .. })));
    to_a.psk = Some(psk(7));
    b.tell(Command::SetPeer(to_a), at(3));
    let device = b.device();
    a.tell(
        Command::SetPsk {
            device,
            keys: None,
            slot: PskSlot::Used,
            psk: Some(psk(7)),
        },
        at(3),
    );
    a.tell(Command::Rekey { device }, at(3));
    pump(&mut a, &mut b, at(3));
    assert_eq!(b.got().len(), 2, "those that waited");
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn silent(device: DeviceId, waited: Duration) -> Report {
    Report::Silent { device, waited }
}

#[test]
fn tunnel_use_and_silence_are_reported_where_the_mesh_chooses_the_path() {
    let (mut a, mut b) = reporting_pair();
    b.send(&packet(v6(2), v6(1), b"answer"), at(1));
    pump(&mut a, &mut b, at(1));
    let device = b.device();
    let after = |ms: u64| {
        let start = at(10);
        Now {
            mono: start.mono + Duration::from_millis(ms),
            ..start
        }
    };
    let send = |a: &mut Node, ms: u64| {
        a.send(&packet(v6(1), v6(2), b"x"), after(ms));
        std::mem::take(&mut a.sent)
    };
    send(&mut a, 0);
    assert_eq!(a.said(), [Report::Active { device }], "once");
    send(&mut a, 50);
    a.timeout(after(99));
    assert!(a.said().is_empty());
    a.timeout(after(100));
    assert_eq!(a.said(), [silent(device, ms(100))]);
    // A message alone shows that the path works: the next silence is longer.
    b.tell(say(&a, None, b"here"), after(100));
    pump(&mut a, &mut b, after(100));
    a.said();
    send(&mut a, 200);
    a.timeout(after(399));
    assert!(a.said().is_empty());
    a.timeout(after(400));
    assert_eq!(a.said(), [silent(device, ms(200))]);
    // A packet that comes back makes it short again.
    b.send(&packet(v6(2), v6(1), b"y"), after(500));
    pump(&mut a, &mut b, after(500));
    send(&mut a, 600);
    a.timeout(after(701));
    assert_eq!(a.said(), [silent(device, ms(100))]);
}

#[test]
fn tunnel_a_busy_stream_hears_soon_of_silence_and_a_slow_one_later() {
    let (mut a, mut b) = reporting_pair();
    b.send(&packet(v6(2), v6(1), b"answer"), at(1));
    pump(&mut a, &mut b, at(1));
    let is_silent = |a: &mut Node| {
        let said = a.said();
        said.iter().any(|r| matches!(r, Report::Silent { .. }))
    };
    let start = at(10);
    let mut ms = 0;
    let after = |ms: u64| Now {
        mono: start.mono + Duration::from_millis(ms),
        ..start
    };
    // Messages alone come back, so each silence is longer than the one before.
    for _ in 0..6 {
        a.send(&packet(v6(1), v6(2), b"x"), after(ms));
        ms += 2400;
        a.timeout(after(ms));
        b.tell(say(&a, None, b"here"), after(ms));
        pump(&mut a, &mut b, after(ms));
        a.said();
    }
    a.send(&packet(v6(1), v6(2), b"slow"), after(ms));
    a.timeout(after(ms + 2399));
    assert!(!is_silent(&mut a));
    a.timeout(after(ms + 2400));
    assert!(is_silent(&mut a));
    ms += 3000;
    for packet_ms in 0..u64::from(SILENT_PACKETS) {
        a.send(&packet(v6(1), v6(2), b"busy"), after(ms + packet_ms * 20));
    }
    a.timeout(after(ms + 299));
    assert!(!is_silent(&mut a));
    a.timeout(after(ms + 300));
    assert!(is_silent(&mut a));
}

#[test]
fn tunnel_an_unanswered_handshake_is_silence_while_packets_wait() {
    let (mut a, b) = (Node::new(1), Node::new(2));
    let mut to_b = b.config();
    to_b.roaming = Roaming::Report;
    a.tell(Command::SetPeer(to_b), at(0));
    a.send(&packet(v6(1), v6(2), b"x"), at(1));
    let device = b.device();
    assert_eq!(a.said(), [Report::Active { device }]);
    let start = at(1);
    let later = Now {
        mono: start.mono + SILENT_MIN,
        ..start
    };
    a.timeout(later);
    assert_eq!(
        a.said(),
        [silent(device, SILENT_MIN)],
        "long before the handshake is given up"
    );
}

#[test]
fn tunnel_a_response_that_nobody_got_does_not_hold_a_peer_where_it_is_not() {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let (mut to_a, mut to_b) = (a.config(), b.config());
    (to_a.roaming, to_b.roaming) = (Roaming::Report, Roaming::Report);
    // Both know a way by a relay that takes it back: only the first message of a handshake comes through.
    let relayed = |at: Path| Path {
        relay: Some(RelaySession(7)),
        ..at
    };
    (to_a.endpoint, to_b.endpoint) = (Some(relayed(a.at.into())), Some(relayed(b.at.into())));
    a.tell(Command::SetPeer(to_b.clone()), at(0));
    b.tell(Command::SetPeer(to_a), at(0));
    let back = packet(v6(2), v6(1), b"x");
    b.send(&back, at(1));
    let initiation = b.sent.remove(0).1;
    a.receive(b.at, initiation.get(8..).unwrap(), at(1));
    assert_eq!(a.sent.remove(0).1[0], 2, "a response, which is lost");
    let there = packet(v6(1), v6(2), b"y");
    a.send(&there, at(2));
    assert_eq!(a.sent.remove(0).1[0], 0x84, "by the relay, in vain");
    to_b.endpoint = Some(b.at.into());
    a.tell(Command::SetPeer(to_b.clone()), at(3));
    assert_eq!(a.sent.len(), 1, "at once where it is said to be now");
    pump(&mut a, &mut b, at(3));
    assert_eq!((a.got(), b.got()), (vec![back], vec![there]));
    // A session that both have holds it.
    to_b.endpoint = Some(relayed(b.at.into()));
    a.tell(Command::SetPeer(to_b), at(4));
    exchange(&mut a, &mut b, at(5));
}

#[test]
fn tunnel_packets_above_a_path_s_bound_are_answered_with_too_big() {
    let (mut a, mut b) = reporting_pair();
    let device = b.device();
    a.tell(
        Command::SetPathMtu {
            device,
            mtu: Some(1300),
        },
        at(2),
    );
    a.send(&packet(v6(1), v6(2), &[0; 1300]), at(3));
    pump(&mut a, &mut b, at(3));
    assert!(b.got().is_empty());
    let answer = a.got().pop().unwrap();
    assert_eq!((answer[6], answer[40], answer[41]), (58, 2, 0));
    assert_eq!(answer[44..48], 1300u32.to_be_bytes());
    a.send(&packet(v6(1), v6(2), &[0; 1200]), at(3));
    pump(&mut a, &mut b, at(3));
    assert_eq!(b.got().len(), 1);
}

/// Tells a node of a key for the pair of its own key and the other's.
fn agree(node: &mut Node, own: u8, other: (u8, &Node), (n, slot): (u8, PskSlot)) {
    let command = Command::SetPsk {
        device: other.1.device(),
        keys: Some([secret(own).public(), secret(other.0).public()]),
        psk: Some(psk(n)),
        slot,
    };
    node.tell(command, at(2));
}

fn rekey(from: &mut Node, to: &mut Node, second: u64) -> (Option<bool>, Option<bool>) {
    let device = to.device();
    from.tell(Command::Rekey { device }, at(second));
    pump(from, to, at(second));
    let had = |node: &mut Node| {
        let said = node.said().into_iter().rev();
        said.filter_map(|r| {
            if let Report::Established { psk, .. } = r {
                return Some(psk);
            }
            None
        })
        .next()
    };
    (had(from), had(to))
}

#[test]
fn tunnel_at_each_step_of_an_exchange_either_side_can_begin() {
    let (mut a, mut b) = reporting_pair();
    type Step = dyn Fn(&mut Node, &mut Node);
    let steps: [&Step; 3] = [
        &|a, b| agree(a, 1, (2, b), (5, PskSlot::Accepted)),
        &|a, b| agree(b, 2, (1, a), (5, PskSlot::Used)),
        &|a, b| agree(a, 1, (2, b), (5, PskSlot::Used)),
    ];
    for (number, step) in (0u64..).zip(steps) {
        step(&mut a, &mut b);
        let second = 10 + 20 * number;
        // The first that A is answered under the new key proves it to both.
        let secret = number > 0;
        let both = (Some(secret), Some(secret));
        assert_eq!(rekey(&mut a, &mut b, second), both, "step {number}");
        assert_eq!(rekey(&mut b, &mut a, second + 10), both, "step {number}");
    }
    assert_eq!(
        a.core.stats().dropped_forged + b.core.stats().dropped_forged,
        0
    );
}

#[test]
fn tunnel_a_key_of_our_own_begins_without_a_pre_shared_key_and_the_former_pair_keeps_its() {
    let (mut a, mut b) = reporting_pair();
    agree(&mut a, 1, (2, &b), (5, PskSlot::Used));
    agree(&mut b, 2, (1, &a), (5, PskSlot::Used));
    assert_eq!(rekey(&mut a, &mut b, 10), (Some(true), Some(true)));
    let public = a.rotate(9, at(20));
    // B does not know the new key: the former pair goes on, secret as before.
    assert_eq!(rekey(&mut b, &mut a, 30), (Some(true), Some(true)));
    let mut config = a.config();
    config.public_key = public;
    config.roaming = Roaming::Report;
    b.tell(Command::SetPeer(config), at(40));
    assert_eq!(rekey(&mut b, &mut a, 50), (Some(false), Some(false)));
}

#[test]
fn tunnel_a_peer_removed_on_one_side_alone_comes_back_under_the_agreed_key() {
    let (mut a, mut b) = reporting_pair();
    let pair = [secret(1).public(), secret(2).public()];
    let agree = |device, keys| Command::SetPsk {
        device,
        keys: Some(keys),
        slot: PskSlot::Used,
        psk: Some(psk(5)),
    };
    let (device_a, device_b) = (a.device(), b.device());
    a.tell(agree(device_b, pair), at(2));
    b.tell(agree(device_a, [pair[1], pair[0]]), at(2));
    a.tell(Command::Rekey { device: device_b }, at(2));
    pump(&mut a, &mut b, at(2));
    assert!(matches!(
        a.said()[..],
        [Report::Established { psk: true, .. }]
    ));
    // A forgets the peer; B still holds it, and answers under what was agreed.
    a.tell(Command::RemovePeer { device: device_b }, at(10));
    a.tell(Command::SetPeer(b.config()), at(11));
    a.send(&packet(v6(1), v6(2), b"again"), at(12));
    pump(&mut a, &mut b, at(12));
    assert_eq!(b.got().len(), 1);
    assert_eq!(a.core.stats().dropped_forged, 0);
}
