//! A relay's port for links: bounded before any TLS work, judged right after it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::carry::{self, Counters};
use super::{Admitted, Report, TLS_BYTES_MAX};
use crate::shell::run::Input;
use crate::shell::tls::LINK_ALPN;

/// Handshakes under way; a further connection is closed at once.
pub(super) const HANDSHAKES_MAX: usize = 32;
/// Those of one IPv4 address or IPv6 /64.
pub(super) const HANDSHAKES_PER_SOURCE_MAX: usize = 4;
/// Handshakes begun per second; a connection beyond is closed at once.
pub(super) const HANDSHAKES_PER_SECOND_MAX: u32 = 50;
/// How long one may take, the judgement included.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Connections that wait in the kernel.
const BACKLOG: u32 = 128;
/// The pause after the kernel refused a connection: it is out of something.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Why a connection got no link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many handshakes at once, of all or of its source, or begun in this second.
    Busy,
    /// The handshake failed, took too long, or spoke something else.
    Handshake,
    /// Its certificate is refused.
    Certificate,
    /// There are as many links as there may be.
    Full,
}

impl Refusal {
    pub(super) const ALL: [Self; 4] = [Self::Busy, Self::Handshake, Self::Certificate, Self::Full];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Handshake => "handshake",
            Self::Certificate => "certificate",
            Self::Full => "full",
        }
    }
}

/// How many connections got no link, by reason.
#[derive(Debug, Default)]
pub(super) struct Refused([AtomicU64; Refusal::ALL.len()]);

impl Refused {
    pub(super) fn add(&self, why: Refusal) {
        if let Some(counter) = Refusal::ALL
            .iter()
            .position(|r| *r == why)
            .and_then(|place| self.0.get(place))
        {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|c| c.load(Ordering::Relaxed));
        Refusal::ALL.iter().map(|r| r.as_str()).zip(counts)
    }
}

/// What every handshake needs.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) counters: Arc<Counters>,
    pub(super) refused: Arc<Refused>,
}

/// A port that is listened on. Dropping it ends that; links that stand stay.
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    config: watch::Sender<Arc<ServerConfig>>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub(super) fn open(
        address: SocketAddr,
        config: Arc<ServerConfig>,
        shared: Shared,
    ) -> std::io::Result<Self> {
        let listener = bind(address)?;
        let address = listener.local_addr()?;
        let (config, configs) = watch::channel(config);
        let task = tokio::spawn(accept(listener, configs, shared));
        Ok(Self {
            address,
            config,
            task,
        })
    }

    /// Shows another certificate from now on.
    pub(super) fn replace(&self, config: Arc<ServerConfig>) {
        self.config.send_replace(config);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Binds for both families where the address is the unspecified one and this machine has both.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let make = |address: SocketAddr| {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
        TcpListener::from_std(socket.into())
    };
    let unspecified = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    make(address).or_else(|error| match unspecified {
        true => make((std::net::Ipv4Addr::UNSPECIFIED, address.port()).into()).or(Err(error)),
        false => Err(error),
    })
}

/// Whom connections are counted by.
fn source(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        // The upper half; no network is all zeros there, so it is no IPv4 address.
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 64).unwrap_or(0),
    }
}

/// Who is being shaken hands with.
#[derive(Default)]
struct Gate {
    by_source: BTreeMap<u64, usize>,
    total: usize,
    second: Option<tokio::time::Instant>,
    begun: u32,
}

impl Gate {
    fn enter(&mut self, source: u64, now: tokio::time::Instant) -> bool {
        let is_over = |began| now.duration_since(began) >= Duration::from_secs(1);
        if self.second.is_none_or(is_over) {
            self.second = Some(now);
            self.begun = 0;
        }
        let of_source = self.by_source.get(&source).copied().unwrap_or(0);
        let may = self.total < HANDSHAKES_MAX
            && of_source < HANDSHAKES_PER_SOURCE_MAX
            && self.begun < HANDSHAKES_PER_SECOND_MAX;
        if may {
            self.begun += 1;
            self.total += 1;
            self.by_source.insert(source, of_source + 1);
        }
        may
    }

