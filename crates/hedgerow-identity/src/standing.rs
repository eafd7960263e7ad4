//! What is known against a signature that holds: revocations, epochs, age.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_model::Now;
use hedgerow_model::id::{DeviceId, Digest, Revision, SiteName};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{Beacon, KeyId, P256Public, RevocationList, Revoked, States};

use crate::Verified;
use crate::error::Rollback;
use crate::key::PublicKey;
use crate::revocation::newly_revoked;

/// How long an expired ticket still works while no issuer can be reached, unless configured.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(30 * DAY_SECS);
/// Longest grace.
pub const GRACE_MAX: Duration = Duration::from_secs(365 * DAY_SECS);
/// How long after its end a certificate may still ask for renewal.
pub const RENEWAL_WINDOW: Duration = Duration::from_secs(180 * DAY_SECS);
/// A beacon this much before an end already shows that renewal was possible.
pub const BEACON_MARGIN: Duration = Duration::from_secs(DAY_SECS);

const DAY_SECS: u64 = 86_400;

/// What the age of a ticket or certificate leaves of it.
///
/// ```text
///          not_after          + grace, while cut off          + renewal window
///   Valid ─────┼──── Grace or RenewOnly ────┼──── RenewOnly ────────┼──── Dead
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Validity {
    /// In its time.
    Valid,
    /// Expired, and as far as we know nobody could have renewed it: works as before, within its site.
    Grace,
    /// Expired: good for asking for a new one, and nothing else.
    RenewOnly,
    /// Too old even for that: enroll again.
    Dead,
}

/// What is known against signatures that hold. Versions only grow.
#[derive(Debug, Clone)]
pub struct Standing {
    site: Option<SiteName>,
    grace: Duration,
    revocations: Option<Verified<RevocationList>>,
    revoked: BTreeSet<Revoked>,
    min_epochs: BTreeMap<DeviceId, u64>,
    keys_revoked: bool,
    states: Option<Verified<States>>,
    beacon: Option<Verified<Beacon>>,
}

impl Standing {
    /// Begins with nothing known, seen from a device of `site`. Grace reaches only devices of the
    /// same site; without a site, as on a controller, nobody.
    pub fn new(site: Option<SiteName>) -> Self {
        Self {
            site,
            grace: GRACE_DEFAULT,
            revocations: None,
            revoked: BTreeSet::new(),
            min_epochs: BTreeMap::new(),
            keys_revoked: false,
            states: None,
            beacon: None,
        }
    }

