//! `hedgerow site`.

use std::process::ExitCode;

use serde_json::json;

use crate::api::{Body, Request};
use crate::args::SiteCommand;
use crate::error::CliError;
use crate::render::{list, text};
use crate::shell::Shell;
use crate::table::Table;

/// Runs a command about sites.
pub(super) fn run(command: SiteCommand, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    match command {
        SiteCommand::Create { name, tz } => {
            let body = json!({"name": name.as_str(), "zone": tz});
            let answer = shell.call(Request::post("sites", Body::Json(body)))?;
            if shell.json {
                shell.print_json(&answer)?;
            } else {
                writeln!(
                    shell.out,
                    "Site {name} is created; its schedules follow {tz}."
                )?;
                writeln!(
                    shell.err,
                    "Next: hedgerow token create --site {name} --labels role=…"
                )?;
            }
        }
        SiteCommand::List => {
            let answer = shell.call(Request::get("sites"))?;
            if shell.json {
                shell.print_json(&answer)?;
                return Ok(ExitCode::SUCCESS);
            }
            let mut table = Table::new(&["SITE", "TIME ZONE", "DEVICES", "IPV6"]);
            let sites = list(&answer, "sites");
            for site in sites {
                table.row(vec![
                    text(site, "name").into(),
                    text(site, "zone").into(),
                    text(site, "devices").into(),
                    text(site, "prefix").into(),
                ]);
            }
            table.write(shell.style, shell.out)?;
            if sites.is_empty() {
                writeln!(
                    shell.err,
                    "No sites. `hedgerow site create NAME --tz ZONE` makes one."
                )?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
