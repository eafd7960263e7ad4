//! Who may speak for the trust domain: a chain of manifests that begins at a pinned root set.
//!
//! ```text
//!  pinned digest ═ root set of manifest 1 ─ signed by threshold of its own roots
//!                          ▼ hash of payload, version + 1
//!                     manifest 2 ─ signed by threshold of 1's roots, and of its own
//!                          ▼ …
//! ```
//!
//! A signed manifest is a CBOR array of COSE_Sign1, one per root, over the same payload, in the order
//! of their key ids.

use hedgerow_model::address::{Overlay, Prefix, domain_prefix};
use hedgerow_model::id::{Digest, SiteName, TrustDomain};
use hedgerow_model::statement::{Beacon, Issuer, KeyId, Manifest, Role, Root};
use hedgerow_model::wire::{WireError, decode_canonical, encode};
use minicbor::{Decoder, Encoder};

use crate::certificate::CaFacts;
use crate::cose::{self, ContentType, Envelope};
use crate::error::{RefusedManifest, SignError};
use crate::key::{PublicKey, SigningKey};

/// Most roots in one manifest.
pub const ROOTS_MAX: usize = 8;
/// Most issuers in one manifest.
pub const ISSUERS_MAX: usize = 1024;
/// Most role keys in one manifest.
pub const ROLE_KEYS_MAX: usize = 256;
/// Most manifests in one chain.
pub const CHAIN_MAX: usize = 1024;
/// Largest signed manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// What a manifest did to the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// It is in force now.
    New,
    /// It was in force already.
    Known,
}

/// A chain of manifests that begins at a pinned root set, and what the newest says.
///
/// There is no way to make one without the pin.
#[derive(Debug, Clone)]
pub struct Trust {
    links: Vec<Link>,
    manifest: Manifest,
    issuers: Vec<IssuerScope>,
    domain: Prefix,
}

#[derive(Debug, Clone)]
struct Link {
    bytes: Vec<u8>,
    payload: Digest,
}

/// An issuer and what it may assign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerScope {
    issuer: Issuer,
    id: KeyId,
    facts: Option<CaFacts>,
}

impl IssuerScope {
    /// Returns the issuer as the manifest lists it.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Returns the id of its key.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Returns its key.
    pub fn key(&self) -> PublicKey {
        PublicKey::P256(self.issuer.key)
    }

    /// Returns the one site it may speak for; absent means all.
    pub fn site(&self) -> Option<&SiteName> {
        self.issuer.site.as_ref()
    }

    /// Returns what its certificate says; absent for an issuer that signs statements only.
    pub fn facts(&self) -> Option<&CaFacts> {
        self.facts.as_ref()
    }
}

/// Returns the digest of a root set: what tokens pin.
pub fn root_set_digest(roots: &[Root]) -> Digest {
    let mut sorted: Vec<&Root> = roots.iter().collect();
    sorted.sort_by_key(|root| root.key);
    let mut out = b"hedgerow-root-set-v1".to_vec();
    for root in sorted {
        out.extend_from_slice(&root.key.0);
        out.extend_from_slice(&Digest::of(&root.certificate).0);
    }
    Digest::of(&out)
}

/// Signs a manifest with `roots`.
///
/// # Errors
///
/// [`SignError`] when a key store fails, or a key is not a root's kind; nothing was signed.
pub fn sign_manifest(manifest: &Manifest, roots: &[&dyn SigningKey]) -> Result<Vec<u8>, SignError> {
    let payload = encode(manifest);
    let mut keys = roots.to_vec();
    keys.sort_by_key(|key| key.key_id());
    keys.dedup_by_key(|key| key.key_id());
    let mut signed = Vec::with_capacity(keys.len());
    for key in keys {
        if !matches!(key.public_key(), PublicKey::P384(_)) {
            return Err(SignError::WrongKind);
        }
        signed.push(cose::sign(&payload, ContentType::Manifest, key)?);
    }
    join(&signed).ok_or(SignError::Encoding)
}

/// Adds the signatures of one signed manifest to another of the same payload, for roots that are
/// kept in different places.
///
/// # Errors
///
/// [`RefusedManifest::Malformed`] when one is malformed or the payloads differ.
pub fn merge_signatures(a: &[u8], b: &[u8]) -> Result<Vec<u8>, RefusedManifest> {
    let (a, b) = (SignedManifest::decode(a)?, SignedManifest::decode(b)?);
    if a.payload != b.payload {
        return Err(RefusedManifest::Malformed);
    }
    let mut all: Vec<(KeyId, &[u8])> = a.signatures.iter().chain(&b.signatures).copied().collect();
    all.sort_by_key(|(id, _)| *id);
    all.dedup_by_key(|(id, _)| *id);
    let all: Vec<&[u8]> = all.into_iter().map(|(_, bytes)| bytes).collect();
    join(&all).ok_or(RefusedManifest::Malformed)
}

