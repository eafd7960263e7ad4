//! Doing what the state decided, and what people ask.

use std::net::SocketAddr;
use std::time::Duration;

use hedgerow_linux::link::{self, Link};
use hedgerow_linux::nft::{NftError, Table};
use hedgerow_linux::tunnel::{
    Command, Cut, PeerConfig, PresharedKey, PrivateKey, PskSlot, Report, Roaming, Secrecy, Slot,
    Tunnel, TunnelConfig,
};
use hedgerow_linux::{conntrack, hosts, tunnel};
use hedgerow_mesh::psk::{PostQuantum, PskUse};
use hedgerow_mesh::{OwnIdentity, TunnelOrder};
use hedgerow_model::address::Underlay;
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::ruleset::Ruleset;
use hedgerow_model::{Mono, Now, Wall};
use hedgerow_sync::AgentSession;
use hedgerow_sync::message;
use tokio::sync::oneshot;

use super::entropy;
use super::leave::Insistence;
use super::local::Request;
use super::measure::Wish;
use super::orders::Told;
use super::run::{Daemon, End};
use super::{offline, status};
use crate::failure::{Failure, chain};
use crate::state::{Load, Step, ToTunnel};

/// How soon the tunnel is told again what it had no room for.
const ORDERS_AGAIN: Duration = Duration::from_millis(5);
/// How soon the trusted-time floor is written once something was signed.
const FLOOR_SOON: Duration = Duration::from_millis(100);
/// How often the addresses of the interfaces are looked at.
const ADDRESSES_EVERY: Duration = Duration::from_secs(3);
/// How long a goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(3);
/// Turns of the runtime in which the last answers leave the control socket.
const ANSWER_TURNS: u32 = 16;

impl Daemon {
    /// Does everything there is to do, until nothing is left.
    pub(super) fn work(&mut self) {
        loop {
            let now = self.clock.now();
            let mut busy = false;
            while let Some(step) = self.state.poll() {
                self.act(step);
                busy = true;
            }
            busy |= self.obey_session(now);
            while let Some(output) = self.rotation.poll() {
                self.rotate(output, now);
                busy = true;
            }
            if !busy {
                break;
            }
        }
        self.report_events();
        let now = self.clock.now();
        self.keep_spool(now);
        if let Some(live) = &mut self.live
            && let Some(session) = &mut live.session
        {
            live.connection.fill(|| session.next_frame());
        }
    }

    pub(super) fn session(&mut self) -> Option<&mut AgentSession> {
        self.live.as_mut()?.session.as_mut()
    }

    fn act(&mut self, step: Step) {
        let now = self.clock.now();
        match step {
            Step::Store => self.store_resources(now),
            Step::Load(ruleset) => {
                let generation = ruleset.generation;
                let result = load(&mut self.table, &ruleset, now).map_err(|e| chain(&e));
                let now = self.clock.now();
                self.state.handle_loaded(generation, result, now);
            }
            Step::Elements(elements) => {
                let result = self.table.set_peers(&elements).map_err(|e| chain(&e));
                self.state.handle_elements(&elements, result, now);
            }
            Step::Verify => {
                let reading = self.read_back(now);
                let now = self.clock.now();
                self.state.handle_verified(reading, now);
            }
            Step::CutConnections(address) => {
                if let Err(error) = conntrack::delete_for(address) {
                    tracing::debug!(%error, %address, "connections not forgotten");
                }
            }
            Step::Acknowledge(revision, stage) => self.acknowledge(revision, stage),
            Step::Resolve(id, query) => {
                let sent = self.session().map(|s| s.resolve(id, query));
                if !matches!(sent, Some(Ok(()))) {
                    self.state.handle_resolved(id, None, now);
                }
            }
            Step::Whereabouts => self.tell_whereabouts(),
            Step::BindKey => self.bind(now),
            Step::Remember(memory) => self.remember(&memory, now),
            Step::Forget(device) => {
                self.written("a peer", |s| s.store.met().forget(device));
            }
            Step::Hosts(entries) => self.write_hosts(&entries),
            Step::Answer(id, answer) => self.answer(id, &answer),
            Step::Zone(zone) => self.resolver.publish(zone),
            Step::Controllers(controllers) => {
                self.controllers = controllers;
                self.names_at = now.mono;
            }
            Step::StoreTrial(trial) => {
                self.written("the trial", |s| s.store.write_trial(trial));
            }
            Step::Probe => {
                if let Some(session) = self.session() {
                    session.ping(now.mono);
                }
            }
            Step::Past(at) => self.note_past(at),
            Step::OpenLink(relay, hosts) => self.open_link(relay, hosts, now),
            Step::CloseLink(relay) => self.close_link(relay),
            Step::Tunnel(order) => self.tell_tunnel(order),
        }
    }

