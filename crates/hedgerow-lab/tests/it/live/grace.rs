//! The controller is gone for longer than certificates live.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use serde_json::Value;

use super::device::Device;
use super::plot::{DAY, POLICY, Plot, TRIED_AGAIN};

#[test]
fn a_site_lives_through_grace_stops_after_it_and_returns_with_the_controller() -> Result<()> {
    let plot = Plot::open("grace")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    let far = plot.enrolled("far", "s2", 11, "right")?;
    right.serve()?;
    far.serve()?;
    left.serve()?;
    plot.apply(POLICY)?;
    let (near, away, back) = (right.overlay(6)?, far.overlay(6)?, left.overlay(6)?);
    left.wait_reaches(&near, 9000)?;
    left.wait_reaches(&away, 9000)?;

    plot.kill_central()?;
    for _ in 0..4 {
        plot.advance(2 * DAY)?;
        for device in [&left, &right, &far] {
            device.status()?;
        }
    }
    left.wait_reaches(&near, 9000).context("in grace")?;
    in_grace(&left, "right")?;
    left.wait_cut(&away, 9000)
        .context("no grace between sites")?;
    // A restart changes nothing, and nothing that was refused is let through.
    right.kill()?;
    right.wait_ready()?;
    left.wait_reaches(&near, 9000)
        .context("in grace, after a restart")?;
    ensure!(
        !right.reaches(&back, 9000)?,
        "grace permits more than the policy"
    );

    plot.advance(32 * DAY)?;
    left.wait_cut(&near, 9000).context("past the grace")?;
    for device in [&left, &right, &far] {
        let status = device.status()?;
        let table = &status["table"];
        ensure!(
            table["loaded"] == true && table["intact"] == true,
            "{table}"
        );
        ensure!(status["certificate"]["expired"] == true, "{status}");
        ensure!(device.table()?.contains("chain"), "no table");
    }
    ensure!(
        !right.reaches(&back, 9000)?,
        "expiry permits more than the policy"
    );

    plot.revive_central()?;
    plot.settled(&["left", "right", "far"])?;
    for device in [&left, &right, &far] {
        clock::wait_for("a certificate that is valid", TRIED_AGAIN, || {
            let status = device.status()?;
            let expired = &status["certificate"]["expired"];
            ensure!(*expired == Value::Bool(false), "{}", status["uplink"]);
            Ok(Some(()))
        })
        .context(device.name.clone())?;
    }
    left.wait_reaches(&near, 9000).context("renewed")?;
    left.wait_reaches(&away, 9000)
        .context("renewed, between sites")
}

fn in_grace(device: &Device<'_>, peer: &str) -> Result<()> {
    let what = format!("{} to say that {peer} is in grace", device.name);
    clock::wait_for(&what, Duration::from_secs(30), || {
        let status = device.status()?;
        ensure!(
            status["certificate"]["expired"] == true,
            "{}",
            status["certificate"]
        );
        let peer = device.peer(peer)?.context("no peer")?;
        ensure!(peer["grace"] == true, "{peer}");
        let text = device.agent(&["status"])?.done()?;
        ensure!(text.contains("in grace"), "{text}");
        Ok(Some(()))
    })
}
