//! The tunnel's thread: one poll loop over TUN, UDP and the doorbell of commands.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Channel, SyncSender};
use std::time::{Duration, SystemTime};

use hedgerow_model::{Mono, Now, Wall};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::ClockId;

use super::core::{Core, CoreConfig, Entropy, NoEntropy, Output};
use super::lanes::Lanes;
use super::linger::{Direction, Linger};
use super::outbox::Outbox;
use super::receive::{Receiver, deliver};
use super::send::Sender;
use super::stats::Shared;
use super::{
    Command, Cut, PrivateKey, Report, Reports, StartError, TunnelConfig, TunnelHandle, limits,
    noise,
};
use crate::tun::{Lifetime, Tun, TunError};
use crate::udp::{Sent, Udp};

/// Commands taken before the packets have their turn.
const COMMANDS_PER_ROUND: usize = 256;
/// How often the cost of a handshake is measured at the start.
const COST_RUNS: usize = 3;

pub(super) fn start(
    config: TunnelConfig,
    reports: Box<dyn Reports>,
    commands: SyncSender<Box<Command>>,
    receiver: Channel<Box<Command>>,
) -> Result<TunnelHandle, StartError> {
    if !(1280..=super::MTU_MAX).contains(&config.mtu) {
        return Err(StartError::Mtu { mtu: config.mtu });
    }
    let mut entropy: Entropy =
        Box::new(|bytes| crate::random::fill(bytes).map_err(|_error| NoEntropy));
    let no_entropy = |_e: NoEntropy| StartError::System(io::Error::other("no random bytes"));
    entropy(&mut [0; 32]).map_err(no_entropy)?;
    let udp = Arc::new(Udp::bind(config.port, config.features.trains)?);
    let lifetime = if config.persistent {
        Lifetime::Persistent
    } else {
        Lifetime::Process
    };
    let most = config.features.tun;
    let mut queues = Tun::open_queues(&config.name, lifetime, most, 1)?;
    let tun = queues.pop().ok_or(TunError::NoDriver)?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let bell = rustix::event::eventfd(0, flags).map_err(|e| StartError::System(e.into()))?;
    let (wake, stats) = (Arc::new(bell), Arc::new(Shared::default()));
    let port = udp.port();
    let lanes = Lanes::start(config.features.layout, config.mtu.into(), &udp, &wake)
        .map_err(StartError::System)?;
    let core = CoreConfig {
        addresses: config.addresses,
        mtu: config.mtu,
        initiations_per_second: limits::affordable(handshake_cost(&config.private_key)),
        private_key: config.private_key,
        wall_floor: config.wall_floor,
    };
    let mut thread = Loop {
        core: Core::new(core, entropy),
        receiver: Receiver::new(&tun),
        sender: Sender::new(&tun, config.mtu.into(), lanes),
        tun,
        udp,
        bell: Arc::clone(&wake),
        commands: receiver,
        outbox: Outbox::new(reports),
        stats: Arc::clone(&stats),
        linger: Linger::default(),
        may_linger: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
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

/// Measures what answering an initiation costs here; the best of a few, as others may have the core.
fn handshake_cost(key: &PrivateKey) -> Duration {
    let runs = (0..COST_RUNS).map(|_| {
        let start = mono();
        noise::rehearse(key);
        mono().since(start)
    });
    runs.min().unwrap_or(Duration::MAX)
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
    udp: Arc<Udp>,
    bell: Arc<OwnedFd>,
    commands: Channel<Box<Command>>,
    sender: Sender,
    receiver: Receiver,
    outbox: Outbox,
    stats: Arc<Shared>,
    linger: Linger,
    /// Who stays awake on the only core keeps from it whoever is to answer.
    may_linger: bool,
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
        loop {
            let asleep = mono();
            let ready = self.wait()?;
            let now = now();
            let waited = now.mono.since(asleep);
            if ready.udp != ready.tun {
                let direction = if ready.udp {
                    Direction::In
                } else {
                    Direction::Out
                };
                self.linger.handle_packet(direction, waited);
            }
            if ready.bell && self.take_commands(now) == Next::Stop {
                return Ok(());
            }
            if ready.udp {
                self.receiver
                    .receive(&self.udp, &self.tun, &mut self.core, now)?;
                self.drain();
            }
            if ready.tun {
                self.sender.fill(&self.tun, &mut self.core, now.mono)?;
            }
            if self.sender.has_work() || ready.bell {
                self.sender.send(&mut self.core, &self.udp, now);
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
    fn wait(&mut self) -> io::Result<Ready> {
        let stay = self.linger.stay().filter(|_| self.may_linger);
        let until_due = self.core.deadline().0.since(mono());
        let sleep = self
            .outbox
            .retry_in()
            .map_or(until_due, |r| r.min(until_due));
        let sleep = match self.sender.has_work() {
            true => Duration::ZERO,
            false => sleep,
        };
        let timeout = Timespec::try_from(sleep).ok();
        let flags = PollFlags::IN;
        let mut fds = [
            PollFd::new(&self.tun, flags),
            PollFd::new(&*self.udp, flags),
            PollFd::from_borrowed_fd(self.bell.as_fd(), flags),
        ];
        if !stay.is_some_and(|stay| linger(&mut fds, stay.min(sleep))) {
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => return Ok(Ready::default()),
                Err(e) => return Err(e.into()),
            }
        }
        let [tun, udp, bell] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready { tun, udp, bell })
    }

    fn take_commands(&mut self, now: Now) -> Next {
        // Before the commands are read: what is sent after rings again.
        let rung = rustix::io::read(&self.bell, &mut [0; 8]);
        tracing::trace!(?rung, "commands");
        for _ in 0..COMMANDS_PER_ROUND {
            match self.commands.try_recv().map(|command| *command) {
                Ok(Command::Shutdown) => return Next::Stop,
                Ok(command) => self.core.handle_command(command, now),
                Err(_) => return Next::Go,
            }
            self.drain();
        }
        wake(&self.bell);
        Next::Go
    }

    /// Does everything the machine wants done. What it sends was sealed before what is in the train,
    /// or does not care.
    fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Send { to, bytes, cut } => {
                    let sent = match cut {
                        Cut::Allowed => self.udp.send(to, 0, &bytes, bytes.len()),
                        Cut::Refused => self.udp.send_whole(to, &bytes),
                    };
                    if sent != Sent::Yes {
                        self.core.stats().dropped_send += 1;
                    }
                }
                Output::PassOn { to, class, bytes } => {
                    if self.udp.send(to, class, &bytes, bytes.len()) != Sent::Yes {
                        self.core.stats().dropped_send += 1;
                    }
                }
                Output::Deliver(packet) => deliver(&self.tun, &packet, &mut self.core),
                Output::Report(report) => {
                    if let Some(lost) = self.outbox.offer(report) {
                        self.core.report_was_lost(&lost);
                    }
                }
            }
        }
    }
}

/// Looks again and again for so long; returns whether something came.
fn linger(fds: &mut [PollFd<'_>], stay: Duration) -> bool {
    let start = mono();
    while mono().since(start) < stay {
        // An error is met again by the sleep that follows.
        if rustix::event::poll(fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
            return true;
        }
        // Who answers may need this core.
        std::thread::yield_now();
    }
    false
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
