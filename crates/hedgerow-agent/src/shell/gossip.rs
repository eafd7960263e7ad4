//! What gossip needs of files, keys and the clock.

use std::path::Path;
use std::time::Duration;

use hedgerow_identity::statement::BINDING_LIFE_MAX;
use hedgerow_linux::disk;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::resource::{RESOURCE_BYTES_MAX, ResourceKind};
use hedgerow_model::statement::{EndpointRecord, RECORD_ENDPOINTS_MAX, RECORD_RELAYS_MAX};
use hedgerow_model::{Mono, Now, Wall};
use hedgerow_sync::message::HandUp;
use serde_json::{Value, json};

use super::run::Daemon;
use crate::failure::chain;

/// How soon a change of where this device is reached is signed.
const RECORD_WITHIN: Duration = Duration::from_secs(5);

impl Daemon {
    /// Plans to sign anew where this device may be reached; what changes within a moment is one record.
    pub(super) fn plan_record(&mut self, now: Now) {
        self.record_at = self.record_at.min(now.mono + RECORD_WITHIN);
    }

    /// Signs where this device may be reached if that is not what the last record says.
    pub(super) fn renew_record(&mut self, now: Now) {
        self.record_at = Mono::NEVER;
        let Some((sequence, endpoints, relays)) = &self.record else {
            return;
        };
        if (endpoints, relays) != (&self.reached_at(), &self.reached_through()) {
            let sequence = now.wall.secs().max(sequence.saturating_add(1));
            self.sign_record(sequence, now);
        }
    }

    fn reached_at(&self) -> Vec<Underlay> {
        let mut endpoints = self.endpoints();
        for seen in self.state.whereabouts().0 {
            if !endpoints.contains(&seen) {
                endpoints.push(seen);
            }
        }
        endpoints.truncate(RECORD_ENDPOINTS_MAX);
        endpoints
    }

    fn reached_through(&self) -> Vec<DeviceId> {
        let mut relays = self.state.whereabouts().1;
        relays.truncate(RECORD_RELAYS_MAX);
        relays
    }

    /// Signs where this device may be reached, for relays to tell who asks.
    pub(super) fn sign_record(&mut self, sequence: u64, now: Now) {
        let last = self.record.as_ref().map_or(0, |(last, _, _)| *last);
        let sequence = sequence.max(last.saturating_add(1));
        let (endpoints, relays) = (self.reached_at(), self.reached_through());
        self.record = Some((sequence, endpoints.clone(), relays.clone()));
        let record = EndpointRecord {
            id: self.state.ticket().id,
            sequence,
            not_after_secs: sequence.saturating_add(BINDING_LIFE_MAX.as_secs()),
            endpoints,
            relays,
        };
        match self.identities.sign_record(self.state.ticket(), &record) {
            Ok(signed) => self.state.handle_record(&signed, now),
            Err(failure) => tracing::warn!(%failure, "no endpoint record"),
        }
    }

    /// Takes a signed list from a file that a person brought.
    pub(super) fn import(&mut self, file: &Path) -> Value {
        let now = self.clock.now();
        let bytes = match disk::read_bounded(file, RESOURCE_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                return json!({ "error": format!("there is no {}", file.display()) });
            }
            Err(error) => return json!({ "error": chain(&error) }),
        };
        match self.state.handle_import(&bytes, now) {
            Ok((kind, is_news)) => {
                json!({ "imported": kind.as_str(), "news": is_news })
            }
            Err(reason) => json!({ "error": format!("refused: {reason}") }),
        }
    }

    /// Notes that it is this late at least.
    pub(super) fn note_present(&mut self, at: Wall) {
        if let Some(floor) = self.clock.handle_present(at) {
            self.written("trusted time", |s| s.store.write_floor(floor));
        }
    }

    /// Gives the controller a list that it does not know.
    pub(super) fn hand_up(&mut self, kind: ResourceKind) {
        let bytes = match kind {
            ResourceKind::Manifest => self.state.trust().manifest_bytes().to_vec(),
            ResourceKind::Revocations => match self.state.standing().revocations() {
                Some(list) => list.bytes().to_vec(),
                None => return,
            },
            ResourceKind::Ticket => self.state.ticket().bytes().to_vec(),
            ResourceKind::States => match self.state.standing().states() {
                Some(states) => states.bytes().to_vec(),
                None => return,
            },
            ResourceKind::Program | ResourceKind::Config | ResourceKind::Names => return,
        };
        tracing::info!(%kind, "handing up what the controller does not know");
        if let Some(Err(error)) = self.session().map(|s| s.hand_up(HandUp { kind, bytes })) {
            tracing::warn!(%error, "not handed up");
        }
    }
}
