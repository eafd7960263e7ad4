//! Keys: what signs, what verifies, how a key is named.
//!
//! Public keys are compressed points (P-256, P-384) or 32 bytes (Ed25519). A key's [`KeyId`] and the
//! digest of its SubjectPublicKeyInfo name it; nothing is ever keyed on a signature or on the hash of
//! a certificate, because ECDSA signatures have more than one spelling.

use ed25519_dalek::Signer as _;
use hedgerow_model::id::Digest;
use hedgerow_model::statement::{Ed25519Public, KeyId, P256Public, P384Public};
use p256::pkcs8::der::pem::LineEnding;
use p256::pkcs8::{
    self, DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

pub use crate::error::{BadSignature, KeyError, SignError};

/// Longest private key file that is read, in bytes.
pub const PRIVATE_KEY_BYTES_MAX: usize = 4096;

/// A signature algorithm, by its COSE number (RFC 9053 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// ES256: ECDSA on P-256 with SHA-256. Issuers and devices.
    Es256,
    /// ES384: ECDSA on P-384 with SHA-384. Roots.
    Es384,
    /// EdDSA on Curve25519. Roles and enrollment tokens.
    EdDsa,
}

impl Algorithm {
    /// Returns the COSE algorithm number.
    pub fn cose(self) -> i8 {
        match self {
            Self::Es256 => -7,
            Self::Es384 => -35,
            Self::EdDsa => -8,
        }
    }

    /// Returns how long a raw signature is, in bytes.
    pub fn signature_bytes(self) -> usize {
        match self {
            Self::Es256 | Self::EdDsa => 64,
            Self::Es384 => 96,
        }
    }
}

/// A public key of any kind that signs in Hedgerow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublicKey {
    /// Issuers and devices.
    P256(P256Public),
    /// Roots.
    P384(P384Public),
    /// Roles and enrollment tokens.
    Ed25519(Ed25519Public),
}

impl PublicKey {
    /// Returns the algorithm whose signatures the key verifies.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256(_) => Algorithm::Es256,
            Self::P384(_) => Algorithm::Es384,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// Returns the key's own bytes: compressed point, or 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::P256(key) => &key.0,
            Self::P384(key) => &key.0,
            Self::Ed25519(key) => &key.0,
        }
    }

    /// Returns the first 8 bytes of the SHA-256 of the key's own bytes.
    pub fn id(&self) -> KeyId {
        let digest = Digest::of(self.as_bytes()).0;
        let mut id = [0; 8];
        for (slot, byte) in id.iter_mut().zip(digest) {
            *slot = byte;
        }
        KeyId(id)
    }

    /// Checks a raw signature (`r ‖ s`, or Ed25519's 64 bytes) over `message`.
    ///
    /// # Errors
    ///
    /// [`BadSignature`], also for the second spelling of an ECDSA signature (`s` above half the
    /// order), for Ed25519 keys of small order, and for bytes that are no key.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        match self {
            Self::P256(key) => verify_p256(key, message, signature),
            Self::P384(key) => verify_p384(key, message, signature),
            Self::Ed25519(key) => verify_ed25519(key, message, signature),
        }
    }

    /// Returns the SubjectPublicKeyInfo, DER, with the point uncompressed as certificates have it.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the bytes are no key.
    pub fn to_spki(&self) -> Result<Vec<u8>, KeyError> {
        match self {
            Self::P256(key) => Ok(p256::PublicKey::from_sec1_bytes(&key.0)
                .map_err(|_e| KeyError::Malformed)?
                .to_public_key_der()
                .map_err(|_e| KeyError::Malformed)?
                .into_vec()),
            Self::P384(key) => Ok(p384::PublicKey::from_sec1_bytes(&key.0)
                .map_err(|_e| KeyError::Malformed)?
                .to_public_key_der()
                .map_err(|_e| KeyError::Malformed)?
                .into_vec()),
            Self::Ed25519(key) => Ok([&ED25519_SPKI_PREFIX[..], &key.0].concat()),
        }
    }

    /// Reads a SubjectPublicKeyInfo, DER.
    ///
    /// # Errors
    ///
    /// [`KeyError`] for other algorithms, points off the curve and trailing bytes.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        if let Some(raw) = der.strip_prefix(&ED25519_SPKI_PREFIX[..]) {
            let raw = raw.try_into().map_err(|_e| KeyError::Malformed)?;
            return Ok(Self::Ed25519(Ed25519Public(raw)));
        }
        if let Ok(key) = p256::PublicKey::from_public_key_der(der) {
            return Ok(Self::P256(compress_p256(&key)?));
        }
        let key = p384::PublicKey::from_public_key_der(der).map_err(|_e| KeyError::Malformed)?;
        Ok(Self::P384(compress_p384(&key)?))
    }

    /// Returns the SHA-256 of the SubjectPublicKeyInfo: what revocations name.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the bytes are no key.
    pub fn spki_digest(&self) -> Result<Digest, KeyError> {
        Ok(Digest::of(&self.to_spki()?))
    }
}

