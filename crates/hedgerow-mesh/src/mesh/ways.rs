//! Paths, relays and lookups: what their machines say becomes the mesh's outputs.

use std::time::Duration;

use hedgerow_identity::Verified;
use hedgerow_model::Mono;
use hedgerow_model::address::{Prefix, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};
use hedgerow_model::path::Path;
use hedgerow_model::statement::{PeerQuery, Ticket};

use super::{Mesh, Resolved, View};
use crate::lookup::{self, LookupMessage, Lookups};
use crate::output::{Output, Refusal, TunnelOrder};
use crate::path::{self, Paths};
use crate::relay::{self, Client, ClientOutput, RelayMessage, Server, ServerOutput};

/// Bytes of an inner packet until the parent says otherwise.
const MTU_DEFAULT: u16 = 1420;

/// The machines that find ways.
pub(super) struct Ways {
    pub(super) paths: Paths,
    pub(super) server: Server,
    pub(super) client: Client,
    pub(super) lookups: Lookups,
}

impl Ways {
    pub(super) fn new(mut seed: impl FnMut() -> [u8; 32]) -> Self {
        Self {
            paths: Paths::new(seed(), MTU_DEFAULT),
            server: Server::new(seed()),
            client: Client::new(seed()),
            lookups: Lookups::default(),
        }
    }

    pub(super) fn deadline(&self) -> Mono {
        let relays = self.server.deadline().min(self.client.deadline());
        let others = self.paths.deadline().min(self.lookups.deadline());
        relays.min(others)
    }

    /// Wants ways through relays to a device. A relay and its guest have none: the relay passes on what
    /// its guest sends directly, so a tunnel between the two that goes through another relay serves nobody. Nor
    /// have a relay and anybody whom it reaches straight: it would prove ways to all devices there are.
    pub(super) fn want(&mut self, device: DeviceId, relays: &[DeviceId], now: Mono) {
        let is_met = self.server.is_registered(device) || self.paths.is_straight(device);
        if !self.client.knows(device) && !is_met {
            self.client.handle_want(device, relays, now);
        }
    }

    /// Leaves every way through relays to a relay or a guest.
    fn meet_directly(&mut self, device: DeviceId, now: Mono) {
        let ways = self.client.paths_to(device);
        self.paths.handle_closed(device, &ways, now);
        self.client.handle_unwanted(device);
    }
}

/// Returns whether a ticket makes its device a relay.
pub(super) fn is_relay(ticket: &Ticket) -> bool {
    hedgerow_model::path::is_relay(&ticket.labels)
}

impl Mesh {
    /// Takes this device's addresses with the mesh's port, configured endpoints first, and the
    /// overlay's pools, where no path leads.
    pub fn handle_local_addresses(
        &mut self,
        addresses: Vec<Underlay>,
        pools: &[Prefix],
        view: View<'_>,
    ) {
        let now = view.now.mono;
        self.ways
            .paths
            .handle_local_addresses(addresses, pools, now);
        self.links.handle_network_changed(now);
        self.drain_ways(view);
    }

    /// Takes the tunnel's MTU.
    pub fn handle_mtu(&mut self, mtu: u16) {
        self.ways.paths.handle_mtu(mtu);
    }

    /// Takes devices that are said to be relays for this one. Nothing is believed before their tickets
    /// verified.
    pub fn handle_relays_named(&mut self, relays: &[DeviceId], view: View<'_>) {
        let own = self.own.as_ref().map(super::Own::device);
        for relay in relays.iter().take(relay::KNOWN_MAX) {
            if Some(*relay) != own && !self.ways.client.knows(*relay) {
                self.wanted_devices.insert(*relay);
                self.look_up(PeerQuery::Device(*relay), view);
            }
        }
        self.drain_ways(view);
    }

    /// Returns every route to a peer.
    pub fn routes(&self, device: DeviceId) -> Vec<path::RouteStatus> {
        self.ways.paths.routes(device)
    }

    /// The tunnel says that packets were sent to a peer and nothing came back, for so long.
    pub fn handle_silent(&mut self, device: DeviceId, waited: Duration, view: View<'_>) {
        if self.ways.paths.in_use(device).is_some() {
            self.ways.paths.handle_silent(device, waited, view.now.mono);
        } else {
            self.look_for_again(device, view);
        }
        self.drain_ways(view);
    }

    /// The tunnel says that a peer's authentic packet came by another path than the one in use.
    pub fn handle_heard(&mut self, device: DeviceId, from: Path, view: View<'_>) {
        self.ways.paths.handle_heard(device, from, view.now.mono);
        self.drain_ways(view);
    }

