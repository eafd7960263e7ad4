//! systemd-resolved, where it runs: which questions go to our resolver.
//!
//! The settings belong to the tunnel's interface. They go with it, and no file of the system changes.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::link::Link;

/// Where systemd-resolved keeps what each interface was given; it is there as long as it runs.
const INTERFACES: &str = "/run/systemd/resolve/netif";
/// How long one order may take: a bus that hangs does not hold us up.
const ORDER_WITHIN: (&str, &str) = ("SYSTEMD_BUS_TIMEOUT", "3s");

/// Returns whether systemd-resolved answers this machine's programs.
pub fn is_running() -> bool {
    Path::new(INTERFACES).is_dir()
}

/// Returns whether it has settings for `interface`: it forgets them when the interface goes, and when
/// its own state does.
pub fn has_settings(interface: &str) -> bool {
    Link::find(interface).is_ok_and(|link| {
        Path::new(INTERFACES)
            .join(link.index().to_string())
            .exists()
    })
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
    order(&["dns", interface, &server.to_string()])
}

/// Takes everything back that was said of `interface`.
///
/// # Errors
///
/// As [`route`].
pub fn revert(interface: &str) -> io::Result<()> {
    order(&["revert", interface])
}

#[expect(
    clippy::disallowed_methods,
    reason = "the bus is spoken by the service's own tool"
)]
fn order(words: &[&str]) -> io::Result<()> {
    let (key, value) = ORDER_WITHIN;
    let output = Command::new("resolvectl")
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env(key, value)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let text = format!("resolvectl {}: {}", words.join(" "), said.trim());
    Err(io::Error::other(text))
}
