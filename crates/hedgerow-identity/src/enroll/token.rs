//! Enrollment tokens: `hgt1.` and the base64url of a CBOR array.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hedgerow_model::base32;
use hedgerow_model::id::Digest;
use hedgerow_model::statement::Ed25519Public;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{EXPORTER_BYTES, enrollment_signature_input};
use crate::error::TokenError;
use crate::key::{SigningKey as _, SoftwareEd25519};

/// Longest token, in characters.
pub const TOKEN_TEXT_BYTES_MAX: usize = 2048;
/// Most controllers named in one token.
pub const TOKEN_ENDPOINTS_MAX: usize = 8;

const PREFIX: &str = "hgt1.";
const ENDPOINT_BYTES_MAX: usize = 260;

/// A token's public name, spelt as 13 characters of base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TokenId {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        base32::decode(text).map(Self).ok_or(TokenError::NotAnId)
    }
}

impl<C> Encode<C> for TokenId {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for TokenId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let bytes = d.bytes()?.try_into();
        bytes
            .map(Self)
            .map_err(|_e| decode::Error::message("a token id takes 8 bytes"))
    }
}

/// A token: where to go, whom to believe, and the right to enroll once.
///
/// It holds a secret, so it has no `Debug` and no `PartialEq`, and is wiped when dropped.
pub struct Token {
    id: TokenId,
    seed: Zeroizing<[u8; 32]>,
    endpoints: Vec<String>,
    genesis: Digest,
}

impl Token {
    /// Makes a token for the trust domain whose first root set has the digest `genesis`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Endpoints`] when there is none, or more than [`TOKEN_ENDPOINTS_MAX`], or one is
    /// not `host:port`.
    pub fn generate(
        endpoints: Vec<String>,
        genesis: Digest,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, TokenError> {
        check_endpoints(&endpoints)?;
        let mut id = [0; 8];
        rng.fill_bytes(&mut id);
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Ok(Self {
            id: TokenId(id),
            seed,
            endpoints,
            genesis,
        })
    }

    /// Reads the text of a token; space around it is ignored.
    ///
    /// # Errors
    ///
    /// [`TokenError`], which never repeats the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_TEXT_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map(Zeroizing::new)
            .map_err(|_e| TokenError::Damaged)?;
        let token = Self::decode(&bytes).ok_or(TokenError::Damaged)?;
        check_endpoints(&token.endpoints)?;
        Ok(token)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut d = Decoder::new(bytes);
        let four = d.array().ok()? == Some(4);
        let id = d.decode().ok()?;
        let seed = Zeroizing::new(<[u8; 32]>::try_from(d.bytes().ok()?).ok()?);
        let n = usize::try_from(d.array().ok()??).ok()?;
        let mut endpoints = Vec::new();
        for _ in 0..n.min(TOKEN_ENDPOINTS_MAX + 1) {
            endpoints.push(d.str().ok()?.to_owned());
        }
        let genesis = d.decode().ok()?;
        let token = Self {
            id,
            seed,
            endpoints,
            genesis,
        };
        let one_spelling = token.encode().is_some_and(|again| *again == bytes);
        (four && one_spelling).then_some(token)
    }

    fn encode(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(Vec::with_capacity(512));
        let mut e = Encoder::new(&mut *out);
        e.array(4).ok()?.encode(self.id).ok()?;
        e.bytes(self.seed.as_slice()).ok()?;
        e.array(self.endpoints.len() as u64).ok()?;
        for endpoint in &self.endpoints {
            e.str(endpoint).ok()?;
        }
        e.encode(self.genesis).ok()?;
        Some(out)
    }

    /// Returns the text, to be handed to a person once.
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(TOKEN_TEXT_BYTES_MAX));
        text.push_str(PREFIX);
        if let Some(bytes) = self.encode() {
            URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
        }
        text
    }

    /// Returns its public name.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Returns its public key: all of the secret that the controller keeps.
    pub fn public_key(&self) -> Ed25519Public {
        SoftwareEd25519::from_seed(&self.seed).public()
    }

    /// Returns the controllers, `host:port`, in order of preference.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Returns the digest of the root set to believe.
    pub fn genesis(&self) -> Digest {
        self.genesis
    }

    /// Signs a request for this TLS connection.
    ///
    /// # Errors
    ///
    /// [`TokenError`] never, in practice.
    pub fn sign(&self, exporter: &[u8; EXPORTER_BYTES], csr: &[u8]) -> Result<Vec<u8>, TokenError> {
        let input = enrollment_signature_input(self.id, exporter, &Digest::of(csr));
        SoftwareEd25519::from_seed(&self.seed)
            .sign(&input)
            .map_err(|_e| TokenError::Damaged)
    }
}

fn check_endpoints(endpoints: &[String]) -> Result<(), TokenError> {
    let number = (1..=TOKEN_ENDPOINTS_MAX).contains(&endpoints.len());
    let all = endpoints.iter().all(|endpoint| is_endpoint(endpoint));
    (number && all).then_some(()).ok_or(TokenError::Endpoints)
}

/// `host:port` or `[v6]:port`; the host is looked at again by whoever resolves it.
fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let port_ok = port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        }
    };
    text.len() <= ENDPOINT_BYTES_MAX && port_ok && host_ok
}
