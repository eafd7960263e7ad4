//! `hedgerow-agent run`: one loop over one closed set of inputs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use hedgerow_identity::rotation::{Rotation, Uplink};
use hedgerow_identity::trust::Trust;
use hedgerow_linux::link::{self, Link};
use hedgerow_linux::nft::samples::{Sample, Samples};
use hedgerow_linux::nft::{DESCRIPTOR_NAME, Found, Ownership, Table};
use hedgerow_linux::service::Notifier;
use hedgerow_linux::tunnel::TunnelHandle;
use hedgerow_linux::{disk, nft, process, tunnel};
use hedgerow_mesh::Mesh;
use hedgerow_model::address::{OverlayAddresses, Underlay};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::ruleset::Askers;
use hedgerow_model::{Mono, Now};
use hedgerow_sync::{AgentSession, Backoff};
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use super::entropy;
use super::gossip::Record;
use super::identity::{Identities, Keys, not_enrolled};
use super::leave::{Heard, Leaving};
use super::lifeline;
use super::local::{self, Request};
use super::measure::Waiting;
use super::memory::Settling;
use super::orders::Orders;
use super::preference::Preference;
use super::relay_link::{self, RelayLinks};
use super::resolver::Resolver;
use super::store::{NotOpened, Store};
use super::uplink::{self, Connection};
use crate::config::Config;
use crate::failure::{Failure, chain};
use crate::state::{Local, Reading, State};

/// Inputs waiting for the loop; whoever has more waits (tasks) or keeps it (tunnel).
const INPUTS_MAX: usize = 256;
/// How soon a changed spool is written when nothing in it is urgent.
const SPOOL_WITHIN: Duration = Duration::from_secs(10);
/// How often the trusted-time floor is written: a device whose clock starts at 1970 comes back so late
/// at most, and for so long its peers take its introductions for repeated ones.
const FLOOR_EVERY: Duration = Duration::from_secs(300);
/// How often the numbers are written for a collector.
const METRICS_EVERY: Duration = Duration::from_secs(15);
/// How often names of controllers are looked up again.
const NAMES_EVERY: Duration = Duration::from_secs(300);
/// How often the table is read back where others can change it.
const PLAIN_VERIFY_EVERY: Duration = Duration::from_secs(5);

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Input {
    /// From the tunnel's thread, by its own channel.
    Tunnel(tunnel::Report),
    /// From the connection with this number.
    Uplink(u64, uplink::Report),
    /// From the control socket.
    Local(Request, oneshot::Sender<serde_json::Value>),
    /// Refused packets, as the kernel samples them.
    Samples(Vec<Sample>),
    /// Where controllers called by name are.
    Names(BTreeMap<String, Vec<SocketAddr>>),
    /// Whether whom this device met is on the disk now.
    Settled(Result<(), Failure>),
    /// From the tasks of links over TLS.
    Link(relay_link::Report),
    /// The service manager or a person wants us to end; the table stays.
    Terminate,
}

/// Why the loop ends well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The table stays, so does everything else.
    Terminated,
    /// The table is gone, the network as before.
    Off,
}

/// A session and the connection that carries it.
pub(super) struct Live {
    pub(super) serial: u64,
    pub(super) endpoint: String,
    pub(super) connection: Connection,
    pub(super) session: Option<AgentSession>,
    /// The server's certificate, judged again when what is known against it changes.
    pub(super) leaf: Vec<u8>,
    pub(super) uses_next: bool,
    /// How many of our bytes have been read by the controller does not matter; that it speaks does.
    pub(super) welcomed: bool,
}

/// A renewal under way.
pub(super) struct Renewal {
    pub(super) id: u64,
    pub(super) keys: Keys,
    pub(super) answer: Option<(Vec<Vec<u8>>, Vec<u8>)>,
}

