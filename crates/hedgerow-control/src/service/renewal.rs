//! What comes up from devices and changes the store: renewals, and what a restored backup lacks.

use std::time::Duration;

use hedgerow_identity::csr;
use hedgerow_identity::trust::{Adopted, Trust};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Digest};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{P256Public, Revocation, Revoked, X25519Public};
use hedgerow_model::{Wall, wire};

use super::enrollment::{encode_chain, ticket_of};
use crate::control::{Controller, Draft, fact, set_members, states_of};
use crate::entropy;
use crate::hub::dirty;
use crate::refusal::{Kind, Refusal};
use crate::sign::Signer;
use crate::snapshot::Snapshot;
use crate::store::devices::{DeviceRecord, Ended};
use crate::store::{Change, add_manifest, addresses, devices, revocations, set_fact};

impl Controller {
    /// Gives a device a new certificate and ticket for a key that it proved.
    pub(crate) async fn renew_device(
        &self,
        device: DeviceId,
        key: csr::Request,
        introduction_key: X25519Public,
    ) -> Result<DeviceRecord, Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let old = draft
            .next
            .device(device)
            .filter(|d| d.ended.is_none())
            .cloned()
            .ok_or_else(|| Refusal::no_device(&device.to_string()))?;
        let revoked = Revoked::Key(key.spki_digest());
        if draft.next.standing.is_revoked(&revoked) {
            return Err(Refusal::new(
                Kind::Forbidden,
                "key_revoked",
                "the key is revoked",
                "make a new key",
            ));
        }
        let authority = self.authority();
        let life = Duration::from_secs(self.config.device_secs());
        let mut record = DeviceRecord {
            identity_key: key.key(),
            key_hash: key.spki_digest(),
            introduction_key,
            not_after_secs: authority.end_of(now, life),
            ..(*old).clone()
        };
        let signer = Signer {
            authority: &authority,
            trust: &draft.next.trust,
        };
        record.ticket = signer.ticket(&ticket_of(&record))?;
        record.chain = encode_chain(&self.leaf_for(&authority, &draft.next, &record, now)?);
        let mut tx = self.store.note().await?;
        let owner = devices::by_key(&mut tx, &record.key_hash).await?;
        if owner.is_some_and(|owner| owner != device) {
            return Err(Refusal::new(
                Kind::Conflict,
                "key_in_use",
                "the key belongs to another device",
                "make a new key",
            ));
        }
        devices::put(&mut tx, &record).await?;
        tx.commit().await?;
        draft.next.set_device(record.clone());
        let revision = draft.next.revision;
        self.publish(draft, revision);
        Ok(record)
    }

    /// Takes back a device that was enrolled or changed after the backup that this store was
    /// restored from.
    pub(crate) async fn adopt_ticket(
        &self,
        device: DeviceId,
        key: &P256Public,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let ticket = draft
            .next
            .trust
            .verify_own_ticket(bytes, key, Some(device))
            .map_err(|e| Refusal::invalid(format!("the ticket: {e}"), "enroll again"))?;
        let old = draft.next.device(device).cloned();
        if draft.next.restored.is_none() {
            return Ok(());
        }
        if ticket.epoch < draft.next.standing.min_epoch(device) {
            return Err(Refusal::invalid("the ticket is an old one", "enroll again"));
        }
        if old.as_ref().is_some_and(|d| d.epoch >= ticket.epoch) {
            return Ok(());
        }
        if !draft.next.sites.contains_key(&ticket.site) {
            return Err(Refusal::no_site(ticket.site.as_str()));
        }
        let subject = device.to_string();
        let mut change = self
            .store
            .change("controller", "reconcile", &subject, now)
            .await?;
        let mut record = DeviceRecord {
            id: device,
            name: ticket.name.clone(),
            site: ticket.site.clone(),
            labels: ticket.labels.clone(),
            identity_key: ticket.identity_key,
            key_hash: spki_digest(&ticket.identity_key)?,
            introduction_key: ticket.introduction_key,
            addresses: ticket.addresses,
            epoch: ticket.epoch,
            state: old
                .as_ref()
                .and_then(|d| d.state)
                .or_else(|| state_handed_up(&draft.next, device)),
            flagged: old.as_ref().is_some_and(|d| d.flagged),
            not_after_secs: ticket.not_after_secs,
            ticket: bytes.to_vec(),
            chain: old.as_ref().map_or_else(Vec::new, |d| d.chain.clone()),
            generation: old.as_ref().map_or(0, |d| d.generation),
            enrolled: old.as_ref().map_or(now, |d| d.enrolled),
            ended: old.as_ref().and_then(|d| d.ended.clone()),
        };
        self.make_room(&mut change, &draft.next.trust, &mut record, now)
            .await?;
        devices::put(&mut change.tx, &record).await?;
        set_members(&mut change.tx, change.revision).await?;
        if record.state != old.as_ref().and_then(|d| d.state) {
            let changed = std::slice::from_ref(&record);
            self.sign_states(&mut draft, &mut change, changed).await?;
        }
        let revision = change.commit().await?;
        draft.next.set_device(record.clone());
        draft.next.members = revision;
        self.publish(draft, revision);
        self.hub.raise_all(dirty::TRUST);
        self.names_changed();
        tracing::info!(%device, epoch = record.epoch, "a device was taken back after the restore");
        Ok(())
    }

    /// Takes over states that were decided after the backup; nothing is ever released.
    pub(crate) async fn merge_states(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let theirs = draft
            .next
            .trust
            .verify_states(bytes)
            .map_err(|e| Refusal::invalid(format!("the states: {e}"), "nothing to do"))?;
        let version = theirs.revision;
        let ours = draft.next.revision;
        let known = draft.next.restored_states;
        if version.timeline >= ours.timeline || known.is_none_or(|known| version <= known) {
            return Ok(());
        }
        let lacks = |(id, state): &(DeviceId, DeviceState)| {
            let living = draft.next.device(*id).filter(|d| d.ended.is_none())?;
            living.state.is_none().then(|| DeviceRecord {
                state: Some(*state),
                ..(**living).clone()
            })
        };
        let changed: Vec<DeviceRecord> = theirs.entries.iter().filter_map(lacks).collect();
        let subject = version.to_string();
        let mut change = self
            .store
            .change("controller", "merge_states", &subject, now)
            .await?;
        for record in &changed {
            devices::put(&mut change.tx, record).await?;
        }
        set_fact(&mut change.tx, fact::STATES_HANDED_UP, bytes).await?;
        let newest = wire::encode(&version);
        set_fact(&mut change.tx, fact::STATES_RESTORED, &newest).await?;
        self.sign_states(&mut draft, &mut change, &changed).await?;
        let revision = change.commit().await?;
        draft.next.restored_states = Some(version);
        draft.next.states_handed_up = Some(theirs);
        for record in &changed {
            draft.next.set_device(record.clone());
        }
        self.publish(draft, revision);
        for record in changed {
            self.hub.raise(record.id, dirty::RECORD);
            let event = Event::new(now, EventKind::DeviceQuarantined).device(record.id);
            self.event(event.detail("reason", "decided before the restore"));
        }
        self.hub.raise_all(dirty::TRUST);
        tracing::info!(%version, "newer states were taken over");
        Ok(())
    }

    /// Signs the states anew, in a change that alters these devices.
    async fn sign_states(
        &self,
        draft: &mut Draft<'_>,
        change: &mut Change,
        changed: &[DeviceRecord],
    ) -> Result<(), Refusal> {
        let authority = self.authority();
        let signer = Signer {
            authority: &authority,
            trust: &draft.next.trust,
        };
        let is_changed = |id| changed.iter().any(|c| c.id == id);
        let others = draft.next.living().filter(|d| !is_changed(d.id));
        let states = states_of(change.revision, others.map(|d| &**d).chain(changed));
        let states = signer.states(&states)?;
        set_fact(&mut change.tx, fact::STATES, states.bytes()).await?;
        draft.next.set_states(states);
        Ok(())
    }

    /// Gives a device that comes back another name or address where somebody else has its own by
    /// now; that makes a new epoch.
    async fn make_room(
        &self,
        change: &mut Change,
        trust: &Trust,
        record: &mut DeviceRecord,
        now: Wall,
    ) -> Result<(), Refusal> {
        let before = (record.name.clone(), record.addresses);
        if let Some(v4) = record.addresses.v4
            && !addresses::claim(&mut change.tx, v4, record.id).await?
        {
            let fresh = addresses::allocate(
                &mut change.tx,
                &self.config.blocks,
                &record.site,
                record.id,
                now.secs(),
                u32::from_ne_bytes(entropy::bytes()),
            );
            record.addresses.v4 = Some(fresh.await?);
        }
        let taken = self
            .snapshot()
            .find(&format!("{}.{}", record.name, record.site))
            .cloned();
        if taken.is_some_and(|other| other.id != record.id && other.ended.is_none()) {
            record.name = hedgerow_model::id::DeviceName::new(&format!("device-{}", record.id))
                .map_err(|e| Refusal::bug(e.to_string()))?;
        }
        if before != (record.name.clone(), record.addresses) {
            record.epoch += 1;
            let authority = self.authority();
            let signer = Signer {
                authority: &authority,
                trust,
            };
            record.ticket = signer.ticket(&ticket_of(record))?;
        }
        Ok(())
    }

    /// Takes over what a newer revocation list than ours says; nothing is ever taken out.
    pub(crate) async fn merge_revocations(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let theirs = draft
            .next
            .trust
            .verify_revocations(bytes)
            .map_err(|e| Refusal::invalid(format!("the list: {e}"), "nothing to do"))?;
        let standing = draft.next.standing.clone();
        let entries: Vec<_> = theirs
            .entries
            .iter()
            .filter(|e| !standing.is_revoked(&e.what))
            .collect();
        let epochs: Vec<_> = theirs
            .min_epochs
            .iter()
            .filter(|(device, epoch)| *epoch > standing.min_epoch(*device))
            .collect();
        if entries.is_empty() && epochs.is_empty() {
            return Ok(());
        }
        let subject = theirs.version.to_string();
        let mut change = self
            .store
            .change("controller", "merge_revocations", &subject, now)
            .await?;
        let mut ended = Vec::new();
        for entry in &entries {
            revocations::add(&mut change.tx, entry).await?;
            if let Some(d) = ended_by(&draft.next, entry) {
                devices::put(&mut change.tx, &d).await?;
                ended.push(d);
            }
        }
        let drop_after = self.drop_after(now.secs() + self.config.device_secs());
        for (device, epoch) in &epochs {
            revocations::raise_epoch(&mut change.tx, *device, *epoch, drop_after).await?;
        }
        set_members(&mut change.tx, change.revision).await?;
        let authority = self.authority();
        let trust = draft.next.trust.clone();
        let signer = Signer {
            authority: &authority,
            trust: &trust,
        };
        let revision = self
            .commit_revocations(&mut draft, change, signer, now)
            .await?;
        let ids: Vec<DeviceId> = ended.iter().map(|d| d.id).collect();
        for device in ended {
            draft.next.set_device(device);
        }
        draft.next.members = revision;
        self.publish(draft, revision);
        for id in ids {
            self.hub.raise(id, dirty::RECORD);
            let event = Event::new(now, EventKind::DeviceRevoked).device(id);
            self.event(event.detail("reason", "revoked before the restore"));
        }
        self.hub.raise_all(dirty::TRUST);
        tracing::info!(version = %theirs.version, "a newer revocation list was taken over");
        Ok(())
    }

    /// Takes the next manifest of the chain, from an agent or from the operator on this machine.
    pub(crate) async fn merge_manifest(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut draft = self.draft().await;
        let mut trust = (*draft.next.trust).clone();
        let adopted = trust
            .adopt_manifest(bytes)
            .map_err(|e| Refusal::invalid(format!("the manifest: {e}"), "nothing to do"))?;
        if adopted == Adopted::Known {
            return Ok(());
        }
        let version = trust.manifest().version;
        let mut change = self
            .store
            .change(
                "controller",
                "manifest",
                &version.to_string(),
                self.clock.wall(),
            )
            .await?;
        add_manifest(&mut change.tx, version, bytes).await?;
        let revision = change.commit().await?;
        draft.next.set_trust(trust);
        self.publish(draft, revision);
        self.hub.raise_all(dirty::TRUST);
        Ok(())
    }
}

/// Returns what was decided on a device after the backup, as far as an agent handed it up.
fn state_handed_up(snapshot: &Snapshot, device: DeviceId) -> Option<DeviceState> {
    let handed_up = snapshot.states_handed_up.as_ref()?;
    let mut entries = handed_up.entries.iter();
    entries
        .find(|(id, _)| *id == device)
        .map(|(_, state)| *state)
}

/// Returns the record of a living device that an entry ends.
fn ended_by(snapshot: &Snapshot, entry: &Revocation) -> Option<DeviceRecord> {
    let Revoked::Device(id) = &entry.what else {
        return None;
    };
    let living = snapshot.device(*id).filter(|d| d.ended.is_none())?;
    Some(DeviceRecord {
        ended: Some(Ended {
            at: Wall::from_secs(entry.at_secs),
            how: "revoked".to_owned(),
        }),
        ..(**living).clone()
    })
}

fn spki_digest(key: &P256Public) -> Result<Digest, Refusal> {
    hedgerow_identity::key::PublicKey::P256(*key)
        .spki_digest()
        .map_err(|e| Refusal::invalid(e.to_string(), "enroll again"))
}
