//! Other firewalls on this machine, and rulesets saved on disk.

use std::collections::BTreeMap;
use std::path::Path;

use hedgerow_linux::disk;
use hedgerow_linux::nft::foreign::{Affected, Family, Firewalls, Owner, Refusal, Way};

use super::Finding;
use crate::config::Config;

/// Where distributions keep a ruleset that is loaded at boot.
const SAVED: [&str; 3] = [
    "/etc/nftables.conf",
    "/etc/sysconfig/nftables.conf",
    "/var/lib/nftables/rules-save",
];
const SAVED_BYTES_MAX: usize = 4 << 20;

/// Lists the tables of `iptables-legacy`, which nftables does not show.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
const FOREIGN: &str = "foreign_firewall";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings = foreign(config);
    findings.extend(legacy());
    findings.extend(saved_rulesets());
    findings
}

fn saved_rulesets() -> Vec<Finding> {
    let mut findings: Vec<Finding> = SAVED.iter().filter_map(|path| saved(path)).collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            "saved_ruleset",
            "no saved ruleset holds our table",
        ));
    }
    findings
}

/// What other firewalls drop, our table cannot accept.
fn foreign(config: &Config) -> Vec<Finding> {
    let firewalls = match Firewalls::read() {
        Ok(firewalls) => firewalls,
        Err(error) => {
            return vec![Finding::warning(
                FOREIGN,
                format!("other firewalls could not be looked at: {error}"),
                "run this as root",
            )];
        }
    };
    let refusals = firewalls.refusals(&config.interface, config.mesh_port);
    let mut findings = judge(&refusals, &config.interface, config.mesh_port);
    if firewalls.is_cut() {
        findings.push(Finding::warning(
            FOREIGN,
            "there are more rules of other firewalls than were read: what is said of them may be \
             incomplete",
            "see `nft list ruleset`",
        ));
    }
    findings
}

/// Turns refusals into findings: one for each firewall, way and thing refused.
fn judge(refusals: &[Refusal], tunnel: &str, port: u16) -> Vec<Finding> {
    let mut grouped: BTreeMap<(Owner, Affected, Way), Vec<&Refusal>> = BTreeMap::new();
    for refusal in refusals {
        let key = (refusal.owner, refusal.affected, refusal.way);
        grouped.entry(key).or_default().push(refusal);
    }
    let mut findings: Vec<Finding> = grouped
        .iter()
        .map(|((owner, affected, way), list)| {
            let places: Vec<String> = list
                .iter()
                .map(|r| format!("{} {} {}", r.family.as_str(), r.table, r.chain))
                .collect();
            let places = places.join(", ");
            let who = name(*owner);
            match affected {
                Affected::Forwarded => Finding::ok(
                    FOREIGN,
                    format!("{who} drops what this machine would pass on ({places}): harmless, a device passes nothing on"),
                ),
                Affected::MeshPort => Finding::warning(
                    FOREIGN,
                    match way {
                        Way::Output => format!("{who} drops what it does not know on output ({places}); the mesh port udp/{port} may not send"),
                        Way::Input | Way::Forward => format!("{who} drops what it does not know on input ({places}); the mesh port udp/{port} is not opened"),
                    },
                    remedy(list, tunnel, port),
                ),
                Affected::Tunnel => Finding::warning(
                    FOREIGN,
                    match way {
                        Way::Output => format!("{who} drops connections into the mesh ({places}): {tunnel} is not let through"),
                        Way::Input | Way::Forward => format!("{who} drops connections from the mesh ({places}), also those that the policy allows: {tunnel} is not let through"),
                    },
                    remedy(list, tunnel, port),
                ),
            }
        })
        .collect();
    if findings.iter().all(|f| f.severity == super::Severity::Ok) {
        let message = format!("no other firewall is in the way of udp/{port} or {tunnel}");
        findings.push(Finding::ok(FOREIGN, message));
    }
    findings
}

fn name(owner: Owner) -> &'static str {
    match owner {
        Owner::Ufw => "ufw",
        Owner::Docker => "docker",
        Owner::Firewalld => "firewalld",
        Owner::Iptables => "iptables",
        Owner::Other => "a firewall",
    }
}

/// Says how to let it through, in the words of the tool that made the rules. What the tunnel
/// brings is judged by our own table, so letting its interface through opens nothing.
fn remedy(list: &[&Refusal], tunnel: &str, port: u16) -> String {
    let Some(first) = list.first() else {
        return String::new();
    };
    let is_port = first.affected == Affected::MeshPort;
    let sends = first.way == Way::Output;
    match (first.owner, is_port, sends) {
        (Owner::Ufw, true, false) => format!("`ufw allow {port}/udp`"),
        (Owner::Ufw, true, true) => format!("`ufw allow out proto udp from any port {port}`"),
        (Owner::Ufw, false, false) => format!("`ufw allow in on {tunnel}`"),
        (Owner::Ufw, false, true) => format!("`ufw allow out on {tunnel}`"),
        (Owner::Firewalld, true, false) => {
            format!(
                "`firewall-cmd --permanent --add-port={port}/udp`, then `firewall-cmd --reload`"
            )
        }
        (Owner::Firewalld, false, false) => format!(
            "`firewall-cmd --permanent --zone=trusted --add-interface={tunnel}`, then `firewall-cmd --reload`"
        ),
        (Owner::Iptables | Owner::Docker, ..) => {
            let (chain, interface) = if sends {
                ("OUTPUT", "-o")
            } else {
                ("INPUT", "-i")
            };
            let side = if sends { "--sport" } else { "--dport" };
            let rule = if is_port {
                format!("-p udp {side} {port}")
            } else {
                format!("{interface} {tunnel}")
            };
            let commands: Vec<String> = list
                .iter()
                .map(|r| match r.family {
                    Family::Ip6 => format!("`ip6tables -I {chain} {rule} -j ACCEPT`"),
                    Family::Ip | Family::Inet => format!("`iptables -I {chain} {rule} -j ACCEPT`"),
                })
                .collect();
            format!("{}, and where these rules are saved", commands.join(", "))
        }
        (Owner::Firewalld | Owner::Other, ..) => {
            let rule = match (is_port, sends) {
                (true, false) => format!("udp dport {port} accept"),
                (true, true) => format!("udp sport {port} accept"),
                (false, false) => format!("iifname \"{tunnel}\" accept"),
                (false, true) => format!("oifname \"{tunnel}\" accept"),
            };
            let commands: Vec<String> = list
                .iter()
                .map(|r| {
                    let family = r.family.as_str();
                    format!("`nft insert rule {family} {} {} {rule}`", r.table, r.chain)
                })
                .collect();
            format!("{}, and in the file it comes from", commands.join(", "))
        }
    }
}

