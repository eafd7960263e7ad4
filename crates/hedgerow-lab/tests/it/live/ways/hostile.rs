//! Somebody on the way who lets nothing long pass, and tells nobody.

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use serde_json::Value;

use super::super::device::Device;
use super::super::plot::Plot;
use super::{FIND, join, measured, on_the_way, policy};

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
