//! What the two ends say to each other.
//!
//! Deterministic CBOR; a struct is a map with small integer keys. A key that the reader does not know
//! is skipped; a repeated key, trailing bytes and anything beyond its bound refuse the message.

use hedgerow_model::address::Underlay;
use hedgerow_model::event::{EVENT_DETAILS_MAX, Event};
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::packet::LiveFlow;
use hedgerow_model::resource::{Resource, ResourceHead, ResourceKind};
use hedgerow_model::statement::{PeerQuery, X25519Public};
use minicbor::{Decode, Encode};

use crate::deterministic;
use crate::error::SessionError;

/// Most underlay endpoints that a device announces.
pub const ENDPOINTS_MAX: usize = 16;
/// Most relays in one list.
pub const RELAYS_MAX: usize = 16;
/// Most events in one message.
pub const EVENTS_MAX: usize = 64;
/// Longest reason, version or other text for people, in bytes.
pub const TEXT_BYTES_MAX: usize = 512;
/// Largest certificate, request or small statement, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 8 << 10;
/// Most flows in one answer; an agent that has more says how many it left out.
pub const FLOWS_MAX: usize = 512;
/// The goodbye that answers [`ToController::Leave`]: only this one says that the device has left.
pub const LEFT: &str = "this device has left";
/// Most certificates in a chain.
pub const CHAIN_MAX: usize = 4;

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`crate::CAPABILITY`].
    #[n(0)]
    pub capability: u32,
    /// The agent's version, for people.
    #[n(1)]
    pub agent_version: String,
    /// Changes with every boot of the machine.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub boot_id: [u8; 16],
    /// Counts the connections this identity has opened; written to disk before use. One that does
    /// not grow betrays a copied disk.
    #[n(3)]
    pub generation: u64,
    /// The revision last received; absent on the first connection.
    #[n(4)]
    pub revision: Option<Revision>,
    /// The revision last verified in the kernel, with the table's hash.
    #[n(5)]
    pub verified: Option<Verified>,
    /// Everything held.
    #[n(6)]
    pub heads: Vec<ResourceHead>,
    /// The revocation list in force, which may be newer than the one held as a resource.
    #[n(7)]
    pub revocations: Revision,
    /// The manifest in force.
    #[n(8)]
    pub manifest: u64,
    /// Where the mesh may reach this device.
    #[n(9)]
    pub endpoints: Vec<Underlay>,
    /// The key that introductions to this device are sealed to.
    #[n(10)]
    pub introduction_key: X25519Public,
}

/// A revision that stands in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Verified {
    /// Which.
    #[n(0)]
    pub revision: Revision,
    /// Hash over the table as read back.
    #[n(1)]
    pub table_hash: Digest,
}

/// How far an update has come on the device.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Stage {
    /// It is in hand; nothing is checked yet.
    #[n(0)]
    Received,
    /// Signatures hold, it is stored, the kernel's table was loaded and read back.
    #[n(1)]
    Verified(#[n(0)] Digest),
    /// Refused as a whole; what was in force stays in force.
    #[n(2)]
    Rejected(#[n(0)] Option<ResourceKind>, #[n(1)] String),
}

/// A resource handed up, because the controller knows an older one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HandUp {
    /// What it is: a manifest, a revocation list, the states or the device's own ticket.
    #[n(0)]
    pub kind: ResourceKind,
    /// The signed statement.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// A request for a new certificate and ticket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Renew {
    /// Pairs the answer with the request.
    #[n(0)]
    pub id: u64,
    /// PKCS#10, DER.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub csr: Vec<u8>,
    /// The introduction key the new ticket shall carry.
    #[n(2)]
    pub introduction_key: X25519Public,
}