fn legacy() -> Option<Finding> {
    let has = |path: &&str| {
        let text = disk::read_bounded(Path::new(path), SAVED_BYTES_MAX).ok()??;
        Some(!text.is_empty()).filter(|has| *has)
    };
    LEGACY.iter().find_map(has)?;
    Some(Finding::warning(
        FOREIGN,
        "there are rules of iptables-legacy, which this check cannot read",
        "see `iptables-legacy-save`; let the mesh port and the tunnel's interface through there",
    ))
}

/// A ruleset saved while our table was there comes back at boot without its owner; one saved while
/// the table was orphaned cannot even be read back by `nft` 1.0.6.
fn saved(path: &str) -> Option<Finding> {
    const NAME: &str = "saved_ruleset";
    let bytes = disk::read_bounded(Path::new(path), SAVED_BYTES_MAX).ok()??;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(owner: Owner, affected: Affected, way: Way, place: (Family, &str, &str)) -> Refusal {
        Refusal {
            owner,
            affected,
            way,
            family: place.0,
            table: place.1.to_owned(),
            chain: place.2.to_owned(),
        }
    }

    #[test]
    fn each_firewall_gets_the_remedy_of_its_own_tool() {
        let filter = (Family::Ip, "filter", "INPUT");
        let zones = (Family::Inet, "firewalld", "filter_INPUT");
        let (port, tunnel) = (Affected::MeshPort, Affected::Tunnel);
        let list = [
            refusal(Owner::Ufw, port, Way::Input, filter),
            refusal(
                Owner::Ufw,
                port,
                Way::Input,
                (Family::Ip6, "filter", "INPUT"),
            ),
            refusal(Owner::Ufw, tunnel, Way::Input, filter),
            refusal(
                Owner::Docker,
                Affected::Forwarded,
                Way::Forward,
                (Family::Ip, "filter", "FORWARD"),
            ),
            refusal(Owner::Firewalld, port, Way::Input, zones),
            refusal(Owner::Firewalld, tunnel, Way::Input, zones),
            refusal(
                Owner::Iptables,
                port,
                Way::Output,
                (Family::Ip6, "filter", "OUTPUT"),
            ),
            refusal(
                Owner::Other,
                tunnel,
                Way::Input,
                (Family::Inet, "mine", "in"),
            ),
        ];
        let text = super::super::text(&judge(&list, "hedgerow0", 7117));
        let lines = [
            r#"warning foreign_firewall: ufw drops what it does not know on input (ip filter INPUT, ip6 filter INPUT); the mesh port udp/7117 is not opened; `ufw allow 7117/udp`"#,
            r#"warning foreign_firewall: ufw drops connections from the mesh (ip filter INPUT), also those that the policy allows: hedgerow0 is not let through; `ufw allow in on hedgerow0`"#,
            r#"warning foreign_firewall: firewalld drops what it does not know on input (inet firewalld filter_INPUT); the mesh port udp/7117 is not opened; `firewall-cmd --permanent --add-port=7117/udp`, then `firewall-cmd --reload`"#,
            r#"warning foreign_firewall: firewalld drops connections from the mesh (inet firewalld filter_INPUT), also those that the policy allows: hedgerow0 is not let through; `firewall-cmd --permanent --zone=trusted --add-interface=hedgerow0`, then `firewall-cmd --reload`"#,
            r#"warning foreign_firewall: iptables drops what it does not know on output (ip6 filter OUTPUT); the mesh port udp/7117 may not send; `ip6tables -I OUTPUT -p udp --sport 7117 -j ACCEPT`, and where these rules are saved"#,
            r#"warning foreign_firewall: a firewall drops connections from the mesh (inet mine in), also those that the policy allows: hedgerow0 is not let through; `nft insert rule inet mine in iifname "hedgerow0" accept`, and in the file it comes from"#,
            r#"ok      foreign_firewall: docker drops what this machine would pass on (ip filter FORWARD): harmless, a device passes nothing on"#,
        ];
        for (found, expected) in text.lines().zip(lines) {
            assert_eq!(found, expected);
        }
        assert_eq!(text.lines().count(), lines.len());
    }

    #[test]
    fn a_forward_policy_alone_is_no_trouble() {
        let forward = (Family::Ip, "filter", "FORWARD");
        let docker = refusal(Owner::Docker, Affected::Forwarded, Way::Forward, forward);
        for list in [&[docker][..], &[]] {
            let findings = judge(list, "hedgerow0", 7117);
            assert!(
                findings
                    .iter()
                    .all(|f| f.severity == super::super::Severity::Ok)
            );
            let last = &findings.last().unwrap().message;
            assert_eq!(
                last,
                "no other firewall is in the way of udp/7117 or hedgerow0"
            );
        }
    }
}
