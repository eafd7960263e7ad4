//! What the kernel shall enforce, what it does enforce, and what is on trial.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hedgerow_linux::sessions::Session;
use hedgerow_model::address::{OverlayAddresses, Prefix};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::packet::Direction;
use hedgerow_model::program::{Class, Mode, PROGRAM_FORMAT, Program};
use hedgerow_model::ruleset::{Lifeline, LinkPorts, Profile, ProfileId, Ruleset, Verdict};
use hedgerow_model::service::Protocol;
use hedgerow_model::{Mono, Now, Wall};
use hedgerow_policy::{Facts, LocalEnvironment, Resolver, TooLarge};
use hedgerow_sync::message::{Stage, Verified as VerifiedTable};
use minicbor::{Decode, Encode};

use super::{Local, State, Step, program_digest};

/// How long after a load what comes from the controller may have been under way before.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// Most name and time servers of the lifeline.
const SERVERS_MAX: usize = 32;
/// How soon a table that could not be loaded is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How far the underlay's enforcement is proven; written to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub(crate) struct Underlay {
    /// The controller answered while it was enforced.
    #[n(0)]
    pub(crate) is_confirmed: bool,
    /// The program whose enforcement was taken back; it is not tried again.
    #[n(1)]
    pub(crate) reverted: Option<Digest>,
    /// The last program enforced it: without a usable program it stays closed.
    #[n(2)]
    pub(crate) is_enforced: bool,
}

/// What the lifeline is made of, as a signature or the configuration file says it. Addresses that
/// names stand for are not among it: whoever answers for names must not undo anything.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inputs {
    controllers: Vec<String>,
    mesh_port: u16,
    management: Vec<Prefix>,
    servers: Vec<IpAddr>,
}

#[derive(Debug)]
struct Pending {
    revision: Revision,
    partial: bool,
    since: Mono,
    /// Loaded; waits for the reading.
    loaded: bool,
}

#[derive(Debug)]
struct Trial {
    program: Digest,
    /// What the controller says before this was under way already.
    from: Mono,
    until: Mono,
    /// Whether the controller was asked to say something.
    probed: bool,
    /// Enforcement was confirmed before and only the lifeline is on trial: this one is kept open if
    /// nobody answers under the new one.
    fallback: Option<Lifeline>,
}

/// The table: wanted, loaded, verified.
#[derive(Debug)]
pub(super) struct Kernel {
    generation: u64,
    loaded: Option<Ruleset>,
    ids: BTreeMap<Profile, ProfileId>,
    wanted: bool,
    in_flight: Option<Box<Ruleset>>,
    intact: bool,
    /// The last load was refused.
    failing: bool,
    hash: Option<Digest>,
    pending: Option<Pending>,
    next_change: Option<Wall>,
    read_at: Mono,
    retry_at: Mono,
    underlay: Underlay,
    trial: Option<Trial>,
    inputs: Option<Inputs>,
    /// A lifeline that stays open beside the one that these inputs give.
    kept: Option<(Inputs, Lifeline)>,
}

impl Kernel {
    pub(super) fn new(underlay: Underlay) -> Self {
        Self {
            generation: 0,
            loaded: None,
            ids: BTreeMap::new(),
            wanted: false,
            in_flight: None,
            intact: false,
            failing: false,
            hash: None,
            pending: None,
            next_change: None,
            read_at: Mono::NEVER,
            retry_at: Mono::NEVER,
            underlay,
            trial: None,
            inputs: None,
            kept: None,
        }
    }

    /// Asks for a load even if nothing changed.
    pub(super) fn request(&mut self) {
        self.wanted = true;
    }

    pub(super) fn await_verdict(&mut self, revision: Revision, partial: bool) {
        self.pending = Some(Pending {
            revision,
            partial,
            since: Mono::NEVER,
            loaded: false,
        });
    }

    /// The controller was heard: a trial that was under way before is passed.
    pub(super) fn confirm(&mut self, now: Mono) -> Option<Underlay> {
        self.trial.take_if(|trial| now >= trial.from)?;
        self.underlay.is_confirmed = true;
        self.underlay.reverted = None;
        Some(self.underlay)
    }

