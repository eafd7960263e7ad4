//! A day-old backup comes back under a fleet that lives.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use serde_json::Value;

use super::device::Device;
use super::plot::{DAY, POLICY, Plot};

/// How long the controller may take to know a device's key.
const KEY_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn a_day_old_backup_converges_and_loses_no_revocation_no_device_and_no_address() -> Result<()> {
    let plot = Plot::open("restore")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    let doomed = plot.enrolled("doomed", "s1", 13, "left")?;
    let demoted = plot.enrolled("demoted", "s2", 11, "left")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let target = right.overlay(6)?;
    for device in [&left, &doomed, &demoted] {
        device.wait_reaches(&target, 9000)?;
    }
    let file = plot.lab.path("backup")?;
    let file = file.to_string_lossy();
    let config = plot.files().join("control.toml");
    let config = config.to_string_lossy();
    plot.control(&["backup", &file, "--config", &config])?
        .done()?;

    let newer = plot.enrolled("newer", "s2", 12, "right")?;
    newer.serve()?;
    let known = plot.record("newer.s2")?;
    let wider = live_on(&plot, &left, &newer)?;

    plot.stop_central()?;
    let files = plot.files();
    plot.control(&["restore", &file, "--dir", &files.to_string_lossy()])?
        .done()?;
    plot.start_central()?;
    plot.settled(&["left", "right", "demoted", "newer"])
        .context("after the restore")?;

    reconciled(&plot, &newer, &known)?;
    ensure!(
        !doomed.reaches(&target, 9000)?,
        "the revoked device is back"
    );
    ensure!(
        !demoted.reaches(&target, 9000)?,
        "the old ticket works again"
    );
    clock::wait_for(
        "the revoked device to be refused",
        Duration::from_secs(20),
        || {
            let list = plot.json(&["status"])?;
            let devices = list["devices"].as_array().context("no devices")?;
            let connected = devices
                .iter()
                .any(|d| d["name"] == "doomed" && d["connected"] == true);
            Ok((!connected).then_some(()))
        },
    )?;
    left.wait_reaches(&target, 9000)?;
    left.wait_reaches(&newer.overlay(6)?, 9000)?;

    let newest = plot.enrolled("newest", "s2", 14, "right")?;
    newest.serve()?;
    plot.apply(&wider)?;
    left.wait_reaches(&newest.overlay(6)?, 9000)?;
    no_address_twice(&plot)
}

/// Does what the backup does not know, and lets a day pass; returns the policy in force.
fn live_on(plot: &Plot, left: &Device<'_>, newer: &Device<'_>) -> Result<String> {
    plot.hedgerow(&["device", "revoke", "doomed.s1", "--wait", "30s"])?
        .done()?;
    let relabel = [
        "device",
        "label",
        "demoted.s2",
        "role=other",
        "--wait",
        "30s",
    ];
    plot.hedgerow(&relabel)?.done()?;
    let rule = "  - { id: r-other, from: \"role=other\", to: \"role=other\", service: web }";
    let wider = POLICY.replace("defaults:", &format!("{rule}\ndefaults:"));
    plot.apply(&wider)?;
    plot.settled(&["left", "right", "demoted", "newer"])?;
    left.wait_reaches(&newer.overlay(6)?, 9000)?;
    plot.advance(DAY)?;
    plot.settled(&["left", "right", "demoted", "newer"])?;
    Ok(wider)
}

/// Holds that the controller has taken back from the devices what it had forgotten.
fn reconciled(plot: &Plot, newer: &Device<'_>, known: &Value) -> Result<()> {
    let status = plot.json(&["status"])?;
    let revision = status["revision"].as_str().context("no revision")?;
    ensure!(!revision.starts_with("1."), "no new timeline: {revision}");
    plot.event("store_restored", |_| true)?;
    let back = plot.record("newer.s2")?;
    for key in ["id", "addresses", "labels"] {
        ensure!(back[key] == known[key], "{key}: {back}, was {known}");
    }
    // A day has passed: the device renews its certificate, with another key, about now.
    clock::wait_for("the key that the device has", KEY_WITHIN, || {
        let record = plot.record("newer.s2")?;
        let shown = newer.agent(&["fingerprint"])?.done()?;
        ensure!(
            record["fingerprint"] == shown.trim(),
            "{record}, not {shown}"
        );
        Ok(Some(()))
    })?;
    let role = &plot.record("demoted.s2")?["labels"]["role"];
    ensure!(*role == "other", "the old labels are back");
    Ok(())
}

fn no_address_twice(plot: &Plot) -> Result<()> {
    let list = plot.json(&["device", "list"])?;
    let devices = list["devices"].as_array().context("no devices")?;
    let mut seen = BTreeSet::new();
    for device in devices {
        for family in ["v6", "v4"] {
            let address = device["addresses"][family].as_str();
            let address = address.context("no address")?;
            ensure!(seen.insert(address), "{address} twice: {list}");
        }
    }
    let named = |name: &str| {
        devices
            .iter()
            .filter(|d: &&Value| d["name"] == name)
            .count()
    };
    ensure!(named("newer") == 1, "{list}");
    Ok(())
}
