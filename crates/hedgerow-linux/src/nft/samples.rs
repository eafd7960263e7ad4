//! Samples of refused packets, as the kernel logs them: one per reason and interval.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use hedgerow_model::packet::Direction;
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::layout::SAMPLE_GROUP;
use super::wire::{FAMILY_UNSPEC, TCP, UDP, head};
use crate::netlink::{Request, Socket, attributes, find, messages, text};

const SUBSYSTEM: u16 = 4;
const PACKET: u16 = 0;
const CONFIG: u16 = 1;
/// Most samples taken per call of [`Samples::read`]; the rest waits for the next.
const SAMPLES_PER_READ_MAX: usize = 256;
const READ_BYTES_MAX: usize = 64 * 1024;

/// One refused packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The counter it was counted under: `deny.<rule>`, `unknown_peer`, …
    pub reason: String,
    /// Which way it travelled; a forwarded packet is inbound.
    pub direction: Direction,
    /// Its source, as it claims.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// Source port of TCP and UDP.
    pub source_port: Option<u16>,
    /// Destination port of TCP and UDP.
    pub destination_port: Option<u16>,
}

/// The kernel's log group that the table writes to.
#[derive(Debug)]
pub struct Samples {
    socket: Socket,
}

impl Samples {
    /// Joins the group; a group has one reader.
    ///
    /// # Errors
    ///
    /// When another process reads it (EBUSY), or the right to is missing.
    pub fn open() -> io::Result<Self> {
        const BIND: u8 = 1;
        const COPY_PACKET: u8 = 2;
        let mut socket = Socket::open(Some(NETFILTER))?;
        let config = || {
            let head = head(FAMILY_UNSPEC, SAMPLE_GROUP);
            Request::new(SUBSYSTEM << 8 | CONFIG, 0, &head)
        };
        socket.request(config().attributes(|a| {
            a.bytes(1, &[BIND]);
        }))?;
        socket.request(config().attributes(|a| {
            let [b0, b1, b2, b3] = 128u32.to_be_bytes();
            a.bytes(2, &[b0, b1, b2, b3, COPY_PACKET, 0]);
            // Samples are rare: each is sent at once.
            a.be32(5, 1);
        }))?;
        Ok(Self { socket })
    }

    /// Returns the samples that wait, without waiting for any.
    ///
    /// # Errors
    ///
    /// When the socket fails. What the kernel could not deliver is counted all the same.
    pub fn read(&self) -> io::Result<Vec<Sample>> {
        let mut out = Vec::new();
        let mut buffer = vec![0; READ_BYTES_MAX];
        while out.len() < SAMPLES_PER_READ_MAX {
            match self.socket.read(&mut buffer) {
                Ok(Some(datagram)) => {
                    let packets = messages(datagram).filter(|m| m.kind == SUBSYSTEM << 8 | PACKET);
                    out.extend(packets.filter_map(|m| parse(m.body.get(4..)?)));
                }
                Ok(None) => break,
                Err(Errno::NOBUFS) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(out)
    }
}

impl AsFd for Samples {
    /// Returns the socket, to be polled for reading.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn parse(body: &[u8]) -> Option<Sample> {
    const PREFIX: u16 = 10;
    const PAYLOAD: u16 = 9;
    const INPUT_DEVICE: u16 = 4;
    let arrived = attributes(body).any(|(kind, _)| kind == INPUT_DEVICE);
    let packet = find(body, PAYLOAD)?;
    let (source, destination, protocol, rest) = addresses(packet)?;
    let port = |at: usize| {
        let bytes = rest.get(at..)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes)).filter(|_| matches!(protocol, TCP | UDP))
    };
    Some(Sample {
        reason: text(find(body, PREFIX)?),
        direction: if arrived {
            Direction::In
        } else {
            Direction::Out
        },
        source,
        destination,
        protocol,
        source_port: port(0),
        destination_port: port(2),
    })
}

/// Returns source, destination, protocol and what follows the IP header; extension headers of IPv6
/// are not followed.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    let first = *packet.first()?;
    match first >> 4 {
        4 => {
            let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
            let rest = packet.get(usize::from(first & 0xf) * 4..)?;
            let (from, to) = (address(12)?.into(), address(16)?.into());
            Some((from, to, *packet.get(9)?, rest))
        }
        6 => {
            let address = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
            let (from, to) = (address(8)?.into(), address(24)?.into());
            Some((from, to, *packet.get(6)?, packet.get(40..)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_packets_give_no_sample_and_no_harm() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, UDP, 64];
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend([0, 7, 0, 9]);
        let (from, to, protocol, rest) = addresses(&packet).unwrap();
        assert!(from.is_ipv6() && to != from && protocol == UDP);
        assert_eq!(rest, [0, 7, 0, 9]);
        for cut in 0..40 {
            assert!(addresses(&packet[..cut]).is_none());
        }
        for byte in 0..=u8::MAX {
            assert!(addresses(&[byte; 19]).is_none());
            assert!(parse(&[byte; 64]).is_none());
        }
    }
}
