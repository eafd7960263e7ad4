//! What an agent reports and asks for once its session is open.

use std::time::Duration;

use hedgerow_identity::csr;
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::path::is_relay;
use hedgerow_model::resource::ResourceKind;
use hedgerow_model::statement::PeerQuery;
use hedgerow_sync::message::{HandUp, LEFT, RELAYS_MAX, Renew, Renewed, ResolvedPeer};
use tokio::sync::oneshot;

use super::{Agent, End, Standing};
use crate::entropy;
use crate::hub::{Counters, dirty};
use crate::journal::Note;
use crate::refusal::Kind;
use crate::service::devices::Ending;
use crate::snapshot::Snapshot;
use crate::store::devices::DeviceRecord;

/// How long an agent waits that could not be given a certificate for lack of room, and up to as
/// much again.
const RENEW_AGAIN_SECS: u64 = 30;

/// Shortest time between two certificates of one device: each costs signatures and a transaction.
const RENEW_EVERY_MIN: Duration = Duration::from_secs(10);

impl Agent {
    /// The agent has an update in hand.
    pub(super) fn received(&self, revision: Revision) {
        let now = self.control.clock.now();
        self.control.hub.with(self.device, |s| {
            s.progress.received = Some((revision, now.mono, now.wall));
        });
    }

    /// An update stands in the agent's kernel.
    pub(super) fn verified(&self, revision: Revision, table_hash: Digest) {
        let now = self.control.clock.now();
        let first = self.control.hub.with(self.device, |s| {
            let first = s.progress.verified.is_none_or(|v| v.0 < revision);
            s.progress.verified = Some((revision, table_hash, now.mono, now.wall));
            s.progress.rejected = None;
            first
        });
        self.control.hub.came_further();
        if first {
            tracing::debug!(device = %self.device, %revision, "verified in the kernel");
        }
    }

    /// The agent refused an update.
    pub(super) fn rejected(&self, revision: Revision, kind: Option<ResourceKind>, reason: String) {
        let what = kind.map_or("update", ResourceKind::as_str);
        self.control.hub.with(self.device, |s| {
            s.progress.rejected = Some((revision, format!("{what}: {reason}")));
        });
        self.control.hub.came_further();
        self.control.event_sampled(
            "resource",
            Event::new(self.control.clock.wall(), EventKind::ResourceRefused)
                .device(self.device)
                .detail("resource", what)
                .detail("reason", reason)
                .detail("revision", revision),
        );
    }

    /// The agent holds a newer statement.
    pub(super) async fn handed_up(&mut self, statement: HandUp) -> Result<(), End> {
        let kind = statement.kind;
        let taken = match kind {
            ResourceKind::Revocations => self.control.merge_revocations(&statement.bytes).await,
            ResourceKind::Ticket => {
                let key = self.peer.key();
                self.control
                    .adopt_ticket(self.device, &key, &statement.bytes)
                    .await
            }
            ResourceKind::Manifest => self.control.merge_manifest(&statement.bytes).await,
            ResourceKind::States => self.control.merge_states(&statement.bytes).await,
            ResourceKind::Program | ResourceKind::Config | ResourceKind::Names => return Ok(()),
        };
        if let Err(refusal) = taken {
            tracing::debug!(device = %self.device, %kind, %refusal, "a handed up statement was refused");
            self.control.event_sampled(
                "hand_up",
                Event::new(self.control.clock.wall(), EventKind::MessageRefused)
                    .device(self.device)
                    .detail("resource", kind)
                    .detail("reason", refusal),
            );
        }
        if self.awaits.remove(&kind) && self.awaits.is_empty() {
            self.refresh(dirty::ALL)?;
        }
        Ok(())
    }

    /// The agent wants a new certificate.
    pub(super) async fn renew(&mut self, request: Renew) -> Result<(), End> {
        let id = request.id;
        if self.standing == Standing::Held {
            let why = "this identity is held until an operator decides";
            return Ok(self.session.renew_refused(id, why, None)?);
        }
        let now = self.control.clock.now().mono;
        let since = self.control.hub.with(self.device, |s| s.renewed);
        let since = since.map(|at| now.since(at));
        if let Some(since) = since.filter(|since| *since < RENEW_EVERY_MIN) {
            let wait = Some(RENEW_EVERY_MIN - since);
            let why = "a certificate was issued a moment ago";
            return Ok(self.session.renew_refused(id, why, wait)?);
        }
        let jitter = u64::from(entropy::bytes::<1>()[0]) % RENEW_AGAIN_SECS;
        let later = Some(Duration::from_secs(RENEW_AGAIN_SECS + jitter));
        let Ok(_turn) = self.control.signings.try_acquire() else {
            return Ok(self
                .session
                .renew_refused(id, "too many renew at once", later)?);
        };
        let key = match csr::parse(&request.csr) {
            Ok(key) => key,
            Err(error) => {
                return Ok(self.session.renew_refused(id, &error.to_string(), None)?);
            }
        };
        match self
            .control
            .renew_device(self.device, key, request.introduction_key)
            .await
        {
            Ok(record) => {
                Counters::add(&self.control.hub.counters.issued);
                self.control
                    .hub
                    .with(self.device, |s| s.renewed = Some(now));
                let chain = crate::service::enrollment::decode_chain(&record.chain);
                self.session.renewed(Renewed {
                    id,
                    chain: chain.into_iter().map(Into::into).collect(),
                    ticket: record.ticket,
                })?;
                self.control.event(
                    Event::new(self.control.clock.wall(), EventKind::CertificateRenewed)
                        .device(self.device)
                        .detail("not_after_secs", record.not_after_secs),
                );
                Ok(())
            }
            Err(refusal) => {
                let later = later
                    .filter(|_| matches!(refusal.kind, Kind::Busy | Kind::Unavailable | Kind::Bug));
                Ok(self
                    .session
                    .renew_refused(id, &refusal.to_string(), later)?)
            }
        }
    }

