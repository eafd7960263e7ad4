//! Signed items from device to device: revocations, quarantine, endpoints, heads, beacons.
//!
//! ```text
//!  held, or new by the parent ─▶ Announce to every live peer but the source ─▶ Pull ─▶ Piece, Piece, …
//!                                   ▲                                            │ whole, hash, signature
//!                                   └──────────────── held ◀─────────────────────┴──▶ Output::Arrived
//!  once a minute: Digest to a relay ─▶ Announce (newer there), Want (newer here)
//! ```
//!
//! # Invariants
//!
//! - Nothing is held, announced or handed to the parent before its signature verified.
//! - Nothing older than what is held is taken. The same version with another content is reported, and
//!   changes nothing.
//! - Endpoint records go to relays only: no device learns its site from gossip.
//! - What one peer sends costs a bounded amount; what it withholds or forges delays nobody else's.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::statement::KeyId;

use crate::budget::{Bucket, Rate};
use crate::mesh::View;
use crate::output::reasons;
use crate::random::Random;
use crate::timers::Timers;
pub(crate) use kind::Disbelief;
pub use kind::{Item, ItemKey, ItemKind, Subject, record_body};
use source::{Offer, Source};
pub use wire::{Entry, Mark, Message, Range};

mod kind;
mod pull;
mod source;
#[cfg(test)]
mod tests;
mod wire;

/// Most endpoint records a relay holds; the one made longest ago goes first.
pub const RECORDS_MAX: usize = 4096;
/// Most bodies fetched at once; other announcements wait.
pub const PULLS_MAX: usize = 8;
/// Most announcements of one peer that wait; beyond, what is not urgent and then the newest is dropped.
pub const OFFERS_MAX: usize = 32;
/// Most announcements that wait to be sent to one peer; beyond, what is not urgent is left to the digest.
pub const TELLINGS_MAX: usize = 64;
/// How many other relays a relay tells of an item; with more, chance brings it to all, and the digest.
pub const RELAYS_TOLD: usize = 12;
/// How often versions are compared with a relay; a quarter shorter or longer by chance.
pub const DIGEST_EVERY: Duration = Duration::from_secs(60);
/// How long after a digest with a peer a new session with it needs none.
pub const GREETED_FOR: Duration = Duration::from_secs(600);
/// How long what is not urgent waits for company, at most.
pub const GATHER: Duration = Duration::from_secs(1);
/// How soon an urgent announcement is repeated; each next time after twice as long.
pub const REPEAT_AFTER: Duration = Duration::from_millis(400);
/// How often an urgent announcement is sent to one peer.
pub const TELLINGS: u32 = 6;
/// How long an answer to a pull is waited for before the rest is asked for again.
pub const STALLED_AFTER: Duration = Duration::from_millis(700);
/// How often a pull is repeated without progress before the next source is asked.
pub const PULL_TRIES: u32 = 3;
/// How long a peer that announced what does not verify is not listened to.
pub const DISTRUSTED_FOR: Duration = Duration::from_secs(600);
/// How much newer than the one held a beacon must be to be taken: there is one in each of so many seconds.
pub const BEACON_STEP_SECS: u64 = 300;
/// Messages of one peer that are read: rate and burst. Pieces that we asked for do not count.
pub const MESSAGES: Rate = Rate {
    per_second: 20,
    burst: 200,
};
/// Pieces that one peer may pull: rate and burst.
pub const PIECES: Rate = Rate {
    per_second: 500,
    burst: 4096,
};
/// Bodies of one peer whose signatures are checked: rate and burst.
pub const CHECKS: Rate = Rate {
    per_second: 2,
    burst: 20,
};