/// The agent: what it decides ([`State`]) and what it holds of the world.
pub(crate) struct Daemon {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) state: State,
    pub(super) identities: Identities,
    pub(super) table: Table,
    pub(super) resolver: Resolver,
    pub(super) tunnel: Option<TunnelHandle>,
    pub(super) tunnel_addresses: Option<OverlayAddresses>,
    pub(super) orders: Orders,
    pub(super) orders_at: Mono,
    pub(super) reports: mpsc::Sender<tunnel::Report>,
    pub(super) notifier: Notifier,
    pub(super) live: Option<Live>,
    pub(super) serials: u64,
    pub(super) backoff: Backoff,
    pub(super) connect_at: Mono,
    pub(super) controllers: Vec<String>,
    pub(super) turn: usize,
    pub(super) local_address: Option<IpAddr>,
    pub(super) local_endpoints: Vec<Underlay>,
    pub(super) addresses_at: Mono,
    pub(super) rotation: Rotation,
    pub(super) renewal: Option<Renewal>,
    pub(super) preference: Preference,
    pub(super) spool_at: Mono,
    pub(super) floor_at: Mono,
    pub(super) alive_at: Mono,
    pub(super) names_at: Mono,
    metrics_at: Mono,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) end: Option<End>,
    pub(super) fatal: Option<Failure>,
    pub(super) last_uplink_error: Option<String>,
    pub(super) leaving: Option<Leaving>,
    /// How many people look at packets.
    pub(super) captures: usize,
    pub(super) waiting: Waiting,
    pub(super) links: RelayLinks,
    /// The endpoint record signed last.
    pub(super) record: Option<Record>,
    pub(super) record_at: Mono,
    pub(super) settling: Settling,
}

/// Everything on disk that a state begins with.
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) identities: Identities,
    pub(crate) state: State,
    pub(crate) controllers: Vec<String>,
}

/// Reads the state directory and makes the machine of it.
///
/// # Errors
///
/// When the device is not enrolled, or what is on disk does not hold together.
pub(crate) fn open(config: &Config) -> Result<Opened, Failure> {
    open_store(Store::open(&config.state)?, config, lifeline::askers())
}

/// As [`open`], also where nothing can be written: what is on disk says what to load.
///
/// # Errors
///
/// As [`open`].
pub(crate) fn open_for_load(config: &Config) -> Result<Opened, Failure> {
    let store = match Store::open(&config.state) {
        Ok(store) => store,
        Err(NotOpened::Used(failure)) => return Err(failure),
        Err(NotOpened::Disk(error)) => {
            tracing::warn!(error = chain(&error), "the state directory takes no writes");
            Store::peek(&config.state)
        }
    };
    // The agent that will ask has no control group yet; it loads the table again when it has.
    open_store(store, config, Askers::Nobody)
}

fn open_store(store: Store, config: &Config, askers: Askers) -> Result<Opened, Failure> {
    let mut clock = Clock::start(store.floor());
    if let Some(dated) = store.dated() {
        clock.handle_given(dated);
    }
    let identities = Identities::read(&store)?;
    let enrollment = store.enrollment()?.ok_or_else(not_enrolled)?;
    let damaged = |e: String| {
        Failure::environment(
            format!(
                "the state in {} does not hold together: {e}",
                config.state.display()
            ),
            "restore it from a backup, or `hedgerow-agent leave --force` and enroll again",
        )
    };
    let trust = Trust::from_chain(enrollment.genesis, &store.manifests()?)
        .map_err(|e| damaged(e.to_string()))?;
    let mut local = local(config, askers);
    local.controllers.extend(enrollment.controllers);
    let controllers = local.controllers.clone();
    let (mut state, complaints) = State::new(
        local,
        trust,
        (&identities.current().ticket, identities.keys()),
        store.resources()?,
        mesh(config),
        (store.spool(config.spool_events_max), store.trial()),
    )
    .map_err(|e| damaged(e.to_string()))?;
    for complaint in complaints {
        tracing::warn!(complaint, "a stored resource does not hold any more");
    }
    state.set_post_quantum(config.post_quantum);
    for memory in store.met().read()? {
        state.handle_memory(memory);
    }
    Ok(Opened {
        store,
        clock,
        identities,
        state,
        controllers,
    })
}

fn mesh(config: &Config) -> Mesh {
    let mut mesh = Mesh::new(entropy::bytes());
    mesh.handle_mtu(config.mtu);
    mesh.handle_links_allowed(config.relay_port.is_some());
    mesh
}

