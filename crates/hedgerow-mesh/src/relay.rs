//! Sessions through relays: who passes what on to whom.
//!
//! ```text
//!  device A ──Connect{D}──▶ relay ──Incoming{session, A}──▶ device D, which sent Open before
//!           ◀─Connected{a}─       SetRelay: frames of A under a go to D under d, and back
//! ```
//!
//! Every message travels inside the tunnel between a device and a relay, so both have proven their keys
//! and stand in each other's table of peers. [`Server`] is the relay's side, [`Client`] every device's.
//!
//! # Invariants
//!
//! - A session begins only towards a device that is registered, which is its consent.
//! - A number is random, and works only from the device that it was given to.
//! - What a relay says about others is a hint: the frames it passes on are sealed, and their sender is
//!   proven by the tunnel inside them.
//! - There are at most two relays between two devices.

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;

mod client;
mod links;
mod server;
mod wire;

pub use client::{
    ASK_AGAIN_MAX, ASK_WITHIN, Client, ClientOutput, ClientStatus, EXPLORE_EVERY, HOME_RELAYS,
    KNOWN_MAX, OPEN_EVERY, RelayStatus, SESSIONS_PER_RELAY_MAX, UNSEEN_AGAIN_MAX, UNSEEN_AGAIN_MIN,
    WANTS_MAX,
};
pub use links::{
    LINK_ADDRESSES_MAX, LINK_AFTER, LINK_AGAIN_MAX, LINK_AGAIN_MIN, LINK_SPARE_FOR,
    LINK_USED_WITHIN, LINKS_MAX, LinkOutput, Links, hosts,
};
pub use server::{
    CONNECTS, HOPS_MAX, PENDING_MAX, REGISTERED_FOR, REGISTERED_MAX, SESSION_FOR, SESSIONS_MAX,
    SIDES_PER_DEVICE_MAX, SIDES_PER_RELAY_MAX, Server, ServerOutput, ServerStatus,
};
pub use wire::{Connect, RelayMessage, SESSIONS_PER_MESSAGE_MAX, Verdict};

/// Hands a message to whichever side of this device it is for.
pub fn deliver(
    server: &mut Server,
    client: &mut Client,
    (device, is_relay): (DeviceId, bool),
    message: RelayMessage,
    now: Mono,
) {
    let is_for_server = match &message {
        RelayMessage::Open { .. } | RelayMessage::Connect(_) | RelayMessage::Keep { .. } => true,
        RelayMessage::Connected { number, .. } => server.awaits(device, *number),
        RelayMessage::Close { session } => server.owns(device, *session),
        RelayMessage::Opened { .. } | RelayMessage::Incoming { .. } => false,
    };
    if is_for_server {
        server.handle_message(device, is_relay, message, now);
    } else {
        client.handle_message(device, message, now);
    }
}

#[cfg(test)]
mod tests;
