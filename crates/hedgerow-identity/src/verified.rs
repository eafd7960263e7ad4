//! The proof that a value was signed by a key that may say it.

use std::ops::Deref;
use std::sync::Arc;

use hedgerow_model::program::{PROGRAM_BYTES_MAX, Program};
use hedgerow_model::statement::{KeyId, SignedProgramBody};
use hedgerow_model::wire::{WireError, decode_canonical};

/// A value whose signature, signer and scope were checked. Made only in this crate.
///
/// A function that acts on a signed thing takes this, so that forgetting to verify does not compile.
/// Clones share what was verified: a hub holds each of its thousands of tickets once.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified<T>(Arc<Signed<T>>);

#[derive(Debug, PartialEq, Eq)]
struct Signed<T> {
    value: T,
    bytes: Box<[u8]>,
    signer: KeyId,
}

impl<T> Clone for Verified<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Verified<T> {
    pub(crate) fn new(value: T, bytes: &[u8], signer: KeyId) -> Self {
        Self(Arc::new(Signed {
            value,
            bytes: bytes.into(),
            signer,
        }))
    }

    /// Returns the signed bytes, to be stored or handed on.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Returns which key signed.
    pub fn signer(&self) -> KeyId {
        self.0.signer
    }

    /// Returns the value, giving up the proof.
    pub fn into_inner(self) -> T
    where
        T: Clone,
    {
        match Arc::try_unwrap(self.0) {
            Ok(signed) => signed.value,
            Err(shared) => shared.value.clone(),
        }
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl Verified<SignedProgramBody> {
    /// Decodes the program inside.
    ///
    /// # Errors
    ///
    /// [`WireError`] when it is larger than [`PROGRAM_BYTES_MAX`] or not a program's one spelling.
    pub fn program(&self) -> Result<Program, WireError> {
        if self.program.len() > PROGRAM_BYTES_MAX {
            return Err(WireError::Malformed {
                what: "program",
                reason: format!("{} bytes", self.program.len()),
            });
        }
        decode_canonical("program", &self.program)
    }
}
