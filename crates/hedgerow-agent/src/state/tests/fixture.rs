//! A trust domain that signs, and a machine whose kernel and tunnel are two lists.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hedgerow_identity::key::{SoftwareEd25519, SoftwareP256, SoftwareP384};
use hedgerow_identity::statement::{
    sign_beacon, sign_binding, sign_bundle_head, sign_config, sign_names, sign_program,
    sign_revocations, sign_states, sign_ticket, verify_binding,
};
use hedgerow_identity::trust::{Trust, root_set_digest, sign_manifest};
use hedgerow_mesh::{IntroductionSecret, Memory, Mesh, OwnIdentity};
use hedgerow_model::address::{OverlayAddresses, domain_prefix};
use hedgerow_model::event::EventKind;
use hedgerow_model::id::{DeviceId, DeviceName, Digest, Revision, SiteName};
use hedgerow_model::program::{DeviceState, Mode};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::{
    Beacon, Binding, BundleHead, Issuer, Manifest, NameEntry, Names, P256Public, Revocation,
    RevocationList, Revoked, Role, RoleKey, Root, SignedProgramBody, SiteConfig, States, Ticket,
    X25519Public,
};
use hedgerow_model::{Mono, Now, Wall, wire};
use hedgerow_policy::{Facts, compile, parse};
use hedgerow_sync::message::{Stage, Update};

use super::super::*;
use crate::shell::entropy::SystemRandom;

/// 2027-01-04 10:00 UTC, a Monday.
const START_SECS: u64 = 1_799_056_800;

pub(super) const POLICY: &str = "\
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: test }
labels:
  role: { values: [ sensor, collector, plc ] }
