//! Real packets: a connection, a datagram, an echo request, and what became of each.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hedgerow_model::service::Protocol;

use super::namespace::{Namespace, tool};

/// The edges and the inside of every service that a drawn policy speaks of.
pub(super) const TCP_PORTS: [u16; 7] = [399, 400, 405, 410, 411, 443, 502];
pub(super) const UDP_PORTS: [u16; 4] = [49, 50, 53, 54];
/// How long what is refused is given to arrive all the same.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// More than a bucket holds, a little at a time.
const FLOOD_DATAGRAMS: usize = 160;
const FLOOD_BYTES: usize = 1200;

/// What came of trying to reach a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Bytes came back.
    Answered,
    /// The sender was told no at once.
    Rejected,
    /// Nothing came.
    Silent,
}

/// Answers on every port until the test ends. What begins with a zero is swallowed.
pub(super) fn serve(inside: &Namespace) {
    let any = Ipv6Addr::UNSPECIFIED;
    for port in TCP_PORTS {
        let listener = inside.run(|| TcpListener::bind((any, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
    }
    for port in UDP_PORTS {
        let socket = inside.run(|| UdpSocket::bind((any, port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                if buffer[0] != 0 {
                    drop(socket.send_to(&buffer[..n], from));
                }
            }
        });
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 2048];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// Tries one service from the namespace of the calling thread.
pub(super) fn attempt(target: IpAddr, point: (Protocol, u16), patience: Duration) -> Seen {
    let target = SocketAddr::new(target, point.1);
    match point.0 {
        Protocol::Tcp => told(&tcp(target, patience)),
        Protocol::Udp => told(&udp(target, patience)),
        Protocol::IcmpEcho => ping(target.ip(), patience),
    }
}

fn told(result: &std::io::Result<()>) -> Seen {
    match result {
        Ok(()) => Seen::Answered,
        Err(e) if matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Seen::Silent,
        Err(_) => Seen::Rejected,
    }
}

/// Both ends close before this returns, so that nothing of it is on its way any more.
fn tcp(target: SocketAddr, patience: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    if back == b"hello" {
        Ok(())
    } else {
        Err(ErrorKind::InvalidData.into())
    }
}

fn udp(target: SocketAddr, patience: Duration) -> std::io::Result<()> {
    let socket = sender(target)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"hello")?;
    let mut back = [0; 16];
    socket.recv(&mut back)?;
    Ok(())
}

fn sender(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket)
}

fn ping(target: IpAddr, patience: Duration) -> Seen {
    let wait = format!("{:.1}", patience.as_secs_f64());
    let mut command = tool("ping", "iputils-ping");
    let output = command.args(["-n", "-c", "1", "-W", &wait, &target.to_string()]);
    let output = output.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Seen::Answered
    } else if text.contains("+1 errors") || error.contains("sendmsg") || error.contains("denied") {
        Seen::Rejected
    } else {
        Seen::Silent
    }
}

/// Sends more at once than a limit lets pass, to a port that answers no zero.
pub(super) fn flood(target: IpAddr, port: u16) {
    let socket = sender(SocketAddr::new(target, port)).unwrap();
    for _ in 0..FLOOD_DATAGRAMS {
        socket.send(&[0; FLOOD_BYTES]).unwrap();
    }
}
