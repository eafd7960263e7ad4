//! Prefixes as the ranges that interval sets hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hedgerow_model::address::Prefix;

/// Returns the ranges that the prefixes cover, sorted, without overlap.
pub(super) fn merged<'a>(prefixes: impl Iterator<Item = &'a Prefix>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list: Vec<_> = prefixes.map(bounds).collect();
    list.sort();
    let mut out: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (first, last) in list {
        match out.last_mut() {
            Some((_, end)) if successor(end).is_none_or(|next| first <= next) => {
                if *end < last {
                    *end = last;
                }
            }
            Some(_) | None => out.push((first, last)),
        }
    }
    out
}

pub(super) fn bounds(prefix: &Prefix) -> (Vec<u8>, Vec<u8>) {
    match prefix.address() {
        IpAddr::V4(a) => {
            let host = u32::MAX.checked_shr(prefix.bits().into()).unwrap_or(0);
            let last = Ipv4Addr::from(u32::from(a) | host);
            (a.octets().to_vec(), last.octets().to_vec())
        }
        IpAddr::V6(a) => {
            let host = u128::MAX.checked_shr(prefix.bits().into()).unwrap_or(0);
            let last = Ipv6Addr::from(u128::from(a) | host);
            (a.octets().to_vec(), last.octets().to_vec())
        }
    }
}

/// Returns the address after this one, unless it is the last.
pub(super) fn successor(address: &[u8]) -> Option<Vec<u8>> {
    let mut out = address.to_vec();
    for byte in out.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(list: &[&str]) -> Vec<Prefix> {
        list.iter().map(|p| p.parse().unwrap()).collect()
    }

    #[test]
    fn overlapping_and_touching_prefixes_become_one_range() {
        let list = prefixes(&[
            "10.1.0.0/16",
            "10.0.0.0/16",
            "10.0.9.0/24",
            "192.168.0.0/24",
        ]);
        let v4 = |a: [u8; 4]| a.to_vec();
        assert_eq!(
            merged(list.iter()),
            [
                (v4([10, 0, 0, 0]), v4([10, 1, 255, 255])),
                (v4([192, 168, 0, 0]), v4([192, 168, 0, 255]))
            ]
        );
        let all = prefixes(&["0.0.0.0/0", "255.0.0.0/8"]);
        assert_eq!(merged(all.iter()), [(vec![0; 4], vec![255; 4])]);
        assert_eq!(successor(&[255; 4]), None);
        assert_eq!(bounds(&"::/0".parse().unwrap()).1, [255; 16]);
    }
}
