//! A simulated device: real keys, real enrollment, real TLS, real session; no kernel.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hedgerow_identity::csr;
use hedgerow_identity::enroll::wire::{
    EnrollReply, EnrollRequest, FrameBuffer, Hello, Issued, frame,
};
use hedgerow_identity::enroll::{self, EXPORTER_BYTES, EXPORTER_LABEL, Token};
use hedgerow_identity::key::SoftwareP256;
use hedgerow_model::Mono;
use hedgerow_model::id::{Digest, Revision};
use hedgerow_model::statement::X25519Public;
use hedgerow_sync::agent::{Holdings, Opening, Output};
use hedgerow_sync::message::{Stage, Update, Verified};
use hedgerow_sync::{AgentSession, Backoff};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc::Sender;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock;
use crate::entropy::{SystemRandom, bytes};

/// Devices that come from one address.
const DEVICES_PER_SOURCE: usize = 100;

/// What happened to a device, for whoever counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Its session is open.
    Welcomed,
    /// It acknowledged a revision as verified.
    Verified(Revision),
    /// A connection ended; it will try again.
    Lost,
    /// It was told to come back later.
    Busy,
}

/// An enrolled device.
#[derive(Debug)]
pub(crate) struct Device {
    from: Ipv4Addr,
    config: Arc<ClientConfig>,
    introduction_key: X25519Public,
    generation: u64,
    holdings: Holdings,
    verified: Option<Verified>,
}

/// Believes any server: what is measured is the controller, whose certificate the real agent judges.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn config(
    alpn: &[u8],
    own: Option<(Vec<CertificateDer<'static>>, Vec<u8>)>,
) -> Result<ClientConfig> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match own {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    // A fleet that comes back cold has no tickets.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

async fn connect(
    config: Arc<ClientConfig>,
    from: Ipv4Addr,
    to: SocketAddr,
) -> Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::IpAddress(to.ip().into());
    Ok(TlsConnector::from(config).connect(name, stream).await?)
}

/// Gets certificate and ticket for a key with a token.
///
/// # Errors
///
/// When the controller refuses or does not answer.
pub(crate) async fn obtain(
    (from, to): (Ipv4Addr, SocketAddr),
    token: &Token,
    name: String,
    key: &SoftwareP256,
    introduction_key: X25519Public,
) -> Result<Box<Issued>> {
    let request = csr::make(key)?;
    let mut stream = connect(Arc::new(config(enroll::ALPN, None)?), from, to).await?;
    let mut exporter = [0u8; EXPORTER_BYTES];
    stream
        .get_ref()
        .1
        .export_keying_material(&mut exporter, EXPORTER_LABEL, None)?;
    let mut buffer = FrameBuffer::new(enroll::wire::REPLY_BYTES_MAX);
    Hello::decode_body(&message(&mut stream, &mut buffer).await?)?;
    let ask = EnrollRequest {
        token: Some(token.id()),
        signature: Some(token.sign(&exporter, &request)?.into()),
        csr: request,
        introduction_key,
        agent_version: "fleet".to_owned(),
        hostname: name,
        name: None,
    };
    stream.write_all(&frame(&ask)).await?;
    stream.flush().await?;
    let reply = EnrollReply::decode_body(&message(&mut stream, &mut buffer).await?)?;
    let EnrollReply::Issued(issued) = reply else {
        bail!("not enrolled: {reply:?}");
    };
    Ok(issued)
}

impl Device {
    /// Enrolls a new device with a token.
    ///
    /// # Errors
    ///
    /// When the controller refuses or does not answer.
    pub(crate) async fn enroll(to: SocketAddr, token: &Token, number: usize) -> Result<Self> {
        let from = source_of(number)?;
        let key = SoftwareP256::generate(&mut SystemRandom)?;
        let introduction_key = X25519Public(bytes());
        let name = format!("fleet-{number}");
        let issued = obtain((from, to), token, name, &key, introduction_key).await?;
        let chain = issued
            .chain
            .iter()
            .map(|c| CertificateDer::from(c.to_vec()))
            .collect();
        let own = Some((chain, key.to_pkcs8_der()?.to_vec()));
        Ok(Self {
            from,
            config: Arc::new(config(hedgerow_sync::ALPN, own)?),
            introduction_key,
            generation: 0,
            holdings: Holdings::default(),
            verified: None,
        })
    }

    /// Forgets what it holds: the next connection is that of a device which was never connected.
    pub(crate) fn forget(&mut self) {
        self.holdings = Holdings::default();
        self.verified = None;
    }

