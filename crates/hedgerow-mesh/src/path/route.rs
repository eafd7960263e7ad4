//! One way to a peer: what its probes have shown.

use std::collections::VecDeque;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::path::Path;

use super::mtu::Search;

/// Most probes of one route that await their replies; the oldest then counts as lost.
pub(super) const OUTSTANDING_MAX: usize = 8;
/// How long a first probe may take: beyond, it counts as lost.
pub(super) const FIRST_TIMEOUT: Duration = Duration::from_millis(700);
/// The shortest time after which a probe counts as lost.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// The longest.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(1);
/// Pauses between the probes of a route that never answered: both ends begin at about the same time, and
/// what one sends opens its own NAT for the other.
pub const PUNCH_PAUSES: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];
/// The first pause of a route that does not answer; each next is twice as long.
pub const REST_MIN: Duration = Duration::from_secs(1);
/// The longest.
pub const REST_MAX: Duration = Duration::from_secs(300);

/// The round trip is the mean of so many before it is smoothed: the first may have met a busy machine.
const SAMPLES_MEAN: u32 = 8;
/// So many make a route comparable with the one in use.
pub(super) const SAMPLES_ENOUGH: u32 = 8;

/// Loss below this many per mille costs nothing: it happens.
const LOSS_FREE_PERMILLE: u32 = 150;
/// What a relay costs beside a direct path with the same round trip, once.
const RELAY_COST: Duration = Duration::from_millis(20);

/// What a link over TLS costs beside UDP with the same round trip, once: a loss stops everything behind it.
const LINK_COST: Duration = Duration::from_millis(30);
/// The longest rest of a route over UDP while a link over TLS is used.
pub const LINK_REST_MAX: Duration = Duration::from_secs(15);

/// How long a route that was left because it was dead is taken for worse than all others, from the second time
/// on; each further time doubles it. A relay that drops most of what it should pass on would be taken again and
/// again.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// A time counts as a further one so long after the last; that doubles as well.
const FAILED_AGAIN: Duration = Duration::from_secs(60);
/// Most doublings of both.
const FAILED_DOUBLINGS_MAX: u32 = 5;

/// What is known of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Being tried; so many probes were sent.
    Fresh(usize),
    /// It answered, and nothing says that it stopped.
    Alive,
    /// It does not answer; tried again after a pause that grows.
    Resting(Duration),
}

/// A probe under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) number: u32,
    pub(crate) token: u64,
    pub(crate) at: Mono,
    pub(crate) lost_at: Mono,
    /// 0 for one that does not measure the path's MTU.
    pub(crate) size: u16,
}

/// One way to a peer.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) path: Path,
    pub(crate) standing: Standing,
    pub(crate) probe_at: Mono,
    pub(crate) outstanding: VecDeque<Sent>,
    /// Smoothed round trip (RFC 6298); none before the first reply.
    pub(crate) round_trip: Option<Duration>,
    variance: Duration,
    /// How many round trips were measured.
    pub(crate) samples: u32,
    pub(crate) loss_permille: u32,
    /// Probes lost in a row.
    pub(crate) misses: u32,
    /// When the probe was sent whose reply came last.
    pub(crate) proven_at: Option<Mono>,
    /// When that reply came.
    pub(crate) answered_at: Option<Mono>,
    /// Where the peer sees us on this route.
    pub(crate) seen: Option<Underlay>,
    pub(crate) mtu: Search,
    /// Until when it counts as one that answers probes and swallows packets.
    pub(crate) swallows_until: Mono,
    /// Whoever gave the path has taken it back: an answer does not make it good.
    pub(crate) is_closed: bool,
    /// When it was last left because it was dead, and how often it was in short order before that.
    failed: Option<(Mono, u32)>,
}

impl Route {
    pub(crate) fn new(path: Path, now: Mono) -> Self {
        Self {
            path,
            standing: Standing::Fresh(0),
            probe_at: now,
            outstanding: VecDeque::new(),
            round_trip: None,
            variance: Duration::ZERO,
            samples: 0,
            loss_permille: 0,
            misses: 0,
            proven_at: None,
            answered_at: None,
            seen: None,
            mtu: Search::default(),
            swallows_until: Mono::ZERO,
            is_closed: false,
            failed: None,
        }
    }

    /// Notes that the route is left because it is dead.
    pub(crate) fn failed(&mut self, now: Mono) {
        let again = self
            .failed
            .filter(|(at, times)| now.since(*at) < FAILED_AGAIN * 2u32.pow(*times));
        let times = again.map_or(0, |(_, times)| (times + 1).min(FAILED_DOUBLINGS_MAX));
        self.failed = Some((now, times));
    }

    /// Returns whether it was left so often that it is not to be trusted yet.
    pub(crate) fn has_failed(&self, now: Mono) -> bool {
        self.failed
            .is_some_and(|(at, times)| now.since(at) < FAILED_FOR * (2u32.pow(times) - 1))
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.standing == Standing::Alive
    }

