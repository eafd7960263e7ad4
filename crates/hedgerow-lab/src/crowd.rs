//! One agent and a crowd of peers: what an agent needs at rest, and with many live sessions.
//!
//! The peers have real identities and speak the mesh's own protocol from loopback addresses of their
//! own; the agent, the controller and the kernel's table are the real ones.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hedgerow_identity::enroll::Token;
use hedgerow_identity::key::SoftwareP256;
use hedgerow_identity::standing::Standing;
use hedgerow_identity::statement::{sign_binding, verify_binding};
use hedgerow_linux::tunnel::core::{Core, CoreConfig, Output as Wire};
use hedgerow_linux::tunnel::limits::INITIATIONS_PER_SECOND;
use hedgerow_linux::tunnel::{
    Command, MTU_DEFAULT, PeerConfig, PrivateKey, Report, Roaming, Secrecy, Slot,
};
use hedgerow_mesh::{Admission, IntroductionSecret, Mesh, Output, OwnIdentity, Resolved, View};
use hedgerow_model::address::{Overlay, Underlay};
use hedgerow_model::statement::Binding;
use hedgerow_model::{Mono, Now, Wall};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::attack::foreign::Target;
use crate::central::{Central, program};
use crate::entropy::{SystemRandom, bytes};
use crate::fleet::device::obtain;
use crate::lab::Lab;
use crate::plant::{CENTRAL, CENTRAL_ADDRESS, CENTRAL_PORT, in_namespace};
use crate::screen::Screen;
use crate::{clock, matrix, process};

const POLICY: &str = include_str!("../../../examples/plant.yaml");
/// Where the agent's mesh listens.
const MESH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7117);
/// Peers that introduce themselves at the same time.
const AT_ONCE: usize = 32;
/// The time for each: the agent verifies 200 introductions a second, and who comes sooner asks again.
const PACE: Duration = Duration::from_micros(6_500);
/// How long a peer may take to get its session.
const PATIENCE: Duration = Duration::from_secs(30);
const DAY: u64 = 86_400;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    agent: u32,
    state: String,
    token: String,
    peers: usize,
    idle: Duration,
}

/// Measures an agent with `peers` live peers.
///
/// # Errors
///
/// When a program fails or the peers get no sessions.
pub(crate) fn run(screen: Screen, peers: usize, idle: Duration, json: bool) -> Result<bool> {
    let lab = Lab::open("bench-agent")?;
    lab.wipe()?;
    lab.namespace(CENTRAL)?;
    // Everything stays in one namespace: the agent is measured, not the wires.
    let address = format!("{CENTRAL_ADDRESS}/32");
    in_namespace(CENTRAL, &["ip", "address", "add", &address, "dev", "lo"])?;
    screen.say("Starting a controller and an agent.");
    let central = Central::found(&lab)?;
    // The underlay carries the peers; what is measured is the mesh.
    central.apply(&POLICY.replace(", underlay: enforce", ""))?;
    let token = |role: &str, count: usize| -> Result<String> {
        let made = central.post(
            "tokens",
            &json!({"site": "s1", "labels": {"role": role}, "ttl_secs": DAY, "count": count}),
        )?;
        let text = made.get("token").and_then(Value::as_str);
        Ok(text
            .with_context(|| format!("no token in {made}"))?
            .to_owned())
    };
    let hosts = lab.path("bench-agent-hosts")?;
    fs::write(&hosts, "127.0.0.1 localhost\n")?;
    let agent = Agent::at(&lab, CENTRAL, "hub", &hosts.to_string_lossy())?;
    agent.enroll(&token("collector", 1)?)?;
    agent.start()?;
    let order = Order {
        agent: agent.pid()?,
        state: agent.directory.join("state").to_string_lossy().into_owned(),
        token: token("sensor", peers.max(1))?,
        peers,
        idle,
    };
    let size = fs::metadata(program("hedgerow-agent")?)?.len();
    screen.say(&format!("  program: {size} bytes"));
    screen.object(&json!({"what": "program", "bytes": size}));
    let path = lab.path("bench-agent.json")?;
    let (own, file) = (matrix::own_program()?, path.to_string_lossy().into_owned());
    let mut words = vec![
        "ip",
        "netns",
        "exec",
        CENTRAL,
        &own,
        "bench-agent-inside",
        &file,
    ];
    words.extend(json.then_some("--json"));
    // What an agent needs that just started and remembers nobody.
    let alone = restarted(&agent)?;
    let order = Order {
        agent: agent.pid()?,
        ..order
    };
    fs::write(&path, serde_json::to_vec(&order)?)?;
    let status = process::command(&words)?.status()?;
    // The peers are gone now; who met them remembers them.
    let known = restarted(&agent)?;
    let each = known.saturating_sub(alone) * 1024 / u64::try_from(peers.max(1))?;
    screen.say(&format!(
        "  started again: {alone} KiB resident before it met anybody, {known} KiB with {peers} peers known = {each} bytes each"
    ));
    screen.object(&json!({
        "what": "known", "peers": peers, "rss_alone_kib": alone, "rss_known_kib": known, "bytes_per_known": each,
    }));
    lab.close();
    Ok(status.success())
}

