//! Two devices with one key: somebody copied a disk, and both run.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};

use super::super::device::Device;
use super::super::plot::{POLICY, Plot};
use super::join;

/// How long both fight for the one peer that they have.
const FIGHT: Duration = Duration::from_secs(10);
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
    let twin = plot.device("twin", "s1", 12)?;
    let [from, to] = [&left, &twin].map(|d| d.directory.join("state"));
    process::run(&[
        "cp",
        "--archive",
        &from.to_string_lossy(),
        &to.to_string_lossy(),
    ])?;
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

fn handshakes(device: &Device<'_>) -> Result<u64> {
    let count = device.status()?["mesh"]["tunnel"]["handshakes_done"].clone();
    count.as_u64().context("no count")
}
