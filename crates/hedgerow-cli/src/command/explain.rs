//! `hedgerow explain`.

use std::process::ExitCode;

use serde_json::Value;

use crate::api::Request;
use crate::error::CliError;
use crate::render::{flag, list};
use crate::shell::{Shell, Tone};
use crate::table::clean;

/// What is asked.
pub(super) struct Question {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) service: String,
    pub(super) at: Option<String>,
}

/// Asks and shows. A refused flow is an answer, not a failure.
pub(super) fn run(question: &Question, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let request = Request::get("explain")
        .query("from", &question.from)
        .query("to", &question.to)
        .query("service", &question.service)
        .query_if("at", question.at.as_deref());
    let answer = shell.call(request)?;
    if shell.json {
        shell.print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let explanations = list(&answer, "explanations");
    if explanations.is_empty() {
        return Err(CliError::answer("explanations"));
    }
    for (i, explanation) in explanations.iter().enumerate() {
        if i > 0 {
            writeln!(shell.out)?;
        }
        show(explanation, shell)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(explanation: &Value, shell: &mut Shell<'_>) -> Result<(), CliError> {
    let told = explanation
        .get("text")
        .and_then(Value::as_str)
        .ok_or(CliError::answer("text"))?;
    let tone = if flag(explanation, "passes") {
        Tone::Good
    } else {
        Tone::Bad
    };
    for (i, line) in told.lines().enumerate() {
        let line = clean(line);
        let painted = if i == 0 {
            shell.style.paint(tone, &line)
        } else {
            line
        };
        writeln!(shell.out, "{painted}")?;
    }
    Ok(())
}