fn join<T: AsRef<[u8]>>(signed: &[T]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    Encoder::new(&mut out).array(signed.len() as u64).ok()?;
    for one in signed {
        out.extend_from_slice(one.as_ref());
    }
    Some(out)
}

struct SignedManifest<'b> {
    payload: &'b [u8],
    signatures: Vec<(KeyId, &'b [u8])>,
}

impl<'b> SignedManifest<'b> {
    fn decode(bytes: &'b [u8]) -> Result<Self, RefusedManifest> {
        Self::split(bytes).ok_or(RefusedManifest::Malformed)
    }

    fn split(bytes: &'b [u8]) -> Option<Self> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return None;
        }
        let mut d = Decoder::new(bytes);
        let n = usize::try_from(d.array().ok()??).ok()?;
        if n == 0 || n > ROOTS_MAX {
            return None;
        }
        let mut payload = None;
        let mut signatures = Vec::with_capacity(n);
        for _ in 0..n {
            let from = d.position();
            d.skip().ok()?;
            let one = bytes.get(from..d.position())?;
            let envelope = Envelope::decode(one).ok()?;
            let same = *payload.get_or_insert(envelope.unverified_payload());
            if same != envelope.unverified_payload() {
                return None;
            }
            signatures.push((envelope.key_id(), one));
        }
        let parts: Vec<&[u8]> = signatures.iter().map(|(_, one)| *one).collect();
        let one_spelling = join(&parts).is_some_and(|joined| joined == bytes)
            && signatures.is_sorted_by(|a, b| a.0 < b.0);
        Some(Self {
            payload: payload?,
            signatures,
        })
        .filter(|_| one_spelling)
    }

    /// Counts the roots of `manifest` that signed, and refuses when they are too few.
    fn check_threshold(&self, manifest: &Manifest) -> Result<(), RefusedManifest> {
        let need = usize::try_from(manifest.threshold).unwrap_or(usize::MAX);
        let have = manifest
            .roots
            .iter()
            .filter(|root| self.is_signed_by(root))
            .count();
        if have >= need {
            Ok(())
        } else {
            Err(RefusedManifest::TooFewSignatures { have, need })
        }
    }

    fn is_signed_by(&self, root: &Root) -> bool {
        let key = PublicKey::P384(root.key);
        let id = key.id();
        self.signatures
            .iter()
            .filter(|(named, _)| *named == id)
            .filter_map(|(_, one)| Envelope::decode(one).ok())
            .any(|envelope| envelope.verify(&key, ContentType::Manifest).is_ok())
    }
}

impl Trust {
    /// Begins a chain at the first manifest, whose root set must have the pinned digest.
    ///
    /// # Errors
    ///
    /// [`RefusedManifest`]; above all [`RefusedManifest::WrongGenesis`] when the other end belongs
    /// to another trust domain than the token.
    pub fn pinned(genesis: Digest, signed: &[u8]) -> Result<Self, RefusedManifest> {
        let parts = SignedManifest::decode(signed)?;
        let manifest: Manifest =
            decode_canonical("manifest", parts.payload).map_err(RefusedManifest::Wire)?;
        let got = root_set_digest(&manifest.roots);
        if got != genesis || manifest.genesis != genesis {
            let got = if got == genesis {
                manifest.genesis
            } else {
                got
            };
            return Err(RefusedManifest::WrongGenesis { want: genesis, got });
        }
        if manifest.version != 1 || manifest.previous.is_some() {
            return Err(RefusedManifest::NotFirst {
                got: manifest.version,
            });
        }
        let issuers = check_content(&manifest)?;
        parts.check_threshold(&manifest)?;
        let link = Link {
            bytes: signed.to_vec(),
            payload: Digest::of(parts.payload),
        };
        Ok(Self {
            links: vec![link],
            manifest,
            issuers,
            domain: domain_prefix(&genesis),
        })
    }

    /// Rebuilds from a stored or received chain, first manifest first.
    ///
    /// # Errors
    ///
    /// [`RefusedManifest`] for the first link that does not hold.
    pub fn from_chain<T: AsRef<[u8]>>(
        genesis: Digest,
        chain: &[T],
    ) -> Result<Self, RefusedManifest> {
        let (first, rest) = chain.split_first().ok_or(RefusedManifest::Empty)?;
        let mut trust = Self::pinned(genesis, first.as_ref())?;
        for link in rest {
            trust.adopt_manifest(link.as_ref())?;
        }
        Ok(trust)
    }

