//! The two introduction messages on the wire; see `docs/spec/introduction.md`.
//!
//! ```text
//!  Introduce (0x81)     type version 0 0 │ check (16) │ Noise IK message 1 { Ask,    zeros }
//!  Introduced (0x82)    type version 0 0 │ mark (16)  │ Noise IK message 2 { Answer, zeros }
//! ```
//!
//! Both have a fixed length, so length tells nothing and an answer is never longer than its question.

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use hedgerow_identity::statement::{BINDING_BYTES_MAX, TICKET_BYTES_MAX};
use hedgerow_model::id::DeviceId;
use hedgerow_model::statement::X25519Public;
use minicbor::{Decode, Encode};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::noise::{FIRST_OVERHEAD, SECOND_OVERHEAD};

/// First byte of the question.
pub const INTRODUCE: u8 = 0x81;
/// First byte of the answer.
pub const INTRODUCED: u8 = 0x82;
/// The version that both messages carry; another is refused.
pub const VERSION: u8 = 1;
/// Length of the question, in bytes; fits the smallest IPv6 path.
pub const INTRODUCE_BYTES: usize = 1088;
/// Length of the answer, in bytes; not above [`INTRODUCE_BYTES`].
pub const INTRODUCED_BYTES: usize = 1024;

/// Mixed into the handshake, so that it stands for nothing else.
pub(crate) const PROLOGUE: &[u8] = b"hedgerow-introduction-v1";
/// See [`crate::noise`]: what an answer is recognised by.
pub(crate) const MARK_LABEL: &[u8] = b"hedgerow-introduced-mark-v1";
const CHECK_LABEL: &[u8] = b"hedgerow-introduction-check-v1";

const HEADER_BYTES: usize = 4;
const CHECK_BYTES: usize = 16;
const OUTER_BYTES: usize = HEADER_BYTES + CHECK_BYTES;
/// Room for the encoded [`Ask`], its length and zeros.
const ASK_BYTES: usize = INTRODUCE_BYTES - OUTER_BYTES - FIRST_OVERHEAD;
/// Room for the encoded [`Answer`], its length and zeros.
const ANSWER_BYTES: usize = INTRODUCED_BYTES - OUTER_BYTES - SECOND_OVERHEAD;

/// Encoded fields around ticket and binding, at most.
const FIELD_BYTES_MAX: usize = 64;

const _: () = assert!(INTRODUCED_BYTES <= INTRODUCE_BYTES);
const _: () = assert!(TICKET_BYTES_MAX + BINDING_BYTES_MAX + FIELD_BYTES_MAX <= ANSWER_BYTES);
const _: () = assert!(ANSWER_BYTES <= ASK_BYTES);
const _: () = assert!(INTRODUCE_BYTES + 40 + 8 <= 1280, "the smallest IPv6 path");

/// A device's introduction key. Leaves memory with its owner.
#[derive(Clone)]
pub struct IntroductionSecret {
    pub(crate) secret: StaticSecret,
    pub(crate) public: PublicKey,
}

impl IntroductionSecret {
    /// Takes 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let secret = StaticSecret::from(bytes);
        let public = PublicKey::from(&secret);
        Self { secret, public }
    }

    /// Returns the public half, which stands in the device's ticket.
    pub fn public(&self) -> X25519Public {
        X25519Public(self.public.to_bytes())
    }
}

/// What the initiator says: who it is and with which WireGuard key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// The initiator's signed ticket.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub ticket: Vec<u8>,
    /// The initiator's signed binding.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub binding: Vec<u8>,
    /// Rises with every question of this device, in milliseconds since 1970 as far as its clock goes.
    #[n(2)]
    pub timestamp_ms: u64,
    /// Whom it is for.
    #[n(3)]
    pub responder: DeviceId,
    /// Which ticket of the responder the initiator holds: epoch and end of validity.
    #[n(4)]
    pub known: (u64, u64),
}

/// What the responder says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// The responder's signed binding.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub binding: Vec<u8>,
    /// The responder's signed ticket, when it differs from [`Ask::known`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ticket: Option<Vec<u8>>,
    /// The question's timestamp.
    #[n(2)]
    pub echo_ms: u64,
}

/// Why bytes are not an introduction. Nothing was computed with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Any length but the one.
    #[error("wrong length")]
    Length,
    /// Another version, or reserved bytes are not zero.
    #[error("wrong version")]
    Version,
    /// The sealed part decodes to something else.
    #[error("wrong content")]
    Content,
}

impl Ask {
    /// Encodes with length and padding.
    ///
    /// # Errors
    ///
    /// When ticket and binding together do not fit.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Malformed> {
        pad(hedgerow_model::wire::encode(self), ASK_BYTES)
    }

    /// Reads what [`Self::encode`] wrote. Fields appended by a later version are ignored.
    ///
    /// # Errors
    ///
    /// For anything else, and for a part above its bound.
    pub fn decode(padded: &[u8]) -> Result<Self, Malformed> {
        let ask: Self = unpad(padded, ASK_BYTES)?;
        bounded(&ask.ticket, TICKET_BYTES_MAX)?;
        bounded(&ask.binding, BINDING_BYTES_MAX)?;
        Ok(ask)
    }
}