/// Returns what the configuration alone says of the device.
pub(crate) fn local(config: &Config, askers: Askers) -> Local {
    Local {
        tunnel: config.interface.clone(),
        mesh_port: config.mesh_port,
        relay_listen: config.relay_listen.map(|a| a.port()),
        relay_port: config.relay_port,
        management: config.management.clone(),
        servers: config.servers.clone(),
        name_servers: lifeline::name_servers(config),
        askers,
        controllers: config.controllers.clone(),
        trial: config.trial,
        verify_every: config.verify_every,
        has_hosts_file: config.hosts_file.is_some(),
        consents_to_bench: config.consents_to_bench,
    }
}

/// Says what this machine lacks.
pub(crate) fn missing(missing: &process::Missing) -> Failure {
    Failure::new(missing.fault(), missing, "see `hedgerow-agent check`")
}

/// Runs the agent until it is told to end.
///
/// # Errors
///
/// One line with the remedy; the table that was in force stays in force.
pub(crate) async fn run(config: Config) -> Result<End, Failure> {
    if let Some(missing) = process::missing().into_iter().next() {
        return Err(self::missing(&missing));
    }
    // The provider's generator takes tens of milliseconds to begin; only TLS needs it.
    drop(tokio::task::spawn_blocking(entropy::warm));
    let mut notifier = Notifier::from_environment();
    // What stands in the kernel is read while the state directory is; the state is judged first.
    let mut table = Table::open(notifier.take(DESCRIPTOR_NAME));
    if let Ok(table) = &mut table {
        table.read_ahead();
    }
    let opened = open(&config)?;
    // A process that was just killed may have owned the table a moment longer.
    let table = table.or_else(|_early| Table::open(None));
    let table = table.map_err(|e| kernel(&e))?;
    let found = table.found();
    let (inputs, mut receiver) = mpsc::channel(INPUTS_MAX);
    let (reports, mut reported) = mpsc::channel(INPUTS_MAX);
    let mut daemon = Daemon::new(config, opened, table, notifier, (inputs, reports));
    daemon.start(found)?;
    daemon.serve().await?;
    let mut outside = Outside::new()?;
    loop {
        daemon.work();
        if let Some(failure) = daemon.fatal.take() {
            return Err(failure);
        }
        if let Some(end) = daemon.end {
            return Ok(Box::pin(daemon.finish(end)).await);
        }
        let wake = daemon.clock.instant(daemon.deadline().0);
        let input = tokio::select! {
            biased;
            () = outside.terminated() => Some(Input::Terminate),
            input = receiver.recv() => input,
            report = reported.recv() => report.map(Input::Tunnel),
            () = tokio::time::sleep_until(wake) => None,
        };
        if let Some(input) = input {
            daemon.handle(input);
            // What else has come is taken before anything is done, so that changes coalesce.
            for _ in 0..INPUTS_MAX {
                match (receiver.try_recv(), reported.try_recv()) {
                    (Err(_), Err(_)) => break,
                    (input, report) => {
                        input.into_iter().for_each(|i| daemon.handle(i));
                        report
                            .into_iter()
                            .for_each(|r| daemon.handle(Input::Tunnel(r)));
                    }
                }
            }
        }
        daemon.tick();
    }
}

