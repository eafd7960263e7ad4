//! The proof that a value was signed by a key that may say it.

use std::ops::Deref;

use hedgerow_model::program::{PROGRAM_BYTES_MAX, Program};
use hedgerow_model::statement::{KeyId, SignedProgramBody};
use hedgerow_model::wire::{WireError, decode_canonical};

/// A value whose signature, signer and scope were checked. Made only in this crate.
///
/// A function that acts on a signed thing takes this, so that forgetting to verify does not compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    bytes: Box<[u8]>,
    signer: KeyId,
}

impl<T> Verified<T> {
    pub(crate) fn new(value: T, bytes: &[u8], signer: KeyId) -> Self {
        Self {
            value,
            bytes: bytes.into(),
            signer,
        }
    }

    /// Returns the signed bytes, to be stored or handed on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns which key signed.
    pub fn signer(&self) -> KeyId {
        self.signer
    }

    /// Returns the value, giving up the proof.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
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
