//! Hand-made rulesets and the packets they are tried with.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use hedgerow_linux::nft::Table;
use hedgerow_model::address::{Overlay, OverlayAddresses};
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::{
    Entry, Lifeline, LinkPorts, Profile, ProfileId, RuleRef, Ruleset, Verdict,
};
use hedgerow_model::service::Ports;
use hedgerow_model::{Mono, Now, Wall};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::namespace::{Lab, Namespace, TUNNEL, own4, own6, tool};

pub(crate) const DEFAULT: RuleRef = RuleRef(0);
pub(crate) const NO_WEB: RuleRef = RuleRef(1);
pub(crate) const DENIED: Verdict = Verdict::Deny(DEFAULT);
/// How long a packet may take that is let through, and how long one waits for what is not.
pub(crate) const PATIENCE: Duration = Duration::from_millis(400);

pub(crate) fn at(secs: u64) -> Now {
    Now {
        mono: Mono(Duration::from_secs(secs)),
        wall: Wall::from_secs(1_790_000_000 + secs),
        wall_is_trusted: true,
    }
}

pub(crate) fn entry(ports: Ports, verdict: Verdict) -> Entry {
    Entry {
        ports,
        verdict,
        until: None,
    }
}

/// A profile that refuses what is not listed, both ways.
pub(crate) fn profile(inbound: Vec<Entry>, outbound: Vec<Entry>) -> Profile {
    Profile {
        inbound,
        outbound,
        inbound_default: DENIED,
        outbound_default: DENIED,
    }
}

/// A ruleset without peers whose underlay is only observed.
pub(crate) fn ruleset(profiles: Vec<Profile>) -> Ruleset {
    let (IpAddr::V6(v6), IpAddr::V4(v4)) = (own6(), own4()) else {
        panic!("own addresses are one of each");
    };
    let numbers = (1..).map(ProfileId);
    Ruleset {
        generation: 1,
        tunnel: TUNNEL.into(),
        own: OverlayAddresses { v6, v4: Some(v4) },
        pools: ["fd00:7::/48", "100.80.0.0/12"]
            .map(|p| p.parse().unwrap())
            .to_vec(),
        profiles: numbers.zip(profiles).collect(),
        peers: BTreeMap::new(),
        limits: Vec::new(),
        rule_names: vec!["default".into(), "no-web".into()],
        underlay_mode: Mode::Observe,
        underlay: Vec::new(),
        lifeline: Lifeline {
            mesh_port: 7117,
            links: LinkPorts::default(),
            ..Lifeline::default()
        },
        sample_seconds: 1,
    }
}

/// Makes the address a peer with this profile.
pub(crate) fn with_peer(ruleset: &mut Ruleset, address: IpAddr, profile: u32) {
    ruleset.peers.insert(Overlay(address), ProfileId(profile));
}

pub(crate) fn open(namespace: &Namespace) -> Table {
    namespace.run(|| Table::open(None)).unwrap()
}

pub(crate) fn load(lab: &Lab, ruleset: &Ruleset) -> Table {
    let mut table = open(&lab.device);
    table.load(ruleset, at(0)).unwrap();
    table
}

/// Waits until something holds; says whether it did within what a loaded machine may take.
pub(crate) fn soon(mut holds: impl FnMut() -> bool) -> bool {
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// What came of trying to reach a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Bytes came back.
    Answered,
    /// The own kernel, or a reset, said no at once.
    Rejected,
    /// Nothing came.
    Silent,
}

/// Connects from `source` inside `from` to `target`, and tries to exchange bytes.
pub(crate) fn tcp(from: &Namespace, source: IpAddr, target: SocketAddr) -> Outcome {
    from.run(|| tcp_here(source, target))
}

/// As [`tcp`], where the calling thread is.
pub(crate) fn tcp_here(source: IpAddr, target: SocketAddr) -> Outcome {
    match connect(source, target) {
        Ok(stream) if exchange(&stream) => Outcome::Answered,
        Ok(_) => Outcome::Silent,
        Err(e) if is_timeout(&e) => Outcome::Silent,
        Err(_) => Outcome::Rejected,
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Connects from a chosen address, within [`PATIENCE`].
pub(crate) fn connect(source: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if source.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    wait_writable(&socket)?;
    rustix::net::sockopt::socket_error(&socket)??;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn wait_writable(socket: &OwnedFd) -> std::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let mut list = [PollFd::new(socket, PollFlags::OUT)];
    match poll(&mut list, Some(&patience))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Sends a line and waits for it to come back.
pub(crate) fn exchange(mut stream: &TcpStream) -> bool {
    let mut back = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut back).is_ok()
}

pub(crate) fn udp(from: &Namespace, source: IpAddr, target: SocketAddr) -> Outcome {
    from.run(|| udp_here(source, target))
}

/// As [`udp`], where the calling thread is.
pub(crate) fn udp_here(source: IpAddr, target: SocketAddr) -> Outcome {
    let socket = UdpSocket::bind((source, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut back = [0; 16];
    let result = socket
        .connect(target)
        .and_then(|()| socket.send(b"hello"))
        .and_then(|_| socket.recv(&mut back));
    match result {
        Ok(_) => Outcome::Answered,
        Err(e) if is_timeout(&e) => Outcome::Silent,
        Err(_) => Outcome::Rejected,
    }
}

/// Sends one echo request from a chosen source.
pub(crate) fn ping(from: &Namespace, source: IpAddr, target: IpAddr) -> bool {
    drop(tool("ping"));
    from.run(|| {
        let (source, target) = (source.to_string(), target.to_string());
        let args = ["-n", "-c", "1", "-W", "0.4", "-I", &source, &target];
        tool("ping").args(args).output().unwrap().status.success()
    })
}

/// Answers on TCP and UDP ports of one address until the test ends.
pub(crate) fn serve(inside: &Namespace, address: IpAddr, ports: &[u16]) {
    for port in ports {
        let listener = inside.run(|| TcpListener::bind((address, *port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
        let socket = inside.run(|| UdpSocket::bind((address, *port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(&buffer[..n], from));
            }
        });
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 65536];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}
