//! `hedgerow policy`.

use std::process::ExitCode;
use std::time::Duration;

use hedgerow_model::Fault;
use serde_json::{Value, json};

use super::wait::{self, Behind};
use crate::api::{Body, Request};
use crate::args::{PolicyCommand, Wait};
use crate::error::{CliError, FOUND};
use crate::render::{detail, flag, instant, list, plain, text};
use crate::shell::{Shell, Tone};
use crate::table::{Cell, Table};

/// Longest that one request waits at the controller.
const SERVER_WAIT_MAX: Duration = Duration::from_secs(300);

/// Runs a command about policy.
pub(super) fn run(command: PolicyCommand, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    match command {
        PolicyCommand::Check { file } => check(&file, shell),
        PolicyCommand::Test { file } => test(&file, shell),
        PolicyCommand::Plan { file } => plan(&file, shell),
        PolicyCommand::Apply {
            file,
            note,
            confirm,
            wait,
        } => {
            let source = shell.system.read_text(&file)?;
            let request = Request::post("policy/apply", Body::Yaml(source))
                .query_if("note", Some(note).filter(|note| !note.is_empty()));
            apply(request, confirm, wait, &file, shell)
        }
        PolicyCommand::Show { revision } => show(revision, shell),
        PolicyCommand::History { limit } => history(limit, shell),
        PolicyCommand::Rollback { to, confirm, wait } => {
            let body = to.as_ref().map_or(json!({}), |to| json!({"revision": to}));
            let request = Request::post("policy/rollback", Body::Json(body));
            apply(request, confirm, wait, "the earlier revision", shell)
        }
    }
}

/// Sends a file; findings in a refusal get the file's own name.
fn send(path: &str, file: &str, shell: &mut Shell<'_>) -> Result<Value, CliError> {
    let source = shell.system.read_text(file)?;
    let answer = shell.call(Request::post(path, Body::Yaml(source)));
    answer.map_err(|error| named(error, file))
}

fn named(mut error: CliError, file: &str) -> CliError {
    error
        .details
        .iter_mut()
        .for_each(|finding| name_file(finding, file));
    error
}

fn name_file(finding: &mut Value, file: &str) {
    let map = finding
        .as_object_mut()
        .filter(|map| map.contains_key("line"));
    if let Some(map) = map {
        let file = if file == "-" { "standard input" } else { file };
        map.insert("file".to_owned(), file.into());
    }
}

fn check(file: &str, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let mut answer = send("policy/check", file, shell)?;
    let findings = answer.get_mut("findings").and_then(Value::as_array_mut);
    findings
        .into_iter()
        .flatten()
        .for_each(|finding| name_file(finding, file));
    if shell.json {
        shell.print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let findings = list(&answer, "findings");
    for finding in findings {
        writeln!(shell.out, "{}", detail(finding))?;
    }
    let (tone, word) = match findings.len() {
        0 => (Tone::Good, "no mistakes".to_owned()),
        1 => (Tone::Waiting, "no errors, 1 warning".to_owned()),
        n => (Tone::Waiting, format!("no errors, {n} warnings")),
    };
    writeln!(shell.out, "{file}: {}", shell.style.paint(tone, &word))?;
    Ok(ExitCode::SUCCESS)
}

fn test(file: &str, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let answer = send("policy/test", file, shell)?;
    let tests = list(&answer, "tests");
    let failed = tests.iter().filter(|test| !flag(test, "passed")).count();
    if shell.json {
        shell.print_json(&answer)?;
    } else {
        show_tests(tests, file, shell)?;
        let line = format!("{} passed, {failed} failed", tests.len() - failed);
        let tone = if failed == 0 { Tone::Good } else { Tone::Bad };
        writeln!(shell.out, "{}", shell.style.paint(tone, &line))?;
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FOUND)
    })
}

fn show_tests(tests: &[Value], file: &str, shell: &mut Shell<'_>) -> Result<(), CliError> {
    for test in tests {
        let passed = flag(test, "passed");
        let (tone, word) = if passed {
            (Tone::Good, "ok    ")
        } else {
            (Tone::Bad, "FAILED")
        };
        let word = shell.style.paint(tone, word);
        writeln!(
            shell.out,
            "{word}  {file}:{}: {}",
            text(test, "line"),
            text(test, "title")
        )?;
        if !passed {
            writeln!(shell.out, "        {}", text(test, "detail"))?;
        }
    }
    Ok(())
}

