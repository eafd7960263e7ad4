//! Frames: `[u32 length of the rest, big endian][u8 channel][part of a message]`.
//!
//! The channel's top bit says that more parts of the same message follow on that channel. Parts of
//! different channels interleave, so a long message never holds up a more urgent one.

use crate::error::SessionError;

/// Largest value of the length field: channel byte and part together.
pub const FRAME_BYTES_MAX: usize = 64 << 10;
/// Largest part that this end sends, so that an urgent frame waits no longer than for one of these.
pub const PART_BYTES_MAX: usize = 16 << 10;
/// Largest part on [`Channel::Bulk`].
pub const BULK_PART_BYTES_MAX: usize = 4 << 10;
/// What a socket may hold that is not on its way yet (`TCP_NOTSENT_LOWAT`): both ends set it, since
/// whatever stands in the socket cannot be overtaken by a more urgent frame.
pub const UNSENT_BYTES_MAX: u32 = 16 << 10;
/// Largest message, put together from its parts.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

const LENGTH_BYTES: usize = 4;
const MORE: u8 = 0x80;

/// What a frame is about, in falling priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Session, policy and states.
    Policy,
    /// Orders, requests and their answers.
    Command,
    /// Events.
    Telemetry,
    /// What was asked for and may take long.
    Bulk,
}

impl Channel {
    /// Every channel, most urgent first.
    pub const ALL: [Self; 4] = [Self::Policy, Self::Command, Self::Telemetry, Self::Bulk];

    /// Returns the spelling used in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Command => "command",
            Self::Telemetry => "telemetry",
            Self::Bulk => "bulk",
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Policy => 0,
            Self::Command => 1,
            Self::Telemetry => 2,
            Self::Bulk => 3,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Policy => 0,
            Self::Command => 1,
            Self::Telemetry => 2,
            Self::Bulk => 3,
        }
    }
}

/// Returns one frame with a whole message. For exchanges of small messages, such as enrollment; a
/// session cuts its messages itself.
///
/// # Errors
///
/// [`SessionError::FrameLength`] when the message does not fit one frame.
pub fn whole(channel: Channel, message: &[u8]) -> Result<Vec<u8>, SessionError> {
    if message.len() >= FRAME_BYTES_MAX {
        return Err(SessionError::FrameLength {
            bytes: message.len() + 1,
        });
    }
    Ok(part(channel, message, false))
}

/// Returns one frame; `bytes` is at most [`FRAME_BYTES_MAX`] - 1.
pub(crate) fn part(channel: Channel, bytes: &[u8], more: bool) -> Vec<u8> {
    let mut out = begin(channel, bytes.len(), more);
    out.extend_from_slice(bytes);
    out
}

/// Returns the beginning of a frame, with room for the `bytes` that must follow: at most
/// [`FRAME_BYTES_MAX`] - 1.
pub(crate) fn begin(channel: Channel, bytes: usize, more: bool) -> Vec<u8> {
    let length = u32::try_from(bytes + 1).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(LENGTH_BYTES + 1 + bytes);
    out.extend_from_slice(&length.to_be_bytes());
    out.push(channel.number() | if more { MORE } else { 0 });
    out
}

/// Puts messages together from a byte stream. Holds at most one frame and, per channel, one
/// unfinished message; holds no memory while idle.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    unfinished: [Vec<u8>; 4],
    message_bytes_max: usize,
}

impl FrameReader {
    /// Starts; messages beyond `message_bytes_max` are refused before they are put together.
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            unfinished: [const { Vec::new() }; 4],
            message_bytes_max,
        }
    }

    /// Changes the bound on messages, for instance once the other end is admitted.
    pub fn set_message_bytes_max(&mut self, bytes: usize) {
        self.message_bytes_max = bytes;
    }

    /// Takes bytes from `input` up to the end of the next message and returns that message; `None`
    /// when `input` is used up. Call it until `None`.
    ///
    /// # Errors
    ///
    /// For frames and messages out of bounds; the stream cannot be read any further.
    pub fn next_message(
        &mut self,
        input: &mut &[u8],
    ) -> Result<Option<(Channel, Vec<u8>)>, SessionError> {
        while !input.is_empty() {
            if !self.fill_frame(input)? {
                return Ok(None);
            }
            if let Some(message) = self.take_frame()? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Returns whether the stream stands between two frames: a good place to end.
    pub fn is_between_frames(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Moves bytes of one frame from `input` to the buffer; true when the frame is whole.
    fn fill_frame(&mut self, input: &mut &[u8]) -> Result<bool, SessionError> {
        self.take(input, LENGTH_BYTES);
        let Some(head) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(false);
        };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(SessionError::FrameLength { bytes: length });
        }
        self.take(input, LENGTH_BYTES + length);
        Ok(self.buffer.len() == LENGTH_BYTES + length)
    }

    fn take(&mut self, input: &mut &[u8], until: usize) {
        let missing = until.saturating_sub(self.buffer.len()).min(input.len());
        if let Some((now, rest)) = input.split_at_checked(missing) {
            self.buffer.extend_from_slice(now);
            *input = rest;
        }
    }

    fn take_frame(&mut self) -> Result<Option<(Channel, Vec<u8>)>, SessionError> {
        let frame = std::mem::take(&mut self.buffer);
        let (flags, bytes) = match frame.get(LENGTH_BYTES..).and_then(<[u8]>::split_first) {
            Some((flags, bytes)) => (*flags, bytes),
            None => return Err(SessionError::FrameLength { bytes: 0 }),
        };
        let number = flags & !MORE;
        let channel = Channel::ALL
            .into_iter()
            .find(|c| c.number() == number)
            .ok_or(SessionError::Channel { number })?;
        let limit = self.message_bytes_max;
        let Some(message) = self.unfinished.get_mut(channel.index()) else {
            return Err(SessionError::Channel { number });
        };
        if message.len() + bytes.len() > limit {
            return Err(SessionError::MessageLength { limit });
        }
        message.extend_from_slice(bytes);
        if flags & MORE != 0 {
            return Ok(None);
        }
        Ok(Some((channel, std::mem::take(message))))
    }
}
