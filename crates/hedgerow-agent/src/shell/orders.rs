//! Commands that found the tunnel's queue full: they wait here, in order.
//!
//! A peer that is removed because it is revoked, or a key whose overlap is over, must reach the
//! tunnel whoever fills its queue meanwhile. What strangers can provoke are datagrams, and those are
//! dropped: the network may lose them as well.

use std::collections::VecDeque;

use hedgerow_linux::tunnel::{Command, Refused, SendError};

/// Commands kept beside the tunnel's own queue: every peer set, moved to another key and removed once.
/// When even that is full the tunnel's thread does not run any more, and the agent ends.
pub(super) const ORDERS_MAX: usize = 3 * hedgerow_mesh::PEERS_MAX;

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// The tunnel has it, or will have it, or it was a datagram that was dropped and counted.
    Taken,
    /// The tunnel has ended.
    Stopped,
    /// [`ORDERS_MAX`] commands wait already: the tunnel takes nothing.
    Stuck,
}

/// The commands that wait.
#[derive(Default)]
pub(super) struct Orders {
    waiting: VecDeque<Command>,
    dropped: u64,
}

impl Orders {
    /// Tells the tunnel by `offer`, after everything that waits.
    pub(super) fn tell(
        &mut self,
        command: Command,
        mut offer: impl FnMut(Command) -> Result<(), Refused>,
    ) -> Told {
        if self.flush(&mut offer) == Told::Stopped {
            return Told::Stopped;
        }
        let command = match self.waiting.is_empty() {
            false => command,
            true => match offer(command) {
                Ok(()) => return Told::Taken,
                Err(refused) if refused.error == SendError::Stopped => return Told::Stopped,
                Err(refused) => *refused.command,
            },
        };
        let is_datagram = matches!(
            command,
            Command::SendDatagram { .. } | Command::SendMessage { .. }
        );
        if is_datagram {
            self.dropped = self.dropped.saturating_add(1);
            return Told::Taken;
        }
        if self.waiting.len() >= ORDERS_MAX {
            return Told::Stuck;
        }
        self.waiting.push_back(command);
        Told::Taken
    }

    /// Offers what waits, in order, until there is no room.
    pub(super) fn flush(&mut self, mut offer: impl FnMut(Command) -> Result<(), Refused>) -> Told {
        while let Some(command) = self.waiting.pop_front() {
            match offer(command) {
                Ok(()) => {}
                Err(refused) if refused.error == SendError::Stopped => return Told::Stopped,
                Err(refused) => {
                    self.waiting.push_front(*refused.command);
                    break;
                }
            }
        }
        Told::Taken
    }

    /// Returns whether commands wait.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns how many datagrams were dropped for lack of room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Forgets what was meant for a tunnel that is gone.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_linux::tunnel::COMMANDS_MAX;
    use hedgerow_model::address::Underlay;
    use hedgerow_model::id::DeviceId;

    use super::*;

    /// A tunnel whose thread does not run: its queue fills up.
    #[derive(Default)]
    struct Tunnel(VecDeque<Command>);

    impl Tunnel {
        fn offer(&mut self, command: Command) -> Result<(), Refused> {
            if self.0.len() >= COMMANDS_MAX {
                return Err(Refused {
                    error: SendError::Full,
                    command: Box::new(command),
                });
            }
            self.0.push_back(command);
            Ok(())
        }

        fn removed(&mut self) -> Vec<u8> {
            let mut removed = Vec::new();
            for command in self.0.drain(..) {
                if let Command::RemovePeer { device } = command {
                    removed.push(device.0[0]);
                }
            }
            removed
        }
    }

    fn datagram() -> Command {
        Command::SendDatagram {
            to: Underlay("192.0.2.1:7117".parse().unwrap()).into(),
            bytes: vec![0x80],
        }
    }

    fn remove(n: u8) -> Command {
        Command::RemovePeer {
            device: DeviceId([n; 16]),
        }
    }

    #[test]
    fn a_flood_of_datagrams_never_costs_the_removal_of_a_revoked_peer() {
        let (mut orders, mut tunnel) = (Orders::default(), Tunnel::default());
        for _ in 0..COMMANDS_MAX + 50 {
            let told = orders.tell(datagram(), |c| tunnel.offer(c));
            assert_eq!(told, Told::Taken);
        }
        assert_eq!((orders.dropped(), orders.is_waiting()), (50, false));
        for n in 1..=3 {
            orders.tell(remove(n), |c| tunnel.offer(c));
            orders.tell(datagram(), |c| tunnel.offer(c));
        }
        assert_eq!(orders.dropped(), 53);
        assert!(tunnel.removed().is_empty() && orders.is_waiting());
        orders.tell(remove(4), |c| tunnel.offer(c));
        assert_eq!(tunnel.removed(), [1, 2, 3, 4], "in the order given");
        assert!(!orders.is_waiting());
    }

    #[test]
    fn a_tunnel_that_takes_nothing_any_more_is_noticed() {
        let mut orders = Orders::default();
        let full = |command| {
            Err(Refused {
                error: SendError::Full,
                command: Box::new(command),
            })
        };
        for _ in 0..ORDERS_MAX {
            assert_eq!(orders.tell(remove(1), full), Told::Taken);
        }
        assert_eq!(orders.tell(remove(1), full), Told::Stuck);
        assert_eq!(orders.tell(datagram(), full), Told::Taken);
        let stopped = |command| {
            Err(Refused {
                error: SendError::Stopped,
                command: Box::new(command),
            })
        };
        assert_eq!(orders.flush(stopped), Told::Stopped);
    }
}
