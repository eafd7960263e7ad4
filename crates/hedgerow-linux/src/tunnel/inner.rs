//! Inner packets: just enough of IP to know whose they are, and how to refuse them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hedgerow_model::Wall;
use hedgerow_model::packet::{Direction, Packet};
use hedgerow_model::ruleset::{Profile, Verdict};
use hedgerow_model::service::Protocol;

use super::Rejection;
use super::message::{array_at, put};

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;
/// Bytes of an IPv4 refusal (RFC 1812 §4.3.2.3) and of an IPv6 one (RFC 4443 §2.4).
const V4_REFUSAL_BYTES_MAX: usize = 576;
const V6_REFUSAL_BYTES_MAX: usize = 1280;

/// An IP packet's ends and true length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// From whom.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// Bytes by the packet's own word, without the tunnel's padding.
    pub len: usize,
}

/// Reads the header; `None` for what is no IPv4 or IPv6 packet, or is cut short.
pub fn decode(packet: &[u8]) -> Option<Inner> {
    match packet.first()? >> 4 {
        4 if packet.len() >= V4_HEADER => {
            let len = usize::from(u16::from_be_bytes(array_at(packet, 2)));
            let header = usize::from(packet.first()? & 0x0f) * 4;
            (header >= V4_HEADER && len >= header && len <= packet.len()).then(|| Inner {
                src: Ipv4Addr::from(array_at::<4>(packet, 12)).into(),
                dst: Ipv4Addr::from(array_at::<4>(packet, 16)).into(),
                len,
            })
        }
        6 if packet.len() >= V6_HEADER => {
            let len = V6_HEADER + usize::from(u16::from_be_bytes(array_at(packet, 4)));
            (len <= packet.len()).then(|| Inner {
                src: Ipv6Addr::from(array_at::<16>(packet, 8)).into(),
                dst: Ipv6Addr::from(array_at::<16>(packet, 24)).into(),
                len,
            })
        }
        _ => None,
    }
}

/// Returns whether `profile` lets a packet of our own kernel pass.
///
/// What asks for something is judged as what it asks for. TCP without SYN and echo replies may
/// belong to a flow that the peer began: they pass too when that flow may. Fragments, extension
/// headers, errors and other protocols do not pass.
pub fn passes(packet: &[u8], profile: &Profile, now: Wall) -> bool {
    let judge = |direction, protocol, port| {
        let packet = Packet {
            direction,
            protocol,
            port,
        };
        !matches!(profile.decide(&packet, now), Verdict::Deny(_))
    };
    let Some((protocol, header)) = transport(packet) else {
        return false;
    };
    let port = |at| u16::from_be_bytes(array_at(header, at));
    match protocol {
        PROTOCOL_TCP => {
            let opens = header.get(13).is_none_or(|flags| flags & 0x12 == 0x02);
            judge(Direction::Out, Protocol::Tcp, port(2))
                || (!opens && judge(Direction::In, Protocol::Tcp, port(0)))
        }
        PROTOCOL_UDP => judge(Direction::Out, Protocol::Udp, port(2)),
        _ => match (protocol, port(0)) {
            (PROTOCOL_ICMP, 0x0800) | (PROTOCOL_ICMPV6, 0x8000) => {
                judge(Direction::Out, Protocol::IcmpEcho, 0)
            }
            (PROTOCOL_ICMP, 0) | (PROTOCOL_ICMPV6, 0x8100) => {
                judge(Direction::In, Protocol::IcmpEcho, 0)
            }
            _ => false,
        },
    }
}

/// Returns protocol and transport header of a whole packet, at least the header's fixed part.
fn transport(packet: &[u8]) -> Option<(u8, &[u8])> {
    decode(packet)?;
    let (protocol, at) = match packet.first()? >> 4 {
        4 => {
            let fragment = u16::from_be_bytes(array_at(packet, 6)) & 0x3fff;
            let header = usize::from(packet.first()? & 0x0f) * 4;
            (fragment == 0).then_some((*packet.get(9)?, header))?
        }
        _ => (*packet.get(6)?, V6_HEADER),
    };
    let header = packet.get(at..)?;
    let least = match protocol {
        PROTOCOL_TCP => 20,
        PROTOCOL_UDP | PROTOCOL_ICMP | PROTOCOL_ICMPV6 => 8,
        _ => return None,
    };
    (header.len() >= least).then_some((protocol, header))
}

