//! The machine: sessions, timers, rotation, waiting packets.

use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::path::Path;

use super::pair::*;
use crate::tunnel::limits::IDLE_ATTEMPTS_PER_SECOND;
use crate::tunnel::{Command, PeerRefusal, PresharedKey, PrivateKey, Report, Slot};

#[test]
fn tunnel_the_waiting_packet_is_the_first_through_the_session() {
    let (mut a, mut b) = pair();
    let packets: Vec<_> = [b"1", b"2", b"3"]
        .iter()
        .map(|t| packet(v4(1), v4(2), *t))
        .collect();
    for p in &packets {
        a.send(p, at(1));
    }
    assert_eq!(a.sent.len(), 1, "one initiation for three packets");
    pump(&mut a, &mut b, at(1));
    assert_eq!(b.got(), packets);
    let (at_a, at_b) = (a.at, b.at);
    for (node, other) in [(&mut a, at_b), (&mut b, at_a)] {
        let said = node.said();
        let [Report::Established { endpoint, psk, .. }] = said[..] else {
            panic!("{said:?}");
        };
        assert_eq!((endpoint, psk), (other.into(), false));
    }
    exchange(&mut a, &mut b, at(2));
    assert_eq!(a.core.stats().handshakes_begun, 1);
    assert_eq!(b.core.stats().handshakes_begun, 0);
}

#[test]
fn tunnel_every_length_survives_the_padding() {
    let (mut a, mut b) = joined(1);
    for len in (0..40).chain(1360..=1380) {
        let p = packet(v6(1), v6(2), &vec![7; len]);
        a.send(&p, at(2));
        let (_, datagram) = &a.sent[0];
        assert!(datagram.len() <= 1420 + 32, "padding stays within the MTU");
        pump(&mut a, &mut b, at(2));
        assert_eq!(b.got(), [p]);
    }
    let long = packet(v6(1), v6(2), &[7; 1381]);
    a.send(&long, at(2));
    assert!(a.sent.is_empty());
    assert_eq!(a.core.stats().dropped_outgoing, 1);
}

#[test]
fn tunnel_a_stranger_s_destination_is_wanted_once_and_released_in_order() {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    b.tell(Command::SetPeer(a.config()), at(0));
    let packets = [speaking(true, 17, 1, 1, 0), speaking(true, 17, 1, 2, 0)];
    a.send(&packets[0], at(1));
    a.send(&packets[1], at(1));
    let dst = overlay(v6(2));
    assert_eq!(a.said(), [Report::Wanted { dst }]);
    a.tell(Command::SetPeer(b.config()), at(2));
    assert!(a.sent.is_empty(), "nothing goes before the release");
    let profile = open_profile();
    a.tell(Command::Release { dst, profile }, at(2));
    pump(&mut a, &mut b, at(2));
    assert_eq!(b.got(), packets);
    // A peer without an endpoint is wanted like a stranger.
    let mut c = Node::new(3);
    let mut blind = b.config();
    blind.endpoint = None;
    c.tell(Command::SetPeer(blind), at(3));
    c.send(&packet(v4(3), v4(2), b"x"), at(3));
    let dst = overlay(v4(2));
    assert_eq!(c.said(), [Report::Wanted { dst }]);
}

#[test]
fn tunnel_a_rejected_destination_is_answered_into_the_kernel() {
    let mut a = Node::new(1);
    for dst in [v6(9), v4(9)] {
        let src = if dst.is_ipv4() { v4(1) } else { v6(1) };
        a.send(&packet(src, dst, b"x"), at(1));
        a.send(&packet(src, dst, b"y"), at(1));
        let dst = overlay(dst);
        let why = crate::tunnel::Rejection::Unreachable;
        a.tell(Command::RejectQueued { dst, why }, at(1));
        let answers = a.got();
        assert_eq!(answers.len(), 2);
        let (at, code) = if dst.0.is_ipv4() {
            (20, [3, 1])
        } else {
            (40, [1, 3])
        };
        assert_eq!(answers[0][at..at + 2], code);
        let inner = crate::tunnel::inner::decode(&answers[0]).unwrap();
        assert_eq!((inner.src, inner.dst), (dst.0, src));
    }
    assert_eq!(a.core.stats().rejected, 4);
    assert!(a.sent.is_empty());
}

