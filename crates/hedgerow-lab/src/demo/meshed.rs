//! Act 10: two cells behind NATs of their own, and the ways between them fail one after the other.
//!
//! ```text
//!   cell-1 ── nat-1 ──┐                 ┌── nat-2 ── cell-2      both cells: 192.168.1.10
//!                     ├── hgd-router ───┤
//!   relay-1 ──────────┘                 └────────── relay-2
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::stage::Stage;
use crate::agent::Agent;
use crate::lab::{Lab, PREFIX};
use crate::plant::{self, in_namespace, in_namespace_with};
use crate::screen::Act;
use crate::{clock, process};

/// How long a way may take to be found.
const FIND: Duration = Duration::from_secs(20);
/// How long the transfer lasts, in seconds: longer than all that is done to it.
const TRANSFER_SECS: &str = "20";
/// Milliseconds of one interval in which the transfer's bytes are counted.
const INTERVAL_MS: f64 = 100.0;
/// Milliseconds without a byte that still count as "it goes on".
const GAP_MS_MAX: f64 = 2000.0;
const CELL_ADDRESS: &str = "192.168.1.10";
const GATEWAY_ADDRESS: &str = "192.168.1.1";

/// A device of this act.
#[derive(Debug, Clone, Copy)]
struct Member {
    name: &'static str,
    site: &'static str,
    labels: [(&'static str, &'static str); 2],
}

const MEMBERS: [Member; 4] = [
    member("relay-1", "s1", [("role", "relay"), ("relay", "yes")]),
    member("relay-2", "s2", [("role", "relay"), ("relay", "yes")]),
    member("cell-1", "s1", [("role", "cell"), ("cell", "one")]),
    member("cell-2", "s2", [("role", "cell"), ("cell", "two")]),
];

const fn member(
    name: &'static str,
    site: &'static str,
    labels: [(&'static str, &'static str); 2],
) -> Member {
    Member { name, site, labels }
}

impl Member {
    fn namespace(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn full_name(&self) -> String {
        format!("{}.{}", self.name, self.site)
    }
}

/// Where a NAT stands on the plant's network.
const NATS: [(&str, Ipv4Addr, &str); 2] = [
    ("nat-1", Ipv4Addr::new(10, 77, 1, 61), "cell-1"),
    ("nat-2", Ipv4Addr::new(10, 77, 2, 61), "cell-2"),
];
const RELAYS: [(&str, Ipv4Addr); 2] = [
    ("relay-1", Ipv4Addr::new(10, 77, 1, 51)),
    ("relay-2", Ipv4Addr::new(10, 77, 2, 51)),
];

/// Masquerades, and lets in only what answers, for itself too: a box that takes in what nobody asked for
/// remembers it, and then gives the cell's own packets another port.
const NAT_RULES: &str = "table inet nat_box {
    chain out {
        type nat hook postrouting priority srcnat;
        oifname eth0 masquerade
    }
    chain in {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname != eth0 accept
    }
    chain through {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname cell accept
    }
}
";

/// The cells and what is between them.
struct Cells<'s, 'l> {
    stage: &'s Stage<'l>,
    agents: Vec<Agent<'l>>,
}

/// Plays act 10.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn play(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage.screen.act(
        10,
        "Two cells behind NATs: the way between them fails twice, a transfer goes on",
    );
    wire(stage.lab)?;
    let policy = with_cells(&stage.policy);
    stage.central.apply(&policy)?;
    stage.policy = policy;
    let cells = Cells::enroll(stage)?;
    cells.transfer(&mut act)?;
    cells.revoke_without_central(&mut act)?;
    stage.central.revive()?;
    Ok(act.end())
}

