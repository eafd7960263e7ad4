//! The device's keys: three slots on disk, each one file that is whole or not there.

use hedgerow_identity::Verified;
use hedgerow_identity::csr;
use hedgerow_identity::key::{SigningKey as _, SoftwareP256};
use hedgerow_identity::slots::{Disk, Found, Mend, Slot, decide};
use hedgerow_identity::statement::{
    BINDING_LIFE_MAX, sign_binding, sign_endpoints, verify_binding,
};
use hedgerow_linux::tunnel::PrivateKey;
use hedgerow_mesh::{IntroductionSecret, OwnIdentity};
use hedgerow_model::statement::{Binding, EndpointRecord, P256Public, Ticket, X25519Public};
use hedgerow_model::wire;
use hedgerow_model::{Now, Wall};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use zeroize::{Zeroize as _, Zeroizing};

use super::entropy::{self, SystemRandom};
use super::store::Store;
use crate::failure::Failure;

/// Largest slot file, in bytes.
pub(crate) const SLOT_BYTES_MAX: usize = 64 << 10;

/// A key pair and an introduction key that no certificate was issued for yet.
pub(crate) struct Keys {
    /// Signs requests, bindings and TLS handshakes.
    pub(crate) identity: SoftwareP256,
    introduction: Zeroizing<[u8; 32]>,
}

/// What one slot file holds.
pub(crate) struct Identity {
    /// The keys.
    pub(crate) keys: Keys,
    /// Leaf first, DER.
    pub(crate) chain: Vec<Vec<u8>>,
    /// The ticket issued with it, signed.
    pub(crate) ticket: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Record {
    #[cbor(n(0), with = "minicbor::bytes")]
    key: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    introduction: Vec<u8>,
    #[n(2)]
    chain: Vec<ByteVec>,
    #[cbor(n(3), with = "minicbor::bytes")]
    ticket: Vec<u8>,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.key.zeroize();
        self.introduction.zeroize();
    }
}

impl Keys {
    /// Makes new keys.
    ///
    /// # Errors
    ///
    /// Never, in practice.
    pub(crate) fn generate() -> Result<Self, Failure> {
        let identity = SoftwareP256::generate(&mut SystemRandom).map_err(bug)?;
        Ok(Self {
            identity,
            introduction: Zeroizing::new(entropy::bytes()),
        })
    }

    /// Returns a certificate request, DER.
    ///
    /// # Errors
    ///
    /// When the key store fails.
    pub(crate) fn request(&self) -> Result<Vec<u8>, Failure> {
        csr::make(&self.identity).map_err(bug)
    }

    /// Returns the public half of the introduction key.
    pub(crate) fn introduction_public(&self) -> X25519Public {
        self.introduction().public()
    }

    fn introduction(&self) -> IntroductionSecret {
        IntroductionSecret::from_bytes(*self.introduction)
    }

    fn copy(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            introduction: self.introduction.clone(),
        }
    }
}

impl Identity {
    /// Puts an identity together.
    pub(crate) fn new(keys: &Keys, chain: Vec<Vec<u8>>, ticket: Vec<u8>) -> Self {
        Self {
            keys: keys.copy(),
            chain,
            ticket,
        }
    }

    /// Encodes a slot file.
    ///
    /// # Errors
    ///
    /// Never, in practice.
    pub(crate) fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let record = Record {
            key: self.keys.identity.to_pkcs8_der().map_err(bug)?.to_vec(),
            introduction: self.keys.introduction.to_vec(),
            chain: self.chain.iter().cloned().map(ByteVec::from).collect(),
            ticket: self.ticket.clone(),
        };
        Ok(Zeroizing::new(wire::encode(&record)))
    }

    /// Decodes a slot file; `None` for anything that [`Identity::encode`] did not write.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record: Record = wire::decode_canonical("identity", bytes).ok()?;
        let introduction = <[u8; 32]>::try_from(record.introduction.as_slice()).ok()?;
        let chain = std::mem::take(&mut record.chain);
        Some(Self {
            keys: Keys {
                identity: SoftwareP256::from_pkcs8_der(&record.key).ok()?,
                introduction: Zeroizing::new(introduction),
            },
            chain: chain.into_iter().map(Vec::from).collect(),
            ticket: std::mem::take(&mut record.ticket),
        })
    }
}

/// Every identity in hand.
pub(crate) struct Identities {
    current: Identity,
    next: Option<Identity>,
    previous: Option<Identity>,
}

impl Identities {
    /// Reads the slots and mends what a power cut left.
    ///
    /// # Errors
    ///
    /// When the device is not enrolled, or the disk fails.
    pub(crate) fn read(store: &Store) -> Result<Self, Failure> {
        let mut slots = Slots::read(store)?;
        let decision = decide(slots.disk);
        for mend in &decision.mend {
            tracing::warn!(?mend, "mending the identity's slots");
            match mend {
                Mend::FinishPromotion => store.move_slot(Slot::Next, Slot::Current)?,
                Mend::RestorePrevious => store.move_slot(Slot::Previous, Slot::Current)?,
                Mend::SetCurrentAside => store.set_slot_aside(Slot::Current)?,
                Mend::DropNext => store.remove_slot(Slot::Next)?,
            }
        }
        if !decision.mend.is_empty() {
            slots = Slots::read(store)?;
        }
        match slots.current {
            Some(current) => Ok(Self {
                current,
                next: slots.next,
                previous: slots.previous,
            }),
            None => Err(not_enrolled()),
        }
    }

    /// Returns the identity in use.
    pub(crate) fn current(&self) -> &Identity {
        &self.current
    }

