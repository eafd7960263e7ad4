//! Act 1: the plant as it is found.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::Lab;
use crate::matrix::{self, Addresses, Verdict};
use crate::plant::{self, DEVICES};
use crate::process;
use crate::programs::{self, Network};
use crate::screen::Screen;

/// Plays act 1.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn play(lab: &Lab, screen: Screen) -> Result<bool> {
    let mut act = screen.act(1, "No Hedgerow: everything reaches everything");
    let found = matrix::run(&[&underlay()], &[])?;
    for matrix in &found {
        let wrong = matrix.mismatches(|_| Verdict::ALLOW);
        act.matrix("reach on the plant's network", matrix, &wrong, true);
    }
    let device = |name| plant::find(name).with_context(|| format!("no {name}"));
    let network = Network::Underlay;
    let published = programs::publish(lab, device("sensor-1")?, network, "act1-sensor-1");
    act.succeeds(
        "mosquitto_pub, sensor-1 to collector",
        published.map(|ms| format!("{ms} ms")),
    );
    let published = programs::publish(lab, device("sensor-2")?, network, "act1-sensor-2");
    act.succeeds(
        "mosquitto_pub, sensor-2 to collector",
        published.map(|ms| format!("{ms} ms")),
    );
    let read = programs::read_register(device("contractor")?, device("plc-1")?, network);
    act.succeeds(
        "mbpoll, contractor reads plc-1",
        read.map(|v| format!("register 5 = {v}")),
    );
    let page = programs::fetch(device("ops")?, device("camera")?, network);
    act.succeeds("curl, ops to camera", page.map(|s| format!("HTTP {s}")));
    let answer = programs::log_in(lab, device("ops")?, device("nvr")?, network);
    act.succeeds("ssh, ops to nvr", answer);
    let stream = programs::stream(lab, device("camera")?, device("nvr")?, network)?;
    let nvr = device("nvr")?;
    let rate = programs::recorded_mbit(nvr, Duration::from_secs(2))?;
    process::kill(stream);
    act.check(
        "socat, camera to nvr",
        "as fast as the wire",
        &format!("{rate} Mbit/s"),
        rate > 20.0,
    );
    Ok(act.end())
}

/// Returns the devices' addresses on the plant's own network.
pub(crate) fn underlay() -> Addresses {
    DEVICES
        .iter()
        .map(|d| (d.name, d.underlay().into()))
        .collect()
}
