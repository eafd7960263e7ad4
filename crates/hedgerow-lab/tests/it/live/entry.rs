//! Who gets in, and who does not: approval by an operator, and tokens that are no good.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use serde_json::Value;

use super::device::Device;
use super::plot::{POLICY, Plot, Said};

const CONTROLLER: &str = "10.77.0.2:7443";

#[test]
fn without_a_token_an_operator_decides_by_the_fingerprint() -> Result<()> {
    let plot = Plot::open("approval")?;
    plot.apply(POLICY)?;
    let status = plot.json(&["status"])?;
    let hash = status["root_hash"]
        .as_str()
        .context("no root hash")?
        .to_owned();
    let asker = plot.device("asker", "s1", 11)?;
    let wrong = "5".repeat(64);
    let said = asker.agent(&["enroll", "--controller", CONTROLLER, "--root-hash", &wrong])?;
    one_line(said, 1, "root")?;
    ensure!(
        pending(&plot)?.is_empty(),
        "it asked whom it must not believe"
    );

    let order = [
        "enroll",
        "--controller",
        CONTROLLER,
        "--root-hash",
        &hash,
        "--name",
        "asker",
    ];
    let said = decide(&plot, &asker, &order, |fingerprint| {
        let words = [
            "device",
            "approve",
            fingerprint,
            "--site",
            "s1",
            "--labels",
            "role=left",
        ];
        plot.hedgerow(&words)?.done()
    })?;
    said.done().context("approved")?;
    asker.start()?;
    plot.settled(&["asker"])?;
    let record = plot.record("asker.s1")?;
    ensure!(record["labels"]["role"] == "left", "{record}");
    plot.event("approval_requested", |_| true)?;

    let stranger = plot.device("stranger", "s1", 12)?;
    let said = decide(&plot, &stranger, &order[..5], |fingerprint| {
        plot.hedgerow(&["device", "reject", fingerprint])?.done()
    })?;
    one_line(said, 1, "reject")?;
    refused_event(&plot, "rejected")?;
    let said = stranger.agent(&order[..5])?;
    one_line(said, 1, "reject").context("asking again")?;
    by_token(&plot)
}

/// A token that says so waits for an operator as well.
fn by_token(plot: &Plot) -> Result<()> {
    let words = [
        "token",
        "create",
        "--site",
        "s2",
        "--labels",
        "role=right",
        "--approve",
        "--json",
    ];
    let token: Value = serde_json::from_str(&plot.hedgerow(&words)?.done()?)?;
    let token = token["token"].as_str().context("no token")?;
    let patient = plot.device("patient", "s2", 11)?;
    let file = patient.directory.join("token");
    fs::write(&file, token)?;
    let order = ["enroll", "--token-file", &file.to_string_lossy()];
    let said = decide(plot, &patient, &order, |fingerprint| {
        plot.hedgerow(&["device", "approve", fingerprint, "--name", "patient"])?
            .done()
    })?;
    said.done().context("a token that waits for approval")?;
    let record = plot.record("patient.s2")?;
    ensure!(record["labels"]["role"] == "right", "{record}");
    Ok(())
}

/// Lets a device ask, and an operator decide when both sides show the same fingerprint; returns what
/// the device said in the end.
fn decide(
    plot: &Plot,
    device: &Device<'_>,
    order: &[&str],
    decision: impl FnOnce(&str) -> Result<String>,
) -> Result<Said> {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| device.agent(order));
        let decided = clock::wait_for("a request that waits", Duration::from_secs(20), || {
            Ok(pending(plot)?.into_iter().find(|p| {
                p["decision"].is_null() || p["decision"] == "none" || p["decision"] == "waiting"
            }))
        })
        .and_then(|waiting| {
            let listed = waiting["fingerprint"]
                .as_str()
                .context("no fingerprint")?
                .to_owned();
            let shown = device.agent(&["fingerprint"])?.done()?;
            ensure!(
                shown.trim() == listed,
                "{shown} on the device, {listed} at the controller"
            );
            decision(&listed)
        });
        let said = asking
            .join()
            .map_err(|_panic| anyhow::anyhow!("the device fell down"))?;
        decided?;
        let said = said?;
        ensure!(
            said.err.contains("fingerprint"),
            "it does not show its own: {said:?}"
        );
        Ok(said)
    })
}