/// Makes the ICMP answer "destination unreachable" to a packet of our own kernel, so that its program
/// fails at once. `None` where no answer is due: ICMP errors, later fragments.
///
/// It comes from the address that was refused: from our own address the kernel would drop it.
pub fn refusal(packet: &[u8], why: Rejection) -> Option<Vec<u8>> {
    let inner = decode(packet)?;
    match (inner.src, inner.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => refusal_v4(packet, src, dst, why),
        (IpAddr::V6(src), IpAddr::V6(dst)) => refusal_v6(packet, src, dst, why),
        _ => None,
    }
}

fn refusal_v4(packet: &[u8], src: Ipv4Addr, dst: Ipv4Addr, why: Rejection) -> Option<Vec<u8>> {
    let fragment = u16::from_be_bytes(array_at(packet, 6)) & 0x1fff;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let echo = |kind: &u8| *kind == 0 || *kind == 8;
    if fragment != 0 || (*packet.get(9)? == PROTOCOL_ICMP && !packet.get(header).is_some_and(echo))
    {
        return None;
    }
    let quoted = packet.get(
        ..packet
            .len()
            .min(V4_REFUSAL_BYTES_MAX - V4_HEADER - ICMP_HEADER),
    )?;
    let total = V4_HEADER + ICMP_HEADER + quoted.len();
    let mut answer = vec![0; total];
    put(&mut answer, 0, &[0x45, 0xc0]);
    put(&mut answer, 2, &u16::try_from(total).ok()?.to_be_bytes());
    put(&mut answer, 8, &[64, PROTOCOL_ICMP]);
    put(&mut answer, 12, &dst.octets());
    put(&mut answer, 16, &src.octets());
    let sum = checksum(0, answer.get(..V4_HEADER)?);
    put(&mut answer, 10, &sum);
    // Destination unreachable: communication administratively prohibited, or host unreachable.
    let code = match why {
        Rejection::Prohibited => 13,
        Rejection::Unreachable => 1,
    };
    put(&mut answer, V4_HEADER, &[3, code]);
    put(&mut answer, V4_HEADER + ICMP_HEADER, quoted);
    let sum = checksum(0, answer.get(V4_HEADER..)?);
    put(&mut answer, V4_HEADER + 2, &sum);
    Some(answer)
}

fn refusal_v6(packet: &[u8], src: Ipv6Addr, dst: Ipv6Addr, why: Rejection) -> Option<Vec<u8>> {
    if *packet.get(6)? == PROTOCOL_ICMPV6 && *packet.get(V6_HEADER)? < 128 {
        return None;
    }
    let quoted = packet.get(
        ..packet
            .len()
            .min(V6_REFUSAL_BYTES_MAX - V6_HEADER - ICMP_HEADER),
    )?;
    let payload = ICMP_HEADER + quoted.len();
    let mut answer = vec![0; V6_HEADER + payload];
    put(&mut answer, 0, &[0x60]);
    put(&mut answer, 4, &u16::try_from(payload).ok()?.to_be_bytes());
    put(&mut answer, 6, &[PROTOCOL_ICMPV6, 64]);
    put(&mut answer, 8, &dst.octets());
    put(&mut answer, 24, &src.octets());
    // Destination unreachable: communication administratively prohibited, or address unreachable.
    let code = match why {
        Rejection::Prohibited => 1,
        Rejection::Unreachable => 3,
    };
    put(&mut answer, V6_HEADER, &[1, code]);
    put(&mut answer, V6_HEADER + ICMP_HEADER, quoted);
    let pseudo = u32::try_from(payload).ok()? + u32::from(PROTOCOL_ICMPV6);
    let sum = checksum(pseudo, answer.get(8..)?);
    put(&mut answer, V6_HEADER + 2, &sum);
    Some(answer)
}

