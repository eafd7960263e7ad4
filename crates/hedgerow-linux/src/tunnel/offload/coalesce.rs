//! Many packets into few super-packets.
//!
//! The packets stay where they were opened. What is handed on is a list of the pieces: the first packet
//! with its headers, then the payloads of the others.

use super::checksum::Sum;
use super::hash;
use super::segment::addresses;
use super::virtio::{HEADER_BYTES, Header, Kind, Unfinished};
use super::{
    ACK, ECE, PROTOCOL_TCP, PROTOCOL_UDP, PSH, TCP_CHECKSUM_AT, TCP_HEADER, Transport,
    UDP_CHECKSUM_AT, UDP_HEADER, V4_HEADER, V6_HEADER, be16, be32, write_at,
};

/// Flows put together at once; the oldest is handed on for one more.
pub const FLOWS_MAX: usize = 8;
/// Packets of one super-packet; one more begins another.
pub const PIECES_MAX: usize = 64;
/// Bytes of one super-packet, as IP can count them.
pub const BYTES_MAX: usize = 65_535;

/// A piece of the memory that the packets are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Piece {
    /// Where it begins.
    pub at: usize,
    /// Its bytes.
    pub len: usize,
}

/// What is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// TCP segments.
    pub tcp: bool,
    /// UDP datagrams.
    pub udp: bool,
}

/// Takes what is handed on.
pub trait Sink {
    /// Takes one packet or super-packet: the pieces of `memory`, in order.
    fn write(&mut self, header: &[u8; HEADER_BYTES], memory: &[u8], pieces: &[Piece]);
}

/// What decides whether two packets can be one, and which flow they are of.
#[derive(Debug, Clone, Copy)]
struct Shape {
    transport: Transport,
    is_v6: bool,
    ip_len: usize,
    header_len: usize,
    /// Of addresses and ports. Two flows may have the same: then neither is put together.
    hash: u64,
    /// May be joined by others, and join.
    joins: bool,
}

/// A super-packet under way.
#[derive(Debug, Clone, Copy)]
struct Open {
    shape: Shape,
    at: usize,
    pieces: [Piece; PIECES_MAX],
    count: usize,
    size: usize,
    bytes: usize,
    next_seq: u32,
    /// Nothing can follow: the last piece was short or pushed.
    is_closed: bool,
    /// How many packets came before it, for "the oldest".
    age: u64,
}

/// Puts packets together. [`Coalescer::flush`] ends each batch: nothing waits for more to come.
#[derive(Debug)]
pub struct Coalescer {
    accepts: Accepts,
    /// [`FLOWS_MAX`] places; one without pieces is free.
    open: Vec<Open>,
    count: u64,
}

impl Coalescer {
    /// Makes one without packets. All memory it will use is taken here.
    pub fn new(accepts: Accepts) -> Self {
        let blank = Open {
            shape: Shape {
                transport: Transport::Tcp,
                is_v6: false,
                ip_len: 0,
                header_len: 0,
                hash: 0,
                joins: false,
            },
            at: 0,
            pieces: [Piece::default(); PIECES_MAX],
            count: 0,
            size: 0,
            bytes: 0,
            next_seq: 0,
            is_closed: false,
            age: 0,
        };
        Self {
            accepts,
            open: vec![blank; FLOWS_MAX],
            count: 0,
        }
    }

    /// Takes a whole IP packet that was checked to be one. It is handed on at once, or by a later call.
    pub fn push(&mut self, memory: &mut [u8], piece: Piece, sink: &mut impl Sink) {
        self.count = self.count.wrapping_add(1);
        let packet = memory.get(piece.at..piece.at.saturating_add(piece.len));
        let Some(packet) = packet else { return };
        let Some(shape) = shape(packet, self.accepts) else {
            // Fragments and what has no ports may belong to any flow of these addresses.
            self.flush(memory, sink);
            sink.write(&Header::default().encode(), memory, &[piece]);
            return;
        };
        let found = self
            .open
            .iter()
            .position(|o| o.count > 0 && o.shape.hash == shape.hash);
        if let Some(slot) = found {
            if let Some(open) = self.open.get_mut(slot)
                && open.join(memory, piece, shape)
            {
                return;
            }
            self.hand_on(slot, memory, sink);
        }
        let holds = memory
            .get(piece.at..piece.at + piece.len)
            .is_some_and(|packet| shape.joins && checksum_holds(packet, shape));
        if holds {
            self.begin(memory, piece, shape, sink);
        } else {
            sink.write(&Header::default().encode(), memory, &[piece]);
        }
    }

    /// Hands on what is under way.
    pub fn flush(&mut self, memory: &mut [u8], sink: &mut impl Sink) {
        while let Some(slot) = self.oldest() {
            self.hand_on(slot, memory, sink);
        }
    }

