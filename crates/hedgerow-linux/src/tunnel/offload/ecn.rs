//! Congestion marks and classes across the tunnel (RFC 6040, RFC 2983).
//!
//! Outwards the whole traffic class is copied (RFC 6040 "normal mode", the uniform model of RFC 2983).
//! Inwards the inner packet keeps its class, and a congestion mark of the path is carried into it.

use super::be16;
use super::checksum::Sum;
use super::write_at;

/// ECN bits of the traffic class.
const ECN: u8 = 0b11;
/// "Congestion experienced".
const CE: u8 = 0b11;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;

/// Reads the traffic class of an IP packet: DSCP and ECN. 0 where there is none.
pub fn class(packet: &[u8]) -> u8 {
    match packet.first().map(|b| b >> 4) {
        Some(4) => packet.get(1).copied().unwrap_or(0),
        Some(6) => u8::try_from((be16(packet, 0) >> 4) & 0xff).unwrap_or(0),
        _ => 0,
    }
}

/// Returns whether a packet's ends understand congestion marks.
pub fn is_capable(packet: &[u8]) -> bool {
    class(packet) & ECN != 0
}

/// Marks a packet "congestion experienced"; `false` when its ends do not understand that, and it is
/// as it was.
pub fn mark(packet: &mut [u8]) -> bool {
    is_capable(packet) && set(packet, CE).is_some()
}

/// What becomes of an inner packet that came in an outer one of traffic class `outer`
/// (RFC 6040 §4.2): `false` means that it is dropped, for the path wanted to tell its ends something
/// that they do not understand.
#[must_use]
pub fn carry_in(outer: u8, packet: &mut [u8]) -> bool {
    let inner = class(packet) & ECN;
    match (inner, outer & ECN) {
        (0, CE) => false,
        (ECT_0 | ECT_1, CE) => set(packet, CE).is_some(),
        (ECT_0, ECT_1) => set(packet, ECT_1).is_some(),
        _ => true,
    }
}

fn set(packet: &mut [u8], ecn: u8) -> Option<()> {
    match packet.first()? >> 4 {
        4 => {
            let old = be16(packet, 0);
            let new = (old & !u16::from(ECN)) | u16::from(ecn);
            write_at(packet, 0, &new.to_be_bytes())?;
            // RFC 1624: the checksum changes by the difference.
            let sum = Sum::default()
                .with_u16(!be16(packet, 10))
                .with_u16(!old)
                .with_u16(new);
            write_at(packet, 10, &sum.finish())
        }
        _ => {
            let old = be16(packet, 0);
            let new = (old & !(u16::from(ECN) << 4)) | (u16::from(ecn) << 4);
            write_at(packet, 0, &new.to_be_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(class: u8) -> Vec<u8> {
        let mut p = vec![
            0x45, class, 0, 20, 1, 2, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        let sum = Sum::default().with(&p).finish();
        p[10..12].copy_from_slice(&sum);
        p
    }

    fn v6(class: u8) -> Vec<u8> {
        let mut p = vec![0; 40];
        p[0] = 0x60 | (class >> 4);
        p[1] = class << 4 | 0xa;
        p
    }

    /// The table of RFC 6040 §4.2: rows are the inner codepoint, columns the outer one.
    #[test]
    fn inwards_as_the_table_of_rfc_6040() {
        const NOT: u8 = 0;
        let table = [
            (NOT, [Some(NOT), Some(NOT), Some(NOT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT, ECT_1, ECT_0, CE].into_iter().zip(row) {
                for make in [v4, v6] {
                    let mut packet = make(0xb8 | inner);
                    // The outer class of the path is not the inner one's.
                    let passes = carry_in(0x20 | outer, &mut packet);
                    assert_eq!(passes, expected.is_some(), "{inner} {outer}");
                    let after = expected.unwrap_or(inner);
                    assert_eq!(class(&packet), 0xb8 | after, "{inner} {outer}");
                    assert!(packet[0] >> 4 == 6 || Sum::default().with(&packet).holds());
                }
            }
        }
    }

    #[test]
    fn only_capable_packets_are_marked() {
        for make in [v4, v6] {
            let mut packet = make(0);
            assert!(!mark(&mut packet));
            assert_eq!(packet, make(0));
            let mut packet = make(0b10);
            assert!(mark(&mut packet));
            assert_eq!(packet, make(0b11));
        }
        assert!(!mark(&mut []));
        assert_eq!(class(&[0x45]), 0);
    }
}
