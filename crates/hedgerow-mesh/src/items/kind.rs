//! What items there are, who signs them, and how a body is believed.

use std::fmt;

use hedgerow_identity::Verified;
use hedgerow_identity::error::{RefusedBinding, RefusedStatement};
use hedgerow_identity::statement::{ENDPOINTS_BYTES_MAX, TICKET_BYTES_MAX, verify_endpoints};
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::resource::RESOURCE_BYTES_MAX;
use hedgerow_model::statement::{
    Beacon, BundleHead, EndpointRecord, KeyId, RevocationList, States, Ticket, TreeHead,
};
use minicbor::{Decoder, Encoder};

use crate::mesh::View;

/// Bytes of the signed heads and of a beacon, at most.
const SMALL_BYTES_MAX: usize = 512;
/// Bytes of an endpoint record with its ticket, at most.
const RECORD_BYTES_MAX: usize = TICKET_BYTES_MAX + ENDPOINTS_BYTES_MAX + 16;

/// Whose item, where there is one for each device: its id.
pub type Subject = [u8; 16];

/// What an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemKind {
    /// [`RevocationList`]; revocation key; urgent.
    Revocations,
    /// [`States`]: quarantine; policy key; urgent.
    States,
    /// [`EndpointRecord`] with the device's ticket; the device's key; among relays only.
    Endpoints,
    /// [`BundleHead`]; policy key.
    BundleHead,
    /// [`TreeHead`]; checkpoint key.
    TreeHead,
    /// [`Beacon`]; an issuer.
    Beacon,
}

impl ItemKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 6] = [
        Self::Revocations,
        Self::States,
        Self::Endpoints,
        Self::BundleHead,
        Self::TreeHead,
        Self::Beacon,
    ];

    /// Returns the number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Revocations => 1,
            Self::States => 2,
            Self::Endpoints => 3,
            Self::BundleHead => 4,
            Self::TreeHead => 5,
            Self::Beacon => 6,
        }
    }

    pub(crate) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Returns the stable name, for events and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Revocations => "revocations",
            Self::States => "states",
            Self::Endpoints => "endpoints",
            Self::BundleHead => "bundle_head",
            Self::TreeHead => "tree_head",
            Self::Beacon => "beacon",
        }
    }

    /// Returns whether it jumps the queue and is repeated until it is known to have come.
    pub const fn is_urgent(self) -> bool {
        matches!(self, Self::Revocations | Self::States)
    }

    /// Returns the most bytes that one may have.
    pub const fn bytes_max(self) -> usize {
        match self {
            Self::Revocations | Self::States => RESOURCE_BYTES_MAX,
            Self::Endpoints => RECORD_BYTES_MAX,
            Self::BundleHead | Self::TreeHead | Self::Beacon => SMALL_BYTES_MAX,
        }
    }
}

impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which item: of the trust domain, or of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey {
    kind: ItemKind,
    subject: Subject,
}

impl ItemKey {
    /// Makes the key of a trust domain's item; nothing for a kind that each device has one of.
    pub const fn of_domain(kind: ItemKind) -> Option<Self> {
        Self::new(kind, [0; 16])
    }

    /// Makes the key of a device's endpoint record.
    pub const fn of_device(device: DeviceId) -> Self {
        Self {
            kind: ItemKind::Endpoints,
            subject: device.0,
        }
    }

    pub(crate) const fn new(kind: ItemKind, subject: Subject) -> Option<Self> {
        let is_domains = u128::from_be_bytes(subject) == 0;
        match (kind, is_domains) {
            (ItemKind::Endpoints, false) => Some(Self { kind, subject }),
            (ItemKind::Endpoints, true) => None,
            (_, true) => Some(Self { kind, subject }),
            (_, false) => None,
        }
    }

    /// Returns what it is.
    pub const fn kind(self) -> ItemKind {
        self.kind
    }

    /// Returns whose, for an endpoint record.
    pub fn subject(self) -> Option<DeviceId> {
        (self.kind == ItemKind::Endpoints).then_some(DeviceId(self.subject))
    }
}

/// An item that verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Who is out.
    Revocations(Verified<RevocationList>),
    /// Who is in quarantine.
    States(Verified<States>),
    /// Where a device may be reached.
    Endpoints {
        /// The device's ticket.
        ticket: Box<Verified<Ticket>>,
        /// Where.
        record: Verified<EndpointRecord>,
    },
    /// The newest set of programs.
    BundleHead(Verified<BundleHead>),
    /// The head of the transparency log.
    TreeHead(Verified<TreeHead>),
    /// An issuer can be reached.
    Beacon(Verified<Beacon>),
}

/// Why a body is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disbelief {
    /// By a key or an issuer that the manifest we hold does not name: it may be older than theirs.
    Unknown,
    /// In no manifest would it hold.
    Forged,
}

