//! One agent and a crowd of peers: what an agent needs at rest, with many live sessions, and when all of
//! its peers fall silent at once.
//!
//! The peers have real identities and speak the mesh's own protocol from loopback addresses of their
//! own; the agent, the controller and the kernel's table are the real ones.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hedgerow_identity::enroll::Token;
use hedgerow_identity::standing::Standing;
use hedgerow_mesh::View;
use hedgerow_model::address::Overlay;
use hedgerow_model::{Mono, Now, Wall};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::attack::foreign::Target;
use crate::central::{Central, program};
use crate::lab::Lab;
use crate::plant::{CENTRAL, CENTRAL_ADDRESS, in_namespace};
use crate::screen::Screen;
use crate::{clock, matrix, process};
use peer::Peer;

mod peer;

const POLICY: &str = include_str!("../../../examples/plant.yaml");
/// Where the agent's mesh listens.
const MESH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7117);
/// Peers that introduce themselves at the same time.
const AT_ONCE: usize = 32;
/// The time for each: the agent verifies 200 introductions a second, and who comes sooner asks again.
const PACE: Duration = Duration::from_micros(6_500);
/// How long a peer may take to get its session. An introduction is given up after 15 s, and a busy machine may
/// need several.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often every peer's timers are looked at, and the agent's memory.
const TICK: Duration = Duration::from_millis(100);
/// Datagrams taken up before timers are looked at again.
const EVENTS_MAX: usize = 256;
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
    let alone = rest(screen, &order, "idle, no peers", 0, &mut pause)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let start = clock::now();
    let token = Token::parse(&order.token)?;
    screen.say(&format!("Enrolling {} peers.", order.peers));
    let mut crowd = Crowd::new(&target, start)?;
    for number in 0..order.peers {
        let peer = runtime.block_on(Peer::enroll(&token, number, &target, moment(start)))?;
        crowd.add(peer)?;
    }
    let took = crowd.meet()?;
    let refusals: usize = crowd.peers.iter().map(Peer::refusals).sum();
    screen.say(&format!(
        "  {} sessions in {took} ms; {refusals} times a peer had to ask anew",
        order.peers
    ));
    screen.object(&json!({
        "what": "sessions", "peers": order.peers, "ms": took, "asked_anew": refusals,
    }));
    let what = "all peers live, at rest";
    rest(screen, &order, what, alone, &mut |time| {
        crowd.turn_for(time)
    })?;
    // An agent looks after paths on which there was traffic lately: so that it misses its peers, all of them
    // have just been there.
    crowd.renew()?;
    let what = "all peers silent at once";
    rest(screen, &order, what, alone, &mut pause)?;
    Ok(true)
}

fn pause(time: Duration) -> Result<()> {
    clock::pause(time);
    Ok(())
}

/// Watches the agent while the time passes as `pass` says, and reports what it needed; `alone` is what it
/// needed without peers. Returns its resident memory in KiB at the end.
fn rest(
    screen: Screen,
    order: &Order,
    what: &str,
    alone: u64,
    pass: &mut dyn FnMut(Duration) -> Result<()>,
) -> Result<u64> {
    // What a start or a storm left to do is not rest.
    pass(Duration::from_secs(5))?;
    let (before, wire) = (cpu_ms(order.agent)?, loopback_bytes()?);
    let (began, mut most) = (clock::now(), 0);
    while clock::now().duration_since(began) < order.idle {
        pass(TICK * 10)?;
        most = process::resident_kib(order.agent)?.0.max(most);
    }
    let took = clock::now().duration_since(began);
    let cpu = cpu_ms(order.agent)?.saturating_sub(before);
    let wire = loopback_bytes()?.saturating_sub(wire);
    let rss = process::resident_kib(order.agent)?.0;
    let own = process::anonymous_kib(order.agent)?;
    let share = cpu as f64 / took.as_secs_f64() / 10.0;
    let per_day = wire.saturating_mul(DAY) / took.as_secs().max(1);
    let peers = u64::try_from(order.peers.max(1))?;
    let each = |kib: u64| kib.saturating_sub(alone) * 1024 / peers;
    screen.say(&format!(
        "  {what}: {rss} KiB resident, {own} of it its own, at most {most}, {cpu} ms CPU in {} s = {share:.3} % of a core, \
         {wire} bytes on the wire = {per_day} a day",
        took.as_secs()
    ));
    if alone > 0 {
        screen.say(&format!(
            "    {} bytes for each peer, at most {}",
            each(rss),
            each(most)
        ));
    }
    screen.object(&json!({
        "what": what, "rss_kib": rss, "anonymous_kib": own, "most_kib": most, "cpu_ms": cpu, "idle_secs": took.as_secs(),
        "wire_bytes": wire, "wire_bytes_per_day": per_day, "bytes_per_peer": each(rss),
        "most_bytes_per_peer": each(most),
    }));
    Ok(rss)
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

/// All peers, on one thread.
struct Crowd<'a> {
    target: &'a Target,
    standing: Standing,
    start: Instant,
    hub: Overlay,
    peers: Vec<Peer>,
    epoll: OwnedFd,
    ticked: Instant,
}

