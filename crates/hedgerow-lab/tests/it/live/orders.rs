//! What an operator orders a device to do at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;

use super::plot::{POLICY, Plot};

/// Longer than an order waits for the key before it to become old enough.
const WITHIN: Duration = Duration::from_secs(90);

#[test]
fn a_device_makes_new_keys_and_connects_again_when_ordered_and_streams_run_on() -> Result<()> {
    let plot = Plot::open("orders")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let talk = left.talk(&target)?;

    let key = || -> Result<_> { Ok(left.peer("right")?.context("no peer")?["key"].clone()) };
    let old = key()?;
    plot.hedgerow(&["device", "rotate-keys", "right"])?.done()?;
    clock::wait_for("the peer to learn of a new key", WITHIN, || {
        Ok((key()? != old).then_some(()))
    })?;
    talk.moves()?;

    let since = || -> Result<_> {
        let device = plot.record("right")?;
        ensure!(device["connected"] == true, "it is away: {device}");
        Ok(device["connected_since_ms"].clone())
    };
    let before = since()?;
    plot.hedgerow(&["device", "reconnect", "right"])?.done()?;
    clock::wait_for("another session", WITHIN, || {
        let now = since()?;
        ensure!(now != before, "still the old session");
        Ok(Some(()))
    })?;
    plot.settled(&["left", "right"])?;
    talk.moves()
}
