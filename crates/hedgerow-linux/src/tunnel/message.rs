//! What stands on the wire: WireGuard's four messages, told apart from mesh datagrams.
//!
//! Layout after the WireGuard paper (Donenfeld, revision of 2020), §5.4. All integers are
//! little-endian. Handshake messages end with mac1 and mac2, 16 bytes each.

/// Bytes of a handshake initiation.
pub const INITIATION_BYTES: usize = 148;
/// Bytes of a handshake response.
pub const RESPONSE_BYTES: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_REPLY_BYTES: usize = 64;
/// Bytes before the ciphertext of a transport message.
pub const HEADER_BYTES: usize = 16;
/// Bytes after it.
pub const TAG_BYTES: usize = 16;
/// Bytes of a mesh datagram that is handed up; longer ones are dropped and counted.
pub const MESH_DATAGRAM_BYTES_MAX: usize = 1472;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE_REPLY: u8 = 3;
const TRANSPORT: u8 = 4;

/// A datagram by its first bytes. Nothing is authenticated.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Someone wants a session.
    Initiation(&'a [u8; INITIATION_BYTES]),
    /// Someone agrees.
    Response(&'a [u8; RESPONSE_BYTES]),
    /// Someone is busy and wants proof of our address.
    CookieReply(&'a [u8; COOKIE_REPLY_BYTES]),
    /// Data or a keepalive.
    Transport {
        /// Our index of the session.
        receiver: u32,
        /// Position in the session.
        counter: u64,
    },
    /// Ours, not WireGuard's.
    Mesh(&'a [u8]),
}

/// Reads the outside of a datagram; `None` for what no peer sends.
pub fn decode(datagram: &[u8]) -> Option<Message<'_>> {
    let (first, rest) = datagram.split_first()?;
    if *first >= super::MESH_DATAGRAM_FIRST {
        return (datagram.len() <= MESH_DATAGRAM_BYTES_MAX).then_some(Message::Mesh(datagram));
    }
    if rest.get(..3)? != [0, 0, 0] {
        return None;
    }
    match *first {
        INITIATION => datagram.try_into().ok().map(Message::Initiation),
        RESPONSE => datagram.try_into().ok().map(Message::Response),
        COOKIE_REPLY => datagram.try_into().ok().map(Message::CookieReply),
        TRANSPORT if datagram.len() >= HEADER_BYTES + TAG_BYTES => Some(Message::Transport {
            receiver: u32_at(datagram, 4),
            counter: u64::from_le_bytes(array_at(datagram, 8)),
        }),
        _ => None,
    }
}

/// Writes the 16 bytes before the ciphertext of a transport message.
pub fn transport_header(receiver: u32, counter: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    put(&mut header, 0, &[TRANSPORT, 0, 0, 0]);
    put(&mut header, 4, &receiver.to_le_bytes());
    put(&mut header, 8, &counter.to_le_bytes());
    header
}

/// Writes an initiation without its macs; `noise` is the 108 bytes of the Noise message.
pub(super) fn initiation(sender: u32, noise: &[u8; 108]) -> [u8; INITIATION_BYTES] {
    let mut message = [0; INITIATION_BYTES];
    put(&mut message, 0, &[INITIATION]);
    put(&mut message, 4, &sender.to_le_bytes());
    put(&mut message, 8, noise);
    message
}

/// Writes a response without its macs; `noise` is the 48 bytes of the Noise message.
pub(super) fn response(sender: u32, receiver: u32, noise: &[u8; 48]) -> [u8; RESPONSE_BYTES] {
    let mut message = [0; RESPONSE_BYTES];
    put(&mut message, 0, &[RESPONSE]);
    put(&mut message, 4, &sender.to_le_bytes());
    put(&mut message, 8, &receiver.to_le_bytes());
    put(&mut message, 12, noise);
    message
}

/// Writes a cookie reply.
pub(super) fn cookie_reply(
    receiver: u32,
    nonce: &[u8; 24],
    sealed: &[u8; 32],
) -> [u8; COOKIE_REPLY_BYTES] {
    let mut message = [0; COOKIE_REPLY_BYTES];
    put(&mut message, 0, &[COOKIE_REPLY]);
    put(&mut message, 4, &receiver.to_le_bytes());
    put(&mut message, 8, nonce);
    put(&mut message, 32, sealed);
    message
}

/// Reads an index; 0 past the end.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// Reads `N` bytes; zeros past the end. For fixed-size messages, where there is no past the end.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

/// Writes `bytes`; what does not fit is left out. For fixed-size messages, where all fits.
pub(crate) fn put(message: &mut [u8], at: usize, bytes: &[u8]) {
    for (slot, byte) in message.iter_mut().skip(at).zip(bytes) {
        *slot = *byte;
    }
}
