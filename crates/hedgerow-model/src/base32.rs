//! Base32 (RFC 4648 §6 alphabet, lower case, no padding): the spelling of device ids and fingerprints.

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Returns `bytes` as lower-case base32 without padding.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut acc, mut bits) = (0u32, 0u32);
    for &byte in bytes {
        acc = (acc << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(letter(acc >> bits));
        }
    }
    if bits > 0 {
        out.push(letter(acc << (5 - bits)));
    }
    out
}

fn letter(value: u32) -> char {
    ALPHABET
        .get((value & 31) as usize)
        .map_or('a', |&b| char::from(b))
}

/// Returns the `N` bytes that `text` spells, or `None` when it is not exactly their spelling:
/// wrong length, another alphabet, or non-zero spare bits.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut out = [0u8; N];
    let mut slots = out.iter_mut();
    let (mut acc, mut bits) = (0u32, 0u32);
    for byte in text.bytes() {
        let value = ALPHABET.iter().position(|&b| b == byte)?;
        acc = ((acc << 5) | u32::try_from(value).ok()?) & 0xffff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            *slots.next()? = u8::try_from((acc >> bits) & 0xff).ok()?;
        }
    }
    (acc & ((1 << bits) - 1) == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_4648_vectors_hold_in_lower_case() {
        assert_eq!(encode(b"foobar"), "mzxw6ytboi");
        assert_eq!(decode::<6>("mzxw6ytboi"), Some(*b"foobar"));
    }

    #[test]
    fn only_the_one_spelling_is_accepted() {
        assert_eq!(encode(&[0xff; 16]).len(), 26);
        assert_eq!(decode::<16>(&encode(&[0xff; 16])), Some([0xff; 16]));
        let mut loose = encode(&[0; 16]);
        loose.replace_range(25.., "b");
        assert_eq!(decode::<16>(&loose), None, "spare bits must be zero");
        assert_eq!(decode::<16>("A"), None);
    }
}