reasons! {
    /// Why a message about items was refused; nothing is answered.
    ItemRefusal {
        /// Not a message of ours.
        Malformed "malformed",
        /// From no live peer.
        Stranger "stranger",
        /// This peer sends too much.
        Budget "budget",
        /// This peer announced what does not verify, a while ago.
        Distrusted "distrusted",
        /// A piece that nobody asked for, or asked for again meanwhile.
        Unasked "unasked",
        /// Larger than its kind may be, or empty.
        Size "size",
        /// The bytes do not have the hash that was announced.
        OtherHash "other_hash",
        /// The signature does not hold.
        Forged "forged",
        /// Signed by a key that our manifest does not name, for a device we do not believe, or past its time.
        UnknownSigner "unknown_signer",
        /// Another item or version than was announced.
        OtherItem "other_item",
        /// Older than what is held.
        Older "older",
        /// Its version again with another content; reported.
        Forked "forked",
        /// Endpoint records are for relays.
        NotForUs "not_for_us",
        /// Too much waits already.
        Full "full",
        /// The peer does not have it any more, or stopped sending.
        Withheld "withheld",
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send this content to the peer.
    Send { device: DeviceId, content: Vec<u8> },
    /// This came from a peer and verified.
    Arrived { from: DeviceId, item: Box<Item> },
    /// A signer said two things under one version.
    Forked {
        from: DeviceId,
        key: ItemKey,
        version: Revision,
        signer: KeyId,
    },
}

/// What is held of one item.
struct Held {
    version: Revision,
    hash: Digest,
    size: u32,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Tell(DeviceId),
    Pull(DeviceId),
    Digest,
}

/// What one item is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemStatus {
    /// Which.
    pub key: ItemKey,
    /// Its version.
    pub version: Revision,
    /// How many bytes.
    pub bytes: usize,
}

/// All items of one device, and what its peers have.
pub(crate) struct Items {
    own: Option<DeviceId>,
    is_relay: bool,
    held: BTreeMap<ItemKey, Held>,
    by_hash: BTreeMap<Digest, ItemKey>,
    /// In boxes: a third of the places in a map are empty.
    sources: BTreeMap<DeviceId, Box<Source>>,
    /// When a digest went to a peer or came from it.
    greeted: BTreeMap<DeviceId, Mono>,
    /// Where the next digest among relays begins.
    page: Subject,
    timers: Timers<Timer>,
    random: Random,
    refused: BTreeMap<ItemRefusal, u64>,
    output: VecDeque<Output>,
}

/// Most peers whose last digest is remembered; the one longest ago goes first.
const GREETED_MAX: usize = 4096;

