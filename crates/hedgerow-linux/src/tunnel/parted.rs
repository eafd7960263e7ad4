//! Pre-shared keys of peers that were removed and may come back under the same WireGuard key.
//!
//! The other side may still hold such a peer, and answer under the key that both agreed on: to have
//! forgotten it would shut the peer out until one of the two changes its WireGuard key.

use std::collections::BTreeMap;

use hedgerow_model::statement::X25519Public;

use super::peers::AgreedPsk;

/// Keys of removed peers whose agreements are kept; the one removed longest ago goes first.
pub(super) const PARTED_MAX: usize = 16_384;

/// The agreements, by the peer's key.
#[derive(Default)]
pub(super) struct Parted {
    by_key: BTreeMap<X25519Public, (u64, Vec<AgreedPsk>)>,
    by_age: BTreeMap<u64, X25519Public>,
    next: u64,
}

impl Parted {
    /// Keeps what was agreed under a key; nothing agreed is nothing kept.
    pub(super) fn keep(&mut self, key: X25519Public, agreed: Vec<AgreedPsk>) {
        if agreed.is_empty() {
            return;
        }
        drop(self.take(&key));
        if self.by_key.len() >= PARTED_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_key.remove(&oldest);
        }
        self.by_age.insert(self.next, key);
        self.by_key.insert(key, (self.next, agreed));
        self.next += 1;
    }

    /// Takes out what was agreed under a key.
    pub(super) fn take(&mut self, key: &X25519Public) -> Vec<AgreedPsk> {
        let Some((age, agreed)) = self.by_key.remove(key) else {
            return Vec::new();
        };
        self.by_age.remove(&age);
        agreed
    }
}
