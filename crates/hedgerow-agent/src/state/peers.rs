//! Peers: what the mesh asks for, translated into steps for kernel, tunnel and disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_identity::Verified;
use hedgerow_identity::standing::Standing;
use hedgerow_linux::tunnel::{Rejection, Report};
use hedgerow_mesh::path::{RouteStatus, Why};
use hedgerow_mesh::{Admission, Output, Refusal, Resolved, Session, Unreachable};
use hedgerow_model::address::{Overlay, OverlayAddresses, Underlay};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Labels};
use hedgerow_model::path::{Path, is_relay};
use hedgerow_model::ruleset::Profile;
use hedgerow_model::statement::{PeerQuery, Ticket};
use hedgerow_model::{Mono, Now};
use hedgerow_policy::Facts;
use hedgerow_sync::message::ResolvedPeer;

use super::twins::Twins;
use super::{State, Step, ToTunnel};

/// Most questions to the controller at once; a further one is answered with "unknown".
const ASKED_MAX: usize = 256;
/// With so many relays at home, others are asked for only now and then.
const RELAYS_ENOUGH: usize = 2;
/// How often the controller is asked for relays while one lacks.
const RELAYS_SOON: Duration = Duration::from_secs(20);
/// How often else.
const RELAYS_LATER: Duration = Duration::from_secs(900);

/// A peer that the policy was asked about.
#[derive(Debug)]
pub(super) struct Peer {
    ticket: Verified<Ticket>,
    /// The tunnel has it.
    is_installed: bool,
}

/// All of them, and what was asked.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<DeviceId, Peer>,
    by_address: BTreeMap<Overlay, DeviceId>,
    /// Those for whose element the mesh waits.
    waiting: BTreeSet<DeviceId>,
    pub(super) asked: BTreeMap<u64, PeerQuery>,
    next_question: u64,
    twins: Twins,
    /// Through which relays this device is reached.
    home_relays: Vec<DeviceId>,
    /// When the controller is asked for relays again.
    pub(super) relays_at: Mono,
}

impl Peer {
    /// Returns what policy judges it by.
    pub(super) fn facts(&self, standing: &Standing) -> Facts {
        Facts::from(&*self.ticket).in_state(standing.state(self.ticket.id))
    }

    pub(super) fn addresses(&self) -> OverlayAddresses {
        self.ticket.addresses
    }
}

impl Peers {
    pub(super) fn iter(&self) -> impl Iterator<Item = (DeviceId, &Peer)> {
        self.known.iter().map(|(device, peer)| (*device, peer))
    }

    pub(super) fn holds(&self, device: DeviceId) -> bool {
        self.known.contains_key(&device)
    }

    /// Keeps a peer whose element the mesh waits for; returns the addresses it had before.
    fn admit(&mut self, ticket: Verified<Ticket>) -> Option<OverlayAddresses> {
        let device = ticket.id;
        let before = self.remove(device);
        for address in ticket.addresses.iter() {
            self.by_address.insert(address, device);
        }
        self.waiting.insert(device);
        let is_installed = before.as_ref().is_some_and(|p| p.is_installed);
        let peer = Peer {
            ticket,
            is_installed,
        };
        self.known.insert(device, peer);
        before.map(|p| p.addresses())
    }

    fn remove(&mut self, device: DeviceId) -> Option<Peer> {
        let peer = self.known.remove(&device)?;
        self.waiting.remove(&device);
        for address in peer.addresses().iter() {
            if self.by_address.get(&address) == Some(&device) {
                self.by_address.remove(&address);
            }
        }
        Some(peer)
    }

    fn at_address(&self, address: Overlay) -> Option<&Peer> {
        self.known.get(self.by_address.get(&address)?)
    }
}

