//! Starts programs: the only place in the lab that does.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
pub use rustix::process::Signal;

use crate::clock;

/// How long a tool may take before it is killed, unless said otherwise.
pub const TOOL_SECONDS_MAX: u32 = 60;

/// Makes a command from its words, in a process group of its own, without standard input.
///
/// # Errors
///
/// When there are no words.
#[expect(
    clippy::disallowed_methods,
    reason = "the lab's work is to run programs that it did not write"
)]
pub fn command(argv: &[&str]) -> Result<Command> {
    let (program, arguments) = argv.split_first().context("an empty command line")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0);
    Ok(command)
}

/// Runs a tool to its end, bounded in time, and returns whatever it said.
///
/// # Errors
///
/// When it cannot be started. That it failed is in the output's status.
pub fn output(argv: &[&str], input: Option<&str>) -> Result<Output> {
    let limit = TOOL_SECONDS_MAX.to_string();
    let words: Vec<&str> = ["timeout", "--kill-after=2", &limit]
        .into_iter()
        .chain(argv.iter().copied())
        .collect();
    let mut command = command(&words)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", argv.join(" ")))?;
    // The writer is a thread, so that a tool which answers before it has read all cannot block us.
    let writer = child.stdin.take().zip(input).map(|(mut pipe, text)| {
        let text = text.to_owned();
        std::thread::spawn(move || pipe.write_all(text.as_bytes()))
    });
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {}", argv.join(" ")))?;
    if let Some(writer) = writer {
        // A tool may end before it has read all; its status says whether that was right.
        drop(writer.join());
    }
    Ok(output)
}

/// Runs a tool and returns its standard output.
///
/// # Errors
///
/// When it cannot be started or fails: with what it said on standard error.
pub fn run(argv: &[&str]) -> Result<String> {
    run_with(argv, None)
}

/// Runs a tool with `input` on its standard input and returns its standard output.
///
/// # Errors
///
/// As [`run`].
pub fn run_with(argv: &[&str], input: Option<&str>) -> Result<String> {
    let output = output(argv, input)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}{}",
            argv.join(" "),
            output.status,
            stderr.trim(),
            stdout.trim(),
        );
    }
    Ok(stdout)
}

/// Starts a program that stays, its output appended to `log`.
///
/// # Errors
///
/// When it cannot be started or the log cannot be opened.
pub fn spawn(argv: &[&str], log: &Path) -> Result<Child> {
    let out = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let error = out.try_clone()?;
    command(argv)?
        .stdout(out)
        .stderr(error)
        .spawn()
        .with_context(|| format!("cannot start {}", argv.join(" ")))
}

/// Returns a process's resident memory in KiB, now and at its peak.
///
/// # Errors
///
/// When there is no such process.
pub fn resident_kib(pid: u32) -> Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        let word = line.and_then(|l| l.split_whitespace().next());
        word.and_then(|w| w.parse().ok()).unwrap_or_default()
    };
    Ok((kib("VmRSS:"), kib("VmHWM:")))
}

/// Returns the resident memory of a process that no file stands behind, in KiB.
///
/// # Errors
///
/// When there is no such process.
pub fn anonymous_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let word = line.and_then(|l| l.split_whitespace().next());
    Ok(word.map(str::parse).transpose()?.unwrap_or_default())
}

/// Returns the kernel's start time of a process, in clock ticks since boot: with the pid it names
/// one process for ever. Zombies have ended.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

/// Sends SIGKILL to a process.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to a process; one that has ended is no error.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended meanwhile, which is what a signal is mostly for.
        rustix::process::kill_process(pid, signal).unwrap_or_default();
    }
}

/// Waits until a process has ended.
///
/// # Errors
///
/// When it has not within `limit`.
pub fn wait_end(pid: u32, limit: Duration) -> Result<()> {
    clock::wait_for(&format!("process {pid} to end"), limit, || {
        Ok(start_time(pid).is_none().then_some(()))
    })
}
