//! On the real kernel: network namespaces, TUN devices, `wireguard-go`, TCP.
#![expect(
    clippy::disallowed_methods,
    reason = "the test waits for programs and runs them"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command as Program, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use hedgerow_model::Wall;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::pair::{addresses, open_profile, overlay, secret, v4, v6};
use crate::tunnel::{
    Command, Features, PeerConfig, PrivateKey, Report, Roaming, Secrecy, Slot, StartError, Tunnel,
    TunnelConfig, TunnelHandle,
};
use crate::udp::UdpError;

/// A whole test's bound on anything it waits for.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Tells the interfaces of other people's WireGuard apart.
static INTERFACES: AtomicU32 = AtomicU32::new(0);

/// Two namespaces joined by a wire; gone, with all that runs in them, when dropped.
pub(super) struct Lab {
    name: String,
    children: Vec<Child>,
}

impl Lab {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        remove_orphans();
        let lab = Self {
            name: format!("hgt-tunnel-{}-{n}", std::process::id()),
            children: vec![],
        };
        for side in [1, 2] {
            let ns = lab.ns(side);
            run(&format!("ip netns add {ns}"));
            run(&format!("ip -n {ns} link set lo up"));
        }
        let (one, two) = (lab.ns(1), lab.ns(2));
        run(&format!(
            "ip -n {one} link add wire type veth peer name wire netns {two}"
        ));
        for side in [1, 2] {
            let ns = lab.ns(side);
            run(&format!("ip -n {ns} addr add 192.0.2.{side}/24 dev wire"));
            run(&format!(
                "ip -n {ns} addr add fd11::{side}/64 dev wire nodad"
            ));
            run(&format!("ip -n {ns} link set wire up"));
        }
        lab
    }

    pub(super) fn ns(&self, side: u8) -> String {
        format!("{}-{side}", self.name)
    }

    /// Runs `work` in a side's namespace, on a thread of its own.
    pub(super) fn inside<T: Send>(&self, side: u8, work: impl FnOnce() -> T + Send) -> T {
        let ns = std::fs::File::open(format!("/run/netns/{}", self.ns(side))).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                use rustix::fd::AsFd;
                move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Gives an interface its addresses and the route to the other side's.
    fn configure(&self, side: u8, interface: &str) {
        let ns = self.ns(side);
        for address in addresses(side).iter() {
            run(&format!("ip -n {ns} addr add {address} dev {interface}"));
        }
        run(&format!("ip -n {ns} link set {interface} mtu 1420 up"));
        for address in addresses(3 - side).iter() {
            run(&format!("ip -n {ns} route add {address} dev {interface}"));
        }
    }

    fn tunnel(&self, side: u8) -> Ours {
        self.tunnel_with(side, Features::default())
    }

    pub(super) fn tunnel_with(&self, side: u8, features: Features) -> Ours {
        let (sender, reports) = sync_channel(1000);
        let mut config = config(side);
        config.features = features;
        let handle = self.inside(side, move || {
            Tunnel::start(config, move |report: Report| {
                sender.try_send(report).map_err(|e| match e {
                    std::sync::mpsc::TrySendError::Full(r)
                    | std::sync::mpsc::TrySendError::Disconnected(r) => r,
                })
            })
            .unwrap()
        });
        self.configure(side, "hedgerow0");
        Ours { handle, reports }
    }

    /// Starts Debian's wireguard-go, which knows us as its only peer.
    pub(super) fn wireguard_go(&mut self, side: u8, endpoint: Option<&str>) {
        for (program, package) in [
            ("wireguard-go", "wireguard-go"),
            ("wg", "wireguard-tools"),
            ("ping", "iputils-ping"),
        ] {
            let found = std::path::Path::new("/usr/bin").join(program).exists();
            assert!(found, "this test needs the Debian package {package}");
        }
        let (ns, interface) = (
            self.ns(side),
            // Sockets of all namespaces share one folder, and tests may share one process.
            format!(
                "hgtwg{}n{}",
                std::process::id() % 100_000,
                INTERFACES.fetch_add(1, Ordering::Relaxed)
            ),
        );
        let go = Program::new("ip")
            .args(["netns", "exec", &ns, "wireguard-go", "-f", &interface])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.children.push(go);
        let socket = format!("/run/wireguard/{interface}.sock");
        eventually("wireguard-go listens", || {
            std::path::Path::new(&socket).exists()
        });
        let other = 3 - side;
        let mut settings = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 7117\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/128, {}/32\n",
            base64(secret(side).expose()),
            base64(&secret(other).public().0),
            v6(other),
            v4(other),
        );
        if let Some(endpoint) = endpoint {
            settings += &format!("Endpoint = {endpoint}\n");
        }
        let mut wg = Program::new("ip")
            .args([
                "netns",
                "exec",
                &ns,
                "wg",
                "setconf",
                &interface,
                "/dev/stdin",
            ])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        wg.stdin
            .take()
            .unwrap()
            .write_all(settings.as_bytes())
            .unwrap();
        assert!(wg.wait().unwrap().success());
        self.configure(side, &interface);
    }

    pub(super) fn ping(&self, from: u8, to: IpAddr) {
        run(&format!(
            "ip netns exec {} ping -q -c 3 -i 0.05 -W 5 {to}",
            self.ns(from)
        ));
    }

    /// Sends `bytes` from one side to the other over TCP and checks each of them; `during` is called
    /// while they flow.
    pub(super) fn stream(
        &self,
        (from, to): (u8, u8),
        address: IpAddr,
        bytes: usize,
        during: impl FnOnce(),
    ) {
        let listener = self.inside(to, || TcpListener::bind((address, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let sender = self.inside(from, || connect(target));
        let writer = std::thread::spawn(move || write_pattern(sender, bytes));
        let (mut receiver, _) = listener.accept().unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = 0usize;
            let mut buffer = vec![0; 65_536];
            loop {
                let n = receiver.read(&mut buffer).unwrap();
                if n == 0 {
                    return got;
                }
                for (i, byte) in buffer[..n].iter().enumerate() {
                    assert_eq!(*byte, pattern(got + i));
                }
                got += n;
            }
        });
        during();
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), bytes);
    }
}

