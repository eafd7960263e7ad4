//! `hedgerow device`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hedgerow_model::Fault;
use hedgerow_model::id::{DeviceName, LabelKey, LabelValue, Labels, SiteName};
use serde_json::{Map, Value, json};

use super::token::labels_json;
use super::wait;
use crate::api::{Body, Method, Request, segment};
use crate::args::{DeviceCommand, Wait};
use crate::error::{CliError, FOUND};
use crate::render::{flag, full_name, instant, labels as show_labels, list, plain, text};
use crate::shell::{Shell, Tone};
use crate::table::{Cell, Table};

/// Runs a command about devices.
pub(super) fn run(command: DeviceCommand, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    match command {
        DeviceCommand::List { pending: true, .. } => show_pending(shell),
        DeviceCommand::List { site, labels, .. } => show_all(site.as_ref(), &labels, shell),
        DeviceCommand::Show { device } => show(&device, shell),
        DeviceCommand::Label {
            device,
            changes,
            replace,
            wait,
        } => {
            let labels = relabelled(&device, &changes, replace, shell)?;
            let path = format!("devices/{}/labels", segment(&device));
            let body = Body::Json(json!({"labels": labels_json(&labels)}));
            let request = Request::new(Method::Put, path, body);
            order(
                request,
                &format!("{device} is now {labels}"),
                Some(wait),
                shell,
            )
        }
        DeviceCommand::Quarantine {
            device,
            reason,
            wait,
        } => {
            let body = json!({"reason": reason});
            let said = format!("Quarantine is ordered for {device}");
            order(post(&device, "quarantine", body), &said, Some(wait), shell)
        }
        DeviceCommand::Release { device, wait } => {
            let request = post(&device, "release", json!({}));
            order(request, &format!("{device} is released"), Some(wait), shell)
        }
        DeviceCommand::Reconnect { device } => {
            let said = format!("{device} connects again");
            order(post(&device, "reconnect", json!({})), &said, None, shell)
        }
        DeviceCommand::RotateKeys { device } => {
            let said = format!("{device} makes new tunnel keys");
            order(post(&device, "rotate-keys", json!({})), &said, None, shell)
        }
        DeviceCommand::Revoke {
            device,
            reason,
            wait,
        } => {
            let body = json!({"reason": reason});
            let said = format!("{device} is revoked");
            order(post(&device, "revoke", body), &said, Some(wait), shell)
        }
        DeviceCommand::Approve {
            device,
            site,
            labels,
            name,
        } => {
            let request = approve(&device, site, labels, name);
            order(request, &format!("{device} is approved"), None, shell)
        }
        DeviceCommand::Reject { device } => {
            let request = post(&device, "reject", json!({}));
            order(request, &format!("{device} is turned away"), None, shell)
        }
        DeviceCommand::Remove { device } => {
            let path = format!("devices/{}", segment(&device));
            let request = Request::new(Method::Delete, path, Body::None);
            order(request, &format!("{device} is removed"), None, shell)
        }
    }
}

fn approve(
    device: &str,
    site: Option<SiteName>,
    labels: Option<Labels>,
    name: Option<DeviceName>,
) -> Request {
    let mut body = Map::new();
    body.extend(site.map(|s| ("site".to_owned(), s.as_str().into())));
    body.extend(labels.map(|l| ("labels".to_owned(), labels_json(&l))));
    body.extend(name.map(|n| ("name".to_owned(), n.as_str().into())));
    post(device, "approve", Value::Object(body))
}

fn post(device: &str, what: &str, body: Value) -> Request {
    Request::post(
        format!("devices/{}/{what}", segment(device)),
        Body::Json(body),
    )
}

