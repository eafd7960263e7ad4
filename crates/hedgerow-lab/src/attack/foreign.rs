//! Two that speak the mesh's own language: a device of another trust domain, whose introduction is
//! well-formed in every respect, and a device of ours whose owner replaced the agent.

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
pub(crate) struct Target {
    /// Whom it believes.
    pub(crate) trust: Trust,
    /// Its ticket.
    pub(crate) ticket: Vec<u8>,
}

#[derive(Decode)]
struct Resources {
    #[n(2)]
    resources: Vec<Resource>,
}

impl Target {
    /// Reads a device's state directory.
    ///
    /// # Errors
    ///
    /// When there is none, or it is no enrolled device's.
    pub(crate) fn read(state: &Path) -> Result<Self> {
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

/// What came of an introduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answered {
    /// How many datagrams came back.
    pub(crate) datagrams: usize,
    /// The WireGuard key that the other device answered with.
    pub(crate) key: Option<X25519Public>,
}

/// Introduces a stranger to the device that keeps its state in `state` and listens at `endpoint`.
///
/// # Errors
///
/// When the stranger cannot be made or cannot send.
pub(crate) fn introduce(state: &Path, endpoint: SocketAddr) -> Result<Answered> {
    let target = Target::read(state)?;
    let now = moment();
    converse(
        &target,
        &stranger(now)?,
        endpoint,
        &UdpSocket::bind("0.0.0.0:0")?,
        now,
    )
}

/// Introduces a device of ours, by the keys on its own disk, with a WireGuard key that its agent never
/// saw: what root on a device can do.
///
/// # Errors
///
/// When the keys cannot be read or nothing can be sent.
pub(crate) fn introduce_insider(
    own: &Path,
    state: &Path,
    endpoint: SocketAddr,
    wireguard_key: X25519Public,
) -> Result<Answered> {
    let target = Target::read(state)?;
    let now = moment();
    let identity = insider(own, &target, wireguard_key, now)?;
    converse(
        &target,
        &identity,
        endpoint,
        &UdpSocket::bind("0.0.0.0:7117")?,
        now,
    )
}

/// Returns the wall clock's time, for statements.
pub(super) fn moment() -> Now {
    Now {
        mono: Mono::ZERO,
        wall: Wall::from_secs(clock::wall_secs()),
        wall_is_trusted: true,
    }
}

/// Introduces `own` at `endpoint`, and takes what comes back within a second of silence.
///
/// # Errors
///
/// When nothing can be sent.
pub(super) fn converse(
    target: &Target,
    own: &OwnIdentity,
    endpoint: SocketAddr,
    socket: &UdpSocket,
    now: Now,
) -> Result<Answered> {
    let standing = Standing::new(None);
    let view = View {
        trust: &target.trust,
        standing: &standing,
        now,
    };
    let ticket = target.trust.verify_ticket(&target.ticket, &standing, now)?;
    let mut mesh = Mesh::new(bytes());
    mesh.handle_own(own.clone(), view)?;
    mesh.handle_wanted(Overlay(ticket.addresses.v6.into()), view);
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answered = Answered {
        datagrams: 0,
        key: None,
    };
    let mut sent = 0;
    let mut datagram = [0u8; 2048];
    loop {
        while let Some(output) = mesh.poll() {
            match output {
                Output::Resolve { query } => {
                    let endpoints = vec![Underlay(endpoint)];
                    let answer = Resolved {
                        ticket: target.ticket.clone(),
                        endpoints,
                        relays: vec![],
                    };
                    mesh.handle_resolved(query, Some(answer), view);
                }
                Output::Admit { device, .. } => {
                    mesh.handle_admitted(device, Admission::Granted, view);
                }
                Output::Send { to, bytes } => sent += socket.send_to(&bytes, to.to.0)?,
                Output::SetPeer { wireguard_key, .. } => answered.key = Some(wireguard_key),
                Output::ForgetOldKey { .. }
                | Output::Release { .. }
                | Output::Reject { .. }
                | Output::RemovePeer { .. }
                | Output::Tunnel(_)
                | Output::PathChanged { .. }
                | Output::PathLost { .. }
                | Output::HomeRelays { .. }
                | Output::OpenLink { .. }
                | Output::CloseLink { .. }
                | Output::Refused { .. }
                | Output::PskFailed { .. }
                | Output::ItemArrived { .. }
                | Output::ItemForked { .. }
                | Output::Member { .. }
                | Output::Remember(_)
                | Output::Forget(_) => {}
            }
        }
        anyhow::ensure!(sent > 0, "the machine did not introduce itself");
        let Ok((n, from)) = socket.recv_from(&mut datagram) else {
            return Ok(answered);
        };
        answered.datagrams += 1;
        let from = Underlay(from).into();
        mesh.handle_datagram(from, datagram.get(..n).unwrap_or_default(), view);
    }
}

#[derive(Decode)]
struct Slot {
    #[cbor(n(0), with = "minicbor::bytes")]
    key: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    introduction: Vec<u8>,
    #[cbor(n(3), with = "minicbor::bytes")]
    ticket: Vec<u8>,
}

/// Makes a device's statements of the keys on its disk, with another WireGuard key.
///
/// # Errors
///
/// When the disk holds no identity.
pub(super) fn insider(
    state: &Path,
    target: &Target,
    wireguard_key: X25519Public,
    now: Now,
) -> Result<OwnIdentity> {
    let slot: Slot = minicbor::decode(&fs::read(state.join("identity/current"))?)?;
    let identity = SoftwareP256::from_pkcs8_der(&slot.key)?;
    let standing = Standing::new(None);
    // The slot holds the ticket of the enrollment; a newer one came as a resource.
    let held = Target::read(state)?.ticket;
    let ticket = match target.trust.verify_ticket(&held, &standing, now) {
        Ok(ticket) => ticket,
        Err(_) => target.trust.verify_ticket(&slot.ticket, &standing, now)?,
    };
    let binding = Binding {
        id: ticket.id,
        wireguard_key,
        sequence: now.wall.secs(),
        not_after_secs: now.wall.secs() + DAY,
    };
    let signed = sign_binding(&binding, &identity)?;
    let binding = hedgerow_identity::statement::verify_binding(&signed, &ticket, now)?;
    let secret = <[u8; 32]>::try_from(slot.introduction.as_slice())?;
    Ok(OwnIdentity {
        ticket,
        binding,
        introduction: IntroductionSecret::from_bytes(secret),
        previous_introduction: None,
    })
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
