//! Netlink by hand: one socket, attributes in, attributes out.
//!
//! The kernel answers a request before the send returns, so everything here is a send followed by
//! reads that never wait; only an event source ([`crate::nft::samples`]) is polled.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_send_buffer_size,
    set_socket_send_buffer_size_force,
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with,
};

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;
const ATTRIBUTE_NESTED: u16 = 0x8000;
/// Largest datagram read at once; the kernel's dumps use at most 32 KiB.
const READ_BYTES_MAX: usize = 64 * 1024;
const BUFFER_BYTES: usize = 4 << 20;
/// A dump that other writers keep disturbing is given up after so many attempts.
const DUMP_ATTEMPTS_MAX: usize = 8;

/// One netlink socket. Its port number makes it the owner of what it creates.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// One message from the kernel, without its header.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

impl Message<'_> {
    /// Returns the error number of an error message: 0 is an acknowledgement.
    pub(crate) fn error(&self) -> Option<i32> {
        let bytes = self.body.first_chunk().filter(|_| self.kind == MSG_ERROR)?;
        Some(-i32::from_ne_bytes(*bytes))
    }
}

impl Socket {
    /// Opens a socket of one netlink family; none is the first, `NETLINK_ROUTE`.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        let socket = Self::from_fd(fd);
        if set_socket_recv_buffer_size_force(&socket.fd, BUFFER_BYTES).is_err() {
            set_socket_recv_buffer_size(&socket.fd, BUFFER_BYTES)?;
        }
        Ok(socket)
    }

    /// Goes on with a socket that an earlier process opened; answers left over are thrown away.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        let mut socket = Self { fd, sequence: 0 };
        let mut buffer = vec![0; READ_BYTES_MAX];
        while matches!(socket.read(&mut buffer), Ok(Some(_)) | Err(Errno::NOBUFS)) {
            socket.sequence = socket.sequence.wrapping_add(1);
        }
        socket
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Returns the port number that the kernel gave this socket.
    pub(crate) fn port(&self) -> io::Result<u32> {
        let any = rustix::net::getsockname(&self.fd)?;
        Ok(SocketAddrNetlink::try_from(any)?.pid())
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > BUFFER_BYTES / 32 {
            // One datagram carries a whole transaction, and the buffer's size bounds a datagram.
            let wanted = bytes.len() + BUFFER_BYTES;
            if set_socket_send_buffer_size_force(&self.fd, wanted).is_err() {
                set_socket_send_buffer_size(&self.fd, wanted)?;
            }
        }
        let kernel = SocketAddrNetlink::new(0, 0);
        let sent = sendto(&self.fd, bytes, SendFlags::empty(), &kernel)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }

    /// Reads one datagram if there is one.
    pub(crate) fn read<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>, Errno> {
        loop {
            match recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::WOULDBLOCK) => return Ok(None),
                Ok((_, length)) => return Ok(buffer.get(..length)),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, request: Request) -> Result<(), Errno> {
        let sequence = self.next_sequence();
        self.send(&request.finish(sequence, ACK))?;
        let mut buffer = vec![0; READ_BYTES_MAX];
        while let Some(datagram) = self.read(&mut buffer)? {
            for message in messages(datagram) {
                match message.error() {
                    Some(0) if message.sequence == sequence => return Ok(()),
                    Some(n) if message.sequence == sequence => {
                        return Err(Errno::from_raw_os_error(n));
                    }
                    Some(_) | None => {}
                }
            }
        }
        Err(Errno::IO)
    }

    /// Sends a dump request and shows every answer to `visit`; starts again when the kernel says
    /// that the dump was disturbed, after calling `restart`.
    pub(crate) fn dump<T>(
        &mut self,
        request: impl Fn() -> Request,
        mut start: impl FnMut() -> T,
        mut visit: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<T, Errno> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let sequence = self.next_sequence();
            self.send(&request().finish(sequence, DUMP))?;
            let mut state = start();
            if self.read_dump(sequence, &mut |m| visit(&mut state, m))? {
                return Ok(state);
            }
        }
        Err(Errno::BUSY)
    }

    /// Returns whether the dump was undisturbed.
    fn read_dump(&self, sequence: u32, visit: &mut dyn FnMut(&Message<'_>)) -> Result<bool, Errno> {
        let mut buffer = vec![0; READ_BYTES_MAX];
        let mut undisturbed = true;
        // The kernel fills the next part of a dump while the last one is read.
        while let Some(datagram) = self.read(&mut buffer)? {
            for message in messages(datagram).filter(|m| m.sequence == sequence) {
                undisturbed &= message.flags & FLAG_DUMP_INTERRUPTED == 0;
                match (message.kind, message.error()) {
                    (MSG_DONE, _) => return Ok(undisturbed),
                    (MSG_ERROR, Some(0)) => return Ok(undisturbed),
                    (MSG_ERROR, n) => {
                        return Err(Errno::from_raw_os_error(
                            n.unwrap_or(Errno::IO.raw_os_error()),
                        ));
                    }
                    _ => visit(&message),
                }
            }
        }
        Err(Errno::IO)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One request under construction. Lengths are filled in when it is finished.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    kind: u16,
    flags: u16,
}

impl Request {
    /// Begins a message of `kind` with its fixed part `head`, padded to four bytes.
    pub(crate) fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(head);
        pad(&mut bytes);
        Self { bytes, kind, flags }
    }

    pub(crate) fn attributes(mut self, fill: impl FnOnce(&mut Attributes)) -> Self {
        let mut list = Attributes(std::mem::take(&mut self.bytes));
        fill(&mut list);
        self.bytes = list.0;
        self
    }

    /// Returns the attributes and fixed part, as the kernel would show them back.
    pub(crate) fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    pub(crate) fn kind(&self) -> u16 {
        self.kind
    }

    /// Appends the finished message to `out`.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>, sequence: u32, more_flags: u16) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let flags = self.flags | more_flags | REQUEST;
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&flags.to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(self.body());
    }

    fn finish(&self, sequence: u32, more_flags: u16) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len());
        self.append_to(&mut out, sequence, more_flags);
        out
    }
}

