//! What a plot's agents know at its end: a scene that fails once in fifty runs takes its plant with it,
//! and would say nothing but that something was awaited in vain.

use std::fs;

use serde_json::Value;

use super::plot::{Plot, strs, timed};

/// How many of its last lines each log gives.
const LINES: usize = 40;
/// How many characters of a status are given.
const STATUS_CHARS: usize = 8000;

/// Returns each agent's view of the mesh, and the end of its log and of the controller's.
pub(crate) fn of(plot: &Plot) -> String {
    let mut text = String::from("at the end:\n");
    let agents = fs::read_dir(plot.lab.directory().join("agents"));
    for entry in agents.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mesh = mesh(
            plot,
            &name,
            &entry.path().join("agent.toml").to_string_lossy(),
        );
        let log = last_lines(plot, &format!("agent-{name}"));
        text += &format!("== {name}\n{mesh}\n-- its log\n{log}\n");
    }
    text + "== central's log\n" + &last_lines(plot, "central")
}

fn mesh(plot: &Plot, name: &str, config: &str) -> String {
    let asked = super::plot::program("hedgerow-agent")
        .and_then(|program| timed(&program, &plot.clock(), plot.clocks))
        .and_then(|argv| {
            let words = strs(&argv, &["--config", config, "--json", "status"]);
            plot.run(&plot.namespace(name), &words, None)?.done()
        });
    let mut status = match asked {
        Ok(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Err(error) => return format!("no status: {error:#}"),
    };
    shorten(&mut status);
    let parts = ["mesh", "certificate", "uplink", "policy", "clock"];
    let shown: String = parts
        .iter()
        .map(|part| format!("{part}: {}\n", status[*part]))
        .collect();
    shown.chars().take(STATUS_CHARS).collect()
}

/// Leaves counters out that nothing was counted in.
fn shorten(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| *field != 0);
            fields.values_mut().for_each(shorten);
        }
        Value::Array(all) => all.iter_mut().for_each(shorten),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn last_lines(plot: &Plot, log: &str) -> String {
    let path = plot.lab.directory().join(format!("logs/{log}.log"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| format!("{}: {e}", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
