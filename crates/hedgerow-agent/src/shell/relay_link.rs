//! Links over TLS: the mesh's datagrams by TCP 443 to and from a relay, where UDP is blocked.
//!
//! ```text
//!  tunnel ⇄ 127.71.x.y ⇄ task ⇄ TLS (both certificates) ⇄ task ⇄ 127.71.x.y ⇄ the relay's tunnel
//! ```
//!
//! Both tunnels see another address of the other, on their own machine, and nothing else changes: what passes
//! is sealed, who sent it is proven by the tunnel inside, and what it may do is decided where it always is. So a
//! link gives nobody more than UDP would. Who is no device of ours, is revoked or held gets none all the same.
//! When links are wanted is decided by `hedgerow_mesh::relay::Links`; here they are opened, carried and cut.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hedgerow_identity::certificate::{Access, Purpose, check_leaf};
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::is_relay;
use hedgerow_model::program::DeviceState;
use hedgerow_model::{Mono, Now};
use serde_json::{Map, Value, json};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio_rustls::client::TlsStream;

use super::run::{Daemon, Input};
use super::tls;
use crate::failure::chain;

mod carry;
mod frame;
mod listen;

use listen::{Listener, Refusal, Shared};

/// Links that stand, those of this device and those that it takes; a further one is refused.
pub(crate) const LINKS_MAX: usize = 256;
/// Links of one device; a further one takes the place of the oldest, which its network has lost.
pub(crate) const LINKS_PER_DEVICE_MAX: usize = 2;
/// Bytes that TLS holds for a connection that takes nothing; the queue before it has a bound of its own.
const TLS_BYTES_MAX: usize = 32 << 10;
/// Bytes in the kernel that were not sent yet: what stands there cannot be dropped any more.
const UNSENT_BYTES_MAX: u32 = 32 << 10;
/// How long one host of a relay may take to connect and shake hands.
const HOST_WITHIN: Duration = Duration::from_secs(4);
/// How often the certificates of links are judged again, for their age; for all else at once.
const JUDGE_EVERY: Duration = Duration::from_secs(60);
/// The pause before the port is bound again that could not be.
const LISTEN_AGAIN: Duration = Duration::from_secs(30);

/// What tasks report.
#[derive(Debug)]
pub(crate) enum Report {
    /// Somebody proved the key of this certificate; may it have a link?
    Proven {
        /// From where.
        from: SocketAddr,
        /// The certificate.
        leaf: Vec<u8>,
        /// Who waits for the word.
        reply: oneshot::Sender<Result<Admitted, Refusal>>,
    },
    /// The link to a relay stands.
    Standing {
        /// Which.
        serial: u64,
        /// The relay's end.
        far: SocketAddr,
        /// Its certificate, judged again when what is known against it changes.
        leaf: Vec<u8>,
    },
    /// A link ended, or did not come to stand.
    Ended {
        /// Which.
        serial: u64,
        /// Why.
        reason: String,
    },
}

/// A link that may begin.
#[derive(Debug)]
pub(crate) struct Admitted {
    serial: u64,
    socket: UdpSocket,
    stop: oneshot::Receiver<()>,
}

/// Who opened a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// We did, to a relay.
    Ours,
    /// A device did, to this relay.
    Theirs,
}

struct Link {
    device: DeviceId,
    side: Side,
    slot: u16,
    /// Where the tunnel finds the other.
    at: SocketAddr,
    /// The other's end; absent until the link stands.
    far: Option<SocketAddr>,
    leaf: Vec<u8>,
    since: Mono,
    /// The task ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

/// All links, and the port where a relay takes them.
pub(super) struct RelayLinks {
    shared: Shared,
    links: BTreeMap<u64, Link>,
    serials: u64,
    listener: Option<Listener>,
    /// The certificate that the port shows.
    shows: Vec<u8>,
    listen_at: Mono,
    judge_at: Mono,
    error: Option<String>,
}

impl RelayLinks {
    pub(super) fn new(inputs: tokio::sync::mpsc::Sender<Input>) -> Self {
        Self {
            shared: Shared {
                inputs,
                counters: Arc::default(),
                refused: Arc::default(),
            },
            links: BTreeMap::new(),
            serials: 0,
            listener: None,
            shows: Vec::new(),
            listen_at: Mono::ZERO,
            judge_at: Mono::ZERO,
            error: None,
        }
    }

