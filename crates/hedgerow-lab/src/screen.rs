//! What the lab shows: lines for people, or one JSON object per act for programs.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use crate::clock;
use crate::matrix::{Matrix, Mismatch};
use crate::plant::{DEVICES, SERVICES, Service};
use crate::probe::End;

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Tables and marks.
    People,
    /// One JSON object per act.
    Json,
}

/// Where results are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    format: Format,
    colours: bool,
}

/// One expectation and what was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) what: String,
    /// What should be.
    pub(crate) expected: String,
    /// What was.
    pub(crate) measured: String,
    /// Whether they agree.
    pub(crate) held: bool,
    /// Whether the expectation is a time: a slow machine misses it without anything being wrong.
    pub(crate) timed: bool,
}

/// An act under way.
#[derive(Debug)]
pub(crate) struct Act {
    screen: Screen,
    number: u8,
    title: &'static str,
    start: Instant,
    checks: Vec<Check>,
    figures: serde_json::Map<String, Value>,
}

impl Screen {
    /// Makes a screen for programs if `json`, else for people.
    pub(crate) fn of(json: bool) -> Self {
        Self::new(if json { Format::Json } else { Format::People })
    }

    /// Makes a screen; colours only on a terminal, and not when `NO_COLOR` is set.
    fn new(format: Format) -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { format, colours }
    }

    /// Says what is being done. With JSON it goes to standard error.
    pub(crate) fn say(self, text: &str) {
        let result = match self.format {
            Format::People => writeln!(std::io::stdout().lock(), "{text}"),
            Format::Json => writeln!(std::io::stderr().lock(), "{text}"),
        };
        // Nobody may be reading any more, which must not keep the lab from cleaning up.
        drop(result);
    }

    /// Writes one JSON object, when that is the format.
    pub(crate) fn object(self, object: &Value) {
        if self.format == Format::Json {
            drop(writeln!(std::io::stdout().lock(), "{object}"));
        }
    }

    /// Begins an act.
    pub(crate) fn act(self, number: u8, title: &'static str) -> Act {
        self.say(&format!(
            "\n{}",
            self.paint("1", &format!("Act {number}. {title}"))
        ));
        Act {
            screen: self,
            number,
            title,
            start: clock::now(),
            checks: Vec::new(),
            figures: serde_json::Map::new(),
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self.colours {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

impl Act {
    /// Records an expectation.
    pub(crate) fn check(&mut self, what: &str, expected: &str, measured: &str, held: bool) {
        let mark = match held {
            true => self.screen.paint("32", "✓"),
            false => self.screen.paint("31", "✗"),
        };
        let wish = if held {
            String::new()
        } else {
            format!("   expected: {expected}")
        };
        self.screen
            .say(&format!("  {mark} {what}: {measured}{wish}"));
        self.checks.push(Check {
            what: what.to_owned(),
            expected: expected.to_owned(),
            measured: measured.to_owned(),
            held,
            timed: false,
        });
    }

    /// Records that something took a time, in milliseconds. One above the limit is shown, and does not
    /// fail the act: what never happens does.
    pub(crate) fn took(&mut self, what: &str, ms: f64, ms_max: f64) {
        self.check(
            what,
            &format!("within {ms_max} ms"),
            &format!("{ms} ms"),
            ms <= ms_max,
        );
        if let Some(check) = self.checks.last_mut() {
            check.timed = true;
        }
    }

    /// Records that something should succeed, and with what it did.
    pub(crate) fn succeeds(&mut self, what: &str, result: anyhow::Result<String>) {
        match result {
            Ok(measured) => self.check(what, "success", &measured, true),
            Err(error) => self.check(what, "success", &format!("{error:#}"), false),
        }
    }

    /// Records that something should be refused.
    pub(crate) fn refused(&mut self, what: &str, result: anyhow::Result<String>) {
        match result {
            Ok(measured) => self.check(what, "refused", &format!("it worked: {measured}"), false),
            Err(_) => self.check(what, "refused", "refused", true),
        }
    }

    /// Records a whole matrix, and draws it if `in_full` or something is wrong.
    pub(crate) fn matrix(
        &mut self,
        what: &str,
        matrix: &Matrix,
        mismatches: &[Mismatch],
        in_full: bool,
    ) {
        if in_full || !mismatches.is_empty() {
            self.screen.say(&table(matrix, mismatches));
        }
        let measured = format!(
            "{} of {} pairs agree at both ends, {} reach ({} s)",
            matrix.found.len() - mismatches.len(),
            matrix.found.len(),
            matrix.reached(),
            matrix.seconds,
        );
        let held = mismatches.is_empty() && !matrix.found.is_empty();
        self.check(what, "every pair as predicted", &measured, held);
        for wrong in mismatches.iter().take(12) {
            self.screen.say(&format!(
                "      {} → {} {}: predicted {:?}, found {:?}",
                wrong.from, wrong.to, wrong.service, wrong.predicted, wrong.found
            ));
        }
        self.figure(
            what,
            json!({
                "pairs": matrix.found.len(), "reached": matrix.reached(),
                "seconds": matrix.seconds, "mismatches": mismatches,
            }),
        );
    }

    /// Records a measured value for the JSON output.
    pub(crate) fn figure(&mut self, name: &str, value: Value) {
        self.figures.insert(name.to_owned(), value);
    }

    /// Ends the act; returns whether every expectation held but those of time.
    pub(crate) fn end(self) -> bool {
        let held = self.checks.iter().all(|c| c.held || c.timed);
        self.screen.object(&json!({
            "act": self.number, "title": self.title, "held": held,
            "seconds": clock::ms_since(self.start) / 1000.0,
            "checks": self.checks, "figures": self.figures,
        }));
        held
    }
}

/// Draws who reaches whom: a letter per service, a dot where it does not, `!` where it should not be
/// so.
fn table(matrix: &Matrix, mismatches: &[Mismatch]) -> String {
    let legend: Vec<String> = SERVICES
        .iter()
        .map(|s| format!("{} {}", s.letter, s.name))
        .collect();
    let heads: String = DEVICES
        .iter()
        .map(|to| format!(" {:10}", to.name))
        .collect();
    let rows: String = DEVICES
        .iter()
        .map(|from| {
            let cells: String = DEVICES
                .iter()
                .map(|to| format!(" {:10}", cell(matrix, mismatches, from.name, to.name)))
                .collect();
            format!("\n    {:11}{cells}", from.name)
        })
        .collect();
    let legend = legend.join("   ");
    format!(
        "    {legend}   · no   ! not as predicted\n    {:11}{heads}{rows}",
        "from ↓ to →"
    )
}

fn cell(matrix: &Matrix, mismatches: &[Mismatch], from: &str, to: &str) -> String {
    let letter = |service: &Service| {
        let pair = (from, to, service.name);
        let found = matrix
            .found
            .iter()
            .find(|(p, _)| (p.from, p.to, p.service) == pair);
        match found.map(|(_, found)| found.end) {
            _ if mismatches.iter().any(|m| (m.from, m.to, m.service) == pair) => '!',
            Some(End::Reached) => service.letter,
            Some(End::Refused | End::TimedOut) => '·',
            None => ' ',
        }
    };
    SERVICES.iter().map(letter).collect()
}
