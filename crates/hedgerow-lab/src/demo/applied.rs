//! Acts 3 and 4: the policy is applied, and then it changes.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::stage::{SETTLE, Stage};
use crate::attack::{self, Forged};
use crate::central::verdict;
use crate::matrix::{self, Pair, Verdict};
use crate::plant::{DEVICES, Protocol, find};
use crate::programs::{self, Network};
use crate::screen::Act;
use crate::{clock, process, witness};

/// The policy of the demonstration, which is also the example of the documents.
const POLICY: &str = include_str!("../../../../examples/plant.yaml");
const TUNNEL: &str = "hedgerow0";

/// Plays act 3.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn policy(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage
        .screen
        .act(3, "Policy applied: exactly what it says, and nothing else");
    apply(
        stage,
        &mut act,
        "policy applied to the last kernel verified",
        POLICY.to_owned(),
    )?;
    let prediction = stage.compare_predicted(&mut act)?;
    bypass(stage, &mut act, |pair| verdict(&prediction, pair))?;
    talk(stage, &mut act)?;
    ask(stage, &mut act)?;
    stream(stage, &mut act)?;
    Ok(act.end())
}

/// Plays act 4.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn change(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage
        .screen
        .act(4, "A label changes, a rule changes: the matrix follows");
    relabel(stage, &mut act)?;
    widen(stage, &mut act)?;
    narrow(stage, &mut act)?;
    Ok(act.end())
}

fn relabel(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let start = clock::now();
    stage.central.label("contractor", "ops")?;
    let ms = stage.central.settled_since(&stage.all(), start, SETTLE)?;
    act.succeeds(
        "contractor becomes role=ops, to the last kernel verified",
        Ok(format!("{ms} ms")),
    );
    act.figure("relabel_to_verified_ms", json!(ms));
    stage.compare_predicted(act)?;
    let contractor = stage.device("contractor")?;
    let answer = programs::log_in(
        stage.lab,
        contractor,
        stage.device("nvr")?,
        Network::Overlay,
    );
    act.succeeds("ssh, contractor to nvr", answer);
    Ok(())
}

/// Opens the shift all week, and lets sensors of every site reach every collector.
fn widen(stage: &mut Stage<'_>, act: &mut Act) -> Result<()> {
    let mqtt = "to: \"role=collector\", same: [ site ], service: mqtts }";
    let wider = POLICY
        .replace(
            "[ mon, tue, wed, thu, fri ]",
            "[ mon, tue, wed, thu, fri, sat, sun ]",
        )
        .replace(
            "from: \"08:00\", to: \"18:00\"",
            "from: \"00:00\", to: \"24:00\"",
        )
        .replace(mqtt, "to: \"role=collector\", service: mqtts }")
        .replace("  - { at: \"2026", "#  - { at: \"2026");
    apply(
        stage,
        act,
        "wider policy to the last kernel verified",
        wider,
    )?;
    stage.compare_predicted(act)?;
    let published = programs::publish(
        stage.lab,
        stage.device("sensor-2")?,
        Network::Overlay,
        "act4",
    );
    act.succeeds(
        "mosquitto_pub, sensor-2 to collector",
        published.map(|ms| format!("{ms} ms")),
    );
    let page = programs::fetch(
        stage.device("ops")?,
        stage.device("camera")?,
        Network::Overlay,
    );
    act.succeeds(
        "curl, ops to camera, shift open",
        page.map(|s| format!("HTTP {s}")),
    );
    Ok(())
}

/// Takes that back, and moves the shift to another day.
fn narrow(stage: &mut Stage<'_>, act: &mut Act) -> Result<()> {
    let narrower = POLICY
        .replace(
            "[ mon, tue, wed, thu, fri ]",
            &format!("[ {} ]", other_day()),
        )
        .replace("  - { at: \"2026", "#  - { at: \"2026");
    apply(
        stage,
        act,
        "narrower policy to the last kernel verified",
        narrower,
    )?;
    stage.compare_predicted(act)?;
    let page = programs::fetch(
        stage.device("ops")?,
        stage.device("camera")?,
        Network::Overlay,
    );
    act.refused("curl, ops to camera, shift closed", page);
    Ok(())
}

/// Returns a day of the week that it is nowhere on Earth now: three days ahead.
fn other_day() -> &'static str {
    const DAYS: [&str; 7] = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"];
    let seconds = clock::wall_secs();
    // The first of January 1970 was a Thursday.
    let index = usize::try_from((seconds / 86_400 + 3) % 7).unwrap_or_default();
    DAYS.get(index).copied().unwrap_or("sun")
}

fn apply(stage: &mut Stage<'_>, act: &mut Act, what: &str, policy: String) -> Result<()> {
    let start = clock::now();
    let answer = stage.central.apply(&policy)?;
    let asked = clock::ms_since(start);
    stage.central.settled(&stage.all(), SETTLE)?;
    stage.policy = policy;
    let told = answer.get("last_verified_ms").and_then(Value::as_f64);
    let ms = told.unwrap_or(asked);
    act.took(what, ms, 1000.0);
    act.figure(
        what,
        json!({"last_verified_ms": told, "answered_ms": asked, "answer": answer}),
    );
    Ok(())
}