    pub(super) fn deadline(&self, now: Now) -> (Mono, &'static str) {
        let change = self
            .next_change
            .filter(|_| now.wall_is_trusted)
            .map_or(Mono::NEVER, |at| now.mono + at.since(now.wall));
        let trial = self.trial.as_ref();
        let trial = trial.map_or(Mono::NEVER, |t| if t.probed { t.until } else { t.from });
        [
            (self.read_at, "read the table back"),
            (self.retry_at, "load the table again"),
            (change, "a window opens or closes"),
            (trial, "take the underlay's enforcement back"),
        ]
        .into_iter()
        .min_by_key(|(at, _)| *at)
        .unwrap_or((Mono::NEVER, "nothing"))
    }

    pub(super) fn table(&self) -> (Option<&Ruleset>, bool) {
        (self.loaded.as_ref(), self.intact)
    }

    /// Returns the number of a profile that the loaded table has.
    pub(super) fn id_of(&self, profile: &Profile) -> Option<ProfileId> {
        if self.in_flight.is_some() || self.wanted {
            return None;
        }
        self.ids.get(profile).copied()
    }

    /// Notes elements that were set without a load.
    pub(super) fn note_elements(
        &mut self,
        elements: &[(hedgerow_model::address::Overlay, Option<ProfileId>)],
    ) {
        if let Some(table) = &mut self.loaded {
            for (address, profile) in elements {
                match profile {
                    Some(id) => table.peers.insert(*address, *id),
                    None => table.peers.remove(address),
                };
            }
        }
    }
}

/// Refuses everything on the overlay: what holds before the first program, or without a usable one.
/// The underlay is left alone unless it was enforced before.
fn closed_program(underlay: Mode) -> Program {
    Program {
        format: PROGRAM_FORMAT,
        class: Class::default(),
        mode: Mode::Enforce,
        underlay,
        rules: Vec::new(),
        schedules: Vec::new(),
        sample_seconds: 10,
    }
}

impl State {
    /// Works out what the kernel shall enforce and asks for a load when that differs.
    pub(super) fn refresh(&mut self, now: Now) {
        let closed;
        let program = match &self.world.program {
            Some(program) => program,
            None => {
                closed = closed_program(match self.kernel.underlay.is_enforced {
                    true => Mode::Enforce,
                    false => Mode::Observe,
                });
                &closed
            }
        };
        let own = self.own_facts();
        let zone = self.world.config.as_ref().map_or("", |c| c.zone.as_str());
        let digest = program_digest(&self.resources);
        let resolver = Resolver::new(program, &own, zone, now);
        let next_change = resolver.next_change();
        let wanted = resolver.ruleset(&self.facts_of_peers(), self.environment());
        match wanted {
            Ok(mut ruleset) => {
                self.kernel.next_change = next_change;
                self.restrain(&mut ruleset, digest, now);
                self.want(ruleset, now);
            }
            Err(too_large) => self.too_large(&too_large, now),
        }
    }

    /// Puts the first enforcement of the underlay on trial, and leaves out one that failed its trial.
    /// A changed lifeline is on trial too; what that can take back is the change, never enforcement
    /// that was confirmed: who cuts a link must not undo it.
    fn restrain(&mut self, ruleset: &mut Ruleset, program: Digest, now: Now) {
        let inputs = self.inputs();
        let before = self.kernel.inputs.replace(inputs.clone());
        let is_enforced = ruleset.underlay_mode == Mode::Enforce;
        if std::mem::replace(&mut self.kernel.underlay.is_enforced, is_enforced) != is_enforced {
            self.steps.push_back(Step::StoreTrial(self.kernel.underlay));
        }
        if !is_enforced {
            self.kernel.trial = None;
            self.kernel.kept = None;
            return;
        }
        if self.kernel.underlay.is_confirmed {
            if before.is_some_and(|before| before != inputs) {
                let earlier = self.kernel.trial.take().and_then(|trial| trial.fallback);
                let loaded = self.kernel.loaded.as_ref().map(|t| t.lifeline.clone());
                self.kernel.kept = None;
                self.try_out(program, earlier.or(loaded), now);
            }
            if let Some((_, old)) = self.kernel.kept.as_ref().filter(|(of, _)| *of == inputs) {
                widen(&mut ruleset.lifeline, old);
            }
            return;
        }
        if self.kernel.trial.is_some() {
            return;
        }
        if self.kernel.underlay.reverted == Some(program) {
            ruleset.underlay_mode = Mode::Observe;
            ruleset.underlay.clear();
            return;
        }
        self.steps.push_back(Step::StoreTrial(self.kernel.underlay));
        self.try_out(program, None, now);
    }