impl State {
    /// Takes what the tunnel reports.
    pub(crate) fn handle_report(&mut self, report: Report, now: Now) {
        if self.measures(&report, now) {
            return;
        }
        let mut session = None;
        if let Report::Established { device, .. } = &report {
            session = Some(*device);
        }
        let view = self.world.view(now);
        match report {
            Report::Datagram { from, bytes } => self.mesh.handle_datagram(from, &bytes, view),
            Report::Wanted { dst } => self.mesh.handle_wanted(dst, view),
            Report::Message {
                device,
                from,
                bytes,
            } => self.mesh.handle_message(device, from, &bytes, view),
            Report::Heard { device, from } => self.mesh.handle_heard(device, from, view),
            Report::Silent { device, waited } => self.mesh.handle_silent(device, waited, view),
            Report::Active { device } => self.mesh.handle_active(device, view),
            Report::Established {
                device,
                endpoint,
                psk,
            } => {
                self.mesh
                    .handle_session(device, Session::Established(endpoint), view);
                self.mesh.handle_agreed(device, psk, view);
            }
            Report::Roamed { device, endpoint } => {
                self.mesh
                    .handle_session(device, Session::Established(endpoint), view);
            }
            Report::Idle { device } => self.mesh.handle_session(device, Session::Idle, view),
            Report::Unanswered { device } => {
                self.mesh.handle_session(device, Session::Unanswered, view);
            }
            Report::HandshakeFromUnknown { public_key, .. } => {
                self.mesh.handle_unknown_handshake(public_key, view);
            }
            Report::Spoofed { device, src, dst } => self.event(
                Event::new(now.wall, EventKind::AddressSpoofed)
                    .peer(device)
                    .detail("reason", "not_the_peers_address")
                    .detail("source", src)
                    .detail("destination", dst),
            ),
            Report::PeerRefused { device, reason } => {
                tracing::error!(%device, %reason, "the tunnel refused a peer");
            }
            Report::Stopped { error } => tracing::error!(error, "the tunnel stopped"),
        }
        self.drain_mesh(now);
        if let Some(device) = session {
            self.measure_session(device, now);
        }
    }

    /// Takes the controller's answer.
    pub(crate) fn handle_resolved(&mut self, id: u64, peer: Option<ResolvedPeer>, now: Now) {
        let Some(query) = self.peers.asked.remove(&id) else {
            return;
        };
        let view = self.world.view(now);
        let relays = peer.as_ref().and_then(|p| p.own_relays.as_deref());
        self.mesh
            .handle_relays_named(relays.unwrap_or_default(), view);
        let peer = peer.map(|p| Resolved {
            ticket: p.ticket,
            endpoints: p.endpoints,
            relays: p.relays.unwrap_or_default(),
        });
        self.mesh.handle_resolved(query, peer, view);
        self.drain_mesh(now);
    }

    /// Turns everything the mesh wants into steps.
    pub(super) fn drain_mesh(&mut self, now: Now) {
        while let Some(output) = self.mesh.poll() {
            match output {
                Output::Resolve { query } => self.ask(query, now),
                Output::Send { to, bytes } => self
                    .steps
                    .push_back(Step::Tunnel(ToTunnel::Send(to, bytes))),
                Output::Admit { device, ticket } => self.admit(device, &ticket, now),
                Output::SetPeer {
                    device,
                    wireguard_key,
                    addresses,
                    endpoint,
                } => self.install(device, wireguard_key, addresses, endpoint, now),
                Output::Tunnel(order) => self.steps.push_back(Step::Tunnel(ToTunnel::Mesh(order))),
                Output::ForgetOldKey { device } => self
                    .steps
                    .push_back(Step::Tunnel(ToTunnel::ForgetOldKey(device))),
                Output::Release { address } => {
                    // The kernel did not know the peer when it let these packets through.
                    let order = match self.profile_at(address, now) {
                        Some(profile) => ToTunnel::Release(address, Box::new(profile)),
                        None => ToTunnel::Reject(address, Rejection::Unreachable),
                    };
                    self.steps.push_back(Step::Tunnel(order));
                }
                Output::Reject { address, reason } => {
                    tracing::debug!(%address, %reason, "packets refused");
                    self.measure_unreachable(address, reason);
                    let why = rejection(reason);
                    self.steps
                        .push_back(Step::Tunnel(ToTunnel::Reject(address, why)));
                }
                Output::RemovePeer {
                    device,
                    addresses,
                    reason,
                } => {
                    self.remove(device, addresses);
                    self.event(
                        Event::new(now.wall, EventKind::PeerRemoved)
                            .peer(device)
                            .detail("reason", reason),
                    );
                }
                Output::Refused {
                    reason,
                    source,
                    device,
                    suppressed,
                } => self.refused(reason, (source, device), suppressed, now),
                Output::PathChanged {
                    device,
                    from,
                    to,
                    why,
                } => self.path_changed(device, (from, to), why, now),
                Output::PathLost { device } => {
                    self.event(Event::new(now.wall, EventKind::PathLost).peer(device));
                }
                Output::HomeRelays { relays } => self.home_relays_changed(relays, now),
                Output::OpenLink { relay, hosts } => self.step(Step::OpenLink(relay, hosts)),
                Output::CloseLink { relay } => self.step(Step::CloseLink(relay)),
                heard @ (Output::ItemArrived { .. }
                | Output::ItemForked { .. }
                | Output::PskFailed { .. }
                | Output::Member { .. }) => self.handle_heard_by_gossip(heard, now),
                Output::Remember(memory) => self.step(Step::Remember(Box::new(memory))),
                Output::Forget(device) => self.step(Step::Forget(device)),
            }
        }
    }

