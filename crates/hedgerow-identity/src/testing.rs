//! A small trust domain for the tests: one root, an issuer for all, an issuer for site `s1`.

use std::net::IpAddr;

use hedgerow_model::address::{OverlayAddresses, Prefix, domain_prefix, site_prefix};
use hedgerow_model::id::{DeviceId, DeviceName, Digest, Labels, Revision, SiteName, TrustDomain};
use hedgerow_model::statement::{
    Beacon, Issuer, Manifest, Revocation, RevocationList, Revoked, Role, RoleKey, Root, Ticket,
    X25519Public,
};
use hedgerow_model::{Mono, Now, Wall};
use proptest::prelude::*;
use rand_core::{Infallible, TryCryptoRng, TryRng};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
    SanType,
};

use crate::Verified;
use crate::certificate::SpiffeId;
use crate::key::{SigningKey, SoftwareEd25519, SoftwareP256, SoftwareP384};
use crate::standing::Standing;
use crate::statement::{sign_beacon, sign_revocations, sign_ticket};
use crate::trust::{Trust, root_set_digest, sign_manifest};

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const DAY: u64 = 86_400;

/// Random enough for keys in tests, and the same in each run.
pub(crate) struct TestRng(pub(crate) u64);

impl TryRng for TestRng {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|v| (v >> 32) as u32)
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        Ok(self.0.rotate_left(23) ^ (self.0 >> 7))
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(8) {
            let bytes = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for TestRng {}

pub(crate) fn p256(seed: u64) -> SoftwareP256 {
    SoftwareP256::generate(&mut TestRng(seed)).unwrap()
}

pub(crate) fn p384(seed: u64) -> SoftwareP384 {
    SoftwareP384::generate(&mut TestRng(seed)).unwrap()
}

pub(crate) fn ed25519(seed: u64) -> SoftwareEd25519 {
    SoftwareEd25519::generate(&mut TestRng(seed))
}

pub(crate) fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

pub(crate) fn now_at(secs: u64) -> Now {
    Now {
        mono: Mono::ZERO,
        wall: Wall::from_secs(secs),
        wall_is_trusted: true,
    }
}

pub(crate) fn now() -> Now {
    now_at(NOW)
}

fn set_times(params: &mut CertificateParams, from: u64, to: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + std::time::Duration::from_secs(from);
    params.not_after = epoch + std::time::Duration::from_secs(to);
}

pub(crate) fn rcgen_key(key: &[u8]) -> KeyPair {
    KeyPair::try_from(key).unwrap()
}

fn ca_params(to: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    set_times(&mut params, NOW - DAY, to);
    params
}

/// What a test leaf says; the default is a proper device of `s1`.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) uri: String,
    pub(crate) dns: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) ca: bool,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) key_usages: Vec<KeyUsagePurpose>,
    pub(crate) unknown: Option<Criticality>,
}

/// Of an extension that nobody knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Criticality {
    Critical,
    NotCritical,
}

/// A small trust domain.
pub(crate) struct Plant {
    pub(crate) root: SoftwareP384,
    pub(crate) issuer: SoftwareP256,
    pub(crate) site_issuer: SoftwareP256,
    pub(crate) policy: SoftwareEd25519,
    pub(crate) revocation: SoftwareEd25519,
    pub(crate) manifest: Manifest,
    pub(crate) signed: Vec<u8>,
    pub(crate) trust: Trust,
    issuer_params: CertificateParams,
    site_params: CertificateParams,
}

impl Plant {
    pub(crate) fn new() -> Self {
        Self::with_seed(1)
    }

