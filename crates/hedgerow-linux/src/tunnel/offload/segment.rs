//! One super-packet into many packets.

use super::super::pass::Pieces;
use super::checksum::Sum;
use super::virtio::{Header, Kind};
use super::{
    CWR, FIN, PROTOCOL_TCP, PROTOCOL_UDP, PSH, TCP_CHECKSUM_AT, TCP_HEADER, Transport,
    UDP_CHECKSUM_AT, UDP_HEADER, V4_HEADER, V6_HEADER, be16, be32, write_at,
};

/// Why a packet of the kernel cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The header speaks of bytes the packet does not have.
    #[error("the checksum's place is not in the packet")]
    Checksum,
    /// Header and packet contradict each other.
    #[error("not the super-packet that its header says")]
    Headers,
    /// A piece would be longer than the tunnel carries.
    #[error("segments are longer than the MTU")]
    TooLong,
}

/// A super-packet that was checked: every piece can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Super {
    transport: Transport,
    is_v6: bool,
    /// Where the transport header begins.
    ip_len: usize,
    /// Where the payload begins.
    header_len: usize,
    /// Payload bytes of each piece but the last.
    size: usize,
    payload: usize,
}

impl Super {
    /// Checks a super-packet against its header and the longest packet the tunnel carries.
    ///
    /// # Errors
    ///
    /// [`Malformed`]; the kernel makes no such packet.
    pub fn decode(header: &Header, packet: &[u8], mtu: usize) -> Result<Self, Malformed> {
        let checksum = header.checksum.ok_or(Malformed::Headers)?;
        let first = packet.first().ok_or(Malformed::Headers)?;
        let (is_v6, least, protocol) = match first >> 4 {
            4 => (false, V4_HEADER, packet.get(9)),
            6 => (true, V6_HEADER, packet.get(6)),
            _ => return Err(Malformed::Headers),
        };
        let ip_len = usize::from(checksum.start);
        let transport = match (header.kind, is_v6) {
            (Kind::TcpV4, false) | (Kind::TcpV6, true) => Transport::Tcp,
            (Kind::Udp, _) => Transport::Udp,
            (Kind::Single | Kind::TcpV4 | Kind::TcpV6, _) => return Err(Malformed::Headers),
        };
        // Extension headers, where the protocol stands elsewhere, are believed to the virtio header.
        let (number, own_header, at) = match transport {
            Transport::Tcp => (PROTOCOL_TCP, TCP_HEADER, TCP_CHECKSUM_AT),
            Transport::Udp => (PROTOCOL_UDP, UDP_HEADER, UDP_CHECKSUM_AT),
        };
        let starts = if is_v6 {
            ip_len >= least && (ip_len > least || protocol == Some(&number))
        } else {
            ip_len == usize::from(first & 0x0f) * 4 && ip_len >= least && protocol == Some(&number)
        };
        let head = packet.get(ip_len..ip_len + own_header);
        let (Some(head), true) = (head, starts && usize::from(checksum.offset) == at) else {
            return Err(Malformed::Headers);
        };
        let own_len = match transport {
            Transport::Tcp => usize::from(head.get(12).map_or(0, |b| b >> 4)) * 4,
            Transport::Udp => UDP_HEADER,
        };
        let header_len = ip_len + own_len;
        let (size, payload) = (
            usize::from(header.size),
            packet.len().saturating_sub(header_len),
        );
        if own_len < own_header || size == 0 || payload == 0 || packet.len() > 65_535 {
            return Err(Malformed::Headers);
        }
        if header_len + size.min(payload) > mtu {
            return Err(Malformed::TooLong);
        }
        Ok(Self {
            transport,
            is_v6,
            ip_len,
            header_len,
            size,
            payload,
        })
    }

