//! Named resources: the state that a controller keeps an agent in.

use std::fmt;

use minicbor::{Decode, Encode};

use crate::id::{Digest, Revision};

/// Largest resource, in bytes.
pub const RESOURCE_BYTES_MAX: usize = 4 << 20;

/// What a resource is. Each has one signing key, scope and high-water mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum ResourceKind {
    /// [`crate::statement::Manifest`]; root keys; trust domain.
    #[n(0)]
    Manifest,
    /// [`crate::statement::RevocationList`]; revocation key; trust domain.
    #[n(1)]
    Revocations,
    /// [`crate::statement::States`]; policy key; trust domain.
    #[n(2)]
    States,
    /// [`crate::statement::Ticket`]; issuing key; device.
    #[n(3)]
    Ticket,
    /// [`crate::statement::SignedProgramBody`]; policy key; class.
    #[n(4)]
    Program,
    /// [`crate::statement::SiteConfig`]; policy key; site.
    #[n(5)]
    Config,
    /// [`crate::statement::Names`]; policy key; site.
    #[n(6)]
    Names,
}

impl ResourceKind {
    /// Every kind, in the order in which an update applies them: trust first, then what is taken
    /// away, then what is given.
    pub const ALL: [Self; 7] = [
        Self::Manifest,
        Self::Revocations,
        Self::States,
        Self::Ticket,
        Self::Program,
        Self::Config,
        Self::Names,
    ];

    /// Returns the spelling used in files, logs and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Revocations => "revocations",
            Self::States => "states",
            Self::Ticket => "ticket",
            Self::Program => "program",
            Self::Config => "config",
            Self::Names => "names",
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which resource a side holds, without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ResourceHead {
    /// What it is.
    #[n(0)]
    pub kind: ResourceKind,
    /// Its version, in the order that its high-water mark follows.
    #[n(1)]
    pub version: Revision,
    /// SHA-256 of its signed bytes.
    #[n(2)]
    pub hash: Digest,
}

/// A resource with its signed bytes (COSE_Sign1).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Resource {
    /// What it is.
    #[n(0)]
    pub kind: ResourceKind,
    /// Its version.
    #[n(1)]
    pub version: Revision,
    /// The signed statement.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

impl Resource {
    /// Returns what the resource is, without its content.
    pub fn head(&self) -> ResourceHead {
        ResourceHead {
            kind: self.kind,
            version: self.version,
            hash: Digest::of(&self.bytes),
        }
    }
}

/// Returns one digest over everything held: equal roots mean equal state. Order does not matter.
pub fn root_hash(heads: &[ResourceHead]) -> Digest {
    let mut sorted = heads.to_vec();
    sorted.sort();
    Digest::of(&crate::wire::encode(&sorted))
}
