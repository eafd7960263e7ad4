//! Devices that are thrown out, leave, or are switched off.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::device::Device;
use super::plot::{POLICY, Plot};

#[test]
fn a_revoked_device_loses_its_sessions_at_every_peer_though_the_controller_dies() -> Result<()> {
    let plot = Plot::open("revoked")?;
    let bad = plot.enrolled("bad", "s1", 11, "left")?;
    let near = plot.enrolled("near", "s1", 12, "right")?;
    let far = plot.enrolled("far", "s2", 11, "right")?;
    let good = plot.enrolled("good", "s2", 12, "left")?;
    near.serve()?;
    far.serve()?;
    plot.apply(POLICY)?;
    let (near6, far4) = (near.overlay(6)?, far.overlay(4)?);
    bad.wait_reaches(&near6, 9000)?;
    bad.wait_reaches(&far4, 9000)?;
    good.wait_reaches(&near6, 9000)?;
    let (talk, download) = (bad.talk(&near6)?, bad.download(&far4)?);
    plot.hedgerow(&["device", "revoke", "bad.s1", "--wait", "30s"])?
        .done()?;
    plot.kill_central()?;
    talk.stops()?;
    download.stops()?;
    for device in [&near, &far] {
        let peer = device.peer("bad")?;
        ensure!(peer.is_none(), "{} still knows it: {peer:?}", device.name);
        device.kill()?;
        device.wait_ready()?;
    }
    ensure!(
        !bad.reaches(&near6, 9000)?,
        "it is back after the peer's restart"
    );
    ensure!(
        !bad.reaches(&far4, 9000)?,
        "it is back after the peer's restart"
    );
    good.wait_reaches(&near6, 9000)
        .context("the others go on")?;
    plot.revive_central()?;
    plot.settled(&["near", "far", "good"])?;
    ensure!(
        !bad.reaches(&near6, 9000)?,
        "the controller lets it in again"
    );
    plot.event("device_revoked", |e| e["details"]["name"] == "bad")?;
    Ok(())
}

#[test]
fn who_is_removed_leaves_or_is_switched_off_gets_the_old_network_back() -> Result<()> {
    let plot = Plot::open("ended")?;
    let right = plot.enrolled("right", "s1", 11, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let target = right.overlay(6)?;

    let gone = plot.enrolled("gone", "s1", 12, "left")?;
    gone.wait_reaches(&target, 9000)?;
    let talk = gone.talk(&target)?;
    plot.hedgerow(&["device", "remove", "gone.s1"])?.done()?;
    talk.stops()?;
    ensure!(!gone.reaches(&target, 9000)?, "a removed device talks on");
    plot.event("device_removed", |e| e["details"]["name"] == "gone")?;

    let leaver = plot.device("leaver", "s1", 13)?;
    let before = network(&leaver)?;
    let token = ["--site", "s1", "--name", "leaver", "--labels", "role=left"];
    leaver
        .agent_with(&["enroll"], Some(&plot.token(&token)?))?
        .done()?;
    leaver.start()?;
    leaver.wait_reaches(&target, 9000)?;
    leaver.agent(&["leave"])?.done()?;
    ensure!(
        network(&leaver)? == before,
        "{}\nwas\n{before}",
        network(&leaver)?
    );
    ensure!(
        !leaver.directory.join("state/identity/current").exists(),
        "the key is there"
    );
    plot.event("device_left", |e| e["details"]["name"] == "leaver")?;
    // The name is free, and the machine can come back as a new device.
    leaver
        .agent_with(&["enroll"], Some(&plot.token(&token)?))?
        .done()?;
    leaver.start()?;
    leaver.wait_reaches(&target, 9000)?;

    leaver.agent(&["off"])?.done()?;
    ensure!(
        network(&leaver)? == before,
        "{}\nwas\n{before}",
        network(&leaver)?
    );
    plot.event("enforcement_disabled", |e| e["device_name"] == "leaver.s1")?;
    leaver.start()?;
    leaver.wait_reaches(&target, 9000)?;
    ensure!(!leaver.table()?.is_empty(), "no table");
    Ok(())
}

/// Everything about the network that a program could notice.
fn network(device: &Device<'_>) -> Result<String> {
    let mut text = String::new();
    for argv in [
        &["nft", "list", "ruleset"][..],
        &["ip", "-brief", "address"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
    ] {
        // A link-local address appears when the kernel has seen that nobody else has it.
        let said = device.run(argv)?.done()?;
        let lines = said.lines().filter(|l| !l.starts_with("local fe80:"));
        text.extend(lines.flat_map(|l| [l, "\n"]));
    }
    text.push_str(&fs::read_to_string(format!(
        "/etc/netns/{}/hosts",
        device.namespace
    ))?);
    Ok(text)
}