#[test]
fn tunnel_only_our_own_unicast_packets_leave() {
    let (mut a, mut b) = joined(1);
    a.send(&packet(v6(3), v6(2), b"x"), at(2));
    a.send(&packet(v6(1), "ff02::1".parse().unwrap(), b"x"), at(2));
    a.send(&packet(v4(1), "224.0.0.1".parse().unwrap(), b"x"), at(2));
    a.send(b"\x45garbage", at(2));
    a.send(b"", at(2));
    pump(&mut a, &mut b, at(2));
    assert!(b.got().is_empty() && a.said().is_empty());
    assert_eq!(a.core.stats().dropped_outgoing, 5);
}

#[test]
fn tunnel_the_initiator_rekeys_after_two_minutes_and_late_packets_still_count() {
    let (mut a, mut b) = joined(1);
    exchange(&mut a, &mut b, at(120));
    assert_eq!(a.core.stats().handshakes_begun, 1, "119 s old");
    b.send(&packet(v6(2), v6(1), b"responders wait"), at(121));
    pump(&mut a, &mut b, at(121));
    assert_eq!(b.core.stats().handshakes_begun, 0);
    a.got();
    let late = packet(v6(1), v6(2), b"late");
    a.send(&late, at(121));
    assert_eq!(
        a.sent.len(),
        2,
        "an initiation and, in the old session, the packet"
    );
    let held = a.sent.pop().unwrap();
    pump(&mut a, &mut b, at(121));
    assert_eq!(a.core.stats().handshakes_done, 2);
    exchange(&mut a, &mut b, at(122));
    b.receive(a.at, &held.1, at(123));
    assert_eq!(b.got(), [late]);
}

#[test]
fn tunnel_a_session_ends_after_three_minutes_and_says_so() {
    let (mut a, mut b) = joined(1);
    pass(&mut a, &mut b, 2..181);
    assert!(a.said().is_empty() && b.said().is_empty());
    pass(&mut a, &mut b, 181..183);
    let device = b.device();
    assert_eq!(a.said(), [Report::Idle { device }]);
    let device = a.device();
    assert_eq!(b.said(), [Report::Idle { device }]);
    assert_eq!(a.core.deadline().0, Mono::NEVER, "nothing is due when idle");
    assert_eq!(b.core.deadline().0, Mono::NEVER);
    exchange(&mut a, &mut b, at(200));
}

#[test]
fn tunnel_received_data_is_answered_by_a_keepalive_and_a_keepalive_is_not() {
    let (mut a, mut b) = joined(1);
    a.timeout(at(10));
    b.timeout(at(10));
    assert!(a.sent.is_empty() && b.sent.is_empty());
    a.timeout(at(12));
    b.timeout(at(12));
    assert!(a.sent.is_empty(), "who sent data waits");
    assert_eq!(b.sent.len(), 1);
    assert_eq!(b.sent[0].1.len(), 32, "a keepalive is empty");
    pump(&mut a, &mut b, at(12));
    pass(&mut a, &mut b, 12..100);
    assert_eq!(a.core.stats().handshakes_begun, 1, "the session was alive");
}

#[test]
fn tunnel_silence_after_data_begins_a_handshake() {
    let (mut a, mut b) = joined(1);
    pass(&mut a, &mut b, 2..30);
    a.send(&packet(v6(1), v6(2), b"into the void"), at(30));
    a.sent.clear();
    a.timeout(at(44));
    assert!(a.sent.is_empty());
    a.timeout(at(45));
    assert_eq!(a.sent[0].1[0], 1, "an initiation");
    pump(&mut a, &mut b, at(45));
    exchange(&mut a, &mut b, at(45));
}

