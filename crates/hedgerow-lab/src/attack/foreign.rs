//! A device of another trust domain that introduces itself well-formed in every respect: the real
//! machine speaks, with a ticket that nobody here has reason to believe.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hedgerow_identity::key::{SoftwareEd25519, SoftwareP256, SoftwareP384};
use hedgerow_identity::standing::Standing;
use hedgerow_identity::statement::{sign_binding, sign_ticket};
use hedgerow_identity::trust::{Trust, root_set_digest, sign_manifest};
use hedgerow_mesh::{Admission, IntroductionSecret, Mesh, Output, OwnIdentity, Resolved, View};
use hedgerow_model::address::{Overlay, OverlayAddresses, Underlay, site_prefix};
use hedgerow_model::id::{DeviceId, DeviceName, Digest, SiteName, TrustDomain};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::{
    Binding, Issuer, Manifest, Role, RoleKey, Root, Ticket, X25519Public,
};
use hedgerow_model::{Mono, Now, Wall};
use minicbor::Decode;
use minicbor::bytes::ByteVec;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::clock;
use crate::entropy::{SystemRandom, bytes};

const DAY: u64 = 86_400;

/// What anybody may know of a device: whom it believes, and its ticket, which it shows to peers.
struct Target {
    trust: Trust,
    ticket: Vec<u8>,
}

#[derive(Decode)]
struct Resources {
    #[n(2)]
    resources: Vec<Resource>,
}

impl Target {
    /// Reads a device's state directory.
    fn read(state: &Path) -> Result<Self> {
        let file = |name: &str| fs::read(state.join(name)).with_context(|| name.to_owned());
        let (genesis, _controllers): (Digest, Vec<String>) =
            minicbor::decode(&file("enrollment")?)?;
        let chain: Vec<ByteVec> = minicbor::decode(&file("manifests")?)?;
        let chain: Vec<&[u8]> = chain.iter().map(|link| link.as_slice()).collect();
        let held: Resources = minicbor::decode(&file("resources")?)?;
        let ticket = held
            .resources
            .into_iter()
            .find(|r| r.kind == ResourceKind::Ticket);
        Ok(Self {
            trust: Trust::from_chain(genesis, &chain)?,
            ticket: ticket.context("no ticket")?.bytes,
        })
    }
}

/// Introduces a stranger to the device that keeps its state in `state` and listens at `endpoint`;
/// returns how many datagrams came back within a second.
///
/// # Errors
///
/// When the stranger cannot be made or cannot send.
pub(crate) fn introduce(state: &Path, endpoint: SocketAddr) -> Result<usize> {
    let Target { trust, ticket } = Target::read(state)?;
    let standing = Standing::new(None);
    let now = Now {
        mono: Mono::ZERO,
        wall: Wall::from_secs(clock::wall_secs()),
        wall_is_trusted: true,
    };
    let view = View {
        trust: &trust,
        standing: &standing,
        now,
    };
    let target = trust.verify_ticket(&ticket, &standing, now)?;
    let address = Overlay(target.addresses.v6.into());
    let mut mesh = Mesh::new(bytes());
    mesh.handle_own(stranger(now)?, view)?;
    mesh.handle_wanted(address, view);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut sent = 0;
    while let Some(output) = mesh.poll() {
        match output {
            Output::Resolve { query } => {
                let endpoints = vec![Underlay(endpoint)];
                let answer = Resolved {
                    ticket: ticket.clone(),
                    endpoints,
                };
                mesh.handle_resolved(query, Some(answer), view);
            }
            Output::Admit { device, .. } => mesh.handle_admitted(device, Admission::Granted, view),
            Output::Send { to, bytes } => sent += socket.send_to(&bytes, to.0)?,
            Output::SetPeer { .. }
            | Output::ForgetOldKey { .. }
            | Output::Release { .. }
            | Output::Reject { .. }
            | Output::RemovePeer { .. }
            | Output::Refused { .. }
            | Output::Remember(_)
            | Output::Forget(_) => {}
        }
    }
    anyhow::ensure!(sent > 0, "the stranger's machine did not introduce itself");
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = [0u8; 2048];
    let mut answers = 0;
    while socket.recv_from(&mut answer).is_ok() {
        answers += 1;
    }
    Ok(answers)
}

/// Makes a trust domain of one device, and that device's statements.
fn stranger(now: Now) -> Result<OwnIdentity> {
    let issuer = SoftwareP256::generate(&mut SystemRandom)?;
    let identity = SoftwareP256::generate(&mut SystemRandom)?;
    let trust = domain(&issuer, now.wall.secs())?;
    let introduction = IntroductionSecret::from_bytes(bytes());
    let (id, until) = (DeviceId(bytes()), now.wall.secs() + DAY);
    let IpAddr::V6(base) = site_prefix(&trust.domain_prefix(), 1).address() else {
        anyhow::bail!("an overlay prefix is IPv6");
    };
    let ticket = Ticket {
        id,
        name: DeviceName::new("stranger")?,
        site: SiteName::new("s1")?,
        identity_key: identity.public(),
        introduction_key: introduction.public(),
        labels: "role=scada".parse()?,
        addresses: OverlayAddresses {
            v6: (u128::from(base) | 0xbad).into(),
            v4: Some([100, 80, 0, 66].into()),
        },
        epoch: 1,
        not_after_secs: until,
    };
    let binding = Binding {
        id,
        wireguard_key: X25519Public(bytes()),
        sequence: now.wall.secs(),
        not_after_secs: until,
    };
    let standing = Standing::new(None);
    let signed = sign_ticket(&ticket, &issuer)?;
    let ticket = trust.verify_ticket(&signed, &standing, now)?;
    let signed = sign_binding(&binding, &identity)?;
    let binding = hedgerow_identity::statement::verify_binding(&signed, &ticket, now)?;
    Ok(OwnIdentity {
        ticket,
        binding,
        introduction,
        previous_introduction: None,
    })
}

fn domain(issuer: &SoftwareP256, now: u64) -> Result<Trust> {
    let root = SoftwareP384::generate(&mut SystemRandom)?;
    let role = SoftwareEd25519::generate(&mut SystemRandom);
    let root_key = KeyPair::try_from(root.to_pkcs8_der()?.as_slice())?;
    let params = authority();
    let roots = vec![Root {
        key: root.public(),
        certificate: params.self_signed(&root_key)?.der().to_vec(),
    }];
    let genesis = root_set_digest(&roots);
    let by_root = rcgen::Issuer::from_params(&params, &root_key);
    let issuer_key = KeyPair::try_from(issuer.to_pkcs8_der()?.as_slice())?;
    let certificate = authority().signed_by(&issuer_key, &by_root)?.der().to_vec();
    let manifest = Manifest {
        version: 1,
        trust_domain: TrustDomain::new("elsewhere.example")?,
        previous: None,
        issued_secs: now,
        roots,
        threshold: 1,
        issuers: vec![Issuer {
            key: issuer.public(),
            certificate,
            site: None,
            not_after_secs: now + DAY,
        }],
        role_keys: vec![RoleKey {
            role: Role::Policy,
            key: role.public(),
        }],
        genesis,
    };
    Ok(Trust::pinned(
        genesis,
        &sign_manifest(&manifest, &[&root])?,
    )?)
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}
