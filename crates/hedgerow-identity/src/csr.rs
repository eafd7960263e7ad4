//! Certificate requests (PKCS#10): a key and the proof that the asker holds it.
//!
//! A request names nobody. Who the asker is, the controller decides from its own records.

use hedgerow_model::id::Digest;
use hedgerow_model::statement::P256Public;
use x509_cert::der::asn1::{BitString, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};
use x509_cert::name::Name;
use x509_cert::request::{CertReq, CertReqInfo, Version};
use x509_cert::spki::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::error::{CertificateError, SignError};
use crate::key::{Algorithm, PublicKey, SigningKey, normalize};

/// Largest request that is read, in bytes.
pub const CSR_BYTES_MAX: usize = 4096;

const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// What a request says, its proof checked. Made only by [`parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    key: P256Public,
    spki: Digest,
}

impl Request {
    /// Returns the key.
    pub fn key(&self) -> P256Public {
        self.key
    }

    /// Returns the digest of its SubjectPublicKeyInfo: what approvals bind to, what
    /// [`crate::fingerprint::fingerprint_of`] shows.
    pub fn spki_digest(&self) -> Digest {
        self.spki
    }
}

/// Makes a request, DER, for a P-256 key.
///
/// # Errors
///
/// [`SignError`] when the key store fails or the key is of another kind.
pub fn make(key: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    if key.algorithm() != Algorithm::Es256 {
        return Err(SignError::WrongKind);
    }
    let encoding = |_e| SignError::Encoding;
    let spki = key
        .public_key()
        .to_spki()
        .map_err(|_e| SignError::Encoding)?;
    let info = CertReqInfo {
        version: Version::V1,
        subject: Name::default(),
        public_key: SubjectPublicKeyInfo::from_der(&spki).map_err(encoding)?,
        attributes: x509_cert::attr::Attributes::default(),
    };
    let signature = key.sign(&info.to_der().map_err(encoding)?)?;
    let signature = normalize(Algorithm::Es256, signature)?;
    let signature = p256::ecdsa::Signature::from_slice(&signature)
        .map_err(|_e| SignError::MalformedSignature)?
        .to_der();
    let request = CertReq {
        info,
        algorithm: AlgorithmIdentifier {
            oid: ECDSA_WITH_SHA256,
            parameters: None,
        },
        signature: BitString::from_bytes(signature.as_bytes()).map_err(encoding)?,
    };
    request.to_der().map_err(encoding)
}

/// Reads a request, DER, and checks that the key in it signed it. Names and attributes in it are
/// not looked at.
///
/// # Errors
///
/// [`CertificateError`].
pub fn parse(der: &[u8]) -> Result<Request, CertificateError> {
    let malformed = |_e| CertificateError::Malformed;
    if der.len() > CSR_BYTES_MAX {
        return Err(CertificateError::Malformed);
    }
    let request = CertReq::from_der(der).map_err(malformed)?;
    if request.to_der().map_err(malformed)? != der {
        return Err(CertificateError::Malformed);
    }
    let spki = request.info.public_key.to_der().map_err(malformed)?;
    let public = PublicKey::from_spki(&spki).map_err(|_e| CertificateError::Malformed)?;
    let PublicKey::P256(key) = public else {
        return Err(CertificateError::Profile {
            rule: "the key is not a P-256 key",
        });
    };
    if request.algorithm.oid != ECDSA_WITH_SHA256 {
        return Err(CertificateError::Profile {
            rule: "the signature is not ECDSA with SHA-256",
        });
    }
    let signed = request.info.to_der().map_err(malformed)?;
    p256::ecdsa::Signature::from_der(request.signature.raw_bytes())
        .ok()
        .and_then(|s| {
            public
                .verify(&signed, s.normalize_s().to_vec().as_slice())
                .ok()
        })
        .ok_or(CertificateError::NoProof)?;
    Ok(Request {
        key,
        spki: Digest::of(&spki),
    })
}

#[cfg(test)]
mod tests;
