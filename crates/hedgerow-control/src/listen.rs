//! Accepting connections: bounded before any TLS work, then sent where their ALPN says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_identity::certificate::{PeerIdentity, Purpose, RefusedCertificate, check_leaf};
use hedgerow_model::event::{Event, EventKind};
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::api;
use crate::control::Controller;
use crate::crowd::{Crowd, Place};
use crate::distribute;
use crate::enroll;
use crate::hub::Counters;
use crate::tls::{Speaks, Tls};

/// How long a connection may take to say what it wants. It takes no turn from anybody meanwhile.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How long a handshake may take, once it has its turn.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may wait for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(20);
/// At most one event about refused certificates in this time.
const REFUSED_EVERY: Duration = Duration::from_secs(10);
/// How long a connection may live whose client proved nothing, in all.
const STRANGER_WITHIN: Duration = Duration::from_secs(15);
/// Connections of operators at once.
const OPERATORS_MAX: usize = 256;

/// The front door.
pub(crate) struct Door {
    /// Everything else.
    pub(crate) control: Arc<Controller>,
    /// Configurations by ALPN.
    pub(crate) tls: Arc<Tls>,
    /// The REST service.
    pub(crate) api: axum::Router,
    handshakes: Semaphore,
    /// Those whose handshake is not done.
    arriving: Arc<Crowd>,
    /// Those who proved nothing: they compete with each other alone.
    strangers: Arc<Crowd>,
    operators: Semaphore,
    refused_at: std::sync::Mutex<Option<hedgerow_model::Mono>>,
}

impl Door {
    /// Makes the door.
    pub(crate) fn new(control: Arc<Controller>, tls: Arc<Tls>) -> Self {
        let limits = &control.config.limits;
        Self {
            handshakes: Semaphore::new(limits.handshakes_max),
            arriving: Crowd::new(limits.waiting_max, limits.handshakes_max),
            strangers: Crowd::new(limits.waiting_max, limits.handshakes_max),
            operators: Semaphore::new(OPERATORS_MAX),
            refused_at: std::sync::Mutex::default(),
            api: api::router(control.clone()),
            tls,
            control,
        }
    }

