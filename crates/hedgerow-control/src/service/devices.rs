//! Changing devices: labels, states, revocation, removal, approval.

use std::sync::Arc;

use hedgerow_model::Wall;
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, DeviceName, Digest, Labels, Revision, SiteName};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{Revocation, Revoked};

use super::enrollment::{Place, asker_of, ticket_of};
use crate::control::{Controller, Draft, fact, set_members, states_of};
use crate::hub::dirty;
use crate::refusal::{Kind, Refusal};
use crate::sign::Signer;
use crate::store::devices::{DeviceRecord, Ended};
use crate::store::pending::Decision;
use crate::store::{Change, addresses, devices, pending, revocations, set_fact, tokens};

const DAY_SECS: u64 = 86_400;
/// Longest reason of a revocation, in bytes.
const REASON_BYTES_MAX: usize = 120;

/// Fewest characters of a fingerprint that name a waiting device.
const FINGERPRINT_CHARS_MIN: usize = 8;

/// How a device's time in the fleet ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// An operator no longer trusts it.
    Revoked,
    /// An operator took it out.
    Removed,
    /// It left.
    Left,
}

impl Ending {
    fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Removed => "removed",
            Self::Left => "left",
        }
    }

    fn event(self) -> EventKind {
        match self {
            Self::Revoked => EventKind::DeviceRevoked,
            Self::Removed => EventKind::DeviceRemoved,
            Self::Left => EventKind::DeviceLeft,
        }
    }
}

/// What an operator decides on a waiting device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Approval {
    /// The site, when the device did not come with a token.
    pub(crate) site: Option<SiteName>,
    /// The labels, in place of the token's.
    pub(crate) labels: Option<Labels>,
    /// The name, in place of the device's wish.
    pub(crate) name: Option<DeviceName>,
}