#[test]
fn tunnel_a_handshake_is_retried_with_jitter_and_given_up_after_ninety_seconds() {
    let (mut a, _) = pair();
    a.send(&packet(v6(1), v6(2), b"x"), at(0));
    let mut moments = vec![];
    let mut ms = 0;
    while a.core.deadline().0 != Mono::NEVER {
        let now = hedgerow_model::Now {
            mono: Mono(Duration::from_millis(ms)),
            ..at(0)
        };
        a.timeout(now);
        moments.extend(a.sent.drain(..).map(|_| ms));
        ms += 1;
    }
    let steps: Vec<u64> = moments.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(steps.iter().all(|s| (5000..=5334).contains(s)), "{steps:?}");
    assert!(steps.iter().any(|s| *s != steps[0]), "no jitter: {steps:?}");
    assert!((17..=19).contains(&moments.len()), "{moments:?}");
    assert_eq!(ms, 90_001);
    let device = Node::new(2).device();
    assert_eq!(a.said(), [Report::Unanswered { device }]);
    assert_eq!(a.core.stats().dropped_waiting, 1);
    assert_eq!(a.core.stats().handshakes_unanswered, 1);
}

#[test]
fn tunnel_connect_makes_a_session_both_ends_have_proven() {
    let (mut a, mut b) = pair();
    let device = b.device();
    a.tell(Command::Connect { device }, at(1));
    a.tell(Command::Connect { device }, at(1));
    pump(&mut a, &mut b, at(1));
    for node in [&mut a, &mut b] {
        assert!(matches!(node.said()[..], [Report::Established { .. }]));
    }
    a.tell(Command::Connect { device }, at(2));
    assert!(a.sent.is_empty(), "it has one");
    exchange(&mut a, &mut b, at(2));
}

#[test]
fn tunnel_packets_on_the_way_survive_a_simultaneous_rekey() {
    let (mut a, mut b) = joined(1);
    let (there, back) = (packet(v6(1), v6(2), b"1"), packet(v6(2), v6(1), b"2"));
    a.send(&there, at(155));
    b.send(&back, at(155));
    let types = |node: &Node| node.sent.iter().map(|(_, m)| m[0]).collect::<Vec<_>>();
    assert_eq!((types(&a), types(&b)), (vec![1, 4], vec![1, 4]));
    let (to_b, to_a) = (a.sent.pop().unwrap(), b.sent.pop().unwrap());
    pump(&mut a, &mut b, at(155));
    exchange(&mut a, &mut b, at(156));
    b.receive(a.at, &to_b.1, at(157));
    a.receive(b.at, &to_a.1, at(157));
    assert_eq!((a.got(), b.got()), (vec![back], vec![there]));
    assert_eq!(a.core.stats().handshakes_done, 3);
}

#[test]
fn tunnel_timeouts_may_come_early_late_and_twice() {
    let (mut a, mut b) = joined(1);
    for sec in [0, 1, 1, 3, 2, 179, 1] {
        a.timeout(at(sec));
        b.timeout(at(sec));
        pump(&mut a, &mut b, at(sec));
    }
    a.timeout(at(1_000_000));
    a.timeout(at(1_000_000));
    let device = b.device();
    assert_eq!(a.said().pop(), Some(Report::Idle { device }));
}

#[test]
fn tunnel_simultaneous_handshakes_both_work_and_are_rekeyed() {
    let (mut a, mut b) = pair();
    let (there, back) = (packet(v6(1), v6(2), b"1"), packet(v6(2), v6(1), b"2"));
    a.send(&there, at(1));
    b.send(&back, at(1));
    pump(&mut a, &mut b, at(1));
    assert_eq!((a.got(), b.got()), (vec![back], vec![there]));
    for sec in 2..1000 {
        a.timeout(at(sec));
        b.timeout(at(sec));
        pump(&mut a, &mut b, at(sec));
        exchange(&mut a, &mut b, at(sec));
    }
    assert_eq!(
        a.core.stats().dropped_waiting + b.core.stats().dropped_waiting,
        0
    );
}

