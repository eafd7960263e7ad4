//! `hedgerow-agent check`: what is wrong on this machine, and how to mend it. One file per check.

mod clock;
mod firewall;
mod identity;
mod lifeline;
mod links;
mod machine;
mod names;
mod state;
mod uplink;

use std::fmt::Write as _;

use serde::Serialize;

use crate::config::Config;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Works, but somebody should know.
    Warning,
    /// Something does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The check, a stable name.
    pub(crate) check: &'static str,
    /// How much it matters.
    pub(crate) severity: Severity,
    /// What was found.
    pub(crate) message: String,
    /// What to do; empty when all is well.
    pub(crate) remedy: String,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Ok,
            message: message.into(),
            remedy: String::new(),
        }
    }

    fn warning(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Warning,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    fn error(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            ..Self::warning(check, message, remedy)
        }
    }
}

/// Runs every check.
pub(crate) async fn all(config: &Config) -> Vec<Finding> {
    let mut findings = machine::check(config);
    findings.extend(state::check(config));
    findings.extend(identity::check(config));
    findings.extend(clock::check(config));
    findings.extend(firewall::check(config));
    findings.extend(lifeline::check(config).await);
    findings.extend(names::check(config).await);
    findings.extend(links::check(config).await);
    findings.extend(uplink::check(config).await);
    findings
}

/// Returns the exit code: a finding that is an error is the operator's to mend, as with `hedgerow
/// check`.
pub(crate) fn exit_code(findings: &[Finding]) -> u8 {
    if findings.iter().any(|f| f.severity == Severity::Error) {
        hedgerow_model::Fault::Operator.exit_code()
    } else {
        0
    }
}

/// Writes findings for people, the worst first.
pub(crate) fn text(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|f| std::cmp::Reverse(f.severity));
    let mut out = String::new();
    for finding in sorted {
        let mark = match finding.severity {
            Severity::Ok => "ok     ",
            Severity::Warning => "warning",
            Severity::Error => "error  ",
        };
        let remedy = if finding.remedy.is_empty() {
            String::new()
        } else {
            format!("; {}", finding.remedy)
        };
        // Writing to a String does not fail.
        let _written = writeln!(out, "{mark} {}: {}{remedy}", finding.check, finding.message);
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_change_the_exit_code() {
        let (ok, warning) = (Finding::ok("a", ""), Finding::warning("b", "", ""));
        let error = Finding::error("c", "", "");
        assert_eq!(exit_code(&[ok.clone(), warning.clone()]), 0);
        assert_eq!(exit_code(&[ok, warning, error]), 1);
    }
}
