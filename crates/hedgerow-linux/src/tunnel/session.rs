//! A session: the keys two peers agreed on, used in place on the caller's buffer.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use hedgerow_model::Mono;
use hedgerow_model::statement::X25519Public;

use super::message::{HEADER_BYTES, TAG_BYTES, put, transport_header};
use super::noise::TransportKeys;
use super::ready::Ready;
use super::replay::ReplayWindow;
use super::timers::{LEFT_AFTER, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};

/// Who began the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Initiator,
    Responder,
}

/// Why a transport message was not opened. The buffer's content is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unopened {
    Expired,
    Replayed,
    Forged,
}

/// What a session is made of, besides its keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreement {
    pub(super) own_index: u32,
    pub(super) remote_index: u32,
    pub(super) side: Side,
    pub(super) born: Mono,
    /// Our static key in the handshake.
    pub(super) local: X25519Public,
    /// The peer's.
    pub(super) remote: X25519Public,
    /// Whether a pre-shared key was mixed in.
    pub(super) psk: bool,
}

/// Transport keys with their counters.
pub(super) struct Session {
    pub(super) agreed: Agreement,
    keys: TransportKeys,
    pub(super) counter: u64,
    replay: ReplayWindow,
    /// Its age in seconds when the first message came, and the last.
    heard: (u32, u32),
}

impl Session {
    pub(super) fn new(agreed: Agreement, keys: TransportKeys) -> Self {
        Self {
            agreed,
            keys,
            counter: 0,
            replay: ReplayWindow::default(),
            heard: (0, 0),
        }
    }

    /// When the peer first sent in it, and last; `None` before it did.
    fn heard_at(&self) -> Option<(Mono, Mono)> {
        let at = |secs: u32| self.agreed.born + Duration::from_secs(secs.into());
        (!self.replay.is_unused()).then(|| (at(self.heard.0), at(self.heard.1)))
    }

    /// Returns whether the peer has left `before` for this one.
    ///
    /// A peer sends in one session at a time, and never again in one that it left. Once it sent in both, one in which
    /// it goes on to send is the later, and what it sent in the other has come or is lost. Where a pre-shared key is
    /// required, packets do not go in a session without one while an earlier has it.
    pub(super) fn has_replaced(&self, before: &Self) -> bool {
        let (Some((_, left)), Some((first, last))) = (before.heard_at(), self.heard_at()) else {
            return false;
        };
        let is_left = last.since(first.max(left)) >= LEFT_AFTER;
        is_left && (self.agreed.psk || !before.agreed.psk)
    }

    pub(super) fn age(&self, now: Mono) -> Duration {
        now.since(self.agreed.born)
    }

    /// Returns whether it may still carry messages.
    pub(super) fn lives(&self, now: Mono) -> bool {
        self.age(now) < REJECT_AFTER_TIME && self.counter < REJECT_AFTER_MESSAGES
    }

    /// Seals the `len` bytes that stand after [`HEADER_BYTES`] in `buffer`, padded to 16 but not
    /// beyond `mtu`. Returns the datagram's length; `None` when `buffer` is too short.
    pub(super) fn seal(
        &mut self,
        ready: &mut Ready,
        buffer: &mut [u8],
        (len, mtu): (usize, usize),
    ) -> Option<usize> {
        let seal = self.take(ready, 1)?;
        seal.seal(0, buffer, len, mtu)
    }

    /// Takes `count` counters out of the session, for packets that are sealed elsewhere. `None` when the library
    /// has no memory for the key.
    pub(super) fn take(&mut self, ready: &mut Ready, count: u64) -> Option<Seal> {
        let key = ready.sender(self.agreed.own_index, &self.keys.send)?;
        let first = self.counter;
        // `REJECT_AFTER_MESSAGES` leaves room for more than one batch.
        self.counter = first.saturating_add(count);
        Some(Seal {
            key,
            remote_index: self.agreed.remote_index,
            first,
            count,
        })
    }

