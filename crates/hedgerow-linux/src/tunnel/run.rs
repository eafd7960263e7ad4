//! The tunnel's thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use rustix::event::EventfdFlags;
use rustix::fd::OwnedFd;

use super::stats::Shared;
use super::{Command, Report, Reports, StartError, TunnelConfig, TunnelHandle};
use crate::tun::{Lifetime, Tun};
use crate::udp::Udp;

pub(super) fn start(
    config: TunnelConfig,
    mut reports: Box<dyn Reports>,
    commands: SyncSender<Command>,
    receiver: Receiver<Command>,
) -> Result<TunnelHandle, StartError> {
    if !(1280..=super::MTU_MAX).contains(&config.mtu) {
        return Err(StartError::Mtu { mtu: config.mtu });
    }
    let udp = Udp::bind(config.port)?;
    let lifetime = if config.persistent {
        Lifetime::Persistent
    } else {
        Lifetime::Process
    };
    let tun = Tun::open(&config.name, lifetime)?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let wake = rustix::event::eventfd(0, flags).map_err(|e| StartError::System(e.into()))?;
    let port = udp.port();
    let thread = std::thread::Builder::new()
        .name("tunnel".to_owned())
        .spawn(move || {
            let _devices = (tun, udp);
            while !matches!(receiver.recv(), Ok(Command::Shutdown) | Err(_)) {}
            drop(reports.offer(Report::Stopped { error: None }));
        })
        .map_err(StartError::System)?;
    Ok(TunnelHandle {
        commands,
        wake: Arc::new(wake),
        thread: Some(thread),
        stats: Arc::new(Shared::default()),
        name: config.name,
        port,
    })
}

/// Wakes the thread. A full counter means that it is awake already.
pub(super) fn wake(fd: &OwnedFd) {
    let one: io::Result<usize> = rustix::io::write(fd, &1u64.to_ne_bytes()).map_err(Into::into);
    drop(one);
}
