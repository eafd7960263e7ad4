//! Throughput: who asked, and who was asked.

use std::collections::VecDeque;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;

use super::wire::{self, Message};
use super::{ANSWER_WITHIN, Answer, Output, SESSION_WITHIN};

/// Longest measurement each way, in seconds.
pub const SECONDS_MAX: u32 = 10;
/// Most bytes of one measurement, both ways together.
pub const BYTES_MAX: u64 = 2 << 30;
/// Messages on their way at once, at first, at least and at most.
const WINDOW_FIRST: u32 = 32;
const WINDOW_MIN: u32 = 16;
const WINDOW_MAX: u32 = 1024;
/// So many messages are acknowledged together.
const ACK_EVERY: u32 = 8;
/// After so long without an acknowledgement what is on its way counts as lost.
const STALL: Duration = Duration::from_millis(250);
/// Round trips measured before the load, and how often one under it.
const PROBES: u32 = 10;
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// How often a question is repeated whose answer does not come, and how soon.
const TRIES_MAX: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(400);
/// Most round trips that are kept.
const SAMPLES_MAX: usize = 256;

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Direction {
    /// Messages sent.
    pub sent: u32,
    /// Messages that arrived.
    pub received: u32,
    /// Bytes of the messages that arrived.
    pub bytes: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

impl Direction {
    /// Returns how many bits arrived in a second.
    pub fn bits_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64().max(0.001);
        let bytes = u32::try_from(self.bytes).map_or(f64::from(u32::MAX), f64::from);
        bytes * 8.0 / seconds
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Measured {
    /// To the peer.
    pub there: Direction,
    /// From the peer.
    pub back: Direction,
    /// Round trips without load, sorted.
    pub idle: Vec<Duration>,
    /// Round trips under load, sorted.
    pub loaded: Vec<Duration>,
}

/// Sends as fast as the other acknowledges.
#[derive(Debug)]
struct Sender {
    device: DeviceId,
    token: u64,
    begun: Mono,
    until: Mono,
    heard: Mono,
    /// Number of the next message.
    next: u32,
    /// Everything below has arrived or is lost.
    settled: u32,
    received: u32,
    window: u32,
    bytes_left: u64,
}

impl Sender {
    fn new((device, token): (DeviceId, u64), bytes: u64, until: Mono, now: Mono) -> Self {
        Self {
            device,
            token,
            begun: now,
            until,
            heard: now,
            next: 0,
            settled: 0,
            received: 0,
            window: WINDOW_FIRST,
            bytes_left: bytes,
        }
    }

    fn is_done(&self, now: Mono) -> bool {
        now >= self.until || self.bytes_left < wire::FILLING_BYTES as u64
    }

    fn fill(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        while !self.is_done(now) && self.next - self.settled < self.window {
            let message = Message::Data {
                token: self.token,
                number: self.next,
            };
            let bytes = message.encode();
            self.bytes_left = self.bytes_left.saturating_sub(bytes.len() as u64);
            self.next += 1;
            out.push_back(Output::Send(self.device, bytes));
        }
    }

    fn handle_ack(&mut self, next: u32, received: u32, now: Mono) {
        // Nobody acknowledges what was not sent.
        if next > self.next || received > next || next <= self.settled {
            return;
        }
        self.heard = now;
        let news = next - self.settled;
        let arrived = received.saturating_sub(self.received);
        self.window = match arrived >= news {
            true => (self.window + news).min(WINDOW_MAX),
            false => (self.window - self.window / 4).max(WINDOW_MIN),
        };
        self.settled = next;
        self.received = self.received.max(received);
    }

    fn handle_timeout(&mut self, now: Mono) {
        if self.next > self.settled && now.since(self.heard) >= STALL {
            self.settled = self.next;
            self.window = (self.window / 2).max(WINDOW_MIN);
            self.heard = now;
        }
    }

    fn deadline(&self) -> Mono {
        self.until.min(self.heard + STALL)
    }

    fn measured(&self) -> Direction {
        Direction {
            sent: self.next,
            received: self.received,
            bytes: u64::from(self.received) * wire::FILLING_BYTES as u64,
            elapsed: self.heard.since(self.begun),
        }
    }
}

/// Counts what comes.
#[derive(Debug, Default)]
struct Receiver {
    next: u32,
    received: u32,
    unacknowledged: u32,
    span: Option<(Mono, Mono)>,
}

impl Receiver {
    fn handle_data(
        &mut self,
        (device, token, number): (DeviceId, u64, u32),
        out: &mut VecDeque<Output>,
        now: Mono,
    ) {
        self.next = self.next.max(number.saturating_add(1));
        // A peer that repeats numbers deceives only whoever reads its own figures.
        self.received = self.received.saturating_add(1).min(self.next);
        let first = self.span.map_or(now, |(first, _)| first);
        self.span = Some((first, now));
        self.unacknowledged += 1;
        if self.unacknowledged >= ACK_EVERY {
            self.acknowledge((device, token), out);
        }
    }

    fn acknowledge(&mut self, (device, token): (DeviceId, u64), out: &mut VecDeque<Output>) {
        self.unacknowledged = 0;
        let message = Message::Ack {
            token,
            next: self.next,
            received: self.received,
        };
        out.push_back(Output::Send(device, message.encode()));
    }

    fn measured(&self, sent: u32) -> Direction {
        Direction {
            sent: sent.max(self.next),
            received: self.received,
            bytes: u64::from(self.received) * wire::FILLING_BYTES as u64,
            elapsed: self.span.map_or(Duration::ZERO, |(a, b)| b.since(a)),
        }
    }
}

#[derive(Debug)]
enum Phase {
    /// For a session.
    Waiting,
    /// Round trips without load: so many are left.
    Idle(u32),
    /// For the peer's consent.
    Asking,
    There(Sender),
    /// The peer was told that it is its turn.
    Turning,
    Back(Receiver),
    Over,
}

/// A measurement that somebody here asked for.
#[derive(Debug)]
pub(super) struct Asked {
    id: u64,
    device: DeviceId,
    token: u64,
    seconds: u32,
    phase: Phase,
    /// The phase ends, or something is repeated.
    at: Mono,
    tries: u32,
    probe: Option<(u64, Mono)>,
    probes: u64,
    measured: Measured,
}

impl Asked {
    pub(super) fn new(id: u64, device: DeviceId, token: u64, seconds: u32, now: Mono) -> Self {
        Self {
            id,
            device,
            token,
            seconds: seconds.clamp(1, SECONDS_MAX),
            phase: Phase::Waiting,
            at: now + SESSION_WITHIN,
            tries: 0,
            probe: None,
            probes: 0,
            measured: Measured::default(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    pub(super) fn is(&self, device: DeviceId, token: u64) -> bool {
        (self.device, self.token) == (device, token)
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Waiting)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    pub(super) fn deadline(&self) -> Mono {
        match &self.phase {
            Phase::There(sender) => self.at.min(sender.deadline()),
            Phase::Waiting
            | Phase::Idle(_)
            | Phase::Asking
            | Phase::Turning
            | Phase::Back(_)
            | Phase::Over => self.at,
        }
    }

    fn say(&self, message: Message, out: &mut VecDeque<Output>) {
        out.push_back(Output::Send(self.device, message.encode()));
    }

    fn end(&mut self, answer: Answer, out: &mut VecDeque<Output>) {
        self.phase = Phase::Over;
        out.push_back(Output::Answer(self.id, answer));
    }

    pub(super) fn handle_session(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        if self.waits() {
            self.phase = Phase::Idle(PROBES);
            self.probe(out, now);
        }
    }

    fn probe(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        self.probes += 1;
        let token = self.token.wrapping_add(self.probes);
        self.probe = Some((token, now));
        self.say(Message::Ping { token }, out);
        self.at = now
            + match self.phase {
                Phase::There(_) => PROBE_EVERY,
                Phase::Waiting
                | Phase::Idle(_)
                | Phase::Asking
                | Phase::Turning
                | Phase::Back(_)
                | Phase::Over => ANSWER_WITHIN,
            };
    }

    pub(super) fn handle_pong(&mut self, token: u64, now: Mono) {
        let Some((_, sent)) = self.probe.take_if(|(asked, _)| *asked == token) else {
            return;
        };
        let samples = match &mut self.phase {
            Phase::Idle(left) => {
                *left = left.saturating_sub(1);
                // The next one goes at once, from the timer.
                self.at = now;
                &mut self.measured.idle
            }
            Phase::Waiting
            | Phase::Asking
            | Phase::There(_)
            | Phase::Turning
            | Phase::Back(_)
            | Phase::Over => &mut self.measured.loaded,
        };
        if samples.len() < SAMPLES_MAX {
            samples.push(now.since(sent));
        }
    }

    fn ask(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        self.phase = Phase::Asking;
        self.at = now + TRY_AGAIN;
        let message = Message::Ask {
            token: self.token,
            seconds: self.seconds,
            bytes: BYTES_MAX,
        };
        self.say(message, out);
    }

    pub(super) fn handle_verdict(&mut self, verdict: u8, out: &mut VecDeque<Output>, now: Mono) {
        if !matches!(self.phase, Phase::Asking) {
            return;
        }
        match verdict {
            wire::GRANTED => {
                let until = now + Duration::from_secs(self.seconds.into());
                let who = (self.device, self.token);
                let mut sender = Sender::new(who, BYTES_MAX / 2, until, now);
                sender.fill(out, now);
                self.phase = Phase::There(sender);
                self.probe(out, now);
            }
            wire::BUSY => self.end(Answer::Busy, out),
            _ => self.end(Answer::Denied, out),
        }
    }

    pub(super) fn handle_message(
        &mut self,
        message: &Message,
        out: &mut VecDeque<Output>,
        now: Mono,
    ) {
        match (&mut self.phase, *message) {
            (Phase::There(sender), Message::Ack { next, received, .. }) => {
                sender.handle_ack(next, received, now);
                sender.fill(out, now);
                self.turn(out, now);
            }
            (Phase::Turning, Message::Data { .. }) => {
                self.phase = Phase::Back(Receiver::default());
                self.handle_message(message, out, now);
            }
            (Phase::Back(receiver), Message::Data { number, .. }) => {
                receiver.handle_data((self.device, self.token, number), out, now);
                self.at = now + ANSWER_WITHIN;
            }
            (Phase::Back(receiver), Message::End { sent, .. }) => {
                self.measured.back = receiver.measured(sent);
                self.finish(out);
            }
            _ => {}
        }
    }

    /// Ends the way there when it is over.
    fn turn(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        if let Phase::There(sender) = &self.phase
            && sender.is_done(now)
        {
            self.measured.there = sender.measured();
            self.phase = Phase::Turning;
            (self.tries, self.at) = (0, now + TRY_AGAIN);
            self.say(Message::Turn { token: self.token }, out);
        }
    }

    fn finish(&mut self, out: &mut VecDeque<Output>) {
        let mut measured = std::mem::take(&mut self.measured);
        measured.idle.sort_unstable();
        measured.loaded.sort_unstable();
        self.end(Answer::Measured(Box::new(measured)), out);
    }

    pub(super) fn handle_timeout(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        if let Phase::There(sender) = &mut self.phase {
            sender.handle_timeout(now);
            sender.fill(out, now);
        }
        self.turn(out, now);
        if now < self.at {
            return;
        }
        match &self.phase {
            Phase::Over => {}
            Phase::Waiting => self.end(Answer::NoSession, out),
            Phase::Idle(0) => {
                self.tries = 0;
                self.ask(out, now);
            }
            // No answer to a single question: the path does not work.
            Phase::Idle(_) if self.probe.is_some() => self.end(Answer::Silent, out),
            Phase::Idle(_) | Phase::There(_) => self.probe(out, now),
            Phase::Asking | Phase::Turning if self.tries >= TRIES_MAX => {
                self.end(Answer::Silent, out);
            }
            Phase::Asking => {
                self.tries += 1;
                self.ask(out, now);
            }
            Phase::Turning => {
                self.tries += 1;
                self.at = now + TRY_AGAIN;
                self.say(Message::Turn { token: self.token }, out);
            }
            // The end was lost: what came is what there is.
            Phase::Back(receiver) => {
                self.measured.back = receiver.measured(0);
                self.finish(out);
            }
        }
    }
}

/// A measurement that a peer asked for and this device consented to.
#[derive(Debug)]
pub(super) struct Served {
    device: DeviceId,
    token: u64,
    seconds: u32,
    bytes: u64,
    receiver: Receiver,
    sender: Option<Sender>,
    until: Mono,
}

impl Served {
    pub(super) fn new(
        device: DeviceId,
        token: u64,
        (seconds, bytes): (u32, u64),
        now: Mono,
    ) -> Self {
        let seconds = seconds.clamp(1, SECONDS_MAX);
        Self {
            device,
            token,
            seconds,
            bytes: bytes.min(BYTES_MAX),
            receiver: Receiver::default(),
            sender: None,
            until: now + Duration::from_secs((2 * seconds + 6).into()),
        }
    }

    pub(super) fn is(&self, device: DeviceId, token: u64) -> bool {
        (self.device, self.token) == (device, token)
    }

    pub(super) fn is_over(&self) -> bool {
        self.until == Mono::ZERO
    }

    pub(super) fn deadline(&self) -> Mono {
        let sender = self.sender.as_ref();
        sender.map_or(self.until, |s| self.until.min(s.deadline()))
    }

    pub(super) fn handle_message(
        &mut self,
        message: &Message,
        length: usize,
        out: &mut VecDeque<Output>,
        now: Mono,
    ) {
        let who = (self.device, self.token);
        match (&mut self.sender, *message) {
            (None, Message::Data { number, .. }) => {
                self.bytes = self.bytes.saturating_sub(length as u64);
                if self.bytes > 0 {
                    self.receiver.handle_data((who.0, who.1, number), out, now);
                }
            }
            (None, Message::Turn { .. }) => {
                let until = now + Duration::from_secs(self.seconds.into());
                let mut sender = Sender::new(who, self.bytes, until, now);
                sender.fill(out, now);
                self.sender = Some(sender);
            }
            (Some(sender), Message::Ack { next, received, .. }) => {
                sender.handle_ack(next, received, now);
                sender.fill(out, now);
                self.end(out, now);
            }
            _ => {}
        }
    }

    fn end(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        if let Some(sender) = &self.sender
            && sender.is_done(now)
        {
            let message = Message::End {
                token: self.token,
                sent: sender.next,
            };
            out.push_back(Output::Send(self.device, message.encode()));
            self.until = Mono::ZERO;
        }
    }

    pub(super) fn handle_timeout(&mut self, out: &mut VecDeque<Output>, now: Mono) {
        if let Some(sender) = &mut self.sender {
            sender.handle_timeout(now);
            sender.fill(out, now);
        }
        self.end(out, now);
        if now >= self.until {
            self.until = Mono::ZERO;
        }
    }
}
