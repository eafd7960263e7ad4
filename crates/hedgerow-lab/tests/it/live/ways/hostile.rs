//! Somebody on the way who lets nothing long pass, and tells nobody; and relays that lie.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};
use serde_json::{Value, json};

use super::super::device::Device;
use super::super::plot::Plot;
use super::liar::Liar;
use super::{FIND, join, measured, on_the_way, policy, wait_standby, wait_way};

/// Bytes that go to a peer and come back, to be compared.
const CARGO_BYTES: &str = "400000";
/// The longest UDP datagram that gets through the hole, header included: an underlay of 1400 bytes.
const HOLE_BYTES: u16 = 1380;

/// What an agent may need more for lies that it is told.
const LIES_KIB_MAX: u64 = 16 * 1024;
/// The relays' addresses: the liar's, and another one's.
const RELAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 51), Ipv4Addr::new(10, 77, 1, 52)];

/// Sends bytes drawn at random to peers' echo servers, to all at once; what comes back has to be the same.
fn transfer(from: &Device<'_>, to: &[&str]) -> Result<()> {
    let script = "one() { f=$0/cargo-$2; head -c $1 /dev/urandom > $f; \
                  socat -t 50 STDIO TCP6:[$2]:9000 < $f | cmp - $f; }; \
                  n=$1; shift; all=; for to; do one $n $to & all=\"$all $!\"; done; \
                  for pid in $all; do wait $pid || exit 1; done";
    let folder = from.directory.to_string_lossy();
    let start = clock::now();
    let words = [&["bash", "-c", script, &folder, CARGO_BYTES], to].concat();
    from.run(&words)?.done()?;
    measured(
        &format!("{CARGO_BYTES} bytes there and back"),
        clock::ms_since(start),
    );
    Ok(())
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
    transfer(&left, &[&target]).context("before")?;
    // Nobody is told: no ICMP.
    on_the_way(&plot, "hole", &format!("udp length > {HOLE_BYTES} drop"))?;
    transfer(&left, &[&target]).context("through the hole")?;
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

/// Devices that see each other through relays alone, one of which may lie.
struct Cast<'p> {
    left: Device<'p>,
    right: Device<'p>,
    third: Device<'p>,
    relays: Vec<(Device<'p>, Liar)>,
}

impl<'p> Cast<'p> {
    fn gather(plot: &'p Plot, relays: usize) -> Result<Self> {
        plot.apply(&policy())?;
        let names = ["relay-1", "relay-2"];
        let mut wired = Vec::new();
        for (name, address) in names.iter().zip(RELAYS).take(relays) {
            let (relay, liar) = Liar::plug(plot, name, address)?;
            join(plot, &relay, "s1", "role=other,relay=yes")?;
            wired.push((relay, liar));
        }
        let ends = "{ 10.77.0.71, 10.77.2.11, 10.77.2.12 }";
        on_the_way(
            plot,
            "straight",
            &format!("ip saddr {ends} ip daddr {ends} drop"),
        )?;
        let left = Device::unplugged(plot, "left")?;
        plot.plug(&left.namespace, "10.77.0.71".parse()?)?;
        let [right, third] = [
            plot.device("right", "s2", 11)?,
            plot.device("third", "s2", 12)?,
        ];
        for (device, site) in [(&left, "s1"), (&right, "s2"), (&third, "s2")] {
            join(plot, device, site, "role=left")?;
        }
        for device in [&right, &third] {
            device.serve()?;
        }
        Ok(Self {
            left,
            right,
            third,
            relays: wired,
        })
    }

    fn targets(&self) -> Result<[String; 2]> {
        Ok([self.right.overlay(6)?, self.third.overlay(6)?])
    }

    /// Waits until both peers of `left` are reached through a relay, both ways.
    fn wait_by(&self, relay: &str) -> Result<()> {
        let by = format!("relayed by {relay}.");
        for peer in [&self.right, &self.third] {
            wait_way(&self.left, &peer.name, |w| w.starts_with(&by))?;
            wait_way(peer, "left", |w| w.starts_with(&by))?;
        }
        Ok(())
    }

    fn agents(&self) -> Vec<&Device<'p>> {
        let relays = self.relays.iter().map(|(relay, _)| relay);
        [&self.left, &self.right, &self.third]
            .into_iter()
            .chain(relays)
            .collect()
    }

    /// Returns every agent's resident memory. None of them was started twice.
    fn resident_kib(&self) -> Result<Vec<u64>> {
        let each = self.agents().into_iter().map(|device| {
            let service = device.service()?;
            ensure!(service.starts == 1, "{} has ended once", device.name);
            Ok(process::resident_kib(service.pid.context("it does not run")?)?.0)
        });
        each.collect()
    }

    fn ensure_memory(&self, before: &[u64]) -> Result<()> {
        for (before, after) in before.iter().zip(self.resident_kib()?) {
            let more = after.saturating_sub(*before);
            ensure!(more <= LIES_KIB_MAX, "from {before} KiB to {after} KiB");
        }
        Ok(())
    }
}

