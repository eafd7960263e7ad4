//! The TUN device: whole IP packets to and from the kernel, many at once where it can.

use std::io::{self, IoSlice};

use hedgerow_model::Fault;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, opcode};

use crate::tunnel::offload::virtio::HEADER_BYTES;

/// Bytes of an interface name, without the terminating zero.
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

const CLONE_DEVICE: &str = "/dev/net/tun";
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_VNET_HDR: u16 = 0x4000;
const TUNSETIFF: ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: ioctl::Opcode = opcode::write::<i32>(b'T', 203);

const TUNSETOFFLOAD: ioctl::Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: ioctl::Opcode = opcode::write::<i32>(b'T', 216);
const OFFLOAD_CHECKSUM: usize = 0x01;
const OFFLOAD_TCP: usize = 0x02 | 0x04;
const OFFLOAD_TCP_ECN: usize = 0x08;
const OFFLOAD_UDP: usize = 0x20 | 0x40;
/// Queues of one device.
pub const QUEUES_MAX: usize = 16;

/// What the kernel leaves to us, each with what stands before it. Kernels have learnt it in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Offload {
    /// Finished packets only, without a header before them.
    Nothing,
    /// A header before each packet, and packets without checksums (Linux 2.6.27).
    Checksums,
    /// Many TCP segments in one packet.
    Tcp,
    /// The same with congestion marks.
    TcpEcn,
    /// Many UDP datagrams in one packet (Linux 6.2).
    #[default]
    Udp,
}

impl Offload {
    /// What to try after this.
    fn less(self) -> Option<Self> {
        match self {
            Self::Udp => Some(Self::TcpEcn),
            Self::TcpEcn => Some(Self::Tcp),
            Self::Tcp => Some(Self::Checksums),
            Self::Checksums => Some(Self::Nothing),
            Self::Nothing => None,
        }
    }

    fn flags(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Checksums => OFFLOAD_CHECKSUM,
            Self::Tcp => OFFLOAD_CHECKSUM | OFFLOAD_TCP,
            Self::TcpEcn => OFFLOAD_CHECKSUM | OFFLOAD_TCP | OFFLOAD_TCP_ECN,
            Self::Udp => OFFLOAD_CHECKSUM | OFFLOAD_TCP | OFFLOAD_TCP_ECN | OFFLOAD_UDP,
        }
    }
}

/// Whether the interface stays when the last descriptor is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It goes with the process.
    Process,
    /// It stays, with its addresses and routes, until [`remove`].
    Persistent,
}

/// Why the device could not be opened; nothing was created.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN driver, or the container hides it.
    #[error("{CLONE_DEVICE} is missing: load the kernel module tun")]
    NoDriver,
    /// CAP_NET_ADMIN is missing, or another user owns the interface.
    #[error("not permitted to open interface {name}: CAP_NET_ADMIN is needed")]
    NotPermitted {
        /// The interface.
        name: String,
    },
    /// Another process has the interface open.
    #[error("interface {name} is in use by another process")]
    InUse {
        /// The interface.
        name: String,
    },
    /// The name is empty, too long, or has a character interfaces cannot have.
    #[error("{name:?} is no interface name: 1 to {INTERFACE_NAME_BYTES_MAX} bytes, no space, no /")]
    BadName {
        /// What was given.
        name: String,
    },
    /// An interface of this name exists and is no TUN device.
    #[error("interface {name} exists and is not a TUN device")]
    OtherKind {
        /// The interface.
        name: String,
    },
    /// Anything else.
    #[error("cannot open interface {name}")]
    Other {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl TunError {
    /// Returns who is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadName { .. } | Self::OtherKind { .. } => Fault::Operator,
            Self::NoDriver
            | Self::NotPermitted { .. }
            | Self::InUse { .. }
            | Self::Other { .. } => Fault::Environment,
        }
    }
}

/// An open queue of a TUN device. Reads and writes never block.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    offload: Offload,
}

/// What `TUNSETIFF` reads and writes: `struct ifreq`.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; INTERFACE_NAME_BYTES_MAX + 1],
    flags: u16,
    padding: [u8; 22],
}

impl Tun {
    /// Creates the interface, or attaches to the persistent one of this name, with one queue and
    /// finished packets.
    ///
    /// # Errors
    ///
    /// [`TunError`] says what is missing.
    pub fn open(name: &str, lifetime: Lifetime) -> Result<Self, TunError> {
        let mut queues = Self::open_queues(name, lifetime, Offload::Nothing, 1)?;
        queues.pop().ok_or(TunError::NoDriver)
    }

    /// Creates the interface, or attaches to the persistent one of this name, with up to `count`
    /// queues (at least one, at most [`QUEUES_MAX`]) and up to `most` of offload, as the kernel can.
    ///
    /// # Errors
    ///
    /// [`TunError`] says what is missing.
    pub fn open_queues(
        name: &str,
        lifetime: Lifetime,
        most: Offload,
        count: usize,
    ) -> Result<Vec<Self>, TunError> {
        let shared = count > 1;
        // A persistent interface keeps the kind it was made with.
        let (first, shared) = match Self::open_queue(name, most, shared) {
            Err(TunError::OtherKind { .. }) => (Self::open_queue(name, most, !shared)?, !shared),
            opened => (opened?, shared),
        };
        first
            .persist(lifetime)
            .map_err(|errno| named(name, errno))?;
        let mut queues = vec![first];
        while shared && queues.len() < count.min(QUEUES_MAX) {
            match Self::open_queue(name, most, true) {
                Ok(queue) => queues.push(queue),
                // Fewer queues work too.
                Err(_) => break,
            }
        }
        Ok(queues)
    }

