//! Bounded tables that say at once what goes when they are full.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hedgerow_model::Mono;
use hedgerow_model::address::Overlay;
use hedgerow_model::statement::X25519Public;

use super::{HEARD_MAX, REVOKED_KEYS_MAX, UNREACHABLE_MAX};
use crate::output::Unreachable;

/// The newest timestamp of each introduction key; the oldest timestamp goes first.
#[derive(Default)]
pub(super) struct Heard {
    by_key: BTreeMap<X25519Public, u64>,
    by_time: BTreeSet<(u64, X25519Public)>,
}

impl Heard {
    pub(super) fn get(&self, key: &X25519Public) -> Option<u64> {
        self.by_key.get(key).copied()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn put(&mut self, key: X25519Public, ms: u64) {
        if let Some(before) = self.by_key.insert(key, ms) {
            self.by_time.remove(&(before, key));
        }
        self.by_time.insert((ms, key));
        if self.by_key.len() > HEARD_MAX
            && let Some((_, oldest)) = self.by_time.pop_first()
        {
            self.by_key.remove(&oldest);
        }
    }
}

/// WireGuard keys under which a device that is revoked by now had a session; the oldest goes first.
#[derive(Default)]
pub(super) struct RevokedKeys(VecDeque<X25519Public>);

impl RevokedKeys {
    pub(super) fn contains(&self, key: &X25519Public) -> bool {
        self.0.contains(key)
    }

    pub(super) fn put(&mut self, key: X25519Public) {
        if self.contains(&key) {
            return;
        }
        if self.0.len() >= REVOKED_KEYS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(key);
    }
}

/// Addresses that nobody can be reached at for a while; the one that ends first goes first.
#[derive(Default)]
pub(super) struct UnreachableTable {
    by_address: BTreeMap<Overlay, (Mono, Unreachable)>,
    by_end: BTreeSet<(Mono, Overlay)>,
}

impl UnreachableTable {
    pub(super) fn get(&self, address: Overlay, now: Mono) -> Option<Unreachable> {
        let (until, reason) = self.by_address.get(&address)?;
        (*until > now).then_some(*reason)
    }

    pub(super) fn put(&mut self, address: Overlay, until: Mono, reason: Unreachable) {
        self.remove(address);
        if self.by_address.len() >= UNREACHABLE_MAX
            && let Some((_, first)) = self.by_end.pop_first()
        {
            self.by_address.remove(&first);
        }
        self.by_address.insert(address, (until, reason));
        self.by_end.insert((until, address));
    }

    pub(super) fn remove(&mut self, address: Overlay) {
        if let Some((until, _)) = self.by_address.remove(&address) {
            self.by_end.remove(&(until, address));
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_address.clear();
        self.by_end.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_address.len()
    }
}
