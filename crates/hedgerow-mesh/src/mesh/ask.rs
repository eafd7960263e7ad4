//! The asking side: find a device, introduce ourselves, take its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_identity::Verified;
use hedgerow_identity::error::RefusedTicket;
use hedgerow_identity::statement::verify_binding;
use hedgerow_model::address::{Overlay, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::statement::{Binding, PeerQuery, Ticket};
use hedgerow_model::{Mono, Wall};
use x25519_dalek::PublicKey;

use super::answer::Answering;
use super::{
    ANSWER_WITHIN, ASKING_MAX, LOOKUPS_MAX, Mesh, REJOIN_MAX, Refused, Resolved, Timer, View, Ways,
};
use crate::introduction::{self, Answer, Ask, MARK_LABEL, Outer, PROLOGUE};
use crate::memory::{ENDPOINTS_MAX, Memory};
use crate::noise::Initiator;
use crate::output::{Output, Refusal, Unreachable};
use crate::path::RELAYS_MAX;

/// How often a device is asked before we give up.
const ATTEMPTS_MAX: u32 = 5;
/// The same of a relay that was never reached while another is at home: it is tried again later.
const ATTEMPTS_SPARE_MAX: u32 = 2;
/// The pause after the first attempt; each next is twice as long, all ± 25 %.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How many endpoints one attempt tries.
const CANDIDATES_MAX: usize = 4;
/// Most ways, direct and relayed, that one introduction goes.
const WAYS_MAX: usize = ENDPOINTS_MAX + 8;
/// How often an introduction without a way waits for a relay.
const WAITS_MAX: u32 = 6;
/// How long it waits at a time.
const WAIT_FOR_RELAY: Duration = Duration::from_millis(500);
/// After this many attempts at remembered endpoints we ask for newer ones as well.
const ATTEMPTS_FROM_MEMORY: u32 = 2;
/// After this many waits for remembered relays we ask for newer ones as well: the device may have left them.
const WAITS_FROM_MEMORY: u32 = 1;
/// So many introductions after a restart go out at once, to those used last.
const REJOIN_AT_ONCE: usize = 16;
/// Over how long the others are spread.
const REJOIN_SPREAD: Duration = Duration::from_secs(2);

/// Everything on its way out.
#[derive(Default)]
pub(super) struct Asking {
    lookups: BTreeSet<PeerQuery>,
    pending: BTreeMap<DeviceId, Pending>,
    marks: BTreeMap<[u8; 16], DeviceId>,
    last_timestamp_ms: u64,
    /// Which introduction the packets for an address wait for.
    wanted: BTreeMap<Overlay, DeviceId>,
}

/// One device that we are introducing ourselves to.
struct Pending {
    ticket: Verified<Ticket>,
    endpoints: Vec<Path>,
    /// Addresses that packets wait for; empty when only our own statements are to be shown.
    wanted: BTreeSet<Overlay>,
    stage: Stage,
    attempts: Vec<Attempt>,
    /// The bytes of the last attempt, for ways that become known after it.
    last: Vec<u8>,
    /// How often nothing was sent because no way was known yet.
    waits: u32,
}

enum Stage {
    /// Waiting for the policy's word before anything is sent.
    Admission,
    /// Sent, waiting for the answer.
    Asking,
    /// Answered with a ticket the policy has not seen: waiting for its word.
    Installing(Box<Found>),
}

/// A device as its answer shows it.
struct Found {
    ticket: Verified<Ticket>,
    binding: Verified<Binding>,
    endpoint: Path,
}

/// One message sent. All are kept until the end, because the answer to an early one may be late.
struct Attempt {
    mark: [u8; 16],
    initiator: Initiator,
    timestamp_ms: u64,
}

impl Asking {
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn lookups(&self) -> usize {
        self.lookups.len()
    }

    pub(super) fn devices(&self) -> Vec<DeviceId> {
        self.pending.keys().copied().collect()
    }

    pub(super) fn is_asking(&self, device: DeviceId) -> bool {
        self.pending.contains_key(&device)
    }

    pub(super) fn end_lookup(&mut self, query: PeerQuery) -> bool {
        self.lookups.remove(&query)
    }

    pub(super) fn is_looking_up(&self, query: PeerQuery) -> bool {
        self.lookups.contains(&query)
    }

    /// Lets packets for an address wait for an introduction under way.
    fn want(&mut self, device: DeviceId, address: Option<Overlay>) {
        if let (Some(address), Some(pending)) = (address, self.pending.get_mut(&device)) {
            pending.wanted.insert(address);
            self.wanted.insert(address, device);
        }
    }

    fn end(&mut self, device: DeviceId) -> Option<Pending> {
        let pending = self.pending.remove(&device)?;
        for address in &pending.wanted {
            self.wanted.remove(address);
        }
        for attempt in &pending.attempts {
            self.marks.remove(&attempt.mark);
        }
        Some(pending)
    }

    /// Returns a timestamp above all before, and not behind the clock.
    fn next_timestamp(&mut self, wall: Wall) -> u64 {
        self.last_timestamp_ms = wall.0.max(self.last_timestamp_ms.saturating_add(1));
        self.last_timestamp_ms
    }

    fn waits_for(&self, address: Overlay) -> bool {
        self.lookups.contains(&PeerQuery::Address(address)) || self.wanted.contains_key(&address)
    }
}

impl Mesh {
    /// Finds the holder of an address: from memory, else by asking.
    pub(super) fn find(&mut self, address: Overlay, view: View<'_>) {
        if self.asking.waits_for(address) {
            return;
        }
        let remembered = self.memories.by_address(address).cloned();
        let believed = remembered.and_then(|memory| self.believe(memory, view));
        match believed {
            Some((ticket, endpoints)) if !endpoints.is_empty() || self.has_relay_for(ticket.id) => {
                self.ask(ticket, endpoints, Some(address), view);
            }
            Some(_) | None => self.look_up(PeerQuery::Address(address), view),
        }
    }

    /// Verifies a remembered ticket; forgets the record when it fails.
    fn believe(&mut self, memory: Memory, view: View<'_>) -> Option<(Verified<Ticket>, Vec<Path>)> {
        match view
            .trust
            .verify_ticket(&memory.ticket, view.standing, view.now)
        {
            Ok(ticket) if ticket.id == memory.device => {
                self.note_relay(&ticket, view);
                Some((ticket, paths(memory.endpoints)))
            }
            Ok(_) | Err(_) => {
                self.forget(memory.device);
                None
            }
        }
    }

    pub(super) fn look_up(&mut self, query: PeerQuery, view: View<'_>) {
        let now = view.now.mono;
        if self.asking.lookups.len() >= LOOKUPS_MAX {
            self.unresolved(query, Unreachable::Busy, now);
            return;
        }
        if self.asking.lookups.insert(query) {
            self.timers.set(Timer::Lookup(query), now + ANSWER_WITHIN);
            self.output.push_back(Output::Resolve { query });
        }
    }

    pub(super) fn unresolved(&mut self, query: PeerQuery, reason: Unreachable, now: Mono) {
        match query {
            PeerQuery::Address(address) => self.reject_for_a_while(address, reason, now),
            // Asked beside attempts that go on by themselves.
            PeerQuery::Device(device) => {
                self.wanted_devices.remove(&device);
            }
        }
    }

    pub(super) fn end_lookup(&mut self, query: PeerQuery) {
        self.timers.clear(Timer::Lookup(query));
        self.asking.end_lookup(query);
        self.ways.lookups.end(query);
    }

    /// The controller could not tell: relays may.
    pub(super) fn ask_relays(&mut self, query: PeerQuery, now: Mono) {
        self.timers.clear(Timer::Lookup(query));
        let Ways {
            lookups, client, ..
        } = &mut self.ways;
        let home = client.home().iter().copied();
        let others = client.reachable().filter(|r| !client.home().contains(r));
        let about = |relay: &DeviceId| query != PeerQuery::Device(*relay);
        lookups.handle_question(query, home.chain(others).filter(about), now);
    }

    /// Takes a relay's answer. One that does not verify leaves the question to the others.
    pub(super) fn resolved_by_relay(
        &mut self,
        query: PeerQuery,
        resolved: Resolved,
        view: View<'_>,
    ) {
        if !self.asking.is_looking_up(query) {
            return;
        }
        self.counts.work.signatures += 1;
        let ticket = view
            .trust
            .verify_ticket(&resolved.ticket, view.standing, view.now);
        let fits = ticket.as_ref().is_ok_and(|ticket| match query {
            PeerQuery::Device(device) => ticket.id == device,
            PeerQuery::Address(address) => ticket.addresses.contains(address),
        });
        if fits {
            self.end_lookup(query);
            self.resolved(query, resolved, view);
            return;
        }
        let reason = ticket.map_or_else(|e| Refusal::from(&e), |_| Refusal::OtherDevice);
        self.refuse(reason, None, None, view.now.mono);
        if !self.ways.lookups.is_open(query) {
            self.nobody_knows(query, view);
        }
    }

    pub(super) fn nobody_knows(&mut self, query: PeerQuery, view: View<'_>) {
        if self.asking.is_looking_up(query) {
            self.end_lookup(query);
            self.unresolved(query, Unreachable::Unresolved, view.now.mono);
        }
    }

    /// Returns whether a relay might lead to a device.
    fn has_relay_for(&self, device: DeviceId) -> bool {
        !self.ways.client.paths_to(device).is_empty()
            || (!self.ways.client.home().is_empty() && !self.home_relays_of(device).is_empty())
    }

    /// Believes a ticket; of one that was believed before, and not a byte changed since, the signature is not
    /// verified again.
    fn verify_or_recheck(
        &self,
        bytes: &[u8],
        query: PeerQuery,
        view: View<'_>,
    ) -> Result<Verified<Ticket>, RefusedTicket> {
        let device = match query {
            PeerQuery::Device(device) => Some(device),
            PeerQuery::Address(address) => self.peers.at_address(address),
        };
        let of_peer = |device| self.peers.get(device).map(|peer| &peer.ticket);
        let known = device.and_then(|d| of_peer(d).or(self.relay_tickets.get(&d)));
        match known.filter(|ticket| ticket.bytes() == bytes) {
            Some(ticket) => {
                view.trust.recheck_ticket(ticket, view.standing, view.now)?;
                Ok(ticket.clone())
            }
            None => view.trust.verify_ticket(bytes, view.standing, view.now),
        }
    }

    pub(super) fn resolved(&mut self, query: PeerQuery, resolved: Resolved, view: View<'_>) {
        let now = view.now.mono;
        let ticket = match self.verify_or_recheck(&resolved.ticket, query, view) {
            Ok(ticket) => ticket,
            Err(refused) => {
                self.refuse(Refusal::from(&refused), None, None, now);
                self.unresolved(query, Unreachable::Refused, now);
                return;
            }
        };
        let (fits, wanted) = match query {
            PeerQuery::Device(device) => (ticket.id == device, None),
            PeerQuery::Address(address) => (ticket.addresses.contains(address), Some(address)),
        };
        let ourselves = self
            .own
            .as_ref()
            .is_some_and(|own| own.device() == ticket.id);
        if !fits || ourselves {
            self.refuse(Refusal::OtherDevice, None, Some(ticket.id), now);
            self.unresolved(query, Unreachable::Refused, now);
            return;
        }
        self.note_relay(&ticket, view);
        let device = ticket.id;
        if self.ways.client.knows(device) {
            self.links.handle_addresses(device, &resolved.endpoints);
        }
        let is_wanted = self.wanted_devices.remove(&device);
        let mut relays = resolved.relays;
        relays.truncate(RELAYS_MAX);
        self.ways.want(device, &relays, now);
        let mut endpoints = paths(resolved.endpoints);
        endpoints.truncate(ENDPOINTS_MAX);
        if self.ways.paths.in_use(device).is_some() {
            self.ways.paths.handle_known(device, &endpoints, now);
        }
        // A question beside attempts that have ended meanwhile.
        if wanted.is_none() && !is_wanted && !self.asking.is_asking(device) {
            return;
        }
        endpoints.extend(self.ways.client.paths_to(device));
        self.ask(ticket, endpoints, wanted, view);
    }

    /// Begins to introduce ourselves, or adds what is new to an introduction under way.
    pub(super) fn ask(
        &mut self,
        ticket: Verified<Ticket>,
        mut endpoints: Vec<Path>,
        wanted: Option<Overlay>,
        view: View<'_>,
    ) {
        let device = ticket.id;
        let link = self.links.at(device).map(Path::direct);
        endpoints.extend(link.filter(|link| !endpoints.contains(link)));
        if let Some(pending) = self.asking.pending.get_mut(&device) {
            let news = pending.learn(&ticket, endpoints);
            self.asking.want(device, wanted);
            if news {
                self.timers
                    .set(Timer::Ask(device), view.now.mono + ANSWER_WITHIN);
                self.output.push_back(Output::Admit { device, ticket });
            }
            return;
        }
        if self.asking.len() >= ASKING_MAX {
            if let Some(address) = wanted {
                self.reject_for_a_while(address, Unreachable::Busy, view.now.mono);
            }
            return;
        }
        let known = self
            .peers
            .get(device)
            .is_some_and(|peer| same_facts(&peer.ticket, &ticket));
        let pending = Pending {
            ticket: ticket.clone(),
            endpoints,
            wanted: BTreeSet::new(),
            stage: if known {
                Stage::Asking
            } else {
                Stage::Admission
            },
            attempts: Vec::new(),
            last: Vec::new(),
            waits: 0,
        };
        self.asking.pending.insert(device, pending);
        self.asking.want(device, wanted);
        if known {
            self.ask_again(device, view);
        } else {
            self.timers
                .set(Timer::Ask(device), view.now.mono + ANSWER_WITHIN);
            self.output.push_back(Output::Admit { device, ticket });
        }
    }

    /// Introduces ourselves to a device out of memory, with no packet waiting.
    pub(super) fn ask_remembered(&mut self, device: DeviceId, view: View<'_>) {
        if self.peers.get(device).is_some() || self.own.is_none() {
            return;
        }
        let remembered = self.memories.get(device).cloned();
        if let Some((ticket, endpoints)) = remembered.and_then(|m| self.believe(m, view)) {
            self.ask(ticket, endpoints, None, view);
        }
    }

    /// Plans introductions to those who were peers before the restart.
    pub(super) fn rejoin(&mut self, now: Mono) {
        let devices: Vec<DeviceId> = self.memories.live().take(REJOIN_MAX).collect();
        for (place, device) in devices.into_iter().enumerate() {
            let at = match place < REJOIN_AT_ONCE {
                true => now,
                false => now + self.random.up_to(REJOIN_SPREAD),
            };
            self.timers.set(Timer::Rejoin(device), at);
        }
    }

    /// Returns whether there were peers before the restart.
    pub fn remembers_peers(&self) -> bool {
        self.memories.live().next().is_some()
    }

    /// Returns the tickets, verified, of those who were peers before the restart and are introduced to
    /// first. With them the first table of the kernel is the one that stood before.
    pub fn remembered(&mut self, view: View<'_>) -> Vec<Verified<Ticket>> {
        let devices: Vec<DeviceId> = self.memories.live().take(REJOIN_AT_ONCE).collect();
        let memories = devices
            .iter()
            .filter_map(|d| self.memories.get(*d).cloned());
        let memories: Vec<Memory> = memories.collect();
        let believed = memories.into_iter().filter_map(|m| self.believe(m, view));
        believed.map(|(ticket, _)| ticket).collect()
    }

    pub(super) fn admitted_to_ask(&mut self, device: DeviceId, view: View<'_>) {
        let Some(pending) = self.asking.pending.get_mut(&device) else {
            return;
        };
        match std::mem::replace(&mut pending.stage, Stage::Asking) {
            Stage::Admission => self.ask_again(device, view),
            Stage::Asking => {}
            Stage::Installing(found) => self.found(device, *found, view),
        }
    }

    /// Asks the policy again about a device that asks or is asked, and is no peer any more: its removal took the
    /// kernel's element away that was there for both.
    pub(super) fn admit_again(&mut self, device: DeviceId, now: Mono) {
        let mut tickets = Vec::new();
        tickets.extend(self.answering.get(&device).map(Answering::ticket));
        if let Some(pending) = self.asking.pending.get_mut(&device) {
            if let Stage::Installing(found) = &pending.stage {
                tickets.push(found.ticket.clone());
            } else {
                pending.stage = Stage::Admission;
                tickets.push(pending.ticket.clone());
            }
            self.timers.set(Timer::Ask(device), now + ANSWER_WITHIN);
        }
        let admit = |ticket| Output::Admit { device, ticket };
        self.output.extend(tickets.into_iter().map(admit));
    }

    /// Sends the next attempt, or gives up.
    pub(super) fn ask_again(&mut self, device: DeviceId, view: View<'_>) {
        let now = view.now.mono;
        let Some(pending) = self.asking.pending.get_mut(&device) else {
            return;
        };
        let made = u32::try_from(pending.attempts.len()).unwrap_or(u32::MAX);
        let is_first = made == 0 && pending.waits == 0;
        let is_asking = matches!(pending.stage, Stage::Asking);
        if is_asking && is_first {
            let hints = self.home_relays_of(device);
            self.ways.want(device, &hints, now);
        }
        let is_met = self.peers.get(device).is_some() || self.memories.get(device).is_some();
        let Some(pending) = self.asking.pending.get_mut(&device) else {
            return;
        };
        let is_spare = self.ways.client.is_spare(device) && !is_met && pending.wanted.is_empty();
        let most = match is_spare {
            true => ATTEMPTS_SPARE_MAX,
            false => ATTEMPTS_MAX,
        };
        // A relay may lead there, and has not answered yet.
        let relays = !self.ways.client.home().is_empty();
        if is_asking && pending.endpoints.is_empty() && relays && pending.waits < WAITS_MAX {
            pending.waits += 1;
            let is_late = pending.waits == WAITS_FROM_MEMORY + 1;
            self.timers.set(Timer::Ask(device), now + WAIT_FOR_RELAY);
            if is_late {
                self.look_up(PeerQuery::Device(device), view);
            }
            return;
        }
        let reason = match pending.stage {
            Stage::Admission | Stage::Installing(_) => Some(Unreachable::Busy),
            Stage::Asking if pending.endpoints.is_empty() => Some(Unreachable::NoEndpoint),
            Stage::Asking if made >= most => Some(Unreachable::Unanswered),
            Stage::Asking => None,
        };
        if let Some(reason) = reason {
            self.give_up(device, reason, now);
            return;
        }
        if made == ATTEMPTS_FROM_MEMORY {
            self.look_up(PeerQuery::Device(device), view);
        }
        if self.send_attempt(device, view).is_none() {
            self.give_up(device, Unreachable::NotReady, now);
            return;
        }
        let pause = self.random.jitter(FIRST_PAUSE * 2u32.saturating_pow(made));
        self.timers.set(Timer::Ask(device), now + pause);
    }

    /// Asks by a way that became known while an introduction is under way: at once, with the attempt
    /// that the other ways already have.
    pub(super) fn ask_by(&mut self, device: DeviceId, path: Path) {
        let Some(pending) = self.asking.pending.get_mut(&device) else {
            return;
        };
        if pending.endpoints.contains(&path) || pending.endpoints.len() >= WAYS_MAX {
            return;
        }
        pending.endpoints.push(path);
        if !matches!(pending.stage, Stage::Asking) {
            return;
        }
        if pending.last.is_empty() {
            // Nothing was sent, because no way was known: the timer is due now.
            self.timers.set(Timer::Ask(device), Mono::ZERO);
            return;
        }
        let bytes = pending.last.clone();
        self.output.push_back(Output::Send { to: path, bytes });
    }

    /// Seals one question and sends it to the first candidates. Each attempt has its own key and
    /// timestamp: a repeated message would be refused as a replay.
    fn send_attempt(&mut self, device: DeviceId, view: View<'_>) -> Option<()> {
        let own = self.own.as_ref()?;
        let timestamp_ms = self.asking.next_timestamp(view.now.wall);
        let pending = self.asking.pending.get_mut(&device)?;
        let ask = Ask {
            ticket: own.identity.ticket.bytes().to_vec(),
            binding: own.identity.binding.bytes().to_vec(),
            timestamp_ms,
            responder: device,
            known: (pending.ticket.epoch, pending.ticket.not_after_secs),
        };
        let payload = ask.encode().ok()?;
        let responder = PublicKey::from(pending.ticket.introduction_key.0);
        let keys = (&own.identity.introduction.secret, &responder);
        let mut noise = Vec::new();
        let ephemeral = self.random.secret();
        let initiator = Initiator::start(PROLOGUE, keys, ephemeral, &payload, &mut noise).ok()?;
        let mark = initiator.mark(MARK_LABEL);
        self.asking.marks.insert(mark, device);
        pending.attempts.push(Attempt {
            mark,
            initiator,
            timestamp_ms,
        });
        self.counts.work.agreements += 2;
        let bytes = introduction::introduce(&responder, &noise);
        pending.last.clone_from(&bytes);
        let (direct, relayed): (Vec<Path>, Vec<Path>) =
            pending.endpoints.iter().partition(|p| is_over_udp(p));
        let direct = direct.into_iter().take(CANDIDATES_MAX);
        let candidates = direct.chain(relayed);
        self.output.extend(candidates.map(|to| Output::Send {
            to,
            bytes: bytes.clone(),
        }));
        Some(())
    }

    /// Ends an introduction without success.
    pub(super) fn give_up(&mut self, device: DeviceId, reason: Unreachable, now: Mono) {
        self.timers.clear(Timer::Ask(device));
        let Some(pending) = self.asking.end(device) else {
            return;
        };
        for address in pending.wanted {
            self.reject_for_a_while(address, reason, now);
        }
        if self.ways.paths.in_use(device).is_none() {
            self.ways.client.handle_unwanted(device);
        }
        self.ways.client.handle_unanswered(device, now);
        self.introduce_later(device, now);
    }

    /// Takes an answer. A mark that is not ours costs one look into a table.
    pub(super) fn introduced(
        &mut self,
        source: Path,
        bytes: &[u8],
        view: View<'_>,
    ) -> Result<(), Refused> {
        let outer = Outer::parse(bytes).map_err(|_e| (Refusal::Malformed, None))?;
        let device = *self
            .asking
            .marks
            .get(outer.check)
            .ok_or((Refusal::Unasked, None))?;
        let found = self.open_answer(device, source, &outer, view)?;
        let refused = |reason: Refusal| (reason, Some(device));
        let pending = self
            .asking
            .pending
            .get_mut(&device)
            .ok_or(refused(Refusal::Unasked))?;
        // While the policy still has to speak on the ticket we hold, the answer waits for it too.
        let same = same_facts(&pending.ticket, &found.ticket);
        if same && matches!(pending.stage, Stage::Asking) {
            self.found(device, found, view);
            return Ok(());
        }
        let ticket = found.ticket.clone();
        pending.stage = Stage::Installing(Box::new(found));
        self.timers
            .set(Timer::Ask(device), view.now.mono + ANSWER_WITHIN);
        if !same {
            self.output.push_back(Output::Admit { device, ticket });
        }
        Ok(())
    }

    fn open_answer(
        &mut self,
        device: DeviceId,
        source: Path,
        outer: &Outer<'_>,
        view: View<'_>,
    ) -> Result<Found, Refused> {
        let refused = |reason: Refusal| (reason, Some(device));
        let pending = self
            .asking
            .pending
            .get(&device)
            .ok_or(refused(Refusal::Unasked))?;
        let attempt = pending
            .attempts
            .iter()
            .find(|attempt| attempt.mark == *outer.check);
        let attempt = attempt.ok_or(refused(Refusal::Unasked))?;
        self.counts.work.agreements += 2;
        let payload = attempt.initiator.finish(outer.noise);
        let payload = payload.map_err(|_e| (Refusal::Unopened, None))?;
        let answer = Answer::decode(&payload).map_err(|_e| refused(Refusal::Malformed))?;
        if answer.echo_ms != attempt.timestamp_ms {
            return Err(refused(Refusal::Malformed));
        }
        let ticket = match &answer.ticket {
            Some(bytes) => {
                self.counts.work.signatures += 1;
                let ticket = view.trust.verify_ticket(bytes, view.standing, view.now);
                ticket.map_err(|e| refused(Refusal::from(&e)))?
            }
            None => pending.ticket.clone(),
        };
        if ticket.id != device {
            return Err(refused(Refusal::OtherDevice));
        }
        self.counts.work.signatures += 1;
        let binding = verify_binding(&answer.binding, &ticket, view.now);
        let binding = binding.map_err(|e| refused(Refusal::from(&e)))?;
        let first = pending.endpoints.first().copied();
        let asked_there = pending.endpoints.contains(&source);
        let endpoint = if asked_there {
            source
        } else {
            first.unwrap_or(source)
        };
        Ok(Found {
            ticket,
            binding,
            endpoint,
        })
    }

    /// Makes a peer of a device that answered.
    fn found(&mut self, device: DeviceId, found: Found, view: View<'_>) {
        let Found {
            ticket,
            binding,
            endpoint,
        } = found;
        let shown = self.own.as_ref().map(|own| own.shown).unwrap_or_default();
        match self.install(ticket, binding, Some(endpoint), shown, view) {
            Ok(()) => self.end_asking(device),
            Err(reason) => {
                self.refuse(reason, Some(endpoint), Some(device), view.now.mono);
                self.give_up(device, Unreachable::Refused, view.now.mono);
            }
        }
    }

    /// Returns where an introduction under way would try the device first.
    pub(super) fn asked_at(&self, device: DeviceId, source: Path) -> Option<Path> {
        let endpoints = &self.asking.pending.get(&device)?.endpoints;
        let first = endpoints.first().copied();
        endpoints
            .iter()
            .copied()
            .find(|endpoint| *endpoint == source)
            .or(first)
    }

    /// Ends an introduction whose purpose is fulfilled: packets may go.
    pub(super) fn end_asking(&mut self, device: DeviceId) {
        self.timers.clear(Timer::Ask(device));
        let Some(pending) = self.asking.end(device) else {
            return;
        };
        for address in pending.wanted {
            self.unreachable.remove(address);
            let holds = self.peers.at_address(address) == Some(device);
            self.output.push_back(match holds {
                true => Output::Release { address },
                false => Output::Reject {
                    address,
                    reason: Unreachable::Refused,
                },
            });
        }
    }

    /// Gives up on devices whose ticket does not hold any more.
    pub(super) fn recheck_asking(&mut self, view: View<'_>) {
        let check = |ticket| view.trust.recheck_ticket(ticket, view.standing, view.now);
        let pending = self.asking.pending.iter();
        let refused: Vec<DeviceId> = pending
            .filter(|(_, p)| check(&p.ticket).is_err())
            .map(|(device, _)| *device)
            .collect();
        for device in refused {
            self.give_up(device, Unreachable::Refused, view.now.mono);
        }
    }
}

impl Pending {
    /// Adds endpoints, new ones first, and takes a newer ticket. Returns whether the policy must be
    /// asked again.
    fn learn(&mut self, ticket: &Verified<Ticket>, endpoints: Vec<Path>) -> bool {
        for endpoint in endpoints.into_iter().rev() {
            self.endpoints.retain(|known| *known != endpoint);
            self.endpoints.insert(0, endpoint);
        }
        self.endpoints.truncate(WAYS_MAX);
        if age(ticket) <= age(&self.ticket) {
            return false;
        }
        let other_facts = !same_facts(&self.ticket, ticket);
        self.ticket = ticket.clone();
        if other_facts {
            self.stage = Stage::Admission;
        }
        other_facts
    }
}

/// Returns whether a path leads straight to the peer, by no relay and no link.
fn is_over_udp(path: &Path) -> bool {
    path.is_direct() && !path.to.is_loopback()
}

fn paths(endpoints: Vec<Underlay>) -> Vec<Path> {
    endpoints.into_iter().map(Path::direct).collect()
}

/// Returns what orders tickets of one device.
pub(super) fn age(ticket: &Ticket) -> (u64, u64) {
    (ticket.epoch, ticket.not_after_secs)
}

/// Returns whether two tickets say the same to policy and tunnel.
pub(super) fn same_facts(a: &Ticket, b: &Ticket) -> bool {
    a.id == b.id
        && a.name == b.name
        && a.site == b.site
        && a.labels == b.labels
        && a.addresses == b.addresses
        && a.epoch == b.epoch
}
