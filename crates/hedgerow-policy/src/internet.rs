//! What `internet` means: every underlay address outside ranges that are somebody's own.

use hedgerow_model::address::Prefix;

/// Ranges outside the internet: private, shared, link-local, loopback, multicast, broadcast.
const LOCAL: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// Returns the ranges outside the internet; overlay pools come on top.
pub(crate) fn local_prefixes() -> impl Iterator<Item = Prefix> {
    LOCAL.iter().filter_map(|text| text.parse().ok())
}

/// Returns the whole address space, as the two prefixes that hold it.
pub(crate) fn whole() -> impl Iterator<Item = Prefix> {
    ["0.0.0.0/0", "::/0"]
        .iter()
        .filter_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_parses() {
        assert_eq!(local_prefixes().count(), LOCAL.len());
        assert_eq!(whole().count(), 2);
    }
}