/// Signals.
struct Outside {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Outside {
    fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |e| Failure::environment(format!("no signals: {e}"), "report this");
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn terminated(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// When the controller is called after a restart with peers: they wait, and go before.
const CONNECT_AFTER: Duration = Duration::from_millis(50);

impl Daemon {
    fn new(
        config: Config,
        opened: Opened,
        table: Table,
        notifier: Notifier,
        (inputs, reports): (mpsc::Sender<Input>, mpsc::Sender<tunnel::Report>),
    ) -> Self {
        let now = opened.clock.now();
        let seed = entropy::seed();
        let rotation = match opened.identities.next() {
            Some(_) => Rotation::resume(seed, now.mono),
            None => {
                let issued = super::status::leaf_begins(opened.identities.current());
                let age = now.wall.since(issued.unwrap_or(now.wall));
                Rotation::new(age, seed, now.mono)
            }
        };
        let metrics_at = match &config.textfile {
            Some(_) => now.mono + METRICS_EVERY,
            None => Mono::NEVER,
        };
        let links = RelayLinks::new(inputs.clone());
        let connect_at = match opened.state.remembers_peers() {
            true => now.mono + CONNECT_AFTER,
            false => now.mono,
        };
        let settling = Settling::new(opened.store.met(), now.mono);
        let resolver = Resolver::serve(config.resolver, &config.interface);
        Self {
            config,
            resolver,
            store: opened.store,
            clock: opened.clock,
            state: opened.state,
            identities: opened.identities,
            table,
            tunnel: None,
            tunnel_addresses: None,
            orders: Orders::default(),
            orders_at: Mono::NEVER,
            reports,
            notifier,
            live: None,
            serials: 0,
            backoff: Backoff::new(entropy::seed()),
            connect_at,
            controllers: opened.controllers,
            turn: 0,
            local_address: None,
            local_endpoints: Vec::new(),
            addresses_at: now.mono,
            rotation,
            renewal: None,
            preference: Preference::default(),
            spool_at: Mono::NEVER,
            floor_at: now.mono + FLOOR_EVERY,
            alive_at: now.mono,
            names_at: Mono::NEVER,
            metrics_at,
            inputs,
            end: None,
            fatal: None,
            last_uplink_error: None,
            leaving: None,
            captures: 0,
            waiting: Waiting::default(),
            links,
            record: None,
            record_at: Mono::NEVER,
            settling,
        }
    }

    /// The table first; then the tunnel; only then anything that takes time.
    fn start(&mut self, found: Found) -> Result<(), Failure> {
        let now = self.clock.now();
        self.state.handle_start(now);
        if found != Found::Absent {
            tracing::info!(?found, "adopting the kernel's table");
            self.state.event(
                Event::new(now.wall, EventKind::TableAdopted).detail("found", format!("{found:?}")),
            );
        }
        self.state.event(
            Event::new(now.wall, EventKind::AgentStarted)
                .detail("version", env!("CARGO_PKG_VERSION")),
        );
        self.work();
        // Who was a peer before the restart is asked before anything else is done.
        self.state.handle_timeout(self.clock.now());
        self.work();
        self.note_overlaps(now);
        if let Some(failure) = self.fatal.take() {
            return Err(failure);
        }
        if self.table.ownership() == Some(Ownership::Plain) {
            tracing::warn!("this kernel lets other programs change the table; reading it often");
            self.state.watch_closely(PLAIN_VERIFY_EVERY);
        }
        self.notify("store the table's socket", |m, t| {
            m.store(DESCRIPTOR_NAME, t.as_fd())
        });
        Ok(())
    }

    /// Says which routes of others lead into the overlay's pools.
    fn note_overlaps(&mut self, now: Now) {
        let tunnel = Link::find(&self.config.interface).ok();
        let pools = self.state.pools();
        match link::overlaps(&pools, tunnel.as_ref()) {
            Ok(routes) => {
                for route in routes {
                    tracing::warn!(destination = %route.destination, "a route overlaps the overlay");
                    self.state.event(
                        Event::new(now.wall, EventKind::RouteOverlapped)
                            .detail("destination", route.destination),
                    );
                }
            }
            Err(error) => tracing::warn!(error = chain(&error), "routes cannot be listed"),
        }
    }

    /// Opens what talks to people and to the service manager.
    async fn serve(&mut self) -> Result<(), Failure> {
        local::serve(&self.config, self.inputs.clone())?;
        match Samples::open() {
            Ok(samples) => {
                tokio::spawn(watch_samples(samples, self.inputs.clone()));
            }
            Err(error) => tracing::warn!(%error, "refused packets are counted but not sampled"),
        }
        self.notify("say that we are ready", |m, _| m.ready());
        tokio::task::yield_now().await;
        Ok(())
    }

    pub(super) fn notify(
        &self,
        what: &str,
        say: impl FnOnce(&Notifier, &Table) -> std::io::Result<()>,
    ) {
        if let Err(error) = say(&self.notifier, &self.table) {
            tracing::warn!(%error, "cannot {what} to the service manager");
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Tunnel(tunnel::Report::Stopped { error }) => {
                let text = error.unwrap_or_else(|| "without a reason".to_owned());
                self.fatal = Some(Failure::environment(
                    format!("the tunnel stopped: {text}"),
                    "the service manager starts the agent again",
                ));
            }
            Input::Tunnel(report) => self.state.handle_report(report, now),
            Input::Uplink(serial, report) => {
                if self.live.as_ref().is_some_and(|live| live.serial == serial) {
                    self.handle_uplink(report, now);
                }
            }
            Input::Local(request, reply) => self.handle_local(request, reply),
            Input::Samples(samples) => {
                for sample in samples {
                    self.state.event(sample_event(&sample, now));
                }
            }
            Input::Link(report) => self.handle_link(report, now),
            Input::Settled(result) => self.handle_settled(result, now),
            Input::Names(found) => self.state.handle_addresses(found, now),
            Input::Terminate => self.end = Some(End::Terminated),
        }
    }

    /// Lets time pass for everything that waits for it.
    fn tick(&mut self) {
        let now = self.clock.now();
        if now.mono >= self.state.deadline(now).0 {
            self.state.handle_timeout(now);
        }
        if let Some(session) = self.live.as_mut().and_then(|l| l.session.as_mut()) {
            session.handle_timeout(now.mono);
        }
        self.rotation.handle_timeout(now.mono);
        if now.mono >= self.connect_at && self.live.is_none() {
            self.connect(now);
        }
        if now.mono >= self.alive_at {
            self.notify("say that we are alive", |m, _| m.alive());
            self.alive_at = match self.notifier.watchdog_interval() {
                Some(interval) => now.mono + interval,
                None => Mono::NEVER,
            };
        }
        if now.mono >= self.leave_until() {
            self.conclude(Heard::Nothing("it does not answer".to_owned()));
        }
        if now.mono >= self.orders_at {
            self.repeat_orders(now);
        }
        if now.mono >= self.spool_at {
            self.write_spool();
        }
        if now.mono >= self.floor_at {
            self.floor_at = now.mono + FLOOR_EVERY;
            self.written("trusted time", |s| s.store.write_floor(s.clock.floor()));
        }
        if now.mono >= self.addresses_at {
            self.look_at_addresses(now);
        }
        if now.mono >= self.record_at {
            self.renew_record(now);
        }
        if now.mono >= self.settling.deadline() {
            self.settle();
        }
        if now.mono >= self.names_at {
            self.look_up_names(now);
        }
        if now.mono >= self.metrics_at {
            self.metrics_at = now.mono + METRICS_EVERY;
            self.write_metrics();
        }
    }

    fn deadline(&self) -> (Mono, &'static str) {
        let now = self.clock.now();
        let session = self.live.as_ref().and_then(|l| l.session.as_ref());
        let connect = match &self.live {
            None => self.connect_at,
            Some(_) => Mono::NEVER,
        };
        [
            self.state.deadline(now),
            session.map_or((Mono::NEVER, ""), AgentSession::deadline),
            self.rotation.deadline(),
            (connect, "connect"),
            (self.alive_at, "watchdog"),
            (self.leave_until(), "the controller's word on leaving"),
            (self.orders_at, "the tunnel's orders"),
            (self.spool_at, "spool"),
            (self.floor_at, "trusted time"),
            (self.names_at, "names"),
            (self.metrics_at, "metrics"),
            (self.addresses_at, "addresses"),
            (self.record_at, "endpoint record"),
            (self.settling.deadline(), "peers on disk"),
        ]
        .into_iter()
        .min_by_key(|(at, _)| *at)
        .unwrap_or((Mono::NEVER, "nothing"))
    }

    /// Looks up controllers that are called by name, for the lifeline.
    pub(super) fn look_up_names(&mut self, now: Now) {
        let names: Vec<String> = self
            .state
            .controllers()
            .into_iter()
            .filter(|c| c.parse::<SocketAddr>().is_err())
            .collect();
        self.names_at = Mono::NEVER;
        if names.is_empty() {
            return;
        }
        self.names_at = now.mono + NAMES_EVERY;
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let mut found = BTreeMap::new();
            for name in names {
                let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(&name).await {
                    Ok(addresses) => addresses.take(8).collect(),
                    Err(_) => continue,
                };
                found.insert(name, addresses);
            }
            // Nobody listens any more only when the agent ends.
            drop(inputs.send(Input::Names(found)).await);
        });
    }