/// Makes the ICMP answer "packet too big" to a packet of our own kernel, so that it sends shorter ones.
/// `None` where no answer is due: IPv4 that may be cut, ICMP errors, later fragments.
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let (at, kind, start) = match packet.first()? >> 4 {
        4 if packet.get(6)? & 0x40 == 0 => return None,
        4 => (V4_HEADER, [3, 4], 0),
        _ => (V6_HEADER, [2, 0], u32::from(PROTOCOL_ICMPV6)),
    };
    let mut answer = refusal(packet, Rejection::Unreachable)?;
    put(&mut answer, at, &kind);
    put(&mut answer, at + 2, &[0, 0]);
    put(&mut answer, at + 4, &[0, 0]);
    put(&mut answer, at + 6, &mtu.to_be_bytes());
    let (from, start) = match at {
        V4_HEADER => (V4_HEADER, start),
        _ => (8, start + u32::try_from(answer.len() - V6_HEADER).ok()?),
    };
    let sum = checksum(start, answer.get(from..)?);
    put(&mut answer, at + 2, &sum);
    Some(answer)
}

/// The internet checksum (RFC 1071) of at most 64 KiB.
fn checksum(start: u32, bytes: &[u8]) -> [u8; 2] {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let mut sum = start;
    for pair in pairs {
        sum = sum.wrapping_add(u32::from(u16::from_be_bytes(*pair)));
    }
    if let Some(last) = odd.first() {
        sum = sum.wrapping_add(u32::from(*last) << 8);
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn udp_v4() -> Vec<u8> {
        let mut p = vec![0; 28];
        put(&mut p, 0, &[0x45, 0, 0, 28]);
        put(&mut p, 8, &[64, 17]);
        put(&mut p, 12, &[10, 0, 0, 1]);
        put(&mut p, 16, &[10, 0, 0, 2]);
        p
    }

    #[test]
    fn tunnel_inner_padding_is_cut_and_lies_are_refused() {
        let mut packet = udp_v4();
        packet.extend([0; 4]);
        assert_eq!(decode(&packet).unwrap().len, 28);
        packet[3] = 33;
        assert_eq!(decode(&packet), None, "longer than it is");
        packet[3] = 19;
        assert_eq!(decode(&packet), None, "shorter than its header");
        packet[0] = 0x44;
        assert_eq!(decode(&packet), None, "no room for a header");
        assert_eq!(decode(&[0x60; 39]), None);
    }

    #[test]
    fn tunnel_refusals_come_from_the_refused_address_with_good_checksums() {
        let answer = refusal(&udp_v4(), Rejection::Prohibited).unwrap();
        let inner = decode(&answer).unwrap();
        assert_eq!(inner.src.to_string(), "10.0.0.2");
        assert_eq!(inner.dst.to_string(), "10.0.0.1");
        assert_eq!(checksum(0, &answer[..20]), [0, 0]);
        assert_eq!(checksum(0, &answer[20..]), [0, 0]);
        assert_eq!(answer[28..], udp_v4()[..]);
        // An error is never answered by an error.
        assert_eq!(refusal(&answer, Rejection::Prohibited), None);
        let mut request = answer;
        request[20] = 8;
        assert!(
            refusal(&request, Rejection::Unreachable).is_some(),
            "an echo request is"
        );
    }

    proptest! {
        #[test]
        fn tunnel_inner_decoder_takes_anything(bytes in prop::collection::vec(any::<u8>(), 0..200), version in 4u8..7) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = (version << 4) | (*first & 0x0f);
            }
            if let Some(inner) = decode(&bytes) {
                prop_assert!(inner.len <= bytes.len());
            }
            if let Some(answer) = refusal(&bytes, Rejection::Unreachable) {
                prop_assert!(answer.len() <= V6_REFUSAL_BYTES_MAX);
                let inner = decode(&answer).unwrap();
                prop_assert_eq!(inner.len, answer.len());
                prop_assert_eq!(inner.dst, decode(&bytes).unwrap().src);
            }
        }
    }
}
