//! A scripted agent: enrolls, connects, takes updates, and does as the test says.

use std::convert::Infallible;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hedgerow_identity::certificate::LeafFacts;
use hedgerow_identity::csr;
use hedgerow_identity::enroll::wire::{
    EnrollReply, EnrollRequest, FrameBuffer, Hello, REPLY_BYTES_MAX, frame,
};
use hedgerow_identity::enroll::{
    ALPN, EXPORTER_BYTES, EXPORTER_LABEL, Token, accept_hello, accept_issued,
};
use hedgerow_identity::key::SoftwareP256;
use hedgerow_identity::trust::Trust;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::program::Program;
use hedgerow_model::resource::{Resource, ResourceHead, ResourceKind};
use hedgerow_model::statement::{KeyId, Names, RevocationList, States, Ticket, X25519Public};
use hedgerow_model::{Mono, Now, Wall};
use hedgerow_sync::AgentSession;
use hedgerow_sync::agent::{Holdings, Opening, Output};
use hedgerow_sync::message::{HandUp, Renew, Renewed, Stage, Verified};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::central::{Central, PATIENCE, pause};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// The system's randomness.
pub(crate) struct Random;

impl rand_core::TryRng for Random {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut b = [0; 4];
        self.try_fill_bytes(&mut b)?;
        Ok(u32::from_ne_bytes(b))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut b = [0; 8];
        self.try_fill_bytes(&mut b)?;
        Ok(u64::from_ne_bytes(b))
    }
    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        aws_lc_rs::rand::fill(dst).unwrap();
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Random {}

pub(crate) fn new_key() -> SoftwareP256 {
    SoftwareP256::generate(&mut Random).unwrap()
}

pub(crate) fn new_introduction_key() -> X25519Public {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).unwrap();
    X25519Public(key)
}

fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Now {
        mono: Mono(wall),
        wall: Wall(u64::try_from(wall.as_millis()).unwrap()),
        wall_is_trusted: true,
    }
}

/// What an attacker changes about an enrollment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cheat {
    None,
    /// Signs for another connection.
    OtherExporter,
}

/// Believes every server; what it is, is judged afterwards.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn open(
    port: u16,
    alpn: &[u8],
    own: Option<(&[Vec<u8>], &SoftwareP256)>,
) -> Result<Stream, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match own {
        Some((chain, key)) => {
            let chain = chain.iter().cloned().map(CertificateDer::from).collect();
            let key = PrivateKeyDer::try_from(key.to_pkcs8_der().unwrap().to_vec()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream
            .conn
            .complete_io(&mut stream.sock)
            .map_err(|e| e.to_string())?;
    }
    // Every connection to a controller is closed to who records it for a quantum computer.
    let group = stream
        .conn
        .negotiated_key_exchange_group()
        .map(|g| g.name());
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    Ok(stream)
}

fn receive(stream: &mut Stream) -> Result<Vec<u8>, String> {
    let mut frames = FrameBuffer::new(REPLY_BYTES_MAX);
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).map_err(|e| e.to_string())?;
        if n == 0 {
            return Err("closed".to_owned());
        }
        frames.push(&buffer[..n]);
        if let Some(body) = frames.pop().unwrap() {
            return Ok(body);
        }
    }
}

fn greet(port: u16, genesis: Digest) -> Result<(Stream, Trust), String> {
    let mut stream = open(port, ALPN, None)?;
    let hello = Hello::decode_body(&receive(&mut stream)?).map_err(|e| e.to_string())?;
    let leaf = stream.conn.peer_certificates().unwrap()[0].to_vec();
    let trust = accept_hello(&hello, genesis, &leaf, now()).map_err(|e| e.to_string())?;
    Ok((stream, trust))
}

/// Connects and believes the controller, or not.
pub(crate) fn hello(port: u16, genesis: Digest) -> Result<Trust, String> {
    greet(port, genesis).map(|(_, trust)| trust)
}

