//! Keys ready for use: those of the sessions by which packets pass at the moment.
//!
//! A key ready for use takes eighteen times the room of the key, and making it takes a hundredth of the time
//! that a packet takes. Most of a hub's sessions rest most of the time, so the few that are busy share these
//! places: their packets allocate nothing, and memory does not grow with the sessions.

use std::sync::Arc;

use aws_lc_rs::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use aws_lc_rs::error::Unspecified;

/// Keys kept ready in each direction. Two sessions with the same place take turns: each makes its key anew.
pub(super) const READY_MAX: usize = 32;

type Places<K> = Box<[Option<(u32, K)>; READY_MAX]>;

/// The keys, by the session's own index: a random number.
pub(super) struct Ready {
    send: Places<Arc<LessSafeKey>>,
    receive: Places<LessSafeKey>,
}

impl Default for Ready {
    fn default() -> Self {
        Self {
            send: Box::new([const { None }; READY_MAX]),
            receive: Box::new([const { None }; READY_MAX]),
        }
    }
}

impl Ready {
    /// Returns the key with which session `index` sends. `None` when the library has no memory for it.
    pub(super) fn sender(&mut self, index: u32, key: &[u8; 32]) -> Option<Arc<LessSafeKey>> {
        let place = self.send.get_mut(place(index))?;
        match place {
            Some((of, ready)) if *of == index => Some(Arc::clone(ready)),
            // Made where the other's was: sessions that share a place allocate nothing either, unless a lane
            // still seals with the other.
            Some((of, ready)) => {
                let made = made(key).ok()?;
                match Arc::get_mut(ready) {
                    Some(other) => *other = made,
                    None => *ready = Arc::new(made),
                }
                *of = index;
                Some(Arc::clone(ready))
            }
            None => {
                let ready = Arc::new(made(key).ok()?);
                *place = Some((index, Arc::clone(&ready)));
                Some(ready)
            }
        }
    }

    /// Lets `open` use the key with which session `index` receives. Only what was authentic keeps the key ready:
    /// a liar takes no place from those who are.
    pub(super) fn receive<T>(
        &mut self,
        index: u32,
        key: &[u8; 32],
        open: impl FnOnce(&LessSafeKey) -> Result<T, Unspecified>,
    ) -> Result<T, Unspecified> {
        let place = self.receive.get_mut(place(index)).ok_or(Unspecified)?;
        match place {
            Some((of, key)) if *of == index => open(key),
            _ => {
                let key = made(key)?;
                let opened = open(&key)?;
                *place = Some((index, key));
                Ok(opened)
            }
        }
    }

    /// Wipes the keys of a session that ends.
    pub(super) fn forget(&mut self, index: u32) {
        if let Some(place) = self.send.get_mut(place(index)) {
            place.take_if(|(of, _)| *of == index);
        }
        if let Some(place) = self.receive.get_mut(place(index)) {
            place.take_if(|(of, _)| *of == index);
        }
    }
}

fn place(index: u32) -> usize {
    usize::try_from(index).unwrap_or(0) % READY_MAX
}

fn made(key: &[u8; 32]) -> Result<LessSafeKey, Unspecified> {
    UnboundKey::new(&CHACHA20_POLY1305, key).map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{Aad, Nonce};

    use super::*;

    impl Ready {
        pub(in crate::tunnel) fn count(&self) -> (usize, usize) {
            let send = self.send.iter().flatten().count();
            (send, self.receive.iter().flatten().count())
        }
    }

    fn authentic(_: &LessSafeKey) -> Result<(), Unspecified> {
        Ok(())
    }

    #[test]
    fn tunnel_ready_keys_are_bounded_and_a_session_has_its_own() {
        let mut ready = Ready::default();
        for index in 0..10_000u32 {
            let key = [u8::try_from(index % 256).unwrap(); 32];
            ready.sender(index, &key).unwrap();
            ready.receive(index, &key, authentic).unwrap();
        }
        assert_eq!(ready.count(), (READY_MAX, READY_MAX));
        let one = ready.sender(7, &[7; 32]).unwrap();
        assert!(Arc::ptr_eq(&one, &ready.sender(7, &[7; 32]).unwrap()));
        let same_place = 7 + u32::try_from(READY_MAX).unwrap();
        let other = ready.sender(same_place, &[8; 32]).unwrap();
        assert!(!Arc::ptr_eq(&one, &other), "the one is still in use");
        let room = Arc::as_ptr(&other);
        drop(other);
        let again = ready.sender(7, &[7; 32]).unwrap();
        assert_eq!(Arc::as_ptr(&again), room, "made in the same room");
        let text = |key: &LessSafeKey| {
            let (mut text, nonce) = ([9; 4], Nonce::assume_unique_for_key([0; 12]));
            let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut text);
            (text, tag.unwrap().as_ref().to_vec())
        };
        assert_eq!(text(&again), text(&one), "and not the other's key");
    }

    #[test]
    fn tunnel_keys_of_an_ended_session_do_not_stay_ready() {
        let mut ready = Ready::default();
        let key = ready.sender(1, &[1; 32]).unwrap();
        ready.receive(1, &[1; 32], authentic).unwrap();
        ready.forget(1 + u32::try_from(READY_MAX).unwrap());
        assert_eq!(ready.count(), (1, 1), "another's end is not this one's");
        ready.forget(1);
        assert_eq!(ready.count(), (0, 0));
        assert_eq!(Arc::strong_count(&key), 1);
    }

    #[test]
    fn tunnel_attack_forged_packets_make_no_key_ready() {
        let mut ready = Ready::default();
        ready.receive(3, &[3; 32], authentic).unwrap();
        let same_place = 3 + u32::try_from(READY_MAX).unwrap();
        let forged = |_: &LessSafeKey| Err::<(), _>(Unspecified);
        ready.receive(same_place, &[4; 32], forged).unwrap_err();
        let is_there = ready.receive.iter().flatten().any(|(of, _)| *of == 3);
        assert!(is_there);
    }
}
