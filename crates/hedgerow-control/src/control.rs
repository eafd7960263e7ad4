//! The controller's core: one snapshot that everyone reads, one lock that changes pass through.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};

use hedgerow_identity::Verified;
use hedgerow_identity::trust::Trust;
use hedgerow_model::address::Prefix;
use hedgerow_model::event::Event;
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::statement::{RevocationList, SiteConfig, States};
use hedgerow_model::{Now, Wall, wire};
use hedgerow_policy::Resolver;
use tokio::sync::{Mutex, MutexGuard, Semaphore, mpsc};

use crate::bounds::Sampler;
use crate::clock::Clock;
use crate::config::Config;
use crate::hub::Hub;
use crate::issue::Authority;
use crate::journal::Note;
use crate::keys::{self, Layout};
use crate::refusal::{Refusal, chain};
use crate::rules::{self, InForce};
use crate::sign::Signer;
use crate::snapshot::{Parts, Snapshot};
use crate::store::db::Tx;
use crate::store::devices::DeviceRecord;
use crate::store::policies::PolicyRecord;
use crate::store::sites::SiteRecord;
use crate::store::{Change, Store, policies, revocations, set_fact};

/// Facts of the store.
pub(crate) mod fact {
    /// The digest of the first root set.
    pub(crate) const GENESIS: &str = "genesis";
    /// The signed revocation list.
    pub(crate) const REVOCATIONS: &str = "revocations";
    /// The signed states.
    pub(crate) const STATES: &str = "states";
    /// The change that the states of a restored store are only as new as.
    pub(crate) const STATES_RESTORED: &str = "states_restored";
    /// The newest states that an agent handed up after a restore.
    pub(crate) const STATES_HANDED_UP: &str = "states_handed_up";
    /// The newest change to who belongs to the fleet.
    pub(crate) const MEMBERS: &str = "members";

    /// A site's signed configuration.
    pub(crate) fn config(site: &hedgerow_model::id::SiteName) -> String {
        format!("config/{site}")
    }
}

/// What every part of the program shares.
pub(crate) struct Controller {
    /// As read at the start.
    pub(crate) config: Config,
    /// Where the keys are.
    pub(crate) layout: Layout,
    /// The clocks.
    pub(crate) clock: Clock,
    /// What must not be forgotten.
    pub(crate) store: Store,
    /// Who is connected.
    pub(crate) hub: Hub,
    /// Which events were noted lately.
    pub(crate) noted: Sampler,
    /// Certificates signed at once.
    pub(crate) signings: Semaphore,
    /// Names changed and nobody was told yet.
    pub(crate) names_dirty: AtomicBool,
    /// The newest beacon.
    pub(crate) beacon: RwLock<Arc<Vec<u8>>>,
    authority: RwLock<Arc<Authority>>,
    snapshot: RwLock<Arc<Snapshot>>,
    writing: Mutex<()>,
    notes: mpsc::Sender<Note>,
}

/// The right to change the snapshot, and a copy to change.
pub(crate) struct Draft<'a> {
    /// What will be published.
    pub(crate) next: Snapshot,
    _writing: MutexGuard<'a, ()>,
}

impl Controller {
    /// Loads everything that is stored.
    pub(crate) async fn load(
        config: Config,
        clock: Clock,
        store: Store,
        notes: mpsc::Sender<Note>,
    ) -> Result<Self, Refusal> {
        let layout = Layout::new(&config.dir);
        let trust = load_trust(&store).await?;
        let authority = keys::load_authority(&layout, &trust, clock.wall(), config.longest_secs())
            .map_err(|e| {
                Refusal::invalid(
                    chain(&e),
                    "restore the keys from a backup, or give --dir the directory that `init` made",
                )
            })?;
        let snapshot = load_snapshot(&config, &store, trust, &authority, clock.wall()).await?;
        let signings = Semaphore::new(config.limits.signings_max);
        Ok(Self {
            layout,
            clock,
            store,
            hub: Hub::new(),
            noted: Sampler::default(),
            signings,
            names_dirty: AtomicBool::new(false),
            beacon: RwLock::default(),
            authority: RwLock::new(Arc::new(authority)),
            snapshot: RwLock::new(Arc::new(snapshot)),
            writing: Mutex::new(()),
            notes,
            config,
        })
    }

    /// Returns the newest snapshot.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns the keys in use.
    pub(crate) fn authority(&self) -> Arc<Authority> {
        self.authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Uses other keys from now on.
    pub(crate) fn set_authority(&self, authority: Authority) {
        *self
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
    }

    /// Takes the right to change.
    pub(crate) async fn draft(&self) -> Draft<'_> {
        let writing = self.writing.lock().await;
        Draft {
            next: (*self.snapshot()).clone(),
            _writing: writing,
        }
    }

