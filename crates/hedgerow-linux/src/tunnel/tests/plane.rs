//! The data plane on the real kernel: every offload, and every way to be without it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use boringtun::noise::{Tunn, TunnResult};
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::kernel::{Lab, Ours, PATIENCE, eventually, run};
use super::pair::{packet, secret, v4, v6};
use crate::tun::{Lifetime, Offload, Tun};
use crate::tunnel::offload::Transport;
use crate::tunnel::offload::checksum::Sum;
use crate::tunnel::{Command, Features, LANES_MAX, Layout, Report};
use crate::udp::{Arrived, SLOT_BYTES, Sent, Trains, Udp};

const NO_TRAINS: Trains = Trains {
    send: false,
    receive: false,
};

/// What a socket has received: each datagram with its traffic class.
fn collect(udp: &Udp, count: usize) -> Vec<(Vec<u8>, u8)> {
    let mut all = vec![];
    let mut memory = vec![0; 8 * SLOT_BYTES];
    while all.len() < count {
        let patience = Timespec::try_from(PATIENCE).unwrap();
        let mut fds = [PollFd::new(udp, PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&patience)).unwrap();
        assert!(ready > 0, "{} of {count} came", all.len());
        let mut arrived = [Arrived::default(); 8];
        let n = udp.receive(&mut memory, &mut arrived).unwrap();
        for (slot, train) in memory.chunks(SLOT_BYTES).zip(&arrived).take(n) {
            for datagram in slot[..train.len].chunks(train.stride) {
                all.push((datagram.to_vec(), train.class));
            }
        }
    }
    all
}

/// Sends a train of a program of side 1 to one of side 2, and checks every datagram.
fn train(lab: &Lab, ways: (IpAddr, IpAddr)) {
    train_between(lab, (1, 2), ways);
}

fn train_between(lab: &Lab, sides: (u8, u8), (from, to): (IpAddr, IpAddr)) {
    let receiver = lab.inside(sides.1, || Udp::bind(0, Trains::default()).unwrap());
    let sender = lab.inside(sides.0, || Udp::bind(0, Trains::default()).unwrap());
    let target = Underlay(SocketAddr::new(to, receiver.port()));
    for (size, count, last) in [
        (1000usize, 30usize, 1000usize),
        (1300, 20, 7),
        (100, 50, 100),
    ] {
        let bytes: Vec<u8> = (0..size * (count - 1) + last)
            .map(|n| (n % 251).to_le_bytes()[0])
            .collect();
        assert_eq!(sender.send(target, 0x28, &bytes, size), Sent::Yes);
        let got = collect(&receiver, count);
        let expected: Vec<_> = bytes.chunks(size).map(|d| (d.to_vec(), 0x28)).collect();
        assert!(got == expected, "{from} {to} {size}");
    }
}

fn join(one: &Ours, two: &Ours) {
    one.know(2, Some("192.0.2.2:7117"));
    two.know(1, Some("192.0.2.1:7117"));
}

#[test]
fn tunnel_every_offload_and_every_way_without_carries_the_same() {
    let kinds = [
        Offload::Nothing,
        Offload::Checksums,
        Offload::Tcp,
        Offload::TcpEcn,
        Offload::Udp,
    ];
    for tun in kinds {
        let trains = match tun {
            Offload::Nothing | Offload::Tcp => NO_TRAINS,
            Offload::Checksums | Offload::TcpEcn | Offload::Udp => Trains::default(),
        };
        let lab = Lab::new();
        let one = lab.tunnel_with(
            1,
            Features {
                tun,
                trains,
                ..Features::default()
            },
        );
        let two = lab.tunnel_with(2, Features::default());
        join(&one, &two);
        lab.ping(1, v4(2));
        lab.stream((1, 2), v6(2), 2 << 20, || {});
        lab.stream((2, 1), v4(1), 2 << 20, || {});
        train(&lab, (v4(1), v4(2)));
        train(&lab, (v6(1), v6(2)));
        let (one, two) = (one.handle.stats(), two.handle.stats());
        for stats in [one, two] {
            // The kernel's own multicast is not carried.
            assert!(stats.dropped_outgoing < 16, "{tun:?} {stats:?}");
            assert_eq!(stats.dropped_inner_malformed, 0, "{tun:?} {stats:?}");
            assert_eq!(stats.handshakes_done, 1, "{tun:?} {stats:?}");
        }
    }
}

