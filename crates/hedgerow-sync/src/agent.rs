//! The agent's end.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::event::Event;
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::resource::{ResourceHead, ResourceKind, root_hash};
use hedgerow_model::statement::{PeerQuery, X25519Public};
use hedgerow_model::wire;

use crate::backoff::Dice;
use crate::error::SessionError;
use crate::frame::{Channel, FrameReader, MESSAGE_BYTES_MAX};
use crate::message::{
    Command, ENDPOINTS_MAX, EVENTS_MAX, Flows, HandUp, Hello, RELAYS_MAX, Renew, Renewed,
    ResolvedPeer, Stage, ToAgent, ToController, Update, Verified, Welcome, cut,
};
use crate::outbox::Outbox;
use crate::{CAPABILITY, CAPABILITY_MIN};

/// How often the agent shows that it lives; each interval is up to a quarter shorter.
pub const PING_EVERY: Duration = Duration::from_secs(30);
/// How long after a ping the controller may stay silent.
pub const PONG_WITHIN: Duration = Duration::from_secs(20);
/// How long the controller may take to answer the first message.
pub const WELCOME_WITHIN: Duration = Duration::from_secs(30);

/// What the device holds, as its disk says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holdings {
    /// The revision last accepted.
    pub revision: Option<Revision>,
    /// Every resource in force.
    pub heads: Vec<ResourceHead>,
    /// Highest version ever accepted, by kind; outlives the removal of the resource.
    pub marks: BTreeMap<ResourceKind, Revision>,
}

/// What the agent says of itself when it connects.
#[derive(Debug, Clone)]
pub struct Opening {
    /// For people.
    pub agent_version: String,
    /// Changes with every boot.
    pub boot_id: [u8; 16],
    /// See [`Hello::generation`].
    pub generation: u64,
    /// What stands in the kernel.
    pub verified: Option<Verified>,
    /// What is held.
    pub holdings: Holdings,
    /// The revocation list in force.
    pub revocations: Revision,
    /// The manifest in force.
    pub manifest: u64,
    /// Epoch of the device's own ticket.
    pub ticket_epoch: u64,
    /// Where the mesh may reach this device.
    pub endpoints: Vec<Underlay>,
    /// The key of introductions.
    pub introduction_key: X25519Public,
}

/// What the agent has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The session is open.
    Welcomed(Welcome),
    /// Check, store and load this, then call [`AgentSession::handle_verdict`].
    Apply(Update),
    /// An update was refused before anything of it was looked at; record an event.
    Refused {
        /// The revision it led to.
        revision: Revision,
        /// The offending resource.
        kind: Option<ResourceKind>,
        /// Why.
        reason: String,
    },
    /// The controller knows an older one: call [`AgentSession::hand_up`].
    HandUpWanted(ResourceKind),
    /// A fresh beacon and, for a relay, the head of the policy in force; not yet verified.
    Beacon(Vec<u8>, Option<Vec<u8>>),
    /// A new certificate and ticket, not yet verified.
    Renewed(Renewed),
    /// No new certificate.
    RenewRefused {
        /// As in [`Renew::id`].
        id: u64,
        /// Why.
        reason: String,
        /// When to ask again; absent when an operator has to act.
        retry_after: Option<Duration>,
    },
    /// The answer to [`AgentSession::resolve`].
    Resolved {
        /// As given.
        id: u64,
        /// Absent when unknown.
        peer: Option<ResolvedPeer>,
    },
    /// Events before this sequence number may be forgotten.
    EventsStored(u64),
    /// An order.
    Command(Command),
    /// List the flows that are open now, then call [`AgentSession::flows`] with this number.
    FlowsWanted(u64),
    /// This identity is in use twice.
    Held(String),
    /// Close, and connect again after this long.
    Busy(Duration),
    /// Close: the controller says goodbye, and why. Before a welcome it refuses this identity. After
    /// [`AgentSession::leave`] the text [`crate::message::LEFT`] says that the device has left.
    Dismissed(String),
    /// Close: the controller is silent, or takes nothing. The text says which. Whoever cuts the link
    /// can cause this.
    Closed(String),
}

/// The message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The session is not open yet, or no longer.
    #[error("the session is not open")]
    NotOpen,
    /// Too much waits already; try again later.
    #[error("too many messages wait")]
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Open,
    Closed,
}

/// The agent's end of one connection. A new connection starts a new one.
///
/// ```text
///   Greeting ── welcome ──▶ Open ── bye, silence, error ──▶ Closed
///      └── busy, bye, silence ─────────────────────────────────▲
/// ```
#[derive(Debug)]
pub struct AgentSession {
    state: State,
    reader: FrameReader,
    outbox: Outbox,
    outputs: VecDeque<Output>,
    holdings: Holdings,
    versions: (Revision, u64, u64),
    dice: Dice,
    next_ping: Mono,
    silence_ends: Mono,
}