    fn begin(&mut self, memory: &mut [u8], piece: Piece, shape: Shape, sink: &mut impl Sink) {
        if self.open.iter().all(|o| o.count > 0)
            && let Some(slot) = self.oldest()
        {
            self.hand_on(slot, memory, sink);
        }
        let Some(open) = self.open.iter_mut().find(|o| o.count == 0) else {
            return;
        };
        let packet = memory.get(piece.at..).unwrap_or_default();
        let payload = piece.len - shape.header_len;
        open.shape = shape;
        open.at = piece.at;
        if let Some(first) = open.pieces.first_mut() {
            *first = piece;
        }
        open.count = 1;
        open.size = payload;
        open.bytes = piece.len;
        open.next_seq =
            be32(packet, shape.ip_len + 4).wrapping_add(u32::try_from(payload).unwrap_or_default());
        open.is_closed = shape.transport == Transport::Tcp && flags(packet, shape) & PSH != 0;
        open.age = self.count;
    }

    fn oldest(&self) -> Option<usize> {
        let ages = self.open.iter().enumerate();
        ages.filter(|(_, open)| open.count > 0)
            .map(|(slot, open)| (open.age, slot))
            .min()
            .map(|(_, slot)| slot)
    }

    fn hand_on(&mut self, slot: usize, memory: &mut [u8], sink: &mut impl Sink) {
        let Some(open) = self.open.get_mut(slot) else {
            return;
        };
        let header = match open.count {
            1 => Header::default(),
            _ => open.finish(memory).unwrap_or_default(),
        };
        let pieces = open.pieces.get(..open.count).unwrap_or_default();
        sink.write(&header.encode(), memory, pieces);
        open.count = 0;
    }
}

impl Open {
    /// Adds a packet if the two can be one.
    fn join(&mut self, memory: &[u8], piece: Piece, shape: Shape) -> bool {
        let packet = memory.get(piece.at..piece.at + piece.len);
        let first = memory.get(self.at..self.at.saturating_add(self.shape.header_len));
        let (Some(packet), Some(first)) = (packet, first) else {
            return false;
        };
        // A peer can say that its headers are longer than its packet.
        let Some(payload) = piece.len.checked_sub(shape.header_len) else {
            return false;
        };
        if self.is_closed
            || !shape.joins
            || payload > self.size
            || self.count >= PIECES_MAX
            || self.bytes + payload > BYTES_MAX
            || !self.follows(first, packet, shape)
            || !checksum_holds(packet, shape)
        {
            return false;
        }
        if let Some(slot) = self.pieces.get_mut(self.count) {
            *slot = Piece {
                at: piece.at + shape.header_len,
                len: payload,
            };
        }
        let pushed = shape.transport == Transport::Tcp && flags(packet, shape) & PSH != 0;
        self.is_closed = pushed || payload < self.size;
        self.count += 1;
        self.bytes += payload;
        self.next_seq = self
            .next_seq
            .wrapping_add(u32::try_from(payload).unwrap_or(0));
        if pushed {
            // Remembered in the shape: the packets' memory is not ours to change yet.
            self.shape.joins = false;
        }
        true
    }

    /// Whether all that the kernel copies from the first header when it cuts is equal.
    fn follows(&self, first: &[u8], packet: &[u8], shape: Shape) -> bool {
        let own = &self.shape;
        if (own.transport, own.is_v6) != (shape.transport, shape.is_v6)
            || (own.ip_len, own.header_len) != (shape.ip_len, shape.header_len)
        {
            return false;
        }
        let same = |range: std::ops::Range<usize>| first.get(range.clone()) == packet.get(range);
        let ip = if shape.is_v6 {
            // Version, class and label; protocol and hop limit; addresses.
            same(0..4) && same(6..V6_HEADER)
        } else {
            // Version and class; flags; time to live and protocol; addresses.
            same(0..2) && same(6..10) && same(12..V4_HEADER) && self.identifies(first, packet)
        };
        let at = shape.ip_len;
        ip && match shape.transport {
            Transport::Udp => same(at..at + 4),
            Transport::Tcp => {
                let others = |p| flags(p, shape) & !PSH;
                same(at..at + 4)
                    && be32(packet, at + 4) == self.next_seq
                    && same(at + 8..at + 13)
                    && others(first) == others(packet)
                    && same(at + 14..at + TCP_CHECKSUM_AT)
                    && same(at + 18..shape.header_len)
            }
        }
    }

