//! Everything the agent decides, as one machine without a socket, a file or a clock.
//!
//! ```text
//!  update, beacon, renewal ─┐                      ┌─▶ Load, Elements, Verify      (kernel)
//!  tunnel reports ──────────┤   adopt ▸ kernel     ├─▶ SetPeer, RemovePeer, …      (tunnel)
//!  table loaded, verified ──┼─▶ peers ▸ spool ─────┼─▶ Acknowledge, Resolve        (controller)
//!  uplink up, down ─────────┤        State         ├─▶ Store, Remember, Hosts      (disk)
//!  time ────────────────────┘                      └─▶ BindKey, Renew              (keys)
//! ```
//!
//! # Invariants
//!
//! - No table reaches the kernel but from a verified program, and from none at all: then everything
//!   on the overlay is refused.
//! - An update is taken as a whole or not at all. What is taken away goes first: kernel element,
//!   tunnel peer, connections.
//! - Nothing that expires or fails here makes the device permit more than before.
//! - Steps come out in the order in which they must be done.

mod adopt;
mod closed;
mod gossip;
mod kernel;
mod measure;
mod peers;
mod spool;
#[cfg(test)]
mod tests;
mod twins;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_identity::Verified;
use hedgerow_identity::standing::Standing;
use hedgerow_identity::trust::Trust;
use hedgerow_linux::tunnel::Rejection;
use hedgerow_mesh::items::ItemKind;
use hedgerow_mesh::measure::Answer;
use hedgerow_mesh::names::Zone;
use hedgerow_mesh::{Memory, Mesh, OwnIdentity, TunnelOrder, View};
use hedgerow_model::address::{Overlay, OverlayAddresses, Prefix};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::path::Path;
use hedgerow_model::program::{DeviceState, Program};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::ruleset::{Askers, Profile, ProfileId, Ruleset};
use hedgerow_model::statement::{Names, P256Public, PeerQuery, SiteConfig, Ticket, X25519Public};
use hedgerow_model::{Mono, Now, Wall};
use hedgerow_policy::Facts;
use hedgerow_sync::agent::Holdings;
use hedgerow_sync::message::{Stage, Verified as VerifiedTable};

pub(crate) use closed::closed_ruleset;
pub(crate) use kernel::Underlay as UnderlayTrial;
pub(crate) use kernel::{Load, Reading};
pub(crate) use spool::{Spool, Urgency};

/// How long a WireGuard key is used before the next one; each interval is up to a tenth shorter.
pub(crate) const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Least time between two keys that an operator orders. Only one older key is kept for peers that do not
/// know the newest yet, so they must have learnt of it; and of two bindings of one second the later is refused.
const ROTATE_EVERY_MIN: Duration = Duration::from_secs(30);

/// How soon the disk is tried again when it did not take what is in force.
const STORE_AGAIN: Duration = Duration::from_secs(10);

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Write the resources and the manifest chain to disk, then call [`State::handle_stored`].
    Store,
    /// Load this table, then call [`State::handle_loaded`].
    Load(Box<Ruleset>),
    /// Change elements of the table, then call [`State::handle_elements`].
    Elements(Vec<(Overlay, Option<ProfileId>)>),
    /// Read the table back, then call [`State::handle_verified`].
    Verify,
    /// Forget the kernel's connections with this address.
    CutConnections(Overlay),
    /// Tell the tunnel.
    Tunnel(ToTunnel),
    /// Tell the controller how far a revision has come.
    Acknowledge(Revision, Stage),
    /// Ask the controller; call [`State::handle_resolved`] with the answer, also when nobody is there.
    Resolve(u64, PeerQuery),
    /// Tell the controller where this device is reached; see [`State::whereabouts`].
    Whereabouts,
    /// Make a new WireGuard key and sign its binding, then call [`State::handle_bound`].
    BindKey,
    /// Write a peer's record.
    Remember(Box<Memory>),
    /// Delete a peer's record.
    Forget(DeviceId),
    /// Bring the managed block of the hosts file up to date.
    Hosts(BTreeMap<IpAddr, Vec<String>>),
    /// Answer questions about names from this.
    Zone(Option<Arc<Zone>>),
    /// The controllers or the lifeline changed: look names up again.
    Controllers(Vec<String>),
    /// Write down how far the underlay's enforcement is proven.
    StoreTrial(UnderlayTrial),
    /// Make the controller say something.
    Probe,
    /// Connect to a relay over TLS at one of these hosts.
    OpenLink(DeviceId, Vec<IpAddr>),
    /// Part from it.
    CloseLink(DeviceId),
    /// Tell whoever asked what was measured.
    Answer(u64, Box<Answer>),
    /// It is this late at least: an issuer signed it.
    Past(Wall),
}

