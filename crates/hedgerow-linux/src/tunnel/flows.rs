//! Packets on their way into the tunnel, queued by flow: fair between flows, sparse flows first.
//!
//! The kernel's own queue before a TUN device is one line in which a keystroke waits behind megabytes.
//! So the device is emptied eagerly into these queues, and what is sent next is chosen here: deficit
//! round robin over flows, those that send little before those that send much (RFC 8290), and a
//! congestion signal to a flow whose packets have waited too long for too long (CoDel, RFC 8289).

use std::time::Duration;

use hedgerow_model::Mono;

/// Queues; flows share one when their hashes do.
pub const FLOWS_MAX: usize = 256;
/// Bytes a flow may send before the next one has its turn.
pub const QUANTUM_BYTES: i64 = 6000;
/// Waiting time that is fine, and how long it may be exceeded before flows are told.
pub const TARGET: Duration = Duration::from_millis(5);
/// See [`TARGET`].
pub const INTERVAL: Duration = Duration::from_millis(100);

const NONE: usize = usize::MAX;

/// A packet that waits. Its number is its place, chosen by the caller and below the capacity.
#[derive(Debug, Clone, Copy)]
struct Node {
    bytes: usize,
    since: Mono,
    next: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    None,
    New,
    Old,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    head: usize,
    tail: usize,
    bytes: usize,
    deficit: i64,
    list: List,
    next: usize,
    delay: Delay,
}

/// CoDel's memory of one queue.
#[derive(Debug, Clone, Copy)]
pub struct Delay {
    target: Duration,
    interval: Duration,
    /// When the waiting time will have been too long for too long.
    patience: Option<Mono>,
    /// When the next signal is due, while signals are given.
    next: Option<Mono>,
    count: u32,
}

/// A queue of queues.
#[derive(Debug, Clone, Copy)]
struct Line {
    head: usize,
    tail: usize,
}

/// What to do with a packet that leaves its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Send it.
    None,
    /// Send it marked, or lose part of it: its flow is to slow down.
    Congestion,
}

/// The queues. Nothing is allocated after [`Flows::new`].
#[derive(Debug)]
pub struct Flows {
    nodes: Vec<Node>,
    flows: Vec<Flow>,
    new: Line,
    old: Line,
    bytes: usize,
}

impl Flows {
    /// Makes queues for packets numbered below `capacity`.
    pub fn new(capacity: usize) -> Self {
        let node = Node {
            bytes: 0,
            since: Mono::ZERO,
            next: NONE,
        };
        let flow = Flow {
            head: NONE,
            tail: NONE,
            bytes: 0,
            deficit: 0,
            list: List::None,
            next: NONE,
            delay: Delay::new(TARGET, INTERVAL),
        };
        let line = Line {
            head: NONE,
            tail: NONE,
        };
        Self {
            nodes: vec![node; capacity],
            flows: vec![flow; FLOWS_MAX],
            new: line,
            old: line,
            bytes: 0,
        }
    }

    /// Returns the bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds packet `number` of `bytes` (at least 1) to the flow that `hash` stands for.
    pub fn push(&mut self, hash: u64, number: usize, bytes: usize, now: Mono) {
        let place = usize::try_from(hash % (FLOWS_MAX as u64)).unwrap_or(0);
        let (Some(flow), Some(node)) = (self.flows.get_mut(place), self.nodes.get_mut(number))
        else {
            return;
        };
        let bytes = bytes.max(1);
        *node = Node {
            bytes,
            since: now,
            next: NONE,
        };
        let before = std::mem::replace(&mut flow.tail, number);
        if flow.head == NONE {
            flow.head = number;
        }
        flow.bytes += bytes;
        self.bytes += bytes;
        let is_idle = flow.list == List::None;
        if is_idle {
            flow.deficit = QUANTUM_BYTES;
            flow.list = List::New;
        }
        if let Some(before) = self.nodes.get_mut(before) {
            before.next = number;
        }
        if is_idle {
            self.append(List::New, place);
        }
    }

