//! Signing statements and believing them.
//!
//! Verification goes: envelope, signer, signature, and only then the payload. Nothing unsigned is
//! decoded but the envelope, and the first manifest, which brings its own keys.

use std::time::Duration;

use hedgerow_model::Now;
use hedgerow_model::id::{DeviceId, SiteName};
use hedgerow_model::statement::{
    Beacon, Binding, BundleHead, EndpointRecord, NAMES_MAX, Names, P256Public,
    RECORD_ENDPOINTS_MAX, RECORD_RELAYS_MAX, REVOCATIONS_MAX, RevocationList, Role,
    SignedProgramBody, SiteConfig, States, Ticket, TreeHead,
};
use hedgerow_model::wire::{decode_canonical, encode};
use minicbor::{Decode, Encode};

use crate::Verified;
use crate::cose::{self, ContentType, Envelope};
use crate::error::{RefusedBinding, RefusedStatement, RefusedTicket, SignError};
use crate::key::{PublicKey, SigningKey};
use crate::standing::{Standing, Validity};
use crate::trust::{IssuerScope, Trust};

/// Largest signed ticket, in bytes: the longest names and the most label bytes a device may have.
pub const TICKET_BYTES_MAX: usize = 640;
/// Largest signed binding, in bytes.
pub const BINDING_BYTES_MAX: usize = 192;
/// Largest signed endpoint record, in bytes.
pub const ENDPOINTS_BYTES_MAX: usize = 448;
/// Longest life of a binding or an endpoint record.
pub const BINDING_LIFE_MAX: Duration = Duration::from_secs(48 * 3600);
/// How far ahead of us the maker of a binding may be. Devices that are cut off keep time badly; a
/// binding made for later than this was made by a thief for a time when he no longer has the key.
pub const BINDING_AHEAD_MAX: Duration = Duration::from_secs(48 * 3600);

/// Signs a ticket with an issuing key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_ticket(ticket: &Ticket, issuer: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(ticket, ContentType::Ticket, issuer, is_p256)
}

/// Signs a binding with the device's identity key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_binding(binding: &Binding, identity: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(binding, ContentType::Binding, identity, is_p256)
}

/// Signs a beacon with an issuing key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_beacon(beacon: &Beacon, issuer: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(beacon, ContentType::Beacon, issuer, is_p256)
}

/// Signs a revocation list with the revocation role key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_revocations(
    list: &RevocationList,
    role: &dyn SigningKey,
) -> Result<Vec<u8>, SignError> {
    sign_with(list, ContentType::Revocations, role, is_ed25519)
}

/// Signs a list of states with the policy role key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_states(states: &States, role: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(states, ContentType::States, role, is_ed25519)
}

/// Signs a program with the policy role key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_program(
    program: &SignedProgramBody,
    role: &dyn SigningKey,
) -> Result<Vec<u8>, SignError> {
    sign_with(program, ContentType::Program, role, is_ed25519)
}

/// Signs a site's configuration with the policy role key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_config(config: &SiteConfig, role: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(config, ContentType::Config, role, is_ed25519)
}

/// Signs a device's list of names with the policy role key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_names(names: &Names, role: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(names, ContentType::Names, role, is_ed25519)
}

/// Signs where a device may be reached with its identity key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_endpoints(
    record: &EndpointRecord,
    identity: &dyn SigningKey,
) -> Result<Vec<u8>, SignError> {
    sign_with(record, ContentType::Endpoints, identity, is_p256)
}

/// Signs the head of a set of programs with the policy role key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_bundle_head(head: &BundleHead, role: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(head, ContentType::BundleHead, role, is_ed25519)
}

/// Signs a head of the transparency log with the checkpoint role key.
///
/// # Errors
///
/// [`SignError`]; nothing was signed.
pub fn sign_tree_head(head: &TreeHead, role: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    sign_with(head, ContentType::TreeHead, role, is_ed25519)
}

fn sign_with<T: Encode<()>>(
    body: &T,
    of: ContentType,
    key: &dyn SigningKey,
    right_kind: fn(&PublicKey) -> bool,
) -> Result<Vec<u8>, SignError> {
    if !right_kind(&key.public_key()) {
        return Err(SignError::WrongKind);
    }
    cose::sign(&encode(body), of, key)
}

fn is_p256(key: &PublicKey) -> bool {
    matches!(key, PublicKey::P256(_))
}

fn is_ed25519(key: &PublicKey) -> bool {
    matches!(key, PublicKey::Ed25519(_))
}

