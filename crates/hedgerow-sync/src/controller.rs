//! The controller's end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::event::Event;
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::resource::{RESOURCE_BYTES_MAX, ResourceHead, ResourceKind, root_hash};
use hedgerow_model::statement::PeerQuery;
use hedgerow_model::wire;

use crate::agent::is_removable;
use crate::error::SessionError;
use crate::frame::{Channel, FRAME_BYTES_MAX, FrameReader};
use crate::message::{
    Command, Flows, HandUp, Hello, Renew, Renewed, ResolvedPeer, Stage, ToAgent, ToController,
    Welcome, cut,
};
pub use crate::offer::Offer;
use crate::offer::Shared;
use crate::outbox::{Message, Outbox};
use crate::{CAPABILITY, CAPABILITY_MIN};

/// How long a connection may take to say who it is.
pub const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long an agent may stay silent: three of its pings.
pub const SILENCE_MAX: Duration = Duration::from_secs(100);
/// How long the next update waits for the verdict on the last.
pub const VERDICT_WITHIN: Duration = Duration::from_secs(5);
/// Largest first message.
const HELLO_BYTES_MAX: usize = 8 << 10;

/// What the controller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// An agent greets: call [`ControllerSession::welcome`], then perhaps
    /// [`ControllerSession::hold`]; or [`ControllerSession::busy`] or [`ControllerSession::bye`].
    Greeted(Box<Hello>),
    /// The agent has the update in hand.
    Received(Revision),
    /// The update stands in the agent's kernel, whose table has this hash. `partial` means that only
    /// what may not wait is in force.
    Verified {
        /// Which.
        revision: Revision,
        /// Hash over the table as read back.
        table_hash: Digest,
        /// See [`crate::message::Update::partial`].
        partial: bool,
    },
    /// The agent refused the update; what it had stays in force there.
    Rejected {
        /// Which.
        revision: Revision,
        /// The offending resource.
        kind: Option<ResourceKind>,
        /// Why.
        reason: String,
    },
    /// The agent's state differed from what this end believed; it is being repaired.
    Repaired,
    /// The agent holds a newer statement than this controller.
    HandedUp(HandUp),
    /// Answer with [`ControllerSession::renewed`] or [`ControllerSession::renew_refused`].
    Renew(Renew),
    /// Answer with [`ControllerSession::resolved`].
    Resolve {
        /// To be given back.
        id: u64,
        /// Who is looked for.
        query: PeerQuery,
    },
    /// Where the mesh may reach the device, and through which relays.
    Endpoints(Vec<Underlay>, Vec<DeviceId>),
    /// Store them, then call [`ControllerSession::events_stored`].
    Events {
        /// Sequence number of the first.
        first: u64,
        /// In order.
        events: Vec<Event>,
    },
    /// The answer to [`ControllerSession::ask_flows`].
    Flows(Flows),
    /// The device leaves for good: remove it and close.
    Leave,
    /// Close: the agent said goodbye or is silent.
    Closed(&'static str),
}

/// From which capability on an agent can be asked for flows.
const FLOWS_SINCE: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Greeted,
    Open,
    Held,
    Closed,
}

#[derive(Debug)]
struct Outstanding {
    revision: Revision,
    partial: bool,
    /// What the agent holds if it accepts.
    holds: Vec<ResourceHead>,
    /// What it was sent.
    sent: Vec<ResourceHead>,
    sent_at: Mono,
    received: bool,
}

/// The controller's end of one connection.
///
/// ```text
///   Greeting ── hello ──▶ Greeted ── welcome ──▶ Open ◀──▶ Held
///       └───────────── silence, error, bye, busy ───────────▶ Closed
/// ```
///
/// It keeps no queue of changes: [`ControllerSession::handle_wanted`] says what the agent shall hold,
/// and the difference to what it does hold is computed when a frame can leave.
#[derive(Debug)]
pub struct ControllerSession {
    state: State,
    reader: FrameReader,
    outbox: Outbox,
    outputs: VecDeque<Output>,
    wanted: Option<(Revision, Vec<Arc<Offer>>)>,
    holds: Vec<ResourceHead>,
    chain: Option<Revision>,
    outstanding: Option<Outstanding>,
    refused: Vec<ResourceHead>,
    greeting: (Revision, u64, Option<Revision>),
    /// What both ends speak.
    capability: u32,
    silence_ends: Mono,
}

impl ControllerSession {
    /// Waits for the agent's first message.
    pub fn new(now: Mono) -> Self {
        Self {
            state: State::Greeting,
            reader: FrameReader::new(HELLO_BYTES_MAX),
            outbox: Outbox::default(),
            outputs: VecDeque::new(),
            wanted: None,
            holds: Vec::new(),
            chain: None,
            outstanding: None,
            refused: Vec::new(),
            greeting: (Revision::default(), 0, None),
            capability: CAPABILITY,
            silence_ends: now + HELLO_WITHIN,
        }
    }

