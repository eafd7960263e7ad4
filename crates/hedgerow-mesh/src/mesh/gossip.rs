//! Pre-shared keys, items and membership: which of a peer's moments each of them hears of, and what they
//! want, in the machine's own words.

use std::collections::VecDeque;

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};
use hedgerow_model::statement::Ticket;

use super::ways::is_relay;
use super::{Mesh, OwnIdentity, View};
use crate::items::{self, Item, ItemKey, ItemRefusal, ItemStatus, Items};
use crate::membership::{self, Member, MemberStatus, Membership};
use crate::output::{Output, TunnelOrder};
use crate::peer::Peer;
use crate::psk::{self, Exchanges, PostQuantum, PskStatus};
use crate::random::Random;

/// What the three hold.
pub(super) struct Gossip {
    psk: Exchanges,
    items: Items,
    /// Only a relay has one.
    membership: Option<Membership>,
    random: Random,
}

/// What is gossiped, at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GossipStatus {
    /// Items held, in the order of their kinds.
    pub items: Vec<ItemStatus>,
    /// How many messages about items were refused, by reason.
    pub refused: std::collections::BTreeMap<ItemRefusal, u64>,
    /// The other relays, as a hint; empty where this device is none.
    pub members: Vec<MemberStatus>,
}

impl Gossip {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            psk: Exchanges::new(*random.bytes(), PostQuantum::default()),
            items: Items::new(*random.bytes()),
            membership: None,
            random: Random::new(*random.bytes()),
        }
    }

    pub(super) fn handle_own(&mut self, own: &OwnIdentity, view: View<'_>) {
        let (ticket, now) = (&own.ticket, view.now.mono);
        let is_relay = is_relay(ticket);
        self.psk
            .handle_own(ticket.id, own.binding.wireguard_key, now);
        self.items.handle_own(ticket.id, is_relay);
        let same = |m: &Membership| m.own().device == ticket.id;
        if !is_relay {
            self.membership = None;
        } else if !self.membership.as_ref().is_some_and(same) {
            let member = Member {
                device: ticket.id,
                boot: view.now.wall.secs(),
            };
            self.membership = Some(Membership::new(member, *self.random.bytes()));
        }
    }

    pub(super) fn handle_peer(&mut self, peer: &Peer, now: Mono) {
        let key = peer.binding.wireguard_key;
        self.psk.handle_peer(peer.ticket.id, key, now);
        if peer.idle_since.is_none() {
            // It may be a relay now, or none any more.
            self.handle_session(&peer.ticket, now);
        }
    }

    pub(super) fn handle_session(&mut self, ticket: &Ticket, now: Mono) {
        let is_relay = is_relay(ticket);
        self.items.handle_session(ticket.id, is_relay, now);
        if let Some(membership) = self.membership.as_mut().filter(|_| is_relay) {
            membership.handle_session(ticket.id, now);
        }
    }

    pub(super) fn handle_idle(&mut self, device: DeviceId, now: Mono) {
        self.psk.handle_idle(device);
        self.items.handle_idle(device, now);
    }

    pub(super) fn handle_removed(&mut self, device: DeviceId) {
        self.psk.handle_removed(device);
        self.items.handle_removed(device);
        if let Some(membership) = &mut self.membership {
            membership.handle_removed(device);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Mono) {
        self.psk.handle_timeout(now);
        self.items.handle_timeout(now);
        if let Some(membership) = &mut self.membership {
            membership.handle_timeout(now);
        }
    }

    pub(super) fn deadline(&self) -> (Mono, &'static str) {
        let membership = self.membership.as_ref().map(Membership::deadline);
        [self.psk.deadline(), self.items.deadline()]
            .into_iter()
            .chain(membership)
            .min_by_key(|(at, _)| *at)
            .unwrap_or((Mono::NEVER, "nothing"))
    }

    /// Moves what the three want behind what else is to be done.
    pub(super) fn drain(&mut self, output: &mut VecDeque<Output>) {
        while let Some(wanted) = self.psk.poll() {
            output.extend(of_exchange(wanted));
        }
        while let Some(wanted) = self.items.poll() {
            output.extend(of_items(wanted));
        }
        while let Some(wanted) = self.membership.as_mut().and_then(Membership::poll) {
            output.extend(of_membership(wanted));
        }
    }
}

fn say(device: DeviceId, kind: MessageKind, content: &[u8]) -> Option<Output> {
    let bytes = message::encode(kind, content)?;
    Some(Output::Tunnel(TunnelOrder::SendMessage {
        device,
        via: None,
        bytes,
        measures_mtu: false,
    }))
}

fn of_exchange(wanted: psk::Output) -> Vec<Output> {
    match wanted {
        psk::Output::Send { device, content } => say(device, MessageKind::PostQuantum, &content)
            .into_iter()
            .collect(),
        psk::Output::Set {
            device,
            keys,
            psk,
            what,
        } => {
            let set = Output::Tunnel(TunnelOrder::SetPsk {
                device,
                keys,
                psk,
                what,
            });
            let now = what == psk::PskUse::UseNow;
            let rekey = now.then_some(Output::Tunnel(TunnelOrder::Rekey { device }));
            std::iter::once(set).chain(rekey).collect()
        }
        psk::Output::Failed { device, failures } => vec![Output::PskFailed { device, failures }],
    }
}

