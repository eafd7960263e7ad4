//! The mesh as people see it from a device: peers, paths, round trips, throughput, numbers.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use serde_json::Value;

use super::device::Device;
use super::plot::{POLICY, Plot};

fn json(device: &Device<'_>, words: &[&str]) -> Result<Value> {
    let text = device.agent(&[&["--json"], words].concat())?.done()?;
    serde_json::from_str(&text).with_context(|| format!("{words:?} said {text}"))
}

#[test]
fn people_see_peers_paths_round_trips_and_throughput() -> Result<()> {
    let plot = Plot::open("seen")?;
    let left = plot.device("left", "s1", 11)?;
    let numbers = left.directory.join("agent.prom");
    left.configure(&format!(
        "\n[metrics]\ntextfile = \"{}\"\n",
        numbers.display()
    ))?;
    left.enroll("s1", "left")?;
    let right = plot.device("right", "s2", 12)?;
    right.configure("\n[mesh]\nbench = \"allow\"\n")?;
    right.enroll("s2", "right")?;
    let other = plot.enrolled("other", "s1", 13, "other")?;
    // Nothing but ping may pass, and not even that is needed.
    plot.apply(&POLICY.replace("echo, web, ping", "web"))?;
    plot.settled(&["left", "right", "other"])?;

    // Nobody has sent a packet: asking makes the peer.
    let said = left.agent(&["peers"])?.done()?;
    ensure!(said.contains("no peers"), "{said}");
    let pinged = json(&left, &["ping", "right.s2", "-c", "5", "-i", "0.05"])?;
    ensure!(pinged["sent"] == 5 && pinged["answered"] == 5, "{pinged}");
    let median = pinged["median_seconds"].as_f64().context("no median")?;
    ensure!(median > 0.0 && median < 1.0, "{pinged}");
    let said = left.agent(&["ping", "right.s2", "-c", "1"])?.done()?;
    ensure!(
        said.contains("right.s2 answers in") && said.contains("direct 10.77.2.12:7117"),
        "{said}"
    );

    let peers = json(&left, &["peers"])?;
    let peer = &peers["peers"][0];
    ensure!(
        peer["name"] == "right" && peer["session"] == true,
        "{peers}"
    );
    ensure!(
        peer["path"] == "direct" && peer["address"] == "10.77.2.12:7117",
        "{peers}"
    );
    ensure!(peer["labels"]["role"] == "right", "{peers}");
    let said = left.agent(&["paths", "right.s2"])?.done()?;
    ensure!(
        said.contains("* 10.77.2.12:7117") && said.contains("Straight to the peer"),
        "{said}"
    );
    let said = left.agent(&["trace", "right.s2"])?.done()?;
    ensure!(
        said.contains("this device") && said.contains("10.77.2.12:7117"),
        "{said}"
    );

    let measured = json(&left, &["bench", "right.s2", "--seconds", "1"])?;
    for way in ["there", "back"] {
        let bits = measured[way]["bits_per_second"].as_f64().unwrap_or(0.0);
        ensure!(bits > 1e6, "{measured}");
    }
    refused(&left, &right, &other)?;

    let text = left.agent(&["metrics"])?.done()?;
    for line in [
        "hedgerow_peers{class=\"right\",path=\"direct\"} 1",
        "hedgerow_uplink_connected 1",
        "hedgerow_tunnel_dropped_total{reason=\"forged\"} 0",
        "hedgerow_mesh_refused_total{reason=\"replayed\"} 0",
    ] {
        ensure!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    clock::wait_for("the file of numbers", Duration::from_secs(30), || {
        let text = fs::read_to_string(&numbers)?;
        let is_whole = text.contains("hedgerow_resolver_questions_total");
        Ok(is_whole.then_some(()))
    })
}

fn refused(left: &Device<'_>, right: &Device<'_>, other: &Device<'_>) -> Result<()> {
    let said = right
        .agent(&["bench", "left.s1", "--seconds", "1"])?
        .refused(1)?;
    ensure!(said.contains("mesh.bench"), "{said}");
    let said = left.agent(&["ping", "left", "-c", "1"])?.refused(1)?;
    ensure!(said.contains("is this device"), "{said}");
    let said = left.agent(&["ping", "nobody.s2", "-c", "1"])?.refused(1)?;
    ensure!(said.contains("`nobody.s2`"), "{said}");
    // Policy closes the pair: it has no name here.
    let said = other.agent(&["ping", "right.s2", "-c", "1"])?.refused(1)?;
    ensure!(said.contains("no device called"), "{said}");
    right.stop()?;
    let ended = left.agent(&["ping", "right.s2", "-c", "1"])?;
    ensure!(ended.code == Some(4), "{ended:?}");
    ensure!(
        ended.out.contains("no answer") && ended.out.contains("1 sent, 0 answered"),
        "{ended:?}"
    );
    Ok(())
}
