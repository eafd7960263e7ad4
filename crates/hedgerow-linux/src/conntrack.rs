//! Tracked connections: forgotten, and listed.
//!
//! Forgetting is hygiene only: the table of [`crate::nft`] looks every packet up, so a peer that was taken out is
//! cut off whether its connections are forgotten or not.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hedgerow_model::address::{Overlay, OverlayAddresses};
use hedgerow_model::packet::{Direction, LiveFlow};
use hedgerow_model::service::Protocol;
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::netlink::{Request, Socket, find};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const PROTOCOL_INFO: u16 = 4;
const TCP_ESTABLISHED: u8 = 3;
/// Kinds of flows told apart while counting; sessions of further kinds are counted together.
const KINDS_MAX: usize = 8192;

/// Forgets every tracked connection from or to `address`; returns how many there were.
///
/// # Errors
///
/// When connections cannot be listed or deleted: not root, or no connection tracking.
pub fn delete_for(address: Overlay) -> io::Result<usize> {
    let family = if address.0.is_ipv4() {
        FAMILY_IPV4
    } else {
        FAMILY_IPV6
    };
    let head = [family, 0, 0, 0];
    let mut socket = Socket::open(Some(NETFILTER))?;
    let list = socket.dump(
        || Request::new(SUBSYSTEM << 8 | GET, 0, &head),
        Vec::new,
        |found, m| {
            let body = m.body.get(4..).unwrap_or_default();
            if concerns(body, address.0) {
                let value = |kind| find(body, kind).map(<[u8]>::to_vec);
                found.extend(value(TUPLE_ORIGINAL).map(|tuple| (tuple, value(ZONE))));
            }
        },
    )?;
    let mut count = 0;
    for (tuple, zone) in list {
        let request = Request::new(SUBSYSTEM << 8 | DELETE, 0, &head).attributes(|a| {
            a.nested_bytes(TUPLE_ORIGINAL, &tuple);
            if let Some(zone) = &zone {
                a.bytes(ZONE, zone);
            }
        });
        match socket.request(request) {
            Ok(()) => count += 1,
            // It ended by itself meanwhile.
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(count)
}

/// The flows that are open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flows {
    /// Those with the most sessions first.
    pub flows: Vec<LiveFlow>,
    /// How many more kinds there are, or sessions of kinds that were not told apart.
    pub left_out: u64,
}

/// Lists the flows from and to our own overlay addresses, those alike taken together; at most `max`.
/// TCP counts while it is established.
///
/// # Errors
///
/// When connections cannot be listed.
pub fn flows(own: &OverlayAddresses, max: usize) -> io::Result<Flows> {
    let mut found = BTreeMap::new();
    let mut left_out = 0;
    for family in [FAMILY_IPV6, FAMILY_IPV4] {
        let head = [family, 0, 0, 0];
        let mut socket = Socket::open(Some(NETFILTER))?;
        let list = socket.dump(
            || Request::new(SUBSYSTEM << 8 | GET, 0, &head),
            Vec::new,
            |list, m| list.extend(flow(m.body.get(4..).unwrap_or_default(), own)),
        )?;
        for kind in list {
            if found.len() >= KINDS_MAX && !found.contains_key(&kind) {
                left_out += 1;
                continue;
            }
            *found.entry(kind).or_insert(0u32) += 1;
        }
    }
    let mut flows: Vec<LiveFlow> = found
        .into_iter()
        .map(|((peer, direction, protocol, port), count)| LiveFlow {
            peer,
            direction,
            protocol,
            port,
            count,
        })
        .collect();
    flows.sort_by_key(|f| std::cmp::Reverse(f.count));
    left_out += u64::try_from(flows.len().saturating_sub(max)).unwrap_or(u64::MAX);
    flows.truncate(max);
    Ok(Flows { flows, left_out })
}

type Kind = (Overlay, Direction, Protocol, u16);

/// Reads one tracked connection; `None` for one that is not on the overlay, or over.
fn flow(body: &[u8], own: &OverlayAddresses) -> Option<Kind> {
    let tuple = find(body, TUPLE_ORIGINAL)?;
    let (ip, proto) = (find(tuple, 1)?, find(tuple, 2)?);
    let address = |v4, v6| find(ip, v4).or_else(|| find(ip, v6)).and_then(parse);
    let (source, destination) = (Overlay(address(1, 3)?), Overlay(address(2, 4)?));
    let (peer, direction) = match (own.contains(source), own.contains(destination)) {
        (true, false) => (destination, Direction::Out),
        (false, true) => (source, Direction::In),
        (true, true) | (false, false) => return None,
    };
    let byte = |kind| find(proto, kind)?.first().copied();
    let port = || find(proto, 3)?.try_into().ok().map(u16::from_be_bytes);
    let (protocol, port) = match byte(1)? {
        6 => {
            let state = find(find(find(body, PROTOCOL_INFO)?, 1)?, 1)?;
            (state.first() == Some(&TCP_ESTABLISHED)).then_some((Protocol::Tcp, port()?))?
        }
        17 => (Protocol::Udp, port()?),
        1 if byte(5) == Some(8) => (Protocol::IcmpEcho, 0),
        58 if byte(8) == Some(128) => (Protocol::IcmpEcho, 0),
        _ => return None,
    };
    Some((peer, direction, protocol, port))
}

fn concerns(body: &[u8], address: IpAddr) -> bool {
    [TUPLE_ORIGINAL, TUPLE_REPLY]
        .into_iter()
        .filter_map(|kind| find(find(body, kind)?, 1))
        .any(|ip| (1..=4).any(|kind| find(ip, kind).and_then(parse) == Some(address)))
}

fn parse(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(value).ok()?;
    Some(Ipv6Addr::from(v6).into())
}
