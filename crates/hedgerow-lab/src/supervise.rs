//! A stand-in for the service manager: keeps a program running, keeps its descriptors while it is
//! dead, and kills it when its watchdog runs out.
//!
//! It speaks the part of `sd_notify(3)` that Hedgerow's agent needs: `READY`, `STATUS`, `STOPPING`,
//! `WATCHDOG`, `FDSTORE` with `FDNAME`, `FDSTOREREMOVE`, `BARRIER`; stored descriptors come back
//! through `LISTEN_FDS` (`sd_listen_fds(3)`).

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::process;

/// Most descriptors that are kept, as `FileDescriptorStoreMax=`.
const STORED_MAX: usize = 16;
/// Descriptors are kept from this number on, away from those that a program is given.
const STORED_FIRST: i32 = 100;
const RESTART_AFTER: Duration = Duration::from_millis(100);
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// What is to be kept running, and how.
#[derive(Debug, Clone)]
pub struct Service {
    /// Where the program reports to.
    pub socket: PathBuf,
    /// While this file exists, the program is not started again.
    pub hold: PathBuf,
    /// Where the state is written to whenever it changes.
    pub state: PathBuf,
    /// How often the program must report that it lives.
    pub watchdog: Option<Duration>,
    /// The program and its arguments.
    pub argv: Vec<String>,
}

/// What the supervisor knows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// The program's pid, while it runs.
    pub pid: Option<u32>,
    /// How often it was started.
    pub starts: u32,
    /// Whether it said that it is ready.
    pub ready: bool,
    /// What it last said of itself.
    pub status: String,
    /// Names of the descriptors that are kept for it.
    pub stored: Vec<String>,
    /// How often the watchdog killed it.
    pub watchdog_kills: u32,
}

/// Reads what a supervisor wrote last.
///
/// # Errors
///
/// When there is nothing to read yet.
pub fn state(path: &Path) -> Result<State> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Keeps a program running until SIGTERM, or until it ends of its own accord with success.
///
/// # Errors
///
/// When the socket cannot be made or the program cannot be started.
pub fn supervise(service: Service) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        drop(fs::remove_file(&service.socket));
        let socket = UnixDatagram::bind(&service.socket)
            .with_context(|| format!("cannot listen on {}", service.socket.display()))?;
        let mut supervisor = Supervisor {
            service,
            socket,
            stored: Vec::new(),
            state: State::default(),
            alive: Instant::now(),
            stopping: false,
        };
        supervisor.run().await
    })
}

struct Supervisor {
    service: Service,
    socket: UnixDatagram,
    stored: Vec<(String, OwnedFd)>,
    state: State,
    alive: Instant,
    stopping: bool,
}

