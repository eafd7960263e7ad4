//! What gossip needs of files, keys and the clock.

use std::path::Path;

use hedgerow_identity::statement::BINDING_LIFE_MAX;
use hedgerow_linux::disk;
use hedgerow_model::resource::{RESOURCE_BYTES_MAX, ResourceKind};
use hedgerow_model::statement::{EndpointRecord, RECORD_ENDPOINTS_MAX};
use hedgerow_model::{Now, Wall};
use hedgerow_sync::message::HandUp;
use serde_json::{Value, json};

use super::run::Daemon;
use crate::failure::chain;

impl Daemon {
    /// Signs where this device may be reached, for relays to tell who asks.
    pub(super) fn sign_record(&mut self, sequence: u64, now: Now) {
        let mut endpoints = self.endpoints();
        endpoints.truncate(RECORD_ENDPOINTS_MAX);
        let record = EndpointRecord {
            id: self.state.ticket().id,
            sequence,
            not_after_secs: sequence.saturating_add(BINDING_LIFE_MAX.as_secs()),
            endpoints,
            relays: Vec::new(),
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
