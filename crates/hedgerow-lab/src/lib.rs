//! The lab: a small plant in network namespaces, with real programs, on the real kernel.
//!
//! ```text
//!   hedgerow-lab demo ──▶ plant (namespaces, programs) ──▶ acts ──▶ matrix, programs, attacks
//!                              └─ per device: supervise ──▶ hedgerow-agent
//! ```
//!
//! The lab believes nothing that Hedgerow says of itself: what it counts are connections of programs
//! that we did not write, and packets as the kernel of the other end saw them.
//!
//! Not here: anything that runs on a customer's machine.
#![forbid(unsafe_code)]

mod agent;
mod attack;
mod bare;
mod bench;
mod central;
pub mod clock;
mod crowd;
mod demo;
mod entropy;
mod first;
mod fleet;
pub mod lab;
mod matrix;
mod plant;
mod probe;
pub mod process;
mod programs;
mod screen;
mod sim;
pub mod supervise;
mod translate;
mod witness;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::screen::Screen;

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Runs Hedgerow in a small plant made of network namespaces"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the plant in ten acts; needs root.
    Demo {
        /// Ends after the last act; the exit code is 0 only if every expectation held.
        #[arg(long)]
        once: bool,
        /// Writes one JSON object per act.
        #[arg(long)]
        json: bool,
        /// Ends after this act.
        #[arg(long, default_value_t = 10, hide = true)]
        until: u8,
    },
    /// Measures a controller with many simulated agents; needs root.
    Fleet {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        agents: usize,
        /// Writes one JSON object per measurement.
        #[arg(long)]
        json: bool,
    },
    /// The part of `fleet` that runs beside the controller.
    #[command(hide = true)]
    FleetInside {
        /// The controller's pid and a file.
        order: String,
        /// Writes one JSON object per measurement.
        #[arg(long)]
        json: bool,
    },
    /// Measures the kernel's table: load time and packet cost by size; needs root.
    BenchKernel {
        /// Writes one JSON object per size.
        #[arg(long)]
        json: bool,
    },
    /// Measures an agent: idle, and with many live peers; needs root.
    BenchAgent {
        /// How many peers.
        #[arg(long, default_value_t = 1000)]
        peers: usize,
        /// How long each idle phase is watched.
        #[arg(long, default_value_t = 60)]
        idle_secs: u64,
        /// Writes one JSON object per measurement.
        #[arg(long)]
        json: bool,
    },
    /// The part of `bench-agent` that runs beside the agent.
    #[command(hide = true)]
    BenchAgentInside {
        /// A file.
        order: PathBuf,
        /// Writes one JSON object per measurement.
        #[arg(long)]
        json: bool,
    },
    /// Measures the first packet to peers that nobody asked about before; needs root.
    BenchFirstPacket(first::Order),
    /// Sends the first packet.
    #[command(hide = true)]
    BenchFirstSend {
        /// Where to.
        target: String,
    },
    /// Notes when it comes.
    #[command(hide = true)]
    BenchFirstReceive,
    /// Runs one tunnel by itself between two ends that know each other; needs root.
    ///
    /// The keys are made of the ends' numbers: for measuring, never for traffic of value.
    Tunnel(bare::Bare),
    /// Holds a table until its input ends.
    #[command(hide = true)]
    BenchHold {
        /// How many peers.
        peers: usize,
    },
    /// Sends datagrams to it.
    #[command(hide = true)]
    BenchSend,
    /// Simulates plants from seeds, and compares who reaches whom with a reference.
    Sim(sim::Order),
    /// Removes what a killed lab left.
    Clean,
    /// Keeps a program running as the service manager would.
    Supervise {
        /// Directory for the notification socket, the state and the hold file.
        #[arg(long)]
        directory: PathBuf,
        /// Kills the program when it has not reported for so long.
        #[arg(long)]
        watchdog_secs: Option<u64>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Introduces a device of another trust domain: an attack.
    #[command(hide = true)]
    Introduce {
        /// State directory of the device attacked.
        state: PathBuf,
        /// Where its mesh listens.
        endpoint: SocketAddr,
        /// State directory of a device of ours, to speak in its name.
        #[arg(long, requires = "key")]
        insider: Option<PathBuf>,
        /// The WireGuard key to show, base64.
        #[arg(long)]
        key: Option<String>,
    },
    /// Begins handshakes without end in the name of a device of ours: an attack.
    #[command(hide = true)]
    Renegotiate(attack::renegotiate::Order),
    /// Tries connections: one end of a probe.
    #[command(hide = true)]
    Probe,
    /// Answers connections: the other end of a probe.
    #[command(hide = true)]
    Respond {
        /// TCP ports.
        #[arg(long)]
        tcp: Vec<u16>,
        /// UDP ports.
        #[arg(long)]
        udp: Vec<u16>,
    },
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo { once, json, until } => {
            demo::run(Screen::of(json), demo::Options { once, until })
        }
        Command::Fleet { agents, json } => fleet::run(Screen::of(json), agents, json),
        Command::FleetInside { order, json } => fleet::inside(Screen::of(json), &order),
        Command::BenchKernel { json } => bench::kernel(Screen::of(json)),
        Command::BenchAgent {
            peers,
            idle_secs,
            json,
        } => crowd::run(
            Screen::of(json),
            peers,
            Duration::from_secs(idle_secs),
            json,
        ),
        Command::BenchAgentInside { order, json } => crowd::inside(Screen::of(json), &order),
        Command::BenchFirstPacket(order) => order.run(),
        Command::BenchFirstSend { target } => first::send(&target),
        Command::BenchFirstReceive => first::receive(),
        Command::Tunnel(bare) => bare.run(),
        Command::BenchHold { peers } => bench::hold(peers),
        Command::BenchSend => bench::send(),
        Command::Sim(order) => order.run(),
        Command::Clean => lab::Lab::open(demo::NAME).map(|_lab| true),
        Command::Supervise {
            directory,
            watchdog_secs,
            argv,
        } => supervise::supervise(supervise::Service {
            socket: directory.join("notify"),
            hold: directory.join("hold"),
            state: directory.join("state.json"),
            watchdog: watchdog_secs.map(Duration::from_secs),
            argv,
        })
        .map(|()| true),
        Command::Introduce {
            state,
            endpoint,
            insider,
            key,
        } => introduce(&state, endpoint, insider.as_deref().zip(key.as_deref())),
        Command::Renegotiate(order) => order.run(),
        Command::Probe => probe::probe().map(|()| true),
        Command::Respond { tcp, udp } => probe::respond(&tcp, &udp).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::from(4)
        }
    }
}

/// Says what a stranger, or an insider with a WireGuard key of his own, was answered.
#[expect(
    clippy::print_stdout,
    reason = "the part of an attack that runs inside a namespace"
)]
fn introduce(
    state: &Path,
    endpoint: SocketAddr,
    insider: Option<(&Path, &str)>,
) -> anyhow::Result<bool> {
    let answered = match insider {
        None => attack::foreign::introduce(state, endpoint)?,
        Some((own, key)) => {
            let key = attack::key_from_text(key)?;
            attack::foreign::introduce_insider(own, state, endpoint, key)?
        }
    };
    let key = answered.key.map(attack::key_to_text);
    println!(
        "{}",
        serde_json::json!({"datagrams": answered.datagrams, "key": key})
    );
    Ok(true)
}

#[expect(
    clippy::print_stderr,
    reason = "the last words of a program that people start"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("hedgerow-lab: {error:#}");
}
