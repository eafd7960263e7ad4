//! Which way datagrams go to each peer: candidates, probes, the best path, its replacement.
//!
//! ```text
//!  own addresses ─┐                                    ┌─▶ Send: probes, replies, candidates
//!  resolve, memory├─▶ routes of a peer ─▶ probes, cost ├─▶ Move: another path
//!  peer's list    │        ▲ replies, silence          ├─▶ Mtu: what the path carries
//!  relays ────────┘        │                           └─▶ Trouble, Lost
//!                      tunnel's reports
//! ```
//!
//! Everything travels inside the tunnel, so only the peer itself can answer a probe, name a candidate or
//! be heard from somewhere new. A probe says that a path works in both directions: its reply goes back
//! the way the probe came.
//!
//! # Invariants
//!
//! - A path is used only after its probe was answered in this session, or the tunnel's handshake came by it.
//! - A path that answers is never given up for one that does not.
//! - Idle peers cost nothing: probes follow traffic, except to relays.
//! - What silent peers cost is bounded, however many they are (`pace`).
//!
//! Start reading at [`Paths`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::{Prefix, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};
use hedgerow_model::path::Path;

use crate::random::Random;
use crate::timers::Timers;

mod candidates;
mod mtu;
mod pace;
mod peer;
mod route;
mod wire;

pub use candidates::Absurd;
pub use mtu::MTU_MIN;
pub use pace::{IDLE_LOST, IDLE_PROBES, WANTED_PROBES};
use peer::Peer;
pub use route::{
    LINK_REST_MAX, PUNCH_PAUSES, REST_MAX, REST_MIN, Standing, TIMEOUT_MAX, TIMEOUT_MIN,
};
pub use wire::{CANDIDATES_MAX, Candidates, PathMessage, Probe, RELAYS_MAX, Reply};

/// Most routes to one peer; a new one takes the place of one that rests, else it is left out.
pub const ROUTES_MAX: usize = 24;
/// Most own addresses as peers see them; the one confirmed longest ago goes first.
pub const OBSERVED_MAX: usize = 4;
/// Most own addresses that are known to have been seen; the one confirmed longest ago is forgotten first, and is
/// news again. Above [`OBSERVED_MAX`], for a NAT that maps by destination shows every peer another one.
pub const SEEN_MAX: usize = 64;
/// How long after its last packet a peer's paths are still looked after.
pub const ACTIVE_FOR: Duration = Duration::from_secs(90);
/// How often a NAT's mapping is kept open while there is traffic, and a relay's always.
pub const KEEP_EVERY: Duration = Duration::from_secs(20);
/// How often a second path is proven to work still.
pub const STANDBY_EVERY: Duration = Duration::from_secs(45);
/// Probes of a path under suspicion follow each other so fast.
pub const SUSPICION_EVERY: Duration = Duration::from_millis(40);
/// How long after its last packet a peer counts as one to which packets go; above the tunnel's interval of
/// saying so.
pub const WANTED_FOR: Duration = Duration::from_secs(10);
/// After so long without any path that answers, the parent is told.
pub const LOST_AFTER: Duration = Duration::from_secs(8);
/// The same of a relay that this device keeps: others wait for it.
pub const RELAY_LOST_AFTER: Duration = Duration::from_millis(400);
/// Probes that one peer is sent per second, and at once; beyond, only the path in use is probed. Far below
/// what the peer takes, who would drop the rest and so make paths look dead that are not.
pub const PROBES_PER_SECOND: crate::budget::Rate = crate::budget::Rate {
    per_second: 20,
    burst: 80,
};
/// Messages about paths that one peer may send per second, and at once.
pub const MESSAGES_PER_SECOND: crate::budget::Rate = crate::budget::Rate {
    per_second: 60,
    burst: 240,
};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Say this to a peer; `via` no path means by the one in use.
    Send {
        /// Which peer.
        device: DeviceId,
        /// By which path.
        via: Option<Path>,
        /// The message, padding included.
        bytes: Vec<u8>,
        /// The network must not cut it: it measures the path's MTU.
        measures_mtu: bool,
    },
    /// Use another path.
    Move {
        /// Which peer.
        device: DeviceId,
        /// The path before.
        from: Path,
        /// The path from now on.
        to: Path,
        /// Why.
        why: Why,
    },
    /// Packets to this peer may be so long; none: as long as the tunnel's.
    Mtu {
        /// Which peer.
        device: DeviceId,
        /// In bytes of an inner packet.
        mtu: Option<u16>,
    },
    /// The path in use does not answer or was taken back, and no other is known to work: more are wanted.
    /// Said again after pauses that grow, for as long as that is so.
    Trouble {
        /// Which peer.
        device: DeviceId,
    },
    /// No path answers.
    Lost {
        /// Which peer.
        device: DeviceId,
    },
    /// The round trip to a relay that this device keeps, when it was measured anew.
    Measured {
        /// Which relay.
        device: DeviceId,
        /// Smoothed.
        round_trip: Duration,
    },
    /// A path answers again, after [`Self::Lost`].
    Back {
        /// Which peer.
        device: DeviceId,
    },
    /// The peer says through which relays it may be reached, the best first.
    Relays {
        /// Which peer.
        device: DeviceId,
        /// Its home relays.
        relays: Vec<DeviceId>,
    },
}

