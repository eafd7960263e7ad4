//! Enrollment: how a device without an identity gets one.
//!
//! ```text
//!  device                                              controller (ALPN hedgerow-enroll/1)
//!    │  TLS 1.3, the server's certificate not judged yet    │
//!    │ ◀────────────────── Hello {manifest chain} ───────── │
//!    │  chain begins at the pinned root set? leaf of a      │
//!    │  controller under it? else stop: nothing was sent    │
//!    │ ── EnrollRequest {csr, token id, signature} ───────▶ │
//!    │ ◀──────────────── Issued | Pending | Refused ─────── │
//! ```
//!
//! The token's secret is an Ed25519 seed. The controller keeps only the public half; what travels is a
//! signature over the token's id, this TLS connection's exporter and this request, so that it is
//! worth nothing on another connection or for another key.

mod accept;
mod token;
pub mod wire;

use hedgerow_model::id::Digest;
use hedgerow_model::statement::Ed25519Public;

pub use self::accept::{Enrolled, accept_hello, accept_issued};
pub use self::token::{TOKEN_ENDPOINTS_MAX, TOKEN_TEXT_BYTES_MAX, Token, TokenId};
pub use crate::error::{EnrollError, TokenError};
use crate::key::PublicKey;

/// The ALPN protocol of enrollment.
pub const ALPN: &[u8] = b"hedgerow-enroll/1";
/// The label of the TLS exporter that a token signs; without context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-hedgerow-enroll-v1";
/// How much is exported, in bytes.
pub const EXPORTER_BYTES: usize = 32;

/// Returns the bytes that a token's key signs.
pub fn enrollment_signature_input(
    token: TokenId,
    exporter: &[u8; EXPORTER_BYTES],
    csr: &Digest,
) -> Vec<u8> {
    [b"hedgerow-enroll-v1", &token.0[..], exporter, &csr.0].concat()
}

/// Returns whether the token whose public half is `key` signed this request on this connection.
///
/// # Errors
///
/// [`EnrollError::BadSignature`]; also when the request carries no token or no signature.
pub fn verify_request(
    request: &wire::EnrollRequest,
    key: &Ed25519Public,
    exporter: &[u8; EXPORTER_BYTES],
) -> Result<(), EnrollError> {
    let (Some(token), Some(signature)) = (request.token, &request.signature) else {
        return Err(EnrollError::BadSignature);
    };
    let input = enrollment_signature_input(token, exporter, &Digest::of(&request.csr));
    PublicKey::Ed25519(*key)
        .verify(&input, signature)
        .map_err(|_e| EnrollError::BadSignature)
}

#[cfg(test)]
mod tests;
