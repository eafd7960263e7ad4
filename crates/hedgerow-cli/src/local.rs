//! The agent on this machine, if there is one: one line of JSON over its control socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the agent for its checks; `None` when no agent runs here.
///
/// # Errors
///
/// Says why an agent that seems to be here did not answer.
pub(crate) fn checks(socket: &Path) -> Result<Option<Value>, String> {
    if !socket.exists() {
        return Ok(None);
    }
    let asked = ask(socket).map_err(|e| e.to_string())?;
    serde_json::from_str(&asked)
        .map(Some)
        .map_err(|e| e.to_string())
}

fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"{\"request\":\"check\"}\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
    Ok(line)
}
