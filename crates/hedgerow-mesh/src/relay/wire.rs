//! What devices and relays say to each other; see `docs/spec/relay.md`.

use hedgerow_model::id::DeviceId;
use hedgerow_model::path::RelaySession;
use minicbor::Encoder;

use crate::content::{MalformedContent, Reader};

/// Most sessions in one message; a longer list is refused.
pub const SESSIONS_PER_MESSAGE_MAX: usize = 128;

const OPEN: u8 = 0;
const OPENED: u8 = 1;
const CONNECT: u8 = 2;
const CONNECTED: u8 = 3;
const INCOMING: u8 = 4;
const CLOSE: u8 = 5;
const KEEP: u8 = 6;

/// A message about relaying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayMessage {
    /// Device to relay: others may reach me through you. Said again while that holds; keeps these
    /// sessions too.
    Open {
        /// Pairs the answer with the question.
        number: u32,
        /// Sessions still in use, by the sender's numbers.
        sessions: Vec<RelaySession>,
    },
    /// Relay to device: the answer to [`Self::Open`].
    Opened {
        /// As in the question.
        number: u32,
        /// Whether it is so.
        verdict: Verdict,
    },
    /// Device to relay: join me with another device.
    Connect(Connect),
    /// Relay to device: the answer to [`Self::Connect`].
    Connected {
        /// As in the question.
        number: u32,
        /// Whether it is so.
        verdict: Verdict,
        /// The session, by the asker's number; nothing when refused.
        session: Option<RelaySession>,
    },
    /// Relay to device: somebody was joined with you.
    Incoming {
        /// The session, by the receiver's number.
        session: RelaySession,
        /// Who is said to be at the other end.
        from: DeviceId,
    },
    /// Either way: this session is over, by the receiver's number from a relay, by the sender's to one.
    Close {
        /// Which.
        session: RelaySession,
    },
    /// Device to relay: these sessions are in use.
    Keep {
        /// By the sender's numbers.
        sessions: Vec<RelaySession>,
    },
}

/// A wish to be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect {
    /// Pairs the answer with the question.
    pub number: u32,
    /// With whom.
    pub destination: DeviceId,
    /// Another relay that the destination is said to be registered with.
    pub through: Option<DeviceId>,
    /// Who wants it, when a relay asks for another device: that is the second hop.
    pub origin: Option<DeviceId>,
}

/// What a relay says to a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is done.
    Done,
    /// The destination is not registered here.
    NotRegistered,
    /// A table is full.
    Full,
    /// Too many relays in between.
    TooFar,
    /// Too often.
    TooOften,
    /// This device is no relay.
    NoRelay,
}

impl Verdict {
    /// Every verdict, in the order of its number.
    pub const ALL: [Self; 6] = [
        Self::Done,
        Self::NotRegistered,
        Self::Full,
        Self::TooFar,
        Self::TooOften,
        Self::NoRelay,
    ];

    /// Returns the stable spelling, for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NotRegistered => "not_registered",
            Self::Full => "full",
            Self::TooFar => "too_far",
            Self::TooOften => "too_often",
            Self::NoRelay => "no_relay",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NotRegistered => 1,
            Self::Full => 2,
            Self::TooFar => 3,
            Self::TooOften => 4,
            Self::NoRelay => 5,
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, MalformedContent> {
        let number: u8 = r.value()?;
        let found = Self::ALL.into_iter().find(|v| v.number() == number);
        found.ok_or(MalformedContent)
    }
}

impl RelayMessage {
    /// Encodes the content of a message of kind `Relay`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut e = Encoder::new(&mut out);
        // Writing into memory does not fail.
        drop(self.write(&mut e));
        out
    }

    fn write(
        &self,
        e: &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        match self {
            Self::Open { number, sessions } => {
                e.array(3)?.u8(OPEN)?.u32(*number)?.encode(sessions)?.ok()
            }
            Self::Opened { number, verdict } => {
                e.array(3)?.u8(OPENED)?.u32(*number)?;
                e.u8(verdict.number())?.ok()
            }
            Self::Connect(connect) => {
                e.array(5)?.u8(CONNECT)?.u32(connect.number)?;
                e.encode(connect.destination)?.encode(connect.through)?;
                e.encode(connect.origin)?.ok()
            }
            Self::Connected {
                number,
                verdict,
                session,
            } => {
                e.array(4)?.u8(CONNECTED)?.u32(*number)?;
                e.u8(verdict.number())?.encode(session)?.ok()
            }
            Self::Incoming { session, from } => {
                e.array(3)?.u8(INCOMING)?.encode(session)?;
                e.encode(from)?.ok()
            }
            Self::Close { session } => e.array(2)?.u8(CLOSE)?.encode(session)?.ok(),
            Self::Keep { sessions } => e.array(2)?.u8(KEEP)?.encode(sessions)?.ok(),
        }
    }

    /// Decodes the content of a message. Elements appended by a later version are ignored.
    ///
    /// # Errors
    ///
    /// For anything else, and for lists above their bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedContent> {
        let (number, mut r) = Reader::open(bytes)?;
        let message = match number {
            OPEN => Self::Open {
                number: r.value()?,
                sessions: r.values(SESSIONS_PER_MESSAGE_MAX)?,
            },
            OPENED => Self::Opened {
                number: r.value()?,
                verdict: Verdict::read(&mut r)?,
            },
            CONNECT => Self::Connect(Connect {
                number: r.value()?,
                destination: r.value()?,
                through: r.value()?,
                origin: r.value()?,
            }),
            CONNECTED => Self::Connected {
                number: r.value()?,
                verdict: Verdict::read(&mut r)?,
                session: r.value()?,
            },
            INCOMING => Self::Incoming {
                session: r.value()?,
                from: r.value()?,
            },
            CLOSE => Self::Close {
                session: r.value()?,
            },
            KEEP => Self::Keep {
                sessions: r.values(SESSIONS_PER_MESSAGE_MAX)?,
            },
            _ => return Err(MalformedContent),
        };
        r.close()?;
        Ok(message)
    }
}
