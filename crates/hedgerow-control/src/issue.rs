//! Certificates: what is written into each kind, and the keys that sign them.
//!
//! ```text
//!  root (P-384, offline) ─▶ issuing (P-256) ─▶ device, controller, operator leaves
//! ```

use std::net::IpAddr;
use std::time::Duration;

use hedgerow_identity::key::{SoftwareEd25519, SoftwareP256};
use hedgerow_model::Wall;
use hedgerow_model::id::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::entropy;

/// Certificates begin this long before they are made: other clocks are late.
pub(crate) const BACKDATE: Duration = Duration::from_secs(600);
/// Life of the root.
const ROOT_DAYS: u64 = 3650;

/// Why a certificate could not be made. Nothing was issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// The key is not of a kind that we certify.
    #[error("the key is not an ECDSA P-256 key")]
    WrongKey,
    /// A name does not fit into a certificate.
    #[error("`{0}` does not fit into a certificate")]
    Name(String),
    /// The library or a key failed.
    #[error("the certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// A key file does not hold its key.
    #[error("the key could not be read")]
    Key(#[from] hedgerow_identity::key::KeyError),
    /// A statement could not be signed.
    #[error("the statement could not be signed")]
    Sign(#[from] hedgerow_identity::key::SignError),
}

/// A key with its PKCS#8 text.
pub(crate) struct FreshKey {
    /// The key.
    pub(crate) pair: KeyPair,
    /// The same, as a file holds it.
    pub(crate) pem: Zeroizing<String>,
}

impl FreshKey {
    /// Makes a P-256 key.
    pub(crate) fn p256() -> Result<Self, IssueError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let pem = Zeroizing::new(pair.serialize_pem());
        Ok(Self { pair, pem })
    }
}

/// Whom a leaf is for.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The only URI: its SPIFFE id.
    pub(crate) uri: String,
    /// The only DNS name.
    pub(crate) dns: String,
    /// Addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What issues and signs from day to day.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    issuer_der: CertificateDer<'static>,
    issuer_not_after: u64,
    /// Signs tickets and beacons.
    pub(crate) issuing: SoftwareP256,
    /// Signs programs, states, configuration, names.
    pub(crate) policy: SoftwareEd25519,
    /// Signs revocation lists.
    pub(crate) revocation: SoftwareEd25519,
}

impl Authority {
    /// Takes the keys as their files hold them.
    pub(crate) fn new(
        issuer_pem: &str,
        issuer_der: &[u8],
        issuer_not_after: u64,
        policy: SoftwareEd25519,
        revocation: SoftwareEd25519,
    ) -> Result<Self, IssueError> {
        let issuer_der = CertificateDer::from(issuer_der.to_vec());
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&issuer_der, KeyPair::from_pem(issuer_pem)?)?,
            issuer_der,
            issuer_not_after,
            issuing: SoftwareP256::from_pkcs8_pem(issuer_pem)?,
            policy,
            revocation,
        })
    }

    /// Returns the issuing certificate.
    pub(crate) fn issuer_der(&self) -> &CertificateDer<'static> {
        &self.issuer_der
    }

    /// Returns the end of the issuing certificate, in seconds since 1970.
    pub(crate) fn issuer_not_after(&self) -> u64 {
        self.issuer_not_after
    }

    /// Returns the end that a leaf made now with this life has: never beyond the issuer's.
    pub(crate) fn end_of(&self, now: Wall, life: Duration) -> u64 {
        (now.secs() + life.as_secs()).min(self.issuer_not_after)
    }

    /// Certifies a public key; returns leaf and issuing certificate.
    pub(crate) fn leaf(
        &self,
        spki: &[u8],
        subject: &Subject,
        now: Wall,
        not_after_secs: u64,
    ) -> Result<Vec<Vec<u8>>, IssueError> {
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_e| IssueError::WrongKey)?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(IssueError::WrongKey);
        }
        let params = leaf_params(subject, now, not_after_secs)?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(vec![leaf.der().to_vec(), self.issuer_der.to_vec()])
    }
}

/// Makes a self-signed root.
pub(crate) fn root(
    trust_domain: &TrustDomain,
    key: &KeyPair,
    now: Wall,
) -> Result<Vec<u8>, IssueError> {
    let end = now.secs() + ROOT_DAYS * 86_400;
    let mut params = ca_params(&format!("{trust_domain} root"), trust_domain, now, end)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    Ok(params.self_signed(key)?.der().to_vec())
}

/// Makes an issuing certificate under a root.
pub(crate) fn issuing(
    trust_domain: &TrustDomain,
    issuing: &KeyPair,
    root_der: &[u8],
    root_key: KeyPair,
    now: Wall,
    not_after_secs: u64,
) -> Result<Vec<u8>, IssueError> {
    let root = Issuer::from_ca_cert_der(&CertificateDer::from(root_der.to_vec()), root_key)?;
    let name = format!("{trust_domain} issuing {}", now.secs());
    let mut params = ca_params(&name, trust_domain, now, not_after_secs)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    Ok(params.signed_by(issuing, &root)?.der().to_vec())
}

fn ca_params(
    name: &str,
    trust_domain: &TrustDomain,
    now: Wall,
    not_after_secs: u64,
) -> Result<CertificateParams, IssueError> {
    let mut params = params(now, not_after_secs)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(
    subject: &Subject,
    now: Wall,
    not_after_secs: u64,
) -> Result<CertificateParams, IssueError> {
    let mut params = params(now, not_after_secs)?;
    params.distinguished_name = DistinguishedName::new();
    let dns = subject
        .dns
        .as_str()
        .try_into()
        .map_err(|_e| IssueError::Name(subject.dns.clone()))?;
    params.subject_alt_names = vec![uri(&subject.uri)?, SanType::DnsName(dns)];
    let addresses = subject.addresses.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

fn params(now: Wall, not_after_secs: u64) -> Result<CertificateParams, IssueError> {
    let epoch = date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::new(Vec::new())?;
    params.not_before = epoch + Duration::from_secs(now.secs()).saturating_sub(BACKDATE);
    params.not_after = epoch + Duration::from_secs(not_after_secs);
    let mut serial = entropy::bytes::<16>();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, IssueError> {
    let uri = text
        .try_into()
        .map_err(|_e| IssueError::Name(text.to_owned()))?;
    Ok(SanType::URI(uri))
}
