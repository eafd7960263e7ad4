//! Looking after peers: set, renew, forget, remove.

use std::time::Duration;

use hedgerow_identity::Verified;
use hedgerow_identity::error::RefusedTicket;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{Binding, Ticket};
use hedgerow_model::{Mono, Now};

use super::ask::age;
use super::{CLOCK_AHEAD_MAX, IDLE_FORGET, KEY_OVERLAP, Mesh, PEERS_MAX, Timer, View};
use crate::memory::{ENDPOINTS_MAX, Memory};
use crate::output::{Output, Refusal, Removal};
use crate::peer::{Peer, Shown};

/// A peer is judged at least this often, so that a clock that jumped is noticed.
const JUDGE_EVERY: Duration = Duration::from_secs(3600);
/// When this little is left of what a peer in session was shown or showed, we introduce ourselves.
const RENEW_BEFORE: Duration = Duration::from_secs(6 * 3600);
/// Least time between two introductions for renewal.
const RENEW_EVERY: Duration = Duration::from_secs(3600);
/// Over how long peers are told of a new key; well below WireGuard's rekey interval.
const TELL_SPREAD: Duration = Duration::from_secs(10);
/// Over how long peers are told of new labels or addresses.
const TELL_AT_ONCE: Duration = Duration::from_millis(500);
/// The pause before a peer is told again that did not answer.
const TELL_AGAIN: Duration = Duration::from_secs(60);

impl Mesh {
    /// Makes a peer, or takes what is new about one. Nothing changes on `Err`.
    pub(super) fn install(
        &mut self,
        ticket: Verified<Ticket>,
        binding: Verified<Binding>,
        endpoint: Option<Path>,
        shown: Shown,
        view: View<'_>,
    ) -> Result<(), Refusal> {
        let device = ticket.id;
        self.check_claims(&ticket, &binding, view.now)?;
        self.make_room(device, view.now.mono)?;
        let state = view.standing.state(device);
        let now = view.now.mono;
        let before = self.peers.remove(device);
        let rotated = before
            .as_ref()
            .map(|peer| peer.binding.wireguard_key)
            .filter(|key| *key != binding.wireguard_key);
        let old_key = match (rotated, &before) {
            (Some(key), _) => Some((key, now + KEY_OVERLAP)),
            (None, before) => before.as_ref().and_then(|peer| peer.old_key),
        };
        let is_new = before.is_none();
        let unchanged = before
            .as_ref()
            .is_some_and(|peer| rotated.is_none() && peer.ticket.addresses == ticket.addresses);
        let peer = Peer {
            idle_since: before.as_ref().map_or(Some(now), |peer| peer.idle_since),
            endpoint: before.as_ref().and_then(|peer| peer.endpoint).or(endpoint),
            is_proven: before
                .as_ref()
                .is_some_and(|peer| peer.is_proven && rotated.is_none()),
            ticket,
            binding,
            old_key,
            shown,
            introduce_at: None,
            introduced_at: now,
            state,
            relays: before.map(|peer| peer.relays).unwrap_or_default(),
        };
        self.remember_peer(&peer, endpoint.filter(|_| is_new), true);
        self.gossip.handle_peer(&peer, now);
        let ticket = peer.ticket.clone();
        self.peers.insert(peer);
        self.note_relay(&ticket, view);
        // A peer without a session is tried where it answered.
        let is_lost = !is_new && self.ways.paths.in_use(device).is_none();
        let try_at = endpoint.filter(|_| is_new || is_lost);
        if !unchanged || (is_lost && try_at.is_some()) {
            self.set_peer(device, try_at);
        }
        self.plan(device, view.now);
        Ok(())
    }

