//! Act 2: every device gets an identity, and nothing is allowed yet.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::stage::{SETTLE, Stage};
use crate::agent::Agent;
use crate::central::Central;
use crate::clock;
use crate::lab::Lab;
use crate::matrix::{Verdict, at_once};
use crate::plant::{DEVICES, Device};
use crate::screen::Screen;

/// Plays act 2, and returns the stage for those that follow.
///
/// # Errors
///
/// When the lab fails, or a device cannot be enrolled.
pub(crate) fn play(lab: &Lab, screen: Screen) -> Result<(Stage<'_>, bool)> {
    let mut act = screen.act(2, "Enrolled: default deny on the overlay");
    let start = clock::now();
    let central = Central::found(lab)?;
    act.succeeds(
        "controller",
        Ok(format!("answers after {} ms", clock::ms_since(start))),
    );
    let all: Vec<&Device> = DEVICES.iter().collect();
    let mut agents = BTreeMap::new();
    for device in &DEVICES {
        agents.insert(device.name, Agent::of(lab, device)?);
    }
    let start = clock::now();
    let supervisors = at_once(&all, |device| {
        let agent = agents.get(device.name).context("no agent")?;
        agent.enroll(&central.token(device)?)?;
        agent.start()
    })?;
    central.settled(&DEVICES.map(|d| d.name), SETTLE)?;
    let ms = clock::ms_since(start);
    act.succeeds("ten devices enrolled and verified", Ok(format!("{ms} ms")));
    act.figure("enroll_all_ms", json!(ms));
    let (v6, v4) = central.overlay()?;
    let policy = String::new();
    let stage = Stage {
        lab,
        screen,
        central,
        agents,
        supervisors,
        v6,
        v4,
        policy,
    };
    // The plant's own network is only observed until the policy says otherwise.
    stage.compare(&mut act, |_| Verdict::DENY, Verdict::ALLOW)?;
    for name in ["sensor-1", "plc-2"] {
        stage.expect_event(&mut act, "device_enrolled", Some(name));
    }
    let held = act.end();
    Ok((stage, held))
}
