//! `Noise_IK_25519_ChaChaPoly_BLAKE2s`, both messages, with time and randomness left to the caller.
//!
//! Revision 34 of the Noise specification. Written out because a responder must be able to stop
//! between the two key agreements of the first message, and because the ephemeral key is an argument.
//!
//! Every key encrypts one message, so the nonce is always zero.

use blake2::{Blake2s256, Digest as _};
use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a public key.
pub(crate) const KEY_BYTES: usize = 32;
/// Bytes that sealing adds.
pub(crate) const SEAL_BYTES: usize = 16;
/// Bytes that the first message adds to its payload.
pub(crate) const FIRST_OVERHEAD: usize = KEY_BYTES + KEY_BYTES + SEAL_BYTES + SEAL_BYTES;
/// Bytes that the second message adds to its payload.
pub(crate) const SECOND_OVERHEAD: usize = KEY_BYTES + SEAL_BYTES;

const PROTOCOL: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";
const HASH_BYTES: usize = 32;
const BLOCK_BYTES: usize = 64;

type Key = Zeroizing<[u8; HASH_BYTES]>;

/// A message that does not open: forged, damaged, cut, or made for another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unopened;

/// The handshake hash and chaining key: what both ends have agreed on so far.
#[derive(Clone)]
struct Symmetric {
    hash: [u8; HASH_BYTES],
    chain: Key,
}

impl Symmetric {
    fn new(prologue: &[u8], responder: &PublicKey) -> Self {
        let hash: [u8; HASH_BYTES] = Blake2s256::digest(PROTOCOL).into();
        let mut this = Self {
            hash,
            chain: Zeroizing::new(hash),
        };
        this.mix_hash(prologue);
        this.mix_hash(responder.as_bytes());
        this
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = Blake2s256::new()
            .chain_update(self.hash)
            .chain_update(data)
            .finalize()
            .into();
    }

    /// Mixes a shared secret and returns the key for the one message that follows.
    ///
    /// A shared secret of zero means that the other side chose a point of small order: anyone
    /// would know the key.
    fn mix_key(&mut self, ours: &StaticSecret, theirs: &PublicKey) -> Result<Key, Unopened> {
        let shared = ours.diffie_hellman(theirs);
        if !shared.was_contributory() {
            return Err(Unopened);
        }
        let (chain, key) = derive(&self.chain, shared.as_bytes());
        self.chain = chain;
        Ok(key)
    }

    fn seal(&mut self, key: &Key, out: &mut Vec<u8>, plain: &[u8]) -> Result<(), Unopened> {
        let from = out.len();
        out.extend_from_slice(plain);
        let body = out.get_mut(from..).ok_or(Unopened)?;
        let tag = ChaCha20Poly1305::new(key.as_slice().into())
            .encrypt_in_place_detached(&Nonce::default(), &self.hash, body)
            .map_err(|_e| Unopened)?;
        out.extend_from_slice(&tag);
        let sealed = out.get(from..).ok_or(Unopened)?;
        self.mix_hash(sealed);
        Ok(())
    }

    fn open(&mut self, key: &Key, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let split = sealed.len().checked_sub(SEAL_BYTES).ok_or(Unopened)?;
        let (body, tag) = sealed.split_at(split);
        let mut plain = Zeroizing::new(body.to_vec());
        ChaCha20Poly1305::new(key.as_slice().into())
            .decrypt_in_place_detached(
                &Nonce::default(),
                &self.hash,
                plain.as_mut_slice(),
                Tag::from_slice(tag),
            )
            .map_err(|_e| Unopened)?;
        self.mix_hash(sealed);
        Ok(plain)
    }

    /// Returns 16 bytes that only the two ends can compute at this point.
    fn mark(&self, label: &[u8]) -> [u8; 16] {
        first_half(&hmac(&self.chain, &[label, &self.hash]))
    }
}

/// HKDF of the Noise specification with two outputs.
fn derive(chain: &Key, input: &[u8]) -> (Key, Key) {
    let temporary = hmac(chain, &[input]);
    let one = hmac(&temporary, &[&[1]]);
    let two = hmac(&temporary, &[one.as_slice(), &[2]]);
    (one, two)
}

/// HMAC (RFC 2104) over BLAKE2s with a key of one hash.
pub(crate) fn hmac(key: &Key, parts: &[&[u8]]) -> Key {
    let mut pad = Zeroizing::new([0u8; BLOCK_BYTES]);
    for (slot, byte) in pad.iter_mut().zip(key.iter()) {
        *slot = *byte;
    }
    let mut inner = Blake2s256::new().chain_update(pad.map(|b| b ^ 0x36));
    for part in parts {
        inner.update(part);
    }
    let mut inner_hash: [u8; HASH_BYTES] = inner.finalize().into();
    let outer = Blake2s256::new()
        .chain_update(pad.map(|b| b ^ 0x5c))
        .chain_update(inner_hash);
    inner_hash.zeroize();
    Zeroizing::new(outer.finalize().into())
}

