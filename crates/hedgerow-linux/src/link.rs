//! Interfaces, addresses and routes, by netlink.
//!
//! Every change is idempotent: what is already so is success. Our own routes carry the protocol
//! number [`ROUTE_PROTOCOL`], so that `ip route show proto 71` lists them and nothing else of ours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hedgerow_model::Fault;
use hedgerow_model::address::Prefix;
use rustix::io::Errno;

use crate::netlink::{CREATE, REPLACE, Request, Socket, find, ne32, text};

/// Marks our routes in the kernel's tables.
pub const ROUTE_PROTOCOL: u8 = 71;
/// Unreachable routes lose against every other route to the same prefix.
const UNREACHABLE_METRIC: u32 = 0x7fff_ffff;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
const FLAG_UP: u32 = 1;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u32 = 255;
const UNICAST: u8 = 1;
const UNREACHABLE: u8 = 7;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const NO_DUPLICATE_DETECTION: u8 = 0x02;

/// Why a link, address or route could not be changed. The rest is as it was.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no such interface.
    #[error("there is no interface {name}")]
    Absent {
        /// The interface.
        name: String,
    },
    /// `CAP_NET_ADMIN` is missing.
    #[error("not permitted to {action}: run as root, or grant CAP_NET_ADMIN")]
    NotPermitted {
        /// What was tried, as an infinitive.
        action: String,
    },
    /// The kernel refused.
    #[error("cannot {action}")]
    Refused {
        /// What was tried, as an infinitive.
        action: String,
        /// The kernel's account.
        source: io::Error,
    },
}

impl LinkError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotPermitted { .. } => Fault::Operator,
            Self::Absent { .. } | Self::Refused { .. } => Fault::Environment,
        }
    }
}

fn failed(action: String) -> impl FnOnce(Errno) -> LinkError {
    move |e| match e {
        Errno::PERM | Errno::ACCESS => LinkError::NotPermitted { action },
        e => LinkError::Refused {
            action,
            source: e.into(),
        },
    }
}

/// A route that exists on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: Prefix,
    /// Through which interface; none for unreachable and blackhole routes.
    pub interface: Option<u32>,
    /// Who made it: [`ROUTE_PROTOCOL`] is ours.
    pub protocol: u8,
}

/// One interface, by its index; it may be renamed, and it may vanish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    name: String,
    index: u32,
}

impl Link {
    /// Finds an interface.
    ///
    /// # Errors
    ///
    /// When there is none of this name, or netlink cannot be used.
    pub fn find(name: &str) -> Result<Self, LinkError> {
        let mut socket = open()?;
        let found = socket
            .dump(
                || Request::new(GET_LINK, 0, &link_head(0, 0)),
                || None,
                |found, m| {
                    let list = m.body.get(16..).unwrap_or_default();
                    if find(list, 3).map(text).as_deref() == Some(name) {
                        *found = m.body.get(4..).and_then(ne32);
                    }
                },
            )
            .map_err(failed("list the interfaces".to_owned()))?;
        let name = name.to_owned();
        match found {
            Some(index) => Ok(Self { name, index }),
            None => Err(LinkError::Absent { name }),
        }
    }

