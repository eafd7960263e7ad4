//! What the parent must do next, and why things were refused.

use std::fmt;
use std::net::IpAddr;

use hedgerow_identity::Verified;
use hedgerow_identity::error::{RefusedBinding, RefusedTicket};
use hedgerow_model::Fault;
use hedgerow_model::address::{Overlay, OverlayAddresses};
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::path::{Path, RelaySession};
use hedgerow_model::statement::{KeyId, PeerQuery, Ticket, X25519Public};
use zeroize::Zeroizing;

use crate::items::{Item, ItemKind};
use crate::memory::Memory;
use crate::psk::PskUse;

/// One thing to do, in the order given: removals stand before everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask who this is and where; answer with [`crate::Mesh::handle_resolved`], also when nobody is
    /// left to ask.
    Resolve {
        /// Whom.
        query: PeerQuery,
    },
    /// Send a datagram from the tunnel's port.
    Send {
        /// Where to.
        to: Path,
        /// What; the first byte is 0x80 or greater, and no relay's frame.
        bytes: Vec<u8>,
    },
    /// Ask the policy about this device; answer with [`crate::Mesh::handle_admitted`]. When it is
    /// granted, what the kernel needs to judge the device's packets is in force *before* the answer.
    /// Questions about one device are answered in their order.
    Admit {
        /// Which device.
        device: DeviceId,
        /// Its verified facts.
        ticket: Verified<Ticket>,
    },
    /// Set the tunnel's peer. A key other than the last one given moves that one aside, where it
    /// still works until [`Self::ForgetOldKey`].
    SetPeer {
        /// Which device.
        device: DeviceId,
        /// Its WireGuard key.
        wireguard_key: X25519Public,
        /// Its overlay addresses.
        addresses: OverlayAddresses,
        /// Where it can be tried; absent for a peer that will come to us or is already reached.
        endpoint: Option<Path>,
    },
    /// Tell the tunnel what concerns it alone.
    Tunnel(TunnelOrder),
    /// The overlap of two keys is over.
    ForgetOldKey {
        /// Which device.
        device: DeviceId,
    },
    /// Packets that wait for this address may go to the peer just set.
    Release {
        /// The address that was wanted.
        address: Overlay,
    },
    /// Packets that wait for this address will not go.
    Reject {
        /// The address that was wanted.
        address: Overlay,
        /// Why.
        reason: Unreachable,
    },
    /// Cut the peer off, kernel first, then the tunnel.
    RemovePeer {
        /// Which device.
        device: DeviceId,
        /// The addresses it held.
        addresses: OverlayAddresses,
        /// Why.
        reason: Removal,
    },
    /// Somebody was refused; at most one per reason and [`crate::REPORT_EVERY`].
    Refused {
        /// Why.
        reason: Refusal,
        /// Where the message came from; proves nothing.
        source: Option<Path>,
        /// Which device, where that was proven.
        device: Option<DeviceId>,
        /// How many of the same reason went unreported since the last.
        suppressed: u64,
    },
    /// Datagrams to a peer go another way; for people.
    PathChanged {
        /// Which peer.
        device: DeviceId,
        /// The way before.
        from: Path,
        /// The way now.
        to: Path,
        /// Why.
        why: crate::path::Why,
    },
    /// No way to a peer answers; for people.
    PathLost {
        /// Which peer.
        device: DeviceId,
    },
    /// This device is reached through these relays, the best first: whoever resolves it should know.
    HomeRelays {
        /// At most [`crate::relay::HOME_RELAYS`].
        relays: Vec<DeviceId>,
    },
    /// Connect to a relay over TLS at the first of these hosts that answers; say so by
    /// [`crate::Mesh::handle_link`], and by [`crate::Mesh::handle_link_ended`] when it ends or does not stand.
    OpenLink {
        /// Which relay: nobody else's certificate will do.
        relay: DeviceId,
        /// Where to, at most [`crate::relay::LINK_ADDRESSES_MAX`].
        hosts: Vec<IpAddr>,
    },
    /// End the link to a relay; it is not in use any more.
    CloseLink {
        /// Which relay.
        relay: DeviceId,
    },
    /// An exchange for a pre-shared key was given up; it is begun again after a pause.
    PskFailed {
        /// With which device.
        device: DeviceId,
        /// How many failed since the last that did not.
        failures: u32,
    },
    /// A signed item came from a peer and verified; its own order, not that of other sources, was kept.
    ItemArrived {
        /// From which device it came; says nothing about whose it is.
        from: DeviceId,
        /// What.
        item: Box<Item>,
    },
    /// A signer said two things under one version: its key is misused. What was held stays.
    ItemForked {
        /// From which device the second came.
        from: DeviceId,
        /// What.
        kind: ItemKind,
        /// The version.
        version: Revision,
        /// The signer's key.
        signer: KeyId,
    },
    /// Another relay came, or others believe that it went. A hint for choosing relays, never a verdict.
    Member {
        /// Which device.
        device: DeviceId,
        /// Whether it came.
        is_up: bool,
    },
    /// Write this to the disk cache, in place of the device's former record.
    Remember(Memory),
    /// Delete the device's record from the disk cache.
    Forget(DeviceId),
}

