//! Names of peers, asked for with `dig`; packets of a peer, read with tcpdump.

use std::time::Duration;

use anyhow::{Result, ensure};
use hedgerow_lab::clock;
use hedgerow_lab::process::{self, Signal};
use serde_json::Value;

use super::device::Device;
use super::plot::{POLICY, Plot};

const NAME: &str = "right.s2.hedgerow.internal";
const SERVER: &str = "@127.0.0.59";

/// Asks the device's resolver, and returns what `dig` prints.
fn dig(device: &Device<'_>, words: &[&str]) -> Result<String> {
    let first = ["dig", SERVER, "+tries=2", "+timeout=3"];
    device.run(&[&first, words].concat())?.done()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn programs_find_peers_by_name_and_nothing_else_is_answered() -> Result<()> {
    let plot = Plot::open("names")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    let other = plot.enrolled("other", "s1", 13, "other")?;
    plot.apply(POLICY)?;
    let (v6, v4) = (right.overlay(6)?, right.overlay(4)?);
    clock::wait_for("the name to be known", Duration::from_secs(30), || {
        let known = dig(&left, &["+short", NAME, "A"])? == format!("{v4}\n");
        Ok(known.then_some(()))
    })?;

    let said = dig(&left, &["+short", NAME, "AAAA"])?;
    ensure!(lines(&said) == [&v6], "{said}");
    let said = dig(&left, &["+tcp", "+short", &NAME.to_uppercase(), "A"])?;
    ensure!(lines(&said) == [&v4], "{said}");
    for address in [&v4, &v6] {
        let said = dig(&left, &["+short", "-x", address])?;
        ensure!(lines(&said) == [format!("{NAME}.")], "{said}");
    }
    let said = dig(&left, &[NAME, "A"])?;
    ensure!(
        said.contains("flags: qr aa rd;") && said.contains(" 30\tIN"),
        "{said}"
    );
    ensure!(said.contains("EDNS: version: 0"), "{said}");
    for (name, rtype, status) in [
        (NAME, "MX", "NOERROR"),
        ("nobody.s2.hedgerow.internal", "A", "NXDOMAIN"),
        ("example.com", "A", "REFUSED"),
        ("right.s2", "A", "REFUSED"),
    ] {
        let said = dig(&left, &[name, rtype])?;
        ensure!(
            said.contains(&format!("status: {status}")),
            "{name}: {said}"
        );
        let has_authority = said.contains("SOA\thedgerow.internal.");
        ensure!(has_authority == (status != "REFUSED"), "{name}: {said}");
    }

    // Who may not call a device learns neither its name nor its address.
    let said = dig(&other, &[NAME, "A"])?;
    ensure!(said.contains("status: NXDOMAIN"), "{said}");
    let checked = left.agent(&["check"])?.done()?;
    ensure!(
        checked.contains("the resolver answers at 127.0.0.59:53"),
        "{checked}"
    );
    let counts = left.status()?["names"]["resolver"]["questions"].clone();
    ensure!(
        counts["no_name"] == 1 && counts["refused"] == 2 && counts["no_data"] == 1,
        "{counts}"
    );

    // After `off` nobody answers.
    left.agent(&["off"])?.done()?;
    let said = left.run(&["dig", SERVER, "+tries=1", "+timeout=1", NAME])?;
    ensure!(said.code != Some(0), "{said:?}");
    Ok(())
}

#[test]
fn packets_of_one_peer_are_copied_into_a_file_that_tcpdump_reads_and_the_controller_knows()
-> Result<()> {
    let plot = Plot::open("capture")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    let third = plot.enrolled("third", "s2", 13, "right")?;
    right.serve()?;
    third.serve()?;
    plot.apply(POLICY)?;
    let (to_right, to_third) = (right.overlay(6)?, third.overlay(4)?);
    left.wait_reaches(&to_right, 9000)?;
    left.wait_reaches(&to_third, 9000)?;

    let file = left.directory.join("right.pcap");
    let path = file.to_string_lossy().into_owned();
    let words = [
        "--json",
        "capture",
        "right.s2",
        "-w",
        &path,
        "-c",
        "6",
        "--seconds",
        "60",
    ];
    left.spawn_agent("capture", &words)?;
    plot.event("capture_started", |e| {
        e["peer_name"] == "right.s2" || e["details"]["of"] == "right.s2"
    })?;
    ensure!(left.reaches(&to_third, 9000)? && left.reaches(&to_right, 9000)?);
    clock::wait_for("the capture to end", Duration::from_secs(30), || {
        left.reaches(&to_right, 9000)?;
        Ok((left.printed("capture")? > 0).then_some(()))
    })?;
    let ended = plot.event("capture_ended", |_| true)?;
    ensure!(ended["details"]["packets"] == "6", "{ended}");
    let read = left.run(&["tcpdump", "-nr", &path])?.done()?;
    let rows: Vec<&str> = read.lines().collect();
    ensure!(rows.len() == 6, "{read}");
    ensure!(
        rows.iter().all(|r| r.contains(&to_right)),
        "another peer's packets: {read}"
    );
    ensure!(read.contains(".9000: Flags [S]"), "{read}");

    // Everything, to a pipe.
    let command = format!(
        "{} capture all -w - -c 3 --seconds 20 2>/dev/null | tcpdump -nr - 2>/dev/null",
        left.command()?
    );
    left.spawn("pipe", &["sh", "-c", &command])?;
    clock::wait_for("three packets in the pipe", Duration::from_secs(30), || {
        left.reaches(&to_third, 9000)?;
        Ok((left.printed("pipe")? > 0).then_some(()))
    })?;

    refuses(&left, &path)?;
    killed(&plot, &left, &path)
}

fn refuses(left: &Device<'_>, path: &str) -> Result<()> {
    let refused = left.agent(&["capture", "nobody", "-w", path])?.refused(1)?;
    ensure!(
        refused.contains("`nobody`") && refused.contains("NAME.SITE"),
        "{refused}"
    );
    let refused = left
        .agent(&["capture", "right.s2", "-w", "/nowhere/x.pcap"])?
        .refused(1)?;
    ensure!(refused.contains("/nowhere/x.pcap"), "{refused}");
    Ok(())
}

/// A capture that is killed cannot say how it went: the agent sees the connection end.
fn killed(plot: &Plot, left: &Device<'_>, path: &str) -> Result<()> {
    let pid = left.spawn_agent("killed", &["capture", "all", "-w", path])?;
    let begun = || Ok((plot.events("capture_started")?.len() == 3).then_some(()));
    clock::wait_for("the third capture", Duration::from_secs(30), begun)?;
    process::signal(pid, Signal::KILL);
    let is = |e: &Value| e["details"]["of"] == "all" && e["details"].get("packets").is_none();
    plot.event("capture_ended", is)?;
    Ok(())
}