/// What the tunnel is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ToTunnel {
    /// Set a tunnel peer's current key.
    SetPeer {
        /// Which device.
        device: DeviceId,
        /// Its WireGuard key.
        key: X25519Public,
        /// Its addresses.
        addresses: OverlayAddresses,
        /// Where to try.
        endpoint: Option<Path>,
    },
    /// Begin a session with a peer unless one lives.
    Connect(DeviceId),
    /// The overlap of a peer's two keys is over.
    ForgetOldKey(DeviceId),
    /// Take a peer out of the tunnel.
    RemovePeer(DeviceId),
    /// Send a datagram from the tunnel's port.
    Send(Path, Vec<u8>),
    /// What the mesh tells it alone.
    Mesh(TunnelOrder),
    /// Packets that wait for this address may go if this profile lets them.
    Release(Overlay, Box<Profile>),
    /// Packets that wait for this address are refused, and their programs told so.
    Reject(Overlay, Rejection),
}

/// What the device is before any resource: found on disk or given by the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    /// Name of the tunnel interface.
    pub(crate) tunnel: String,
    /// The mesh's port.
    pub(crate) mesh_port: u16,
    /// The TCP port for links from devices, used while this device is a relay.
    pub(crate) relay_listen: Option<u16>,
    /// The TCP port of relays for links.
    pub(crate) relay_port: Option<u16>,
    /// Prefixes that always may manage, by the configuration file.
    pub(crate) management: Vec<Prefix>,
    /// Name and time servers by the configuration file.
    pub(crate) servers: Vec<IpAddr>,
    /// Name servers that the system names at present.
    pub(crate) name_servers: Vec<IpAddr>,
    /// Whose sockets may ask them.
    pub(crate) askers: Askers,
    /// Controllers by the configuration file and by the enrollment.
    pub(crate) controllers: Vec<String>,
    /// How long an underlay enforcement is on trial.
    pub(crate) trial: Duration,
    /// How often the table is read back.
    pub(crate) verify_every: Duration,
    /// Whether peers' names are written to a hosts file.
    pub(crate) has_hosts_file: bool,
    /// Whether peers may measure throughput to this device.
    pub(crate) consents_to_bench: bool,
}

/// What was found on disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    /// The revision last accepted.
    pub(crate) revision: Option<Revision>,
    /// High-water marks.
    pub(crate) marks: BTreeMap<ResourceKind, Revision>,
    /// The resources, signed.
    pub(crate) resources: Vec<Resource>,
}

/// What holds of this device; replaced as a whole by an update.
#[derive(Debug)]
struct World {
    trust: Trust,
    standing: Standing,
    ticket: Verified<Ticket>,
    program: Option<Program>,
    program_revision: Revision,
    config: Option<SiteConfig>,
    names: Option<Arc<Names>>,
}

/// The agent's decisions. See the module.
pub(crate) struct State {
    local: Local,
    world: World,
    resources: BTreeMap<ResourceKind, Resource>,
    marks: BTreeMap<ResourceKind, Revision>,
    revision: Option<Revision>,
    /// The newest policy that the controller signed, as far as was heard, by whatever way.
    newest_policy: Option<Revision>,
    verified: Option<VerifiedTable>,
    identity_keys: Vec<P256Public>,
    addresses: BTreeMap<String, Vec<SocketAddr>>,
    mesh: Mesh,
    measuring: measure::Measuring,
    kernel: kernel::Kernel,
    peers: peers::Peers,
    spool: Spool,
    steps: VecDeque<Step>,
    uplink: Uplink,
    held: Option<String>,
    bind_at: Mono,
    bound_at: Mono,
    disk_failed: bool,
    /// The last write of what is in force failed, and that was said.
    store_failing: bool,
    unstored: Unstored,
    clock_said: bool,
    /// Whether the table was made under a trusted clock.
    clock_trusted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Uplink {
    /// Never reached since the start.
    Unknown,
    Up(Mono),
    Down(Mono),
}

/// Whether what is in force is on disk too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Unstored {
    /// It is.
    #[default]
    No,
    /// The shell was told to write it.
    UnderWay,
    /// The disk did not take it; it is tried again then.
    Until(Mono),
}