fn wire(lab: &Lab) -> Result<()> {
    for (name, address, cell) in NATS {
        let (nat, cell) = (format!("{PREFIX}{name}"), format!("{PREFIX}{cell}"));
        lab.namespace(&nat)?;
        plant::plug(&nat, address)?;
        plant::link_up(&nat)?;
        in_namespace(&nat, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        lab.namespace(&cell)?;
        process::run(&[
            "ip", "link", "add", "cell", "netns", &nat, "type", "veth", "peer", "name", "eth0",
            "netns", &cell,
        ])?;
        for (namespace, link, address) in [
            (&nat, "cell", GATEWAY_ADDRESS),
            (&cell, "eth0", CELL_ADDRESS),
        ] {
            let cidr = format!("{address}/24");
            process::run(&["ip", "-n", namespace, "address", "add", &cidr, "dev", link])?;
            process::run(&["ip", "-n", namespace, "link", "set", link, "up"])?;
        }
        process::run(&[
            "ip",
            "-n",
            &cell,
            "route",
            "add",
            "default",
            "via",
            GATEWAY_ADDRESS,
        ])?;
        in_namespace_with(&nat, &["nft", "-f", "-"], Some(NAT_RULES))?;
    }
    for (name, address) in RELAYS {
        let relay = format!("{PREFIX}{name}");
        lab.namespace(&relay)?;
        plant::plug(&relay, address)?;
        plant::link_up(&relay)?;
    }
    Ok(())
}

/// Adds the cells to a policy of the plant.
fn with_cells(policy: &str) -> String {
    policy
        .replace("ops, contractor ] }", "ops, contractor, cell, relay ] }")
        .replace(
            "services:\n",
            "services:\n  measure: [ tcp/5201 ]\n",
        )
        .replace(
            "rules:\n",
            "rules:\n  - { id: r-cells, from: \"role=cell\", to: \"role=cell\", service: [ measure, ping ] }\n",
        )
}

impl<'s, 'l> Cells<'s, 'l> {
    fn enroll(stage: &'s Stage<'l>) -> Result<Self> {
        let mut agents = Vec::new();
        for member in MEMBERS {
            let namespace = member.namespace();
            let hosts = format!("/etc/netns/{namespace}/hosts");
            std::fs::write(&hosts, "127.0.0.1 localhost\n")?;
            let agent = Agent::at(stage.lab, &namespace, member.name, &hosts)?;
            let labels: std::collections::BTreeMap<_, _> = member.labels.into_iter().collect();
            let made = stage.central.post(
                "tokens",
                &json!({
                    "site": member.site, "name": member.name, "labels": labels, "ttl_secs": 3600,
                }),
            )?;
            let token = made.get("token").and_then(Value::as_str);
            agent.enroll(token.context("no token")?)?;
            agent.start()?;
            agents.push(agent);
        }
        Ok(Self { stage, agents })
    }

    fn agent(&self, name: &str) -> Result<&Agent<'l>> {
        let place = MEMBERS.iter().position(|m| m.name == name);
        place
            .and_then(|p| self.agents.get(p))
            .with_context(|| format!("no agent {name}"))
    }

    /// Returns where cell-1 sends what is for cell-2.
    fn way(&self) -> Result<Option<String>> {
        let status = self.agent("cell-1")?.status()?;
        let peers = status.get("mesh").and_then(|m| m.get("peers")?.as_array());
        let of_cell = |p: &&Value| p.get("name").and_then(Value::as_str) == Some("cell-2");
        let peer = peers.and_then(|p| p.iter().find(of_cell));
        let text = |key: &str| peer.and_then(|p| p.get(key)?.as_str());
        // Without a session there is a place, and no way yet.
        let (Some(path), Some(address)) = (text("path"), text("address")) else {
            return Ok(None);
        };
        Ok(Some(format!("{path} at {address}")))
    }

    /// Waits for a way that fits; returns it and after how many milliseconds it was there.
    fn wait_for_way(&self, what: &str, fits: impl Fn(&str) -> bool) -> Result<(String, f64)> {
        let start = clock::now();
        let way = clock::wait_for(what, FIND, || Ok(self.way()?.filter(|w| fits(w))))?;
        Ok((way, clock::ms_since(start)))
    }

    fn address(&self, member: &Member) -> Result<String> {
        let record = self
            .stage
            .central
            .get(&format!("devices/{}", member.full_name()))?;
        let v6 = record.get("addresses").and_then(|a| a.get("v6")?.as_str());
        Ok(v6.context("no address")?.to_owned())
    }

    fn transfer(&self, act: &mut Act) -> Result<()> {
        let [_, _, from, to] = MEMBERS;
        let target = self.address(&to)?;
        let server = ["iperf3", "-s", "-1"];
        self.stage
            .lab
            .start(&to.namespace(), "cells-server", &server)?;
        // The cells' agents may still be looking for a relay.
        clock::wait_for("cell-1 to reach cell-2", FIND, || {
            let ping = ["ping", "-6", "-c", "1", "-W", "2", &target];
            in_namespace(&from.namespace(), &ping).map(Some)
        })?;
        let client = [
            "iperf3",
            "-c",
            &target,
            "-t",
            TRANSFER_SECS,
            "-b",
            "20M",
            "-i",
            "0.1",
            "-J",
        ];
        let log = self.stage.lab.path("logs/cells-client.log")?;
        drop(std::fs::remove_file(&log));
        let client = self
            .stage
            .lab
            .start(&from.namespace(), "cells-client", &client)?;
        let is_direct = |way: &str| way.starts_with("direct");
        let (way, ms) = self.wait_for_way("a way straight through both NATs", is_direct)?;
        act.succeeds(
            "cells behind two NATs, same private addresses",
            Ok(format!("{way} after {ms} ms")),
        );
        self.cut_straight_way()?;
        let (way, ms) = self.wait_for_way("a way through a relay", |w| w.starts_with("relayed"))?;
        act.succeeds("straight way cut", Ok(format!("{way} after {ms} ms")));
        let used = RELAYS.iter().find(|(_, a)| way.contains(&format!("{a}:")));
        let (used, address) = *used.context("no relay of ours")?;
        self.agent(used)?.kill()?;
        let gone = format!("{address}:");
        let other = |way: &str| way.starts_with("relayed") && !way.contains(&gone);
        let (way, ms) = self.wait_for_way("a way through the other relay", other)?;
        act.succeeds(
            &format!("{used} killed"),
            Ok(format!("{way} after {ms} ms")),
        );
        process::wait_end(client, Duration::from_secs(90))?;
        let gap = longest_gap(&std::fs::read_to_string(&log)?)?;
        act.took(
            "the transfer meanwhile: longest time without a byte",
            gap,
            GAP_MS_MAX,
        );
        act.figure("failover_gap_ms", json!(gap));
        self.agent(used)?.revive()
    }

    /// With central dead, a list signed on its machine and carried to one device puts another one out.
    fn revoke_without_central(&self, act: &mut Act) -> Result<()> {
        let [_, relay, from, to] = MEMBERS;
        let target = self.address(&to)?;
        self.stage.central.kill()?;
        let reaches = || {
            let ping = ["ping", "-6", "-c", "1", "-W", "1", &target];
            in_namespace(&from.namespace(), &ping)
        };
        act.succeeds(
            "central down, cell-1 to cell-2",
            reaches().map(|_| "it reaches".to_owned()),
        );
        let list = self.stage.lab.path("cells-revocations.cbor")?;
        let list = list.to_string_lossy();
        self.stage
            .central
            .revoke_offline(&from.full_name(), &list)?;
        let start = clock::now();
        let import = ["revocations", "import", &*list];
        self.agent(relay.name)?.order(&import, None)?;
        clock::wait_for("the revoked cell to be out", FIND, || {
            Ok(reaches().is_err().then_some(()))
        })?;
        let ms = clock::ms_since(start);
        act.succeeds(
            "cell-1 revoked by a list carried to relay-2",
            Ok(format!("cell-2 has shut it out after {ms} ms")),
        );
        act.figure("revoked_without_central_ms", json!(ms));
        Ok(())
    }

    /// The plant's router carries nothing between the two NATs any more.
    fn cut_straight_way(&self) -> Result<()> {
        let [(_, one, _), (_, two, _)] = NATS;
        let rules = format!(
            "table inet cut {{\nchain through {{\ntype filter hook forward priority filter;\n\
             ip saddr {{ {one}, {two} }} ip daddr {{ {one}, {two} }} drop;\n}}\n}}\n"
        );
        in_namespace_with(plant::ROUTER, &["nft", "-f", "-"], Some(&rules))?;
        Ok(())
    }
}

/// Returns the longest run of intervals without a byte, in milliseconds.
fn longest_gap(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).context("iperf3 did not finish")?;
    if let Some(error) = report.get("error") {
        anyhow::bail!("the transfer broke: {error}");
    }
    let intervals = report.get("intervals").and_then(Value::as_array);
    let (mut longest, mut run) = (0u32, 0u32);
    for interval in intervals.context("no intervals")? {
        let bytes = interval.get("sum").and_then(|s| s.get("bytes")?.as_u64());
        run = match bytes {
            Some(0) => run + 1,
            _ => 0,
        };
        longest = longest.max(run);
    }
    Ok(f64::from(longest) * INTERVAL_MS)
}
