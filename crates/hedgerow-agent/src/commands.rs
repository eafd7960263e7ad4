//! Commands that look at the mesh: what they take, and what they print.

mod peers;
mod ping;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hedgerow_model::Fault;
use serde_json::{Value, json};

use crate::config::Config;
use crate::failure::Failure;
use crate::metrics;
use crate::shell::{capture, local};
use crate::{print, say};

/// Examples below `capture --help`.
pub(crate) const CAPTURE_EXAMPLES: &str = "\
Examples:
  hedgerow-agent capture plc-1 -w plc.pcap
  hedgerow-agent capture plc-1.plant-2 -w plc.pcap -c 100
  hedgerow-agent capture all -w - | tcpdump -nr -

The copies are of inner packets: what comes in is seen before the firewall judges it, what goes \
out after. Where the kernel joins segments for the tunnel, one packet here is several on the \
wire. The agent records the events capture_started and capture_ended.";

/// What `capture` takes.
#[derive(Debug, Args)]
pub(crate) struct CaptureArgs {
    /// The peer, NAME or NAME.SITE; `all` for every packet of the mesh
    name: String,

    /// The file, in pcap format, readable by its owner; - is standard output
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    file: PathBuf,

    /// Stop after so many packets
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Stop after so many seconds, 1 to 3600
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,

    /// Stop when the file has so many MiB, 1 to 4096
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    mib: u64,
}

/// Captures, and says how it went: on standard error where packets are on standard output.
pub(crate) async fn capture(
    args: &CaptureArgs,
    config: &Config,
    json: bool,
) -> Result<(), Failure> {
    let order = capture::Order {
        peer: Some(args.name.clone()).filter(|name| name != "all"),
        file: args.file.clone(),
        count: args.count.unwrap_or(u64::MAX),
        within: Duration::from_secs(args.seconds),
        bytes_max: args.mib << 20,
    };
    let summary = Box::pin(capture::run(config, &order)).await?;
    let text = match json {
        true => summary.json().to_string(),
        false => summary.text(),
    };
    if args.file.as_os_str() == "-" {
        say(&text);
        return Ok(());
    }
    print(&text)
}

/// Prints the numbers; with `--json` the document that they are made of.
pub(crate) async fn metrics(config: &Config, json: bool) -> Result<(), Failure> {
    let status = status(config).await?;
    print(&match json {
        true => status.to_string(),
        false => metrics::text(&status).trim_end().to_owned(),
    })
}

async fn status(config: &Config) -> Result<Value, Failure> {
    ask(config, &local::Request::Status).await
}

async fn ask(config: &Config, request: &local::Request) -> Result<Value, Failure> {
    let answer = local::ask(config, request).await?;
    answer.ok_or_else(|| local::nobody(config))
}

/// Below `peers --help`.
pub(crate) const PEERS_HELP: &str = "\
A peer is a device that packets were exchanged with, and a relay that is kept. PATH is how \
datagrams go to it, ADDRESS where they are sent: the peer's own or the relay's. PQ says whether \
the session has a post-quantum key. `hedgerow-agent paths` lists the other ways.";

/// Prints the peers.
pub(crate) async fn peers(config: &Config, json: bool) -> Result<(), Failure> {
    let status = status(config).await?;
    print(&match json {
        true => json!({ "peers": peers::list(&status) }).to_string(),
        false => peers::peers_text(&status),
    })
}

/// Below `paths --help`.
pub(crate) const PATHS_HELP: &str = "\
The way in use is marked with *. `alive` answers probes, `fresh` is being tried, `resting` does \
not answer and is tried again after a pause.

Examples:
  hedgerow-agent paths
  hedgerow-agent paths plc-1.plant-2";

/// Prints every way to a peer, or to all.
pub(crate) async fn paths(name: Option<&str>, config: &Config, json: bool) -> Result<(), Failure> {
    let status = status(config).await?;
    let chosen = match name {
        None => peers::list(&status),
        Some(name) => vec![peers::find(&status, name).ok_or_else(|| no_peer(name))?],
    };
    print(&match json {
        true => json!({ "peers": chosen }).to_string(),
        false => peers::paths_text(&status, &chosen),
    })
}