    /// Waits until an interface is there.
    ///
    /// # Errors
    ///
    /// When it is not within `patience`.
    #[expect(
        clippy::disallowed_methods,
        reason = "waits for the kernel, in a bounded number of steps"
    )]
    pub fn wait(name: &str, patience: Duration) -> Result<Self, LinkError> {
        const STEP: Duration = Duration::from_millis(10);
        let mut waited = Duration::ZERO;
        loop {
            match Self::find(name) {
                Err(LinkError::Absent { .. }) if waited < patience => {
                    std::thread::sleep(STEP);
                    waited += STEP;
                }
                result => return result,
            }
        }
    }

    /// Returns the index that the kernel knows it by.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns the name it was found by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Brings it up.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; true of every change.
    pub fn set_up(&self) -> Result<(), LinkError> {
        self.change(FLAG_UP, "bring up", |_| {})
    }

    /// Takes it down.
    ///
    /// # Errors
    ///
    /// See [`Link::set_up`].
    pub fn set_down(&self) -> Result<(), LinkError> {
        self.change(0, "take down", |_| {})
    }

    /// Sets the largest packet, in bytes.
    ///
    /// # Errors
    ///
    /// See [`Link::set_up`].
    pub fn set_mtu(&self, bytes: u32) -> Result<(), LinkError> {
        let head = link_head(self.index, 0);
        let request = Request::new(NEW_LINK, 0, &head).attributes(|a| {
            a.bytes(4, &bytes.to_ne_bytes());
        });
        send(request, format!("set the mtu of {} to {bytes}", self.name))
    }

    /// Deletes the interface.
    ///
    /// # Errors
    ///
    /// See [`Link::set_up`].
    pub fn delete(&self) -> Result<(), LinkError> {
        let request = Request::new(DELETE_LINK, 0, &link_head(self.index, 0));
        send(request, format!("delete {}", self.name))
    }

    /// Adds an address with the length of its network. No duplicate detection: an overlay address
    /// is unique by its ticket.
    ///
    /// # Errors
    ///
    /// See [`Link::set_up`].
    pub fn add_address(&self, address: IpAddr, bits: u8) -> Result<(), LinkError> {
        let [i0, i1, i2, i3] = self.index.to_ne_bytes();
        let head = [
            family(address),
            bits,
            NO_DUPLICATE_DETECTION,
            SCOPE_UNIVERSE,
            i0,
            i1,
            i2,
            i3,
        ];
        let octets = octets(address);
        let request = Request::new(NEW_ADDRESS, CREATE | REPLACE, &head).attributes(|a| {
            // Address and local address: the same on a link without a named far end.
            a.bytes(1, &octets).bytes(2, &octets);
        });
        send(request, format!("add {address}/{bits} to {}", self.name))
    }

    /// Routes a prefix through the interface.
    ///
    /// # Errors
    ///
    /// See [`Link::set_up`].
    pub fn add_route(&self, destination: Prefix) -> Result<(), LinkError> {
        let index = self.index;
        let head = route_head(destination, UNICAST);
        let request = Request::new(NEW_ROUTE, CREATE | REPLACE, &head).attributes(|a| {
            a.bytes(1, &octets(destination.address()));
            a.bytes(4, &index.to_ne_bytes());
        });
        send(
            request,
            format!("route {destination} through {}", self.name),
        )
    }

    fn change(
        &self,
        flags: u32,
        verb: &str,
        fill: impl FnOnce(&mut crate::netlink::Attributes),
    ) -> Result<(), LinkError> {
        let request = Request::new(NEW_LINK, 0, &link_head(self.index, flags)).attributes(fill);
        send(request, format!("{verb} {}", self.name))
    }
}

/// Makes a prefix unreachable where no other route leads to it, so that nothing for it leaves in
/// clear when the tunnel is gone.
///
/// # Errors
///
/// See [`Link::set_up`].
pub fn add_unreachable(destination: Prefix) -> Result<(), LinkError> {
    let request = unreachable(NEW_ROUTE, CREATE | REPLACE, destination);
    send(request, format!("make {destination} unreachable"))
}