/// Believes a binding that the device of `ticket` signed.
///
/// The caller compares [`Binding::sequence`] with what it knows of the peer; a smaller one is stale.
///
/// # Errors
///
/// [`RefusedBinding`]; nothing is remembered of it.
pub fn verify_binding(
    bytes: &[u8],
    ticket: &Verified<Ticket>,
    now: Now,
) -> Result<Verified<Binding>, RefusedBinding> {
    let key = PublicKey::P256(ticket.identity_key);
    let payload = Some(bytes)
        .filter(|bytes| bytes.len() <= BINDING_BYTES_MAX)
        .ok_or(crate::error::EnvelopeError::Malformed)
        .and_then(Envelope::decode)
        .and_then(|envelope| envelope.verify(&key, ContentType::Binding))
        .map_err(RefusedBinding::Envelope)?;
    let binding: Binding = decode_canonical("binding", payload).map_err(RefusedBinding::Wire)?;
    check_life(
        (binding.id, ticket.id),
        (binding.sequence, binding.not_after_secs),
        now,
    )?;
    Ok(Verified::new(binding, bytes, key.id()))
}

/// Believes where the device of `ticket` says that it may be reached.
///
/// The caller compares [`EndpointRecord::sequence`] with what it knows; a smaller one is stale.
///
/// # Errors
///
/// [`RefusedBinding`]: a record is judged like a binding.
pub fn verify_endpoints(
    bytes: &[u8],
    ticket: &Verified<Ticket>,
    now: Now,
) -> Result<Verified<EndpointRecord>, RefusedBinding> {
    let key = PublicKey::P256(ticket.identity_key);
    let payload = Some(bytes)
        .filter(|bytes| bytes.len() <= ENDPOINTS_BYTES_MAX)
        .ok_or(crate::error::EnvelopeError::Malformed)
        .and_then(Envelope::decode)
        .and_then(|envelope| envelope.verify(&key, ContentType::Endpoints))
        .map_err(RefusedBinding::Envelope)?;
    let record: EndpointRecord =
        decode_canonical("endpoint record", payload).map_err(RefusedBinding::Wire)?;
    if record.endpoints.len() > RECORD_ENDPOINTS_MAX || record.relays.len() > RECORD_RELAYS_MAX {
        return Err(RefusedBinding::Envelope(
            crate::error::EnvelopeError::Malformed,
        ));
    }
    check_life(
        (record.id, ticket.id),
        (record.sequence, record.not_after_secs),
        now,
    )?;
    Ok(Verified::new(record, bytes, key.id()))
}

/// Checks that a statement is of the ticket's device and in its time.
fn check_life(
    (binding, ticket): (DeviceId, DeviceId),
    (sequence, end): (u64, u64),
    now: Now,
) -> Result<(), RefusedBinding> {
    if binding != ticket {
        return Err(RefusedBinding::OtherDevice { binding, ticket });
    }
    let secs = end.saturating_sub(sequence);
    if secs > BINDING_LIFE_MAX.as_secs() {
        return Err(RefusedBinding::TooLong { secs });
    }
    let wall = now.wall.secs();
    if end < wall {
        return Err(RefusedBinding::Expired {
            not_after_secs: end,
        });
    }
    if now.wall_is_trusted && sequence > wall.saturating_add(BINDING_AHEAD_MAX.as_secs()) {
        return Err(RefusedBinding::Ahead { sequence });
    }
    Ok(())
}

impl Trust {
    /// Believes a peer's ticket: signed by an issuer within its scope, not revoked, of an epoch in
    /// force, and in its time or in grace. [`Standing::validity`] tells which of the two.
    ///
    /// # Errors
    ///
    /// [`RefusedTicket`]; nothing is remembered of it.
    pub fn verify_ticket(
        &self,
        bytes: &[u8],
        standing: &Standing,
        now: Now,
    ) -> Result<Verified<Ticket>, RefusedTicket> {
        let (ticket, issuer) = self.signed_ticket(bytes)?;
        check_standing(&ticket, issuer, standing)?;
        let end = ticket.not_after_secs;
        match standing.validity(end, Some(&ticket.site), now) {
            Validity::Valid | Validity::Grace => Ok(Verified::new(ticket, bytes, issuer.id())),
            validity @ (Validity::RenewOnly | Validity::Dead) => Err(RefusedTicket::Expired {
                not_after_secs: end,
                validity,
            }),
        }
    }

    /// Checks again, with what has become known since, a ticket that was believed once.
    ///
    /// # Errors
    ///
    /// [`RefusedTicket`]: the peer must go.
    pub fn recheck_ticket(
        &self,
        ticket: &Verified<Ticket>,
        standing: &Standing,
        now: Now,
    ) -> Result<(), RefusedTicket> {
        let key = ticket.signer();
        let issuer = self
            .issuer(key)
            .ok_or(RefusedTicket::UnknownIssuer { key })?;
        check_standing(ticket, issuer, standing)?;
        let end = ticket.not_after_secs;
        match standing.validity(end, Some(&ticket.site), now) {
            Validity::Valid | Validity::Grace => Ok(()),
            validity @ (Validity::RenewOnly | Validity::Dead) => Err(RefusedTicket::Expired {
                not_after_secs: end,
                validity,
            }),
        }
    }

