//! What two ends say about the paths between them; see `docs/spec/paths.md`.

use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use minicbor::Encoder;

use crate::content::{MalformedContent, Reader};

/// Most candidates in one list; a longer one is refused.
pub const CANDIDATES_MAX: usize = 16;
/// Most home relays in one list; a longer one is refused.
pub const RELAYS_MAX: usize = 4;

const PROBE: u8 = 0;
const REPLY: u8 = 1;
const CANDIDATES: u8 = 2;
const OBSERVED: u8 = 3;
const MOVED: u8 = 4;

/// A message about paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMessage {
    /// Does this path work? The answer goes back the way this came.
    Probe(Probe),
    /// It does.
    Reply(Reply),
    /// Where this end may be reached, and through which relays.
    Candidates(Candidates),
    /// From where the last probe of the other end came, as it differs from the one before.
    Observed(Underlay),
    /// The path in use is dead; the one this comes by answered this end's probe and is used from now on.
    Moved {
        /// The one in use answers probes and swallows packets.
        swallows: bool,
    },
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Grows with every probe of a session.
    pub number: u32,
    /// Unpredictable; the reply repeats it.
    pub token: u64,
    /// How long the whole message was made, in bytes; 0 when that does not matter.
    pub size: u16,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// As in the probe.
    pub number: u32,
    /// As in the probe.
    pub token: u64,
    /// As in the probe.
    pub size: u16,
    /// Where the probe came from, when no relay stood between.
    pub seen: Option<Underlay>,
}

/// A list of candidates; it replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// Grows with every list of a session; a smaller one is old.
    pub generation: u64,
    /// At most [`CANDIDATES_MAX`], the best first.
    pub addresses: Vec<Underlay>,
    /// At most [`RELAYS_MAX`], the best first.
    pub relays: Vec<DeviceId>,
}

impl PathMessage {
    /// Encodes the content of a message of kind `Path`.
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
            Self::Probe(p) => {
                e.array(4)?.u8(PROBE)?.u32(p.number)?;
                e.u64(p.token)?.u16(p.size)?.ok()
            }
            Self::Reply(r) => {
                e.array(5)?.u8(REPLY)?.u32(r.number)?;
                e.u64(r.token)?.u16(r.size)?.encode(r.seen)?.ok()
            }
            Self::Candidates(c) => {
                e.array(4)?.u8(CANDIDATES)?.u64(c.generation)?;
                e.encode(&c.addresses)?.encode(&c.relays)?.ok()
            }
            Self::Observed(address) => e.array(2)?.u8(OBSERVED)?.encode(address)?.ok(),
            Self::Moved { swallows: false } => e.array(1)?.u8(MOVED)?.ok(),
            Self::Moved { swallows: true } => e.array(2)?.u8(MOVED)?.bool(true)?.ok(),
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
            PROBE => Self::Probe(Probe {
                number: r.value()?,
                token: r.value()?,
                size: r.value()?,
            }),
            REPLY => Self::Reply(Reply {
                number: r.value()?,
                token: r.value()?,
                size: r.value()?,
                seen: r.value()?,
            }),
            CANDIDATES => Self::Candidates(Candidates {
                generation: r.value()?,
                addresses: r.values(CANDIDATES_MAX)?,
                relays: r.values(RELAYS_MAX)?,
            }),
            OBSERVED => Self::Observed(r.value()?),
            MOVED => Self::Moved {
                swallows: r.left() > 0 && r.value()?,
            },
            _ => return Err(MalformedContent),
        };
        r.close()?;
        Ok(message)
    }
}