/// Removes namespaces of test processes that were killed.
fn remove_orphans() {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten();
    for name in names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let process = name
            .strip_prefix("hgt-tunnel-")
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if process.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test may be doing the same.
            drop(Program::new("ip").args(["netns", "del", &name]).output());
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both may have ended by themselves.
            drop(child.kill());
            drop(child.wait());
        }
        for side in [1, 2] {
            let ns = self.ns(side);
            drop(Program::new("ip").args(["netns", "del", &ns]).status());
        }
    }
}

/// A tunnel of ours with its reports.
pub(super) struct Ours {
    pub(super) handle: TunnelHandle,
    reports: Receiver<Report>,
}

impl Ours {
    pub(super) fn expect(&self, what: &str, is_it: impl Fn(&Report) -> bool) -> Report {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(report) if is_it(&report) => return report,
                Ok(_) => {}
                Err(_) => panic!("no report: {what}; {:?}", self.handle.stats()),
            }
        }
    }

    pub(super) fn know(&self, peer: u8, endpoint: Option<&str>) {
        self.handle
            .send(Command::SetPeer(peer_config(peer, secret(peer), endpoint)))
            .unwrap();
    }
}

fn config(side: u8) -> TunnelConfig {
    TunnelConfig {
        name: "hedgerow0".to_owned(),
        addresses: addresses(side),
        mtu: 1420,
        port: 7117,
        private_key: secret(side),
        persistent: false,
        wall_floor: Wall(0),
        features: Features::default(),
    }
}

fn device(n: u8) -> DeviceId {
    DeviceId([n; 16])
}

fn peer_config(n: u8, key: PrivateKey, endpoint: Option<&str>) -> PeerConfig {
    PeerConfig {
        device: device(n),
        slot: Slot::Current,
        public_key: key.public(),
        addresses: addresses(n),
        endpoint: endpoint.map(|e| Underlay(e.parse().unwrap()).into()),
        psk: None,
        secrecy: Secrecy::Classical,
        roaming: Roaming::Follow,
        keepalive: None,
    }
}