#[test]
fn tun_devices_are_opened_with_what_is_asked_for_and_reopened_as_another_kind() {
    let lab = Lab::new();
    let open = |most, count| {
        lab.inside(1, || {
            Tun::open_queues("lasting", Lifetime::Persistent, most, count).unwrap()
        })
    };
    for (most, count) in [(Offload::Udp, 1), (Offload::Nothing, 1), (Offload::Tcp, 3)] {
        let queues = open(most, count);
        // Made with one queue, it keeps to one; the rest of its kind is chosen anew.
        assert_eq!(queues.len(), 1);
        assert_eq!(queues[0].offload(), most);
    }
    lab.inside(1, || crate::tun::remove("lasting").unwrap());
    assert_eq!(open(Offload::Udp, 3).len(), 3);
    let again = open(Offload::Checksums, 1);
    assert_eq!((again.len(), again[0].offload()), (1, Offload::Checksums));
    drop(again);
    lab.inside(1, || crate::tun::remove("lasting").unwrap());
}

/// A middle that passes datagrams on between two tunnels, and marks each "congestion experienced".
fn congested(lab: &Lab, end: &Arc<AtomicBool>, (one, two): (SocketAddr, SocketAddr)) -> Underlay {
    let (sender, port) = channel();
    let (classes, end) = (Arc::new(AtomicBool::new(false)), Arc::clone(end));
    let middle = lab.inside(2, || Udp::bind(0, Trains::default()).unwrap());
    sender.send(middle.port()).unwrap();
    std::thread::spawn(move || {
        let mut memory = vec![0; SLOT_BYTES];
        while !end.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(&middle, PollFlags::IN)];
            let short = Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            rustix::event::poll(&mut fds, Some(&short)).unwrap();
            let mut arrived = [Arrived::default()];
            if middle.receive(&mut memory, &mut arrived).unwrap() == 0 {
                continue;
            }
            let a = arrived[0];
            let to = if a.from.0 == one { two } else { one };
            // The class of what is inside stands outside: its DSCP is the test's.
            classes.fetch_or(a.class >> 2 == 46, Ordering::Relaxed);
            middle.send(Underlay(to), a.class | 3, &memory[..a.len], a.stride);
        }
        assert!(classes.load(Ordering::Relaxed), "no class came outside");
    });
    let port = port.recv().unwrap();
    Underlay(SocketAddr::new(two.ip(), port))
}

#[test]
fn tunnel_classes_go_out_and_congestion_marks_come_in() {
    for (one_at, two_at) in [
        ("192.0.2.1:7117", "192.0.2.2:7117"),
        ("[fd11::1]:7117", "[fd11::2]:7117"),
    ] {
        let lab = Lab::new();
        let one = lab.tunnel_with(1, Features::default());
        let two = lab.tunnel_with(2, Features::default());
        let end = Arc::new(AtomicBool::new(false));
        let ends = (one_at.parse().unwrap(), two_at.parse().unwrap());
        let middle = congested(&lab, &end, ends).to_string();
        one.know(2, Some(&middle));
        two.know(1, None);
        for (from, to) in [(v4(1), v4(2)), (v6(1), v6(2))] {
            let receiver = lab.inside(2, || Udp::bind(0, Trains::default()).unwrap());
            let sender = lab.inside(1, || Udp::bind(0, Trains::default()).unwrap());
            let target = Underlay(SocketAddr::new(to, receiver.port()));
            let (expedited, capable, marked) = (46 << 2, 2, 3);
            sender.send(target, expedited | capable, b"capable", 7);
            let got = collect(&receiver, 1);
            assert_eq!(got, [(b"capable".to_vec(), expedited | marked)], "{from}");
            let before = two.handle.stats().dropped_congestion;
            sender.send(target, expedited, b"not capable", 11);
            eventually("the mark is told by a loss", || {
                two.handle.stats().dropped_congestion == before + 1
            });
        }
        end.store(true, Ordering::Relaxed);
    }
}

