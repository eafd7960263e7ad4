//! What both ends compute: ML-KEM-768 and X25519 together, over everything said.
//!
//! ```text
//!  h1 = H(label ‖ beginner's id ‖ other's id ‖ beginner's WireGuard key ‖ other's ‖ exchange ‖ ek)
//!  h2 = H(h1 ‖ ciphertext ‖ other's X25519)         answer check = MAC(mlkem; "answer" ‖ h2)
//!  h3 = H(h2 ‖ beginner's X25519)
//!  root = MAC(h3; mlkem ‖ x25519)                   finish, done check = MAC(root; "finish", "done" ‖ h3)
//!                                                   pre-shared key     = MAC(root; "key" ‖ h3)
//! ```
//!
//! H is BLAKE2s, MAC is HMAC over it (RFC 2104), so the last two lines are HKDF (RFC 5869). Whoever breaks
//! one of the two key agreements knows nothing: both secrets enter the root together. The transcript
//! holds who, with which keys, and every byte, so an exchange between others or with other keys gives
//! another key.

use blake2::{Blake2s256, Digest as _};
use hedgerow_model::id::DeviceId;
use hedgerow_model::statement::X25519Public;
use ml_kem::kem::{Decapsulate as _, KeyExport as _};
use ml_kem::{B32, DecapsulationKey, EncapsulationKey, MlKem768, Seed};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::noise::hmac;
use crate::output::Psk;

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203).
pub const ENCAPSULATION_KEY_BYTES: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext (FIPS 203).
pub const CIPHERTEXT_BYTES: usize = 1088;

const LABEL: &[u8] = b"hedgerow-psk-v1";
const ANSWER_LABEL: &[u8] = b"hedgerow-psk-v1 answer";
const FINISH_LABEL: &[u8] = b"hedgerow-psk-v1 finish";
const DONE_LABEL: &[u8] = b"hedgerow-psk-v1 done";
const KEY_LABEL: &[u8] = b"hedgerow-psk-v1 key";

/// Which exchange: 8 random bytes of whoever begins.
pub type Exchange = [u8; 8];
/// Proof that the sender computed the same.
pub type Check = [u8; 16];

type Secret = Zeroizing<[u8; 32]>;
type Hash = [u8; 32];

/// Who agrees, with which WireGuard keys: the beginning side first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parties {
    pub(crate) devices: [DeviceId; 2],
    pub(crate) keys: [X25519Public; 2],
}

/// Compares in a time that does not depend on where two secrets differ.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |bits, (x, y)| bits | (x ^ y));
    a.len() == b.len() && differing == 0
}

fn first_transcript(
    parties: &Parties,
    exchange: &Exchange,
    key: &[u8; ENCAPSULATION_KEY_BYTES],
) -> Hash {
    let mut hash = Blake2s256::new().chain_update(LABEL);
    for device in parties.devices {
        hash.update(device.0);
    }
    for key in parties.keys {
        hash.update(key.0);
    }
    hash.update(exchange);
    hash.update(key);
    hash.finalize().into()
}

fn second_transcript(first: &Hash, ciphertext: &[u8], x25519: &[u8; 32]) -> Hash {
    let hash = Blake2s256::new().chain_update(first);
    hash.chain_update(ciphertext)
        .chain_update(x25519)
        .finalize()
        .into()
}

fn check(key: &Secret, label: &[u8], transcript: &Hash) -> Check {
    let mac = hmac(key, &[label, transcript]);
    let mut out = [0; 16];
    for (slot, byte) in out.iter_mut().zip(mac.iter()) {
        *slot = *byte;
    }
    out
}

/// What both ends have in the end.
#[derive(Clone)]
pub(crate) struct Agreed {
    pub(crate) psk: Psk,
    pub(crate) finish: Check,
    pub(crate) done: Check,
}

/// The last two lines of the schedule; nothing when the other side chose a point of small order.
fn conclude(
    second: &Hash,
    mlkem: &Secret,
    ours: &StaticSecret,
    (theirs, beginners): (&[u8; 32], &[u8; 32]),
) -> Option<Agreed> {
    let shared = ours.diffie_hellman(&PublicKey::from(*theirs));
    if !shared.was_contributory() {
        return None;
    }
    let third: Hash = Blake2s256::new()
        .chain_update(second)
        .chain_update(beginners)
        .finalize()
        .into();
    let root = hmac(
        &Zeroizing::new(third),
        &[mlkem.as_slice(), shared.as_bytes()],
    );
    Some(Agreed {
        psk: Psk::from_bytes(*hmac(&root, &[KEY_LABEL, &third])),
        finish: check(&root, FINISH_LABEL, &third),
        done: check(&root, DONE_LABEL, &third),
    })
}

