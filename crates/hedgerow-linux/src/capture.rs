//! A look at the packets of one interface: copies, as the kernel hands them to the tunnel and takes them
//! from it.
//!
//! The data path does not know of it, and costs nothing more while nobody looks. What comes in is seen
//! before the firewall judges it, what goes out after.

use std::ffi::{c_int, c_void};
use std::io;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

use crate::link::{Link, LinkError};

/// Bytes of copies that wait to be read; further ones are dropped and counted.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Bytes of one packet, as long as the kernel joins segments for the tunnel.
pub const PACKET_BYTES_MAX: usize = 65_535;

const ETH_P_ALL: u16 = 3;
const SOL_PACKET: c_int = 263;
const PACKET_STATISTICS: c_int = 6;

/// Why nothing can be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// `CAP_NET_RAW` is missing.
    #[error("not permitted to look at packets: run as root, or grant CAP_NET_RAW")]
    NotPermitted,
    /// The interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Anything else.
    #[error("cannot look at packets of {interface}")]
    Other {
        /// The interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// `struct sockaddr_ll`.
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: c_int,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
}

/// `struct tpacket_stats`.
#[repr(C)]
#[derive(Default)]
struct Statistics {
    packets: u32,
    drops: u32,
}

/// Copies of an interface's packets. Reading never blocks.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    dropped: u64,
}

impl Capture {
    /// Begins to look at an interface that carries IP packets without a link header.
    ///
    /// # Errors
    ///
    /// [`CaptureError`]; nothing is left open.
    pub fn open(interface: &str) -> Result<Self, CaptureError> {
        let link = Link::find(interface)?;
        let failed = |errno: Errno| match errno {
            Errno::PERM | Errno::ACCESS => CaptureError::NotPermitted,
            errno => CaptureError::Other {
                interface: interface.to_owned(),
                source: errno.into(),
            },
        };
        // Without a protocol nothing comes before the socket is bound: no packet of another interface.
        let socket = rustix::net::socket_with(
            AddressFamily::PACKET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(failed)?;
        // The kernel counts its own overhead too, and takes the half.
        sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES_MAX)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, QUEUE_BYTES_MAX))
            .map_err(failed)?;
        bind(&socket, link.index()).map_err(failed)?;
        Ok(Self { socket, dropped: 0 })
    }

    /// Takes the next copy into `buffer`, cut to its length; `None` when none waits. Returns how long it
    /// is.
    ///
    /// # Errors
    ///
    /// The kernel's; the interface may be gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let room = buffer.len();
        match rustix::net::recv(&self.socket, buffer, RecvFlags::empty()) {
            Ok((_, length)) => Ok(Some(length.min(room))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns how many packets were not copied, because too many waited.
    pub fn dropped(&mut self) -> u64 {
        // The kernel begins to count anew with each answer.
        let since = statistics(&self.socket).map_or(0, |s| u64::from(s.drops));
        self.dropped += since;
        self.dropped
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `rustix` has no addresses of packet sockets.
#[expect(unsafe_code, reason = "system call")]
fn bind(socket: &OwnedFd, index: u32) -> Result<(), Errno> {
    unsafe extern "C" {
        fn bind(socket: c_int, address: *const LinkAddress, length: u32) -> c_int;
    }
    let address = LinkAddress {
        family: AddressFamily::PACKET.as_raw(),
        protocol: ETH_P_ALL.to_be(),
        index: c_int::try_from(index).map_err(|_far| Errno::NODEV)?,
        hardware: 0,
        kind: 0,
        length: 0,
        address: [0; 8],
    };
    let length = u32::try_from(size_of::<LinkAddress>()).map_err(|_far| Errno::INVAL)?;
    // SAFETY: the descriptor is open, and the kernel reads `length` bytes of `address`, which lives on.
    let result = unsafe { bind(socket.as_raw_fd(), &raw const address, length) };
    checked(result)
}

/// `rustix` has no options of packet sockets.
#[expect(unsafe_code, reason = "system call")]
fn statistics(socket: &OwnedFd) -> Result<Statistics, Errno> {
    unsafe extern "C" {
        fn getsockopt(
            socket: c_int,
            level: c_int,
            name: c_int,
            value: *mut c_void,
            length: *mut u32,
        ) -> c_int;
    }
    let mut out = Statistics::default();
    let mut length = u32::try_from(size_of::<Statistics>()).map_err(|_far| Errno::INVAL)?;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes, which `out` has; both
    // are of integers, which take any value.
    let result = unsafe {
        getsockopt(
            socket.as_raw_fd(),
            SOL_PACKET,
            PACKET_STATISTICS,
            (&raw mut out).cast(),
            &raw mut length,
        )
    };
    checked(result).map(|()| out)
}

fn checked(result: c_int) -> Result<(), Errno> {
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}
