//! The table of peers: who they are, found by device, address, key and session index.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::OverlayAddresses;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::statement::X25519Public;

use super::core::PEERS_MAX;
use super::limits::cookie_is_fresh;
use super::mac::Cookie;
use super::noise::{Initiator, Timestamp};
use super::parted::Parted;
use super::session::Session;
use super::timers::{PERSISTENT_KEEPALIVE_MIN, REJECT_AFTER_TIME};
use super::waiting::Queue;
use super::{
    PeerConfig, PeerRefusal, PeerStatus, PresharedKey, PskSlot, Roaming, SILENT_MIN, Secrecy, Slot,
};

/// How long after its last packet a peer is one that somebody here sends to; twice the interval at which that
/// is noted.
const WANTED_FOR: Duration = Duration::from_secs(10);

/// A peer's key with what is remembered about it.
pub(super) struct RemoteKey {
    pub(super) public: X25519Public,
    /// Mixed into handshakes under this key.
    pub(super) psk: Option<PresharedKey>,
    /// What was mixed in before, until a session lives under `psk`: the peer may not have it yet.
    pub(super) former_psk: Option<Option<PresharedKey>>,
    /// Agreed for this key and one of ours, the newest first; they come before `psk`.
    agreed: Vec<AgreedPsk>,
    /// Of the last initiation accepted under this key.
    pub(super) last_timestamp: Option<Timestamp>,
    /// When it came.
    pub(super) last_initiation: Option<Mono>,
    cookie: Option<(Cookie, Mono)>,
}

/// Of our newest key and the one before.
const AGREED_MAX: usize = 2;

/// The pre-shared keys of one pair of keys.
pub(super) struct AgreedPsk {
    /// Ours.
    local: X25519Public,
    used: Option<PresharedKey>,
    /// Accepted as well; `Some(None)` accepts that there is none.
    other: Option<Option<PresharedKey>>,
    /// Whether `other` is to be used next, and not what was used before.
    other_is_newer: bool,
}

impl AgreedPsk {
    fn set(&mut self, psk: PresharedKey, slot: PskSlot) {
        let is_used = self
            .used
            .as_ref()
            .is_some_and(|u| u.expose() == psk.expose());
        match slot {
            _ if is_used => {}
            PskSlot::Accepted => {
                self.other = Some(Some(psk));
                self.other_is_newer = true;
            }
            PskSlot::Used => {
                self.other = Some(self.used.replace(psk));
                self.other_is_newer = false;
            }
        }
    }
}

impl RemoteKey {
    fn new(public: X25519Public, psk: Option<PresharedKey>) -> Self {
        Self {
            public,
            psk,
            former_psk: None,
            agreed: Vec::new(),
            last_timestamp: None,
            last_initiation: None,
            cookie: None,
        }
    }