    /// Takes the next manifest of the chain.
    ///
    /// # Errors
    ///
    /// [`RefusedManifest`]; the manifest in force stays.
    pub fn adopt_manifest(&mut self, signed: &[u8]) -> Result<Adopted, RefusedManifest> {
        let parts = SignedManifest::decode(signed)?;
        let payload = Digest::of(parts.payload);
        let have = self.manifest.version;
        if let Some(got) = self.version_of(payload) {
            return match got == have {
                true => Ok(Adopted::Known),
                false => Err(RefusedManifest::Rollback { have, got }),
            };
        }
        parts.check_threshold(&self.manifest)?;
        let next: Manifest =
            decode_canonical("manifest", parts.payload).map_err(RefusedManifest::Wire)?;
        let version = next.version;
        if version <= have {
            return Err(RefusedManifest::Fork { version });
        }
        if version != have.saturating_add(1) {
            return Err(RefusedManifest::Gap { have, got: version });
        }
        if next.previous != self.links.last().map(|link| link.payload) {
            return Err(RefusedManifest::Fork { version });
        }
        let same_domain = next.trust_domain == self.manifest.trust_domain
            && next.genesis == self.manifest.genesis;
        if !same_domain {
            return Err(RefusedManifest::OtherDomain { version });
        }
        if self.links.len() >= CHAIN_MAX {
            return Err(RefusedManifest::OutOfBounds {
                version,
                rule: "the chain is full",
            });
        }
        let issuers = check_content(&next)?;
        parts.check_threshold(&next)?;
        self.links.push(Link {
            bytes: signed.to_vec(),
            payload,
        });
        self.manifest = next;
        self.issuers = issuers;
        Ok(Adopted::New)
    }

    /// Returns the version of the link with this payload.
    fn version_of(&self, payload: Digest) -> Option<u64> {
        let index = self.links.iter().position(|l| l.payload == payload)?;
        u64::try_from(index).ok()?.checked_add(1)
    }

    /// Takes every link of a chain that is news; links we hold are compared and passed over.
    ///
    /// # Errors
    ///
    /// [`RefusedManifest`] for the first link that does not hold; those before it are in force.
    pub fn adopt_chain<T: AsRef<[u8]>>(&mut self, chain: &[T]) -> Result<Adopted, RefusedManifest> {
        let mut news = Adopted::Known;
        for link in chain {
            match self.adopt_manifest(link.as_ref()) {
                Ok(Adopted::New) => news = Adopted::New,
                Ok(Adopted::Known) | Err(RefusedManifest::Rollback { .. }) => {}
                Err(refused) => return Err(refused),
            }
        }
        Ok(news)
    }

    /// Returns the manifest in force.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the signed bytes of the manifest in force.
    pub fn manifest_bytes(&self) -> &[u8] {
        self.links.last().map_or(&[], |link| &link.bytes)
    }

