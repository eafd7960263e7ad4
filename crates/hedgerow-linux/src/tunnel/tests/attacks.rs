//! Attacks, each by its name.

use std::time::Duration;

use hedgerow_model::Now;
use hedgerow_model::address::Underlay;
use hedgerow_model::path::split_relay_frame;
use hedgerow_model::ruleset::{Entry, Profile, RuleRef, Verdict};
use hedgerow_model::service::{Ports, Protocol};
use proptest::prelude::*;

use super::pair::*;
use crate::tunnel::limits::INITIATIONS_PER_SECOND;
use crate::tunnel::{Command, Report, Stats};

fn stranger() -> Underlay {
    Underlay("198.51.100.7:999".parse().unwrap())
}

/// Counters that differ from the defaults.
fn counted(stats: &Stats) -> Vec<(&'static str, u64)> {
    stats.iter().filter(|(_, n)| *n > 0).collect()
}

#[test]
fn tunnel_attack_replayed_initiation_gets_nothing() {
    let (mut a, mut b) = pair();
    a.send(&packet(v6(1), v6(2), b"x"), at(1));
    let initiation = a.sent[0].1.clone();
    pump(&mut a, &mut b, at(1));
    b.got();
    b.receive(stranger(), &initiation, at(2));
    b.receive(a.at, &initiation, at(200));
    assert!(b.sent.is_empty());
    assert_eq!(b.core.stats().dropped_replayed_handshake, 2);
    exchange(&mut a, &mut b, at(2));
}

#[test]
fn tunnel_attack_held_back_initiation_does_not_move_the_peer() {
    let (mut a, mut b) = joined(1);
    b.core.stats().handshakes_done = 0;
    a.send(&packet(v6(1), v6(2), b"rekey"), at(130));
    let initiation = a.sent.remove(0).1;
    pump(&mut a, &mut b, at(130));
    b.got();
    // A stranger brings it first: he gets a response he cannot use.
    b.receive(stranger(), &initiation, at(131));
    assert_eq!(b.sent.pop().unwrap().0, stranger());
    b.send(&packet(v6(2), v6(1), b"y"), at(131));
    assert_eq!(b.sent.pop().unwrap().0, a.at);
    assert_eq!(b.core.stats().handshakes_done, 0);
    assert!(b.said().is_empty());
}

#[test]
fn tunnel_attack_replayed_transport_is_dropped_and_does_not_roam() {
    let (mut a, mut b) = joined(1);
    a.send(&packet(v6(1), v6(2), b"once"), at(2));
    let data = a.sent[0].1.clone();
    pump(&mut a, &mut b, at(2));
    assert_eq!(b.got().len(), 1);
    b.receive(stranger(), &data, at(2));
    b.receive(a.at, &data, at(3));
    assert!(b.got().is_empty() && b.said().is_empty());
    assert_eq!(b.core.stats().dropped_replayed, 2);
    exchange(&mut a, &mut b, at(3));
}

#[test]
fn tunnel_attack_reflected_packets_are_not_ours() {
    let (mut a, mut b) = pair();
    a.send(&packet(v6(1), v6(2), b"x"), at(1));
    let mut seen = a.sent.clone();
    let (_, initiation) = a.sent.remove(0);
    b.receive(a.at, &initiation, at(1));
    let response = b.sent.remove(0);
    seen.push(response.clone());
    a.receive(b.at, &response.1, at(1));
    seen.extend(a.sent.iter().cloned());
    pump(&mut a, &mut b, at(1));
    b.got();
    for (_, datagram) in seen {
        // Each message back to its sender. It is never accepted, and never answered.
        let (sender, other) = if datagram == response.1 {
            (&mut b, a.at)
        } else {
            (&mut a, b.at)
        };
        let before = *sender.core.stats();
        sender.receive(other, &datagram, at(2));
        assert!(sender.got().is_empty() && sender.sent.is_empty());
        let after = *sender.core.stats();
        assert_eq!(after.handshakes_done, before.handshakes_done);
        assert_ne!(after, before, "counted");
    }
    exchange(&mut a, &mut b, at(3));
}

#[test]
fn tunnel_attack_macless_messages_get_silence() {
    let (mut a, mut b) = pair();
    a.send(&packet(v6(1), v6(2), b"x"), at(1));
    let mut initiation = a.sent.remove(0).1;
    for byte in &mut initiation[116..] {
        *byte = 0;
    }
    b.receive(stranger(), &initiation, at(1));
    b.receive(stranger(), &[1; 148], at(1));
    b.receive(stranger(), &[2; 92], at(1));
    let mut response = [0; 92];
    response[0] = 2;
    b.receive(stranger(), &response, at(1));
    assert!(b.sent.is_empty() && b.said().is_empty());
    assert_eq!(
        counted(b.core.stats()),
        [("dropped_malformed", 2), ("dropped_bad_mac", 2)]
    );
}