    fn step(&mut self, step: Step) {
        self.steps.push_back(step);
    }

    fn refused(
        &mut self,
        reason: Refusal,
        (source, device): (Option<Path>, Option<DeviceId>),
        suppressed: u64,
        now: Now,
    ) {
        if let (Refusal::SupersededBinding, Some(device)) = (reason, device) {
            self.older_key(device, source, 1 + suppressed, now);
        }
        let mut event = Event::new(now.wall, EventKind::IntroductionRefused)
            .detail("reason", reason)
            .detail("suppressed", suppressed);
        if let Some(source) = source {
            event = event.detail("source", source);
        }
        if let Some(device) = device {
            event = event.peer(device);
        }
        self.event(event);
    }

    /// Somebody showed a key of a device that has a newer one.
    fn older_key(&mut self, device: DeviceId, source: Option<Path>, count: u64, now: Now) {
        let status = self.mesh.status();
        let newer = status.peers.iter().find(|p| p.device == device);
        let Some(newer) = newer.filter(|p| p.in_session) else {
            return;
        };
        let Some(times) = self.peers.twins.handle_older(device, count, now.mono) else {
            return;
        };
        tracing::warn!(peer = %device, times, "one key at two places");
        let mut event = Event::new(now.wall, EventKind::KeyDisputed)
            .peer(device)
            .detail("times", times);
        if let Some(source) = source {
            event = event.detail("source", source);
        }
        if let Some(endpoint) = newer.endpoint {
            event = event.detail("other", endpoint);
        }
        self.event(event);
    }

    fn path_changed(&mut self, device: DeviceId, (from, to): (Path, Path), why: Why, now: Now) {
        self.event(
            Event::new(now.wall, EventKind::PathChanged)
                .peer(device)
                .detail("from", from)
                .detail("to", to)
                .detail("reason", why.as_str()),
        );
    }

    fn ask(&mut self, query: PeerQuery, now: Now) {
        if self.peers.asked.len() >= ASKED_MAX || !matches!(self.uplink, super::Uplink::Up(_)) {
            self.mesh.handle_resolved(query, None, self.world.view(now));
            return;
        }
        let id = self.peers.next_question;
        self.peers.next_question = id.wrapping_add(1);
        self.peers.asked.insert(id, query);
        self.steps.push_back(Step::Resolve(id, query));
    }

    /// Asks the policy: a peer that can do nothing in either direction is denied; another one gets
    /// its kernel element, and only then the mesh is told.
    fn admit(&mut self, device: DeviceId, ticket: &Verified<Ticket>, now: Now) {
        let facts = Facts::from(&**ticket);
        let state = self.world.standing.state(device);
        let profile = self.profile_of(&facts.in_state(state), now);
        let profile = profile.filter(|p| !p.is_closed() || self.is_for_relay(ticket));
        let Some(profile) = profile else {
            tracing::debug!(%device, labels = %ticket.labels, "policy grants nothing");
            self.peers.remove(device);
            let view = self.world.view(now);
            self.mesh.handle_admitted(device, Admission::Denied, view);
            return;
        };
        let addresses = ticket.addresses;
        if let Some(before) = self.peers.admit(ticket.clone()) {
            self.drop_addresses(before, addresses);
        }
        match self.kernel.id_of(&profile) {
            Some(id) => {
                let elements = addresses.iter().map(|a| (a, Some(id))).collect();
                self.steps.push_back(Step::Elements(elements));
            }
            None => self.refresh(now),
        }
    }

    /// Puts those who were peers before the restart into the first table: it then is the one that stands
    /// in the kernel, and nobody waits for another load. The mesh asks for each of them again.
    pub(super) fn expect_peers(&mut self, now: Now) {
        for ticket in self.mesh.remembered(self.world.view(now)) {
            let state = self.world.standing.state(ticket.id);
            let facts = Facts::from(&*ticket).in_state(state);
            if self.profile_of(&facts, now).is_some_and(|p| !p.is_closed()) {
                self.peers.admit(ticket);
            }
        }
        self.drain_mesh(now);
    }

