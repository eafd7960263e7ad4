//! Fetching bodies, one at a time from each peer, and handing them out.

use std::collections::BTreeMap;

use hedgerow_model::Mono;
use hedgerow_model::id::{DeviceId, Digest};

use super::source::Pull;
use super::wire::{Entry, Message, PIECE_BYTES_MAX, PIECES_MAX};
use super::{
    CHECKS, DISTRUSTED_FOR, Disbelief, Item, ItemRefusal, Items, Output, PIECES, PULL_TRIES,
    PULLS_MAX, STALLED_AFTER, Timer,
};
use crate::mesh::View;

impl Items {
    /// Begins as many pulls as may be.
    pub(super) fn pull_next(&mut self, now: Mono) {
        let mut under_way = self.sources.values().filter(|s| s.pull.is_some()).count();
        let idle: Vec<DeviceId> = self
            .sources
            .iter()
            .filter(|(_, source)| source.pull.is_none() && source.offers().next().is_some())
            .map(|(device, _)| *device)
            .collect();
        for device in idle {
            if under_way >= PULLS_MAX {
                return;
            }
            if self.begin_pull(device, now) {
                under_way += 1;
            }
        }
    }

    /// Begins the most urgent of what a peer offers and nobody else is sending.
    fn begin_pull(&mut self, device: DeviceId, now: Mono) -> bool {
        let is_coming = |entry: &Entry| {
            self.sources.values().any(|source| {
                source.pull.as_ref().is_some_and(|pull| {
                    pull.entry.hash == entry.hash && now.since(pull.progress_at) < STALLED_AFTER
                })
            })
        };
        let Some(source) = self.sources.get(&device) else {
            return false;
        };
        let Some(entry) = source.offers().find(|entry| !is_coming(entry)) else {
            return false;
        };
        let Some(source) = self.sources.get_mut(&device) else {
            return false;
        };
        source.take_offer(entry.key);
        source.pull = Some(Box::new(Pull {
            entry,
            bytes: Vec::new(),
            early: BTreeMap::new(),
            asked: 0,
            tries: 0,
            progress_at: now,
        }));
        self.ask(device, now);
        true
    }

    /// Asks for the next pieces.
    fn ask(&mut self, device: DeviceId, now: Mono) {
        let Some(pull) = self.sources.get_mut(&device).and_then(|s| s.pull.as_mut()) else {
            return;
        };
        let at = pull.bytes.len();
        let window = usize::try_from(PIECES_MAX).unwrap_or(1) * PIECE_BYTES_MAX;
        pull.asked = at + window;
        // Up to the first piece that is here already.
        let gap = pull
            .early
            .keys()
            .next()
            .map(|first| first.saturating_sub(at));
        let missing = gap.map(|bytes| bytes.div_ceil(PIECE_BYTES_MAX));
        let missing = missing.and_then(|pieces| u32::try_from(pieces).ok());
        let message = Message::Pull {
            hash: pull.entry.hash,
            offset: u32::try_from(at).unwrap_or(u32::MAX),
            pieces: missing.unwrap_or(PIECES_MAX).clamp(1, PIECES_MAX),
        };
        self.timers.set(Timer::Pull(device), now + STALLED_AFTER);
        self.send(device, &message);
    }

    /// Asks again for what did not come, and in the end somebody else.
    pub(super) fn repeat_pull(&mut self, device: DeviceId, now: Mono) {
        let Some(pull) = self.sources.get_mut(&device).and_then(|s| s.pull.as_mut()) else {
            return;
        };
        pull.tries += 1;
        if pull.tries < PULL_TRIES {
            self.ask(device, now);
        } else {
            self.drop_pull(device);
            self.refuse(ItemRefusal::Withheld);
        }
        // Others may be asked for the same now.
        self.pull_next(now);
    }

    fn drop_pull(&mut self, device: DeviceId) {
        self.timers.clear(Timer::Pull(device));
        if let Some(source) = self.sources.get_mut(&device) {
            source.pull = None;
        }
    }

    pub(super) fn give_up_pull(&mut self, device: DeviceId, hash: Digest, now: Mono) {
        let pull = self.sources.get(&device).and_then(|s| s.pull.as_ref());
        if pull.is_some_and(|pull| pull.entry.hash == hash) {
            self.drop_pull(device);
            self.pull_next(now);
        }
    }