    /// The agent looks for a peer.
    pub(super) fn resolve(&mut self, id: u64, query: PeerQuery) -> Result<(), End> {
        let snapshot = self.control.snapshot();
        let now = self.control.clock.now();
        if !self.resolves.take(now.mono) {
            return Ok(self.session.resolved(id, None)?);
        }
        let own = snapshot.device(self.device);
        let peer = match (own, snapshot.resolve(&query)) {
            // A device that asks for itself learns where it is seen, and which relays there are.
            (Some(own), Some(peer)) if own.id == peer.id => Some(peer),
            // Everybody may use a relay, whatever the policy grants.
            (Some(own), Some(peer)) if is_relay(&own.labels) || is_relay(&peer.labels) => {
                Some(peer)
            }
            (Some(own), Some(peer)) if self.control.may_meet(&snapshot, own, peer, now)? => {
                Some(peer)
            }
            _ => None,
        };
        let own_relays = own.map(|own| relays_for(&snapshot, own));
        let peer = peer.map(|d| {
            let (endpoints, relays) = self
                .control
                .hub
                .with(d.id, |s| (s.endpoints.clone(), s.relays.clone()));
            ResolvedPeer {
                ticket: d.ticket.clone(),
                endpoints,
                relays: Some(relays),
                own_relays,
            }
        });
        Ok(self.session.resolved(id, peer)?)
    }

    /// The agent reports what happened; each event is stored once.
    pub(super) async fn events(&mut self, first: u64, events: Vec<Event>) -> Result<(), End> {
        let after = first.saturating_add(events.len() as u64);
        let upto = self.control.hub.with(self.device, |s| s.events_upto);
        let known = usize::try_from(upto.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut news: Vec<Event> = events.into_iter().skip(known).collect();
        for event in &mut news {
            reported_by(event, self.device);
        }
        if !news.is_empty() {
            let (answer, stored) = oneshot::channel();
            self.control.note(Note::Reported(self.device, news, answer));
            if !stored.await.unwrap_or(false) {
                return Ok(());
            }
            self.control
                .hub
                .with(self.device, |s| s.events_upto = s.events_upto.max(after));
        }
        Ok(self.session.events_stored(after)?)
    }

    /// The device leaves for good.
    pub(super) async fn left(&mut self) -> Result<(), End> {
        let id = self.device.to_string();
        self.control
            .end_device(
                "the device itself",
                &id,
                Ending::Left,
                "left of its own accord",
            )
            .await?;
        self.session.bye(LEFT);
        Ok(())
    }
}

/// Returns the relays that a device may use: those of its site first.
fn relays_for(snapshot: &Snapshot, own: &DeviceRecord) -> Vec<DeviceId> {
    let relays = snapshot
        .relays()
        .filter(|relay| relay.id != own.id && relay.ended.is_none());
    let (mut near, far): (Vec<_>, Vec<_>) = relays.partition(|relay| relay.site == own.site);
    near.extend(far);
    near.iter().take(RELAYS_MAX).map(|relay| relay.id).collect()
}

/// Who reports is proven by the connection, whatever the event says; whom it names is the other party.
fn reported_by(event: &mut Event, device: DeviceId) {
    let named = event.device.replace(device).filter(|d| *d != device);
    event.peer = event.peer.or(named);
}

#[cfg(test)]
mod tests {
    use hedgerow_model::Wall;

    use super::*;

    #[test]
    fn an_agent_cannot_report_as_another_device() {
        let (own, other) = (DeviceId([1; 16]), DeviceId([2; 16]));
        let event = || Event::new(Wall(1), EventKind::AddressSpoofed);
        for (mut said, peer) in [
            (event(), None),
            (event().device(own), None),
            (event().device(other), Some(other)),
            (event().device(other).peer(own), Some(own)),
        ] {
            reported_by(&mut said, own);
            assert_eq!((said.device, said.peer), (Some(own), peer));
        }
    }
}
