//! Automation of this workspace: `cargo xtask demo`, `test`, `sim`, `tidy`, `ci`.
//!
//! Not here: anything that a customer runs.
#![forbid(unsafe_code)]

mod packages;
mod step;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

use crate::step::{Beside, Steps, say};

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about = "Builds, shows and tests Hedgerow")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows Hedgerow segmenting a small plant on this machine.
    Demo {
        /// Plays all acts and ends; the exit code is 0 only if every expectation held.
        #[arg(long)]
        once: bool,
        /// Writes one JSON object per act on standard output.
        #[arg(long)]
        json: bool,
    },
    /// Runs every test, the lab on the real kernel included.
    Test,
    /// The same as `test`: there is no check that exists only in CI.
    Ci,
    /// Simulates plants from seeds; a failure prints the command that repeats it.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// The first; random unless given.
        #[arg(long)]
        from: Option<u64>,
        /// Devices of each plant.
        #[arg(long, default_value_t = 24)]
        nodes: usize,
        /// Simulated minutes; a round in which everything happens once takes sixteen.
        #[arg(long, default_value_t = 16)]
        minutes: u64,
        /// Uses a debug build, as the tests do.
        #[arg(long)]
        debug: bool,
    },
    /// Checks what neither the compiler nor clippy checks.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo { once, json } => demo(once, json),
        Command::Test | Command::Ci => test(),
        Command::Sim {
            seeds,
            from,
            nodes,
            minutes,
            debug,
        } => sim(
            from,
            [seeds, u64::try_from(nodes).unwrap_or(u64::MAX), minutes],
            debug,
        ),
        Command::Tidy => tidy(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("\nxtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn demo(once: bool, json: bool) -> Result<()> {
    let mut steps = Steps::new(3);
    steps.run("Debian packages", || packages::install(packages::DEMO))?;
    steps.run("build", || step::cargo(&["build", "--workspace", "--bins"]))?;
    let lab = target()?
        .join("debug/hedgerow-lab")
        .to_string_lossy()
        .into_owned();
    let mut words = vec![lab.as_str(), "demo"];
    words.extend(once.then_some("--once"));
    words.extend(json.then_some("--json"));
    steps.run("demonstration", || step::program(&words))
}

fn test() -> Result<()> {
    let mut steps = Steps::new(9);
    steps.run("format", || step::cargo(&["fmt", "--all", "--check"]))?;
    steps.run("tidy", tidy)?;
    steps.run("Debian packages", || {
        packages::install(packages::TEST)?;
        packages::fetch()
    })?;
    steps.run("build of the simulator", || build_sim(SIM_PROFILE))?;
    // It takes one processor while the others compile, and is over before the lab, which needs them.
    let large = simulation(LARGE_SEED, LARGE, SIM_PROFILE)?;
    let large = Beside::start(&words(&large))?;
    steps.run("clippy", || {
        step::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ])
    })?;
    steps.run("documentation", || {
        step::cargo_denying_doc_warnings(&["doc", "--workspace", "--no-deps"])
    })?;
    steps.run("build", || step::cargo(&["build", "--workspace", "--bins"]))?;
    steps.run("simulation of 1,000 devices for an hour", || large.finish())?;
    steps.run("tests, the lab last", || {
        step::cargo(&["test", "--workspace", "--no-fail-fast"])
    })
}

/// The profile of a simulator that has far to go.
const SIM_PROFILE: &str = "sim";
/// The large plant of every test run: its seed, then seeds, devices and simulated minutes.
const LARGE_SEED: u64 = 3;
const LARGE: [u64; 3] = [1, 1000, 60];

fn sim(from: Option<u64>, what: [u64; 3], debug: bool) -> Result<()> {
    let mut steps = Steps::new(2);
    let profile = if debug { "dev" } else { SIM_PROFILE };
    steps.run("build", || build_sim(profile))?;
    let from = from.unwrap_or_else(step::random_seed);
    steps.last("simulation", &words(&simulation(from, what, profile)?))
}

fn build_sim(profile: &str) -> Result<()> {
    step::cargo(&["build", "--profile", profile, "--package", "hedgerow-lab"])
}

/// Returns the command line of a simulation of so many seeds, devices and minutes.
fn simulation(from: u64, what: [u64; 3], profile: &str) -> Result<Vec<String>> {
    let folder = if profile == "dev" { "debug" } else { profile };
    let lab = target()?.join(folder).join("hedgerow-lab");
    let mut argv = vec![lab.to_string_lossy().into_owned(), "sim".to_owned()];
    let [seeds, nodes, minutes] = what;
    let options = [
        ("--seeds", seeds),
        ("--from", from),
        ("--nodes", nodes),
        ("--minutes", minutes),
    ];
    argv.extend(
        options
            .iter()
            .flat_map(|(o, n)| [(*o).to_owned(), n.to_string()]),
    );
    // Sources that came without their history are tested as well; what repeats a failure then names no commit.
    if let Ok(commit) = step::output(&["git", "rev-parse", "HEAD"]) {
        argv.extend(["--commit".to_owned(), commit.trim().to_owned()]);
    }
    Ok(argv)
}

fn words(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

fn tidy() -> Result<()> {
    let found = tidy::check(&root())?;
    for finding in &found {
        say(finding);
    }
    match found.len() {
        0 => Ok(()),
        n => bail!("{n} findings"),
    }
}

/// Returns the workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// Returns the folder that cargo builds into.
fn target() -> Result<PathBuf> {
    let text = step::output(&["cargo", "metadata", "--format-version=1", "--no-deps"])?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let directory = metadata.get("target_directory").and_then(|v| v.as_str());
    Ok(directory
        .context("cargo metadata names no target directory")?
        .into())
}
