//! Why a session ends.

use hedgerow_model::Fault;

/// Why the connection must be closed. What both ends hold is unchanged; the next connection resumes
/// from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A frame's length is zero or beyond [`crate::frame::FRAME_BYTES_MAX`].
    #[error("frame of {bytes} bytes is out of bounds")]
    FrameLength {
        /// The length it announced.
        bytes: usize,
    },
    /// A frame names a channel that does not exist.
    #[error("frame names channel {number}")]
    Channel {
        /// The number.
        number: u8,
    },
    /// The parts of one message exceed what this end accepts at this moment.
    #[error("message of more than {limit} bytes")]
    MessageLength {
        /// The bound in force.
        limit: usize,
    },
    /// The bytes are no message.
    #[error("malformed message: {reason}")]
    Malformed {
        /// The decoder's account.
        reason: String,
    },
    /// A message came at a time when it has no meaning.
    #[error("{message} while {state}")]
    OutOfOrder {
        /// What came.
        message: &'static str,
        /// Where the session stands.
        state: &'static str,
    },
    /// The other end speaks a capability that this one does not.
    #[error("the other end speaks capability {theirs}, this one {ours}")]
    Capability {
        /// What it announced.
        theirs: u32,
        /// What this end speaks.
        ours: u32,
    },
    /// The other end takes nothing while urgent messages pile up.
    #[error("the other end takes nothing and {channel} is full")]
    Stalled {
        /// The full channel.
        channel: &'static str,
    },
}

impl SessionError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Stalled { .. } => Fault::Environment,
            Self::FrameLength { .. }
            | Self::Channel { .. }
            | Self::MessageLength { .. }
            | Self::Malformed { .. }
            | Self::OutOfOrder { .. }
            | Self::Capability { .. } => Fault::Peer,
        }
    }
}