    fn tell_tunnel(&mut self, order: ToTunnel) {
        let secrecy = match self.config.post_quantum {
            PostQuantum::Prefer => Secrecy::Classical,
            PostQuantum::Strict => Secrecy::PostQuantum,
        };
        let connect = match &order {
            // Who knows where the other is speaks first: the other may not know where we are.
            ToTunnel::SetPeer {
                device,
                endpoint: Some(_),
                ..
            } => Some(Command::Connect { device: *device }),
            ToTunnel::SetPeer { endpoint: None, .. }
            | ToTunnel::Connect(_)
            | ToTunnel::ForgetOldKey(_)
            | ToTunnel::RemovePeer(_)
            | ToTunnel::Send(..)
            | ToTunnel::Mesh(_)
            | ToTunnel::Release(..)
            | ToTunnel::Reject(..) => None,
        };
        for command in [Some(command_for(order, secrecy)), connect]
            .into_iter()
            .flatten()
        {
            self.order(command);
        }
    }

    fn order(&mut self, command: Command) {
        let Some(tunnel) = &self.tunnel else {
            return;
        };
        let told = self.orders.tell(command, |c| tunnel.offer(c));
        self.heed(told);
    }

    /// Tells the tunnel what it had no room for.
    pub(super) fn repeat_orders(&mut self, now: Now) {
        self.orders_at = Mono::NEVER;
        if let Some(tunnel) = &self.tunnel {
            let told = self.orders.flush(|c| tunnel.offer(c));
            self.heed(told);
        }
        if self.orders.is_waiting() {
            self.orders_at = now.mono + ORDERS_AGAIN;
        }
    }

    fn heed(&mut self, told: Told) {
        match told {
            // That the tunnel stopped is reported by itself, with its reason.
            Told::Taken | Told::Stopped => {}
            Told::Stuck => {
                self.fatal = Some(Failure::environment(
                    "the tunnel's thread takes no commands any more",
                    "the service manager starts the agent again",
                ));
            }
        }
        if self.orders.is_waiting() && self.orders_at == Mono::NEVER {
            self.orders_at = self.clock.now().mono + ORDERS_AGAIN;
        }
    }

    fn store_resources(&mut self, now: Now) {
        let stored = self.state.stored();
        let chain = self.state.trust().export();
        let written = self.store.write_manifests(chain);
        let written = written.and_then(|()| self.store.write_resources(stored));
        if let Err(failure) = &written {
            tracing::error!(%failure, "policy and revocations are in force, but not on disk");
        }
        let result = written.map_err(|failure| failure.to_string());
        self.state.handle_disk(result.clone());
        self.state.handle_stored(result, now);
        // Revocations or states may be among what came.
        self.judge_links(now);
    }

    fn acknowledge(&mut self, revision: hedgerow_model::id::Revision, stage: message::Stage) {
        let holdings = self.state.holdings();
        let Some(session) = self.session() else {
            return;
        };
        if let Err(error) = session.handle_verdict(revision, stage, holdings) {
            self.disconnect(&error.to_string());
        }
    }

    fn write_hosts(&mut self, entries: &hosts::Entries) {
        let Some(path) = &self.config.hosts_file else {
            return;
        };
        if let Err(error) = hosts::write(path, entries) {
            tracing::warn!(error = chain(&error), "names are not in the hosts file");
        }
    }

    /// Makes a WireGuard key, gives it to the tunnel, and tells the mesh.
    fn bind(&mut self, now: Now) {
        let dated = self.clock.dated(now.wall);
        let (secret, own) = match self.identities.bind(self.state.ticket(), dated, now) {
            Ok(bound) => bound,
            Err(failure) => {
                tracing::error!(%failure, "no new key");
                return;
            }
        };
        let addresses = self.state.ticket().addresses;
        if self.tunnel_addresses.is_some_and(|old| old != addresses)
            && let Some(tunnel) = self.tunnel.take()
        {
            tracing::warn!("the overlay addresses changed; the tunnel begins anew");
            tunnel.shutdown();
            self.orders.clear();
        }
        if self.tunnel.is_some() {
            self.order(Command::SetIdentityKey {
                slot: Slot::Current,
                secret: Some(secret),
            });
        } else if let Err(failure) = self.start_tunnel(secret, now) {
            self.fatal = Some(failure);
            return;
        }
        let sequence = own.binding.sequence;
        let dated = Wall::from_secs(sequence);
        self.clock.handle_given(dated);
        self.written("signed dates", |s| s.store.write_dated(dated));
        self.tell_mesh(own, now);
        self.sign_record(sequence, now);
        // No machine starts again sooner.
        self.floor_at = self.floor_at.min(now.mono + FLOOR_SOON);
    }

