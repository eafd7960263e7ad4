//! The tunnel's thread: one poll loop over TUN, UDP and the doorbell of commands.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::SystemTime;

use hedgerow_model::address::Underlay;
use hedgerow_model::{Mono, Now, Wall};
use quinn_udp::RecvMeta;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::ClockId;

use super::core::{Core, CoreConfig, Entropy, Handled, NoEntropy, Output};
use super::outbox::Outbox;
use super::stats::Shared;
use super::train::Train;
use super::{Command, Cut, Report, Reports, StartError, TunnelConfig, TunnelHandle};
use crate::tun::{Lifetime, Tun};
use crate::udp::{RECEIVE_BATCH, Sent, TRAIN_BYTES_MAX, Udp, canonical};

/// Packets read from the TUN device before the socket has its turn.
const TUN_PACKETS_PER_ROUND: usize = 128;
/// Commands taken before the packets have their turn.
const COMMANDS_PER_ROUND: usize = 256;

pub(super) fn start(
    config: TunnelConfig,
    reports: Box<dyn Reports>,
    commands: SyncSender<Command>,
    receiver: Receiver<Command>,
) -> Result<TunnelHandle, StartError> {
    if !(1280..=super::MTU_MAX).contains(&config.mtu) {
        return Err(StartError::Mtu { mtu: config.mtu });
    }
    let mut entropy: Entropy =
        Box::new(|bytes| aws_lc_rs::rand::fill(bytes).map_err(|_unspecified| NoEntropy));
    let no_entropy = |_e: NoEntropy| StartError::System(io::Error::other("no random bytes"));
    entropy(&mut [0; 32]).map_err(no_entropy)?;
    let udp = Udp::bind(config.port)?;
    let lifetime = if config.persistent {
        Lifetime::Persistent
    } else {
        Lifetime::Process
    };
    let tun = Tun::open(&config.name, lifetime)?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let bell = rustix::event::eventfd(0, flags).map_err(|e| StartError::System(e.into()))?;
    let (wake, stats) = (Arc::new(bell), Arc::new(Shared::default()));
    let port = udp.port();
    let core = CoreConfig {
        addresses: config.addresses,
        mtu: config.mtu,
        private_key: config.private_key,
        wall_floor: config.wall_floor,
    };
    let mut thread = Loop {
        core: Core::new(core, entropy),
        tun,
        train: Train::new(config.mtu.into()),
        udp,
        bell: Arc::clone(&wake),
        commands: receiver,
        outbox: Outbox::new(reports),
        stats: Arc::clone(&stats),
    };
    let thread = std::thread::Builder::new()
        .name("tunnel".to_owned())
        .spawn(move || thread.run())
        .map_err(StartError::System)?;
    Ok(TunnelHandle {
        commands,
        wake,
        thread: Some(thread),
        stats,
        name: config.name,
        port,
    })
}

