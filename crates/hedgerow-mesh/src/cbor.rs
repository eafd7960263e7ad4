//! What the decoders of in-tunnel messages share: bounded lists, later elements skipped.

use minicbor::{Decode, Decoder, decode};

/// Most elements of one message; a later version may append up to here.
const ELEMENTS_MAX: u64 = 16;

/// Reads the head of a message: how many elements it has.
pub(crate) fn array(d: &mut Decoder<'_>) -> Result<u64, decode::Error> {
    d.array()?
        .filter(|n| (1..=ELEMENTS_MAX).contains(n))
        .ok_or_else(|| decode::Error::message("a message is an array of 1 to 16 elements"))
}

/// Reads a list of at most `max` values.
pub(crate) fn list<'b, T: Decode<'b, ()>>(
    d: &mut Decoder<'b>,
    max: usize,
) -> Result<Vec<T>, decode::Error> {
    let length = d.array()?.and_then(|n| usize::try_from(n).ok());
    let length = length
        .filter(|n| *n <= max)
        .ok_or_else(|| decode::Error::message("a list is above its bound"))?;
    (0..length).map(|_| d.decode()).collect()
}

/// Reads bytes, at most `max`.
pub(crate) fn bytes(d: &mut Decoder<'_>, max: usize) -> Result<Vec<u8>, decode::Error> {
    let bytes = d.bytes()?;
    if bytes.len() > max {
        return Err(decode::Error::message("bytes are above their bound"));
    }
    Ok(bytes.to_vec())
}

/// Skips the elements that a later version appended, and refuses bytes after the message.
pub(crate) fn rest(d: &mut Decoder<'_>, elements: u64, read: u64) -> Result<(), decode::Error> {
    if elements < read {
        return Err(decode::Error::message("a message lacks elements"));
    }
    for _ in read..elements {
        d.skip()?;
    }
    if d.position() == d.input().len() {
        Ok(())
    } else {
        Err(decode::Error::message("bytes after the message"))
    }
}
