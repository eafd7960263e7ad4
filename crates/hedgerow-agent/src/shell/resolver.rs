//! The resolver's sockets: questions of this machine's programs, answered from the zone in force.
//!
//! What to say is decided by `hedgerow_mesh::names`; here bytes move. Nothing waits for the agent's loop,
//! and nothing in the loop waits for a program that asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_linux::link::Link;
use hedgerow_linux::resolved;
use hedgerow_mesh::names::{self, Outcome, QUESTION_BYTES_MAX, Transport, Zone};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

/// How soon the address is tried again when it could not be had.
const BIND_AGAIN: Duration = Duration::from_secs(30);
/// How soon a socket that failed is used again.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections served at once; a further one waits in the kernel.
const CONNECTIONS_MAX: usize = 16;
/// Questions on one connection; then it is closed, and a program that has more connects again.
const QUESTIONS_MAX: usize = 100;
/// How long a connection may be silent, or an answer unread.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How often it is seen whether systemd-resolved still asks us.
const ROUTE_EVERY: Duration = Duration::from_secs(60);
/// How soon after a change or a failure.
const ROUTE_AGAIN: Duration = Duration::from_secs(1);

/// Whether the system's own resolver asks ours.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Routed {
    /// There is no systemd-resolved, or nothing to ask.
    Absent,
    /// It does.
    Yes,
    /// It could not be told.
    Refused(String),
}

/// What the sockets and the loop share.
#[derive(Debug)]
struct Shared {
    zone: watch::Sender<Option<Arc<Zone>>>,
    routed: Mutex<Routed>,
    counts: [AtomicU64; Outcome::ALL.len()],
    /// Why nothing is answered, where that is so.
    trouble: Mutex<Option<String>>,
}

/// The resolver, or the absence of one.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    address: Option<SocketAddr>,
    shared: Arc<Shared>,
}

impl Resolver {
    /// Begins to answer at `address`, as soon as it can be had, until the runtime ends.
    /// Where systemd-resolved runs, it is told to ask there for what belongs to `interface`.
    pub(crate) fn serve(address: Option<SocketAddr>, interface: &str) -> Self {
        let shared = Arc::new(Shared {
            zone: watch::Sender::new(None),
            routed: Mutex::new(Routed::Absent),
            counts: Default::default(),
            trouble: Mutex::new(address.map(|_| "not begun".to_owned())),
        });
        if let Some(address) = address {
            tokio::spawn(listen(address, shared.clone()));
        }
        tokio::spawn(keep_routed(address, interface.to_owned(), shared.clone()));
        Self { address, shared }
    }

    /// Puts a zone into force.
    pub(crate) fn publish(&self, zone: Option<Arc<Zone>>) {
        self.shared.zone.send_replace(zone);
    }

    /// Returns the zone in force.
    pub(crate) fn zone(&self) -> Option<Arc<Zone>> {
        self.shared.zone.borrow().clone()
    }

    /// Returns how many questions ended how.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.shared.counts.iter().map(|c| c.load(Ordering::Relaxed));
        Outcome::ALL
            .iter()
            .map(|o| o.as_str())
            .zip(counts)
            .collect()
    }

    /// Says how it stands, for `status` and `check`.
    pub(crate) fn status(&self) -> Value {
        let trouble = self
            .shared
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        json!({
            "address": self.address.map(|a| a.to_string()),
            "answers": self.address.is_some() && trouble.is_none(),
            "trouble": *trouble,
            "questions": self.counts(),
            "resolved": match &*self.shared.routed() {
                Routed::Absent => json!({ "runs": false, "asks": false }),
                Routed::Yes => json!({ "runs": true, "asks": true }),
                Routed::Refused(why) => json!({ "runs": true, "asks": false, "trouble": why }),
            },
        })
    }
}

impl Shared {
    fn answer(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let zone = self.zone.borrow().clone();
        let (outcome, bytes) = names::answer(zone.as_deref(), question, transport);
        let place = Outcome::ALL.iter().position(|o| *o == outcome);
        if let Some(count) = place.and_then(|place| self.counts.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        bytes
    }

    fn routed(&self) -> MutexGuard<'_, Routed> {
        self.routed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, trouble: Option<String>) {
        let mut noted = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(text), true) = (&trouble, *noted != trouble) {
            tracing::warn!(text, "names are not answered");
        }
        *noted = trouble;
    }
}

