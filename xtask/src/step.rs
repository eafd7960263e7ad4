//! Steps with progress, and the programs that they run.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::root;

/// Says something to the person who waits. Standard output belongs to the programs we start.
#[expect(
    clippy::print_stderr,
    reason = "progress of a program that people start"
)]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Numbered steps.
#[derive(Debug)]
pub(crate) struct Steps {
    done: u32,
    all: u32,
}

impl Steps {
    /// Makes a sequence of `all` steps.
    pub(crate) fn new(all: u32) -> Self {
        Self { done: 0, all }
    }

    /// Runs the next step.
    ///
    /// # Errors
    ///
    /// The step's own, with its name.
    #[expect(
        clippy::disallowed_methods,
        reason = "people want to know how long a step took"
    )]
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        self.done += 1;
        let head = format!("[{}/{}] {name}", self.done, self.all);
        say(&format!("==> {head}"));
        let start = Instant::now();
        step().with_context(|| format!("{head} failed"))?;
        say(&format!(
            "    {head}: done in {} s",
            start.elapsed().as_secs()
        ));
        Ok(())
    }

    /// Becomes the program of the last step, so that what interrupts it and how it ends is its own.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(crate) fn last(mut self, name: &str, argv: &[&str]) -> Result<()> {
        self.done += 1;
        say(&format!("==> [{}/{}] {name}", self.done, self.all));
        let error = command(argv)?.exec();
        Err(error).with_context(|| format!("cannot start {}", argv.join(" ")))
    }
}

/// A program that runs beside the steps that follow, behind them in the queue for the processors.
#[derive(Debug)]
pub(crate) struct Beside {
    child: Child,
    shown: String,
}

impl Beside {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(crate) fn start(argv: &[&str]) -> Result<Self> {
        let words: Vec<&str> = ["nice", "-n", "10"]
            .into_iter()
            .chain(argv.iter().copied())
            .collect();
        let shown = argv.join(" ");
        let child = command(&words)?.spawn();
        let child = child.with_context(|| format!("cannot start {shown}"))?;
        Ok(Self { child, shown })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub(crate) fn finish(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("`{}` ended with {status}", self.shown);
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // A step before failed. What has ended cannot be killed, and need not be.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Makes a command that runs in the workspace's folder.
///
/// # Errors
///
/// When there are no words.
#[expect(
    clippy::disallowed_methods,
    reason = "automation is about starting programs"
)]
pub(crate) fn command(argv: &[&str]) -> Result<Command> {
    let (program, arguments) = argv.split_first().context("an empty command line")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null());
    Ok(command)
}

/// Runs a program in the open.
///
/// # Errors
///
/// When it cannot be started or fails.
pub(crate) fn program(argv: &[&str]) -> Result<()> {
    finish(command(argv)?, argv)
}

/// Runs cargo in the open.
///
/// # Errors
///
/// When it fails.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    program(&cargo_words(arguments))
}

/// Runs cargo with warnings of the documentation as errors.
///
/// # Errors
///
/// When it fails.
pub(crate) fn cargo_denying_doc_warnings(arguments: &[&str]) -> Result<()> {
    let words = cargo_words(arguments);
    let mut command = command(&words)?;
    command.env("RUSTDOCFLAGS", "--deny warnings");
    finish(command, &words)
}

fn cargo_words<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [option_env!("CARGO").unwrap_or("cargo")]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect()
}

fn finish(mut command: Command, argv: &[&str]) -> Result<()> {
    let shown = argv.join(" ");
    let status = command
        .status()
        .with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Runs a program and returns its standard output.
///
/// # Errors
///
/// When it cannot be started or fails: with what it said on standard error.
pub(crate) fn output(argv: &[&str]) -> Result<String> {
    let shown = argv.join(" ");
    let output = command(argv)?
        .output()
        .with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!(
            "`{shown}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Draws a seed nobody chose.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    // The standard library seeds every one of these anew.
    let seed = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    seed % 1_000_000_000
}