fn of_items(wanted: items::Output) -> Option<Output> {
    match wanted {
        items::Output::Send { device, content } => say(device, MessageKind::Items, &content),
        items::Output::Arrived { from, item } => Some(Output::ItemArrived { from, item }),
        items::Output::Forked {
            from,
            key,
            version,
            signer,
        } => Some(Output::ItemForked {
            from,
            kind: key.kind(),
            version,
            signer,
        }),
    }
}

fn of_membership(wanted: membership::Output) -> Option<Output> {
    match wanted {
        membership::Output::Send { device, content } => {
            say(device, MessageKind::Membership, &content)
        }
        membership::Output::Up { device } => Some(Output::Member {
            device,
            is_up: true,
        }),
        membership::Output::Down { device } => Some(Output::Member {
            device,
            is_up: false,
        }),
    }
}

impl Mesh {
    /// Takes what may pass before a pre-shared key is agreed, as the configuration says.
    pub fn set_post_quantum(&mut self, mode: PostQuantum) {
        self.gossip.psk.set_mode(mode);
    }

    /// Takes the tunnel's word that a session was agreed, and whether under a pre-shared key.
    pub fn handle_agreed(&mut self, device: DeviceId, with_psk: bool, view: View<'_>) {
        let now = view.now.mono;
        self.gossip.psk.handle_session(device, with_psk, now);
    }

    /// Takes a signed item from elsewhere: the controller, the disk, a person. Every live peer is told of
    /// one that is news. Returns whether it is the one held now.
    ///
    /// # Errors
    ///
    /// The reason why it is not believed.
    pub fn handle_item(
        &mut self,
        kind: items::ItemKind,
        bytes: &[u8],
        view: View<'_>,
    ) -> Result<bool, ItemRefusal> {
        if bytes.is_empty() || bytes.len() > kind.bytes_max() {
            return Err(ItemRefusal::Size);
        }
        let item = Item::verify(kind, bytes, view).map_err(|disbelief| match disbelief {
            items::Disbelief::Unknown => ItemRefusal::UnknownSigner,
            items::Disbelief::Forged => ItemRefusal::Forged,
        })?;
        Ok(self.gossip.items.handle_item(&item, bytes, view.now.mono))
    }

    /// Takes a message of kind 3, 4 or 5 from a peer in session.
    pub(super) fn handle_gossip(
        &mut self,
        device: DeviceId,
        (kind, content): (MessageKind, &[u8]),
        view: View<'_>,
    ) -> Result<(), crate::Refusal> {
        use crate::Refusal;
        let now = view.now.mono;
        match kind {
            MessageKind::PostQuantum => {
                let result = self.gossip.psk.handle_message(device, content, now);
                result.map_err(|refused| match refused {
                    psk::Refused::Malformed => Refusal::Malformed,
                    psk::Refused::Stranger => Refusal::NotReady,
                    psk::Refused::NotTheirs => Refusal::Ourselves,
                    psk::Refused::Unasked => Refusal::Unasked,
                    psk::Refused::Forged => Refusal::Unopened,
                    psk::Refused::TooOften => Refusal::SourceBudget,
                })
            }
            MessageKind::Items => {
                self.gossip.items.handle_message(device, content, view);
                Ok(())
            }
            MessageKind::Membership => {
                let is_relay = self.peers.get(device).is_some_and(|p| is_relay(&p.ticket));
                let membership = self.gossip.membership.as_mut().filter(|_| is_relay);
                let result = membership.map_or(Err(membership::Refused::NotAMember), |m| {
                    m.handle_message(device, content, now)
                });
                result.map_err(|refused| match refused {
                    membership::Refused::Malformed => Refusal::Malformed,
                    membership::Refused::NotAMember => Refusal::NotAdmitted,
                    membership::Refused::Budget => Refusal::SourceBudget,
                    membership::Refused::Full => Refusal::Busy,
                })
            }
            MessageKind::Path | MessageKind::Relay | MessageKind::Lookup | MessageKind::Measure => {
                Ok(())
            }
        }
    }

    /// Returns what is gossiped.
    pub fn gossip_status(&self) -> GossipStatus {
        let membership = self.gossip.membership.as_ref();
        GossipStatus {
            items: self.gossip.items.status(),
            refused: self.gossip.items.refusals().clone(),
            members: membership.map(Membership::status).unwrap_or_default(),
        }
    }

    /// Returns how far a peer's pre-shared key is; nothing for who is no peer.
    pub fn psk_status(&self, device: DeviceId) -> Option<PskStatus> {
        self.gossip.psk.status(device)
    }

    /// Returns the signed endpoint record of a device with its ticket, where this relay holds one.
    pub fn endpoint_record(&self, device: DeviceId) -> Option<&[u8]> {
        self.gossip.items.bytes(ItemKey::of_device(device))
    }
}
