//! Figures of the kernel's table: how long loading, reading back and changing one peer take, and what
//! a packet costs, by its size.
//!
//! Two namespaces and one link. The receiver's table holds as many peers as asked for, and one of
//! them is the sender; what a datagram costs from `send` to the receiver's socket, its way through
//! both namespaces' stacks included, is compared with the same link without a table.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use hedgerow_linux::nft::Table;
use hedgerow_model::address::{Overlay, OverlayAddresses, Prefix};
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::{Entry, Lifeline, Profile, ProfileId, RuleRef, Ruleset, Verdict};
use hedgerow_model::service::Ports;
use hedgerow_model::{Mono, Now, Wall};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::lab::Lab;
use crate::matrix::own_program;
use crate::screen::Screen;
use crate::{clock, plant, process};

const RECEIVER: &str = "hgd-bench-receiver";
const SENDER: &str = "hgd-bench-sender";
const OWN: Ipv4Addr = Ipv4Addr::new(100, 80, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(100, 80, 0, 2);
const PORT: u16 = 9000;
const DATAGRAMS: u32 = 200_000;
const ROUNDS: usize = 7;
/// Changes of one peer, an even number so that it is there in the end; their median counts.
const CHANGES: usize = 100;
/// Peers in the table; none at first, without a table.
const SIZES: [usize; 4] = [0, 10, 1_000, 100_000];

/// Measures load time and packet cost at each size.
///
/// # Errors
///
/// When the kernel or a tool refuses.
pub(crate) fn kernel(screen: Screen) -> Result<bool> {
    let lab = Lab::open("bench")?;
    lab.wipe()?;
    lab.namespace(RECEIVER)?;
    lab.namespace(SENDER)?;
    process::run(&[
        "ip",
        "link",
        "add",
        "hedgerow0",
        "netns",
        RECEIVER,
        "type",
        "veth",
        "peer",
        "name",
        "hedgerow0",
        "netns",
        SENDER,
    ])?;
    for (namespace, address) in [(RECEIVER, OWN), (SENDER, PEER)] {
        let cidr = format!("{address}/12");
        process::run(&[
            "ip",
            "-n",
            namespace,
            "address",
            "add",
            &cidr,
            "dev",
            "hedgerow0",
        ])?;
        process::run(&["ip", "-n", namespace, "link", "set", "hedgerow0", "up"])?;
    }
    let mut bare = 0.0;
    for peers in SIZES {
        let (held, nanos) = one(peers)?;
        if peers == 0 {
            bare = nanos;
        }
        let Held {
            load_ms,
            verify_ms,
            change_us,
        } = held;
        let added = ((nanos - bare) * 10.0).round() / 10.0;
        screen.say(&format!(
            "{peers:>7} peers: loaded in {load_ms} ms, read back in {verify_ms} ms, \
             one changed in {change_us} µs, {nanos} ns per datagram, {added} ns more than without a table"
        ));
        screen.object(&json!({
            "peers": peers, "load_ms": load_ms, "verify_ms": verify_ms, "change_us": change_us,
            "ns_per_datagram": nanos, "ns_added": added,
        }));
    }
    lab.close();
    Ok(true)
}

fn one(peers: usize) -> Result<(Held, f64)> {
    let (own, count) = (own_program()?, peers.to_string());
    let mut holder =
        process::command(&["ip", "netns", "exec", RECEIVER, &own, "bench-hold", &count])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
    let mut said = Vec::new();
    let mut out = holder.stdout.take().context("no output")?;
    let mut byte = [0u8];
    while out.read(&mut byte)? == 1 && byte != *b"\n" {
        said.extend_from_slice(&byte);
    }
    let held: Held = serde_json::from_slice(&said).context("the table was not loaded")?;
    let mut nanos = Vec::new();
    for _ in 0..ROUNDS {
        let text = plant::in_namespace(SENDER, &[&own, "bench-send"])?;
        nanos.push(text.trim().parse::<f64>()?);
    }
    nanos.sort_by(f64::total_cmp);
    // Its input ends, and with it the holder and its table.
    drop(holder.stdin.take());
    holder.wait()?;
    let median = nanos.get(ROUNDS / 2).copied().unwrap_or_default();
    Ok((held, (median * 10.0).round() / 10.0))
}

/// What the holder of a table measured.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Held {
    load_ms: f64,
    verify_ms: f64,
    change_us: f64,
}

