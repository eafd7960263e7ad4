//! `hedgerow-agent`: identity, mesh and kernel enforcement on one device.
//!
//! ```text
//!  shell/ (sockets, files, kernel, time) ──inputs──▶ state (decides) ──steps──▶ shell/
//! ```
//!
//! # Invariants
//!
//! - The kernel enforces the last verified policy whether this program runs or not.
//! - What cannot be verified is not used; what cannot be reached is not waited for.
//! - Every path and name comes from the configuration, so several agents can share a machine.
#![forbid(unsafe_code)]

mod check;
mod commands;
mod config;
mod failure;
mod metrics;
mod shell;
mod state;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hedgerow_model::id::{DeviceName, Digest};

use crate::config::Config;
use crate::failure::Failure;

/// Identity, mesh and kernel enforcement on one device
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    /// The configuration file [default: /etc/hedgerow/agent.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 something given is wrong or `check` found an error, 2 usage, 3 the other end \
    misbehaved, 4 the machine or the network failed, 70 a bug.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Get an identity, with a token from standard input or by an operator's approval
    Enroll(EnrollArgs),
    /// Run the agent
    Run,
    /// Load the last policy's table into the kernel, from disk alone; for boot, before networking
    Load,
    /// Show how things stand
    Status,
    /// List the peers: how and where they are reached, how good that is
    #[command(after_help = commands::PEERS_HELP)]
    Peers,
    /// List every way to a peer, and why the one in use is
    #[command(after_help = commands::PATHS_HELP)]
    Paths {
        /// The peer: NAME in the own site, or NAME.SITE; all when absent
        name: Option<String>,
    },
    /// Measure the round trip to a peer's agent through the mesh
    #[command(after_help = commands::PING_HELP)]
    Ping(commands::PingArgs),
    /// Show the way to a peer, hop by hop
    #[command(after_help = commands::TRACE_HELP)]
    Trace {
        /// The peer: NAME in the own site, or NAME.SITE
        name: String,
    },
    /// Measure throughput to a consenting peer and back
    #[command(after_help = commands::BENCH_HELP)]
    Bench(commands::BenchArgs),
    /// Print the agent's numbers in the text format of Prometheus
    Metrics,
    /// Copy a peer's packets into a file that tcpdump and Wireshark read
    #[command(after_help = commands::CAPTURE_EXAMPLES)]
    Capture(commands::CaptureArgs),
    /// Say what is wrong on this machine and how to mend it
    Check,
    /// Take table, tunnel and names away; the network is as before
    Off,
    /// Leave the trust domain and remove the identity
    Leave {
        /// Leave also when the controller cannot be told
        #[arg(long)]
        force: bool,
    },
    /// Take signed revocations or states from a file, for this device and all that it reaches
    Revocations {
        #[command(subcommand)]
        command: RevocationsCommand,
    },
    /// Show the fingerprint of this device's key
    Fingerprint,
    /// Show the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Debug, Subcommand)]
enum RevocationsCommand {
    /// Take a signed list, as `hedgerow-control revoke` writes it; the running agent hands it on
    Import {
        /// The signed list
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the effective values
    Show {
        /// Say where each value comes from
        #[arg(long)]
        origin: bool,
    },
}

#[derive(Debug, Args)]
struct EnrollArgs {
    /// Read the token from this file instead of standard input
    #[arg(long, value_name = "FILE", conflicts_with = "controller")]
    token_file: Option<PathBuf>,

    /// Ask this controller for an operator's approval, without a token
    #[arg(long, value_name = "HOST:PORT", requires = "root_hash")]
    controller: Option<String>,

    /// The root set to believe: 64 hexadecimal digits
    #[arg(long, value_name = "DIGEST", requires = "controller")]
    root_hash: Option<Digest>,