    /// Returns how many packets it becomes, at least one.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.size)
    }

    /// Returns how many packets it becomes, and of how many bytes.
    pub fn pieces(&self) -> Pieces {
        let count = self.count();
        Pieces {
            count,
            longest: self.len_of(0),
            bytes: self.payload + count * self.header_len,
        }
    }

    /// Returns the bytes of packet `n`.
    pub fn len_of(&self, n: usize) -> usize {
        let left = self.payload.saturating_sub(n.saturating_mul(self.size));
        self.header_len + left.min(self.size)
    }

    /// Writes packet `n` to the start of `out`, complete with checksums, and returns its length. `None`
    /// when there is no such packet or no room for it.
    pub fn write(&self, packet: &[u8], n: usize, out: &mut [u8]) -> Option<usize> {
        let from = n.checked_mul(self.size).filter(|at| *at < self.payload)?;
        let len = self.len_of(n);
        let payload_len = len - self.header_len;
        let start = self.header_len + from;
        let out = out.get_mut(..len)?;
        let (head, payload) = out.split_at_mut_checked(self.header_len)?;
        head.copy_from_slice(packet.get(..self.header_len)?);
        payload.copy_from_slice(packet.get(start..start + payload_len)?);
        let is_last = from + payload_len == self.payload;
        self.rewrite_ip(head, n, len)?;
        let transport_len = len - self.ip_len;
        let check_at = match self.transport {
            Transport::Tcp => {
                let seq = be32(head, self.ip_len + 4).wrapping_add(u32::try_from(from).ok()?);
                write_at(head, self.ip_len + 4, &seq.to_be_bytes())?;
                let flags = head.get_mut(self.ip_len + 13)?;
                if !is_last {
                    *flags &= !(FIN | PSH);
                }
                if n > 0 {
                    *flags &= !CWR;
                }
                self.ip_len + TCP_CHECKSUM_AT
            }
            Transport::Udp => {
                let udp_len = u16::try_from(transport_len).ok()?;
                write_at(head, self.ip_len + 4, &udp_len.to_be_bytes())?;
                self.ip_len + UDP_CHECKSUM_AT
            }
        };
        write_at(head, check_at, &[0, 0])?;
        let addresses = addresses(head, self.is_v6)?;
        let sum = Sum::default()
            .pseudo(addresses, self.transport, transport_len)
            .with(head.get(self.ip_len..)?)
            .with(payload);
        let sum = match self.transport {
            Transport::Tcp => sum.finish(),
            Transport::Udp => sum.finish_udp(),
        };
        write_at(head, check_at, &sum)?;
        Some(len)
    }

    fn rewrite_ip(&self, head: &mut [u8], n: usize, len: usize) -> Option<()> {
        if self.is_v6 {
            let payload = u16::try_from(len - V6_HEADER).ok()?;
            return write_at(head, 4, &payload.to_be_bytes());
        }
        let id = be16(head, 4).wrapping_add(u16::try_from(n).ok()?);
        write_at(head, 2, &u16::try_from(len).ok()?.to_be_bytes())?;
        write_at(head, 4, &id.to_be_bytes())?;
        write_at(head, 10, &[0, 0])?;
        let sum = Sum::default().with(head.get(..self.ip_len)?).finish();
        write_at(head, 10, &sum)
    }
}

/// Source and destination as they stand in the IP header.
pub(super) fn addresses(packet: &[u8], is_v6: bool) -> Option<&[u8]> {
    match is_v6 {
        true => packet.get(8..40),
        false => packet.get(12..20),
    }
}

/// Makes the checksum that the kernel left undone in a packet that is not cut.
///
/// # Errors
///
/// [`Malformed::Checksum`]; the packet is as it was.
pub fn finish_checksum(header: &Header, packet: &mut [u8]) -> Result<(), Malformed> {
    let Some(unfinished) = header.checksum else {
        return Ok(());
    };
    let (start, offset) = (
        usize::from(unfinished.start),
        usize::from(unfinished.offset),
    );
    let body = packet.get_mut(start..).ok_or(Malformed::Checksum)?;
    // The field holds the sum of the pseudo-header.
    let sum = Sum::default().with(body);
    let sum = match offset {
        UDP_CHECKSUM_AT => sum.finish_udp(),
        _ => sum.finish(),
    };
    write_at(body, offset, &sum).ok_or(Malformed::Checksum)
}
