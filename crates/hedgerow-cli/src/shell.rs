//! What a command may touch: the controller, the terminal, files, time. All of it is handed in.

use std::io::{self, Read as _, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hedgerow_model::{Fault, Wall};
use serde_json::Value;

use crate::api::{Api, Request};
use crate::config::Config;
use crate::error::CliError;

/// Largest policy file that is sent, in bytes.
const POLICY_BYTES_MAX: u64 = 4 << 20;

/// Everything that a command works with.
pub(crate) struct Shell<'a> {
    /// The controller.
    pub(crate) api: &'a mut dyn Api,
    /// The answer.
    pub(crate) out: &'a mut dyn Write,
    /// Notes and progress.
    pub(crate) err: &'a mut dyn Write,
    /// Colours or none.
    pub(crate) style: Style,
    /// Whether the answer is JSON.
    pub(crate) json: bool,
    /// Time and files.
    pub(crate) system: &'a mut dyn Surroundings,
    /// What was configured, if anything.
    pub(crate) config: Option<&'a Config>,
}

impl Shell<'_> {
    /// Asks the controller.
    pub(crate) fn call(&mut self, request: Request) -> Result<Value, CliError> {
        self.api.call(request)
    }

    /// Prints an answer as it came, one document.
    pub(crate) fn print_json(&mut self, answer: &Value) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(answer).unwrap_or_default();
        writeln!(self.out, "{text}")?;
        Ok(())
    }
}

/// Time and files, so that a test can stand in for them.
pub(crate) trait Surroundings {
    /// Returns the wall clock.
    fn now(&self) -> Wall;
    /// Waits.
    fn pause(&mut self, span: Duration);
    /// Reads a text file; `-` is standard input.
    ///
    /// # Errors
    ///
    /// [`CliError`] that names the file.
    fn read_text(&mut self, file: &str) -> Result<String, CliError>;
}

/// The machine itself.
pub(crate) struct System {
    started: Instant,
    wall: Wall,
}

impl System {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "this is the tool's clock")]
    pub(crate) fn new() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let wall = Wall::default() + since;
        Self {
            started: Instant::now(),
            wall,
        }
    }

    /// Returns whether the user asked for no colours (no-color.org).
    pub(crate) fn no_color() -> bool {
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    }

    /// Returns the user's home.
    pub(crate) fn home() -> Option<PathBuf> {
        std::env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from)
    }
}

impl Surroundings for System {
    fn now(&self) -> Wall {
        self.wall + self.started.elapsed()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a tool that waits has nothing else to do"
    )]
    fn pause(&mut self, span: Duration) {
        std::thread::sleep(span);
    }

    fn read_text(&mut self, file: &str) -> Result<String, CliError> {
        let mut text = String::new();
        let read = if file == "-" {
            io::stdin()
                .lock()
                .take(POLICY_BYTES_MAX + 1)
                .read_to_string(&mut text)
        } else {
            std::fs::File::open(file)
                .and_then(|f| f.take(POLICY_BYTES_MAX + 1).read_to_string(&mut text))
        };
        let failed = |reason: String| {
            CliError::new(
                Fault::Operator,
                "file_unreadable",
                format!("cannot read {file}: {reason}"),
                "check the path; `-` reads standard input",
            )
        };
        match read {
            Err(error) => Err(failed(error.to_string())),
            Ok(_) if text.len() as u64 > POLICY_BYTES_MAX => Err(failed("above 4 MiB".to_owned())),
            Ok(_) => Ok(text),
        }
    }
}

/// How words are set off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Not yet, or worth a look.
    Waiting,
    /// Wrong, or taken away.
    Bad,
    /// Nothing in particular.
    Plain,
}

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// Chooses.
    pub(crate) fn new(colours: bool) -> Self {
        Self { colours }
    }

    /// Sets a text in a tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Waiting => "33",
            Tone::Bad => "31",
            Tone::Plain => return text.to_owned(),
        };
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
