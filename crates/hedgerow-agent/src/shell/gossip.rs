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

/// Where a device may be reached: at places, and through relays.
type Reached = (Vec<Underlay>, Vec<DeviceId>);

/// What the endpoint record says that was signed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Later than that of every record before it: relays keep the latest.
    sequence: u64,
    reached: Reached,
}

impl Record {
    /// Returns the record that comes after `last`, of this moment if the clock has not gone back.
    fn after(last: Option<&Self>, reached: Reached, secs: u64) -> Self {
        let next = last.map_or(0, |last| last.sequence.saturating_add(1));
        Self {
            sequence: secs.max(next),
            reached,
        }
    }

    /// Returns the record that takes the place of this one, if the device is reached otherwise now.
    fn renewed(&self, reached: Reached, secs: u64) -> Option<Self> {
        (reached != self.reached).then(|| Self::after(Some(self), reached, secs))
    }

    fn statement(&self, id: DeviceId) -> EndpointRecord {
        let (endpoints, relays) = self.reached.clone();
        EndpointRecord {
            id,
            sequence: self.sequence,
            not_after_secs: self.sequence.saturating_add(BINDING_LIFE_MAX.as_secs()),
            endpoints,
            relays,
        }
    }
}

impl Daemon {
    /// Plans to sign anew where this device may be reached; what changes within a moment is one record.
    pub(super) fn plan_record(&mut self, now: Now) {
        self.record_at = self.record_at.min(now.mono + RECORD_WITHIN);
    }

    /// Signs where this device may be reached if that is not what the last record says.
    pub(super) fn renew_record(&mut self, now: Now) {
        self.record_at = Mono::NEVER;
        let Some(last) = &self.record else {
            return;
        };
        let reached = (self.reached_at(), self.reached_through());
        if let Some(record) = last.renewed(reached, now.wall.secs()) {
            self.hand_out(record, now);
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

    /// Signs where this device may be reached, for relays to tell who asks: under a new key, whatever the
    /// last record says.
    pub(super) fn sign_record(&mut self, sequence: u64, now: Now) {
        let reached = (self.reached_at(), self.reached_through());
        let record = Record::after(self.record.as_ref(), reached, sequence);
        self.hand_out(record, now);
    }

    fn hand_out(&mut self, record: Record, now: Now) {
        let statement = record.statement(self.state.ticket().id);
        self.record = Some(record);
        match self.identities.sign_record(self.state.ticket(), &statement) {
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

    /// Notes that it is this late now: the controller says so.
    pub(super) fn note_present(&mut self, at: Wall) {
        let floor = self.clock.handle_present(at);
        self.keep_floor(floor);
    }

    /// Notes that it is this late at least: a beacon that a peer passes on may be old.
    pub(super) fn note_past(&mut self, at: Wall) {
        let floor = self.clock.raise(at);
        self.keep_floor(floor);
    }

    fn keep_floor(&mut self, floor: Option<Wall>) {
        if let Some(floor) = floor {
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_800_000_000;

    fn reached(port: u16, relay: u8) -> Reached {
        let place = Underlay(([192, 0, 2, 1], port).into());
        (vec![place], vec![DeviceId([relay; 16])])
    }

    #[test]
    fn a_device_that_is_reached_elsewhere_signs_that_once() {
        let first = Record::after(None, reached(1, 1), NOON);
        assert_eq!(
            first.renewed(reached(1, 1), NOON + 60),
            None,
            "nothing is new"
        );
        for other in [reached(2, 1), reached(1, 2), (Vec::new(), Vec::new())] {
            let next = first.renewed(other.clone(), NOON + 60).unwrap();
            let said = next.statement(DeviceId([9; 16]));
            assert_eq!((said.endpoints, said.relays), other);
            assert_eq!(said.sequence, NOON + 60);
            assert_eq!(next.renewed(other, NOON + 90), None, "it is said");
        }
    }

    #[test]
    fn a_later_record_has_a_later_number_whatever_the_clock_says() {
        let mut last = Record::after(None, reached(0, 1), NOON);
        for (port, secs) in [(1, NOON), (2, NOON), (3, 0), (4, NOON - 60)] {
            let next = last.renewed(reached(port, 1), secs).unwrap();
            assert!(next.sequence > last.sequence, "{secs}");
            last = next;
        }
        // Under a new key it is signed anew, though the device has not moved.
        let rotated = Record::after(Some(&last), last.reached.clone(), 0);
        assert!(rotated.sequence > last.sequence);
        let said = rotated.statement(DeviceId([9; 16]));
        let life = said.not_after_secs - said.sequence;
        assert_eq!(life, BINDING_LIFE_MAX.as_secs());
    }
}