#[test]
fn tunnel_both_ends_rotate_their_keys_and_no_packet_is_lost() {
    let (mut a, mut b) = joined(1);
    for sec in 2..1500 {
        match sec {
            // We rotate; the peer hears of it 20 s later; the old key goes.
            200 => drop(a.rotate(101, at(sec))),
            220 => {
                let mut config = a.config();
                config.public_key = secret(101).public();
                b.tell(Command::SetPeer(config), at(sec));
            }
            // Both at once, neither has heard.
            600 => {
                a.rotate(111, at(sec));
                b.rotate(112, at(sec));
            }
            750 => {
                let mut config = a.config();
                config.public_key = secret(111).public();
                b.tell(Command::SetPeer(config), at(sec));
            }
            800 => {
                let mut config = b.config();
                config.public_key = secret(112).public();
                a.tell(Command::SetPeer(config), at(sec));
            }
            1000 => {
                for node in [&mut a, &mut b] {
                    let (slot, secret) = (Slot::Previous, None);
                    node.tell(Command::SetIdentityKey { slot, secret }, at(sec));
                }
                let slot = Slot::Previous;
                let device = b.device();
                a.tell(Command::ForgetPeerKey { device, slot }, at(sec));
                let device = a.device();
                b.tell(Command::ForgetPeerKey { device, slot }, at(sec));
            }
            _ => {}
        }
        a.timeout(at(sec));
        b.timeout(at(sec));
        pump(&mut a, &mut b, at(sec));
        exchange(&mut a, &mut b, at(sec));
    }
    for node in [&mut a, &mut b] {
        let stats = node.core.stats();
        assert_eq!(stats.dropped_waiting + stats.handshakes_unanswered, 0);
        assert!(stats.handshakes_done > 10);
        assert!(!node.said().iter().any(|r| matches!(r, Report::Idle { .. })));
    }
}

#[test]
fn tunnel_a_rotation_the_peer_has_not_heard_of_is_no_stranger_s_handshake() {
    let (mut a, mut b) = joined(1);
    let public_key = a.rotate(90, at(100));
    pass(&mut a, &mut b, 100..130);
    exchange(&mut a, &mut b, at(130));
    assert_eq!(
        a.core.stats().handshakes_done,
        2,
        "rekeyed under the old key"
    );
    assert_eq!(a.core.stats().handshakes_begun, 2);
    assert!(matches!(b.said()[..], [Report::Established { .. }]));
    // The peer hears of it, and moves the session to the new key by itself.
    let mut config = a.config();
    config.public_key = public_key;
    b.tell(Command::SetPeer(config), at(140));
    pump(&mut a, &mut b, at(140));
    assert_eq!(a.core.stats().handshakes_done, 3);
    let (slot, secret) = (Slot::Previous, None);
    a.tell(Command::SetIdentityKey { slot, secret }, at(141));
    let device = a.device();
    b.tell(Command::ForgetPeerKey { device, slot }, at(141));
    for sec in 142..600 {
        a.timeout(at(sec));
        b.timeout(at(sec));
        pump(&mut a, &mut b, at(sec));
        exchange(&mut a, &mut b, at(sec));
    }
    assert_eq!(
        a.core.stats().dropped_unknown + b.core.stats().dropped_unknown,
        0
    );
}

#[test]
fn tunnel_a_peer_that_lost_its_keys_is_back_with_its_new_one() {
    let (mut a, b) = joined(1);
    let mut b2 = Node::new(2);
    let new = b2.rotate(77, at(50));
    let (slot, secret) = (Slot::Previous, None);
    b2.tell(Command::SetIdentityKey { slot, secret }, at(50));
    b2.tell(Command::SetPeer(a.config()), at(50));
    let mut config = b.config();
    config.public_key = new;
    a.tell(Command::SetPeer(config), at(50));
    pump(&mut a, &mut b2, at(50));
    exchange(&mut a, &mut b2, at(50));
}