    /// Plants of different seeds have nothing in common but the trust domain's name.
    pub(crate) fn with_seed(seed: u64) -> Self {
        let base = seed * 1000;
        let (root, issuer, site_issuer) = (p384(base), p256(base + 1), p256(base + 2));
        let (policy, revocation) = (ed25519(base + 3), ed25519(base + 4));
        let root_params = ca_params(NOW + 3650 * DAY);
        let root_key = rcgen_key(&root.to_pkcs8_der().unwrap());
        let root_cert = root_params.self_signed(&root_key).unwrap();
        let roots = vec![Root {
            key: root.public(),
            certificate: root_cert.der().to_vec(),
        }];
        let genesis = root_set_digest(&roots);
        let by_root = rcgen::Issuer::from_params(&root_params, &root_key);
        let issuer_params = ca_params(NOW + 90 * DAY);
        let mut site_params = ca_params(NOW + 90 * DAY);
        site_params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![
                GeneralSubtree::DnsName("s1.hedgerow.internal".into()),
                subtree(site_prefix(&domain_prefix(&genesis), 1)),
                subtree("100.80.0.0/22".parse().unwrap()),
            ],
            excluded_subtrees: vec![],
        });
        let certify = |key: &SoftwareP256, params: &CertificateParams| {
            let key = rcgen_key(&key.to_pkcs8_der().unwrap());
            params.signed_by(&key, &by_root).unwrap().der().to_vec()
        };
        let entry = |key: &SoftwareP256, params: &CertificateParams, site| Issuer {
            key: key.public(),
            certificate: certify(key, params),
            site,
            not_after_secs: NOW + 90 * DAY,
        };
        let mut issuers = vec![
            entry(&issuer, &issuer_params, None),
            entry(&site_issuer, &site_params, Some(site("s1"))),
        ];
        issuers.sort_by_key(|i| i.key);
        let role = |role, key: &SoftwareEd25519| RoleKey {
            role,
            key: key.public(),
        };
        let manifest = Manifest {
            version: 1,
            trust_domain: TrustDomain::new("plant.example").unwrap(),
            previous: None,
            issued_secs: NOW,
            roots,
            threshold: 1,
            issuers,
            role_keys: vec![
                role(Role::Policy, &policy),
                role(Role::Revocation, &revocation),
            ],
            genesis,
        };
        let signed = sign_manifest(&manifest, &[&root]).unwrap();
        let trust = Trust::pinned(genesis, &signed).unwrap();
        Self {
            root,
            issuer,
            site_issuer,
            policy,
            revocation,
            manifest,
            signed,
            trust,
            issuer_params,
            site_params,
        }
    }

    /// The next manifest, not signed.
    pub(crate) fn next_manifest(&self) -> Manifest {
        Manifest {
            version: self.trust.manifest().version + 1,
            previous: Some(self.trust.payload_digest()),
            ..self.trust.manifest().clone()
        }
    }

    pub(crate) fn addresses(&self, number: u16) -> OverlayAddresses {
        let prefix = site_prefix(&domain_prefix(&self.manifest.genesis), number);
        let IpAddr::V6(v6) = prefix.address() else {
            unreachable!("overlay prefixes are IPv6");
        };
        OverlayAddresses {
            v6: (u128::from(v6) | 7).into(),
            v4: Some([100, 80, 0, 7].into()),
        }
    }

    pub(crate) fn ticket(&self) -> Ticket {
        Ticket {
            id: DeviceId([7; 16]),
            name: DeviceName::new("cam-12").unwrap(),
            site: site("s1"),
            identity_key: p256(50).public(),
            introduction_key: X25519Public([3; 32]),
            labels: Labels::default(),
            addresses: self.addresses(1),
            epoch: 3,
            not_after_secs: NOW + 7 * DAY,
        }
    }

    pub(crate) fn signed_ticket(&self) -> Vec<u8> {
        sign_ticket(&self.ticket(), &self.issuer).unwrap()
    }

    pub(crate) fn verified_ticket(&self) -> Verified<Ticket> {
        let standing = Standing::new(Some(site("s1")));
        let bytes = self.signed_ticket();
        self.trust.verify_ticket(&bytes, &standing, now()).unwrap()
    }

    pub(crate) fn leaf(&self) -> Leaf {
        let id = SpiffeId::Device {
            site: site("s1"),
            id: DeviceId([7; 16]),
        };
        Leaf {
            uri: id.uri(&self.manifest.trust_domain),
            dns: vec!["cam-12.s1.hedgerow.internal".into()],
            addresses: self.addresses(1).iter().map(|a| a.0).collect(),
            from: NOW - 600,
            to: NOW + 7 * DAY,
            ca: false,
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            unknown: None,
        }
    }

    /// Certifies the key `p256(50)`, as `self.ticket()` has it.
    pub(crate) fn certify(&self, leaf: &Leaf, issuer: &SoftwareP256) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(leaf.uri.as_str().try_into().unwrap())];
        for dns in &leaf.dns {
            let name = SanType::DnsName(dns.as_str().try_into().unwrap());
            params.subject_alt_names.push(name);
        }
        for address in &leaf.addresses {
            params.subject_alt_names.push(SanType::IpAddress(*address));
        }
        if leaf.ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        if let Some(criticality) = leaf.unknown {
            let mut extension = CustomExtension::from_oid_content(&[1, 3, 9999, 1], vec![5, 0]);
            extension.set_criticality(criticality == Criticality::Critical);
            params.custom_extensions.push(extension);
        }
        params.key_usages = leaf.key_usages.clone();
        params.extended_key_usages = leaf.usages.clone();
        params.use_authority_key_identifier_extension = true;
        set_times(&mut params, leaf.from, leaf.to);
        let issuer_params = match issuer.public() == self.site_issuer.public() {
            true => &self.site_params,
            false => &self.issuer_params,
        };
        let issuer_key = rcgen_key(&issuer.to_pkcs8_der().unwrap());
        let by = rcgen::Issuer::from_params(issuer_params, &issuer_key);
        let key = rcgen_key(&p256(50).to_pkcs8_der().unwrap());
        params.signed_by(&key, &by).unwrap().der().to_vec()
    }

    /// A standing seen from `s1` in which all of `entries` are revoked.
    pub(crate) fn standing_without(&self, entries: &[Revoked]) -> Standing {
        let mut standing = Standing::new(Some(site("s1")));
        let list = self.revocations(1, entries);
        standing.adopt_revocations(list).unwrap();
        standing
    }

    pub(crate) fn revocations(&self, number: u64, entries: &[Revoked]) -> Verified<RevocationList> {
        let list = crate::revocation::next_list(
            Revision {
                timeline: 0,
                number,
            },
            entries.iter().map(|what| Revocation {
                what: what.clone(),
                at_secs: NOW,
                drop_after_secs: NOW + 60 * DAY,
                reason: "test".into(),
            }),
            [],
            now(),
        );
        let signed = sign_revocations(&list, &self.revocation).unwrap();
        self.trust.verify_revocations(&signed).unwrap()
    }

    pub(crate) fn beacon(&self, issued_secs: u64) -> Verified<Beacon> {
        let beacon = Beacon {
            issued_secs,
            manifest: 1,
            revocations: Revision::default(),
        };
        let signed = sign_beacon(&beacon, &self.issuer).unwrap();
        let standing = Standing::new(None);
        self.trust.verify_beacon(&signed, &standing).unwrap()
    }
}

