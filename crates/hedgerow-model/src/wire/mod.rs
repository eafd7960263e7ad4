//! Versioned encoding: deterministic CBOR, one spelling per value.

use minicbor::{Decode, Encode};

/// Why bytes are not an encoding of the wanted type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not CBOR of this type, or a bound is broken.
    #[error("cannot decode {what}: {reason}")]
    Malformed {
        /// The wanted type.
        what: &'static str,
        /// The decoder's account.
        reason: String,
    },
    /// Decodes, but the same value has another spelling: duplicate or unknown keys, indefinite
    /// lengths, trailing bytes. Signed things have one spelling only.
    #[error("{what} is not in its canonical encoding")]
    NotCanonical {
        /// The wanted type.
        what: &'static str,
    },
}

/// Encodes `value`. Cannot fail: memory is the only writer.
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    match minicbor::encode(value, &mut out) {
        Ok(()) => out,
        Err(_) => Vec::new(),
    }
}

/// Decodes a value that has exactly one spelling: decodes, encodes again and compares.
///
/// # Errors
///
/// [`WireError::Malformed`] and [`WireError::NotCanonical`]; nothing is partly decoded.
pub fn decode_canonical<'b, T: Decode<'b, ()> + Encode<()>>(
    what: &'static str,
    bytes: &'b [u8],
) -> Result<T, WireError> {
    let value: T = minicbor::decode(bytes).map_err(|e| WireError::Malformed {
        what,
        reason: e.to_string(),
    })?;
    if encode(&value) == bytes {
        Ok(value)
    } else {
        Err(WireError::NotCanonical { what })
    }
}
