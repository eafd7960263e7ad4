//! Acts 6 to 8: without the controller, without an agent, and after a power cut.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::json;

use super::applied::involves;
use super::stage::{SETTLE, Stage};
use crate::central::{Prediction, verdict};
use crate::matrix::Verdict;
use crate::plant::{self, in_namespace};
use crate::programs::{self, Network};
use crate::screen::Act;
use crate::{clock, process, witness};

/// Plays act 6. The controller stays dead until act 8 is over.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn without_central(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage.screen.act(
        6,
        "The controller is killed: the same matrix, new sessions start",
    );
    let prediction = stage.central.predict()?;
    stage.central.kill()?;
    act.succeeds(
        "controller",
        Ok("killed with SIGKILL, and kept dead".to_owned()),
    );
    stage.compare(&mut act, |pair| verdict(&prediction, pair), Verdict::DENY)?;
    talk(stage, &mut act)?;
    stage.central.revive()?;
    stage.central.settled(&stage.all(), SETTLE)?;
    act.succeeds(
        "controller back, every agent connected",
        Ok("yes".to_owned()),
    );
    Ok(act.end())
}

fn talk(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let device = |name| stage.device(name);
    let text = format!("alone-{}", clock::wall_secs());
    let published = programs::publish(stage.lab, device("sensor-1")?, Network::Overlay, &text);
    act.succeeds(
        "mosquitto_pub, sensor-1 to collector",
        published.map(|ms| format!("{ms} ms")),
    );
    let read = programs::read_register(device("scada")?, device("plc-1")?, Network::Overlay);
    act.succeeds(
        "mbpoll, scada reads plc-1",
        read.map(|v| format!("register 5 = {v}")),
    );
    let answer = programs::log_in(stage.lab, device("ops")?, device("nvr")?, Network::Overlay);
    act.succeeds("ssh, ops to nvr", answer);
    Ok(())
}

/// Plays act 7.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn without_agent(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage.screen.act(
        7,
        "An agent is killed: its device still enforces, fail closed",
    );
    let prediction = stage.central.predict()?;
    let agent = stage.agent("nvr")?;
    let nvr = stage.device("nvr")?.namespace();
    let before = agent.table();
    act.check(
        "table before",
        "loaded",
        &format!("{} lines", before.lines().count()),
        !before.is_empty(),
    );
    agent.kill()?;
    let kept = agent.service()?.stored;
    let owner = kept.iter().any(|name| name.contains("nft"));
    act.check(
        "socket of the table's owner",
        "in the descriptor store",
        &kept.join(", "),
        owner,
    );
    unchanged(
        &mut act,
        "table with the agent dead",
        &before,
        &agent.table(),
    );
    // What needs the agent pauses; everything else goes on.
    let paused = |pair: &_| match involves(pair, "nvr") {
        true => Verdict::DENY,
        false => verdict(&prediction, pair),
    };
    stage.compare(&mut act, paused, Verdict::DENY)?;
    in_namespace(&nvr, &["nft", "flush", "ruleset"])?;
    let what = "table after `nft flush ruleset` by root";
    unchanged(&mut act, what, &before, &agent.table());
    witness::install(&nvr)?;
    stage.compare(&mut act, paused, Verdict::DENY)?;
    let start = clock::now();
    agent.revive()?;
    act.succeeds(
        "agent restarted",
        Ok(format!("ready after {} ms", clock::ms_since(start))),
    );
    stage.expect_event(&mut act, "table_adopted", Some("nvr"));
    stage.central.settled(&stage.all(), SETTLE)?;
    stage.compare(&mut act, |pair| verdict(&prediction, pair), Verdict::DENY)?;
    Ok(act.end())
}

fn unchanged(act: &mut Act, what: &str, before: &str, after: &str) {
    let gone = before.lines().find(|l| !after.lines().any(|o| o == *l));
    let new = after.lines().find(|l| !before.lines().any(|o| o == *l));
    let measured = match before == after {
        true => "unchanged".to_owned(),
        false => format!("gone: {gone:?}, new: {new:?}"),
    };
    act.check(what, "unchanged", &measured, before == after);
}

/// Plays act 8.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn rebooted(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage.screen.act(
        8,
        "Both ends of a conversation reboot while the controller is down",
    );
    let prediction: Prediction = stage.central.predict()?;
    stage.central.kill()?;
    for name in ["scada", "plc-1"] {
        cut_power(stage, name)?;
    }
    for name in ["scada", "plc-1"] {
        boot(stage, &mut act, name)?;
    }
    let start = clock::now();
    let (scada, plc) = (stage.device("scada")?, stage.device("plc-1")?);
    let read = clock::wait_for("the mesh to come back", Duration::from_secs(20), || {
        programs::read_register(scada, plc, Network::Overlay).map(Some)
    });
    let back = clock::ms_since(start);
    act.succeeds(
        "mbpoll, scada reads plc-1",
        read.map(|v| format!("register 5 = {v} after {back} ms")),
    );
    act.figure("mesh_back_ms", json!(back));
    stage.compare(&mut act, |pair| verdict(&prediction, pair), Verdict::DENY)?;
    stage.central.revive()?;
    stage.central.settled(&stage.all(), SETTLE)?;
    act.succeeds(
        "controller back, every agent connected",
        Ok("yes".to_owned()),
    );
    Ok(act.end())
}

/// Takes the power from a device: every process and everything in its kernel is gone at once.
fn cut_power(stage: &Stage<'_>, name: &str) -> Result<()> {
    let namespace = stage.device(name)?.namespace();
    let supervisor = stage
        .supervisors
        .get(name)
        .copied()
        .context("no supervisor")?;
    process::signal(supervisor, Signal::KILL);
    stage.lab.remove_namespace(&namespace)
}

/// Boots it: the table first, then the link, then the services.
fn boot(stage: &mut Stage<'_>, act: &mut Act, name: &str) -> Result<()> {
    let device = stage.device(name)?;
    let namespace = device.namespace();
    stage.lab.namespace(&namespace)?;
    plant::plug(&namespace, device.underlay())?;
    let agent = stage.agent(name)?;
    let start = clock::now();
    agent.order(&["load"], None)?;
    let ms = clock::ms_since(start);
    let link = in_namespace(&namespace, &["ip", "-brief", "link", "show", "eth0"])?;
    let down = link.contains("DOWN");
    let loaded = !agent.table().is_empty();
    act.check(
        &format!("{name}: table before the link"),
        "loaded while the link is down",
        &format!(
            "{} in {ms} ms, link {}",
            if loaded { "loaded" } else { "absent" },
            if down { "down" } else { "up" }
        ),
        loaded && down,
    );
    plant::link_up(&namespace)?;
    witness::install(&namespace)?;
    programs::start(stage.lab, device)?;
    let supervisor = stage.agent(name)?.start()?;
    stage.supervisors.insert(device.name, supervisor);
    Ok(())
}
