//! The table of peers: found by device, by address, by key.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_identity::Verified;
use hedgerow_model::Mono;
use hedgerow_model::address::Overlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{Binding, Ticket, X25519Public};

/// Which of our statements a device was shown last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shown {
    pub(crate) epoch: u64,
    pub(crate) ticket_end: u64,
    pub(crate) sequence: u64,
}

impl Shown {
    pub(crate) fn of(ticket: &Ticket, binding: &Binding) -> Self {
        Self {
            epoch: ticket.epoch,
            ticket_end: ticket.not_after_secs,
            sequence: binding.sequence,
        }
    }
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) ticket: Verified<Ticket>,
    pub(crate) binding: Verified<Binding>,
    /// The key before, and when its overlap ends.
    pub(crate) old_key: Option<(X25519Public, Mono)>,
    /// Since when no session lives; absent while one does.
    pub(crate) idle_since: Option<Mono>,
    pub(crate) endpoint: Option<Path>,
    /// A session was made under its present key: it has that.
    pub(crate) is_proven: bool,
    pub(crate) shown: Shown,
    /// When to introduce ourselves again.
    pub(crate) introduce_at: Option<Mono>,
    /// When the last introduction succeeded.
    pub(crate) introduced_at: Mono,
    pub(crate) state: Option<DeviceState>,
    /// Relays through which it says it may be reached.
    pub(crate) relays: Vec<DeviceId>,
}

/// All peers. At most [`crate::PEERS_MAX`]; the machine makes room before it inserts.
#[derive(Default)]
pub(crate) struct Peers {
    /// In boxes: a third of the places in a map are empty.
    by_device: BTreeMap<DeviceId, Box<Peer>>,
    by_address: BTreeMap<Overlay, DeviceId>,
    by_key: BTreeMap<X25519Public, DeviceId>,
    by_idleness: BTreeSet<(Mono, DeviceId)>,
}

impl Peers {
    pub(crate) fn len(&self) -> usize {
        self.by_device.len()
    }

    pub(crate) fn get(&self, device: DeviceId) -> Option<&Peer> {
        self.by_device.get(&device).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, device: DeviceId) -> Option<&mut Peer> {
        self.by_device.get_mut(&device).map(Box::as_mut)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DeviceId, &Peer)> {
        let peers = self.by_device.iter();
        peers.map(|(device, peer)| (*device, peer.as_ref()))
    }

    pub(crate) fn at_address(&self, address: Overlay) -> Option<DeviceId> {
        self.by_address.get(&address).copied()
    }

    pub(crate) fn of_key(&self, key: &X25519Public) -> Option<DeviceId> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn insert(&mut self, peer: Peer) {
        let device = peer.ticket.id;
        drop(self.remove(device));
        for address in peer.ticket.addresses.iter() {
            self.by_address.insert(address, device);
        }
        self.by_key.insert(peer.binding.wireguard_key, device);
        if let Some((key, _)) = peer.old_key {
            self.by_key.insert(key, device);
        }
        self.by_idleness
            .extend(peer.idle_since.map(|since| (since, device)));
        self.by_device.insert(device, Box::new(peer));
    }

    /// Notes since when no session lives with a peer; none: one does.
    pub(crate) fn set_idle_since(&mut self, device: DeviceId, since: Option<Mono>) {
        if let Some(peer) = self.by_device.get_mut(&device) {
            let before = std::mem::replace(&mut peer.idle_since, since);
            if let Some(before) = before {
                self.by_idleness.remove(&(before, device));
            }
            self.by_idleness.extend(since.map(|since| (since, device)));
        }
    }

    pub(crate) fn remove(&mut self, device: DeviceId) -> Option<Peer> {
        let peer = self.by_device.remove(&device)?;
        for address in peer.ticket.addresses.iter() {
            self.by_address.remove(&address);
        }
        if let Some(since) = peer.idle_since {
            self.by_idleness.remove(&(since, device));
        }
        self.by_key.remove(&peer.binding.wireguard_key);
        if let Some((key, _)) = peer.old_key {
            self.by_key.remove(&key);
        }
        Some(*peer)
    }

    /// Returns whether nobody knows where a peer is: no session lives, and none ever did.
    pub(crate) fn is_lost(&self, device: DeviceId) -> bool {
        let peer = self.get(device);
        peer.is_some_and(|peer| peer.endpoint.is_none() && peer.idle_since.is_some())
    }

    /// Returns the peer that has been idle for longest.
    pub(crate) fn most_idle(&self) -> Option<DeviceId> {
        self.by_idleness.first().map(|(_, device)| *device)
    }

    /// Ends the overlap of a peer's two keys; returns whether there was one.
    pub(crate) fn forget_old_key(&mut self, device: DeviceId) -> bool {
        let old = self
            .by_device
            .get_mut(&device)
            .and_then(|peer| peer.old_key.take());
        old.is_some_and(|(key, _)| self.by_key.remove(&key).is_some())
    }
}