    /// The tunnel says that packets go to or come from a peer.
    pub fn handle_active(&mut self, device: DeviceId, view: View<'_>) {
        self.ways.paths.handle_active(device, view.now.mono);
        self.drain_ways(view);
    }

    /// Returns what is known of relays, and what they refused.
    pub fn relay_status(&self) -> relay::ClientStatus {
        self.ways.client.status()
    }

    /// Returns where this device may be reached, as peers are told.
    pub fn own_candidates(&self) -> Vec<Underlay> {
        self.ways.paths.own_candidates()
    }

    /// Takes a message of a peer's agent that came through the tunnel: authentic, and otherwise any bytes.
    pub fn handle_message(&mut self, device: DeviceId, from: Path, bytes: &[u8], view: View<'_>) {
        let decoded = message::decode(bytes);
        let Some((kind, content)) = decoded.filter(|_| self.peers.get(device).is_some()) else {
            self.refuse(Refusal::Malformed, Some(from), Some(device), view.now.mono);
            return;
        };
        if kind != MessageKind::Path {
            let now = view.now.mono;
            self.ways.paths.handle_spoken(device, from, now);
        }
        let refused = |understood: bool| (!understood).then_some(Refusal::Malformed);
        let refused = match kind {
            MessageKind::Path => {
                let content = (content, bytes.len());
                self.ways
                    .paths
                    .handle_message(device, from, content, view.now.mono);
                None
            }
            MessageKind::Relay => refused(self.relay_message(device, content, view.now.mono)),
            MessageKind::Lookup => refused(self.lookup_message(device, content, view)),
            MessageKind::PostQuantum | MessageKind::Membership | MessageKind::Items => {
                self.handle_gossip(device, (kind, content), view).err()
            }
            MessageKind::Measure => refused(false),
        };
        if let Some(reason) = refused {
            self.refuse(reason, Some(from), Some(device), view.now.mono);
        }
        self.drain_ways(view);
    }

    fn relay_message(&mut self, device: DeviceId, content: &[u8], now: Mono) -> bool {
        let Ok(message) = RelayMessage::decode(content) else {
            return false;
        };
        let peer = self.peers.get(device);
        let of = (device, peer.is_some_and(|p| is_relay(&p.ticket)));
        let Ways { server, client, .. } = &mut self.ways;
        relay::deliver(server, client, of, message, now);
        if server.is_registered(device) {
            self.ways.meet_directly(device, now);
        }
        true
    }

    fn lookup_message(&mut self, device: DeviceId, content: &[u8], view: View<'_>) -> bool {
        match LookupMessage::decode(content) {
            Ok(LookupMessage::Ask { number, query }) => {
                if self.ways.lookups.may_answer(device, view.now.mono) {
                    let found = self.known_as(query, view);
                    self.ways.lookups.answer(device, number, found);
                }
                true
            }
            Ok(LookupMessage::Answer { number, found }) => {
                self.ways.lookups.handle_answer(device, number, found);
                true
            }
            Err(_) => false,
        }
    }

    /// Notes what a verified ticket says about relaying.
    pub(super) fn note_relay(&mut self, ticket: &Verified<Ticket>, view: View<'_>) {
        let Some(own) = &self.own else {
            return;
        };
        let (device, now) = (ticket.id, view.now.mono);
        if device == own.device() {
            return;
        }
        let client = &mut self.ways.client;
        if is_relay(ticket) && view.standing.state(device).is_none() {
            let same_site = ticket.site == own.identity.ticket.site;
            client.handle_relay(device, same_site, now);
            if client.knows(device) {
                self.relay_tickets.insert(device, ticket.clone());
            }
        } else if client.knows(device) {
            self.forget_relay(device, now);
        }
    }

    fn forget_relay(&mut self, device: DeviceId, now: Mono) {
        self.relay_tickets.remove(&device);
        self.ways.client.handle_relay_forgotten(device, now);
    }

    /// A session with a peer began, or went on under new keys.
    pub(super) fn way_established(&mut self, device: DeviceId, endpoint: Path, view: View<'_>) {
        let now = view.now.mono;
        let known = self.known_ways(device);
        let hints = self.home_relays_of(device);
        let tickets = [
            self.own.as_ref().map(|own| &*own.identity.ticket),
            self.peers.get(device).map(|peer| &*peer.ticket),
        ];
        let serves = tickets.into_iter().flatten().any(is_relay);
        let Ways {
            paths,
            client,
            server,
            ..
        } = &mut self.ways;
        paths.handle_established(device, endpoint, now);
        paths.handle_serves(device, serves, now);
        paths.handle_known(device, &known, now);
        if client.knows(device) {
            server.handle_relay_live(device);
            if endpoint.is_direct() {
                client.handle_tunnel(device, endpoint.to, now);
            }
            let is_home = client.home().contains(&device);
            paths.handle_kept(device, is_home, now);
        } else if paths.is_straight(device) {
            self.ways.meet_directly(device, now);
        } else {
            self.ways.want(device, &hints, now);
        }
        self.drain_ways(view);
    }