/// What only the tunnel is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelOrder {
    /// Send a message to a peer's agent inside the tunnel.
    SendMessage {
        /// Which device.
        device: DeviceId,
        /// By which path; absent is the one in use, which stays.
        via: Option<Path>,
        /// The message (`hedgerow_model::message`), zeros after it included.
        bytes: Vec<u8>,
        /// Whether it measures how long a datagram the path carries, and must not be cut.
        measures_mtu: bool,
    },
    /// Send to a peer by this path from now on.
    MovePeer {
        /// Which device.
        device: DeviceId,
        /// Where to.
        path: Path,
    },
    /// Bound the packets sent to a peer; absent is the tunnel's own bound.
    SetPathMtu {
        /// Which device.
        device: DeviceId,
        /// Bytes of an inner packet.
        mtu: Option<u16>,
    },
    /// Mix this key into handshakes with the peer.
    SetPsk {
        /// Which device.
        device: DeviceId,
        /// The pair of WireGuard keys that it was agreed for, ours first.
        keys: [X25519Public; 2],
        /// The key.
        psk: Psk,
        /// How. A handshake that is to begin at once is ordered beside.
        what: PskUse,
    },
    /// Begin a handshake with a peer although a session lives.
    Rekey {
        /// Which device.
        device: DeviceId,
    },
    /// Pass on the frames of a session that one side sends.
    SetRelay {
        /// The session, as the side knows it that sends.
        session: RelaySession,
        /// That side.
        from: DeviceId,
        /// Where they go, under which number.
        to: (DeviceId, RelaySession),
    },
    /// Pass a session's frames on no more.
    ForgetRelay {
        /// The session.
        session: RelaySession,
    },
}

/// A pre-shared key that two agents agreed on; wiped from memory when dropped.
#[derive(Clone)]
pub struct Psk(Zeroizing<[u8; 32]>);

impl Psk {
    /// Takes the agreed bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Lends the bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(secret)")
    }
}

