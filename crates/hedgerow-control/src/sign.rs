//! Signing what the controller says, and believing it only as everyone else does: by verifying.

use hedgerow_identity::Verified;
use hedgerow_identity::key::SigningKey;
use hedgerow_identity::statement as identity;
use hedgerow_identity::trust::Trust;
use hedgerow_model::Wall;
use hedgerow_model::id::Revision;
use hedgerow_model::statement::{
    Beacon, BundleHead, Names, RevocationList, SignedProgramBody, SiteConfig, States, Ticket,
};

use crate::issue::{Authority, IssueError};
use crate::refusal::Refusal;

/// Signs with the keys of one authority, and verifies against the manifest in force.
#[derive(Clone, Copy)]
pub(crate) struct Signer<'a> {
    /// The keys.
    pub(crate) authority: &'a Authority,
    /// What everyone believes.
    pub(crate) trust: &'a Trust,
}

fn disbelieved(what: &str, error: &dyn std::fmt::Display) -> Refusal {
    tracing::error!(what, %error, "our own statement does not verify");
    Refusal::bug(format!("the {what} just signed does not verify: {error}"))
}

impl Signer<'_> {
    /// Signs a revocation list.
    pub(crate) fn revocations(
        &self,
        list: &RevocationList,
    ) -> Result<Verified<RevocationList>, Refusal> {
        let bytes = identity::sign_revocations(list, &self.authority.revocation)
            .map_err(IssueError::from)?;
        self.trust
            .verify_revocations(&bytes)
            .map_err(|e| disbelieved("revocation list", &e))
    }

    /// Signs states.
    pub(crate) fn states(&self, states: &States) -> Result<Verified<States>, Refusal> {
        let bytes =
            identity::sign_states(states, &self.authority.policy).map_err(IssueError::from)?;
        self.trust
            .verify_states(&bytes)
            .map_err(|e| disbelieved("list of states", &e))
    }

    /// Signs a site's configuration.
    pub(crate) fn config(&self, config: &SiteConfig) -> Result<Verified<SiteConfig>, Refusal> {
        let bytes =
            identity::sign_config(config, &self.authority.policy).map_err(IssueError::from)?;
        self.trust
            .verify_config(&bytes, &config.site)
            .map_err(|e| disbelieved("configuration", &e))
    }

    /// Signs a program.
    pub(crate) fn program(&self, revision: Revision, program: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let body = SignedProgramBody { revision, program };
        Ok(identity::sign_program(&body, &self.authority.policy).map_err(IssueError::from)?)
    }

    /// Signs a device's names.
    pub(crate) fn names(&self, names: &Names) -> Result<Vec<u8>, Refusal> {
        Ok(identity::sign_names(names, &self.authority.policy).map_err(IssueError::from)?)
    }

    /// Signs a ticket.
    pub(crate) fn ticket(&self, ticket: &Ticket) -> Result<Vec<u8>, Refusal> {
        Ok(identity::sign_ticket(ticket, &self.authority.issuing).map_err(IssueError::from)?)
    }

    /// Signs a beacon.
    pub(crate) fn beacon(&self, revocations: Revision, now: Wall) -> Result<Vec<u8>, Refusal> {
        let beacon = Beacon {
            issued_secs: now.secs(),
            manifest: self.trust.manifest().version,
            revocations,
        };
        Ok(identity::sign_beacon(&beacon, &self.authority.issuing).map_err(IssueError::from)?)
    }

    /// Signs which policy is the newest.
    pub(crate) fn bundle_head(&self, head: &BundleHead) -> Result<Vec<u8>, Refusal> {
        Ok(identity::sign_bundle_head(head, &self.authority.policy).map_err(IssueError::from)?)
    }

    /// Signs the hash of a policy revision.
    pub(crate) fn policy_hash(&self, hash: &[u8]) -> Result<Vec<u8>, Refusal> {
        Ok(self.authority.policy.sign(hash).map_err(IssueError::from)?)
    }
}
