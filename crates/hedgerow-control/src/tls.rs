//! TLS 1.3, one port: the configuration is chosen by ALPN before a certificate is asked for.
//!
//! | ALPN | client certificate | then |
//! |---|---|---|
//! | `hedgerow/1` | required | `distribute` |
//! | `hedgerow-enroll/1` | not asked for | `enroll` |
//! | `h2`, `http/1.1`, none | asked for | `api` |
//!
//! The handshake proves that the client holds its key. Whether the certificate is to be believed is
//! decided right after it, by `hedgerow_identity::certificate::check_leaf`, so that the reason can be
//! told and recorded.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Agents.
    Sync,
    /// Devices without an identity.
    Enroll,
    /// Operators.
    Http,
}

/// The configurations, and the controller's own certificate, which can be replaced.
#[derive(Debug)]
pub(crate) struct Tls {
    own: Arc<Own>,
    sync: Arc<ServerConfig>,
    enroll: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
}

impl Tls {
    /// Makes the configurations for a certificate chain and its PKCS#8 key.
    pub(crate) fn new(chain: &[Vec<u8>], key_der: &[u8]) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let own = Arc::new(Own {
            key: RwLock::new(certified(chain, key_der, &provider)?),
            provider: provider.clone(),
        });
        let ask = |mandatory| {
            Arc::new(AskForCertificate {
                mandatory,
                algorithms: provider.signature_verification_algorithms,
            })
        };
        let config = |verifier: Option<Arc<AskForCertificate>>, alpn: &[&[u8]]| {
            let builder = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?;
            let mut config = match verifier {
                Some(verifier) => builder.with_client_cert_verifier(verifier),
                None => builder.with_no_client_auth(),
            }
            .with_cert_resolver(own.clone());
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
            // A resumed session would skip the certificate.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok::<_, Error>(Arc::new(config))
        };
        Ok(Self {
            sync: config(Some(ask(true)), &[hedgerow_sync::ALPN])?,
            enroll: config(None, &[hedgerow_identity::enroll::ALPN])?,
            http: config(Some(ask(false)), &[b"h2", b"http/1.1"])?,
            own,
        })
    }

    /// Shows another certificate from now on.
    pub(crate) fn replace(&self, chain: &[Vec<u8>], key_der: &[u8]) -> Result<(), Error> {
        let new = certified(chain, key_der, &self.own.provider)?;
        *self.own.key.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Chooses by what the client offers to speak.
    pub(crate) fn choose(&self, hello: &ClientHello<'_>) -> (Speaks, Arc<ServerConfig>) {
        let mut offers_sync = false;
        let mut offers_enroll = false;
        for protocol in hello.alpn().into_iter().flatten() {
            offers_sync |= protocol == hedgerow_sync::ALPN;
            offers_enroll |= protocol == hedgerow_identity::enroll::ALPN;
        }
        match (offers_sync, offers_enroll) {
            (true, _) => (Speaks::Sync, self.sync.clone()),
            (false, true) => (Speaks::Enroll, self.enroll.clone()),
            (false, false) => (Speaks::Http, self.http.clone()),
        }
    }
}

fn certified(
    chain: &[Vec<u8>],
    key_der: &[u8],
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, Error> {
    let key = PrivateKeyDer::try_from(key_der.to_vec())
        .map_err(|reason| Error::General(reason.to_owned()))?;
    let chain = chain.iter().cloned().map(CertificateDer::from).collect();
    Ok(Arc::new(CertifiedKey::from_der(chain, key, provider)?))
}

#[derive(Debug)]
struct Own {
    key: RwLock<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        Some(key.clone())
    }
}

/// Asks for a certificate and has the client prove its key; see the module's description.
#[derive(Debug)]
struct AskForCertificate {
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// Empty keeps the handshake small: clients have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
