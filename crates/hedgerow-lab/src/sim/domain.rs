//! The trust domain of a simulated plant: who may sign, and what devices are shown with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use hedgerow_identity::Verified;
use hedgerow_identity::key::{SoftwareEd25519, SoftwareP256, SoftwareP384};
use hedgerow_identity::statement::{
    sign_binding, sign_endpoints, sign_revocations, sign_states, sign_ticket, verify_binding,
};
use hedgerow_identity::trust::{Trust, root_set_digest, sign_manifest};
use hedgerow_mesh::items::record_body;
use hedgerow_mesh::{IntroductionSecret, OwnIdentity};
use hedgerow_model::Now;
use hedgerow_model::address::{OverlayAddresses, Prefix, Underlay, domain_prefix};
use hedgerow_model::id::{DeviceId, DeviceName, Labels, Revision, SiteName, TrustDomain};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{
    Binding, EndpointRecord, Issuer, Manifest, P256Public, P384Public, Revocation, RevocationList,
    Revoked, Role, RoleKey, Root, States, Ticket, X25519Public,
};

use super::plant::Member;
use super::random::Random;

/// When every run begins: 2026-11-21, about noon.
pub(super) const NOON: u64 = 1_795_262_400;
const DAY: u64 = 86_400;
const TICKET_LIFE: u64 = 7 * DAY;
const BINDING_LIFE: u64 = 2 * DAY;

/// Who may speak for the plant.
pub(super) struct Domain {
    pub(super) trust: Trust,
    issuer: SoftwareP256,
    revoker: SoftwareEd25519,
    policy: SoftwareEd25519,
    prefix: [u8; 6],
    /// Where the overlay is, and so no path leads.
    pub(super) pools: Vec<Prefix>,
}

impl Domain {
    pub(super) fn new(random: &mut Random) -> Result<Self> {
        let root = SoftwareP384::generate(random)?;
        let issuer = SoftwareP256::generate(random)?;
        let revoker = SoftwareEd25519::from_seed(&random.bytes());
        let policy = SoftwareEd25519::from_seed(&random.bytes());
        let roots = vec![Root {
            key: P384Public(root.public().0),
            certificate: Vec::new(),
        }];
        let genesis = root_set_digest(&roots);
        let manifest = Manifest {
            version: 1,
            trust_domain: TrustDomain::new("plant.example")?,
            previous: None,
            issued_secs: NOON - DAY,
            roots,
            threshold: 1,
            issuers: vec![Issuer {
                key: P256Public(issuer.public().0),
                certificate: Vec::new(),
                site: None,
                not_after_secs: NOON + 365 * DAY,
            }],
            role_keys: vec![
                RoleKey {
                    role: Role::Policy,
                    key: policy.public(),
                },
                RoleKey {
                    role: Role::Revocation,
                    key: revoker.public(),
                },
            ],
            genesis,
        };
        let trust = Trust::pinned(genesis, &sign_manifest(&manifest, &[&root])?)?;
        let octets = match domain_prefix(&genesis).address() {
            IpAddr::V6(address) => address.octets(),
            IpAddr::V4(_) => [0; 16],
        };
        Ok(Self {
            trust,
            issuer,
            revoker,
            policy,
            prefix: octets.first_chunk().copied().unwrap_or_default(),
            pools: vec![domain_prefix(&genesis)],
        })
    }

    /// Returns the addresses of the device with this number.
    pub(super) fn addresses(&self, number: usize) -> OverlayAddresses {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let mut octets = [0; 16];
        let (head, tail) = octets.split_at_mut(12);
        head.iter_mut()
            .zip(self.prefix)
            .for_each(|(to, from)| *to = from);
        tail.copy_from_slice(&number.to_be_bytes());
        OverlayAddresses {
            v6: Ipv6Addr::from(octets),
            v4: Some(Ipv4Addr::from(0x6450_0000 + number)),
        }
    }

