//! Keeps one certificate fresh, without touching a socket, a key or a clock.
//!
//! ```text
//!             due, and uplink            issued, stored          accepted
//!   Holding ───────────────▶ Requesting ───────────────▶ Trying ───────────▶ Holding
//!                              │    ▲                      │
//!                 refused,     ▼    │ retry, and uplink    │ refused: drop `next`
//!                 lost, silent Waiting ◀───────────────────┘
//! ```
//!
//! Renewal is asked for while an issuer can be reached, not when the certificate is nearly dead, so
//! that a link that breaks always leaves most of a life.

use std::collections::VecDeque;
use std::time::Duration;

use hedgerow_model::Mono;

/// How old a certificate gets before a new one is asked for, give or take a tenth.
pub const RENEW_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Largest first delay before asking again.
pub const RETRY_FIRST: Duration = Duration::from_secs(10);
/// Largest delay before asking again.
pub const RETRY_MAX: Duration = Duration::from_secs(15 * 60);
/// How long an answer, or the acceptance of a new certificate, is waited for.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Most outputs that wait for [`Rotation::poll`]; one transition makes no more than this.
pub const OUTPUTS_MAX: usize = 8;

/// What the caller must do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Make a key and a request, and send it.
    Request,
    /// Store what was issued in the slot `next`, then call [`Rotation::handle_stored`].
    StoreNext,
    /// Connect with what is in `next`, then call [`Rotation::handle_accepted`] or
    /// [`Rotation::handle_refused`].
    TryNext,
    /// Make `next` current.
    Promote,
    /// Remove `next`: the server does not accept it.
    DropNext,
}

/// Whether an issuer can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uplink {
    /// It can.
    Up,
    /// It cannot.
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Holding { renew_at: Mono },
    Requesting { until: Mono },
    Storing,
    Trying { until: Mono },
    Waiting { retry_at: Mono },
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Rotation {
    state: State,
    uplink: Uplink,
    attempts: u32,
    random: Random,
    outputs: VecDeque<Output>,
}

impl Rotation {
    /// Takes a certificate that was issued `age` ago. `seed` is random and differs between devices:
    /// a site that lost power together must not ask together.
    pub fn new(age: Duration, seed: u64, now: Mono) -> Self {
        let mut random = Random(seed);
        let renew_at = now + random.around(RENEW_EVERY).saturating_sub(age);
        Self {
            state: State::Holding { renew_at },
            uplink: Uplink::Down,
            attempts: 0,
            random,
            outputs: VecDeque::new(),
        }
    }

    /// Begins with a certificate in `next` that the server has not accepted yet.
    pub fn resume(seed: u64, now: Mono) -> Self {
        let mut rotation = Self::new(Duration::ZERO, seed, now);
        rotation.begin_trying(now);
        rotation
    }

    /// Learns whether an issuer can be reached. A renewal that fell due meanwhile, or failed while
    /// links came and went, is asked for after a short random delay.
    pub fn handle_uplink(&mut self, uplink: Uplink, now: Mono) {
        let came_up = self.uplink == Uplink::Down && uplink == Uplink::Up;
        self.uplink = uplink;
        match (uplink, self.state) {
            (Uplink::Down, State::Requesting { .. }) => self.wait(now),
            (Uplink::Up, State::Holding { renew_at }) if came_up && renew_at <= now => {
                let retry_at = now + self.random.up_to(RETRY_FIRST);
                self.state = State::Waiting { retry_at };
            }
            // What failed on an earlier uplink says nothing of this one.
            (Uplink::Up, State::Waiting { .. }) if came_up => {
                self.attempts = 0;
                let retry_at = now + self.random.up_to(RETRY_FIRST);
                self.state = State::Waiting { retry_at };
            }
            (Uplink::Up | Uplink::Down, _) => {}
        }
    }

    /// Takes an issued certificate; one that was not asked for is ignored.
    pub fn handle_issued(&mut self, _now: Mono) {
        if let State::Requesting { .. } = self.state {
            self.state = State::Storing;
            self.emit(Output::StoreNext);
        }
    }

    /// Learns that `next` is safely on disk.
    pub fn handle_stored(&mut self, now: Mono) {
        if self.state == State::Storing {
            self.begin_trying(now);
        }
    }