    /// Believes our own ticket: signed by an issuer within its scope for our key, and for our id
    /// once we have one. Age, epoch and revocation do not matter: they never weaken what a device
    /// enforces on itself, and others judge them.
    ///
    /// # Errors
    ///
    /// [`RefusedTicket`].
    pub fn verify_own_ticket(
        &self,
        bytes: &[u8],
        identity: &P256Public,
        id: Option<DeviceId>,
    ) -> Result<Verified<Ticket>, RefusedTicket> {
        let (ticket, issuer) = self.signed_ticket(bytes)?;
        let ours = ticket.identity_key == *identity && id.is_none_or(|id| id == ticket.id);
        if !ours {
            return Err(RefusedTicket::NotOurs { device: ticket.id });
        }
        Ok(Verified::new(ticket, bytes, issuer.id()))
    }

    fn signed_ticket(&self, bytes: &[u8]) -> Result<(Ticket, &IssuerScope), RefusedTicket> {
        let envelope = Some(bytes)
            .filter(|bytes| bytes.len() <= TICKET_BYTES_MAX)
            .ok_or(crate::error::EnvelopeError::Malformed)
            .and_then(Envelope::decode)
            .map_err(RefusedTicket::Envelope)?;
        let key = envelope.key_id();
        let issuer = self
            .issuer(key)
            .ok_or(RefusedTicket::UnknownIssuer { key })?;
        let payload = envelope
            .verify(&issuer.key(), ContentType::Ticket)
            .map_err(RefusedTicket::Envelope)?;
        let ticket: Ticket = decode_canonical("ticket", payload).map_err(RefusedTicket::Wire)?;
        self.check_scope(&ticket, issuer)?;
        Ok((ticket, issuer))
    }

    fn check_scope(&self, ticket: &Ticket, issuer: &IssuerScope) -> Result<(), RefusedTicket> {
        if let Some(site) = issuer.site().filter(|site| **site != ticket.site) {
            return Err(RefusedTicket::OtherSite {
                issuer: site.clone(),
                ticket: ticket.site.clone(),
            });
        }
        if let Some(address) = ticket
            .addresses
            .iter()
            .find(|a| !self.may_assign(issuer, *a))
        {
            return Err(RefusedTicket::AddressOutOfScope { address });
        }
        let (ticket_secs, issuer_secs) = (ticket.not_after_secs, issuer.issuer().not_after_secs);
        if ticket_secs > issuer_secs {
            return Err(RefusedTicket::OutlivesIssuer {
                ticket_secs,
                issuer_secs,
            });
        }
        Ok(())
    }

    /// Believes a revocation list, by the revocation role key.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`]. Order against the list in force is
    /// [`Standing::adopt_revocations`]'s to check.
    pub fn verify_revocations(
        &self,
        bytes: &[u8],
    ) -> Result<Verified<RevocationList>, RefusedStatement> {
        let what = "revocation list";
        let of = ContentType::Revocations;
        let list: Verified<RevocationList> =
            self.role_statement(bytes, of, Role::Revocation, what)?;
        crate::revocation::check(&list)
            .map_err(|rule| RefusedStatement::OutOfBounds { what, rule })?;
        Ok(list)
    }

    /// Believes a list of states, by the policy role key.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`]. Order is [`Standing::adopt_states`]'s to check.
    pub fn verify_states(&self, bytes: &[u8]) -> Result<Verified<States>, RefusedStatement> {
        let what = "list of states";
        let states: Verified<States> =
            self.role_statement(bytes, ContentType::States, Role::Policy, what)?;
        let fits = states.entries.len() <= REVOCATIONS_MAX
            && states.entries.is_sorted_by(|a, b| a.0 < b.0);
        fits.then_some(states).ok_or(RefusedStatement::OutOfBounds {
            what,
            rule: "entries are out of order, doubled or too many",
        })
    }

    /// Believes a program, by the policy role key. The caller compares the class with its ticket and
    /// the revision with the one in force.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`].
    pub fn verify_program(
        &self,
        bytes: &[u8],
    ) -> Result<Verified<SignedProgramBody>, RefusedStatement> {
        self.role_statement(bytes, ContentType::Program, Role::Policy, "program")
    }

    /// Believes the configuration of `site`, by the policy role key. The caller compares the
    /// revision with the one in force.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`].
    pub fn verify_config(
        &self,
        bytes: &[u8],
        site: &SiteName,
    ) -> Result<Verified<SiteConfig>, RefusedStatement> {
        let what = "configuration";
        let config: Verified<SiteConfig> =
            self.role_statement(bytes, ContentType::Config, Role::Policy, what)?;
        if config.site != *site {
            return Err(RefusedStatement::OtherSubject {
                what,
                subject: config.site.to_string(),
            });
        }
        let fits = config.controllers.len() <= CONFIG_LIST_MAX
            && config.management.len() <= CONFIG_LIST_MAX
            && config.pools.len() <= CONFIG_LIST_MAX;
        fits.then_some(config).ok_or(RefusedStatement::OutOfBounds {
            what,
            rule: "a list takes at most 256 entries",
        })
    }