    /// Keeps a link, and opens the end that the tunnel sees.
    fn add(&mut self, mut link: Link, port: u16, stop: oneshot::Receiver<()>) -> Option<Admitted> {
        let used = |slot: &u16| self.links.values().any(|l| l.slot == *slot);
        link.slot = (1..=u16::MAX).find(|slot| !used(slot))?;
        let (socket, at) = match carry::open(link.slot, port) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%error, "no link: its end on this machine cannot be opened");
                return None;
            }
        };
        link.at = at;
        self.serials += 1;
        let serial = self.serials;
        self.links.insert(serial, link);
        Some(Admitted {
            serial,
            socket,
            stop,
        })
    }

    /// Returns the far end of the link that has this address on this machine.
    pub(super) fn far(&self, at: Underlay) -> Option<SocketAddr> {
        let at = at.0.ip().to_canonical();
        let link = self.links.values().find(|l| l.at.ip() == at);
        link?.far
    }
}

impl Daemon {
    /// Listens while this device is a relay in good standing, and shows the certificate in force.
    pub(super) fn tend_links(&mut self, now: Now) {
        if now.mono >= self.links.judge_at {
            self.judge_links(now);
        }
        let is_relay = is_relay(&self.state.ticket().labels) && self.state.own_state().is_none();
        let Some(address) = self.config.relay_listen.filter(|_| is_relay) else {
            self.links.listener = None;
            self.links.error = None;
            return;
        };
        let leaf = self.identities.current().chain.first();
        let leaf = leaf.cloned().unwrap_or_default();
        let stands = self.links.listener.is_some();
        if (stands && leaf == self.links.shows) || now.mono < self.links.listen_at {
            return;
        }
        let config = match tls::for_links(self.identities.current()) {
            Ok(config) => config,
            Err(failure) => {
                tracing::error!(%failure, "no TLS configuration for links");
                return;
            }
        };
        self.links.shows = leaf;
        if let Some(listener) = &self.links.listener {
            listener.replace(config);
            return;
        }
        match Listener::open(address, config, self.links.shared.clone()) {
            Ok(listener) => {
                tracing::info!(address = %listener.address, "taking links over TLS");
                self.links.listener = Some(listener);
                self.links.error = None;
            }
            Err(error) => {
                let text = format!("{address}: {error}");
                if self.links.error.as_ref() != Some(&text) {
                    tracing::warn!(%address, %error, "no links over TLS: the port cannot be bound");
                }
                self.links.error = Some(text);
                self.links.listen_at = now.mono + LISTEN_AGAIN;
            }
        }
    }

    /// Cuts the links of those that what is known now speaks against.
    pub(super) fn judge_links(&mut self, now: Now) {
        self.links.judge_at = now.mono + JUDGE_EVERY;
        let standing = self.links.links.iter().filter(|(_, l)| l.far.is_some());
        let refused: Vec<(u64, String)> = standing
            .filter_map(|(serial, link)| {
                let judged = self.judge(&link.leaf, now);
                Some((*serial, judged.err()?))
            })
            .collect();
        for (serial, reason) in refused {
            self.end_link(serial, &reason, now);
        }
    }

    /// Returns which device a certificate gives a link.
    fn judge(&self, leaf: &[u8], now: Now) -> Result<DeviceId, String> {
        let (trust, standing) = (self.state.trust(), self.state.standing());
        let peer = check_leaf(leaf, trust, standing, Purpose::Device, now);
        let peer = peer.map_err(|refused| refused.to_string())?;
        let device = peer.id().id().filter(|_| peer.access() == Access::Full);
        let device = device.ok_or("the certificate has expired")?;
        if standing.state(device) == Some(DeviceState::Held) {
            return Err("the device is held".to_owned());
        }
        Ok(device)
    }

