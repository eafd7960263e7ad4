//! systemd-resolved, where it runs: which questions go to our resolver.
//!
//! The settings belong to the tunnel's interface. They go with it, and no file of the system changes.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Its socket: there once it has started.
const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";
/// How long one order may take: a bus that hangs does not hold us up.
const ORDER_WITHIN: (&str, &str) = ("SYSTEMD_BUS_TIMEOUT", "3s");

/// Returns whether systemd-resolved answers this machine's programs.
pub fn is_running() -> bool {
    Path::new(SOCKET).exists()
}

/// Returns whether it asks `server` for what belongs to `interface`: it forgets that when the interface
/// goes, and when somebody reverts it.
///
/// # Errors
///
/// When `resolvectl` is missing or is refused.
pub fn is_routed(interface: &str, server: SocketAddr) -> io::Result<bool> {
    let (whole, short) = (server.to_string(), server.ip().to_string());
    let said = order(&["dns", interface])?;
    // `Link 4 (hedgerow0): 127.0.0.59`
    let (_, servers) = said.split_once("):").unwrap_or_default();
    let is_ours = |s: &str| s == whole || (s == short && server.port() == 53);
    Ok(servers.split_whitespace().any(is_ours))
}

/// Sends questions below `domains` to `server`, and no others. Doing it twice equals doing it once.
///
/// # Errors
///
/// When `resolvectl` is missing or is refused; the rest of the machine's names work as before.
pub fn route(interface: &str, server: SocketAddr, domains: &[String]) -> io::Result<()> {
    // A tilde: a way for questions, not a suffix to try.
    let domains: Vec<String> = domains.iter().map(|d| format!("~{d}")).collect();
    let mut words = vec!["domain", interface];
    words.extend(domains.iter().map(String::as_str));
    order(&["default-route", interface, "no"])?;
    // Nobody signs these names, and nobody else on the link is to be asked.
    order(&["dnssec", interface, "no"])?;
    order(&["llmnr", interface, "no"])?;
    order(&["mdns", interface, "no"])?;
    order(&words)?;
    order(&["dns", interface, &server.to_string()]).map(drop)
}

/// Takes everything back that was said of `interface`.
///
/// # Errors
///
/// As [`route`].
pub fn revert(interface: &str) -> io::Result<()> {
    order(&["revert", interface]).map(drop)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the bus is spoken by the service's own tool"
)]
fn order(words: &[&str]) -> io::Result<String> {
    let (key, value) = ORDER_WITHIN;
    let output = Command::new("resolvectl")
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env(key, value)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let text = format!("resolvectl {}: {}", words.join(" "), said.trim());
    Err(io::Error::other(text))
}
