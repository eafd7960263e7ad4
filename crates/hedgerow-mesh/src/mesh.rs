//! The machine: what goes in, what comes out, and the tables in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hedgerow_identity::Verified;
use hedgerow_identity::standing::Standing;
use hedgerow_identity::trust::Trust;
use hedgerow_model::address::Overlay;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::statement::{Binding, PeerQuery, Ticket, X25519Public};
use hedgerow_model::{Fault, Mono, Now};

use crate::budget::Budgets;
use crate::introduction::{INTRODUCE, INTRODUCED, IntroductionSecret};
use crate::memory::{Memories, Memory};
use crate::output::{Output, Refusal, Removal, Unreachable};
use crate::peer::{Peers, Shown};
use crate::random::Random;
use crate::relay::Links;
use crate::timers::Timers;
use answer::Answering;
use ask::Asking;
use count::Counts;
use tables::{Heard, RevokedKeys, UnreachableTable};

mod answer;
mod ask;
mod count;
pub(crate) mod gossip;
mod known;
mod links;
mod peers;
mod status;
mod tables;
mod ways;

pub use count::Work;
pub use gossip::GossipStatus;
pub use status::{PeerStatus, Status};
use ways::Ways;

/// Most peers at once. For a new one the peer idle for longest goes; when none is idle, it is refused.
pub const PEERS_MAX: usize = 10_000;
/// Most devices being introduced to at once; beyond, wanted packets are rejected as busy.
pub const ASKING_MAX: usize = 1024;
/// Most questions about addresses at once; beyond, wanted packets are rejected as busy.
pub const LOOKUPS_MAX: usize = 1024;
/// Most introductions waiting for the policy's word; beyond, they get silence.
pub const ANSWERING_MAX: usize = 256;
/// Most introduction keys whose newest timestamp is kept; the oldest timestamp goes first.
pub const HEARD_MAX: usize = 16_384;
/// Most WireGuard keys remembered under which a revoked device had a session; the oldest goes first.
pub(crate) const REVOKED_KEYS_MAX: usize = 256;
/// Most addresses remembered as unreachable; the one that ends first goes first.
pub const UNREACHABLE_MAX: usize = 1024;
/// Most peers asked again after a restart without waiting for a packet.
pub const REJOIN_MAX: usize = 256;

/// How long the parent may take to resolve or to admit.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long an address stays unreachable before it is tried again.
pub const UNREACHABLE_FOR: Duration = Duration::from_secs(5);
/// How long a peer without a session is kept.
pub const IDLE_FORGET: Duration = Duration::from_secs(600);
/// How long a peer's former key still works beside its new one; above WireGuard's 180 s.
pub const KEY_OVERLAP: Duration = Duration::from_secs(300);
/// How often one reason of refusal is reported.
pub const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How far ahead of a trusted clock a device's clock may be.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(48 * 3600);

/// What every decision is made with, at one moment.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Who may speak for the trust domain.
    pub trust: &'a Trust,
    /// What is known against tickets that hold.
    pub standing: &'a Standing,
    /// The time.
    pub now: Now,
}

/// This device's own statements and keys.
#[derive(Clone)]
pub struct OwnIdentity {
    /// Its ticket.
    pub ticket: Verified<Ticket>,
    /// Its binding: the WireGuard key that the tunnel uses now.
    pub binding: Verified<Binding>,
    /// The secret half of the ticket's introduction key.
    pub introduction: IntroductionSecret,
    /// The one before, still answered: others may hold an older ticket.
    pub previous_introduction: Option<IntroductionSecret>,
}

/// Why an own identity was not taken; the one before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnError {
    /// The binding is another device's.
    #[error("binding of {binding} beside the ticket of {ticket}")]
    OtherDevice {
        /// The binding's device.
        binding: DeviceId,
        /// The ticket's device.
        ticket: DeviceId,
    },
    /// The secret is not the one whose public half stands in the ticket.
    #[error("the introduction key is not the ticket's")]
    OtherKey,
}

impl OwnError {
    /// Returns who has to act: the parent put things together that do not belong together.
    pub fn fault(&self) -> Fault {
        Fault::Bug
    }
}