    fn tell_mesh(&mut self, own: OwnIdentity, now: Now) {
        let tenth = crate::state::KEY_LIFE / 10;
        let spread = u64::try_from(tenth.as_millis()).unwrap_or(1).max(1);
        let jitter = Duration::from_millis(entropy::seed() % spread);
        self.state.handle_bound(own, now, jitter);
    }

    fn start_tunnel(&mut self, secret: PrivateKey, now: Now) -> Result<(), Failure> {
        let addresses = self.state.ticket().addresses;
        let config = TunnelConfig {
            name: self.config.interface.clone(),
            addresses,
            mtu: self.config.mtu,
            port: self.config.mesh_port,
            private_key: secret,
            persistent: true,
            wall_floor: now.wall,
            features: tunnel::Features::default(),
        };
        let sender = self.reports.clone();
        let reports = move |report: Report| sender.try_send(report).map_err(|e| e.into_inner());
        let tunnel = Tunnel::start(config, reports).map_err(|e| {
            Failure::new(
                e.fault(),
                format!("no tunnel: {}", chain(&e)),
                "free the port or interface, or set mesh.port and mesh.interface; see `hedgerow-agent check`",
            )
        })?;
        self.tunnel = Some(tunnel);
        self.tunnel_addresses = Some(addresses);
        self.order(Command::SetRelayLimits(self.config.relay_limits));
        let pools = self.state.pools();
        offline::dress_interface(&self.config, &addresses, &pools)
    }

    /// Where the mesh may reach this device: from where the controller sees it, and as configured.
    pub(super) fn endpoints(&self) -> Vec<Underlay> {
        let port = self
            .tunnel
            .as_ref()
            .map_or(self.config.mesh_port, |t| t.port());
        let seen = self.local_address.map(|ip| Underlay((ip, port).into()));
        let given = self.config.endpoints.iter().copied().map(Underlay);
        given.chain(seen).collect()
    }

    /// Tells the controller where this device is reached, and through which relays.
    pub(super) fn tell_whereabouts(&mut self) {
        let now = self.clock.now();
        self.plan_record(now);
        let mut endpoints = self.endpoints();
        let (seen, relays) = self.state.whereabouts();
        for endpoint in seen {
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        if let Some(session) = self.session().filter(|s| s.is_open())
            && let Err(error) = session.endpoints(endpoints, relays)
        {
            tracing::debug!(%error, "the controller is not told where this device is");
        }
    }

    /// Looks which addresses this machine has, for the mesh.
    pub(super) fn look_at_addresses(&mut self, now: Now) {
        self.addresses_at = now.mono + ADDRESSES_EVERY;
        self.tend_links(now);
        let tunnel = Link::find(&self.config.interface).ok();
        let found = match link::addresses(tunnel.as_ref()) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = chain(&error), "addresses cannot be listed");
                return;
            }
        };
        let port = self
            .tunnel
            .as_ref()
            .map_or(self.config.mesh_port, |t| t.port());
        let given = self.config.endpoints.iter().copied();
        let found = found.into_iter().map(|ip| SocketAddr::new(ip, port));
        let all: Vec<Underlay> = given.chain(found).map(Underlay).collect();
        if self.local_endpoints != all {
            self.local_endpoints.clone_from(&all);
            self.state.handle_local_addresses(all, now);
            self.tell_whereabouts();
        }
    }

    pub(super) fn handle_local(
        &mut self,
        request: Request,
        reply: oneshot::Sender<serde_json::Value>,
    ) {
        let answer = match request {
            Request::Status => status::of(self),
            Request::Off => {
                self.end = Some(End::Off);
                let now = self.clock.now();
                self.state
                    .event(Event::new(now.wall, EventKind::EnforcementDisabled));
                serde_json::json!({ "off": true })
            }
            Request::Ping { peer } => return self.measure(&peer, Wish::RoundTrip, reply),
            Request::Bench { peer, seconds } => {
                return self.measure(&peer, Wish::Throughput(seconds), reply);
            }
            Request::Capture { peer, seconds } => self.begin_capture(peer, seconds),
            Request::CaptureEnded { peer, report } => {
                self.end_capture(peer.as_deref(), report.as_ref())
            }
            Request::Import { file } => self.import(&file),
            Request::Leave { force } => {
                let insistence = match force {
                    true => Insistence::InAnyCase,
                    false => Insistence::OnlyIfConfirmed,
                };
                let now = self.clock.now();
                self.leave(insistence, reply, now);
                return;
            }
        };
        // Who asked may have gone.
        drop(reply.send(answer));
    }

    /// Ends what was begun. The table stays unless the end is [`End::Off`].
    pub(super) async fn finish(mut self, end: End) -> End {
        self.notify("say that we are stopping", |m, _| m.stopping());
        let now = self.clock.now();
        // A report under way may not be answered any more: it is sent again, with what came since, so
        // that the controller learns of the end now and not at the next start.
        self.state.spool().handle_uplink_down();
        self.report_events();
        if let Some(session) = self.session() {
            session.bye();
        }
        self.keep_spool(now);
        self.written("peers", |s| s.store.met().settle());
        self.written("trusted time", |s| s.store.write_floor(s.clock.floor()));
        if let Some(mut live) = self.live.take() {
            if let Some(session) = &mut live.session {
                while let Some(frame) = session.next_frame() {
                    let mut frame = Some(frame);
                    live.connection.fill(|| frame.take());
                    tokio::task::yield_now().await;
                    if frame.is_some() {
                        break;
                    }
                }
            }
            // A controller that does not listen is not waited for.
            drop(tokio::time::timeout(GOODBYE_WITHIN, live.connection.finish()).await);
        }
        if let Some(tunnel) = self.tunnel.take() {
            tunnel.shutdown();
        }
        if end == End::Off {
            self.notify("forget the table's socket", |m, _| {
                m.forget(hedgerow_linux::nft::DESCRIPTOR_NAME)
            });
            if let Err(failure) = offline::undress(&self.config, &mut self.table) {
                tracing::error!(%failure, "not everything was taken back");
            }
        }
        // Whoever asked for this gets the answer before the runtime ends.
        for _ in 0..ANSWER_TURNS {
            tokio::task::yield_now().await;
        }
        end
    }
}

