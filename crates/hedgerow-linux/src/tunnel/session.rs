//! A session: the keys two peers agreed on, used in place on the caller's buffer.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use hedgerow_model::Mono;
use hedgerow_model::statement::X25519Public;

use super::message::{HEADER_BYTES, TAG_BYTES, put, transport_header};
use super::noise::TransportKeys;
use super::replay::ReplayWindow;
use super::timers::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};

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
    /// Ready for use while packets pass. Most of a hub's sessions rest most of the time, and a key ready for
    /// use takes eighteen times the room of the key.
    send: Option<Arc<LessSafeKey>>,
    receive: Option<LessSafeKey>,
    pub(super) counter: u64,
    replay: ReplayWindow,
    /// How far the two counters were at the last [`Session::rest`].
    rested: (u64, u64),
}

impl Session {
    pub(super) fn new(agreed: Agreement, keys: TransportKeys) -> Self {
        Self {
            agreed,
            keys,
            send: None,
            receive: None,
            counter: 0,
            replay: ReplayWindow::default(),
            rested: (0, 0),
        }
    }

    /// Gives back what makes the keys ready for use, unless packets passed since the last call. Returns whether
    /// it is to be called again.
    pub(super) fn rest(&mut self) -> bool {
        let passed = (self.counter, self.replay.next());
        if std::mem::replace(&mut self.rested, passed) == passed {
            (self.send, self.receive) = (None, None);
        }
        self.send.is_some() || self.receive.is_some()
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
    pub(super) fn seal(&mut self, buffer: &mut [u8], len: usize, mtu: usize) -> Option<usize> {
        let seal = self.take(1)?;
        seal.seal(0, buffer, len, mtu)
    }

    /// Takes `count` counters out of the session, for packets that are sealed elsewhere. `None` when the library
    /// has no memory for the key.
    pub(super) fn take(&mut self, count: u64) -> Option<Seal> {
        let key = match &self.send {
            Some(key) => Arc::clone(key),
            None => {
                let key = Arc::new(ready(&self.keys.send)?);
                Arc::clone(self.send.insert(key))
            }
        };
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
        let key = match &mut self.receive {
            Some(key) => key,
            none => none.insert(ready(&self.keys.receive).ok_or(Unopened::Expired)?),
        };
        let text = key
            .open_in_place(nonce(counter), Aad::empty(), sealed)
            .map_err(|_e| Unopened::Forged)?;
        let len = text.len();
        if self.replay.accept(counter) {
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

fn ready(key: &[u8; 32]) -> Option<LessSafeKey> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).ok()?;
    Some(LessSafeKey::new(key))
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

    fn pass(session: &mut Session) -> Vec<u8> {
        let mut buffer = vec![0; 64];
        let counter = session.counter;
        let len = session.seal(&mut buffer, 5, 1420).unwrap();
        buffer.truncate(len);
        let sealed = buffer.clone();
        assert_eq!(session.open(&mut buffer, counter, Mono::ZERO), Ok(16));
        sealed
    }

    #[test]
    fn tunnel_a_session_at_rest_holds_its_keys_alone_and_goes_on_where_it_was() {
        let mut session = session();
        let is_ready = |s: &Session| s.send.is_some() || s.receive.is_some();
        assert!(!is_ready(&session), "before its first packet");
        let mut first = pass(&mut session);
        assert!(session.rest(), "a packet has just passed");
        assert!(is_ready(&session));
        assert!(!session.rest());
        assert!(!is_ready(&session));
        let again = session.open(&mut first, 0, Mono::ZERO);
        assert_eq!(again, Err(Unopened::Replayed), "rest forgets nothing");
        pass(&mut session);
        assert_eq!(session.counter, 2, "no counter is used twice");
    }

    #[test]
    fn tunnel_attack_forged_packets_keep_no_session_from_its_rest() {
        let mut session = session();
        for counter in 0..3 {
            let mut forged = vec![9; 48];
            let opened = session.open(&mut forged, counter, Mono::ZERO);
            assert_eq!(opened, Err(Unopened::Forged));
            assert!(!session.rest());
        }
    }

    /// A hub has tens of thousands: up to four for each peer.
    #[test]
    fn tunnel_a_session_at_rest_takes_half_a_kilobyte() {
        assert!(size_of::<Session>() <= 560, "{}", size_of::<Session>());
    }
}