impl Answer {
    /// Encodes with length and padding.
    ///
    /// # Errors
    ///
    /// When ticket and binding together do not fit.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Malformed> {
        pad(hedgerow_model::wire::encode(self), ANSWER_BYTES)
    }

    /// Reads what [`Self::encode`] wrote. Fields appended by a later version are ignored.
    ///
    /// # Errors
    ///
    /// For anything else, and for a part above its bound.
    pub fn decode(padded: &[u8]) -> Result<Self, Malformed> {
        let answer: Self = unpad(padded, ANSWER_BYTES)?;
        bounded(
            answer.ticket.as_deref().unwrap_or_default(),
            TICKET_BYTES_MAX,
        )?;
        bounded(&answer.binding, BINDING_BYTES_MAX)?;
        Ok(answer)
    }
}

fn bounded(bytes: &[u8], max: usize) -> Result<(), Malformed> {
    if bytes.len() > max {
        Err(Malformed::Content)
    } else {
        Ok(())
    }
}

fn pad(encoded: Vec<u8>, size: usize) -> Result<Zeroizing<Vec<u8>>, Malformed> {
    let encoded = Zeroizing::new(encoded);
    let length = u16::try_from(encoded.len()).map_err(|_e| Malformed::Content)?;
    if encoded.len() + 2 > size {
        return Err(Malformed::Content);
    }
    let mut out = Zeroizing::new(Vec::with_capacity(size));
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&encoded);
    out.resize(size, 0);
    Ok(out)
}

fn unpad<'b, T: Decode<'b, ()>>(padded: &'b [u8], size: usize) -> Result<T, Malformed> {
    let (length, rest) = padded.split_first_chunk::<2>().ok_or(Malformed::Content)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (encoded, zeros) = rest.split_at_checked(length).ok_or(Malformed::Content)?;
    if padded.len() != size || zeros.iter().any(|b| *b != 0) {
        return Err(Malformed::Content);
    }
    let mut decoder = minicbor::Decoder::new(encoded);
    let value = decoder.decode().map_err(|_e| Malformed::Content)?;
    if decoder.position() == encoded.len() {
        Ok(value)
    } else {
        Err(Malformed::Content)
    }
}

/// A message taken apart, nothing verified but its form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outer<'m> {
    header: &'m [u8; HEADER_BYTES],
    /// Check or mark.
    pub(crate) check: &'m [u8; CHECK_BYTES],
    /// The Noise message.
    pub(crate) noise: &'m [u8],
}

impl<'m> Outer<'m> {
    /// Checks length, version and reserved bytes for the kind that the first byte names.
    pub(crate) fn parse(bytes: &'m [u8]) -> Result<Self, Malformed> {
        let size = match bytes.first() {
            Some(&INTRODUCE) => INTRODUCE_BYTES,
            Some(&INTRODUCED) => INTRODUCED_BYTES,
            _ => return Err(Malformed::Version),
        };
        if bytes.len() != size {
            return Err(Malformed::Length);
        }
        let (header, rest) = bytes.split_first_chunk().ok_or(Malformed::Length)?;
        let (check, noise) = rest.split_first_chunk().ok_or(Malformed::Length)?;
        if !matches!(header, [_, VERSION, 0, 0]) {
            return Err(Malformed::Version);
        }
        Ok(Self {
            header,
            check,
            noise,
        })
    }

    /// Returns whether the check was made for the device with this introduction key. It proves only
    /// that the sender knows the public half, so it needs no constant time.
    pub(crate) fn is_for(&self, responder: &PublicKey) -> bool {
        *self.check == check(responder, self.header, self.noise)
    }
}

/// Puts a Noise message behind its header and, for a question, its check.
pub(crate) fn introduce(responder: &PublicKey, noise: &[u8]) -> Vec<u8> {
    let header = [INTRODUCE, VERSION, 0, 0];
    assemble(header, check(responder, &header, noise), noise)
}

/// Puts a Noise message behind its header and mark.
pub(crate) fn introduced(mark: [u8; CHECK_BYTES], noise: &[u8]) -> Vec<u8> {
    assemble([INTRODUCED, VERSION, 0, 0], mark, noise)
}

fn assemble(header: [u8; HEADER_BYTES], check: [u8; CHECK_BYTES], noise: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(OUTER_BYTES + noise.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(&check);
    out.extend_from_slice(noise);
    out
}

fn check(responder: &PublicKey, header: &[u8], noise: &[u8]) -> [u8; CHECK_BYTES] {
    let key = Blake2s256::new()
        .chain_update(CHECK_LABEL)
        .chain_update(responder.as_bytes());
    let mut mac = <Blake2sMac<U16> as KeyInit>::new(&key.finalize());
    mac.update(header);
    mac.update(noise);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
