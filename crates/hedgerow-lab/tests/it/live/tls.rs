//! A device whose network lets no UDP pass: it reaches its peers through a relay's TCP 443, and leaves that when
//! UDP is back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};
use serde_json::Value;

use super::device::Device;
use super::plot::{POLICY, Plot};
use super::table::Group;

/// How long another way may take to be found.
const FIND: Duration = Duration::from_secs(60);
/// Where the device is whose UDP is dropped.
const LEFT: &str = "10.77.2.11";

fn enroll(plot: &Plot, device: &Device<'_>, site: &str, labels: &str) -> Result<()> {
    let words = ["--site", site, "--name", &device.name, "--labels", labels];
    let token = plot.token(&words)?;
    device.agent_with(&["enroll"], Some(&token))?.done()?;
    Ok(())
}

/// The router between the sites drops all UDP of one device, or lets it pass.
fn block(plot: &Plot, blocks: bool) -> Result<()> {
    let rule = match blocks {
        true => {
            format!("ip saddr {LEFT} meta l4proto udp drop; ip daddr {LEFT} meta l4proto udp drop;")
        }
        false => String::new(),
    };
    let rules = format!(
        "table inet strict {{}}\ndelete table inet strict\ntable inet strict {{ chain through {{ \
         type filter hook forward priority filter; {rule} }}; }};\n"
    );
    let router = plot.namespace("router");
    plot.run(&router, &["nft", "-f", "-"], Some(&rules))?
        .done()?;
    Ok(())
}

fn links(device: &Device<'_>, side: &str) -> Result<u64> {
    let status = device.status()?;
    status["mesh"]["links"][side].as_u64().context("no links")
}

fn wait_links(device: &Device<'_>, side: &str, count: u64) -> Result<()> {
    let what = format!("{} to have {count} links of {side}", device.name);
    clock::wait_for(&what, FIND, || {
        let status = device.status()?;
        let found = &status["mesh"]["links"][side];
        ensure!(*found == count, "{}", status["mesh"]);
        Ok(Some(()))
    })
}

/// Waits until datagrams to a peer are carried by something.
fn wait_carrier(device: &Device<'_>, peer: &str, carrier: &str) -> Result<Value> {
    let what = format!("{} to reach {peer} over {carrier}", device.name);
    clock::wait_for(&what, FIND, || {
        let found = device.peer(peer)?.context("no such peer")?;
        let fits = found["session"] == true && found["carrier"] == carrier;
        Ok(fits.then_some(found))
    })
}

/// Waits until a program listens where a relay takes links.
fn wait_taken(relay: &Device<'_>) -> Result<()> {
    clock::wait_for("the port to be taken", FIND, || {
        let open = relay.run(&["ss", "--no-header", "-ltn"])?.done()?;
        Ok(open.contains(":443 ").then_some(()))
    })
}

/// Waits until `check` finds this of the port where a relay takes links, and what it should be told with it.
fn said_of_port(relay: &Device<'_>, severity: &str) -> Result<()> {
    clock::wait_for("word of the relay's port", FIND, || {
        let said = relay.agent(&["--json", "check"])?.out;
        let said: Value = serde_json::from_str(&said)?;
        let findings = said["findings"].as_array().context("no findings")?;
        let found = findings.iter().find(|f| f["check"] == "relay_port");
        let found = found.context("nothing is said")?;
        ensure!(found["severity"] == severity, "{found}");
        let is_bad = severity == "error";
        let (text, words) = (found.to_string(), ["443", "in use", "ss -ltnp"]);
        ensure!(!is_bad || words.iter().all(|w| text.contains(w)), "{text}");
        let status = relay.agent(&["status"])?.done()?;
        ensure!(
            status.contains("takes no links over TLS") == is_bad,
            "{status}"
        );
        Ok(Some(()))
    })
}

#[test]
fn a_device_without_udp_reaches_its_peers_by_a_relays_tls_and_leaves_it_when_udp_is_back()
-> Result<()> {
    let group = Group("hgd-links");
    let plot = Plot::open("tls")?;
    block(&plot, true)?;
    let relay = plot.device("relay", "s1", 51)?;
    enroll(&plot, &relay, "s1", "role=other,relay=yes")?;
    // Another program was first; until it goes, the agent says so.
    let taker = relay.spawn("taker", &["socat", "TCP6-LISTEN:443,ipv6only=0", "STDOUT"])?;
    wait_taken(&relay)?;
    relay.start()?;
    said_of_port(&relay, "error")?;
    process::kill(taker);
    process::wait_end(taker, FIND)?;
    said_of_port(&relay, "ok")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    let left = plot.device("left", "s2", 11)?;
    enroll(&plot, &left, "s2", "role=left")?;
    left.start_in(&group.words())?;
    // The kernels refuse whatever is not the lifeline's: links are.
    plot.apply(&POLICY.replace("mode: enforce }", "mode: enforce, underlay: enforce }"))?;
    plot.settled(&["left", "right", "relay"])?;
    right.serve()?;
    let target = right.overlay(6)?;

    left.wait_reaches(&target, 9000)?;
    let peer = wait_carrier(&left, "right", "tls")?;
    ensure!(
        peer["path"] == "relayed"
            && peer["relay"] == "relay.s1"
            && peer["address"] == "10.77.1.51:443",
        "{peer}"
    );
    let said = left.agent(&["paths", "right.s1"])?.done()?;
    ensure!(
        said.contains("relayed by relay.s1 over tls") && said.contains("a firewall blocks"),
        "{said}"
    );
    ensure!((links(&left, "ours")?, links(&relay, "theirs")?) == (1, 1));
    let metrics = relay.agent(&["metrics"])?.done()?;
    ensure!(
        metrics.contains("hedgerow_links{side=\"theirs\"} 1"),
        "{metrics}"
    );

    let talk = left.talk(&target)?;
    block(&plot, false)?;
    wait_carrier(&left, "right", "udp")?;
    talk.moves()?;
    wait_links(&left, "ours", 0)?;
    wait_links(&relay, "theirs", 0)?;
    talk.moves()?;

    block(&plot, true)?;
    wait_carrier(&left, "right", "tls")?;
    talk.moves()?;

    // A revoked device is out, whatever carries it.
    plot.hedgerow(&["device", "revoke", "left.s2", "--wait", "30s"])?
        .done()?;
    talk.stops()?;
    wait_links(&relay, "theirs", 0)?;
    clock::wait_for("a link of a revoked device to be refused", FIND, || {
        let status = relay.status()?;
        let refused = status["mesh"]["links"]["refused"]["certificate"].as_u64();
        Ok(refused.filter(|n| *n > 0))
    })?;
    ensure!(links(&relay, "theirs")? == 0);
    left.stop()
}
