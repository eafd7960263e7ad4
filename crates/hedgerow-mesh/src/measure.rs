//! What people measure: round trips and throughput to a peer's agent, inside the tunnel.
//!
//! ```text
//!  ping  ──▶ Ping ──────────────▶ Pong            any peer answers, so many in a second
//!  bench ──▶ Ask ──▶ Verdict      the peer's configuration decides
//!            Data ─▶ Ack          for some seconds, then Turn, and the same from there
//! ```
//!
//! # Invariants
//!
//! - An answer is no longer than its question, and goes to a peer with a session alone.
//! - Nothing is sent in bulk to who has not consented, and no longer or more than it consented to.
//! - One measurement of throughput at a time, here and there.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;

use crate::output::Unreachable;

mod bench;
#[cfg(test)]
mod tests;
mod wire;

pub use bench::{BYTES_MAX, Direction, Measured, SECONDS_MAX};
pub use wire::Message;

use bench::{Asked, Served};

/// How long a peer may take to answer once a session lives.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long it may take until a session lives.
pub const SESSION_WITHIN: Duration = Duration::from_secs(6);
/// Pings under way at once; one more gets no answer.
const PINGS_MAX: usize = 64;
/// Pings of one peer that are answered per second.
const PONGS_PER_SECOND: u32 = 50;
/// Peers whose pings are counted; those counted longest ago are forgotten first.
const PINGERS_MAX: usize = 256;

/// What the parent has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Say this to a peer's agent.
    Send(DeviceId, Vec<u8>),
    /// Answer whoever asked.
    Answer(u64, Answer),
}

/// What whoever asked is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The peer answered.
    Pong {
        /// How long that took.
        round_trip: Duration,
        /// By which path the answer came.
        path: Path,
        /// Whether the question reached the peer through a relay.
        is_relayed_there: bool,
        /// How long it took until a session lived, where there was none.
        session_after: Option<Duration>,
    },
    /// Throughput was measured.
    Measured(Box<Measured>),
    /// The peer does not consent.
    Denied,
    /// The peer, or this device, measures already.
    Busy,
    /// No session with the peer.
    NoSession,
    /// There is a session, and no answer.
    Silent,
    /// The peer cannot be reached at all.
    Unreachable(Unreachable),
}

/// A ping under way.
#[derive(Debug)]
struct Ping {
    id: u64,
    device: DeviceId,
    asked: Mono,
    /// When it was sent; before, it waits for a session.
    sent: Option<Mono>,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Measure {
    consents: bool,
    pings: BTreeMap<u64, Ping>,
    /// Seconds and pings in it, by peer.
    pingers: BTreeMap<DeviceId, (u64, u32)>,
    asked: Option<Asked>,
    served: Option<Served>,
    out: VecDeque<Output>,
}

impl Measure {
    /// Begins; `consents` says whether peers may measure throughput to this device.
    pub fn new(consents: bool) -> Self {
        Self {
            consents,
            ..Self::default()
        }
    }

    /// Asks a peer for an answer; `token` is random, so that nobody else can give it.
    pub fn handle_ping(&mut self, id: u64, device: DeviceId, token: u64, now: Mono) {
        if self.pings.len() >= PINGS_MAX {
            self.out.push_back(Output::Answer(id, Answer::Busy));
            return;
        }
        let ping = Ping {
            id,
            device,
            asked: now,
            sent: None,
        };
        self.pings.insert(token, ping);
    }

    /// Measures throughput to a peer and back, for so long each way.
    pub fn handle_bench(
        &mut self,
        id: u64,
        device: DeviceId,
        (token, seconds): (u64, u32),
        now: Mono,
    ) {
        if self.asked.is_some() || self.served.is_some() {
            self.out.push_back(Output::Answer(id, Answer::Busy));
            return;
        }
        self.asked = Some(Asked::new(id, device, token, seconds, now));
    }

    /// Notes that a session with a peer lives: what waits for it goes.
    pub fn handle_session(&mut self, device: DeviceId, now: Mono) {
        for (token, ping) in &mut self.pings {
            if ping.device == device && ping.sent.is_none() {
                ping.sent = Some(now);
                let bytes = Message::Ping { token: *token }.encode();
                self.out.push_back(Output::Send(device, bytes));
            }
        }
        if let Some(asked) = self.asked.as_mut().filter(|a| a.device() == device) {
            asked.handle_session(&mut self.out, now);
        }
    }

    /// Notes that a device cannot be reached.
    pub fn handle_unreachable(&mut self, device: DeviceId, why: Unreachable) {
        let lost = |ping: &Ping| ping.device == device && ping.sent.is_none();
        let tokens: Vec<u64> = self
            .pings
            .iter()
            .filter(|(_, ping)| lost(ping))
            .map(|(token, _)| *token)
            .collect();
        for token in tokens {
            if let Some(ping) = self.pings.remove(&token) {
                let answer = Output::Answer(ping.id, Answer::Unreachable(why));
                self.out.push_back(answer);
            }
        }
        if let Some(asked) = self.asked.take_if(|a| a.device() == device && a.waits()) {
            let answer = Output::Answer(asked.id(), Answer::Unreachable(why));
            self.out.push_back(answer);
        }
    }

