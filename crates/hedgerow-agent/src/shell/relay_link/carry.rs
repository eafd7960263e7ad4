//! One link: datagrams between a connection and the mesh's own port, unread.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::frame::{DATAGRAM_BYTES_MAX, Decoder, Queue};

/// A link by which nothing came for so long is closed: a device probes its relays more often.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(120);
/// Datagrams taken from the tunnel before the connection has its turn.
const DATAGRAMS_PER_TURN_MAX: usize = 32;
/// How much of the kernel's memory may hold what the tunnel sends in one burst, in bytes.
const SOCKET_BYTES: usize = 512 << 10;
/// First half of the addresses on this machine that links have, each one of its own: whoever counts by
/// source does not take one device for another.
const NETWORK: [u8; 2] = [127, 71];

/// What links have carried.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received_datagrams: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_datagrams: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    /// To a connection that takes too little.
    pub(super) dropped_queue: AtomicU64,
    /// That the tunnel's port did not take.
    pub(super) dropped_port: AtomicU64,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(u64::try_from(n).unwrap_or(0), Ordering::Relaxed);
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("ended by us")]
    Stopped,
    #[error("the other side closed it")]
    Closed,
    #[error("nothing came for {} s", IDLE_MAX.as_secs())]
    Idle,
    #[error(transparent)]
    TooLong(#[from] super::frame::TooLong),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens the end of a link that the tunnel sees: `slot` tells links apart, `port` is the mesh's.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn open(slot: u16, port: u16) -> io::Result<(UdpSocket, SocketAddr)> {
    let [high, low] = slot.to_be_bytes();
    let [a, b] = NETWORK;
    let socket = std::net::UdpSocket::bind((Ipv4Addr::new(a, b, high, low), 0))?;
    socket.set_nonblocking(true)?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BYTES)?;
    // From now on it hears nobody else.
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    let at = socket.local_addr()?;
    Ok((UdpSocket::from_std(socket)?, at))
}

/// Moves datagrams both ways until the link ends; returns why.
pub(super) async fn carry(
    stream: impl AsyncRead + AsyncWrite,
    socket: &UdpSocket,
    counters: &Counters,
    mut stop: oneshot::Receiver<()>,
) -> Ended {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX + 1];
    let (mut decoder, mut queue) = (Decoder::new(), Queue::default());
    let mut is_flushed = true;
    let idle = tokio::time::sleep(IDLE_MAX);
    tokio::pin!(idle);
    loop {
        let done = tokio::select! {
            _ = &mut stop => Err(Ended::Stopped),
            () = &mut idle => Err(Ended::Idle),
            got = reader.read(decoder.room()) => match got {
                Ok(0) => Err(Ended::Closed),
                Ok(n) => {
                    decoder.filled(n);
                    idle.as_mut().reset(tokio::time::Instant::now() + IDLE_MAX);
                    deliver(&mut decoder, socket, counters).await
                }
                Err(e) => Err(e.into()),
            },
            put = put(&mut writer, queue.front()), if !queue.is_empty() || !is_flushed => match put {
                Ok(Some(0)) => Err(Ended::Closed),
                Ok(written) => {
                    queue.written(written.unwrap_or(0));
                    is_flushed = written.is_none();
                    Ok(())
                }
                Err(e) => Err(e.into()),
            },
            got = socket.recv(&mut datagram) => {
                take(got, &mut datagram, &mut queue, (socket, counters));
                Ok(())
            }
        };
        if let Err(ended) = done {
            return ended;
        }
    }
}

/// Writes some of what waits; flushes when nothing does, and returns nothing then. Dropped before its end it
/// has done nothing.
async fn put(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.is_empty() {
        writer.flush().await?;
        return Ok(None);
    }
    writer.write(bytes).await.map(Some)
}

/// Hands what came to the tunnel.
async fn deliver(
    decoder: &mut Decoder,
    socket: &UdpSocket,
    counters: &Counters,
) -> Result<(), Ended> {
    while let Some(datagram) = decoder.next()? {
        // The kernel takes it at once, or not at all: the port is on this machine.
        match socket.send(datagram).await {
            Ok(_) => {
                add(&counters.received_datagrams, 1);
                add(&counters.received_bytes, datagram.len());
            }
            Err(_) => add(&counters.dropped_port, 1),
        }
    }
    Ok(())
}

