//! Contents of messages inside the tunnel: one CBOR array, the message's number first.
//!
//! Elements that a later version appends are skipped; everything else has one meaning and a bound.

use minicbor::data::Type;
use minicbor::{Decode, Decoder};

/// Most elements of one content, those of later versions included.
const ELEMENTS_MAX: u64 = 64;

/// Not a content of ours; nothing of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this kind")]
pub struct MalformedContent;

impl From<minicbor::decode::Error> for MalformedContent {
    fn from(_: minicbor::decode::Error) -> Self {
        Self
    }
}

/// Reads the elements of one content in their order.
pub(crate) struct Reader<'b> {
    decoder: Decoder<'b>,
    left: u64,
    bytes: usize,
}

impl<'b> Reader<'b> {
    /// Opens the array and returns the message's number.
    pub(crate) fn open(bytes: &'b [u8]) -> Result<(u8, Self), MalformedContent> {
        let mut decoder = Decoder::new(bytes);
        let left = decoder.array()?.ok_or(MalformedContent)?;
        if left == 0 || left > ELEMENTS_MAX {
            return Err(MalformedContent);
        }
        let mut reader = Self {
            decoder,
            left,
            bytes: bytes.len(),
        };
        let number = reader.element()?.u8()?;
        Ok((number, reader))
    }

    /// Returns the decoder, standing before the next element of the array.
    pub(crate) fn element(&mut self) -> Result<&mut Decoder<'b>, MalformedContent> {
        self.left = self.left.checked_sub(1).ok_or(MalformedContent)?;
        Ok(&mut self.decoder)
    }

    /// Reads a byte string of one length.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<&'b [u8; N], MalformedContent> {
        let bytes = self.element()?.bytes()?;
        bytes.try_into().map_err(|_e| MalformedContent)
    }

    /// Reads a byte string of at most `max` bytes.
    pub(crate) fn slice(&mut self, max: usize) -> Result<&'b [u8], MalformedContent> {
        let bytes = self.element()?.bytes()?;
        (bytes.len() <= max)
            .then_some(bytes)
            .ok_or(MalformedContent)
    }

    /// Returns how many elements follow.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Reads one value.
    pub(crate) fn value<T: Decode<'b, ()>>(&mut self) -> Result<T, MalformedContent> {
        Ok(self.element()?.decode()?)
    }

    /// Reads a list of at most `max` values.
    pub(crate) fn values<T: Decode<'b, ()>>(
        &mut self,
        max: usize,
    ) -> Result<Vec<T>, MalformedContent> {
        self.list(max, |d| Ok(d.decode()?))
    }

    /// Reads a list of at most `max` things.
    pub(crate) fn list<T>(
        &mut self,
        max: usize,
        mut read: impl FnMut(&mut Decoder<'b>) -> Result<T, MalformedContent>,
    ) -> Result<Vec<T>, MalformedContent> {
        let decoder = self.element()?;
        let count = decoder.array()?.ok_or(MalformedContent)?;
        let count = usize::try_from(count).map_err(|_e| MalformedContent)?;
        if count > max {
            return Err(MalformedContent);
        }
        (0..count).map(|_| read(decoder)).collect()
    }

    /// Skips what a later version appended, and refuses bytes after the array.
    pub(crate) fn close(mut self) -> Result<(), MalformedContent> {
        for _ in 0..self.left {
            skip(&mut self.decoder)?;
        }
        let at_end = self.decoder.position() == self.bytes;
        at_end.then_some(()).ok_or(MalformedContent)
    }
}

/// Skips one element. One of indefinite length is refused: nothing of ours has any.
fn skip(decoder: &mut Decoder<'_>) -> Result<(), MalformedContent> {
    let kind = decoder.datatype()?;
    let is_indefinite = matches!(
        kind,
        Type::ArrayIndef | Type::MapIndef | Type::BytesIndef | Type::StringIndef
    );
    if is_indefinite {
        return Err(MalformedContent);
    }
    Ok(decoder.skip()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_elements_are_skipped_and_trailing_bytes_are_not() {
        let content = [0x84, 0x07, 0x41, 0xaa, 0x05, 0x82, 0x01, 0x02];
        let (number, mut reader) = Reader::open(&content).unwrap();
        assert_eq!((number, reader.array::<1>().unwrap()), (7, &[0xaa]));
        reader.close().unwrap();
        let mut longer = content.to_vec();
        longer.push(0);
        let (_, reader) = Reader::open(&longer).unwrap();
        assert!(reader.close().is_err());
        assert!(Reader::open(&[0x9f, 0x01, 0xff]).is_err(), "indefinite");
        assert!(Reader::open(&[0x80]).is_err(), "without a number");
        assert!(Reader::open(&[0x98, 0xff, 0x01]).is_err(), "too many");
    }
}
