//! How datagrams get to a peer: straight, or through a relay.

use std::fmt;

use minicbor::{Decode, Encode};

use crate::address::Underlay;
use crate::id::Labels;

/// The label that makes a device a relay, and its value.
pub const RELAY_LABEL: (&str, &str) = ("relay", "yes");
/// Bytes before a datagram inside a relay's frame.
pub const RELAY_HEADER_BYTES: usize = 8;
/// First byte of a relay's frame; the next three are zero, then the session's number follows, little-endian.
pub const RELAY_FRAME_FIRST: u8 = 0x84;

/// A session through a relay, by the number one of its ends knows it by. The other end's is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct RelaySession(#[n(0)] pub u32);

impl fmt::Display for RelaySession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Where datagrams for a peer are sent. Like an outer address, it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// The peer itself, or the relay.
    pub to: Underlay,
    /// The session inside whose frames the relay at `to` passes them on; absent when `to` is the peer.
    pub relay: Option<RelaySession>,
}

impl Path {
    /// Makes the path straight to an address.
    pub const fn direct(to: Underlay) -> Self {
        Self { to, relay: None }
    }

    /// Makes the path through a relay's session.
    pub const fn relayed(relay: Underlay, session: RelaySession) -> Self {
        Self {
            to: relay,
            relay: Some(session),
        }
    }

    /// Returns whether no relay stands between.
    pub const fn is_direct(&self) -> bool {
        self.relay.is_none()
    }
}

impl From<Underlay> for Path {
    fn from(to: Underlay) -> Self {
        Self::direct(to)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.relay {
            None => self.to.fmt(f),
            Some(session) => write!(f, "{} relay session {session}", self.to),
        }
    }
}

/// Returns whether labels make their device a relay.
pub fn is_relay(labels: &Labels) -> bool {
    let (key, value) = RELAY_LABEL;
    let mut labels = labels.iter();
    labels.any(|(k, v)| k.as_str() == key && v.as_str() == value)
}

/// Writes the bytes that stand before a datagram inside a relay's frame.
pub fn relay_header(session: RelaySession) -> [u8; RELAY_HEADER_BYTES] {
    let [a, b, c, d] = session.0.to_le_bytes();
    [RELAY_FRAME_FIRST, 0, 0, 0, a, b, c, d]
}

/// Splits a relay's frame into its session and the datagram inside; `None` for what is no frame, and for
/// a frame inside a frame.
pub fn split_relay_frame(frame: &[u8]) -> Option<(RelaySession, &[u8])> {
    let (header, datagram) = frame.split_first_chunk::<RELAY_HEADER_BYTES>()?;
    let [RELAY_FRAME_FIRST, 0, 0, 0, a, b, c, d] = *header else {
        return None;
    };
    let is_nested = datagram.first() == Some(&RELAY_FRAME_FIRST);
    (!datagram.is_empty() && !is_nested)
        .then(|| (RelaySession(u32::from_le_bytes([a, b, c, d])), datagram))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_split_as_they_were_made_and_never_nest() {
        let session = RelaySession(0x0102_0304);
        let mut frame = relay_header(session).to_vec();
        assert_eq!(split_relay_frame(&frame), None, "nothing inside");
        frame.push(4);
        assert_eq!(split_relay_frame(&frame), Some((session, &[4][..])));
        frame[8] = RELAY_FRAME_FIRST;
        assert_eq!(split_relay_frame(&frame), None, "a frame inside");
        frame[8] = 4;
        frame[1] = 1;
        assert_eq!(split_relay_frame(&frame), None, "reserved bytes");
        assert_eq!(split_relay_frame(&frame[..5]), None, "cut short");
    }
}