/// Wakes the thread. A full counter means that it is awake already.
pub(super) fn wake(fd: &OwnedFd) {
    let rung = rustix::io::write(fd, &1u64.to_ne_bytes());
    tracing::trace!(?rung, "doorbell");
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

struct Loop {
    core: Core,
    tun: Tun,
    udp: Udp,
    bell: Arc<OwnedFd>,
    commands: Receiver<Command>,
    train: Train,
    outbox: Outbox,
    stats: Arc<Shared>,
}

/// What has something for us.
#[derive(Default)]
struct Ready {
    tun: bool,
    udp: bool,
    bell: bool,
}

impl Loop {
    fn run(&mut self) {
        let error = self.serve().err().map(|e| e.to_string());
        if let Some(error) = &error {
            tracing::error!(error, "the tunnel has stopped");
        }
        self.outbox.offer(Report::Stopped { error });
        self.stats.publish(self.core.stats());
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut memory = vec![0; RECEIVE_BATCH * TRAIN_BYTES_MAX];
        loop {
            let ready = self.wait()?;
            let now = now();
            if ready.bell && self.take_commands(now) == Next::Stop {
                return Ok(());
            }
            if ready.udp {
                self.receive(&mut memory, now)?;
            }
            if ready.tun {
                self.read_tun(now)?;
            }
            if self.core.deadline().0 <= now.mono {
                self.core.handle_timeout(now);
            }
            self.drain();
            self.outbox.retry();
            self.core.stats().reports_dropped = self.outbox.dropped();
            self.stats.publish(self.core.stats());
        }
    }

    /// Sleeps until something comes or is due.
    fn wait(&self) -> io::Result<Ready> {
        let until_due = self.core.deadline().0.since(mono());
        let sleep = self
            .outbox
            .retry_in()
            .map_or(until_due, |r| r.min(until_due));
        let timeout = Timespec::try_from(sleep).ok();
        let flags = PollFlags::IN;
        let mut fds = [
            PollFd::new(&self.tun, flags),
            PollFd::new(&self.udp, flags),
            PollFd::from_borrowed_fd(self.bell.as_fd(), flags),
        ];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(e) => return Err(e.into()),
        }
        let [tun, udp, bell] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready { tun, udp, bell })
    }

    fn take_commands(&mut self, now: Now) -> Next {
        // Before the commands are read: what is sent after rings again.
        let rung = rustix::io::read(&self.bell, &mut [0; 8]);
        tracing::trace!(?rung, "commands");
        for _ in 0..COMMANDS_PER_ROUND {
            match self.commands.try_recv() {
                Ok(Command::Shutdown) => return Next::Stop,
                Ok(command) => self.core.handle_command(command, now),
                Err(_) => return Next::Go,
            }
            self.drain();
        }
        wake(&self.bell);
        Next::Go
    }

    fn receive(&mut self, memory: &mut [u8], now: Now) -> io::Result<()> {
        let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
        let filled = {
            let mut chunks = memory.chunks_exact_mut(TRAIN_BYTES_MAX);
            let mut buffers: [IoSliceMut<'_>; RECEIVE_BATCH] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            self.udp.receive(&mut buffers, &mut metas)?
        };
        let buffers = memory.chunks_exact_mut(TRAIN_BYTES_MAX);
        for (buffer, meta) in buffers.zip(&metas).take(filled) {
            let Some(bytes) = buffer.get_mut(..meta.len) else {
                continue;
            };
            let from = canonical(meta.addr);
            self.take_train(from, bytes, meta.stride.max(1), now);
            self.drain();
        }
        Ok(())
    }

    /// Takes datagrams of one source; frames to pass on leave as they came, in trains.
    fn take_train(&mut self, from: Underlay, bytes: &mut [u8], stride: usize, now: Now) {
        let mut forward: Option<(Underlay, Range<usize>)> = None;
        let mut at = 0;
        while at < bytes.len() {
            let end = (at + stride).min(bytes.len());
            let Some(datagram) = bytes.get_mut(at..end) else {
                break;
            };
            let handled = self.core.handle_datagram(from, datagram, now);
            if let Handled::Deliver(range) = &handled
                && let Some(packet) = datagram.get(range.clone())
            {
                self.deliver(packet);
            }
            let to = match handled {
                Handled::Forward(to) => Some(to),
                Handled::Done | Handled::Deliver(_) => None,
            };
            match (&mut forward, to) {
                (Some((before, range)), Some(to)) if *before == to => range.end = end,
                _ => {
                    self.pass_on(forward.take(), bytes, stride);
                    forward = to.map(|to| (to, at..end));
                }
            }
            at = end;
        }
        self.pass_on(forward, bytes, stride);
    }

    fn pass_on(&mut self, forward: Option<(Underlay, Range<usize>)>, bytes: &[u8], stride: usize) {
        if let Some((to, range)) = forward
            && let Some(frames) = bytes.get(range)
            && self.udp.send(to, frames, stride) != Sent::Yes
        {
            self.core.stats().dropped_send += 1;
        }
    }

    fn deliver(&mut self, packet: &[u8]) {
        if !self.tun.write(packet) {
            self.core.stats().dropped_tun += 1;
        }
    }

    fn read_tun(&mut self, now: Now) -> io::Result<()> {
        for _ in 0..TUN_PACKETS_PER_ROUND {
            let Some(len) = self.tun.read(self.train.packet_place())? else {
                break;
            };
            let sealed = self.core.handle_inner_packet(self.train.place(), len, now);
            self.drain();
            if let Some(sealed) = sealed {
                self.train.add(sealed, &self.udp, self.core.stats());
            }
        }
        self.train.depart(&self.udp, self.core.stats());
        Ok(())
    }

    /// Does everything the machine wants done. What it sends was sealed before what is in the train,
    /// or does not care.
    fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Send { to, bytes, cut } => {
                    let sent = match cut {
                        Cut::Allowed => self.udp.send(to, &bytes, bytes.len()),
                        Cut::Refused => self.udp.send_whole(to, &bytes),
                    };
                    if sent != Sent::Yes {
                        self.core.stats().dropped_send += 1;
                    }
                }
                Output::Deliver(packet) => self.deliver(&packet),
                Output::Report(report) => {
                    if let Some(lost) = self.outbox.offer(report) {
                        self.core.report_was_lost(&lost);
                    }
                }
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the tunnel's thread reads its own clocks: its core takes time as an argument"
)]
fn now() -> Now {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ms = wall.unwrap_or_default().as_millis();
    Now {
        mono: mono(),
        // Only for handshake timestamps, which need to rise and not to be right.
        wall: Wall(u64::try_from(ms).unwrap_or(u64::MAX)),
        wall_is_trusted: false,
    }
}

/// Time that goes on while the machine sleeps: sessions must expire then too.
fn mono() -> Mono {
    let at = rustix::time::clock_gettime(ClockId::Boottime);
    Mono(at.try_into().unwrap_or_default())
}
