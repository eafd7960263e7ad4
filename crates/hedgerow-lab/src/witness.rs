//! The receiver's side of every probe: what the kernel let through to the device's programs.
//!
//! A table of the lab's own looks at packets after every other table has decided. It accepts all and
//! remembers who sent what. It is also the foreign table that Hedgerow must leave alone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use serde_json::Value;

use crate::plant::{self, Protocol};

/// What arrived at a device: source address, protocol, port.
pub(crate) type Seen = BTreeSet<(IpAddr, Protocol, u16)>;

const RULES: &str = "
table inet lab_witness {
    set tcp4 { type ipv4_addr . inet_service; size 65535; flags dynamic; }
    set tcp6 { type ipv6_addr . inet_service; size 65535; flags dynamic; }
    set udp4 { type ipv4_addr . inet_service; size 65535; flags dynamic; }
    set udp6 { type ipv6_addr . inet_service; size 65535; flags dynamic; }
    set ping4 { type ipv4_addr; size 65535; flags dynamic; }
    set ping6 { type ipv6_addr; size 65535; flags dynamic; }
    chain input {
        type filter hook input priority 500; policy accept;
        tcp flags & (syn | ack) == syn update @tcp4 { ip saddr . tcp dport }
        tcp flags & (syn | ack) == syn update @tcp6 { ip6 saddr . tcp dport }
        udp dport 514 update @udp4 { ip saddr . udp dport }
        udp dport 514 update @udp6 { ip6 saddr . udp dport }
        icmp type echo-request update @ping4 { ip saddr }
        icmpv6 type echo-request update @ping6 { ip6 saddr }
    }
}
";

/// Puts the witness into a namespace, in place of an earlier one.
///
/// # Errors
///
/// When `nft` refuses.
pub(crate) fn install(namespace: &str) -> Result<()> {
    let script = format!("table inet lab_witness\ndelete table inet lab_witness\n{RULES}");
    plant::in_namespace_with(namespace, &["nft", "-f", "-"], Some(&script))?;
    Ok(())
}

/// Forgets what was seen so far.
///
/// # Errors
///
/// When `nft` refuses.
pub(crate) fn forget(namespace: &str) -> Result<()> {
    let script: String = SETS
        .iter()
        .map(|(set, _)| format!("flush set inet lab_witness {set}\n"))
        .collect();
    plant::in_namespace_with(namespace, &["nft", "-f", "-"], Some(&script))?;
    Ok(())
}

const SETS: [(&str, Protocol); 6] = [
    ("tcp4", Protocol::Tcp),
    ("tcp6", Protocol::Tcp),
    ("udp4", Protocol::Udp),
    ("udp6", Protocol::Udp),
    ("ping4", Protocol::Ping),
    ("ping6", Protocol::Ping),
];

/// Returns what was seen since.
///
/// # Errors
///
/// When `nft` fails or says something unexpected.
pub(crate) fn seen(namespace: &str) -> Result<Seen> {
    let text = plant::in_namespace(
        namespace,
        &["nft", "--json", "list", "table", "inet", "lab_witness"],
    )?;
    let listed: Value = serde_json::from_str(&text)?;
    let mut seen = Seen::new();
    let objects = listed.get("nftables").and_then(Value::as_array);
    for set in objects.into_iter().flatten().filter_map(|o| o.get("set")) {
        let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
        let Some((_, protocol)) = SETS.iter().find(|(n, _)| *n == name) else {
            continue;
        };
        let elements = set.get("elem").and_then(Value::as_array);
        for element in elements.into_iter().flatten() {
            if let Some((address, port)) = entry(element) {
                seen.insert((address, *protocol, port));
            }
        }
    }
    Ok(seen)
}

/// Reads one element: an address, or `{"concat": [address, port]}`, perhaps wrapped in `elem.val`.
fn entry(element: &Value) -> Option<(IpAddr, u16)> {
    let value = element
        .get("elem")
        .and_then(|e| e.get("val"))
        .unwrap_or(element);
    if let Some(text) = value.as_str() {
        return Some((text.parse().ok()?, 0));
    }
    let parts = value.get("concat")?.as_array()?;
    let address = parts.first()?.as_str()?.parse().ok()?;
    let port = u16::try_from(parts.get(1)?.as_u64()?).ok()?;
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn elements_are_read_in_each_shape_that_nft_writes() {
        let a: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(entry(&json!("10.0.0.1")), Some((a, 0)));
        assert_eq!(entry(&json!({"concat": ["10.0.0.1", 22]})), Some((a, 22)));
        let wrapped = json!({"elem": {"val": {"concat": ["10.0.0.1", 22]}, "counter": {}}});
        assert_eq!(entry(&wrapped), Some((a, 22)));
        assert_eq!(entry(&json!({"concat": ["x", 22]})), None);
    }
}
