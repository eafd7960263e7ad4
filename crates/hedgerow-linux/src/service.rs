//! The service manager's side of a daemon: readiness, watchdog, and descriptors kept across restarts.
//!
//! ```text
//!  start:   NOTIFY_SOCKET, LISTEN_FDS, LISTEN_FDNAMES, WATCHDOG_USEC ──▶ Notifier
//!  running: READY=1, STATUS=…, WATCHDOG=1, FDSTORE=1 + descriptor   ──▶ datagrams to the manager
//! ```
//!
//! The protocol is systemd's `sd_notify(3)` and `sd_listen_fds(3)`. Without a manager every notice
//! is a silent success, so that a daemon behaves the same when started by hand.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

/// Most descriptors taken over from the manager.
pub const LISTEN_FDS_MAX: usize = 64;
const FIRST_DESCRIPTOR: RawFd = 3;

/// Who hears how the daemon fares and keeps its descriptors: the service manager, or nobody.
#[derive(Debug, Default)]
pub struct Notifier {
    notify: Option<Notify>,
    watchdog: Option<Duration>,
    handed: Vec<(String, OwnedFd)>,
}

#[derive(Debug)]
struct Notify {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

/// What the environment says, before any descriptor is touched.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    notify: Option<String>,
    watchdog: Option<Duration>,
    names: Vec<String>,
}

impl Settings {
    fn read(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Self {
        let number = |name: &str| variable(name).and_then(|v| v.parse::<u64>().ok());
        let for_us = |name: &str| number(name) == Some(u64::from(pid));
        let count = if for_us("LISTEN_PID") {
            number("LISTEN_FDS").unwrap_or(0)
        } else {
            0
        };
        let count = usize::try_from(count).map_or(LISTEN_FDS_MAX, |n| n.min(LISTEN_FDS_MAX));
        let listed = variable("LISTEN_FDNAMES").unwrap_or_default();
        let names = listed.split(':').chain(std::iter::repeat("unknown"));
        let dog_is_ours = for_us("WATCHDOG_PID") || variable("WATCHDOG_PID").is_none();
        Self {
            notify: variable("NOTIFY_SOCKET").filter(|v| !v.is_empty()),
            watchdog: number("WATCHDOG_USEC")
                .filter(|usec| dog_is_ours && *usec > 0)
                .map(Duration::from_micros),
            names: names.take(count).map(str::to_owned).collect(),
        }
    }
}

impl Notifier {
    /// Reads the environment and takes over the descriptors that the manager kept.
    ///
    /// Only the first call in a process gets descriptors.
    #[expect(
        clippy::disallowed_methods,
        reason = "the manager's protocol is made of environment variables; this is the one place that reads them"
    )]
    pub fn from_environment() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let mut settings = Settings::read(|name| std::env::var(name).ok(), std::process::id());
        if TAKEN.swap(true, Ordering::SeqCst) {
            settings.names.clear();
        }
        let handed = (FIRST_DESCRIPTOR..)
            .zip(settings.names)
            .filter_map(|(number, name)| Some((name, take_descriptor(number)?)))
            .collect();
        Self {
            notify: settings.notify.and_then(|path| Notify::open(&path)),
            watchdog: settings.watchdog,
            handed,
        }
    }

    /// Returns whether a manager listens.
    pub fn is_present(&self) -> bool {
        self.notify.is_some()
    }

    /// Takes the descriptor that was stored under `name`, if there is one.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.handed.iter().position(|(n, _)| n == name)?;
        Some(self.handed.swap_remove(at).1)
    }

    /// Returns how often [`Notifier::alive`] is due: half of what the manager tolerates.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|d| d / 2)
    }

    /// Says that the daemon does its job.
    ///
    /// # Errors
    ///
    /// When a manager is there and its socket refuses the datagram; true of every notice.
    pub fn ready(&self) -> io::Result<()> {
        self.send("READY=1", None)
    }

    /// Says in one line what the daemon is doing.
    ///
    /// # Errors
    ///
    /// See [`Notifier::ready`].
    pub fn status(&self, text: &str) -> io::Result<()> {
        self.send(&format!("STATUS={}", text.replace('\n', " ")), None)
    }

    /// Says that the daemon still turns its loop.
    ///
    /// # Errors
    ///
    /// See [`Notifier::ready`].
    pub fn alive(&self) -> io::Result<()> {
        self.send("WATCHDOG=1", None)
    }

    /// Says that the daemon is about to end.
    ///
    /// # Errors
    ///
    /// See [`Notifier::ready`].
    pub fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1", None)
    }

    /// Gives the manager a copy of a descriptor, to be handed to the next start under `name`.
    ///
    /// `FDPOLL=0` keeps the manager from closing a netlink socket that reports an error.
    ///
    /// # Errors
    ///
    /// See [`Notifier::ready`].
    pub fn store(&self, name: &str, descriptor: impl AsFd) -> io::Result<()> {
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        self.send(&text, Some(descriptor.as_fd()))
    }

    /// Has the manager close what it stored under `name`.
    ///
    /// # Errors
    ///
    /// See [`Notifier::ready`].
    pub fn forget(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match &self.notify {
            Some(notify) => notify.send(text, descriptor),
            None => Ok(()),
        }
    }
}

impl Notify {
    fn open(path: &str) -> Option<Self> {
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            None => SocketAddrUnix::new(path),
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        Some(Self {
            socket: socket.ok()?,
            address: address.ok()?,
        })
    }

    fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for the descriptor"));
        }
        let text = [IoSlice::new(text.as_bytes())];
        let flags = SendFlags::NOSIGNAL;
        sendmsg_addr(&self.socket, &self.address, &text, &mut control, flags)?;
        Ok(())
    }
}

/// Takes ownership of a descriptor that the manager opened before this program began.
#[expect(
    unsafe_code,
    reason = "the number comes from the environment by protocol"
)]
fn take_descriptor(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: borrowed for one fcntl call, which refuses a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
    // SAFETY: the number is open (the call above succeeded), LISTEN_PID names this process, and the
    // caller's flag lets one call per process come here, so nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests;