    /// Takes bytes from the connection, in any pieces.
    ///
    /// # Errors
    ///
    /// When the connection must be closed; the session is closed then.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Mono) -> Result<(), SessionError> {
        let mut rest = bytes;
        let result = loop {
            match self.reader.next_message(&mut rest) {
                Ok(Some((_, message))) => {
                    if let Err(e) = ToController::decode(&message).and_then(|m| self.handle(m)) {
                        break Err(e);
                    }
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        match self.state {
            State::Open | State::Held => self.silence_ends = now + SILENCE_MAX,
            State::Greeting | State::Greeted | State::Closed => {}
        }
        if result.is_err() {
            self.state = State::Closed;
        }
        result
    }

    /// Opens the session. [`Welcome::capability`] is set here.
    ///
    /// # Errors
    ///
    /// When the session does not wait for it.
    pub fn welcome(&mut self, mut welcome: Welcome, now: Mono) -> Result<(), SessionError> {
        if self.state != State::Greeted {
            return Err(SessionError::OutOfOrder {
                message: "welcome",
                state: "not greeted",
            });
        }
        welcome.capability = self.capability;
        let newer = self.greeting.0 > welcome.revocations
            || self.greeting.1 > welcome.manifest
            || self.greeting.2 > welcome.states;
        let limit = if newer { RESOURCE_BYTES_MAX } else { 0 };
        self.reader.set_message_bytes_max(limit + FRAME_BYTES_MAX);
        self.silence_ends = now + SILENCE_MAX;
        self.state = State::Open;
        self.urgent(&ToAgent::Welcome(welcome))
    }

    /// Says what the agent shall hold at `revision`. Cheap and repeatable: only the last counts.
    pub fn handle_wanted(&mut self, revision: Revision, wanted: Vec<Arc<Offer>>) {
        let still = |head: &ResourceHead| wanted.iter().any(|o| o.head() == *head);
        self.refused.retain(still);
        self.wanted = Some((revision, wanted));
    }

    /// Gives this agent nothing but trust, revocations and states, and tells it why.
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn hold(&mut self, reason: &str) -> Result<(), SessionError> {
        if self.state == State::Open {
            self.state = State::Held;
        }
        self.urgent(&ToAgent::Held(cut(reason.to_owned())))
    }

    /// Ends what [`ControllerSession::hold`] began.
    pub fn release(&mut self) {
        if self.state == State::Held {
            self.state = State::Open;
        }
    }

    /// Sends the agent away for a while; frames still waiting may leave.
    pub fn busy(&mut self, retry_after: Duration) {
        let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        self.last(&ToAgent::Busy(millis));
    }

    /// Ends the session; frames still waiting may leave.
    pub fn bye(&mut self, reason: &str) {
        self.last(&ToAgent::Bye(cut(reason.to_owned())));
    }

    /// Answers [`Output::Renew`].
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn renewed(&mut self, new: Renewed) -> Result<(), SessionError> {
        self.answer(Channel::Command, &ToAgent::Renewed(new))
    }

    /// Answers [`Output::Renew`]; without `retry_after` an operator has to act.
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn renew_refused(
        &mut self,
        id: u64,
        reason: &str,
        retry_after: Option<Duration>,
    ) -> Result<(), SessionError> {
        let secs = retry_after.map_or(0, |d| d.as_secs().max(1));
        let message = ToAgent::RenewRefused(id, cut(reason.to_owned()), secs);
        self.answer(Channel::Command, &message)
    }

    /// Answers [`Output::Resolve`].
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn resolved(&mut self, id: u64, peer: Option<ResolvedPeer>) -> Result<(), SessionError> {
        self.answer(Channel::Command, &ToAgent::Resolved(id, peer))
    }

    /// Says that events before `upto` are stored.
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn events_stored(&mut self, upto: u64) -> Result<(), SessionError> {
        self.answer(Channel::Telemetry, &ToAgent::EventsStored(upto))
    }

    /// Sends a fresh beacon, and to a relay the head of the policy in force, both signed.
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn beacon(&mut self, beacon: &[u8], head: Option<Vec<u8>>) -> Result<(), SessionError> {
        self.answer(Channel::Command, &ToAgent::Beacon(beacon.to_vec(), head))
    }

    /// Asks which flows are open. Returns whether the agent is one that can be asked.
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn ask_flows(&mut self, id: u64) -> Result<bool, SessionError> {
        if self.state != State::Open || self.capability < FLOWS_SINCE {
            return Ok(false);
        }
        self.answer(Channel::Command, &ToAgent::Flows(id))?;
        Ok(true)
    }

    /// Gives an order.
    ///
    /// # Errors
    ///
    /// When the agent takes nothing: close.
    pub fn command(&mut self, order: Command) -> Result<(), SessionError> {
        self.answer(Channel::Command, &ToAgent::Command(order))
    }

    /// Advances time. Calling it early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Mono) {
        if self.state != State::Closed && now >= self.silence_ends {
            self.state = State::Closed;
            self.outputs
                .push_back(Output::Closed("the agent is silent"));
        }
    }

    /// Returns the next thing to do, if any.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the next frame, most urgent first. Ask only when the socket has room.
    pub fn next_frame(&mut self, now: Mono) -> Option<Vec<u8>> {
        if self.outbox.waiting(Channel::Policy) == 0
            && let Some(update) = self.due(now)
        {
            // Room is certain: the channel was empty.
            let taken = self.outbox.push(Channel::Policy, update);
            debug_assert!(taken.is_ok());
        }
        self.outbox.next_frame()
    }

    /// Returns when `handle_timeout` or `next_frame` next has something to decide, and what.
    pub fn deadline(&self) -> (Mono, &'static str) {
        if self.state == State::Closed {
            return (Mono::NEVER, "closed");
        }
        let verdict = self
            .outstanding
            .as_ref()
            .filter(|o| o.received && self.is_behind(&o.holds, self.chain_after(o)))
            .map_or(Mono::NEVER, |o| o.sent_at + VERDICT_WITHIN);
        if verdict < self.silence_ends {
            (verdict, "verdict")
        } else {
            (self.silence_ends, "silence")
        }
    }

    /// Returns whether the session is closed and only waits for its last frames to leave.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Returns what the agent is believed to hold: revision and heads.
    pub fn holds(&self) -> (Option<Revision>, &[ResourceHead]) {
        (self.chain, &self.holds)
    }

    fn handle(&mut self, message: ToController) -> Result<(), SessionError> {
        let name = message.name();
        match (self.state, message) {
            (State::Closed, _) => {}
            (State::Greeting, ToController::Hello(hello)) => return self.greet(hello),
            (_, ToController::Bye) => {
                self.state = State::Closed;
                self.outputs
                    .push_back(Output::Closed("the agent said goodbye"));
            }
            (State::Open | State::Held, ToController::Ack(revision, stage)) => {
                self.ack(revision, stage);
            }
            (State::Open | State::Held, ToController::Repair(revision, heads)) => {
                self.chain = revision;
                self.holds = heads;
                self.outstanding = None;
                self.outputs.push_back(Output::Repaired);
            }
            (State::Open | State::Held, ToController::Ping(revision, root)) => {
                let differs = self.outstanding.is_none()
                    && (self.chain.unwrap_or_default() != revision
                        || root_hash(&self.holds) != root);
                return self.urgent(&ToAgent::Pong(differs));
            }
            (State::Open | State::Held, message) => self.request(message)?,
            (State::Greeting | State::Greeted, _) => {
                return Err(SessionError::OutOfOrder {
                    message: name,
                    state: "greeting",
                });
            }
        }
        Ok(())
    }

    fn request(&mut self, message: ToController) -> Result<(), SessionError> {
        let output = match message {
            ToController::HandUp(statement) => Output::HandedUp(statement),
            ToController::Renew(request) => Output::Renew(request),
            ToController::Resolve(id, query) => Output::Resolve { id, query },
            ToController::Endpoints(list, relays) => {
                Output::Endpoints(list, relays.unwrap_or_default())
            }
            ToController::Events(first, events) => Output::Events { first, events },
            ToController::Flows(list) => Output::Flows(list),
            ToController::Leave => Output::Leave,
            ToController::Hello(_)
            | ToController::Ack(..)
            | ToController::Repair(..)
            | ToController::Ping(..)
            | ToController::Bye => {
                return Err(SessionError::OutOfOrder {
                    message: "hello",
                    state: "open",
                });
            }
        };
        self.outputs.push_back(output);
        Ok(())
    }

    fn greet(&mut self, hello: Hello) -> Result<(), SessionError> {
        if hello.capability < CAPABILITY_MIN {
            return Err(SessionError::Capability {
                theirs: hello.capability,
                ours: CAPABILITY,
            });
        }
        self.state = State::Greeted;
        self.capability = hello.capability.min(CAPABILITY);
        self.holds.clone_from(&hello.heads);
        self.chain = hello.revision;
        let states = hello.heads.iter();
        let states = states.filter(|h| h.kind == ResourceKind::States);
        let states = states.map(|h| h.version).max();
        self.greeting = (hello.revocations, hello.manifest, states);
        self.outputs.push_back(Output::Greeted(Box::new(hello)));
        Ok(())
    }

    fn ack(&mut self, revision: Revision, stage: Stage) {
        let current = self
            .outstanding
            .take_if(|o| o.revision == revision || stage == Stage::Received);
        match (stage, current) {
            (Stage::Received, Some(mut o)) => {
                o.received = o.revision == revision;
                self.outstanding = Some(o);
                self.outputs.push_back(Output::Received(revision));
            }
            (Stage::Received, None) => {}
            (Stage::Verified(table_hash), current) => {
                let partial = current.as_ref().is_some_and(|o| o.partial);
                if let Some(o) = current {
                    self.commit(o);
                }
                self.outputs.push_back(Output::Verified {
                    revision,
                    table_hash,
                    partial,
                });
            }
            (Stage::Rejected(kind, reason), current) => {
                if let Some(o) = current {
                    let blamed = |h: &ResourceHead| kind.is_none_or(|k| k == h.kind);
                    self.refused.extend(o.sent.into_iter().filter(blamed));
                    self.refused.truncate(ResourceKind::ALL.len() * 2);
                }
                self.outputs.push_back(Output::Rejected {
                    revision,
                    kind,
                    reason,
                });
            }
        }
    }

    fn commit(&mut self, o: Outstanding) {
        self.chain = self.chain_after(&o);
        self.holds = o.holds;
    }

    fn chain_after(&self, o: &Outstanding) -> Option<Revision> {
        if o.partial {
            self.chain
        } else {
            Some(o.revision)
        }
    }

    /// Returns whether an agent with these holdings lacks anything.
    fn is_behind(&self, holds: &[ResourceHead], chain: Option<Revision>) -> bool {
        self.wanted.as_ref().is_some_and(|(revision, offers)| {
            chain != Some(*revision) || offers.iter().any(|o| !holds.contains(&o.head()))
        })
    }

    /// Returns the update that may leave now, and notes it as outstanding.
    fn due(&mut self, now: Mono) -> Option<Message> {
        if !matches!(self.state, State::Open | State::Held) {
            return None;
        }
        if let Some(o) = self
            .outstanding
            .take_if(|o| o.received && now >= o.sent_at + VERDICT_WITHIN)
        {
            self.commit(o);
        }
        if self.outstanding.is_some() || !self.is_behind(&self.holds, self.chain) {
            return None;
        }
        let (revision, offers) = self.wanted.as_ref()?;
        let blocked = self.state == State::Held
            || Some(*revision) < self.chain
            || offers.iter().any(|o| self.refused.contains(&o.head()));
        let fits = |o: &&Arc<Offer>| {
            !self.holds.contains(&o.head())
                && !self.refused.contains(&o.head())
                && (!blocked || never_waits(o.head().kind))
        };
        let set: Vec<Arc<Offer>> = offers.iter().filter(fits).cloned().collect();
        if blocked && set.is_empty() {
            return None;
        }
        let gone = |h: &&ResourceHead| {
            !blocked && is_removable(h.kind) && !offers.iter().any(|o| o.head().kind == h.kind)
        };
        let sent: Vec<ResourceHead> = set.iter().map(|o| o.head()).collect();
        let update = Shared {
            revision: if blocked {
                self.chain.unwrap_or(*revision).max(*revision)
            } else {
                *revision
            },
            previous: self.chain,
            partial: blocked,
            set,
            remove: self.holds.iter().filter(gone).map(|h| h.kind).collect(),
        };
        let stays = |h: &&ResourceHead| {
            !update.remove.contains(&h.kind) && !sent.iter().any(|s| s.kind == h.kind)
        };
        let holds = self.holds.iter().filter(stays).chain(&sent).copied();
        self.outstanding = Some(Outstanding {
            revision: update.revision,
            partial: update.partial,
            holds: holds.collect(),
            sent,
            sent_at: now,
            received: false,
        });
        Some(update.message())
    }

    fn last(&mut self, message: &ToAgent) {
        if self.state != State::Closed {
            self.state = State::Closed;
            // A full channel means that the agent reads nothing; it will notice the end by itself.
            let _taken = self.outbox.push(Channel::Policy, wire::encode(message));
        }
    }

    fn urgent(&mut self, message: &ToAgent) -> Result<(), SessionError> {
        self.answer(Channel::Policy, message)
    }

    fn answer(&mut self, channel: Channel, message: &ToAgent) -> Result<(), SessionError> {
        self.outbox
            .push(channel, wire::encode(message))
            .map_err(|_full| SessionError::Stalled {
                channel: channel.as_str(),
            })
    }
}

/// Returns whether `kind` is sent even to an agent that gets nothing else.
fn never_waits(kind: ResourceKind) -> bool {
    match kind {
        ResourceKind::Manifest | ResourceKind::Revocations | ResourceKind::States => true,
        ResourceKind::Ticket
        | ResourceKind::Program
        | ResourceKind::Config
        | ResourceKind::Names => false,
    }
}