#[test]
fn tunnel_attack_handshake_from_unknown_key_gets_nothing() {
    let (mut b, mut x) = (Node::new(2), Node::new(66));
    x.tell(Command::SetPeer(b.config()), at(0));
    x.send(&packet(v6(66), v6(2), b"let me in"), at(1));
    pump(&mut x, &mut b, at(1));
    assert!(x.said().is_empty() && b.sent.is_empty());
    let (public_key, from) = (secret(66).public(), x.at);
    assert_eq!(
        b.said(),
        [Report::HandshakeFromUnknown {
            public_key,
            from: from.into()
        }]
    );
    assert_eq!(counted(b.core.stats()), [("dropped_unknown", 1)]);
}

#[test]
fn tunnel_attack_spoofed_inner_source_is_dropped_and_reported() {
    let (mut a, mut b) = joined(1);
    // The peer's machine is made to believe that it owns a third device's address.
    a.core.addresses_for_attack(addresses(3));
    for (src, dst) in [(v6(3), v6(2)), (v4(3), v4(2))] {
        a.send(&packet(src, dst, b"I am 3"), at(2));
        pump(&mut a, &mut b, at(2));
        assert!(b.got().is_empty());
        let (device, src, dst) = (a.device(), overlay(src), overlay(dst));
        assert_eq!(b.said(), [Report::Spoofed { device, src, dst }]);
    }
    assert_eq!(b.core.stats().dropped_spoofed, 2);
}

#[test]
fn tunnel_attack_transit_through_us_is_dropped_and_reported() {
    let (mut a, mut b) = joined(1);
    let mut config = b.config();
    config.addresses = addresses(9);
    a.tell(Command::SetPeer(config), at(2));
    a.send(&packet(v6(1), v6(9), b"forward this"), at(2));
    pump(&mut a, &mut b, at(2));
    assert!(b.got().is_empty());
    assert!(matches!(b.said()[..], [Report::Spoofed { .. }]));
}

#[test]
fn tunnel_attack_liars_do_not_flood_the_reports() {
    let (mut a, mut b) = joined(1);
    a.core.addresses_for_attack(addresses(3));
    for _ in 0..1000 {
        a.send(&packet(v6(3), v6(2), b"x"), at(2));
    }
    pump(&mut a, &mut b, at(2));
    assert_eq!(b.said().len(), 20);
    assert_eq!(b.core.stats().dropped_spoofed, 1000);
}

#[test]
fn tunnel_attack_handshake_flood_meets_cookies_and_peers_get_through() {
    let (mut a, mut b) = pair();
    let mut x = Node::new(66);
    x.tell(Command::SetPeer(b.config()), at(0));
    x.send(&packet(v6(66), v6(2), b"x"), at(1));
    let flood = x.sent.remove(0).1;
    for _ in 0..2 * INITIATIONS_PER_SECOND {
        b.receive(stranger(), &flood, at(1));
    }
    let stats = *b.core.stats();
    assert_eq!(stats.dropped_unknown, u64::from(INITIATIONS_PER_SECOND));
    assert_eq!(stats.cookies_sent, u64::from(INITIATIONS_PER_SECOND));
    assert!(
        b.sent
            .iter()
            .all(|(to, m)| *to == stranger() && m.len() == 64)
    );
    b.sent.clear();
    // The peer comes in the middle of it: first a cookie, then, at its retry, a session.
    let mut sec = 1;
    a.send(&packet(v6(1), v6(2), b"hello"), at(sec));
    while b.got().is_empty() {
        for _ in 0..INITIATIONS_PER_SECOND {
            b.receive(stranger(), &flood, at(sec));
        }
        b.sent.retain(|(to, _)| *to != stranger());
        pump(&mut a, &mut b, at(sec));
        sec += 1;
        assert!(sec < 10, "no session under load");
        for _ in 0..INITIATIONS_PER_SECOND {
            b.receive(stranger(), &flood, at(sec));
        }
        b.sent.retain(|(to, _)| *to != stranger());
        a.timeout(at(sec));
    }
    assert_eq!(a.core.stats().handshakes_begun, 2);
}

