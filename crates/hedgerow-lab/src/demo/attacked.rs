//! Act 9: attacks, each of which gets nowhere and leaves an event.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::stage::{SETTLE, Stage};
use crate::agent::Agent;
use crate::attack::{self, Forged};
use crate::plant::{self, CENTRAL_ADDRESS, Protocol, in_namespace};
use crate::programs::{self, Network};
use crate::screen::Act;
use crate::{clock, matrix, process, witness};

const TUNNEL: &str = "hedgerow0";
/// Where the mesh listens.
const MESH_PORT: u16 = 7117;
const STRANGER: &str = "hgd-stranger";
const STRANGER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 66);

/// Plays act 9.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn play(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage
        .screen
        .act(9, "Attacks get nowhere, and each leaves an event");
    spoof_inside(stage, &mut act)?;
    spoof_outside(stage, &mut act)?;
    stranger(stage, &mut act)?;
    old_ticket(stage, &mut act)?;
    revoked(stage, &mut act)?;
    copied_disk(stage, &mut act)?;
    stage.compare_predicted(&mut act)?;
    Ok(act.end())
}

/// Root on the ops laptop sends through its own, permitted tunnel, in the camera's name.
fn spoof_inside(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let (ops, nvr) = (stage.device("ops")?, stage.device("nvr")?);
    let since = clock::wall_secs();
    let answer = programs::log_in(stage.lab, ops, nvr, Network::Overlay);
    act.succeeds("ops has a session with nvr", answer);
    witness::forget(&nvr.namespace())?;
    let mut packets = Vec::new();
    for network in [&stage.v6, &stage.v4] {
        let address = |name: &str| network.get(name).copied().context("an address");
        packets.push(Forged {
            source: address("camera")?,
            destination: address("nvr")?,
            protocol: "tcp",
            port: 554,
        });
    }
    attack::inject(stage.lab, &ops.namespace(), TUNNEL, None, &packets, 20)?;
    clock::pause(Duration::from_millis(300));
    unseen(
        act,
        "ops sends as camera through its tunnel to nvr",
        &nvr.namespace(),
        &packets,
    )?;
    stage.expect_event_since(act, "address_spoofed", Some("nvr"), since);
    Ok(())
}

/// The contractor's laptop puts packets with overlay addresses on the site's wire.
fn spoof_outside(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let (contractor, plc) = (stage.device("contractor")?, stage.device("plc-2")?);
    let since = clock::wall_secs();
    let mac = attack::mac_of(&plc.namespace(), "eth0")?;
    witness::forget(&plc.namespace())?;
    let mut packets = Vec::new();
    for network in [&stage.v6, &stage.v4] {
        let address = |name: &str| network.get(name).copied().context("an address");
        packets.push(Forged {
            source: address("scada")?,
            destination: address("plc-2")?,
            protocol: "tcp",
            port: 502,
        });
    }
    packets.push(Forged {
        source: *stage.v4.get("scada").context("an address")?,
        destination: plc.underlay().into(),
        protocol: "tcp",
        port: 502,
    });
    attack::inject(
        stage.lab,
        &contractor.namespace(),
        "eth0",
        Some(&mac),
        &packets,
        20,
    )?;
    clock::pause(Duration::from_millis(300));
    unseen(
        act,
        "contractor sends as scada on the wire to plc-2",
        &plc.namespace(),
        &packets,
    )?;
    stage.expect_event_since(act, "address_spoofed", Some("plc-2"), since);
    Ok(())
}

fn unseen(act: &mut Act, what: &str, namespace: &str, packets: &[Forged]) -> Result<()> {
    let seen = witness::seen(namespace)?;
    let arrived = packets
        .iter()
        .filter(|p| seen.contains(&(p.source, Protocol::Tcp, p.port)))
        .count();
    let measured = format!("{arrived} of {} forgeries arrived", packets.len());
    act.check(what, "none arrives", &measured, arrived == 0);
    Ok(())
}

/// A machine that nobody enrolled stands on the site's wire and speaks to the mesh.
fn stranger(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let plc = stage.device("plc-2")?;
    let since = clock::wall_secs();
    stage.lab.namespace(STRANGER)?;
    plant::plug(STRANGER, STRANGER_ADDRESS)?;
    plant::link_up(STRANGER)?;
    let answers = attack::babble(STRANGER, IpAddr::from(plc.underlay()), MESH_PORT)?;
    act.check(
        "stranger sends garbage to the mesh port",
        "silence",
        &format!("{answers} answers to 99 datagrams"),
        answers == 0,
    );
    stage.expect_event_since(act, "message_refused", Some("plc-2"), since);
    let since = clock::wall_secs();
    let state = stage.agent("plc-2")?.directory.join("state");
    let endpoint = format!("{}:{MESH_PORT}", plc.underlay());
    let own = matrix::own_program()?;
    let answers = in_namespace(
        STRANGER,
        &[&own, "introduce", &state.to_string_lossy(), &endpoint],
    )?;
    let measured = format!("{} answers", answers.trim());
    let what = "stranger introduces itself with a ticket of another trust domain";
    act.check(what, "silence", &measured, answers.trim() == "0");
    stage.expect_event_since(act, "introduction_refused", Some("plc-2"), since);
    Ok(())
}