fn plan(file: &str, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let plan = send("policy/plan", file, shell)?;
    let tests = list(&plan, "tests").iter();
    let failed: Vec<Value> = tests
        .filter(|test| !flag(test, "passed"))
        .cloned()
        .collect();
    let accepted = flag(&plan, "ok");
    let code = if accepted {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FOUND)
    };
    if shell.json {
        shell.print_json(&plan)?;
        return Ok(code);
    }
    show_plan(&plan, shell)?;
    show_tests(&failed, file, shell)?;
    for program in list(&plan, "too_large") {
        writeln!(shell.out, "too large: {}", plain(program))?;
    }
    show_live(&plan, shell)?;
    for warning in list(&plan, "warnings") {
        let line = format!("Warning: {}", plain(warning));
        writeln!(shell.out, "{}", shell.style.paint(Tone::Waiting, &line))?;
    }
    for loss in list(&plan, "needs_confirmation") {
        let line = format!("Needs --confirm: {}", plain(loss));
        writeln!(shell.out, "{}", shell.style.paint(Tone::Waiting, &line))?;
    }
    if accepted {
        writeln!(
            shell.err,
            "Nothing has changed. `hedgerow policy apply {file}` puts it into force."
        )?;
    } else {
        writeln!(
            shell.out,
            "{}",
            shell.style.paint(Tone::Bad, "This would be refused.")
        )?;
    }
    Ok(code)
}

fn show_plan(plan: &Value, shell: &mut Shell<'_>) -> Result<(), CliError> {
    for (key, word) in [
        ("rules_added", "+"),
        ("rules_removed", "-"),
        ("rules_changed", "~"),
    ] {
        for rule in list(plan, key) {
            writeln!(shell.out, "{word} rule {}", plain(rule))?;
        }
    }
    let mut table = Table::new(&["", "FROM", "TO", "SERVICE", "WHEN", "BEFORE", "AFTER"]);
    for (key, word, tone) in [
        ("gained", "gained", Tone::Waiting),
        ("lost", "lost", Tone::Bad),
    ] {
        for change in list(plan, key) {
            table.row(vec![
                Cell::toned(word, tone),
                text(change, "from").into(),
                text(change, "to").into(),
                text(change, "service").into(),
                text(change, "relation").into(),
                text(change, "before").replace('_', " ").into(),
                text(change, "after").replace('_', " ").into(),
            ]);
        }
    }
    table.write(shell.style, shell.out)?;
    let reach = list(plan, "gained").len() + list(plan, "lost").len();
    if reach == 0 {
        writeln!(shell.out, "Nobody reaches more or less than now.")?;
    }
    writeln!(
        shell.out,
        "{} devices affected, {} programs, at most {} rules in one.",
        text(plan, "devices_affected"),
        text(plan, "programs"),
        text(plan, "rules_max"),
    )?;
    Ok(())
}

/// Shows the sessions that would be cut, and of how many devices that is not known.
fn show_live(plan: &Value, shell: &mut Shell<'_>) -> Result<(), CliError> {
    let Some(live) = plan.get("live") else {
        return Ok(());
    };
    let cut = list(live, "cut");
    if !cut.is_empty() {
        writeln!(shell.out, "Live sessions that would be cut:")?;
        let mut table = Table::new(&["SESSIONS", "FROM", "TO", "SERVICE"]);
        for row in cut {
            table.row(vec![
                Cell::toned(text(row, "sessions"), Tone::Bad),
                text(row, "from").into(),
                text(row, "to").into(),
                text(row, "service").into(),
            ]);
        }
        table.write(shell.style, shell.out)?;
    }
    let number = |key: &str| live.get(key).and_then(Value::as_u64).unwrap_or(0);
    let asked = number("devices_asked");
    let silent = asked.saturating_sub(number("devices_answered"));
    if number("left_out") > 0 {
        writeln!(
            shell.out,
            "{} kinds of sessions are not listed.",
            number("left_out")
        )?;
    }
    if silent + number("devices_not_asked") > 0 {
        let line = format!(
            "Unknown: live sessions of {silent} devices that did not answer and {} that could not be asked.",
            number("devices_not_asked")
        );
        writeln!(shell.out, "{}", shell.style.paint(Tone::Waiting, &line))?;
    } else if asked > 0 && cut.is_empty() {
        writeln!(
            shell.out,
            "No live session would be cut ({asked} devices asked)."
        )?;
    }
    Ok(())
}

