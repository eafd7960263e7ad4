//! `hedgerow check`: what is wrong, and how to mend it.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::wait::{Behind, names};
use crate::api::Request;
use crate::error::{CliError, FOUND};
use crate::local;
use crate::render::{flag, full_name, list, text};
use crate::shell::{Shell, Tone};
use crate::table::clean;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grade {
    Ok,
    Warning,
    Error,
}

impl Grade {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing looked at.
struct Finding {
    check: String,
    grade: Grade,
    message: String,
    remedy: String,
}

/// Looks at everything; exit code 1 when something is wrong.
pub(super) fn run(device: &Path, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let mut findings = Vec::new();
    let is_device = agent(device, &mut findings);
    match shell.call(Request::get("status")) {
        Ok(status) => {
            findings.push(ok("controller", "answers"));
            fleet(&status, &mut findings);
        }
        // A device need not be an operator's machine.
        Err(error) if is_device && error.code == "not_configured" => {}
        Err(error) => findings.push(Finding {
            check: "controller".to_owned(),
            grade: Grade::Error,
            message: error.message,
            remedy: error.remedy,
        }),
    }
    let wrong = findings.iter().any(|finding| finding.grade == Grade::Error);
    if shell.json {
        let rows: Vec<Value> = findings
            .iter()
            .map(|f| {
                json!({"check": f.check, "grade": f.grade.as_str(), "message": f.message, "remedy": f.remedy})
            })
            .collect();
        shell.print_json(&json!({"checks": rows}))?;
    } else {
        show(&findings, shell)?;
    }
    Ok(if wrong {
        ExitCode::from(FOUND)
    } else {
        ExitCode::SUCCESS
    })
}

fn ok(check: &str, message: &str) -> Finding {
    let (check, message) = (check.to_owned(), message.to_owned());
    Finding {
        check,
        grade: Grade::Ok,
        message,
        remedy: String::new(),
    }
}

/// Asks the agent of this machine; returns whether it is a device.
fn agent(device: &Path, findings: &mut Vec<Finding>) -> bool {
    let answer = match local::checks(device) {
        Ok(None) => return false,
        Ok(Some(answer)) => answer,
        Err(message) => {
            findings.push(Finding {
                check: "agent".to_owned(),
                grade: Grade::Error,
                message,
                remedy: "run this as root; is hedgerow-agent installed?".to_owned(),
            });
            return true;
        }
    };
    findings.extend(list(&answer, "findings").iter().map(|row| {
        Finding {
            check: format!("device: {}", text(row, "check")),
            grade: match text(row, "severity").as_str() {
                "ok" => Grade::Ok,
                "warning" => Grade::Warning,
                _ => Grade::Error,
            },
            message: text(row, "message"),
            remedy: Some(text(row, "remedy"))
                .filter(|r| r != "-")
                .unwrap_or_default(),
        }
    }));
    true
}

fn fleet(status: &Value, findings: &mut Vec<Finding>) {
    let behind = Behind::of(status, None);
    let mut add = |check: &str, grade: Grade, who: &[String], what: &str, remedy: &str| {
        if !who.is_empty() {
            findings.push(Finding {
                check: check.to_owned(),
                grade,
                message: format!("{what}: {}", names(who)),
                remedy: remedy.to_owned(),
            });
        }
    };
    let devices = list(status, "devices");
    let flagged: Vec<String> = devices
        .iter()
        .filter(|device| flag(device, "flagged"))
        .map(full_name)
        .collect();
    add(
        "keys",
        Grade::Error,
        &flagged,
        "one key, two sessions",
        "find the copy; then `hedgerow device release`, or `revoke` and enroll anew",
    );
    add(
        "kernels",
        Grade::Error,
        &behind.rejected,
        "refused the revision in force",
        "`hedgerow events --kind resource_refused` says why; `hedgerow-agent check` on the device",
    );
    add(
        "kernels",
        Grade::Warning,
        &behind.waiting,
        "connected, and have not verified the revision in force",
        "a moment after a change this is normal; else `hedgerow-agent check` on the device",
    );
    add(
        "uplinks",
        Grade::Warning,
        &behind.away,
        "not connected, still on what they had",
        "they go on enforcing; check power, link and `hedgerow-agent check` there",
    );
    if flagged.is_empty() && behind.is_done() && behind.away.is_empty() {
        let message = match behind.verified {
            0 => "no devices are enrolled".to_owned(),
            1 => "the one device has verified the revision in force".to_owned(),
            n => format!("all {n} devices have verified the revision in force"),
        };
        findings.push(ok("kernels", &message));
    }
}

fn show(findings: &[Finding], shell: &mut Shell<'_>) -> Result<(), CliError> {
    for finding in findings {
        let (tone, word) = match finding.grade {
            Grade::Ok => (Tone::Good, "ok     "),
            Grade::Warning => (Tone::Waiting, "warning"),
            Grade::Error => (Tone::Bad, "error  "),
        };
        let word = shell.style.paint(tone, word);
        writeln!(
            shell.out,
            "{word}  {}: {}",
            clean(&finding.check),
            finding.message
        )?;
        if !finding.remedy.is_empty() && finding.grade != Grade::Ok {
            writeln!(shell.out, "         help: {}", finding.remedy)?;
        }
    }
    Ok(())
}
