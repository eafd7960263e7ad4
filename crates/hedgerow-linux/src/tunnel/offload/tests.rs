//! Cutting and putting together are inverse.

use proptest::prelude::*;

use super::checksum::Sum;
use super::coalesce::{Accepts, Coalescer, FLOWS_MAX, Piece, Sink};
use super::segment::{Malformed, Super, finish_checksum};
use super::virtio::{HEADER_BYTES, Header, Kind, Unfinished};
use super::*;

const ALL: Accepts = Accepts {
    tcp: true,
    udp: true,
};
const MTU: usize = 1420;

/// What a packet is made of.
#[derive(Debug, Clone)]
struct Made {
    is_v6: bool,
    transport: Transport,
    port: u16,
    class: u8,
    hops: u8,
    id: u16,
    seq: u32,
    ack: u32,
    window: u16,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Made {
    fn tcp(is_v6: bool, payload: &[u8]) -> Self {
        Self {
            is_v6,
            transport: Transport::Tcp,
            port: 5201,
            class: 0,
            hops: 64,
            id: 7,
            seq: 1000,
            ack: 2,
            window: 500,
            flags: ACK,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: payload.to_vec(),
        }
    }

    fn udp(is_v6: bool, payload: &[u8]) -> Self {
        Self {
            transport: Transport::Udp,
            options: vec![],
            ..Self::tcp(is_v6, payload)
        }
    }

    fn ip_len(&self) -> usize {
        if self.is_v6 { 40 } else { 20 }
    }

    fn header_len(&self) -> usize {
        self.ip_len()
            + match self.transport {
                Transport::Tcp => 20 + self.options.len(),
                Transport::Udp => 8,
            }
    }

    /// The packet, with all checksums.
    fn packet(&self) -> Vec<u8> {
        let ip_len = self.ip_len();
        let mut body = vec![];
        body.extend(40_000u16.to_be_bytes());
        body.extend(self.port.to_be_bytes());
        let at = match self.transport {
            Transport::Tcp => {
                body.extend(self.seq.to_be_bytes());
                body.extend(self.ack.to_be_bytes());
                body.push(u8::try_from((20 + self.options.len()) / 4 * 16).unwrap());
                body.push(self.flags);
                body.extend(self.window.to_be_bytes());
                body.extend([0; 4]);
                body.extend(&self.options);
                16
            }
            Transport::Udp => {
                let len = u16::try_from(8 + self.payload.len()).unwrap();
                body.extend(len.to_be_bytes());
                body.extend([0; 2]);
                6
            }
        };
        body.extend(&self.payload);
        let number = [PROTOCOL_TCP, PROTOCOL_UDP][usize::from(self.transport == Transport::Udp)];
        let mut p = vec![0; ip_len];
        let total = u16::try_from(ip_len + body.len()).unwrap();
        if self.is_v6 {
            p[0] = 0x60 | self.class >> 4;
            p[1] = self.class << 4;
            p[4..6].copy_from_slice(&(total - 40).to_be_bytes());
            p[6..8].copy_from_slice(&[number, self.hops]);
            p[8..24].copy_from_slice(&[0xfd; 16]);
            p[24..40].copy_from_slice(&[0xfc; 16]);
        } else {
            p[0..2].copy_from_slice(&[0x45, self.class]);
            p[2..4].copy_from_slice(&total.to_be_bytes());
            p[4..6].copy_from_slice(&self.id.to_be_bytes());
            p[6..10].copy_from_slice(&[0x40, 0, self.hops, number]);
            p[12..20].copy_from_slice(&[100, 80, 0, 1, 100, 80, 0, 2]);
            let sum = Sum::default().with(&p).finish();
            p[10..12].copy_from_slice(&sum);
        }
        let ends = segment::addresses(&p, self.is_v6).unwrap();
        let sum = Sum::default()
            .pseudo(ends, self.transport, body.len())
            .with(&body);
        let sum = match self.transport {
            Transport::Tcp => sum.finish(),
            Transport::Udp => sum.finish_udp(),
        };
        body[at..at + 2].copy_from_slice(&sum);
        p.extend(body);
        p
    }

    /// The super-packet as the kernel hands it to a TUN device.
    fn super_packet(&self, size: usize) -> (Header, Vec<u8>) {
        let mut p = self.packet();
        let ip_len = self.ip_len();
        let (kind, offset) = match (self.transport, self.is_v6) {
            (Transport::Tcp, false) => (Kind::TcpV4, 16),
            (Transport::Tcp, true) => (Kind::TcpV6, 16),
            (Transport::Udp, _) => (Kind::Udp, 6),
        };
        let ends = segment::addresses(&p, self.is_v6).unwrap();
        let partial = Sum::default()
            .pseudo(ends, self.transport, p.len() - ip_len)
            .partial();
        p[ip_len + offset..ip_len + offset + 2].copy_from_slice(&partial);
        let header = Header {
            kind,
            ecn: false,
            header_len: u16::try_from(self.header_len()).unwrap(),
            size: u16::try_from(size).unwrap(),
            checksum: Some(Unfinished {
                start: u16::try_from(ip_len).unwrap(),
                offset: u16::try_from(offset).unwrap(),
            }),
        };
        (header, p)
    }
}

#[derive(Default)]
struct Written(Vec<(Header, Vec<u8>, usize)>);

impl Sink for Written {
    fn write(&mut self, header: &[u8; HEADER_BYTES], memory: &[u8], pieces: &[Piece]) {
        let bytes = pieces
            .iter()
            .flat_map(|p| memory[p.at..p.at + p.len].to_vec());
        self.0.push((
            Header::decode(header).unwrap(),
            bytes.collect(),
            pieces.len(),
        ));
    }
}

fn cut(header: &Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let plan = Super::decode(header, packet, MTU).unwrap();
    let one = |n| {
        let mut out = vec![0xee; MTU];
        let len = plan.write(packet, n, &mut out).unwrap();
        assert_eq!(len, plan.len_of(n));
        out.truncate(len);
        out
    };
    assert_eq!(plan.write(packet, plan.count(), &mut [0; MTU]), None);
    (0..plan.count()).map(one).collect()
}

fn join(packets: &[Vec<u8>]) -> Vec<(Header, Vec<u8>, usize)> {
    join_as(packets, ALL)
}

fn join_as(packets: &[Vec<u8>], accepts: Accepts) -> Vec<(Header, Vec<u8>, usize)> {
    let mut memory = packets.concat();
    let mut written = Written::default();
    let mut coalescer = Coalescer::new(accepts);
    let mut at = 0;
    for packet in packets {
        let len = packet.len();
        coalescer.push(&mut memory, Piece { at, len }, &mut written);
        at += len;
    }
    coalescer.flush(&mut memory, &mut written);
    written.0
}

/// What the receiver's network sees of what was written.
fn seen(written: &[(Header, Vec<u8>, usize)]) -> Vec<Vec<u8>> {
    let packets = written.iter().flat_map(|(header, bytes, _)| {
        if header.kind == Kind::Single {
            vec![bytes.clone()]
        } else {
            cut(header, bytes)
        }
    });
    packets.collect()
}

/// Without what means nothing in a packet that is never cut: the identification and its checksum.
fn plain(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = packets.to_vec();
    for p in packets.iter_mut().filter(|p| p[0] >> 4 == 4) {
        p[4..6].fill(0);
        p[10..12].fill(0);
    }
    packets
}

fn assert_valid(packet: &[u8]) {
    let is_v6 = packet[0] >> 4 == 6;
    let ip_len = if is_v6 { 40 } else { 20 };
    let transport = match packet[if is_v6 { 6 } else { 9 }] {
        PROTOCOL_TCP => Transport::Tcp,
        _ => Transport::Udp,
    };
    assert!(is_v6 || Sum::default().with(&packet[..20]).holds());
    let ends = segment::addresses(packet, is_v6).unwrap();
    let body = &packet[ip_len..];
    assert!(
        Sum::default()
            .pseudo(ends, transport, body.len())
            .with(body)
            .holds()
    );
    assert_eq!(
        crate::tunnel::inner::decode(packet).unwrap().len,
        packet.len()
    );
}

fn made() -> impl Strategy<Value = Made> {
    let numbers = (any::<u16>(), any::<u32>(), any::<u32>(), any::<u16>());
    let kind = (any::<bool>(), any::<bool>(), 0u8..4, any::<bool>());
    let payload = prop::collection::vec(any::<u8>(), 1..9000);
    (numbers, kind, any::<u8>(), payload).prop_map(|(numbers, kind, class, payload)| {
        let (id, seq, ack, window) = numbers;
        let (is_v6, is_tcp, options, pushed) = kind;
        let base = match is_tcp {
            true => Made::tcp(is_v6, &payload),
            false => Made::udp(is_v6, &payload),
        };
        let options = vec![1; if is_tcp { usize::from(options) * 4 } else { 0 }];
        let flags = ACK | if pushed { PSH } else { 0 };
        Made {
            id,
            seq,
            ack,
            window,
            class,
            options,
            flags,
            ..base
        }
    })
}

proptest! {
    #[test]
    fn what_is_cut_and_put_together_is_what_it_was(made in made(), size in 60usize..1340) {
        let (header, packet) = made.super_packet(size);
        let pieces = cut(&header, &packet);
        for piece in &pieces {
            assert_valid(piece);
        }
        let back = join(&pieces);
        // A super-packet of more pieces than fit comes back as several.
        if pieces.len() == 1 {
            prop_assert_eq!(&back[0].1, &made.packet());
        } else if pieces.len() <= coalesce::PIECES_MAX {
            prop_assert_eq!(back.len(), 1);
            prop_assert_eq!(&back[0].1, &packet);
            prop_assert_eq!(&back[0].0, &header);
        }
        prop_assert_eq!(seen(&back), pieces);
    }

    #[test]
    fn whatever_comes_each_flow_stays_as_it_was(
        list in prop::collection::vec((made(), 0u16..3, 0u8..8), 1..60),
    ) {
        // Few flows, sequence numbers that often follow, now and then a difference.
        let mut next = [[0u32; 2]; 3];
        let packets: Vec<_> = list.into_iter().map(|(mut made, port, twist)| {
            let seq = &mut next[usize::from(port)][usize::from(made.is_v6)];
            made.payload.truncate(if twist == 1 { 33 } else { 100 });
            made.payload.resize(if twist == 1 { 33 } else { 100 }, 1);
            (made.port, made.seq, made.options) = (port, *seq, vec![]);
            (made.ack, made.window, made.class, made.id) = (1, 1, 0, 5);
            made.flags = if twist == 2 { ACK | PSH } else { ACK };
            match twist {
                3 => made.class = 1,
                4 => made.hops = 3,
                5 => made.ack = 9,
                6 => made.payload.clear(),
                _ => {}
            }
            if made.transport == Transport::Tcp {
                *seq += u32::try_from(made.payload.len()).unwrap();
            }
            made.packet()
        }).collect();
        let (packets, after) = (plain(&packets), plain(&seen(&join(&packets))));
        prop_assert_eq!(after.len(), packets.len());
        let flow = |p: &Vec<u8>| (p[0] >> 4, p[if p[0] >> 4 == 6 { 6 } else { 9 }], p[if p[0] >> 4 == 6 { 43 } else { 23 }]);
        for one in packets.iter().map(flow) {
            let before: Vec<_> = packets.iter().filter(|p| flow(p) == one).collect();
            let after: Vec<_> = after.iter().filter(|p| flow(p) == one).collect();
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn anything_is_taken(
        list in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..20), v6: bool,
    ) {
        let packets: Vec<_> = list.into_iter().map(|mut p| {
            if let Some(first) = p.first_mut() {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            p
        }).collect();
        let total: usize = join(&packets).iter().map(|w| w.1.len()).sum();
        prop_assert!(total <= packets.concat().len());
    }

    #[test]
    fn headers_that_lie_are_refused_or_harmless(
        header: [u8; HEADER_BYTES], packet in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut packet = packet;
        if let Some(first) = packet.first_mut() {
            *first = 0x45;
        }
        if let Some(header) = Header::decode(&header) {
            let _refused = finish_checksum(&header, &mut packet);
            if let Ok(plan) = Super::decode(&header, &packet, MTU) {
                let mut out = vec![0; MTU];
                for n in 0..plan.count() {
                    prop_assert_eq!(plan.write(&packet, n, &mut out), Some(plan.len_of(n)));
                }
            }
        }
    }
}

/// Two packets that follow each other, the second changed; returns how many were handed on.
fn after(base: Made, change: impl FnOnce(&mut Made)) -> usize {
    let mut second = base.clone();
    second.seq = base
        .seq
        .wrapping_add(u32::try_from(base.payload.len()).unwrap());
    second.id = base.id.wrapping_add(1);
    change(&mut second);
    let packets = [base.packet(), second.packet()];
    let written = join(&packets);
    assert_eq!(
        plain(&seen(&written)),
        plain(&packets),
        "nothing is changed on the way"
    );
    written.len()
}

#[test]
fn segments_that_differ_in_what_the_kernel_copies_stay_apart() {
    let base = |is_v6| Made::tcp(is_v6, &[1; 100]);
    for is_v6 in [false, true] {
        assert_eq!(after(base(is_v6), |_| {}), 1);
        assert_eq!(
            after(base(is_v6), |m| m.flags |= PSH),
            1,
            "the last may push"
        );
        assert_eq!(
            after(base(is_v6), |m| m.payload = vec![2; 9]),
            1,
            "a short last"
        );
        assert_eq!(
            after(base(is_v6), |m| m.payload = vec![2; 101]),
            2,
            "longer"
        );
        assert_eq!(
            after(base(is_v6), |m| m.payload.clear()),
            2,
            "an acknowledgement"
        );
        assert_eq!(after(base(is_v6), |m| m.seq += 1), 2, "a gap");
        assert_eq!(after(base(is_v6), |m| m.ack += 1), 2);
        assert_eq!(after(base(is_v6), |m| m.window += 1), 2);
        assert_eq!(after(base(is_v6), |m| m.hops -= 1), 2);
        assert_eq!(after(base(is_v6), |m| m.class = 0x28), 2);
        assert_eq!(after(base(is_v6), |m| m.class = 3), 2, "a congestion mark");
        assert_eq!(after(base(is_v6), |m| m.options[11] += 1), 2);
        assert_eq!(after(base(is_v6), |m| m.options = vec![]), 2);
        for flag in [FIN, 0x02, 0x04, 0x20, ECE, CWR] {
            assert_eq!(after(base(is_v6), |m| m.flags |= flag), 2, "{flag}");
        }
    }
    let echo = Made {
        flags: ACK | ECE,
        ..base(false)
    };
    assert_eq!(
        after(echo, |_| {}),
        1,
        "an echo of congestion that both have"
    );
    assert_eq!(
        after(base(false), |m| m.id = 7),
        1,
        "never cut: it may stand still"
    );
    assert_eq!(after(base(false), |m| m.id = 9), 2);
    let pushed = Made {
        flags: ACK | PSH,
        ..base(true)
    };
    assert_eq!(after(pushed, |_| {}), 2, "a push ends what it is in");
}

#[test]
fn datagrams_join_by_length_alone() {
    for is_v6 in [false, true] {
        let base = || Made::udp(is_v6, &[1; 100]);
        assert_eq!(after(base(), |_| {}), 1);
        assert_eq!(after(base(), |m| m.payload = vec![3; 7]), 1);
        assert_eq!(after(base(), |m| m.payload = vec![3; 101]), 2);
        assert_eq!(after(base(), |m| m.payload.clear()), 2);
        assert_eq!(after(base(), |m| m.port += 1), 2);
        assert_eq!(after(base(), |m| m.hops += 1), 2);
    }
}

#[test]
fn damaged_checksums_are_handed_on_as_they_are() {
    for is_v6 in [false, true] {
        let base = Made::tcp(is_v6, &[1; 100]);
        let second = Made {
            seq: 1100,
            id: 8,
            ..base.clone()
        };
        for damaged in 0..2 {
            let mut packets = vec![base.packet(), second.packet()];
            *packets[damaged].last_mut().unwrap() ^= 1;
            let written = join(&packets);
            assert_eq!(written.len(), 2);
            assert_eq!(seen(&written), packets);
        }
    }
    // A datagram without a checksum must stay without.
    let mut bare = Made::udp(false, &[1; 100]).packet();
    bare[26..28].fill(0);
    let mut next = bare.clone();
    next[5] += 1;
    assert_eq!(join(&[bare, next]).len(), 2);
}

#[test]
fn fragments_and_options_pass_alone_and_in_order() {
    let whole = Made::tcp(false, &[1; 100]);
    let second = Made {
        seq: 1100,
        id: 8,
        ..whole.clone()
    };
    let mut fragment = whole.packet();
    fragment[6] = 0x20;
    let packets = [whole.packet(), fragment, second.packet()];
    let written = join(&packets);
    assert_eq!(
        written.iter().map(|w| &w.1).collect::<Vec<_>>(),
        packets.iter().collect::<Vec<_>>()
    );
}

#[test]
fn flows_are_put_together_side_by_side_up_to_a_bound() {
    let make = |port, n: u32| {
        Made {
            port,
            seq: n * 100,
            id: u16::try_from(n).unwrap(),
            ..Made::tcp(true, &[1; 100])
        }
        .packet()
    };
    let ports = 0..u16::try_from(FLOWS_MAX).unwrap();
    let packets: Vec<_> = (0..10)
        .flat_map(|n| ports.clone().map(move |p| make(p, n)))
        .collect();
    assert_eq!(join(&packets).len(), FLOWS_MAX);
    let more = 0..u16::try_from(FLOWS_MAX).unwrap() + 1;
    let packets: Vec<_> = (0..10)
        .flat_map(|n| more.clone().map(move |p| make(p, n)))
        .collect();
    assert_eq!(seen(&join(&packets)).len(), packets.len());
}

#[test]
fn what_the_kernel_does_not_take_is_not_made() {
    let tcp = Made::tcp(true, &[1; 3000]).super_packet(1000);
    let udp = Made::udp(true, &[1; 3000]).super_packet(1000);
    for (accepts, counts) in [
        (
            Accepts {
                tcp: false,
                udp: false,
            },
            (3, 3),
        ),
        (
            Accepts {
                tcp: true,
                udp: false,
            },
            (1, 3),
        ),
    ] {
        let count = |made: &(Header, Vec<u8>)| join_as(&cut(&made.0, &made.1), accepts).len();
        assert_eq!((count(&tcp), count(&udp)), counts);
    }
}

#[test]
fn attack_super_packets_whose_headers_lie_are_refused() {
    let (header, packet) = Made::tcp(false, &[1; 3000]).super_packet(1000);
    let refused = |change: &dyn Fn(&mut Header, &mut Vec<u8>)| {
        let (mut header, mut packet) = (header, packet.clone());
        change(&mut header, &mut packet);
        Super::decode(&header, &packet, MTU).unwrap_err()
    };
    assert_eq!(refused(&|h, _| h.size = 0), Malformed::Headers);
    assert_eq!(refused(&|h, _| h.size = 1400), Malformed::TooLong);
    assert_eq!(refused(&|h, _| h.kind = Kind::TcpV6), Malformed::Headers);
    assert_eq!(refused(&|h, _| h.kind = Kind::Udp), Malformed::Headers);
    assert_eq!(refused(&|h, _| h.checksum = None), Malformed::Headers);
    assert_eq!(refused(&|_, p| p[0] = 0x44), Malformed::Headers);
    assert_eq!(refused(&|_, p| p[32] = 0x40), Malformed::Headers);
    assert_eq!(refused(&|_, p| p.truncate(52)), Malformed::Headers);
    let shifted = |h: &mut Header, start, offset| h.checksum = Some(Unfinished { start, offset });
    assert_eq!(refused(&|h, _| shifted(h, 2990, 16)), Malformed::Headers);
    assert_eq!(refused(&|h, _| shifted(h, 20, 6)), Malformed::Headers);
}

#[test]
fn attack_a_segment_whose_header_is_longer_than_itself_passes_alone() {
    let first = Made::tcp(false, &[1; 100]).packet();
    let mut second = Made::tcp(false, &[]).packet();
    second[32] = 0xf0;
    let packets = [first, second];
    assert_eq!(seen(&join(&packets)), packets);
}

#[test]
fn the_congestion_window_reduced_bit_stays_in_the_first_and_push_in_the_last() {
    let made = Made {
        flags: ACK | PSH | CWR | FIN,
        ..Made::tcp(true, &[1; 250])
    };
    let (header, packet) = made.super_packet(100);
    let flags: Vec<_> = cut(&header, &packet).iter().map(|p| p[53]).collect();
    assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
}

#[test]
fn a_checksum_left_undone_is_made() {
    for made in [Made::tcp(false, b"abc"), Made::udp(true, b"odd")] {
        let (header, mut packet) = made.super_packet(1000);
        let header = Header {
            kind: Kind::Single,
            size: 0,
            ..header
        };
        finish_checksum(&header, &mut packet).unwrap();
        assert_eq!(packet, made.packet());
        let far = Header {
            checksum: Some(Unfinished {
                start: 60_000,
                offset: 16,
            }),
            ..header
        };
        assert_eq!(finish_checksum(&far, &mut packet), Err(Malformed::Checksum));
    }
}
