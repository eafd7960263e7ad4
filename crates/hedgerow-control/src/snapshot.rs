//! Everything that connections are served from: immutable, replaced as a whole after each change.
//!
//! ```text
//!  store ── load ──▶ Snapshot ── with_<change> ──▶ Snapshot …      (readers keep the one they have)
//!                      └ offers: signed once, shared by every session
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hedgerow_identity::Verified;
use hedgerow_identity::standing::Standing;
use hedgerow_identity::trust::Trust;
use hedgerow_model::address::Overlay;
use hedgerow_model::id::{DeviceId, DeviceName, Revision, SiteName};
use hedgerow_model::path::is_relay;
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::{PeerQuery, RevocationList, SiteConfig, States};
use hedgerow_policy::Facts;
use hedgerow_sync::controller::Offer;

use crate::rules::InForce;
use crate::shards::Shards;
use crate::store::devices::DeviceRecord;
use crate::store::sites::SiteRecord;

/// A site as devices see it.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// What is stored of it.
    pub(crate) record: SiteRecord,
    /// What its devices are told.
    pub(crate) config: Arc<Offer>,
}

/// The state of the world at one revision.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// The newest change it includes.
    pub(crate) revision: Revision,
    /// The manifest chain.
    pub(crate) trust: Arc<Trust>,
    /// Revocations and epochs in force.
    pub(crate) standing: Arc<Standing>,
    /// The manifest, to be sent.
    pub(crate) manifest: Arc<Offer>,
    /// The revocation list, to be sent.
    pub(crate) revocations: Arc<Offer>,
    /// The states, to be sent.
    pub(crate) states: Arc<Offer>,
    /// When set, agents with a newer revocation list than this must hand theirs up.
    pub(crate) restored: Option<Revision>,
    /// When set, agents with newer states than this, of an older timeline, hand theirs up.
    pub(crate) restored_states: Option<Revision>,
    /// The newest of those: what they say of devices that come back later.
    pub(crate) states_handed_up: Option<Verified<States>>,
    /// Sites by name.
    pub(crate) sites: Arc<BTreeMap<SiteName, Arc<Site>>>,
    /// The newest change to who belongs to the fleet.
    pub(crate) members: Revision,
    /// The policy in force.
    pub(crate) policy: Arc<InForce>,
    devices: Shards<DeviceId, Arc<DeviceRecord>>,
    names: Shards<(SiteName, DeviceName), DeviceId>,
    addresses: Shards<IpAddr, DeviceId>,
    relays: Arc<BTreeSet<DeviceId>>,
}

/// What a snapshot begins with.
pub(crate) struct Parts {
    /// See [`Snapshot::revision`].
    pub(crate) revision: Revision,
    /// See [`Snapshot::trust`].
    pub(crate) trust: Trust,
    /// The verified list.
    pub(crate) revocations: Verified<RevocationList>,
    /// The verified states.
    pub(crate) states: Verified<States>,
    /// See [`Snapshot::restored`].
    pub(crate) restored: Option<Revision>,
    /// See [`Snapshot::restored_states`].
    pub(crate) restored_states: Option<Revision>,
    /// See [`Snapshot::states_handed_up`].
    pub(crate) states_handed_up: Option<Verified<States>>,
    /// Sites with their signed configurations.
    pub(crate) sites: Vec<(SiteRecord, Verified<SiteConfig>)>,
    /// See [`Snapshot::members`].
    pub(crate) members: Revision,
    /// The policy in force.
    pub(crate) policy: InForce,
    /// Every device.
    pub(crate) devices: Vec<DeviceRecord>,
}

impl Snapshot {
    /// Puts a snapshot together.
    pub(crate) fn new(parts: Parts) -> Self {
        let mut snapshot = Self {
            revision: parts.revision,
            manifest: manifest_offer(&parts.trust),
            trust: Arc::new(parts.trust),
            standing: Arc::new(Standing::new(None)),
            revocations: list_offer(&parts.revocations),
            states: states_offer(&parts.states),
            restored: parts.restored,
            restored_states: parts.restored_states,
            states_handed_up: parts.states_handed_up,
            sites: Arc::default(),
            members: parts.members,
            policy: Arc::new(parts.policy),
            devices: Shards::new(),
            names: Shards::new(),
            addresses: Shards::new(),
            relays: Arc::default(),
        };
        snapshot.set_revocations(parts.revocations);
        snapshot.set_states(parts.states);
        for (record, config) in parts.sites {
            snapshot.set_site(record, &config);
        }
        for device in parts.devices {
            snapshot.set_device(device);
        }
        snapshot
    }

    /// Takes a newer manifest chain.
    pub(crate) fn set_trust(&mut self, trust: Trust) {
        self.manifest = manifest_offer(&trust);
        self.trust = Arc::new(trust);
    }

    /// Takes a newer revocation list.
    pub(crate) fn set_revocations(&mut self, list: Verified<RevocationList>) {
        self.revocations = list_offer(&list);
        if let Err(error) = Arc::make_mut(&mut self.standing).adopt_revocations(list) {
            // Versions come from the store's counter, which only grows.
            tracing::error!(%error, "our own revocation list is older than the one in force");
        }
    }

    /// Takes newer states.
    pub(crate) fn set_states(&mut self, states: Verified<States>) {
        self.states = states_offer(&states);
        if let Err(error) = Arc::make_mut(&mut self.standing).adopt_states(states) {
            // As above.
            tracing::error!(%error, "our own states are older than those in force");
        }
    }