    /// Refuses what contradicts what is known of this peer or of others.
    fn check_claims(&self, ticket: &Ticket, binding: &Binding, now: Now) -> Result<(), Refusal> {
        let device = ticket.id;
        let key = binding.wireguard_key;
        let own_key = self
            .own
            .as_ref()
            .map(|own| own.identity.binding.wireguard_key);
        let holder = self.peers.of_key(&key);
        if own_key == Some(key)
            || holder.is_some_and(|holder| holder != device)
            || self.revoked_keys.contains(&key)
        {
            return Err(Refusal::KeyTaken);
        }
        let own = self.own.as_ref().map(|own| own.identity.ticket.addresses);
        let taken = ticket.addresses.iter().any(|address| {
            let holder = self.peers.at_address(address);
            holder.is_some_and(|holder| holder != device)
                || own.is_some_and(|own| own.contains(address))
        });
        if taken {
            return Err(Refusal::AddressTaken);
        }
        let Some(peer) = self.peers.get(device) else {
            return Ok(());
        };
        if age(ticket) < age(&peer.ticket) {
            return Err(Refusal::SupersededTicket);
        }
        // A sequence from far in the future was taken while our clock could not tell.
        let latest = now.wall.secs().saturating_add(CLOCK_AHEAD_MAX.as_secs());
        let plausible = !now.wall_is_trusted || peer.binding.sequence <= latest;
        let other = key != peer.binding.wireguard_key;
        let (have, got) = (peer.binding.sequence, binding.sequence);
        if plausible && (got < have || (got == have && other)) {
            return Err(Refusal::SupersededBinding);
        }
        Ok(())
    }

    fn make_room(&mut self, device: DeviceId, now: Mono) -> Result<(), Refusal> {
        if self.peers.len() < PEERS_MAX || self.peers.get(device).is_some() {
            return Ok(());
        }
        let idle = self.peers.most_idle().ok_or(Refusal::Busy)?;
        self.remove_peer(idle, Removal::Displaced, now);
        Ok(())
    }

    /// Says what the tunnel should hold.
    pub(super) fn set_peer(&mut self, device: DeviceId, endpoint: Option<Path>) {
        if let Some(peer) = self.peers.get(device) {
            self.output.push_back(Output::SetPeer {
                device,
                wireguard_key: peer.binding.wireguard_key,
                addresses: peer.ticket.addresses,
                endpoint,
            });
        }
    }

    /// Writes a peer's record when it differs from the one written.
    fn remember_peer(&mut self, peer: &Peer, endpoint: Option<Path>, live: bool) {
        let device = peer.ticket.id;
        let before = self.memories.get(device);
        let mut memory = Memory {
            device,
            addresses: peer.ticket.addresses,
            introduction_key: peer.ticket.introduction_key,
            ticket: peer.ticket.bytes().to_vec(),
            endpoints: before
                .map(|memory| memory.endpoints.clone())
                .unwrap_or_default(),
            heard_ms: self.heard_from(&peer.ticket.introduction_key),
            live,
            relays: match peer.relays.is_empty() {
                true => before.and_then(|memory| memory.relays.clone()),
                false => Some(peer.relays.clone()),
            },
        };
        if let Some(Path { to, relay: None }) = endpoint
            && !to.is_loopback()
        {
            memory.found_at(to);
        }
        if memory.endpoints.is_empty() {
            // A relay met by a link alone: where somebody said that it is.
            let said = self.links.addresses(device).iter().take(ENDPOINTS_MAX);
            memory.endpoints = said.copied().collect();
        }
        if before != Some(&memory) {
            self.remember(memory);
        }
    }

    /// Removes a peer; its removal stands before everything else that is to do.
    pub(super) fn remove_peer(&mut self, device: DeviceId, reason: Removal, now: Mono) {
        let Some(peer) = self.peers.remove(device) else {
            return;
        };
        self.timers.clear(Timer::Peer(device));
        self.way_removed(device, now);
        self.gossip.handle_removed(device);
        match reason {
            Removal::Idle | Removal::Displaced | Removal::Unanswered => {
                self.memories.keep_key(peer.binding.wireguard_key, device);
                self.remember_peer(&peer, None, false);
            }
            Removal::NotAdmitted | Removal::Held | Removal::Expired => {
                self.remember_peer(&peer, None, false);
            }
            Removal::Revoked | Removal::Superseded | Removal::Distrusted | Removal::Ourselves => {
                if reason == Removal::Revoked {
                    self.give_up_keys(&peer);
                }
                self.forget(device);
            }
        }
        let addresses = peer.ticket.addresses;
        // What was still to be set for it must not bring it back.
        self.output
            .retain(|output| !matches!(output, Output::SetPeer { device: d, .. } if *d == device));
        self.removals.push_back(Output::RemovePeer {
            device,
            addresses,
            reason,
        });
        self.admit_again(device, now);
    }