    pub(super) fn handle_piece(
        &mut self,
        device: DeviceId,
        (hash, offset, bytes): (Digest, u32, &[u8]),
        view: View<'_>,
    ) -> Result<(), ItemRefusal> {
        let now = view.now.mono;
        let source = self.sources.get_mut(&device).ok_or(ItemRefusal::Stranger)?;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let pull = source
            .pull
            .as_mut()
            .filter(|pull| pull.entry.hash == hash && (pull.bytes.len()..pull.asked).contains(&at))
            .ok_or(ItemRefusal::Unasked)?;
        let size = usize::try_from(pull.entry.size).unwrap_or(usize::MAX);
        if bytes.is_empty() || at.saturating_add(bytes.len()) > size {
            self.drop_pull(device);
            self.distrust(device, now);
            return Err(ItemRefusal::Size);
        }
        // As many as the window has pieces, whatever they overlap.
        let most = usize::try_from(PIECES_MAX).unwrap_or(1);
        if pull.early.len() < most || at == pull.bytes.len() {
            pull.early.insert(at, bytes.to_vec());
        }
        while let Some(piece) = pull.early.remove(&pull.bytes.len()) {
            pull.bytes.extend_from_slice(&piece);
        }
        let have = pull.bytes.len();
        pull.early.retain(|begins, _| *begins > have);
        if have > size {
            self.drop_pull(device);
            self.distrust(device, now);
            return Err(ItemRefusal::Size);
        }
        pull.progress_at = now;
        pull.tries = 0;
        if pull.bytes.len() == size {
            let (entry, bytes) = (pull.entry, std::mem::take(&mut pull.bytes));
            self.drop_pull(device);
            let outcome = self.complete(device, entry, bytes, view);
            self.pull_next(now);
            return outcome;
        }
        if pull.bytes.len() >= pull.asked {
            self.ask(device, now);
        } else {
            self.timers.set(Timer::Pull(device), now + STALLED_AFTER);
        }
        Ok(())
    }

    fn distrust(&mut self, device: DeviceId, now: Mono) {
        if let Some(source) = self.sources.get_mut(&device) {
            source.distrusted_until = now + DISTRUSTED_FOR;
            let offers: Vec<Entry> = source.offers().collect();
            for entry in offers {
                source.take_offer(entry.key);
            }
        }
    }

    /// Judges a whole body: hash, signature, order; and only then holds it and tells others.
    fn complete(
        &mut self,
        device: DeviceId,
        entry: Entry,
        bytes: Vec<u8>,
        view: View<'_>,
    ) -> Result<(), ItemRefusal> {
        let now = view.now.mono;
        if Digest::of(&bytes) != entry.hash {
            self.distrust(device, now);
            return Err(ItemRefusal::OtherHash);
        }
        let may_check = self
            .sources
            .get_mut(&device)
            .is_some_and(|source| source.checks.take(CHECKS, now));
        if !may_check {
            return Err(ItemRefusal::Budget);
        }
        let item = match Item::verify(entry.key.kind(), &bytes, view) {
            Ok(item) => item,
            Err(Disbelief::Unknown) => return Err(ItemRefusal::UnknownSigner),
            Err(Disbelief::Forged) => {
                self.distrust(device, now);
                return Err(ItemRefusal::Forged);
            }
        };
        if item.key() != entry.key || item.version() != entry.version {
            self.distrust(device, now);
            return Err(ItemRefusal::OtherItem);
        }
        let held = self.held.get(&entry.key).map(|h| (h.version, h.hash));
        match held {
            Some((version, _)) if version > entry.version => return Err(ItemRefusal::Older),
            Some((version, hash)) if version == entry.version => {
                return self.same_version(device, &item, hash == entry.hash);
            }
            Some(_) | None => {}
        }
        self.hold(&item, bytes, entry.hash);
        self.flood(entry.key, Some(device), now);
        self.output.push_back(Output::Arrived {
            from: device,
            item: Box::new(item),
        });
        Ok(())
    }

    /// Two signed contents under one version prove that the signer's key is misused. A beacon is dated to
    /// the second, and several issuers make them.
    fn same_version(
        &mut self,
        from: DeviceId,
        item: &Item,
        is_same: bool,
    ) -> Result<(), ItemRefusal> {
        if is_same || matches!(item, Item::Beacon(_)) {
            return Ok(());
        }
        self.output.push_back(Output::Forked {
            from,
            key: item.key(),
            version: item.version(),
            signer: item.signer(),
        });
        Err(ItemRefusal::Forked)
    }

    /// Sends pieces of an item that is held.
    pub(super) fn serve(
        &mut self,
        device: DeviceId,
        hash: Digest,
        (offset, pieces): (u32, u32),
        now: Mono,
    ) -> Result<(), ItemRefusal> {
        let relay = self.sources.get(&device).is_some_and(|s| s.is_relay);
        let key = self.by_hash.get(&hash).copied();
        let Some(key) = key.filter(|key| self.is_for(*key, relay)) else {
            self.send(device, &Message::Gone(hash));
            return Ok(());
        };
        let Some(source) = self.sources.get_mut(&device) else {
            return Err(ItemRefusal::Stranger);
        };
        let held = self.held.get(&key).ok_or(ItemRefusal::Unasked)?;
        source.forget_telling(key);
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut contents = Vec::new();
        for _ in 0..pieces {
            let end = at.saturating_add(PIECE_BYTES_MAX).min(held.bytes.len());
            let Some(bytes) = held.bytes.get(at..end).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            if !source.pieces.take(PIECES, now) {
                break;
            }
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            let piece = Message::Piece {
                hash,
                offset,
                bytes,
            };
            contents.push(piece.encode());
            at = end;
        }
        for content in contents {
            self.output.push_back(Output::Send { device, content });
        }
        Ok(())
    }
}