#[test]
fn tunnel_an_endpoint_moves_only_by_authenticated_packets_or_by_command() {
    let (mut a, mut b) = joined(1);
    let old = a.at;
    a.at.0.set_port(9);
    a.send(&packet(v6(1), v6(2), b"I moved"), at(2));
    pump(&mut a, &mut b, at(2));
    b.got();
    exchange(&mut a, &mut b, at(2));
    let (endpoint, device) = (Path::direct(a.at), a.device());
    assert_eq!(b.said(), [Report::Roamed { device, endpoint }]);
    // A handshake does not move it, nor does a new peer setting under the same key.
    let mut stale = a.config();
    stale.endpoint = Some(old.into());
    b.tell(Command::SetPeer(stale.clone()), at(3));
    b.send(&packet(v6(2), v6(1), b"x"), at(3));
    assert_eq!(b.sent.pop().unwrap().0, endpoint.to);
    // Without a session it is believed.
    pass(&mut a, &mut b, 4..400);
    b.tell(Command::SetPeer(stale), at(400));
    b.send(&packet(v6(2), v6(1), b"x"), at(400));
    assert_eq!(b.sent.pop().unwrap().0, old);
    b.tell(
        Command::MovePeer {
            device,
            path: endpoint,
        },
        at(401),
    );
    assert_eq!(
        b.sent.pop().unwrap().0,
        endpoint.to,
        "the handshake goes there at once"
    );
}

#[test]
fn tunnel_a_pre_shared_key_must_be_shared() {
    for (theirs, works) in [(Some(5), true), (Some(6), false), (None, false)] {
        let (mut a, mut b) = (Node::new(1), Node::new(2));
        let key = |n: u8| PresharedKey::from_bytes([n; 32]);
        let (mut to_a, mut to_b) = (a.config(), b.config());
        to_b.psk = Some(key(5));
        to_a.psk = theirs.map(key);
        a.tell(Command::SetPeer(to_b), at(0));
        b.tell(Command::SetPeer(to_a), at(0));
        a.send(&packet(v6(1), v6(2), b"x"), at(1));
        pump(&mut a, &mut b, at(1));
        assert_eq!(b.got().len(), usize::from(works));
        assert_eq!(a.core.stats().dropped_forged, u64::from(!works));
    }
}

#[test]
fn tunnel_a_kept_open_session_sends_when_idle() {
    let (mut a, mut b) = pair();
    let mut config = b.config();
    config.keepalive = Some(Duration::from_secs(25));
    a.tell(Command::SetPeer(config), at(0));
    pass(&mut a, &mut b, 1..1000);
    let status = b.core.stats();
    assert!(status.handshakes_done >= 5, "{status:?}");
    exchange(&mut a, &mut b, at(1000));
}