    /// Sets the pre-shared key; the one before stays beside it.
    pub(super) fn set_psk(&mut self, psk: Option<PresharedKey>) {
        let is_same = match (&self.psk, &psk) {
            (Some(old), Some(new)) => old.expose() == new.expose(),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if psk.is_none() {
            self.former_psk = None;
        } else if !is_same {
            self.former_psk = Some(self.psk.take());
        }
        self.psk = psk;
    }

    /// Puts a pre-shared key agreed for this key and `local` into a slot.
    pub(super) fn set_agreed(&mut self, local: X25519Public, psk: PresharedKey, slot: PskSlot) {
        let known = self.agreed.iter().position(|a| a.local == local);
        let mut entry = known.map_or_else(
            || AgreedPsk {
                local,
                used: self.psk.clone(),
                other: None,
                other_is_newer: false,
            },
            |place| self.agreed.remove(place),
        );
        entry.set(psk, slot);
        self.agreed.reserve_exact(1);
        self.agreed.insert(0, entry);
        self.agreed.truncate(AGREED_MAX);
    }

    fn agreed(&self, local: &X25519Public) -> Option<&AgreedPsk> {
        self.agreed.iter().find(|a| a.local == *local)
    }

    /// What handshakes with our key `local` are made with.
    pub(super) fn psk(&self, local: &X25519Public) -> Option<&PresharedKey> {
        match self.agreed(local) {
            Some(agreed) => agreed.used.as_ref(),
            None => self.psk.as_ref(),
        }
    }

    /// What a response to our key `local` may have been made with: what is used, then the other.
    pub(super) fn psks(&self, local: &X25519Public) -> Vec<Option<PresharedKey>> {
        let (used, other) = match self.agreed(local) {
            Some(agreed) => (&agreed.used, &agreed.other),
            None => (&self.psk, &self.former_psk),
        };
        std::iter::once(used.clone()).chain(other.clone()).collect()
    }

    /// The peer answered under the one at `place` of [`Self::psks`]. When that is one we only accepted,
    /// both have it now.
    pub(super) fn answered(&mut self, local: &X25519Public, place: usize) {
        let agreed = self.agreed.iter_mut().find(|a| a.local == *local);
        if let Some(agreed) = agreed.filter(|a| place > 0 && a.other_is_newer) {
            agreed.used = agreed.other.take().flatten();
            agreed.other_is_newer = false;
        }
    }

    /// A session lives under what is used: there is no way back to what was used before.
    pub(super) fn forget_former(&mut self, local: &X25519Public) {
        match self.agreed.iter_mut().find(|a| a.local == *local) {
            Some(agreed) if agreed.other_is_newer => {}
            Some(agreed) => agreed.other = None,
            None => self.former_psk = None,
        }
    }

    pub(super) fn cookie(&self, now: Mono) -> Option<&Cookie> {
        let (cookie, at) = self.cookie.as_ref()?;
        cookie_is_fresh(*at, now).then_some(cookie)
    }

    pub(super) fn set_cookie(&mut self, cookie: Cookie, now: Mono) {
        self.cookie = Some((cookie, now));
    }
}

/// A handshake we began.
pub(super) struct Handshake {
    /// `None` when the last attempt could not be made.
    pub(super) state: Option<Initiator>,
    pub(super) own_index: u32,
    /// Our key of this attempt.
    pub(super) local: X25519Public,
    /// The peer's.
    pub(super) remote: X25519Public,
    pub(super) attempts: usize,
    pub(super) retry_at: Mono,
    pub(super) give_up_at: Mono,
    /// Responses that did not decrypt, in this attempt.
    pub(super) forgeries: u32,
}

/// The last handshake message we sent, which a cookie reply answers.
pub(super) struct SentMac {
    pub(super) own_index: u32,
    pub(super) mac1: [u8; 16],
    pub(super) remote: X25519Public,
}

/// Up to four sessions overlap.
#[derive(Default)]
pub(super) struct Sessions {
    /// In use.
    pub(super) current: Option<Box<Session>>,
    /// The ones before, newest first: packets on the way are still opened. Two, because when both
    /// peers begin a handshake at once, two sessions follow each other at once.
    pub(super) previous: [Option<Box<Session>>; 2],
    /// We responded; used once the peer has.
    pub(super) next: Option<Box<Session>>,
}

impl Sessions {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        let [newer, older] = &self.previous;
        let all = [&self.current, &self.next, newer, older];
        all.into_iter().filter_map(|s| s.as_deref())
    }

