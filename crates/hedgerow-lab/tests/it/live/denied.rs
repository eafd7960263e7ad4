//! What programs hear whose first packet may not go, and what they hear once it may.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{panic, thread};

use anyhow::{Result, ensure};

use super::device::Device;
use super::plot::{POLICY, Plot};

/// No more than a reply to `ping` between the two.
const PING: &str = "service: ping";

#[test]
fn a_first_packet_that_may_not_go_fails_at_once_and_the_next_goes_once_it_may() -> Result<()> {
    let plot = Plot::open("denied")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    let far = plot.enrolled("far", "s2", 11, "right")?;
    right.serve()?;
    far.serve()?;
    plot.settled(&["left", "right", "far"])?;
    let (v6, v4) = (right.overlay(6)?, far.overlay(4)?);
    let all = "service: [ echo, web, ping ]";

    // Nothing between the roles: the controller does not say who is there.
    plot.apply(&POLICY.replace("from: \"role=left\"", "from: \"role=other\""))?;
    for _ in 0..2 {
        refused(&left, &v6, "No route to host")?;
        refused(&left, &v4, "No route to host")?;
    }
    for name in ["right", "far"] {
        ensure!(left.peer(name)?.is_none(), "{name} is a peer");
    }
    plot.apply(POLICY)?;
    connect(&left, &v6)?;
    connect(&left, &v4)?;

    // Another service is allowed: the packet waits for the introduction, and is refused after it.
    plot.apply(&POLICY.replace("from: \"role=left\"", "from: \"role=other\""))?;
    for name in ["right", "far"] {
        ensure!(left.peer(name)?.is_none(), "{name} is still a peer");
    }
    plot.apply(&POLICY.replace(all, PING))?;
    for name in ["right", "far"] {
        ensure!(left.peer(name)?.is_none(), "{name} is a peer already");
    }
    refused(&left, &v6, "Permission denied")?;
    refused(&left, &v4, "No route to host")?;
    // They are peers now: the kernel says no itself.
    for address in [&v6, &v4] {
        refused(&left, address, "Connection refused")?;
    }
    plot.apply(POLICY)?;
    connect(&left, &v6)?;
    connect(&left, &v4)
}

#[test]
fn who_tries_all_the_while_stands_as_soon_as_the_policy_lets_it() -> Result<()> {
    let plot = Plot::open("trying")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    let far = plot.enrolled("far", "s2", 11, "right")?;
    right.serve()?;
    far.serve()?;
    plot.settled(&["left", "right", "far"])?;
    let targets = [right.overlay(6)?, far.overlay(4)?];
    let nothing = POLICY.replace("from: \"role=left\"", "from: \"role=other\"");
    for _ in 0..3 {
        plot.apply(&nothing)?;
        for target in &targets {
            left.wait_cut(target, 9000)?;
        }
        let done = AtomicBool::new(false);
        let trying = |target: &str| -> Result<()> {
            while !done.load(Ordering::SeqCst) {
                attempt(&left, target)?;
            }
            // Whatever the attempts have left behind.
            connect(&left, target)
        };
        thread::scope(|scope| -> Result<()> {
            let [one, two] = targets
                .each_ref()
                .map(|target| scope.spawn(|| trying(target)));
            let applied = plot.apply(POLICY);
            done.store(true, Ordering::SeqCst);
            for tried in [one, two] {
                match tried.join() {
                    Ok(stands) => stands?,
                    Err(panic) => panic::resume_unwind(panic),
                }
            }
            applied.map(drop)
        })?;
    }
    Ok(())
}

/// Tries to connect once, for as long as the kernel does; returns what the program says of it, which
/// is nothing when the connection stood.
fn attempt(device: &Device<'_>, address: &str) -> Result<String> {
    let target = match address.contains(':') {
        true => format!("TCP6:[{address}]:9000"),
        false => format!("TCP4:{address}:9000"),
    };
    let said = device.run(&["socat", "-u", "OPEN:/dev/null", &target])?;
    // `ip netns` may complain as well: of a file that the agent is writing.
    let why = said.err.lines().find(|line| line.contains(" E connect("));
    ensure!(
        (said.code == Some(0)) == why.is_none(),
        "neither stands nor fails: {said:?}"
    );
    Ok(why.unwrap_or_default().to_owned())
}

fn connect(device: &Device<'_>, address: &str) -> Result<()> {
    let said = attempt(device, address)?;
    ensure!(said.is_empty(), "{address} is allowed: {said}");
    Ok(())
}

fn refused(device: &Device<'_>, address: &str, error: &str) -> Result<()> {
    let said = attempt(device, address)?;
    ensure!(said.contains(error), "{address}, not {error}: {said:?}");
    Ok(())
}
