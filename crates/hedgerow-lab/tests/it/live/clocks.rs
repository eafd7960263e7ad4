//! Devices whose clock is wrong: at 1970 after a boot without a battery, and in 2200.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;

use super::device::Device;
use super::plot::{Monotonic, POLICY, Plot, set_clock};

/// Longer than the floor of trusted time goes unwritten, in seconds.
const FLOOR: i64 = 400;
/// 2200-01-01, in seconds since 1970.
const FAR: i64 = 7_258_118_400;

#[test]
fn a_device_at_1970_enforces_keeps_windows_closed_and_learns_the_time_from_the_controller()
-> Result<()> {
    let plot = Plot::open("year1970")?;
    let mut left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    left.serve()?;
    right.serve()?;
    plot.apply(&windowed())?;
    let (target, back) = (right.overlay(6)?, left.overlay(6)?);
    left.wait_reaches(&target, 9000)?;
    left.wait_reaches(&target, 8080)
        .context("the window is open")?;
    plot.advance(FLOOR)?;
    left.status()?;
    plot.settled(&["left", "right"])?;

    // The power goes, the controller too, and the clock comes back at 1970.
    plot.kill_central()?;
    left.cut_power()?;
    let file = plot.lab.path("clock-1970")?;
    set_clock(&file, 10 - i64::try_from(clock::wall_secs())?)?;
    left.own_clock(file.clone(), Monotonic::Stays);
    left.start()?;
    says(&left, "behind", false)?;
    left.wait_reaches(&target, 9000)
        .context("what has no window")?;
    ensure!(
        !left.reaches(&target, 8080)?,
        "a window is open without a clock"
    );
    ensure!(
        !right.reaches(&back, 9000)?,
        "it permits more than the policy"
    );
    let check = left.agent(&["check"])?;
    ensure!(
        check.code == Some(1) && check.out.contains("clock"),
        "{check:?}"
    );

    plot.revive_central()?;
    plot.settled(&["left", "right"])?;
    says(&left, "behind", true)?;
    left.wait_reaches(&target, 8080)
        .context("with the controller's time")?;
    plot.event("clock_untrusted", |e| e["device_name"] == "left.s1")?;
    // Somebody sets the clock.
    set_clock(&file, FLOOR)?;
    says(&left, "trusted", true)?;
    left.wait_reaches(&target, 8080)
}

#[test]
fn a_device_in_2200_enforces_and_does_not_believe_its_clock() -> Result<()> {
    let plot = Plot::open("year2200")?;
    let mut left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    right.serve()?;
    plot.apply(&windowed())?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 8080)
        .context("the window is open")?;
    plot.kill_central()?;
    left.cut_power()?;
    let file = plot.lab.path("clock-2200")?;
    set_clock(&file, FAR - i64::try_from(clock::wall_secs())?)?;
    left.own_clock(file, Monotonic::Stays);
    left.start()?;
    says(&left, "ahead", false)?;
    ensure!(
        left.status()?["certificate"]["expired"] == false,
        "it believes in 2200"
    );
    left.wait_reaches(&target, 9000)
        .context("what has no window")?;
    ensure!(
        !left.reaches(&target, 8080)?,
        "a window is open without a clock"
    );
    plot.revive_central()?;
    plot.settled(&["left", "right"])?;
    says(&left, "ahead", true)?;
    left.wait_reaches(&target, 8080)
        .context("with the controller's time")
}

/// The policy, with the web server behind a window that is open now and for hours.
fn windowed() -> String {
    let hour = clock::wall_secs() / 3600 % 24;
    let (from, to) = ((hour + 20) % 24, (hour + 4) % 24);
    let days = "[ mon, tue, wed, thu, fri, sat, sun ]";
    let window = format!(
        "schedules:\n  now: {{ days: {days}, from: \"{from:02}:00\", to: \"{to:02}:00\", tz: UTC }}\n"
    );
    let rules = "service: [ echo, ping ] }\n  - { id: r-web, from: \"role=left\", to: \"role=right\", service: web, when: now }";
    POLICY
        .replace("segments:", &format!("{window}segments:"))
        .replace("service: [ echo, web, ping ] }", rules)
}

fn says(device: &Device<'_>, state: &str, trusted: bool) -> Result<()> {
    clock::wait_for(
        &format!("its clock to be {state}"),
        Duration::from_secs(30),
        || {
            let status = device.status()?;
            let seen = &status["clock"];
            ensure!(
                seen["state"] == state && seen["trusted"] == trusted,
                "{seen}"
            );
            Ok(Some(()))
        },
    )
}
