//! Which TCP connections stand, to say which of them a change would end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use hedgerow_model::packet::Direction;

use crate::disk;

/// Longest list of connections that is read; a machine with more gets an error.
const LIST_BYTES_MAX: usize = 8 << 20;
/// Most connections that are told of; the rest is left out.
const SESSIONS_MAX: usize = 4096;
/// States of `/proc/net/tcp` (`include/net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// An established TCP connection of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Session {
    /// Which way its opener sends: inbound when somebody listens on the near port.
    pub direction: Direction,
    /// This machine's end.
    pub near: SocketAddr,
    /// The other end.
    pub far: SocketAddr,
}

/// Returns the established TCP connections of this network namespace.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn established() -> io::Result<Vec<Session>> {
    let mut rows = Vec::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let bytes = disk::read_bounded(Path::new(path), LIST_BYTES_MAX).map_err(|e| e.source)?;
        let text = bytes.unwrap_or_default();
        rows.extend(String::from_utf8_lossy(&text).lines().filter_map(row));
    }
    Ok(sessions(&rows))
}

fn sessions(rows: &[(SocketAddr, SocketAddr, u8)]) -> Vec<Session> {
    let listens = |port| {
        let mut listening = rows.iter().filter(|(_, _, state)| *state == LISTEN);
        listening.any(|(near, ..)| near.port() == port)
    };
    let found = rows.iter().filter(|(_, _, state)| *state == ESTABLISHED);
    let mut list: Vec<Session> = found
        .map(|(near, far, _)| Session {
            direction: if listens(near.port()) {
                Direction::In
            } else {
                Direction::Out
            },
            near: *near,
            far: *far,
        })
        .take(SESSIONS_MAX)
        .collect();
    list.sort_unstable();
    list
}

/// Reads a line: number, near end, far end, state, and what is of no use here.
fn row(line: &str) -> Option<(SocketAddr, SocketAddr, u8)> {
    let mut words = line.split_whitespace().skip(1);
    let (near, far) = (end(words.next()?)?, end(words.next()?)?);
    Some((near, far, u8::from_str_radix(words.next()?, 16).ok()?))
}

/// Reads an address, which the kernel prints as words of the machine's own byte order.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    if !matches!(address.len(), 8 | 32) {
        return None;
    }
    let words: Option<Vec<[u8; 4]>> = address
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect();
    let bytes = words?.concat();
    let address: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        16 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddr::new(address.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn both_ends_of_a_connection_are_found_and_know_who_opened_it() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let opened = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (taken, _) = listener.accept().unwrap();
            let session = |direction, stream: &TcpStream| Session {
                direction,
                near: stream.local_addr().unwrap(),
                far: stream.peer_addr().unwrap(),
            };
            let list = established().unwrap();
            assert!(list.contains(&session(Direction::Out, &opened)), "{list:?}");
            assert!(list.contains(&session(Direction::In, &taken)), "{list:?}");
        }
    }

    #[test]
    fn damaged_lines_are_passed_over() {
        for line in [
            "",
            "sl local",
            "0: 01:1 02:2 01",
            "0: 0100007F:0016 X 01",
            "1: : : 1",
        ] {
            assert_eq!(row(line), None, "{line}");
        }
    }
}