pub(super) fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Program::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(
        output.status.success(),
        "{line}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn connect(target: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn pattern(at: usize) -> u8 {
    u8::try_from((at * 31 + at / 251) % 251).unwrap()
}

fn write_pattern(mut stream: TcpStream, bytes: usize) {
    let mut done = 0;
    while done < bytes {
        let chunk: Vec<u8> = (done..bytes.min(done + 16_384)).map(pattern).collect();
        stream.write_all(&chunk).unwrap();
        done += chunk.len();
    }
}

fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for i in 0..4 {
            let sign = SIGNS[(word >> (18 - 6 * i)) as usize & 63];
            text.push(if i > chunk.len() { '=' } else { sign.into() });
        }
    }
    text
}

fn established(report: &Report) -> bool {
    matches!(report, Report::Established { .. })
}

#[test]
fn tunnel_initiates_to_wireguard_go_and_carries_ping_and_tcp() {
    let mut lab = Lab::new();
    lab.wireguard_go(2, None);
    let ours = lab.tunnel(1);
    ours.know(2, Some("192.0.2.2:7117"));
    for to in [v6(2), v4(2)] {
        lab.ping(1, to);
        lab.stream((1, 2), to, 2 << 20, || {});
    }
    for to in [v6(1), v4(1)] {
        lab.stream((2, 1), to, 2 << 20, || {});
    }
    ours.expect("established", established);
    let stats = ours.handle.stats();
    assert_eq!((stats.handshakes_begun, stats.handshakes_done), (1, 1));
    ours.handle.shutdown();
}

#[test]
fn tunnel_responds_to_wireguard_go_over_ipv6_and_carries_ping_and_tcp() {
    let mut lab = Lab::new();
    let ours = lab.tunnel(1);
    ours.know(2, None);
    lab.wireguard_go(2, Some("[fd11::1]:7117"));
    for to in [v6(1), v4(1)] {
        lab.ping(2, to);
        lab.stream((2, 1), to, 2 << 20, || {});
    }
    for to in [v6(2), v4(2)] {
        lab.stream((1, 2), to, 2 << 20, || {});
    }
    let Report::Established { endpoint, .. } = ours.expect("established", established) else {
        panic!();
    };
    assert_eq!(endpoint.to.0, "[fd11::2]:7117".parse().unwrap());
    let stats = ours.handle.stats();
    assert_eq!((stats.handshakes_begun, stats.handshakes_done), (0, 1));
}

#[test]
fn tunnel_keys_rotate_at_both_ends_under_a_running_stream() {
    let lab = Lab::new();
    let (one, two) = (lab.tunnel(1), lab.tunnel(2));
    one.know(2, Some("192.0.2.2:7117"));
    two.know(1, Some("192.0.2.1:7117"));
    lab.ping(1, v6(2));
    for (to, first_key) in [(v6(2), 40), (v4(2), 80)] {
        lab.stream((1, 2), to, 64 << 20, || {
            for key in first_key..first_key + 3 {
                // Each rotates; the other hears of it later, or at once.
                for (own, other, n, key) in [(&one, &two, 1, key), (&two, &one, 2, key + 20)] {
                    let done = own.handle.stats().handshakes_done;
                    let (slot, private) = (Slot::Current, secret(key));
                    let secret = Some(private.clone());
                    own.handle
                        .send(Command::SetIdentityKey { slot, secret })
                        .unwrap();
                    let config = peer_config(n, private, None);
                    other.handle.send(Command::SetPeer(config)).unwrap();
                    eventually("a session under the new key", || {
                        own.handle.stats().handshakes_done > done
                    });
                    // More packets than can be on the way: only then is the next key's turn.
                    let before = two.handle.stats().received_packets;
                    eventually("the stream goes on", || {
                        two.handle.stats().received_packets > before + 4000
                    });
                }
            }
        });
    }
    for (side, ours) in [("one", &one), ("two", &two)] {
        let stats = ours.handle.stats();
        assert!(stats.handshakes_done > 12, "{side}: {stats:?}");
        let lost = stats.dropped_waiting + stats.dropped_no_session + stats.dropped_forged;
        assert_eq!(lost, 0, "{side}: {stats:?}");
    }
}