    /// No session with a peer is left.
    pub(super) fn way_ended(&mut self, device: DeviceId, now: Mono) {
        let Ways { paths, client, .. } = &mut self.ways;
        paths.handle_idle(device);
        client.handle_tunnel_lost(device, now);
        client.handle_unwanted(device);
    }

    /// The device is no peer any more.
    pub(super) fn way_removed(&mut self, device: DeviceId, now: Mono) {
        self.way_ended(device, now);
        self.ways.server.handle_gone(device);
        self.ways.lookups.handle_gone(device);
    }

    /// Serves others while this device's ticket says so and nobody has put it into a state.
    pub(super) fn recheck_role(&mut self, view: View<'_>) {
        let own = self.own.as_ref().map(|own| &own.identity.ticket);
        let serves = own.is_some_and(|t| is_relay(t) && view.standing.state(t.id).is_none());
        self.ways.server.handle_role(serves);
    }

    /// Leaves relays that must not be used any more, and takes up those that may again.
    pub(super) fn recheck_relays(&mut self, view: View<'_>) {
        self.recheck_role(view);
        let tickets: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| is_relay(&peer.ticket))
            .map(|(_, peer)| peer.ticket.clone())
            .collect();
        for ticket in &tickets {
            self.note_relay(ticket, view);
            if view.standing.state(ticket.id).is_some() {
                self.ways.server.handle_gone(ticket.id);
            }
        }
        let known: Vec<DeviceId> = self.ways.client.known().collect();
        for device in known {
            // One that was never met stays with its ticket: forgotten, it would be named anew and tried as if it
            // had not failed all along.
            let ticket = self.relay_tickets.get(&device);
            let holds = ticket.is_some_and(|ticket| {
                let recheck = view.trust.recheck_ticket(ticket, view.standing, view.now);
                recheck.is_ok() && view.standing.state(device).is_none()
            });
            if !holds {
                self.forget_relay(device, view.now.mono);
            }
        }
        self.drain_ways(view);
    }

    /// Every way to a device that memory and relays give.
    fn known_ways(&self, device: DeviceId) -> Vec<Path> {
        let memory = self.memories.get(device);
        let direct = memory.map(|m| m.endpoints.as_slice()).unwrap_or_default();
        let direct = direct.iter().copied().map(Path::direct);
        direct.chain(self.ways.client.paths_to(device)).collect()
    }

    /// Relays that a device is said to be registered with.
    pub(super) fn home_relays_of(&self, device: DeviceId) -> Vec<DeviceId> {
        let peer = self.peers.get(device).map(|p| p.relays.clone());
        let memory = self.memories.get(device);
        peer.filter(|relays| !relays.is_empty())
            .or_else(|| memory.map(|m| m.relays().to_vec()))
            .unwrap_or_default()
    }

    /// Asks for a peer again whose ways all fail, by every way there is.
    fn look_for_again(&mut self, device: DeviceId, view: View<'_>) {
        let Some(peer) = self.peers.get(device) else {
            return;
        };
        if self.asking.is_asking(device) {
            return;
        }
        let ticket = peer.ticket.clone();
        let mut endpoints: Vec<Path> = peer.endpoint.into_iter().collect();
        for way in self.known_ways(device) {
            if !endpoints.contains(&way) {
                endpoints.push(way);
            }
        }
        self.ask(ticket, endpoints, None, view);
    }

    fn say(&mut self, device: DeviceId, via: Option<Path>, bytes: Vec<u8>, measures_mtu: bool) {
        self.output
            .push_back(Output::Tunnel(TunnelOrder::SendMessage {
                device,
                via,
                bytes,
                measures_mtu,
            }));
    }

    /// Turns what the machines want into outputs, until none wants anything.
    pub(super) fn drain_ways(&mut self, view: View<'_>) {
        loop {
            if let Some(output) = self.ways.paths.poll() {
                self.path_output(output, view);
            } else if let Some(output) = self.ways.client.poll() {
                self.client_output(output, view);
            } else if let Some(output) = self.ways.server.poll() {
                self.server_output(output, view);
            } else if let Some(output) = self.ways.lookups.poll() {
                self.lookup_output(output, view);
            } else if !self.tend_links(view) {
                return;
            }
        }
    }

    fn path_output(&mut self, output: path::Output, view: View<'_>) {
        let now = view.now.mono;
        match output {
            path::Output::Send {
                device,
                via,
                bytes,
                measures_mtu,
            } => self.say(device, via, bytes, measures_mtu),
            path::Output::Move {
                device,
                from,
                to,
                why,
            } => self.path_moved(device, (from, to), why, view),
            path::Output::Mtu { device, mtu } => {
                let order = TunnelOrder::SetPathMtu { device, mtu };
                self.output.push_back(Output::Tunnel(order));
            }
            path::Output::Trouble { device } => {
                let hints = self.home_relays_of(device);
                self.ways.client.handle_stuck(device);
                self.ways.want(device, &hints, now);
            }
            path::Output::Lost { device } => {
                self.output.push_back(Output::PathLost { device });
                if self.ways.client.knows(device) {
                    self.ways.paths.handle_kept(device, false, now);
                    self.ways.client.handle_tunnel_lost(device, now);
                } else {
                    self.wanted_devices.insert(device);
                    self.look_up(PeerQuery::Device(device), view);
                }
            }
            path::Output::Back { device } => {
                if let Some((path, _)) = self.ways.paths.in_use(device)
                    && path.is_direct()
                {
                    self.ways.client.handle_tunnel(device, path.to, now);
                }
            }
            path::Output::Measured { device, round_trip } => {
                self.ways.client.handle_round_trip(device, round_trip);
            }
            path::Output::Relays { device, relays } => self.relays_told(device, relays, view),
        }
    }

    pub(super) fn path_moved(
        &mut self,
        device: DeviceId,
        (from, to): (Path, Path),
        why: path::Why,
        view: View<'_>,
    ) {
        let order = TunnelOrder::MovePeer { device, path: to };
        self.output.push_back(Output::Tunnel(order));
        self.output.push_back(Output::PathChanged {
            device,
            from,
            to,
            why,
        });
        self.peer_found_at(device, to);
        if self.ways.client.knows(device) && to.is_direct() {
            let client = &mut self.ways.client;
            client.handle_tunnel(device, to.to, view.now.mono);
        }
    }

    /// A peer says through which relays it is reached. Unknown ones are looked for while we lack some.
    fn relays_told(&mut self, device: DeviceId, relays: Vec<DeviceId>, view: View<'_>) {
        let lacks = self.ways.client.home().len() < relay::HOME_RELAYS;
        if lacks {
            let own = self.own.as_ref().map(super::Own::device);
            for relay in relays.iter().filter(|relay| Some(**relay) != own) {
                if !self.ways.client.knows(*relay) {
                    self.wanted_devices.insert(*relay);
                    self.look_up(PeerQuery::Device(*relay), view);
                }
            }
        }
        if let Some(peer) = self.peers.get_mut(device) {
            peer.relays.clone_from(&relays);
            self.remember_relays(device, &relays);
            self.ways.want(device, &relays, view.now.mono);
        }
    }

    fn client_output(&mut self, output: ClientOutput, view: View<'_>) {
        match output {
            ClientOutput::Ask { relay } => self.ask_relay(relay, view),
            ClientOutput::Home { relays } => {
                let now = view.now.mono;
                let known: Vec<DeviceId> = self.ways.client.known().collect();
                for relay in known {
                    let is_kept = relays.contains(&relay);
                    self.ways.paths.handle_kept(relay, is_kept, now);
                    if is_kept {
                        self.ways.meet_directly(relay, now);
                    }
                }
                self.ways.paths.handle_home_relays(relays.clone(), now);
                self.output.push_back(Output::HomeRelays { relays });
            }
            ClientOutput::Say { relay, bytes } => self.say(relay, None, bytes, false),
            ClientOutput::Suspect { relay } => {
                let now = view.now.mono;
                self.ways.paths.handle_silent(relay, Duration::ZERO, now);
            }
            // A relay at home wants us through another: its frames would come back the same way.
            ClientOutput::Opened { device, .. } if self.ways.client.home().contains(&device) => {}
            ClientOutput::Opened { device, path } => self.add_path(device, path, view),
            ClientOutput::Closed { device, paths } => {
                let now = view.now.mono;
                self.ways.paths.handle_closed(device, &paths, now);
            }
            ClientOutput::Moved { from, to } => {
                let now = view.now.mono;
                self.ways.paths.handle_relay_moved(from, to, now);
            }
        }
    }

    /// Gets a tunnel to a relay.
    fn ask_relay(&mut self, relay: DeviceId, view: View<'_>) {
        if self.peers.get(relay).is_some() {
            match self.ways.paths.in_use(relay) {
                Some((path, _)) if path.is_direct() => {
                    let now = view.now.mono;
                    let Ways { paths, client, .. } = &mut self.ways;
                    if paths.answers(relay) {
                        client.handle_tunnel(relay, path.to, now);
                    } else {
                        // It is probed; `Back` says when it answers.
                        paths.handle_kept(relay, true, now);
                        paths.handle_silent(relay, Duration::ZERO, now);
                    }
                }
                Some(_) | None => self.look_for_again(relay, view),
            }
        } else if self
            .memories
            .get(relay)
            .is_some_and(|m| !m.endpoints.is_empty())
        {
            self.ask_remembered(relay, view);
        } else {
            self.wanted_devices.insert(relay);
            self.look_up(PeerQuery::Device(relay), view);
        }
    }

    /// Uses a way that became known, for a session or for an introduction under way.
    pub(super) fn add_path(&mut self, device: DeviceId, path: Path, view: View<'_>) {
        let now = view.now.mono;
        if path.is_direct() {
            self.ways.paths.handle_link(device, path, now);
        } else {
            self.ways.paths.handle_known(device, &[path], now);
        }
        self.ask_by(device, path);
    }

    fn server_output(&mut self, output: ServerOutput, view: View<'_>) {
        match output {
            ServerOutput::Say { device, bytes } => {
                let has_tunnel = self.ways.paths.in_use(device).is_some();
                if !has_tunnel && self.ways.client.knows(device) {
                    // Another relay, with which no tunnel is kept: it gets one, and is told then.
                    self.ask_relay(device, view);
                } else if !has_tunnel && self.ways.server.asks(device) {
                    // A guest names a relay that nobody named here. The guest asks again, and by then it is known.
                    self.look_up(PeerQuery::Device(device), view);
                } else {
                    self.say(device, None, bytes, false);
                }
            }
            ServerOutput::Set { session, from, to } => {
                let order = TunnelOrder::SetRelay { session, from, to };
                self.output.push_back(Output::Tunnel(order));
            }
            ServerOutput::Forget { session } => {
                let order = TunnelOrder::ForgetRelay { session };
                self.output.push_back(Output::Tunnel(order));
            }
        }
    }

    fn lookup_output(&mut self, output: lookup::Output, view: View<'_>) {
        match output {
            lookup::Output::Say { device, bytes } => self.say(device, None, bytes, false),
            lookup::Output::Found { query, found } => {
                let resolved = Resolved {
                    ticket: found.ticket,
                    endpoints: found.endpoints,
                    relays: found.relays,
                };
                self.resolved_by_relay(query, resolved, view);
            }
            lookup::Output::Unknown { query } => self.nobody_knows(query, view),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_wants_no_way_to_its_guest_through_another_relay() {
        let (guest, other, now) = (DeviceId([1; 16]), DeviceId([2; 16]), Mono::ZERO);
        let mut ways = Ways::new(|| [7; 32]);
        ways.server.handle_role(true);
        let open = RelayMessage::Open {
            number: 1,
            sessions: Vec::new(),
        };
        ways.want(guest, &[], now);
        assert_eq!(ways.client.status().wants, 1, "nobody's guest yet");
        ways.server.handle_message(guest, false, open, now);
        ways.meet_directly(guest, now);
        ways.want(guest, &[], now);
        assert_eq!(ways.client.status().wants, 0);
        ways.want(other, &[], now);
        assert_eq!(ways.client.status().wants, 1);
    }

    #[test]
    fn a_relay_wants_no_way_around_to_whom_it_reaches_straight() {
        let (device, now) = (DeviceId([1; 16]), Mono::ZERO);
        let straight = Path::direct(Underlay("192.0.2.1:7117".parse().unwrap()));
        let mut ways = Ways::new(|| [7; 32]);
        ways.paths.handle_established(device, straight, now);
        ways.want(device, &[], now);
        assert_eq!(ways.client.status().wants, 1, "neither is a relay");
        ways.meet_directly(device, now);
        ways.paths.handle_serves(device, true, now);
        ways.want(device, &[], now);
        assert_eq!(ways.client.status().wants, 0);
        ways.paths.handle_silent(device, Duration::ZERO, now);
        ways.want(device, &[], now);
        assert_eq!(ways.client.status().wants, 1, "it does not answer");
    }
}
