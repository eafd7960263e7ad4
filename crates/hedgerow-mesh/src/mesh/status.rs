//! What the machine holds, for `hedgerow-agent status`.

use std::collections::BTreeMap;

use hedgerow_model::address::OverlayAddresses;
use hedgerow_model::id::{DeviceId, DeviceName, SiteName};
use hedgerow_model::path::Path;
use hedgerow_model::statement::X25519Public;

use super::{Mesh, Work};
use crate::output::Refusal;

/// Everything at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// All peers, by device.
    pub peers: Vec<PeerStatus>,
    /// Devices being introduced to.
    pub asking: usize,
    /// Questions about addresses under way.
    pub lookups: usize,
    /// Introductions waiting for the policy's word.
    pub answering: usize,
    /// Devices in the cache.
    pub remembered: usize,
    /// How many messages were refused, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// What introductions have cost.
    pub work: Work,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub name: DeviceName,
    /// Its site.
    pub site: SiteName,
    /// Its overlay addresses.
    pub addresses: OverlayAddresses,
    /// Where it was last seen or first asked.
    pub endpoint: Option<Path>,
    /// Its WireGuard key.
    pub wireguard_key: X25519Public,
    /// Whether a session lives.
    pub in_session: bool,
    /// Whether its former key still works.
    pub keys_overlap: bool,
    /// End of its ticket, in seconds since 1970; past it, it is in grace.
    pub ticket_not_after_secs: u64,
    /// End of its binding, in seconds since 1970.
    pub binding_not_after_secs: u64,
}

impl Mesh {
    /// Returns what the machine holds.
    pub fn status(&self) -> Status {
        let peers = self.peers.iter().map(|(device, peer)| PeerStatus {
            device,
            name: peer.ticket.name.clone(),
            site: peer.ticket.site.clone(),
            addresses: peer.ticket.addresses,
            endpoint: peer.endpoint,
            wireguard_key: peer.binding.wireguard_key,
            in_session: peer.idle_since.is_none(),
            keys_overlap: peer.old_key.is_some(),
            ticket_not_after_secs: peer.ticket.not_after_secs,
            binding_not_after_secs: peer.binding.not_after_secs,
        });
        Status {
            peers: peers.collect(),
            asking: self.asking.len(),
            lookups: self.asking.lookups(),
            answering: self.answering.len(),
            remembered: self.memories.len(),
            refused: self.counts.totals(),
            work: self.counts.work,
        }
    }
}
