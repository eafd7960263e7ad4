//! What the service manager wants to hear: ready, alive, stopping.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager's socket, if it gave us one.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads the protocol's variables.
    pub(crate) fn from_environment() -> Self {
        let socket = variable("NOTIFY_SOCKET").and_then(|path| {
            let address = match path.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name).ok()?,
                None => SocketAddr::from_pathname(&path).ok()?,
            };
            Some((UnixDatagram::unbound().ok()?, address))
        });
        let watchdog = variable("WATCHDOG_USEC")
            .and_then(|text| text.parse().ok())
            .map(|usec: u64| Duration::from_micros(usec / 2));
        Self { socket, watchdog }
    }

    /// Returns how often [`Notify::alive`] is due.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|d| !d.is_zero())
    }

    /// Says that work has begun.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// Says that the main loop turns.
    pub(crate) fn alive(&self, status: &str) {
        self.send(&format!("WATCHDOG=1\nSTATUS={status}\n"));
    }

    /// Says that the end has begun.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\n");
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(text.as_bytes(), address)
        {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the service manager's protocol is spoken through the environment"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
