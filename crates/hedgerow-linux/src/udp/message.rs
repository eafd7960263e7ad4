//! The system calls of the underlay socket, with their control messages.
//!
//! Each function wraps one call. Control messages are written and read here as bytes, by the kernel's
//! layout: `struct cmsghdr` (length, level, type), the value, both padded to 8 bytes.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::ptr;
use std::time::Duration;

use hedgerow_model::address::Underlay;
use rustix::fd::AsRawFd;
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::{TRAIN_BYTES_MAX, canonical};
use crate::tunnel::message::{array_at, put};

/// Bytes of memory for one train. More than a train has, and no multiple of a page, so that the same
/// places of neighbouring slots do not fight for the same lines of the processor's cache.
pub const SLOT_BYTES: usize = TRAIN_BYTES_MAX + 1 + 34 * 64;
/// Trains received in one call.
pub const RECEIVE_BATCH_MAX: usize = 32;

/// `struct cmsghdr` without its value.
const HEAD: usize = 16;
/// Room for a segment length and a class going out; for both and a train's stride coming in.
const CONTROL_BYTES: usize = 96;

/// A train that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// From where; proven by nothing.
    pub from: Underlay,
    /// Bytes in the slot.
    pub len: usize,
    /// Bytes of each datagram but the last, at least 1.
    pub stride: usize,
    /// Traffic class: DSCP and ECN.
    pub class: u8,
    /// How long it lay in the socket's buffer; zero where the kernel does not tell.
    pub waited: Duration,
}

impl Default for Arrived {
    fn default() -> Self {
        Self {
            from: Underlay(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)),
            len: 0,
            stride: 1,
            class: 0,
            waited: Duration::ZERO,
        }
    }
}

/// Memory for control messages, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Control {
    /// Appends a message at `at`; returns where the next one stands.
    fn add(&mut self, at: usize, (level, kind): (c_int, c_int), value: &[u8]) -> usize {
        let len = HEAD + value.len();
        put(&mut self.0, at, &len.to_ne_bytes());
        put(&mut self.0, at + 8, &level.to_ne_bytes());
        put(&mut self.0, at + 12, &kind.to_ne_bytes());
        put(&mut self.0, at + HEAD, value);
        at + len.next_multiple_of(8)
    }

    /// Visits the first `len` bytes' messages.
    fn each(&self, len: usize, mut visit: impl FnMut(c_int, c_int, &[u8])) {
        let mut rest = self.0.get(..len).unwrap_or(&self.0);
        while rest.len() >= HEAD {
            let own = usize::from_ne_bytes(array_at(rest, 0));
            let Some(value) = rest.get(HEAD..own) else {
                return;
            };
            let level = c_int::from_ne_bytes(array_at(rest, 8));
            let kind = c_int::from_ne_bytes(array_at(rest, 12));
            visit(level, kind, value);
            rest = rest.get(own.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}

/// Sends `bytes`, cut into datagrams of `segment` bytes if it is given.
#[expect(unsafe_code, reason = "system call")]
pub(super) fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    class: u8,
    bytes: &[u8],
    segment: Option<usize>,
) -> Result<(), Errno> {
    let (mut name, name_len) = kernel_address(to);
    let mut control = Control([0; CONTROL_BYTES]);
    let mut used = 0;
    if class != 0 {
        let is_v6 = matches!(to, SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none());
        let kind = match is_v6 {
            true => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            false => (libc::IPPROTO_IP, libc::IP_TOS),
        };
        used = control.add(used, kind, &c_int::from(class).to_ne_bytes());
    }
    if let Some(segment) = segment {
        let segment = u16::try_from(segment).map_err(|_e| Errno::INVAL)?;
        let kind = (libc::SOL_UDP, libc::UDP_SEGMENT);
        used = control.add(used, kind, &segment.to_ne_bytes());
    }
    let mut piece = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(),
        iov_len: bytes.len(),
    };
    let mut message = blank_message();
    message.msg_name = (&raw mut name).cast::<c_void>();
    message.msg_namelen = name_len;
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    if used > 0 {
        message.msg_control = (&raw mut control).cast::<c_void>();
        message.msg_controllen = used;
    }
    // SAFETY: name, piece, its bytes and control outlive the call, which only reads them, and their
    // lengths are those given. MSG_DONTWAIT and MSG_NOSIGNAL change nothing about memory.
    let sent = unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 { Err(last_error()) } else { Ok(()) }
}

/// Fills slots of `memory`; see [`super::Udp::receive`].
#[expect(unsafe_code, reason = "system call")]
pub(super) fn receive(
    socket: &UdpSocket,
    memory: &mut [u8],
    arrived: &mut [Arrived],
) -> Result<usize, Errno> {
    let mut names = [blank_address(); RECEIVE_BATCH_MAX];
    let mut controls = [Control([0; CONTROL_BYTES]); RECEIVE_BATCH_MAX];
    let mut pieces = [const {
        libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }
    }; RECEIVE_BATCH_MAX];
    let mut messages = [const {
        libc::mmsghdr {
            msg_hdr: blank_message(),
            msg_len: 0,
        }
    }; RECEIVE_BATCH_MAX];
    let mut room: c_uint = 0;
    let slots = memory.chunks_exact_mut(SLOT_BYTES).take(arrived.len());
    let parts = slots.zip(&mut names).zip(&mut controls);
    for ((((slot, name), control), piece), message) in parts.zip(&mut pieces).zip(&mut messages) {
        piece.iov_base = slot.as_mut_ptr().cast::<c_void>();
        piece.iov_len = TRAIN_BYTES_MAX;
        let head = &mut message.msg_hdr;
        head.msg_name = ptr::from_mut(name).cast::<c_void>();
        head.msg_namelen = address_bytes::<libc::sockaddr_in6>();
        head.msg_iov = ptr::from_mut(piece);
        head.msg_iovlen = 1;
        head.msg_control = ptr::from_mut(control).cast::<c_void>();
        head.msg_controllen = CONTROL_BYTES;
        room += 1;
    }
    // SAFETY: the first `room` messages point to a slot, a name, a piece and a control buffer of their
    // own, which live until the end of this function, with their true lengths; no timeout is given.
    let filled = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            room,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    };
    let filled = usize::try_from(filled).map_err(|_negative| last_error())?;
    let now = clock_gettime(ClockId::Realtime);
    let taken = messages.iter().zip(&names).zip(&controls).take(filled);
    for (((message, name), control), arrived) in taken.zip(arrived) {
        *arrived = describe(message, name, control, now);
    }
    Ok(filled)
}