fn command_for(order: ToTunnel, secrecy: Secrecy) -> Command {
    match order {
        ToTunnel::SetPeer {
            device,
            key,
            addresses,
            endpoint,
        } => Command::SetPeer(PeerConfig {
            device,
            slot: Slot::Current,
            public_key: key,
            addresses,
            endpoint,
            psk: None,
            secrecy,
            roaming: Roaming::Report,
            keepalive: None,
        }),
        ToTunnel::Mesh(order) => command_of_mesh(order),
        ToTunnel::Connect(device) => Command::Connect { device },
        ToTunnel::ForgetOldKey(device) => Command::ForgetPeerKey {
            device,
            slot: Slot::Previous,
        },
        ToTunnel::RemovePeer(device) => Command::RemovePeer { device },
        ToTunnel::Send(to, bytes) => Command::SendDatagram { to, bytes },
        ToTunnel::Release(dst, profile) => Command::Release { dst, profile },
        ToTunnel::Reject(dst, why) => Command::RejectQueued { dst, why },
    }
}

fn command_of_mesh(order: TunnelOrder) -> Command {
    match order {
        TunnelOrder::SendMessage {
            device,
            via,
            bytes,
            measures_mtu,
        } => Command::SendMessage {
            device,
            via,
            bytes,
            cut: match measures_mtu {
                true => Cut::Refused,
                false => Cut::Allowed,
            },
        },
        TunnelOrder::MovePeer { device, path } => Command::MovePeer { device, path },
        TunnelOrder::SetPathMtu { device, mtu } => Command::SetPathMtu { device, mtu },
        TunnelOrder::SetPsk {
            device,
            keys,
            psk,
            what,
        } => Command::SetPsk {
            device,
            keys: Some(keys),
            psk: Some(PresharedKey::from_bytes(*psk.expose())),
            slot: match what {
                PskUse::Accept => PskSlot::Accepted,
                PskUse::Use | PskUse::UseNow => PskSlot::Used,
            },
        },
        TunnelOrder::Rekey { device } => Command::Rekey { device },
        TunnelOrder::SetRelay { session, from, to } => Command::SetRelay { session, from, to },
        TunnelOrder::ForgetRelay { session } => Command::ForgetRelay { session },
    }
}

/// Brings a table into force: the first of this process may be the one that stands there.
fn load(table: &mut Table, ruleset: &Ruleset, now: Now) -> Result<Load, NftError> {
    match table.adopt(ruleset, now) {
        Ok(Some(hash)) => return Ok(Load::Stood(hash)),
        Ok(None) => {}
        Err(error) => tracing::warn!(error = chain(&error), "the kernel's table cannot be read"),
    }
    table.load(ruleset, now).map(Load::Replaced)
}
