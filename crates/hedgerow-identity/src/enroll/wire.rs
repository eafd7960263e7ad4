//! Messages of enrollment: a length of four bytes, then CBOR.
//!
//! Fields may be added at the end of a message; older readers pass over them. Trailing bytes after a
//! message are refused.

use hedgerow_model::id::{DeviceId, DeviceName, NAME_BYTES_MAX};
use hedgerow_model::statement::X25519Public;
use hedgerow_model::wire::WireError;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::TokenId;
use crate::csr::CSR_BYTES_MAX;
use crate::trust::CHAIN_MAX;

/// Largest message that a controller reads, in bytes.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Largest message that a device reads, in bytes: a chain of manifests, a full revocation list.
pub const REPLY_BYTES_MAX: usize = 16 << 20;
/// Longest text in a request, in bytes.
pub const TEXT_BYTES_MAX: usize = 255;

/// First message of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Signed manifests, the first one first.
    #[n(0)]
    pub manifest_chain: Vec<ByteVec>,
}

/// What a device asks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EnrollRequest {
    /// The token; absent asks for an operator's approval.
    #[n(0)]
    pub token: Option<TokenId>,
    /// A certificate request, DER.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub csr: Vec<u8>,
    /// The key that introductions are sealed to.
    #[n(2)]
    pub introduction_key: X25519Public,
    /// By the token, over [`super::enrollment_signature_input`].
    #[n(3)]
    pub signature: Option<ByteVec>,
    /// Version of the agent.
    #[n(4)]
    pub agent_version: String,
    /// What the machine calls itself; for an operator to read, proves nothing.
    #[n(5)]
    pub hostname: String,
    /// The name that the device would like.
    #[n(6)]
    pub name: Option<DeviceName>,
}

/// What a device gets.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Issued {
    /// Who the device is from now on.
    #[n(0)]
    pub device: DeviceId,
    /// Leaf and issuer certificates, DER.
    #[n(1)]
    pub chain: Vec<ByteVec>,
    /// The signed ticket.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub ticket: Vec<u8>,
    /// Signed manifests, the first one first.
    #[n(3)]
    pub manifest_chain: Vec<ByteVec>,
    /// The signed revocation list.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub revocations: Vec<u8>,
    /// The signed configuration of the device's site.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub config: Vec<u8>,
}

/// Why the controller refuses, for programs; the text beside it is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum RefusalCode {
    /// The request is malformed.
    #[n(0)]
    Malformed,
    /// No such token.
    #[n(1)]
    TokenUnknown,
    /// The token's time is over.
    #[n(2)]
    TokenExpired,
    /// The token was used, with another key.
    #[n(3)]
    TokenSpent,
    /// The token's signature does not hold on this connection.
    #[n(4)]
    BadSignature,
    /// An operator refused.
    #[n(5)]
    Rejected,
    /// The name is taken, or another than the token is bound to.
    #[n(6)]
    Name,
    /// The key is revoked, or belongs to another device.
    #[n(7)]
    Key,
    /// Too many wait for approval, or too much is going on. Ask again later.
    #[n(8)]
    Busy,
    /// Something failed on the controller. Ask again later.
    #[n(9)]
    Internal,
}

impl RefusalCode {
    /// Returns a stable word for events, logs and exit texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TokenUnknown => "token_unknown",
            Self::TokenExpired => "token_expired",
            Self::TokenSpent => "token_spent",
            Self::BadSignature => "bad_signature",
            Self::Rejected => "rejected",
            Self::Name => "name",
            Self::Key => "key",
            Self::Busy => "busy",
            Self::Internal => "internal",
        }
    }

    /// Returns whether asking again later may help.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Busy | Self::Internal)
    }
}

/// What the controller answers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum EnrollReply {
    /// An identity.
    #[n(0)]
    Issued(#[n(0)] Box<Issued>),
    /// An operator must approve; ask again with the same key.
    #[n(1)]
    Pending {
        /// When to ask again.
        #[n(0)]
        retry_after_secs: u32,
        /// The fingerprint that the operator sees, to be compared with the device's own.
        #[n(1)]
        fingerprint: String,
    },
    /// No.
    #[n(2)]
    Refused {
        /// Why, for programs.
        #[n(0)]
        code: RefusalCode,
        /// Why, for people, with the remedy.
        #[n(1)]
        reason: String,
    },
}