/// Asks for an identity.
pub(crate) fn enroll(
    port: u16,
    genesis: Digest,
    token: Option<&Token>,
    key: &SoftwareP256,
    introduction_key: X25519Public,
    cheat: Cheat,
) -> (EnrollReply, Trust) {
    let (mut stream, trust) = greet(port, genesis).unwrap();
    let mut exporter = [0; EXPORTER_BYTES];
    stream
        .conn
        .export_keying_material(&mut exporter, EXPORTER_LABEL, None)
        .unwrap();
    if cheat == Cheat::OtherExporter {
        exporter[0] ^= 1;
    }
    let csr = csr::make(key).unwrap();
    let request = EnrollRequest {
        token: token.map(Token::id),
        signature: token.map(|t| t.sign(&exporter, &csr).unwrap().into()),
        csr,
        introduction_key,
        agent_version: "test".to_owned(),
        hostname: "test-host".to_owned(),
        name: None,
    };
    stream.write_all(&frame(&request)).unwrap();
    stream.flush().unwrap();
    let reply = EnrollReply::decode_body(&receive(&mut stream).unwrap()).unwrap();
    (reply, trust)
}

/// A device's disk.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    trust: Trust,
    key: SoftwareP256,
    introduction: X25519Public,
    chain: Vec<Vec<u8>>,
    resources: Vec<Resource>,
    holdings: Holdings,
    generation: u64,
    ticket_epoch: u64,
    endpoints: Vec<Underlay>,
    is_silent: bool,
}

impl Device {
    pub(crate) fn new(
        reply: EnrollReply,
        trust: Trust,
        key: SoftwareP256,
        introduction: X25519Public,
    ) -> Self {
        let EnrollReply::Issued(issued) = reply else {
            panic!("{reply:?}");
        };
        let enrolled = accept_issued(&issued, trust, &key.public(), &introduction, now()).unwrap();
        let resource = |kind, version, bytes: &[u8]| Resource {
            kind,
            version,
            bytes: bytes.to_vec(),
        };
        let version = Revision {
            timeline: enrolled.ticket.epoch,
            number: enrolled.ticket.not_after_secs,
        };
        let list = &enrolled.revocations;
        let resources = vec![
            resource(ResourceKind::Revocations, list.version, list.bytes()),
            resource(ResourceKind::Ticket, version, enrolled.ticket.bytes()),
        ];
        Self {
            id: issued.device,
            trust: enrolled.trust,
            key,
            introduction,
            chain: enrolled.chain,
            holdings: Holdings {
                revision: None,
                heads: resources.iter().map(Resource::head).collect(),
                marks: resources.iter().map(|r| (r.kind, r.version)).collect(),
            },
            resources,
            generation: 0,
            ticket_epoch: enrolled.ticket.epoch,
            endpoints: Vec::new(),
            is_silent: false,
        }
    }

    /// Says from now on that the mesh reaches it there.
    pub(crate) fn claim(&mut self, endpoint: &str) {
        self.endpoints = vec![endpoint.parse().map(Underlay).unwrap()];
    }

    /// Hands up nothing from now on, whatever is asked for.
    pub(crate) fn fall_silent(&mut self) {
        self.is_silent = true;
    }

    /// Returns what names its key in a revocation.
    pub(crate) fn key_digest(&self) -> Digest {
        self.facts().spki_digest()
    }

    /// Returns the id of its issuer's key.
    pub(crate) fn issuer(&self) -> KeyId {
        self.trust.issuers().next().unwrap().id()
    }

    fn facts(&self) -> LeafFacts {
        LeafFacts::parse(&self.chain[0]).unwrap()
    }

    /// Claims that its agent started so often.
    pub(crate) fn forge_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Starts its agent so many times without reaching the controller.
    pub(crate) fn age(&mut self, starts: u64) {
        self.generation += starts;
    }

    /// Returns a copy of the disk.
    pub(crate) fn copied(&self) -> Self {
        self.clone()
    }

    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(crate) fn address(&self) -> Ipv6Addr {
        let facts = self.facts();
        let v6 = facts.addresses().iter().find_map(|a| match a {
            std::net::IpAddr::V6(a) => Some(*a),
            std::net::IpAddr::V4(_) => None,
        });
        v6.unwrap()
    }