/// The contractor had more rights once, kept the ticket, and cuts itself off from the controller.
fn old_ticket(stage: &mut Stage<'_>, act: &mut Act) -> Result<()> {
    let contractor = stage.device("contractor")?;
    let nvr = stage.device("nvr")?;
    stage.central.label("contractor", "ops")?;
    stage.central.settled(&stage.all(), SETTLE)?;
    let answer = programs::log_in(stage.lab, contractor, nvr, Network::Overlay);
    act.succeeds("contractor as role=ops logs in to nvr", answer);
    let state = stage.agent("contractor")?.directory.join("state");
    let wide = stage.lab.path("attack/wide")?;
    let narrow = stage.lab.path("attack/narrow")?;
    stop(stage, "contractor")?;
    copy(&state, &wide)?;
    start(stage, "contractor")?;
    stage.central.settled(&stage.all(), SETTLE)?;
    stage.central.label("contractor", "contractor")?;
    stage.central.settled(&stage.all(), SETTLE)?;

    let since = clock::wall_secs();
    stop(stage, "contractor")?;
    copy(&state, &narrow)?;
    copy(&wide, &state)?;
    let central = format!("{CENTRAL_ADDRESS}/32");
    let namespace = contractor.namespace();
    in_namespace(&namespace, &["ip", "route", "add", "blackhole", &central])?;
    start(stage, "contractor")?;
    let answer = programs::log_in(stage.lab, contractor, nvr, Network::Overlay);
    act.refused(
        "contractor with its old ticket, cut off from the controller",
        answer,
    );
    stage.expect_event_since(act, "introduction_refused", Some("nvr"), since);

    stop(stage, "contractor")?;
    copy(&narrow, &state)?;
    in_namespace(
        &namespace,
        &["ip", "route", "delete", "blackhole", &central],
    )?;
    start(stage, "contractor")?;
    stage.central.settled(&stage.all(), SETTLE)?;
    Ok(())
}

/// The contractor is revoked while it has every right, and a session.
fn revoked(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let (contractor, nvr) = (stage.device("contractor")?, stage.device("nvr")?);
    stage.central.label("contractor", "ops")?;
    stage.central.settled(&stage.all(), SETTLE)?;
    let answer = programs::log_in(stage.lab, contractor, nvr, Network::Overlay);
    act.succeeds("contractor logs in to nvr", answer);
    let since = clock::wall_secs();
    let start = clock::now();
    stage.central.post(
        "devices/contractor.s2/revoke",
        &serde_json::json!({"reason": "demonstration"}),
    )?;
    let others: Vec<&str> = stage
        .all()
        .into_iter()
        .filter(|n| *n != "contractor")
        .collect();
    let ms = stage.central.settled_since(&others, start, SETTLE)?;
    act.succeeds(
        "revoked, to the last kernel verified",
        Ok(format!("{ms} ms")),
    );
    let answer = programs::log_in(stage.lab, contractor, nvr, Network::Overlay);
    act.refused("revoked contractor logs in to nvr", answer);
    stage.expect_event_since(act, "device_revoked", Some("contractor"), since);
    Ok(())
}

/// Somebody copied the disk of sensor-1 and starts it elsewhere.
fn copied_disk(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let since = clock::wall_secs();
    let hosts = format!("/etc/netns/{STRANGER}/hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n")?;
    let clone = Agent::at(stage.lab, STRANGER, "stranger", &hosts)?;
    copy(
        &stage.agent("sensor-1")?.directory.join("state"),
        &clone.directory.join("state"),
    )?;
    clone.start()?;
    stage.expect_event_since(act, "key_copied", Some("sensor-1"), since);
    stage.expect_event_since(act, "session_held", Some("sensor-1"), since);
    let record = stage.central.device("sensor-1")?;
    let flagged = record
        .get("flags")
        .is_some_and(|f| f.to_string().contains("copied"));
    let measured = if flagged { "flagged" } else { "not flagged" };
    act.check("sensor-1's record", "flagged", measured, flagged);
    Ok(())
}

fn stop(stage: &Stage<'_>, name: &str) -> Result<()> {
    let supervisor = stage
        .supervisors
        .get(name)
        .copied()
        .context("no supervisor")?;
    process::signal(supervisor, Signal::TERM);
    process::wait_end(supervisor, Duration::from_secs(15))
}

fn start(stage: &mut Stage<'_>, name: &str) -> Result<()> {
    let device = stage.device(name)?;
    let supervisor = stage.agent(name)?.start()?;
    stage.supervisors.insert(device.name, supervisor);
    Ok(())
}

/// Makes `to` the same as `from`, owners and modes included.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    process::run(&[
        "cp",
        "--archive",
        &from.to_string_lossy(),
        &to.to_string_lossy(),
    ])?;
    Ok(())
}