    /// Returns the number of the device that holds an address.
    pub(super) fn number(address: IpAddr) -> Option<usize> {
        let IpAddr::V6(address) = address else {
            return None;
        };
        let octets = address.octets();
        let tail = octets.last_chunk::<4>()?;
        usize::try_from(u32::from_be_bytes(*tail)).ok()
    }

    /// Signs the list of everyone revoked so far.
    pub(super) fn revocations(&self, devices: &[DeviceId]) -> Result<Verified<RevocationList>> {
        let entry = |device: &DeviceId| Revocation {
            what: Revoked::Device(*device),
            at_secs: NOON,
            drop_after_secs: NOON + 365 * DAY,
            reason: "simulated".to_owned(),
        };
        let mut list = RevocationList {
            version: Revision {
                timeline: 1,
                number: u64::try_from(devices.len())?,
            },
            issued_secs: NOON,
            entries: devices.iter().map(entry).collect(),
            min_epochs: Vec::new(),
        };
        list.entries.sort();
        Ok(self
            .trust
            .verify_revocations(&sign_revocations(&list, &self.revoker)?)?)
    }

    /// Signs the list of everyone in quarantine now.
    pub(super) fn states(&self, number: u64, contained: &[DeviceId]) -> Result<Verified<States>> {
        let entry = |device: &DeviceId| (*device, DeviceState::Quarantine);
        let mut states = States {
            revision: Revision {
                timeline: 1,
                number,
            },
            entries: contained.iter().map(entry).collect(),
        };
        states.entries.sort();
        Ok(self
            .trust
            .verify_states(&sign_states(&states, &self.policy)?)?)
    }
}

/// One device's secrets and statements.
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) addresses: OverlayAddresses,
    pub(super) ticket: Vec<u8>,
    identity: SoftwareP256,
    introduction: IntroductionSecret,
    /// Of the last binding; the next one's is greater.
    pub(super) sequence: u64,
}

impl Device {
    pub(super) fn new(
        domain: &Domain,
        number: usize,
        member: &Member,
        random: &mut Random,
    ) -> Result<Self> {
        let identity = SoftwareP256::generate(random)?;
        let introduction = IntroductionSecret::from_bytes(random.bytes());
        let id = DeviceId(random.bytes());
        let addresses = domain.addresses(number);
        let ticket = Ticket {
            id,
            name: DeviceName::new(&format!("device-{number}"))?,
            site: SiteName::new(&format!("site-{}", member.site))?,
            identity_key: identity.public(),
            introduction_key: introduction.public(),
            labels: member.labels().parse::<Labels>()?,
            addresses,
            epoch: 1,
            not_after_secs: NOON + TICKET_LIFE,
        };
        Ok(Self {
            id,
            addresses,
            ticket: sign_ticket(&ticket, &domain.issuer)?,
            identity,
            introduction,
            sequence: 0,
        })
    }

    /// Signs where it may be reached, as the agent does with each key.
    pub(super) fn record(&self, at: Underlay) -> Result<Vec<u8>> {
        let record = EndpointRecord {
            id: self.id,
            sequence: self.sequence,
            not_after_secs: self.sequence + BINDING_LIFE,
            endpoints: vec![at],
            relays: Vec::new(),
        };
        let signed = sign_endpoints(&record, &self.identity)?;
        Ok(record_body(&self.ticket, &signed))
    }

    /// Binds a new WireGuard key.
    pub(super) fn bind(
        &mut self,
        domain: &Domain,
        key: X25519Public,
        now: Now,
    ) -> Result<OwnIdentity> {
        let public = self.identity.public();
        let ticket = domain
            .trust
            .verify_own_ticket(&self.ticket, &public, None)
            .context("the own ticket")?;
        self.sequence = now.wall.secs().max(self.sequence + 1);
        let binding = Binding {
            id: self.id,
            wireguard_key: key,
            sequence: self.sequence,
            not_after_secs: self.sequence + BINDING_LIFE,
        };
        let binding = verify_binding(&sign_binding(&binding, &self.identity)?, &ticket, now)?;
        Ok(OwnIdentity {
            ticket,
            binding,
            introduction: self.introduction.clone(),
            previous_introduction: None,
        })
    }
}
