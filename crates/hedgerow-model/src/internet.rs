//! What `internet` means: every underlay address outside ranges that are somebody's own.
//!
//! An IPv6 address that a translator or tunnel turns into an IPv4 address means that one: through
//! NAT64 (RFC 6052) and 6to4 (RFC 3056) `internet` reaches the IPv4 internet, and no private IPv4
//! address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use crate::address::Prefix;

/// IPv4 ranges outside the internet: this network, private, shared, loopback, link-local, protocol
/// assignments, benchmarking, multicast, reserved.
const LOCAL4: [(Ipv4Addr, u8); 10] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// IPv6 ranges outside the internet.
const LOCAL6: [(Ipv6Addr, u8); 9] = [
    // Unspecified, loopback, IPv4-compatible.
    (Ipv6Addr::UNSPECIFIED, 96),
    // IPv4-mapped: never on a wire.
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    // NAT64 of a network's own making (RFC 8215): leads wherever that network says.
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    // Discard.
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    // Teredo: holds an IPv4 address with its bits turned over.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    // Site-local, as it was.
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// IPv6 prefixes that an IPv4 address follows.
const EMBEDDING: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];

static LOCAL: LazyLock<Vec<Prefix>> = LazyLock::new(|| {
    let four = LOCAL4.iter().map(|(a, bits)| (IpAddr::V4(*a), *bits));
    let six = LOCAL6.iter().map(|(a, bits)| (IpAddr::V6(*a), *bits));
    let within = EMBEDDING.iter().flat_map(|outer| {
        let embed = |inner: &(Ipv4Addr, u8)| embedded(*outer, *inner);
        LOCAL4.iter().map(embed)
    });
    let all = four.chain(six).chain(within);
    all.filter_map(|(address, bits)| Prefix::new(address, bits).ok())
        .collect()
});

/// Returns the ranges outside the internet; overlay pools come on top.
pub fn local_prefixes() -> &'static [Prefix] {
    &LOCAL
}

fn embedded(outer: (Ipv6Addr, u8), inner: (Ipv4Addr, u8)) -> (IpAddr, u8) {
    let bits = outer.1.saturating_add(32).min(128);
    let shift = 128 - u32::from(bits);
    let address = u128::from(outer.0) | u128::from(u32::from(inner.0)) << shift;
    (
        Ipv6Addr::from(address).into(),
        outer.1.saturating_add(inner.1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_local(address: &str) -> bool {
        let address = address.parse().unwrap();
        local_prefixes().iter().any(|p| p.contains(address))
    }

    #[test]
    fn every_range_is_a_prefix() {
        let ranges = LOCAL4.len() * (1 + EMBEDDING.len()) + LOCAL6.len();
        assert_eq!(local_prefixes().len(), ranges);
    }

    #[test]
    fn a_private_address_inside_of_another_is_not_the_internet() {
        for private in [
            "10.1.2.3",
            "127.0.0.1",
            "169.254.169.254",
            "192.168.0.1",
            "100.80.0.1",
        ] {
            assert!(is_local(private), "{private}");
            assert!(
                is_local(&format!("64:ff9b::{private}")),
                "NAT64 of {private}"
            );
            assert!(is_local(&format!("::ffff:{private}")), "mapped {private}");
            assert!(is_local(&format!("::{private}")), "compatible {private}");
        }
        assert!(is_local("2002:0a01:0203::1") && is_local("2002:c0a8:1::"));
        assert!(is_local("64:ff9b:1:ffff::8.8.8.8"), "somebody's own NAT64");
        for public in [
            "8.8.8.8",
            "192.0.2.1",
            "64:ff9b::8.8.8.8",
            "2002:0808:0808::1",
        ] {
            assert!(!is_local(public), "{public}");
        }
        assert!(!is_local("2a00::1") && !is_local("2001:db8::1"));
    }
}