#[test]
fn tunnel_refuses_peers_that_take_from_others_or_from_us() {
    let (mut a, b) = pair();
    let taken = |mut config: crate::tunnel::PeerConfig, n: u8| {
        config.device = Node::new(n).device();
        config
    };
    let mut address = Node::new(3).config();
    address.addresses.v4 = addresses(2).v4;
    let mut own = Node::new(3).config();
    own.public_key = secret(1).public();
    let mut ours = Node::new(3).config();
    ours.addresses.v6 = addresses(1).v6;
    let holder = b.device();
    for (config, reason) in [
        (
            taken(b.config(), 3),
            PeerRefusal::AddressTaken(overlay(v6(2)), holder),
        ),
        (address, PeerRefusal::AddressTaken(overlay(v4(2)), holder)),
        (own, PeerRefusal::Ourselves),
        (ours, PeerRefusal::Ourselves),
        (
            {
                let mut config = Node::new(3).config();
                config.public_key = secret(2).public();
                config
            },
            PeerRefusal::KeyTaken(holder),
        ),
    ] {
        let device = Node::new(3).device();
        a.tell(Command::SetPeer(config), at(1));
        assert_eq!(a.said(), [Report::PeerRefused { device, reason }]);
    }
    // Addresses and keys are free again when their holder is gone, and its sessions are dead.
    let (mut a, mut b) = joined(1);
    let device = b.device();
    a.tell(Command::RemovePeer { device }, at(2));
    b.send(&packet(v6(2), v6(1), b"x"), at(2));
    pump(&mut a, &mut b, at(2));
    assert!(a.got().is_empty());
    assert_eq!(a.core.stats().dropped_no_session, 1);
    assert_eq!(a.core.deadline().0, Mono::NEVER);
    a.tell(Command::SetPeer(taken(b.config(), 3)), at(2));
    assert!(a.said().is_empty());
}

#[test]
fn tunnel_a_keepalive_of_nothing_does_not_spin() {
    let (mut a, b) = pair();
    let mut config = b.config();
    config.keepalive = Some(Duration::ZERO);
    a.tell(Command::SetPeer(config), at(1));
    for sec in 1..100 {
        a.timeout(at(sec));
        assert!(a.core.deadline().0 > at(sec).mono);
    }
}

#[test]
fn tunnel_a_thousand_due_peers_are_served_in_bounded_turns() {
    let mut a = Node::new(1);
    for n in 0..1000u32 {
        let mut config = Node::new(2).config();
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        config.device.0 = id;
        config.public_key.0[..4].copy_from_slice(&n.to_be_bytes());
        config.addresses.v6 = (0xfd01_u128 << 112 | u128::from(n)).into();
        config.addresses.v4 = None;
        config.keepalive = Some(Duration::from_secs(5));
        a.tell(Command::SetPeer(config), at(1));
    }
    let mut turns = 0;
    while a.core.deadline().0 <= at(6).mono {
        a.timeout(at(6));
        turns += 1;
    }
    assert_eq!((turns, a.sent.len()), (4, 1000));
}

#[test]
fn tunnel_lists_its_peers() {
    let (mut a, b) = joined(10);
    let (reply, answer) = std::sync::mpsc::sync_channel(1);
    a.tell(Command::ListPeers { reply }, at(15));
    let peers = answer.recv().unwrap();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].device, b.device());
    assert_eq!(peers[0].endpoint, Some(b.at.into()));
    assert_eq!(peers[0].session_age, Some(Duration::from_secs(5)));
    assert_eq!(peers[0].sent_bytes, 45);
}

#[test]
fn tunnel_mesh_datagrams_pass_both_ways_unread() {
    let mut a = Node::new(1);
    let at_b = Node::new(2).at;
    let from = Path::direct(at_b);
    for first in [0x80, 0x81, 0x82, 0xff] {
        let bytes = vec![first, 1, 2];
        a.receive(at_b, &bytes, at(1));
        assert_eq!(
            a.said(),
            [Report::Datagram {
                from,
                bytes: bytes.clone()
            }]
        );
        let to = from;
        a.tell(
            Command::SendDatagram {
                to,
                bytes: bytes.clone(),
            },
            at(1),
        );
        assert_eq!(a.sent.pop(), Some((at_b, bytes)));
    }
    for bytes in [vec![], vec![4, 0, 0, 0], vec![0x7f], vec![0x84, 0, 0, 0]] {
        let to = from;
        a.tell(Command::SendDatagram { to, bytes }, at(1));
        assert!(
            a.sent.is_empty(),
            "the tunnel's own messages cannot be forged through it"
        );
    }
}