/// Takes back [`add_unreachable`]; success when there is none.
///
/// # Errors
///
/// See [`Link::set_up`].
pub fn remove_unreachable(destination: Prefix) -> Result<(), LinkError> {
    let request = unreachable(DELETE_ROUTE, 0, destination);
    match send(request, format!("make {destination} reachable")) {
        Err(LinkError::Refused { source, .. })
            if source.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn unreachable(kind: u16, flags: u16, destination: Prefix) -> Request {
    let head = route_head(destination, UNREACHABLE);
    Request::new(kind, flags, &head).attributes(|a| {
        a.bytes(1, &octets(destination.address()));
        a.bytes(6, &UNREACHABLE_METRIC.to_ne_bytes());
    })
}

/// Lists the routes of all tables but the local one, default routes included.
///
/// # Errors
///
/// When netlink cannot be used.
pub fn routes() -> Result<Vec<Route>, LinkError> {
    let mut socket = open()?;
    socket
        .dump(
            || Request::new(GET_ROUTE, 0, &[0; 12]),
            Vec::new,
            |list, m| list.extend(parse_route(m.body)),
        )
        .map_err(failed("list the routes".to_owned()))
}

/// Returns the routes of others that overlap one of `prefixes`; default routes do not count, nor
/// does what leads to `except`, the tunnel.
///
/// # Errors
///
/// When netlink cannot be used.
pub fn overlaps(prefixes: &[Prefix], except: Option<&Link>) -> Result<Vec<Route>, LinkError> {
    let is_ours = |r: &Route| {
        r.protocol == ROUTE_PROTOCOL
            || (r.interface.is_some() && r.interface == except.map(Link::index))
    };
    let overlapping =
        |r: &Route| r.destination.bits() > 0 && prefixes.iter().any(|p| p.overlaps(&r.destination));
    let mut list = routes()?;
    list.retain(|r| !is_ours(r) && overlapping(r));
    Ok(list)
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let [family, bits, _, _, table, protocol, _, _] = *body.first_chunk::<8>()?;
    let list = body.get(12..)?;
    let table = find(list, 15).and_then(ne32).unwrap_or(table.into());
    // Multicast prefixes are the kernel's own, on every interface.
    if table == TABLE_LOCAL || !matches!(family, FAMILY_IPV4 | FAMILY_IPV6) {
        return None;
    }
    let address: IpAddr = match (find(list, 1), family) {
        (None, FAMILY_IPV4) => Ipv4Addr::UNSPECIFIED.into(),
        (None, _) => Ipv6Addr::UNSPECIFIED.into(),
        (Some(v), FAMILY_IPV4) => Ipv4Addr::from(<[u8; 4]>::try_from(v).ok()?).into(),
        (Some(v), _) => Ipv6Addr::from(<[u8; 16]>::try_from(v).ok()?).into(),
    };
    Some(Route {
        destination: Prefix::new(address, bits).ok()?,
        interface: find(list, 4).and_then(ne32),
        protocol,
    })
}

/// Lists the addresses of every interface but `except`, those that lead to this machine alone left out.
///
/// # Errors
///
/// When netlink cannot be used.
pub fn addresses(except: Option<&Link>) -> Result<Vec<IpAddr>, LinkError> {
    let mut socket = open()?;
    let except = except.map(Link::index);
    let mut list = socket
        .dump(
            || Request::new(GET_ADDRESS, 0, &[0; 8]),
            Vec::new,
            |list, m| list.extend(parse_address(m.body, except)),
        )
        .map_err(failed("list the addresses".to_owned()))?;
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

fn parse_address(body: &[u8], except: Option<u32>) -> Option<IpAddr> {
    let [family, _, _, scope, a, b, c, d] = *body.first_chunk::<8>()?;
    let list = body.get(8..)?;
    if scope == SCOPE_HOST
        || scope == SCOPE_LINK
        || Some(u32::from_ne_bytes([a, b, c, d])) == except
    {
        return None;
    }
    // Its own address stands first where the other end has another.
    let value = find(list, 2).or_else(|| find(list, 1))?;
    match family {
        FAMILY_IPV4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        FAMILY_IPV6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

fn open() -> Result<Socket, LinkError> {
    Socket::open(None).map_err(|source| LinkError::Refused {
        action: "open a route socket".to_owned(),
        source,
    })
}

fn send(request: Request, action: String) -> Result<(), LinkError> {
    open()?.request(request).map_err(failed(action))
}

fn link_head(index: u32, flags: u32) -> [u8; 16] {
    let mut head = [0; 16];
    let parts = [0, index, flags, FLAG_UP];
    for (slot, part) in head.chunks_exact_mut(4).zip(parts) {
        slot.copy_from_slice(&part.to_ne_bytes());
    }
    head
}

fn route_head(destination: Prefix, kind: u8) -> [u8; 12] {
    let scope = if kind == UNICAST && destination.address().is_ipv4() {
        SCOPE_LINK
    } else {
        SCOPE_UNIVERSE
    };
    let family = family(destination.address());
    let bits = destination.bits();
    [
        family,
        bits,
        0,
        0,
        TABLE_MAIN,
        ROUTE_PROTOCOL,
        scope,
        kind,
        0,
        0,
        0,
        0,
    ]
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() {
        FAMILY_IPV4
    } else {
        FAMILY_IPV6
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_routes_and_addresses_are_left_out() {
        for length in 0..64 {
            assert_eq!(parse_address(&vec![0xff; length], None), None);
            assert_eq!(parse_address(&vec![1; length], None), None);
            assert_eq!(parse_route(&vec![0xff; length]), None);
            assert!(parse_route(&vec![1; length]).is_none());
        }
        let default = route_head("::/0".parse().unwrap(), UNICAST);
        assert_eq!(parse_route(&default).unwrap().destination.bits(), 0);
    }
}