/// Takes what the tunnel sends, a burst at a time.
fn take(
    mut got: io::Result<usize>,
    datagram: &mut [u8],
    queue: &mut Queue,
    (socket, counters): (&UdpSocket, &Counters),
) {
    for _ in 0..DATAGRAMS_PER_TURN_MAX {
        // That nobody listens on the port is told here as well, and mends itself.
        let Ok(len) = got else {
            return;
        };
        match queue.push(datagram.get(..len).unwrap_or_default()) {
            true => {
                add(&counters.sent_datagrams, 1);
                add(&counters.sent_bytes, len);
            }
            false => add(&counters.dropped_queue, 1),
        }
        got = socket.try_recv(datagram);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// A mesh's port, a link to it with nothing at the far end, and the far end.
    async fn link(
        slot: u16,
    ) -> (
        UdpSocket,
        SocketAddr,
        tokio::io::DuplexStream,
        impl Future<Output = (Ended, Counters)>,
        oneshot::Sender<()>,
    ) {
        let mesh = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = mesh.local_addr().unwrap().port();
        let (socket, at) = open(slot, port).unwrap();
        let (near, far) = tokio::io::duplex(4096);
        let (stop, stopped) = oneshot::channel();
        let task = async move {
            let counters = Counters::default();
            let ended = carry(near, &socket, &counters, stopped).await;
            (ended, counters)
        };
        (mesh, at, far, task, stop)
    }

    #[tokio::test]
    async fn datagrams_pass_both_ways_whole() {
        let (mesh, at, mut far, task, stop) = link(1).await;
        let task = tokio::spawn(task);
        far.write_all(&[0, 3, 1, 2, 3, 0, 1, 9]).await.unwrap();
        let mut buffer = [0; 64];
        let (n, from) = mesh.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..n], from), (&[1, 2, 3][..], at));
        assert_eq!(mesh.recv(&mut buffer).await.unwrap(), 1);
        mesh.send_to(&[7; 10], at).await.unwrap();
        let mut framed = [0; 12];
        far.read_exact(&mut framed).await.unwrap();
        assert_eq!(framed, [0, 10, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
        drop(stop);
        let (ended, counters) = task.await.unwrap();
        assert!(matches!(ended, Ended::Stopped), "{ended}");
        assert_eq!(
            (count(&counters.received_bytes), count(&counters.sent_bytes)),
            (4, 10)
        );
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_costs_a_bounded_queue_and_the_rest_is_counted() {
        let (mesh, at, mut far, task, stop) = link(2).await;
        let task = tokio::spawn(task);
        for _ in 0..200 {
            mesh.send_to(&[7; 1000], at).await.unwrap();
            tokio::task::yield_now().await;
        }
        // The other way goes on meanwhile.
        far.write_all(&[0, 1, 9]).await.unwrap();
        let mut buffer = [0; 64];
        assert_eq!(mesh.recv(&mut buffer).await.unwrap(), 1);
        drop(stop);
        let (_, counters) = task.await.unwrap();
        let (sent, dropped) = (
            count(&counters.sent_datagrams),
            count(&counters.dropped_queue),
        );
        assert!(sent < 80 && dropped > 0, "{sent} {dropped}");
    }

    #[tokio::test]
    async fn what_is_no_frame_ends_the_link() {
        let (_mesh, _, mut far, task, _stop) = link(3).await;
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (ended, _) = task.await;
        assert!(matches!(ended, Ended::TooLong(_)), "{ended}");
    }

    #[tokio::test]
    async fn a_link_hears_nobody_but_the_mesh_of_this_machine() {
        let (mesh, at, mut far, task, stop) = link(4).await;
        let task = tokio::spawn(task);
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        // Nobody is there, as far as a stranger can tell.
        drop(stranger.send_to(&[1; 5], at).await);
        mesh.send_to(&[2; 1], at).await.unwrap();
        let mut framed = [0; 3];
        far.read_exact(&mut framed).await.unwrap();
        assert_eq!(framed, [0, 1, 2]);
        drop(stop);
        task.await.unwrap();
    }
}
