//! The underlay socket: one UDP port for IPv6 and IPv4, whole trains of datagrams in one call.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use hedgerow_model::Fault;
use hedgerow_model::address::Underlay;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

mod message;

pub use message::{Arrived, RECEIVE_BATCH_MAX, SLOT_BYTES};

/// Bytes of socket buffer asked for in each direction, so that a burst survives a busy thread.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Bytes of datagrams that are received at once: a train as long as the kernel makes them.
pub const TRAIN_BYTES_MAX: usize = 65_535;
/// Datagrams that the kernel cuts out of one [`Udp::send`] (`UDP_MAX_SEGMENTS` before Linux 6.9).
pub const TRAIN_DATAGRAMS_MAX: usize = 64;

/// Why the socket could not be opened; nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Another program listens on the port.
    #[error("UDP port {port} is taken by another program")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// Ports below 1024 need a capability.
    #[error("not permitted to bind UDP port {port}: CAP_NET_BIND_SERVICE is needed")]
    NotPermitted {
        /// The port.
        port: u16,
    },
    /// Anything else.
    #[error("cannot open UDP port {port}")]
    Other {
        /// The port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl UdpError {
    /// Returns who is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Self::PortTaken { .. } | Self::NotPermitted { .. } => Fault::Operator,
            Self::Other { .. } => Fault::Environment,
        }
    }
}

/// What became of datagrams that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took them.
    Yes,
    /// The socket's buffer is full; they are lost, as on a full link.
    Full,
    /// No route, refused by a firewall, too long for the path: lost.
    Refused,
}

/// Whether the kernel cuts and joins trains of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trains {
    /// On the way out (Linux 4.18).
    pub send: bool,
    /// On the way in (Linux 5.0).
    pub receive: bool,
}

impl Default for Trains {
    fn default() -> Self {
        Self {
            send: true,
            receive: true,
        }
    }
}

/// The socket. Nothing it does blocks.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    dual: bool,
    port: u16,
    /// Cleared for good when a device turns out to cut no trains.
    trains: AtomicBool,
}

impl Udp {
    /// Binds `port` (0: any free one) for both families, or for IPv4 where there is no IPv6, with as
    /// much of `trains` as the kernel can.
    ///
    /// # Errors
    ///
    /// [`UdpError`] names the port.
    pub fn bind(port: u16, trains: Trains) -> Result<Self, UdpError> {
        let (socket, dual) = match bind_family(port, AddressFamily::INET6) {
            Ok(socket) => (socket, true),
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => (
                bind_family(port, AddressFamily::INET).map_err(|e| named(port, e))?,
                false,
            ),
            Err(e) => return Err(named(port, e)),
        };
        let other = |source| UdpError::Other { port, source };
        allow_fragments(&socket, dual).map_err(|e| named(port, e))?;
        message::ask_for_classes(&socket, dual).map_err(|e| named(port, e))?;
        let times = message::ask_for_times(&socket);
        tracing::debug!(?times, "receive times");
        if trains.receive {
            // Older kernels hand over one by one.
            let joins = message::join_trains(&socket);
            tracing::debug!(?joins, "receive trains");
        }
        let cuts = trains.send && message::cuts_trains(&socket);
        let bound = socket.local_addr().map_err(other)?.port();
        Ok(Self {
            socket,
            dual,
            port: bound,
            trains: AtomicBool::new(cuts),
        })
    }

    /// Returns the port in use.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns how many datagrams of one length one [`Udp::send`] may carry.
    pub fn train_max(&self) -> usize {
        match self.trains.load(Ordering::Relaxed) {
            true => TRAIN_DATAGRAMS_MAX,
            false => 1,
        }
    }

    /// Sends `bytes` cut into datagrams of `segment` bytes, the last one may be shorter, each with the
    /// traffic class `class`. Where the kernel refuses to cut, they are sent one by one.
    pub fn send(&self, to: Underlay, class: u8, bytes: &[u8], segment: usize) -> Sent {
        let outer = self.outer(to.0);
        if segment >= bytes.len() {
            return judged(message::send(&self.socket, outer, class, bytes, None));
        }
        if self.trains.load(Ordering::Relaxed) {
            match message::send(&self.socket, outer, class, bytes, Some(segment)) {
                // The device makes no checksums: it cuts nothing, ever.
                Err(Errno::IO) => self.trains.store(false, Ordering::Relaxed),
                // Longer than this path's MTU, or too many.
                Err(Errno::INVAL | Errno::MSGSIZE) => {}
                done => return judged(done),
            }
        }
        let mut worst = Sent::Yes;
        for datagram in bytes.chunks(segment.max(1)) {
            match judged(message::send(&self.socket, outer, class, datagram, None)) {
                Sent::Yes => {}
                lost @ (Sent::Full | Sent::Refused) => worst = lost,
            }
        }
        worst
    }

