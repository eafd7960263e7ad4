//! Somebody on the way: he drops what he likes, changes the order, plays old datagrams again, and cuts long ones.

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};
use serde_json::Value;

use super::super::device::Device;
use super::super::plot::Plot;
use super::{FIND, Pulse, join, measured, off_the_way, on_the_way, policy, relay, rules, wait_way};

/// Bytes that go to a peer and come back, to be compared.
const CARGO_BYTES: &str = "400000";
/// The longest UDP datagram that gets through the hole, header included: an underlay of 1400 bytes.
const HOLE_BYTES: u16 = 1380;

/// Sends bytes drawn at random to the peer's echo server; what comes back has to be the same.
fn transfer(from: &Device<'_>, to: &str) -> Result<()> {
    let script = "set -e; f=$0/cargo; head -c $1 /dev/urandom > $f; \
                  socat -t 50 STDIO TCP6:[$2]:9000 < $f | cmp - $f";
    let folder = from.directory.to_string_lossy();
    let start = clock::now();
    from.run(&["bash", "-c", script, &folder, CARGO_BYTES, to])?
        .done()?;
    measured(
        &format!("{CARGO_BYTES} bytes there and back"),
        clock::ms_since(start),
    );
    Ok(())
}

/// Puts a liar in the place of relay-1, who does to so many datagrams of a thousand what the words say.
fn liar(plot: &Plot, words: &[&str]) -> Result<u32> {
    let program = env!("CARGO_BIN_EXE_hedgerow-lab");
    let place = ["--listen", "0.0.0.0:9999", "--to", "10.77.1.51:7117"];
    let words = [&[program, "middle"], &place[..], words].concat();
    plot.lab.start(&plot.namespace("router"), "liar", &words)
}

#[test]
fn traffic_stays_right_beside_a_lying_relay_and_leaves_it_for_an_honest_one() -> Result<()> {
    let plot = Plot::open_in_real_time("hostile")?;
    plot.apply(&policy())?;
    // Between the two devices, only relays; for one of them only the first, and there stands the liar.
    let ends = "{ 10.77.0.71, 10.77.2.11 }";
    on_the_way(
        &plot,
        "straight",
        &format!("ip saddr {ends} ip daddr {ends} drop"),
    )?;
    let second = "ip saddr 10.77.2.51 ip daddr 10.77.0.71 drop\nip daddr 10.77.2.51 ip saddr 10.77.0.71 drop";
    on_the_way(&plot, "second", second)?;
    let redirect = format!(
        "table ip liar {{\nchain in {{\ntype nat hook prerouting priority dstnat;\n\
         ip saddr {ends} ip daddr 10.77.1.51 udp dport 7117 redirect to :9999\n}}\n}}\n"
    );
    rules(&plot, &plot.namespace("router"), &redirect)?;
    let pid = liar(
        &plot,
        &[
            "--lose", "10", "--swap", "100", "--twice", "100", "--again", "100",
        ],
    )?;
    let _relays = [
        relay(&plot, "relay-1", "s1")?,
        relay(&plot, "relay-2", "s2")?,
    ];
    let left = Device::unplugged(&plot, "left")?;
    plot.plug(&left.namespace, "10.77.0.71".parse()?)?;
    join(&plot, &left, "s1", "role=left")?;
    let right = plot.device("right", "s2", 11)?;
    join(&plot, &right, "s2", "role=left")?;
    right.serve()?;

    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    wait_way(&left, "right", |w| w.starts_with("relayed by relay-1."))?;
    transfer(&left, &target).context("while datagrams are lost, repeated and out of order")?;
    let stats = left.status()?["mesh"]["tunnel"].clone();
    let count = |name: &str| stats[name].as_u64().unwrap_or(0);
    ensure!(
        count("dropped_replayed") > 0,
        "nothing was played again: {stats}"
    );
    ensure!(count("dropped_forged") == 0, "{stats}");

    // He loses a quarter of all; the honest relay can be reached now.
    process::kill(pid);
    process::wait_end(pid, FIND)?;
    let pid = liar(&plot, &["--lose", "250", "--seed", "2"])?;
    off_the_way(&plot, "second")?;
    let pulse = Pulse::start(&left, "worse", &target)?;
    wait_way(&left, "right", |w| w.starts_with("relayed by relay-2."))?;
    pulse.end("from the liar to the honest one")?;
    process::kill(pid);
    transfer(&left, &target).context("through the honest relay")?;
    left.wait_reaches(&target, 9000)
}

#[test]
fn tcp_passes_a_black_hole_for_long_datagrams_once_its_width_is_found() -> Result<()> {
    let plot = Plot::open_in_real_time("hole")?;
    plot.apply(&policy())?;
    let left = plot.device("left", "s1", 11)?;
    let right = plot.device("right", "s2", 11)?;
    for (device, site) in [(&left, "s1"), (&right, "s2")] {
        // The hole looks at datagrams one by one.
        device
            .run(&["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"])?
            .done()?;
        join(&plot, device, site, "role=left")?;
    }
    right.serve()?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    transfer(&left, &target).context("before")?;
    // Nobody is told: no ICMP.
    on_the_way(&plot, "hole", &format!("udp length > {HOLE_BYTES} drop"))?;
    transfer(&left, &target).context("through the hole")?;
    let most = u64::from(HOLE_BYTES) - 8 - 32;
    clock::wait_for("the width of the hole", FIND, || {
        let peer = left.peer("right")?.context("no peer")?;
        let routes = peer["routes"].as_array().context("no routes")?;
        let used = routes
            .iter()
            .find(|r| r["in_use"] == true)
            .context("none in use")?;
        let mtu = used["mtu"]
            .as_u64()
            .with_context(|| format!("not narrow: {used}"))?;
        ensure!((1280..=most).contains(&mtu), "{mtu} of {most}");
        Ok(Some(()))
    })?;
    let lost: &Value = &left.status()?["mesh"]["tunnel"]["too_big"];
    ensure!(
        lost.as_u64() > Some(0),
        "nobody was told that packets are too long: {lost}"
    );
    Ok(())
}
