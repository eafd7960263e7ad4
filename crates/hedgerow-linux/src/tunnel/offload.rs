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

#[cfg(test)]
mod tests;