    /// Accepts until `stop` says otherwise.
    pub(crate) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.changed() => return,
            };
            match accepted {
                Ok((stream, source)) => self.clone().accepted(stream, plain(source)),
                Err(error) => {
                    // Out of descriptors: those in use will be given back.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn accepted(self: Arc<Self>, stream: TcpStream, source: SocketAddr) {
        Counters::add(&self.control.hub.counters.accepted);
        // Closed at once: agents come back after a jittered time.
        let Some(place) = self.or_shed(self.arriving.enter(source.ip())) else {
            return;
        };
        tokio::spawn(async move {
            // Each stage in its own allocation: a connection that lives for months holds what its last
            // stage needs, not what the largest of all needs.
            let handshaken = Box::pin(self.handshake(stream, &place)).await;
            drop(place);
            if let Some((speaks, stream)) = handshaken {
                self.serve(speaks, stream, source).await;
            }
        });
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        place: &Place,
    ) -> Option<(Speaks, Box<TlsStream<TcpStream>>)> {
        // Small messages must not wait for each other.
        stream.set_nodelay(true).ok()?;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let start = self.in_time(HELLO_WITHIN, hello).await?;
        let turns = async {
            // First among those of the same source: only then among all.
            let own = place.turns().acquire().await.ok()?;
            Some((own, self.handshakes.acquire().await.ok()?))
        };
        let _turn = tokio::time::timeout(TURN_WITHIN, turns).await.ok()??;
        let (speaks, config) = self.tls.choose(&start.client_hello());
        let shake = start.into_stream(config);
        let stream = self.in_time(HANDSHAKE_WITHIN, shake).await?;
        Some((speaks, Box::new(stream)))
    }

    /// Waits for a step of a handshake; counts it when it fails.
    async fn in_time<T>(
        &self,
        within: Duration,
        step: impl Future<Output = std::io::Result<T>>,
    ) -> Option<T> {
        let done = tokio::time::timeout(within, step).await.ok();
        if let Some(Err(error)) = &done {
            tracing::debug!(%error, "handshake failed");
        }
        let done = done.and_then(Result::ok);
        if done.is_none() {
            Counters::add(&self.control.hub.counters.handshakes_failed);
        }
        done
    }

    async fn serve(
        self: Arc<Self>,
        speaks: Speaks,
        stream: Box<TlsStream<TcpStream>>,
        source: SocketAddr,
    ) {
        match speaks {
            Speaks::Enroll => {
                if let Some(_place) = self.or_shed(self.strangers.enter(source.ip())) {
                    let served = enroll::serve(self.control.clone(), stream, source.ip());
                    Box::pin(served).await;
                }
            }
            Speaks::Http => {
                let caller = api::Caller::new(self.judge(&stream, Purpose::Operator));
                if caller.is_operator() {
                    if let Some(_place) = self.or_shed(self.operators.try_acquire().ok()) {
                        Box::pin(api::serve(self.api.clone(), stream, caller)).await;
                    }
                } else if let Some(_place) = self.or_shed(self.strangers.enter(source.ip())) {
                    let served = api::serve(self.api.clone(), stream, caller);
                    // Whoever is told to show a certificate has been told by then.
                    drop(tokio::time::timeout(STRANGER_WITHIN, Box::pin(served)).await);
                }
            }
            Speaks::Sync => match self.judge(&stream, Purpose::Device) {
                Some(Ok(peer)) => {
                    let Some(device) = peer.device().map(|(id, _)| id) else {
                        return;
                    };
                    let source = source.to_string();
                    let served =
                        distribute::serve(self.control.clone(), stream, peer, device, source);
                    Box::pin(served).await;
                }
                Some(Err(refused)) => {
                    self.refused(&refused, source);
                    if let Some(_place) = self.or_shed(self.strangers.enter(source.ip())) {
                        let why = refused.to_string();
                        let told = Box::pin(distribute::refuse(*stream, &why));
                        drop(tokio::time::timeout(STRANGER_WITHIN, told).await);
                    }
                }
                None => {}
            },
        }
    }

    /// Passes on a place for a connection's whole life; without one the connection is closed at once.
    fn or_shed<T>(&self, place: Option<T>) -> Option<T> {
        if place.is_none() {
            Counters::add(&self.control.hub.counters.shed);
        }
        place
    }

    /// Decides whether the client's certificate is to be believed.
    fn judge(
        &self,
        stream: &TlsStream<TcpStream>,
        purpose: Purpose<'_>,
    ) -> Option<Result<PeerIdentity, RefusedCertificate>> {
        let (_, connection) = stream.get_ref();
        let leaf = connection.peer_certificates()?.first()?;
        let snapshot = self.control.snapshot();
        Some(check_leaf(
            leaf,
            &snapshot.trust,
            &snapshot.standing,
            purpose,
            self.control.clock.now(),
        ))
    }

    /// Strangers can come as often as they like: an event says so now and then.
    fn refused(&self, refused: &RefusedCertificate, source: SocketAddr) {
        Counters::add(&self.control.hub.counters.refused);
        let now = self.control.clock.now();
        let due = {
            let mut last = self
                .refused_at
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let due = last.is_none_or(|at| now.mono.since(at) >= REFUSED_EVERY);
            if due {
                *last = Some(now.mono);
            }
            due
        };
        if due {
            self.control.event(
                Event::new(now.wall, EventKind::MessageRefused)
                    .detail("reason", refused)
                    .detail("source", source),
            );
        }
    }
}

/// Returns the address as people write it: a socket for both IP versions shows IPv4 as
/// `::ffff:a.b.c.d`.
fn plain(source: SocketAddr) -> SocketAddr {
    SocketAddr::new(source.ip().to_canonical(), source.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_shown_as_ipv4() {
        for (seen, shown) in [
            ("[::ffff:192.0.2.7]:40000", "192.0.2.7:40000"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("[fd00::7]:40000", "[fd00::7]:40000"),
        ] {
            assert_eq!(plain(seen.parse().unwrap()).to_string(), shown);
        }
    }
}