/// Why the stored state cannot be used; another start changes nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadState {
    /// The device's own ticket.
    #[error("the stored ticket is refused: {0}")]
    Ticket(#[from] hedgerow_identity::error::RefusedTicket),
}

impl State {
    /// Begins with what is on disk. Stored resources are verified again; one that does not hold any
    /// more is left out, and said.
    ///
    /// # Errors
    ///
    /// When not even the own ticket holds.
    pub(crate) fn new(
        local: Local,
        trust: Trust,
        (ticket, identity_keys): (&[u8], Vec<P256Public>),
        stored: Stored,
        mesh: Mesh,
        (spool, trial): (Spool, UnderlayTrial),
    ) -> Result<(Self, Vec<String>), BadState> {
        let ticket = adopt::own_ticket(&trust, ticket, &identity_keys, None)?;
        let world = World {
            standing: Standing::new(Some(ticket.site.clone())),
            trust,
            ticket,
            program: None,
            program_revision: Revision::default(),
            config: None,
            names: None,
        };
        let mut state = Self {
            kernel: kernel::Kernel::new(trial),
            measuring: measure::Measuring::new(local.consents_to_bench),
            local,
            world,
            resources: BTreeMap::new(),
            marks: stored.marks,
            revision: stored.revision,
            newest_policy: None,
            verified: None,
            identity_keys,
            addresses: BTreeMap::new(),
            mesh,
            peers: peers::Peers::default(),
            spool,
            steps: VecDeque::new(),
            uplink: Uplink::Unknown,
            held: None,
            bind_at: Mono::ZERO,
            bound_at: Mono::ZERO,
            disk_failed: false,
            store_failing: false,
            unstored: Unstored::default(),
            clock_said: false,
            clock_trusted: false,
        };
        let complaints = state.restore(stored.resources);
        Ok((state, complaints))
    }

    /// Starts: loads the table of the last program, before anything else.
    pub(crate) fn handle_start(&mut self, now: Now) {
        self.kernel.request();
        self.clock_trusted = now.wall_is_trusted;
        self.say_clock(now);
        // The controller forgot, or was told by another boot, what stands in this kernel.
        if let Some(revision) = self.revision {
            self.kernel.await_verdict(revision, false);
        }
        self.expect_peers(now);
        self.refresh(now);
        self.publish_names();
        self.share(ResourceKind::ALL, now);
        let controllers = self.controllers();
        self.steps.push_back(Step::Controllers(controllers));
        self.steps.push_back(Step::BindKey);
        self.bind_at = now.mono + KEY_LIFE;
    }

    /// Notes a new WireGuard key, with its binding signed by the identity key of the ticket in force.
    pub(crate) fn handle_bound(&mut self, own: OwnIdentity, now: Now, jitter: Duration) {
        self.bound_at = now.mono;
        self.bind_at = now.mono + KEY_LIFE.saturating_sub(jitter);
        if let Err(error) = self.mesh.handle_own(own, self.world.view(now)) {
            tracing::error!(%error, "the mesh refuses our own identity");
        }
        self.drain_mesh(now);
    }

    /// Takes an operator's order to have a new key: at once, or as soon as the last one is old enough.
    pub(crate) fn handle_rotation_wanted(&mut self, now: Now) {
        let soonest = self.bound_at + ROTATE_EVERY_MIN;
        self.bind_at = self.bind_at.min(soonest.max(now.mono));
    }

    /// Notes a record of a peer found on disk.
    pub(crate) fn handle_memory(&mut self, memory: Memory) {
        self.mesh.handle_memory(memory);
    }

    /// Returns whether there were peers before the restart, which are asked first.
    pub(crate) fn remembers_peers(&self) -> bool {
        self.mesh.remembers_peers()
    }

