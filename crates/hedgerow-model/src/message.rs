//! Messages between two agents inside their tunnel: authenticated, encrypted, never delivered as packets.
//!
//! A message is the plaintext of a transport message whose first byte is no IP version: `kind (1) ‖
//! length of the content (2, big-endian) ‖ content`. What WireGuard pads after it is ignored.

/// Most bytes of a message's content; kind and length come on top.
pub const MESSAGE_BYTES_MAX: usize = 1200;
/// Bytes before the content.
pub const MESSAGE_HEADER_BYTES: usize = 3;
/// First byte above every kind.
const KINDS_END: u8 = 0x10;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// Probes of paths, candidates, observed addresses.
    Path,
    /// Opening and joining sessions through a relay.
    Relay,
    /// The exchange that gives the pre-shared key.
    PostQuantum,
    /// Gossip membership among relays and site managers.
    Membership,
    /// Signed items: announcements, pulls, pieces, digests.
    Items,
    /// Questions about other devices.
    Lookup,
    /// Round trips and throughput that people ask for.
    Measure,
}

impl MessageKind {
    /// Every kind, in the order of its byte.
    pub const ALL: [Self; 7] = [
        Self::Path,
        Self::Relay,
        Self::PostQuantum,
        Self::Membership,
        Self::Items,
        Self::Lookup,
        Self::Measure,
    ];

    /// Returns the byte on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Path => 1,
            Self::Relay => 2,
            Self::PostQuantum => 3,
            Self::Membership => 4,
            Self::Items => 5,
            Self::Lookup => 6,
            Self::Measure => 7,
        }
    }

    /// Returns the stable name, for counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Relay => "relay",
            Self::PostQuantum => "post_quantum",
            Self::Membership => "membership",
            Self::Items => "items",
            Self::Lookup => "lookup",
            Self::Measure => "measure",
        }
    }
}

/// Returns whether a tunnel's plaintext is a message, known or not, and no packet.
pub fn is_message(plaintext: &[u8]) -> bool {
    matches!(plaintext.first(), Some(1..KINDS_END))
}

/// Writes a message; `None` when the content is longer than [`MESSAGE_BYTES_MAX`].
pub fn encode(kind: MessageKind, content: &[u8]) -> Option<Vec<u8>> {
    if content.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    let length = u16::try_from(content.len()).ok()?.to_be_bytes();
    let mut bytes = Vec::with_capacity(MESSAGE_HEADER_BYTES + content.len());
    bytes.push(kind.byte());
    bytes.extend(length);
    bytes.extend(content);
    Some(bytes)
}

/// Reads a message: kind and content. `None` for an unknown kind, a content longer than the bytes that
/// came or than [`MESSAGE_BYTES_MAX`].
pub fn decode(plaintext: &[u8]) -> Option<(MessageKind, &[u8])> {
    let ([kind, high, low], rest) = plaintext.split_first_chunk::<MESSAGE_HEADER_BYTES>()?;
    let kind = MessageKind::ALL.into_iter().find(|k| k.byte() == *kind)?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let content = rest.get(..length)?;
    (length <= MESSAGE_BYTES_MAX).then_some((kind, content))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_packet_is_a_message_and_padding_is_left_out() {
        assert!(!is_message(&[0x45]));
        assert!(!is_message(&[0x60]));
        assert!(!is_message(&[0]), "padding alone");
        assert!(!is_message(&[]), "a keepalive");
        let mut bytes = encode(MessageKind::Items, b"abc").unwrap();
        bytes.extend([0; 12]);
        assert_eq!(decode(&bytes), Some((MessageKind::Items, &b"abc"[..])));
        assert_eq!(decode(&bytes[..5]), None, "cut short");
        assert_eq!(decode(&[15, 0, 0]), None, "unknown kind");
        assert_eq!(encode(MessageKind::Path, &[0; MESSAGE_BYTES_MAX + 1]), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            if let Some((kind, content)) = decode(&bytes) {
                prop_assert!(is_message(&bytes));
                let again = encode(kind, content).unwrap();
                prop_assert_eq!(&again[..], &bytes[..again.len()]);
            }
        }
    }
}
