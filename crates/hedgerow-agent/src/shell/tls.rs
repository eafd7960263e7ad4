//! TLS 1.3 to a controller or a relay: one provider, our own rules for who may be our server.
//!
//! Certificates of servers are judged by `hedgerow_identity::certificate::check_leaf` alone: against the
//! manifest, with purpose and revocation. No name in them matters, because no name is what we trust.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_identity::certificate::{Access, Purpose, check_leaf};
use hedgerow_identity::error::RefusedCertificate;
use hedgerow_identity::standing::Standing;
use hedgerow_identity::trust::Trust;
use hedgerow_model::Now;
use hedgerow_model::id::DeviceId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName};
use rustls::{ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::identity::Identity;
use crate::failure::{Failure, chain};

/// What a link to a relay speaks.
pub(crate) const LINK_ALPN: &[u8] = b"hedgerow-relay/1";
/// How long connecting and the handshake may take together.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Whom to accept as our server.
#[derive(Debug)]
enum Judge {
    /// Nobody yet: the shell judges the leaf before it says anything (enrollment).
    Later,
    /// A controller, or the manager of our own site.
    Now(Box<(Trust, Standing, Now)>),
    /// One device: a relay that we chose.
    Relay(Box<(Trust, Standing, Now)>, DeviceId),
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    judge: Judge,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (known, relay) = match &self.judge {
            Judge::Later => return Ok(ServerCertVerified::assertion()),
            Judge::Now(known) => (known, None),
            Judge::Relay(known, relay) => (known, Some(*relay)),
        };
        let (trust, standing, now) = &**known;
        let own_site = standing.site();
        let purpose = match relay {
            Some(_) => Purpose::Device,
            None => Purpose::Server { own_site },
        };
        match check_leaf(leaf, trust, standing, purpose, *now) {
            Ok(peer)
                if relay.is_some()
                    && (peer.id().id() != relay || peer.access() != Access::Full) =>
            {
                tracing::warn!(path = %peer.id(), "another than the relay that was called answers");
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(RefusedCertificate::UnknownIssuer) => Err(CertificateError::UnknownIssuer.into()),
            Err(refused) => {
                tracing::warn!(%refused, "the server's certificate is refused");
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Our certificate, the same for every request.
#[derive(Debug)]
struct OurCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OurCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for OurCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Returns the configuration of an enrollment: no certificate of ours, the server judged later.
///
/// # Errors
///
/// Never, in practice.
pub(crate) fn for_enrollment() -> Result<Arc<ClientConfig>, Failure> {
    configure(Judge::Later, None, hedgerow_identity::enroll::ALPN)
}

/// Returns the configuration of a session with `identity`.
///
/// # Errors
///
/// When the identity's key cannot be used.
pub(crate) fn for_session(
    identity: &Identity,
    trust: &Trust,
    standing: &Standing,
    now: Now,
) -> Result<Arc<ClientConfig>, Failure> {
    let judge = Judge::Now(Box::new((trust.clone(), standing.clone(), now)));
    configure(judge, Some(identity), hedgerow_sync::ALPN)
}

/// Returns the configuration of a link to `relay`, which nobody else's certificate opens.
///
/// # Errors
///
/// When the identity's key cannot be used.
pub(crate) fn for_link(
    identity: &Identity,
    (trust, standing): (&Trust, &Standing),
    relay: DeviceId,
    now: Now,
) -> Result<Arc<ClientConfig>, Failure> {
    let judge = Judge::Relay(Box::new((trust.clone(), standing.clone(), now)), relay);
    configure(judge, Some(identity), LINK_ALPN)
}

/// Returns the configuration of a relay that takes links: whoever comes proves the key of a certificate, which
/// is judged right after the handshake.
///
/// # Errors
///
/// When the identity's key cannot be used.
pub(crate) fn for_links(identity: &Identity) -> Result<Arc<ServerConfig>, Failure> {
    let failed = |e: rustls::Error| Failure::new(hedgerow_model::Fault::Bug, e, "report this");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let ours = OurCertificate(certified(identity, &provider)?);
    let asks = AskForCertificate(provider.signature_verification_algorithms);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(Arc::new(asks))
        .with_cert_resolver(Arc::new(ours));
    config.alpn_protocols = vec![LINK_ALPN.to_vec()];
    // A resumed session would skip the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Has a device prove the key of its certificate.
#[derive(Debug)]
struct AskForCertificate(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AskForCertificate {
    /// Empty keeps the handshake small: devices have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn certified(identity: &Identity, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Failure> {
    let bug = |e: String| Failure::new(hedgerow_model::Fault::Bug, e, "report this");
    let key = identity.keys.identity.to_pkcs8_der();
    let key = key.map_err(|e| bug(e.to_string()))?;
    let key = PrivatePkcs8KeyDer::from(key.as_slice()).clone_key();
    let chain = identity.chain.iter().cloned().map(CertificateDer::from);
    let signer = provider.key_provider.load_private_key(key.into());
    let signer = signer.map_err(|e| bug(e.to_string()))?;
    Ok(Arc::new(CertifiedKey::new(chain.collect(), signer)))
}

fn configure(
    judge: Judge,
    identity: Option<&Identity>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, Failure> {
    let failed = |e: rustls::Error| Failure::new(hedgerow_model::Fault::Bug, e, "report this");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier {
        provider: provider.clone(),
        judge,
    });
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let ours = OurCertificate(certified(identity, &provider)?);
            builder.with_client_cert_resolver(Arc::new(ours))
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session would not be judged anew.
    config.resumption = Resumption::disabled();
    config.enable_sni = true;
    Ok(Arc::new(config))
}

/// Why there is no connection: one line that says what failed.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// No issuer of the manifest that we hold signed the server's certificate: a newer manifest may
    /// name it.
    UnknownIssuer(String),
    /// The name, the connection, or the handshake.
    Failed(String),
}

impl ConnectError {
    /// Returns the line.
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::UnknownIssuer(text) | Self::Failed(text) => text,
        }
    }

    fn of_handshake(endpoint: &str, error: &std::io::Error) -> Self {
        let text = format!("{endpoint}: no TLS session: {}", chain(error));
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let is_unknown = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .is_some_and(|e| *e == unknown);
        if is_unknown {
            Self::UnknownIssuer(text)
        } else {
            Self::Failed(text)
        }
    }
}

/// Connects to `endpoint`, `host:port`.
///
/// # Errors
///
/// One line that says what failed.
pub(crate) async fn connect(
    endpoint: &str,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let attempt = async {
        let failed =
            |e: std::io::Error| ConnectError::Failed(format!("cannot connect to {endpoint}: {e}"));
        let stream = TcpStream::connect(endpoint).await.map_err(failed)?;
        // Frames are small and urgent; a delay of one would delay a quarantine.
        stream.set_nodelay(true).map_err(failed)?;
        // What stands in the socket cannot be overtaken.
        socket2::SockRef::from(&stream)
            .set_tcp_notsent_lowat(hedgerow_sync::frame::UNSENT_BYTES_MAX)
            .map_err(failed)?;
        let name = server_name(endpoint).map_err(ConnectError::Failed)?;
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|e| ConnectError::of_handshake(endpoint, &e))
    };
    match tokio::time::timeout(CONNECT_WITHIN, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Failed(format!(
            "{endpoint} does not answer within {} s",
            CONNECT_WITHIN.as_secs()
        ))),
    }
}

fn server_name(endpoint: &str) -> Result<ServerName<'static>, String> {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(ServerName::from(address));
    }
    ServerName::try_from(host.to_owned()).map_err(|_e| format!("`{host}` is not a host name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_offer_to_a_controller_is_post_quantum() {
        let config = for_enrollment().unwrap();
        let groups = &config.crypto_provider().kx_groups;
        let first = groups.first().map(|group| group.name());
        assert_eq!(first, Some(rustls::NamedGroup::X25519MLKEM768));
    }
}
