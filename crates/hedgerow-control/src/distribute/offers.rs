//! What one device shall hold, out of a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::resource::{ResourceHead, ResourceKind};
use hedgerow_model::statement::NameEntry;
use hedgerow_policy::Facts;
use hedgerow_sync::controller::Offer;

use crate::control::Controller;
use crate::hub::dirty;
use crate::names::List;
use crate::refusal::Refusal;
use crate::sign::Signer;
use crate::snapshot::{Snapshot, ticket_offer};

/// The offers of one session.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    by_kind: BTreeMap<ResourceKind, Arc<Offer>>,
    /// What the list of names says.
    names: Option<Digest>,
    /// The newest change that altered one of them.
    changed_at: Option<Revision>,
}

impl Offers {
    /// Computes the offers that `bits` name; returns whether any differs from before. `held` is what the
    /// agent brought along.
    pub(crate) fn refresh(
        &mut self,
        control: &Controller,
        snapshot: &Snapshot,
        device: DeviceId,
        held: &[ResourceHead],
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
            let policy = &snapshot.policy;
            let list = policy.names(&facts, &compiled, snapshot.members, || members(snapshot));
            if let Some((site, count)) = list.untold() {
                let event = Event::new(control.clock.wall(), EventKind::NamesLeftOut);
                control.event(event.detail("site", site).detail("count", count));
            }
            changed |= self.set_names(&list, held, signer)?;
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

    /// Offers the list of names. One that says the same as before stays as it is, whatever happened to
    /// others meanwhile.
    fn set_names(
        &mut self,
        list: &List,
        held: &[ResourceHead],
        signer: Signer<'_>,
    ) -> Result<bool, Refusal> {
        if self.names == Some(list.content) {
            return Ok(false);
        }
        let mut offer = list.offer(list.revision, signer)?;
        let held = held.iter().find(|h| h.kind == ResourceKind::Names);
        if let Some(held) = held.filter(|h| self.names.is_none() && h.version < list.revision) {
            // What the agent brought along may say the same.
            let older = list.offer(held.version, signer)?;
            if older.head() == *held {
                offer = older;
            }
        }
        self.names = Some(list.content);
        Ok(self.set(offer))
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