    /// Sets how long grace lasts; at most [`GRACE_MAX`], zero for none.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace.min(GRACE_MAX);
    }

    /// Returns the site from which this is seen.
    pub fn site(&self) -> Option<&SiteName> {
        self.site.as_ref()
    }

    /// Takes a revocation list and returns what it revokes that was not revoked before.
    ///
    /// # Errors
    ///
    /// [`Rollback`] when it is older than the one in force. The same version again is no news.
    pub fn adopt_revocations(
        &mut self,
        list: Verified<RevocationList>,
    ) -> Result<Vec<Revoked>, Rollback> {
        let have = self.revocation_version();
        if list.version < have {
            return Err(Rollback {
                what: "revocation list",
                have,
                got: list.version,
            });
        }
        if self.revocations.is_some() && list.version == have {
            return Ok(Vec::new());
        }
        let news = newly_revoked(self.revocations.as_deref(), &list);
        self.revoked = list.entries.iter().map(|e| e.what.clone()).collect();
        self.keys_revoked = self.revoked.iter().any(|r| matches!(r, Revoked::Key(_)));
        self.min_epochs = list.min_epochs.iter().copied().collect();
        self.revocations = Some(list);
        Ok(news)
    }

    /// Takes a list of states.
    ///
    /// # Errors
    ///
    /// [`Rollback`] when it is older than the one in force.
    pub fn adopt_states(&mut self, states: Verified<States>) -> Result<(), Rollback> {
        let have = self.states_revision();
        if states.revision < have {
            return Err(Rollback {
                what: "list of states",
                have,
                got: states.revision,
            });
        }
        self.states = Some(states);
        Ok(())
    }

    /// Takes a beacon, unless a newer one is known. Returns whether it was news.
    pub fn adopt_beacon(&mut self, beacon: Verified<Beacon>) -> bool {
        let newest = self.beacon.as_ref().map_or(0, |b| b.issued_secs);
        let news = self.beacon.is_none() || beacon.issued_secs > newest;
        if news {
            self.beacon = Some(beacon);
        }
        news
    }

    /// Returns the revocation list in force.
    pub fn revocations(&self) -> Option<&Verified<RevocationList>> {
        self.revocations.as_ref()
    }

    /// Returns the version of the revocation list in force; zero before the first.
    pub fn revocation_version(&self) -> Revision {
        self.revocations
            .as_ref()
            .map_or(Revision::default(), |l| l.version)
    }

    /// Returns the states in force.
    pub fn states(&self) -> Option<&Verified<States>> {
        self.states.as_ref()
    }

    /// Returns the revision of the states in force; zero before the first.
    pub fn states_revision(&self) -> Revision {
        self.states
            .as_ref()
            .map_or(Revision::default(), |s| s.revision)
    }

    /// Returns the newest beacon.
    pub fn beacon(&self) -> Option<&Verified<Beacon>> {
        self.beacon.as_ref()
    }

    /// Returns which state a device is in, if any.
    pub fn state(&self, device: DeviceId) -> Option<DeviceState> {
        let entries = &self.states.as_ref()?.entries;
        let at = entries.binary_search_by_key(&device, |e| e.0).ok()?;
        entries.get(at).map(|e| e.1)
    }

    /// Returns the lowest epoch at which tickets of a device are accepted.
    pub fn min_epoch(&self, device: DeviceId) -> u64 {
        self.min_epochs.get(&device).copied().unwrap_or(0)
    }

    /// Returns whether exactly this is on the list.
    pub fn is_revoked(&self, what: &Revoked) -> bool {
        self.revoked.contains(what)
    }

    /// Returns the entry that revokes a device, by its id, its site or its key; if any.
    pub fn revocation_of(
        &self,
        device: DeviceId,
        site: &SiteName,
        key: &P256Public,
    ) -> Option<Revoked> {
        let by_name = [Revoked::Device(device), Revoked::Site(site.clone())];
        by_name
            .into_iter()
            .find(|what| self.is_revoked(what))
            .or_else(|| self.key_revocation(&PublicKey::P256(*key)))
    }

    /// Returns the entry that revokes a key, if any; bytes that are no key count as revoked once
    /// the list names keys, because nothing can be said of them.
    pub fn key_revocation(&self, key: &PublicKey) -> Option<Revoked> {
        if !self.keys_revoked {
            return None;
        }
        match key.spki_digest() {
            Ok(digest) => Some(Revoked::Key(digest)).filter(|what| self.is_revoked(what)),
            Err(_) => Some(Revoked::Key(Digest::of(key.as_bytes()))),
        }
    }

    /// Returns whether an issuing key is revoked, by its id or by its key.
    pub fn issuer_revocation(&self, id: KeyId, key: &PublicKey) -> Option<Revoked> {
        Some(Revoked::Issuer(id))
            .filter(|what| self.is_revoked(what))
            .or_else(|| self.key_revocation(key))
    }

    /// Returns what is left of a ticket or certificate of `site` that ended at `not_after_secs`.
    ///
    /// An untrusted wall clock is a lower bound of the time (see [`crate::clock`]): what has ended
    /// by then has ended.
    pub fn validity(&self, not_after_secs: u64, site: Option<&SiteName>, now: Now) -> Validity {
        let wall = now.wall.secs();
        if wall <= not_after_secs {
            return Validity::Valid;
        }
        let age = Duration::from_secs(wall - not_after_secs);
        let same_site = site.is_some() && site == self.site.as_ref();
        if same_site && age <= self.grace && !self.renewal_was_possible(not_after_secs) {
            return Validity::Grace;
        }
        if age <= RENEWAL_WINDOW {
            return Validity::RenewOnly;
        }
        Validity::Dead
    }

    fn renewal_was_possible(&self, not_after_secs: u64) -> bool {
        let from = not_after_secs.saturating_sub(BEACON_MARGIN.as_secs());
        self.beacon.as_ref().is_some_and(|b| b.issued_secs > from)
    }
}

#[cfg(test)]
mod tests;