    /// Loses a resource, as a damaged disk would.
    pub(crate) fn forget(&mut self, kind: ResourceKind) {
        self.holdings.heads.retain(|h| h.kind != kind);
        self.resources.retain(|r| r.kind != kind);
    }

    /// Takes a renewed certificate.
    pub(crate) fn take(&mut self, new: &Renewed, key: SoftwareP256) {
        self.chain.clone_from(&new.chain);
        self.key = key;
    }

    /// Connects; the session must open.
    pub(crate) fn connect<'d>(&'d mut self, central: &Central) -> Uplink<'d> {
        self.try_connect(central).unwrap()
    }

    /// Connects, or says why not.
    pub(crate) fn try_connect<'d>(&'d mut self, central: &Central) -> Result<Uplink<'d>, String> {
        let door = self.pass_door(central)?;
        self.greet(door)
    }

    /// Shows its certificate and says nothing yet.
    pub(crate) fn pass_door(&self, central: &Central) -> Result<Door, String> {
        let own = Some((self.chain.as_slice(), &self.key));
        let stream = open(central.port, hedgerow_sync::ALPN, own)?;
        let short = Duration::from_millis(20);
        stream.sock.set_read_timeout(Some(short)).unwrap();
        Ok(Door(stream))
    }

    /// Greets where its certificate was shown.
    pub(crate) fn greet(&mut self, Door(stream): Door) -> Result<Uplink<'_>, String> {
        self.generation += 1;
        let verified = self.holdings.revision.map(|revision| Verified {
            revision,
            table_hash: Digest::default(),
        });
        let revocations = self.decoded::<RevocationList>(ResourceKind::Revocations);
        let opening = Opening {
            agent_version: "test".to_owned(),
            boot_id: [1; 16],
            generation: self.generation,
            verified,
            holdings: self.holdings.clone(),
            revocations: revocations.map_or_else(Revision::default, |l| l.version),
            manifest: self.trust.manifest().version,
            ticket_epoch: self.ticket_epoch,
            endpoints: self.endpoints.clone(),
            introduction_key: self.introduction,
        };
        let mut uplink = Uplink {
            session: AgentSession::new(opening, 1, now().mono),
            stream,
            device: self,
            outputs: Vec::new(),
            updates: 0,
            closed: None,
        };
        uplink.wait("the welcome", |u| u.session.is_open() || u.closed.is_some());
        match uplink.closed.take() {
            Some(why) if !uplink.session.is_open() => Err(why),
            _ => Ok(uplink),
        }
    }

    fn decoded<T: for<'b> minicbor::Decode<'b, ()>>(&self, kind: ResourceKind) -> Option<T> {
        let resource = self.resources.iter().find(|r| r.kind == kind)?;
        let envelope = hedgerow_identity::cose::Envelope::decode(&resource.bytes).unwrap();
        Some(minicbor::decode(envelope.unverified_payload()).unwrap())
    }
}

/// Completes a handshake without a certificate, to say nothing more.
pub(crate) fn silent_stranger(port: u16) -> Result<impl std::io::Read, String> {
    let mut stream = open(port, b"h2", None)?;
    let short = Duration::from_millis(200);
    stream.sock.set_read_timeout(Some(short)).unwrap();
    while stream.conn.is_handshaking() {
        let done = stream.conn.complete_io(&mut stream.sock);
        done.map_err(|e| e.to_string())?;
    }
    Ok(stream)
}

/// Connects from `source` to say nothing, or to say hello and then nothing more.
pub(crate) fn half_open(port: u16, source: [u8; 4], says_hello: bool) -> Option<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).ok()?;
    bind(&fd, &SocketAddr::from((source, 0))).ok()?;
    connect(&fd, &SocketAddr::from(([127, 0, 0, 1], port))).ok()?;
    let mut stream = TcpStream::from(fd);
    if says_hello {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        connection.write_tls(&mut stream).ok()?;
    }
    Some(stream)
}