    fn try_out(&mut self, program: Digest, fallback: Option<Lifeline>, now: Now) {
        tracing::warn!(
            seconds = self.local.trial.as_secs(),
            "underlay enforcement or its lifeline is on trial: the change is taken back unless the controller answers"
        );
        self.kernel.trial = Some(Trial {
            program,
            from: now.mono + UNDER_WAY,
            until: now.mono + self.local.trial,
            probed: false,
            fallback,
        });
    }

    fn end_trial(&mut self, trial: Trial, now: Now) {
        tracing::error!("no word from the controller: the change on trial is taken back");
        let mut event = Event::new(now.wall, EventKind::UnderlayReverted);
        match trial.fallback {
            Some(lifeline) => {
                event = event.detail("what", "lifeline");
                self.kernel.kept = self.kernel.inputs.clone().map(|of| (of, lifeline));
            }
            None => {
                event = event.detail("what", "enforcement");
                self.kernel.underlay.reverted = Some(trial.program);
                self.steps.push_back(Step::StoreTrial(self.kernel.underlay));
            }
        }
        self.event(event);
        self.refresh(now);
    }

    fn want(&mut self, mut ruleset: Ruleset, now: Now) {
        let current = self
            .kernel
            .in_flight
            .as_deref()
            .or(self.kernel.loaded.as_ref());
        ruleset.generation = current.map_or(0, |r| r.generation);
        if !self.kernel.wanted && current == Some(&ruleset) {
            return;
        }
        self.kernel.wanted = false;
        self.kernel.generation = self.kernel.generation.saturating_add(1);
        ruleset.generation = self.kernel.generation;
        if let Some(pending) = self
            .kernel
            .pending
            .as_mut()
            .filter(|p| p.since == Mono::NEVER)
        {
            pending.since = now.mono;
        }
        // A load that did not leave yet is replaced, not followed.
        self.steps.retain(|step| !matches!(step, Step::Load(_)));
        self.kernel.in_flight = Some(Box::new(ruleset.clone()));
        self.steps.push_back(Step::Load(Box::new(ruleset)));
    }

    fn too_large(&mut self, too_large: &TooLarge, now: Now) {
        tracing::error!(error = %too_large, "the program does not fit; the table in force stays");
        self.refuse(now, None, &too_large.to_string(), "too_large");
    }

