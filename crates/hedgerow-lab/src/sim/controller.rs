//! The controller, as far as devices see it: who is registered where, who is out, which relays there are.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use hedgerow_identity::Verified;
use hedgerow_mesh::Resolved;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::statement::{RevocationList, States};

use super::domain::Domain;
use super::node::Node;
use super::plant::Plant;

/// Most relays that one device is told of, as by the product's.
const RELAYS_MAX: usize = 16;

/// Where a device said that it may be reached.
#[derive(Debug, Clone, Default)]
struct Whereabouts {
    endpoints: Vec<Underlay>,
    relays: Vec<DeviceId>,
}

/// What it knows.
#[derive(Debug, Default)]
pub(super) struct Controller {
    pub(super) is_up: bool,
    /// How long an answer takes, at least, and how much longer at most.
    pub(super) answers_in: (Duration, Duration),
    revoked: Vec<DeviceId>,
    contained: Vec<DeviceId>,
    states_number: u64,
    pub(super) list: Option<Verified<RevocationList>>,
    pub(super) states: Option<Verified<States>>,
    registered: BTreeMap<DeviceId, Whereabouts>,
}

impl Controller {
    pub(super) fn new() -> Self {
        Self {
            is_up: true,
            answers_in: (Duration::from_millis(20), Duration::from_millis(80)),
            ..Self::default()
        }
    }

    pub(super) fn is_revoked(&self, device: DeviceId) -> bool {
        self.revoked.contains(&device)
    }

    pub(super) fn revoke(&mut self, domain: &Domain, device: DeviceId) -> Result<()> {
        self.revoked.push(device);
        self.list = Some(domain.revocations(&self.revoked)?);
        Ok(())
    }

    /// Puts a device in quarantine, or releases everyone.
    pub(super) fn contain(&mut self, domain: &Domain, device: Option<DeviceId>) -> Result<()> {
        match device {
            Some(device) => self.contained.push(device),
            None => self.contained.clear(),
        }
        self.states_number += 1;
        self.states = Some(domain.states(self.states_number, &self.contained)?);
        Ok(())
    }

    pub(super) fn register(&mut self, node: &Node, local: Underlay) {
        let mut endpoints = vec![local];
        for candidate in node.candidates() {
            if !endpoints.contains(&candidate) {
                endpoints.push(candidate);
            }
        }
        let whereabouts = Whereabouts {
            endpoints,
            relays: node.home.clone(),
        };
        self.registered.insert(node.device.id, whereabouts);
    }

    pub(super) fn resolve(&self, node: &Node) -> Option<Resolved> {
        let device = node.device.id;
        let at = self.registered.get(&device)?;
        (!self.is_revoked(device)).then(|| Resolved {
            ticket: node.device.ticket.clone(),
            endpoints: at.endpoints.clone(),
            relays: at.relays.clone(),
        })
    }

    /// Returns the relays that a device may use: those of its site first.
    pub(super) fn relays_for(&self, plant: &Plant, nodes: &[Node], own: usize) -> Vec<DeviceId> {
        let relays = nodes.iter().filter(|n| {
            plant.is_relay(n.number) && n.number != own && !self.is_revoked(n.device.id)
        });
        let site = plant.site(own);
        let (mut near, far): (Vec<_>, Vec<_>) = relays.partition(|n| plant.site(n.number) == site);
        near.extend(far);
        near.iter().take(RELAYS_MAX).map(|n| n.device.id).collect()
    }
}