impl AgentSession {
    /// Starts with [`Hello`] in the outbox. `seed` differs from connection to connection.
    pub fn new(opening: Opening, seed: u64, now: Mono) -> Self {
        let hello = Hello {
            capability: CAPABILITY,
            agent_version: cut(opening.agent_version),
            boot_id: opening.boot_id,
            generation: opening.generation,
            revision: opening.holdings.revision,
            verified: opening.verified,
            heads: opening.holdings.heads.clone(),
            revocations: opening.revocations,
            manifest: opening.manifest,
            endpoints: opening.endpoints.into_iter().take(ENDPOINTS_MAX).collect(),
            introduction_key: opening.introduction_key,
        };
        let mut session = Self {
            state: State::Greeting,
            reader: FrameReader::new(MESSAGE_BYTES_MAX),
            outbox: Outbox::default(),
            outputs: VecDeque::new(),
            holdings: opening.holdings,
            versions: (opening.revocations, opening.manifest, opening.ticket_epoch),
            dice: Dice(seed),
            next_ping: Mono::NEVER,
            silence_ends: now + WELCOME_WITHIN,
        };
        let first = session.put(Channel::Policy, &ToController::Hello(hello));
        debug_assert!(first.is_ok(), "an empty outbox has room");
        session
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
                    if let Err(e) = ToAgent::decode(&message).and_then(|m| self.handle(m, now)) {
                        break Err(e);
                    }
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        if self.state == State::Open {
            self.silence_ends = Mono::NEVER;
        }
        if result.is_err() {
            self.state = State::Closed;
        }
        result
    }

    /// Notes what became of an update, and what the device holds now.
    ///
    /// # Errors
    ///
    /// When acknowledgements pile up unsent: close the connection.
    pub fn handle_verdict(
        &mut self,
        revision: Revision,
        stage: Stage,
        holdings: Holdings,
    ) -> Result<(), SessionError> {
        let is_rejection = matches!(stage, Stage::Rejected(..));
        if is_rejection || self.holdings.revision <= holdings.revision {
            self.holdings = holdings;
        }
        if self.state != State::Open {
            return Ok(());
        }
        let stage = match stage {
            Stage::Rejected(kind, reason) => Stage::Rejected(kind, cut(reason)),
            Stage::Received | Stage::Verified(_) => stage,
        };
        self.urgent(&ToController::Ack(revision, stage))
    }

    /// Notes that what the device holds changed without an update.
    pub fn handle_holdings(&mut self, holdings: Holdings) {
        self.holdings = holdings;
    }

    /// Asks for a new certificate.
    ///
    /// # Errors
    ///
    /// When it cannot be taken now.
    pub fn renew(&mut self, request: Renew) -> Result<(), NotSent> {
        self.send(Channel::Command, &ToController::Renew(request))
    }

    /// Asks who and where a peer is; the answer carries `id`.
    ///
    /// # Errors
    ///
    /// When it cannot be taken now.
    pub fn resolve(&mut self, id: u64, query: PeerQuery) -> Result<(), NotSent> {
        self.send(Channel::Command, &ToController::Resolve(id, query))
    }

    /// Says where the mesh may reach this device, and through which relays; at most [`ENDPOINTS_MAX`]
    /// and [`RELAYS_MAX`], the rest is left out.
    ///
    /// # Errors
    ///
    /// When it cannot be taken now.
    pub fn endpoints(
        &mut self,
        mut list: Vec<Underlay>,
        mut relays: Vec<DeviceId>,
    ) -> Result<(), NotSent> {
        list.truncate(ENDPOINTS_MAX);
        relays.truncate(RELAYS_MAX);
        let message = ToController::Endpoints(list, Some(relays));
        self.send(Channel::Command, &message)
    }

    /// Reports events from sequence number `first` on; at most [`EVENTS_MAX`], the rest is left out
    /// and not yet stored.
    ///
    /// # Errors
    ///
    /// When it cannot be taken now.
    pub fn events(&mut self, first: u64, mut events: Vec<Event>) -> Result<(), NotSent> {
        events.truncate(EVENTS_MAX);
        self.send(Channel::Telemetry, &ToController::Events(first, events))
    }

    /// Hands up a statement that is newer than the controller's.
    ///
    /// # Errors
    ///
    /// When it cannot be taken now.
    pub fn hand_up(&mut self, statement: HandUp) -> Result<(), NotSent> {
        self.send(Channel::Policy, &ToController::HandUp(statement))
    }