/// Orders a change, waits for kernels if asked to, and says what is not yet true.
fn order(
    request: Request,
    said: &str,
    wait: Option<Wait>,
    shell: &mut Shell<'_>,
) -> Result<ExitCode, CliError> {
    let answer = shell.call(request)?;
    if !shell.json {
        writeln!(shell.out, "{said}.")?;
    }
    let limit = wait
        .map(|wait| wait.wait.0)
        .filter(|limit| !limit.is_zero());
    let behind = limit
        .map(|limit| wait::until_verified(limit, shell))
        .transpose()?;
    if shell.json {
        let rollout = behind.as_ref().map(wait::Behind::to_json);
        shell.print_json(&json!({"device": answer, "rollout": rollout}))?;
    } else if let Some(behind) = &behind {
        wait::report(behind, shell)?;
    } else if wait.is_some() {
        writeln!(
            shell.err,
            "`hedgerow status` says which devices have verified it."
        )?;
    }
    let late = behind.is_some_and(|behind| !behind.is_done());
    Ok(if late {
        ExitCode::from(Fault::Environment.exit_code())
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns the labels a device shall have.
fn relabelled(
    device: &str,
    changes: &[String],
    replace: bool,
    shell: &mut Shell<'_>,
) -> Result<Labels, CliError> {
    let mut labels: BTreeMap<LabelKey, LabelValue> = BTreeMap::new();
    if !replace {
        let record = shell.call(Request::get(format!("devices/{}", segment(device))))?;
        let have = record.get("labels").and_then(Value::as_object);
        for (key, value) in have.ok_or(CliError::answer("labels"))? {
            let value = value.as_str().ok_or(CliError::answer("labels"))?;
            let bad = |_e| CliError::answer("labels that are valid");
            labels.insert(
                LabelKey::new(key).map_err(bad)?,
                LabelValue::new(value).map_err(bad)?,
            );
        }
    }
    let wrong =
        |message: String| CliError::invalid(message, "write key=value, or key- to take it away");
    for change in changes.iter().flat_map(|change| change.split(',')) {
        if let Some((key, value)) = change.split_once('=') {
            let key = LabelKey::new(key).map_err(|e| wrong(e.to_string()))?;
            labels.insert(
                key,
                LabelValue::new(value).map_err(|e| wrong(e.to_string()))?,
            );
        } else if let Some(key) = change.strip_suffix('-') {
            let key = LabelKey::new(key).map_err(|e| wrong(e.to_string()))?;
            labels.remove(&key);
        } else {
            return Err(wrong(format!("`{change}` changes no label")));
        }
    }
    Labels::new(labels).map_err(|e| wrong(e.to_string()))
}

fn show_all(
    site: Option<&SiteName>,
    labels: &Labels,
    shell: &mut Shell<'_>,
) -> Result<ExitCode, CliError> {
    let request = Request::get("devices").query_if("site", site.map(SiteName::as_str));
    let mut answer = shell.call(request)?;
    let waiting = shell.call(Request::get("pending"))?;
    let fits = |device: &Value| {
        let has = |key: &str| device.get("labels")?.get(key)?.as_str();
        labels
            .iter()
            .all(|(key, value)| has(key.as_str()) == Some(value.as_str()))
    };
    if let Some(devices) = answer.get_mut("devices").and_then(Value::as_array_mut) {
        devices.retain(fits);
    }
    let waiting = undecided(&waiting);
    if shell.json {
        if let Some(map) = answer.as_object_mut() {
            map.insert("pending".to_owned(), json!(waiting));
        }
        shell.print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["DEVICE", "LABELS", "IPV6", "IPV4", "STATE", "CONNECTED"]);
    let devices = list(&answer, "devices");
    for device in devices {
        let addresses = device.get("addresses").unwrap_or(&Value::Null);
        table.row(vec![
            full_name(device).into(),
            show_labels(device.get("labels").unwrap_or(&Value::Null)).into(),
            text(addresses, "v6").into(),
            text(addresses, "v4").into(),
            state(device),
            connected(device),
        ]);
    }
    table.write(shell.style, shell.out)?;
    if devices.is_empty() {
        writeln!(
            shell.err,
            "No such devices. `hedgerow token create` lets one enroll."
        )?;
    }
    if !waiting.is_empty() {
        writeln!(shell.out)?;
        show_waiting(&waiting, shell)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns those that nobody has decided about.
fn undecided(pending: &Value) -> Vec<&Value> {
    list(pending, "pending")
        .iter()
        .filter(|device| text(device, "decision") == "waiting")
        .collect()
}

fn show_pending(shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let answer = shell.call(Request::get("pending"))?;
    let waiting = undecided(&answer);
    if shell.json {
        shell.print_json(&json!({"pending": waiting}))?;
    } else if waiting.is_empty() {
        writeln!(shell.err, "No device waits for approval.")?;
    } else {
        show_waiting(&waiting, shell)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_waiting(waiting: &[&Value], shell: &mut Shell<'_>) -> Result<(), CliError> {
    writeln!(
        shell.out,
        "Waiting for `hedgerow device approve` or `reject`:\n"
    )?;
    let mut table = Table::new(&["FINGERPRINT", "HOSTNAME", "SITE", "LABELS", "FROM", "SINCE"]);
    for device in waiting {
        table.row(vec![
            text(device, "fingerprint").into(),
            text(device, "hostname").into(),
            text(device, "site").into(),
            show_labels(device.get("labels").unwrap_or(&Value::Null)).into(),
            text(device, "source").into(),
            instant(device, "created").into(),
        ]);
    }
    table.write(shell.style, shell.out)?;
    Ok(())
}

/// Returns a device's state, ended and flagged ones first.
pub(super) fn state(device: &Value) -> Cell {
    let text = |key: &str| device.get(key).and_then(Value::as_str);
    if let Some(state) = text("ended").or(text("state")) {
        Cell::toned(state, Tone::Bad)
    } else if flag(device, "session_held") {
        Cell::toned("second session held", Tone::Bad)
    } else if flag(device, "flagged") {
        Cell::toned("flagged", Tone::Bad)
    } else {
        Cell::from("normal")
    }
}

/// Returns whether a device is connected.
pub(super) fn connected(device: &Value) -> Cell {
    match device.get("connected").and_then(Value::as_bool) {
        Some(true) => Cell::toned("yes", Tone::Good),
        Some(false) => Cell::toned("no", Tone::Waiting),
        None => Cell::from("-"),
    }
}

fn show(device: &str, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let record = shell.call(Request::get(format!("devices/{}", segment(device))))?;
    if shell.json {
        shell.print_json(&record)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(fields) = record.as_object() else {
        return Err(CliError::answer("device"));
    };
    writeln!(shell.out, "{}", full_name(&record))?;
    let mut table = Table::new(&["", ""]);
    for (key, value) in fields
        .iter()
        .filter(|(key, _)| *key != "name" && *key != "site")
    {
        let (label, shown) = match key.strip_suffix("_ms").or(key.strip_suffix("_secs")) {
            Some(stem) if value.is_u64() => (stem, instant(&record, stem)),
            _ => (key.as_str(), plain(value)),
        };
        table.row(vec![
            format!("  {}", label.replace('_', " ")).into(),
            shown.into(),
        ]);
    }
    table.write(shell.style, shell.out)?;
    let trouble = flag(&record, "flagged");
    if trouble {
        writeln!(
            shell.err,
            "Its key was used by two sessions. `hedgerow device release {device}` if you know why, \
             `revoke` if not."
        )?;
        return Ok(ExitCode::from(FOUND));
    }
    Ok(ExitCode::SUCCESS)
}