#[test]
fn tunnel_attack_peer_that_renegotiates_forever_is_slowed_and_heard() {
    let (mut a, mut b) = pair();
    for n in 0..1000u64 {
        // An attacker forgets each handshake it has begun.
        let ms = Duration::from_millis(n);
        let now = Now {
            mono: at(1).mono + ms,
            wall: at(1).wall + ms,
            wall_is_trusted: true,
        };
        let to_b = b.config();
        a.tell(
            Command::RemovePeer {
                device: to_b.device,
            },
            now,
        );
        a.tell(Command::SetPeer(to_b), now);
        a.send(&packet(v6(1), v6(2), b"x"), now);
        let initiation = a.sent.remove(0).1;
        b.receive(a.at, &initiation, now);
    }
    let responses = b.sent.iter().filter(|(_, m)| m.len() == 92).count();
    assert_eq!(responses, 50);
    assert!(b.core.stats().dropped_handshake_rate >= 450);
    b.sent.clear();
    let (device, to_b) = (b.device(), b.config());
    a.tell(Command::RemovePeer { device }, at(3));
    a.tell(Command::SetPeer(to_b), at(3));
    a.send(&packet(v6(1), v6(2), b"x"), at(3));
    pump(&mut a, &mut b, at(3));
    b.got();
    exchange(&mut a, &mut b, at(3));
}

#[test]
fn tunnel_attack_forged_responses_and_cookies_do_not_stop_a_handshake() {
    let (mut a, mut b) = pair();
    a.send(&packet(v6(1), v6(2), b"x"), at(1));
    let initiation = a.sent.remove(0).1;
    b.receive(a.at, &initiation, at(1));
    let response = b.sent.remove(0).1;
    let keys = crate::tunnel::mac::MacKeys::of(&secret(1).public());
    for n in 0..10 {
        let mut forged = response.clone();
        forged[12 + n] ^= 1;
        keys.sign(&mut forged, None);
        a.receive(b.at, &forged, at(1));
        let mut cookie = vec![0; 64];
        cookie[0] = 3;
        cookie[4..8].copy_from_slice(&initiation[4..8]);
        a.receive(b.at, &cookie, at(1));
    }
    assert_eq!(a.core.stats().dropped_forged, 20);
    a.receive(b.at, &response, at(1));
    pump(&mut a, &mut b, at(1));
    assert_eq!(b.got().len(), 1);
}

#[test]
fn tunnel_attack_clock_set_forward_does_not_lock_a_peer_out_of_its_new_key() {
    let (mut a, mut b) = joined(1);
    // Its clock was in 2200 once; the next day's key begins anew.
    let mut wrong = at(130);
    wrong.wall.0 += 5_000_000_000_000;
    a.send(&packet(v6(1), v6(2), b"x"), wrong);
    pump(&mut a, &mut b, at(130));
    b.got();
    let mut config = a.config();
    config.public_key = a.rotate(90, at(140));
    b.tell(Command::SetPeer(config), at(140));
    pump(&mut a, &mut b, at(140));
    exchange(&mut a, &mut b, at(141));
}

#[test]
fn tunnel_attack_garbage_flood_leaves_nothing_behind() {
    let (mut a, mut b) = joined(1);
    let before = b.core.deadline();
    let mut state = 1u64;
    for n in 0..20_000usize {
        let mut bytes = vec![0; n % 200];
        for byte in &mut bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        if let Some(first) = bytes.first_mut() {
            *first &= 0x7f;
        }
        if n % 2 == 0 && bytes.len() > 4 {
            bytes[..4].copy_from_slice(&[u8::try_from(n % 5).unwrap(), 0, 0, 0]);
        }
        b.receive(stranger(), &bytes, at(2));
    }
    assert!(b.sent.is_empty() && b.got().is_empty() && b.said().is_empty());
    assert_eq!(b.core.deadline(), before);
    exchange(&mut a, &mut b, at(3));
}

