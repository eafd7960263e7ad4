//! Who is it? Keys, statements, trust, certificates, enrollment, rotation, revocation.
//!
//! ```text
//!  token ── pins ──▶ genesis root set ──▶ manifest 1 ──▶ manifest 2 … ──▶ issuers, role keys
//!                                                          Trust            │
//!  signed bytes ─────────────────────────────────────────── verify ◀────────┘
//!                            Standing (revocations, epochs, beacon, grace) ──▶ Verified<T> | refusal
//! ```
//!
//! # Invariants
//!
//! - A [`Verified`] value is made only here, and only after signature, signer, scope, spelling and
//!   bounds were checked. What is refused changes nothing.
//! - Trust begins at a pinned digest of the first root set; there is no trust on first use.
//! - Versions only grow: manifests, revocation lists, states and the trusted-time floor.
//! - Expiry deletes nothing and never widens what a device may do.
//! - Nothing is keyed on a signature or on a certificate's hash.
//!
//! # Not here
//!
//! Files, sockets, clocks and entropy (the programs' shells); issuing certificates
//! (`hedgerow-control`); what an identity may do (`hedgerow-policy`).
//!
//! Start reading at [`trust::Trust`].
#![forbid(unsafe_code)]

pub mod certificate;
pub mod clock;
pub mod cose;
pub mod csr;
pub mod enroll;
pub mod error;
pub mod fingerprint;
pub mod key;
pub mod revocation;
pub mod rotation;
pub mod slots;
pub mod standing;
pub mod statement;
pub mod trust;
mod verified;

pub use verified::Verified;

#[cfg(test)]
mod testing;
