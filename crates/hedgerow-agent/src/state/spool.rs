//! Events that wait to be reported: bounded, in order, numbered without a gap.

use std::collections::VecDeque;

use hedgerow_model::event::{Event, EventKind, Severity};
use minicbor::{Decode, Encode};

/// Most events of one kind and minute; the rest is counted into the next one.
const SAME_KIND_MAX: usize = 30;
/// The same for kinds of high severity, which others can cause too.
const SAME_HIGH_KIND_MAX: usize = 120;

/// The spool as it is written to disk.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(crate) struct Spool {
    /// Sequence number of the first waiting event.
    #[n(0)]
    first: u64,
    #[n(1)]
    waiting: VecDeque<Event>,
    /// Events that fell out since the last that was reported.
    #[n(2)]
    dropped: u64,
    #[cbor(skip)]
    max: usize,
    #[cbor(skip)]
    sent: usize,
    #[cbor(skip)]
    changed: bool,
    #[cbor(skip)]
    urgent: bool,
}

impl Spool {
    /// Starts empty.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            first: 1,
            waiting: VecDeque::new(),
            dropped: 0,
            max,
            sent: 0,
            changed: false,
            urgent: false,
        }
    }

    /// Goes on with what is on disk.
    pub(crate) fn resumed(mut self, max: usize) -> Self {
        self.max = max;
        while self.waiting.len() > max {
            self.make_room();
        }
        self
    }

    /// Takes an event. When full, the oldest of the lowest severity goes, and is counted.
    pub(crate) fn push(&mut self, event: Event) {
        let minute = |e: &Event| e.at_ms / 60_000;
        let kind: EventKind = event.kind;
        let recent = self.waiting.iter().rev().take(256);
        let same = recent.filter(|e| e.kind == kind && minute(e) == minute(&event));
        let max = match kind.severity() >= Severity::High {
            true => SAME_HIGH_KIND_MAX,
            false => SAME_KIND_MAX,
        };
        if same.count() >= max {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        if self.waiting.len() >= self.max {
            self.make_room();
        }
        if self.waiting.len() >= self.max {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.urgent |= kind.severity() >= Severity::Medium;
        self.changed = true;
        let event = match std::mem::take(&mut self.dropped) {
            0 => event,
            dropped => event.detail("dropped_before", dropped),
        };
        self.waiting.push_back(event);
    }

    /// Returns the next events to report, with the sequence number of the first; nothing while a
    /// report is under way.
    pub(crate) fn next_report(&mut self, max: usize) -> Option<(u64, Vec<Event>)> {
        if self.sent > 0 || self.waiting.is_empty() {
            return None;
        }
        let events: Vec<Event> = self.waiting.iter().take(max).cloned().collect();
        self.sent = events.len();
        Some((self.first, events))
    }

    /// Notes that events before `upto` are stored at the controller.
    pub(crate) fn handle_stored(&mut self, upto: u64) {
        while self.first < upto && self.waiting.pop_front().is_some() {
            self.first = self.first.saturating_add(1);
            self.changed = true;
        }
        self.sent = 0;
    }

    /// Notes that the connection ended: what was under way is reported again.
    pub(crate) fn handle_uplink_down(&mut self) {
        self.sent = 0;
    }

    /// Returns how many events wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether the copy on disk is out of date, and whether writing may not wait; from then
    /// on it counts as written.
    pub(crate) fn take_changed(&mut self) -> Option<Urgency> {
        let urgent = std::mem::take(&mut self.urgent);
        let changed = std::mem::take(&mut self.changed);
        match (changed, urgent) {
            (false, _) => None,
            (true, true) => Some(Urgency::Now),
            (true, false) => Some(Urgency::Soon),
        }
    }

    /// Notes that the disk did not take it.
    pub(crate) fn handle_unwritten(&mut self) {
        self.changed = true;
    }

    /// What is under way has numbers already and stays.
    fn make_room(&mut self) {
        let free = || self.waiting.iter().enumerate().skip(self.sent);
        let lowest = free().map(|(_, e)| e.kind.severity()).min();
        let found = free().find(|(_, e)| Some(e.kind.severity()) == lowest);
        if let Some(at) = found.map(|(at, _)| at) {
            self.waiting.remove(at);
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}

/// How soon the spool must be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Within seconds.
    Soon,
    /// Before anything else.
    Now,
}

#[cfg(test)]
mod tests {
    use hedgerow_model::Wall;

    use super::*;

    fn event(kind: EventKind, minute: u64) -> Event {
        Event::new(Wall(minute * 60_000), kind)
    }

    #[test]
    fn a_full_spool_drops_the_oldest_of_the_lowest_severity_and_says_how_many() {
        let mut spool = Spool::new(3);
        spool.push(event(EventKind::AgentStarted, 1));
        spool.push(event(EventKind::TableMended, 2));
        spool.push(event(EventKind::PacketRefused, 3));
        spool.push(event(EventKind::TableMended, 4));
        spool.push(event(EventKind::TableMended, 5));
        let (first, events) = spool.next_report(9).unwrap();
        assert_eq!(first, 1);
        assert!(events.iter().all(|e| e.kind == EventKind::TableMended));
        assert_eq!(events[2].details["dropped_before"], "1");
    }

    #[test]
    fn reports_repeat_until_stored_and_numbers_have_no_gap() {
        let mut spool = Spool::new(100);
        for minute in 0..5 {
            spool.push(event(EventKind::UplinkLost, minute));
        }
        assert_eq!(spool.next_report(2).unwrap().1.len(), 2);
        assert_eq!(spool.next_report(2), None, "one at a time");
        spool.handle_uplink_down();
        let (first, events) = spool.next_report(3).unwrap();
        assert_eq!((first, events.len()), (1, 3));
        spool.handle_stored(4);
        assert_eq!(spool.next_report(9).unwrap().0, 4);
    }

    #[test]
    fn a_flood_of_one_kind_is_counted_not_kept() {
        let mut spool = Spool::new(1000);
        for _ in 0..500 {
            spool.push(event(EventKind::PacketRefused, 1));
        }
        assert_eq!(spool.len(), SAME_KIND_MAX);
        spool.push(event(EventKind::PacketRefused, 2));
        let (_, events) = spool.next_report(99).unwrap();
        assert_eq!(events.last().unwrap().details["dropped_before"], "470");
    }

    #[test]
    fn attack_a_flood_of_high_severity_is_counted_and_what_is_under_way_stays() {
        let mut spool = Spool::new(150);
        spool.push(event(EventKind::AgentStarted, 0));
        assert_eq!(spool.next_report(9).unwrap().1.len(), 1);
        for minute in 1..4 {
            for _ in 0..1000 {
                spool.push(event(EventKind::AddressSpoofed, minute));
            }
        }
        assert_eq!(spool.len(), 150);
        spool.handle_stored(2);
        let (first, events) = spool.next_report(999).unwrap();
        assert_eq!(
            (first, events.len()),
            (2, 149),
            "none was lost with the acknowledged one"
        );
    }
}
