//! Waiting until kernels have verified a change, and saying what is not yet true.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::Request;
use crate::error::CliError;
use crate::render::{flag, full_name, list, text};
use crate::shell::{Shell, Tone};

const POLL_EVERY: Duration = Duration::from_millis(200);
/// After this long, what a device was last told to hold includes the change.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// How many names are listed before the rest is only counted.
const NAMES_MAX: usize = 10;

/// What is not yet true of what is in force.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Behind {
    /// Connected, and not verified.
    pub(super) waiting: Vec<String>,
    /// Connected, and refused it.
    pub(super) rejected: Vec<String>,
    /// Not connected: they learn of it when they come back.
    pub(super) away: Vec<String>,
    /// How many connected devices have verified it.
    pub(super) verified: usize,
}

impl Behind {
    /// Reads a status. A device counts as verified at `revision`, where one is given, or else when it
    /// verified what it was last told.
    pub(super) fn of(status: &Value, revision: Option<(u64, u64)>) -> Self {
        let mut behind = Self::default();
        for device in list(status, "devices") {
            let name = full_name(device);
            let verified = match revision {
                Some(wanted) => order(device.get("verified_revision")) >= Some(wanted),
                None => flag(device, "verified"),
            };
            if !flag(device, "connected") {
                behind.away.push(name);
            } else if verified {
                behind.verified += 1;
            } else if device.get("rejected").is_some_and(Value::is_string) {
                behind
                    .rejected
                    .push(format!("{name} ({})", text(device, "rejected")));
            } else {
                behind.waiting.push(name);
            }
        }
        behind
    }

    /// Returns whether every connected device has verified it.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.rejected.is_empty()
    }

    /// Returns it as JSON.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "verified": self.verified, "waiting": self.waiting, "rejected": self.rejected,
            "away": self.away,
        })
    }
}

/// Reads `timeline.number`.
fn order(revision: Option<&Value>) -> Option<(u64, u64)> {
    let (timeline, number) = revision?.as_str()?.split_once('.')?;
    Some((timeline.parse().ok()?, number.parse().ok()?))
}

/// Waits until every connected device has verified a change just made, or the time is over.
pub(super) fn until_verified(limit: Duration, shell: &mut Shell<'_>) -> Result<Behind, CliError> {
    let start = shell.system.now();
    let mut wanted = None;
    let mut told = usize::MAX;
    loop {
        let status = shell.call(Request::get("status"))?;
        // The newest change at the first look is ours or a later one.
        wanted = wanted.or_else(|| order(status.get("revision")));
        let waited = shell.system.now().since(start);
        let behind = Behind::of(&status, wanted.filter(|_| waited < TOLD_WITHIN));
        if behind.waiting.is_empty() || waited >= limit {
            return Ok(behind);
        }
        if behind.waiting.len() != told && !shell.json {
            told = behind.waiting.len();
            writeln!(shell.err, "  waiting for {}", names(&behind.waiting))?;
        }
        shell.system.pause(POLL_EVERY);
    }
}

/// Says, after a change, where it is in force and where not yet.
pub(super) fn report(behind: &Behind, shell: &mut Shell<'_>) -> Result<(), CliError> {
    let devices = match behind.verified {
        1 => "1 device".to_owned(),
        n => format!("{n} devices"),
    };
    let lines = [
        (
            Tone::Good,
            format!("Verified in the kernel of {devices}."),
            true,
        ),
        (
            Tone::Bad,
            format!("Not yet verified by {}.", names(&behind.waiting)),
            !behind.waiting.is_empty(),
        ),
        (
            Tone::Bad,
            format!("Refused by {}.", names(&behind.rejected)),
            !behind.rejected.is_empty(),
        ),
        (
            Tone::Waiting,
            format!(
                "Not connected, still on what they had: {}. They learn of it when they are back.",
                names(&behind.away)
            ),
            !behind.away.is_empty(),
        ),
    ];
    for (tone, line, _) in lines.into_iter().filter(|(_, _, say)| *say) {
        writeln!(shell.out, "{}", shell.style.paint(tone, &line))?;
    }
    Ok(())
}

/// Lists names, the first few spelt out.
pub(super) fn names(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_MAX).map(String::as_str).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
    }
}