/// Starts the agent again; returns its resident memory in KiB once it is at rest.
fn restarted(agent: &Agent<'_>) -> Result<u64> {
    agent.kill()?;
    agent.revive()?;
    clock::pause(Duration::from_secs(10));
    Ok(process::resident_kib(agent.pid()?)?.0)
}

/// The part that runs inside of the namespace.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn inside(screen: Screen, order: &Path) -> Result<bool> {
    let order: Order = serde_json::from_slice(&fs::read(order)?)?;
    let target = Target::read(Path::new(&order.state))?;
    rest(screen, &order, "idle, no peers")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let start = clock::now();
    let token = Token::parse(&order.token)?;
    screen.say(&format!("Enrolling {} peers.", order.peers));
    let mut crowd = Vec::with_capacity(order.peers);
    for number in 0..order.peers {
        crowd.push(runtime.block_on(Peer::enroll(&token, number, &target, start))?);
    }
    let began = clock::now();
    for (chunk, some) in crowd.chunks_mut(AT_ONCE).enumerate() {
        meet(some, &target, start)?;
        let due = PACE * u32::try_from((chunk + 1) * AT_ONCE)?;
        clock::pause(due.saturating_sub(clock::now().duration_since(began)));
    }
    let took = clock::ms_since(began);
    screen.say(&format!("  {} sessions in {took} ms", order.peers));
    screen.object(&json!({"what": "sessions", "peers": order.peers, "ms": took}));
    rest(screen, &order, "idle, all peers live")?;
    Ok(true)
}

/// Lets the agent rest, and reports what it needed.
fn rest(screen: Screen, order: &Order, what: &str) -> Result<()> {
    // What a start or a storm left to do is not rest.
    clock::pause(Duration::from_secs(5));
    let (before, wire) = (cpu_ms(order.agent)?, loopback_bytes()?);
    clock::pause(order.idle);
    let cpu = cpu_ms(order.agent)?.saturating_sub(before);
    let wire = loopback_bytes()?.saturating_sub(wire);
    let (rss, peak) = process::resident_kib(order.agent)?;
    let share = cpu as f64 / order.idle.as_secs_f64() / 10.0;
    let per_day = wire.saturating_mul(DAY) / order.idle.as_secs().max(1);
    screen.say(&format!(
        "  {what}: {rss} KiB resident (peak {peak}), {cpu} ms CPU in {} s = {share:.3} % of a core, \
         {wire} bytes on the wire = {per_day} a day",
        order.idle.as_secs()
    ));
    screen.object(&json!({
        "what": what, "rss_kib": rss, "peak_kib": peak, "cpu_ms": cpu, "idle_secs": order.idle.as_secs(),
        "wire_bytes": wire, "wire_bytes_per_day": per_day,
    }));
    Ok(())
}

/// User and system time of a process.
fn cpu_ms(pid: u32) -> Result<u64> {
    // In nanoseconds: hundredths of a second would round an idle agent down to nothing.
    let mut total = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let word = text.split_whitespace().next().unwrap_or_default();
        total += word.parse::<u64>()?;
    }
    Ok(total / 1_000_000)
}

/// Bytes that the loopback interface carried, headers included: in a quiet namespace the agent's
/// session with its controller, both directions.
fn loopback_bytes() -> Result<u64> {
    let table = fs::read_to_string("/proc/self/net/dev")?;
    let line = table
        .lines()
        .find_map(|l| l.trim_start().strip_prefix("lo:"))
        .context("no loopback interface")?;
    let word = line.split_whitespace().next().context("no counter")?;
    Ok(word.parse()?)
}

/// A peer: identity, mesh and tunnel without a kernel.
struct Peer {
    mesh: Mesh,
    core: Core,
    socket: UdpSocket,
    live: bool,
}