#[test]
fn tunnel_first_packet_waits_for_the_peer_or_is_refused_at_once() {
    let lab = Lab::new();
    let (one, two) = (lab.tunnel(1), lab.tunnel(2));
    two.know(1, None);
    let listener = lab.inside(2, || TcpListener::bind((v6(2), 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let dst = overlay(v6(2));
    let stream = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| lab.inside(1, || connect(target)));
        one.expect("wanted", |r| *r == Report::Wanted { dst });
        one.know(2, Some("[fd11::2]:7117"));
        let profile = open_profile();
        one.handle.send(Command::Release { dst, profile }).unwrap();
        connecting.join().unwrap()
    });
    assert_eq!(stream.peer_addr().unwrap(), target);
    drop(stream);
    // Refused: the program fails with a reason and does not wait.
    let device = device(2);
    one.handle.send(Command::RemovePeer { device }).unwrap();
    let (reply, answer) = sync_channel(1);
    one.handle.send(Command::ListPeers { reply }).unwrap();
    assert!(answer.recv_timeout(PATIENCE).unwrap().is_empty());
    for (target, errors) in [(v6(2), [13, 113]), (v4(2), [113, 113])] {
        let dst = overlay(target);
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                lab.inside(1, || {
                    let started = Instant::now();
                    let result = TcpStream::connect_timeout(&(target, 9).into(), PATIENCE);
                    (result.unwrap_err(), started.elapsed())
                })
            });
            // What is left of the stream may ask for the same destination first.
            while !connecting.is_finished() {
                let report = one.reports.recv_timeout(Duration::from_millis(50));
                if report == Ok(Report::Wanted { dst }) {
                    let why = crate::tunnel::Rejection::Prohibited;
                    one.handle.send(Command::RejectQueued { dst, why }).unwrap();
                }
            }
            let (error, after) = connecting.join().unwrap();
            assert!(
                errors.contains(&error.raw_os_error().unwrap()),
                "{error:?} {after:?}"
            );
            assert!(after < Duration::from_secs(5), "{after:?}");
        });
    }
}

#[test]
fn tunnel_attack_spoofed_source_on_the_real_kernel_reaches_nobody() {
    let lab = Lab::new();
    let two = lab.tunnel(2);
    two.know(1, None);
    // An attacker's agent: it has device 1's keys and claims the addresses of 3 as its own.
    let (sender, _reports) = sync_channel(100);
    let mut claims = config(1);
    claims.addresses = addresses(3);
    let attacker = lab.inside(1, move || {
        Tunnel::start(claims, move |report: Report| {
            sender.send(report).map_err(|e| e.0)
        })
        .unwrap()
    });
    let ns = lab.ns(1);
    run(&format!("ip -n {ns} addr add {} dev hedgerow0", v4(3)));
    run(&format!("ip -n {ns} link set hedgerow0 mtu 1420 up"));
    run(&format!("ip -n {ns} route add {} dev hedgerow0", v4(2)));
    let peer = peer_config(2, secret(2), Some("192.0.2.2:7117"));
    attacker.send(Command::SetPeer(peer)).unwrap();
    let victim = lab.inside(2, || std::net::UdpSocket::bind((v4(2), 5000)).unwrap());
    victim
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    lab.inside(1, || {
        let socket = std::net::UdpSocket::bind((v4(3), 0)).unwrap();
        socket.send_to(b"I am 3", (v4(2), 5000)).unwrap();
    });
    let (device, src, dst) = (device(1), overlay(v4(3)), overlay(v4(2)));
    let spoofed = Report::Spoofed { device, src, dst };
    two.expect("spoofed", |r| *r == spoofed);
    assert!(victim.recv(&mut [0; 100]).is_err());
    assert_eq!(two.handle.stats().dropped_spoofed, 1);
}