    /// Takes what a peer's agent says about measuring. What is no such message is dropped.
    pub fn handle_message(&mut self, device: DeviceId, from: Path, bytes: &[u8], now: Mono) {
        let Ok(message) = Message::decode(bytes) else {
            return;
        };
        match message {
            Message::Ping { token } => {
                if self.may_ping(device, now) {
                    let is_relayed = !from.is_direct();
                    let bytes = Message::Pong { token, is_relayed }.encode();
                    self.out.push_back(Output::Send(device, bytes));
                }
            }
            Message::Pong { token, is_relayed } => {
                self.handle_pong(device, from, (token, is_relayed), now);
            }
            Message::Ask { .. } => self.handle_ask(device, &message, now),
            Message::Verdict { token, verdict } => {
                let ours = self.asked.as_mut().filter(|a| a.is(device, token));
                if let Some(asked) = ours {
                    asked.handle_verdict(verdict, &mut self.out, now);
                }
            }
            Message::Data { token, .. }
            | Message::Ack { token, .. }
            | Message::Turn { token }
            | Message::End { token, .. } => {
                if let Some(asked) = self.asked.as_mut().filter(|a| a.is(device, token)) {
                    asked.handle_message(&message, &mut self.out, now);
                } else if let Some(served) = self.served.as_mut().filter(|s| s.is(device, token)) {
                    served.handle_message(&message, bytes.len(), &mut self.out, now);
                }
            }
        }
        self.settle();
    }

    fn handle_pong(
        &mut self,
        device: DeviceId,
        from: Path,
        (token, relayed): (u64, bool),
        now: Mono,
    ) {
        if let Some(asked) = self.asked.as_mut().filter(|a| a.device() == device) {
            asked.handle_pong(token, now);
        }
        let Some(ping) = self.pings.get(&token).filter(|p| p.device == device) else {
            return;
        };
        let Some(sent) = ping.sent else {
            return;
        };
        let answer = Answer::Pong {
            round_trip: now.since(sent),
            path: from,
            is_relayed_there: relayed,
            session_after: Some(sent.since(ping.asked)).filter(|d| *d > Duration::ZERO),
        };
        self.out.push_back(Output::Answer(ping.id, answer));
        self.pings.remove(&token);
    }

    fn handle_ask(&mut self, device: DeviceId, asked: &Message, now: Mono) {
        let Message::Ask {
            token,
            seconds,
            bytes,
        } = *asked
        else {
            return;
        };
        let is_busy =
            self.asked.is_some() || self.served.as_ref().is_some_and(|s| !s.is(device, token));
        let verdict = match (self.consents, is_busy) {
            (false, _) => wire::DENIED,
            (true, true) => wire::BUSY,
            (true, false) => wire::GRANTED,
        };
        if verdict == wire::GRANTED && self.served.is_none() {
            self.served = Some(Served::new(device, token, (seconds, bytes), now));
        }
        let bytes = Message::Verdict { token, verdict }.encode();
        self.out.push_back(Output::Send(device, bytes));
    }

    /// Whether a peer may have an answer: so many in each second.
    fn may_ping(&mut self, device: DeviceId, now: Mono) -> bool {
        let second = now.0.as_secs();
        if self.pingers.len() >= PINGERS_MAX && !self.pingers.contains_key(&device) {
            self.pingers.retain(|_, (at, _)| *at == second);
            if self.pingers.len() >= PINGERS_MAX {
                return false;
            }
        }
        let (at, count) = self.pingers.entry(device).or_insert((second, 0));
        if *at != second {
            (*at, *count) = (second, 0);
        }
        *count += 1;
        *count <= PONGS_PER_SECOND
    }

    /// Advances time.
    pub fn handle_timeout(&mut self, now: Mono) {
        let over: Vec<u64> = self
            .pings
            .iter()
            .filter(|(_, ping)| ping.until() <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in over {
            if let Some(ping) = self.pings.remove(&token) {
                let answer = match ping.sent {
                    Some(_) => Answer::Silent,
                    None => Answer::NoSession,
                };
                self.out.push_back(Output::Answer(ping.id, answer));
            }
        }
        if let Some(asked) = &mut self.asked {
            asked.handle_timeout(&mut self.out, now);
        }
        if let Some(served) = &mut self.served {
            served.handle_timeout(&mut self.out, now);
        }
        self.settle();
    }

    /// Lets go of what has ended.
    fn settle(&mut self) {
        self.asked.take_if(|a| a.is_over());
        self.served.take_if(|s| s.is_over());
    }

    /// Returns when time has something to do here.
    pub fn deadline(&self) -> Mono {
        let pings = self.pings.values().map(Ping::until);
        let asked = self.asked.as_ref().map(Asked::deadline);
        let served = self.served.as_ref().map(Served::deadline);
        pings
            .chain(asked)
            .chain(served)
            .min()
            .unwrap_or(Mono::NEVER)
    }

    /// Returns the next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }
}

impl Ping {
    fn until(&self) -> Mono {
        match self.sent {
            Some(sent) => sent + ANSWER_WITHIN,
            None => self.asked + SESSION_WITHIN,
        }
    }
}