    /// Takes out the packet that goes next.
    pub fn pop(&mut self, now: Mono) -> Option<(usize, Signal)> {
        loop {
            let (list, place) = match (self.new.head, self.old.head) {
                (NONE, NONE) => return None,
                (NONE, old) => (List::Old, old),
                (new, _) => (List::New, new),
            };
            let has_old = self.old.head != NONE;
            let flow = self.flows.get_mut(place)?;
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM_BYTES;
                self.rotate(list, place);
                continue;
            }
            let Some((number, node)) = self.take(place) else {
                // A flow that was new comes after the old ones before it may be new again.
                if list == List::New && has_old {
                    self.rotate(list, place);
                } else {
                    self.remove_head(list);
                    self.flows.get_mut(place)?.list = List::None;
                }
                continue;
            };
            let flow = self.flows.get_mut(place)?;
            flow.deficit -= i64::try_from(node.bytes).unwrap_or(i64::MAX);
            let waited = now.since(node.since);
            let signal = flow.delay.judge(waited, flow.bytes, now);
            return Some((number, signal));
        }
    }

    /// Takes out the oldest packet of the flow of which the most bytes wait: for when there is no room.
    pub fn drop_from_fattest(&mut self) -> Option<usize> {
        let flows = self.flows.iter().enumerate();
        let (place, _) = flows.max_by_key(|(_, flow)| flow.bytes)?;
        self.take(place).map(|(number, _)| number)
    }

    fn take(&mut self, place: usize) -> Option<(usize, Node)> {
        let flow = self.flows.get_mut(place)?;
        let number = flow.head;
        let node = *self.nodes.get(number)?;
        flow.head = node.next;
        if flow.head == NONE {
            flow.tail = NONE;
        }
        flow.bytes -= node.bytes;
        self.bytes -= node.bytes;
        Some((number, node))
    }

    /// Moves the first of a line to the end of the old ones.
    fn rotate(&mut self, list: List, place: usize) {
        self.remove_head(list);
        if let Some(flow) = self.flows.get_mut(place) {
            flow.list = List::Old;
        }
        self.append(List::Old, place);
    }

    fn line(&mut self, list: List) -> &mut Line {
        match list {
            List::New => &mut self.new,
            List::Old | List::None => &mut self.old,
        }
    }

    fn append(&mut self, list: List, place: usize) {
        if let Some(flow) = self.flows.get_mut(place) {
            flow.next = NONE;
        }
        let line = self.line(list);
        let before = std::mem::replace(&mut line.tail, place);
        if before == NONE {
            line.head = place;
        }
        if let Some(before) = self.flows.get_mut(before) {
            before.next = place;
        }
    }

    fn remove_head(&mut self, list: List) {
        let head = self.line(list).head;
        let next = self.flows.get(head).map_or(NONE, |f| f.next);
        let line = self.line(list);
        line.head = next;
        if next == NONE {
            line.tail = NONE;
        }
    }
}

impl Delay {
    /// Makes a memory for a queue in which waiting for `target` is fine, and longer is for `interval`.
    pub fn new(target: Duration, interval: Duration) -> Self {
        Self {
            target,
            interval,
            patience: None,
            next: None,
            count: 0,
        }
    }

    /// Judges a packet that has waited, with `left` bytes behind it. RFC 8289 §4: one signal when
    /// packets have waited too long for an interval, and then ever more often until they do not.
    pub fn judge(&mut self, waited: Duration, left: usize, now: Mono) -> Signal {
        if waited < self.target || left == 0 {
            self.patience = None;
            self.next = None;
            return Signal::None;
        }
        let ends = *self.patience.get_or_insert(now + self.interval);
        match self.next {
            None if now >= ends => {
                // Soon after the last time, it goes on where it left off.
                self.count = self.count.saturating_sub(2).max(1);
                self.next = Some(now + self.spacing());
                Signal::Congestion
            }
            Some(next) if now >= next => {
                self.count = self.count.saturating_add(1);
                self.next = Some(next + self.spacing());
                Signal::Congestion
            }
            _ => Signal::None,
        }
    }