    /// IPv4's identification counts up, as the kernel will count when it cuts; where nothing may be
    /// fragmented it means nothing (RFC 6864) and may stand still.
    fn identifies(&self, first: &[u8], packet: &[u8]) -> bool {
        let (before, now) = (be16(first, 4), be16(packet, 4));
        let never_cut = first.get(6).is_some_and(|b| b & 0x40 != 0);
        let counted = before.wrapping_add(u16::try_from(self.count).unwrap_or(0));
        now == counted || (never_cut && now == before)
    }

    /// Writes the first packet's headers so that they speak of the whole.
    fn finish(&self, memory: &mut [u8]) -> Option<Header> {
        let Shape {
            transport,
            is_v6,
            ip_len,
            header_len,
            joins,
            ..
        } = self.shape;
        let head = memory.get_mut(self.at..self.at.checked_add(header_len)?)?;
        if is_v6 {
            let len = u16::try_from(self.bytes - V6_HEADER).ok()?;
            write_at(head, 4, &len.to_be_bytes())?;
        } else {
            write_at(head, 2, &u16::try_from(self.bytes).ok()?.to_be_bytes())?;
            write_at(head, 10, &[0, 0])?;
            let sum = Sum::default().with(head.get(..ip_len)?).finish();
            write_at(head, 10, &sum)?;
        }
        let len = self.bytes - ip_len;
        let (kind, offset) = match (transport, is_v6) {
            (Transport::Tcp, false) => (Kind::TcpV4, TCP_CHECKSUM_AT),
            (Transport::Tcp, true) => (Kind::TcpV6, TCP_CHECKSUM_AT),
            (Transport::Udp, _) => (Kind::Udp, UDP_CHECKSUM_AT),
        };
        match transport {
            Transport::Tcp if !joins => *head.get_mut(ip_len + 13)? |= PSH,
            Transport::Tcp => {}
            Transport::Udp => {
                write_at(head, ip_len + 4, &u16::try_from(len).ok()?.to_be_bytes())?;
            }
        }
        let sum = Sum::default().pseudo(addresses(head, is_v6)?, transport, len);
        write_at(head, ip_len + offset, &sum.partial())?;
        Some(Header {
            kind,
            ecn: false,
            header_len: u16::try_from(header_len).ok()?,
            size: u16::try_from(self.size).ok()?,
            checksum: Some(Unfinished {
                start: u16::try_from(ip_len).ok()?,
                offset: u16::try_from(offset).ok()?,
            }),
        })
    }
}

fn flags(packet: &[u8], shape: Shape) -> u8 {
    packet.get(shape.ip_len + 13).copied().unwrap_or(0)
}

/// Reads a packet's shape; `None` for what has no ports we know of.
fn shape(packet: &[u8], accepts: Accepts) -> Option<Shape> {
    let first = packet.first()?;
    let (is_v6, ip_len, protocol, plain) = match first >> 4 {
        4 if packet.len() >= V4_HEADER => {
            // Reserved bit, more fragments, offset.
            if be16(packet, 6) & 0xbfff != 0 {
                return None;
            }
            let own = usize::from(first & 0x0f) * 4;
            (false, own, packet.get(9)?, own == V4_HEADER)
        }
        6 if packet.len() >= V6_HEADER => (true, V6_HEADER, packet.get(6)?, true),
        _ => return None,
    };
    let rest = packet.get(ip_len..)?;
    let (transport, header_len, wanted) = match *protocol {
        PROTOCOL_TCP if rest.len() >= TCP_HEADER => {
            let own = usize::from(rest.get(12)? >> 4) * 4;
            // Acknowledgements, with an echo of congestion or without, pushed or not.
            let only = rest.get(13)? & !(PSH | ECE) == ACK && own >= TCP_HEADER;
            (Transport::Tcp, ip_len + own, accepts.tcp && only)
        }
        PROTOCOL_UDP if rest.len() >= UDP_HEADER => {
            let fits = usize::from(be16(rest, 4)) == rest.len() && be16(rest, 6) != 0;
            (Transport::Udp, ip_len + UDP_HEADER, accepts.udp && fits)
        }
        _ => return None,
    };
    let hash = hash(addresses(packet, is_v6)?, *protocol, be32(rest, 0));
    Some(Shape {
        transport,
        is_v6,
        ip_len,
        header_len,
        hash,
        joins: wanted && plain && header_len < packet.len(),
    })
}

fn checksum_holds(packet: &[u8], shape: Shape) -> bool {
    let (Some(body), Some(ends)) = (packet.get(shape.ip_len..), addresses(packet, shape.is_v6))
    else {
        return false;
    };
    let sum = Sum::default().pseudo(ends, shape.transport, body.len());
    let ip_holds = || {
        shape.is_v6
            || Sum::default()
                .with(packet.get(..shape.ip_len).unwrap_or(&[]))
                .holds()
    };
    sum.with(body).holds() && ip_holds()
}