fn pending(plot: &Plot) -> Result<Vec<Value>> {
    let list = plot.json(&["device", "list", "--pending"])?;
    Ok(list["pending"].as_array().context("no list")?.clone())
}

#[test]
fn a_token_that_is_no_good_gets_one_clear_line_and_an_event() -> Result<()> {
    let plot = Plot::open("tokens")?;
    let device = plot.device("device", "s1", 11)?;
    let good = plot.token(&["--site", "s1", "--name", "device", "--labels", "role=left"])?;

    one_line(
        device.agent_with(&["enroll"], Some("hgt1.nonsense"))?,
        1,
        "token",
    )?;
    one_line(device.agent_with(&["enroll"], Some(""))?, 1, "token")?;
    // Of another trust domain, whose controller has this address: not believed, nothing sent.
    let foreign = changed(&good, good.len() - 4);
    one_line(device.agent_with(&["enroll"], Some(&foreign))?, 1, "root")?;
    // Another secret, and another number.
    one_line(
        device.agent_with(&["enroll"], Some(&changed(&good, 35)))?,
        1,
        "token",
    )?;
    refused_event(&plot, "bad_signature")?;
    one_line(
        device.agent_with(&["enroll"], Some(&changed(&good, 11)))?,
        1,
        "token",
    )?;
    refused_event(&plot, "token_unknown")?;

    let short = plot.token(&["--site", "s1", "--labels", "role=left", "--ttl", "1m"])?;
    plot.advance(120)?;
    one_line(device.agent_with(&["enroll"], Some(&short))?, 1, "expired")?;
    refused_event(&plot, "token_expired")?;

    let ended = plot.json(&["token", "create", "--site", "s1", "--labels", "role=left"])?;
    let (id, text) = (ended["id"].as_str(), ended["token"].as_str());
    plot.hedgerow(&["token", "revoke", id.context("no id")?])?
        .done()?;
    one_line(device.agent_with(&["enroll"], text)?, 1, "token")?;

    // A name that the token is not for.
    let said = device.agent_with(&["enroll", "--name", "other"], Some(&good))?;
    one_line(said, 1, "name")?;

    device.agent_with(&["enroll"], Some(&good))?.done()?;
    let second = plot.device("second", "s2", 11)?;
    one_line(second.agent_with(&["enroll"], Some(&good))?, 1, "used")?;
    plot.event("token_reused", |_| true)?;
    // Already enrolled: another site's token changes nothing.
    let elsewhere = plot.token(&["--site", "s2", "--labels", "role=right"])?;
    let said = device.agent_with(&["enroll"], Some(&elsewhere))?;
    one_line(said, 1, "enrolled already")?;
    ensure!(
        plot.record("device.s1")?["labels"]["role"] == "left",
        "it changed"
    );
    let list = plot.json(&["device", "list"])?;
    ensure!(
        list["devices"].as_array().map(Vec::len) == Some(1),
        "{list}"
    );
    Ok(())
}

/// Changes one character of a token.
fn changed(token: &str, at: usize) -> String {
    let other = |c: char| if c == 'A' { 'B' } else { 'A' };
    let letters = token.chars().enumerate();
    letters
        .map(|(i, c)| if i == at { other(c) } else { c })
        .collect()
}

/// Holds that a refusal is one line with a word in it.
fn one_line(said: Said, code: i32, word: &str) -> Result<()> {
    let lines = said
        .err
        .lines()
        .filter(|l| !l.contains("waiting for an operator"))
        .count();
    ensure!(lines == 1, "not one line: {said:?}");
    let line = said.refused(code)?;
    ensure!(line.contains(word), "{line:?} does not say {word:?}");
    Ok(())
}

fn refused_event(plot: &Plot, reason: &str) -> Result<()> {
    plot.event("enrollment_refused", |event| {
        event["details"]["reason"] == reason
    })
    .with_context(|| format!("reason {reason}"))?;
    Ok(())
}
