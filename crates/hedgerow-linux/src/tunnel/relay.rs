//! A relay's table: whose frames go where. Frames are passed on unread.

use std::collections::HashMap;

use hedgerow_model::id::DeviceId;
use hedgerow_model::path::RelaySession;

/// Sides of sessions that a relay passes on; a further one is not set, and its frames are dropped.
pub const RELAY_SIDES_MAX: usize = 32_768;

/// One direction of a session through this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    /// Who sends under this number.
    pub(super) from: DeviceId,
    /// Who gets it.
    pub(super) to: DeviceId,
    /// Under which number.
    pub(super) out: RelaySession,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Relay {
    sides: HashMap<RelaySession, Side>,
}

impl Relay {
    /// Adds or changes a side; `false` when the table is full.
    pub(super) fn set(&mut self, session: RelaySession, side: Side) -> bool {
        if self.sides.len() >= RELAY_SIDES_MAX && !self.sides.contains_key(&session) {
            return false;
        }
        self.sides.insert(session, side);
        true
    }

    pub(super) fn forget(&mut self, session: RelaySession) {
        self.sides.remove(&session);
    }

    /// Forgets every side that begins or ends at a device.
    pub(super) fn forget_device(&mut self, device: DeviceId) {
        self.sides
            .retain(|_, side| side.from != device && side.to != device);
    }

    pub(super) fn side(&self, session: RelaySession) -> Option<Side> {
        self.sides.get(&session).copied()
    }
}