/// Decodes a message from a frame's body.
///
/// # Errors
///
/// [`WireError::Malformed`], also for trailing bytes.
pub fn decode_message<'b, T: Decode<'b, ()>>(
    what: &'static str,
    body: &'b [u8],
) -> Result<T, WireError> {
    let malformed = |reason: String| WireError::Malformed { what, reason };
    let mut d = minicbor::Decoder::new(body);
    let message = d.decode().map_err(|e| malformed(e.to_string()))?;
    if d.position() != body.len() {
        return Err(malformed("bytes after the message".to_owned()));
    }
    Ok(message)
}

impl Hello {
    /// Decodes and checks bounds.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`].
    pub fn decode_body(body: &[u8]) -> Result<Self, WireError> {
        let hello: Self = decode_message("hello", body)?;
        bound("hello", hello.manifest_chain.len() <= CHAIN_MAX)?;
        Ok(hello)
    }
}

impl EnrollRequest {
    /// Decodes and checks bounds.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`].
    pub fn decode_body(body: &[u8]) -> Result<Self, WireError> {
        let request: Self = decode_message("enrollment request", body)?;
        let fits = request.csr.len() <= CSR_BYTES_MAX
            && request.agent_version.len() <= TEXT_BYTES_MAX
            && request.hostname.len() <= TEXT_BYTES_MAX
            && request.signature.as_ref().is_none_or(|s| s.len() == 64);
        bound("enrollment request", fits)?;
        Ok(request)
    }

    /// Returns the hostname as a device's name, with what does not fit replaced; `None` when
    /// nothing is left.
    pub fn name_from_hostname(&self) -> Option<DeviceName> {
        let first = self.hostname.split('.').next().unwrap_or_default();
        let text: String = first
            .chars()
            .take(NAME_BYTES_MAX)
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        DeviceName::new(text.trim_matches('-')).ok()
    }
}

impl EnrollReply {
    /// Decodes and checks bounds.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`].
    pub fn decode_body(body: &[u8]) -> Result<Self, WireError> {
        let reply: Self = decode_message("enrollment reply", body)?;
        let fits = match &reply {
            Self::Issued(issued) => {
                issued.manifest_chain.len() <= CHAIN_MAX && issued.chain.len() <= 8
            }
            Self::Pending { fingerprint, .. } => fingerprint.len() <= TEXT_BYTES_MAX,
            Self::Refused { reason, .. } => reason.len() <= 4 * TEXT_BYTES_MAX,
        };
        bound("enrollment reply", fits)?;
        Ok(reply)
    }
}

fn bound(what: &'static str, fits: bool) -> Result<(), WireError> {
    fits.then_some(()).ok_or(WireError::Malformed {
        what,
        reason: "a bound is broken".to_owned(),
    })
}

/// Returns a message as a frame: its length in four bytes, big endian, then its CBOR. Empty when it
/// is longer than [`REPLY_BYTES_MAX`].
pub fn frame<T: Encode<()>>(message: &T) -> Vec<u8> {
    let body = hedgerow_model::wire::encode(message);
    match u32::try_from(body.len()) {
        Ok(length) if body.len() <= REPLY_BYTES_MAX => [&length.to_be_bytes()[..], &body].concat(),
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// The other end announced a message longer than we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes is longer than {bytes_max}")]
pub struct FrameTooLong {
    /// What was announced.
    pub bytes: usize,
    /// What is read.
    pub bytes_max: usize,
}

impl FrameTooLong {
    /// Returns who has to act.
    pub fn fault(&self) -> hedgerow_model::Fault {
        hedgerow_model::Fault::Peer
    }
}

/// Collects bytes until a message is whole. Holds no more than one message and what came with it.
#[derive(Debug, Clone)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl FrameBuffer {
    /// Begins empty; messages longer than `bytes_max` are refused.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            bytes_max,
        }
    }

    /// Takes what came from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the body of the next message when it is whole.
    ///
    /// # Errors
    ///
    /// [`FrameTooLong`] as soon as the length is known; the connection must end.
    pub fn pop(&mut self) -> Result<Option<Vec<u8>>, FrameTooLong> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length > self.bytes_max {
            return Err(FrameTooLong {
                bytes: length,
                bytes_max: self.bytes_max,
            });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let body = body.to_vec();
        self.bytes.drain(..4 + length);
        Ok(Some(body))
    }
}
