//! `hedgerow token`.

use std::process::ExitCode;

use hedgerow_model::id::{DeviceName, Labels, SiteName};
use serde_json::{Map, Value, json};

use crate::api::{Body, Method, Request, segment};
use crate::args::TokenCommand;
use crate::error::CliError;
use crate::render::{flag, instant, labels as show_labels, list, text};
use crate::shell::{Shell, Tone};
use crate::table::{Cell, Table};

/// Runs a command about tokens.
pub(super) fn run(command: TokenCommand, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    match command {
        TokenCommand::Create {
            site,
            labels,
            ttl,
            name,
            count,
            approve,
        } => {
            if name.is_some() && count != 1 {
                return Err(CliError::invalid(
                    "--name fits a single use",
                    "leave out --name or --count",
                ));
            }
            let body = json!({
                "site": site.as_str(), "labels": labels_json(&labels), "ttl_secs": ttl.0.as_secs(),
                "name": name.as_ref().map(DeviceName::as_str), "count": count, "approve": approve,
            });
            create(&site, body, shell)
        }
        TokenCommand::List => show(shell),
        TokenCommand::Revoke { token } => {
            let path = format!("tokens/{}", segment(&token));
            let answer = shell.call(Request::new(Method::Delete, path, Body::None))?;
            if shell.json {
                shell.print_json(&answer)?;
            } else {
                writeln!(
                    shell.out,
                    "Token {token} is revoked. Devices that used it stay."
                )?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Returns labels as the API takes them.
pub(super) fn labels_json(labels: &Labels) -> Value {
    let pairs = labels
        .iter()
        .map(|(k, v)| (k.as_str().to_owned(), v.as_str().into()));
    Value::Object(pairs.collect::<Map<String, Value>>())
}

fn create(site: &SiteName, body: Value, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let mut answer = shell.call(Request::post("tokens", Body::Json(body)))?;
    let token = answer
        .get("token")
        .and_then(Value::as_str)
        .ok_or(CliError::answer("token"))?;
    let line = enroll_line(token)?;
    if shell.json {
        if let Some(map) = answer.as_object_mut() {
            map.insert("enroll_command".to_owned(), line.into());
        }
        shell.print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let uses = match answer.get("count").and_then(Value::as_u64) {
        Some(1) | None => "once".to_owned(),
        Some(uses) => format!("{uses} times"),
    };
    writeln!(
        shell.err,
        "Token {} for site {site}, good {uses} until {}. Paste this line on the device, as root:\n",
        text(&answer, "id"),
        instant(&answer, "expires"),
    )?;
    writeln!(shell.out, "{line}")?;
    let next = if flag(&answer, "approve") {
        "\nThe device then waits for `hedgerow device approve`."
    } else {
        "\nWhoever has the line can enroll in its place until then: send it like a password."
    };
    writeln!(shell.err, "{next}")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the line to paste. `printf` is part of the shell, so the token is in no process's
/// arguments.
fn enroll_line(token: &str) -> Result<String, CliError> {
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !token.bytes().all(safe) {
        return Err(CliError::answer("token that is safe to paste"));
    }
    Ok(format!("printf %s {token} | hedgerow-agent enroll"))
}

fn show(shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let answer = shell.call(Request::get("tokens"))?;
    if shell.json {
        shell.print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["TOKEN", "SITE", "LABELS", "NAME", "USED", "UNTIL", "STATE"]);
    let tokens = list(&answer, "tokens");
    for token in tokens {
        let used = format!("{}/{}", text(token, "used"), text(token, "count"));
        table.row(vec![
            text(token, "id").into(),
            text(token, "site").into(),
            show_labels(token.get("labels").unwrap_or(&Value::Null)).into(),
            text(token, "name").into(),
            used.into(),
            instant(token, "expires").into(),
            state(token),
        ]);
    }
    table.write(shell.style, shell.out)?;
    if tokens.is_empty() {
        writeln!(
            shell.err,
            "No tokens. `hedgerow token create --site SITE` makes one."
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn state(token: &Value) -> Cell {
    match text(token, "status").as_str() {
        "open" if flag(token, "approve") => Cell::toned("open, with approval", Tone::Good),
        "open" => Cell::toned("open", Tone::Good),
        "revoked" => Cell::toned("revoked", Tone::Bad),
        other => Cell::from(other),
    }
}
