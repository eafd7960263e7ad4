//! Somebody on the way who drops, holds back, repeats and plays again: a UDP proxy in a relay's place.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

/// Senders that it serves; a further one is not.
const SENDERS_MAX: usize = 64;
/// Datagrams of one direction that it remembers, to play them again.
const REMEMBERED_MAX: usize = 64;
const DATAGRAM_BYTES_MAX: usize = 2048;
/// How long it waits for a datagram before it lets go of what it held back.
const WAIT: Duration = Duration::from_millis(2);

/// What it does to datagrams, each in so many of a thousand.
#[derive(Debug, Clone, Args)]
pub(crate) struct Middle {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// Whom it stands before.
    #[arg(long)]
    to: SocketAddr,
    /// Lost.
    #[arg(long, default_value_t = 0)]
    lose: u64,
    /// Sent after the one that follows.
    #[arg(long, default_value_t = 0)]
    swap: u64,
    /// Sent twice.
    #[arg(long, default_value_t = 0)]
    twice: u64,
    /// Followed by an old one.
    #[arg(long, default_value_t = 0)]
    again: u64,
    /// Where its choices begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One direction between two ends.
#[derive(Debug, Default)]
struct Direction {
    held: Option<Vec<u8>>,
    old: VecDeque<Vec<u8>>,
}

/// Splitmix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn falls(&mut self, of_a_thousand: u64) -> bool {
        self.next() % 1000 < of_a_thousand
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Direction {
    /// Returns what is sent now that a datagram has come.
    fn pass(&mut self, datagram: &[u8], middle: &Middle, dice: &mut Dice) -> Vec<Vec<u8>> {
        if dice.falls(middle.lose) {
            return Vec::new();
        }
        if self.old.len() >= REMEMBERED_MAX {
            self.old.pop_front();
        }
        self.old.push_back(datagram.to_vec());
        if self.held.is_none() && dice.falls(middle.swap) {
            self.held = Some(datagram.to_vec());
            return Vec::new();
        }
        let mut sent = vec![datagram.to_vec()];
        if dice.falls(middle.twice) {
            sent.push(datagram.to_vec());
        }
        sent.extend(self.held.take());
        if dice.falls(middle.again) {
            let place = dice.next() % u64::try_from(self.old.len()).unwrap_or(1).max(1);
            let old = usize::try_from(place).ok().and_then(|p| self.old.get(p));
            sent.extend(old.cloned());
        }
        sent
    }
}

impl Middle {
    /// Passes datagrams until killed.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub(crate) fn run(&self) -> Result<()> {
        let front = UdpSocket::bind(self.listen).context("cannot listen")?;
        front.set_read_timeout(Some(WAIT))?;
        let mut dice = Dice(self.seed);
        let mut senders: BTreeMap<SocketAddr, (UdpSocket, Direction, Direction)> = BTreeMap::new();
        let mut datagram = [0; DATAGRAM_BYTES_MAX];
        loop {
            let came = received(front.recv_from(&mut datagram))?;
            if let Some((len, from)) = came {
                if !senders.contains_key(&from) && senders.len() < SENDERS_MAX {
                    let back = UdpSocket::bind(SocketAddr::new(self.listen.ip(), 0))?;
                    back.connect(self.to)?;
                    back.set_nonblocking(true)?;
                    senders.insert(from, (back, Direction::default(), Direction::default()));
                }
                if let (Some((back, there, _)), Some(bytes)) =
                    (senders.get_mut(&from), datagram.get(..len))
                {
                    for bytes in there.pass(bytes, self, &mut dice) {
                        // What the network does not take is lost, as anything here may be.
                        drop(back.send(&bytes));
                    }
                }
            }
            for (from, (back, there, here)) in &mut senders {
                while let Some(len) = received(back.recv(&mut datagram))? {
                    let bytes = datagram.get(..len).unwrap_or_default();
                    for bytes in here.pass(bytes, self, &mut dice) {
                        drop(front.send_to(&bytes, from));
                    }
                }
                if came.is_none() {
                    if let Some(bytes) = here.held.take() {
                        drop(front.send_to(&bytes, from));
                    }
                    if let Some(bytes) = there.held.take() {
                        drop(back.send(&bytes));
                    }
                }
            }
        }
    }
}

/// Returns what came, when something did.
fn received<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(came) => Ok(Some(came)),
        // The other end may be gone for a while: somebody on the way does not mind.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock
                    | ErrorKind::TimedOut
                    | ErrorKind::Interrupted
                    | ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn middle() -> Middle {
        let address = "127.0.0.1:1".parse().unwrap();
        Middle {
            listen: address,
            to: address,
            lose: 0,
            swap: 0,
            twice: 0,
            again: 0,
            seed: 1,
        }
    }

    #[test]
    fn nothing_asked_for_nothing_done() {
        let (mut way, mut dice) = (Direction::default(), Dice(7));
        for n in 0..200u8 {
            assert_eq!(way.pass(&[n], &middle(), &mut dice), [[n]]);
        }
    }

    #[test]
    fn it_loses_swaps_and_repeats() {
        let nasty = Middle {
            lose: 100,
            swap: 200,
            twice: 100,
            again: 100,
            ..middle()
        };
        let (mut way, mut dice) = (Direction::default(), Dice(7));
        let numbers = 0..250u8;
        let sent: Vec<u8> = numbers
            .flat_map(|n| way.pass(&[n], &nasty, &mut dice).concat())
            .collect();
        let seen: std::collections::BTreeSet<u8> = sent.iter().copied().collect();
        assert!((200..250).contains(&seen.len()), "{}", seen.len());
        assert!(sent.len() > seen.len(), "nothing came twice");
        assert!(!sent.is_sorted(), "nothing changed places");
    }
}
