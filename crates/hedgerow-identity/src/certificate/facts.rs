//! What certificates say, read strictly: DER in its one spelling, known extensions only where they
//! are critical.

use std::net::IpAddr;

use hedgerow_model::address::Prefix;
use hedgerow_model::id::Digest;
use hedgerow_model::statement::P256Public;
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::constraints::name::GeneralSubtree;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    NameConstraints, SubjectAltName, SubjectKeyIdentifier,
};

use super::{CERTIFICATE_BYTES_MAX, LEAF_ADDRESSES_MAX};
use crate::error::CertificateError;
use crate::key::PublicKey;

const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// What a leaf says, of the right form and the leaf profile; not yet whether to believe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    key: P256Public,
    spki: Digest,
    uri: String,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    not_before_secs: u64,
    not_after_secs: u64,
    authority_key_id: Vec<u8>,
    usages: Vec<ObjectIdentifier>,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl LeafFacts {
    /// Reads a leaf, DER.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] for bytes that are no certificate or break the leaf profile.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = decode(der)?;
        let tbs = certificate.tbs_certificate();
        check_leaf_profile(&certificate)?;
        let spki = tbs.subject_public_key_info().to_der().map_err(malformed)?;
        let PublicKey::P256(key) =
            PublicKey::from_spki(&spki).map_err(|_e| profile("the key is not a P-256 key"))?
        else {
            return Err(profile("the key is not a P-256 key"));
        };
        let names = Names::read(&extension::<SubjectAltName>(&certificate)?)?;
        let authority = extension::<AuthorityKeyIdentifier>(&certificate)?
            .key_identifier
            .ok_or(profile("the authority key identifier is missing"))?;
        Ok(Self {
            key,
            spki: Digest::of(&spki),
            uri: names.uri,
            dns_names: names.dns,
            addresses: names.addresses,
            not_before_secs: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after_secs: tbs.validity().not_after.to_unix_duration().as_secs(),
            authority_key_id: authority.as_bytes().to_vec(),
            usages: extension::<ExtendedKeyUsage>(&certificate)?.0,
            signed: tbs.to_der().map_err(malformed)?,
            signature: certificate.signature().raw_bytes().to_vec(),
        })
    }

    /// Returns the key.
    pub fn key(&self) -> P256Public {
        self.key
    }

    /// Returns the digest of the SubjectPublicKeyInfo.
    pub fn spki_digest(&self) -> Digest {
        self.spki
    }

    /// Returns the only URI name.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Returns the DNS names.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// Returns the IP addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Returns the beginning of validity, in seconds since 1970: a lower bound of the time, once
    /// the signature holds.
    pub fn not_before_secs(&self) -> u64 {
        self.not_before_secs
    }

    /// Returns the end of validity, in seconds since 1970.
    pub fn not_after_secs(&self) -> u64 {
        self.not_after_secs
    }

    /// Returns the key identifier of the issuer that it names.
    pub fn authority_key_id(&self) -> &[u8] {
        &self.authority_key_id
    }

    /// Returns whether it may be a TLS server.
    pub fn is_server(&self) -> bool {
        self.usages.contains(&SERVER_AUTH)
    }

    /// Returns whether it may be a TLS client.
    pub fn is_client(&self) -> bool {
        self.usages.contains(&CLIENT_AUTH)
    }

    /// Returns whether `issuer` signed it. Either spelling of the signature holds: certificates are
    /// made by others, and nothing is keyed on their bytes.
    pub fn is_signed_by(&self, issuer: &PublicKey) -> bool {
        let PublicKey::P256(_) = issuer else {
            return false;
        };
        p256::ecdsa::Signature::from_der(&self.signature).is_ok_and(|signature| {
            let raw = signature.normalize_s().to_vec();
            issuer.verify(&self.signed, &raw).is_ok()
        })
    }
}

/// What an issuer's or a root's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFacts {
    key: PublicKey,
    subject_key_id: Vec<u8>,
    permitted: Vec<Prefix>,
    not_before_secs: u64,
    not_after_secs: u64,
}

impl CaFacts {
    /// Reads an authority's certificate, DER.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] for bytes that are no certificate, or not an authority's.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = decode(der)?;
        let tbs = certificate.tbs_certificate();
        let constraints = extension::<BasicConstraints>(&certificate)?;
        let usage = extension::<KeyUsage>(&certificate)?;
        if !constraints.ca || !usage.key_cert_sign() {
            return Err(profile("not an authority"));
        }
        let spki = tbs.subject_public_key_info().to_der().map_err(malformed)?;
        let key =
            PublicKey::from_spki(&spki).map_err(|_e| profile("the key is of another kind"))?;
        let permitted = match optional::<NameConstraints>(&certificate)? {
            Some(constraints) => permitted(&constraints.permitted_subtrees.unwrap_or_default())?,
            None => Vec::new(),
        };
        let id = extension::<SubjectKeyIdentifier>(&certificate)?;
        Ok(Self {
            key,
            subject_key_id: id.0.as_bytes().to_vec(),
            permitted,
            not_before_secs: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after_secs: tbs.validity().not_after.to_unix_duration().as_secs(),
        })
    }

    /// Returns the key.
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// Returns its key identifier, which leaves name.
    pub fn subject_key_id(&self) -> &[u8] {
        &self.subject_key_id
    }

    /// Returns the permitted IP subtrees; none means unconstrained.
    pub fn permitted(&self) -> &[Prefix] {
        &self.permitted
    }

    /// Returns the beginning of validity, in seconds since 1970.
    pub fn not_before_secs(&self) -> u64 {
        self.not_before_secs
    }

    /// Returns the end of validity, in seconds since 1970.
    pub fn not_after_secs(&self) -> u64 {
        self.not_after_secs
    }
}

