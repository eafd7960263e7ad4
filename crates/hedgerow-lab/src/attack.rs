//! Attack tools: forged packets, a stranger's datagrams, a copied disk.

pub(crate) mod foreign;
pub(crate) mod renegotiate;

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedgerow_model::statement::X25519Public;
use serde::Serialize;
use serde_json::json;

use crate::lab::Lab;
use crate::plant::{in_namespace, in_namespace_with};

const INJECT: &str = include_str!("attack/inject.py");

/// A packet that nobody's kernel would send.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Forged {
    /// Whom it claims to come from.
    pub(crate) source: IpAddr,
    /// Where it goes.
    pub(crate) destination: IpAddr,
    /// `tcp` (a SYN), `udp` or `ping`.
    pub(crate) protocol: &'static str,
    /// Destination port.
    pub(crate) port: u16,
}

/// Puts packets straight onto an interface, past the firewall of the device that sends them; each
/// `times` times. On an Ethernet link `mac` says to whom.
///
/// # Errors
///
/// When the tool cannot send.
pub(crate) fn inject(
    lab: &Lab,
    namespace: &str,
    interface: &str,
    mac: Option<&str>,
    packets: &[Forged],
    times: u32,
) -> Result<()> {
    let script = lab.path("attack/inject.py")?;
    std::fs::write(&script, INJECT)?;
    let order = json!({"interface": interface, "mac": mac, "packets": packets, "times": times});
    in_namespace_with(
        namespace,
        &["/usr/bin/python3", &script.to_string_lossy()],
        Some(&order.to_string()),
    )?;
    Ok(())
}

/// Returns the Ethernet address of an interface.
///
/// # Errors
///
/// When there is none.
pub(crate) fn mac_of(namespace: &str, interface: &str) -> Result<String> {
    let path = format!("/sys/class/net/{interface}/address");
    // /sys shows the devices of the namespace that it was mounted in.
    let text = in_namespace(namespace, &["cat", &path])?;
    Ok(text
        .split_whitespace()
        .next()
        .context("no Ethernet address")?
        .to_owned())
}

/// Sends bytes that no protocol of ours begins with, and ones that look like ours, to a UDP port;
/// returns how many datagrams came back.
///
/// # Errors
///
/// When the tool fails.
pub(crate) fn babble(namespace: &str, target: IpAddr, port: u16) -> Result<u32> {
    let script = format!(
        "
import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.02)
answers = 0
for first in (0x00, 0x01, 0x02, 0x03, 0x04, 0x45, 0x80, 0x81, 0x82, 0x83, 0xff):
    for size in (0, 1, 31, 63, 115, 147, 300, 600, 1400):
        s.sendto(bytes([first]) + bytes(3) + os.urandom(size), ('{target}', {port}))
        try:
            s.recv(2048)
            answers += 1
        except TimeoutError:
            pass
        except ConnectionRefusedError:
            pass
print(answers)
"
    );
    let text = in_namespace(namespace, &["/usr/bin/python3", "-c", &script])?;
    text.trim().parse().context("a count")
}

/// Reads a WireGuard key as `wg` writes it.
///
/// # Errors
///
/// When it is something else.
pub(crate) fn key_from_text(text: &str) -> Result<X25519Public> {
    let bytes = STANDARD.decode(text.trim()).ok().context("not base64")?;
    let bytes = <[u8; 32]>::try_from(bytes.as_slice()).context("a key has 32 bytes")?;
    Ok(X25519Public(bytes))
}

/// Writes a WireGuard key as `wg` reads it.
pub(crate) fn key_to_text(key: X25519Public) -> String {
    STANDARD.encode(key.0)
}