    /// Returns whether packets may go by it, be it one that loses many of them.
    pub(crate) fn answers(&self) -> bool {
        self.is_alive() && self.misses == 0 && !self.is_closed
    }

    /// Returns whether it loses packets, however well it carries probes.
    pub(crate) fn is_blocked(&self, now: Mono) -> bool {
        self.mtu.is_blocked(now) || now < self.swallows_until
    }

    /// Returns whether packets may go by it.
    pub(crate) fn is_usable(&self, now: Mono) -> bool {
        self.answers() && !self.is_blocked(now)
    }

    /// How long a probe may take.
    pub(crate) fn timeout(&self) -> Duration {
        match self.round_trip {
            None => FIRST_TIMEOUT,
            Some(rtt) => {
                let margin = (self.variance * 4).max(Duration::from_millis(50));
                (rtt + margin).clamp(TIMEOUT_MIN, TIMEOUT_MAX)
            }
        }
    }

    /// What the route costs; less is better. A direct path wins over a comparable relayed one.
    pub(crate) fn cost(&self) -> Duration {
        let rtt = self.round_trip.unwrap_or(FIRST_TIMEOUT);
        let loss = self.loss_permille.saturating_sub(LOSS_FREE_PERMILLE);
        let relay = if self.path.is_direct() {
            Duration::ZERO
        } else {
            rtt / 2 + RELAY_COST
        };
        let link = match self.path.to.is_loopback() {
            true => rtt / 2 + LINK_COST,
            false => Duration::ZERO,
        };
        rtt + Duration::from_millis(loss.into()) + relay + link
    }

    /// Notes a probe that is sent now. Returns when it counts as lost.
    pub(crate) fn sent(&mut self, number: u32, token: u64, size: u16, now: Mono) {
        if self.outstanding.len() >= OUTSTANDING_MAX
            && let Some(oldest) = self.outstanding.pop_front()
        {
            self.lost(&oldest);
        }
        let lost_at = now + self.timeout();
        self.outstanding.push_back(Sent {
            number,
            token,
            at: now,
            lost_at,
            size,
        });
    }

    /// Takes a reply; returns the probe it answers.
    pub(crate) fn answered(&mut self, number: u32, token: u64, now: Mono) -> Option<Sent> {
        let place = self
            .outstanding
            .iter()
            .position(|s| s.number == number && s.token == token)?;
        let sent = self.outstanding.remove(place)?;
        self.give_back();
        self.measured(now.since(sent.at));
        self.misses = 0;
        self.loss_permille -= self.loss_permille / 8;
        self.proven_at = self.proven_at.max(Some(sent.at));
        self.answered_at = Some(now);
        Some(sent)
    }

    /// Takes the probes that are overdue; returns those that measured the MTU.
    pub(crate) fn overdue(&mut self, now: Mono) -> Vec<Sent> {
        let mut sized = Vec::new();
        while let Some(first) = self.outstanding.iter().position(|s| s.lost_at <= now) {
            let Some(sent) = self.outstanding.remove(first) else {
                break;
            };
            self.lost(&sent);
            if sent.size > 0 {
                sized.push(sent);
            }
            self.give_back();
        }
        sized
    }

    /// Between probes, which is nearly always, a route keeps no room for them.
    fn give_back(&mut self) {
        if self.outstanding.is_empty() {
            self.outstanding = VecDeque::new();
        }
    }

    /// A probe that measures the MTU is lost for its size: that says nothing about the path.
    fn lost(&mut self, sent: &Sent) {
        if sent.size == 0 {
            self.misses += 1;
            let eighth = (1000 - self.loss_permille.min(1000)) / 8;
            self.loss_permille += eighth;
        }
    }

    /// The route answers after it did not. What was lost while it led nowhere is no measure of it, and makes it
    /// suspect all the same: the next loss costs at once.
    pub(crate) fn comes_back(&mut self) {
        self.standing = Standing::Alive;
        self.loss_permille = self.loss_permille.min(LOSS_FREE_PERMILLE);
    }

    /// Lets the route rest; the next pause is twice as long, up to `most`.
    pub(crate) fn rest(
        &mut self,
        most: Duration,
        jitter: impl FnOnce(Duration) -> Duration,
        now: Mono,
    ) {
        let pause = match self.standing {
            Standing::Resting(pause) => (pause * 2).min(most),
            Standing::Fresh(_) => REST_MIN * 4,
            Standing::Alive => REST_MIN,
        };
        self.standing = Standing::Resting(pause);
        self.outstanding = VecDeque::new();
        self.probe_at = now + jitter(pause);
    }

    fn measured(&mut self, sample: Duration) {
        self.samples = self.samples.saturating_add(1);
        let weight = self.samples.min(SAMPLES_MEAN);
        match self.round_trip {
            None => {
                self.round_trip = Some(sample);
                self.variance = sample / 2;
            }
            Some(smooth) => {
                self.variance = (self.variance * 3 + smooth.abs_diff(sample)) / 4;
                self.round_trip = Some((smooth * (weight - 1) + sample) / weight);
            }
        }
    }
}