/// Holds a table of so many peers until standard input ends.
///
/// # Errors
///
/// When the kernel refuses.
#[expect(
    clippy::print_stdout,
    reason = "the part of a measurement that runs in a namespace"
)]
pub(crate) fn hold(peers: usize) -> Result<bool> {
    let socket = UdpSocket::bind((OWN, PORT))?;
    let start = clock::now();
    let mut table = None;
    let mut held = Held::default();
    if peers > 0 {
        let mut opened = Table::open(None)?;
        opened.load(&ruleset(peers), moment())?;
        held.load_ms = clock::ms_since(start);
        let start = clock::now();
        anyhow::ensure!(
            opened.verify(Mono::ZERO)?.is_intact(),
            "not what was loaded"
        );
        held.verify_ms = clock::ms_since(start);
        held.change_us = changed(&mut opened)?;
        table = Some(opened);
    }
    println!("{}", serde_json::to_string(&held)?);
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(socket);
    if let Some(mut table) = table {
        table.remove()?;
    }
    Ok(true)
}

/// Takes the sender out and puts it in, again and again; returns the median in microseconds.
fn changed(table: &mut Table) -> Result<f64> {
    let address = Overlay(IpAddr::from(PEER));
    let mut micros = Vec::new();
    for round in 0..CHANGES {
        let start = clock::now();
        if round % 2 == 0 {
            table.remove_peer(address)?;
        } else {
            table.set_peer(address, ProfileId(1))?;
        }
        micros.push(clock::now().duration_since(start).as_secs_f64() * 1e6);
    }
    micros.sort_by(f64::total_cmp);
    let median = micros.get(CHANGES / 2).copied().unwrap_or_default();
    Ok((median * 10.0).round() / 10.0)
}

/// Sends datagrams as fast as it can, and says how long one took, in nanoseconds.
///
/// # Errors
///
/// When nothing can be sent.
#[expect(
    clippy::print_stdout,
    reason = "the part of a measurement that runs in a namespace"
)]
pub(crate) fn send() -> Result<bool> {
    let socket = UdpSocket::bind((PEER, 40_000))?;
    socket.connect((OWN, PORT))?;
    let datagram = [0u8; 64];
    // Once to warm up: neighbours, caches, frequency.
    for _ in 0..DATAGRAMS / 10 {
        socket.send(&datagram)?;
    }
    let start = clock::now();
    for _ in 0..DATAGRAMS {
        socket.send(&datagram)?;
    }
    let nanos = clock::now().duration_since(start).as_secs_f64() * 1e9;
    println!("{}", nanos / f64::from(DATAGRAMS));
    Ok(true)
}

fn moment() -> Now {
    Now {
        mono: Mono::ZERO,
        wall: Wall::from_secs(clock::wall_secs()),
        wall_is_trusted: true,
    }
}

fn ruleset(peers: usize) -> Ruleset {
    let entry = Entry {
        ports: Ports::udp(PORT),
        verdict: Verdict::Accept,
        until: None,
    };
    let profile = Profile {
        inbound: vec![entry],
        outbound: vec![entry],
        inbound_default: Verdict::Deny(RuleRef(0)),
        outbound_default: Verdict::Deny(RuleRef(0)),
    };
    let first = u32::from(PEER);
    let addresses = (first..)
        .take(peers)
        .map(|a| Overlay(IpAddr::from(Ipv4Addr::from(a))));
    Ruleset {
        generation: 1,
        tunnel: "hedgerow0".to_owned(),
        own: OverlayAddresses {
            v6: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1),
            v4: Some(OWN),
        },
        pools: ["100.80.0.0/12", "fd00::/48"]
            .iter()
            .filter_map(|p| p.parse::<Prefix>().ok())
            .collect(),
        profiles: [(ProfileId(1), profile)].into(),
        peers: addresses.map(|a| (a, ProfileId(1))).collect(),
        limits: Vec::new(),
        rule_names: vec!["default".to_owned()],
        underlay_mode: Mode::Observe,
        underlay: Vec::new(),
        lifeline: Lifeline::default(),
        sample_seconds: 0,
    }
}