    fn open_queue(name: &str, most: Offload, shared: bool) -> Result<Self, TunError> {
        let mut offload = most;
        loop {
            let fd = clone_device().map_err(|errno| named(name, errno))?;
            let mut request = request(name)?;
            if shared {
                request.flags |= IFF_MULTI_QUEUE;
            }
            if offload > Offload::Nothing {
                request.flags |= IFF_VNET_HDR;
            }
            let attached = attach(&fd, &mut request);
            match attached.and_then(|()| set_offload(&fd, &mut offload)) {
                Ok(()) => {
                    let name = name.to_owned();
                    return Ok(Self { fd, name, offload });
                }
                Err(Errno::INVAL) if offload > Offload::Nothing => offload = Offload::Nothing,
                Err(errno) => return Err(named(name, errno)),
            }
        }
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the kernel leaves to us.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Reads one packet, after its header where there is one; `None` when there is none now.
    ///
    /// # Errors
    ///
    /// `EIO` while the interface is down; anything else is final.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(n) => Ok(Some(n)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes one packet, in pieces, the first of them the header where there is one; `false` when the
    /// kernel did not take it.
    ///
    /// The kernel refuses packets while the interface is down or its own queue is full, and
    /// malformed ones. Each is one packet lost, as on any link.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> bool {
        rustix::io::writev(&self.fd, pieces).is_ok()
    }

    #[expect(unsafe_code, reason = "ioctl")]
    fn persist(&self, lifetime: Lifetime) -> rustix::io::Result<()> {
        let value = match lifetime {
            Lifetime::Process => 0,
            Lifetime::Persistent => 1,
        };
        // SAFETY: TUNSETPERSIST takes an integer by value, and 0 and 1 are its range.
        unsafe {
            ioctl::ioctl(
                &self.fd,
                ioctl::IntegerSetter::<TUNSETPERSIST>::new_usize(value),
            )
        }
    }
}

fn clone_device() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(CLONE_DEVICE, flags, Mode::empty())
}

/// Asks for `offload`, or for less until the kernel takes it.
#[expect(unsafe_code, reason = "ioctl")]
fn set_offload(fd: &OwnedFd, offload: &mut Offload) -> rustix::io::Result<()> {
    if *offload > Offload::Nothing {
        let bytes = i32::try_from(HEADER_BYTES).unwrap_or_default();
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, which the setter owns.
        unsafe { ioctl::ioctl(fd, ioctl::Setter::<TUNSETVNETHDRSZ, i32>::new(bytes)) }?;
    }
    loop {
        let flags = offload.flags();
        // SAFETY: TUNSETOFFLOAD takes its flags by value, and refuses those it does not know.
        let done =
            unsafe { ioctl::ioctl(fd, ioctl::IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags)) };
        match (done, offload.less()) {
            // With the header the least is checksums: a device without it is opened anew.
            (Err(Errno::INVAL), Some(less)) if less > Offload::Nothing => *offload = less,
            (done, _) => return done,
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Removes a persistent interface; one that does not exist is removed already.
///
/// # Errors
///
/// [`TunError::InUse`] while a process has it open.
pub fn remove(name: &str) -> Result<(), TunError> {
    // Attaching and closing without persistence is removal.
    Tun::open(name, Lifetime::Process).map(drop)
}

fn request(name: &str) -> Result<InterfaceRequest, TunError> {
    let bad = |b: u8| b <= b' ' || b == b'/' || b == b':' || b == b'%' || b > b'~';
    if name.is_empty()
        || name.len() > INTERFACE_NAME_BYTES_MAX
        || name == "."
        || name == ".."
        || name.bytes().any(bad)
    {
        return Err(TunError::BadName {
            name: name.to_owned(),
        });
    }
    let mut request = InterfaceRequest {
        name: [0; INTERFACE_NAME_BYTES_MAX + 1],
        flags: IFF_TUN | IFF_NO_PI,
        padding: [0; 22],
    };
    for (slot, byte) in request.name.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    Ok(request)
}

#[expect(unsafe_code, reason = "ioctl")]
fn attach(fd: &OwnedFd, request: &mut InterfaceRequest) -> rustix::io::Result<()> {
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `InterfaceRequest` is: 16 bytes
    // of name, a union of 24 bytes that begins with the flags.
    unsafe { ioctl::ioctl(fd, ioctl::Updater::<TUNSETIFF, _>::new(request)) }
}

fn named(name: &str, errno: Errno) -> TunError {
    let name = name.to_owned();
    match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => TunError::NoDriver,
        Errno::PERM | Errno::ACCESS => TunError::NotPermitted { name },
        Errno::BUSY => TunError::InUse { name },
        Errno::INVAL => TunError::OtherKind { name },
        other => TunError::Other {
            name,
            source: other.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_the_kernel_s() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[test]
    fn names_the_kernel_would_cut_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a b", "a/b", "..", "ä", "a\0", "%d"] {
            assert!(
                matches!(
                    Tun::open(name, Lifetime::Process),
                    Err(TunError::BadName { .. })
                ),
                "{name:?}"
            );
        }
    }
}