#[test]
fn tunnel_against_wireguard_go_with_every_offload_over_ipv6() {
    let mut lab = Lab::new();
    let ours = lab.tunnel_with(1, Features::default());
    lab.wireguard_go(2, None);
    ours.know(2, Some("[fd11::2]:7117"));
    for family in [v4, v6] {
        lab.ping(1, family(2));
        lab.stream((1, 2), family(2), 8 << 20, || {});
        lab.stream((2, 1), family(1), 8 << 20, || {});
        train(&lab, (family(1), family(2)));
    }
    let stats = ours.handle.stats();
    assert!(
        stats.dropped_outgoing < 16 && stats.dropped_spoofed == 0,
        "{stats:?}"
    );
}

/// boringtun with a socket of its own: it answers every UDP packet with the same, ends exchanged, and
/// begins with `first`.
struct Foreign {
    tunn: Tunn,
    udp: Udp,
    ours: Underlay,
}

impl Foreign {
    fn serve(mut self, first: Option<Vec<u8>>, end: &AtomicBool) {
        if let Some(first) = first {
            self.send(&first);
        }
        let mut memory = vec![0; 8 * SLOT_BYTES];
        while !end.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(&self.udp, PollFlags::IN)];
            let short = Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            rustix::event::poll(&mut fds, Some(&short)).unwrap();
            let mut arrived = [Arrived::default(); 8];
            let n = self.udp.receive(&mut memory, &mut arrived).unwrap();
            for (slot, train) in memory.chunks(SLOT_BYTES).zip(&arrived).take(n) {
                for datagram in slot[..train.len].chunks(train.stride) {
                    self.take(datagram);
                }
            }
        }
    }

    fn send(&mut self, packet: &[u8]) {
        let mut buffer = vec![0; 2000];
        if let TunnResult::WriteToNetwork(bytes) = self.tunn.encapsulate(packet, &mut buffer) {
            self.udp.send(self.ours, 0, bytes, bytes.len());
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        let mut input = datagram;
        loop {
            let mut buffer = vec![0; 2000];
            match self.tunn.decapsulate(None, input, &mut buffer) {
                TunnResult::WriteToNetwork(bytes) => {
                    self.udp.send(self.ours, 0, bytes, bytes.len());
                    input = &[];
                }
                TunnResult::WriteToTunnelV4(packet, _) => {
                    let packet = packet.to_vec();
                    return self.answer(packet, 20, (12, 4));
                }
                TunnResult::WriteToTunnelV6(packet, _) => {
                    let packet = packet.to_vec();
                    return self.answer(packet, 40, (8, 16));
                }
                TunnResult::Done => return,
                TunnResult::Err(e) => panic!("boringtun: {e:?}"),
            }
        }
    }

    fn answer(&mut self, mut packet: Vec<u8>, ip: usize, (at, len): (usize, usize)) {
        let is_udp = packet[if ip == 20 { 9 } else { 6 }] == 17;
        if !is_udp {
            return;
        }
        let (ends, body) = (&packet[at..at + 2 * len], &packet[ip..]);
        let sum = Sum::default().pseudo(ends, Transport::Udp, body.len());
        assert!(sum.with(body).holds(), "a checksum of ours is wrong");
        let (src, rest) = packet[at..].split_at_mut(len);
        src.swap_with_slice(&mut rest[..len]);
        packet.swap(ip, ip + 2);
        packet.swap(ip + 1, ip + 3);
        self.send(&packet);
    }
}

#[test]
fn tunnel_against_boringtun_with_every_offload_both_ways() {
    for (ours_at, theirs) in [
        ("192.0.2.1:7117", "192.0.2.2:7117"),
        ("[fd11::1]:7117", "[fd11::2]:7117"),
    ] {
        for begins in [false, true] {
            let lab = Lab::new();
            let ours = lab.tunnel_with(1, Features::default());
            ours.know(2, (!begins).then_some(theirs));
            let own = x25519_dalek::StaticSecret::from(*secret(2).expose());
            let peer = x25519_dalek::PublicKey::from(secret(1).public().0);
            let foreign = Foreign {
                tunn: Tunn::new(own, peer, None, None, 7, None),
                udp: lab.inside(2, || Udp::bind(7117, Trains::default()).unwrap()),
                ours: Underlay(ours_at.parse().unwrap()),
            };
            let end = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let first = begins.then(|| packet(v6(2), v6(1), b"hello"));
                let thread = scope.spawn(|| foreign.serve(first, &end));
                if begins {
                    ours.expect("established", |r| matches!(r, Report::Established { .. }));
                }
                for family in [v4, v6] {
                    echoes(&lab, family(2));
                }
                end.store(true, Ordering::Relaxed);
                thread.join().unwrap();
            });
            let stats = ours.handle.stats();
            assert_eq!(stats.handshakes_begun, u64::from(!begins));
            assert!(stats.received_packets >= 80, "{stats:?}");
        }
    }
}