    /// A session belongs to a device, and is made by whoever has the key: one that a revoked device has proven
    /// to have lets nobody in any more. A mere claim is no proof, or a device could put out others by naming
    /// their keys before it is revoked.
    fn give_up_keys(&mut self, peer: &Peer) {
        if peer.is_proven {
            self.revoked_keys.put(peer.binding.wireguard_key);
            if let Some((key, _)) = peer.old_key {
                self.revoked_keys.put(key);
            }
        }
    }

    pub(super) fn peer_established(&mut self, device: DeviceId, endpoint: Path, view: View<'_>) {
        let Some(peer) = self.peers.get_mut(device) else {
            return;
        };
        self.gossip.handle_session(&peer.ticket, view.now.mono);
        peer.endpoint = Some(endpoint);
        peer.is_proven = true;
        let stale = self.own.as_ref().is_some_and(|own| own.shown != peer.shown);
        if stale && peer.introduce_at.is_none() {
            peer.introduce_at = Some(view.now.mono + self.random.up_to(TELL_SPREAD));
        }
        self.peers.set_idle_since(device, None);
        self.peer_found_at(device, endpoint);
        self.plan(device, view.now);
        self.way_established(device, endpoint, view);
    }

    /// Notes where a peer is.
    pub(super) fn peer_found_at(&mut self, device: DeviceId, path: Path) {
        if let Some(peer) = self.peers.get_mut(device) {
            peer.endpoint = Some(path);
        }
        if let Some(memory) = self.memories.get(device) {
            let mut memory = memory.clone();
            let is_place = path.is_direct() && !path.to.is_loopback();
            let moved = is_place && memory.found_at(path.to);
            if moved || !memory.live {
                memory.live = true;
                self.remember(memory);
            }
        }
    }

    /// Notes through which relays a peer is reached.
    pub(super) fn remember_relays(&mut self, device: DeviceId, relays: &[DeviceId]) {
        if let Some(memory) = self.memories.get(device)
            && memory.relays() != relays
        {
            let mut memory = memory.clone();
            memory.relays = Some(relays.to_vec());
            self.remember(memory);
        }
    }

    pub(super) fn peer_idle(&mut self, device: DeviceId, view: View<'_>) {
        if let Some(peer) = self.peers.get(device) {
            let since = peer.idle_since.unwrap_or(view.now.mono);
            self.peers.set_idle_since(device, Some(since));
            self.gossip.handle_idle(device, view.now.mono);
            self.plan(device, view.now);
            self.way_ended(device, view.now.mono);
        }
    }

    /// Plans to tell peers what is new about ourselves. A ticket with the same facts and a
    /// later end waits for the next key, or for [`RENEW_BEFORE`].
    pub(super) fn tell_peers(&mut self, view: View<'_>) {
        let Some(shown) = self.own.as_ref().map(|own| own.shown) else {
            return;
        };
        let devices: Vec<DeviceId> = self.peers.iter().map(|(device, _)| device).collect();
        for device in devices {
            let Some(peer) = self.peers.get_mut(device) else {
                continue;
            };
            let spread = if peer.shown.epoch != shown.epoch {
                TELL_AT_ONCE
            } else if peer.shown.sequence != shown.sequence {
                TELL_SPREAD
            } else {
                continue;
            };
            peer.introduce_at = Some(view.now.mono + self.random.up_to(spread));
            self.plan(device, view.now);
        }
    }

    /// Plans another introduction to a peer that did not answer the last.
    pub(super) fn introduce_later(&mut self, device: DeviceId, now: Mono) {
        let pause = self.random.jitter(TELL_AGAIN);
        if let Some(peer) = self.peers.get_mut(device) {
            peer.introduce_at = Some(now + pause);
            self.timers.set(Timer::Peer(device), now + pause);
        }
    }

    /// Judges all peers by what is known now.
    pub(super) fn recheck_peers(&mut self, view: View<'_>) {
        let judged: Vec<(DeviceId, Option<Removal>)> = self
            .peers
            .iter()
            .map(|(device, peer)| (device, judge(peer, view)))
            .collect();
        for (device, removal) in judged {
            match removal {
                Some(reason) => self.remove_peer(device, reason, view.now.mono),
                None => self.ask_about_state(device, view),
            }
        }
    }