services: { mqtts: [ tcp/8883 ] }
segments:
  all: { select: \"role in (sensor, collector, plc)\", mode: enforce }
rules:
  - { id: r-mqtt, from: \"role=sensor\", to: \"role=collector\", service: mqtts }
states:
  quarantine: { allow: [ { to: builtin/controller } ] }
defaults: { deny: both, log: sample/10s }
";
pub(super) const UNDERLAY: &str = "\
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: test }
labels:
  role: { values: [ sensor, collector, plc ] }
segments:
  all: { select: \"role in (sensor, collector, plc)\", mode: enforce, underlay: enforce }
rules: []
defaults: { deny: both, log: sample/10s }
";
pub(super) const WIDER: &str = "\
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: test }
labels:
  role: { values: [ sensor, collector, plc ] }
segments:
  all: { select: \"role in (sensor, collector, plc)\", mode: enforce, underlay: enforce }
rules:
  - { id: r-ssh, from: \"role=sensor\", to: \"role=plc\", service: ssh }
defaults: { deny: both, log: sample/10s }
";

pub(super) fn at(secs: u64) -> Now {
    Now {
        mono: Mono(Duration::from_secs(secs)),
        wall: Wall::from_secs(START_SECS + secs),
        wall_is_trusted: true,
    }
}

pub(super) fn rev(number: u64) -> Revision {
    Revision {
        timeline: 1,
        number,
    }
}

/// Everything that signs.
pub(super) struct Domain {
    root: SoftwareP384,
    issuer: SoftwareP256,
    policy: SoftwareEd25519,
    revocation: SoftwareEd25519,
    manifest: Vec<u8>,
    genesis: Digest,
}

impl Domain {
    pub(super) fn new() -> Self {
        Self::seeded(1)
    }

    pub(super) fn seeded(seed: u8) -> Self {
        let root = SoftwareP384::generate(&mut SystemRandom).unwrap();
        let issuer = SoftwareP256::generate(&mut SystemRandom).unwrap();
        let policy = SoftwareEd25519::from_seed(&[seed; 32]);
        let revocation = SoftwareEd25519::from_seed(&[seed + 100; 32]);
        let roots = vec![Root {
            key: root.public(),
            certificate: Vec::new(),
        }];
        let genesis = root_set_digest(&roots);
        let manifest = Manifest {
            version: 1,
            trust_domain: hedgerow_model::id::TrustDomain::new("plant.example").unwrap(),
            previous: None,
            issued_secs: START_SECS - 1000,
            roots,
            threshold: 1,
            issuers: vec![Issuer {
                key: issuer.public(),
                certificate: Vec::new(),
                site: None,
                not_after_secs: START_SECS + 400 * 86_400,
            }],
            role_keys: vec![
                RoleKey {
                    role: Role::Policy,
                    key: policy.public(),
                },
                RoleKey {
                    role: Role::Revocation,
                    key: revocation.public(),
                },
            ],
            genesis,
        };
        Self {
            manifest: sign_manifest(&manifest, &[&root]).unwrap(),
            root,
            issuer,
            policy,
            revocation,
            genesis,
        }
    }

    pub(super) fn trust(&self) -> Trust {
        Trust::pinned(self.genesis, &self.manifest).unwrap()
    }

    /// Returns the chain after the issuing key was renewed, which these roots signed.
    pub(super) fn renewed_chain(&self) -> Vec<Vec<u8>> {
        let trust = self.trust();
        let mut next = trust.manifest().clone();
        next.version += 1;
        next.previous = Some(trust.payload_digest());
        next.issuers.push(Issuer {
            key: SoftwareP256::generate(&mut SystemRandom).unwrap().public(),
            certificate: Vec::new(),
            site: None,
            not_after_secs: START_SECS + 800 * 86_400,
        });
        next.issuers.sort_by_key(|i| i.key);
        let signed = sign_manifest(&next, &[&self.root]).unwrap();
        vec![self.manifest.clone(), signed]
    }

    /// Returns what the controller's issuer says of the time.
    pub(super) fn beacon(&self, issued_secs: u64) -> Vec<u8> {
        let beacon = Beacon {
            issued_secs,
            manifest: 1,
            revocations: Revision::default(),
        };
        sign_beacon(&beacon, &self.issuer).unwrap()
    }

    pub(super) fn address(&self, host: u16) -> OverlayAddresses {
        let base = match domain_prefix(&self.genesis).address() {
            IpAddr::V6(a) => u128::from(a),
            IpAddr::V4(_) => 0,
        };
        OverlayAddresses {
            v6: Ipv6Addr::from(base | u128::from(host)),
            v4: None,
        }
    }

    fn resource(kind: ResourceKind, version: Revision, bytes: Vec<u8>) -> Resource {
        Resource {
            kind,
            version,
            bytes,
        }
    }

    pub(super) fn manifest(&self) -> Resource {
        let version = Revision {
            timeline: 0,
            number: 1,
        };
        Self::resource(ResourceKind::Manifest, version, self.manifest.clone())
    }

    pub(super) fn states(&self, n: u64, entries: &[(DeviceId, DeviceState)]) -> Resource {
        let mut entries = entries.to_vec();
        entries.sort();
        let body = States {
            revision: rev(n),
            entries,
        };
        let bytes = sign_states(&body, &self.policy).unwrap();
        Self::resource(ResourceKind::States, rev(n), bytes)
    }

    pub(super) fn policy_head(&self, n: u64) -> Vec<u8> {
        let head = BundleHead {
            revision: rev(n),
            hash: Digest([7; 32]),
        };
        sign_bundle_head(&head, &self.policy).unwrap()
    }

    pub(super) fn states_by_wrong_role(&self, n: u64) -> Resource {
        let body = States {
            revision: rev(n),
            entries: Vec::new(),
        };
        let bytes = sign_states(&body, &self.revocation).unwrap();
        Self::resource(ResourceKind::States, rev(n), bytes)
    }

    pub(super) fn revocations(&self, n: u64, what: &[Revoked]) -> Resource {
        let entry = |what: &Revoked| Revocation {
            what: what.clone(),
            at_secs: START_SECS,
            drop_after_secs: START_SECS + 90 * 86_400,
            reason: "test".into(),
        };
        let body = RevocationList {
            version: rev(n),
            issued_secs: START_SECS,
            entries: what.iter().map(entry).collect(),
            min_epochs: Vec::new(),
        };
        let bytes = sign_revocations(&body, &self.revocation).unwrap();
        Self::resource(ResourceKind::Revocations, rev(n), bytes)
    }

    pub(super) fn config(&self, n: u64) -> Resource {
        self.config_with(n, "192.0.2.1:7443")
    }

    pub(super) fn config_with(&self, n: u64, controller: &str) -> Resource {
        let body = SiteConfig {
            revision: rev(n),
            site: SiteName::new("s1").unwrap(),
            zone: "UTC".into(),
            controllers: vec![controller.into()],
            management: vec!["203.0.113.0/24".parse().unwrap()],
            pools: vec!["100.80.0.0/12".parse().unwrap()],
            suffix: "hedgerow.internal".into(),
            grace_secs: 30 * 86_400,
        };
        let bytes = sign_config(&body, &self.policy).unwrap();
        Self::resource(ResourceKind::Config, rev(n), bytes)
    }

    pub(super) fn names(&self, n: u64, of: &Machine, list: &[(&str, u16)]) -> Resource {
        let entry = |(name, host): &(&str, u16)| NameEntry {
            id: DeviceId([7; 16]),
            name: DeviceName::new(name).unwrap(),
            site: SiteName::new("s1").unwrap(),
            addresses: self.address(*host),
        };
        let body = Names {
            revision: rev(n),
            site: of.body.site.clone(),
            entries: list.iter().map(entry).collect(),
        };
        let bytes = sign_names(&body, &self.policy).unwrap();
        Self::resource(ResourceKind::Names, rev(n), bytes)
    }

    pub(super) fn program(&self, n: u64, source: &str, of: &Machine) -> Resource {
        let (policy, findings) = parse(source, "test.yaml");
        let policy = policy.unwrap_or_else(|| panic!("{findings:?}"));
        let facts = Facts::from(&of.body);
        let program = compile(&policy, &facts).unwrap();
        let body = SignedProgramBody {
            revision: rev(n),
            program: wire::encode(&program),
        };
        let bytes = sign_program(&body, &self.policy).unwrap();
        Self::resource(ResourceKind::Program, rev(n), bytes)
    }

    pub(super) fn ticket_resource(&self, of: &Machine, epoch: u64, labels: &str) -> Resource {
        let body = Ticket {
            epoch,
            labels: labels.parse().unwrap(),
            ..of.body.clone()
        };
        let bytes = sign_ticket(&body, &self.issuer).unwrap();
        let version = Revision {
            timeline: epoch,
            number: body.not_after_secs,
        };
        Self::resource(ResourceKind::Ticket, version, bytes)
    }

    pub(super) fn update(
        &self,
        revision: u64,
        previous: Option<u64>,
        set: impl IntoIterator<Item = Resource>,
    ) -> Update {
        Update {
            revision: rev(revision),
            previous: previous.map(rev),
            partial: false,
            set: set.into_iter().collect(),
            remove: Vec::new(),
        }
    }
}

/// One device: the machine under test, its keys, and what it was told to do.
pub(super) struct Machine {
    pub(super) state: State,
    pub(super) body: Ticket,
    pub(super) ticket: Vec<u8>,
    pub(super) log: Vec<String>,
    pub(super) hosts: Vec<BTreeMap<IpAddr, Vec<String>>>,
    pub(super) zone: Option<Arc<Zone>>,
    pub(super) answers: Vec<Answer>,
    pub(super) sent: Vec<(Path, Vec<u8>)>,
    /// Messages to agents of peers.
    pub(super) messages: Vec<(DeviceId, Vec<u8>)>,
    pub(super) asked: Vec<u64>,
    pub(super) tunnel_peers: Vec<DeviceId>,
    /// Records of peers as the disk has them.
    pub(super) memories: BTreeMap<DeviceId, Memory>,
    /// Times that are past for certain.
    pub(super) past: Vec<Wall>,
    pub(super) released: Vec<Overlay>,
    /// What the kernel has, as loads and single changes left it.
    pub(super) elements: BTreeSet<Overlay>,
    pub(super) kernel_works: bool,
    pub(super) disk_works: bool,
    trust: Trust,
    identity: SoftwareP256,
    introduction: [u8; 32],
    seed: u8,
    binds: u8,
    /// The keys of peers that the tunnel was told, in order.
    pub(super) tunnel_keys: Vec<X25519Public>,
}

impl Machine {
    pub(super) fn new(domain: &Domain, name: &str, labels: &str) -> Self {
        Self::until(domain, name, labels, 7 * 86_400)
    }

    /// A device whose first ticket ends after so many seconds.
    pub(super) fn until(domain: &Domain, name: &str, labels: &str, secs: u64) -> Self {
        let seed = Digest::of(name.as_bytes()).0[0];
        let identity = SoftwareP256::generate(&mut SystemRandom).unwrap();
        let introduction = [seed; 32];
        let body = Ticket {
            id: DeviceId([seed; 16]),
            name: DeviceName::new(name).unwrap(),
            site: SiteName::new("s1").unwrap(),
            identity_key: identity.public(),
            introduction_key: IntroductionSecret::from_bytes(introduction).public(),
            labels: labels.parse().unwrap(),
            addresses: domain.address(u16::from(seed)),
            epoch: 1,
            not_after_secs: START_SECS + secs,
        };
        let ticket = sign_ticket(&body, &domain.issuer).unwrap();
        let keys = vec![identity.public()];
        let made = Self::make(domain.trust(), &ticket, keys, Stored::default(), seed);
        Self {
            state: made.0,
            body,
            ticket,
            log: Vec::new(),
            hosts: Vec::new(),
            zone: None,
            answers: Vec::new(),
            sent: Vec::new(),
            messages: Vec::new(),
            asked: Vec::new(),
            tunnel_peers: Vec::new(),
            memories: BTreeMap::new(),
            past: Vec::new(),
            released: Vec::new(),
            elements: BTreeSet::new(),
            kernel_works: true,
            disk_works: true,
            trust: domain.trust(),
            identity,
            introduction,
            seed,
            binds: 0,
            tunnel_keys: Vec::new(),
        }
    }

    fn make(
        trust: Trust,
        ticket: &[u8],
        keys: Vec<P256Public>,
        stored: Stored,
        seed: u8,
    ) -> (State, Vec<String>) {
        let local = Local {
            tunnel: "hedgerow0".into(),
            mesh_port: 7117,
            relay_listen: Some(443),
            relay_port: Some(443),
            management: Vec::new(),
            servers: Vec::new(),
            name_servers: Vec::new(),
            askers: Askers::Anybody,
            controllers: vec!["192.0.2.1:7443".into()],
            trial: Duration::from_secs(60),
            verify_every: Duration::from_secs(30),
            has_hosts_file: true,
            consents_to_bench: false,
        };
        let mesh = Mesh::new([seed; 32]);
        let spool = (Spool::new(1000), UnderlayTrial::default());
        State::new(local, trust, (ticket, keys), stored, mesh, spool).unwrap()
    }

    pub(super) fn started(domain: &Domain, name: &str, labels: &str) -> Self {
        let mut machine = Self::new(domain, name, labels);
        machine.state.handle_start(at(0));
        machine.run(at(0));
        machine.log.clear();
        machine
    }

    /// The same device after a restart with this on its disk.
    pub(super) fn reborn(&self, stored: Stored) -> (State, Vec<String>) {
        let keys = vec![self.identity.public()];
        Self::make(self.trust.clone(), &self.ticket, keys, stored, self.seed)
    }

    /// Gives the device a ticket of the next epoch with another address.
    pub(super) fn move_to(&mut self, domain: &Domain, host: u16) {
        self.body.addresses = domain.address(host);
        self.body.epoch += 1;
        self.adopt_ticket(domain);
    }

    /// Gives the device a ticket that says the same and ends so much later.
    pub(super) fn renew(&mut self, domain: &Domain, secs: u64) {
        self.body.not_after_secs += secs;
        self.adopt_ticket(domain);
    }

    fn adopt_ticket(&mut self, domain: &Domain) {
        self.ticket = sign_ticket(&self.body, &domain.issuer).unwrap();
        let version = Revision {
            timeline: self.body.epoch,
            number: self.body.not_after_secs,
        };
        let resource = Domain::resource(ResourceKind::Ticket, version, self.ticket.clone());
        self.adopt(domain, 50, [resource]);
    }

    pub(super) fn id(&self) -> DeviceId {
        self.body.id
    }

    pub(super) fn adopt(
        &mut self,
        domain: &Domain,
        revision: u64,
        set: impl IntoIterator<Item = Resource>,
    ) {
        let previous = self.state.holdings().revision.map(|r| r.number);
        let update = domain.update(revision, previous, set);
        let now = at(1);
        self.state.handle_update(update, now);
        self.run(now);
    }

    pub(super) fn underlay(&self) -> Mode {
        self.state.table().0.unwrap().underlay_mode
    }

    pub(super) fn events(&mut self) -> Vec<EventKind> {
        self.state.spool().handle_uplink_down();
        let report = self.state.spool().next_report(1000);
        report.map_or_else(Vec::new, |(_, events)| {
            events.iter().map(|e| e.kind).collect()
        })
    }

    /// Does every step; returns their names.
    pub(super) fn run(&mut self, now: Now) -> Vec<String> {
        let before = self.log.len();
        while let Some(step) = self.state.poll() {
            let name = self.act(step, now);
            self.log.push(name);
        }
        self.log[before..].to_vec()
    }

    fn act(&mut self, step: Step, now: Now) -> String {
        let table = Digest::of(b"table");
        match step {
            Step::Store => {
                let result = match self.disk_works {
                    true => Ok(()),
                    false => Err("no space left on device".to_owned()),
                };
                self.state.handle_stored(result, now);
                "store".into()
            }
            Step::Load(ruleset) => {
                let result = if self.kernel_works {
                    self.elements = ruleset.peers.keys().copied().collect();
                    Ok(Load::Replaced(table))
                } else {
                    Err("no memory".into())
                };
                self.state.handle_loaded(ruleset.generation, result, now);
                "load".into()
            }
            Step::Elements(list) => {
                for (address, profile) in &list {
                    match profile {
                        Some(_) => self.elements.insert(*address),
                        None => self.elements.remove(address),
                    };
                }
                let removes = list.iter().all(|(_, p)| p.is_none());
                self.state.handle_elements(&list, Ok(()), now);
                if removes { "remove element" } else { "element" }.into()
            }
            Step::Verify => {
                self.state.handle_verified(Reading::Intact(table), now);
                "verify".into()
            }
            Step::CutConnections(_) => "cut".into(),
            Step::Tunnel(order) => self.tunnel(order),
            Step::Acknowledge(_, Stage::Verified(_)) => "acknowledge verified".into(),
            Step::Acknowledge(_, Stage::Rejected(..)) => "acknowledge rejected".into(),
            Step::Acknowledge(_, Stage::Received) => "acknowledge received".into(),
            Step::Resolve(id, _) => {
                self.asked.push(id);
                "resolve".into()
            }
            Step::BindKey => {
                self.bind(now);
                "bind".into()
            }
            Step::Remember(memory) => self.remember(*memory),
            Step::Forget(_) => "forget".into(),
            Step::Hosts(entries) => {
                self.hosts.push(entries);
                "hosts".into()
            }
            Step::Zone(zone) => {
                self.zone = zone;
                "zone".into()
            }
            Step::Controllers(_) => "controllers".into(),
            Step::StoreTrial(_) => "store trial".into(),
            Step::Answer(_, answer) => {
                self.answers.push(*answer);
                "answer".into()
            }
            Step::Probe => "probe".into(),
            Step::Whereabouts => "whereabouts".into(),
            Step::Past(at) => self.is_past(at),
            Step::OpenLink(..) => "open a link".into(),
            Step::CloseLink(_) => "close a link".into(),
        }
    }

    fn is_past(&mut self, at: Wall) -> String {
        self.past.push(at);
        "past".into()
    }

    fn remember(&mut self, memory: Memory) -> String {
        self.memories.insert(memory.device, memory);
        "remember".into()
    }

    fn tunnel(&mut self, order: ToTunnel) -> String {
        match order {
            ToTunnel::SetPeer { device, key, .. } => {
                self.tunnel_peers.push(device);
                self.tunnel_keys.push(key);
                "set peer".into()
            }
            ToTunnel::Mesh(order) => {
                let said = format!("{order:?}");
                if let TunnelOrder::SendMessage { device, bytes, .. } = order {
                    self.messages.push((device, bytes));
                }
                said
            }
            ToTunnel::Connect(_) => "connect".into(),
            ToTunnel::ForgetOldKey(_) => "forget old key".into(),
            ToTunnel::RemovePeer(device) => {
                self.tunnel_peers.retain(|d| *d != device);
                "remove peer".into()
            }
            ToTunnel::Send(to, bytes) => {
                self.sent.push((to, bytes));
                "send".into()
            }
            ToTunnel::Release(address, _) => {
                self.released.push(address);
                "release".into()
            }
            ToTunnel::Reject(_, Rejection::Prohibited) => "prohibit".into(),
            ToTunnel::Reject(_, Rejection::Unreachable) => "unreachable".into(),
        }
    }

    pub(super) fn bind(&mut self, now: Now) {
        let mut key = [self.seed; 32];
        key[0] ^= self.binds;
        self.binds += 1;
        let body = Binding {
            id: self.body.id,
            wireguard_key: X25519Public(key),
            sequence: now.wall.secs(),
            not_after_secs: now.wall.secs() + 40 * 3600,
        };
        let signed = sign_binding(&body, &self.identity).unwrap();
        let ticket = self.state.ticket().clone();
        let own = OwnIdentity {
            binding: verify_binding(&signed, &ticket, now).unwrap(),
            ticket,
            introduction: IntroductionSecret::from_bytes(self.introduction),
            previous_introduction: None,
        };
        self.state.handle_bound(own, now, Duration::ZERO);
    }
}