    /// Answers [`Output::FlowsWanted`].
    ///
    /// # Errors
    ///
    /// When it cannot be taken now.
    pub fn flows(&mut self, list: Flows) -> Result<(), NotSent> {
        self.send(Channel::Command, &ToController::Flows(list))
    }

    /// Says that the device leaves for good; the controller answers by closing.
    ///
    /// # Errors
    ///
    /// When it cannot be taken now.
    pub fn leave(&mut self) -> Result<(), NotSent> {
        self.send(Channel::Command, &ToController::Leave)
    }

    /// Says goodbye; frames still waiting may leave.
    pub fn bye(&mut self) {
        if self.send(Channel::Bulk, &ToController::Bye).is_ok() {
            self.state = State::Closed;
        }
    }

    /// Makes the controller say something soon: the next ping is due now.
    pub fn ping(&mut self, now: Mono) {
        if self.state == State::Open {
            self.next_ping = now;
        }
    }

    /// Advances time. Calling it early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Mono) {
        if self.state == State::Closed {
            return;
        }
        if now >= self.silence_ends {
            self.close("the controller is silent");
        } else if now >= self.next_ping {
            self.schedule_ping(now);
            let revision = self.holdings.revision.unwrap_or_default();
            let root: Digest = root_hash(&self.holdings.heads);
            match self.put(Channel::Policy, &ToController::Ping(revision, root)) {
                Ok(()) => self.silence_ends = self.silence_ends.min(now + PONG_WITHIN),
                Err(_) => self.close("nothing leaves"),
            }
        }
    }

    /// Returns the next thing to do, if any.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the next frame, most urgent first. Ask only when the socket has room.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.outbox.next_frame()
    }

    /// Returns when `handle_timeout` next has something to decide, and what that is.
    pub fn deadline(&self) -> (Mono, &'static str) {
        match self.state {
            State::Closed => (Mono::NEVER, "closed"),
            State::Greeting => (self.silence_ends, "welcome"),
            State::Open if self.silence_ends < self.next_ping => (self.silence_ends, "pong"),
            State::Open => (self.next_ping, "ping"),
        }
    }

    /// Returns whether the session is open: welcomed, and neither closed nor lost.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Returns how many event reports wait to leave, so that the spool sends no more than it must.
    pub fn telemetry_waiting(&self) -> usize {
        self.outbox.waiting(Channel::Telemetry)
    }

    fn handle(&mut self, message: ToAgent, now: Mono) -> Result<(), SessionError> {
        let name = message.name();
        match (self.state, message) {
            (State::Closed, _) => return Ok(()),
            (State::Greeting, ToAgent::Welcome(welcome)) => return self.open(welcome, now),
            (_, ToAgent::Busy(millis)) => {
                self.state = State::Closed;
                self.outputs
                    .push_back(Output::Busy(Duration::from_millis(millis)));
            }
            (_, ToAgent::Bye(reason)) => {
                self.state = State::Closed;
                self.outputs.push_back(Output::Dismissed(reason));
            }
            (State::Open, ToAgent::Update(update)) => return self.update(update),
            (State::Open, ToAgent::Pong(true)) => return self.say_holdings(),
            (State::Open, ToAgent::Pong(false)) => {}
            (State::Open, ToAgent::Beacon(beacon, head)) => {
                self.outputs.push_back(Output::Beacon(beacon, head));
            }
            (State::Open, ToAgent::Renewed(new)) => self.outputs.push_back(Output::Renewed(new)),
            (State::Open, ToAgent::RenewRefused(id, reason, secs)) => {
                let retry_after = (secs > 0).then(|| Duration::from_secs(secs));
                self.outputs.push_back(Output::RenewRefused {
                    id,
                    reason,
                    retry_after,
                });
            }
            (State::Open, ToAgent::Resolved(id, peer)) => {
                self.outputs.push_back(Output::Resolved { id, peer });
            }
            (State::Open, ToAgent::EventsStored(upto)) => {
                self.outputs.push_back(Output::EventsStored(upto));
            }
            (State::Open, ToAgent::Flows(id)) => self.outputs.push_back(Output::FlowsWanted(id)),
            (State::Open, ToAgent::Command(c)) => self.outputs.push_back(Output::Command(c)),
            (State::Open, ToAgent::Held(reason)) => self.outputs.push_back(Output::Held(reason)),
            (State::Greeting | State::Open, _) => {
                return Err(SessionError::OutOfOrder {
                    message: name,
                    state: if self.state == State::Open {
                        "open"
                    } else {
                        "waiting for a welcome"
                    },
                });
            }
        }
        Ok(())
    }

    fn open(&mut self, welcome: Welcome, now: Mono) -> Result<(), SessionError> {
        if !(CAPABILITY_MIN..=CAPABILITY).contains(&welcome.capability) {
            return Err(SessionError::Capability {
                theirs: welcome.capability,
                ours: CAPABILITY,
            });
        }
        self.state = State::Open;
        self.schedule_ping(now);
        let (revocations, manifest, epoch) = self.versions;
        let states = self.holdings.heads.iter();
        let states = states.filter(|h| h.kind == ResourceKind::States);
        let states = states.map(|h| h.version).max();
        let newer = [
            (ResourceKind::Manifest, manifest > welcome.manifest),
            (ResourceKind::Revocations, revocations > welcome.revocations),
            (
                ResourceKind::States,
                welcome.states.is_some() && states > welcome.states,
            ),
            (ResourceKind::Ticket, epoch > welcome.ticket_epoch),
        ];
        self.outputs.push_back(Output::Welcomed(welcome));
        let wanted = newer.into_iter().filter(|(_, newer)| *newer);
        self.outputs
            .extend(wanted.map(|(kind, _)| Output::HandUpWanted(kind)));
        Ok(())
    }

    fn update(&mut self, update: Update) -> Result<(), SessionError> {
        if !update.partial && update.previous != self.holdings.revision {
            return self.say_holdings();
        }
        let revision = update.revision;
        if let Some((kind, reason)) = self.refusal(&update) {
            self.outputs.push_back(Output::Refused {
                revision,
                kind,
                reason: reason.to_owned(),
            });
            let stage = Stage::Rejected(kind, reason.to_owned());
            return self.urgent(&ToController::Ack(revision, stage));
        }
        for resource in &update.set {
            let head = resource.head();
            self.holdings.heads.retain(|h| h.kind != head.kind);
            self.holdings.heads.push(head);
            self.holdings.marks.insert(head.kind, head.version);
        }
        self.holdings
            .heads
            .retain(|h| !update.remove.contains(&h.kind));
        if !update.partial {
            self.holdings.revision = Some(revision);
        }
        self.outputs.push_back(Output::Apply(update));
        self.urgent(&ToController::Ack(revision, Stage::Received))
    }

    fn refusal(&self, update: &Update) -> Option<(Option<ResourceKind>, &'static str)> {
        if Some(update.revision) < self.holdings.revision {
            return Some((None, "the revision is older than the one held"));
        }
        let mut seen = Vec::new();
        for resource in &update.set {
            let mark = self.holdings.marks.get(&resource.kind);
            if mark.is_some_and(|mark| resource.version < *mark) {
                return Some((Some(resource.kind), "the version is older than one held"));
            }
            if seen.contains(&resource.kind) || update.remove.contains(&resource.kind) {
                return Some((Some(resource.kind), "the resource stands twice"));
            }
            seen.push(resource.kind);
        }
        update
            .remove
            .iter()
            .find(|kind| !is_removable(**kind))
            .map(|kind| {
                (
                    Some(*kind),
                    "this resource cannot be removed, only replaced",
                )
            })
    }

    fn say_holdings(&mut self) -> Result<(), SessionError> {
        let message = ToController::Repair(self.holdings.revision, self.holdings.heads.clone());
        self.urgent(&message)
    }

    fn schedule_ping(&mut self, now: Mono) {
        self.next_ping = now + (PING_EVERY - self.dice.below(PING_EVERY / 4));
    }

    fn close(&mut self, reason: &str) {
        self.state = State::Closed;
        self.outputs.push_back(Output::Closed(reason.to_owned()));
    }

    fn send(&mut self, channel: Channel, message: &ToController) -> Result<(), NotSent> {
        if self.state != State::Open {
            return Err(NotSent::NotOpen);
        }
        self.put(channel, message)
    }

    /// Sends what must not be lost; a full channel ends the session.
    fn urgent(&mut self, message: &ToController) -> Result<(), SessionError> {
        self.put(Channel::Policy, message)
            .map_err(|_e| SessionError::Stalled {
                channel: Channel::Policy.as_str(),
            })
    }

    fn put(&mut self, channel: Channel, message: &ToController) -> Result<(), NotSent> {
        self.outbox
            .push(channel, wire::encode(message))
            .map_err(|_full| NotSent::Full)
    }
}

/// Returns whether a controller may take `kind` away without a replacement. Trust, revocations,
/// states, ticket and configuration are only ever replaced by newer ones.
pub fn is_removable(kind: ResourceKind) -> bool {
    match kind {
        ResourceKind::Program | ResourceKind::Names => true,
        ResourceKind::Manifest
        | ResourceKind::Revocations
        | ResourceKind::States
        | ResourceKind::Ticket
        | ResourceKind::Config => false,
    }
}
