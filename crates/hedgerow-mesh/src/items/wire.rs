//! The messages of the items protocol; see `docs/spec/gossip.md`.

use hedgerow_model::id::{Digest, Revision};
use minicbor::encode::{self, Write};
use minicbor::{Decoder, Encoder};

use super::kind::{ItemKey, ItemKind};
use crate::content::{MalformedContent, Reader};

/// Most entries in one announcement.
pub(super) const ENTRIES_MAX: usize = 8;
/// Most marks in one message.
pub(super) const MARKS_MAX: usize = 20;
/// Most bytes in one piece of an item.
pub(super) const PIECE_BYTES_MAX: usize = 1100;
/// Most pieces that one pull asks for.
pub(super) const PIECES_MAX: u32 = 16;

const ANNOUNCE: u8 = 1;
const HAVE: u8 = 2;
const PULL: u8 = 3;
const PIECE: u8 = 4;
const DIGEST: u8 = 5;
const WANT: u8 = 6;
const GONE: u8 = 7;

/// An item that can be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub key: ItemKey,
    /// Its version.
    pub version: Revision,
    /// SHA-256 of its bytes.
    pub hash: Digest,
    /// How many bytes.
    pub size: u32,
}

/// A version that somebody has; zero when he has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Of which item.
    pub key: ItemKey,
    /// The version.
    pub version: Revision,
    /// First bytes of its hash.
    pub tag: [u8; 8],
}

/// A range of subjects, both ends included.
pub type Range = (super::kind::Subject, super::kind::Subject);

/// A message about items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'b> {
    /// These can be pulled from the sender.
    Announce(Vec<Entry>),
    /// The sender has these, or is getting them: they need not be said again.
    Have(Vec<Mark>),
    /// Send pieces of an item.
    Pull {
        /// Which.
        hash: Digest,
        /// From which byte on.
        offset: u32,
        /// How many, at most.
        pieces: u32,
    },
    /// A piece of an item.
    Piece {
        /// Of which.
        hash: Digest,
        /// Where it begins.
        offset: u32,
        /// The bytes.
        bytes: &'b [u8],
    },
    /// What the sender has: all of the trust domain's items, and the records of a range of devices.
    Digest {
        /// Versions.
        marks: Vec<Mark>,
        /// Of which devices all records stand in `marks`.
        range: Range,
    },
    /// Announce what is newer than these.
    Want(Vec<Mark>),
    /// The sender does not have it any more.
    Gone(Digest),
}

fn key(d: &mut Decoder<'_>) -> Result<ItemKey, MalformedContent> {
    let kind = ItemKind::of_number(d.u8()?).ok_or(MalformedContent)?;
    let subject = match d.bytes()? {
        [] => [0; 16],
        bytes => bytes.try_into().map_err(|_e| MalformedContent)?,
    };
    ItemKey::new(kind, subject).ok_or(MalformedContent)
}

fn fields(d: &mut Decoder<'_>, count: u64) -> Result<(), MalformedContent> {
    (d.array()? == Some(count))
        .then_some(())
        .ok_or(MalformedContent)
}

fn entry(d: &mut Decoder<'_>) -> Result<Entry, MalformedContent> {
    fields(d, 5)?;
    Ok(Entry {
        key: key(d)?,
        version: d.decode()?,
        hash: d.decode()?,
        size: d.u32()?,
    })
}

fn mark(d: &mut Decoder<'_>) -> Result<Mark, MalformedContent> {
    fields(d, 4)?;
    Ok(Mark {
        key: key(d)?,
        version: d.decode()?,
        tag: d.bytes()?.try_into().map_err(|_e| MalformedContent)?,
    })
}

impl<'b> Message<'b> {
    /// Reads a message's content.
    ///
    /// # Errors
    ///
    /// [`MalformedContent`] for anything else, and for what is above a bound.
    pub fn decode(bytes: &'b [u8]) -> Result<Self, MalformedContent> {
        let (number, mut reader) = Reader::open(bytes)?;
        let hash = |reader: &mut Reader<'b>| reader.array().map(|bytes| Digest(*bytes));
        let message = match number {
            ANNOUNCE => Self::Announce(reader.list(ENTRIES_MAX, entry)?),
            HAVE => Self::Have(reader.list(MARKS_MAX, mark)?),
            PULL => Self::Pull {
                hash: hash(&mut reader)?,
                offset: reader.value()?,
                pieces: reader.value::<u32>()?.min(PIECES_MAX),
            },
            PIECE => Self::Piece {
                hash: hash(&mut reader)?,
                offset: reader.value()?,
                bytes: reader.slice(PIECE_BYTES_MAX)?,
            },
            DIGEST => Self::Digest {
                marks: reader.list(MARKS_MAX, mark)?,
                range: (*reader.array()?, *reader.array()?),
            },
            WANT => Self::Want(reader.list(MARKS_MAX, mark)?),
            GONE => Self::Gone(hash(&mut reader)?),
            _ => return Err(MalformedContent),
        };
        reader.close()?;
        Ok(message)
    }

