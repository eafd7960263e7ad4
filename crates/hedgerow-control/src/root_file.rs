//! The root key's file: PKCS#8 encrypted by a passphrase (PBES2, RFC 8018), readable by any tool.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// PBKDF2-HMAC-SHA256 rounds (OWASP's recommendation of 2023).
const ROUNDS: u32 = 600_000;
/// Most rounds that a file may ask for.
const ROUNDS_MAX: u32 = 10_000_000;
const LABEL: &str = "ENCRYPTED PRIVATE KEY";

const OID_PBES2: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d,
];
const OID_PBKDF2: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c,
];
const PRF_HMAC_SHA256: &[u8] = &[
    0x30, 0x0c, 0x06, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09, 0x05, 0x00,
];
const OID_AES_256_CBC: &[u8] = &[
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a,
];

/// Why a root key file cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RootFileError {
    /// Not a file of this kind.
    #[error("it is not an encrypted private key in PEM (PBES2, PBKDF2-SHA256, AES-256-CBC)")]
    Malformed,
    /// Another passphrase, or damage.
    #[error("the passphrase does not open it")]
    Passphrase,
}

/// Encrypts a PKCS#8 key.
pub(crate) fn seal(
    pkcs8: &[u8],
    passphrase: &str,
    salt: [u8; 16],
    iv: [u8; 16],
) -> Result<String, RootFileError> {
    let key = derive(passphrase, &salt, ROUNDS)?;
    let key = UnboundCipherKey::new(&AES_256, key.as_slice())
        .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
        .map_err(|_e| RootFileError::Malformed)?;
    let mut body = pkcs8.to_vec();
    let context = aws_lc_rs::cipher::EncryptionContext::Iv128(FixedLength::from(iv));
    key.less_safe_encrypt(&mut body, context)
        .map_err(|_e| RootFileError::Malformed)?;
    let kdf = sequence(&[
        OID_PBKDF2,
        &sequence(&[
            &tlv(0x04, &salt),
            &tlv(0x02, &integer(ROUNDS)),
            PRF_HMAC_SHA256,
        ]),
    ]);
    let cipher = sequence(&[OID_AES_256_CBC, &tlv(0x04, &iv)]);
    let algorithm = sequence(&[OID_PBES2, &sequence(&[&kdf, &cipher])]);
    let der = sequence(&[&algorithm, &tlv(0x04, &body)]);
    Ok(pem(LABEL, &der))
}

/// Decrypts a PKCS#8 key.
pub(crate) fn open(text: &str, passphrase: &str) -> Result<Zeroizing<Vec<u8>>, RootFileError> {
    let bad = || RootFileError::Malformed;
    let der = unpem(LABEL, text).ok_or_else(bad)?;
    let (salt, rounds, iv, body) = parse(&der).ok_or_else(bad)?;
    let key = derive(passphrase, salt, rounds)?;
    let key = UnboundCipherKey::new(&AES_256, key.as_slice())
        .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
        .map_err(|_e| RootFileError::Malformed)?;
    let mut plain = Zeroizing::new(body.to_vec());
    let context = DecryptionContext::Iv128(FixedLength::from(iv));
    let length = key
        .decrypt(&mut plain, context)
        .map_err(|_e| RootFileError::Passphrase)?
        .len();
    plain.truncate(length);
    Ok(plain)
}

/// Writes DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&b| char::from(b)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Reads the first PEM block of that label.
pub(crate) fn unpem(label: &str, text: &str) -> Option<Vec<u8>> {
    unpem_all(label, text).into_iter().next()
}

/// Reads every PEM block of that label.
pub(crate) fn unpem_all(label: &str, text: &str) -> Vec<Vec<u8>> {
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(&begin) {
        let Some((body, after)) = after.split_once(&end) else {
            break;
        };
        let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        if let Ok(der) = STANDARD.decode(body) {
            out.push(der);
        }
        rest = after;
    }
    out
}

fn derive(
    passphrase: &str,
    salt: &[u8],
    rounds: u32,
) -> Result<Zeroizing<[u8; 32]>, RootFileError> {
    let rounds = NonZeroU32::new(rounds)
        .filter(|n| n.get() <= ROUNDS_MAX)
        .ok_or(RootFileError::Malformed)?;
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        salt,
        passphrase.as_bytes(),
        key.as_mut_slice(),
    );
    Ok(key)
}

type Parts<'a> = (&'a [u8], u32, &'a [u8; 16], &'a [u8]);

fn parse(der: &[u8]) -> Option<Parts<'_>> {
    let (outer, rest) = read(der, 0x30)?;
    let (algorithm, tail) = read(outer, 0x30)?;
    let (body, end) = read(tail, 0x04)?;
    let (parameters, none) = read(algorithm.strip_prefix(OID_PBES2)?, 0x30)?;
    let (kdf, cipher) = read(parameters, 0x30)?;
    let (kdf, no_more) = read(kdf.strip_prefix(OID_PBKDF2)?, 0x30)?;
    let (salt, after) = read(kdf, 0x04)?;
    let (rounds, prf) = read(after, 0x02)?;
    let (cipher, nothing) = read(cipher, 0x30)?;
    let (iv, empty) = read(cipher.strip_prefix(OID_AES_256_CBC)?, 0x04)?;
    let all_read = [rest, end, none, no_more, nothing, empty]
        .iter()
        .all(|r| r.is_empty());
    if !all_read || prf != PRF_HMAC_SHA256 || rounds.len() > 4 {
        return None;
    }
    let rounds = rounds
        .iter()
        .try_fold(0u32, |n, &b| n.checked_mul(256)?.checked_add(u32::from(b)))?;
    Some((salt, rounds, iv.try_into().ok()?, body))
}

fn read(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&n, rest) = rest.split_first()?;
            (usize::from(n), rest)
        }
        0x82 => {
            let (n, rest) = rest.split_at_checked(2)?;
            (usize::from(u16::from_be_bytes(n.try_into().ok()?)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

fn integer(value: u32) -> Vec<u8> {
    let bytes: Vec<u8> = value
        .to_be_bytes()
        .into_iter()
        .skip_while(|&b| b == 0)
        .collect();
    match bytes.first() {
        Some(&b) if b < 0x80 => bytes,
        _ => [&[0], bytes.as_slice()].concat(),
    }
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let mut out = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passphrase_opens_the_root_key() {
        let sealed = seal(b"not really a key", "correct horse", [1; 16], [2; 16]).unwrap();
        assert_eq!(
            open(&sealed, "correct horse").unwrap().as_slice(),
            b"not really a key"
        );
        assert!(open(&sealed, "wrong horse").is_err());
        assert_eq!(open("", "x").unwrap_err(), RootFileError::Malformed);
    }
}