/// Puts packets into every device's tunnel past the device's own kernel, as an attacker with root on
/// it would: what the receiver's kernel lets in must be what it alone allows.
fn bypass(stage: &Stage<'_>, act: &mut Act, predict: impl Fn(&Pair) -> Verdict) -> Result<()> {
    let all: Vec<_> = DEVICES.iter().collect();
    matrix::at_once(&all, |device| witness::forget(&device.namespace()))?;
    let networks = [&stage.v6, &stage.v4];
    matrix::at_once(&all, |device| {
        let packets: Vec<Forged> = networks
            .iter()
            .flat_map(|network| {
                let own = matrix::pairs().filter(|(_, from, ..)| from.name == device.name);
                own.filter_map(|(_, from, to, service)| {
                    let protocol = match service.protocol {
                        Protocol::Tcp => "tcp",
                        Protocol::Udp => "udp",
                        Protocol::Ping => "ping",
                    };
                    let (source, destination) = (*network.get(from.name)?, *network.get(to.name)?);
                    Some(Forged {
                        source,
                        destination,
                        protocol,
                        port: service.port,
                    })
                })
            })
            .collect();
        attack::inject(stage.lab, &device.namespace(), TUNNEL, None, &packets, 2)
    })?;
    clock::pause(Duration::from_millis(500));
    let seen = matrix::at_once(&all, |device| witness::seen(&device.namespace()))?;
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (pair, from, to, service) in matrix::pairs() {
        for network in networks {
            let source = network.get(from.name).copied();
            let arrived = source.is_some_and(|source| {
                let key = (source, service.protocol, service.port);
                seen.get(to.name).is_some_and(|seen| seen.contains(&key))
            });
            tried += 1;
            if arrived && !predict(&pair).receiver {
                wrong.push(format!("{} → {} {}", pair.from, pair.to, pair.service));
            }
        }
    }
    let measured = match wrong.is_empty() {
        true => format!("{tried} packets, none where the receiver denies"),
        false => format!("let in: {}", wrong.join(", ")),
    };
    act.check(
        "receivers alone, senders' kernels bypassed",
        "no denied packet",
        &measured,
        wrong.is_empty(),
    );
    Ok(())
}

/// Lets the plant's own programs talk, by the names that Hedgerow gave.
fn talk(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let network = Network::Overlay;
    let device = |name| stage.device(name);
    let published = programs::publish(stage.lab, device("sensor-1")?, network, "act3-sensor-1");
    act.succeeds(
        "mosquitto_pub, sensor-1 to collector",
        published.map(|ms| format!("{ms} ms")),
    );
    let published = programs::publish(stage.lab, device("sensor-2")?, network, "act3-sensor-2");
    act.refused(
        "mosquitto_pub, sensor-2 to collector",
        published.map(|ms| format!("{ms} ms")),
    );
    let read = programs::read_register(device("scada")?, device("plc-1")?, network);
    act.succeeds(
        "mbpoll, scada reads plc-1",
        read.map(|v| format!("register 5 = {v}")),
    );
    let read = programs::read_register(device("contractor")?, device("plc-2")?, network);
    act.refused(
        "mbpoll, contractor reads plc-2",
        read.map(|v| format!("register 5 = {v}")),
    );
    let read = programs::read_register(device("contractor")?, device("plc-2")?, Network::Underlay);
    act.refused(
        "the same around the overlay",
        read.map(|v| format!("register 5 = {v}")),
    );
    let answer = programs::log_in(stage.lab, device("ops")?, device("nvr")?, network);
    act.succeeds("ssh, ops to nvr", answer);
    Ok(())
}

/// Asks the tools that people have.
fn ask(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    for (from, to) in [("scada.s1", "plc-1.s1"), ("contractor.s2", "plc-2.s2")] {
        let said = stage
            .central
            .hedgerow(&["--json", "explain", from, to, "modbus"]);
        let told = said.map(|text| {
            text.lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(90)
                .collect()
        });
        act.succeeds(&format!("hedgerow explain {from} {to} modbus"), told);
    }
    let status = stage.central.hedgerow(&["status"]);
    act.succeeds("hedgerow status", status.map(|text| first_line(&text)));
    let status = stage.agent("nvr")?.status();
    let verified = status.map(|s| s.pointer("/policy/verified").map(Value::to_string));
    act.succeeds(
        "hedgerow-agent status on nvr",
        verified.map(|v| format!("revision {} verified", v.unwrap_or_default())),
    );
    Ok(())
}

fn first_line(text: &str) -> String {
    text.lines()
        .find(|l| !l.trim().is_empty())
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn stream(stage: &Stage<'_>, act: &mut Act) -> Result<()> {
    let (camera, nvr) = (stage.device("camera")?, stage.device("nvr")?);
    let stream = programs::stream(stage.lab, camera, nvr, Network::Overlay)?;
    let flowing = clock::wait_for("the camera's stream", Duration::from_secs(10), || {
        Ok((programs::recorded(nvr)? > 1_000_000).then_some(()))
    });
    if let Err(error) = flowing {
        act.check(
            "camera's stream",
            "8 Mbit/s ± 10 %",
            &format!("{error:#}"),
            false,
        );
        process::kill(stream);
        return Ok(());
    }
    let rate = programs::recorded_mbit(nvr, Duration::from_secs(8))?;
    process::kill(stream);
    let held = (7.2..=8.8).contains(&rate);
    act.check(
        "camera's stream",
        "8 Mbit/s ± 10 %",
        &format!("{rate} Mbit/s"),
        held,
    );
    act.figure("camera_mbit", json!(rate));
    Ok(())
}

/// Returns whether a pair involves a device.
pub(crate) fn involves(pair: &Pair, name: &str) -> bool {
    find(name).is_some_and(|d| pair.from == d.name || pair.to == d.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_policy_has_no_findings() {
        let (policy, findings) = hedgerow_policy::parse(POLICY, "examples/plant.yaml");
        let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(
            findings.is_empty() && policy.is_some(),
            "{}",
            findings.join("\n")
        );
    }
}
