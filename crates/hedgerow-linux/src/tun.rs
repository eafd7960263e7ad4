//! The TUN device: whole IP packets to and from the kernel.

use std::io;

use hedgerow_model::Fault;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, opcode};

/// Bytes of an interface name, without the terminating zero.
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

const CLONE_DEVICE: &str = "/dev/net/tun";
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const TUNSETIFF: ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: ioctl::Opcode = opcode::write::<i32>(b'T', 203);

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

/// An open TUN device. Reads and writes never block.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
}

/// What `TUNSETIFF` reads and writes: `struct ifreq`.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; INTERFACE_NAME_BYTES_MAX + 1],
    flags: u16,
    padding: [u8; 22],
}

impl Tun {
    /// Creates the interface, or attaches to the persistent one of this name.
    ///
    /// # Errors
    ///
    /// [`TunError`] says what is missing.
    pub fn open(name: &str, lifetime: Lifetime) -> Result<Self, TunError> {
        let mut request = request(name)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(CLONE_DEVICE, flags, Mode::empty())
            .map_err(|errno| named(name, errno))?;
        attach(&fd, &mut request).map_err(|errno| named(name, errno))?;
        let tun = Self {
            fd,
            name: name.to_owned(),
        };
        tun.persist(lifetime).map_err(|errno| named(name, errno))?;
        Ok(tun)
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one packet; `None` when there is none now.
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

    /// Writes one packet; `false` when the kernel did not take it.
    ///
    /// The kernel refuses packets while the interface is down or its own queue is full, and
    /// malformed ones. Each is one packet lost, as on any link.
    pub fn write(&self, packet: &[u8]) -> bool {
        rustix::io::write(&self.fd, packet).is_ok()
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
