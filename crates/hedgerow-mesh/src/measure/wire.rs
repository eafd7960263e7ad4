//! Messages about measuring: deterministic arrays, the number first; what follows the last known element
//! is ignored.

use minicbor::Encoder;

use crate::content::{MalformedContent, Reader};

/// The peer consents.
pub(super) const GRANTED: u8 = 0;
/// Its configuration does not allow it.
pub(super) const DENIED: u8 = 1;
/// Another measurement is under way there.
pub(super) const BUSY: u8 = 2;
/// Bytes of filling in one message of data, so that it fits any path.
pub(super) const FILLING_BYTES: usize = 1150;

/// What agents say to each other about measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Answer this.
    Ping {
        /// Random.
        token: u64,
    },
    /// The answer.
    Pong {
        /// As asked.
        token: u64,
        /// Whether the question came through a relay.
        is_relayed: bool,
    },
    /// May throughput be measured, so long each way, so many bytes altogether?
    Ask {
        /// Names the measurement.
        token: u64,
        /// Each way.
        seconds: u32,
        /// Both ways.
        bytes: u64,
    },
    /// The answer to that.
    Verdict {
        /// As asked.
        token: u64,
        /// 0 for yes, 1 for not allowed, 2 for busy.
        verdict: u8,
    },
    /// Filling.
    Data {
        /// Of which measurement.
        token: u64,
        /// Counts from zero.
        number: u32,
    },
    /// What arrived.
    Ack {
        /// Of which measurement.
        token: u64,
        /// One more than the highest number that came.
        next: u32,
        /// How many came.
        received: u32,
    },
    /// Now the other sends.
    Turn {
        /// Of which measurement.
        token: u64,
    },
    /// The other has sent all, so many messages.
    End {
        /// Of which measurement.
        token: u64,
        /// How many were sent.
        sent: u32,
    },
}

impl Message {
    /// Writes it.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        // Writing to a Vec does not fail.
        let _written = self.write(&mut Encoder::new(&mut out));
        out
    }

    fn write(
        self,
        e: &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        match self {
            Self::Ping { token } => e.array(2)?.u8(0)?.u64(token)?,
            Self::Pong { token, is_relayed } => e.array(3)?.u8(1)?.u64(token)?.bool(is_relayed)?,
            Self::Ask {
                token,
                seconds,
                bytes,
            } => e.array(4)?.u8(2)?.u64(token)?.u32(seconds)?.u64(bytes)?,
            Self::Verdict { token, verdict } => e.array(3)?.u8(3)?.u64(token)?.u8(verdict)?,
            Self::Data { token, number } => {
                let filling = [0x5a; FILLING_BYTES];
                e.array(4)?
                    .u8(4)?
                    .u64(token)?
                    .u32(number)?
                    .bytes(&filling)?
            }
            Self::Ack {
                token,
                next,
                received,
            } => e.array(4)?.u8(5)?.u64(token)?.u32(next)?.u32(received)?,
            Self::Turn { token } => e.array(2)?.u8(6)?.u64(token)?,
            Self::End { token, sent } => e.array(3)?.u8(7)?.u64(token)?.u32(sent)?,
        };
        Ok(())
    }

    /// Reads one. Elements appended by a later version are ignored.
    ///
    /// # Errors
    ///
    /// For anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedContent> {
        let (number, mut r) = Reader::open(bytes)?;
        let token = r.value()?;
        let message = match number {
            0 => Self::Ping { token },
            1 => Self::Pong {
                token,
                is_relayed: r.value()?,
            },
            2 => Self::Ask {
                token,
                seconds: r.value()?,
                bytes: r.value()?,
            },
            3 => Self::Verdict {
                token,
                verdict: r.value()?,
            },
            4 => Self::Data {
                token,
                number: r.value()?,
            },
            5 => Self::Ack {
                token,
                next: r.value()?,
                received: r.value()?,
            },
            6 => Self::Turn { token },
            7 => Self::End {
                token,
                sent: r.value()?,
            },
            _ => return Err(MalformedContent),
        };
        r.close()?;
        Ok(message)
    }
}