impl Controller {
    /// Gives a device other labels: a new epoch, a new ticket, and no use for the old one.
    pub(crate) async fn relabel(
        &self,
        actor: &str,
        text: &str,
        labels: Labels,
    ) -> Result<DeviceRecord, Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let old = living(&draft, text)?;
        if old.labels == labels {
            return Ok(old);
        }
        let mut record = DeviceRecord {
            labels,
            epoch: old.epoch + 1,
            ..old.clone()
        };
        let subject = record.id.to_string();
        let mut change = self.store.change(actor, "relabel", &subject, now).await?;
        let authority = self.authority();
        let trust = draft.next.trust.clone();
        let signer = Signer {
            authority: &authority,
            trust: &trust,
        };
        record.ticket = signer.ticket(&ticket_of(&record))?;
        devices::put(&mut change.tx, &record).await?;
        let drop_after = self.drop_after(old.not_after_secs);
        revocations::raise_epoch(&mut change.tx, record.id, record.epoch, drop_after).await?;
        set_members(&mut change.tx, change.revision).await?;
        let revision = self
            .commit_revocations(&mut draft, change, signer, now)
            .await?;
        draft.next.set_device(record.clone());
        draft.next.members = revision;
        self.publish(draft, revision);
        self.hub.raise(record.id, dirty::ALL);
        self.hub.raise_all(dirty::TRUST);
        self.names_changed();
        self.event(
            Event::new(now, EventKind::DeviceRelabelled)
                .device(record.id)
                .detail("from", &old.labels)
                .detail("to", &record.labels)
                .detail("by", actor),
        );
        Ok(record)
    }

    /// Gives a connected device an order that changes nothing here.
    pub(crate) fn order(
        &self,
        actor: &str,
        text: &str,
        bits: u32,
    ) -> Result<Arc<DeviceRecord>, Refusal> {
        let snapshot = self.snapshot();
        let record = snapshot.find(text).filter(|d| d.ended.is_none());
        let record = record.ok_or_else(|| Refusal::no_device(text))?;
        let live = self.hub.with(record.id, |s| s.live.clone());
        let live = live.ok_or_else(|| {
            Refusal::new(
                Kind::Conflict,
                "not_connected",
                format!("{text} is not connected"),
                "try again when `hedgerow status` shows it",
            )
        })?;
        live.signal.raise(bits);
        tracing::info!(actor, device = %record.id, bits, "an operator's order");
        Ok(record.clone())
    }

    /// Puts a device into a state, or back into normal service.
    pub(crate) async fn set_state(
        &self,
        actor: &str,
        text: &str,
        state: Option<DeviceState>,
        reason: &str,
    ) -> Result<(DeviceRecord, Revision), Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let old = living(&draft, text)?;
        // A copy may have counted further than the device itself, whose word counts again.
        let cleared = old.flagged && state.is_none();
        let record = DeviceRecord {
            state,
            flagged: old.flagged && state.is_some(),
            generation: if cleared { 0 } else { old.generation },
            ..old.clone()
        };
        let subject = record.id.to_string();
        let mut change = self.store.change(actor, "state", &subject, now).await?;
        devices::put(&mut change.tx, &record).await?;
        if cleared {
            devices::forget_generation(&mut change.tx, record.id).await?;
        }
        let others = draft.next.living().filter(|d| d.id != record.id);
        let states = states_of(
            change.revision,
            others.map(|d| &**d).chain(std::iter::once(&record)),
        );
        let authority = self.authority();
        let signer = Signer {
            authority: &authority,
            trust: &draft.next.trust,
        };
        let states = signer.states(&states)?;
        set_fact(&mut change.tx, fact::STATES, states.bytes()).await?;
        let revision = change.commit().await?;
        draft.next.set_states(states);
        draft.next.set_device(record.clone());
        self.publish(draft, revision);
        if cleared {
            self.hub.with(record.id, |s| s.generation = 0);
        }
        self.hub.raise(record.id, dirty::RECORD);
        self.hub.raise_all(dirty::TRUST);
        let kind = match state {
            Some(_) => EventKind::DeviceQuarantined,
            None => EventKind::DeviceReleased,
        };
        let mut event = Event::new(now, kind).device(record.id).detail("by", actor);
        if !reason.is_empty() {
            event = event.detail("reason", reason);
        }
        self.event(event);
        Ok((record, revision))
    }

    /// Ends a device's time: nobody believes its certificate or ticket any more.
    pub(crate) async fn end_device(
        &self,
        actor: &str,
        text: &str,
        how: Ending,
        reason: &str,
    ) -> Result<(DeviceRecord, Revision), Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let old = living(&draft, text)?;
        let record = DeviceRecord {
            state: None,
            ended: Some(Ended {
                at: now,
                how: how.as_str().to_owned(),
            }),
            ..old.clone()
        };
        let subject = record.id.to_string();
        let mut change = self
            .store
            .change(actor, how.as_str(), &subject, now)
            .await?;
        devices::put(&mut change.tx, &record).await?;
        let drop_after = self.drop_after(old.not_after_secs);
        addresses::release(&mut change.tx, record.id, drop_after).await?;
        let mut why = if reason.is_empty() {
            how.as_str()
        } else {
            reason
        }
        .to_owned();
        why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
        let entry = Revocation {
            what: Revoked::Device(record.id),
            at_secs: now.secs(),
            drop_after_secs: drop_after,
            reason: why.clone(),
        };
        revocations::add(&mut change.tx, &entry).await?;
        set_members(&mut change.tx, change.revision).await?;
        let authority = self.authority();
        let trust = draft.next.trust.clone();
        let signer = Signer {
            authority: &authority,
            trust: &trust,
        };
        if old.state.is_some() {
            let others = draft.next.living().filter(|d| d.id != record.id);
            let states = signer.states(&states_of(change.revision, others.map(|d| &**d)))?;
            set_fact(&mut change.tx, fact::STATES, states.bytes()).await?;
            draft.next.set_states(states);
        }
        let revision = self
            .commit_revocations(&mut draft, change, signer, now)
            .await?;
        draft.next.set_device(record.clone());
        draft.next.members = revision;
        self.publish(draft, revision);
        self.hub.raise(record.id, dirty::RECORD);
        self.hub.raise_all(dirty::TRUST);
        self.names_changed();
        self.event(
            Event::new(now, how.event())
                .device(record.id)
                .detail("name", &record.name)
                .detail("reason", why)
                .detail("by", actor),
        );
        Ok((record, revision))
    }

    /// Signs the revocation list anew, in a change that alters it, and commits the change.
    pub(crate) async fn commit_revocations(
        &self,
        draft: &mut Draft<'_>,
        mut change: Change,
        signer: Signer<'_>,
        now: Wall,
    ) -> Result<Revision, Refusal> {
        revocations::set_version(&mut change.tx, change.revision).await?;
        let list = revocations::list(&mut change.tx, change.revision, now.secs()).await?;
        let list = signer.revocations(&list)?;
        set_fact(&mut change.tx, fact::REVOCATIONS, list.bytes()).await?;
        let revision = change.commit().await?;
        draft.next.set_revocations(list);
        Ok(revision)
    }

    /// Returns when nothing issued until `not_after_secs` can be valid or in grace any more.
    pub(crate) fn drop_after(&self, not_after_secs: u64) -> u64 {
        not_after_secs + self.config.grace_secs() + DAY_SECS
    }

    /// Lets a waiting device in.
    pub(crate) async fn approve(
        &self,
        actor: &str,
        text: &str,
        approval: Approval,
    ) -> Result<DeviceRecord, Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let mut waiting = self.waiting(text, now, is_proven).await?;
        let site = approval.site.or_else(|| waiting.site.clone());
        let site = site.ok_or_else(|| {
            Refusal::invalid(
                "this device came without a token, so nothing says which site it belongs to",
                "give --site (and --labels)",
            )
        })?;
        let place = Place {
            site: site.clone(),
            labels: approval.labels.unwrap_or_else(|| waiting.labels.clone()),
            name: approval.name.or_else(|| waiting.name.clone()),
            token: waiting.token,
        };
        let asker = asker_of(&waiting)?;
        let mut change = self
            .store
            .change(actor, "approve", &waiting.fingerprint, now)
            .await?;
        let record = self
            .admit(&mut draft, &mut change, &asker, &place, now)
            .await?;
        waiting.decision = Decision::Approved;
        waiting.device = Some(record.id);
        waiting.site = Some(site);
        waiting.labels = place.labels;
        pending::put(&mut change.tx, &waiting).await?;
        if let Some(token) = &waiting.token {
            let key = &waiting.key_hash;
            tokens::mark_used(&mut change.tx, token, key, Some(record.id), now).await?;
        }
        let revision = change.commit().await?;
        draft.next.set_device(record.clone());
        draft.next.members = revision;
        self.enrolled(draft, revision, &record, &waiting.source);
        Ok(record)
    }

    /// Keeps a waiting device out.
    pub(crate) async fn reject(&self, actor: &str, text: &str) -> Result<(), Refusal> {
        let now = self.clock.wall();
        let mut waiting = self.waiting(text, now, is_meant).await?;
        waiting.decision = Decision::Rejected;
        let mut change = self
            .store
            .change(actor, "reject", &waiting.fingerprint, now)
            .await?;
        pending::put(&mut change.tx, &waiting).await?;
        change.commit().await?;
        self.event(
            Event::new(now, EventKind::EnrollmentRefused)
                .detail("reason", "rejected")
                .detail("fingerprint", &waiting.fingerprint)
                .detail("by", actor),
        );
        Ok(())
    }

    /// Finds the one waiting device that `fits`.
    async fn waiting(
        &self,
        text: &str,
        now: Wall,
        fits: fn(&pending::PendingRecord, &str) -> bool,
    ) -> Result<pending::PendingRecord, Refusal> {
        let mut found: Vec<_> = self
            .store
            .pending()
            .await?
            .into_iter()
            .filter(|p| p.decision == Decision::Waiting && p.expires > now)
            .filter(|p| fits(p, text))
            .collect();
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (Some(_), false) => Err(Refusal::new(
                Kind::Conflict,
                "pending_ambiguous",
                format!("`{text}` fits more than one waiting device"),
                "give the whole fingerprint",
            )),
            (None, _) => Err(Refusal::new(
                Kind::NotFound,
                "pending_not_found",
                format!("no device waits with the fingerprint `{text}`"),
                "give at least 8 characters of what the device itself shows; `hedgerow device list \
                 --pending` shows who waits; they are forgotten after 24 h",
            )),
        }
    }

    /// Notes that an identity was shown twice.
    pub(crate) async fn flag(&self, device: DeviceId) -> Result<(), Refusal> {
        let mut draft = self.draft().await;
        let Some(old) = draft.next.device(device).filter(|d| !d.flagged) else {
            return Ok(());
        };
        let record = DeviceRecord {
            flagged: true,
            ..(**old).clone()
        };
        let at = self.clock.wall();
        let subject = device.to_string();
        let mut change = self
            .store
            .change("controller", "flag", &subject, at)
            .await?;
        devices::put(&mut change.tx, &record).await?;
        let revision = change.commit().await?;
        draft.next.set_device(record);
        self.publish(draft, revision);
        Ok(())
    }
}