    /// Notes what became of a load. An answer to an older load than the last is ignored.
    pub(crate) fn handle_loaded(
        &mut self,
        generation: u64,
        result: Result<Load, String>,
        now: Now,
    ) {
        let Some(ruleset) = self
            .kernel
            .in_flight
            .take_if(|r| r.generation == generation)
        else {
            return;
        };
        match result {
            Ok(load) => {
                self.kernel.ids = ruleset
                    .profiles
                    .iter()
                    .map(|(i, p)| (p.clone(), *i))
                    .collect();
                self.kernel.loaded = Some(*ruleset);
                self.kernel.hash = Some(load.hash());
                self.kernel.retry_at = Mono::NEVER;
                self.kernel.failing = false;
                self.kernel.read_at = now.mono + self.local.verify_every;
                if let Some(pending) = &mut self.kernel.pending {
                    pending.loaded = true;
                }
                // Who waits for an element goes before the reading, which takes milliseconds.
                self.grant_waiting(now);
                match load {
                    Load::Replaced(_) => self.steps.push_back(Step::Verify),
                    Load::Stood(hash) => self.handle_verified(Reading::Intact(hash), now),
                }
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "the kernel refused the table; the one in force stays"
                );
                // The verdict on the revision waits for the load that works.
                self.kernel.wanted = true;
                self.kernel.retry_at = now.mono + RETRY_AFTER;
                if !std::mem::replace(&mut self.kernel.failing, true) {
                    self.refuse(now, None, &error, "kernel");
                }
            }
        }
    }

    /// Notes what the table looks like when read back.
    pub(crate) fn handle_verified(&mut self, reading: Reading, now: Now) {
        self.kernel.read_at = now.mono + self.local.verify_every;
        match reading {
            Reading::Intact(hash) => {
                self.kernel.intact = true;
                self.kernel.hash = Some(hash);
                self.settle(now);
            }
            Reading::Differs { missing, surplus } => {
                self.kernel.intact = false;
                tracing::error!(missing, surplus, "the kernel's table differs; mending it");
                self.event(
                    Event::new(now.wall, EventKind::TableMended)
                        .detail("missing", missing)
                        .detail("surplus", surplus),
                );
                self.kernel.wanted = true;
                self.refresh(now);
            }
            Reading::Failed(error) => {
                tracing::error!(error, "the kernel's table cannot be read");
            }
        }
    }

    /// Notes what became of single elements.
    pub(crate) fn handle_elements(
        &mut self,
        elements: &[(hedgerow_model::address::Overlay, Option<ProfileId>)],
        result: Result<(), String>,
        now: Now,
    ) {
        match result {
            Ok(()) => {
                // The hash is over the whole table: it is read when somebody asks for it.
                self.kernel.hash = None;
                self.kernel.note_elements(elements);
                self.grant_waiting(now);
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "the kernel refused elements; loading the whole table"
                );
                self.kernel.wanted = true;
                self.refresh(now);
            }
        }
    }

    /// Gives the verdict on a revision once the kernel holds it, or at once when nothing changed.
    pub(super) fn settle(&mut self, now: Now) {
        let idle = self.kernel.in_flight.is_none() && !self.kernel.wanted && self.kernel.intact;
        let stored = self.unstored == super::Unstored::No;
        if !idle || !stored {
            return;
        }
        let Some(table_hash) = self.kernel.hash else {
            if self.kernel.pending.is_some() && !self.steps.contains(&Step::Verify) {
                self.steps.push_back(Step::Verify);
            }
            return;
        };
        let Some(pending) = self.kernel.pending.take() else {
            return;
        };
        if !pending.partial {
            self.verified = Some(VerifiedTable {
                revision: pending.revision,
                table_hash,
            });
        }
        if pending.loaded {
            let took = now.mono.since(pending.since.min(now.mono)).as_millis();
            tracing::info!(revision = %pending.revision, milliseconds = took, "verified in the kernel");
            self.record_applied(pending.revision, took, now);
        }
        let stage = Stage::Verified(table_hash);
        self.steps
            .push_back(Step::Acknowledge(pending.revision, stage));
    }

    pub(super) fn kernel_timeout(&mut self, now: Now) {
        if let Some(trial) = self
            .kernel
            .trial
            .as_mut()
            .filter(|t| !t.probed && now.mono >= t.from)
        {
            trial.probed = true;
            self.steps.push_back(Step::Probe);
        }
        if let Some(trial) = self.kernel.trial.take_if(|t| now.mono >= t.until) {
            self.end_trial(trial, now);
        }
        if now.wall_is_trusted && self.kernel.next_change.is_some_and(|at| now.wall >= at) {
            self.refresh(now);
            self.reconsider(now);
        }
        if now.mono >= self.kernel.retry_at {
            self.kernel.retry_at = Mono::NEVER;
            self.refresh(now);
        }
        if now.mono >= self.kernel.read_at {
            self.kernel.read_at = now.mono + self.local.verify_every;
            self.steps.push_back(Step::Verify);
        }
    }

    fn inputs(&self) -> Inputs {
        let config = self.world.config.as_ref();
        let given = self.local.management.iter();
        let management = given.chain(config.iter().flat_map(|c| &c.management));
        let mut management: Vec<Prefix> = management.copied().collect();
        management.sort_unstable();
        management.dedup();
        Inputs {
            controllers: self.controllers(),
            mesh_port: self.local.mesh_port,
            management,
            servers: self.local.servers.clone(),
        }
    }

    fn environment(&self) -> LocalEnvironment {
        let inputs = self.inputs();
        let own = self.world.ticket.addresses;
        let is_relay = hedgerow_model::path::is_relay(&self.world.ticket.labels);
        // Our own addresses belong to the overlay even before a configuration names the pools.
        let mut pools = self.pools();
        pools.extend(own.v4.and_then(|a| Prefix::new(a.into(), 32).ok()));
        LocalEnvironment {
            generation: 0,
            tunnel: self.local.tunnel.clone(),
            own,
            pools,
            lifeline: Lifeline {
                controllers: self.controller_addresses(),
                mesh_port: inputs.mesh_port,
                management: inputs.management,
                servers: self.local.all_servers(),
                askers: self.local.askers,
                links: LinkPorts {
                    listens: self.local.relay_listen.filter(|_| is_relay),
                    connects: self.local.relay_port,
                },
            },
        }
    }

    fn controller_addresses(&self) -> Vec<SocketAddr> {
        let mut out: Vec<SocketAddr> = Vec::new();
        for endpoint in self.controllers() {
            match endpoint.parse() {
                Ok(address) => out.push(address),
                Err(_) => out.extend(self.addresses.get(&endpoint).into_iter().flatten()),
            }
        }
        out.sort_unstable();
        out.dedup();
        out
    }

    fn facts_of_peers(&self) -> BTreeMap<DeviceId, (Facts, OverlayAddresses)> {
        let standing = &self.world.standing;
        let peers = self.peers.iter();
        peers
            .map(|(device, peer)| (device, (peer.facts(standing), peer.addresses())))
            .collect()
    }

    /// Says whether a program fits the kernel's bounds, with the peers of now.
    pub(super) fn fits(&self, program: &Program, now: Now) -> Result<(), TooLarge> {
        let own = self.own_facts();
        let zone = self.world.config.as_ref().map_or("", |c| c.zone.as_str());
        Resolver::new(program, &own, zone, now)
            .ruleset(&self.facts_of_peers(), self.environment())
            .map(|_| ())
    }

    /// Returns which of these connections enforcing the underlay would end: an operator's own, for
    /// instance. None once it is enforced, for then they have ended.
    pub(crate) fn sessions_at_stake(&self, sessions: &[Session], now: Now) -> Vec<Session> {
        let is_enforced = |t: &Ruleset| t.underlay_mode == Mode::Enforce;
        if self.kernel.loaded.as_ref().is_some_and(is_enforced) {
            return Vec::new();
        }
        let program = self.world.program.clone();
        let enforced = Program {
            underlay: Mode::Enforce,
            ..program.unwrap_or_else(|| closed_program(Mode::Enforce))
        };
        let own = self.own_facts();
        let zone = self.world.config.as_ref().map_or("", |c| c.zone.as_str());
        let resolver = Resolver::new(&enforced, &own, zone, now);
        let Ok(ruleset) = resolver.ruleset(&BTreeMap::new(), self.environment()) else {
            return Vec::new();
        };
        let ends = |session: &&Session| {
            let (far, local) = (session.far.ip(), session.near.ip());
            let elsewhere = far.is_loopback() || ruleset.pools.iter().any(|p| p.contains(local));
            let port = match session.direction {
                Direction::In => session.near.port(),
                Direction::Out => session.far.port(),
            };
            let service = (Protocol::Tcp, port);
            let verdict = ruleset.underlay_verdict(session.direction, far, service, now.wall);
            !elsewhere
                && !ruleset.lifeline.keeps(session.direction, session.far)
                && verdict.is_none_or(|v| matches!(v, Verdict::Deny(_)))
        };
        sessions.iter().filter(ends).copied().collect()
    }

    /// Returns how long the change on trial has left until it is taken back, if one is.
    pub(crate) fn trial_left(&self, now: Mono) -> Option<Duration> {
        let trial = self.kernel.trial.as_ref()?;
        Some(trial.until.since(now.min(trial.until)))
    }

    /// Works out what one peer may do, as the next table would say it.
    pub(super) fn profile_of(&self, facts: &Facts, now: Now) -> Option<Profile> {
        let program = self.world.program.as_ref()?;
        let own = self.own_facts();
        let zone = self.world.config.as_ref().map_or("", |c| c.zone.as_str());
        Some(Resolver::new(program, &own, zone, now).profile(facts))
    }
}