    /// Writes a message's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.write(&mut Encoder::new(&mut out)) {
            Ok(()) => out,
            // Memory takes everything.
            Err(_) => Vec::new(),
        }
    }

    fn write<W: Write>(&self, e: &mut Encoder<W>) -> Result<(), encode::Error<W::Error>> {
        match self {
            Self::Announce(entries) => {
                e.array(2)?.u8(ANNOUNCE)?.array(length(entries))?;
                entries.iter().try_for_each(|entry| {
                    e.array(5)?;
                    write_key(e, entry.key)?;
                    e.encode(entry.version)?.encode(entry.hash)?;
                    e.u32(entry.size)?.ok()
                })
            }
            Self::Have(marks) => {
                e.array(2)?.u8(HAVE)?;
                write_marks(e, marks)
            }
            Self::Pull {
                hash,
                offset,
                pieces,
            } => {
                e.array(4)?.u8(PULL)?.bytes(&hash.0)?;
                e.u32(*offset)?.u32(*pieces)?.ok()
            }
            Self::Piece {
                hash,
                offset,
                bytes,
            } => {
                e.array(4)?.u8(PIECE)?.bytes(&hash.0)?;
                e.u32(*offset)?.bytes(bytes)?.ok()
            }
            Self::Digest { marks, range } => {
                e.array(4)?.u8(DIGEST)?;
                write_marks(e, marks)?;
                e.bytes(&range.0)?.bytes(&range.1)?.ok()
            }
            Self::Want(marks) => {
                e.array(2)?.u8(WANT)?;
                write_marks(e, marks)
            }
            Self::Gone(hash) => e.array(2)?.u8(GONE)?.bytes(&hash.0)?.ok(),
        }
    }
}

fn length<T>(list: &[T]) -> u64 {
    u64::try_from(list.len()).unwrap_or(u64::MAX)
}

fn write_key<W: Write>(e: &mut Encoder<W>, key: ItemKey) -> Result<(), encode::Error<W::Error>> {
    e.u8(key.kind().number())?;
    let subject = key.subject();
    e.bytes(subject.as_ref().map_or(&[], |s| s.0.as_slice()))?
        .ok()
}

fn write_marks<W: Write>(
    e: &mut Encoder<W>,
    marks: &[Mark],
) -> Result<(), encode::Error<W::Error>> {
    e.array(length(marks))?;
    marks.iter().try_for_each(|mark| {
        e.array(4)?;
        write_key(e, mark.key)?;
        e.encode(mark.version)?.bytes(&mark.tag)?.ok()
    })
}

#[cfg(test)]
mod tests {
    use hedgerow_model::id::DeviceId;
    use hedgerow_model::message::MESSAGE_BYTES_MAX;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_of_each_fits_and_reads_back() {
        let key = ItemKey::of_device(DeviceId([0xee; 16]));
        let version = Revision {
            timeline: u64::MAX,
            number: u64::MAX,
        };
        let hash = Digest([3; 32]);
        let entry = Entry {
            key,
            version,
            hash,
            size: u32::MAX,
        };
        let mark = Mark {
            key,
            version,
            tag: [4; 8],
        };
        let all = [
            Message::Announce(vec![entry; ENTRIES_MAX]),
            Message::Have(vec![mark; MARKS_MAX]),
            Message::Pull {
                hash,
                offset: u32::MAX,
                pieces: PIECES_MAX,
            },
            Message::Piece {
                hash,
                offset: u32::MAX,
                bytes: &[7; PIECE_BYTES_MAX],
            },
            Message::Digest {
                marks: vec![mark; MARKS_MAX],
                range: ([0; 16], [0xff; 16]),
            },
            Message::Want(vec![mark; MARKS_MAX]),
            Message::Gone(hash),
        ];
        for message in all {
            let bytes = message.encode();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{} bytes", bytes.len());
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
        let more = Message::Announce(vec![entry; ENTRIES_MAX + 1]).encode();
        assert!(Message::decode(&more).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            if let Ok(message) = Message::decode(&bytes) {
                let again = message.encode();
                prop_assert_eq!(Message::decode(&again), Ok(message));
            }
        }
    }
}