/// Returns whether `text` proves which device is meant: only the fingerprint does, and not with so
/// few characters that a stranger finds a key that begins alike.
fn is_proven(p: &pending::PendingRecord, text: &str) -> bool {
    let plain = |t: &str| t.replace('-', "");
    let by_key = text.parse::<Digest>().is_ok_and(|d| d == p.key_hash);
    let text = plain(text);
    by_key || (text.len() >= FINGERPRINT_CHARS_MIN && plain(&p.fingerprint).starts_with(&text))
}

/// Returns whether a device that is to be kept out is meant.
fn is_meant(p: &pending::PendingRecord, text: &str) -> bool {
    is_proven(p, text) || p.hostname == text
}

fn living(draft: &Draft<'_>, text: &str) -> Result<DeviceRecord, Refusal> {
    let found = draft
        .next
        .find(text)
        .ok_or_else(|| Refusal::no_device(text))?;
    match &found.ended {
        None => Ok((**found).clone()),
        Some(ended) => Err(Refusal::new(
            Kind::Conflict,
            "device_ended",
            format!("device `{text}` was {} already", ended.how),
            "enroll it again to have it back",
        )),
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_identity::fingerprint::fingerprint_of;
    use hedgerow_model::statement::X25519Public;

    use super::*;

    #[test]
    fn a_stranger_is_not_approved_by_calling_itself_like_another() {
        let key_hash = Digest::of(b"key");
        let fingerprint = fingerprint_of(&key_hash);
        let waiting = pending::PendingRecord {
            key_hash,
            csr: Vec::new(),
            introduction_key: X25519Public([0; 32]),
            hostname: "plc-7".to_owned(),
            source: "192.0.2.1".to_owned(),
            fingerprint: fingerprint.clone(),
            token: None,
            site: None,
            labels: Labels::default(),
            name: None,
            decision: Decision::Waiting,
            device: None,
            created: Wall(1),
            expires: Wall(2),
        };
        let plain = fingerprint.replace('-', "");
        assert!(!is_proven(&waiting, "plc-7") && is_meant(&waiting, "plc-7"));
        assert!(!is_proven(&waiting, plain.get(..7).unwrap()) && !is_proven(&waiting, ""));
        assert!(!is_proven(&waiting, &"-".repeat(20)));
        assert!(is_proven(&waiting, plain.get(..8).unwrap()) && is_proven(&waiting, &fingerprint));
    }
}
