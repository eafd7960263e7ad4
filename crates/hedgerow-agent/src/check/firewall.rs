//! Other firewalls on this machine, and rulesets saved on disk.

use hedgerow_linux::disk;

use super::Finding;

/// Where distributions keep a ruleset that is loaded at boot.
const SAVED: [&str; 3] = [
    "/etc/nftables.conf",
    "/etc/sysconfig/nftables.conf",
    "/var/lib/nftables/rules-save",
];
const SAVED_BYTES_MAX: usize = 4 << 20;

pub(super) fn check() -> Vec<Finding> {
    let mut findings: Vec<Finding> = SAVED.iter().filter_map(|path| saved(path)).collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            "saved_ruleset",
            "no saved ruleset holds our table",
        ));
    }
    findings
}

/// A ruleset saved while our table was there comes back at boot without its owner; one saved while
/// the table was orphaned cannot even be read back by `nft` 1.0.6.
fn saved(path: &str) -> Option<Finding> {
    const NAME: &str = "saved_ruleset";
    let bytes = disk::read_bounded(std::path::Path::new(path), SAVED_BYTES_MAX).ok()??;
    let text = String::from_utf8_lossy(&bytes);
    if !text.contains("table inet hedgerow") {
        return None;
    }
    let remedy =
        format!("take `table inet hedgerow {{ … }}` out of {path}; the agent loads its own");
    Some(if text.contains("orphan") {
        Finding::error(
            NAME,
            format!("{path} holds our table with the flag `orphan`, which `nft` cannot read back"),
            remedy,
        )
    } else {
        Finding::warning(NAME, format!("{path} holds a copy of our table"), remedy)
    })
}
