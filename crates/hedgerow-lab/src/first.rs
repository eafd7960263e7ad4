//! How long the first packet to a peer takes that nobody asked about before.
//!
//! ```text
//!   central ──┐
//!   senders ──┴── router ── receivers
//! ```
//!
//! Agents, controller and kernels are the real ones. A datagram carries the time at which it was handed to
//! its kernel; the receiver's program notes when it got it. Beside it stand the raw round trips of the wires.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::central::Central;
use crate::lab::Lab;
use crate::plant::{self, CENTRAL_ADDRESS, in_namespace};
use crate::screen::Screen;
use crate::{clock, matrix};

const POLICY: &str = "apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: first-packet, owner: lab }
labels:
  role: { values: [ sender, receiver ] }
  site: { from: enrollment }
services:
  first: [ udp/9000 ]
segments:
  all: { select: \"role in (sender, receiver)\", mode: enforce }
rules:
  - { id: r-first, from: \"role=sender\", to: \"role=receiver\", service: first }
defaults: { deny: both, log: sample/10s }
";
const PORT: u16 = 9000;
/// Receivers at most: one network has no more addresses to spare.
const RECEIVERS_MAX: usize = 64;
/// How long a packet may be under way, and an agent may take to be connected.
const PATIENCE: Duration = Duration::from_secs(20);
/// What agents have to do after a start is not part of the figure.
const SETTLE: Duration = Duration::from_secs(3);
/// Echo requests for a raw round trip.
const ECHOES: &str = "50";
/// What the goal gives beyond round trips.
const GOAL_MS: f64 = 5.0;

/// One device with its agent.
struct Device<'l> {
    agent: Agent<'l>,
    namespace: String,
    underlay: Ipv4Addr,
}

/// Who is asked where a receiver is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The controller: nobody remembers anybody.
    Controller,
    /// Nobody: everybody remembers whom it met.
    Disk,
}

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct Order {
    /// How many peers, at most 64.
    #[arg(long, default_value_t = 10)]
    peers: usize,
    /// How often the agents start again, and remember nobody.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Writes one JSON object per measurement.
    #[arg(long)]
    json: bool,
}

impl Order {
    /// Measures and says what came out.
    ///
    /// # Errors
    ///
    /// As [`run`].
    pub(crate) fn run(&self) -> Result<bool> {
        run(Screen::of(self.json), self.peers, self.rounds)
    }
}

/// Measures first packets: `rounds` to each of `receivers`.
///
/// # Errors
///
/// When a program fails, or a packet does not arrive.
fn run(screen: Screen, receivers: usize, rounds: usize) -> Result<bool> {
    ensure!(
        (1..=RECEIVERS_MAX).contains(&receivers),
        "1 to {RECEIVERS_MAX} receivers"
    );
    let lab = Lab::open("bench-first-packet")?;
    lab.wipe()?;
    plant::router(&lab)?;
    screen.say(&format!(
        "Starting a controller and {} agents.",
        receivers + 3
    ));
    let central = Central::found(&lab)?;
    central.apply(POLICY)?;
    let enroll = |name: &str, role: &str, [network, host]: [u8; 2]| {
        let underlay = Ipv4Addr::new(10, 77, network, host);
        Device::enroll(&lab, &central, name, role, underlay)
    };
    let mut cast = Cast {
        sender: enroll("sender", "sender", [1, 11])?,
        other: enroll("other", "sender", [1, 12])?,
        pilot: enroll("pilot", "receiver", [2, 11])?,
        receivers: Vec::new(),
    };
    for (number, host) in (0..receivers).zip(20u8..) {
        let receiver = enroll(&format!("receiver-{number}"), "receiver", [2, host])?;
        cast.receivers.push(receiver);
    }
    let own = matrix::own_program()?;
    for receiver in cast.receivers.iter().chain([&cast.pilot]) {
        let argv = [&own, "bench-first-receive"];
        lab.start(&receiver.namespace, &receiver.log(), &argv)?;
    }
    let mut all = true;
    for (asked, what) in [
        (Asked::Controller, "resolved by the controller"),
        (Asked::Disk, "remembered on disk"),
    ] {
        let (mut of_class, mut times) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            cast.restart(asked)?;
            // The first peer of a class makes both ends load a table with its profile.
            of_class.push(first(&lab, &cast.sender, &cast.pilot)?);
            for receiver in &cast.receivers {
                first(&lab, &cast.other, receiver)?;
            }
            for receiver in &cast.receivers {
                times.push(first(&lab, &cast.sender, receiver)?);
            }
        }
        let resolve = match asked {
            Asked::Controller => round_trip(&cast.sender, CENTRAL_ADDRESS)?,
            Asked::Disk => 0.0,
        };
        let raw = (resolve, round_trip(&cast.sender, cast.pilot.underlay)?);
        report(
            screen,
            &format!("{what}, first of its class"),
            of_class,
            raw,
        );
        all &= report(screen, what, times, raw);
    }
    lab.close();
    Ok(all)
}

/// Says what came out; returns whether half of the packets kept the goal.
fn report(screen: Screen, what: &str, mut ms: Vec<f64>, (resolve, peer): (f64, f64)) -> bool {
    ms.sort_by(f64::total_cmp);
    let at = |percent: usize| ms.get(ms.len().saturating_sub(1) * percent / 100).copied();
    let [p50, p99, most] = [50, 99, 100].map(|p| at(p).unwrap_or_default());
    let bound = resolve + 2.0 * peer + GOAL_MS;
    screen.say(&format!(
        "  {what}: {} first packets, p50 {p50:.2} ms, p99 {p99:.2} ms, at most {most:.2} ms; raw round trips \
         {resolve:.3} ms to the controller, {peer:.3} ms to the peer; goal {bound:.2} ms",
        ms.len()
    ));
    screen.object(&json!({
        "what": what, "packets": ms.len(), "p50_ms": p50, "p99_ms": p99, "max_ms": most,
        "raw_controller_ms": resolve, "raw_peer_ms": peer, "goal_ms": bound,
    }));
    p50 <= bound
}

