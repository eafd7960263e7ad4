//! Which addresses are worth a datagram.

use std::net::IpAddr;

use hedgerow_model::address::{Prefix, Underlay};

/// Why an address that somebody named is not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absurd {
    /// No host has it: unspecified, port 0, broadcast, multicast, documentation.
    Nowhere,
    /// It leads to this machine or its link alone: loopback, link-local.
    Here,
    /// It is one of our own.
    Ours,
    /// It is inside the overlay: the tunnel would run through itself.
    Overlay,
}

impl Absurd {
    /// Returns the stable spelling, for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nowhere => "candidate_nowhere",
            Self::Here => "candidate_here",
            Self::Ours => "candidate_ours",
            Self::Overlay => "candidate_overlay",
        }
    }
}

/// Judges an address that a peer, a controller or a relay named.
///
/// # Errors
///
/// Why no datagram goes there.
pub(crate) fn judge(
    address: Underlay,
    own: &[Underlay],
    overlay: &[Prefix],
) -> Result<Underlay, Absurd> {
    let ip = address.0.ip().to_canonical();
    let canonical = Underlay((ip, address.0.port()).into());
    if address.0.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        return Err(Absurd::Nowhere);
    }
    let here = match ip {
        IpAddr::V4(v4) if v4.is_broadcast() => return Err(Absurd::Nowhere),
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if here || ip.is_loopback() {
        return Err(Absurd::Here);
    }
    if own.contains(&canonical) {
        return Err(Absurd::Ours);
    }
    if overlay.iter().any(|pool| pool.contains(ip)) {
        return Err(Absurd::Overlay);
    }
    Ok(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_addresses_are_never_tried() {
        let own = [Underlay("192.0.2.7:7117".parse().unwrap())];
        let overlay = ["fd12:3456:789a::/48".parse().unwrap()];
        let verdict = |text: &str| judge(Underlay(text.parse().unwrap()), &own, &overlay);
        for (text, why) in [
            ("0.0.0.0:7117", Absurd::Nowhere),
            ("192.0.2.9:0", Absurd::Nowhere),
            ("255.255.255.255:7117", Absurd::Nowhere),
            ("224.0.0.1:7117", Absurd::Nowhere),
            ("[ff02::1]:7117", Absurd::Nowhere),
            ("[::]:7117", Absurd::Nowhere),
            ("127.0.0.1:7117", Absurd::Here),
            ("[::1]:7117", Absurd::Here),
            ("[::ffff:127.0.0.1]:7117", Absurd::Here),
            ("169.254.1.1:7117", Absurd::Here),
            ("[fe80::1]:7117", Absurd::Here),
            ("192.0.2.7:7117", Absurd::Ours),
            ("[::ffff:192.0.2.7]:7117", Absurd::Ours),
            ("[fd12:3456:789a::5]:7117", Absurd::Overlay),
        ] {
            assert_eq!(verdict(text), Err(why), "{text}");
        }
        for text in ["192.0.2.7:7118", "10.0.0.1:7117", "[2001:db8::1]:1"] {
            assert!(verdict(text).is_ok(), "{text}");
        }
    }
}
