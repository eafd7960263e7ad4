//! Taking updates: every resource is verified before any is in force.

use std::sync::Arc;

use hedgerow_identity::Verified;
use hedgerow_identity::error::RefusedTicket;
use hedgerow_identity::standing::Standing;
use hedgerow_identity::trust::{Adopted, Trust};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::program::Program;
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::{Names, P256Public, SiteConfig, States, Ticket};
use hedgerow_model::{Now, wire};
use hedgerow_policy::{Facts, class_matches, fits};
use hedgerow_sync::message::{Stage, Update};
use minicbor::bytes::ByteVec;

use super::{State, Step};

/// Earlier manifests that stored resources are tried against.
const EARLIER_MAX: usize = 8;

/// Why a resource is refused; nothing of its update is in force.
struct Refused {
    kind: ResourceKind,
    text: String,
    reason: &'static str,
}

/// Everything an update brings, verified.
#[derive(Default)]
struct Candidate {
    trust: Option<Trust>,
    standing: Option<Standing>,
    ticket: Option<Verified<Ticket>>,
    program: Option<(Program, Revision)>,
    config: Option<SiteConfig>,
    names: Option<Names>,
}

/// Believes our own ticket under any of the keys we hold.
pub(super) fn own_ticket(
    trust: &Trust,
    bytes: &[u8],
    keys: &[P256Public],
    id: Option<DeviceId>,
) -> Result<Verified<Ticket>, RefusedTicket> {
    let mut result = Err(RefusedTicket::NotOurs {
        device: id.unwrap_or(DeviceId([0; 16])),
    });
    for key in keys {
        result = trust.verify_own_ticket(bytes, key, id);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Returns the links in a manifest resource: a chain as an array of byte strings, or one alone.
pub(crate) fn manifest_links(bytes: &[u8]) -> Vec<Vec<u8>> {
    let chain = || -> Option<Vec<Vec<u8>>> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let count = decoder.array().ok()??;
        (0..count)
            .map(|_| decoder.bytes().ok().map(<[u8]>::to_vec))
            .collect()
    };
    chain().unwrap_or_else(|| vec![bytes.to_vec()])
}

impl State {
    /// Takes an update as a whole or refuses it as a whole.
    pub(crate) fn handle_update(&mut self, update: Update, now: Now) {
        let revision = update.revision;
        let candidate = match self
            .examine(&update.set)
            .and_then(|c| self.examine_size(c, now))
        {
            Ok(candidate) => candidate,
            Err(refused) => {
                self.refuse(now, Some(refused.kind), &refused.text, refused.reason);
                let stage = Stage::Rejected(Some(refused.kind), refused.text);
                self.steps.push_back(Step::Acknowledge(revision, stage));
                return;
            }
        };
        if !update.partial {
            // A held device gets nothing but what may not wait.
            self.held = None;
        }
        let changes = !update.set.is_empty() || !update.remove.is_empty();
        let controllers = self.controllers();
        let names_matter =
            candidate.names.is_some() || candidate.config.is_some() || candidate.ticket.is_some();
        self.adopt(candidate, now);
        self.note(&update, now);
        self.store();
        if names_matter || update.remove.contains(&ResourceKind::Names) {
            self.publish_names();
        }
        let controllers_now = self.controllers();
        if controllers != controllers_now {
            self.steps.push_back(Step::Controllers(controllers_now));
        }
        self.share(update.set.iter().map(|r| r.kind), now);
        self.kernel.await_verdict(revision, update.partial);
        if changes {
            self.reconsider(now);
        }
        self.refresh(now);
        self.settle(now);
    }

    /// Takes a list that came outside a session, from a peer or a person. Returns whether it is in force.
    pub(super) fn handle_outside(&mut self, resource: Resource, now: Now) -> bool {
        let candidate = match self.examine(std::slice::from_ref(&resource)) {
            Ok(candidate) => candidate,
            Err(refused) => {
                self.refuse(now, Some(refused.kind), &refused.text, refused.reason);
                return false;
            }
        };
        let kind = resource.kind;
        self.adopt(candidate, now);
        let mark = self.marks.entry(kind).or_default();
        *mark = resource.version.max(*mark);
        self.resources.insert(kind, resource);
        self.store();
        self.share([kind], now);
        self.reconsider(now);
        self.refresh(now);
        self.settle(now);
        true
    }

    /// Takes what is news in a chain of trust manifests that came outside a session: from a controller
    /// whose issuer we do not know. The roots' signatures are all the proof there is, and needed.
    pub(crate) fn handle_manifests(&mut self, chain: &[Vec<u8>], now: Now) {
        let mut trust = self.world.trust.clone();
        match trust.adopt_chain(chain) {
            Ok(Adopted::Known) => return,
            Ok(Adopted::New) => {}
            Err(refused) => {
                let text = refused.to_string();
                self.refuse(now, Some(ResourceKind::Manifest), &text, "manifest");
                return;
            }
        }
        let version = Revision {
            timeline: 0,
            number: trust.manifest().version,
        };
        tracing::info!(version = version.number, "a newer trust manifest");
        let candidate = Candidate {
            trust: Some(trust),
            ..Candidate::default()
        };
        self.adopt(candidate, now);
        let chain: Vec<ByteVec> = chain.iter().cloned().map(ByteVec::from).collect();
        let resource = Resource {
            kind: ResourceKind::Manifest,
            version,
            bytes: wire::encode(&chain),
        };
        self.marks.insert(resource.kind, version);
        self.resources.insert(resource.kind, resource);
        self.steps.push_back(Step::Store);
        self.refresh(now);
        self.settle(now);
    }

    /// Verifies stored resources one by one. Returns what does not hold any more.
    pub(super) fn restore(&mut self, resources: Vec<Resource>) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut resources = resources;
        resources.sort_by_key(|r| r.kind);
        for resource in resources {
            let set = std::slice::from_ref(&resource);
            let examined = match self.examine(set) {
                Ok(candidate) => Ok(candidate),
                Err(refused) => self.examine_as_before(set).ok_or(refused),
            };
            match examined {
                Ok(candidate) => {
                    self.take(candidate);
                    self.resources.insert(resource.kind, resource);
                }
                Err(refused) => complaints.push(format!("{}: {}", refused.kind, refused.text)),
            }
        }
        complaints
    }

    /// Verifies what is stored against earlier manifests of the chain, the newest first. It held when
    /// it came; that its key was replaced since must not make a device that is cut off forget
    /// revocations or policy.
    fn examine_as_before(&mut self, set: &[Resource]) -> Option<Candidate> {
        let (genesis, chain) = (self.world.trust.genesis(), self.world.trust.export());
        (1..chain.len()).rev().take(EARLIER_MAX).find_map(|links| {
            let earlier = Trust::from_chain(genesis, chain.get(..links)?).ok()?;
            let newest = std::mem::replace(&mut self.world.trust, earlier);
            let found = self.examine(set).ok();
            self.world.trust = newest;
            found.filter(|candidate| candidate.trust.is_none())
        })
    }

    fn note(&mut self, update: &Update, now: Now) {
        for resource in &update.set {
            let mark = self.marks.entry(resource.kind).or_default();
            *mark = resource.version.max(*mark);
            self.resources.insert(resource.kind, resource.clone());
        }
        for kind in &update.remove {
            match kind {
                // Nobody signed that there is none: what was is kept until there is another.
                ResourceKind::Program if self.world.program.is_some() => {
                    let text = "taken away without another in its place; the one held stays";
                    self.refuse(now, Some(*kind), text, "removed");
                }
                ResourceKind::Program => {}
                ResourceKind::Names => {
                    self.resources.remove(kind);
                    self.world.names = None;
                }
                ResourceKind::Manifest
                | ResourceKind::Revocations
                | ResourceKind::States
                | ResourceKind::Ticket
                | ResourceKind::Config => {}
            }
        }
        if !update.partial {
            self.revision = Some(update.revision);
        }
    }

    fn adopt(&mut self, candidate: Candidate, now: Now) {
        let trust_changed = candidate.trust.is_some() || candidate.standing.is_some();
        let old_key = self.world.ticket.identity_key;
        let old_ticket = self.world.ticket.bytes().to_vec();
        self.take(candidate);
        if trust_changed {
            // Whoever is revoked or superseded goes before anything is given.
            self.mesh.handle_standing_changed(self.world.view(now));
            self.drain_mesh(now);
            self.forget_invalid(now);
        }
        if self.world.ticket.bytes() != old_ticket {
            let key_changed = self.world.ticket.identity_key != old_key;
            tracing::info!(epoch = self.world.ticket.epoch, key_changed, "new ticket");
            self.steps.push_back(Step::BindKey);
        }
    }

    fn take(&mut self, candidate: Candidate) {
        let world = &mut self.world;
        if let Some(trust) = candidate.trust {
            world.trust = trust;
        }
        if let Some(standing) = candidate.standing {
            world.standing = standing;
        }
        if let Some(ticket) = candidate.ticket {
            world.ticket = ticket;
        }
        if let Some((program, revision)) = candidate.program {
            world.program = Some(program);
            world.program_revision = revision;
        }
        if let Some(config) = candidate.config {
            let grace = std::time::Duration::from_secs(config.grace_secs);
            world.standing.set_grace(grace);
            world.config = Some(config);
        }
        if let Some(names) = candidate.names {
            world.names = Some(Arc::new(names));
        }
    }

    fn examine(&self, set: &[Resource]) -> Result<Candidate, Refused> {
        let mut candidate = Candidate::default();
        let mut sorted: Vec<&Resource> = set.iter().collect();
        sorted.sort_by_key(|r| r.kind);
        for resource in sorted {
            self.examine_one(resource, &mut candidate)
                .map_err(|(text, reason)| Refused {
                    kind: resource.kind,
                    text,
                    reason,
                })?;
        }
        self.examine_class(&candidate)?;
        Ok(candidate)
    }

    fn examine_manifest(&self, resource: &Resource) -> Result<Trust, (String, &'static str)> {
        let mut trust = self.world.trust.clone();
        trust
            .adopt_chain(&manifest_links(&resource.bytes))
            .map_err(|e| (e.to_string(), "manifest"))?;
        let version = Revision {
            timeline: 0,
            number: trust.manifest().version,
        };
        signed_version(resource, version)?;
        Ok(trust)
    }

    fn examine_one(
        &self,
        resource: &Resource,
        candidate: &mut Candidate,
    ) -> Result<(), (String, &'static str)> {
        let bytes = resource.bytes.as_slice();
        let world = &self.world;
        if resource.kind == ResourceKind::Manifest {
            candidate.trust = Some(self.examine_manifest(resource)?);
            return Ok(());
        }
        let trust = candidate.trust.as_ref().unwrap_or(&world.trust);
        let statement = |e: hedgerow_identity::error::RefusedStatement| (e.to_string(), e.reason());
        let rollback = |e: hedgerow_identity::error::Rollback| (e.to_string(), "rollback");
        match resource.kind {
            ResourceKind::Manifest => {}
            ResourceKind::Revocations => {
                let list = trust.verify_revocations(bytes).map_err(statement)?;
                signed_version(resource, list.version)?;
                let standing = candidate
                    .standing
                    .get_or_insert_with(|| world.standing.clone());
                standing.adopt_revocations(list).map_err(rollback)?;
            }
            ResourceKind::States => {
                let states: Verified<States> = trust.verify_states(bytes).map_err(statement)?;
                signed_version(resource, states.revision)?;
                let standing = candidate
                    .standing
                    .get_or_insert_with(|| world.standing.clone());
                standing.adopt_states(states).map_err(rollback)?;
            }
            ResourceKind::Ticket => {
                let id = Some(world.ticket.id);
                let ticket = own_ticket(trust, bytes, &self.identity_keys, id)
                    .map_err(|e| (e.to_string(), e.reason()))?;
                let version = Revision {
                    timeline: ticket.epoch,
                    number: ticket.not_after_secs,
                };
                signed_version(resource, version)?;
                not_older("epoch", world.ticket.epoch, ticket.epoch)?;
                candidate.ticket = Some(ticket);
            }
            ResourceKind::Program => {
                let body = trust.verify_program(bytes).map_err(statement)?;
                signed_version(resource, body.revision)?;
                let program = body.program().map_err(|e| (e.to_string(), "malformed"))?;
                fits(&program).map_err(|e| (e.to_string(), "malformed"))?;
                let same_class = world.program.as_ref().map(|p| &p.class) == Some(&program.class);
                if same_class {
                    not_older("program", world.program_revision, body.revision)?;
                }
                candidate.program = Some((program, body.revision));
            }
            ResourceKind::Config => {
                let config = trust
                    .verify_config(bytes, &world.ticket.site)
                    .map_err(statement)?;
                signed_version(resource, config.revision)?;
                let held = world.config.as_ref().map(|c| c.revision);
                not_older("configuration", held.unwrap_or_default(), config.revision)?;
                candidate.config = Some(config.into_inner());
            }
            ResourceKind::Names => {
                let names = trust
                    .verify_names(bytes, &world.ticket.site)
                    .map_err(statement)?;
                signed_version(resource, names.revision)?;
                let held = world.names.as_ref().map(|n| n.revision);
                not_older("names", held.unwrap_or_default(), names.revision)?;
                candidate.names = Some(names.into_inner());
            }
        }
        Ok(())
    }

    fn examine_size(&self, candidate: Candidate, now: Now) -> Result<Candidate, Refused> {
        let Some((program, _)) = &candidate.program else {
            return Ok(candidate);
        };
        match self.fits(program, now) {
            Ok(()) => Ok(candidate),
            Err(too_large) => Err(Refused {
                kind: ResourceKind::Program,
                text: too_large.to_string(),
                reason: "too_large",
            }),
        }
    }

    /// A program is for a class of devices; this one must be among them, by the ticket that will be in
    /// force.
    fn examine_class(&self, candidate: &Candidate) -> Result<(), Refused> {
        let Some((program, _)) = &candidate.program else {
            return Ok(());
        };
        let ticket: &Ticket = candidate.ticket.as_ref().unwrap_or(&self.world.ticket);
        if class_matches(&program.class, &Facts::from(ticket)) {
            return Ok(());
        }
        Err(Refused {
            kind: ResourceKind::Program,
            text: "the program is for another class of devices than our ticket says".to_owned(),
            reason: "other_class",
        })
    }

    /// Records that a revision stands in the kernel.
    pub(super) fn record_applied(&mut self, revision: Revision, milliseconds: u128, now: Now) {
        self.event(
            Event::new(now.wall, EventKind::PolicyApplied)
                .detail("revision", revision)
                .detail("milliseconds", milliseconds),
        );
    }
}

/// The version is the high-water mark, and it comes unsigned: it must be the one that is signed.
fn signed_version(resource: &Resource, signed: Revision) -> Result<(), (String, &'static str)> {
    if resource.version == signed {
        return Ok(());
    }
    let text = format!(
        "it comes as version {} and its signature says {signed}",
        resource.version
    );
    Err((text, "version"))
}

fn not_older<T: Ord + std::fmt::Display>(
    what: &str,
    held: T,
    got: T,
) -> Result<(), (String, &'static str)> {
    if got < held {
        return Err((
            format!("{what} {got} is older than {held}, which is in force"),
            "rollback",
        ));
    }
    Ok(())
}
