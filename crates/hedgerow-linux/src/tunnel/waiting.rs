//! Packets that wait: for a peer that holds their destination, or for a session with it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Overlay;

/// Seconds for which a destination stays wanted; then its packets are dropped and it can be
/// reported again.
pub const WANTED_SECONDS_MAX: u64 = 10;
/// Destinations wanted at once; packets to more are dropped and counted.
pub const DESTINATIONS_MAX: usize = 256;
/// Packets that wait for one destination; the oldest is dropped and counted.
pub const DESTINATION_PACKETS_MAX: usize = 8;
/// Packets that wait for a session with one peer; the oldest is dropped and counted.
pub const PEER_PACKETS_MAX: usize = 64;
/// Packets that wait in all; a new one is dropped and counted.
pub const PACKETS_MAX: usize = 1024;

/// A waiting packet.
pub(super) type Packet = Box<[u8]>;

/// A queue of waiting packets. Its bound is given with each call, for it depends on what is waited
/// for; the total is the [`Budget`]'s.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<Packet>);

/// How many packets wait in all queues together.
#[derive(Debug, Default)]
pub(super) struct Budget {
    used: usize,
}

impl Queue {
    /// Adds a copy of `packet`; returns how many packets were dropped for it, itself included.
    pub(super) fn push(&mut self, packet: &[u8], max: usize, budget: &mut Budget) -> u64 {
        let mut dropped = 0;
        while self.0.len() >= max && self.pop(budget).is_some() {
            dropped += 1;
        }
        if budget.used >= PACKETS_MAX {
            return dropped + 1;
        }
        budget.used += 1;
        self.0.push_back(packet.into());
        dropped
    }

    pub(super) fn pop(&mut self, budget: &mut Budget) -> Option<Packet> {
        let packet = self.0.pop_front()?;
        budget.used = budget.used.saturating_sub(1);
        Some(packet)
    }

    /// Drops all; returns how many there were.
    pub(super) fn clear(&mut self, budget: &mut Budget) -> u64 {
        let n = self.0.len();
        budget.used = budget.used.saturating_sub(n);
        self.0 = VecDeque::new();
        u64::try_from(n).unwrap_or(u64::MAX)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

struct Wanted {
    queue: Queue,
    until: Mono,
    is_reported: bool,
}

/// Destinations that no peer holds, with the packets to them.
#[derive(Default)]
pub(super) struct Destinations {
    map: BTreeMap<Overlay, Wanted>,
    /// The earliest `until`, or earlier.
    next: Option<Mono>,
}

/// What became of a packet to a destination that no peer holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pushed {
    /// Packets dropped for it.
    pub(super) dropped: u64,
    /// Whether the destination should be reported.
    pub(super) report: bool,
}

impl Destinations {
    pub(super) fn push(
        &mut self,
        dst: Overlay,
        packet: &[u8],
        budget: &mut Budget,
        now: Mono,
    ) -> Pushed {
        if self.map.len() >= DESTINATIONS_MAX && !self.map.contains_key(&dst) {
            return Pushed {
                dropped: 1,
                report: false,
            };
        }
        let until = now + Duration::from_secs(WANTED_SECONDS_MAX);
        let wanted = self.map.entry(dst).or_insert_with(|| Wanted {
            queue: Queue::default(),
            until,
            is_reported: false,
        });
        self.next = Some(self.next.map_or(wanted.until, |n| n.min(wanted.until)));
        let report = !std::mem::replace(&mut wanted.is_reported, true);
        Pushed {
            dropped: wanted.queue.push(packet, DESTINATION_PACKETS_MAX, budget),
            report,
        }
    }

    /// Notes that the report was lost, so that the next packet makes another.
    pub(super) fn report_was_lost(&mut self, dst: Overlay) {
        if let Some(wanted) = self.map.get_mut(&dst) {
            wanted.is_reported = false;
        }
    }

    /// Takes a destination's packets out; they still count in the budget until popped.
    pub(super) fn take(&mut self, dst: Overlay) -> Option<Queue> {
        self.map.remove(&dst).map(|wanted| wanted.queue)
    }

    /// Drops what waited too long; returns how many packets.
    pub(super) fn expire(&mut self, budget: &mut Budget, now: Mono) -> u64 {
        if self.deadline() > now {
            return 0;
        }
        let mut dropped = 0;
        self.map.retain(|_, wanted| {
            let keep = wanted.until > now;
            if !keep {
                dropped += wanted.queue.clear(budget);
            }
            keep
        });
        self.next = self.map.values().map(|w| w.until).min();
        dropped
    }

    pub(super) fn deadline(&self) -> Mono {
        self.next.unwrap_or(Mono::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn dst(n: usize) -> Overlay {
        Overlay(Ipv4Addr::from(u32::try_from(n).unwrap()).into())
    }

    #[test]
    fn tunnel_waiting_packets_are_bounded_per_queue_and_in_all() {
        let mut budget = Budget::default();
        let mut queue = Queue::default();
        let dropped: u64 = (0..10u8).map(|n| queue.push(&[n], 3, &mut budget)).sum();
        assert_eq!((dropped, queue.len(), budget.used), (7, 3, 3));
        assert_eq!(*queue.pop(&mut budget).unwrap(), [7], "the oldest went");
        let mut other = Queue::default();
        let dropped: u64 = (0..PACKETS_MAX)
            .map(|_| other.push(&[0], usize::MAX, &mut budget))
            .sum();
        assert_eq!((dropped, budget.used), (2, PACKETS_MAX));
        other.clear(&mut budget);
        queue.clear(&mut budget);
        assert_eq!(budget.used, 0);
    }

    #[test]
    fn tunnel_a_destination_is_wanted_once_until_it_expires() {
        let mut budget = Budget::default();
        let mut wanted = Destinations::default();
        let now = Mono::ZERO;
        assert!(wanted.push(dst(1), b"a", &mut budget, now).report);
        assert!(!wanted.push(dst(1), b"b", &mut budget, now).report);
        wanted.report_was_lost(dst(1));
        assert!(wanted.push(dst(1), b"c", &mut budget, now).report);
        let late = now + Duration::from_secs(WANTED_SECONDS_MAX);
        assert_eq!(wanted.deadline(), late);
        assert_eq!(wanted.expire(&mut budget, now), 0);
        assert_eq!(wanted.expire(&mut budget, late), 3);
        assert_eq!((wanted.deadline(), budget.used), (Mono::NEVER, 0));
        assert!(wanted.push(dst(1), b"d", &mut budget, late).report);
    }

    #[test]
    fn tunnel_a_scan_of_the_overlay_fills_a_bounded_table() {
        let mut budget = Budget::default();
        let mut wanted = Destinations::default();
        let reports = (0..100_000)
            .filter(|n| {
                wanted
                    .push(dst(*n), &[0; 1400], &mut budget, Mono::ZERO)
                    .report
            })
            .count();
        assert_eq!((reports, budget.used), (DESTINATIONS_MAX, DESTINATIONS_MAX));
    }
}