/// A list of attributes under construction.
#[derive(Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(&mut self.0);
        self
    }

    /// A text with its terminating zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A list of attributes that the kernel sent, as one attribute.
    pub(crate) fn nested_bytes(&mut self, kind: u16, list: &[u8]) -> &mut Self {
        self.bytes(kind | ATTRIBUTE_NESTED, list)
    }

    /// Puts a finished list behind this one.
    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// A list of attributes as one attribute. The caller keeps it below 64 KiB.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        let head = [
            length.to_ne_bytes(),
            (kind | ATTRIBUTE_NESTED).to_ne_bytes(),
        ];
        if let Some(slot) = self.0.get_mut(start..start + 4) {
            slot.copy_from_slice(head.as_flattened());
        }
        self
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Splits a datagram into messages; what is cut off is left out.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let whole = rest.get(..length)?;
        let message = Message {
            kind: u16_at(whole, 4)?,
            flags: u16_at(whole, 6)?,
            sequence: u32::from_ne_bytes(*whole.get(8..)?.first_chunk()?),
            body: whole.get(HEADER_BYTES..)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Splits a list of attributes into (type, value); stops at what is malformed.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> + Clone {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & ATTRIBUTE_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the first attribute of this type.
pub(crate) fn find(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// Returns an attribute's text without its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let bare = value.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bare).into_owned()
}

pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

pub(crate) fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*value.first_chunk()?))
}

pub(crate) fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let request = Request::new(7, CREATE, &[1, 2, 3, 4]).attributes(|a| {
            a.text(1, "abc").be16(2, 9).nested(3, |a| {
                a.be64(1, 5);
            });
        });
        let bytes = request.finish(11, ACK);
        let list: Vec<_> = messages(&bytes).collect();
        assert_eq!(list.len(), 1);
        let m = &list[0];
        assert_eq!(
            (m.kind, m.flags, m.sequence),
            (7, CREATE | ACK | REQUEST, 11)
        );
        let body = &m.body[4..];
        assert_eq!(text(find(body, 1).unwrap()), "abc");
        assert_eq!(find(body, 2).unwrap(), [0, 9]);
        assert_eq!(be64(find(find(body, 3).unwrap(), 1).unwrap()), Some(5));
    }

    #[test]
    fn damaged_input_ends_the_walk() {
        let good = Request::new(1, 0, &[]).attributes(|a| {
            a.be32(1, 1).be32(2, 2);
        });
        let bytes = good.finish(1, 0);
        for cut in 0..bytes.len() {
            assert_eq!(messages(&bytes[..cut]).count(), 0);
        }
        for cut in 0..good.body().len() {
            assert!(attributes(&good.body()[..cut]).count() < 2);
        }
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
