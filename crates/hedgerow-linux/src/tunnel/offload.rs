//! Segmentation and its inverse: what the kernel hands us in one piece is cut into packets, and packets
//! that follow each other are handed to the kernel in one piece.
//!
//! ```text
//!   TUN ─▶ virtio header, super-packet ─▶ segment::Super ─▶ packets, checksums made ─▶ sealed
//!   TUN ◀─ virtio header, super-packet ◀─ coalesce::Coalescer ◀─ packets, checksums checked ◀─ opened
//! ```
//!
//! Everything here is a pure function of bytes. The two directions are inverse to each other, which is
//! held by property tests: what is cut and put together again is what it was.
//!
//! # Invariants
//!
//! - Only packets whose checksum holds are put together: the kernel is told that the whole needs none.
//! - Packets of one flow keep their order. Packets that differ in anything but what the kernel rebuilds
//!   when it cuts (lengths, positions, PSH) are not put together.

pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod segment;
pub mod virtio;

/// Transport protocols that are cut and put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// By sequence number.
    Tcp,
    /// By datagram.
    Udp,
}

pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const V4_HEADER: usize = 20;
pub(crate) const V6_HEADER: usize = 40;
pub(crate) const UDP_HEADER: usize = 8;
pub(crate) const TCP_HEADER: usize = 20;
/// Where TCP's and UDP's checksums stand in their headers.
pub(crate) const TCP_CHECKSUM_AT: usize = 16;
pub(crate) const UDP_CHECKSUM_AT: usize = 6;
/// TCP's flags: byte 13 of its header.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

/// Reads a big-endian number; 0 past the end.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(super::message::array_at(bytes, at))
}

/// Reads a big-endian number; 0 past the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(super::message::array_at(bytes, at))
}

/// Writes `bytes` where they fit whole.
pub(crate) fn write_at(packet: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    packet
        .get_mut(at..at.checked_add(bytes.len())?)?
        .copy_from_slice(bytes);
    Some(())
}

/// Mixes a flow's addresses, protocol and ports.
fn hash(addresses: &[u8], protocol: u8, ports: u32) -> u64 {
    let mut hash = u64::from(ports) ^ (u64::from(protocol) << 32);
    for word in addresses.as_chunks::<8>().0 {
        hash = (hash ^ u64::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    hash
}

/// Returns whether a packet carries TCP.
pub fn is_tcp(packet: &[u8]) -> bool {
    let at = match packet.first().map(|b| b >> 4) {
        Some(4) => 9,
        _ => 6,
    };
    packet.get(at) == Some(&PROTOCOL_TCP)
}

/// Returns a number that the packets of one flow share: of addresses and protocol, and of ports where
/// they are in sight. Fragments share that of their addresses.
pub fn flow(packet: &[u8]) -> u64 {
    let (is_v6, protocol, at) = match packet.first().map(|b| b >> 4) {
        Some(4) => {
            let whole = be16(packet, 6) & 0x3fff == 0;
            let at = packet.first().map_or(0, |b| usize::from(b & 0x0f) * 4);
            (false, packet.get(9).copied(), whole.then_some(at))
        }
        Some(6) => (true, packet.get(6).copied(), Some(V6_HEADER)),
        _ => return 0,
    };
    let has_ports = protocol == Some(PROTOCOL_TCP) || protocol == Some(PROTOCOL_UDP);
    let ports = at.filter(|_| has_ports).map_or(0, |at| be32(packet, at));
    let ends = segment::addresses(packet, is_v6).unwrap_or_default();
    hash(ends, protocol.unwrap_or(0), ports)
}

#[cfg(test)]
mod tests;
