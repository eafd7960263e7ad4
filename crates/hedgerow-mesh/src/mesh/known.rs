//! What this device tells others about a third: who it is and where.

use hedgerow_identity::Verified;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::statement::{EndpointRecord, PeerQuery, Ticket};

use super::ask::age;
use super::{Mesh, View};
use crate::items::{Item, ItemKind};
use crate::lookup::{self, Found};
use crate::path;

impl Mesh {
    /// Returns what this device knows about another, for who asks. With a session it knows best where the other is; else
    /// the other's own signed word goes before what is remembered.
    pub(super) fn known_as(&self, query: PeerQuery, view: View<'_>) -> Option<Found> {
        let memory = match query {
            PeerQuery::Device(device) => self.memories.get(device),
            PeerQuery::Address(address) => self.memories.by_address(address),
        };
        let device = match query {
            PeerQuery::Device(device) => device,
            PeerQuery::Address(_) => memory?.device,
        };
        let peer = self.peers.get(device);
        let is_live = peer.is_some_and(|p| p.idle_since.is_none());
        let said = (!is_live).then(|| self.said_by(device, view)).flatten();
        if memory.is_none() && said.is_none() {
            return None;
        }
        let now_at = peer.and_then(|p| p.endpoint).filter(Path::is_direct);
        let now_at = now_at.map(|p| p.to).filter(|to| !to.is_loopback());
        let told = said.iter().flat_map(|(_, record)| &record.endpoints);
        let remembered = memory.iter().flat_map(|m| &m.endpoints);
        let mut endpoints: Vec<Underlay> = Vec::new();
        for endpoint in told.chain(&now_at).chain(remembered) {
            if !endpoints.contains(endpoint) && endpoints.len() < lookup::ANSWER_ENDPOINTS_MAX {
                endpoints.push(*endpoint);
            }
        }
        let here = self.ways.server.is_registered(device);
        let own = self.own.as_ref().filter(|_| here).map(super::Own::device);
        let told = said.as_ref().map(|(_, record)| record.relays.as_slice());
        let told = told.filter(|relays| !relays.is_empty());
        let others = told.or_else(|| Some(peer?.relays.as_slice()));
        let others = others
            .or_else(|| Some(memory?.relays()))
            .unwrap_or_default();
        let others = others.iter().copied().filter(|r| Some(*r) != own);
        let relays = own.into_iter().chain(others).take(path::RELAYS_MAX);
        Some(Found {
            ticket: newest_ticket(memory.map(|m| m.ticket.as_slice()), said.as_ref(), view),
            endpoints,
            relays: relays.collect(),
        })
    }

    /// Returns a device's own word on where it is, and its ticket, where one is held that holds now.
    fn said_by(
        &self,
        device: DeviceId,
        view: View<'_>,
    ) -> Option<(Verified<Ticket>, Verified<EndpointRecord>)> {
        let body = self.endpoint_record(device)?;
        let item = Item::verify(ItemKind::Endpoints, body, view).ok()?;
        let Item::Endpoints { ticket, record } = item else {
            return None;
        };
        Some((*ticket, record))
    }
}

/// Returns the ticket to hand out: the one beside the record, unless the remembered one is newer.
fn newest_ticket(
    remembered: Option<&[u8]>,
    said: Option<&(Verified<Ticket>, Verified<EndpointRecord>)>,
    view: View<'_>,
) -> Vec<u8> {
    let Some((ticket, _)) = said else {
        return remembered.unwrap_or_default().to_vec();
    };
    let verify = |bytes| view.trust.verify_ticket(bytes, view.standing, view.now);
    let known = remembered.and_then(|bytes| verify(bytes).ok());
    match known {
        Some(known) if age(&known) > age(ticket) => known.bytes().to_vec(),
        Some(_) | None => ticket.bytes().to_vec(),
    }
}