    /// Learns that `next` could not be stored: the old certificate stays.
    pub fn handle_not_stored(&mut self, now: Mono) {
        if self.state == State::Storing {
            self.wait(now);
        }
    }

    /// Learns that the server accepted a session with `next`.
    pub fn handle_accepted(&mut self, now: Mono) {
        if let State::Trying { .. } = self.state {
            self.emit(Output::Promote);
            self.attempts = 0;
            let renew_at = now + self.random.around(RENEW_EVERY);
            self.state = State::Holding { renew_at };
        }
    }

    /// Learns that the server refused the request, or refused `next`.
    pub fn handle_refused(&mut self, now: Mono) {
        match self.state {
            State::Requesting { .. } => self.wait(now),
            State::Trying { .. } => {
                self.emit(Output::DropNext);
                self.wait(now);
            }
            State::Holding { .. } | State::Storing | State::Waiting { .. } => {}
        }
    }

    /// Asks now, by an operator's wish or because the certificate has expired.
    pub fn handle_wanted(&mut self, now: Mono) {
        if matches!(self.state, State::Holding { .. } | State::Waiting { .. }) {
            self.state = State::Waiting { retry_at: now };
            self.handle_timeout(now);
        }
    }

    /// Advances time. Early, late and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Mono) {
        if now < self.deadline().0 {
            return;
        }
        match self.state {
            State::Holding { .. } | State::Waiting { .. } => {
                self.state = State::Requesting {
                    until: now + ANSWER_WITHIN,
                };
                self.emit(Output::Request);
            }
            State::Requesting { .. } => self.wait(now),
            State::Trying { .. } => self.begin_trying(now),
            State::Storing => {}
        }
    }

    /// Returns the next thing to do, if any. Call it until `None` after every `handle_*`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] next has something to decide, and what that is.
    /// While no issuer can be reached a due renewal has no deadline: the uplink wakes it.
    pub fn deadline(&self) -> (Mono, &'static str) {
        match (self.state, self.uplink) {
            (State::Holding { .. } | State::Waiting { .. }, Uplink::Down) => {
                (Mono::NEVER, "wait for an issuer")
            }
            (State::Holding { renew_at }, Uplink::Up) => (renew_at, "renew the certificate"),
            (State::Waiting { retry_at }, Uplink::Up) => (retry_at, "ask again"),
            (State::Requesting { until }, _) => (until, "give up waiting for a certificate"),
            (State::Trying { until }, _) => (until, "try the new certificate again"),
            (State::Storing, _) => (Mono::NEVER, "wait for the disk"),
        }
    }

    /// A new certificate that nobody answered for may have been accepted: it is tried again, never
    /// dropped. The interval grows while no answer comes.
    fn begin_trying(&mut self, now: Mono) {
        self.emit(Output::TryNext);
        let until = now + ANSWER_WITHIN + self.backoff();
        self.state = State::Trying { until };
    }

    fn wait(&mut self, now: Mono) {
        let retry_at = now + self.backoff();
        self.state = State::Waiting { retry_at };
    }

    /// Full jitter: anything up to a bound that doubles (AWS Architecture Blog, 2015).
    fn backoff(&mut self) -> Duration {
        let bound = RETRY_FIRST
            .saturating_mul(1 << self.attempts.min(10))
            .min(RETRY_MAX);
        self.attempts = self.attempts.saturating_add(1);
        // Never at once, so that looking twice at one moment equals looking once.
        self.random.up_to(bound).max(Duration::from_millis(1))
    }

    fn emit(&mut self, output: Output) {
        if self.outputs.len() >= OUTPUTS_MAX {
            self.outputs.pop_front();
        }
        self.outputs.push_back(output);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): spreads requests, protects nothing.
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn up_to(&mut self, bound: Duration) -> Duration {
        let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.draw() % millis.saturating_add(1))
    }

    /// Nine tenths to eleven tenths of `mean`.
    fn around(&mut self, mean: Duration) -> Duration {
        mean - mean / 10 + self.up_to(mean / 5)
    }
}

#[cfg(test)]
mod tests;
