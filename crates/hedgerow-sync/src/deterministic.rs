//! Refuses CBOR with more than one reading: indefinite lengths, repeated keys, trailing bytes.

use std::cmp::Ordering;

use minicbor::Decoder;
use minicbor::data::Type;

/// Deepest nesting of arrays and maps.
const DEPTH_MAX: u32 = 12;

/// Walks `bytes` once, without building anything.
pub(crate) fn check(bytes: &[u8]) -> Result<(), &'static str> {
    let mut decoder = Decoder::new(bytes);
    item(&mut decoder, 0)?;
    if decoder.position() == bytes.len() {
        Ok(())
    } else {
        Err("bytes after the end")
    }
}

fn item(d: &mut Decoder<'_>, depth: u32) -> Result<(), &'static str> {
    let bad = |_: minicbor::decode::Error| "not CBOR";
    if depth > DEPTH_MAX {
        return Err("nested too deep");
    }
    match d.datatype().map_err(bad)? {
        Type::Array => {
            let n = d.array().map_err(bad)?.ok_or("indefinite length")?;
            (0..n).try_for_each(|_| item(d, depth + 1))
        }
        Type::Map => map(d, depth),
        Type::BytesIndef | Type::StringIndef | Type::ArrayIndef | Type::MapIndef | Type::Break => {
            Err("indefinite length")
        }
        Type::Tag | Type::Undefined | Type::Simple | Type::Unknown(_) => Err("unknown type"),
        Type::F16 | Type::F32 | Type::F64 => Err("no message holds a fraction"),
        Type::Bool
        | Type::Null
        | Type::U8
        | Type::U16
        | Type::U32
        | Type::U64
        | Type::I8
        | Type::I16
        | Type::I32
        | Type::I64
        | Type::Int
        | Type::Bytes
        | Type::String => d.skip().map_err(bad),
    }
}

fn map(d: &mut Decoder<'_>, depth: u32) -> Result<(), &'static str> {
    let bad = |_: minicbor::decode::Error| "not CBOR";
    let n = d.map().map_err(bad)?.ok_or("indefinite length")?;
    let mut last: Option<Key<'_>> = None;
    for _ in 0..n {
        let key = if d.datatype().map_err(bad)? == Type::String {
            Key::Text(d.str().map_err(bad)?)
        } else {
            Key::Number(
                d.u64()
                    .map_err(|_e| "a key is neither a number nor a text")?,
            )
        };
        if last.is_some_and(|last| last.compare(&key) != Some(Ordering::Less)) {
            return Err("keys repeat or are out of order");
        }
        last = Some(key);
        item(d, depth + 1)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Key<'b> {
    Number(u64),
    Text(&'b str),
}

impl Key<'_> {
    /// Keys of one map are of one type, or the map is refused.
    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Number(_), Self::Text(_)) | (Self::Text(_), Self::Number(_)) => None,
        }
    }
}