    /// Believes a list of names for devices of `site`, by the policy role key. The caller compares the
    /// revision with the one in force.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`].
    pub fn verify_names(
        &self,
        bytes: &[u8],
        site: &SiteName,
    ) -> Result<Verified<Names>, RefusedStatement> {
        let what = "list of names";
        let names: Verified<Names> =
            self.role_statement(bytes, ContentType::Names, Role::Policy, what)?;
        if names.site != *site {
            return Err(RefusedStatement::OtherSubject {
                what,
                subject: names.site.to_string(),
            });
        }
        let fits = names.entries.len() <= NAMES_MAX
            && names
                .entries
                .is_sorted_by(|a, b| (&a.site, &a.name) < (&b.site, &b.name));
        fits.then_some(names).ok_or(RefusedStatement::OutOfBounds {
            what,
            rule: "entries are out of order, doubled or too many",
        })
    }

    /// Believes a beacon, by an issuing key that is not revoked and may speak for the site from
    /// which `standing` is seen.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`].
    pub fn verify_beacon(
        &self,
        bytes: &[u8],
        standing: &Standing,
    ) -> Result<Verified<Beacon>, RefusedStatement> {
        let what = "beacon";
        let envelope = |source| RefusedStatement::Envelope { what, source };
        let parts = Envelope::decode(bytes).map_err(envelope)?;
        let key = parts.key_id();
        let issuer = self
            .issuer(key)
            .filter(|issuer| issuer.site().is_none() || issuer.site() == standing.site())
            .ok_or(RefusedStatement::NotInRole {
                what,
                key,
                role: None,
            })?;
        let payload = parts
            .verify(&issuer.key(), ContentType::Beacon)
            .map_err(envelope)?;
        if standing.issuer_revocation(key, &issuer.key()).is_some() {
            return Err(RefusedStatement::RevokedIssuer { what, key });
        }
        let beacon: Beacon = decode_canonical(what, payload).map_err(RefusedStatement::Wire)?;
        Ok(Verified::new(beacon, bytes, key))
    }

    /// Believes the head of a set of programs, by the policy role key. Order is the caller's to check.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`].
    pub fn verify_bundle_head(
        &self,
        bytes: &[u8],
    ) -> Result<Verified<BundleHead>, RefusedStatement> {
        self.role_statement(bytes, ContentType::BundleHead, Role::Policy, "bundle head")
    }

    /// Believes a head of the transparency log, by the checkpoint role key. Order is the caller's to
    /// check.
    ///
    /// # Errors
    ///
    /// [`RefusedStatement`].
    pub fn verify_tree_head(&self, bytes: &[u8]) -> Result<Verified<TreeHead>, RefusedStatement> {
        self.role_statement(bytes, ContentType::TreeHead, Role::Checkpoint, "tree head")
    }

    fn role_statement<T>(
        &self,
        bytes: &[u8],
        of: ContentType,
        role: Role,
        what: &'static str,
    ) -> Result<Verified<T>, RefusedStatement>
    where
        T: for<'b> Decode<'b, ()> + Encode<()>,
    {
        let envelope = |source| RefusedStatement::Envelope { what, source };
        let parts = Envelope::decode(bytes).map_err(envelope)?;
        let id = parts.key_id();
        let key = self.role_key(role, id).ok_or(RefusedStatement::NotInRole {
            what,
            key: id,
            role: Some(role),
        })?;
        let payload = parts.verify(&key, of).map_err(envelope)?;
        let value: T = decode_canonical(what, payload).map_err(RefusedStatement::Wire)?;
        Ok(Verified::new(value, bytes, id))
    }
}

/// Most entries in one list of a site's configuration.
pub const CONFIG_LIST_MAX: usize = 256;

fn check_standing(
    ticket: &Ticket,
    issuer: &IssuerScope,
    standing: &Standing,
) -> Result<(), RefusedTicket> {
    let revoked = standing
        .issuer_revocation(issuer.id(), &issuer.key())
        .or_else(|| standing.revocation_of(ticket.id, &ticket.site, &ticket.identity_key));
    if let Some(what) = revoked {
        return Err(RefusedTicket::Revoked { what });
    }
    let minimum = standing.min_epoch(ticket.id);
    if ticket.epoch < minimum {
        return Err(RefusedTicket::OldEpoch {
            epoch: ticket.epoch,
            minimum,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
