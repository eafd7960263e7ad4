//! Certificates and keys change every day, and no connection notices.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hedgerow_lab::clock;
use serde_json::Value;

use super::device::Device;
use super::plot::{DAY, POLICY, Plot, TRIED_AGAIN};

/// Longer than two keys of one peer are kept, in seconds.
const OVERLAP: i64 = 400;
const OVERLAPS_MAX: usize = 4;

#[test]
fn streams_run_on_while_certificates_slots_and_tunnel_keys_change() -> Result<()> {
    let plot = Plot::open("renewal")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let (v6, v4) = (right.overlay(6)?, right.overlay(4)?);
    left.wait_reaches(&v6, 9000)?;
    let talk = left.talk(&v6)?;
    let download = left.download(&v4)?;
    for day in 1..=2 {
        let before = [Facts::of(&left, "right")?, Facts::of(&right, "left")?];
        plot.advance(DAY + DAY / 5)?;
        for (device, old) in [&left, &right].into_iter().zip(&before) {
            renewed(device, old).with_context(|| format!("{} on day {day}", device.name))?;
        }
        for (device, peer, old) in [(&left, "right", &before[0]), (&right, "left", &before[1])] {
            rotated(device, peer, old).with_context(|| format!("{peer} on day {day}"))?;
        }
        talk.moves()?;
        download.moves()?;
        forgotten(&plot, &left, "right")?;
        forgotten(&plot, &right, "left")?;
        talk.moves()?;
        download.moves()?;
    }
    let asked = plot.events("certificate_renewed")?;
    ensure!(asked.len() >= 4, "{asked:?}");
    Ok(())
}

/// What a day changes.
struct Facts {
    not_after: i64,
    current: Vec<u8>,
    /// The peer's WireGuard key.
    key: Value,
}

impl Facts {
    fn of(device: &Device<'_>, peer: &str) -> Result<Self> {
        Ok(Self {
            not_after: not_after(&device.status()?)?,
            current: fs::read(device.directory.join("state/identity/current"))?,
            key: device.peer(peer)?.context("no peer")?["key"].clone(),
        })
    }
}

fn not_after(status: &Value) -> Result<i64> {
    status["certificate"]["not_after"]
        .as_i64()
        .context("no end")
}

/// Waits until a device uses a new certificate, and the old one lies in the slot `previous`.
fn renewed(device: &Device<'_>, old: &Facts) -> Result<()> {
    clock::wait_for("a new certificate", TRIED_AGAIN, || {
        let status = device.status()?;
        ensure!(
            not_after(&status)? > old.not_after,
            "not renewed: {}",
            status["uplink"]
        );
        ensure!(status["uplink"]["connected"] == true, "not connected");
        let identity = device.directory.join("state/identity");
        ensure!(!identity.join("next").exists(), "`next` is still there");
        ensure!(
            fs::read(identity.join("previous"))? == old.current,
            "`previous` is another"
        );
        Ok(Some(()))
    })
}

/// Waits until the other end uses a tunnel key of this day.
fn rotated(device: &Device<'_>, peer: &str, old: &Facts) -> Result<()> {
    clock::wait_for("a new tunnel key", TRIED_AGAIN, || {
        let peer = device.peer(peer)?.context("no peer")?;
        ensure!(peer["key"] != old.key, "still the old one: {peer}");
        ensure!(peer["session"] == true, "no session: {peer}");
        Ok(Some(()))
    })
}

/// Lets overlaps of keys pass until only one key of the peer is known. There may be more than one:
/// the day's new key, and the one that follows the new ticket.
fn forgotten(plot: &Plot, device: &Device<'_>, peer: &str) -> Result<()> {
    let mut last = Value::Null;
    for _ in 0..OVERLAPS_MAX {
        plot.advance(OVERLAP)?;
        let gone = clock::wait_for(
            "the old key to be forgotten",
            Duration::from_secs(8),
            || {
                last = device.peer(peer)?.context("no peer")?;
                Ok((last["keys_overlap"] == false).then_some(()))
            },
        );
        if gone.is_ok() {
            return Ok(());
        }
    }
    bail!("two keys are known for ever: {last}")
}