    /// Opens a transport message in place. Returns the length of the text, which stands after
    /// [`HEADER_BYTES`].
    pub(super) fn open(
        &mut self,
        ready: &mut Ready,
        datagram: &mut [u8],
        counter: u64,
        now: Mono,
    ) -> Result<usize, Unopened> {
        if self.age(now) >= REJECT_AFTER_TIME || counter >= REJECT_AFTER_MESSAGES {
            return Err(Unopened::Expired);
        }
        if !self.replay.is_new(counter) {
            return Err(Unopened::Replayed);
        }
        let sealed = datagram.get_mut(HEADER_BYTES..).ok_or(Unopened::Forged)?;
        let (index, key) = (self.agreed.own_index, &self.keys.receive);
        let len = ready
            .receive(index, key, |key| {
                let text = key.open_in_place(nonce(counter), Aad::empty(), sealed);
                text.map(|text| text.len())
            })
            .map_err(|_e| Unopened::Forged)?;
        let is_first = self.replay.is_unused();
        if self.replay.accept(counter) {
            self.heard.1 = u32::try_from(self.age(now).as_secs()).unwrap_or(u32::MAX);
            if is_first {
                self.heard.0 = self.heard.1;
            }
            Ok(len)
        } else {
            Err(Unopened::Replayed)
        }
    }
}

/// A session's key with some of its counters, each of which is used once.
pub(super) struct Seal {
    key: Arc<LessSafeKey>,
    remote_index: u32,
    first: u64,
    count: u64,
}

impl Seal {
    /// Seals under counter `n` of these; see [`Session::seal`]. `None` also when there is no such counter.
    pub(super) fn seal(&self, n: u64, buffer: &mut [u8], len: usize, mtu: usize) -> Option<usize> {
        let counter = self.first.checked_add(n).filter(|_| n < self.count)?;
        let padded = len.next_multiple_of(16).min(mtu.max(len));
        let (header, rest) = buffer.split_at_mut_checked(HEADER_BYTES)?;
        let (text, rest) = rest.split_at_mut_checked(padded)?;
        let tag_place = rest.get_mut(..TAG_BYTES)?;
        text.get_mut(len..)?.fill(0);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), text)
            .ok()?;
        header.copy_from_slice(&transport_header(self.remote_index, counter));
        tag_place.copy_from_slice(tag.as_ref().get(..TAG_BYTES)?);
        Some(HEADER_BYTES + padded + TAG_BYTES)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    put(&mut bytes, 4, &counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn session() -> Session {
        let agreed = Agreement {
            own_index: 1,
            remote_index: 2,
            side: Side::Initiator,
            born: Mono::ZERO,
            local: X25519Public([1; 32]),
            remote: X25519Public([2; 32]),
            psk: false,
        };
        // It speaks to itself.
        let keys = TransportKeys {
            send: Zeroizing::new([3; 32]),
            receive: Zeroizing::new([3; 32]),
        };
        Session::new(agreed, keys)
    }

    #[test]
    fn tunnel_a_session_goes_on_where_it_was_when_its_ready_keys_are_gone() {
        let (mut session, mut ready) = (session(), Ready::default());
        let pass = |session: &mut Session, ready: &mut Ready| {
            let mut buffer = vec![0; 64];
            let counter = session.counter;
            let len = session.seal(ready, &mut buffer, (5, 1420)).unwrap();
            buffer.truncate(len);
            let sealed = buffer.clone();
            let opened = session.open(ready, &mut buffer, counter, Mono::ZERO);
            assert_eq!(opened, Ok(16));
            sealed
        };
        let mut first = pass(&mut session, &mut ready);
        ready.forget(1);
        let again = session.open(&mut ready, &mut first, 0, Mono::ZERO);
        assert_eq!(again, Err(Unopened::Replayed));
        pass(&mut session, &mut ready);
        assert_eq!(session.counter, 2, "no counter is used twice");
    }

    /// A hub has tens of thousands: up to four for each peer.
    #[test]
    fn tunnel_a_session_takes_a_fifth_of_a_kilobyte() {
        assert!(size_of::<Session>() <= 200, "{}", size_of::<Session>());
    }
}
