//! Two devices with one key: somebody copied a disk, and both run.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};

use super::super::device::Device;
use super::super::plot::{Monotonic, POLICY, Plot, TRIED_AGAIN, set_clock};
use super::join;

/// How long both fight for the one peer that they have.
const FIGHT: Duration = Duration::from_secs(10);
/// How long their peer may take to be sure that there are two.
const NOTICED: Duration = Duration::from_secs(240);
/// How far ahead a clock is, in seconds; peers bear more.
const AHEAD: i64 = 120;
/// Handshakes of one peer in that time: an honest one makes two, its key and its pre-shared key.
const HANDSHAKES_MAX: u64 = 60;
/// Events of one peer in that time.
const EVENTS_MAX: usize = 60;

#[test]
fn a_copied_disk_gets_no_more_than_the_device_is_seen_and_goes_with_it() -> Result<()> {
    let plot = Plot::open_in_real_time("copied")?;
    plot.apply(POLICY)?;
    let left = plot.device("left", "s1", 11)?;
    let right = plot.device("right", "s2", 11)?;
    join(&plot, &left, "s1", "role=left")?;
    join(&plot, &right, "s2", "role=right")?;
    right.serve()?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let before = handshakes(&right)?;

    // The copy is started elsewhere, with what the policy grants and nothing else.
    let twin = copy(&plot, &left)?;
    twin.start()?;
    let held = plot.event("key_copied", |e| e["device_name"] == "left.s1")?;
    ensure!(
        held.to_string().contains("10.77.1.12"),
        "it does not say where: {held}"
    );
    ensure!(
        plot.record("left.s1")?["flagged"] == true,
        "the record is not flagged"
    );
    let fought = clock::now();
    while clock::now().duration_since(fought) < FIGHT {
        for device in [&left, &twin] {
            // Who of the two is heard changes; what neither may does not.
            let _reached = device.reaches(&target, 9000)?;
            ensure!(
                !device.reaches(&target, 9001)?,
                "{} reaches what nobody may",
                device.name
            );
        }
    }
    let made = handshakes(&right)? - before;
    ensure!(made <= HANDSHAKES_MAX, "{made} handshakes");
    for kind in ["path_changed", "path_lost", "introduction_refused"] {
        let seen = plot.events(kind)?.len();
        ensure!(seen <= EVENTS_MAX, "{seen} events {kind}");
    }
    // Nobody can tell which is which: the operator's word takes both out.
    plot.hedgerow(&["device", "revoke", "left.s1", "--wait", "30s"])?
        .done()?;
    for device in [&left, &twin] {
        device
            .wait_cut(&target, 9000)
            .with_context(|| device.name.clone())?;
    }
    ensure!(right.peer("left")?.is_none(), "it is still a peer");
    Ok(())
}

#[test]
fn a_copied_disk_is_noticed_by_its_peers_while_no_controller_is_there() -> Result<()> {
    let plot = Plot::open("disputed")?;
    plot.apply(POLICY)?;
    let left = plot.device("left", "s1", 11)?;
    let right = plot.device("right", "s2", 11)?;
    join(&plot, &left, "s1", "role=left")?;
    join(&plot, &right, "s2", "role=right")?;
    right.serve()?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let id = left.status()?["device"]["id"].clone();

    plot.kill_central()?;
    let mut twin = copy(&plot, &left)?;
    // Whichever of the two starts last has the newer key, but for one whose clock is ahead.
    let file = plot.lab.path("clock-twin")?;
    set_clock(&file, AHEAD)?;
    twin.own_clock(file, Monotonic::Stays);
    twin.start()?;
    twin.wait_reaches(&target, 9000)?;
    left.kill()?;
    left.wait_ready()?;
    clock::wait_for("right to see one key at two places", NOTICED, || {
        for device in [&left, &twin] {
            // Both want it; who of them is heard changes.
            let _reached = device.reaches(&target, 9000)?;
        }
        let said = right.logged()?.contains("one key at two places");
        Ok(said.then_some(()))
    })?;
    plot.revive_central()?;
    clock::wait_for("right to be back", TRIED_AGAIN, || {
        Ok((right.status()?["uplink"]["connected"] == true).then_some(()))
    })?;
    let disputed = plot.event("key_disputed", |e| e["device_name"] == "right.s2")?;
    ensure!(
        disputed["peer"] == id,
        "it does not name the device: {disputed}"
    );
    let text = disputed.to_string();
    for place in ["10.77.1.11", "10.77.1.12"] {
        ensure!(text.contains(place), "it does not say where: {disputed}");
    }
    Ok(())
}

/// Plugs a machine in that has a copy of a device's disk.
fn copy<'p>(plot: &'p Plot, device: &Device<'_>) -> Result<Device<'p>> {
    let twin = plot.device("twin", "s1", 12)?;
    let [from, to] = [device, &twin].map(|d| d.directory.join("state"));
    process::run(&[
        "cp",
        "--archive",
        &from.to_string_lossy(),
        &to.to_string_lossy(),
    ])?;
    Ok(twin)
}

fn handshakes(device: &Device<'_>) -> Result<u64> {
    let count = device.status()?["mesh"]["tunnel"]["handshakes_done"].clone();
    count.as_u64().context("no count")
}
