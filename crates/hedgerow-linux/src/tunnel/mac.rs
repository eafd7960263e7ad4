//! The macs of handshake messages and the cookies that prove an address.

use std::net::{IpAddr, SocketAddr};

use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hedgerow_model::statement::X25519Public;

use super::message::{self, COOKIE_REPLY_BYTES};

/// Proof that a sender receives at its address.
pub(super) type Cookie = [u8; 16];

/// The two keys everyone who knows a public key can derive.
#[derive(Clone, Copy)]
pub(super) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    pub(super) fn of(public: &X25519Public) -> Self {
        Self {
            mac1: hash(b"mac1----", &public.0),
            cookie: hash(b"cookie--", &public.0),
        }
    }

    /// Writes mac1, and mac2 when there is a cookie; returns mac1.
    pub(super) fn sign(&self, message: &mut [u8], cookie: Option<&Cookie>) -> [u8; 16] {
        let end = message.len().saturating_sub(32);
        let mac1 = mac(&self.mac1, &[message.get(..end).unwrap_or(&[])]);
        message::put(message, end, &mac1);
        if let Some(cookie) = cookie {
            let mac2 = mac(cookie, &[message.get(..end + 16).unwrap_or(&[])]);
            message::put(message, end + 16, &mac2);
        }
        mac1
    }

    /// Returns whether mac1 was made by someone who knows the public key.
    pub(super) fn mac1_holds(&self, message: &[u8]) -> bool {
        let end = message.len().saturating_sub(32);
        holds(&self.mac1, message, end)
    }

    /// Seals a cookie for the sender of `message`.
    pub(super) fn seal_cookie(
        &self,
        message: &[u8],
        cookie: &Cookie,
        nonce: [u8; 24],
    ) -> Option<[u8; COOKIE_REPLY_BYTES]> {
        let mac1: [u8; 16] = message::array_at(message, message.len().checked_sub(32)?);
        let cipher = XChaCha20Poly1305::new(&self.cookie.into());
        let payload = Payload {
            msg: cookie,
            aad: &mac1,
        };
        let sealed = cipher.encrypt(XNonce::from_slice(&nonce), payload).ok()?;
        let sealed = sealed.as_slice().try_into().ok()?;
        Some(message::cookie_reply(
            message::u32_at(message, 4),
            &nonce,
            sealed,
        ))
    }

    /// Opens the cookie that answers the message with `mac1`.
    pub(super) fn open_cookie(
        &self,
        reply: &[u8; COOKIE_REPLY_BYTES],
        mac1: &[u8; 16],
    ) -> Option<Cookie> {
        let nonce: [u8; 24] = message::array_at(reply, 8);
        let payload = Payload {
            msg: reply.get(32..)?,
            aad: mac1,
        };
        let cipher = XChaCha20Poly1305::new(&self.cookie.into());
        let cookie = cipher.decrypt(XNonce::from_slice(&nonce), payload).ok()?;
        cookie.try_into().ok()
    }
}

/// Makes the cookie of an address under the secret of the moment.
pub(super) fn cookie(secret: &[u8; 32], from: SocketAddr) -> Cookie {
    let port = from.port().to_be_bytes();
    match from.ip() {
        IpAddr::V4(ip) => mac(secret, &[&ip.octets(), &port]),
        IpAddr::V6(ip) => mac(secret, &[&ip.octets(), &port]),
    }
}

/// Returns whether mac2 was made with this cookie.
pub(super) fn mac2_holds(message: &[u8], cookie: &Cookie) -> bool {
    holds(cookie, message, message.len().saturating_sub(16))
}

fn holds(key: &[u8], message: &[u8], end: usize) -> bool {
    let Some((body, rest)) = message.split_at_checked(end) else {
        return false;
    };
    let Some(expected) = rest.first_chunk::<16>() else {
        return false;
    };
    keyed(key).is_some_and(|m| m.chain_update(body).verify_slice(expected).is_ok())
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let Some(mut mac) = keyed(key) else {
        // Keys are 16 or 32 bytes long, which BLAKE2s takes.
        return [0; 16];
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn keyed(key: &[u8]) -> Option<Blake2sMac<U16>> {
    <Blake2sMac<U16> as KeyInit>::new_from_slice(key).ok()
}

fn hash(label: &[u8; 8], public: &[u8; 32]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    Digest::update(&mut hash, label);
    Digest::update(&mut hash, public);
    hash.finalize().into()
}
