//! `hedgerow events`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::api::{Request, segment};
use crate::error::CliError;
use crate::render::{instant, labels, list, plain, text};
use crate::shell::{Shell, Tone};
use crate::table::clean;

/// How often new events are asked for.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// Which events.
pub(super) struct Wish {
    pub(super) after: Option<u64>,
    pub(super) limit: u64,
    pub(super) kinds: Vec<String>,
    pub(super) device: Option<String>,
    pub(super) follow: bool,
}

/// Shows events, oldest first.
pub(super) fn run(mut wish: Wish, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    if let Some(device) = wish.device.take() {
        let record = shell.call(Request::get(format!("devices/{}", segment(&device))))?;
        wish.device = record.get("id").and_then(Value::as_str).map(str::to_owned);
    }
    loop {
        let answer = ask(&wish, shell)?;
        wish.after = answer.get("last").and_then(Value::as_u64).or(wish.after);
        show(answer, &wish, shell)?;
        if !wish.follow {
            return Ok(ExitCode::SUCCESS);
        }
        shell.out.flush()?;
        shell.system.pause(FOLLOW_EVERY);
    }
}

fn ask(wish: &Wish, shell: &mut Shell<'_>) -> Result<Value, CliError> {
    let request = Request::get("events")
        .query_if("after", wish.after)
        .query("limit", wish.limit);
    shell.call(request)
}

fn show(mut answer: Value, wish: &Wish, shell: &mut Shell<'_>) -> Result<(), CliError> {
    let wanted = |event: &Value| {
        let is = |key: &str, value: &str| event.get(key).and_then(Value::as_str) == Some(value);
        let kind = wish.kinds.is_empty() || wish.kinds.iter().any(|kind| is("kind", kind));
        let about = ["device", "peer", "reporter"];
        kind && wish
            .device
            .as_ref()
            .is_none_or(|d| about.iter().any(|key| is(key, d)))
    };
    if let Some(events) = answer.get_mut("events").and_then(Value::as_array_mut) {
        events.retain(wanted);
    }
    if shell.json && !wish.follow {
        return shell.print_json(&answer);
    }
    for event in list(&answer, "events") {
        if shell.json {
            writeln!(shell.out, "{event}")?;
        } else {
            show_one(event, shell)?;
        }
    }
    Ok(())
}

fn show_one(event: &Value, shell: &mut Shell<'_>) -> Result<(), CliError> {
    let tone = match text(event, "severity").as_str() {
        "high" => Tone::Bad,
        "medium" => Tone::Waiting,
        _ => Tone::Plain,
    };
    let kind = shell.style.paint(tone, &clean(&text(event, "kind")));
    write!(shell.out, "{}  {kind}", instant(event, "at"))?;
    let names = [("device_name", "device"), ("peer_name", "peer")];
    for (i, (name, id)) in names.into_iter().enumerate() {
        let known = event.get(name).or(event.get(id)).filter(|v| !v.is_null());
        if let Some(known) = known {
            write!(
                shell.out,
                "  {}{}",
                if i == 0 { "" } else { "peer " },
                plain(known)
            )?;
        }
    }
    match event.get("details").map(labels) {
        Some(details) if details != "-" => writeln!(shell.out, "  {details}")?,
        _ => writeln!(shell.out)?,
    }
    Ok(())
}