fn describe(
    message: &libc::mmsghdr,
    name: &libc::sockaddr_in6,
    control: &Control,
    now: Timespec,
) -> Arrived {
    let len = usize::try_from(message.msg_len).unwrap_or(0);
    let mut arrived = Arrived {
        from: canonical(our_address(name)),
        len: len.min(TRAIN_BYTES_MAX),
        stride: len.max(1),
        class: 0,
        waited: Duration::ZERO,
    };
    control.each(message.msg_hdr.msg_controllen, |level, kind, value| {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let stride = c_int::from_ne_bytes(array_at(value, 0));
                arrived.stride = usize::try_from(stride).unwrap_or(len).max(1);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                // One byte for IPv4, an `int` for IPv6, of which the low byte is wanted.
                let int: [u8; 4] = array_at(value, 0);
                arrived.class = match value.len() {
                    1 => value.first().copied().unwrap_or(0),
                    _ => u8::try_from(c_int::from_ne_bytes(int) & 0xff).unwrap_or(0),
                };
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                let came = Timespec {
                    tv_sec: i64::from_ne_bytes(array_at(value, 0)),
                    tv_nsec: i64::from_ne_bytes(array_at(value, 8)),
                };
                // A clock that was set back says nothing about waiting.
                let waited = now.checked_sub(came).map(Duration::try_from);
                arrived.waited = waited.and_then(Result::ok).unwrap_or_default();
            }
            _ => {}
        }
    });
    arrived.stride = arrived.stride.min(arrived.len.max(1));
    arrived
}

/// Asks for the time at which each datagram came.
pub(super) fn ask_for_times(socket: &UdpSocket) -> Result<(), Errno> {
    set(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

/// Asks for each datagram's traffic class.
pub(super) fn ask_for_classes(socket: &UdpSocket, dual: bool) -> Result<(), Errno> {
    if dual {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)
}

/// Asks for datagrams that follow each other to be handed over together.
pub(super) fn join_trains(socket: &UdpSocket) -> Result<(), Errno> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel knows how to cut trains; a device may still refuse.
pub(super) fn cuts_trains(socket: &UdpSocket) -> bool {
    // Zero is "whole datagrams", the default: it changes nothing.
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Lets IPv6 cut our datagrams.
pub(super) fn clear_ipv6_dontfrag(socket: &UdpSocket) -> Result<(), Errno> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)
}

#[expect(unsafe_code, reason = "system call")]
fn set(socket: &UdpSocket, level: c_int, name: c_int, value: c_int) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and the kernel reads one `int`, which `value` is.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            address_bytes::<c_int>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

const fn blank_message() -> libc::msghdr {
    libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

const fn blank_address() -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: 0,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    }
}

fn address_bytes<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// Writes an address as the kernel reads it. `sockaddr_in` fits in `sockaddr_in6`, and its fields of
/// port and address stand where port and flow information do.
fn kernel_address(to: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    let mut name = blank_address();
    name.sin6_port = to.port().to_be();
    match to {
        SocketAddr::V4(v4) => {
            name.sin6_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0);
            name.sin6_flowinfo = u32::from_ne_bytes(v4.ip().octets());
            (name, address_bytes::<libc::sockaddr_in>())
        }
        SocketAddr::V6(v6) => {
            name.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(0);
            name.sin6_addr.s6_addr = v6.ip().octets();
            name.sin6_scope_id = v6.scope_id();
            (name, address_bytes::<libc::sockaddr_in6>())
        }
    }
}

fn our_address(name: &libc::sockaddr_in6) -> SocketAddr {
    let port = u16::from_be(name.sin6_port);
    if c_int::from(name.sin6_family) == libc::AF_INET {
        let ip = Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes());
        return SocketAddr::new(ip.into(), port);
    }
    let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
    SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_the_kernel_writes_them() {
        for text in ["192.0.2.7:4711", "[2001:db8::7]:4711", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(our_address(&kernel_address(address).0), address);
        }
        assert_eq!(size_of::<libc::cmsghdr>(), HEAD);
    }

    #[test]
    fn control_messages_are_read_as_they_are_written_and_no_further() {
        let mut control = Control([0; CONTROL_BYTES]);
        let end = control.add(0, (1, 2), &[3]);
        let end = control.add(end, (4, 5), &[6; 4]);
        let mut seen = vec![];
        control.each(end, |level, kind, value| {
            seen.push((level, kind, value.to_vec()))
        });
        assert_eq!(seen, [(1, 2, vec![3]), (4, 5, vec![6; 4])]);
        // A length beyond the end, and one below the header's own.
        for len in [1000usize, 3] {
            put(&mut control.0, 0, &len.to_ne_bytes());
            control.each(end, |_, _, _| panic!("nothing is there"));
        }
    }
}
