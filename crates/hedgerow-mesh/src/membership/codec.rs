//! Membership messages on the wire: a header, then members, as `foca` puts them together.

use foca::{Codec, Header, Member as FocaMember, Message, State};
use hedgerow_model::id::DeviceId;
use minicbor::encode::{self, Write};
use minicbor::{Decoder, Encoder};

use super::Member;

/// Most bytes of one header or member.
const PART_BYTES_MAX: usize = 160;

/// CBOR for `foca`.
pub(super) struct CborCodec;

/// Why bytes are no part of a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// Not CBOR of this shape.
    #[error("malformed membership message")]
    Malformed,
    /// No room for another one.
    #[error("no room")]
    Full,
}

impl From<minicbor::decode::Error> for CodecError {
    fn from(_: minicbor::decode::Error) -> Self {
        Self::Malformed
    }
}

fn member(d: &mut Decoder<'_>) -> Result<Member, CodecError> {
    let device: DeviceId = d.decode()?;
    let boot = d.u64()?;
    Ok(Member { device, boot })
}

fn write_member<W: Write>(
    e: &mut Encoder<W>,
    member: &Member,
) -> Result<(), encode::Error<W::Error>> {
    e.encode(member.device)?.u64(member.boot)?.ok()
}

fn elements(d: &mut Decoder<'_>) -> Result<u64, CodecError> {
    d.array()?.ok_or(CodecError::Malformed)
}

/// `[number, source, boot, incarnation, destination, boot, ? third, ? boot, ? probe]`
fn read_header(d: &mut Decoder<'_>) -> Result<Header<Member>, CodecError> {
    let count = elements(d)?;
    let number = d.u8()?;
    let src = member(d)?;
    let src_incarnation = d.u16()?;
    let dst = member(d)?;
    let message = match (number, count) {
        (1, 7) => Message::Ping(d.u8()?),
        (2, 7) => Message::Ack(d.u8()?),
        (3, 9) => Message::PingReq {
            target: member(d)?,
            probe_number: d.u8()?,
        },
        (4, 9) => Message::IndirectPing {
            origin: member(d)?,
            probe_number: d.u8()?,
        },
        (5, 9) => Message::IndirectAck {
            target: member(d)?,
            probe_number: d.u8()?,
        },
        (6, 9) => Message::ForwardedAck {
            origin: member(d)?,
            probe_number: d.u8()?,
        },
        (7, 6) => Message::Announce,
        (8, 6) => Message::Feed,
        (9, 6) => Message::Gossip,
        (10, 6) => Message::TurnUndead,
        _ => return Err(CodecError::Malformed),
    };
    Ok(Header {
        src,
        src_incarnation,
        dst,
        message,
    })
}

fn write_header<W: Write>(
    e: &mut Encoder<W>,
    header: &Header<Member>,
) -> Result<(), encode::Error<W::Error>> {
    let (number, third, probe) = match &header.message {
        Message::Ping(probe) => (1, None, Some(*probe)),
        Message::Ack(probe) => (2, None, Some(*probe)),
        Message::PingReq {
            target,
            probe_number,
        } => (3, Some(*target), Some(*probe_number)),
        Message::IndirectPing {
            origin,
            probe_number,
        } => (4, Some(*origin), Some(*probe_number)),
        Message::IndirectAck {
            target,
            probe_number,
        } => (5, Some(*target), Some(*probe_number)),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => (6, Some(*origin), Some(*probe_number)),
        Message::Announce => (7, None, None),
        Message::Feed => (8, None, None),
        // Items have a protocol of their own; nothing is broadcast here.
        Message::Gossip | Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    };
    let count = 6 + 2 * u64::from(third.is_some()) + u64::from(probe.is_some());
    e.array(count)?.u8(number)?;
    write_member(e, &header.src)?;
    e.u16(header.src_incarnation)?;
    write_member(e, &header.dst)?;
    if let Some(third) = third {
        write_member(e, &third)?;
    }
    if let Some(probe) = probe {
        e.u8(probe)?;
    }
    Ok(())
}

