//! The agent on this machine, if it is a device: its own checks, by its own program.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The agent's program; it lies beside this one, or in the path.
const PROGRAM: &str = "hedgerow-agent";

/// Asks the agent's program for its checks; `None` when `state` is not there: no device.
///
/// # Errors
///
/// Says why a device's agent could not be asked.
pub(crate) fn checks(state: &Path) -> Result<Option<Value>, String> {
    if !state.exists() {
        return Ok(None);
    }
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name(PROGRAM));
    let program = beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PROGRAM.into());
    let told = start(&program)
        .output()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let answer = serde_json::from_slice(&told.stdout);
    answer
        .map(Some)
        .map_err(|_e| String::from_utf8_lossy(&told.stderr).trim().to_owned())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a device's checks are the agent program's own"
)]
fn start(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--json", "check"]).stdin(Stdio::null());
    command
}
