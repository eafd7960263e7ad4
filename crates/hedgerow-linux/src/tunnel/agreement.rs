//! X25519 for the handshake, by the library that seals packets: its assembly takes half the time.

use std::sync::Arc;

use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use snow::types::{Dh, Random};
use zeroize::Zeroizing;

use super::PrivateKey;

const KEY_BYTES: usize = 32;

/// A secret key ready for use: its public half is worked out once.
pub(super) struct Prepared {
    key: agreement::PrivateKey,
    secret: Zeroizing<[u8; KEY_BYTES]>,
    public: [u8; KEY_BYTES],
}

impl Prepared {
    fn new(secret: [u8; KEY_BYTES]) -> Option<Self> {
        let secret = Zeroizing::new(secret);
        let key = agreement::PrivateKey::from_private_key(&X25519, &*secret).ok()?;
        let public = key.compute_public_key().ok()?.as_ref().try_into().ok()?;
        Some(Self {
            key,
            secret,
            public,
        })
    }

    /// Prepares one of our own keys; none where the library has no memory for it.
    pub(super) fn of(secret: &PrivateKey) -> Option<Arc<Self>> {
        Self::new(*secret.expose()).map(Arc::new)
    }

    /// Agrees with another's public key. An error for a key of small order, which gives nothing secret.
    pub(super) fn agree(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public = UnparsedPublicKey::new(&X25519, public);
        agreement::agree(&self.key, public, snow::Error::Dh, |shared| {
            let out = out.get_mut(..shared.len()).ok_or(snow::Error::Dh)?;
            out.copy_from_slice(shared);
            Ok(())
        })
    }
}

/// One of the two keys of a handshake: the static one, which is prepared, or the ephemeral one.
pub(super) struct Agreement {
    own: Option<Arc<Prepared>>,
    key: Option<Arc<Prepared>>,
}

impl Agreement {
    pub(super) fn new(own: Option<Arc<Prepared>>) -> Self {
        Self { own, key: None }
    }
}

impl Dh for Agreement {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_BYTES
    }

    fn priv_len(&self) -> usize {
        KEY_BYTES
    }

    fn set(&mut self, privkey: &[u8]) {
        let is_own = |own: &&Arc<Prepared>| own.secret.as_slice() == privkey;
        self.key = match self.own.as_ref().filter(is_own) {
            Some(own) => Some(Arc::clone(own)),
            None => privkey
                .try_into()
                .ok()
                .and_then(Prepared::new)
                .map(Arc::new),
        };
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        rng.try_fill_bytes(&mut *secret)?;
        let key = Prepared::new(*secret).ok_or(snow::Error::Dh)?;
        self.key = Some(Arc::new(key));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[0; KEY_BYTES], |k| &k.public)
    }

    fn privkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[0; KEY_BYTES], |k| &*k.secret)
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let key = self.key.as_ref().ok_or(snow::Error::Dh)?;
        let public = pubkey.get(..KEY_BYTES).ok_or(snow::Error::Dh)?;
        key.agree(public, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second implementation is the one that makes the keys.
    #[test]
    fn agrees_with_another_implementation() {
        for seed in 0..32u8 {
            let (a, b) = ([seed; 32], [seed ^ 0xa5; 32]);
            let other = x25519_dalek::StaticSecret::from(b);
            let public = x25519_dalek::PublicKey::from(&other);
            let prepared = Prepared::new(a).unwrap();
            let own = x25519_dalek::PublicKey::from(prepared.public);
            let mut shared = [0; 32];
            prepared.agree(public.as_bytes(), &mut shared).unwrap();
            assert_eq!(shared, other.diffie_hellman(&own).to_bytes());
        }
    }

    #[test]
    fn attack_a_key_of_small_order_gives_no_agreement() {
        let prepared = Prepared::new([7; 32]).unwrap();
        let mut one = [0; 32];
        for public in [[0; 32], {
            one[0] = 1;
            one
        }] {
            assert!(prepared.agree(&public, &mut [0; 32]).is_err());
        }
        assert!(prepared.agree(&[9; 31], &mut [0; 32]).is_err());
    }
}
