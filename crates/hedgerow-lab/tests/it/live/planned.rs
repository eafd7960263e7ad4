//! What a plan says of the sessions that are open now.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use hedgerow_lab::process::{self, Signal};
use serde_json::{Value, json};

use super::plot::{POLICY, Plot};

#[test]
fn a_plan_names_the_open_sessions_that_it_would_cut_and_says_whom_it_could_not_ask() -> Result<()> {
    let plot = Plot::open("planned")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let away = plot.enrolled("away", "s1", 13, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let (v6, v4) = (right.overlay(6)?, right.overlay(4)?);
    left.wait_reaches(&v6, 9000)?;
    let (talk, download) = (left.talk(&v6)?, left.download(&v4)?);
    let more = left.spawn("more", &["socat", "PIPE", &format!("TCP6:[{v6}]:9000")])?;
    plot.settled(&["left", "away", "right"])?;

    let gone = POLICY.replace("service: [ echo, web, ping ]", "service: ping");
    let no_web = POLICY.replace("service: [ echo, web, ping ]", "service: [ echo, ping ]");
    let no_ping = POLICY.replace("service: [ echo, web, ping ]", "service: [ echo, web ]");
    let cut = |service: &str, sessions: u32| json!({"from": "left.s1", "to": "right.s2", "service": service, "sessions": sessions});
    let asked = |cut: Value, answered: u32, not: u32| {
        json!({
            "cut": cut, "left_out": 0, "devices_asked": 3 - not, "devices_answered": answered,
            "devices_not_asked": not,
        })
    };
    let both = json!([cut("tcp/9000", 2), cut("tcp/8080", 1)]);
    ensure_live(&plot, &gone, &asked(both.clone(), 3, 0))?;
    let said = text(&plot, &gone)?;
    for row in ["2 left.s1 right.s2 tcp/9000", "1 left.s1 right.s2 tcp/8080"] {
        let is_row = |line: &str| line.split_whitespace().eq(row.split(' '));
        ensure!(said.lines().any(is_row), "{said}");
    }
    ensure_live(&plot, &no_web, &asked(json!([cut("tcp/8080", 1)]), 3, 0))?;
    ensure_live(&plot, &no_ping, &asked(json!([]), 3, 0))?;
    let none = "No live session would be cut (3 devices asked).";
    ensure!(text(&plot, &no_ping)?.contains(none));
    let same = POLICY.replace("r-echo", "r-same");
    ensure!(live(&plot, &same)?["cut"] == json!([]), "the same reach");

    // One is away: nothing is known of it, and the others' sessions are named all the same.
    away.stop()?;
    clock::wait_for("away to be away", Duration::from_secs(30), || {
        Ok((plot.record("away.s1")?["connected"] == false).then_some(()))
    })?;
    ensure_live(&plot, &gone, &asked(both, 2, 1))?;
    let said = text(&plot, &no_ping)?;
    let unknown = "Unknown: live sessions of 0 devices that did not answer and 1 that could not";
    ensure!(
        said.contains(unknown) && !said.contains("No live session"),
        "{said}"
    );
    // Both ends of the sessions are connected and silent.
    let mut frozen = Vec::new();
    for device in [&left, &right] {
        frozen.push(Frozen::new(device.service()?.pid.context("no agent")?));
    }
    ensure_live(&plot, &gone, &asked(json!([]), 0, 1))?;
    let said = text(&plot, &gone)?;
    let unknown = "Unknown: live sessions of 2 devices that did not answer and 1 that could not";
    ensure!(
        said.contains(unknown) && !said.contains("No live session"),
        "{said}"
    );
    drop(frozen);
    plot.settled(&["left", "right"])?;

    // Nothing of all this was more than a question.
    talk.moves()?;
    download.moves()?;
    ensure!(
        process::start_time(more).is_some(),
        "the third session has ended"
    );
    Ok(())
}

/// Returns the plan's word on open sessions.
fn live(plot: &Plot, policy: &str) -> Result<Value> {
    let said = plot.hedgerow_with(&["--json", "policy", "plan", "-"], Some(policy))?;
    let plan: Value = serde_json::from_str(&said.done()?)?;
    plan.get("live")
        .cloned()
        .context("no word on open sessions")
}

fn ensure_live(plot: &Plot, policy: &str, wanted: &Value) -> Result<()> {
    let live = live(plot, policy)?;
    ensure!(live == *wanted, "{live}\nwanted\n{wanted}\nfor {policy}");
    Ok(())
}

fn text(plot: &Plot, policy: &str) -> Result<String> {
    plot.hedgerow_with(&["policy", "plan", "-"], Some(policy))?
        .done()
}

/// A process that does not answer; it goes on when this is dropped.
struct Frozen(u32);

impl Frozen {
    fn new(pid: u32) -> Self {
        process::signal(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        process::signal(self.0, Signal::CONT);
    }
}