    /// Notes that the controller opened a session.
    pub(crate) fn handle_uplink_up(&mut self, now: Now) {
        if let Uplink::Down(since) = self.uplink {
            let seconds = now.mono.since(since).as_secs();
            self.event(
                Event::new(now.wall, EventKind::UplinkRestored).detail("down_seconds", seconds),
            );
        }
        self.uplink = Uplink::Up(now.mono);
        self.peers.relays_at = now.mono;
        self.steps.push_back(Step::Whereabouts);
        self.ask_for_relays(now);
        self.held = None;
    }

    /// Notes that the session ended, or could not be opened.
    pub(crate) fn handle_uplink_down(&mut self, reason: &str, now: Now) {
        if let Uplink::Up(_) = self.uplink {
            self.event(Event::new(now.wall, EventKind::UplinkLost).detail("reason", reason));
            self.uplink = Uplink::Down(now.mono);
        }
        // Nobody is left to answer: what was asked is unresolved.
        for (_, query) in std::mem::take(&mut self.peers.asked) {
            self.mesh.handle_resolved(query, None, self.world.view(now));
        }
        self.drain_mesh(now);
    }

    /// Notes that the controller said something: the lifeline works.
    pub(crate) fn handle_heard(&mut self, now: Now) {
        if let Some(trial) = self.kernel.confirm(now.mono) {
            tracing::info!("underlay enforcement confirmed: the controller answers");
            self.steps.push_back(Step::StoreTrial(trial));
        }
    }

    /// Notes that this identity is in use twice.
    ///
    /// The controller records the event: it knows both sessions.
    pub(crate) fn handle_held(&mut self, reason: String) {
        tracing::warn!(reason, "held by the controller");
        self.held = Some(reason);
    }

    /// Takes the controller's beacon; one that does not hold is refused and said. Returns what time it is
    /// by the latest, also where a peer passed that one on before: it could not tell how old it was.
    pub(crate) fn handle_beacon(&mut self, bytes: &[u8], now: Now) -> Option<u64> {
        match self.world.trust.verify_beacon(bytes, &self.world.standing) {
            Ok(beacon) => {
                let secs = beacon.issued_secs;
                if self.world.standing.adopt_beacon(beacon) {
                    self.share_item(ItemKind::Beacon, bytes, now);
                }
                let latest = self.world.standing.beacon().map(|b| b.issued_secs);
                (latest == Some(secs)).then_some(secs)
            }
            Err(refused) => {
                self.refuse(now, None, &refused.to_string(), refused.reason());
                None
            }
        }
    }

    /// Notes whether the disk took the last write.
    pub(crate) fn handle_disk(&mut self, result: Result<(), String>) {
        self.disk_failed = result.is_err();
    }

    /// Writes what is in force to disk; no revision is called verified before it is there.
    pub(super) fn store(&mut self) {
        self.unstored = Unstored::UnderWay;
        self.steps.push_back(Step::Store);
    }

    /// Notes whether what is in force is on disk. Until it is, a reboot would forget it, so no
    /// revision counts as verified: nobody must believe in a revocation that a power cut undoes.
    pub(crate) fn handle_stored(&mut self, result: Result<(), String>, now: Now) {
        let was_failing = self.store_failing;
        self.store_failing = result.is_err();
        match result {
            Ok(()) => {
                self.unstored = Unstored::No;
                self.settle(now);
            }
            Err(reason) => {
                self.unstored = Unstored::Until(now.mono + STORE_AGAIN);
                if !was_failing {
                    let revision = self.revision.unwrap_or_default();
                    self.event(
                        Event::new(now.wall, EventKind::DiskFailed)
                            .detail("reason", reason)
                            .detail("revision", revision),
                    );
                }
            }
        }
    }

    /// Notes which name servers the system names at present. They are no input of a trial: whoever
    /// gives out addresses must not undo anything. An empty list leaves the last one.
    pub(crate) fn handle_name_servers(&mut self, found: Vec<IpAddr>, now: Now) {
        if !found.is_empty() && found != self.local.name_servers {
            self.local.name_servers = found;
            self.refresh(now);
        }
    }

    /// Notes where controllers called by name are.
    pub(crate) fn handle_addresses(&mut self, found: BTreeMap<String, Vec<SocketAddr>>, now: Now) {
        // A name that has no answer now keeps its last one: silence must not narrow the lifeline.
        let named = self.controllers();
        self.addresses.retain(|name, _| named.contains(name));
        let answered = found.into_iter().filter(|(_, list)| !list.is_empty());
        self.addresses.extend(answered);
        self.refresh(now);
    }