async fn listen(address: SocketAddr, shared: Arc<Shared>) {
    let (udp, tcp) = loop {
        let opened = match UdpSocket::bind(address).await {
            Ok(udp) => TcpListener::bind(address).await.map(|tcp| (udp, tcp)),
            Err(error) => Err(error),
        };
        match opened {
            Ok(opened) => break opened,
            Err(error) => {
                shared.note(Some(format!("{address}: {error}")));
                tokio::time::sleep(BIND_AGAIN).await;
            }
        }
    };
    shared.note(None);
    tokio::join!(datagrams(&udp, &shared), connections(&tcp, &shared));
}

async fn datagrams(udp: &UdpSocket, shared: &Shared) {
    // One byte more, so that what is too long shows.
    let mut buffer = [0; QUESTION_BYTES_MAX + 1];
    loop {
        let Ok((length, from)) = udp.recv_from(&mut buffer).await else {
            // A program that went away before its answer; or no memory, which passes.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let question = buffer.get(..length).unwrap_or_default();
        if let Some(answer) = shared.answer(question, Transport::Udp) {
            // A full socket loses it, as a full network does: the program asks again.
            drop(udp.try_send_to(&answer, from));
        }
    }
}

async fn connections(tcp: &TcpListener, shared: &Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let Ok((mut stream, _)) = tcp.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _place = place;
            for _ in 0..QUESTIONS_MAX {
                let one = exchange(&mut stream, &shared);
                if !matches!(tokio::time::timeout(SILENCE_MAX, one).await, Ok(Ok(()))) {
                    return;
                }
            }
        });
    }
}

/// One question and its answer, each after its length.
async fn exchange(stream: &mut TcpStream, shared: &Shared) -> std::io::Result<()> {
    let silent = || std::io::Error::other("no question");
    let length = usize::from(stream.read_u16().await?);
    if length > QUESTION_BYTES_MAX {
        return Err(silent());
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    let answer = shared
        .answer(&question, Transport::Tcp)
        .ok_or_else(silent)?;
    let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), &answer[..]].concat())
        .await
}

/// Has systemd-resolved ask us for our domains, whenever these change, it begins or it forgets.
async fn keep_routed(address: Option<SocketAddr>, interface: String, shared: Arc<Shared>) {
    let mut zones = shared.zone.subscribe();
    let mut told: Vec<String> = Vec::new();
    loop {
        let zone = zones.borrow_and_update().clone();
        let domains = zone.map(|z| z.domains()).unwrap_or_default();
        let routed = route(address, &interface, &mut told, domains).await;
        let wait = match &routed {
            Ok(_) => ROUTE_EVERY,
            Err(_) => ROUTE_AGAIN,
        };
        let routed = routed.unwrap_or(Routed::Absent);
        let is_news = std::mem::replace(&mut *shared.routed(), routed.clone()) != routed;
        if let (Routed::Refused(why), true) = (&routed, is_news) {
            tracing::warn!(why, "systemd-resolved does not ask for names of peers");
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = zones.changed() => if changed.is_err() { return },
        }
    }
}

/// The interface is not there yet.
struct NotYet;

async fn route(
    address: Option<SocketAddr>,
    interface: &str,
    told: &mut Vec<String>,
    domains: Vec<String>,
) -> Result<Routed, NotYet> {
    if !resolved::is_running() {
        told.clear();
        return Ok(Routed::Absent);
    }
    if Link::find(interface).is_err() {
        return Err(NotYet);
    }
    let server = address.filter(|_| !domains.is_empty());
    let (name, list) = (interface.to_owned(), domains.clone());
    let is_news = *told != domains;
    let order = tokio::task::spawn_blocking(move || match server {
        Some(server) if !is_news && resolved::is_routed(&name, server)? => Ok(Routed::Yes),
        Some(server) => resolved::route(&name, server, &list).map(|()| Routed::Yes),
        None if !is_news => Ok(Routed::Absent),
        None => resolved::revert(&name).map(|()| Routed::Absent),
    });
    Ok(match order.await {
        Ok(Ok(routed)) => {
            *told = domains;
            routed
        }
        Ok(Err(error)) => Routed::Refused(error.to_string()),
        Err(_) => Routed::Refused("interrupted".to_owned()),
    })
}
