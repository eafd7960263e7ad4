//! Two machines and the wire between them, in memory.

use std::net::IpAddr;
use std::time::Duration;

use hedgerow_model::address::{Overlay, OverlayAddresses, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::ruleset::{Profile, Verdict};
use hedgerow_model::statement::X25519Public;
use hedgerow_model::{Mono, Now, Wall};

use crate::tunnel::core::{Core, CoreConfig, Entropy, Handled, OVERHEAD_BYTES, Output};
use crate::tunnel::limits::INITIATIONS_PER_SECOND;
use crate::tunnel::message::{HEADER_BYTES, put};
use crate::tunnel::{Command, PeerConfig, PrivateKey, Report, Roaming, Secrecy, Slot};

/// Different in every byte position and call, and the same in every run.
pub(super) fn entropy(seed: u8) -> Entropy {
    let mut state = u64::from(seed) + 1;
    Box::new(move |bytes| {
        for byte in bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        Ok(())
    })
}

pub(super) fn secret(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

pub(super) fn addresses(n: u8) -> OverlayAddresses {
    OverlayAddresses {
        v6: format!("fd00::{n}").parse().unwrap(),
        v4: Some(format!("100.80.0.{n}").parse().unwrap()),
    }
}

pub(super) fn v6(n: u8) -> IpAddr {
    addresses(n).v6.into()
}

pub(super) fn v4(n: u8) -> IpAddr {
    addresses(n).v4.unwrap().into()
}

pub(super) fn at(secs: u64) -> Now {
    let since = Duration::from_secs(secs);
    Now {
        mono: Mono(since),
        wall: Wall::from_secs(1_800_000_000) + since,
        wall_is_trusted: true,
    }
}

/// An IP packet with a few bytes in it.
pub(super) fn packet(src: IpAddr, dst: IpAddr, text: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut p = vec![0; 20 + text.len()];
            let len = u16::try_from(p.len()).unwrap();
            put(&mut p, 0, &[0x45, 0]);
            put(&mut p, 2, &len.to_be_bytes());
            put(&mut p, 8, &[64, 253]);
            put(&mut p, 12, &src.octets());
            put(&mut p, 16, &dst.octets());
            put(&mut p, 20, text);
            p
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut p = vec![0; 40 + text.len()];
            put(&mut p, 0, &[0x60]);
            put(&mut p, 4, &u16::try_from(text.len()).unwrap().to_be_bytes());
            put(&mut p, 6, &[253, 64]);
            put(&mut p, 8, &src.octets());
            put(&mut p, 24, &dst.octets());
            put(&mut p, 40, text);
            p
        }
        _ => panic!("two families"),
    }
}

/// One machine with what it did.
pub(super) struct Node {
    pub(super) n: u8,
    pub(super) core: Core,
    pub(super) at: Underlay,
    /// Datagrams on their way out.
    pub(super) sent: Vec<(Underlay, Vec<u8>)>,
    pub(super) delivered: Vec<Vec<u8>>,
    pub(super) reports: Vec<Report>,
}

impl Node {
    pub(super) fn new(n: u8) -> Self {
        let config = CoreConfig {
            addresses: addresses(n),
            mtu: 1420,
            private_key: secret(n),
            wall_floor: Wall(0),
            initiations_per_second: INITIATIONS_PER_SECOND,
        };
        Self {
            n,
            core: Core::new(config, entropy(n)),
            at: Underlay(format!("192.0.2.{n}:7117").parse().unwrap()),
            sent: Vec::new(),
            delivered: Vec::new(),
            reports: Vec::new(),
        }
    }

    pub(super) fn device(&self) -> DeviceId {
        DeviceId([self.n; 16])
    }

    /// How others know this node.
    pub(super) fn config(&self) -> PeerConfig {
        PeerConfig {
            device: self.device(),
            slot: Slot::Current,
            public_key: secret(self.n).public(),
            addresses: addresses(self.n),
            endpoint: Some(self.at.into()),
            psk: None,
            secrecy: Secrecy::Classical,
            roaming: Roaming::Follow,
            keepalive: None,
        }
    }

    pub(super) fn tell(&mut self, command: Command, now: Now) {
        self.core.handle_command(command, now);
        self.drain();
    }

    pub(super) fn rotate(&mut self, n: u8, now: Now) -> X25519Public {
        let (slot, secret) = (Slot::Current, secret(n));
        let public = secret.public();
        let secret = Some(secret);
        self.tell(Command::SetIdentityKey { slot, secret }, now);
        public
    }

