//! Sizes: what loading, changing and verifying cost. Figures are printed, not judged.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hedgerow_model::address::Overlay;
use hedgerow_model::ruleset::{ProfileId, Verdict};
use hedgerow_model::service::Ports;

use crate::fixture::{Outcome, at, entry, load, profile, ruleset, serve, tcp, with_peer};
use crate::namespace::{Lab, own6, peer6};

fn numbered(number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap().to_be_bytes();
    let [a, b, c, d] = number;
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Ipv6Addr::new(0xfd00, 7, 0, 0, 2, 0, high, low).into()
}

/// Returns the mean time of a packet to the device and back, two passes through the table.
fn round_trip(lab: &Lab) -> Duration {
    const TIMES: u32 = 10_000;
    lab.peers.run(|| {
        let socket = UdpSocket::bind((peer6(1), 0)).unwrap();
        socket.connect((own6(), 22)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut buffer = [0; 64];
        let began = Instant::now();
        for _ in 0..TIMES {
            socket.send(b"x").unwrap();
            socket.recv(&mut buffer).unwrap();
        }
        began.elapsed() / TIMES
    })
}

#[test]
fn ten_to_a_hundred_thousand_peers_load_change_and_verify() {
    let lab = Lab::new();
    serve(&lab.device, own6(), &[22]);
    println!("no table: round trip {:?}", round_trip(&lab));
    for count in [10, 1_000, 99_990] {
        let both = [Ports::tcp(22), Ports::udp(22)].map(|p| entry(p, Verdict::Accept));
        let mut rules = ruleset(vec![profile(both.to_vec(), vec![])]);
        for number in 0..count {
            with_peer(&mut rules, numbered(number), 1);
        }
        let began = Instant::now();
        let mut table = load(&lab, &rules);
        let loaded = began.elapsed();
        let began = Instant::now();
        table.set_peer(Overlay(peer6(1)), ProfileId(1)).unwrap();
        let changed = began.elapsed();
        assert_eq!(
            tcp(&lab.peers, peer6(1), SocketAddr::new(own6(), 22)),
            Outcome::Answered
        );
        println!("{count} peers: round trip {:?}", round_trip(&lab));
        let began = Instant::now();
        assert!(table.verify(at(0).mono).unwrap().is_intact());
        let verified = began.elapsed();
        rules.generation = 2;
        let began = Instant::now();
        table.load(&rules, at(0)).unwrap();
        let replaced = began.elapsed();
        println!(
            "{count} peers: load {loaded:?}, one change {changed:?}, verify {verified:?}, replace {replaced:?}"
        );
        table.remove().unwrap();
    }
}

#[test]
fn ten_to_a_hundred_thousand_entries_load_change_and_verify() {
    let lab = Lab::new();
    serve(&lab.device, own6(), &[22]);
    for count in [10u32, 1_000, 100_000] {
        let (profiles, ports) = (count.div_ceil(1_000), count.min(1_000));
        let list = (0..profiles).map(|_| {
            let accept = |port: u32| {
                let port = Ports::tcp(u16::try_from(port).unwrap());
                entry(port, Verdict::Accept)
            };
            let mut inbound: Vec<_> = (20..20 + ports).map(accept).collect();
            inbound.push(entry(Ports::udp(22), Verdict::Accept));
            profile(inbound, vec![])
        });
        let mut rules = ruleset(list.collect());
        with_peer(&mut rules, peer6(1), profiles);
        let began = Instant::now();
        let mut table = load(&lab, &rules);
        let loaded = began.elapsed();
        assert_eq!(
            tcp(&lab.peers, peer6(1), SocketAddr::new(own6(), 22)),
            Outcome::Answered
        );
        let began = Instant::now();
        table.set_peer(Overlay(peer6(2)), ProfileId(1)).unwrap();
        let changed = began.elapsed();
        let began = Instant::now();
        assert!(table.verify(at(0).mono).unwrap().is_intact());
        let verified = began.elapsed();
        println!("{count} entries: round trip {:?}", round_trip(&lab));
        println!("{count} entries: load {loaded:?}, one change {changed:?}, verify {verified:?}");
        table.remove().unwrap();
    }
}