    /// Those that the peer is known to have. Of one that we responded to, it may never hear: our response may
    /// have gone to where it is not any more.
    pub(super) fn proven(&self) -> impl Iterator<Item = &Session> {
        let [newer, older] = &self.previous;
        let all = [&self.current, newer, older];
        all.into_iter().filter_map(|s| s.as_deref())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(super) fn by_index(&mut self, index: u32) -> Option<&mut Session> {
        self.slots()
            .filter_map(|s| s.as_deref_mut())
            .find(|s| s.agreed.own_index == index)
    }

    /// Uses `new` from now on; returns the session that is forgotten for it.
    pub(super) fn advance(&mut self, new: Option<Box<Session>>) -> Option<Box<Session>> {
        let old = std::mem::replace(&mut self.current, new)?;
        let [newer, older] = &mut self.previous;
        std::mem::replace(older, newer.replace(old))
    }

    /// Drops the sessions that are older than they may be; returns their indexes.
    pub(super) fn expire(&mut self, now: Mono) -> Vec<u32> {
        self.slots()
            .filter_map(|s| s.take_if(|s| s.age(now) >= REJECT_AFTER_TIME))
            .map(|s| s.agreed.own_index)
            .collect()
    }

    /// Drops those that the peer has left for the one in use; returns their indexes.
    pub(super) fn drop_left(&mut self) -> Vec<u32> {
        let Some(current) = self.current.as_deref() else {
            return Vec::new();
        };
        let left = |slot: &mut Option<Box<Session>>| slot.take_if(|s| current.has_replaced(s));
        let gone = self.previous.iter_mut().filter_map(left);
        gone.map(|s| s.agreed.own_index).collect()
    }

    fn slots(&mut self) -> impl Iterator<Item = &mut Option<Box<Session>>> {
        let [newer, older] = &mut self.previous;
        [&mut self.current, &mut self.next, newer, older].into_iter()
    }

    pub(super) fn next_is(&self, index: u32) -> bool {
        self.next
            .as_ref()
            .is_some_and(|s| s.agreed.own_index == index)
    }
}

/// When something is due; `None` is never.
#[derive(Default)]
pub(super) struct Due {
    /// An answer to data we sent; without it the session is dead.
    pub(super) reply: Option<Mono>,
    /// An answer to data we sent; without it the path may be dead.
    pub(super) silent: Option<Mono>,
    /// A keepalive, unless we send something before.
    pub(super) keepalive: Option<Mono>,
    /// A keepalive that holds a NAT's mapping open.
    pub(super) persistent: Option<Mono>,
}

/// A peer.
pub(super) struct Peer {
    pub(super) device: DeviceId,
    pub(super) addresses: OverlayAddresses,
    pub(super) endpoint: Option<Path>,
    pub(super) secrecy: Secrecy,
    pub(super) roaming: Roaming,
    /// Longest inner packet to it, where that is less than the tunnel's.
    pub(super) mtu: Option<u16>,
    /// When it was last reported to be heard from elsewhere.
    pub(super) heard_at: Option<Mono>,
    /// When it was last reported that packets are exchanged.
    pub(super) active_at: Option<Mono>,
    /// The silence that is reported next.
    pub(super) silent_after: Duration,
    /// Packets sent into it.
    pub(super) unanswered: u8,
    pub(super) current_key: Option<Box<RemoteKey>>,
    pub(super) previous_key: Option<Box<RemoteKey>>,
    pub(super) keepalive: Option<Duration>,
    pub(super) sessions: Sessions,
    pub(super) handshake: Option<Box<Handshake>>,
    /// Until the handshake is complete.
    pub(super) last_mac: Option<Box<SentMac>>,
    pub(super) waiting: Queue,
    pub(super) due: Due,
    /// When the table of timers looks at this peer next.
    pub(super) timer: Mono,
    pub(super) last_received: Option<Mono>,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

impl Peer {
    fn new(config: &PeerConfig) -> Self {
        Self {
            device: config.device,
            addresses: config.addresses,
            endpoint: None,
            secrecy: config.secrecy,
            roaming: config.roaming,
            mtu: None,
            heard_at: None,
            active_at: None,
            silent_after: SILENT_MIN,
            unanswered: 0,
            current_key: None,
            previous_key: None,
            keepalive: None,
            sessions: Sessions::default(),
            handshake: None,
            last_mac: None,
            waiting: Queue::default(),
            due: Due::default(),
            timer: Mono::NEVER,
            last_received: None,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    pub(super) fn key(&self, public: &X25519Public) -> Option<&RemoteKey> {
        let keys = [self.current_key.as_deref(), self.previous_key.as_deref()];
        keys.into_iter().flatten().find(|k| k.public == *public)
    }

    pub(super) fn key_mut(&mut self, public: &X25519Public) -> Option<&mut RemoteKey> {
        let keys = [
            self.current_key.as_deref_mut(),
            self.previous_key.as_deref_mut(),
        ];
        keys.into_iter().flatten().find(|k| k.public == *public)
    }

    /// Returns whether somebody here sends to it.
    pub(super) fn is_wanted(&self, now: Mono) -> bool {
        let lately = |at: Mono| now.since(at) < WANTED_FOR;
        self.waiting.len() > 0 || self.due.silent.is_some() || self.active_at.is_some_and(lately)
    }

    /// Returns the session that can send a message of our agent now.
    pub(super) fn sender(&mut self, now: Mono) -> Option<&mut Session> {
        self.sessions
            .current
            .as_deref_mut()
            .filter(|s| s.lives(now))
    }

    /// Returns the session that can send a packet now: where a pre-shared key is required, the newest
    /// that has one, so that a new key of the peer costs no packet.
    pub(super) fn packet_sender(&mut self, now: Mono) -> Option<&mut Session> {
        let secrecy = self.secrecy;
        let [newer, older] = &mut self.sessions.previous;
        let current = &mut self.sessions.current;
        match secrecy {
            Secrecy::Classical => current.as_deref_mut().filter(|s| s.lives(now)),
            Secrecy::PostQuantum => [current, newer, older]
                .into_iter()
                .filter_map(|s| s.as_deref_mut())
                .find(|s| s.agreed.psk && s.lives(now)),
        }
    }

    pub(super) fn status(&self, now: Mono) -> PeerStatus {
        let session = self.sessions.current.as_ref().filter(|s| s.lives(now));
        PeerStatus {
            device: self.device,
            endpoint: self.endpoint,
            psk: session.is_some_and(|s| s.agreed.psk),
            session_age: session.map(|s| s.age(now)),
            last_received: self.last_received.map(|at| now.since(at)),
            received_bytes: self.received_bytes,
            sent_bytes: self.sent_bytes,
            waiting_packets: self.waiting.len(),
        }
    }

    /// Returns when [`super::core::Core`] has to look at this peer again.
    pub(super) fn deadline(&self) -> Mono {
        let handshake = self
            .handshake
            .as_ref()
            .map(|h| h.retry_at.min(h.give_up_at));
        let sessions = self
            .sessions
            .iter()
            .map(|s| s.agreed.born + REJECT_AFTER_TIME);
        [
            handshake,
            self.due.reply,
            self.due.silent,
            self.due.keepalive,
            self.due.persistent,
        ]
        .into_iter()
        .flatten()
        .chain(sessions)
        .min()
        .unwrap_or(Mono::NEVER)
    }
}

/// What [`Peers::set`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) place: u32,
    /// There is a newer key than the sessions'.
    pub(super) has_new_key: bool,
    /// The endpoint is another.
    pub(super) has_new_endpoint: bool,
}

/// All peers. A place is a small number that stays a peer's while it is set.
#[derive(Default)]
pub(super) struct Peers {
    places: Vec<Option<Box<Peer>>>,
    free: Vec<u32>,
    by_device: BTreeMap<DeviceId, u32>,
    by_address: HashMap<IpAddr, u32>,
    by_key: HashMap<X25519Public, u32>,
    by_index: HashMap<u32, u32>,
    parted: Parted,
}

impl Peers {
    pub(super) fn get(&self, place: u32) -> Option<&Peer> {
        self.places.get(usize::try_from(place).ok()?)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Peer> {
        self.places
            .get_mut(usize::try_from(place).ok()?)?
            .as_deref_mut()
    }

    pub(super) fn by_device(&self, device: &DeviceId) -> Option<u32> {
        self.by_device.get(device).copied()
    }

    pub(super) fn by_address(&self, address: &IpAddr) -> Option<u32> {
        self.by_address.get(address).copied()
    }

    pub(super) fn by_key(&self, key: &X25519Public) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(super) fn by_index(&self, index: u32) -> Option<u32> {
        self.by_index.get(&index).copied()
    }

    pub(super) fn list(&self, now: Mono) -> Vec<PeerStatus> {
        let places = self.by_device.values();
        places
            .filter_map(|place| self.get(*place))
            .map(|peer| peer.status(now))
            .collect()
    }

    /// Gives `index` to a session or handshake of the peer at `place`; `false` when it is taken.
    pub(super) fn claim_index(&mut self, index: u32, place: u32) -> bool {
        match self.by_index.entry(index) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(place);
                true
            }
        }
    }