/// Why a path was taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is better.
    Better,
    /// The one before does not answer.
    Dead,
    /// The peer found that the one before does not answer, and that this one does.
    Followed,
}

impl Why {
    /// Returns the stable spelling, for events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Dead => "dead",
            Self::Followed => "followed",
        }
    }
}

/// Why a message about paths was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// It is no such message.
    Malformed,
    /// The peer sends too many.
    Flood,
    /// A reply to no probe of ours, or one that came too late.
    Unasked,
    /// A list older than the last.
    Stale,
    /// No session lives with the peer, or it has no place.
    NoPeer,
    /// A candidate that leads nowhere sensible.
    Candidate(Absurd),
    /// The peer has as many routes as it may.
    RoutesFull,
}

impl Dropped {
    /// Returns the stable spelling, for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Flood => "flood",
            Self::Unasked => "unasked",
            Self::Stale => "stale",
            Self::NoPeer => "no_peer",
            Self::Candidate(absurd) => absurd.as_str(),
            Self::RoutesFull => "routes_full",
        }
    }
}

/// One route, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteStatus {
    /// The path.
    pub path: Path,
    /// Whether it is the one in use.
    pub in_use: bool,
    /// What is known of it.
    pub standing: Standing,
    /// Smoothed round trip.
    pub round_trip: Option<Duration>,
    /// Smoothed loss of probes.
    pub loss_permille: u32,
    /// What inner packets may be, when less than the tunnel's.
    pub mtu: Option<u16>,
}

/// What does not belong to one peer.
pub(crate) struct Common {
    /// Interface addresses and configured endpoints, with the mesh's port.
    local: Vec<Underlay>,
    /// As peers see us; the latest confirmed first, of which peers are told [`OBSERVED_MAX`].
    observed: VecDeque<Underlay>,
    overlay: Vec<Prefix>,
    home_relays: Vec<DeviceId>,
    /// Bytes of an inner packet that the tunnel takes.
    mtu: u16,
    generation: u64,
    random: Random,
    pace: pace::Pace,
    /// A peer sees this device elsewhere than before, by a way that did not change: so may all others.
    is_rebound: bool,
    dropped: BTreeMap<Dropped, u64>,
    output: VecDeque<Output>,
}

impl Common {
    fn drop(&mut self, why: Dropped) {
        *self.dropped.entry(why).or_default() += 1;
    }

    /// Sends a message; one above the bound of messages is never made here.
    fn send(&mut self, device: DeviceId, via: Option<Path>, message: &PathMessage) {
        if let Some(bytes) = message::encode(MessageKind::Path, &message.encode()) {
            self.output.push_back(Output::Send {
                device,
                via,
                bytes,
                measures_mtu: false,
            });
        }
    }

    /// Sends a message made as long as an inner packet of `size` bytes.
    fn send_padded(&mut self, device: DeviceId, via: Path, message: &PathMessage, size: u16) {
        if let Some(mut bytes) = message::encode(MessageKind::Path, &message.encode()) {
            bytes.resize(bytes.len().max(size.into()), 0);
            self.output.push_back(Output::Send {
                device,
                via: Some(via),
                bytes,
                measures_mtu: true,
            });
        }
    }

    fn token(&mut self) -> u64 {
        let bytes = self.random.bytes();
        bytes
            .first_chunk::<8>()
            .map_or(0, |eight| u64::from_be_bytes(*eight))
    }

    /// What peers are told: where this device may be reached.
    fn own_candidates(&self) -> Candidates {
        let mut addresses = self.local.clone();
        for seen in self.observed.iter().take(OBSERVED_MAX) {
            if !addresses.contains(seen) {
                addresses.push(*seen);
            }
        }
        addresses.truncate(CANDIDATES_MAX);
        let relays = self.home_relays.iter().copied().take(RELAYS_MAX);
        Candidates {
            generation: self.generation,
            addresses,
            relays: relays.collect(),
        }
    }