/// Peers that went away all at once, to which nobody sends.
#[test]
fn tunnel_attempts_that_nothing_waits_for_are_bounded_whatever_the_number_of_peers() {
    const PEERS: u16 = 1500;
    let mut a = Node::new(1);
    for n in 0..PEERS {
        let [high, low] = n.to_be_bytes();
        let mut seed = [9; 32];
        (seed[1], seed[2]) = (high, low);
        let mut config = Node::new(2).config();
        config.device.0[..2].copy_from_slice(&[high, low]);
        config.public_key = PrivateKey::from_bytes(seed).public();
        config.addresses.v4 = None;
        config.addresses.v6 = format!("fd00::2:{n:x}").parse().unwrap();
        let device = config.device;
        a.tell(Command::SetPeer(config), at(0));
        a.tell(Command::Connect { device }, at(0));
    }
    assert_eq!(a.sent.len(), usize::from(PEERS), "each is tried at once");
    a.sent.clear();
    let wanted = packet(v6(1), "fd00::2:7".parse().unwrap(), b"x");
    a.send(&wanted, at(1));
    let mut begun = a.core.stats().handshakes_begun;
    let mut most = 0;
    for second in 1..=92 {
        while a.core.deadline().0 <= at(second).mono {
            a.timeout(at(second));
        }
        let now = a.core.stats().handshakes_begun;
        most = most.max(now - begun);
        begun = now;
    }
    let rate = u64::from(IDLE_ATTEMPTS_PER_SECOND);
    assert!(most <= 3 * rate, "{most} in a second");
    assert!(
        begun <= u64::from(PEERS) + rate * 95 + 40,
        "{begun} in all, of which the one with a packet some twenty"
    );
    assert_eq!(a.core.stats().handshakes_unanswered, u64::from(PEERS));
}

#[test]
fn tunnel_ended_sessions_and_removed_peers_leave_no_key_ready() {
    let (mut a, mut b) = joined(1);
    exchange(&mut a, &mut b, at(2));
    assert_eq!(
        (a.core.ready.count(), b.core.ready.count()),
        ((1, 1), (1, 1))
    );
    let device = b.device();
    a.tell(Command::RemovePeer { device }, at(3));
    assert_eq!(a.core.ready.count(), (0, 0));
    pass(&mut a, &mut b, 3..400);
    assert_eq!(b.core.ready.count(), (0, 0));
}

#[test]
fn tunnel_a_session_ends_soon_after_the_peer_has_left_it() {
    let (mut a, mut b) = joined(1);
    exchange(&mut a, &mut b, at(2));
    let late = |a: &mut Node, text: &[u8], now| {
        a.send(&packet(v6(1), v6(2), text), now);
        a.sent.pop().unwrap().1
    };
    let (first, second) = (late(&mut a, b"1", at(3)), late(&mut a, b"2", at(3)));
    let device = b.device();
    a.tell(Command::Rekey { device }, at(4));
    pump(&mut a, &mut b, at(4));
    exchange(&mut a, &mut b, at(5));
    let from = a.at;
    b.receive(from, &first, at(6));
    assert_eq!(b.got().len(), 1, "what was on its way arrives");
    exchange(&mut a, &mut b, at(17));
    b.receive(from, &second, at(17));
    assert_eq!((b.got().len(), b.core.stats().dropped_no_session), (0, 1));
    assert_eq!(b.core.ready.count(), (1, 1));
}

/// Both begin at once: each may go on in the session that the other holds for the one before.
#[test]
fn tunnel_sessions_that_cross_live_while_either_side_sends_in_them() {
    let (mut a, mut b) = joined(1);
    for second in [2, 40, 80] {
        let (to_a, to_b) = (a.device(), b.device());
        a.tell(Command::Rekey { device: to_b }, at(second));
        b.tell(Command::Rekey { device: to_a }, at(second));
        pump(&mut a, &mut b, at(second));
        for later in [0, 1, 11, 12, 30] {
            exchange(&mut a, &mut b, at(second + later));
        }
    }
    assert_eq!(a.core.stats().dropped_no_session, 0);
    assert_eq!(b.core.stats().dropped_no_session, 0);
}