    /// Returns the trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.manifest.trust_domain
    }

    /// Returns the digest of the first root set.
    pub fn genesis(&self) -> Digest {
        self.manifest.genesis
    }

    /// Returns the trust domain's IPv6 /48.
    pub fn domain_prefix(&self) -> Prefix {
        self.domain
    }

    /// Returns the whole chain, first manifest first, to be stored or handed on.
    pub fn export(&self) -> Vec<Vec<u8>> {
        self.links.iter().map(|link| link.bytes.clone()).collect()
    }

    /// Returns the digest that the next manifest must name as its predecessor.
    pub fn payload_digest(&self) -> Digest {
        self.links
            .last()
            .map_or(Digest::default(), |link| link.payload)
    }

    /// Returns the links after `version`, for someone who is behind.
    pub fn links_after(&self, version: u64) -> Vec<Vec<u8>> {
        let skip = usize::try_from(version).unwrap_or(usize::MAX);
        self.links
            .iter()
            .skip(skip)
            .map(|link| link.bytes.clone())
            .collect()
    }

    /// Returns whether a beacon tells of a manifest that we do not have (freeze attack, lost push).
    pub fn is_behind(&self, beacon: &Beacon) -> bool {
        beacon.manifest > self.manifest.version
    }

    /// Visits the issuers of the manifest in force.
    pub fn issuers(&self) -> impl Iterator<Item = &IssuerScope> {
        self.issuers.iter()
    }

    /// Returns the issuer with this key id.
    pub fn issuer(&self, id: KeyId) -> Option<&IssuerScope> {
        self.issuers.iter().find(|issuer| issuer.id == id)
    }

    /// Returns the key with this id, if the manifest gives it the role.
    pub fn role_key(&self, role: Role, id: KeyId) -> Option<PublicKey> {
        self.manifest
            .role_keys
            .iter()
            .filter(|key| key.role == role)
            .map(|key| PublicKey::Ed25519(key.key))
            .find(|key| key.id() == id)
    }

    /// Returns whether `issuer` may assign `address` as an overlay address.
    ///
    /// A site's issuer: inside its certificate's permitted subtrees. Any issuer: IPv6 inside the
    /// trust domain's /48, IPv4 a unicast address that is neither loopback nor link-local.
    pub fn may_assign(&self, issuer: &IssuerScope, address: Overlay) -> bool {
        use std::net::IpAddr;
        let in_domain = match address.0 {
            IpAddr::V6(_) => self.domain.contains(address.0),
            IpAddr::V4(a) => {
                !(a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_broadcast())
                    && a.octets().first() != Some(&0)
            }
        };
        let in_site = issuer.site().is_none()
            || issuer
                .facts()
                .is_some_and(|ca| ca.permitted().iter().any(|p| p.contains(address.0)));
        in_domain && in_site
    }
}

/// Checks bounds, order and certificates; returns the issuers with their scopes.
fn check_content(manifest: &Manifest) -> Result<Vec<IssuerScope>, RefusedManifest> {
    let version = manifest.version;
    check_lists(manifest)
        .and_then(|()| check_roots(&manifest.roots))
        .and_then(|()| manifest.issuers.iter().map(check_issuer).collect())
        .map_err(|rule| RefusedManifest::OutOfBounds { version, rule })
}

fn check_lists(m: &Manifest) -> Result<(), &'static str> {
    if m.roots.is_empty() || m.roots.len() > ROOTS_MAX {
        return Err("it takes 1 to 8 roots");
    }
    if m.threshold == 0 || usize::try_from(m.threshold).unwrap_or(usize::MAX) > m.roots.len() {
        return Err("the threshold takes 1 to the number of roots");
    }
    if m.issuers.len() > ISSUERS_MAX || m.role_keys.len() > ROLE_KEYS_MAX {
        return Err("too many issuers or role keys");
    }
    let ordered = m.roots.is_sorted_by(|a, b| a.key < b.key)
        && m.issuers.is_sorted_by(|a, b| a.key < b.key)
        && m.role_keys
            .is_sorted_by(|a, b| (a.role, a.key) < (b.role, b.key));
    if !ordered {
        return Err("a list is out of order or doubled");
    }
    let keys = m.role_keys.iter().map(|k| k.key);
    let distinct: std::collections::BTreeSet<_> = keys.collect();
    if distinct.len() != m.role_keys.len() {
        return Err("one key has two roles");
    }
    Ok(())
}

fn check_roots(roots: &[Root]) -> Result<(), &'static str> {
    for root in roots.iter().filter(|root| !root.certificate.is_empty()) {
        let facts = CaFacts::parse(&root.certificate).map_err(|_e| "a root's certificate")?;
        if facts.key() != PublicKey::P384(root.key) {
            return Err("a root's certificate has another key");
        }
    }
    Ok(())
}

/// An empty certificate makes an issuer of statements that has no part in TLS; an issuer for one
/// site needs one, because it says which addresses the site has.
fn check_issuer(issuer: &Issuer) -> Result<IssuerScope, &'static str> {
    let facts = match issuer.certificate.is_empty() {
        true => None,
        false => Some(CaFacts::parse(&issuer.certificate).map_err(|_e| "an issuer's certificate")?),
    };
    let key = PublicKey::P256(issuer.key);
    if let Some(facts) = &facts {
        if facts.key() != key {
            return Err("an issuer's certificate has another key");
        }
        if facts.not_after_secs() < issuer.not_after_secs {
            return Err("an issuer outlives its certificate");
        }
    }
    let bounded = facts.as_ref().is_some_and(|f| !f.permitted().is_empty());
    if issuer.site.is_some() && !bounded {
        return Err("a site's issuer has no address constraint");
    }
    Ok(IssuerScope {
        id: key.id(),
        issuer: issuer.clone(),
        facts,
    })
}

impl From<WireError> for RefusedManifest {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

#[cfg(test)]
mod tests;