fn first_half(bytes: &[u8; HASH_BYTES]) -> [u8; 16] {
    let mut out = [0; 16];
    for (slot, byte) in out.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    out
}

/// Reads a public key at the front; returns it and the rest.
fn take_key(bytes: &[u8]) -> Result<(PublicKey, &[u8]), Unopened> {
    let (key, rest) = bytes.split_first_chunk::<KEY_BYTES>().ok_or(Unopened)?;
    Ok((PublicKey::from(*key), rest))
}

/// The initiator between the two messages.
#[derive(Clone)]
pub(crate) struct Initiator {
    symmetric: Symmetric,
    ephemeral: StaticSecret,
    own: StaticSecret,
}

impl Initiator {
    /// Writes the first message to `out` and waits for the second.
    pub(crate) fn start(
        prologue: &[u8],
        keys: (&StaticSecret, &PublicKey),
        ephemeral: StaticSecret,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Self, Unopened> {
        let (own, responder) = keys;
        let mut symmetric = Symmetric::new(prologue, responder);
        let public = PublicKey::from(&ephemeral);
        out.extend_from_slice(public.as_bytes());
        symmetric.mix_hash(public.as_bytes());
        let key = symmetric.mix_key(&ephemeral, responder)?;
        symmetric.seal(&key, out, PublicKey::from(own).as_bytes())?;
        let key = symmetric.mix_key(own, responder)?;
        symmetric.seal(&key, out, payload)?;
        Ok(Self {
            symmetric,
            ephemeral,
            own: own.clone(),
        })
    }

    /// Returns what the answer will be marked with; see [`Symmetric::mark`].
    pub(crate) fn mark(&self, label: &[u8]) -> [u8; 16] {
        self.symmetric.mark(label)
    }

    /// Opens the second message. A failure changes nothing: the true answer may still come.
    pub(crate) fn finish(&self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let (theirs, sealed) = take_key(message)?;
        let mut symmetric = self.symmetric.clone();
        symmetric.mix_hash(theirs.as_bytes());
        let _ee: Key = symmetric.mix_key(&self.ephemeral, &theirs)?;
        let key = symmetric.mix_key(&self.own, &theirs)?;
        symmetric.open(&key, sealed)
    }
}

/// The responder after the first key agreement: the initiator's claimed key is known, not yet proven.
pub(crate) struct Opening<'m> {
    symmetric: Symmetric,
    ephemeral: PublicKey,
    initiator: PublicKey,
    sealed: &'m [u8],
}

impl<'m> Opening<'m> {
    /// Opens the initiator's public key: one key agreement.
    pub(crate) fn start(
        prologue: &[u8],
        own: &StaticSecret,
        message: &'m [u8],
    ) -> Result<Self, Unopened> {
        let (ephemeral, rest) = take_key(message)?;
        let (sealed_key, sealed) = rest
            .split_at_checked(KEY_BYTES + SEAL_BYTES)
            .ok_or(Unopened)?;
        let mut symmetric = Symmetric::new(prologue, &PublicKey::from(own));
        symmetric.mix_hash(ephemeral.as_bytes());
        let key = symmetric.mix_key(own, &ephemeral)?;
        let opened = symmetric.open(&key, sealed_key)?;
        let (initiator, _) = take_key(&opened)?;
        Ok(Self {
            symmetric,
            ephemeral,
            initiator,
            sealed,
        })
    }

    /// Opens the payload: the second key agreement, which proves the initiator's key.
    pub(crate) fn payload(
        mut self,
        own: &StaticSecret,
    ) -> Result<(Responder, Zeroizing<Vec<u8>>), Unopened> {
        let key = self.symmetric.mix_key(own, &self.initiator)?;
        let payload = self.symmetric.open(&key, self.sealed)?;
        let responder = Responder {
            symmetric: self.symmetric,
            ephemeral: self.ephemeral,
            initiator: self.initiator,
        };
        Ok((responder, payload))
    }
}

/// The responder between the two messages.
pub(crate) struct Responder {
    symmetric: Symmetric,
    ephemeral: PublicKey,
    initiator: PublicKey,
}

impl Responder {
    /// Returns the initiator's proven key.
    pub(crate) fn initiator(&self) -> [u8; KEY_BYTES] {
        self.initiator.to_bytes()
    }

    /// Returns what the answer must be marked with.
    pub(crate) fn mark(&self, label: &[u8]) -> [u8; 16] {
        self.symmetric.mark(label)
    }

    /// Writes the second message to `out`.
    pub(crate) fn answer(
        mut self,
        ephemeral: &StaticSecret,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Unopened> {
        let public = PublicKey::from(ephemeral);
        out.extend_from_slice(public.as_bytes());
        self.symmetric.mix_hash(public.as_bytes());
        let _ee: Key = self.symmetric.mix_key(ephemeral, &self.ephemeral)?;
        let key = self.symmetric.mix_key(ephemeral, &self.initiator)?;
        self.symmetric.seal(&key, out, payload)
    }
}

#[cfg(test)]
mod tests;
