//! Questions and answers over fresh sessions while the machine has no time.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hedgerow_lab::clock;

use super::device::Device;
use super::plot::{POLICY, Plot};

/// Programs that do nothing as fast as they can, and for how many seconds at most.
const BUSY: usize = 4;
const BUSY_SECONDS: &str = "90";
/// How often a device asks over a session that has just begun.
const ROUNDS: u32 = 4;
/// A datagram may get lost; a question is asked so often.
const ASKED_MAX: u32 = 3;

#[test]
fn a_first_datagram_and_its_answer_arrive_on_a_busy_machine() -> Result<()> {
    let plot = Plot::open("loaded")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    right.spawn(
        "log",
        &[
            "socat",
            "UDP6-LISTEN:514,ipv6only=0,reuseaddr,fork",
            "EXEC:cat",
        ],
    )?;
    right.serve()?;
    plot.apply(&POLICY.replace("tcp/9000 ]", "tcp/9000, udp/514 ]"))?;
    let targets = [right.overlay(6)?, right.overlay(4)?];
    left.wait_reaches(&targets[0], 9000)?;
    plot.kill_central()?;
    for number in 0..BUSY {
        let argv = [
            "nice",
            "timeout",
            BUSY_SECONDS,
            "sh",
            "-c",
            "while :; do :; done",
        ];
        left.spawn(&format!("busy-{number}"), &argv)?;
    }
    for round in 0..ROUNDS {
        // A first question over no session at all waits for one.
        left.kill()?;
        left.wait_ready()?;
        for target in &targets {
            let lost = ask(&left, target).with_context(|| format!("round {round}, {target}"))?;
            ensure!(lost == 0, "round {round}, {target}: {lost} datagrams lost");
        }
        // The other end does not know the session that we believe in: one question is lost on it.
        right.kill()?;
        right.wait_ready()?;
        for target in &targets {
            let lost = ask(&left, target).with_context(|| format!("round {round}, {target}"))?;
            ensure!(lost <= 1, "round {round}, {target}: {lost} datagrams lost");
        }
    }
    Ok(())
}

/// Asks until there is an answer; returns how many datagrams were lost.
fn ask(device: &Device<'_>, target: &str) -> Result<u32> {
    let script = "echo question | nc -u -w 8 -W 1 \"$0\" 514";
    for lost in 0..ASKED_MAX {
        let said = device.run(&["bash", "-c", script, target])?;
        if said.out.contains("question") {
            return Ok(lost);
        }
        clock::pause(Duration::from_millis(100));
    }
    bail!("no answer: {}", device.status()?)
}
