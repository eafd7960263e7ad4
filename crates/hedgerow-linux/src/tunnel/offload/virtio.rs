//! The header before each packet of a TUN device opened with `IFF_VNET_HDR`: `struct virtio_net_hdr`
//! in the machine's byte order (VIRTIO 1.2 §5.1.6, "legacy").

use super::super::message::array_at;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What the packet after the header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// One packet.
    #[default]
    Single,
    /// Many TCP segments over IPv4.
    TcpV4,
    /// Many TCP segments over IPv6.
    TcpV6,
    /// Many UDP datagrams.
    Udp,
}

/// A checksum that was left to do: the sum of all bytes from `start`, written `offset` bytes further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// Where the transport header begins.
    pub start: u16,
    /// Where in it the checksum stands.
    pub offset: u16,
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// CWR stands in the first segment alone.
    pub ecn: bool,
    /// Bytes of the headers, a hint.
    pub header_len: u16,
    /// Bytes of payload of each segment but the last.
    pub size: u16,
    /// The checksum, if it is to be made.
    pub checksum: Option<Unfinished>,
}

impl Header {
    /// Reads a header; `None` for one that is cut short or of a kind we have not asked for.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [flags, kind, rest @ ..] = bytes.first_chunk::<HEADER_BYTES>()?;
        let number = |at| u16::from_ne_bytes(array_at(rest, at));
        Some(Self {
            kind: match kind & !GSO_ECN {
                GSO_NONE => Kind::Single,
                GSO_TCP_V4 => Kind::TcpV4,
                GSO_TCP_V6 => Kind::TcpV6,
                GSO_UDP => Kind::Udp,
                _ => return None,
            },
            ecn: kind & GSO_ECN != 0,
            header_len: number(0),
            size: number(2),
            checksum: (flags & NEEDS_CHECKSUM != 0).then(|| Unfinished {
                start: number(4),
                offset: number(6),
            }),
        })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let kind = match self.kind {
            Kind::Single => GSO_NONE,
            Kind::TcpV4 => GSO_TCP_V4,
            Kind::TcpV6 => GSO_TCP_V6,
            Kind::Udp => GSO_UDP,
        };
        let ecn = if self.ecn { GSO_ECN } else { 0 };
        let (flags, start, offset) = match self.checksum {
            Some(Unfinished { start, offset }) => (NEEDS_CHECKSUM, start, offset),
            None => (0, 0, 0),
        };
        let [a, b] = self.header_len.to_ne_bytes();
        let [c, d] = self.size.to_ne_bytes();
        let [e, f] = start.to_ne_bytes();
        let [g, h] = offset.to_ne_bytes();
        [flags, kind | ecn, a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds_nobody_asked_for_are_refused() {
        assert_eq!(Header::decode(&[0; 9]), None);
        assert_eq!(Header::decode(&[0; 10]), Some(Header::default()));
        for kind in [2, 3, 6, 0x7f, 0xff] {
            assert_eq!(Header::decode(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back(bytes: [u8; HEADER_BYTES]) {
            if let Some(header) = Header::decode(&bytes) {
                prop_assert_eq!(Header::decode(&header.encode()), Some(header));
            }
        }
    }
}