/// The flows on the overlay that are open on a device now.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Flows {
    /// As in [`ToAgent::Flows`].
    #[n(0)]
    pub id: u64,
    /// Those with the most sessions, at most [`FLOWS_MAX`].
    #[n(1)]
    pub flows: Vec<LiveFlow>,
    /// How many more there are.
    #[n(2)]
    pub left_out: u64,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToController {
    /// First, once.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// How far an update has come.
    #[n(1)]
    Ack(#[n(0)] Revision, #[n(1)] Stage),
    /// The chain has a gap, or the roots differ: this is held, at this revision.
    #[n(2)]
    Repair(#[n(0)] Option<Revision>, #[n(1)] Vec<ResourceHead>),
    /// Alive, at this revision, with this root over everything held.
    #[n(3)]
    Ping(#[n(0)] Revision, #[n(1)] Digest),
    /// A newer statement than the controller's.
    #[n(4)]
    HandUp(#[n(0)] HandUp),
    /// A new certificate is due.
    #[n(5)]
    Renew(#[n(0)] Renew),
    /// Who is this peer, and where?
    #[n(6)]
    Resolve(#[n(0)] u64, #[n(1)] PeerQuery),
    /// Where the mesh may reach this device now.
    #[n(7)]
    Endpoints(
        #[n(0)] Vec<Underlay>,
        /// Relays it is registered with, the best first; at most [`RELAYS_MAX`].
        #[n(1)]
        Option<Vec<DeviceId>>,
    ),
    /// What happened; the first has this sequence number, the others follow without a gap.
    #[n(8)]
    Events(#[n(0)] u64, #[n(1)] Vec<Event>),
    /// The device leaves for good.
    #[n(9)]
    Leave,
    /// The connection ends on purpose.
    #[n(10)]
    Bye,
    /// The answer to [`ToAgent::Flows`]. Who cannot tell does not answer: unknown is not none.
    #[n(11)]
    Flows(#[n(0)] Flows),
}

/// The controller's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// The capability both ends use: the smaller of the two.
    #[n(0)]
    pub capability: u32,
    /// The controller's clock, in seconds since 1970.
    #[n(1)]
    pub now_secs: u64,
    /// The newest signed beacon.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub beacon: Vec<u8>,
    /// This session's number, for logs at both ends.
    #[n(3)]
    pub session: u64,
    /// The controller's revocation list; an agent with a newer one hands it up.
    #[n(4)]
    pub revocations: Revision,
    /// The controller's manifest; an agent with a newer one hands it up.
    #[n(5)]
    pub manifest: u64,
    /// The epoch of the agent's ticket as the controller has it; an agent with a newer one hands it
    /// up.
    #[n(6)]
    pub ticket_epoch: u64,
    /// The controller's states; an agent with newer ones hands them up.
    #[n(7)]
    pub states: Option<Revision>,
}

/// Resources that lead from one revision to the next.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Update {
    /// Where it leads.
    #[n(0)]
    pub revision: Revision,
    /// Where it begins; absent only for an agent that holds nothing yet.
    #[n(1)]
    pub previous: Option<Revision>,
    /// Whether the agent's revision stays where it is: only what may not wait is in here.
    #[n(2)]
    pub partial: bool,
    /// New and changed.
    #[n(3)]
    pub set: Vec<Resource>,
    /// No longer for this device.
    #[n(4)]
    pub remove: Vec<ResourceKind>,
}

/// A new certificate and ticket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Renewed {
    /// As in [`Renew::id`].
    #[n(0)]
    pub id: u64,
    /// Leaf first, DER.
    #[n(1)]
    #[cbor(with = "byte_strings")]
    pub chain: Vec<Vec<u8>>,
    /// The signed ticket.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub ticket: Vec<u8>,
}

/// A peer as the controller knows it. Nothing here is believed before the ticket verifies.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ResolvedPeer {
    /// The signed ticket.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub ticket: Vec<u8>,
    /// Where it may be reached.
    #[n(1)]
    pub endpoints: Vec<Underlay>,
    /// Relays it is registered with, the best first; at most [`RELAYS_MAX`].
    #[n(2)]
    pub relays: Option<Vec<DeviceId>>,
    /// Relays that the asking device may use, those of its site first; at most [`RELAYS_MAX`].
    #[n(3)]
    pub own_relays: Option<Vec<DeviceId>>,
}

/// An order that is not state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// Connect again after about so many milliseconds.
    #[n(1)]
    Reconnect(#[n(0)] u64),
    /// Make a new WireGuard key and binding now.
    #[n(2)]
    RotateKeys,
}

/// What a controller says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToAgent {
    /// The session is open.
    #[n(0)]
    Welcome(#[n(0)] Welcome),
    /// State moves on.
    #[n(1)]
    Update(#[n(0)] Update),
    /// Answers a ping. When true, the roots differ: say what you hold.
    #[n(2)]
    Pong(#[n(0)] bool),
    /// A fresh beacon; for a relay, which hands both on, with the head of the policy in force.
    #[n(3)]
    Beacon(
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        Vec<u8>,
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        Option<Vec<u8>>,
    ),
    /// The new certificate.
    #[n(4)]
    Renewed(#[n(0)] Renewed),
    /// No new certificate: request, reason, seconds to wait (0: an operator has to act).
    #[n(5)]
    RenewRefused(#[n(0)] u64, #[n(1)] String, #[n(2)] u64),
    /// Who and where the peer is; absent when unknown.
    #[n(6)]
    Resolved(#[n(0)] u64, #[n(1)] Option<ResolvedPeer>),
    /// Events before this sequence number are stored.
    #[n(7)]
    EventsStored(#[n(0)] u64),
    /// An order.
    #[n(8)]
    Command(#[n(0)] Command),
    /// Two sessions used this identity: it gets nothing until an operator decides.
    #[n(9)]
    Held(#[n(0)] String),
    /// Too much at once: come back after so many milliseconds.
    #[n(10)]
    Busy(#[n(0)] u64),
    /// The connection ends on purpose.
    #[n(11)]
    Bye(#[n(0)] String),
    /// Which flows on the overlay are open now? The number pairs the answer with the question.
    /// From capability 2 on.
    #[n(12)]
    Flows(#[n(0)] u64),
}

fn within_relays(relays: &Option<Vec<DeviceId>>) -> bool {
    relays.as_ref().is_none_or(|list| list.len() <= RELAYS_MAX)
}

impl ToController {
    /// Returns the message's name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Ack(..) => "ack",
            Self::Repair(..) => "repair",
            Self::Ping(..) => "ping",
            Self::HandUp(_) => "hand-up",
            Self::Renew(_) => "renew",
            Self::Resolve(..) => "resolve",
            Self::Endpoints(..) => "endpoints",
            Self::Events(..) => "events",
            Self::Leave => "leave",
            Self::Bye => "bye",
            Self::Flows(_) => "flows",
        }
    }

    /// Decodes one message.
    ///
    /// # Errors
    ///
    /// [`SessionError::Malformed`] for anything but one message within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, SessionError> {
        let message: Self = decode(bytes)?;
        let ok = match &message {
            Self::Hello(h) => {
                h.agent_version.len() <= TEXT_BYTES_MAX
                    && h.heads.len() <= ResourceKind::ALL.len()
                    && h.endpoints.len() <= ENDPOINTS_MAX
            }
            Self::Ack(_, Stage::Rejected(_, reason)) => reason.len() <= TEXT_BYTES_MAX,
            Self::Repair(_, heads) => heads.len() <= ResourceKind::ALL.len(),
            Self::Renew(r) => r.csr.len() <= STATEMENT_BYTES_MAX,
            Self::Endpoints(list, relays) => list.len() <= ENDPOINTS_MAX && within_relays(relays),
            Self::Flows(f) => f.flows.len() <= FLOWS_MAX,
            Self::Events(_, events) => {
                events.len() <= EVENTS_MAX
                    && events.iter().all(|e| e.details.len() <= EVENT_DETAILS_MAX)
            }
            Self::Ack(_, Stage::Received | Stage::Verified(_))
            | Self::Ping(..)
            | Self::HandUp(_)
            | Self::Resolve(..)
            | Self::Leave
            | Self::Bye => true,
        };
        within(ok, message)
    }
}

impl ToAgent {
    /// Returns the message's name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Welcome(_) => "welcome",
            Self::Update(_) => "update",
            Self::Pong(_) => "pong",
            Self::Beacon(..) => "beacon",
            Self::Renewed(_) => "renewed",
            Self::RenewRefused(..) => "renew-refused",
            Self::Resolved(..) => "resolved",
            Self::EventsStored(_) => "events-stored",
            Self::Command(_) => "command",
            Self::Held(_) => "held",
            Self::Busy(_) => "busy",
            Self::Bye(_) => "bye",
            Self::Flows(_) => "flows",
        }
    }

    /// Decodes one message.
    ///
    /// # Errors
    ///
    /// [`SessionError::Malformed`] for anything but one message within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, SessionError> {
        let message: Self = decode(bytes)?;
        let ok = match &message {
            Self::Welcome(w) => w.beacon.len() <= STATEMENT_BYTES_MAX,
            Self::Update(u) => {
                u.set.len() <= ResourceKind::ALL.len() && u.remove.len() <= ResourceKind::ALL.len()
            }
            Self::Beacon(beacon, head) => {
                beacon.len() <= STATEMENT_BYTES_MAX
                    && head.as_ref().is_none_or(|h| h.len() <= STATEMENT_BYTES_MAX)
            }
            Self::Renewed(r) => {
                r.chain.len() <= CHAIN_MAX
                    && r.chain.iter().all(|c| c.len() <= STATEMENT_BYTES_MAX)
                    && r.ticket.len() <= STATEMENT_BYTES_MAX
            }
            Self::Resolved(_, Some(peer)) => {
                peer.endpoints.len() <= ENDPOINTS_MAX
                    && peer.ticket.len() <= STATEMENT_BYTES_MAX
                    && within_relays(&peer.relays)
                    && within_relays(&peer.own_relays)
            }
            Self::RenewRefused(_, text, _) | Self::Held(text) | Self::Bye(text) => {
                text.len() <= TEXT_BYTES_MAX
            }
            Self::Pong(_)
            | Self::Resolved(_, None)
            | Self::EventsStored(_)
            | Self::Command(_)
            | Self::Flows(_)
            | Self::Busy(_) => true,
        };
        within(ok, message)
    }
}

/// Returns `text` cut to [`TEXT_BYTES_MAX`].
pub(crate) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, SessionError> {
    deterministic::check(bytes).map_err(|reason| SessionError::Malformed {
        reason: reason.to_owned(),
    })?;
    minicbor::decode(bytes).map_err(|e| SessionError::Malformed {
        reason: cut(e.to_string()),
    })
}

fn within<T>(ok: bool, message: T) -> Result<T, SessionError> {
    if ok {
        Ok(message)
    } else {
        Err(SessionError::Malformed {
            reason: "a list or text is beyond its bound".to_owned(),
        })
    }
}

mod byte_strings {
    use minicbor::bytes::ByteSlice;
    use minicbor::{Decoder, Encoder};

    use super::CHAIN_MAX;

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        v: &[Vec<u8>],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(v.len() as u64)?;
        for bytes in v {
            e.encode::<&ByteSlice>(bytes.as_slice().into())?;
        }
        Ok(())
    }

    pub(super) fn decode<C>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<Vec<Vec<u8>>, minicbor::decode::Error> {
        let n = d.array()?.unwrap_or(u64::MAX);
        if n > CHAIN_MAX as u64 {
            return Err(minicbor::decode::Error::message("chain too long"));
        }
        (0..n).map(|_| d.bytes().map(<[u8]>::to_vec)).collect()
    }
}
