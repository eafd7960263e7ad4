//! `hedgerow status`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::device::{connected, state};
use crate::api::Request;
use crate::error::CliError;
use crate::render::{flag, full_name, list, text};
use crate::shell::{Shell, Tone};
use crate::table::{Cell, Table};
use crate::time::short;

/// Shows what is in force and where it is not.
pub(super) fn run(all: bool, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let status = shell.call(Request::get("status"))?;
    if shell.json {
        shell.print_json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    let devices = list(&status, "devices");
    writeln!(
        shell.out,
        "{}: revision {}, policy {}",
        text(&status, "trust_domain"),
        text(&status, "revision"),
        text(&status, "policy_revision"),
    )?;
    writeln!(shell.out, "root hash {}", text(&status, "root_hash"))?;
    writeln!(
        shell.out,
        "{} devices, {} connected, {} of these verified in their kernel, {} quarantined, {} flagged",
        text(&status, "enrolled"),
        text(&status, "connected"),
        text(&status, "verified"),
        text(&status, "quarantined"),
        text(&status, "flagged"),
    )?;
    let notable: Vec<&Value> = devices.iter().filter(|d| all || is_notable(d)).collect();
    let mut table = Table::new(&["DEVICE", "CONNECTED", "IN THE KERNEL", "AGE", "STATE"]);
    for device in &notable {
        let seen = if flag(device, "connected") {
            "verified_age"
        } else {
            "seen_age"
        };
        table.row(vec![
            full_name(device).into(),
            connected(device),
            in_kernel(device),
            age(device, seen).into(),
            state(device),
        ]);
    }
    if !notable.is_empty() {
        writeln!(shell.out)?;
    }
    table.write(shell.style, shell.out)?;
    if notable.is_empty() && !devices.is_empty() {
        let line = "Every device is connected and enforces what it was told.";
        writeln!(shell.out, "{}", shell.style.paint(Tone::Good, line))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns whether a device is not as it should be.
fn is_notable(device: &Value) -> bool {
    let odd = ["flagged", "session_held"]
        .iter()
        .any(|key| flag(device, key));
    let state = device.get("state").is_some_and(Value::is_string);
    odd || state || !flag(device, "verified") || !flag(device, "connected")
}

fn in_kernel(device: &Value) -> Cell {
    let revision = device.get("verified_revision").and_then(Value::as_str);
    let rejected = device.get("rejected").and_then(Value::as_str);
    match (revision, rejected) {
        (Some(revision), _) if flag(device, "verified") && flag(device, "connected") => {
            Cell::toned(revision, Tone::Good)
        }
        (_, Some(reason)) => Cell::toned(format!("refused: {reason}"), Tone::Bad),
        (Some(revision), None) => Cell::toned(format!("still {revision}"), Tone::Waiting),
        (None, None) => Cell::toned("unknown", Tone::Waiting),
    }
}

fn age(device: &Value, key: &str) -> String {
    let ms = device.get(format!("{key}_ms")).and_then(Value::as_u64);
    ms.map_or("-".to_owned(), |ms| short(Duration::from_millis(ms)))
}