    /// Notes which identity keys are in hand, the current one first.
    pub(crate) fn handle_identity_keys(&mut self, keys: Vec<P256Public>) {
        self.identity_keys = keys;
    }

    /// Notes that others can change the table: it is read back at least so often.
    pub(crate) fn watch_closely(&mut self, every: Duration) {
        self.local.verify_every = self.local.verify_every.min(every);
    }

    /// Advances time. Calling it early or twice is harmless.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        if now.mono >= self.bind_at {
            self.bind_at = now.mono + Duration::from_secs(60);
            self.steps.push_back(Step::BindKey);
        }
        self.say_clock(now);
        if self.clock_trusted != now.wall_is_trusted {
            // Windows that allow close without a trusted clock, and open with one.
            self.clock_trusted = now.wall_is_trusted;
            self.refresh(now);
            self.reconsider(now);
        }
        if matches!(self.unstored, Unstored::Until(at) if now.mono >= at) {
            self.store();
        }
        self.kernel_timeout(now);
        self.ask_for_relays(now);
        self.mesh.handle_timeout(self.world.view(now));
        self.drain_mesh(now);
        self.measure_timeout(now);
    }

    /// Says once that the clock is not to be believed.
    fn say_clock(&mut self, now: Now) {
        if now.wall_is_trusted {
            self.clock_said = false;
        } else if !std::mem::replace(&mut self.clock_said, true) {
            tracing::warn!(
                "the clock is behind what is proven to be past, or far ahead; schedules that allow are closed until it is set"
            );
            self.event(Event::new(now.wall, EventKind::ClockUntrusted));
        }
    }

    /// Returns the next thing to do, if any.
    pub(crate) fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Returns when `handle_timeout` next has something to decide, and what that is.
    pub(crate) fn deadline(&self, now: Now) -> (Mono, &'static str) {
        let bind = (self.bind_at, "new key");
        let mesh = self.mesh.deadline();
        let kernel = self.kernel.deadline(now);
        let store = match self.unstored {
            Unstored::Until(at) => (at, "write to disk again"),
            Unstored::No | Unstored::UnderWay => (Mono::NEVER, ""),
        };
        if self.clock_trusted != now.wall_is_trusted {
            return (now.mono, "the clock is judged otherwise");
        }
        let relays = match self.uplink {
            Uplink::Up(_) => (self.peers.relays_at, "ask for relays"),
            Uplink::Unknown | Uplink::Down(_) => (Mono::NEVER, ""),
        };
        let measuring = (self.measuring.deadline(), "a measurement");
        [bind, mesh, kernel, store, relays, measuring]
            .into_iter()
            .min_by_key(|(at, _)| *at)
            .unwrap_or(bind)
    }

    /// Returns what the device holds, for the session.
    pub(crate) fn holdings(&self) -> Holdings {
        Holdings {
            revision: self.revision,
            heads: self.resources.values().map(Resource::head).collect(),
            marks: self.marks.clone(),
        }
    }

    /// Returns what is to be written to disk.
    pub(crate) fn stored(&self) -> Stored {
        Stored {
            revision: self.revision,
            marks: self.marks.clone(),
            resources: self.resources.values().cloned().collect(),
        }
    }

    /// Returns the revision that stands verified in the kernel.
    pub(crate) fn verified(&self) -> Option<VerifiedTable> {
        self.verified
    }

    /// Returns who may speak.
    pub(crate) fn trust(&self) -> &Trust {
        &self.world.trust
    }

    /// Returns what is known against signatures.
    pub(crate) fn standing(&self) -> &Standing {
        &self.world.standing
    }

    /// Returns the device's own ticket.
    pub(crate) fn ticket(&self) -> &Verified<Ticket> {
        &self.world.ticket
    }

    /// Returns the events that wait to be reported.
    pub(crate) fn spool(&mut self) -> &mut Spool {
        &mut self.spool
    }

    /// Returns the mesh's own account of itself.
    pub(crate) fn mesh_status(&self) -> hedgerow_mesh::Status {
        self.mesh.status()
    }

    /// Returns what is gossiped.
    pub(crate) fn gossip_status(&self) -> hedgerow_mesh::GossipStatus {
        self.mesh.gossip_status()
    }

    /// Returns how far a peer's pre-shared key is.
    pub(crate) fn psk_status(&self, device: DeviceId) -> Option<hedgerow_mesh::psk::PskStatus> {
        self.mesh.psk_status(device)
    }

    /// Returns the overlay pools of the trust domain.
    pub(crate) fn pools(&self) -> Vec<Prefix> {
        let config = self.world.config.as_ref();
        let mut pools: Vec<Prefix> = config.map(|c| c.pools.clone()).unwrap_or_default();
        pools.push(self.world.trust.domain_prefix());
        pools.sort_unstable();
        pools.dedup();
        pools
    }

    /// Returns why the controller holds this device, if it does.
    pub(crate) fn held(&self) -> Option<&str> {
        self.held.as_deref()
    }

    /// Returns the state the policy has put this device in.
    pub(crate) fn own_state(&self) -> Option<DeviceState> {
        self.world.standing.state(self.world.ticket.id)
    }

    /// Returns whether the disk refused the last write.
    pub(crate) fn disk_failed(&self) -> bool {
        self.disk_failed || self.store_failing
    }

    /// Returns the table last loaded, and whether the last reading found it whole.
    pub(crate) fn table(&self) -> (Option<&Ruleset>, bool) {
        self.kernel.table()
    }

    /// Returns every controller to try, in order of preference, without doubles.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let site = self.world.config.iter().flat_map(|c| &c.controllers);
        let mut out: Vec<String> = Vec::new();
        for endpoint in self.local.controllers.iter().chain(site) {
            if !out.contains(endpoint) && out.len() < CONTROLLERS_MAX {
                out.push(endpoint.clone());
            }
        }
        out
    }

    /// Records an event of this device.
    pub(crate) fn event(&mut self, event: Event) {
        let device = self.world.ticket.id;
        self.spool.push(event.device(device));
    }

    fn refuse(&mut self, now: Now, kind: Option<ResourceKind>, text: &str, reason: &str) {
        tracing::warn!(resource = kind.map(ResourceKind::as_str), text, "refused");
        let mut event = Event::new(now.wall, EventKind::ResourceRefused)
            .detail("reason", reason)
            .detail("text", text);
        if let Some(kind) = kind {
            event = event.detail("resource", kind);
        }
        self.event(event);
    }

    fn own_facts(&self) -> Facts {
        let ticket: &Ticket = &self.world.ticket;
        let facts = Facts::from(ticket).in_state(self.own_state());
        match &self.world.config {
            Some(config) => facts.in_zone(&config.zone),
            None => facts,
        }
    }

    /// Says who is called what, to the hosts file and to the resolver.
    fn publish_names(&mut self) {
        let zone = self.world.zone().map(Arc::new);
        self.steps.push_back(Step::Zone(zone));
        if self.local.has_hosts_file {
            let entries = self.world.hosts();
            self.steps.push_back(Step::Hosts(entries));
        }
    }
}

