//! A peer that renegotiates for ever: a device of ours whose owner replaced the agent.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};
use serde_json::Value;

use super::super::plot::{POLICY, Plot};
use super::{Pulse, join};

/// How long it goes on.
const SECS: u64 = 20;
/// Handshakes of one peer that are answered in a second: one in 20 ms.
const ANSWERED_PER_SECOND: u64 = 50;
/// What honest devices begin meanwhile.
const HONEST_MAX: u64 = 20;
/// What the agent may need more for it.
const RESTLESS_KIB_MAX: u64 = 16 * 1024;
/// Events that come of it at most.
const EVENTS_MAX: usize = 60;

#[test]
fn a_peer_that_renegotiates_for_ever_is_answered_within_its_budget_and_keeps_nobody_out()
-> Result<()> {
    let plot = Plot::open_in_real_time("restless")?;
    plot.apply(POLICY)?;
    let [left, right] = [
        plot.device("left", "s1", 11)?,
        plot.device("right", "s2", 11)?,
    ];
    let [restless, late] = [
        plot.device("restless", "s1", 12)?,
        plot.device("late", "s1", 13)?,
    ];
    join(&plot, &right, "s2", "role=right")?;
    for device in [&left, &restless, &late] {
        join(&plot, device, "s1", "role=left")?;
    }
    right.serve()?;
    restless.stop()?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let talk = left.talk(&target)?;
    let pulse = Pulse::start(&left, "beside", &target)?;
    let count = |name: &str| -> Result<u64> {
        let stats = right.status()?["mesh"]["tunnel"].clone();
        stats[name].as_u64().with_context(|| format!("no {name}"))
    };
    let agent = right.service()?.pid.context("no agent")?;
    let (before, rss) = (count("handshakes_done")?, process::resident_kib(agent)?.0);

    let [own, attacked] = [&restless, &right].map(|d| d.directory.join("state"));
    let (own, attacked) = (own.to_string_lossy(), attacked.to_string_lossy());
    let program = env!("CARGO_BIN_EXE_hedgerow-lab");
    let secs = SECS.to_string();
    let words = [
        program,
        "renegotiate",
        &own,
        &attacked,
        "10.77.2.11:7117",
        "--secs",
        &secs,
    ];
    let pid = restless.spawn("hands", &words)?;
    clock::wait_for("the handshakes", Duration::from_secs(20), || {
        let refused = count("dropped_handshake_rate")?;
        ensure!(refused > 1000, "{refused} refused");
        Ok(Some(()))
    })?;
    // Who had a session has it, and who comes gets one.
    talk.moves()?;
    late.wait_reaches(&target, 9000)?;
    talk.moves()?;
    ensure!(process::start_time(pid).is_some(), "it ended too soon");
    process::wait_end(pid, Duration::from_secs(2 * SECS))?;
    pulse.end("beside a peer that renegotiates")?;

    let said = fs::read_to_string(restless.log_file("hands")?)?;
    let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let [begun, done] = ["begun", "done"].map(|key| said[key].as_u64().unwrap_or(0));
    ensure!(begun > 100 * ANSWERED_PER_SECOND && done > 10, "{said}");
    // One that is answered anew before it was confirmed is not done.
    let most = ANSWERED_PER_SECOND * (SECS + 1) + HONEST_MAX;
    let answered = count("handshakes_done")? - before;
    ensure!(answered.max(done) <= most, "{answered} of {said}");
    let metrics = right.agent(&["metrics"])?.done()?;
    let refused = "hedgerow_tunnel_dropped_total{reason=\"handshake_rate\"} ";
    let line = metrics.lines().find_map(|l| l.strip_prefix(refused));
    ensure!(line.is_some_and(|n| n != "0"), "{refused}{line:?}");
    few_events(&plot)?;
    let service = right.service()?;
    ensure!(service.starts == 1, "the agent has ended");
    let more = process::resident_kib(agent)?.0.saturating_sub(rss);
    ensure!(more <= RESTLESS_KIB_MAX, "{more} KiB more");
    talk.moves()
}

/// Whoever looks at events is not flooded.
fn few_events(plot: &Plot) -> Result<()> {
    for kind in ["path_changed", "path_lost", "introduction_refused"] {
        let seen = plot.events(kind)?.len();
        ensure!(seen <= EVENTS_MAX, "{seen} events {kind}");
    }
    Ok(())
}