fn no_peer(name: &str) -> Failure {
    Failure::operator(
        format!("`{name}` is no peer at present"),
        "`hedgerow-agent peers` lists them; `hedgerow-agent ping NAME` makes one of a device that policy allows",
    )
}

/// Below `ping --help`.
pub(crate) const PING_HELP: &str = "\
The question goes to the peer's agent inside the tunnel, so it says how the way is, whatever \
services policy allows between the two. A device that policy lets neither call nor be called \
cannot be asked. Ctrl-C ends it with a summary.

Examples:
  hedgerow-agent ping plc-1.plant-2
  hedgerow-agent ping plc-1 -c 5 --json";

/// What `ping` takes.
#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// The peer: NAME in the own site, or NAME.SITE
    name: String,

    /// Stop after so many
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Seconds between two, 0.05 to 3600
    #[arg(short = 'i', long, value_name = "S", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("write seconds, 0.05 to 3600".to_owned()),
    }
}

/// Asks a peer's agent, until there were enough or somebody has seen enough.
pub(crate) async fn ping(
    args: &PingArgs,
    config: &Config,
    json: bool,
) -> Result<ExitCode, Failure> {
    let mut tally = ping::Tally::default();
    let request = local::Request::Ping {
        peer: args.name.clone(),
    };
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    for number in 1.. {
        let answer = tokio::select! {
            _ = &mut stop => break,
            answer = ask(config, &request) => answer?,
        };
        let said = tally.add(&answer);
        if !json {
            print(&said)?;
        }
        if args.count.is_some_and(|count| number >= count) {
            break;
        }
        tokio::select! {
            _ = &mut stop => break,
            () = tokio::time::sleep(ping::pause(args.interval)) => {}
        }
    }
    print(&match json {
        true => tally.json(&args.name).to_string(),
        false => tally.text(),
    })?;
    Ok(match tally.has_answer() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Fault::Environment.exit_code()),
    })
}

/// Below `trace --help`.
pub(crate) const TRACE_HELP: &str = "\
From this device's own addresses over the NAT in front of it and the relay between, to the peer, \
each with its round trip, and why the way is what it is.

Example:
  hedgerow-agent trace plc-1.plant-2";

/// Prints the way to a peer, hop by hop.
pub(crate) async fn trace(name: &str, config: &Config, json: bool) -> Result<(), Failure> {
    let request = local::Request::Ping {
        peer: name.to_owned(),
    };
    let answer = ask(config, &request).await?;
    let status = status(config).await?;
    let peer = peers::find(&status, name).ok_or_else(|| no_peer(name))?;
    let trace = peers::trace(&status, peer, &answer);
    print(&match json {
        true => trace.to_string(),
        false => peers::trace_text(&trace),
    })
}

/// Below `bench --help`.
pub(crate) const BENCH_HELP: &str = "\
Both agents send to each other inside the tunnel, first there, then back. The peer has to \
consent: `mesh.bench = \"allow\"` in its agent.toml. At most 10 seconds each way and 2 GiB \
altogether; one measurement at a time.

Example:
  hedgerow-agent bench plc-1.plant-2 --seconds 5";

/// What `bench` takes.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The peer: NAME in the own site, or NAME.SITE
    name: String,

    /// How long each way, 1 to 10 seconds
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10))]
    seconds: u32,
}

/// Measures throughput to a peer and back.
pub(crate) async fn bench(args: &BenchArgs, config: &Config, json: bool) -> Result<(), Failure> {
    let request = local::Request::Bench {
        peer: args.name.clone(),
        seconds: args.seconds,
    };
    let measured = ask(config, &request).await?;
    if measured.get("there").is_none() {
        let reason = measured.get("reason").and_then(Value::as_str);
        return Err(Failure::environment(
            format!("{}: {}", args.name, reason.unwrap_or("not measured")),
            "see `hedgerow-agent ping` and `hedgerow-agent paths`",
        ));
    }
    print(&match json {
        true => measured.to_string(),
        false => ping::bench_text(&measured),
    })
}