    /// Returns whether this device and another talk as relay and guest: they are peers whatever policy
    /// grants, and what it does not grant does not pass.
    fn is_for_relay(&self, ticket: &Ticket) -> bool {
        is_relay(&ticket.labels) || is_relay(&self.world.ticket.labels)
    }

    fn home_relays_changed(&mut self, relays: Vec<DeviceId>, now: Now) {
        let gone: Vec<DeviceId> = self
            .peers
            .home_relays
            .iter()
            .filter(|relay| !relays.contains(relay))
            .copied()
            .collect();
        for relay in gone {
            self.event(Event::new(now.wall, EventKind::RelayLeft).peer(relay));
        }
        let new: Vec<DeviceId> = relays
            .iter()
            .filter(|relay| !self.peers.home_relays.contains(relay))
            .copied()
            .collect();
        for relay in new {
            self.event(Event::new(now.wall, EventKind::RelayJoined).peer(relay));
        }
        self.peers.home_relays = relays;
        self.steps.push_back(Step::Whereabouts);
    }

    /// Asks the controller about this device itself, which tells the relays that there are.
    pub(super) fn ask_for_relays(&mut self, now: Now) {
        if now.mono < self.peers.relays_at || !matches!(self.uplink, super::Uplink::Up(_)) {
            return;
        }
        let lacks = self.peers.home_relays.len() < RELAYS_ENOUGH;
        let again = if lacks { RELAYS_SOON } else { RELAYS_LATER };
        self.peers.relays_at = now.mono + again;
        let id = self.peers.next_question;
        self.peers.next_question = id.wrapping_add(1);
        let query = PeerQuery::Device(self.world.ticket.id);
        self.peers.asked.insert(id, query);
        self.steps.push_back(Step::Resolve(id, query));
    }

    /// Takes the addresses of this machine's interfaces, the mesh's port with them.
    pub(crate) fn handle_local_addresses(&mut self, addresses: Vec<Underlay>, now: Now) {
        let pools = self.pools();
        let view = self.world.view(now);
        self.mesh.handle_local_addresses(addresses, &pools, view);
        self.drain_mesh(now);
    }

    /// The link to a relay stands; datagrams for it go to an address on this machine.
    pub(crate) fn handle_link(&mut self, relay: DeviceId, at: Underlay, now: Now) {
        self.mesh.handle_link(relay, at, self.world.view(now));
        self.drain_mesh(now);
    }

    /// A link is over, or did not come to stand.
    pub(crate) fn handle_link_ended(&mut self, device: DeviceId, at: Option<Underlay>, now: Now) {
        let view = self.world.view(now);
        self.mesh.handle_link_ended(device, at, view);
        self.drain_mesh(now);
    }

    /// Returns where others may reach this device, and through which relays.
    pub(crate) fn whereabouts(&self) -> (Vec<Underlay>, Vec<DeviceId>) {
        (self.mesh.own_candidates(), self.peers.home_relays.clone())
    }

    /// Returns every route to a peer.
    pub(crate) fn routes(&self, device: DeviceId) -> Vec<RouteStatus> {
        self.mesh.routes(device)
    }

    /// An address that is not the peer's any more leads nowhere: it may soon be another's.
    fn drop_addresses(&mut self, before: OverlayAddresses, now: OverlayAddresses) {
        let gone: Vec<Overlay> = before.iter().filter(|a| !now.contains(*a)).collect();
        if gone.is_empty() {
            return;
        }
        let elements = gone.iter().map(|a| (*a, None)).collect();
        self.steps.push_back(Step::Elements(elements));
        for address in gone {
            self.steps.push_back(Step::CutConnections(address));
        }
    }

    /// Tells the mesh about every peer whose element is in the kernel now.
    pub(super) fn grant_waiting(&mut self, now: Now) {
        let (Some(table), _) = self.kernel.table() else {
            return;
        };
        let in_force = |p: &Peer| p.addresses().iter().all(|a| table.peers.contains_key(&a));
        let waiting = self.peers.waiting.iter();
        let granted: Vec<DeviceId> = waiting
            .filter(|device| self.peers.known.get(device).is_some_and(in_force))
            .copied()
            .collect();
        for device in granted {
            self.peers.waiting.remove(&device);
            let view = self.world.view(now);
            self.mesh.handle_admitted(device, Admission::Granted, view);
        }
        self.drain_mesh(now);
    }