#[test]
fn tunnel_attack_garbage_flood_on_the_real_kernel_disturbs_nobody() {
    let lab = Lab::new();
    let (one, two) = (lab.tunnel(1), lab.tunnel(2));
    one.know(2, Some("192.0.2.2:7117"));
    two.know(1, Some("192.0.2.1:7117"));
    lab.ping(1, v4(2));
    lab.stream((1, 2), v4(2), 8 << 20, || {
        lab.inside(1, || {
            let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
            for n in 0..50_000usize {
                let mut bytes = vec![u8::try_from(n % 251).unwrap(); n % 200];
                if bytes.len() > 3 {
                    bytes[..4].copy_from_slice(&[u8::try_from(n % 5).unwrap(), 0, 0, 0]);
                }
                // A full socket is part of a flood.
                drop(socket.send_to(&bytes, "192.0.2.2:7117"));
            }
        });
    });
    let stats = two.handle.stats();
    assert!(
        stats.dropped_malformed + stats.dropped_no_session > 1000,
        "{stats:?}"
    );
}

#[test]
fn tunnel_mesh_datagrams_share_the_port() {
    let lab = Lab::new();
    let (one, two) = (lab.tunnel(1), lab.tunnel(2));
    let bytes = vec![0x81, 1, 2, 3];
    for to in ["192.0.2.2:7117", "[fd11::2]:7117"] {
        let to = Path::direct(Underlay(to.parse().unwrap()));
        let (bytes, expected) = (bytes.clone(), bytes.clone());
        one.handle
            .send(Command::SendDatagram { to, bytes })
            .unwrap();
        let report = two.expect("datagram", |r| matches!(r, Report::Datagram { .. }));
        let Report::Datagram { from, bytes } = report else {
            panic!();
        };
        assert_eq!(bytes, expected);
        assert_eq!(from.to.0.is_ipv4(), to.to.0.is_ipv4(), "{from}");
    }
}

#[test]
fn tunnel_a_narrower_path_slows_the_stream_and_does_not_stop_it() {
    let lab = Lab::new();
    let (one, two) = (lab.tunnel(1), lab.tunnel(2));
    two.know(1, None);
    for side in [1, 2] {
        run(&format!("ip -n {} link set wire mtu 1300", lab.ns(side)));
    }
    for (n, endpoint) in ["192.0.2.2:7117", "[fd11::2]:7117"].iter().enumerate() {
        one.know(2, Some(endpoint));
        let (path, device) = (Underlay(endpoint.parse().unwrap()).into(), device(2));
        one.handle.send(Command::MovePeer { device, path }).unwrap();
        lab.stream((1, 2), v6(2), 1 << 20, || {});
        lab.stream((2, 1), v4(1), 1 << 20, || {});
        assert_eq!(one.handle.stats().handshakes_done, 1, "{n}");
    }
}

#[test]
fn tunnel_goes_on_after_its_interface_was_down() {
    let lab = Lab::new();
    let (one, two) = (lab.tunnel(1), lab.tunnel(2));
    one.know(2, Some("192.0.2.2:7117"));
    two.know(1, Some("192.0.2.1:7117"));
    lab.ping(1, v4(2));
    let (ns, dst) = (lab.ns(2), v4(1));
    run(&format!("ip -n {ns} link set hedgerow0 down"));
    let ping = format!(
        "netns exec {} ping -q -c 3 -i 0.05 -W 1 {}",
        lab.ns(1),
        v4(2)
    );
    let status = Program::new("ip").args(ping.split(' ')).output().unwrap();
    assert!(!status.status.success());
    run(&format!("ip -n {ns} link set hedgerow0 up"));
    run(&format!("ip -n {ns} route add {dst} dev hedgerow0"));
    lab.ping(1, v4(2));
    assert!(two.handle.stats().dropped_tun >= 3);
}