impl PartialEq for Psk {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(other.0.iter());
        pairs.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl Eq for Psk {}

macro_rules! reasons {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident $text:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every one, in the order above.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the stable spelling, for events and counters.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use reasons;

reasons! {
    /// Why packets for an address cannot go.
    Unreachable {
        /// This device has no ticket and binding of its own yet.
        NotReady "not_ready",
        /// It is this device's own address.
        Own "own_address",
        /// Nobody could say whose address it is.
        Unresolved "unresolved",
        /// The device's ticket was refused.
        Refused "ticket_refused",
        /// Policy grants nothing between the two.
        NotAdmitted "not_admitted",
        /// No place is known where the device could be asked.
        NoEndpoint "no_endpoint",
        /// The device did not answer.
        Unanswered "unanswered",
        /// Too many are being looked for at once.
        Busy "busy",
    }
}

reasons! {
    /// Why a peer was removed.
    Removal {
        /// The device, its key, its site or its issuer was revoked.
        Revoked "revoked",
        /// Its ticket was superseded by one with other labels, addresses or state.
        Superseded "superseded",
        /// Its ticket or binding ended, and grace does not reach it.
        Expired "expired",
        /// It is held until an operator decides.
        Held "held",
        /// Its ticket is not believed any more for another reason.
        Distrusted "distrusted",
        /// Policy grants nothing any more.
        NotAdmitted "not_admitted",
        /// Nothing was exchanged for [`crate::IDLE_FORGET`].
        Idle "idle",
        /// It does not answer where it was.
        Unanswered "unanswered",
        /// Another peer needed the place, and this one was idle.
        Displaced "displaced",
        /// This device's own identity changed.
        Ourselves "ourselves",
    }
}

reasons! {
    /// Why a message or an answer was refused. The sender of a message gets silence.
    Refusal {
        /// Not a message of ours: length, version, kind or content.
        Malformed "malformed",
        /// We have no ticket and binding of our own yet.
        NotReady "not_ready",
        /// Made by somebody who does not know our introduction key, or for another device.
        WrongCheck "wrong_check",
        /// This source asks too often.
        SourceBudget "source_budget",
        /// Everybody together asks too often.
        GlobalBudget "global_budget",
        /// The sealed part does not open.
        Unopened "unopened",
        /// An answer to no question of ours, or one that came too late.
        Unasked "unasked",
        /// Our own message, or one in our own name.
        Ourselves "ourselves",
        /// Sealed to our key, addressed to another device.
        OtherResponder "other_responder",
        /// Not newer than the last of that device.
        Replayed "replayed",
        /// From a clock far ahead of a trusted one.
        ClockAhead "clock_ahead",
        /// The ticket is not by an issuer of our trust domain.
        ForeignTicket "foreign_ticket",
        /// The ticket is damaged, forged or outside its issuer's scope.
        InvalidTicket "invalid_ticket",
        /// The device, its key, its site or its issuer is revoked.
        Revoked "revoked",
        /// A newer ticket of the device exists.
        SupersededTicket "superseded_ticket",
        /// The ticket ended, and grace does not reach it.
        ExpiredTicket "expired_ticket",
        /// Not the ticket of the key that asks.
        OtherKey "other_key",
        /// Not the device that was asked for.
        OtherDevice "other_device",
        /// The binding is not by this device, damaged or expired.
        InvalidBinding "invalid_binding",
        /// A newer binding of the device is known.
        SupersededBinding "superseded_binding",
        /// Another device holds the same WireGuard key, or one that is revoked had a session under it.
        KeyTaken "key_taken",
        /// Another device holds one of the addresses.
        AddressTaken "address_taken",
        /// The device is held until an operator decides.
        Held "held",
        /// Policy grants nothing between the two.
        NotAdmitted "not_admitted",
        /// A table is full.
        Busy "busy",
    }
}

impl Refusal {
    /// Returns who has to act.
    pub fn fault(self) -> Fault {
        if matches!(self, Self::NotReady | Self::Busy) {
            Fault::Environment
        } else {
            Fault::Peer
        }
    }
}

impl From<&RefusedTicket> for Refusal {
    fn from(refused: &RefusedTicket) -> Self {
        match refused {
            RefusedTicket::UnknownIssuer { .. } => Self::ForeignTicket,
            RefusedTicket::Revoked { .. } => Self::Revoked,
            RefusedTicket::OldEpoch { .. } => Self::SupersededTicket,
            RefusedTicket::Expired { .. } => Self::ExpiredTicket,
            RefusedTicket::Envelope(_)
            | RefusedTicket::Wire(_)
            | RefusedTicket::OtherSite { .. }
            | RefusedTicket::AddressOutOfScope { .. }
            | RefusedTicket::OutlivesIssuer { .. }
            | RefusedTicket::NotOurs { .. } => Self::InvalidTicket,
        }
    }
}

impl From<&RefusedBinding> for Refusal {
    fn from(_: &RefusedBinding) -> Self {
        Self::InvalidBinding
    }
}

impl From<&RefusedTicket> for Removal {
    fn from(refused: &RefusedTicket) -> Self {
        match refused {
            RefusedTicket::Revoked { .. } => Self::Revoked,
            RefusedTicket::OldEpoch { .. } => Self::Superseded,
            RefusedTicket::Expired { .. } => Self::Expired,
            RefusedTicket::Envelope(_)
            | RefusedTicket::Wire(_)
            | RefusedTicket::UnknownIssuer { .. }
            | RefusedTicket::OtherSite { .. }
            | RefusedTicket::AddressOutOfScope { .. }
            | RefusedTicket::OutlivesIssuer { .. }
            | RefusedTicket::NotOurs { .. } => Self::Distrusted,
        }
    }
}