impl Supervisor {
    async fn run(&mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        loop {
            let mut child = self.start()?;
            let status = loop {
                let silent = self.alive + self.service.watchdog.unwrap_or(Duration::MAX / 4);
                tokio::select! {
                    ended = child.wait() => break ended?,
                    message = receive(&self.socket) => self.handle(message?),
                    _ = terminate.recv() => return self.stop(child).await,
                    () = tokio::time::sleep_until(silent), if self.service.watchdog.is_some() => {
                        self.state.watchdog_kills += 1;
                        self.alive = Instant::now();
                        child.id().into_iter().for_each(|pid| process::signal(pid, Signal::ABORT));
                    }
                }
            };
            // What it said last is still in the socket.
            while let Ok(message) = read(&self.socket) {
                self.handle(message);
            }
            self.state.pid = None;
            self.state.ready = false;
            self.save()?;
            if status.success() && self.stopping {
                return Ok(());
            }
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                () = self.wait_to_restart() => {}
            }
        }
    }

    async fn wait_to_restart(&self) {
        tokio::time::sleep(RESTART_AFTER).await;
        while self.service.hold.exists() {
            tokio::time::sleep(RESTART_AFTER).await;
        }
    }

    async fn stop(&mut self, mut child: Child) -> Result<()> {
        child
            .id()
            .into_iter()
            .for_each(|pid| process::signal(pid, Signal::TERM));
        if tokio::time::timeout(STOP_WITHIN, child.wait())
            .await
            .is_err()
        {
            child.kill().await?;
        }
        self.state.pid = None;
        self.save()
    }

    /// Starts the program through a shell, which moves the stored descriptors to 3 and up and knows
    /// the pid that the program will have.
    fn start(&mut self) -> Result<Child> {
        let moves: String = self
            .stored
            .iter()
            .enumerate()
            .map(|(i, (_, fd))| format!("exec {}<&{n} {n}<&-; ", i + 3, n = fd.as_raw_fd()))
            .collect();
        let script = match self.stored.is_empty() {
            true => "exec \"$@\"".to_owned(),
            false => format!("{moves}export LISTEN_PID=$$; exec \"$@\""),
        };
        let mut words = vec!["bash", "-c", &script, "supervised"];
        words.extend(self.service.argv.iter().map(String::as_str));
        let mut command = process::command(&words)?;
        command.env("NOTIFY_SOCKET", &self.service.socket);
        if !self.stored.is_empty() {
            let names: Vec<&str> = self.stored.iter().map(|(name, _)| name.as_str()).collect();
            command.env("LISTEN_FDS", self.stored.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        if let Some(time) = self.service.watchdog {
            command.env("WATCHDOG_USEC", time.as_micros().to_string());
        }
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.service.argv.join(" ")))?;
        self.alive = Instant::now();
        self.stopping = false;
        self.state.pid = child.id();
        self.state.starts += 1;
        self.save()?;
        Ok(child)
    }

    fn handle(&mut self, message: Message) {
        let text = String::from_utf8_lossy(&message.text);
        let field = |key: &str| {
            let mut lines = text.lines();
            lines.find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
        };
        if field("WATCHDOG") == Some("1") {
            self.alive = Instant::now();
        }
        if field("WATCHDOG") == Some("trigger") {
            self.alive -= self.service.watchdog.unwrap_or_default();
        }
        self.state.ready |= field("READY") == Some("1");
        self.stopping |= field("STOPPING") == Some("1");
        if let Some(status) = field("STATUS") {
            status.clone_into(&mut self.state.status);
        }
        let name = field("FDNAME").unwrap_or("stored").to_owned();
        if field("FDSTOREREMOVE") == Some("1") {
            self.stored.retain(|(stored, _)| *stored != name);
        } else if field("FDSTORE") == Some("1") {
            for fd in message.descriptors {
                self.store(&name, &fd);
            }
        }
        self.state.stored = self.stored.iter().map(|(name, _)| name.clone()).collect();
        // The next change writes it again; nobody is helped if the supervisor ends over it.
        drop(self.save());
    }

    /// Keeps a descriptor, unless it is kept already.
    fn store(&mut self, name: &str, fd: &OwnedFd) {
        let same = |other: &OwnedFd| match (rustix::fs::fstat(fd), rustix::fs::fstat(other)) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            (Err(_), _) | (_, Err(_)) => false,
        };
        if self.stored.len() >= STORED_MAX || self.stored.iter().any(|(_, other)| same(other)) {
            return;
        }
        let kept = rustix::io::fcntl_dupfd_cloexec(fd, STORED_FIRST);
        if let Ok(kept) = kept
            && rustix::io::fcntl_setfd(&kept, FdFlags::empty()).is_ok()
        {
            self.stored.push((name.to_owned(), kept));
        }
    }

    fn save(&self) -> Result<()> {
        let fresh = self.service.state.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&self.state)?)?;
        fs::rename(&fresh, &self.service.state)?;
        Ok(())
    }
}

struct Message {
    text: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

async fn receive(socket: &UnixDatagram) -> Result<Message> {
    loop {
        socket.readable().await?;
        match read(socket) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => return Ok(result?),
        }
    }
}

fn read(socket: &UnixDatagram) -> std::io::Result<Message> {
    let mut text = vec![0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STORED_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = socket.try_io(Interest::READABLE, || {
        let mut parts = [IoSliceMut::new(&mut text)];
        Ok(recvmsg(
            socket,
            &mut parts,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?)
    })?;
    text.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(Message { text, descriptors })
}

#[cfg(test)]
mod tests;