fn subtree(prefix: Prefix) -> GeneralSubtree {
    GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(
        prefix.address(),
        prefix.bits(),
    ))
}

/// The second spelling of an ECDSA signature by P-256: `s` replaced by the order minus `s`.
pub(crate) fn malleate_p256(signature: &[u8]) -> Vec<u8> {
    let signature = p256::ecdsa::Signature::from_slice(signature).unwrap();
    let (r, s) = signature.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r, -s).unwrap();
    assert_ne!(other, signature);
    other.to_vec()
}

pub(crate) fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

/// Up to six random edits of `base`.
pub(crate) fn edited(base: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), any::<u8>(), 0..4u8);
    prop::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut bytes = base.clone();
        for (index, byte, kind) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => {
                    bytes.remove(at);
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    })
}

/// Random bytes, and edits of `base`.
pub(crate) fn hostile(base: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![prop::collection::vec(any::<u8>(), 0..400), edited(base)]
}

/// Runs `check` on hostile bytes, few enough times for a unit test.
pub(crate) fn throw_at(base: Vec<u8>, cases: u32, check: impl Fn(&[u8])) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest::test_runner::TestRunner::new(config)
        .run(&hostile(base), |bytes| {
            check(&bytes);
            Ok(())
        })
        .unwrap();
}

/// Asserts that every key kind is accepted where a trait object is wanted.
pub(crate) fn as_dyn(key: &impl SigningKey) -> &dyn SigningKey {
    key
}
