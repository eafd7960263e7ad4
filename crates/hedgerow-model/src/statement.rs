//! Signed statements: what they say. How they are signed and believed is `hedgerow-identity`'s.
//!
//! Each is the payload of a COSE_Sign1 with its own content type, so that none can stand for another.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::address::{Overlay, OverlayAddresses, Prefix, Underlay};
use crate::id::{DeviceId, DeviceName, Digest, Labels, Revision, SiteName, TrustDomain};
use crate::program::DeviceState;

macro_rules! bytes_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "("))?;
                self.0.iter().take(4).try_for_each(|b| write!(f, "{b:02x}"))?;
                f.write_str("…)")
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                d.bytes()?.try_into().map(Self).map_err(|_e| {
                    decode::Error::message(concat!(
                        stringify!($name), " is not ", stringify!($len), " bytes"
                    ))
                })
            }
        }
    };
}

bytes_type!(
    /// A P-256 public key, SEC1 compressed.
    P256Public, 33
);
bytes_type!(
    /// A P-384 public key, SEC1 compressed.
    P384Public, 49
);
bytes_type!(
    /// An X25519 public key: introductions and WireGuard.
    X25519Public, 32
);
bytes_type!(
    /// An Ed25519 public key: role keys and enrollment tokens.
    Ed25519Public, 32
);
bytes_type!(
    /// First 8 bytes of the SHA-256 of a public key's encoding: which key signed.
    KeyId, 8
);

/// Who a device is and what it is labelled, by an issuing key. At most 300 bytes signed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Ticket {
    /// The device.
    #[n(0)]
    pub id: DeviceId,
    /// Its name, unique in its site.
    #[n(1)]
    pub name: DeviceName,
    /// Its site.
    #[n(2)]
    pub site: SiteName,
    /// The key that signs its bindings.
    #[n(3)]
    pub identity_key: P256Public,
    /// The key that introductions to it are sealed to.
    #[n(4)]
    pub introduction_key: X25519Public,
    /// Its labels.
    #[n(5)]
    pub labels: Labels,
    /// Its overlay addresses; it may send from no others.
    #[n(6)]
    pub addresses: OverlayAddresses,
    /// Grows with every change of name, labels or addresses; see [`RevocationList::min_epochs`]. A
    /// change of state travels in [`States`] and leaves it as it is.
    #[n(7)]
    pub epoch: u64,
    /// End of validity, in seconds since 1970; the certificate's end. Grace states follow.
    #[n(8)]
    pub not_after_secs: u64,
}

/// Which WireGuard key a device uses, by its identity key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Binding {
    /// The device.
    #[n(0)]
    pub id: DeviceId,
    /// Its WireGuard public key.
    #[n(1)]
    pub wireguard_key: X25519Public,
    /// Trusted seconds when made, so that it grows even after the device lost its state.
    #[n(2)]
    pub sequence: u64,
    /// End of validity, in seconds since 1970; at most 48 h after `sequence`.
    #[n(3)]
    pub not_after_secs: u64,
}

/// What is no longer trusted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Revoked {
    /// A device, whatever key it shows.
    #[n(0)]
    Device(#[n(0)] DeviceId),
    /// A public key: SHA-256 of its SubjectPublicKeyInfo.
    #[n(1)]
    Key(#[n(0)] Digest),
    /// An issuing certificate and all below it.
    #[n(2)]
    Issuer(#[n(0)] KeyId),
    /// Every device of a site.
    #[n(3)]
    Site(#[n(0)] SiteName),
}

/// One entry of a revocation list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Revocation {
    /// What.
    #[n(0)]
    pub what: Revoked,
    /// When, in seconds since 1970.
    #[n(1)]
    pub at_secs: u64,
    /// The entry may leave the list after this: nothing it names can still be valid or in grace.
    #[n(2)]
    pub drop_after_secs: u64,
    /// Why, for people; at most 120 bytes.
    #[n(3)]
    pub reason: String,
}

/// Most entries, of either kind, in one list.
pub const REVOCATIONS_MAX: usize = 100_000;

/// Everything that is revoked, by the revocation role key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Default)]
pub struct RevocationList {
    /// Order of lists; a smaller one is refused.
    #[n(0)]
    pub version: Revision,
    /// When made, in seconds since 1970.
    #[n(1)]
    pub issued_secs: u64,
    /// Sorted by [`Revocation::what`].
    #[n(2)]
    pub entries: Vec<Revocation>,
    /// Tickets of these devices below this epoch are refused; sorted by device.
    #[n(3)]
    pub min_epochs: Vec<(DeviceId, u64)>,
}

/// Devices out of normal service, by the policy role key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Default)]
pub struct States {
    /// Order of lists; a smaller one is refused.
    #[n(0)]
    pub revision: Revision,
    /// Sorted by device; a device without an entry is in normal service.
    #[n(1)]
    pub entries: Vec<(DeviceId, DeviceState)>,
}

/// What a role key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Role {
    /// Programs, states, configuration, names.
    #[n(0)]
    Policy,
    /// Revocation lists.
    #[n(1)]
    Revocation,
    /// Update metadata.
    #[n(2)]
    Update,
    /// Log checkpoints.
    #[n(3)]
    Checkpoint,
}

/// A root: signs manifests and issuing certificates.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Root {
    /// Its key.
    #[n(0)]
    pub key: P384Public,
    /// Its self-signed certificate, DER.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
}

/// An issuing key and how far it reaches.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Issuer {
    /// Signs tickets; the key of `certificate`.
    #[n(0)]
    pub key: P256Public,
    /// Its certificate under a root, DER.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
    /// The one site it may speak for; absent means the whole trust domain.
    #[n(2)]
    pub site: Option<SiteName>,
    /// End of its validity, in seconds since 1970.
    #[n(3)]
    pub not_after_secs: u64,
}

