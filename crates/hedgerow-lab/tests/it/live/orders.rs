//! What an operator orders a device to do at once.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use serde_json::Value;

use super::device::Device;
use super::plot::{Monotonic, POLICY, Plot, set_clock};

/// Longer than an order waits for the key before it to become old enough.
const WITHIN: Duration = Duration::from_secs(90);
/// Longer than an order waits that comes early, in seconds.
const EARLY: i64 = 40;
/// Longer than two keys of one peer are kept, in seconds.
const OVERLAP: i64 = 400;

#[test]
fn a_device_makes_new_keys_and_connects_again_when_ordered_and_streams_run_on() -> Result<()> {
    let plot = Plot::open("orders")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let talk = left.talk(&target)?;

    let key = || -> Result<_> { Ok(left.peer("right")?.context("no peer")?["key"].clone()) };
    let old = key()?;
    plot.hedgerow(&["device", "rotate-keys", "right"])?.done()?;
    clock::wait_for("the peer to learn of a new key", WITHIN, || {
        Ok((key()? != old).then_some(()))
    })?;
    talk.moves()?;

    let since = || -> Result<_> {
        let device = plot.record("right")?;
        ensure!(device["connected"] == true, "it is away: {device}");
        Ok(device["connected_since_ms"].clone())
    };
    let before = since()?;
    plot.hedgerow(&["device", "reconnect", "right"])?.done()?;
    clock::wait_for("another session", WITHIN, || {
        let now = since()?;
        ensure!(now != before, "still the old session");
        Ok(Some(()))
    })?;
    plot.settled(&["left", "right"])?;
    talk.moves()
}

#[test]
fn a_device_that_is_told_to_connects_again_and_nothing_of_its_own_ends() -> Result<()> {
    let plot = Plot::open("again")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let v6 = right.overlay(6)?;
    left.wait_reaches(&v6, 9000)?;
    let talk = left.talk(&v6)?;
    for _ in 0..3 {
        plot.settled(&["left", "right"])?;
        let before = [&left, &right].map(generation);
        let [ours, theirs] = before;
        let (ours, theirs) = (ours?, theirs?);
        let since = connected_since(&plot, "left.s1")?;
        let said = plot.hedgerow(&["device", "reconnect", "left.s1"])?.done()?;
        ensure!(said.contains("left.s1 connects again"), "{said}");
        clock::wait_for("another session", WITHIN, || {
            let now = connected_since(&plot, "left.s1")?;
            Ok((now > since).then_some(()))
        })?;
        ensure!(generation(&left)? == ours + 1, "not one session more");
        ensure!(generation(&right)? == theirs, "the other one connected too");
        talk.moves()?;
    }
    plot.settled(&["left", "right"])?;
    let record = plot.record("left.s1")?;
    ensure!(
        record["session_held"] == false && record["flagged"] == false,
        "taken for a copy: {record}"
    );
    refused_when_away(&plot, &right, "reconnect")
}

#[test]
fn a_device_that_is_told_to_makes_new_tunnel_keys_and_streams_go_on() -> Result<()> {
    let plot = Plot::open("rekeyed")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let (v6, v4) = (right.overlay(6)?, right.overlay(4)?);
    left.wait_reaches(&v6, 9000)?;
    let (talk, download) = (left.talk(&v6)?, left.download(&v4)?);
    let (old, kept) = (key(&right, &left)?, key(&left, &right)?);
    rotate(&plot, &left)?;
    plot.advance(EARLY)?;
    let first = other_key(&right, &left, &old)?;
    talk.moves()?;
    download.moves()?;
    // Early, and twice.
    rotate(&plot, &left)?;
    rotate(&plot, &left)?;
    plot.advance(EARLY)?;
    other_key(&right, &left, &first)?;
    ensure!(
        key(&left, &right)? == kept,
        "the other end's key changed too"
    );
    talk.moves()?;
    download.moves()?;
    plot.advance(OVERLAP)?;
    clock::wait_for("the old key to be forgotten", WITHIN, || {
        let peer = right.peer("left")?.context("no peer")?;
        ensure!(peer["keys_overlap"] == false, "{peer}");
        Ok(Some(()))
    })?;
    talk.moves()?;
    download.moves()?;
    ensure!(left.reaches(&v6, 9000)?, "no new connection stands");
    refused_when_away(&plot, &right, "rotate-keys")
}

#[test]
fn new_tunnel_keys_are_taken_though_the_clock_was_set_back_a_little() -> Result<()> {
    let plot = Plot::open("setback")?;
    let mut left = plot.device("left", "s1", 11)?;
    let (file, right) = (
        plot.lab.directory().join("clock-left"),
        plot.enrolled("right", "s2", 12, "right")?,
    );
    set_clock(&file, 0)?;
    left.own_clock(file.clone(), Monotonic::Stays);
    left.enroll("s1", "left")?;
    right.serve()?;
    plot.settled(&["left", "right"])?;
    plot.apply(POLICY)?;
    let v6 = right.overlay(6)?;
    left.wait_reaches(&v6, 9000)?;
    let talk = left.talk(&v6)?;
    let known = key(&right, &left)?;
    set_clock(&file, -60)?;
    rotate(&plot, &left)?;
    other_key(&right, &left, &known)?;
    talk.moves()
}

fn rotate(plot: &Plot, device: &Device<'_>) -> Result<()> {
    plot.settled(&[&device.name])?;
    plot.hedgerow(&["device", "rotate-keys", &device.name])?
        .done()?;
    Ok(())
}

/// Who is not there cannot be told, and the operator hears it.
fn refused_when_away(plot: &Plot, device: &Device<'_>, order: &str) -> Result<()> {
    let name = &*device.name;
    device.stop()?;
    clock::wait_for("it to be away", WITHIN, || {
        Ok((plot.record(name)?["connected"] == false).then_some(()))
    })?;
    let said = plot.hedgerow(&["device", order, name])?;
    let no = format!("error: {name} is not connected");
    ensure!(
        said.code == Some(1) && said.err.starts_with(&no),
        "{said:?}"
    );
    Ok(())
}

/// Returns how many sessions a device has opened since it enrolled.
fn generation(device: &Device<'_>) -> Result<u64> {
    let bytes = fs::read(device.directory.join("state/generation"))?;
    Ok(minicbor::decode(&bytes)?)
}

fn connected_since(plot: &Plot, name: &str) -> Result<u64> {
    let record = plot.record(name)?;
    record["connected_since_ms"]
        .as_u64()
        .with_context(|| format!("not connected: {record}"))
}

/// Returns the tunnel key under which `device` knows `peer`.
fn key(device: &Device<'_>, peer: &Device<'_>) -> Result<Value> {
    Ok(device.peer(&peer.name)?.context("no peer")?["key"].clone())
}

/// Waits until `device` knows `peer` under another key than `old`, and returns it.
fn other_key(device: &Device<'_>, peer: &Device<'_>, old: &Value) -> Result<Value> {
    clock::wait_for("another tunnel key", WITHIN, || {
        let found = device.peer(&peer.name)?.context("no peer")?;
        ensure!(found["key"] != *old, "still the old one: {found}");
        ensure!(found["session"] == true, "no session: {found}");
        Ok(Some(found["key"].clone()))
    })
}
