//! One line for a person: what is wrong and what to do about it.

use std::fmt::Display;
use std::io::ErrorKind;

use hedgerow_model::Fault;

/// Why a command ends, with the remedy. `main` prints it and exits with [`Fault::exit_code`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {remedy}")]
pub(crate) struct Failure {
    /// Who has to act.
    pub(crate) fault: Fault,
    /// What is wrong, lower case, without a full stop.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

impl Failure {
    /// Makes a failure that a person has to mend.
    pub(crate) fn operator(message: impl Display, remedy: impl Display) -> Self {
        Self::new(Fault::Operator, message, remedy)
    }

    /// Makes a failure of the machine or the network.
    pub(crate) fn environment(message: impl Display, remedy: impl Display) -> Self {
        Self::new(Fault::Environment, message, remedy)
    }

    /// Makes a failure.
    pub(crate) fn new(fault: Fault, message: impl Display, remedy: impl Display) -> Self {
        Self {
            fault,
            message: message.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

/// Writes an error with everything that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl From<hedgerow_linux::disk::DiskError> for Failure {
    fn from(error: hedgerow_linux::disk::DiskError) -> Self {
        let kind = error.source.kind();
        let is = |kinds: &[ErrorKind]| kinds.contains(&kind);
        let remedy = if is(&[ErrorKind::StorageFull, ErrorKind::QuotaExceeded]) {
            "free some space on that file system"
        } else if is(&[ErrorKind::ReadOnlyFilesystem]) {
            "mount that file system writable, or set paths.state to one that is"
        } else if is(&[ErrorKind::PermissionDenied]) {
            "run as root, or give the directory to this user"
        } else {
            "see whether the path and its file system are sound"
        };
        Self::new(error.fault(), chain(&error), remedy)
    }
}
