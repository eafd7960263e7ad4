//! What is measured besides being judged.

use std::time::Duration;

use hedgerow_model::Mono;
use serde_json::{Value, json};

/// Some durations in simulated milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Durations(Vec<u64>);

impl Durations {
    pub(super) fn add(&mut self, duration: Duration) {
        self.0
            .push(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }

    pub(super) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the value that so many in a thousand do not exceed.
    pub(super) fn permille(&self, permille: usize) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let at = (sorted.len() * permille).div_ceil(1000).saturating_sub(1);
        sorted.get(at.min(last)).copied().unwrap_or_default()
    }

    pub(super) fn text(&self) -> String {
        format!(
            "{} ms p50, {} ms p99, {} ms most, of {}",
            self.permille(500),
            self.permille(990),
            self.permille(1000),
            self.len()
        )
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "p50_ms": self.permille(500), "p99_ms": self.permille(990),
            "max_ms": self.permille(1000), "count": self.len(),
        })
    }
}

/// Everything that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    /// From the death of the relay in use to the first packet after it.
    pub(crate) failover: Durations,
    /// The same without what light takes: two and a half round trips of the path that goes on. One and more
    /// until silence says anything, one for the probe of another path, half of one for the first packet.
    pub(crate) failover_beyond: Durations,
    /// The same by the round trip of that path: below 100 ms, below 200 ms, above.
    pub(crate) failover_by: [Durations; 3],
    /// The same where both ends had another relay at home that passes on what it is given, and where they had
    /// none: the second one lies, withholds or reorders, or is not the same at both ends.
    pub(crate) failover_beside: [Durations; 2],
    /// From the moment one device has a signed list until another has it.
    pub(crate) urgent: Durations,
    /// Thousandths of a byte per second of gossip, one mean over all devices for each round.
    pub(crate) gossip: Vec<u64>,
    /// Frames that relays passed on.
    pub(crate) relayed: u64,
    /// Packets that came from relay or guest and that the kernel stops.
    pub(crate) stopped: u64,
    /// Packets in another's name that a hostile device let out.
    pub(crate) spoofed: u64,
    /// Frames that a hostile relay mistreated.
    pub(crate) mistreated: u64,
    /// Introductions and messages that were refused.
    pub(crate) refused: u64,
}

impl Figures {
    pub(super) fn add(&mut self, other: &Self) {
        self.failover.extend(&other.failover);
        self.failover_beyond.extend(&other.failover_beyond);
        for (to, from) in self.failover_by.iter_mut().zip(&other.failover_by) {
            to.extend(from);
        }
        for (to, from) in self.failover_beside.iter_mut().zip(&other.failover_beside) {
            to.extend(from);
        }
        self.urgent.extend(&other.urgent);
        self.gossip.extend(&other.gossip);
        self.relayed += other.relayed;
        self.stopped += other.stopped;
        self.spoofed += other.spoofed;
        self.mistreated += other.mistreated;
        self.refused += other.refused;
    }

    /// Takes how long a stream paused whose relay died, whether another was there, and the round trip of the path
    /// that it goes on by.
    pub(super) fn failed_over(
        &mut self,
        pause: Duration,
        had_another: bool,
        round_trip: Option<Duration>,
    ) {
        self.failover.add(pause);
        let [with, without] = &mut self.failover_beside;
        if had_another { with } else { without }.add(pause);
        let Some(round_trip) = round_trip else {
            return;
        };
        self.failover_beyond
            .add(pause.saturating_sub(round_trip * 5 / 2));
        let class = usize::try_from(round_trip.as_millis() / 100).unwrap_or(usize::MAX);
        if let Some(of) = self.failover_by.get_mut(class.min(2)) {
            of.add(pause);
        }
    }

    /// Says it all in one line.
    pub(super) fn text(&self) -> String {
        format!(
            "  failover: {}; beyond 2.5 round trips: {}; by round trip below 100 ms: {}, below 200 ms: {}, above: {}; beside an honest relay that both ends have: {}, without one: {}; lists everywhere: {}; gossip at most {} mB/s; {} frames relayed, {} mistreated; {} packets stopped, {} spoofed; {} messages refused",
            self.failover.text(),
            self.failover_beyond.text(),
            self.failover_by[0].text(),
            self.failover_by[1].text(),
            self.failover_by[2].text(),
            self.failover_beside[0].text(),
            self.failover_beside[1].text(),
            self.urgent.text(),
            self.gossip_most(),
            self.relayed,
            self.mistreated,
            self.stopped,
            self.spoofed,
            self.refused,
        )
    }

    /// Returns the most that a round's gossip was, in thousandths of a byte per second and device.
    pub(super) fn gossip_most(&self) -> u64 {
        self.gossip.iter().max().copied().unwrap_or_default()
    }
}

/// Packets without a pause from one device to another, while a relay dies.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) sent: u32,
    /// When the last packet came.
    pub(super) heard: Option<Mono>,
    /// Whether the relay that died carried it.
    pub(super) is_hit: bool,
    /// Whether both ends had another relay at home then that passes on what it is given.
    pub(super) had_another: bool,
    /// The longest pause since that death.
    pub(super) gap: Option<Duration>,
}

impl Stream {
    pub(super) fn new(from: usize, to: usize) -> Self {
        Self {
            from,
            to,
            sent: 0,
            heard: None,
            is_hit: false,
            had_another: false,
            gap: None,
        }
    }

    /// Takes a packet; `killed` is when the relay died.
    pub(super) fn hear(&mut self, killed: Option<Mono>, now: Mono) {
        if let (Some(before), Some(killed)) = (self.heard.replace(now), killed) {
            let pause = now.since(before.max(killed));
            self.gap = Some(self.gap.unwrap_or_default().max(pause));
        }
    }
}