    /// Adds or replaces a site.
    pub(crate) fn set_site(&mut self, record: SiteRecord, config: &Verified<SiteConfig>) {
        let site = Site {
            config: Offer::new(Resource {
                kind: ResourceKind::Config,
                version: config.revision,
                bytes: config.bytes().to_vec(),
            }),
            record,
        };
        Arc::make_mut(&mut self.sites).insert(site.record.name.clone(), Arc::new(site));
    }

    /// Adds or replaces a device.
    pub(crate) fn set_device(&mut self, device: DeviceRecord) {
        if let Some(old) = self.devices.get(&device.id).cloned() {
            self.forget_indices(&old);
        }
        if device.ended.is_none() {
            let key = (device.site.clone(), device.name.clone());
            self.names.insert(key, device.id);
            for address in device.addresses.iter() {
                self.addresses.insert(address.0, device.id);
            }
            if is_relay(&device.labels) {
                Arc::make_mut(&mut self.relays).insert(device.id);
            }
        }
        self.devices.insert(device.id, Arc::new(device));
    }

    /// Takes out a device that has ended.
    pub(crate) fn forget_device(&mut self, id: DeviceId) {
        if self.devices.get(&id).is_some_and(|d| d.ended.is_some()) {
            self.devices.remove(&id);
        }
    }

    fn forget_indices(&mut self, device: &DeviceRecord) {
        let key = (device.site.clone(), device.name.clone());
        if self.names.get(&key) == Some(&device.id) {
            self.names.remove(&key);
        }
        if self.relays.contains(&device.id) {
            Arc::make_mut(&mut self.relays).remove(&device.id);
        }
        for address in device.addresses.iter() {
            if self.addresses.get(&address.0) == Some(&device.id) {
                self.addresses.remove(&address.0);
            }
        }
    }

    /// Returns a device, ended ones included.
    pub(crate) fn device(&self, id: DeviceId) -> Option<&Arc<DeviceRecord>> {
        self.devices.get(&id)
    }

    /// Visits every device, ended ones included.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<DeviceRecord>> {
        self.devices.values()
    }

    /// Visits the devices that belong to the fleet.
    pub(crate) fn living(&self) -> impl Iterator<Item = &Arc<DeviceRecord>> {
        self.devices.values().filter(|d| d.ended.is_none())
    }

    /// Visits the relays.
    pub(crate) fn relays(&self) -> impl Iterator<Item = &Arc<DeviceRecord>> {
        let relays = self.relays.iter();
        relays.filter_map(|id| self.devices.get(id))
    }

    /// Returns how many devices were ever known.
    pub(crate) fn devices_known(&self) -> usize {
        self.devices.len()
    }

    /// Finds a living device by id or overlay address.
    pub(crate) fn resolve(&self, query: &PeerQuery) -> Option<&Arc<DeviceRecord>> {
        let id = match query {
            PeerQuery::Device(id) => *id,
            PeerQuery::Address(Overlay(address)) => *self.addresses.get(address)?,
        };
        self.device(id).filter(|d| d.ended.is_none())
    }

    /// Finds a device by id, `name.site`, or a name that only one living device has.
    pub(crate) fn find(&self, text: &str) -> Option<&Arc<DeviceRecord>> {
        if let Some(found) = text.parse().ok().and_then(|id| self.device(id)) {
            return Some(found);
        }
        if let Some((name, site)) = text.split_once('.') {
            let key = (SiteName::new(site).ok()?, DeviceName::new(name).ok()?);
            return self.device(*self.names.get(&key)?);
        }
        let name = DeviceName::new(text).ok()?;
        let mut found = self
            .sites
            .keys()
            .filter_map(|site| self.names.get(&(site.clone(), name.clone())));
        let first = found.next()?;
        found.next().is_none().then(|| self.device(*first))?
    }

    /// Returns what policy can ask of a device.
    pub(crate) fn facts(&self, device: &DeviceRecord) -> Facts {
        Facts {
            id: device.id,
            name: device.name.clone(),
            site: device.site.clone(),
            labels: device.labels.clone(),
            state: device.state,
            zone: self
                .sites
                .get(&device.site)
                .map(|site| site.record.zone.clone()),
        }
    }
}

fn manifest_offer(trust: &Trust) -> Arc<Offer> {
    Offer::new(Resource {
        kind: ResourceKind::Manifest,
        version: Revision {
            timeline: 0,
            number: trust.manifest().version,
        },
        bytes: manifest_bytes(trust),
    })
}

/// The chain as an array of byte strings, so that an agent that missed links gets them all; a chain
/// of one as it is.
fn manifest_bytes(trust: &Trust) -> Vec<u8> {
    let chain = trust.export();
    if chain.len() < 2 {
        return trust.manifest_bytes().to_vec();
    }
    let links: Vec<minicbor::bytes::ByteVec> = chain.into_iter().map(Into::into).collect();
    hedgerow_model::wire::encode(&links)
}

fn list_offer(list: &Verified<RevocationList>) -> Arc<Offer> {
    Offer::new(Resource {
        kind: ResourceKind::Revocations,
        version: list.version,
        bytes: list.bytes().to_vec(),
    })
}

fn states_offer(states: &Verified<States>) -> Arc<Offer> {
    Offer::new(Resource {
        kind: ResourceKind::States,
        version: states.revision,
        bytes: states.bytes().to_vec(),
    })
}

/// Returns the ticket of a device as a resource. Its version grows with the epoch, and within an
/// epoch with the end.
pub(crate) fn ticket_offer(device: &DeviceRecord) -> Arc<Offer> {
    Offer::new(Resource {
        kind: ResourceKind::Ticket,
        version: Revision {
            timeline: device.epoch,
            number: device.not_after_secs,
        },
        bytes: device.ticket.clone(),
    })
}