/// The beginning side's secrets before the answer. The ML-KEM key is kept as its seed: expanded it is
/// thirty times as large.
#[derive(Clone)]
pub(crate) struct Beginner {
    parties: Parties,
    pub(crate) exchange: Exchange,
    seed: Zeroizing<[u8; 64]>,
    x25519: StaticSecret,
}

impl Beginner {
    pub(crate) fn new(
        parties: Parties,
        exchange: Exchange,
        (seed_a, seed_b): (&Secret, &Secret),
        x25519: StaticSecret,
    ) -> Self {
        let mut seed = Zeroizing::new([0; 64]);
        for (slot, byte) in seed.iter_mut().zip(seed_a.iter().chain(seed_b.iter())) {
            *slot = *byte;
        }
        Self {
            parties,
            exchange,
            seed,
            x25519,
        }
    }

    fn decapsulation(&self) -> DecapsulationKey<MlKem768> {
        DecapsulationKey::from_seed(Seed::from(*self.seed))
    }

    /// Returns the encapsulation key, the same each time.
    pub(crate) fn key(&self) -> [u8; ENCAPSULATION_KEY_BYTES] {
        self.decapsulation().encapsulation_key().to_bytes().into()
    }

    /// Returns its X25519 public key.
    pub(crate) fn x25519(&self) -> [u8; 32] {
        PublicKey::from(&self.x25519).to_bytes()
    }

    /// Takes the answer; nothing when it was not made for this exchange between these two with these keys.
    pub(crate) fn finish(
        &self,
        ciphertext: &[u8; CIPHERTEXT_BYTES],
        theirs: &[u8; 32],
        answer_check: &Check,
    ) -> Option<Agreed> {
        let decapsulation = self.decapsulation();
        let key: [u8; ENCAPSULATION_KEY_BYTES] =
            decapsulation.encapsulation_key().to_bytes().into();
        let mlkem: Secret = Zeroizing::new(decapsulation.decapsulate(&(*ciphertext).into()).into());
        let first = first_transcript(&self.parties, &self.exchange, &key);
        let second = second_transcript(&first, ciphertext, theirs);
        if !same(&check(&mlkem, ANSWER_LABEL, &second), answer_check) {
            return None;
        }
        conclude(&second, &mlkem, &self.x25519, (theirs, &self.x25519()))
    }
}

/// The answering side between its answer and the end.
#[derive(Clone)]
pub(crate) struct Answerer {
    second: Hash,
    mlkem: Secret,
    x25519: StaticSecret,
}

/// What the answering side sends.
pub(crate) struct Answered {
    pub(crate) ciphertext: [u8; CIPHERTEXT_BYTES],
    pub(crate) x25519: [u8; 32],
    pub(crate) check: Check,
}

impl Answerer {
    /// Answers; nothing when the bytes are no encapsulation key (FIPS 203, 7.2).
    pub(crate) fn answer(
        parties: &Parties,
        exchange: &Exchange,
        key: &[u8; ENCAPSULATION_KEY_BYTES],
        (random, x25519): (&Secret, StaticSecret),
    ) -> Option<(Self, Answered)> {
        let encapsulation = EncapsulationKey::<MlKem768>::new(&(*key).into()).ok()?;
        let (ciphertext, mlkem) = encapsulation.encapsulate_deterministic(&B32::from(**random));
        let ciphertext: [u8; CIPHERTEXT_BYTES] = ciphertext.into();
        let mlkem: Secret = Zeroizing::new(mlkem.into());
        let public = PublicKey::from(&x25519).to_bytes();
        let first = first_transcript(parties, exchange, key);
        let second = second_transcript(&first, &ciphertext, &public);
        let answered = Answered {
            ciphertext,
            x25519: public,
            check: check(&mlkem, ANSWER_LABEL, &second),
        };
        let this = Self {
            second,
            mlkem,
            x25519,
        };
        Some((this, answered))
    }

    /// Takes the end; nothing when the other side does not have the same secret.
    pub(crate) fn finish(&self, theirs: &[u8; 32], finish: &Check) -> Option<Agreed> {
        let agreed = conclude(&self.second, &self.mlkem, &self.x25519, (theirs, theirs))?;
        same(&agreed.finish, finish).then_some(agreed)
    }
}