/// Sends trains of a program of side 1 that come back as they were, in order.
fn echoes(lab: &Lab, to: IpAddr) {
    let udp = lab.inside(1, || Udp::bind(0, Trains::default()).unwrap());
    let target = Underlay(SocketAddr::new(to, 9));
    for (size, count) in [(1000usize, 30usize), (1300, 10)] {
        let bytes: Vec<u8> = (0..size * count - 3)
            .map(|n| (n % 249).to_le_bytes()[0])
            .collect();
        assert_eq!(udp.send(target, 0, &bytes, size), Sent::Yes);
        let got: Vec<_> = collect(&udp, count).into_iter().map(|d| d.0).collect();
        assert!(got.concat() == bytes, "{to} {size}");
    }
}

#[test]
fn tunnel_lanes_keep_every_flow_in_order_and_end_with_the_tunnel() {
    for lanes in [1, LANES_MAX] {
        let lab = Lab::new();
        let features = Features {
            layout: Layout::Lanes(lanes),
            ..Features::default()
        };
        let one = lab.tunnel_with(1, features);
        let two = lab.tunnel_with(2, features);
        join(&one, &two);
        lab.ping(1, v4(2));
        lab.stream((1, 2), v6(2), 16 << 20, || {
            lab.stream((2, 1), v4(1), 16 << 20, || train(&lab, (v4(1), v4(2))));
        });
        train(&lab, (v6(1), v6(2)));
        let stats = two.handle.stats();
        assert_eq!((stats.dropped_replayed, stats.dropped_forged), (0, 0));
        assert_eq!(stats.handshakes_done, 1);
        two.handle.shutdown();
    }
}

#[test]
fn tunnel_a_keystroke_passes_a_greedy_stream() {
    let lab = Lab::new();
    let one = lab.tunnel_with(1, Features::default());
    let two = lab.tunnel_with(2, Features::default());
    join(&one, &two);
    lab.stream((1, 2), v4(2), 64 << 20, || {
        // Not one of these may be lost, whatever the queues drop.
        let ns = lab.ns(1);
        run(&format!(
            "ip netns exec {ns} ping -q -c 20 -i 0.01 -W 5 {}",
            v4(2)
        ));
    });
}

/// Trains of datagrams both ways without a pause while the keys change every few of them, begun by
/// either end and by both at once: each datagram arrives, once and in order.
#[test]
fn tunnel_keys_change_under_load_without_a_lost_packet() {
    for layout in [Layout::One, Layout::Lanes(1)] {
        let lab = Lab::new();
        let features = Features {
            layout,
            ..Features::default()
        };
        let ends = [1, 2].map(|side| lab.tunnel_with(side, features));
        join(&ends[0], &ends[1]);
        lab.ping(1, v4(2));
        let rekey = |side: usize| {
            let device = DeviceId([u8::try_from(2 - side).unwrap(); 16]);
            ends[side].handle.send(Command::Rekey { device }).unwrap();
        };
        let done = || -> u64 { ends.iter().map(|e| e.handle.stats().handshakes_done).sum() };
        lab.stream((1, 2), v6(2), 16 << 20, || {
            for round in 0..12 {
                let before = done();
                if round % 3 != 1 {
                    rekey(0);
                }
                if round % 3 != 0 {
                    rekey(1);
                }
                train(&lab, (v4(1), v4(2)));
                train_between(&lab, (2, 1), (v6(2), v6(1)));
                // One peer's initiations come no closer together than they may; one that did is repeated.
                eventually("a handshake", || done() > before);
            }
        });
        for end in &ends {
            let stats = end.handle.stats();
            assert_eq!((stats.dropped_replayed, stats.dropped_forged), (0, 0));
        }
    }
}