/// Who an address is and where, as somebody told us. Nothing in it is believed before it verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The signed ticket.
    pub ticket: Vec<u8>,
    /// Where the device may be reached, the best first.
    pub endpoints: Vec<Underlay>,
    /// Relays that it is registered with, the best first.
    pub relays: Vec<DeviceId>,
}

/// The policy's word on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Something is granted between the two, and the kernel knows how to judge it.
    Granted,
    /// Nothing is.
    Denied,
}

/// What the tunnel says about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// A handshake is complete, or an authenticated packet came from here: where the peer is.
    Established(Path),
    /// No session is left.
    Idle,
    /// Handshakes stayed without an answer.
    Unanswered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Lookup(PeerQuery),
    Ask(DeviceId),
    Answer(DeviceId),
    Rejoin(DeviceId),
    Peer(DeviceId),
}

impl Timer {
    fn reason(self) -> &'static str {
        match self {
            Self::Lookup(_) => "give up resolving",
            Self::Ask(_) => "ask again",
            Self::Answer(_) => "give up waiting for admission",
            Self::Rejoin(_) => "rejoin a peer",
            Self::Peer(_) => "look after a peer",
        }
    }
}

struct Own {
    identity: OwnIdentity,
    shown: Shown,
}

impl Own {
    fn device(&self) -> DeviceId {
        self.identity.ticket.id
    }

    fn secrets(&self) -> impl Iterator<Item = &IntroductionSecret> {
        let current = Some(&self.identity.introduction);
        current
            .into_iter()
            .chain(&self.identity.previous_introduction)
    }
}

/// Which peers this device talks to; see the crate's documentation.
pub struct Mesh {
    own: Option<Own>,
    peers: Peers,
    memories: Memories,
    asking: Asking,
    answering: BTreeMap<DeviceId, Answering>,
    heard: Heard,
    unreachable: UnreachableTable,
    revoked_keys: RevokedKeys,
    /// Devices to introduce ourselves to when somebody says where they are.
    wanted_devices: BTreeSet<DeviceId>,
    ways: Ways,
    /// Of the relays that the client knows, and of no other.
    relay_tickets: BTreeMap<DeviceId, Verified<Ticket>>,
    links: Links,
    timers: Timers<Timer>,
    budgets: Budgets,
    gossip: gossip::Gossip,
    random: Random,
    counts: Counts,
    /// Handed out before `output`.
    removals: VecDeque<Output>,
    output: VecDeque<Output>,
}

impl Mesh {
    /// Begins with nothing known. The seed is 32 random bytes, fresh for every start.
    pub fn new(seed: [u8; 32]) -> Self {
        let mut random = Random::new(seed);
        let budgets = Budgets::new(random.bytes());
        let ways = Ways::new(|| *random.bytes());
        let gossip = gossip::Gossip::new(&mut random);
        let links = Links::new(*random.bytes());
        Self {
            own: None,
            peers: Peers::default(),
            memories: Memories::default(),
            asking: Asking::default(),
            answering: BTreeMap::new(),
            heard: Heard::default(),
            unreachable: UnreachableTable::default(),
            revoked_keys: RevokedKeys::default(),
            wanted_devices: BTreeSet::new(),
            ways,
            relay_tickets: BTreeMap::new(),
            links,
            timers: Timers::new(),
            budgets,
            gossip,
            random,
            counts: Counts::default(),
            removals: VecDeque::new(),
            output: VecDeque::new(),
        }
    }

    /// Takes one record of the disk cache, in the order in which they were written. Call it before
    /// [`Self::handle_own`].
    pub fn handle_memory(&mut self, memory: Memory) {
        self.heard.put(memory.introduction_key, memory.heard_ms);
        let evicted = self.memories.put(memory);
        self.output.extend(evicted.map(Output::Forget));
    }