impl Local {
    /// Returns every name and time server of the lifeline; further ones than it takes are left out.
    pub(super) fn all_servers(&self) -> Vec<IpAddr> {
        let mut all = [&self.servers[..], &self.name_servers].concat();
        all.sort_unstable();
        all.dedup();
        all.truncate(SERVERS_MAX);
        all
    }
}

/// Lets a lifeline keep open what another one did.
fn widen(lifeline: &mut Lifeline, old: &Lifeline) {
    lifeline.controllers.extend(&old.controllers);
    lifeline.controllers.sort_unstable();
    lifeline.controllers.dedup();
    lifeline.management.extend(&old.management);
    lifeline.management.sort_unstable();
    lifeline.management.dedup();
    lifeline.servers.extend(&old.servers);
    lifeline.servers.sort_unstable();
    lifeline.servers.dedup();
}

/// How a table came into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// It replaced the one before.
    Replaced(Digest),
    /// It stood in the kernel already, and was read.
    Stood(Digest),
}

impl Load {
    fn hash(self) -> Digest {
        match self {
            Self::Replaced(hash) | Self::Stood(hash) => hash,
        }
    }
}

/// How the table looked when read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reading {
    /// As loaded.
    Intact(Digest),
    /// Not as loaded.
    Differs {
        /// How many parts are gone.
        missing: usize,
        /// How many parts are too many.
        surplus: usize,
    },
    /// It could not be read.
    Failed(String),
}