    pub(super) fn free_index(&mut self, index: u32) {
        self.by_index.remove(&index);
    }

    /// Adds or changes a peer. Refused wholly or done wholly.
    pub(super) fn set(&mut self, config: &PeerConfig, now: Mono) -> Result<Changed, PeerRefusal> {
        let known = self.by_device(&config.device);
        for address in config.addresses.iter() {
            if let Some(holder) = self.other(self.by_address(&address.0), known) {
                return Err(PeerRefusal::AddressTaken(address, holder));
            }
        }
        if let Some(holder) = self.other(self.by_key(&config.public_key), known) {
            return Err(PeerRefusal::KeyTaken(holder));
        }
        let place = match known {
            Some(place) => place,
            None => self.add(Peer::new(config))?,
        };
        self.set_addresses(place, config.addresses);
        let had = self.newest_key(place);
        self.set_key(place, config);
        let has_new_key = self.newest_key(place) != had && had.is_some();
        let has_new_endpoint = self.set_rest(place, config, now);
        Ok(Changed {
            place,
            has_new_key,
            has_new_endpoint,
        })
    }

    pub(super) fn forget_key(&mut self, place: u32, slot: Slot) {
        let Some(peer) = self.get_mut(place) else {
            return;
        };
        let gone = match slot {
            Slot::Current => peer.current_key.take(),
            Slot::Previous => peer.previous_key.take(),
        };
        if let Some(gone) = gone {
            self.by_key.remove(&gone.public);
        }
    }