impl Item {
    /// Returns which item it is.
    pub fn key(&self) -> ItemKey {
        let kind = match self {
            Self::Revocations(_) => ItemKind::Revocations,
            Self::States(_) => ItemKind::States,
            Self::Endpoints { record, .. } => return ItemKey::of_device(record.id),
            Self::BundleHead(_) => ItemKind::BundleHead,
            Self::TreeHead(_) => ItemKind::TreeHead,
            Self::Beacon(_) => ItemKind::Beacon,
        };
        ItemKey {
            kind,
            subject: [0; 16],
        }
    }

    /// Returns its version: what a later one is greater than.
    pub fn version(&self) -> Revision {
        let number = |number| Revision {
            timeline: 0,
            number,
        };
        match self {
            Self::Revocations(list) => list.version,
            Self::States(states) => states.revision,
            Self::Endpoints { record, .. } => number(record.sequence),
            Self::BundleHead(head) => head.revision,
            Self::TreeHead(head) => number(head.size),
            Self::Beacon(beacon) => number(beacon.issued_secs),
        }
    }

    /// Returns which key signed it.
    pub fn signer(&self) -> KeyId {
        match self {
            Self::Revocations(list) => list.signer(),
            Self::States(states) => states.signer(),
            Self::Endpoints { record, .. } => record.signer(),
            Self::BundleHead(head) => head.signer(),
            Self::TreeHead(head) => head.signer(),
            Self::Beacon(beacon) => beacon.signer(),
        }
    }

    /// Believes a body of a kind, or says how it is not.
    pub(crate) fn verify(kind: ItemKind, bytes: &[u8], view: View<'_>) -> Result<Self, Disbelief> {
        let trust = view.trust;
        match kind {
            ItemKind::Revocations => trust.verify_revocations(bytes).map(Self::Revocations),
            ItemKind::States => trust.verify_states(bytes).map(Self::States),
            ItemKind::BundleHead => trust.verify_bundle_head(bytes).map(Self::BundleHead),
            ItemKind::TreeHead => trust.verify_tree_head(bytes).map(Self::TreeHead),
            ItemKind::Beacon => trust.verify_beacon(bytes, view.standing).map(Self::Beacon),
            ItemKind::Endpoints => return verify_record(bytes, view),
        }
        .map_err(|refused| match refused {
            RefusedStatement::NotInRole { .. } | RefusedStatement::RevokedIssuer { .. } => {
                Disbelief::Unknown
            }
            RefusedStatement::Envelope { .. }
            | RefusedStatement::Wire(_)
            | RefusedStatement::OutOfBounds { .. }
            | RefusedStatement::OtherSubject { .. } => Disbelief::Forged,
        })
    }
}

/// Splits the body of an endpoint record.
fn split_record(bytes: &[u8]) -> Result<(&[u8], &[u8]), minicbor::decode::Error> {
    let mut d = Decoder::new(bytes);
    if d.array()? != Some(2) {
        return Err(minicbor::decode::Error::message("not a record"));
    }
    let parts = (d.bytes()?, d.bytes()?);
    // One spelling, so that one record has one hash.
    if record_body(parts.0, parts.1) != bytes {
        return Err(minicbor::decode::Error::message("another spelling"));
    }
    Ok(parts)
}

/// Puts a device's signed ticket and its signed endpoint record into one body.
pub fn record_body(ticket: &[u8], record: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut write = || -> Result<(), minicbor::encode::Error<_>> {
        Encoder::new(&mut out)
            .array(2)?
            .bytes(ticket)?
            .bytes(record)?
            .ok()
    };
    match write() {
        Ok(()) => out,
        // Memory takes everything.
        Err(_) => Vec::new(),
    }
}

fn verify_record(bytes: &[u8], view: View<'_>) -> Result<Item, Disbelief> {
    let (ticket, record) = split_record(bytes).map_err(|_e| Disbelief::Forged)?;
    // A ticket that we refuse may hold elsewhere: for a device whose manifest or revocations differ.
    let ticket = view
        .trust
        .verify_ticket(ticket, view.standing, view.now)
        .map_err(|_e| Disbelief::Unknown)?;
    let record = verify_endpoints(record, &ticket, view.now).map_err(|refused| match refused {
        RefusedBinding::Expired { .. } | RefusedBinding::Ahead { .. } => Disbelief::Unknown,
        RefusedBinding::Envelope(_)
        | RefusedBinding::Wire(_)
        | RefusedBinding::OtherDevice { .. }
        | RefusedBinding::TooLong { .. } => Disbelief::Forged,
    })?;
    Ok(Item::Endpoints {
        ticket: Box::new(ticket),
        record,
    })
}