/// `[device, boot, incarnation, state]`
fn read_update(d: &mut Decoder<'_>) -> Result<FocaMember<Member>, CodecError> {
    if elements(d)? != 4 {
        return Err(CodecError::Malformed);
    }
    let id = member(d)?;
    let incarnation = d.u16()?;
    let state = match d.u8()? {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        _ => return Err(CodecError::Malformed),
    };
    Ok(FocaMember::new(id, incarnation, state))
}

fn write_update<W: Write>(
    e: &mut Encoder<W>,
    update: &FocaMember<Member>,
) -> Result<(), encode::Error<W::Error>> {
    e.array(4)?;
    write_member(e, update.id())?;
    e.u16(update.incarnation())?;
    let state = match update.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    };
    e.u8(state)?.ok()
}

/// Reads the header at the front of a content.
pub(crate) fn header(content: &[u8]) -> Result<Header<Member>, CodecError> {
    read_header(&mut Decoder::new(content))
}

/// Returns what follows the header.
pub(crate) fn body(content: &[u8]) -> &[u8] {
    let mut d = Decoder::new(content);
    match read_header(&mut d) {
        Ok(_) => content.get(d.position()..).unwrap_or_default(),
        Err(_) => &[],
    }
}

/// Reads a whole content as `foca` will, and returns the devices that it speaks of.
///
/// # Errors
///
/// [`crate::MalformedContent`] for anything but a header and the members it counts.
pub fn devices(content: &[u8]) -> Result<Vec<DeviceId>, crate::MalformedContent> {
    let malformed = |_e: CodecError| crate::MalformedContent;
    header(content).map_err(malformed)?;
    let Some((count, rest)) = body(content).split_first_chunk::<2>() else {
        return Ok(Vec::new());
    };
    let count = usize::from(u16::from_be_bytes(*count));
    let mut d = Decoder::new(rest);
    // Each takes bytes, so the content's length bounds how many are read.
    (0..count)
        .map(|_| {
            read_update(&mut d)
                .map(|m| m.id().device)
                .map_err(malformed)
        })
        .collect()
}

/// Reads one part from the front of a buffer and moves on behind it.
fn read<T>(
    mut buf: impl bytes::Buf,
    read: impl FnOnce(&mut Decoder<'_>) -> Result<T, CodecError>,
) -> Result<T, CodecError> {
    let chunk = buf.chunk();
    let mut d = Decoder::new(chunk.get(..PART_BYTES_MAX).unwrap_or(chunk));
    let value = read(&mut d)?;
    let used = d.position();
    buf.advance(used);
    Ok(value)
}

/// Writes one part when it fits, and nothing otherwise.
fn write(mut buf: impl bytes::BufMut, part: &[u8]) -> Result<(), CodecError> {
    if buf.remaining_mut() < part.len() {
        return Err(CodecError::Full);
    }
    buf.put_slice(part);
    Ok(())
}

fn encoded(
    part: impl FnOnce(
        &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), encode::Error<core::convert::Infallible>>,
) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    part(&mut Encoder::new(&mut out)).map_err(|_e| CodecError::Malformed)?;
    Ok(out)
}

impl Codec<Member> for CborCodec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Member>,
        buf: impl bytes::BufMut,
    ) -> Result<(), CodecError> {
        write(buf, &encoded(|e| write_header(e, header))?)
    }

    fn decode_header(&mut self, buf: impl bytes::Buf) -> Result<Header<Member>, CodecError> {
        read(buf, read_header)
    }

    fn encode_member(
        &mut self,
        member: &FocaMember<Member>,
        buf: impl bytes::BufMut,
    ) -> Result<(), CodecError> {
        write(buf, &encoded(|e| write_update(e, member))?)
    }

    fn decode_member(&mut self, buf: impl bytes::Buf) -> Result<FocaMember<Member>, CodecError> {
        read(buf, read_update)
    }
}
