//! The underlay socket: one UDP port for IPv6 and IPv4.

use std::ffi::c_int;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use hedgerow_model::Fault;
use hedgerow_model::address::Underlay;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Bytes of socket buffer asked for in each direction, so that a burst survives a busy thread.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Buffers filled by one [`Udp::receive`].
pub const RECEIVE_BATCH: usize = 8;
/// Bytes of each of those buffers: a train of datagrams as long as the kernel makes them.
pub const TRAIN_BYTES_MAX: usize = 65_535;

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

/// The socket. Nothing it does blocks.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    dual: bool,
    port: u16,
}

impl Udp {
    /// Binds `port` (0: any free one) for both families, or for IPv4 where there is no IPv6.
    ///
    /// # Errors
    ///
    /// [`UdpError`] names the port.
    pub fn bind(port: u16) -> Result<Self, UdpError> {
        let (socket, dual) = match bind_family(port, AddressFamily::INET6) {
            Ok(socket) => (socket, true),
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => (
                bind_family(port, AddressFamily::INET).map_err(|e| named(port, e))?,
                false,
            ),
            Err(e) => return Err(named(port, e)),
        };
        let other = |source| UdpError::Other { port, source };
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).map_err(other)?;
        allow_fragments(&socket, dual).map_err(|e| named(port, e))?;
        let bound = socket.local_addr().map_err(other)?.port();
        Ok(Self {
            socket,
            state,
            dual,
            port: bound,
        })
    }

    /// Returns the port in use.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns how many datagrams of one length one [`Udp::send`] may carry.
    pub fn train_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends `bytes` cut into datagrams of `segment` bytes, the last one may be shorter.
    pub fn send(&self, to: Underlay, bytes: &[u8], segment: usize) -> Sent {
        let transmit = Transmit {
            destination: self.outer(to.0),
            ecn: None,
            contents: bytes,
            segment_size: (segment < bytes.len()).then_some(segment),
            src_ip: None,
        };
        match self
            .state
            .try_send(UdpSockRef::from(&self.socket), &transmit)
        {
            Ok(()) => Sent::Yes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Sent::Full,
            Err(_) => Sent::Refused,
        }
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
        let sent = self.send(to, bytes, bytes.len());
        match probe((Ipv6PathMtuDiscovery::DONT, Ipv4PathMtuDiscovery::DONT)) {
            Ok(()) => sent,
            Err(_) => Sent::Refused,
        }
    }

    /// Fills buffers with trains of datagrams; the metadata gives each train's source, length and
    /// stride. Returns how many were filled, 0 when nothing waits.
    ///
    /// # Errors
    ///
    /// When the socket is broken; an ICMP error about an earlier datagram is not.
    pub fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        match self
            .state
            .recv(UdpSockRef::from(&self.socket), buffers, metas)
        {
            Ok(n) => Ok(n),
            Err(e) if passes(&e) => Ok(0),
            Err(e) => Err(e),
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
        clear_ipv6_dontfrag(socket)?;
    }
    sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)
}

/// The one socket option that `rustix` lacks; `quinn-udp` sets it.
#[expect(unsafe_code, reason = "system call")]
fn clear_ipv6_dontfrag(socket: &UdpSocket) -> Result<(), Errno> {
    const IPPROTO_IPV6: c_int = 41;
    const IPV6_DONTFRAG: c_int = 62;
    unsafe extern "C" {
        fn setsockopt(
            socket: c_int,
            level: c_int,
            name: c_int,
            value: *const c_int,
            length: u32,
        ) -> c_int;
    }
    let off: c_int = 0;
    // SAFETY: the descriptor is open, and the kernel reads one `int` of 4 bytes, which `off` is.
    let result = unsafe {
        setsockopt(
            socket.as_raw_fd(),
            IPPROTO_IPV6,
            IPV6_DONTFRAG,
            &raw const off,
            4,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

fn passes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
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

    #[test]
    fn udp_says_that_the_port_is_taken() {
        let first = Udp::bind(0).unwrap();
        let port = first.port();
        assert_ne!(port, 0);
        let second = Udp::bind(port).unwrap_err();
        assert!(matches!(second, UdpError::PortTaken { port: p } if p == port));
    }

    #[test]
    fn udp_carries_both_families_and_names_them_as_they_are() {
        let udp = Udp::bind(0).unwrap();
        for local in ["127.0.0.1", "::1"] {
            let other = UdpSocket::bind((local, 0)).unwrap();
            let to: SocketAddr = (local.parse::<std::net::IpAddr>().unwrap(), udp.port()).into();
            other.send_to(b"hello", to).unwrap();
            let mut buffer = vec![0u8; TRAIN_BYTES_MAX];
            let mut metas = [RecvMeta::default()];
            assert_eq!(
                udp.receive(&mut [IoSliceMut::new(&mut buffer)], &mut metas)
                    .unwrap(),
                1
            );
            let from = canonical(metas[0].addr);
            assert_eq!(from.0, other.local_addr().unwrap());
            assert_eq!(udp.send(from, b"aabbc", 2), Sent::Yes);
            for part in [&b"aa"[..], b"bb", b"c"] {
                let n = other.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..n], part);
            }
        }
    }
}