    /// The kernel sends a packet.
    pub(super) fn send(&mut self, packet: &[u8], now: Now) {
        let mut buffer = vec![0; packet.len() + OVERHEAD_BYTES];
        put(&mut buffer, HEADER_BYTES, packet);
        let sealed = self
            .core
            .handle_inner_packet(&mut buffer, packet.len(), now);
        self.drain();
        if let Some(sealed) = sealed {
            buffer.truncate(sealed.len);
            self.sent.push((sealed.to, buffer));
        }
    }

    /// A datagram arrives.
    pub(super) fn receive(&mut self, from: Underlay, datagram: &[u8], now: Now) {
        let mut bytes = datagram.to_vec();
        match self.core.handle_datagram(from, &mut bytes, now) {
            Handled::Done => {}
            Handled::Deliver(range) => self.delivered.push(bytes[range].to_vec()),
            Handled::Forward(to) => self.sent.push((to, bytes)),
        }
        self.drain();
    }

    pub(super) fn timeout(&mut self, now: Now) {
        self.core.handle_timeout(now);
        self.drain();
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Send { to, bytes, .. } => self.sent.push((to, bytes)),
                Output::PassOn { to, bytes, .. } => self.sent.push((to, bytes)),
                Output::Deliver(packet) => self.delivered.push(packet),
                Output::Report(report) => self.reports.push(report),
            }
        }
    }

    /// Takes out what was reported.
    pub(super) fn said(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Takes out what was delivered.
    pub(super) fn got(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.delivered)
    }
}

/// Carries all datagrams to where they are addressed, until none is on its way.
pub(super) fn pump(a: &mut Node, b: &mut Node, now: Now) {
    for _ in 0..100 {
        let mut quiet = true;
        for (to, bytes) in std::mem::take(&mut a.sent) {
            if to == b.at {
                b.receive(a.at, &bytes, now);
            }
            quiet = false;
        }
        for (to, bytes) in std::mem::take(&mut b.sent) {
            if to == a.at {
                a.receive(b.at, &bytes, now);
            }
            quiet = false;
        }
        if quiet {
            return;
        }
    }
    panic!("the machines do not come to rest");
}

/// Two machines that know each other.
pub(super) fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let (to_a, to_b) = (a.config(), b.config());
    a.tell(Command::SetPeer(to_b), at(0));
    b.tell(Command::SetPeer(to_a), at(0));
    (a, b)
}

/// Two machines with a session at second `secs`, begun by the first.
pub(super) fn joined(secs: u64) -> (Node, Node) {
    let (mut a, mut b) = pair();
    let first = packet(v6(1), v6(2), b"first");
    a.send(&first, at(secs));
    pump(&mut a, &mut b, at(secs));
    assert_eq!(b.got(), [first]);
    a.said();
    b.said();
    (a, b)
}

/// Sends a packet each way and checks that both arrive.
pub(super) fn exchange(a: &mut Node, b: &mut Node, now: Now) {
    let (there, back) = (
        packet(v6(1), v6(2), b"there"),
        packet(v4(2), v4(1), b"back"),
    );
    a.send(&there, now);
    b.send(&back, now);
    pump(a, b, now);
    assert_eq!(b.got(), [there]);
    assert_eq!(a.got(), [back]);
}

/// Lets time pass for both, second by second.
pub(super) fn pass(a: &mut Node, b: &mut Node, secs: std::ops::Range<u64>) {
    for sec in secs {
        a.timeout(at(sec));
        b.timeout(at(sec));
        pump(a, b, at(sec));
    }
}

pub(super) fn overlay(address: IpAddr) -> Overlay {
    Overlay(address)
}

/// A packet with a transport header: ports, or type and code, and TCP's flags.
pub(super) fn speaking(is_v6: bool, protocol: u8, first: u16, second: u16, flags: u8) -> Vec<u8> {
    let mut header = [first.to_be_bytes(), second.to_be_bytes()].concat();
    header.resize(20, 0);
    header[13] = flags;
    let (src, dst) = match is_v6 {
        true => (v6(1), v6(2)),
        false => (v4(1), v4(2)),
    };
    let mut p = packet(src, dst, &header);
    p[if is_v6 { 6 } else { 9 }] = protocol;
    p
}

/// A profile that lets everything pass.
pub(super) fn open_profile() -> Box<Profile> {
    Box::new(Profile {
        inbound: Vec::new(),
        outbound: Vec::new(),
        inbound_default: Verdict::Accept,
        outbound_default: Verdict::Accept,
    })
}