    fn leave(&mut self, source: u64) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.by_source.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

async fn accept(
    listener: TcpListener,
    configs: watch::Receiver<Arc<ServerConfig>>,
    shared: Shared,
) {
    let mut gate = Gate::default();
    let mut shaking: JoinSet<()> = JoinSet::new();
    let mut sources: HashMap<tokio::task::Id, u64> = HashMap::new();
    loop {
        tokio::select! {
            Some(done) = shaking.join_next_with_id() => {
                let id = done.map_or_else(|error| error.id(), |(id, ())| id);
                if let Some(source) = sources.remove(&id) {
                    gate.leave(source);
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let source = source(from.ip());
                    if !gate.enter(source, tokio::time::Instant::now()) {
                        shared.refused.add(Refusal::Busy);
                        continue;
                    }
                    let (config, shared) = (configs.borrow().clone(), shared.clone());
                    let task = shaking.spawn(shake(stream, from, config, shared));
                    sources.insert(task.id(), source);
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
}

/// Shakes hands, has the certificate judged, and lets the link live on its own.
async fn shake(stream: TcpStream, from: SocketAddr, config: Arc<ServerConfig>, shared: Shared) {
    let greeted = async {
        super::prepare(&stream).ok()?;
        let mut stream = TlsAcceptor::from(config).accept(stream).await.ok()?;
        let connection = stream.get_mut().1;
        connection.set_buffer_limit(Some(TLS_BYTES_MAX));
        if connection.alpn_protocol() != Some(LINK_ALPN) {
            return None;
        }
        let leaf = connection.peer_certificates()?.first()?.to_vec();
        let (reply, verdict) = oneshot::channel();
        let report = Report::Proven { from, leaf, reply };
        shared.inputs.send(Input::Link(report)).await.ok()?;
        Some((stream, verdict.await.ok()?))
    };
    match tokio::time::timeout(HANDSHAKE_WITHIN, greeted).await {
        Ok(Some((stream, Ok(admitted)))) => {
            tokio::spawn(serve(stream, admitted, shared));
        }
        Ok(Some((_, Err(why)))) => shared.refused.add(why),
        Ok(None) | Err(_) => shared.refused.add(Refusal::Handshake),
    }
}

async fn serve(stream: TlsStream<TcpStream>, admitted: Admitted, shared: Shared) {
    let Admitted {
        serial,
        socket,
        stop,
    } = admitted;
    let ended = carry::carry(stream, &socket, &shared.counters, stop).await;
    let reason = ended.to_string();
    // Nobody listens any more only when the agent ends.
    drop(
        shared
            .inputs
            .send(Input::Link(Report::Ended { serial, reason }))
            .await,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all_handshakes_and_all_together_are_bounded() {
        let mut gate = Gate::default();
        let now = tokio::time::Instant::now();
        let entered = (0..100).filter(|_| gate.enter(1, now)).count();
        assert_eq!(entered, HANDSHAKES_PER_SOURCE_MAX);
        let others = (2..100).filter(|source| gate.enter(*source, now)).count();
        assert_eq!(others + entered, HANDSHAKES_MAX);
        gate.leave(1);
        assert!(gate.enter(1, now) && !gate.enter(1, now));
    }

    #[test]
    fn handshakes_begin_at_a_bounded_rate() {
        let mut gate = Gate::default();
        let now = tokio::time::Instant::now();
        for second in [now, now + Duration::from_secs(1)] {
            let mut entered = 0;
            for source in 0..200 {
                if gate.enter(source, second) {
                    gate.leave(source);
                    entered += 1;
                }
            }
            assert_eq!(entered, HANDSHAKES_PER_SECOND_MAX);
            assert!(gate.by_source.is_empty() && gate.total == 0);
        }
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