    fn mesh_port(&self) -> u16 {
        let tunnel = self.tunnel.as_ref();
        tunnel.map_or(self.config.mesh_port, |t| t.port())
    }

    /// Connects to a relay at the first host that answers.
    pub(super) fn open_link(&mut self, relay: DeviceId, hosts: Vec<IpAddr>, now: Now) {
        let known = (self.state.trust(), self.state.standing());
        let config = tls::for_link(self.identities.current(), known, relay, now);
        let (stop, stopped) = oneshot::channel();
        let link = Link {
            device: relay,
            side: Side::Ours,
            slot: 0,
            at: ([127, 0, 0, 1], 0).into(),
            far: None,
            leaf: Vec::new(),
            since: now.mono,
            _stop: stop,
        };
        let port = self.mesh_port();
        let is_full = self.links.links.len() >= LINKS_MAX;
        let opened = match is_full {
            true => None,
            false => self.links.add(link, port, stopped),
        };
        let (Ok(config), Some(admitted), Some(port)) = (config, opened, self.config.relay_port)
        else {
            tracing::warn!(%relay, "no link over TLS can be opened");
            self.state.handle_link_ended(relay, None, now);
            return;
        };
        let shared = self.links.shared.clone();
        tokio::spawn(async move {
            let serial = admitted.serial;
            let reason = call(hosts, port, config, admitted, &shared).await;
            let report = Report::Ended { serial, reason };
            // Nobody listens any more only when the agent ends.
            drop(shared.inputs.send(Input::Link(report)).await);
        });
    }

    /// Parts from a relay.
    pub(super) fn close_link(&mut self, relay: DeviceId) {
        let links = &mut self.links.links;
        links.retain(|_, l| l.device != relay || l.side != Side::Ours);
    }

    pub(super) fn handle_link(&mut self, report: Report, now: Now) {
        match report {
            Report::Proven { from, leaf, reply } => {
                let verdict = self.admit_link(from, leaf, now);
                // Who waited too long is gone; the link ends with its socket.
                if let Err(Ok(admitted)) = reply.send(verdict) {
                    self.end_link(admitted.serial, "it came too late", now);
                }
            }
            Report::Standing { serial, far, leaf } => {
                let Some(link) = self.links.links.get_mut(&serial) else {
                    return;
                };
                link.far = Some(far);
                link.leaf = leaf;
                link.since = now.mono;
                let (relay, at) = (link.device, Underlay(link.at));
                tracing::info!(%relay, %far, "linked over TLS: no relay answers over UDP");
                self.state.handle_link(relay, at, now);
            }
            Report::Ended { serial, reason } => self.end_link(serial, &reason, now),
        }
    }

    fn admit_link(
        &mut self,
        from: SocketAddr,
        leaf: Vec<u8>,
        now: Now,
    ) -> Result<Admitted, Refusal> {
        let device = self.judge(&leaf, now).map_err(|reason| {
            tracing::info!(%from, reason, "a link is refused");
            Refusal::Certificate
        })?;
        let of_device = self.links.links.iter().filter(|(_, l)| l.device == device);
        let mut serials: Vec<u64> = of_device.map(|(serial, _)| *serial).collect();
        while serials.len() >= LINKS_PER_DEVICE_MAX {
            let oldest = serials.remove(0);
            self.end_link(oldest, "the device has newer ones", now);
        }
        if self.links.links.len() >= LINKS_MAX {
            return Err(Refusal::Full);
        }
        let (stop, stopped) = oneshot::channel();
        let link = Link {
            device,
            side: Side::Theirs,
            slot: 0,
            at: ([127, 0, 0, 1], 0).into(),
            far: Some(from),
            leaf,
            since: now.mono,
            _stop: stop,
        };
        let port = self.mesh_port();
        let admitted = self.links.add(link, port, stopped).ok_or(Refusal::Full)?;
        tracing::info!(%device, %from, "a device is linked over TLS");
        Ok(admitted)
    }