/// RFC 8410 §4: algorithm 1.3.101.112 without parameters, then a bit string of 32 bytes.
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// RFC 8410 §7: version 0, algorithm 1.3.101.112, then an octet string in an octet string.
const ED25519_PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

fn compress_p256(key: &p256::PublicKey) -> Result<P256Public, KeyError> {
    let point = p256::ecdsa::VerifyingKey::from(key).to_sec1_point(true);
    let bytes = point.as_bytes().try_into();
    bytes.map(P256Public).map_err(|_e| KeyError::Malformed)
}

fn compress_p384(key: &p384::PublicKey) -> Result<P384Public, KeyError> {
    let point = p384::ecdsa::VerifyingKey::from(key).to_sec1_point(true);
    let bytes = point.as_bytes().try_into();
    bytes.map(P384Public).map_err(|_e| KeyError::Malformed)
}

fn verify_p256(key: &P256Public, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    use p256::ecdsa::signature::Verifier as _;
    let bad = |_e| BadSignature;
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&key.0).map_err(bad)?;
    let signature = p256::ecdsa::Signature::from_slice(signature).map_err(bad)?;
    if signature.normalize_s() != signature {
        return Err(BadSignature);
    }
    key.verify(message, &signature).map_err(bad)
}

fn verify_p384(key: &P384Public, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    use p384::ecdsa::signature::Verifier as _;
    let bad = |_e| BadSignature;
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(&key.0).map_err(bad)?;
    let signature = p384::ecdsa::Signature::from_slice(signature).map_err(bad)?;
    if signature.normalize_s() != signature {
        return Err(BadSignature);
    }
    key.verify(message, &signature).map_err(bad)
}

fn verify_ed25519(key: &Ed25519Public, message: &[u8], sig: &[u8]) -> Result<(), BadSignature> {
    let bad = |_e| BadSignature;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&key.0).map_err(bad)?;
    let signature = ed25519_dalek::Signature::from_slice(sig).map_err(bad)?;
    key.verify_strict(message, &signature).map_err(bad)
}

/// Something that signs: a key in memory, in a TPM, behind PKCS#11.
///
/// A slow key store is an output of the machine that needs it, not a call inside of one; this trait
/// is what the shell calls then.
pub trait SigningKey: Send + Sync {
    /// Returns the public half.
    fn public_key(&self) -> PublicKey;

    /// Signs `message`: `r ‖ s` in either spelling, or Ed25519's 64 bytes.
    ///
    /// # Errors
    ///
    /// [`SignError`] when the key store fails; nothing was signed.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;

    /// Returns the algorithm of the key's signatures.
    fn algorithm(&self) -> Algorithm {
        self.public_key().algorithm()
    }

    /// Returns the key's id.
    fn key_id(&self) -> KeyId {
        self.public_key().id()
    }
}

/// Brings an ECDSA signature to its one accepted spelling; others pass unchanged.
pub(crate) fn normalize(algorithm: Algorithm, signature: Vec<u8>) -> Result<Vec<u8>, SignError> {
    let bad = |_e| SignError::MalformedSignature;
    match algorithm {
        Algorithm::Es256 => {
            let signature = p256::ecdsa::Signature::from_slice(&signature).map_err(bad)?;
            Ok(signature.normalize_s().to_vec())
        }
        Algorithm::Es384 => {
            let signature = p384::ecdsa::Signature::from_slice(&signature).map_err(bad)?;
            Ok(signature.normalize_s().to_vec())
        }
        Algorithm::EdDsa if signature.len() == 64 => Ok(signature),
        Algorithm::EdDsa => Err(SignError::MalformedSignature),
    }
}

fn checked_pem(pem: &str) -> Result<&str, KeyError> {
    if pem.len() > PRIVATE_KEY_BYTES_MAX {
        return Err(KeyError::TooLong { bytes: pem.len() });
    }
    Ok(pem)
}

