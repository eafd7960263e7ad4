//! Root, nftables, TUN, the mesh's port.

use std::net::UdpSocket;

use hedgerow_linux::nft::{self, Ownership};
use hedgerow_linux::process;

use super::Finding;
use crate::config::Config;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = process::missing()
        .into_iter()
        .map(|missing| {
            let text = missing.to_string();
            let (message, remedy) = text.split_once(": ").unwrap_or((&text, ""));
            Finding::error("machine", message, remedy)
        })
        .collect();
    match nft::probe() {
        Ok(Ownership::Owned) => findings.push(Finding::ok(
            "table_ownership",
            "the kernel protects our table from other programs",
        )),
        Ok(Ownership::Plain) => findings.push(Finding::warning(
            "table_ownership",
            "this kernel lets other programs change our table (Linux before 6.9)",
            "it is read back every 5 seconds and mended; a newer kernel closes the gap",
        )),
        // Said by the list above, or not to be known without root.
        Err(_) => {}
    }
    findings.push(port(config));
    findings
}

fn port(config: &Config) -> Finding {
    let port = config.mesh_port;
    let runs = std::os::unix::net::UnixStream::connect(config.socket()).is_ok();
    if runs {
        return Finding::ok("mesh_port", format!("the agent runs on port {port}"));
    }
    match UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port))) {
        Ok(_) => Finding::ok("mesh_port", format!("UDP port {port} is free")),
        Err(e) => Finding::error(
            "mesh_port",
            format!("UDP port {port} cannot be used: {e}"),
            "stop the program that uses it (`ss -lunp`), or set mesh.port",
        ),
    }
}
