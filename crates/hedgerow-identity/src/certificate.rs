//! Certificates: names in them, facts read from them, and the rules a peer's leaf must keep.
//!
//! [`check_leaf`] does not need a path validator before it: it finds the issuer in the manifest and
//! checks the leaf's signature with the issuer's key. Name constraints on a site's issuer are
//! escaped by leaving a name out, and URIs cannot be constrained at all (rustls-webpki refuses such
//! chains), so a leaf must carry its names, and the path's site is compared here.

mod facts;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hedgerow_model::Now;
use hedgerow_model::address::Overlay;
use hedgerow_model::id::{DeviceId, Digest, OperatorName, SiteName, TrustDomain};
use hedgerow_model::statement::{KeyId, P256Public};

pub use self::facts::{CaFacts, LeafFacts};
pub use crate::error::{CertificateError, RefusedCertificate};
use crate::standing::{Standing, Validity};
use crate::trust::{IssuerScope, Trust};

/// Largest certificate that is read, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 8192;
/// Most IP addresses in one leaf.
pub const LEAF_ADDRESSES_MAX: usize = 8;
/// Longest life of a device's leaf.
pub const DEVICE_LEAF_LIFE_MAX: Duration = Duration::from_secs(31 * 86_400);

/// Who a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpiffeId {
    /// `/site/<site>/device/<id>`
    Device {
        /// Its site.
        site: SiteName,
        /// The device.
        id: DeviceId,
    },
    /// `/controller/<id>`
    Controller {
        /// The controller.
        id: DeviceId,
    },
    /// `/site/<site>/manager/<id>`
    Manager {
        /// Its site.
        site: SiteName,
        /// The site manager.
        id: DeviceId,
    },
    /// `/operator/<name>`
    Operator {
        /// The operator.
        name: OperatorName,
    },
}

impl SpiffeId {
    /// Returns the URI in a trust domain.
    pub fn uri(&self, domain: &TrustDomain) -> String {
        format!("spiffe://{domain}{self}")
    }

    /// Reads a URI of the trust domain; `None` for any other text.
    pub fn from_uri(uri: &str, domain: &TrustDomain) -> Option<Self> {
        uri.strip_prefix("spiffe://")?
            .strip_prefix(domain.as_str())?
            .parse()
            .ok()
    }

    /// Returns the site in the path, if it has one.
    pub fn site(&self) -> Option<&SiteName> {
        match self {
            Self::Device { site, .. } | Self::Manager { site, .. } => Some(site),
            Self::Controller { .. } | Self::Operator { .. } => None,
        }
    }

    /// Returns the id in the path, if it has one.
    pub fn id(&self) -> Option<DeviceId> {
        match self {
            Self::Device { id, .. } | Self::Manager { id, .. } | Self::Controller { id } => {
                Some(*id)
            }
            Self::Operator { .. } => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    /// Writes the path, without the trust domain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { site, id } => write!(f, "/site/{site}/device/{id}"),
            Self::Controller { id } => write!(f, "/controller/{id}"),
            Self::Manager { site, id } => write!(f, "/site/{site}/manager/{id}"),
            Self::Operator { name } => write!(f, "/operator/{name}"),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = CertificateError;
    /// Reads a path.
    fn from_str(path: &str) -> Result<Self, CertificateError> {
        let parts: Vec<&str> = path.split('/').collect();
        let bad = |_e| CertificateError::NotAnIdentity;
        match parts.as_slice() {
            ["", "site", site, "device", id] => Ok(Self::Device {
                site: SiteName::new(site).map_err(bad)?,
                id: id.parse().map_err(bad)?,
            }),
            ["", "site", site, "manager", id] => Ok(Self::Manager {
                site: SiteName::new(site).map_err(bad)?,
                id: id.parse().map_err(bad)?,
            }),
            ["", "controller", id] => Ok(Self::Controller {
                id: id.parse().map_err(bad)?,
            }),
            ["", "operator", name] => Ok(Self::Operator {
                name: OperatorName::new(name).map_err(bad)?,
            }),
            _ => Err(CertificateError::NotAnIdentity),
        }
    }
}

/// What the other end of a connection must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Our server: a controller, or the manager of our own site. Every leaf may be a TLS server, so
    /// the path decides.
    Server {
        /// Our site; absent before enrollment, and on a site manager that connects upstream.
        own_site: Option<&'a SiteName>,
    },
    /// A device that connects for its state, or to renew.
    Device,
    /// A person or program that operates.
    Operator,
}

/// What a peer may do with its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything that its identity may.
    Full,
    /// Ask for a new certificate, with a key it proved; nothing else.
    RenewOnly,
}