    /// Asks the policy again about a peer whose state changed.
    fn ask_about_state(&mut self, device: DeviceId, view: View<'_>) {
        let state = view.standing.state(device);
        let Some(peer) = self
            .peers
            .get_mut(device)
            .filter(|peer| peer.state != state)
        else {
            return;
        };
        peer.state = state;
        let ticket = peer.ticket.clone();
        self.output.push_back(Output::Admit { device, ticket });
    }

    /// Does what is due for one peer and plans what is next.
    pub(super) fn look_after(&mut self, device: DeviceId, view: View<'_>) {
        let now = view.now.mono;
        let Some(peer) = self.peers.get(device) else {
            return;
        };
        let idle = peer
            .idle_since
            .is_some_and(|since| now.since(since) >= IDLE_FORGET);
        let removal = judge(peer, view).or(idle.then_some(Removal::Idle));
        if let Some(reason) = removal {
            self.remove_peer(device, reason, view.now.mono);
            return;
        }
        if peer.old_key.is_some_and(|(_, until)| until <= now) && self.peers.forget_old_key(device)
        {
            self.output.push_back(Output::ForgetOldKey { device });
        }
        self.introduce_when_due(device, view);
        if !self.asking.is_asking(device) {
            self.plan(device, view.now);
        }
    }

    fn introduce_when_due(&mut self, device: DeviceId, view: View<'_>) {
        let now = view.now.mono;
        let Some(peer) = self.peers.get_mut(device) else {
            return;
        };
        let due = peer.introduce_at.is_some_and(|at| at <= now);
        let renew = peer.idle_since.is_none()
            && renewal(peer, view.now) <= now
            && !self.asking.is_asking(device);
        if !due && !renew {
            return;
        }
        peer.introduce_at = None;
        let ticket = peer.ticket.clone();
        let mut endpoints: Vec<Path> = peer.endpoint.into_iter().collect();
        if let Some(memory) = self.memories.get(device) {
            let remembered = memory.endpoints.iter().copied().map(Path::direct);
            let others: Vec<Path> = remembered.filter(|p| !endpoints.contains(p)).collect();
            endpoints.extend(others);
        }
        self.ask(ticket, endpoints, None, view);
    }

    /// Sets the peer's timer to the next moment at which something is to do.
    fn plan(&mut self, device: DeviceId, now: Now) {
        let Some(peer) = self.peers.get(device) else {
            return;
        };
        let ends = [peer.ticket.not_after_secs, peer.binding.not_after_secs];
        let in_session = peer.idle_since.is_none();
        let next = [
            peer.old_key.map(|(_, until)| until),
            peer.idle_since.map(|since| since + IDLE_FORGET),
            peer.introduce_at,
            in_session.then(|| renewal(peer, now)),
            ends.into_iter().filter_map(|end| mono_of(end, now)).min(),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(Mono::NEVER);
        let soonest = now.mono + Duration::from_millis(1);
        self.timers.set(
            Timer::Peer(device),
            next.min(now.mono + JUDGE_EVERY).max(soonest),
        );
    }
}

/// Returns why a peer must go, if it must.
fn judge(peer: &Peer, view: View<'_>) -> Option<Removal> {
    let refused: Result<(), RefusedTicket> =
        view.trust
            .recheck_ticket(&peer.ticket, view.standing, view.now);
    if let Err(refused) = refused {
        return Some(Removal::from(&refused));
    }
    if view.standing.state(peer.ticket.id) == Some(DeviceState::Held) {
        return Some(Removal::Held);
    }
    (peer.binding.not_after_secs < view.now.wall.secs()).then_some(Removal::Expired)
}

/// Returns when to introduce ourselves because something shown will end.
fn renewal(peer: &Peer, now: Now) -> Mono {
    let ends = [
        peer.ticket.not_after_secs,
        peer.binding.not_after_secs,
        peer.shown.ticket_end,
    ];
    let end = ends.into_iter().min().unwrap_or(u64::MAX);
    let early = mono_of(end.saturating_sub(RENEW_BEFORE.as_secs()), now).unwrap_or(now.mono);
    early.max(peer.introduced_at + RENEW_EVERY)
}

/// Returns the monotonic moment after a wall second; none when it has passed.
fn mono_of(secs: u64, now: Now) -> Option<Mono> {
    let left = secs.checked_add(1)?.checked_sub(now.wall.secs())?;
    Some(now.mono + Duration::from_secs(left)).filter(|at| *at > now.mono)
}