    /// Sends one datagram that the network may not cut: it arrives whole or not at all.
    pub fn send_whole(&self, to: Underlay, bytes: &[u8]) -> Sent {
        let probe = |how: (Ipv6PathMtuDiscovery, Ipv4PathMtuDiscovery)| {
            if self.dual {
                sockopt::set_ipv6_mtu_discover(&self.socket, how.0)?;
            }
            sockopt::set_ip_mtu_discover(&self.socket, how.1)
        };
        if probe((Ipv6PathMtuDiscovery::PROBE, Ipv4PathMtuDiscovery::PROBE)).is_err() {
            return Sent::Refused;
        }
        let sent = self.send(to, 0, bytes, bytes.len());
        match probe((Ipv6PathMtuDiscovery::DONT, Ipv4PathMtuDiscovery::DONT)) {
            Ok(()) => sent,
            Err(_) => Sent::Refused,
        }
    }

    /// Fills slots of [`SLOT_BYTES`] of `memory` with trains of datagrams, as many as `arrived` and
    /// `memory` have room for and at most [`RECEIVE_BATCH_MAX`]; `arrived` tells each slot's source,
    /// length, stride and traffic class. Returns how many were filled, 0 when nothing waits.
    ///
    /// # Errors
    ///
    /// When the socket is broken; an ICMP error about an earlier datagram is not.
    pub fn receive(&self, memory: &mut [u8], arrived: &mut [Arrived]) -> io::Result<usize> {
        match message::receive(&self.socket, memory, arrived) {
            Ok(n) => Ok(n),
            Err(e) if passes(e) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    fn outer(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.dual => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => to,
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn judged(done: Result<(), Errno>) -> Sent {
    match done {
        Ok(()) => Sent::Yes,
        Err(Errno::AGAIN | Errno::NOBUFS) => Sent::Full,
        Err(_) => Sent::Refused,
    }
}

/// Writes an IPv4 address that came through an IPv6 socket as IPv4, and drops flow labels.
pub fn canonical(from: SocketAddr) -> Underlay {
    match from {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => Underlay(SocketAddr::new(v4.into(), v6.port())),
            None => {
                let mut v6 = v6;
                v6.set_flowinfo(0);
                Underlay(v6.into())
            }
        },
        SocketAddr::V4(_) => Underlay(from),
    }
}

/// Lets the path cut our datagrams where it is narrower than the tunnel believes: slow, but alive.
fn allow_fragments(socket: &UdpSocket, dual: bool) -> Result<(), Errno> {
    if dual {
        sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DONT)?;
        message::clear_ipv6_dontfrag(socket)?;
    }
    sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)
}

fn passes(error: Errno) -> bool {
    matches!(
        error,
        Errno::AGAIN
            | Errno::INTR
            | Errno::CONNREFUSED
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::MSGSIZE
            | Errno::ACCESS
            | Errno::PERM
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::HOSTDOWN
            | Errno::NONET
    )
}

fn bind_family(port: u16, family: AddressFamily) -> Result<UdpSocket, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    let any: SocketAddr = if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&fd, false)?;
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    };
    // More than `rmem_max` needs a capability; what we get without it is enough to work.
    if sockopt::set_socket_recv_buffer_size_force(&fd, SOCKET_BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BUFFER_BYTES)?;
    }
    sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER_BYTES)?;
    rustix::net::bind(&fd, &any)?;
    Ok(UdpSocket::from(fd))
}

