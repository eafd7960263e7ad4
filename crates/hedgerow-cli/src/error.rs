//! Why a command did not do what it should, and what to do about it.

use std::io;

use hedgerow_model::Fault;
use serde_json::{Value, json};

/// Exit code of a command that did its work and found something wrong: a failed test, a refused
/// policy, devices that have not verified a change in the time given.
pub(crate) const FOUND: u8 = 1;

/// A failure with its remedy. Nothing was changed, unless the message says so.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    /// Who has to act.
    pub(crate) fault: Fault,
    /// A stable word for programs.
    pub(crate) code: String,
    /// What, and with which value.
    pub(crate) message: String,
    /// What to do about it; may be empty.
    pub(crate) remedy: String,
    /// Every single finding.
    pub(crate) details: Vec<Value>,
    closed_pipe: bool,
}

impl CliError {
    /// Makes an error.
    pub(crate) fn new(
        fault: Fault,
        code: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            fault,
            code: code.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
            details: Vec::new(),
            closed_pipe: false,
        }
    }

    /// Something the caller wrote is wrong.
    pub(crate) fn invalid(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Fault::Operator, "invalid_request", message, remedy)
    }

    /// The controller answered with something else than agreed.
    pub(crate) fn answer(what: &str) -> Self {
        Self::new(
            Fault::Peer,
            "unexpected_answer",
            format!("the controller's answer has no {what}"),
            "the controller and this tool may be of different versions; compare `--version`",
        )
    }

    /// Returns whether the reader of our output has gone.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.closed_pipe
    }

    /// Returns the process exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.fault.exit_code()
    }

    /// Writes the error for a person, or as one line of JSON.
    pub(crate) fn report(&self, json: bool, err: &mut dyn io::Write) -> io::Result<()> {
        if json {
            let body = json!({"error": {
                "code": self.code, "message": self.message, "remedy": self.remedy,
                "details": self.details,
            }});
            return writeln!(err, "{body}");
        }
        for detail in &self.details {
            writeln!(err, "{}", crate::render::detail(detail))?;
        }
        writeln!(err, "error: {}", self.message)?;
        if !self.remedy.is_empty() {
            writeln!(err, "  help: {}", self.remedy)?;
        }
        Ok(())
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        let closed_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        let message = format!("cannot write the answer: {error}");
        let new = Self::new(Fault::Environment, "output_failed", message, "");
        Self { closed_pipe, ..new }
    }
}