    /// Returns the identity that the server has not accepted yet.
    pub(crate) fn next(&self) -> Option<&Identity> {
        self.next.as_ref()
    }

    /// Returns the public identity keys in hand, the newest first.
    pub(crate) fn keys(&self) -> Vec<P256Public> {
        self.all().map(|i| i.keys.identity.public()).collect()
    }

    /// Stores what was issued in the slot `next`.
    ///
    /// # Errors
    ///
    /// When the disk does not take it; the others stay.
    pub(crate) fn store_next(&mut self, store: &Store, next: Identity) -> Result<(), Failure> {
        store.write_slot(Slot::Next, &next.encode()?)?;
        self.next = Some(next);
        Ok(())
    }

    /// Makes `next` current.
    ///
    /// # Errors
    ///
    /// When the disk fails; the next start finishes it.
    pub(crate) fn promote(&mut self, store: &Store) -> Result<(), Failure> {
        if let Some(next) = self.next.take() {
            self.previous = Some(std::mem::replace(&mut self.current, next));
            store.move_slot(Slot::Current, Slot::Previous)?;
            store.move_slot(Slot::Next, Slot::Current)?;
        }
        Ok(())
    }

    /// Removes `next`.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn drop_next(&mut self, store: &Store) -> Result<(), Failure> {
        self.next = None;
        store.remove_slot(Slot::Next)
    }

    /// Makes a WireGuard key and binds it to `ticket`, by the identity key that the ticket names. Peers
    /// take it for the newer of two when it is `dated` later.
    ///
    /// # Errors
    ///
    /// When no key in hand is the ticket's.
    pub(crate) fn bind(
        &self,
        ticket: &Verified<Ticket>,
        dated: Wall,
        now: Now,
    ) -> Result<(PrivateKey, OwnIdentity), Failure> {
        let by_key = |i: &&Identity| i.keys.identity.public() == ticket.identity_key;
        let by_introduction =
            |i: &&Identity| i.keys.introduction_public() == ticket.introduction_key;
        let missing = || {
            Failure::new(
                hedgerow_model::Fault::Bug,
                "no key is the ticket's",
                "enroll again",
            )
        };
        let signer = self.all().find(by_key).ok_or_else(missing)?;
        let introduced = self.all().find(by_introduction).ok_or_else(missing)?;
        let previous = self.all().find(|i| !by_introduction(i));
        let secret = PrivateKey::from_bytes(entropy::bytes());
        let secs = dated.secs();
        let body = Binding {
            id: ticket.id,
            wireguard_key: secret.public(),
            sequence: secs,
            not_after_secs: secs.saturating_add(BINDING_LIFE_MAX.as_secs()),
        };
        let signed = sign_binding(&body, &signer.keys.identity).map_err(bug)?;
        let own = OwnIdentity {
            ticket: ticket.clone(),
            binding: verify_binding(&signed, ticket, now).map_err(bug)?,
            introduction: introduced.keys.introduction(),
            previous_introduction: previous.map(|i| i.keys.introduction()),
        };
        Ok((secret, own))
    }

    /// Signs where the device may be reached.
    ///
    /// # Errors
    ///
    /// When no key in hand is the ticket's.
    pub(crate) fn sign_record(
        &self,
        ticket: &Ticket,
        record: &EndpointRecord,
    ) -> Result<Vec<u8>, Failure> {
        let by_key = |i: &&Identity| i.keys.identity.public() == ticket.identity_key;
        let signer = self.all().find(by_key).ok_or_else(|| {
            Failure::new(
                hedgerow_model::Fault::Bug,
                "no key is the ticket's",
                "enroll again",
            )
        })?;
        sign_endpoints(record, &signer.keys.identity).map_err(bug)
    }

    fn all(&self) -> impl Iterator<Item = &Identity> {
        [
            self.next.as_ref(),
            Some(&self.current),
            self.previous.as_ref(),
        ]
        .into_iter()
        .flatten()
    }
}

struct Slots {
    disk: Disk,
    current: Option<Identity>,
    next: Option<Identity>,
    previous: Option<Identity>,
}

impl Slots {
    fn read(store: &Store) -> Result<Self, Failure> {
        let read = |slot| -> Result<(Found, Option<Identity>), Failure> {
            let bytes = store.read_slot(slot)?;
            let found = bytes.is_some();
            let identity = bytes.and_then(|bytes| Identity::decode(&bytes));
            Ok(match (found, &identity) {
                (false, _) => (Found::Nothing, None),
                (true, None) => (Found::Broken, None),
                (true, Some(_)) => (Found::Complete, identity),
            })
        };
        let (current, next, previous) = (
            read(Slot::Current)?,
            read(Slot::Next)?,
            read(Slot::Previous)?,
        );
        Ok(Self {
            disk: Disk {
                current: current.0,
                next: next.0,
                previous: previous.0,
            },
            current: current.1,
            next: next.1,
            previous: previous.1,
        })
    }
}

/// Returns the spelling of a key that an operator compares.
pub(crate) fn fingerprint(key: &SoftwareP256) -> String {
    match key.public_key().spki_digest() {
        Ok(digest) => hedgerow_identity::fingerprint::fingerprint_of(&digest),
        Err(_) => String::new(),
    }
}

pub(crate) fn not_enrolled() -> Failure {
    Failure::operator(
        "this device is not enrolled",
        "run `hedgerow-agent enroll` with a token from `hedgerow token create`",
    )
}

fn bug(error: impl std::fmt::Display) -> Failure {
    Failure::new(hedgerow_model::Fault::Bug, error, "report this")
}