/// Whom a checked leaf names. Made only by [`check_leaf`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    id: SpiffeId,
    access: Access,
    validity: Validity,
    issuer: KeyId,
    spki: Digest,
    facts: LeafFacts,
}

impl PeerIdentity {
    /// Returns who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Returns the device and its site, when it is a device.
    pub fn device(&self) -> Option<(DeviceId, &SiteName)> {
        match &self.id {
            SpiffeId::Device { site, id } => Some((*id, site)),
            SpiffeId::Controller { .. } | SpiffeId::Manager { .. } | SpiffeId::Operator { .. } => {
                None
            }
        }
    }

    /// Returns what it may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns what its age leaves of the certificate.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Returns its key.
    pub fn key(&self) -> P256Public {
        self.facts.key()
    }

    /// Returns the digest of its SubjectPublicKeyInfo, by which a key is revoked.
    pub fn spki_digest(&self) -> Digest {
        self.spki
    }

    /// Returns which issuer signed.
    pub fn issuer(&self) -> KeyId {
        self.issuer
    }

    /// Returns everything else the leaf says.
    pub fn facts(&self) -> &LeafFacts {
        &self.facts
    }
}

/// Checks a peer's leaf, DER, against the manifest and what is known against it.
///
/// A leaf that is not valid yet is accepted: our clock is behind, and [`LeafFacts::not_before_secs`]
/// raises the trusted-time floor.
///
/// # Errors
///
/// [`RefusedCertificate`]; the connection must end.
pub fn check_leaf(
    leaf: &[u8],
    trust: &Trust,
    standing: &Standing,
    purpose: Purpose<'_>,
    now: Now,
) -> Result<PeerIdentity, RefusedCertificate> {
    let facts = LeafFacts::parse(leaf).map_err(RefusedCertificate::Certificate)?;
    let issuer = issuer_of(&facts, trust)?;
    let id = SpiffeId::from_uri(facts.uri(), trust.trust_domain()).ok_or_else(|| {
        RefusedCertificate::OtherDomain {
            uri: facts.uri().to_owned(),
        }
    })?;
    check_scope(&id, &facts, issuer, trust)?;
    check_purpose(&id, &facts, purpose)?;
    let spki = facts.spki_digest();
    check_revoked(&id, &facts, issuer, standing)?;
    let validity = standing.validity(facts.not_after_secs(), id.site(), now);
    let access = access_for(purpose, validity, facts.not_after_secs())?;
    Ok(PeerIdentity {
        id,
        access,
        validity,
        issuer: issuer.id(),
        spki,
        facts,
    })
}

fn issuer_of<'t>(
    facts: &LeafFacts,
    trust: &'t Trust,
) -> Result<&'t IssuerScope, RefusedCertificate> {
    trust
        .issuers()
        .filter(|issuer| {
            let id = issuer.facts().map(CaFacts::subject_key_id);
            id.is_some() && id == Some(facts.authority_key_id())
        })
        .find(|issuer| facts.is_signed_by(&issuer.key()))
        .ok_or(RefusedCertificate::UnknownIssuer)
}

