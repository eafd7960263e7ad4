//! COSE_Sign1 (RFC 9052 §4.2) as all statements use it.
//!
//! ```text
//! 18([ protected << {1: algorithm, 4: key id} >>, {}, payload, signature ])
//! signed: ["Signature1", protected, external AAD, payload]
//! ```
//!
//! The external AAD is the statement's content type, so a signature over one kind of statement is
//! none over another kind with the same bytes. There is one spelling: a decoded envelope is encoded
//! again and compared.

use hedgerow_model::statement::KeyId;
use minicbor::data::Tag;
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder};

use crate::error::{EnvelopeError, SignError};
use crate::key::{Algorithm, PublicKey, SigningKey, normalize};

/// Most bytes that signing adds to a payload, for the longest signature.
pub const ENVELOPE_BYTES_MAX: usize = 160;

/// What a signature speaks of; its text is the external AAD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContentType {
    /// [`hedgerow_model::statement::Ticket`].
    Ticket,
    /// [`hedgerow_model::statement::Binding`].
    Binding,
    /// [`hedgerow_model::statement::RevocationList`].
    Revocations,
    /// [`hedgerow_model::statement::States`].
    States,
    /// [`hedgerow_model::statement::SignedProgramBody`].
    Program,
    /// [`hedgerow_model::statement::SiteConfig`].
    Config,
    /// [`hedgerow_model::statement::Names`].
    Names,
    /// [`hedgerow_model::statement::Beacon`].
    Beacon,
    /// [`hedgerow_model::statement::Manifest`].
    Manifest,
    /// [`hedgerow_model::statement::EndpointRecord`].
    Endpoints,
    /// [`hedgerow_model::statement::BundleHead`].
    BundleHead,
    /// [`hedgerow_model::statement::TreeHead`].
    TreeHead,
}

impl ContentType {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Ticket,
        Self::Binding,
        Self::Revocations,
        Self::States,
        Self::Program,
        Self::Config,
        Self::Names,
        Self::Beacon,
        Self::Manifest,
        Self::Endpoints,
        Self::BundleHead,
        Self::TreeHead,
    ];

    /// Returns the content type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ticket => "application/hedgerow-ticket+cbor",
            Self::Binding => "application/hedgerow-binding+cbor",
            Self::Revocations => "application/hedgerow-revocations+cbor",
            Self::States => "application/hedgerow-states+cbor",
            Self::Program => "application/hedgerow-program+cbor",
            Self::Config => "application/hedgerow-config+cbor",
            Self::Names => "application/hedgerow-names+cbor",
            Self::Beacon => "application/hedgerow-beacon+cbor",
            Self::Manifest => "application/hedgerow-manifest+cbor",
            Self::Endpoints => "application/hedgerow-endpoints+cbor",
            Self::BundleHead => "application/hedgerow-bundle-head+cbor",
            Self::TreeHead => "application/hedgerow-tree-head+cbor",
        }
    }
}

/// A decoded envelope, not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'b> {
    algorithm: Algorithm,
    key_id: KeyId,
    payload: &'b [u8],
    signature: &'b [u8],
}

impl<'b> Envelope<'b> {
    /// Splits signed bytes into their parts.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Malformed`] for anything but the one spelling.
    pub fn decode(bytes: &'b [u8]) -> Result<Self, EnvelopeError> {
        let envelope = Self::split(bytes).map_err(|_e| EnvelopeError::Malformed)?;
        if envelope.encode() == bytes {
            Ok(envelope)
        } else {
            Err(EnvelopeError::Malformed)
        }
    }

    fn split(bytes: &'b [u8]) -> Result<Self, minicbor::decode::Error> {
        let mut d = Decoder::new(bytes);
        d.tag()?;
        d.array()?;
        let mut header = Decoder::new(d.bytes()?);
        header.map()?;
        header.u8()?;
        let algorithm = match header.i8()? {
            -7 => Algorithm::Es256,
            -35 => Algorithm::Es384,
            -8 => Algorithm::EdDsa,
            _ => return Err(minicbor::decode::Error::message("unknown algorithm")),
        };
        header.u8()?;
        let key_id: KeyId = header.decode()?;
        d.map()?;
        let (payload, signature) = (d.bytes()?, d.bytes()?);
        Ok(Self {
            algorithm,
            key_id,
            payload,
            signature,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + ENVELOPE_BYTES_MAX);
        infallible(&mut out, |e| {
            e.tag(Tag::new(18))?.array(4)?;
            e.bytes(&protected(self.algorithm, self.key_id))?;
            e.map(0)?.bytes(self.payload)?.bytes(self.signature)?.ok()
        });
        out
    }

    /// Returns the id of the key that is said to have signed.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// Returns the payload, which nothing vouches for yet.
    pub fn unverified_payload(&self) -> &'b [u8] {
        self.payload
    }

    /// Checks that `key` signed the payload as this content type, and returns the payload.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::WrongKey`] when another key is named, [`EnvelopeError::BadSignature`]
    /// otherwise.
    pub fn verify(&self, key: &PublicKey, of: ContentType) -> Result<&'b [u8], EnvelopeError> {
        if self.key_id != key.id() || self.algorithm != key.algorithm() {
            return Err(EnvelopeError::WrongKey { named: self.key_id });
        }
        let signed = to_be_signed(self.algorithm, self.key_id, of, self.payload);
        key.verify(&signed, self.signature)
            .map_err(|_e| EnvelopeError::BadSignature { named: self.key_id })?;
        Ok(self.payload)
    }
}

/// Signs `payload` as `of`.
///
/// # Errors
///
/// [`SignError`] when the key store fails; nothing was signed.
pub fn sign(payload: &[u8], of: ContentType, key: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    let (algorithm, key_id) = (key.algorithm(), key.key_id());
    let signature = key.sign(&to_be_signed(algorithm, key_id, of, payload))?;
    let signature = normalize(algorithm, signature)?;
    let envelope = Envelope {
        algorithm,
        key_id,
        payload,
        signature: &signature,
    };
    Ok(envelope.encode())
}

fn protected(algorithm: Algorithm, key_id: KeyId) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    infallible(&mut out, |e| {
        e.map(2)?.u8(1)?.i8(algorithm.cose())?;
        e.u8(4)?.bytes(&key_id.0)?.ok()
    });
    out
}

/// RFC 9052 §4.4: the Sig_structure.
fn to_be_signed(algorithm: Algorithm, key_id: KeyId, of: ContentType, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 100);
    infallible(&mut out, |e| {
        e.array(4)?.str("Signature1")?;
        e.bytes(&protected(algorithm, key_id))?;
        e.bytes(of.as_str().as_bytes())?.bytes(payload)?.ok()
    });
    out
}

/// Encodes into memory, which cannot fail.
fn infallible<W: Write>(
    out: W,
    f: impl FnOnce(&mut Encoder<W>) -> Result<(), minicbor::encode::Error<W::Error>>,
) {
    f(&mut Encoder::new(out)).ok();
}

#[cfg(test)]
mod tests;
