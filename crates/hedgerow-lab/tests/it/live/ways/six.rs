//! Nobody has an IPv4 address: controller, relay and devices.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::super::device::Device;
use super::super::plot::Plot;
use super::{Pulse, join, on_the_way, policy, wait_way};

#[test]
fn devices_meet_straight_and_over_a_relay_where_there_is_ipv6_alone() -> Result<()> {
    let plot = Plot::open_without_ipv4("six")?;
    plot.apply(&policy())?;
    let relay = plugged(&plot, "relay", "fd77:1::51")?;
    join(&plot, &relay, "s1", "role=other,relay=yes")?;
    let left = plugged(&plot, "left", "fd77:1::11")?;
    let right = plugged(&plot, "right", "fd77:2::11")?;
    join(&plot, &left, "s1", "role=left")?;
    join(&plot, &right, "s2", "role=left")?;
    right.serve()?;
    left.serve()?;
    // Of both families inside.
    left.wait_reaches(&right.overlay(6)?, 9000)?;
    left.wait_reaches(&right.overlay(4)?, 9000)?;
    wait_way(&left, "right", |w| w == "direct at [fd77:2::11]:7117")?;
    wait_way(&right, "left", |w| w == "direct at [fd77:1::11]:7117")?;

    let talk = left.talk(&right.overlay(4)?)?;
    let pulse = Pulse::start(&right, "cut", &left.overlay(6)?)?;
    let ends = "{ fd77:1::11, fd77:2::11 }";
    on_the_way(
        &plot,
        "cut",
        &format!("ip6 saddr {ends} ip6 daddr {ends} drop"),
    )?;
    wait_way(&left, "right", |w| {
        w == "relayed by relay.s1 at [fd77:1::51]:7117"
    })?;
    wait_way(&right, "left", |w| {
        w == "relayed by relay.s1 at [fd77:1::51]:7117"
    })?;
    talk.moves().context("the conversation before")?;
    pulse.end("straight way cut, IPv6")?;
    right.wait_reaches(&left.overlay(6)?, 9000)
}

fn plugged<'p>(plot: &'p Plot, name: &str, address: &str) -> Result<Device<'p>> {
    let device = Device::unplugged(plot, name)?;
    plot.plug(&device.namespace, IpAddr::V6(address.parse()?))?;
    Ok(device)
}
