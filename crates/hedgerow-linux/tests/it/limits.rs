//! Rates per source.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hedgerow_model::program::Limit;
use hedgerow_model::ruleset::Verdict;
use hedgerow_model::service::Ports;

use crate::fixture::{connect, entry, load, profile, ruleset, with_peer};
use crate::namespace::{Lab, own6, peer6};

const RATE: f64 = 1_000_000.0;

#[test]
fn a_stream_measures_near_its_rate_and_each_source_has_its_own() {
    let lab = Lab::new();
    let limited = [Ports::udp(1551), Ports::tcp(1552)];
    let mut inbound = limited.map(|p| entry(p, Verdict::Limited(0))).to_vec();
    inbound.push(entry(Ports::tcp(1553), Verdict::Accept));
    let mut rules = ruleset(vec![profile(inbound, vec![])]);
    rules.limits = vec![Limit {
        bytes_per_second: 1_000_000,
        burst_bytes: 65_536,
    }];
    for number in 1..=3 {
        with_peer(&mut rules, peer6(number), 1);
    }
    let mut table = load(&lab, &rules);
    let (flood, stream) = (
        flood(&lab, 1, 1551),
        (stream(&lab, 2, 1552), stream(&lab, 3, 1553)),
    );
    let flood = flood.join().unwrap();
    let (limited, free) = (stream.0.join().unwrap(), stream.1.join().unwrap());
    println!("under {RATE:.0}: udp {flood:.0}, tcp {limited:.0}; without: {free:.0} bytes/s");
    assert!(
        (RATE * 0.95..RATE * 1.05).contains(&flood),
        "{flood:.0} bytes/s"
    );
    // What TCP makes of losses depends on the machine's load; more than the rate it never gets.
    assert!(
        (RATE * 0.5..RATE * 1.15).contains(&limited),
        "{limited:.0} bytes/s"
    );
    assert!(free > 10.0 * RATE, "{free:.0} bytes/s without a limit");
    assert!(table.counters().unwrap()["limit.0"].packets > 0);
}

/// Sends datagrams from a peer as fast as it goes; gives the rate of what arrives, headers included.
fn flood(lab: &Lab, peer: u8, port: u16) -> JoinHandle<f64> {
    const PAYLOAD: usize = 1_000;
    const HEADERS: f64 = 48.0;
    let receiver = lab.device.run(|| UdpSocket::bind((own6(), port)).unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let sender = lab.peers.run(|| UdpSocket::bind((peer6(peer), 0)).unwrap());
    let done = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let done = done.clone();
        move || {
            while !done.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    drop(sender.send_to(&[0; PAYLOAD], (own6(), port)));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut count = |time| {
            let (began, mut packets) = (Instant::now(), 0.0);
            while began.elapsed() < time {
                receiver.recv(&mut buffer).unwrap();
                packets += 1.0;
            }
            packets * (PAYLOAD as f64 + HEADERS) / began.elapsed().as_secs_f64()
        };
        count(Duration::from_secs(3));
        let rate = count(Duration::from_secs(4));
        done.store(true, Ordering::Relaxed);
        rate
    })
}

/// Streams from a peer as fast as it goes; gives the rate of what arrives, first seconds left out.
fn stream(lab: &Lab, peer: u8, port: u16) -> JoinHandle<f64> {
    let target = SocketAddr::new(own6(), port);
    let listener = lab.device.run(|| TcpListener::bind(target).unwrap());
    let mut sender = lab.peers.run(|| connect(peer6(peer), target).unwrap());
    std::thread::spawn(move || while sender.write_all(&[0; 65536]).is_ok() {});
    std::thread::spawn(move || {
        let (mut receiver, _) = listener.accept().unwrap();
        count(&mut receiver, Duration::from_secs(2));
        let began = Instant::now();
        let bytes = count(&mut receiver, Duration::from_secs(5));
        bytes / began.elapsed().as_secs_f64()
    })
}

fn count(from: &mut impl Read, time: Duration) -> f64 {
    let began = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0.0;
    while began.elapsed() < time {
        bytes += from.read(&mut buffer).unwrap() as f64;
    }
    bytes
}
