//! What a caller is told when something is not done: code, message, remedy.

use hedgerow_model::Fault;

use crate::issue::IssueError;
use crate::store::StoreError;

/// What kind of refusal it is; the API maps it to a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request is wrong.
    Invalid,
    /// The thing is not there.
    NotFound,
    /// It contradicts what is there.
    Conflict,
    /// It needs a confirmation.
    NeedsConfirmation,
    /// The caller did not show who they are.
    Unauthenticated,
    /// The caller may not.
    Forbidden,
    /// Too much at once.
    Busy,
    /// The machine failed us.
    Unavailable,
    /// We are wrong.
    Bug,
}

/// A refusal. Nothing was changed.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// What kind.
    pub(crate) kind: Kind,
    /// A stable word for programs.
    pub(crate) code: &'static str,
    /// What, and with which value.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: String,
    /// Every single finding.
    pub(crate) details: Vec<serde_json::Value>,
}

impl Refusal {
    /// Makes a refusal.
    pub(crate) fn new(
        kind: Kind,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            code,
            message: message.into(),
            remedy: remedy.into(),
            details: Vec::new(),
        }
    }

    /// A request with a wrong value.
    pub(crate) fn invalid(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, "invalid_request", message, remedy)
    }

    /// A device that nobody knows.
    pub(crate) fn no_device(text: &str) -> Self {
        Self::new(
            Kind::NotFound,
            "device_not_found",
            format!("no device is called `{text}`"),
            "`hedgerow device list` shows ids and names; write name.site when a name is used twice",
        )
    }

    /// A site that nobody knows.
    pub(crate) fn no_site(text: &str) -> Self {
        Self::new(
            Kind::NotFound,
            "site_not_found",
            format!("there is no site `{text}`"),
            format!("`hedgerow site create {text} --tz Europe/Berlin` makes it"),
        )
    }

    /// An impossible state.
    pub(crate) fn bug(message: impl Into<String>) -> Self {
        Self::new(
            Kind::Bug,
            "internal_error",
            message,
            "the controller's log says more; report it",
        )
    }

    /// Adds findings.
    #[must_use]
    pub(crate) fn with_details(mut self, details: Vec<serde_json::Value>) -> Self {
        self.details = details;
        self
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

impl std::error::Error for Refusal {}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let fault = error.fault();
        match &error {
            StoreError::Conflict { what } => {
                Self::new(Kind::Conflict, "conflict", what.clone(), "choose another")
            }
            StoreError::Exhausted { what } => Self::new(
                Kind::Busy,
                "exhausted",
                format!("{what} are used up"),
                "remove what is no longer needed, or enlarge the bound in control.toml",
            ),
            StoreError::Database(_) | StoreError::Migrate(_) | StoreError::Corrupt { .. } => {
                tracing::error!(error = %chain(&error), ?fault, "the store failed");
                Self::new(
                    Kind::Unavailable,
                    "store_failed",
                    "the controller's store failed; nothing was changed",
                    "see that its disk is writable and not full, then try again",
                )
            }
        }
    }
}

impl From<IssueError> for Refusal {
    fn from(error: IssueError) -> Self {
        match &error {
            IssueError::WrongKey => Self::invalid(error.to_string(), "make an ECDSA P-256 key"),
            IssueError::Name(_)
            | IssueError::Certificate(_)
            | IssueError::Key(_)
            | IssueError::Sign(_) => {
                tracing::error!(error = %chain(&error), "signing failed");
                Self::bug("signing failed; nothing was issued")
            }
        }
    }
}

/// Returns an error with everything that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

impl Refusal {
    /// Returns who has to act.
    pub(crate) fn fault(&self) -> Fault {
        match self.kind {
            Kind::Invalid
            | Kind::NotFound
            | Kind::Conflict
            | Kind::NeedsConfirmation
            | Kind::Unauthenticated
            | Kind::Forbidden => Fault::Operator,
            Kind::Busy | Kind::Unavailable => Fault::Environment,
            Kind::Bug => Fault::Bug,
        }
    }
}