    fn install(
        &mut self,
        device: DeviceId,
        key: hedgerow_model::statement::X25519Public,
        addresses: OverlayAddresses,
        endpoint: Option<Path>,
        now: Now,
    ) {
        let Some(known) = self.peers.known.get_mut(&device) else {
            // It would have a session and no element. Denied, it comes back by the way that asks policy.
            tracing::error!(%device, "a peer that policy was not asked about");
            let view = self.world.view(now);
            self.mesh.handle_admitted(device, Admission::Denied, view);
            return;
        };
        let was_installed = std::mem::replace(&mut known.is_installed, true);
        self.steps.push_back(Step::Tunnel(ToTunnel::SetPeer {
            device,
            key,
            addresses,
            endpoint,
        }));
        if !was_installed {
            self.event(Event::new(now.wall, EventKind::PeerInstalled).peer(device));
        }
    }

    /// Kernel element first, then the tunnel's peer, then connections.
    fn remove(&mut self, device: DeviceId, addresses: OverlayAddresses) {
        self.peers.remove(device);
        let elements = addresses.iter().map(|a| (a, None)).collect();
        self.steps.push_back(Step::Elements(elements));
        self.steps
            .push_back(Step::Tunnel(ToTunnel::RemovePeer(device)));
        for address in addresses.iter() {
            self.steps.push_back(Step::CutConnections(address));
        }
    }

    /// Looks at every peer again after the policy, a state or the time changed; those that can do
    /// nothing any more go.
    pub(super) fn reconsider(&mut self, now: Now) {
        self.mesh.handle_policy_changed();
        let may_stay = |device: &DeviceId, profile: Option<Profile>| {
            let peer = self.peers.known.get(device);
            let for_relay = peer.is_some_and(|p| self.is_for_relay(&p.ticket));
            profile.is_some_and(|p| for_relay || !p.is_closed())
        };
        let closed: Vec<DeviceId> = self
            .facts()
            .into_iter()
            .filter(|(device, facts)| !may_stay(device, self.profile_of(facts, now)))
            .map(|(device, _)| device)
            .collect();
        for device in closed {
            tracing::debug!(%device, "policy grants nothing any more");
            let view = self.world.view(now);
            self.mesh.handle_admitted(device, Admission::Denied, view);
        }
        self.drain_mesh(now);
    }

    /// Takes out whoever does not hold any more and was not a peer of the mesh yet. Of its peers the mesh has
    /// the newest ticket, which policy saw only if it said something else, and judges them by that.
    pub(super) fn forget_invalid(&mut self, now: Now) {
        let world = &self.world;
        let holds = |p: &Peer| {
            if p.is_installed {
                return true;
            }
            let checked = world.trust.recheck_ticket(&p.ticket, &world.standing, now);
            checked.is_ok()
        };
        let known = self.peers.known.iter();
        let gone: Vec<(DeviceId, OverlayAddresses)> = known
            .filter(|(_, p)| !holds(p))
            .map(|(device, p)| (*device, p.addresses()))
            .collect();
        for (device, addresses) in gone {
            self.remove(device, addresses);
        }
    }

    /// Returns a peer's labels, by its ticket.
    pub(crate) fn labels_of(&self, device: DeviceId) -> Option<&Labels> {
        self.peers.known.get(&device).map(|p| &p.ticket.labels)
    }

    fn profile_at(&self, address: Overlay, now: Now) -> Option<Profile> {
        let peer = self.peers.at_address(address)?;
        self.profile_of(&peer.facts(&self.world.standing), now)
    }

    fn facts(&self) -> Vec<(DeviceId, Facts)> {
        let standing = &self.world.standing;
        let peers = self.peers.iter();
        peers
            .map(|(device, p)| (device, p.facts(standing)))
            .collect()
    }
}

/// Returns what programs are told whose packets do not go.
fn rejection(reason: Unreachable) -> Rejection {
    match reason {
        Unreachable::NotAdmitted => Rejection::Prohibited,
        Unreachable::NotReady
        | Unreachable::Own
        | Unreachable::Unresolved
        | Unreachable::Refused
        | Unreachable::NoEndpoint
        | Unreachable::Unanswered
        | Unreachable::Busy => Rejection::Unreachable,
    }
}