    /// Notes where a peer sees us. Returns whether that is new.
    fn observe(&mut self, seen: Underlay) -> bool {
        let known = self.observed.iter().position(|o| *o == seen);
        if let Some(known) = known {
            self.observed.remove(known);
        }
        self.observed.push_front(seen);
        self.observed.truncate(SEEN_MAX);
        let is_new = known.is_none() && !self.local.contains(&seen);
        self.generation += u64::from(is_new);
        is_new
    }
}

/// The paths to all peers with a session.
pub struct Paths {
    common: Common,
    /// In boxes: a third of the places in a map are empty.
    peers: BTreeMap<DeviceId, Box<Peer>>,
    timers: Timers<DeviceId>,
}

impl Paths {
    /// Begins without a peer. `mtu` is the tunnel's: the longest inner packet, in bytes.
    pub fn new(seed: [u8; 32], mtu: u16) -> Self {
        Self {
            common: Common {
                local: Vec::new(),
                observed: VecDeque::new(),
                overlay: Vec::new(),
                home_relays: Vec::new(),
                mtu,
                generation: 1,
                random: Random::new(seed),
                pace: pace::Pace::new(),
                is_rebound: false,
                dropped: BTreeMap::new(),
                output: VecDeque::new(),
            },
            peers: BTreeMap::new(),
            timers: Timers::new(),
        }
    }

    /// Takes the tunnel's MTU: the longest inner packet, in bytes.
    pub fn handle_mtu(&mut self, mtu: u16) {
        self.common.mtu = mtu;
    }

    /// Takes this device's addresses with the mesh's port, configured endpoints first; and the overlay's
    /// pools, where no path leads. When they changed, active peers are told and every path is tried
    /// again.
    pub fn handle_local_addresses(
        &mut self,
        mut addresses: Vec<Underlay>,
        pools: &[Prefix],
        now: Mono,
    ) {
        self.common.overlay = pools.to_vec();
        addresses.retain(|address| candidates::judge(*address, &[], pools).is_ok());
        addresses.truncate(CANDIDATES_MAX);
        if self.common.local == addresses {
            return;
        }
        self.common.local = addresses;
        self.common.observed.clear();
        self.common.generation += 1;
        self.each(now, |peer, common| {
            peer.network_changed(common, now);
        });
    }

    /// Takes through which relays this device is reached, the best first. Active peers are told.
    pub fn handle_home_relays(&mut self, relays: Vec<DeviceId>, now: Mono) {
        if self.common.home_relays != relays {
            self.common.home_relays = relays;
            self.common.generation += 1;
            self.each(now, |peer, common| peer.tell_candidates(common, now));
        }
    }

    /// A handshake with a peer is complete; its packets go by `path`.
    pub fn handle_established(&mut self, device: DeviceId, path: Path, now: Mono) {
        let peer = self.peers.entry(device);
        let peer = peer.or_insert_with(|| Box::new(Peer::new(device, path, now)));
        peer.established(path, &mut self.common, now);
        self.plan(device);
    }

    /// No session with the peer is left.
    pub fn handle_idle(&mut self, device: DeviceId) {
        self.timers.clear(device);
        self.peers.remove(&device);
    }

    /// The peer is a relay that this device keeps: its path is kept open and proven without traffic.
    pub fn handle_kept(&mut self, device: DeviceId, is_kept: bool, now: Mono) {
        self.one(device, |peer, common| peer.kept(is_kept, common, now));
    }

    /// One of the two is a relay: between them a straight path is worth much.
    pub fn handle_serves(&mut self, device: DeviceId, is_relay: bool, now: Mono) {
        self.one(device, |peer, common| {
            peer.serves(is_relay);
            peer.timeout(common, now);
        });
    }

    /// Packets go to or come from the peer: at most every few seconds.
    pub fn handle_active(&mut self, device: DeviceId, now: Mono) {
        self.one(device, |peer, common| peer.active(common, now));
    }

    /// Takes ways to a peer from resolve, memory or relays.
    pub fn handle_known(&mut self, device: DeviceId, paths: &[Path], now: Mono) {
        self.one(device, |peer, common| {
            for path in paths {
                peer.learn(*path, common, now);
            }
        });
    }

    /// Takes a way to a peer on this machine: a link that carries datagrams to a relay over TLS.
    pub fn handle_link(&mut self, device: DeviceId, path: Path, now: Mono) {
        self.one(device, |peer, common| peer.link(path, common, now));
    }

    /// A relay does not pass these sessions with the peer on any more. The one in use is left also without
    /// traffic: it may be closed because nobody is to send through that relay.
    pub fn handle_closed(&mut self, device: DeviceId, paths: &[Path], now: Mono) {
        self.one(device, |peer, common| peer.closed(paths, common, now));
    }

