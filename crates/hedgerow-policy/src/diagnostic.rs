//! What is wrong with a policy file, and where.

use std::fmt;

/// Whether a finding stops the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy compiles to nothing.
    Error,
    /// Legal, and probably not what was meant.
    Warning,
}

/// One finding, at its place in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Diagnostic {
    /// The file as the caller named it.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// In characters, counted from 1.
    pub column: u32,
    /// Whether it stops the policy.
    pub severity: Severity,
    /// The place in the document, e.g. `rules[3].from`; empty for the document itself.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

/// A place in the file: line and column, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Mark {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Mark {
    /// Returns the place `columns` further on the same line.
    pub(crate) fn plus(self, columns: usize) -> Self {
        let columns = u32::try_from(columns).unwrap_or(u32::MAX);
        Self {
            column: self.column.saturating_add(columns),
            ..self
        }
    }
}

/// Most findings reported for one file; what follows is noise.
pub(crate) const DIAGNOSTICS_MAX: usize = 1000;

/// Collects findings while reading goes on.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) file: String,
    pub(crate) list: Vec<Diagnostic>,
}

impl Findings {
    pub(crate) fn error(&mut self, at: Mark, field: &str, message: String, remedy: &str) {
        self.add(Severity::Error, at, field, message, remedy);
    }

    pub(crate) fn warning(&mut self, at: Mark, field: &str, message: String, remedy: &str) {
        self.add(Severity::Warning, at, field, message, remedy);
    }

    fn add(&mut self, severity: Severity, at: Mark, field: &str, message: String, remedy: &str) {
        if self.list.len() < DIAGNOSTICS_MAX {
            self.list.push(Diagnostic {
                file: self.file.clone(),
                line: at.line,
                column: at.column,
                severity,
                field: field.to_owned(),
                message,
                remedy: remedy.to_owned(),
            });
        }
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }
}