/// Most controllers that are tried in turn.
const CONTROLLERS_MAX: usize = 64;

impl World {
    fn view(&self, now: Now) -> View<'_> {
        View {
            trust: &self.trust,
            standing: &self.standing,
            now,
        }
    }

    fn zone(&self) -> Option<Zone> {
        let zone = Zone::new(self.config.as_ref()?, &self.ticket, self.names.clone())?;
        Some(zone.with_pool(self.trust.domain_prefix()))
    }

    /// Returns names by address: `name.site.suffix`, and the name alone within the own site.
    fn hosts(&self) -> BTreeMap<IpAddr, Vec<String>> {
        let mut out: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        let (Some(names), Some(config)) = (&self.names, &self.config) else {
            return out;
        };
        for entry in names.entries.iter().filter(|e| e.id != self.ticket.id) {
            let full = format!("{}.{}.{}", entry.name, entry.site, config.suffix);
            let short = format!("{}.{}", entry.name, entry.site);
            for address in entry.addresses.iter() {
                out.insert(address.0, vec![full.clone(), short.clone()]);
            }
        }
        out
    }
}

/// Digest of a program, to tell whether it is the one that was tried before.
fn program_digest(resources: &BTreeMap<ResourceKind, Resource>) -> Digest {
    let program = resources.get(&ResourceKind::Program);
    program.map_or(Digest::default(), |r| r.head().hash)
}