    fn spacing(&self) -> Duration {
        self.interval.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(us: u64) -> Mono {
        Mono(Duration::from_micros(us))
    }

    #[test]
    fn a_sparse_flow_goes_before_what_waits() {
        let mut flows = Flows::new(100);
        for n in 0..10 {
            flows.push(1, n, 60_000, at(0));
        }
        assert_eq!(flows.pop(at(1)).unwrap().0, 0);
        flows.push(2, 50, 100, at(2));
        assert_eq!(flows.pop(at(3)).unwrap().0, 50);
        assert_eq!(flows.pop(at(4)).unwrap().0, 1);
        assert_eq!(flows.bytes(), 8 * 60_000);
    }

    #[test]
    fn flows_share_by_bytes_whatever_their_packets_are() {
        let mut flows = Flows::new(4000);
        for n in 0..1000 {
            flows.push(1, n, 1000, at(0));
        }
        for n in 0..100 {
            flows.push(2, 1000 + n, 50_000, at(0));
        }
        let mut sent = [0usize; 2];
        for _ in 0..500 {
            let (number, _) = flows.pop(at(1)).unwrap();
            sent[usize::from(number >= 1000)] += if number < 1000 { 1000 } else { 50_000 };
        }
        let difference = sent[0].abs_diff(sent[1]);
        assert!(difference <= 60_000, "{sent:?}");
    }

    #[test]
    fn a_flow_cannot_stay_new_by_sending_little_and_often() {
        let mut flows = Flows::new(1000);
        for n in 0..10 {
            flows.push(1, n, 1000, at(0));
        }
        // As soon as its packet is gone, the next one comes.
        flows.push(2, 500, 5000, at(0));
        let mut greedy = 0;
        for n in 501..520 {
            let (number, _) = flows.pop(at(1)).unwrap();
            if number >= 500 {
                greedy += 1;
                flows.push(2, n, 5000, at(1));
            }
        }
        assert!((5..=12).contains(&greedy), "{greedy}");
    }

    #[test]
    fn when_there_is_no_room_the_fattest_flow_loses_its_oldest() {
        let mut flows = Flows::new(10);
        flows.push(1, 0, 100, at(0));
        flows.push(2, 1, 900, at(0));
        flows.push(2, 2, 900, at(0));
        assert_eq!(flows.drop_from_fattest(), Some(1));
        assert_eq!(flows.drop_from_fattest(), Some(2));
        assert_eq!(flows.drop_from_fattest(), Some(0));
        assert_eq!((flows.drop_from_fattest(), flows.bytes()), (None, 0));
        assert_eq!(flows.pop(at(1)), None);
        flows.push(2, 3, 1, at(1));
        assert_eq!(flows.pop(at(1)), Some((3, Signal::None)));
    }

    #[test]
    fn waiting_too_long_for_too_long_is_signalled_ever_more_often() {
        let mut flows = Flows::new(10_000);
        let mut signals = vec![];
        // Always 20 packets deep, one in and one out per millisecond: each waits 20 ms.
        for ms in 0..1500u64 {
            let n = usize::try_from(ms).unwrap();
            flows.push(1, n, 1000, at(ms * 1000));
            if ms >= 20 && flows.pop(at(ms * 1000)).unwrap().1 == Signal::Congestion {
                signals.push(ms);
            }
        }
        assert_eq!(signals[0], 120, "an interval after the first that waited");
        let gaps: Vec<_> = signals.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(
            gaps[0] == 100 && gaps.is_sorted_by(|a, b| a + 1 >= *b),
            "{gaps:?}"
        );
        assert!(*gaps.last().unwrap() < 35);
        // A queue that runs empty is no standing queue.
        while flows.pop(at(1_500_000)).is_some() {}
        flows.push(1, 0, 1000, at(1_500_000));
        assert_eq!(flows.pop(at(1_600_000)), Some((0, Signal::None)));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_twice_or_out_of_order(
            steps in prop::collection::vec((0u8..4, 0u64..5, 1usize..70_000), 1..400),
        ) {
            let mut flows = Flows::new(400);
            let mut model: Vec<(u64, usize, usize)> = vec![];
            for (number, (step, hash, bytes)) in steps.into_iter().enumerate() {
                let gone = match step {
                    0 => flows.pop(at(0)).map(|p| p.0),
                    1 if number % 7 == 0 => flows.drop_from_fattest(),
                    _ => {
                        flows.push(hash, number, bytes, at(0));
                        model.push((hash, number, bytes));
                        None
                    }
                };
                if let Some(gone) = gone {
                    let at = model.iter().position(|m| m.1 == gone).unwrap();
                    let first = model.iter().position(|m| m.0 == model[at].0).unwrap();
                    prop_assert_eq!(at, first, "the oldest of its flow");
                    model.remove(at);
                } else if step < 1 {
                    prop_assert!(model.is_empty());
                }
                prop_assert_eq!(flows.bytes(), model.iter().map(|m| m.2).sum::<usize>());
            }
        }
    }
}