impl Peer {
    async fn enroll(token: &Token, number: usize, target: &Target, start: Instant) -> Result<Self> {
        // An address of its own each: budgets count sources.
        let low = u16::try_from(number)?.to_be_bytes();
        let from = Ipv4Addr::new(127, 9, low[0], low[1]);
        let to = SocketAddr::from((CENTRAL_ADDRESS, CENTRAL_PORT));
        let key = SoftwareP256::generate(&mut SystemRandom)?;
        let introduction = IntroductionSecret::from_bytes(bytes());
        let name = format!("peer-{number}");
        let issued = obtain((from, to), token, name, &key, introduction.public()).await?;
        let standing = Standing::new(None);
        let now = moment(start);
        let ticket = target.trust.verify_ticket(&issued.ticket, &standing, now)?;
        let secret = PrivateKey::from_bytes(bytes());
        let binding = Binding {
            id: ticket.id,
            wireguard_key: secret.public(),
            sequence: now.wall.secs(),
            not_after_secs: now.wall.secs() + DAY,
        };
        let binding = verify_binding(&sign_binding(&binding, &key)?, &ticket, now)?;
        let core = Core::new(
            CoreConfig {
                addresses: ticket.addresses,
                mtu: MTU_DEFAULT,
                private_key: secret,
                wall_floor: now.wall,
                initiations_per_second: INITIATIONS_PER_SECOND,
            },
            Box::new(|buffer| {
                buffer.iter_mut().for_each(|b| *b = bytes::<1>()[0]);
                Ok(())
            }),
        );
        let mut mesh = Mesh::new(bytes());
        let identity = OwnIdentity {
            ticket,
            binding,
            introduction,
            previous_introduction: None,
        };
        let view = View {
            trust: &target.trust,
            standing: &standing,
            now,
        };
        mesh.handle_own(identity, view)?;
        let socket = UdpSocket::bind((from, 0))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            mesh,
            core,
            socket,
            live: false,
        })
    }

    /// Does what mesh and tunnel want done.
    fn work(&mut self, target: &Target, view: View<'_>) -> Result<()> {
        while let Some(output) = self.mesh.poll() {
            match output {
                Output::Resolve { query } => {
                    let answer = Resolved {
                        ticket: target.ticket.clone(),
                        endpoints: vec![Underlay(MESH)],
                        relays: vec![],
                    };
                    self.mesh.handle_resolved(query, Some(answer), view);
                }
                Output::Admit { device, .. } => {
                    self.mesh.handle_admitted(device, Admission::Granted, view);
                }
                Output::Send { to, bytes } => drop(self.socket.send_to(&bytes, to.to.0)?),
                Output::SetPeer {
                    device,
                    wireguard_key,
                    addresses,
                    ..
                } => {
                    let peer = PeerConfig {
                        device,
                        slot: Slot::Current,
                        public_key: wireguard_key,
                        addresses,
                        endpoint: Some(Underlay(MESH).into()),
                        psk: None,
                        secrecy: Secrecy::Classical,
                        roaming: Roaming::Report,
                        keepalive: None,
                    };
                    self.core.handle_command(Command::SetPeer(peer), view.now);
                    self.core
                        .handle_command(Command::Connect { device }, view.now);
                }
                Output::Reject { reason, .. } => anyhow::bail!("no way to the agent: {reason}"),
                Output::ForgetOldKey { .. }
                | Output::Tunnel(_)
                | Output::PathChanged { .. }
                | Output::PathLost { .. }
                | Output::HomeRelays { .. }
                | Output::OpenLink { .. }
                | Output::CloseLink { .. }
                | Output::Release { .. }
                | Output::RemovePeer { .. }
                | Output::Refused { .. }
                | Output::PskFailed { .. }
                | Output::ItemArrived { .. }
                | Output::ItemForked { .. }
                | Output::Member { .. }
                | Output::Remember(_)
                | Output::Forget(_) => {}
            }
        }
        while let Some(output) = self.core.poll() {
            match output {
                Wire::Send { to, bytes, .. } => drop(self.socket.send_to(&bytes, to.0)?),
                Wire::PassOn { to, bytes, .. } => drop(self.socket.send_to(&bytes, to.0)?),
                Wire::Report(Report::Established { .. }) => self.live = true,
                Wire::Deliver(_) | Wire::Report(_) => {}
            }
        }
        Ok(())
    }

    fn receive(&mut self, view: View<'_>) {
        let mut datagram = [0u8; 2048];
        while let Ok((n, from)) = self.socket.recv_from(&mut datagram) {
            let bytes = datagram.get_mut(..n).unwrap_or_default();
            if bytes.first().is_some_and(|b| *b >= 0x80) {
                self.mesh
                    .handle_datagram(Underlay(from).into(), bytes, view);
            } else {
                self.core.handle_datagram(Underlay(from), bytes, view.now);
            }
        }
    }
}

/// Lets some peers get their sessions.
fn meet(peers: &mut [Peer], target: &Target, start: Instant) -> Result<()> {
    let standing = Standing::new(None);
    let view = |now| View {
        trust: &target.trust,
        standing: &standing,
        now,
    };
    let hub = target
        .trust
        .verify_ticket(&target.ticket, &standing, moment(start))?
        .addresses
        .v6;
    for peer in peers.iter_mut() {
        let view = view(moment(start));
        peer.mesh.handle_wanted(Overlay(hub.into()), view);
        peer.work(target, view)?;
    }
    let until = clock::now() + PATIENCE;
    while peers.iter().any(|p| !p.live) {
        ensure!(clock::now() < until, "a peer got no session in time");
        clock::pause(Duration::from_millis(1));
        for peer in peers.iter_mut() {
            let view = view(moment(start));
            peer.receive(view);
            peer.mesh.handle_timeout(view);
            peer.core.handle_timeout(view.now);
            peer.work(target, view)?;
        }
    }
    Ok(())
}

fn moment(start: Instant) -> Now {
    Now {
        mono: Mono(clock::now().duration_since(start)),
        wall: Wall::from_secs(clock::wall_secs()),
        wall_is_trusted: true,
    }
}
