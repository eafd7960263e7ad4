//! The network between the devices: what is lost, late, doubled, translated or cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hedgerow_model::Mono;

use super::plant::{Place, Plant, Translation};
use super::random::Random;

/// The mesh's port on every device.
const PORT: u16 = 7117;
/// How long a router remembers who was sent to (RFC 4787 asks for two minutes at least).
const MAPPING_LIFE: Duration = Duration::from_secs(120);
/// First outer port that a router gives.
const OUTER_PORT_FIRST: u16 = 20_000;

/// What the air is like, in thousandths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    pub(super) lost: u32,
    pub(super) doubled: u32,
    /// So many come late by up to [`LATE`]: behind what was sent after them.
    pub(super) late: u32,
    /// How much a datagram may take beyond its base, in thousandths of that.
    pub(super) uneven: u32,
}

/// Most that a late datagram is late.
const LATE: Duration = Duration::from_millis(150);

impl Weather {
    pub(super) const FAIR: Self = Self {
        lost: 10,
        doubled: 5,
        late: 10,
        uneven: 200,
    };
    pub(super) const FOUL: Self = Self {
        lost: 200,
        doubled: 50,
        late: 100,
        uneven: 200,
    };
    /// Nothing is lost, doubled or late, and every datagram takes as long as the last.
    #[cfg(test)]
    pub(super) const STILL: Self = Self {
        lost: 0,
        doubled: 0,
        late: 0,
        uneven: 0,
    };
}

/// A datagram as it travels: addresses after the sender's router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// One router's table.
#[derive(Debug)]
struct Router {
    translation: Translation,
    hairpin: bool,
    /// Outer port by inner address, and by destination where that matters.
    outer: BTreeMap<(SocketAddr, Option<SocketAddr>), u16>,
    inner: BTreeMap<u16, SocketAddr>,
    /// Who may answer on an outer port, since when nothing was sent to them.
    sent: BTreeMap<(u16, SocketAddr), Mono>,
    next_port: u16,
}

impl Router {
    fn translate(&mut self, from: SocketAddr, to: SocketAddr, now: Mono) -> u16 {
        let key = match self.translation {
            Translation::Cone => (from, None),
            Translation::Symmetric => (from, Some(to)),
        };
        let known = self.outer.get(&key).copied();
        let lives = known.filter(|port| {
            let since = self.sent.range((*port, LOWEST)..);
            let mut since = since.take_while(|((p, _), _)| p == port);
            since.any(|(_, at)| now.since(*at) < MAPPING_LIFE)
        });
        let port = lives.unwrap_or_else(|| {
            self.next_port = self.next_port.checked_add(1).unwrap_or(OUTER_PORT_FIRST);
            if let Some(old) = known {
                self.inner.remove(&old);
            }
            self.next_port
        });
        self.outer.insert(key, port);
        self.inner.insert(port, from);
        self.sent.insert((port, to), now);
        port
    }

    /// Returns whose datagram this is, if it is let in.
    fn admit(&self, port: u16, from: SocketAddr, now: Mono) -> Option<SocketAddr> {
        let sent = self.sent.get(&(port, from))?;
        (now.since(*sent) < MAPPING_LIFE)
            .then(|| self.inner.get(&port).copied())
            .flatten()
    }

    fn forget(&mut self) {
        self.outer.clear();
        self.inner.clear();
        self.sent.clear();
    }
}

/// The least address, where a range over all begins.
const LOWEST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The network.
#[derive(Debug)]
pub(super) struct Network {
    sites: Vec<usize>,
    /// Devices whose datagrams stay at their site.
    sealed: BTreeSet<usize>,
    blocked: BTreeSet<(usize, usize)>,
    routers: BTreeMap<usize, Router>,
    hosts: BTreeMap<Ipv4Addr, usize>,
    pub(super) weather: Weather,
    /// Sites that nobody else reaches, nor they anybody.
    pub(super) cut: Vec<usize>,
    random: Random,
    seed: u64,
}

impl Network {
    pub(super) fn new(plant: &Plant, mut random: Random) -> Self {
        let routers = plant.places.iter().enumerate();
        let routers = routers.filter_map(|(site, place)| match place {
            Place::Open | Place::Sealed => None,
            Place::Behind {
                translation,
                hairpin,
            } => Some((
                site,
                Router {
                    translation: *translation,
                    hairpin: *hairpin,
                    outer: BTreeMap::new(),
                    inner: BTreeMap::new(),
                    sent: BTreeMap::new(),
                    next_port: OUTER_PORT_FIRST,
                },
            )),
        });
        let hosts = (0..plant.members.len()).map(|node| (ip_of(plant, node), node));
        Self {
            sites: plant.members.iter().map(|m| m.site).collect(),
            sealed: (0..plant.members.len())
                .filter(|node| plant.place(*node) == Place::Sealed)
                .collect(),
            blocked: plant.blocked.clone(),
            routers: routers.collect(),
            hosts: hosts.collect(),
            weather: Weather::FAIR,
            cut: Vec::new(),
            seed: random.draw(),
            random,
        }
    }