fn check_scope(
    id: &SpiffeId,
    facts: &LeafFacts,
    issuer: &IssuerScope,
    trust: &Trust,
) -> Result<(), RefusedCertificate> {
    if let Some(scope) = issuer.site().filter(|scope| Some(*scope) != id.site()) {
        return Err(RefusedCertificate::OutOfScope {
            issuer: scope.clone(),
            path: id.to_string(),
        });
    }
    let (leaf_secs, issuer_secs) = (facts.not_after_secs(), issuer.issuer().not_after_secs);
    if leaf_secs > issuer_secs {
        return Err(RefusedCertificate::OutlivesIssuer {
            leaf_secs,
            issuer_secs,
        });
    }
    let Some(site) = id.site() else {
        return Ok(());
    };
    let [dns] = facts.dns_names() else {
        return Err(RefusedCertificate::Names {
            rule: "a device has exactly one DNS name",
        });
    };
    if dns.split('.').nth(1) != Some(site.as_str()) {
        return Err(RefusedCertificate::Names {
            rule: "the DNS name must be <name>.<site>.<suffix>",
        });
    }
    if facts.addresses().is_empty() {
        return Err(RefusedCertificate::Names {
            rule: "a device has at least one IP address",
        });
    }
    match facts
        .addresses()
        .iter()
        .find(|a| !trust.may_assign(issuer, Overlay(**a)))
    {
        Some(address) => Err(RefusedCertificate::AddressOutOfScope { address: *address }),
        None => Ok(()),
    }
}

fn check_purpose(
    id: &SpiffeId,
    facts: &LeafFacts,
    purpose: Purpose<'_>,
) -> Result<(), RefusedCertificate> {
    let (fits, usage) = match (purpose, id) {
        (Purpose::Server { .. }, SpiffeId::Controller { .. }) => (true, facts.is_server()),
        (Purpose::Server { own_site }, SpiffeId::Manager { site, .. }) => {
            (own_site == Some(site), facts.is_server())
        }
        (Purpose::Device, SpiffeId::Device { .. })
        | (Purpose::Operator, SpiffeId::Operator { .. }) => (true, facts.is_client()),
        (Purpose::Server { .. } | Purpose::Device | Purpose::Operator, _) => (false, false),
    };
    if !fits {
        return Err(RefusedCertificate::WrongPurpose {
            path: id.to_string(),
        });
    }
    if !usage {
        return Err(RefusedCertificate::Certificate(CertificateError::Profile {
            rule: "the extended key usage does not fit",
        }));
    }
    let is_device = matches!(id, SpiffeId::Device { .. });
    let life = facts
        .not_after_secs()
        .saturating_sub(facts.not_before_secs());
    if is_device && life > DEVICE_LEAF_LIFE_MAX.as_secs() {
        return Err(RefusedCertificate::LivesTooLong { secs: life });
    }
    Ok(())
}

fn check_revoked(
    id: &SpiffeId,
    facts: &LeafFacts,
    issuer: &IssuerScope,
    standing: &Standing,
) -> Result<(), RefusedCertificate> {
    use hedgerow_model::statement::Revoked;
    let by_path = [
        id.id().map(Revoked::Device),
        id.site().cloned().map(Revoked::Site),
        Some(Revoked::Key(facts.spki_digest())),
    ];
    let revoked = standing
        .issuer_revocation(issuer.id(), &issuer.key())
        .or_else(|| {
            by_path
                .into_iter()
                .flatten()
                .find(|what| standing.is_revoked(what))
        });
    match revoked {
        Some(what) => Err(RefusedCertificate::Revoked { what }),
        None => Ok(()),
    }
}

fn access_for(
    purpose: Purpose<'_>,
    validity: Validity,
    not_after_secs: u64,
) -> Result<Access, RefusedCertificate> {
    match (validity, purpose) {
        (Validity::Valid | Validity::Grace, _) => Ok(Access::Full),
        (Validity::RenewOnly, Purpose::Device) => Ok(Access::RenewOnly),
        (Validity::RenewOnly, Purpose::Server { .. } | Purpose::Operator) | (Validity::Dead, _) => {
            Err(RefusedCertificate::Expired {
                not_after_secs,
                validity,
            })
        }
    }
}

/// Returns the DNS name that a device's leaf carries.
pub fn dns_name(name: &str, site: &SiteName, suffix: &str) -> String {
    format!("{name}.{site}.{suffix}")
}

#[cfg(test)]
mod tests;
