//! What one device shall hold, out of a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::resource::{Resource, ResourceHead, ResourceKind};
use hedgerow_model::statement::{NameEntry, Names};
use hedgerow_model::wire;
use hedgerow_policy::Facts;
use hedgerow_sync::controller::Offer;

use crate::control::Controller;
use crate::hub::dirty;
use crate::refusal::Refusal;
use crate::sign::Signer;
use crate::snapshot::{Snapshot, ticket_offer};
use crate::store::devices::DeviceRecord;

/// The offers of one session.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    by_kind: BTreeMap<ResourceKind, Arc<Offer>>,
    names_hash: Option<Digest>,
    /// The newest change that altered one of them.
    changed_at: Option<Revision>,
}

impl Offers {
    /// Computes the offers that `bits` name; returns whether any differs from before.
    pub(crate) fn refresh(
        &mut self,
        control: &Controller,
        snapshot: &Snapshot,
        device: DeviceId,
        bits: u32,
    ) -> Result<bool, Refusal> {
        let mut changed = false;
        if bits & dirty::TRUST != 0 {
            for offer in [&snapshot.manifest, &snapshot.revocations, &snapshot.states] {
                changed |= self.set(offer.clone());
            }
        }
        let Some(record) = snapshot.device(device).filter(|d| d.ended.is_none()) else {
            return Ok(self.mark(changed, snapshot));
        };
        let authority = control.authority();
        let signer = Signer {
            authority: &authority,
            trust: &snapshot.trust,
        };
        if bits & dirty::TICKET != 0 {
            changed |= self.set(ticket_offer(record));
        }
        if bits & dirty::CONFIG != 0
            && let Some(site) = snapshot.sites.get(&record.site)
        {
            changed |= self.set(site.config.clone());
        }
        if bits & (dirty::PROGRAM | dirty::NAMES) != 0 {
            let facts = snapshot.facts(record);
            let compiled = snapshot.policy.program(&facts, signer)?;
            if bits & dirty::PROGRAM != 0 {
                changed |= self.set(compiled.offer.clone());
            }
            let living = || members(snapshot);
            let policy = &snapshot.policy;
            let entries = policy.names(&facts, &compiled, snapshot.members, living);
            changed |= self.set_names(snapshot, record, &entries, signer)?;
        }
        Ok(self.mark(changed, snapshot))
    }

    /// Returns every offer, in the order in which they are applied.
    pub(crate) fn list(&self) -> Vec<Arc<Offer>> {
        ResourceKind::ALL
            .iter()
            .filter_map(|kind| self.by_kind.get(kind).cloned())
            .collect()
    }

    /// Returns the revision that these offers lead to, for an agent at `held`: its own while that
    /// says the same and is not older.
    pub(crate) fn revision(&self, snapshot: &Snapshot, held: Option<Revision>) -> Revision {
        let at = self.changed_at.unwrap_or(snapshot.revision);
        match held {
            Some(held) if held.timeline == at.timeline && held <= snapshot.revision => at.max(held),
            _ => at,
        }
    }

    /// Stays at the agent's revision when it holds all of this already.
    pub(crate) fn settle(
        &mut self,
        heads: &[ResourceHead],
        held: Option<Revision>,
        snapshot: &Snapshot,
    ) {
        let all = self.by_kind.values().all(|o| heads.contains(&o.head()));
        if let Some(held) = held
            .filter(|h| all && h.timeline == snapshot.revision.timeline && *h <= snapshot.revision)
        {
            self.changed_at = Some(held);
        }
    }

    /// Leaves a kind out.
    pub(crate) fn withhold(&mut self, kind: ResourceKind) {
        self.by_kind.remove(&kind);
    }

    fn mark(&mut self, changed: bool, snapshot: &Snapshot) -> bool {
        if changed {
            self.changed_at = Some(snapshot.revision);
        }
        changed
    }

    fn set(&mut self, offer: Arc<Offer>) -> bool {
        let head = offer.head();
        let old = self.by_kind.insert(head.kind, offer);
        old.is_none_or(|old| old.head() != head)
    }

    fn set_names(
        &mut self,
        snapshot: &Snapshot,
        record: &DeviceRecord,
        entries: &[NameEntry],
        signer: Signer<'_>,
    ) -> Result<bool, Refusal> {
        let mut names = Names {
            revision: Revision::default(),
            device: record.id,
            entries: entries
                .iter()
                .filter(|e| e.id != record.id)
                .cloned()
                .collect(),
        };
        let hash = Digest::of(&wire::encode(&names));
        if self.names_hash == Some(hash) {
            return Ok(false);
        }
        // The newest change that can have altered them, so that every connection gets equal bytes.
        names.revision = snapshot.members.max(snapshot.policy.record.revision);
        let bytes = signer.names(&names)?;
        self.names_hash = Some(hash);
        Ok(self.set(Offer::new(Resource {
            kind: ResourceKind::Names,
            version: names.revision,
            bytes,
        })))
    }
}

/// Returns every device that may be named.
fn members(snapshot: &Snapshot) -> Vec<(Facts, NameEntry)> {
    snapshot
        .living()
        .map(|d| {
            let entry = NameEntry {
                id: d.id,
                name: d.name.clone(),
                site: d.site.clone(),
                addresses: d.addresses,
            };
            (snapshot.facts(d), entry)
        })
        .collect()
}
