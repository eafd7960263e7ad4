//! Forgetting tracked connections.
//!
//! Hygiene only: the table of [`crate::nft`] looks every packet up, so a peer that was taken out is
//! cut off whether its connections are forgotten or not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hedgerow_model::address::Overlay;
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