    /// Stays connected until dropped, as an agent does: with back-off, and doing as it is told.
    pub(crate) async fn run(mut self, to: SocketAddr, zero: Instant, news: Sender<News>) {
        let mut backoff = Backoff::new(u64::from_ne_bytes(bytes()));
        loop {
            let now = mono(zero);
            let again = match self.session(to, zero, &news).await {
                Ok(Some(wait)) => {
                    news.send(News::Busy).await.unwrap_or_default();
                    backoff.handle_busy(wait, now)
                }
                Ok(None) => {
                    backoff.handle_success();
                    backoff.handle_failure(now)
                }
                Err(_lost) => backoff.handle_failure(now),
            };
            if news.send(News::Lost).await.is_err() {
                return;
            }
            tokio::time::sleep(again.since(mono(zero))).await;
        }
    }

    /// One connection; returns how long to wait when the controller was busy.
    async fn session(
        &mut self,
        to: SocketAddr,
        zero: Instant,
        news: &Sender<News>,
    ) -> Result<Option<Duration>> {
        let mut stream = connect(Arc::clone(&self.config), self.from, to).await?;
        self.generation += 1;
        let mut session =
            AgentSession::new(self.opening(), u64::from_ne_bytes(bytes()), mono(zero));
        let mut input = vec![0u8; 2048];
        loop {
            while let Some(frame) = session.next_frame() {
                stream.write_all(&frame).await?;
            }
            stream.flush().await?;
            let wait = session.deadline().0.since(mono(zero));
            match tokio::time::timeout(wait, stream.read(&mut input)).await {
                Ok(Ok(0)) => return Ok(None),
                Ok(Ok(n)) => {
                    let came = input.get(..n).unwrap_or_default();
                    session.handle_bytes(came, mono(zero))?;
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_elapsed) => session.handle_timeout(mono(zero)),
            }
            while let Some(output) = session.poll() {
                match output {
                    Output::Welcomed(_) => news.send(News::Welcomed).await.unwrap_or_default(),
                    Output::Apply(update) => {
                        let partial = update.partial;
                        let revision = update.revision;
                        self.apply(&mut session, update)?;
                        if !partial {
                            news.send(News::Verified(revision))
                                .await
                                .unwrap_or_default();
                        }
                    }
                    Output::Busy(wait) => return Ok(Some(wait)),
                    Output::Dismissed(why) | Output::Closed(why) => bail!(why),
                    Output::Held(why) => bail!(why),
                    Output::Refused { reason, .. } => bail!(reason),
                    Output::HandUpWanted(_)
                    | Output::Beacon(..)
                    | Output::Renewed(_)
                    | Output::RenewRefused { .. }
                    | Output::Resolved { .. }
                    | Output::EventsStored(_)
                    | Output::FlowsWanted(_)
                    | Output::Command(_) => {}
                }
            }
        }
    }

    /// Takes an update as if a kernel had verified it.
    fn apply(&mut self, session: &mut AgentSession, update: Update) -> Result<()> {
        let revision = update.revision;
        self.holdings.heads.retain(|head| {
            let replaced = update.set.iter().any(|r| r.kind == head.kind);
            !replaced && !update.remove.contains(&head.kind)
        });
        for resource in &update.set {
            self.holdings.heads.push(resource.head());
            self.holdings.marks.insert(resource.kind, resource.version);
        }
        self.holdings.heads.sort_unstable();
        if !update.partial {
            self.holdings.revision = Some(revision);
        }
        let table_hash = Digest::of(&revision.number.to_be_bytes());
        self.verified = Some(Verified {
            revision,
            table_hash,
        });
        session.handle_verdict(revision, Stage::Received, self.holdings.clone())?;
        session.handle_verdict(revision, Stage::Verified(table_hash), self.holdings.clone())?;
        Ok(())
    }

    fn opening(&self) -> Opening {
        Opening {
            agent_version: "fleet".to_owned(),
            boot_id: [7; 16],
            generation: self.generation,
            verified: self.verified,
            holdings: self.holdings.clone(),
            revocations: Revision::default(),
            manifest: 1,
            ticket_epoch: 1,
            endpoints: Vec::new(),
            introduction_key: self.introduction_key,
        }
    }
}

/// Returns where a device connects from: behind one address are as many as behind a site's translator.
fn source_of(number: usize) -> Result<Ipv4Addr> {
    let site = u16::try_from(number / DEVICES_PER_SOURCE)?.to_be_bytes();
    Ok(Ipv4Addr::new(127, 1, site[0], site[1]))
}

fn mono(zero: Instant) -> Mono {
    Mono(clock::now().duration_since(zero))
}

async fn message(stream: &mut TlsStream<TcpStream>, buffer: &mut FrameBuffer) -> Result<Vec<u8>> {
    let mut input = vec![0u8; 8192];
    loop {
        if let Some(body) = buffer.pop()? {
            return Ok(body);
        }
        let n = stream.read(&mut input).await?;
        anyhow::ensure!(n > 0, "the controller hung up");
        buffer.push(input.get(..n).context("what was read")?);
    }
}