/// Returns what an agent's tunnel counted for a reason.
fn counted(device: &Device<'_>, reason: &str) -> Result<u64> {
    let stats = device.status()?["mesh"]["tunnel"].clone();
    stats[reason]
        .as_u64()
        .with_context(|| format!("no {reason}: {stats}"))
}

#[test]
fn a_relay_that_loses_forges_replays_and_exchanges_changes_nothing_that_arrives() -> Result<()> {
    let plot = Plot::open_in_real_time("liar")?;
    let cast = Cast::gather(&plot, 1)?;
    let (_, liar) = cast.relays.first().context("no relay")?;
    let targets = cast.targets()?;
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    for target in &targets {
        cast.left.wait_reaches(target, 9000)?;
    }
    cast.wait_by("relay-1")?;
    transfer(&cast.left, &targets).context("while the relay is honest")?;
    let before = cast.resident_kib()?;

    let lies = [
        "lose", "flip", "renumber", "mislead", "hold", "twice", "again",
    ];
    let orders = json!({
        "lose": 5, "flip": 10, "renumber": 20, "mislead": 20, "hold": 50, "twice": 50, "again": 50,
    });
    liar.order(&orders)?;
    for _ in 0..3 {
        transfer(&cast.left, &targets).context("while the relay lies")?;
    }
    liar.wait_done(&lies, 10)?;
    let done = liar.done()?;
    for device in [&cast.left, &cast.right] {
        for reason in ["dropped_forged", "dropped_replayed", "dropped_no_session"] {
            let count = counted(device, reason)?;
            ensure!(count > 0, "{}: no {reason} of {done}", device.name);
        }
        let metrics = device.agent(&["metrics"])?.done()?;
        for reason in ["forged", "replayed", "no_session"] {
            let family = format!("hedgerow_tunnel_dropped_total{{reason=\"{reason}\"}} ");
            let line = metrics.lines().find_map(|l| l.strip_prefix(&family));
            let line = line.with_context(|| format!("no {family}"))?;
            ensure!(line != "0", "{family} is 0");
        }
    }
    for device in cast.agents() {
        // No peer's packet was taken for another's.
        ensure!(counted(device, "dropped_spoofed")? == 0, "{}", device.name);
    }
    cast.ensure_memory(&before)?;
    liar.order(&json!({}))?;
    transfer(&cast.left, &targets).context("after the lies")
}

#[test]
fn a_relay_that_swallows_what_is_long_is_left_for_another() -> Result<()> {
    swallows("swallow-long", &json!({ "drop": [300, 65535] }))
}

#[test]
fn a_relay_that_swallows_all_but_probes_is_left_for_another() -> Result<()> {
    swallows("swallow-data", &json!({ "drop": [97, 1310] }))
}

/// The nearer of two relays stops to pass on some of the frames, and answers probes as before.
fn swallows(name: &'static str, orders: &Value) -> Result<()> {
    let plot = Plot::open_in_real_time(name)?;
    let cast = Cast::gather(&plot, 2)?;
    let [(_, liar), (_, far)] = &*cast.relays else {
        anyhow::bail!("two relays");
    };
    // What makes one relay the better one, whatever else this machine does.
    far.order(&json!({ "delay_ms": 20 }))?;
    let targets = cast.targets()?;
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    for target in &targets {
        cast.left.wait_reaches(target, 9000)?;
    }
    cast.wait_by("relay-1")?;
    for peer in [&cast.right, &cast.third] {
        wait_standby(&cast.left, &peer.name, "relay-2")?;
        wait_standby(peer, "left", "relay-2")?;
    }
    let before = cast.resident_kib()?;
    liar.order(orders)?;
    transfer(&cast.left, &targets).context("from the one that swallows")?;
    cast.wait_by("relay-2")?;
    liar.wait_done(&["drop"], 3)?;
    transfer(&cast.left, &targets).context("through the other")?;
    cast.ensure_memory(&before)
}
