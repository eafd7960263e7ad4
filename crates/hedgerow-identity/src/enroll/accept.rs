//! What a device believes of the answers it gets.

use hedgerow_model::Now;
use hedgerow_model::id::Digest;
use hedgerow_model::statement::{P256Public, RevocationList, SiteConfig, Ticket, X25519Public};

use super::wire::{Hello, Issued};
use crate::Verified;
use crate::certificate::{PeerIdentity, Purpose, SpiffeId, check_leaf};
use crate::error::EnrollError;
use crate::standing::Standing;
use crate::trust::Trust;

/// A new identity, every part of it checked.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Who speaks for the trust domain.
    pub trust: Trust,
    /// What is known against signatures, with the first revocation list and the site's grace.
    pub standing: Standing,
    /// Our ticket.
    pub ticket: Verified<Ticket>,
    /// Whom our leaf names.
    pub identity: PeerIdentity,
    /// Leaf and issuer certificates, DER.
    pub chain: Vec<Vec<u8>>,
    /// The revocation list.
    pub revocations: Verified<RevocationList>,
    /// The configuration of our site.
    pub config: Verified<SiteConfig>,
}

/// Believes a controller: its chain of manifests begins at the pinned root set, and its leaf, which
/// TLS proved that it holds the key of, is a controller's or site manager's under it.
///
/// # Errors
///
/// [`EnrollError`]; send nothing more.
pub fn accept_hello(
    hello: &Hello,
    genesis: Digest,
    server_leaf: &[u8],
    now: Now,
) -> Result<Trust, EnrollError> {
    let chain: Vec<&[u8]> = hello.manifest_chain.iter().map(|b| b.as_slice()).collect();
    let trust = Trust::from_chain(genesis, &chain).map_err(EnrollError::Manifest)?;
    let purpose = Purpose::Server { own_site: None };
    check_leaf(server_leaf, &trust, &Standing::new(None), purpose, now)
        .map_err(EnrollError::Server)?;
    Ok(trust)
}

/// Believes an issued identity: leaf, ticket and configuration name the same device, site, keys and
/// addresses, and hold under the trust that the controller was believed with.
///
/// # Errors
///
/// [`EnrollError`]; nothing is to be stored, the key stays for the next attempt.
pub fn accept_issued(
    issued: &Issued,
    mut trust: Trust,
    key: &P256Public,
    introduction_key: &X25519Public,
    now: Now,
) -> Result<Enrolled, EnrollError> {
    let links: Vec<&[u8]> = issued.manifest_chain.iter().map(|b| b.as_slice()).collect();
    trust.adopt_chain(&links).map_err(EnrollError::Manifest)?;
    let ticket = trust
        .verify_own_ticket(&issued.ticket, key, Some(issued.device))
        .map_err(EnrollError::Ticket)?;
    let revocations = trust
        .verify_revocations(&issued.revocations)
        .map_err(EnrollError::Statement)?;
    let config = trust
        .verify_config(&issued.config, &ticket.site)
        .map_err(EnrollError::Statement)?;
    let mut standing = Standing::new(Some(ticket.site.clone()));
    standing.set_grace(std::time::Duration::from_secs(config.grace_secs));
    standing
        .adopt_revocations(revocations.clone())
        .map_err(|_e| EnrollError::Disagrees {
            what: "revocations",
        })?;
    let chain: Vec<Vec<u8>> = issued.chain.iter().map(|c| c.to_vec()).collect();
    let leaf = chain
        .first()
        .ok_or(EnrollError::Disagrees { what: "chain" })?;
    let identity =
        check_leaf(leaf, &trust, &standing, Purpose::Device, now).map_err(EnrollError::Leaf)?;
    check_agreement(&ticket, &identity, introduction_key)?;
    Ok(Enrolled {
        trust,
        standing,
        ticket,
        identity,
        chain,
        revocations,
        config,
    })
}

fn check_agreement(
    ticket: &Ticket,
    identity: &PeerIdentity,
    introduction_key: &X25519Public,
) -> Result<(), EnrollError> {
    let named = SpiffeId::Device {
        site: ticket.site.clone(),
        id: ticket.id,
    };
    let addresses = ticket.addresses.iter().collect::<Vec<_>>();
    let same_addresses = identity.facts().addresses().len() == addresses.len()
        && addresses
            .iter()
            .all(|a| identity.facts().addresses().contains(&a.0));
    let checks = [
        ("identity", *identity.id() == named),
        ("key", identity.key() == ticket.identity_key),
        (
            "introduction key",
            ticket.introduction_key == *introduction_key,
        ),
        ("addresses", same_addresses),
        (
            "end of validity",
            ticket.not_after_secs == identity.facts().not_after_secs(),
        ),
    ];
    match checks.into_iter().find(|(_, agrees)| !agrees) {
        Some((what, _)) => Err(EnrollError::Disagrees { what }),
        None => Ok(()),
    }
}