    /// Writes the numbers for a collector, whole each time.
    fn write_metrics(&mut self) {
        let Some(path) = self.config.textfile.clone() else {
            return;
        };
        let text = crate::metrics::text(&super::status::of(self));
        let written = disk::write_atomic(&path, text.as_bytes(), disk::Access::Public);
        if let Err(error) = written {
            tracing::warn!(error = chain(&error), "the metrics are not written");
        }
    }

    /// Runs something that writes to disk, and notes whether it could.
    pub(super) fn written(
        &mut self,
        what: &str,
        write: impl FnOnce(&Self) -> Result<(), Failure>,
    ) -> bool {
        let result = write(self);
        if let Err(failure) = &result {
            tracing::error!(%failure, what, "not written to disk");
        }
        let is_ok = result.is_ok();
        self.state
            .handle_disk(result.map_err(|failure| failure.to_string()));
        is_ok
    }

    /// Writes the spool when it changed: at once when something in it is urgent.
    pub(super) fn keep_spool(&mut self, now: Now) {
        match self.state.spool().take_changed() {
            None => {}
            Some(crate::state::Urgency::Now) => self.write_spool(),
            Some(crate::state::Urgency::Soon) => {
                self.spool_at = self.spool_at.min(now.mono + SPOOL_WITHIN);
            }
        }
    }

