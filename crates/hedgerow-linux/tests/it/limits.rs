//! Rates per source.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
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
    let mut inbound = [1551, 1552]
        .map(|p| entry(Ports::tcp(p), Verdict::Limited(0)))
        .to_vec();
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
    let streams = [1, 2, 3].map(|number| stream(&lab, number, 1550 + u16::from(number)));
    let [first, second, free] = streams.map(|s| s.join().unwrap());
    println!("under a limit of {RATE:.0}: {first:.0} and {second:.0}; without: {free:.0} bytes/s");
    for rate in [first, second] {
        assert!(
            (RATE * 0.8..RATE * 1.05).contains(&rate),
            "{rate:.0} bytes/s"
        );
    }
    assert!(free > 10.0 * RATE, "{free:.0} bytes/s without a limit");
    assert!(table.counters().unwrap()["limit.0"].packets > 0);
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