/// A role key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RoleKey {
    /// What it signs.
    #[n(0)]
    pub role: Role,
    /// The key.
    #[n(1)]
    pub key: Ed25519Public,
}

/// Who may speak for the trust domain, by the root keys: the first by its own, each later one also
/// by those before it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Manifest {
    /// 1 for the first; each next is one more.
    #[n(0)]
    pub version: u64,
    /// The trust domain.
    #[n(1)]
    pub trust_domain: TrustDomain,
    /// SHA-256 of the previous manifest's payload; absent in the first.
    #[n(2)]
    pub previous: Option<Digest>,
    /// When made, in seconds since 1970.
    #[n(3)]
    pub issued_secs: u64,
    /// Roots, sorted by key.
    #[n(4)]
    pub roots: Vec<Root>,
    /// How many roots must sign the next manifest.
    #[n(5)]
    pub threshold: u32,
    /// Issuing keys, sorted by key.
    #[n(6)]
    pub issuers: Vec<Issuer>,
    /// Role keys, sorted by role and key.
    #[n(7)]
    pub role_keys: Vec<RoleKey>,
    /// Digest of the first manifest's root set: what tokens pin and overlay prefixes derive from.
    #[n(8)]
    pub genesis: Digest,
}

/// What an agent needs to know of its site, by the policy role key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SiteConfig {
    /// Order; a smaller one is refused.
    #[n(0)]
    pub revision: Revision,
    /// The site it is for.
    #[n(1)]
    pub site: SiteName,
    /// The site's IANA time zone.
    #[n(2)]
    pub zone: String,
    /// Controllers, `host:port`, in order of preference.
    #[n(3)]
    pub controllers: Vec<String>,
    /// Prefixes from which devices are managed.
    #[n(4)]
    pub management: Vec<Prefix>,
    /// Overlay pools of the whole trust domain.
    #[n(5)]
    pub pools: Vec<Prefix>,
    /// Suffix of device names, e.g. `hedgerow.internal`.
    #[n(6)]
    pub suffix: String,
    /// How long an expired ticket still works while no issuer can be reached, in seconds.
    #[n(7)]
    pub grace_secs: u64,
}

/// A device that a class of devices may name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct NameEntry {
    /// The device.
    #[n(0)]
    pub id: DeviceId,
    /// Its name.
    #[n(1)]
    pub name: DeviceName,
    /// Its site.
    #[n(2)]
    pub site: SiteName,
    /// Its overlay addresses.
    #[n(3)]
    pub addresses: OverlayAddresses,
}

/// Most entries in one list of names.
pub const NAMES_MAX: usize = 20_000;

/// Names of peers that some devices of a site may begin flows to, by the policy role key. Devices that
/// no rule can tell apart share one list.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Names {
    /// Order; a smaller one is refused.
    #[n(0)]
    pub revision: Revision,
    /// The site it is for.
    #[n(1)]
    pub site: SiteName,
    /// Sorted by site and name.
    #[n(2)]
    pub entries: Vec<NameEntry>,
}

/// Proof that an issuer can be reached: time floor, and the end of grace for those who see it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Beacon {
    /// When made, in seconds since 1970.
    #[n(0)]
    pub issued_secs: u64,
    /// Newest manifest.
    #[n(1)]
    pub manifest: u64,
    /// Newest revocation list.
    #[n(2)]
    pub revocations: Revision,
}

/// The program of a class at a revision, by the policy role key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedProgramBody {
    /// The policy revision that produced it.
    #[n(0)]
    pub revision: Revision,
    /// The encoded [`crate::program::Program`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub program: Vec<u8>,
}

/// Most endpoints in one record.
pub const RECORD_ENDPOINTS_MAX: usize = 8;
/// Most relays in one record.
pub const RECORD_RELAYS_MAX: usize = 4;

/// Where a device may be reached, by its identity key. A hint: the tunnel proves who is there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EndpointRecord {
    /// The device.
    #[n(0)]
    pub id: DeviceId,
    /// Order; trusted seconds when made, so that it grows even after the device lost its state.
    #[n(1)]
    pub sequence: u64,
    /// End of validity, in seconds since 1970; at most 48 h after `sequence`.
    #[n(2)]
    pub not_after_secs: u64,
    /// Where it may be reached, the best first; at most [`RECORD_ENDPOINTS_MAX`].
    #[n(3)]
    pub endpoints: Vec<Underlay>,
    /// Relays that it has a tunnel with; at most [`RECORD_RELAYS_MAX`].
    #[n(4)]
    pub relays: Vec<DeviceId>,
}

/// The newest policy, by the policy role key: who holds an older revision sees that it misses something.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BundleHead {
    /// The policy revision.
    #[n(0)]
    pub revision: Revision,
    /// The hash of the policy revision, which names the one before.
    #[n(1)]
    pub hash: Digest,
}

/// The head of the transparency log, by the checkpoint role key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TreeHead {
    /// How many entries the log has.
    #[n(0)]
    pub size: u64,
    /// The root of its Merkle tree.
    #[n(1)]
    pub root: Digest,
    /// When made, in seconds since 1970.
    #[n(2)]
    pub issued_secs: u64,
}

/// Who a message on the mesh claims to come from or go to, before any proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum PeerQuery {
    /// By device.
    #[n(0)]
    Device(#[n(0)] DeviceId),
    /// By overlay address.
    #[n(1)]
    Address(#[n(0)] Overlay),
}

#[cfg(test)]
mod tests;