impl Items {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self {
            own: None,
            is_relay: false,
            held: BTreeMap::new(),
            by_hash: BTreeMap::new(),
            sources: BTreeMap::new(),
            greeted: BTreeMap::new(),
            page: [0; 16],
            timers: Timers::new(),
            random: Random::new(seed),
            refused: BTreeMap::new(),
            output: VecDeque::new(),
        }
    }

    /// Takes who we are, and whether we are a relay.
    pub(crate) fn handle_own(&mut self, own: DeviceId, is_relay: bool) {
        self.own = Some(own);
        self.is_relay = is_relay;
        if !is_relay {
            let others: Vec<ItemKey> = self
                .held
                .keys()
                .filter(|key| key.subject().is_some_and(|subject| subject != own))
                .copied()
                .collect();
            for key in others {
                self.drop_held(key);
            }
        }
    }

    fn plan_digest(&mut self, now: Mono) {
        let pause = self.random.jitter(DIGEST_EVERY);
        self.timers.set(Timer::Digest, now + pause);
    }

    /// Takes note of a live session with a peer, and whether that is a relay.
    pub(crate) fn handle_session(&mut self, device: DeviceId, is_relay: bool, now: Mono) {
        let Some(own) = self.own else {
            return;
        };
        if self.sources.is_empty() {
            self.plan_digest(now);
        }
        let source = self
            .sources
            .entry(device)
            .or_insert_with(|| Box::new(Source::new(now)));
        source.is_relay = is_relay;
        let fresh = self
            .greeted
            .get(&device)
            .is_none_or(|at| now.since(*at) >= GREETED_FOR);
        // One of the two compares; the answer tells the other.
        if fresh && own < device {
            self.send_digest(device, now);
        }
    }

    /// Takes note that no session with a peer lives: what was under way with it is asked of others.
    pub(crate) fn handle_idle(&mut self, device: DeviceId, now: Mono) {
        self.handle_removed(device);
        self.pull_next(now);
    }

    /// Takes note that a peer is gone.
    pub(crate) fn handle_removed(&mut self, device: DeviceId) {
        self.sources.remove(&device);
        self.timers.clear(Timer::Tell(device));
        self.timers.clear(Timer::Pull(device));
        if self.sources.is_empty() {
            // With nobody to compare with there is nothing to wake for.
            self.timers.clear(Timer::Digest);
        }
    }

    /// Takes an item of the parent's: from the controller, from the disk, from a person. Returns whether
    /// it is held now; then it is announced to everyone.
    pub(crate) fn handle_item(&mut self, item: &Item, bytes: &[u8], now: Mono) -> bool {
        let key = item.key();
        let hash = Digest::of(bytes);
        let known = self.held.get(&key);
        if known.is_some_and(|held| held.version >= item.version()) {
            return known.is_some_and(|held| held.hash == hash);
        }
        self.hold(item, bytes.to_vec(), hash);
        self.flood(key, None, now);
        true
    }

    fn hold(&mut self, item: &Item, bytes: Vec<u8>, hash: Digest) {
        let key = item.key();
        self.drop_held(key);
        if key.subject().is_some() {
            self.make_room();
        }
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.by_hash.insert(hash, key);
        self.held.insert(
            key,
            Held {
                version: item.version(),
                hash,
                size,
                bytes,
            },
        );
        for source in self.sources.values_mut() {
            source.forget_older(key, item.version());
        }
    }

    fn drop_held(&mut self, key: ItemKey) {
        if let Some(held) = self.held.remove(&key) {
            self.by_hash.remove(&held.hash);
        }
    }

    fn make_room(&mut self) {
        let records = self.held.iter().filter(|(key, _)| key.subject().is_some());
        if records.clone().count() >= RECORDS_MAX {
            let oldest = records
                .min_by_key(|(_, held)| held.version)
                .map(|(key, _)| *key);
            if let Some(key) = oldest {
                self.drop_held(key);
            }
        }
    }

    fn entry(&self, key: ItemKey) -> Option<Entry> {
        let held = self.held.get(&key)?;
        Some(Entry {
            key,
            version: held.version,
            hash: held.hash,
            size: held.size,
        })
    }

    fn mark(&self, key: ItemKey) -> Mark {
        let held = self.held.get(&key);
        let tag = held.and_then(|held| held.hash.0.first_chunk().copied());
        Mark {
            key,
            version: held.map_or(Revision::default(), |held| held.version),
            tag: tag.unwrap_or_default(),
        }
    }

    /// Whether a peer may be told of this item.
    fn is_for(&self, key: ItemKey, is_relay: bool) -> bool {
        match key.subject() {
            None => true,
            // Others' records go from relay to relay; our own to every relay.
            Some(subject) => is_relay && (self.is_relay || Some(subject) == self.own),
        }
    }

    /// Plans to tell everyone but where it came from.
    fn flood(&mut self, key: ItemKey, except: Option<DeviceId>, now: Mono) {
        let others = self
            .sources
            .iter()
            .filter(|(device, source)| {
                Some(**device) != except && self.is_for(key, source.is_relay)
            })
            .map(|(device, source)| (*device, self.is_relay && source.is_relay));
        let (mut relays, devices): (Vec<_>, Vec<_>) = others.partition(|(_, both)| *both);
        while relays.len() > RELAYS_TOLD {
            let at = self.below(relays.len());
            relays.swap_remove(at);
        }
        for (device, _) in relays.into_iter().chain(devices) {
            self.tell(device, key, now);
        }
    }

    /// Draws a number below `count`.
    fn below(&mut self, count: usize) -> usize {
        let draw = self.random.bytes();
        let draw = draw.first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
        let draw = usize::try_from(draw).unwrap_or(0);
        draw.checked_rem(count).unwrap_or(0)
    }

    fn tell(&mut self, device: DeviceId, key: ItemKey, now: Mono) {
        let due = match key.kind().is_urgent() {
            true => now,
            false => now + self.random.up_to(GATHER),
        };
        if let Some(source) = self.sources.get_mut(&device) {
            source.tell(key, due);
            self.timers.set(Timer::Tell(device), source.next_telling());
        }
    }

    /// Takes a peer's word that it has a version: it need not be told of one that is not newer.
    fn knows(&mut self, device: DeviceId, key: ItemKey, version: Revision) {
        let newer = self
            .held
            .get(&key)
            .is_some_and(|held| held.version > version);
        if let Some(source) = self.sources.get_mut(&device).filter(|_| !newer) {
            source.forget_telling(key);
        }
    }

    /// Sends what is due to one peer, the urgent first.
    fn send_tellings(&mut self, device: DeviceId, now: Mono) {
        let Some(source) = self.sources.get_mut(&device) else {
            return;
        };
        let due = source.due_tellings(now);
        let next = source.next_telling();
        if next < Mono::NEVER {
            self.timers.set(Timer::Tell(device), next);
        }
        let entries: Vec<Entry> = due.iter().filter_map(|key| self.entry(*key)).collect();
        if !entries.is_empty() {
            self.send(device, &Message::Announce(entries));
        }
    }

    fn send(&mut self, device: DeviceId, message: &Message<'_>) {
        let content = message.encode();
        self.output.push_back(Output::Send { device, content });
    }

    pub(crate) fn refuse(&mut self, reason: ItemRefusal) {
        let count = self.refused.entry(reason).or_default();
        *count = count.saturating_add(1);
    }

    /// Takes a message of a live peer; the tunnel proved that it is the peer's.
    pub(crate) fn handle_message(&mut self, device: DeviceId, content: &[u8], view: View<'_>) {
        if let Err(reason) = self.read(device, content, view) {
            self.refuse(reason);
        }
    }

    fn read(
        &mut self,
        device: DeviceId,
        content: &[u8],
        view: View<'_>,
    ) -> Result<(), ItemRefusal> {
        let now = view.now.mono;
        let source = self.sources.get_mut(&device).ok_or(ItemRefusal::Stranger)?;
        let message = Message::decode(content).map_err(|_e| ItemRefusal::Malformed)?;
        if let Message::Piece {
            hash,
            offset,
            bytes,
        } = message
        {
            return self.handle_piece(device, (hash, offset, bytes), view);
        }
        if !source.messages.take(MESSAGES, now) {
            return Err(ItemRefusal::Budget);
        }
        match message {
            Message::Announce(entries) => {
                if source.distrusted_until > now {
                    return Err(ItemRefusal::Distrusted);
                }
                let outcomes: Vec<_> = entries
                    .into_iter()
                    .map(|entry| self.handle_entry(device, entry, now))
                    .collect();
                self.pull_next(now);
                self.acknowledge(device, &outcomes);
                outcomes.into_iter().try_for_each(|o| o.map(|_key| ()))
            }
            Message::Have(marks) => {
                for mark in marks {
                    self.knows(device, mark.key, mark.version);
                }
                Ok(())
            }
            Message::Pull {
                hash,
                offset,
                pieces,
            } => self.serve(device, hash, (offset, pieces), now),
            Message::Piece { .. } => Ok(()),
            Message::Digest { marks, range } => self.compare(device, &marks, range, now),
            Message::Want(marks) => {
                for mark in marks {
                    let newer = self.entry(mark.key).filter(|e| e.version > mark.version);
                    let relay = self.sources.get(&device).is_some_and(|s| s.is_relay);
                    if newer.is_some() && self.is_for(mark.key, relay) {
                        self.tell(device, mark.key, now);
                    }
                }
                Ok(())
            }
            Message::Gone(hash) => {
                self.give_up_pull(device, hash, now);
                Err(ItemRefusal::Withheld)
            }
        }
    }

    /// Looks at one announcement. Returns the key when it needs no repetition.
    fn handle_entry(
        &mut self,
        device: DeviceId,
        entry: Entry,
        now: Mono,
    ) -> Result<Option<ItemKey>, ItemRefusal> {
        let kind = entry.key.kind();
        let size = usize::try_from(entry.size).unwrap_or(usize::MAX);
        if size == 0 || size > kind.bytes_max() {
            return Err(ItemRefusal::Size);
        }
        if entry.key.subject().is_some() && !self.is_relay {
            return Err(ItemRefusal::NotForUs);
        }
        let held = self.held.get(&entry.key).map(|h| (h.version, h.hash));
        self.knows(device, entry.key, entry.version);
        if let Some((version, hash)) = held {
            if version > entry.version {
                self.tell(device, entry.key, now);
                return Err(ItemRefusal::Older);
            }
            let is_known = version == entry.version && hash == entry.hash;
            let too_soon = kind == ItemKind::Beacon
                && entry.version.number < version.number.saturating_add(BEACON_STEP_SECS);
            if is_known || too_soon {
                return Ok(Some(entry.key));
            }
        }
        let source = self.sources.get_mut(&device).ok_or(ItemRefusal::Stranger)?;
        source.offer(Offer { entry })?;
        Ok(Some(entry.key))
    }

    /// Says which urgent announcements came, unless a pull says it.
    fn acknowledge(&mut self, device: DeviceId, outcomes: &[Result<Option<ItemKey>, ItemRefusal>]) {
        let pulling = self.sources.get(&device).and_then(|s| s.pulling());
        let marks: Vec<Mark> = outcomes
            .iter()
            .flatten()
            .flatten()
            .filter(|key| key.kind().is_urgent() && Some(**key) != pulling)
            .map(|key| {
                let offered = self.sources.get(&device).and_then(|s| s.offered(*key));
                let mark = self.mark(*key);
                Mark {
                    version: offered.unwrap_or(mark.version).max(mark.version),
                    ..mark
                }
            })
            .collect();
        if !marks.is_empty() {
            self.send(device, &Message::Have(marks));
        }
    }

    /// Takes the passing of time.
    pub(crate) fn handle_timeout(&mut self, now: Mono) {
        while let Some(timer) = self.timers.due(now) {
            match timer {
                Timer::Tell(device) => self.send_tellings(device, now),
                Timer::Pull(device) => self.repeat_pull(device, now),
                Timer::Digest => {
                    self.plan_digest(now);
                    if let Some(device) = self.digest_partner() {
                        self.send_digest(device, now);
                    }
                }
            }
        }
    }

    /// Chooses whom to compare with: a relay, and where there is none any peer.
    fn digest_partner(&mut self) -> Option<DeviceId> {
        let relays: Vec<DeviceId> = self
            .sources
            .iter()
            .filter(|(_, source)| source.is_relay)
            .map(|(device, _)| *device)
            .collect();
        let all = || self.sources.keys().copied().collect();
        let choice: Vec<DeviceId> = if relays.is_empty() { all() } else { relays };
        let at = self.below(choice.len());
        choice.get(at).copied()
    }

    /// Says what we have: all of the trust domain's items, our own record, and among relays a page of
    /// the others'.
    fn send_digest(&mut self, device: DeviceId, now: Mono) {
        let Some(own) = self.own else {
            return;
        };
        self.note_greeted(device, now);
        let is_relay = self.sources.get(&device).is_some_and(|s| s.is_relay);
        let mut marks: Vec<Mark> = ItemKind::ALL
            .into_iter()
            .filter_map(ItemKey::of_domain)
            .map(|key| self.mark(key))
            .filter(|mark| mark.version > Revision::default())
            .collect();
        let range = match (is_relay, self.is_relay) {
            (true, true) => self.page_of_records(&mut marks),
            _ => (own.0, own.0),
        };
        let own_record = ItemKey::of_device(own);
        if is_relay && !self.is_relay && self.held.contains_key(&own_record) {
            marks.push(self.mark(own_record));
        }
        self.send(device, &Message::Digest { marks, range });
    }

    /// Appends the next records in order and returns the range that they cover.
    fn page_of_records(&mut self, marks: &mut Vec<Mark>) -> Range {
        let from = self.page;
        let room = wire::MARKS_MAX.saturating_sub(marks.len());
        let mut records: Vec<ItemKey> = self
            .held
            .keys()
            .filter(|key| key.subject().is_some_and(|s| s.0 >= from))
            .take(room + 1)
            .copied()
            .collect();
        let more = records.len() > room;
        records.truncate(room);
        marks.extend(records.iter().map(|key| self.mark(*key)));
        let last = records.last().and_then(|key| key.subject());
        match last.filter(|_| more) {
            Some(last) => {
                self.page = u128::from_be_bytes(last.0).wrapping_add(1).to_be_bytes();
                (from, last.0)
            }
            None => {
                self.page = [0; 16];
                (from, [0xff; 16])
            }
        }
    }

    fn note_greeted(&mut self, device: DeviceId, now: Mono) {
        self.greeted.insert(device, now);
        if self.greeted.len() > GREETED_MAX {
            let first = self.greeted.iter().min_by_key(|(_, at)| **at);
            if let Some(first) = first.map(|(device, _)| *device) {
                self.greeted.remove(&first);
            }
        }
    }

    /// Compares a peer's versions with ours: tells it what is newer here, asks for what is newer there.
    fn compare(
        &mut self,
        device: DeviceId,
        marks: &[Mark],
        range: Range,
        now: Mono,
    ) -> Result<(), ItemRefusal> {
        self.note_greeted(device, now);
        let is_relay = self.sources.get(&device).is_some_and(|s| s.is_relay);
        // Who is no relay learns of no record but its own.
        let range = match is_relay {
            true => range,
            false => (device.0, device.0),
        };
        let theirs: BTreeMap<ItemKey, &Mark> = marks.iter().map(|m| (m.key, m)).collect();
        let newer: Vec<ItemKey> = self
            .held
            .iter()
            .filter(|(key, held)| {
                let within = key
                    .subject()
                    .is_none_or(|s| range.0 <= s.0 && s.0 <= range.1);
                let known = theirs.get(key).map(|mark| mark.version);
                within && known.is_none_or(|v| v < held.version) && self.is_for(**key, is_relay)
            })
            .map(|(key, _)| *key)
            .take(TELLINGS_MAX)
            .collect();
        for key in newer {
            self.tell(device, key, now);
        }
        let wanted: Vec<Mark> = theirs
            .values()
            .filter(|mark| self.lacks(mark))
            .map(|mark| self.mark(mark.key))
            .collect();
        if !wanted.is_empty() {
            self.send(device, &Message::Want(wanted));
        }
        Ok(())
    }

    /// Whether a mark is of something newer than ours, or of another content under our version.
    fn lacks(&self, theirs: &Mark) -> bool {
        let ours = self.mark(theirs.key);
        let is_for_us = theirs.key.subject().is_none() || self.is_relay;
        let step = match theirs.key.kind() {
            ItemKind::Beacon => BEACON_STEP_SECS,
            ItemKind::Revocations
            | ItemKind::States
            | ItemKind::Endpoints
            | ItemKind::BundleHead
            | ItemKind::TreeHead => 1,
        };
        let newer = theirs.version.timeline > ours.version.timeline
            || (theirs.version.timeline == ours.version.timeline
                && theirs.version.number >= ours.version.number.saturating_add(step));
        is_for_us && newer
    }

    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    pub(crate) fn deadline(&self) -> (Mono, &'static str) {
        match self.timers.first() {
            Some((at, Timer::Tell(_))) => (at, "announce items"),
            Some((at, Timer::Pull(_))) => (at, "ask for the rest of an item"),
            Some((at, Timer::Digest)) => (at, "compare items with a relay"),
            None => (Mono::NEVER, "nothing"),
        }
    }

    /// Returns the bytes held of an item, for who asks a relay where a device is.
    pub(crate) fn bytes(&self, key: ItemKey) -> Option<&[u8]> {
        self.held.get(&key).map(|held| held.bytes.as_slice())
    }

    pub(crate) fn status(&self) -> Vec<ItemStatus> {
        self.held
            .iter()
            .map(|(key, held)| ItemStatus {
                key: *key,
                version: held.version,
                bytes: held.bytes.len(),
            })
            .collect()
    }

    pub(crate) fn refusals(&self) -> &BTreeMap<ItemRefusal, u64> {
        &self.refused
    }
}
