//! What an operator must see before it comes into force.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::plot::{POLICY, Plot, Said};

#[test]
fn a_change_that_takes_much_away_or_breaks_a_test_needs_an_operator() -> Result<()> {
    let plot = Plot::open("confirm")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    right.serve()?;
    let rules: String = (0..30)
        .map(|n| {
            format!("  - {{ id: r-{n}, from: \"role=left\", to: \"role=right\", service: s{n} }}\n")
        })
        .collect();
    let services: String = (0..30)
        .map(|n| format!("  s{n}: [ tcp/{} ]\n", 10_000 + n))
        .collect();
    let full = POLICY
        .replace("defaults:", &format!("{rules}defaults:"))
        .replace("segments:", &format!("{services}segments:"));
    let first = applied(apply(&plot, &full, &[])?)?;
    left.wait_reaches(&right.overlay(6)?, 9000)?;

    // Twenty-nine rules fewer.
    let code = refusal(apply(&plot, POLICY, &[])?)?;
    ensure!(code == "confirmation_needed", "{code}");
    ensure!(in_force(&plot)? == first, "it came into force all the same");
    let second = applied(apply(&plot, POLICY, &["--confirm"])?)?;
    ensure!(number(&second)? > number(&first)?, "{second} after {first}");

    // A test in the file fails; a guardrail is broken; the file does not read.
    let test =
        "tests:\n  - { from: \"role=other\", to: \"role=right\", service: echo, expect: allow }\n";
    ensure!(
        refusal(apply(&plot, &format!("{POLICY}{test}"), &["--confirm"])?)? == "policy_test_failed"
    );
    let guardrail = POLICY.replace(
        "rules:",
        "guardrails:\n  - { id: g-right, deny: { to: \"role=right\" } }\nrules:",
    );
    let test =
        "tests:\n  - { from: \"role=left\", to: \"role=right\", service: echo, expect: allow }\n";
    let both = format!("{guardrail}{test}");
    ensure!(refusal(apply(&plot, &both, &["--confirm"])?)? == "policy_test_failed");
    let said = plot.hedgerow_with(&["policy", "test", "-"], Some(&both))?;
    ensure!(said.code == Some(1), "{said:?}");
    let broken = POLICY.replace("role=left", "role=lift");
    ensure!(refusal(apply(&plot, &broken, &["--confirm"])?)? == "policy_invalid");
    ensure!(in_force(&plot)? == second, "a refused policy is in force");
    left.wait_reaches(&right.overlay(6)?, 9000)?;

    // Back to the first: a new revision with the old text.
    let words = [
        "--json", "policy", "rollback", "--to", &first, "--wait", "30s",
    ];
    let third = applied(plot.hedgerow(&words)?)?;
    ensure!(number(&third)? > number(&second)?, "{third} after {second}");
    let shown = plot.json(&["policy", "show"])?;
    ensure!(shown["source"] == full, "another text: {shown}");
    ensure!(shown["revision"] == third, "{shown}");
    let history = plot.json(&["policy", "history"])?;
    let revisions = history["revisions"].as_array().context("no history")?;
    let newest = revisions
        .iter()
        .filter_map(|r| r["revision"].as_str())
        .take(3);
    ensure!(
        newest.eq([&third, &second, &first].map(String::as_str)),
        "{history}"
    );
    // Rolling back what adds rules takes them away again: asked for as well.
    let words = [
        "--json", "policy", "rollback", "--to", &second, "--wait", "30s",
    ];
    ensure!(refusal(plot.hedgerow(&words)?)? == "confirmation_needed");
    let said = plot.hedgerow(&["policy", "rollback", "--to", "1.9999"])?;
    ensure!(said.code == Some(1), "{said:?}");
    Ok(())
}

fn apply(plot: &Plot, policy: &str, more: &[&str]) -> Result<Said> {
    let words = ["--json", "policy", "apply", "-", "--wait", "30s"];
    plot.hedgerow_with(&[&words, more].concat(), Some(policy))
}

fn applied(said: Said) -> Result<String> {
    let answer: Value = serde_json::from_str(&said.done()?)?;
    Ok(answer["revision"]
        .as_str()
        .context("no revision")?
        .to_owned())
}

fn refusal(said: Said) -> Result<String> {
    let line = said.refused(1)?;
    let error: Value = serde_json::from_str(&line)?;
    Ok(error["error"]["code"]
        .as_str()
        .context("no code")?
        .to_owned())
}

fn in_force(plot: &Plot) -> Result<String> {
    let status = plot.json(&["status"])?;
    Ok(status["policy_revision"]
        .as_str()
        .context("no revision")?
        .to_owned())
}

fn number(revision: &str) -> Result<u64> {
    let (_, number) = revision.split_once('.').context("no dot")?;
    Ok(number.parse()?)
}