    pub(super) fn remove(&mut self, device: &DeviceId) -> Option<(u32, Box<Peer>)> {
        let place = self.by_device.remove(device)?;
        let mut peer = self.places.get_mut(usize::try_from(place).ok()?)?.take()?;
        for address in peer.addresses.iter() {
            self.by_address.remove(&address.0);
        }
        for key in [&mut peer.current_key, &mut peer.previous_key]
            .into_iter()
            .flatten()
        {
            self.by_key.remove(&key.public);
            self.parted
                .keep(key.public, std::mem::take(&mut key.agreed));
        }
        for session in peer.sessions.iter() {
            self.by_index.remove(&session.agreed.own_index);
        }
        if let Some(handshake) = &peer.handshake {
            self.by_index.remove(&handshake.own_index);
        }
        self.free.push(place);
        Some((place, peer))
    }

    fn other(&self, holder: Option<u32>, known: Option<u32>) -> Option<DeviceId> {
        let holder = holder.filter(|h| Some(*h) != known)?;
        self.get(holder).map(|peer| peer.device)
    }

    fn newest_key(&self, place: u32) -> Option<X25519Public> {
        Some(self.get(place)?.current_key.as_ref()?.public)
    }

    fn add(&mut self, peer: Peer) -> Result<u32, PeerRefusal> {
        if self.by_device.len() >= PEERS_MAX {
            return Err(PeerRefusal::TooMany);
        }
        let device = peer.device;
        let place = match self.free.pop() {
            Some(place) => {
                let at = usize::try_from(place).map_err(|_e| PeerRefusal::TooMany)?;
                if let Some(slot) = self.places.get_mut(at) {
                    *slot = Some(Box::new(peer));
                }
                place
            }
            None => {
                let place = u32::try_from(self.places.len()).map_err(|_e| PeerRefusal::TooMany)?;
                self.places.push(Some(Box::new(peer)));
                place
            }
        };
        self.by_device.insert(device, place);
        Ok(place)
    }

    fn set_addresses(&mut self, place: u32, addresses: OverlayAddresses) {
        let Some(peer) = self.get_mut(place) else {
            return;
        };
        let old = std::mem::replace(&mut peer.addresses, addresses);
        for address in old.iter() {
            self.by_address.remove(&address.0);
        }
        for address in addresses.iter() {
            self.by_address.insert(address.0, place);
        }
    }

    fn set_key(&mut self, place: u32, config: &PeerConfig) {
        let is_new = self
            .get(place)
            .is_some_and(|p| p.key(&config.public_key).is_none());
        let agreed = match is_new {
            true => self.parted.take(&config.public_key),
            false => Vec::new(),
        };
        let Some(peer) = self.get_mut(place) else {
            return;
        };
        if config.slot == Slot::Current
            && peer.previous_key.as_ref().map(|k| k.public) == Some(config.public_key)
        {
            std::mem::swap(&mut peer.current_key, &mut peer.previous_key);
        }
        if let Some(key) = peer.key_mut(&config.public_key) {
            if config.psk.is_some() {
                key.set_psk(config.psk.clone());
            }
            return;
        }
        let mut key = RemoteKey::new(config.public_key, config.psk.clone());
        key.agreed = agreed;
        let key = Some(Box::new(key));
        let gone = match config.slot {
            Slot::Current => {
                let old = std::mem::replace(&mut peer.current_key, key);
                match old {
                    Some(old) => peer.previous_key.replace(old),
                    None => None,
                }
            }
            Slot::Previous => std::mem::replace(&mut peer.previous_key, key),
        };
        if let Some(gone) = gone {
            self.by_key.remove(&gone.public);
        }
        self.by_key.insert(config.public_key, place);
    }

    /// Sets endpoint and keepalive; returns whether the endpoint is another.
    fn set_rest(&mut self, place: u32, config: &PeerConfig, now: Mono) -> bool {
        let Some(peer) = self.get_mut(place) else {
            return false;
        };
        (peer.secrecy, peer.roaming) = (config.secrecy, config.roaming);
        peer.keepalive = config.keepalive.map(|k| k.max(PERSISTENT_KEEPALIVE_MIN));
        peer.due.persistent = peer.keepalive.map(|interval| now + interval);
        let lives = |s: &Session| s.lives(now) && s.agreed.remote == config.public_key;
        match config.endpoint {
            Some(new) if !peer.sessions.proven().any(lives) => {
                peer.endpoint.replace(new) != Some(new)
            }
            Some(_) | None => false,
        }
    }
}