    /// Datagrams to the relay at `from` go to `to` from now on: routes through it go on there.
    pub fn handle_relay_moved(&mut self, from: Underlay, to: Underlay, now: Mono) {
        self.each(now, |peer, common| peer.relay_moved(from, to, common));
    }

    /// Data was sent to the peer and nothing came back for so long, or for longer than in the silence before
    /// when no data came between.
    pub fn handle_silent(&mut self, device: DeviceId, waited: Duration, now: Mono) {
        self.one(device, |peer, common| peer.silent(waited, common, now));
    }

    /// A packet or a message of the peer, which go by the path that it uses, came by this one.
    pub fn handle_spoken(&mut self, device: DeviceId, from: Path, now: Mono) {
        if self
            .in_use(device)
            .is_some_and(|(current, _)| current != from)
        {
            self.handle_heard(device, from, now);
        }
    }

    /// The peer's authentic packet came by another path than the one in use.
    pub fn handle_heard(&mut self, device: DeviceId, from: Path, now: Mono) {
        self.one(device, |peer, common| peer.heard(from, common, now));
    }

    /// Takes the content of a message of kind `Path`, `size` bytes long with its padding.
    pub fn handle_message(
        &mut self,
        device: DeviceId,
        from: Path,
        (content, size): (&[u8], usize),
        now: Mono,
    ) {
        let Some(peer) = self.peers.get_mut(&device) else {
            self.common.drop(Dropped::NoPeer);
            return;
        };
        if !peer.may_send(now) {
            self.common.drop(Dropped::Flood);
            return;
        }
        match PathMessage::decode(content) {
            Ok(message) => peer.message(&message, (from, size), &mut self.common, now),
            Err(_) => self.common.drop(Dropped::Malformed),
        }
        self.plan(device);
        if std::mem::take(&mut self.common.is_rebound) {
            self.each(now, |peer, common| peer.rebound(common, now));
        }
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Mono) {
        while let Some(device) = self.timers.due(now) {
            if let Some(peer) = self.peers.get_mut(&device) {
                peer.timeout(&mut self.common, now);
                let next = peer.deadline().max(now + Duration::from_millis(1));
                self.timers.set(device, next);
            }
        }
    }

    /// Returns the next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.common.output.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] has something to do.
    pub fn deadline(&self) -> Mono {
        self.timers.first().map_or(Mono::NEVER, |(at, _)| at)
    }

    /// Returns the path in use and its round trip, when one was measured.
    pub fn in_use(&self, device: DeviceId) -> Option<(Path, Option<Duration>)> {
        self.peers.get(&device).map(|peer| peer.in_use())
    }

    /// Returns whether a session lives and nothing says that its path is dead.
    pub fn answers(&self, device: DeviceId) -> bool {
        self.peers.get(&device).is_some_and(|peer| peer.answers())
    }

    /// Returns whether one of the two is a relay and a straight path between them answers.
    pub fn is_straight(&self, device: DeviceId) -> bool {
        self.peers
            .get(&device)
            .is_some_and(|peer| peer.is_straight())
    }

    /// Returns every route to a peer.
    pub fn routes(&self, device: DeviceId) -> Vec<RouteStatus> {
        let peer = self.peers.get(&device);
        peer.map(|p| p.routes(self.common.mtu)).unwrap_or_default()
    }

    /// Returns where this device may be reached, as peers are told.
    pub fn own_candidates(&self) -> Vec<Underlay> {
        self.common.own_candidates().addresses
    }

    /// Returns whether an address that somebody named may be another device's.
    pub fn may_lead(&self, address: Underlay) -> bool {
        candidates::judge(address, &self.common.local, &self.common.overlay).is_ok()
    }

    /// Returns how many messages and candidates were dropped, by reason.
    pub fn dropped(&self) -> &BTreeMap<Dropped, u64> {
        &self.common.dropped
    }

    fn one(&mut self, device: DeviceId, f: impl FnOnce(&mut Peer, &mut Common)) {
        if let Some(peer) = self.peers.get_mut(&device) {
            f(peer, &mut self.common);
            self.plan(device);
        }
    }

    fn each(&mut self, now: Mono, mut f: impl FnMut(&mut Peer, &mut Common)) {
        for (device, peer) in &mut self.peers {
            f(peer, &mut self.common);
            self.timers.set(*device, peer.deadline().max(now));
        }
    }

    fn plan(&mut self, device: DeviceId) {
        if let Some(peer) = self.peers.get(&device) {
            self.timers.set(device, peer.deadline());
        }
    }
}

#[cfg(test)]
mod tests;