impl<'a> Crowd<'a> {
    fn new(target: &'a Target, start: Instant) -> Result<Self> {
        let standing = Standing::new(None);
        let hub = target
            .trust
            .verify_ticket(&target.ticket, &standing, moment(start))?
            .addresses
            .v6;
        Ok(Self {
            target,
            standing,
            start,
            hub: Overlay(hub.into()),
            peers: Vec::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            ticked: start,
        })
    }

    fn add(&mut self, peer: Peer) -> Result<()> {
        let data = epoll::EventData::new_u64(u64::try_from(self.peers.len())?);
        epoll::add(&self.epoll, peer.socket(), data, epoll::EventFlags::IN)?;
        self.peers.push(peer);
        Ok(())
    }

    /// Gets every peer its session; returns how long that took in milliseconds.
    fn meet(&mut self) -> Result<f64> {
        let began = clock::now();
        for first in (0..self.peers.len()).step_by(AT_ONCE) {
            let some = first..self.peers.len().min(first + AT_ONCE);
            let hub = self.hub;
            for place in some.clone() {
                self.with(place, |peer, view| peer.want(hub, view))?;
            }
            let until = clock::now() + PATIENCE;
            while self
                .peers
                .iter()
                .skip(first)
                .take(some.len())
                .any(|p| !p.is_live())
            {
                ensure!(clock::now() < until, "a peer got no session in time");
                self.turn(Duration::from_millis(1))?;
            }
            let due = PACE * u32::try_from(some.end)?;
            self.turn_for(due.saturating_sub(clock::now().duration_since(began)))?;
        }
        Ok(clock::ms_since(began))
    }

    /// Has every peer make a new session.
    fn renew(&mut self) -> Result<()> {
        let until = clock::now() + PATIENCE;
        for place in 0..self.peers.len() {
            self.with(place, Peer::renew)?;
            self.turn(Duration::ZERO)?;
        }
        while self.peers.iter().any(|p| !p.is_live()) {
            ensure!(clock::now() < until, "a peer got no new session in time");
            self.turn(TICK)?;
        }
        Ok(())
    }

    /// Lets all peers do what they have to for so long.
    fn turn_for(&mut self, time: Duration) -> Result<()> {
        let until = clock::now() + time;
        loop {
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left.min(TICK))?;
        }
    }

    /// Waits until datagrams come, at most so long, and does what follows from them and from the time.
    fn turn(&mut self, time: Duration) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let time = Timespec::try_from(time)?;
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&time))?;
        for event in events {
            let place = usize::try_from(event.data.u64())?;
            self.with(place, |peer, view| {
                peer.receive(view);
                Ok(())
            })?;
        }
        if clock::now().duration_since(self.ticked) >= TICK {
            self.ticked = clock::now();
            for place in 0..self.peers.len() {
                self.with(place, |peer, view| {
                    peer.pass_time(view);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Lets one peer do something and what follows from it.
    fn with(
        &mut self,
        place: usize,
        f: impl FnOnce(&mut Peer, View<'_>) -> Result<()>,
    ) -> Result<()> {
        let view = View {
            trust: &self.target.trust,
            standing: &self.standing,
            now: moment(self.start),
        };
        let peer = self.peers.get_mut(place).context("no such peer")?;
        f(peer, view)?;
        peer.work(self.target, view)
    }
}

fn moment(start: Instant) -> Now {
    Now {
        mono: Mono(clock::now().duration_since(start)),
        wall: Wall::from_secs(clock::wall_secs()),
        wall_is_trusted: true,
    }
}