macro_rules! software_ecdsa {
    ($(#[$doc:meta])* $name:ident, $curve:ident, $variant:ident, $public:ident, $compress:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name {
            secret: $curve::ecdsa::SigningKey,
            public: $public,
        }

        impl $name {
            /// Makes a new key from `rng`.
            ///
            /// # Errors
            ///
            /// [`KeyError`] never, in practice: a fresh key has a public half.
            pub fn generate(rng: &mut dyn CryptoRng) -> Result<Self, KeyError> {
                use $curve::elliptic_curve::Generate as _;
                Self::from_secret($curve::ecdsa::SigningKey::generate_from_rng(rng))
            }

            /// Reads PKCS#8, PEM.
            ///
            /// # Errors
            ///
            /// [`KeyError`] when it is something else.
            pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
                let key = $curve::ecdsa::SigningKey::from_pkcs8_pem(checked_pem(pem)?);
                Self::from_secret(key.map_err(|_e| KeyError::NotPkcs8)?)
            }

            /// Reads PKCS#8, DER.
            ///
            /// # Errors
            ///
            /// [`KeyError`] when it is something else.
            pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
                let key = $curve::ecdsa::SigningKey::from_pkcs8_der(der);
                Self::from_secret(key.map_err(|_e| KeyError::NotPkcs8)?)
            }

            /// Returns the key as PKCS#8, PEM.
            ///
            /// # Errors
            ///
            /// [`KeyError`] never, in practice.
            pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
                self.secret.to_pkcs8_pem(LineEnding::LF).map_err(|_e| KeyError::NotPkcs8)
            }

            /// Returns the key as PKCS#8, DER.
            ///
            /// # Errors
            ///
            /// [`KeyError`] never, in practice.
            pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
                let der = self.secret.to_pkcs8_der().map_err(|_e| KeyError::NotPkcs8)?;
                Ok(der.to_bytes())
            }

            /// Returns the public half as statements hold it.
            pub fn public(&self) -> $public {
                self.public
            }

            fn from_secret(secret: $curve::ecdsa::SigningKey) -> Result<Self, KeyError> {
                let public = $curve::PublicKey::from(secret.verifying_key());
                Ok(Self { secret, public: $compress(&public)? })
            }
        }

        impl SigningKey for $name {
            fn public_key(&self) -> PublicKey {
                PublicKey::$variant(self.public)
            }

            fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
                use $curve::ecdsa::signature::Signer as _;
                let signature: $curve::ecdsa::Signature =
                    self.secret.try_sign(message).map_err(|_e| SignError::MalformedSignature)?;
                Ok(signature.normalize_s().to_vec())
            }
        }
    };
}

software_ecdsa!(
    /// A P-256 key in memory, wiped when dropped: devices, issuers.
    SoftwareP256, p256, P256, P256Public, compress_p256
);
software_ecdsa!(
    /// A P-384 key in memory, wiped when dropped: roots.
    SoftwareP384, p384, P384, P384Public, compress_p384
);

/// An Ed25519 key in memory, wiped when dropped: roles, enrollment tokens.
#[derive(Clone)]
pub struct SoftwareEd25519(ed25519_dalek::SigningKey);

impl SoftwareEd25519 {
    /// Makes a new key from `rng`.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Self::from_seed(&seed)
    }

    /// Makes the key of a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Returns the public half as statements hold it.
    pub fn public(&self) -> Ed25519Public {
        Ed25519Public(self.0.verifying_key().to_bytes())
    }

    /// Reads PKCS#8, PEM.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when it is something else.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
        let (label, document) =
            pkcs8::SecretDocument::from_pem(checked_pem(pem)?).map_err(|_e| KeyError::NotPkcs8)?;
        if label != "PRIVATE KEY" {
            return Err(KeyError::NotPkcs8);
        }
        Self::from_pkcs8_der(document.as_bytes())
    }

    /// Reads PKCS#8, DER, in the form that has no public half.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when it is something else.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let seed = der.strip_prefix(&ED25519_PKCS8_PREFIX[..]);
        let seed: &[u8; 32] = seed
            .and_then(|seed| seed.try_into().ok())
            .ok_or(KeyError::NotPkcs8)?;
        Ok(Self::from_seed(seed))
    }

    /// Returns the key as PKCS#8, PEM.
    ///
    /// # Errors
    ///
    /// [`KeyError`] never, in practice.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        pkcs8::SecretDocument::try_from(self.to_pkcs8_der().as_slice())
            .and_then(|document| document.to_pem("PRIVATE KEY", LineEnding::LF))
            .map_err(|_e| KeyError::NotPkcs8)
    }

    /// Returns the key as PKCS#8, DER.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(48));
        der.extend_from_slice(&ED25519_PKCS8_PREFIX);
        der.extend_from_slice(self.0.as_bytes());
        der
    }
}

impl SigningKey for SoftwareEd25519 {
    fn public_key(&self) -> PublicKey {
        PublicKey::Ed25519(self.public())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests;