/// Returns whether the other end has not hung up yet.
pub(crate) fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    loop {
        match (&*stream).read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// A connection whose certificate was shown.
pub(crate) struct Door(Stream);

/// One connection.
pub(crate) struct Uplink<'d> {
    pub(crate) session: AgentSession,
    pub(crate) device: &'d mut Device,
    pub(crate) updates: usize,
    stream: Stream,
    outputs: Vec<Output>,
    closed: Option<String>,
}

impl Uplink<'_> {
    fn step(&mut self) {
        while let Some(frame) = self.session.next_frame() {
            if self
                .stream
                .write_all(&frame)
                .and_then(|()| self.stream.flush())
                .is_err()
            {
                break;
            }
        }
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.end("closed"),
            Ok(n) => {
                if let Err(e) = self.session.handle_bytes(&buffer[..n], now().mono) {
                    self.end(&e.to_string());
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => self.end(&e.to_string()),
        }
        while let Some(output) = self.session.poll() {
            self.act(output);
        }
    }

    fn end(&mut self, why: &str) {
        self.closed.get_or_insert_with(|| why.to_owned());
        pause();
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Apply(update) => {
                self.updates += 1;
                for r in update.set {
                    if r.kind == ResourceKind::Manifest && r.version.number > 1 {
                        // A chain, once there is more than one link.
                        let links: Vec<minicbor::bytes::ByteVec> =
                            minicbor::decode(&r.bytes).unwrap();
                        let links: Vec<Vec<u8>> = links.into_iter().map(Into::into).collect();
                        self.device.trust.adopt_chain(&links).unwrap();
                    }
                    self.verify(&r);
                    self.device.resources.retain(|old| old.kind != r.kind);
                    self.device.resources.push(r);
                }
                self.device
                    .resources
                    .retain(|r| !update.remove.contains(&r.kind));
                let h = &mut self.device.holdings;
                h.heads = self
                    .device
                    .resources
                    .iter()
                    .map(Resource::head)
                    .collect::<Vec<ResourceHead>>();
                for r in &self.device.resources {
                    h.marks.insert(r.kind, r.version);
                }
                if !update.partial {
                    h.revision = Some(update.revision);
                }
                let holdings = h.clone();
                if self.holds(ResourceKind::Ticket) {
                    self.device.ticket_epoch = self.ticket().epoch;
                }
                let stage = Stage::Verified(Digest::default());
                self.session
                    .handle_verdict(update.revision, stage, holdings)
                    .unwrap();
            }
            Output::HandUpWanted(_) if self.device.is_silent => {}
            Output::HandUpWanted(kind) => {
                let found = self.device.resources.iter().find(|r| r.kind == kind);
                let bytes = found.map(|r| r.bytes.clone()).unwrap();
                self.session.hand_up(HandUp { kind, bytes }).unwrap();
            }
            Output::Dismissed(why) | Output::Closed(why) => self.closed = Some(why),
            other @ (Output::Welcomed(_)
            | Output::Refused { .. }
            | Output::Beacon(..)
            | Output::Renewed(_)
            | Output::RenewRefused { .. }
            | Output::Resolved { .. }
            | Output::EventsStored(_)
            | Output::FlowsWanted(_)
            | Output::Command(_)
            | Output::Held(_)
            | Output::Busy(_)) => self.outputs.push(other),
        }
    }

    /// Everything that comes must verify.
    fn verify(&self, r: &Resource) {
        let trust = &self.device.trust;
        match r.kind {
            ResourceKind::Revocations => drop(trust.verify_revocations(&r.bytes).unwrap()),
            ResourceKind::States => drop(trust.verify_states(&r.bytes).unwrap()),
            ResourceKind::Program => drop(trust.verify_program(&r.bytes).unwrap()),
            ResourceKind::Names => {
                let site = &self.ticket().site;
                drop(trust.verify_names(&r.bytes, site).unwrap());
            }
            ResourceKind::Ticket => {
                let key = self.device.key.public();
                drop(
                    trust
                        .verify_own_ticket(&r.bytes, &key, Some(self.device.id))
                        .unwrap(),
                );
            }
            ResourceKind::Manifest | ResourceKind::Config => {}
        }
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < end,
                "never: {what}; closed: {:?}",
                self.closed
            );
            self.step();
        }
    }

    /// Works until a condition holds.
    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        self.wait(what, |u| done(u));
    }

    /// Returns whether something came and was not looked at.
    pub(crate) fn has(&self, wanted: impl Fn(&Output) -> bool) -> bool {
        self.outputs.iter().any(wanted)
    }

    /// Works for a while.
    pub(crate) fn settle(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.step();
        }
    }

    /// Works until something comes, and returns it.
    pub(crate) fn expect(&mut self, what: &str, wanted: impl Fn(&Output) -> bool) -> Output {
        let mut found = None;
        self.wait(what, |u| {
            let at = u.outputs.iter().position(&wanted);
            found = at.map(|i| u.outputs.remove(i));
            found.is_some()
        });
        found.unwrap()
    }

    /// Works until the connection ends, and says why it did.
    pub(crate) fn until_closed(&mut self) -> String {
        self.wait("the end", |u| u.closed.is_some());
        self.closed.clone().unwrap_or_default()
    }

    /// Hands up a statement that nobody asked for.
    pub(crate) fn hand_up(&mut self, kind: ResourceKind, bytes: Vec<u8>) {
        self.session.hand_up(HandUp { kind, bytes }).unwrap();
    }

    pub(crate) fn close(mut self) {
        self.session.bye();
        self.step();
        self.stream.conn.send_close_notify();
        drop(self.stream.flush());
    }

    /// Says something soon.
    pub(crate) fn speak(&mut self) {
        let now = now().mono;
        self.session.ping(now);
        self.session.handle_timeout(now);
    }

    /// Asks for a peer; returns whether it was found.
    pub(crate) fn resolves(&mut self, peer: DeviceId) -> bool {
        let query = hedgerow_model::statement::PeerQuery::Device(peer);
        self.session.resolve(9, query).unwrap();
        let answer = self.expect("an answer", |o| matches!(o, Output::Resolved { id: 9, .. }));
        matches!(answer, Output::Resolved { peer: Some(_), .. })
    }

    pub(crate) fn renew(&mut self, key: &SoftwareP256) {
        let csr = csr::make(key).unwrap();
        let introduction_key = self.device.introduction;
        self.session
            .renew(Renew {
                id: 3,
                csr,
                introduction_key,
            })
            .unwrap();
    }

    pub(crate) fn holds(&self, kind: ResourceKind) -> bool {
        self.device.resources.iter().any(|r| r.kind == kind)
    }

    pub(crate) fn revision(&self) -> Option<Revision> {
        self.device.holdings.revision
    }

    /// Nothing of ours waits to leave.
    pub(crate) fn is_idle(&self) -> bool {
        self.session.is_open()
    }

    fn program(&self) -> Program {
        let resource = self
            .device
            .resources
            .iter()
            .find(|r| r.kind == ResourceKind::Program);
        let bytes = &resource.unwrap().bytes;
        self.device
            .trust
            .verify_program(bytes)
            .unwrap()
            .program()
            .unwrap()
    }

    pub(crate) fn has_rule(&self, id: &str) -> bool {
        self.program().rules.iter().any(|r| r.id.as_str() == id)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let names = self.device.decoded::<Names>(ResourceKind::Names);
        let entries = names.map(|n| n.entries).unwrap_or_default();
        let others = entries.iter().filter(|e| e.id != self.device.id);
        others.map(|e| e.name.to_string()).collect()
    }

    pub(crate) fn manifest_version(&self) -> u64 {
        self.device.trust.manifest().version
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.device.decoded(ResourceKind::Ticket).unwrap()
    }

    pub(crate) fn revocations(&self) -> RevocationList {
        self.device
            .decoded(ResourceKind::Revocations)
            .unwrap_or_default()
    }

    pub(crate) fn states(&self) -> States {
        self.device
            .decoded(ResourceKind::States)
            .unwrap_or_default()
    }
}