    /// Takes this device's own identity, at the start and after every renewal of ticket or key.
    ///
    /// The first time, devices that were peers before the restart are introduced to. Later, peers
    /// are told what changed: at once when the labels did, within seconds when the key did.
    ///
    /// # Errors
    ///
    /// [`OwnError`]; the identity before stays.
    pub fn handle_own(&mut self, identity: OwnIdentity, view: View<'_>) -> Result<(), OwnError> {
        let (ticket, binding) = (identity.ticket.id, identity.binding.id);
        if binding != ticket {
            return Err(OwnError::OtherDevice { binding, ticket });
        }
        if identity.introduction.public() != identity.ticket.introduction_key {
            return Err(OwnError::OtherKey);
        }
        self.gossip.handle_own(&identity, view);
        let shown = Shown::of(&identity.ticket, &identity.binding);
        let before = self.own.replace(Own { identity, shown });
        self.recheck_role(view);
        match before {
            None => self.rejoin(view.now.mono),
            Some(before) if before.device() != ticket => self.start_over(view),
            Some(_) => self.tell_peers(view),
        }
        Ok(())
    }

    /// Drops everything that belonged to a former identity.
    fn start_over(&mut self, view: View<'_>) {
        let devices: Vec<DeviceId> = self.peers.iter().map(|(device, _)| device).collect();
        for device in devices {
            self.remove_peer(device, Removal::Ourselves, view.now.mono);
        }
        for device in self.asking.devices() {
            self.give_up(device, Unreachable::NotReady, view.now.mono);
        }
        self.answering.clear();
    }

    /// Takes the tunnel's word that packets wait for an address no peer holds.
    pub fn handle_wanted(&mut self, address: Overlay, view: View<'_>) {
        let Some(own) = &self.own else {
            self.reject(address, Unreachable::NotReady);
            return;
        };
        if own.identity.ticket.addresses.contains(address) {
            self.reject(address, Unreachable::Own);
            return;
        }
        let holder = self.peers.at_address(address);
        // A peer that introduced itself and then never came, because our answer was lost, is nowhere: it
        // is looked for like a stranger.
        if let Some(device) = holder.filter(|device| !self.peers.is_lost(*device)) {
            self.set_peer(device, None);
            self.output.push_back(Output::Release { address });
            return;
        }
        match self.unreachable.get(address, view.now.mono) {
            Some(reason) => self.reject(address, reason),
            None => self.find(address, view),
        }
        self.drain_ways(view);
    }

    /// Takes the answer to [`Output::Resolve`]: `None` when nobody knows, or nobody can be asked.
    pub fn handle_resolved(&mut self, query: PeerQuery, answer: Option<Resolved>, view: View<'_>) {
        if !self.asking.is_looking_up(query) {
            return;
        }
        match answer {
            Some(resolved) => {
                self.end_lookup(query);
                self.resolved(query, resolved, view);
            }
            None => self.ask_relays(query, view.now.mono),
        }
        self.drain_ways(view);
    }

    /// Takes a datagram that the tunnel handed up: any bytes from anyone.
    pub fn handle_datagram(&mut self, source: Path, bytes: &[u8], view: View<'_>) {
        let outcome = match bytes.first() {
            Some(&INTRODUCE) => self.introduce(source, bytes, view),
            Some(&INTRODUCED) => self.introduced(source, bytes, view),
            _ => Err((Refusal::Malformed, None)),
        };
        if let Err((reason, device)) = outcome {
            self.refuse(reason, Some(source), device, view.now.mono);
        }
        self.drain_ways(view);
    }

    /// Takes the policy's word on a device: the answer to [`Output::Admit`], or unasked after the
    /// policy changed. A peer that is denied is removed.
    pub fn handle_admitted(&mut self, device: DeviceId, admission: Admission, view: View<'_>) {
        match admission {
            Admission::Granted => {
                self.admitted_to_answer(device, view);
                self.admitted_to_ask(device, view);
            }
            Admission::Denied => {
                if let Some(answering) = self.end_answering(device) {
                    let source = Some(answering.source());
                    self.refuse(Refusal::NotAdmitted, source, Some(device), view.now.mono);
                }
                self.give_up(device, Unreachable::NotAdmitted, view.now.mono);
                self.remove_peer(device, Removal::NotAdmitted, view.now.mono);
            }
        }
        self.drain_ways(view);
    }

    /// Takes the tunnel's word on a peer's session.
    pub fn handle_session(&mut self, device: DeviceId, session: Session, view: View<'_>) {
        match session {
            Session::Established(endpoint) => self.peer_established(device, endpoint, view),
            Session::Idle => self.peer_idle(device, view),
            Session::Unanswered => {
                self.remove_peer(device, Removal::Unanswered, view.now.mono);
            }
        }
        self.drain_ways(view);
    }