/// Decodes, encodes again and compares: what is signed is then exactly what was read.
fn decode(der: &[u8]) -> Result<Certificate, CertificateError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(CertificateError::Malformed);
    }
    let certificate = Certificate::from_der(der).map_err(malformed)?;
    let again = certificate.to_der().map_err(malformed)?;
    (again == der)
        .then_some(certificate)
        .ok_or(CertificateError::Malformed)
}

fn malformed(_: x509_cert::der::Error) -> CertificateError {
    CertificateError::Malformed
}

fn profile(rule: &'static str) -> CertificateError {
    CertificateError::Profile { rule }
}

fn optional<T>(certificate: &Certificate) -> Result<Option<T>, CertificateError>
where
    T: for<'a> Decode<'a, Error = x509_cert::der::Error> + AssociatedOid,
{
    let found = certificate
        .tbs_certificate()
        .get_extension::<T>()
        .map_err(malformed)?;
    Ok(found.map(|(_, extension)| extension))
}

fn extension<T>(certificate: &Certificate) -> Result<T, CertificateError>
where
    T: for<'a> Decode<'a, Error = x509_cert::der::Error> + AssociatedOid,
{
    optional(certificate)?.ok_or(profile("an extension is missing"))
}

fn check_leaf_profile(certificate: &Certificate) -> Result<(), CertificateError> {
    let tbs = certificate.tbs_certificate();
    let algorithm = certificate.signature_algorithm();
    if algorithm != tbs.signature()
        || algorithm.oid != ECDSA_WITH_SHA256
        || algorithm.parameters.is_some()
    {
        return Err(profile("the signature is not ECDSA with SHA-256"));
    }
    if optional::<BasicConstraints>(certificate)?.is_some_and(|c| c.ca) {
        return Err(profile("an authority is not a leaf"));
    }
    if extension::<KeyUsage>(certificate)?.0 != KeyUsages::DigitalSignature {
        return Err(profile("the key usage is not digital signature alone"));
    }
    let known = [
        BasicConstraints::OID,
        KeyUsage::OID,
        ExtendedKeyUsage::OID,
        SubjectAltName::OID,
    ];
    let unknown = tbs
        .extensions()
        .into_iter()
        .flatten()
        .any(|e| e.critical && !known.contains(&e.extn_id));
    if unknown {
        return Err(profile("an unknown extension is critical"));
    }
    Ok(())
}

struct Names {
    uri: String,
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Names {
    fn read(san: &SubjectAltName) -> Result<Self, CertificateError> {
        let (mut uris, mut dns, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for name in &san.0 {
            match name {
                GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.to_string()),
                GeneralName::DnsName(name) => dns.push(name.to_string()),
                GeneralName::IpAddress(bytes) => addresses.push(address(bytes.as_bytes())?),
                GeneralName::OtherName(_)
                | GeneralName::Rfc822Name(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EdiPartyName(_)
                | GeneralName::RegisteredId(_) => {
                    return Err(profile("a name of another kind"));
                }
            }
        }
        if addresses.len() > LEAF_ADDRESSES_MAX {
            return Err(profile("more than 8 IP addresses"));
        }
        let (Some(uri), true) = (uris.pop(), uris.is_empty()) else {
            return Err(profile("it takes exactly one URI name"));
        };
        Ok(Self {
            uri,
            dns,
            addresses,
        })
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, CertificateError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .map_err(|_e| profile("an IP address takes 4 or 16 bytes"))
}

/// Reads the IP subtrees: address and mask side by side (RFC 5280 §4.2.1.10).
fn permitted(subtrees: &[GeneralSubtree]) -> Result<Vec<Prefix>, CertificateError> {
    let bad = || profile("a permitted IP subtree");
    let mut prefixes = Vec::new();
    for subtree in subtrees {
        let GeneralName::IpAddress(bytes) = &subtree.base else {
            continue;
        };
        let bytes = bytes.as_bytes();
        let (base, mask) = bytes.split_at_checked(bytes.len() / 2).ok_or_else(bad)?;
        let ones: u32 = mask.iter().map(|b| b.count_ones()).sum();
        let leading: u32 = mask
            .iter()
            .scan(true, |whole, b| {
                let ones = if *whole { b.leading_ones() } else { 0 };
                *whole = *whole && *b == 0xff;
                Some(ones)
            })
            .sum();
        let bits = u8::try_from(ones).map_err(|_e| bad())?;
        if ones != leading {
            return Err(bad());
        }
        prefixes.push(Prefix::new(address(base)?, bits).map_err(|_e| bad())?);
    }
    Ok(prefixes)
}