    /// The name this device would like
    #[arg(long)]
    name: Option<DeviceName>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log();
    match runtime().and_then(|runtime| runtime.block_on(run(&cli))) {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, cli.json);
            ExitCode::from(failure.fault.exit_code())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(|e| Failure::environment(format!("no runtime: {e}"), "see the system's limits"))
}

async fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let config = Config::read(cli.config.as_deref())?;
    let done = |text: String| {
        print(&if cli.json {
            serde_json::json!({ "done": text }).to_string()
        } else {
            text
        })
    };
    match &cli.command {
        Command::Enroll(args) => {
            let order = shell::enroll::Order {
                token_file: args.token_file.clone(),
                controller: args.controller.clone(),
                root_hash: args.root_hash,
                name: args.name.clone(),
            };
            done(shell::enroll::run(&order, &config, &mut say).await?)?;
        }
        Command::Run => {
            let end = Box::pin(shell::run::run(config)).await?;
            tracing::info!(?end, "ended");
        }
        Command::Load => done(shell::offline::load(&config)?)?,
        Command::Status => status(cli, &config).await?,
        Command::Peers => commands::peers(&config, cli.json).await?,
        Command::Paths { name } => commands::paths(name.as_deref(), &config, cli.json).await?,
        Command::Ping(args) => return commands::ping(args, &config, cli.json).await,
        Command::Trace { name } => commands::trace(name, &config, cli.json).await?,
        Command::Bench(args) => commands::bench(args, &config, cli.json).await?,
        Command::Metrics => commands::metrics(&config, cli.json).await?,
        Command::Capture(args) => commands::capture(args, &config, cli.json).await?,
        Command::Check => return check(cli, &config).await,
        Command::Off => done(shell::offline::off(&config).await?)?,
        Command::Leave { force } => done(shell::offline::leave(&config, *force).await?)?,
        Command::Revocations {
            command: RevocationsCommand::Import { file },
        } => done(shell::offline::import(&config, file).await?)?,
        Command::Fingerprint => {
            let text = shell::offline::own_fingerprint(&config)?;
            print(&if cli.json {
                serde_json::json!({ "fingerprint": text }).to_string()
            } else {
                text
            })?;
        }
        Command::Config {
            command: ConfigCommand::Show { origin },
        } => show(cli, &config, *origin)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(cli: &Cli, config: &Config) -> Result<(), Failure> {
    let request = shell::local::Request::Status;
    let status = shell::local::ask(config, &request)
        .await?
        .ok_or_else(|| shell::local::nobody(config))?;
    print(&if cli.json {
        status.to_string()
    } else {
        shell::status::text(&status).trim_end().to_owned()
    })
}

async fn check(cli: &Cli, config: &Config) -> Result<ExitCode, Failure> {
    let findings = check::all(config).await;
    print(&if cli.json {
        serde_json::json!({ "findings": findings }).to_string()
    } else {
        check::text(&findings)
    })?;
    Ok(ExitCode::from(check::exit_code(&findings)))
}

fn show(cli: &Cli, config: &Config, with_origin: bool) -> Result<(), Failure> {
    if cli.json {
        let values = serde_json::to_string(config.origins());
        return print(&values.unwrap_or_default());
    }
    for value in config.origins() {
        print(&if with_origin {
            format!("{} = {}  # {}", value.key, value.value, value.origin)
        } else {
            format!("{} = {}", value.key, value.value)
        })?;
    }
    Ok(())
}

/// Logs go to standard error. The filter is the one thing taken from the environment.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::filter::LevelFilter;
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("HEDGEROW_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

fn say(text: &str) {
    // Progress that nobody can see is no reason to stop.
    drop(writeln!(std::io::stderr(), "{text}"));
}

fn report(failure: &Failure, json: bool) {
    let text = if json {
        serde_json::json!({ "error": {
            "message": failure.message,
            "remedy": failure.remedy,
            "exit_code": failure.fault.exit_code(),
        } })
        .to_string()
    } else {
        format!("hedgerow-agent: {failure}")
    };
    say(&text);
}

fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::environment(
            format!("cannot write to standard output: {e}"),
            "see where it goes",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    /// The reference page is what `--help` says. Update it with `UPDATE_EXPECT=1 cargo test --workspace
    /// reference_page`.
    #[test]
    fn the_reference_page_is_what_help_says() {
        let mut page = "# hedgerow-agent\n\nGenerated from the command line's own help; a test compares it. Every command takes `--json`: [documents](agent-json.md).\n"
            .to_owned();
        let mut command = Cli::command().term_width(100);
        command.build();
        describe(&mut command, &mut page);
        let trimmed: Vec<&str> = page.lines().map(str::trim_end).collect();
        expect_test::expect_file!["../../../docs/reference/agent-cli.md"]
            .assert_eq(&format!("{}\n", trimmed.join("\n")));
    }

    fn describe(command: &mut clap::Command, page: &mut String) {
        let name = command.get_bin_name().unwrap_or(command.get_name());
        let name = name.to_owned();
        let mut shown = command.clone();
        if name.contains(' ') {
            for id in ["config", "json", "help", "version"] {
                if shown.get_arguments().any(|arg| arg.get_id() == id) {
                    shown = shown.mut_arg(id, |arg| arg.hide(true));
                }
            }
        }
        let help = shown.render_long_help().to_string();
        *page += &format!("\n## {name}\n\n```text\n{}\n```\n", help.trim_end());
        let children = command.get_subcommands_mut();
        children
            .filter(|c| c.get_name() != "help")
            .for_each(|child| describe(child, page));
    }
}