/// What a relay's frame holds is judged as if it had come alone.
fn bare(datagram: &[u8]) -> &[u8] {
    match datagram.first() {
        Some(0x84) => split_relay_frame(datagram).map_or(&[], |(_, inside)| inside),
        _ => datagram,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn tunnel_attack_any_datagram_is_survived(
        kind in 0u8..=5,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        len in prop::sample::select(vec![0usize, 1, 4, 15, 16, 31, 32, 33, 63, 64, 65, 91, 92, 93, 147, 148, 149, 300]),
    ) {
        let (mut a, mut b) = joined(1);
        let mut bytes = bytes;
        bytes.resize(len, 0);
        if kind > 0 {
            for (slot, byte) in bytes.iter_mut().zip([kind, 0, 0, 0]) {
                *slot = byte;
            }
        }
        let is_mesh = bare(&bytes).first() >= Some(&0x80);
        b.receive(stranger(), &bytes, at(2));
        prop_assert!(b.sent.is_empty() && b.got().is_empty());
        prop_assert_eq!(b.said().len(), usize::from(is_mesh));
        exchange(&mut a, &mut b, at(3));
    }

    #[test]
    fn tunnel_attack_any_change_to_a_message_is_noticed(
        which in 0usize..3, at_byte in any::<prop::sample::Index>(), flip in 1u8..=255, cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut a, mut b) = pair();
        a.send(&packet(v6(1), v6(2), b"x"), at(1));
        let mut message = a.sent.remove(0).1;
        if which > 0 {
            b.receive(a.at, &message, at(1));
            message = b.sent.remove(0).1;
        }
        if which > 1 {
            a.receive(b.at, &message, at(1));
            message = a.sent.remove(0).1;
        }
        // mac2 is not looked at without load.
        let end = message.len() - if which < 2 { 16 } else { 0 };
        match cut {
            Some(cut) => message.truncate(cut.index(message.len())),
            None => message[at_byte.index(end)] ^= flip,
        }
        let is_mesh = bare(&message).first() >= Some(&0x80);
        let receiver = if which == 1 { &mut a } else { &mut b };
        receiver.receive(stranger(), &message, at(1));
        prop_assert!(receiver.sent.is_empty() && receiver.got().is_empty());
        prop_assert_eq!(receiver.said().len(), usize::from(is_mesh));
        prop_assert_eq!(receiver.core.stats().handshakes_done, 0);
    }

    #[test]
    fn tunnel_attack_any_inner_packet_of_a_peer_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let (mut a, mut b) = joined(1);
        a.core.send_raw_for_attack(&bytes, at(2));
        a.drain();
        pump(&mut a, &mut b, at(2));
        prop_assert!(b.got().is_empty());
        exchange(&mut a, &mut b, at(3));
    }
}

#[test]
fn tunnel_attack_first_packets_to_an_unknown_peer_do_not_escape_the_policy() {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let ports = |protocol, first| Ports {
        protocol,
        first,
        last: first,
    };
    let entry = |ports| Entry {
        ports,
        verdict: Verdict::Accept,
        until: None,
    };
    let profile = Profile {
        inbound: vec![entry(ports(Protocol::Tcp, 22))],
        outbound: vec![entry(ports(Protocol::Tcp, 502))],
        inbound_default: Verdict::Deny(RuleRef(0)),
        outbound_default: Verdict::Deny(RuleRef(0)),
    };
    for is_v6 in [true, false] {
        let echo = if is_v6 { (58, 0x8000) } else { (1, 0x0800) };
        let mut fragment = speaking(is_v6, 6, 40_000, 502, SYN);
        match is_v6 {
            // An extension header, and more fragments to come.
            true => fragment[6] = 44,
            false => fragment[6] = 0x20,
        }
        let denied = [
            speaking(is_v6, 17, 40_000, 161, 0),
            speaking(is_v6, 17, 502, 502, 0),
            speaking(is_v6, 6, 22, 23, SYN),
            speaking(is_v6, echo.0, echo.1, 0, 0),
            speaking(is_v6, 132, 40_000, 502, 0),
            fragment,
        ];
        let allowed = [
            speaking(is_v6, 6, 40_000, 502, SYN),
            speaking(is_v6, 6, 22, 40_000, ACK),
        ];
        for p in &denied {
            assert!(!crate::tunnel::inner::passes(p, &profile, at(1).wall));
        }
        let (mut a, mut b) = (Node::new(1), Node::new(2));
        b.tell(Command::SetPeer(a.config()), at(0));
        for p in denied[..3].iter().chain(&allowed) {
            a.send(p, at(1));
        }
        let dst = overlay(if is_v6 { v6(2) } else { v4(2) });
        assert_eq!(a.said(), [Report::Wanted { dst }]);
        a.tell(Command::SetPeer(b.config()), at(2));
        // What follows was judged by the kernel and does not take the others with it.
        a.send(&speaking(is_v6, 6, 40_001, 502, SYN), at(2));
        pump(&mut a, &mut b, at(2));
        assert_eq!(b.got().len(), 1);
        let profile = Box::new(profile.clone());
        a.tell(Command::Release { dst, profile }, at(3));
        pump(&mut a, &mut b, at(3));
        assert_eq!(b.got(), allowed);
        assert_eq!(a.core.stats().rejected, 3);
    }
}