    /// Sends; returns what arrives somewhere, when.
    pub(super) fn send(
        &mut self,
        node: usize,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
        now: Mono,
    ) -> Vec<(Mono, Flight)> {
        let site = self.site(node);
        let Some((src, far)) = self.leave(node, from, to, now) else {
            return Vec::new();
        };
        let weather = self.weather;
        if self.random.chance(weather.lost) {
            return Vec::new();
        }
        let copies = if self.random.chance(weather.doubled) {
            2
        } else {
            1
        };
        let base = self.latency(site, far);
        (0..copies)
            .map(|_| {
                let late = match self.random.chance(weather.late) {
                    true => self.random.up_to(LATE),
                    false => Duration::ZERO,
                };
                let jitter = self.random.up_to(base * weather.uneven / 1000);
                let flight = Flight {
                    src,
                    dst: to,
                    bytes: bytes.clone(),
                };
                (now + base + jitter + late, flight)
            })
            .collect()
    }

    /// Returns the source that the world sees, and the site where it goes.
    fn leave(
        &mut self,
        node: usize,
        from: SocketAddr,
        to: SocketAddr,
        now: Mono,
    ) -> Option<(SocketAddr, usize)> {
        let site = self.site(node);
        let IpAddr::V4(dst) = to.ip() else {
            return None;
        };
        let far = self.site_of(dst)?;
        let stopped = self.cut.contains(&site)
            || self.cut.contains(&far)
            || self.sealed.contains(&node)
            || self.blocked.contains(&(site.min(far), site.max(far)));
        if far != site && stopped {
            return None;
        }
        let inside = is_private(dst);
        if inside {
            // Inside of one site only.
            return (far == site).then_some((from, far));
        }
        let Some(router) = self.routers.get_mut(&site) else {
            return Some((from, far));
        };
        if far == site && !router.hairpin {
            return None;
        }
        let port = router.translate(from, to, now);
        Some(((router_ip(site), port).into(), far))
    }

    /// Returns whom a datagram reaches.
    pub(super) fn arrive(&self, flight: &Flight, now: Mono) -> Option<usize> {
        let IpAddr::V4(dst) = flight.dst.ip() else {
            return None;
        };
        let inner = match self.routers.get(&site_of_router(dst)) {
            Some(router) if dst == router_ip(site_of_router(dst)) => {
                router.admit(flight.dst.port(), flight.src, now)?
            }
            _ => flight.dst,
        };
        let IpAddr::V4(host) = inner.ip() else {
            return None;
        };
        (inner.port() == PORT)
            .then(|| self.hosts.get(&host).copied())
            .flatten()
    }

    /// A router starts anew: every mapping is another.
    pub(super) fn rebind(&mut self, site: usize) {
        if let Some(router) = self.routers.get_mut(&site) {
            router.forget();
        }
    }

    /// Whether a site can reach the office, where the controller is.
    pub(super) fn reaches_office(&self, node: usize) -> bool {
        let site = self.site(node);
        site == 0 || !(self.cut.contains(&site) || self.cut.contains(&0))
    }

    fn site(&self, node: usize) -> usize {
        self.sites.get(node).copied().unwrap_or_default()
    }

    fn site_of(&self, ip: Ipv4Addr) -> Option<usize> {
        match self.hosts.get(&ip) {
            Some(node) => Some(self.site(*node)),
            None => {
                let site = site_of_router(ip);
                (self.routers.contains_key(&site) && router_ip(site) == ip).then_some(site)
            }
        }
    }

    /// One way between two sites; the same in both directions and all the time.
    pub(super) fn latency(&self, a: usize, b: usize) -> Duration {
        if a == b {
            return Duration::from_micros(400);
        }
        let (low, high) = (a.min(b), a.max(b));
        let pair = u64::try_from(low * 100_003 + high).unwrap_or_default();
        let mut random = Random::new(self.seed ^ pair);
        Duration::from_millis(3) + random.up_to(Duration::from_millis(70))
    }
}

/// Returns where a device's own interface is.
pub(super) fn local_address(plant: &Plant, node: usize) -> SocketAddr {
    (ip_of(plant, node), PORT).into()
}

fn ip_of(plant: &Plant, node: usize) -> Ipv4Addr {
    let number = u32::try_from(node).unwrap_or_default() + 1;
    match plant.place(node) {
        Place::Open => Ipv4Addr::from(0xcb00_0000 + number),
        Place::Behind { .. } | Place::Sealed => Ipv4Addr::from(0x0a00_0000 + number),
    }
}

fn is_private(ip: Ipv4Addr) -> bool {
    ip.octets().first() == Some(&10)
}

fn router_ip(site: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xc633_0000 + u32::try_from(site).unwrap_or_default())
}

fn site_of_router(ip: Ipv4Addr) -> usize {
    usize::try_from(u32::from(ip).wrapping_sub(0xc633_0000)).unwrap_or(usize::MAX)
}
