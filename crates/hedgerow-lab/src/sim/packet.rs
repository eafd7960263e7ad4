//! What programs say to each other: small packets that name who sent them.

use std::net::IpAddr;

use hedgerow_linux::tunnel::inner;

use super::domain::Domain;

/// Bytes of an inner packet: an IPv6 and a UDP header, and what a program says.
pub(super) const PACKET_BYTES: usize = 40 + 8 + 24;
const UDP: u8 = 17;
/// Stands in every packet: nobody but its two ends may see it.
const SECRET: [u8; 8] = *b"valve 7a";

/// What a program said to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    /// In whose name: the source address.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Who sent it: known to the simulator alone.
    pub(super) origin: usize,
    pub(super) is_answer: bool,
    pub(super) serial: u32,
    /// Number within a stream.
    pub(super) count: u32,
}

impl Packet {
    pub(super) fn answer(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            origin: self.to,
            is_answer: true,
            ..self
        }
    }
}

/// Writes a packet: UDP over IPv6, without checksums.
pub(super) fn pack(packet: Packet, src: IpAddr, dst: IpAddr, out: &mut [u8]) -> Option<()> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) else {
        return None;
    };
    let mut bytes = Vec::with_capacity(PACKET_BYTES);
    let payload = u16::try_from(PACKET_BYTES - 40).ok()?;
    bytes.extend([0x60, 0, 0, 0]);
    bytes.extend(payload.to_be_bytes());
    bytes.extend([UDP, 64]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(40_000u16.to_be_bytes());
    bytes.extend(5000u16.to_be_bytes());
    bytes.extend(payload.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(packet.serial.to_be_bytes());
    bytes.extend(packet.count.to_be_bytes());
    bytes.extend(u32::try_from(packet.origin).ok()?.to_be_bytes());
    bytes.extend([u8::from(packet.is_answer), 0, 0, 0]);
    bytes.extend(SECRET);
    out.get_mut(..PACKET_BYTES)?.copy_from_slice(&bytes);
    Some(())
}

/// Returns whether whoever holds these bytes can read a packet in them.
pub(super) fn is_readable(bytes: &[u8]) -> bool {
    let mut parts = bytes.windows(SECRET.len());
    parts.any(|part| part == SECRET)
}

/// Reads a packet; refusals of our own tunnel are none.
pub(super) fn unpack(bytes: &[u8]) -> Option<Packet> {
    let ends = inner::decode(bytes)?;
    if bytes.get(6) != Some(&UDP) {
        return None;
    }
    let word = |at: usize| {
        let four = bytes.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*four))
    };
    Some(Packet {
        from: Domain::number(ends.src)?,
        to: Domain::number(ends.dst)?,
        origin: usize::try_from(word(56)?).ok()?,
        is_answer: bytes.get(60) == Some(&1),
        serial: word(48)?,
        count: word(52)?,
    })
}
