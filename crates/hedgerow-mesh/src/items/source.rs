//! What one live peer is told, offers, and is being asked for.

use std::collections::BTreeMap;

use hedgerow_model::Mono;
use hedgerow_model::id::Revision;

use super::kind::ItemKey;
use super::wire::{ENTRIES_MAX, Entry};
use super::{
    Bucket, CHECKS, ItemRefusal, MESSAGES, OFFERS_MAX, PIECES, REPEAT_AFTER, TELLINGS, TELLINGS_MAX,
};

/// An announcement of a peer that was not pulled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) entry: Entry,
}

/// A body on its way.
pub(super) struct Pull {
    pub(super) entry: Entry,
    /// From the beginning, without a gap.
    pub(super) bytes: Vec<u8>,
    /// Pieces that overtook others, by where they begin; within what was asked for.
    pub(super) early: BTreeMap<usize, Vec<u8>>,
    /// Up to where pieces were asked for.
    pub(super) asked: usize,
    pub(super) tries: u32,
    /// When the last piece came, or the pull began.
    pub(super) progress_at: Mono,
}

struct Telling {
    due: Mono,
    sent: u32,
}

/// One live peer.
pub(super) struct Source {
    pub(super) is_relay: bool,
    tellings: BTreeMap<ItemKey, Telling>,
    offers: BTreeMap<ItemKey, Offer>,
    pub(super) pull: Option<Box<Pull>>,
    pub(super) messages: Bucket,
    pub(super) pieces: Bucket,
    pub(super) checks: Bucket,
    pub(super) distrusted_until: Mono,
}

impl Source {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            is_relay: false,
            tellings: BTreeMap::new(),
            offers: BTreeMap::new(),
            pull: None,
            messages: Bucket::full(MESSAGES, now),
            pieces: Bucket::full(PIECES, now),
            checks: Bucket::full(CHECKS, now),
            distrusted_until: Mono::ZERO,
        }
    }

    /// Plans to announce an item. When too many wait, one that is not urgent makes room for an urgent
    /// one, and another is left to the next digest.
    pub(super) fn tell(&mut self, key: ItemKey, due: Mono) {
        let is_full = self.tellings.len() >= TELLINGS_MAX && !self.tellings.contains_key(&key);
        if is_full {
            let idle = self
                .tellings
                .keys()
                .find(|k| !k.kind().is_urgent())
                .copied();
            match idle.filter(|_| key.kind().is_urgent()) {
                Some(idle) => drop(self.tellings.remove(&idle)),
                None => return,
            }
        }
        self.tellings.insert(key, Telling { due, sent: 0 });
    }

    pub(super) fn next_telling(&self) -> Mono {
        let due = self.tellings.values().map(|telling| telling.due);
        due.min().unwrap_or(Mono::NEVER)
    }

    /// Takes what is due, at most one announcement full. Urgent items come again until they were heard of.
    pub(super) fn due_tellings(&mut self, now: Mono) -> Vec<ItemKey> {
        // The urgent kinds stand first in the order of keys.
        let due: Vec<ItemKey> = self
            .tellings
            .iter()
            .filter(|(_, telling)| telling.due <= now)
            .map(|(key, _)| *key)
            .take(ENTRIES_MAX)
            .collect();
        for key in &due {
            let again = self
                .tellings
                .get_mut(key)
                .filter(|t| key.kind().is_urgent() && t.sent + 1 < TELLINGS);
            match again {
                Some(telling) => {
                    telling.due = now + REPEAT_AFTER * 2u32.saturating_pow(telling.sent);
                    telling.sent += 1;
                }
                None => drop(self.tellings.remove(key)),
            }
        }
        give_back(&mut self.tellings);
        due
    }

    /// The peer has it: it need not be told.
    pub(super) fn forget_telling(&mut self, key: ItemKey) {
        self.tellings.remove(&key);
        give_back(&mut self.tellings);
    }

    pub(super) fn offer(&mut self, offer: Offer) -> Result<(), ItemRefusal> {
        let key = offer.entry.key;
        if self
            .pull
            .as_ref()
            .is_some_and(|pull| pull.entry == offer.entry)
        {
            return Ok(());
        }
        if self.offers.len() >= OFFERS_MAX && !self.offers.contains_key(&key) {
            let idle = self.offers.keys().rev().find(|k| !k.kind().is_urgent());
            match idle.copied().filter(|_| key.kind().is_urgent()) {
                Some(idle) => drop(self.offers.remove(&idle)),
                None => return Err(ItemRefusal::Full),
            }
        }
        self.offers.insert(key, offer);
        Ok(())
    }

    /// Returns the version of an item that it offers.
    pub(super) fn offered(&self, key: ItemKey) -> Option<Revision> {
        self.offers.get(&key).map(|offer| offer.entry.version)
    }

    /// Returns its offers, the urgent first.
    pub(super) fn offers(&self) -> impl Iterator<Item = Entry> {
        self.offers.values().map(|offer| offer.entry)
    }

    pub(super) fn take_offer(&mut self, key: ItemKey) -> Option<Entry> {
        let offer = self.offers.remove(&key);
        give_back(&mut self.offers);
        offer.map(|offer| offer.entry)
    }

    pub(super) fn pulling(&self) -> Option<ItemKey> {
        self.pull.as_ref().map(|pull| pull.entry.key)
    }

    /// Drops what is not news any more.
    pub(super) fn forget_older(&mut self, key: ItemKey, version: Revision) {
        let older = |entry: &Entry| entry.key == key && entry.version <= version;
        self.offers.retain(|_, offer| !older(&offer.entry));
        give_back(&mut self.offers);
        if self.pull.as_ref().is_some_and(|pull| older(&pull.entry)) {
            self.pull = None;
        }
    }
}

/// An empty map keeps room for eleven entries; a hub has thousands of peers with nothing to say.
fn give_back<V>(map: &mut BTreeMap<ItemKey, V>) {
    if map.is_empty() {
        *map = BTreeMap::new();
    }
}