    /// Ends a link, and tells the mesh that nothing leads there any more.
    fn end_link(&mut self, serial: u64, reason: &str, now: Now) {
        let Some(link) = self.links.links.remove(&serial) else {
            return;
        };
        let at = link.far.map(|_| Underlay(link.at));
        tracing::info!(device = %link.device, reason, "a link over TLS is over");
        self.state.handle_link_ended(link.device, at, now);
    }

    /// Says what links there are.
    pub(super) fn links_status(&self, now: Now) -> Value {
        let links = &self.links;
        let list: Vec<Value> = links
            .links
            .values()
            .map(|link| {
                json!({
                    "device": link.device.to_string(),
                    "side": match link.side { Side::Ours => "ours", Side::Theirs => "theirs" },
                    "far": link.far.map(|f| f.to_string()),
                    "at": link.at.to_string(),
                    "seconds": now.mono.since(link.since).as_secs(),
                })
            })
            .collect();
        let standing = |side| {
            let all = links.links.values();
            all.filter(|l| l.side == side && l.far.is_some()).count()
        };
        let counters = &links.shared.counters;
        let count = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
        let refused: Map<String, Value> = links
            .shared
            .refused
            .iter()
            .map(|(reason, n)| (reason.to_owned(), json!(n)))
            .collect();
        json!({
            "listens": links.listener.as_ref().map(|l| l.address.to_string()),
            "error": links.error,
            "ours": standing(Side::Ours),
            "theirs": standing(Side::Theirs),
            "list": list,
            "received_datagrams": count(&counters.received_datagrams),
            "received_bytes": count(&counters.received_bytes),
            "sent_datagrams": count(&counters.sent_datagrams),
            "sent_bytes": count(&counters.sent_bytes),
            "dropped": {
                "queue": count(&counters.dropped_queue),
                "port": count(&counters.dropped_port),
            },
            "refused": refused,
        })
    }
}

/// Lets datagrams leave at once, and only what soon leaves stand in the kernel.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

/// Connects and carries until the link ends; returns why.
async fn call(
    hosts: Vec<IpAddr>,
    port: u16,
    config: Arc<rustls::ClientConfig>,
    admitted: Admitted,
    shared: &Shared,
) -> String {
    let mut reason = "no host is known".to_owned();
    for host in hosts {
        let far = SocketAddr::new(host, port);
        let endpoint = far.to_string();
        let attempt = tls::connect(&endpoint, config.clone());
        let mut stream = match tokio::time::timeout(HOST_WITHIN, attempt).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                reason = error.into_text();
                continue;
            }
            Err(_) => {
                reason = format!("{far} does not answer within {} s", HOST_WITHIN.as_secs());
                continue;
            }
        };
        let Some(leaf) = leaf_of(&mut stream) else {
            reason = format!("{far} does not speak our protocol");
            continue;
        };
        if let Err(error) = prepare(stream.get_ref().0) {
            reason = chain(&error);
            continue;
        }
        let serial = admitted.serial;
        let report = Report::Standing { serial, far, leaf };
        if shared.inputs.send(Input::Link(report)).await.is_err() {
            return String::new();
        }
        let Admitted { socket, stop, .. } = admitted;
        return carry::carry(stream, &socket, &shared.counters, stop)
            .await
            .to_string();
    }
    reason
}

/// Returns the relay's certificate, if what was agreed to speak is a link.
fn leaf_of(stream: &mut TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let connection = stream.get_mut().1;
    connection.set_buffer_limit(Some(TLS_BYTES_MAX));
    if connection.alpn_protocol() != Some(tls::LINK_ALPN) {
        return None;
    }
    Some(connection.peer_certificates()?.first()?.to_vec())
}