/// Puts something into force and says where it is not.
fn apply(
    request: Request,
    confirm: bool,
    wait: Wait,
    file: &str,
    shell: &mut Shell<'_>,
) -> Result<ExitCode, CliError> {
    let wait = wait.wait.0.min(SERVER_WAIT_MAX);
    let mut request = request.query("wait", wait.as_secs()).patient(wait);
    if confirm {
        request = request.query("confirm", true);
    }
    if !wait.is_zero() && !shell.json {
        let limit = wait.as_secs();
        writeln!(
            shell.err,
            "  waiting up to {limit} s for every connected device's kernel"
        )?;
    }
    let answer = shell
        .call(request)
        .map_err(|error| named(confirmable(error), file))?;
    let behind = match wait.is_zero() {
        true => None,
        false => Some(applied(&answer, &shell.call(Request::get("status"))?)),
    };
    if shell.json {
        shell.print_json(&answer)?;
    } else {
        writeln!(
            shell.out,
            "Revision {} is accepted.",
            text(&answer, "revision")
        )?;
        if let Some(ms) = answer.get("last_verified_ms").and_then(Value::as_f64) {
            writeln!(
                shell.out,
                "The last kernel verified it {ms:.0} ms after the decision."
            )?;
        }
        match &behind {
            Some(behind) => wait::report(behind, shell)?,
            None => writeln!(
                shell.err,
                "`hedgerow status` says which devices have verified it."
            )?,
        }
    }
    let done = behind.is_none_or(|behind| behind.is_done());
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Fault::Environment.exit_code())
    })
}

/// Puts together who verified this very revision, and who was not there.
fn applied(answer: &Value, status: &Value) -> Behind {
    let mut behind = Behind {
        away: Behind::of(status, None).away,
        ..Behind::default()
    };
    for device in list(answer, "devices") {
        let name = text(device, "name");
        let rejected = device.get("rejected").and_then(Value::as_str);
        match (device.get("verified_ms").and_then(Value::as_f64), rejected) {
            (Some(_), _) => behind.verified += 1,
            (None, Some(reason)) => behind.rejected.push(format!("{name} ({reason})")),
            (None, None) => behind.waiting.push(name),
        }
    }
    behind
}

/// Says the confirmation in this tool's words.
fn confirmable(mut error: CliError) -> CliError {
    if error.code == "confirmation_needed" {
        error.remedy = "look at the list; then add --confirm".to_owned();
    }
    error
}

fn show(revision: Option<String>, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let answer = shell.call(Request::get("policy").query_if("revision", revision))?;
    if shell.json {
        shell.print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let source = answer
        .get("source")
        .and_then(Value::as_str)
        .ok_or(CliError::answer("source"))?;
    writeln!(
        shell.err,
        "# revision {} by {} at {}",
        text(&answer, "revision"),
        text(&answer, "author"),
        instant(&answer, "at"),
    )?;
    write!(shell.out, "{source}")?;
    if !source.ends_with('\n') {
        writeln!(shell.out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn history(limit: u64, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let answer = shell.call(Request::get("policy/history").query("limit", limit))?;
    if shell.json {
        shell.print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["REVISION", "AT", "BY", "HASH", "NOTE"]);
    for revision in list(&answer, "revisions") {
        let hash: String = text(revision, "hash").chars().take(12).collect();
        table.row(vec![
            text(revision, "revision").into(),
            instant(revision, "at").into(),
            text(revision, "author").into(),
            hash.into(),
            text(revision, "note").into(),
        ]);
    }
    table.write(shell.style, shell.out)?;
    Ok(ExitCode::SUCCESS)
}