    fn write_spool(&mut self) {
        self.spool_at = Mono::NEVER;
        let Self { store, state, .. } = self;
        if let Err(failure) = store.write_spool(state.spool()) {
            tracing::error!(%failure, "events not written to disk");
            state.spool().handle_unwritten();
            state.handle_disk(Err(failure.to_string()));
        }
    }

    /// Reads the table back and says how it looks.
    pub(super) fn read_back(&mut self, now: Now) -> Reading {
        match self.table.verify(now.mono) {
            Ok(v) if v.is_intact() => Reading::Intact(v.found),
            Ok(v) => Reading::Differs {
                missing: v.missing,
                surplus: v.surplus,
            },
            Err(error) => Reading::Failed(chain(&error)),
        }
    }

    /// Tells rotation and mesh whether the controller can be reached.
    pub(super) fn note_uplink(&mut self, uplink: Uplink, now: Now) {
        self.rotation.handle_uplink(uplink, now.mono);
    }
}

/// Makes an event of a refused packet.
fn sample_event(sample: &Sample, now: Now) -> Event {
    let spoofed = sample.reason == "spoofed_overlay";
    let kind = if spoofed {
        EventKind::AddressSpoofed
    } else {
        EventKind::PacketRefused
    };
    let mut event = Event::new(now.wall, kind)
        .detail("reason", &sample.reason)
        .detail(
            "direction",
            format!("{:?}", sample.direction).to_lowercase(),
        )
        .detail("source", sample.source)
        .detail("destination", sample.destination)
        .detail("protocol", sample.protocol);
    if let Some(port) = sample.source_port {
        event = event.detail("source_port", port);
    }
    if let Some(port) = sample.destination_port {
        event = event.detail("destination_port", port);
    }
    event
}

#[expect(
    deprecated,
    reason = "the descriptor is owned by what is registered, which is all that the unsafe successor asks for"
)]
async fn watch_samples(samples: Samples, inputs: mpsc::Sender<Input>) {
    let Ok(descriptor) = samples.as_fd().try_clone_to_owned() else {
        return;
    };
    let Ok(ready) = tokio::io::unix::AsyncFd::new(descriptor) else {
        return;
    };
    while let Ok(mut guard) = ready.readable().await {
        match samples.read() {
            Ok(list) if list.is_empty() => guard.clear_ready(),
            Ok(list) => {
                if inputs.send(Input::Samples(list)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "samples of refused packets end");
                return;
            }
        }
    }
}

/// Says what the kernel refused and what to do.
pub(crate) fn kernel(error: &nft::NftError) -> Failure {
    Failure::new(
        error.fault(),
        format!("the kernel's firewall: {}", chain(error)),
        "see `hedgerow-agent check`",
    )
}