    /// Takes the tunnel's word that a proper handshake came under a key no peer has. If it was the
    /// key of a peer forgotten for silence, that device is introduced to, once.
    pub fn handle_unknown_handshake(&mut self, key: X25519Public, view: View<'_>) {
        if let Some(device) = self.memories.take_key(&key) {
            self.ask_remembered(device, view);
        }
    }

    /// Judges everyone again after revocations, epochs, states, beacon, grace or the manifest
    /// changed. Removals come out first.
    pub fn handle_standing_changed(&mut self, view: View<'_>) {
        self.unreachable.clear();
        self.recheck_peers(view);
        self.recheck_asking(view);
        self.answering.retain(|_, answering| answering.holds(view));
        self.recheck_relays(view);
    }

    /// Takes note that the policy grants something else than before: who was not admitted may be
    /// now, the controller may name whom it did not, and who kept silent may answer. Peers that lost
    /// everything come one by one through [`Self::handle_admitted`].
    pub fn handle_policy_changed(&mut self) {
        self.unreachable.clear();
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, view: View<'_>) {
        self.gossip.handle_timeout(view.now.mono);
        while let Some(timer) = self.timers.due(view.now.mono) {
            match timer {
                Timer::Lookup(query) => {
                    self.ask_relays(query, view.now.mono);
                }
                Timer::Ask(device) => self.ask_again(device, view),
                Timer::Answer(device) => {
                    if let Some(answering) = self.end_answering(device) {
                        let source = Some(answering.source());
                        self.refuse(Refusal::Busy, source, Some(device), view.now.mono);
                    }
                }
                Timer::Rejoin(device) => self.ask_remembered(device, view),
                Timer::Peer(device) => self.look_after(device, view),
            }
        }
        let now = view.now.mono;
        self.ways.paths.handle_timeout(now);
        self.ways.client.handle_timeout(now);
        self.ways.server.handle_timeout(now);
        self.ways.lookups.handle_timeout(now);
        self.drain_ways(view);
    }

    /// Returns the next thing to do, if any. Call it until `None` after every `handle_*`; until then
    /// the queue holds at most a few outputs per peer.
    pub fn poll(&mut self) -> Option<Output> {
        self.gossip.drain(&mut self.output);
        self.removals
            .pop_front()
            .or_else(|| self.output.pop_front())
    }

    /// Returns when [`Self::handle_timeout`] next has something to decide, and what that is.
    pub fn deadline(&self) -> (Mono, &'static str) {
        let ways = self.ways.deadline().min(self.links.deadline());
        let gossip = self.gossip.deadline();
        match self.timers.first() {
            Some((at, timer)) if at <= ways.min(gossip.0) => (at, timer.reason()),
            Some(_) | None if ways < gossip.0 => (ways, "look after paths"),
            Some(_) | None => gossip,
        }
    }

    fn reject(&mut self, address: Overlay, reason: Unreachable) {
        self.output.push_back(Output::Reject { address, reason });
    }

    /// Rejects packets for an address, and those that come in the next moments.
    fn reject_for_a_while(&mut self, address: Overlay, reason: Unreachable, now: Mono) {
        self.unreachable.put(address, now + UNREACHABLE_FOR, reason);
        self.reject(address, reason);
    }

    fn refuse(
        &mut self,
        reason: Refusal,
        source: Option<Path>,
        device: Option<DeviceId>,
        now: Mono,
    ) {
        if let Some(suppressed) = self.counts.refused(reason, now) {
            self.output.push_back(Output::Refused {
                reason,
                source,
                device,
                suppressed,
            });
        }
    }

    /// Stores a record and says so.
    fn remember(&mut self, memory: Memory) {
        let evicted = self.memories.put(memory.clone());
        self.output.extend(evicted.map(Output::Forget));
        self.output.push_back(Output::Remember(memory));
    }

    fn forget(&mut self, device: DeviceId) {
        if self.memories.remove(device) {
            self.output.push_back(Output::Forget(device));
        }
    }
}

/// A refusal, and the device once its key was proven.
type Refused = (Refusal, Option<DeviceId>);

#[cfg(test)]
mod tests;