#[test]
fn tunnel_idle_costs_nothing_and_shutdown_takes_the_interface_along() {
    let lab = Lab::new();
    let (one, two) = (lab.tunnel(1), lab.tunnel(2));
    one.know(2, Some("192.0.2.2:7117"));
    two.know(1, Some("192.0.2.1:7117"));
    lab.ping(1, v4(2));
    // Other tests' tunnels may run in this process: ours are those in our namespaces.
    let ours = [1, 2].map(|side| {
        std::fs::metadata(format!("/run/netns/{}", lab.ns(side)))
            .unwrap()
            .ino()
    });
    let threads = || {
        let mut ticks = 0u64;
        for entry in std::fs::read_dir("/proc/self/task").unwrap() {
            let path = entry.unwrap().path();
            let space = std::fs::metadata(path.join("ns/net")).map(|m| m.ino());
            if !space.is_ok_and(|ino| ours.contains(&ino)) {
                continue;
            }
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            if let Some((_, rest)) = stat.rsplit_once("(tunnel) ") {
                let fields: Vec<&str> = rest.split(' ').collect();
                ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            }
        }
        ticks
    };
    let before = threads();
    std::thread::sleep(Duration::from_secs(2));
    assert!(threads() - before <= 1, "more than 10 ms of CPU in 2 s");
    two.handle.shutdown();
    let ns = lab.ns(2);
    let links = Program::new("ip")
        .args(["-n", &ns, "link"])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains("hedgerow0"));
    two.reports
        .iter()
        .find(|r| *r == Report::Stopped { error: None })
        .unwrap();
    assert_eq!(one.handle.name(), "hedgerow0");
    // Who deletes the interface under us is told by the end of the thread.
    run(&format!("ip -n {} link del hedgerow0", lab.ns(1)));
    one.expect("stopped", |r| {
        matches!(r, Report::Stopped { error: Some(_) })
    });
    eventually("commands say so", || {
        one.handle
            .send(Command::Connect { device: device(2) })
            .is_err()
    });
}

#[test]
fn tunnel_handles_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<TunnelHandle>();
}

#[test]
fn tunnel_says_what_is_in_the_way() {
    let lab = Lab::new();
    let _one = lab.tunnel(1);
    let start = |config| lab.inside(1, move || Tunnel::start(config, |_: Report| Ok(())).err());
    assert!(matches!(
        start(config(1)),
        Some(StartError::Udp(UdpError::PortTaken { port: 7117 }))
    ));
    let mut other = config(1);
    other.port = 0;
    assert_eq!(
        start(other).unwrap().to_string(),
        "interface hedgerow0 is in use by another process"
    );
    let mut other = config(1);
    (other.port, other.name) = (0, "wire".to_owned());
    assert_eq!(
        start(other).unwrap().to_string(),
        "interface wire exists and is not a TUN device"
    );
    let mut other = config(1);
    other.mtu = 100;
    assert!(matches!(start(other), Some(StartError::Mtu { mtu: 100 })));
}

#[test]
fn tunnel_a_persistent_interface_outlives_its_tunnel_with_addresses_and_routes() {
    let lab = Lab::new();
    let start = || {
        let mut config = config(1);
        config.persistent = true;
        lab.inside(1, || Tunnel::start(config, |_: Report| Ok(())).unwrap())
    };
    let routes = || {
        let args = ["-n", &lab.ns(1), "-6", "route", "show", "dev", "hedgerow0"];
        let output = Program::new("ip").args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = start();
    lab.configure(1, "hedgerow0");
    first.shutdown();
    assert!(routes().contains("fd00::2"), "{}", routes());
    start().shutdown();
    lab.inside(1, remove_unused);
    assert!(!routes().contains("fd00::2"));
}

/// A program that another test starts holds our descriptors for the moment between fork and exec.
fn remove_unused() {
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = crate::tun::remove("hedgerow0") {
        assert!(
            matches!(error, crate::tun::TunError::InUse { .. }) && Instant::now() < until,
            "{error}"
        );
        std::thread::yield_now();
    }
}