fn named(port: u16, errno: Errno) -> UdpError {
    match errno {
        Errno::ADDRINUSE => UdpError::PortTaken { port },
        Errno::ACCESS | Errno::PERM => UdpError::NotPermitted { port },
        other => UdpError::Other {
            port,
            source: other.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: [&str; 2] = ["127.0.0.1", "::1"];

    /// Waits for at least one train.
    fn wait(udp: &Udp, memory: &mut [u8], arrived: &mut [Arrived]) -> usize {
        loop {
            let mut fds = [rustix::event::PollFd::new(
                udp,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut fds, None).unwrap();
            let n = udp.receive(memory, arrived).unwrap();
            if n > 0 {
                return n;
            }
        }
    }

    #[test]
    fn udp_says_that_the_port_is_taken() {
        let first = Udp::bind(0, Trains::default()).unwrap();
        let port = first.port();
        assert_ne!(port, 0);
        let second = Udp::bind(port, Trains::default()).unwrap_err();
        assert!(matches!(second, UdpError::PortTaken { port: p } if p == port));
    }

    #[test]
    fn udp_carries_both_families_and_names_them_as_they_are() {
        let udp = Udp::bind(0, Trains::default()).unwrap();
        for local in LOCAL {
            let other = UdpSocket::bind((local, 0)).unwrap();
            let to: SocketAddr = (local.parse::<std::net::IpAddr>().unwrap(), udp.port()).into();
            other.send_to(b"hello", to).unwrap();
            let mut memory = vec![0u8; SLOT_BYTES];
            let mut arrived = [Arrived::default()];
            assert_eq!(wait(&udp, &mut memory, &mut arrived), 1);
            let from = arrived[0].from;
            assert_eq!(from.0, other.local_addr().unwrap());
            assert_eq!((arrived[0].len, arrived[0].stride), (5, 5));
            assert_eq!(udp.send(from, 0, b"aabbc", 2), Sent::Yes);
            for part in [&b"aa"[..], b"bb", b"c"] {
                let n = other.recv(&mut memory).unwrap();
                assert_eq!(&memory[..n], part);
            }
        }
    }

    /// Every pair of abilities gives the same datagrams, in order, with their class.
    #[test]
    fn udp_trains_arrive_whole_or_one_by_one_with_their_class() {
        let way = [true, false];
        for (send, receive) in way.into_iter().flat_map(|s| way.map(|r| (s, r))) {
            let trains = Trains { send, receive };
            let (one, two) = (Udp::bind(0, trains).unwrap(), Udp::bind(0, trains).unwrap());
            assert_eq!(one.train_max() > 1, send);
            let bytes: Vec<u8> = (0..40_500usize)
                .map(|n| (n % 251).to_le_bytes()[0])
                .collect();
            for local in LOCAL {
                let to = (local.parse::<std::net::IpAddr>().unwrap(), two.port()).into();
                assert_eq!(one.send(Underlay(to), 0xb9, &bytes, 1000), Sent::Yes);
                let mut got = vec![];
                let mut trains = 0;
                while got.len() < bytes.len() {
                    let mut memory = vec![0u8; 4 * SLOT_BYTES];
                    let mut arrived = [Arrived::default(); 4];
                    let n = wait(&two, &mut memory, &mut arrived);
                    for (slot, a) in memory.chunks(SLOT_BYTES).zip(&arrived).take(n) {
                        assert_eq!((a.class, a.from.0.port()), (0xb9, one.port()));
                        assert_eq!(a.stride, a.len.min(1000));
                        got.extend_from_slice(&slot[..a.len]);
                        trains += 1;
                    }
                }
                assert!(got == bytes);
                assert!(trains == 41 || (receive && trains >= 1), "{trains}");
            }
        }
    }

    #[test]
    fn udp_a_device_that_cuts_nothing_is_remembered() {
        let udp = Udp::bind(0, Trains::default()).unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Underlay(other.local_addr().unwrap());
        // More datagrams than any kernel cuts: refused as a train, sent one by one.
        assert_eq!(udp.send(to, 0, &[7; 150], 1), Sent::Yes);
        for _ in 0..150 {
            assert_eq!(other.recv(&mut [0; 9]).unwrap(), 1);
        }
        assert_eq!(udp.train_max(), TRAIN_DATAGRAMS_MAX, "this train alone");
    }

    #[test]
    fn udp_an_answer_of_the_network_to_an_earlier_datagram_is_no_failure() {
        let udp = Udp::bind(0, Trains::default()).unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        udp.send(Underlay(closed), 0, b"nobody", 6);
        let mut memory = vec![0u8; SLOT_BYTES];
        for _ in 0..3 {
            assert_eq!(
                udp.receive(&mut memory, &mut [Arrived::default()]).unwrap(),
                0
            );
        }
    }
}