    /// Publishes a changed snapshot, once its change is durable.
    pub(crate) fn publish(&self, draft: Draft<'_>, revision: Revision) {
        let mut next = draft.next;
        next.revision = revision;
        *self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Notes what the controller saw. When the writer is behind the event is counted instead.
    pub(crate) fn event(&self, event: Event) {
        tracing::info!(
            event = event.kind.as_str(),
            device = event.device.map(|d| d.to_string()),
            details = ?event.details,
            "event"
        );
        self.note(Note::Seen(event));
    }

    /// Notes what strangers or devices can cause as often as they like: now and then, with how often.
    pub(crate) fn event_sampled(&self, what: &'static str, event: Event) {
        let now = self.clock.now().mono;
        if let Some(count) = self.noted.due(event.device, what, now) {
            self.event(event.detail("count", count));
        }
    }

    /// Hands something to the writer.
    pub(crate) fn note(&self, note: Note) {
        if self.notes.try_send(note).is_err() {
            crate::hub::Counters::add(&self.hub.counters.events_dropped);
        }
    }

    /// Returns whether policy lets two devices do anything with each other, whoever begins.
    pub(crate) fn may_meet(
        &self,
        snapshot: &Snapshot,
        one: &DeviceRecord,
        other: &DeviceRecord,
        now: Now,
    ) -> Result<bool, Refusal> {
        let authority = self.authority();
        let signer = Signer {
            authority: &authority,
            trust: &snapshot.trust,
        };
        let (one, other) = (snapshot.facts(one), snapshot.facts(other));
        for (own, peer) in [(&one, &other), (&other, &one)] {
            let compiled = snapshot.policy.program(own, signer)?;
            let zone = own.zone.as_deref().unwrap_or_default();
            let resolver = Resolver::new(&compiled.program, own, zone, now);
            if resolver.profile(peer).is_closed() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the newest beacon.
    pub(crate) fn renew_beacon(&self) -> Result<(), Refusal> {
        let (authority, snapshot) = (self.authority(), self.snapshot());
        let signer = Signer {
            authority: &authority,
            trust: &snapshot.trust,
        };
        let version = snapshot.standing.revocation_version();
        let beacon = signer.beacon(version, self.clock.wall())?;
        *self.beacon.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(beacon);
        Ok(())
    }

    /// Returns the newest beacon.
    pub(crate) fn newest_beacon(&self) -> Arc<Vec<u8>> {
        self.beacon
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Rebuilds the manifest chain from the store.
pub(crate) async fn load_trust(store: &Store) -> Result<Trust, Refusal> {
    let lost = |what: &str| {
        Refusal::invalid(
            format!("the store holds no {what}"),
            "`hedgerow-control init` makes a new controller, `restore` brings one back",
        )
    };
    let genesis: [u8; 32] = store
        .fact(fact::GENESIS)
        .await?
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| lost("genesis"))?;
    Trust::from_chain(Digest(genesis), &store.manifests().await?)
        .map_err(|e| lost(&format!("manifest chain that verifies ({})", chain(&e))))
}

async fn load_snapshot(
    config: &Config,
    store: &Store,
    trust: Trust,
    authority: &Authority,
    now: Wall,
) -> Result<Snapshot, Refusal> {
    let signer = Signer {
        authority,
        trust: &trust,
    };
    let timeline = store.revision().await?.timeline;
    let devices = store.devices().await?;
    let list = match store.fact(fact::REVOCATIONS).await? {
        Some(bytes) => trust.verify_revocations(&bytes).ok(),
        None => None,
    };
    let states = match store.fact(fact::STATES).await? {
        Some(bytes) => trust.verify_states(&bytes).ok(),
        None => None,
    };
    let policy = store.policy().await?;
    let current = list
        .as_ref()
        .is_some_and(|l| l.version.timeline == timeline)
        && states
            .as_ref()
            .is_some_and(|s| s.revision.timeline == timeline)
        && policy
            .as_ref()
            .is_some_and(|p| p.revision.timeline == timeline);
    let (list, states, record) = match (list, states, policy) {
        (Some(l), Some(s), Some(p)) if current => (l, s, p),
        (_, _, policy) => mint(store, signer, policy, &devices, now).await?,
    };
    let (policy, _warnings) = rules::read(&record.source, "policy.yaml")?;
    let sites = store.sites().await?;
    let configured = load_configs(config, store, signer, &sites, now).await?;
    let members = match store.fact(fact::MEMBERS).await? {
        Some(bytes) => wire::decode_canonical("revision", &bytes).unwrap_or_default(),
        None => Revision::default(),
    };
    let members = members.max(record.revision);
    let restored = store.revocations_restored().await?;
    let restored_states = match store.fact(fact::STATES_RESTORED).await? {
        Some(bytes) => wire::decode_canonical("revision", &bytes).ok(),
        None => None,
    };
    let handed_up = store.fact(fact::STATES_HANDED_UP).await?;
    let states_handed_up = handed_up.and_then(|bytes| trust.verify_states(&bytes).ok());
    Ok(Snapshot::new(Parts {
        revision: store.revision().await?,
        trust,
        revocations: list,
        states,
        restored,
        restored_states,
        states_handed_up,
        sites: configured,
        members,
        policy: InForce::new(record, policy),
        devices,
    }))
}

/// Signs lists and policy anew: at the first start, and in the first start of a new timeline.
async fn mint(
    store: &Store,
    signer: Signer<'_>,
    policy: Option<PolicyRecord>,
    devices: &[DeviceRecord],
    now: Wall,
) -> Result<(Verified<RevocationList>, Verified<States>, PolicyRecord), Refusal> {
    let mut change = store.change("controller", "timeline", "", now).await?;
    let list = revocations::list(&mut change.tx, change.revision, now.secs()).await?;
    let list = signer.revocations(&list)?;
    let states = signer.states(&states_of(change.revision, devices.iter()))?;
    let source = policy.map_or_else(|| rules::FIRST_POLICY.to_owned(), |p| p.source);
    let note = "carried into this timeline";
    let record = revise(&mut change, signer, source, "controller", note, now).await?;
    revocations::set_version(&mut change.tx, change.revision).await?;
    set_fact(&mut change.tx, fact::REVOCATIONS, list.bytes()).await?;
    set_fact(&mut change.tx, fact::STATES, states.bytes()).await?;
    set_members(&mut change.tx, change.revision).await?;
    change.commit().await?;
    Ok((list, states, record))
}

/// Adds a policy revision to a change.
pub(crate) async fn revise(
    change: &mut Change,
    signer: Signer<'_>,
    source: String,
    author: &str,
    note: &str,
    at: Wall,
) -> Result<PolicyRecord, Refusal> {
    let parent = policies::newest_hash(&mut change.tx).await?;
    let hash = PolicyRecord::hash_of(change.revision, parent.as_ref(), &source);
    let record = PolicyRecord {
        revision: change.revision,
        source,
        hash,
        parent,
        author: author.to_owned(),
        note: note.to_owned(),
        signature: signer.policy_hash(&hash.0)?,
        at,
    };
    policies::add(&mut change.tx, &record).await?;
    Ok(record)
}

/// Returns the states of these devices.
pub(crate) fn states_of<'a>(
    revision: Revision,
    devices: impl Iterator<Item = &'a DeviceRecord>,
) -> States {
    let entries: BTreeMap<DeviceId, _> = devices
        .filter(|d| d.ended.is_none())
        .filter_map(|d| Some((d.id, d.state?)))
        .collect();
    States {
        revision,
        entries: entries.into_iter().collect(),
    }
}

/// Remembers the newest change to who belongs to the fleet.
pub(crate) async fn set_members(tx: &mut Tx, revision: Revision) -> Result<(), Refusal> {
    Ok(set_fact(tx, fact::MEMBERS, &wire::encode(&revision)).await?)
}

/// Returns what a site's devices shall be told.
pub(crate) fn site_config(
    config: &Config,
    trust: &Trust,
    site: &SiteRecord,
    revision: Revision,
) -> SiteConfig {
    let pools: Vec<Prefix> = vec![trust.domain_prefix(), config.pool_v4];
    SiteConfig {
        revision,
        site: site.name.clone(),
        zone: site.zone.clone(),
        controllers: config.endpoints.clone(),
        management: config.management.clone(),
        pools,
        suffix: config.suffix.clone(),
        grace_secs: config.grace_secs(),
    }
}

/// Loads every site's configuration; those that `control.toml` or the timeline changed are signed
/// anew, in one change.
async fn load_configs(
    config: &Config,
    store: &Store,
    signer: Signer<'_>,
    sites: &[SiteRecord],
    now: Wall,
) -> Result<Vec<(SiteRecord, Verified<SiteConfig>)>, Refusal> {
    let timeline = store.revision().await?.timeline;
    let mut out = Vec::with_capacity(sites.len());
    let mut stale = Vec::new();
    for site in sites {
        let stored = store.fact(&fact::config(&site.name)).await?;
        let stored = stored.and_then(|b| signer.trust.verify_config(&b, &site.name).ok());
        let good = stored.filter(|s| {
            let wanted = site_config(config, signer.trust, site, s.revision);
            s.revision.timeline == timeline && wanted == **s
        });
        match good {
            Some(good) => out.push((site.clone(), good)),
            None => stale.push(site.clone()),
        }
    }
    if stale.is_empty() {
        return Ok(out);
    }
    let mut change = store.change("controller", "configure", "", now).await?;
    for site in stale {
        let wanted = site_config(config, signer.trust, &site, change.revision);
        let signed = signer.config(&wanted)?;
        set_fact(&mut change.tx, &fact::config(&site.name), signed.bytes()).await?;
        out.push((site, signed));
    }
    change.commit().await?;
    Ok(out)
}