impl<'l> Device<'l> {
    fn enroll(
        lab: &'l Lab,
        central: &Central<'_>,
        name: &str,
        role: &str,
        underlay: Ipv4Addr,
    ) -> Result<Self> {
        let namespace = format!("hgd-first-{name}");
        lab.namespace(&namespace)?;
        plant::plug(&namespace, underlay)?;
        plant::link_up(&namespace)?;
        let hosts = format!("/etc/netns/{namespace}/hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n")?;
        let agent = Agent::at(lab, &namespace, name, &hosts)?;
        let made = central.post(
            "tokens",
            &json!({"site": "s1", "name": name, "labels": {"role": role}, "ttl_secs": 3600}),
        )?;
        let token = made.get("token").and_then(Value::as_str);
        agent.enroll(token.with_context(|| format!("no token in {made}"))?)?;
        agent.start()?;
        Ok(Self {
            agent,
            namespace,
            underlay,
        })
    }

    fn log(&self) -> String {
        format!("arrived-{}", self.namespace)
    }

    fn overlay(&self) -> Result<String> {
        let status = self.agent.status()?;
        let address = status
            .pointer("/device/addresses/0")
            .and_then(Value::as_str);
        Ok(address
            .with_context(|| format!("no address in {status}"))?
            .to_owned())
    }

    /// Forgets on disk whom it met. The agent does not run.
    fn forget(&self) -> Result<()> {
        for memory in fs::read_dir(self.agent.directory.join("state/peers"))? {
            fs::remove_file(memory?.path())?;
        }
        Ok(())
    }

    fn wait_connected(&self) -> Result<()> {
        let what = format!("{} to have a session", self.namespace);
        clock::wait_for(&what, PATIENCE, || {
            let status = self.agent.status()?;
            let controller = status.pointer("/uplink/controller");
            Ok(controller.is_some_and(Value::is_string).then_some(()))
        })
    }
}

/// Who takes part.
struct Cast<'l> {
    /// Whose packets are measured.
    sender: Device<'l>,
    /// Shows the receivers what senders are.
    other: Device<'l>,
    /// Shows the sender what receivers are.
    pilot: Device<'l>,
    receivers: Vec<Device<'l>>,
}

impl Cast<'_> {
    /// Lets all agents start again, without what they should not know.
    fn restart(&self, asked: Asked) -> Result<()> {
        let few = [&self.sender, &self.other, &self.pilot];
        let all: Vec<_> = few.into_iter().chain(&self.receivers).collect();
        for device in &all {
            device.agent.kill()?;
            if asked == Asked::Controller {
                device.forget()?;
            }
        }
        for device in &all {
            device.agent.revive()?;
        }
        for device in &all {
            device.wait_connected()?;
        }
        clock::pause(SETTLE);
        Ok(())
    }
}

/// Sends one packet; returns how many milliseconds it took.
fn first(lab: &Lab, sender: &Device<'_>, other: &Device<'_>) -> Result<f64> {
    let log = lab.path(&format!("logs/{}.log", other.log()))?;
    let before = arrivals(&log)?.len();
    let own = matrix::own_program()?;
    let target = format!("[{}]:{PORT}", other.overlay()?);
    in_namespace(&sender.namespace, &[&own, "bench-first-send", &target])?;
    clock::wait_for("the first packet", PATIENCE, || {
        Ok(arrivals(&log)?.get(before).copied())
    })
}

fn arrivals(log: &Path) -> Result<Vec<f64>> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
    lines.map(|l| Ok(l.trim().parse()?)).collect()
}

/// Returns the median round trip of the wires in milliseconds.
fn round_trip(from: &Device<'_>, to: Ipv4Addr) -> Result<f64> {
    let to = to.to_string();
    let words = ["ping", "-n", "-i", "0.02", "-c", ECHOES, &to];
    let text = in_namespace(&from.namespace, &words)?;
    let times = text.split("time=").skip(1);
    let mut ms: Vec<f64> = times
        .filter_map(|t| t.split_whitespace().next()?.parse().ok())
        .collect();
    ms.sort_by(f64::total_cmp);
    ms.get(ms.len() / 2).copied().context("no echo came back")
}

/// Nanoseconds of the machine's clock, the same in every namespace.
fn nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let whole = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000;
    whole + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The sender's program: one datagram with the time in it.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn send(target: &str) -> Result<bool> {
    let socket = UdpSocket::bind("[::]:0")?;
    socket.connect(target)?;
    socket.send(&nanos().to_be_bytes())?;
    Ok(true)
}

/// The receivers' program: prints how many milliseconds each datagram took.
///
/// # Errors
///
/// When the kernel refuses.
#[expect(
    clippy::print_stdout,
    reason = "the part of a measurement that runs inside a namespace"
)]
pub(crate) fn receive() -> Result<bool> {
    let socket = UdpSocket::bind(("::", PORT))?;
    let mut sent = [0u8; 8];
    loop {
        let (len, _) = socket.recv_from(&mut sent)?;
        let now = nanos();
        if len == sent.len() {
            let took = now.saturating_sub(u64::from_be_bytes(sent));
            println!("{}", took as f64 / 1e6);
        }
    }
}
