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
use crate::plant::{self, CENTRAL_ADDRESS, Device, Protocol, in_namespace, in_namespace_with};
use crate::programs::{self, Network};
use crate::screen::Act;
use crate::{clock, matrix, process, witness};

const OTHER_TUNNEL: &str = "wg0";
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
    stage.compare_predicted(&mut act)?;
    // Last: until an operator has decided, the copy competes with the original for its sessions.
    copied_disk(stage, &mut act)?;
    Ok(act.end())
}

/// Root on the ops laptop replaces the agent by another WireGuard, with keys from the agent's disk, and
/// sends through the permitted tunnel in the camera's name.
fn spoof_inside(stage: &mut Stage<'_>, act: &mut Act) -> Result<()> {
    let (ops, nvr) = (stage.device("ops")?, stage.device("nvr")?);
    let since = clock::wall_secs();
    stop(stage, "ops")?;
    let tunnel = other_wireguard(stage, ops, nvr)?;
    let address = |name: &str| stage.v6.get(name).copied().context("an address");
    let url = format!("[{}]:22", address("nvr")?);
    let greeting = in_namespace(
        &ops.namespace(),
        &[
            "timeout",
            "10",
            "bash",
            "-c",
            &format!(
                "socat -u -T 5 TCP6:{url},bind=[{}] - | head -c 8",
                address("ops")?
            ),
        ],
    );
    act.succeeds(
        "ops, by wireguard-go in its own name, reaches nvr",
        greeting.map(|t| t.trim().to_owned()),
    );
    witness::forget(&nvr.namespace())?;
    let packets = [Forged {
        source: address("camera")?,
        destination: address("nvr")?,
        protocol: "tcp",
        port: 554,
    }];
    attack::inject(
        stage.lab,
        &ops.namespace(),
        OTHER_TUNNEL,
        None,
        &packets,
        20,
    )?;
    clock::pause(Duration::from_millis(300));
    unseen(
        act,
        "the same, in the camera's name",
        &nvr.namespace(),
        &packets,
    )?;
    stage.expect_event_since(
        act,
        "address_spoofed",
        Some("nvr"),
        since,
        "not_the_peers_address",
    );
    process::kill(tunnel);
    process::wait_end(tunnel, Duration::from_secs(5))?;
    witness::install(&ops.namespace())?;
    start(stage, "ops")?;
    stage.central.settled(&stage.all(), SETTLE)
}

/// Brings up wireguard-go with a fresh key in a device's namespace, introduced by the device's own
/// identity to `to`; returns its pid.
fn other_wireguard(stage: &Stage<'_>, from: &Device, to: &Device) -> Result<u32> {
    let namespace = from.namespace();
    let run = |words: &[&str]| in_namespace(&namespace, words);
    // With agent and supervisor gone, the table is root's to remove.
    run(&["nft", "flush", "ruleset"])?;
    let private = run(&["wg", "genkey"])?;
    let public = in_namespace_with(&namespace, &["wg", "pubkey"], Some(&private))?;
    let state = |name: &str| -> Result<String> {
        Ok(stage
            .agent(name)?
            .directory
            .join("state")
            .to_string_lossy()
            .into_owned())
    };
    let (own, endpoint) = (
        matrix::own_program()?,
        format!("{}:{MESH_PORT}", to.underlay()),
    );
    let said = run(&[
        &own,
        "introduce",
        &state(to.name)?,
        &endpoint,
        "--insider",
        &state(from.name)?,
        "--key",
        public.trim(),
    ])?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let key = said
        .get("key")
        .and_then(|k| k.as_str())
        .context("nvr did not answer")?
        .to_owned();
    let file = stage.lab.path("attack/wireguard.key")?;
    fs::write(&file, private)?;
    let tunnel = stage.lab.start(
        &namespace,
        "wireguard-go",
        &["wireguard-go", "-f", OTHER_TUNNEL],
    )?;
    clock::wait_for("wireguard-go", Duration::from_secs(5), || {
        run(&["ip", "link", "show", OTHER_TUNNEL]).map(Some)
    })?;
    let port = MESH_PORT.to_string();
    run(&[
        "wg",
        "set",
        OTHER_TUNNEL,
        "listen-port",
        &port,
        "private-key",
        &file.to_string_lossy(),
        "peer",
        &key,
        "endpoint",
        &endpoint,
        "allowed-ips",
        "::/0",
    ])?;
    let address = |name: &str| stage.v6.get(name).copied().context("an address");
    let own = format!("{}/128", address(from.name)?);
    run(&["ip", "address", "add", &own, "dev", OTHER_TUNNEL, "nodad"])?;
    run(&["ip", "link", "set", OTHER_TUNNEL, "up"])?;
    let target = format!("{}/128", address(to.name)?);
    run(&["ip", "route", "add", &target, "dev", OTHER_TUNNEL])?;
    Ok(tunnel)
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
    stage.expect_event_since(
        act,
        "address_spoofed",
        Some("plc-2"),
        since,
        "spoofed_overlay",
    );
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
    stage.expect_event_since(
        act,
        "introduction_refused",
        Some("plc-2"),
        since,
        "malformed",
    );
    let since = clock::wall_secs();
    let state = stage.agent("plc-2")?.directory.join("state");
    let endpoint = format!("{}:{MESH_PORT}", plc.underlay());
    let own = matrix::own_program()?;
    let answers = in_namespace(
        STRANGER,
        &[&own, "introduce", &state.to_string_lossy(), &endpoint],
    )?;
    let what = "stranger introduces itself with a ticket of another trust domain";
    let silent = answers.contains("\"datagrams\":0");
    act.check(
        what,
        "silence",
        if silent { "silence" } else { &answers },
        silent,
    );
    stage.expect_event_since(
        act,
        "introduction_refused",
        Some("plc-2"),
        since,
        "foreign_ticket",
    );
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
    stage.expect_event_since(
        act,
        "introduction_refused",
        Some("nvr"),
        since,
        "superseded_ticket",
    );

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
    stage.expect_event_since(
        act,
        "device_revoked",
        Some("contractor"),
        since,
        "demonstration",
    );
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
    stage.expect_event_since(act, "key_copied", Some("sensor-1"), since, "10.77.2.66");
    stage.expect_event_since(act, "session_held", Some("sensor-1"), since, "10.77.2.66");
    let flagged = clock::wait_for("the flag", Duration::from_secs(5), || {
        let record = stage.central.device("sensor-1")?;
        Ok(record
            .get("flagged")
            .is_some_and(|f| f == true)
            .then_some(()))
    });
    act.succeeds(
        "sensor-1's record is flagged",
        flagged.map(|()| "it is".to_owned()),
    );
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
