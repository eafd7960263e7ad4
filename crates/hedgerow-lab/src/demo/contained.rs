//! Act 5: a device is quarantined in the middle of a session.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::stage::{SETTLE, Stage};
use crate::programs::{self, Network};
use crate::{clock, process};

/// How soon a quarantined device's sessions must stand still.
const CUT: Duration = Duration::from_secs(1);

/// Plays act 5.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn play(stage: &mut Stage<'_>) -> Result<bool> {
    let mut act = stage.screen.act(
        5,
        "A camera is quarantined while it streams: the session is cut",
    );
    let (camera, nvr) = (stage.device("camera")?, stage.device("nvr")?);
    let stream = programs::stream(stage.lab, camera, nvr, Network::Overlay)?;
    clock::wait_for("the camera's stream", Duration::from_secs(10), || {
        Ok((programs::recorded(nvr)? > 500_000).then_some(()))
    })?;
    let start = clock::now();
    stage.central.post(
        "devices/camera.s1/quarantine",
        &json!({"reason": "demonstration"}),
    )?;
    let answered = clock::ms_since(start);
    let cut = stands_still(stage, start)?;
    let verified = stage.central.settled_since(&stage.all(), start, SETTLE)?;
    let limit = CUT.as_secs_f64() * 1000.0;
    act.took(
        "established stream stands still after the order",
        cut,
        limit,
    );
    act.took(
        "quarantine to the last peer's kernel verified",
        verified,
        1000.0,
    );
    act.figure(
        "quarantine_ms",
        json!({"answered": answered, "cut": cut, "verified": verified}),
    );
    stage.compare_predicted(&mut act)?;
    stage.expect_event(&mut act, "device_quarantined", Some("camera"));
    process::kill(stream);
    stage.central.post(
        "devices/camera.s1/release",
        &json!({"reason": "demonstration"}),
    )?;
    stage.central.settled(&stage.all(), SETTLE)?;
    let stream = programs::stream(stage.lab, camera, nvr, Network::Overlay)?;
    let again = clock::wait_for(
        "the stream after the release",
        Duration::from_secs(10),
        || Ok((programs::recorded(nvr)? > 200_000).then_some(())),
    );
    act.succeeds(
        "released: a new stream flows",
        again.map(|()| "it does".to_owned()),
    );
    process::kill(stream);
    Ok(act.end())
}

/// Waits until the recorder gets nothing more; returns when the last byte came, in milliseconds.
fn stands_still(stage: &Stage<'_>, start: std::time::Instant) -> Result<f64> {
    let nvr = stage.device("nvr")?;
    let mut bytes = programs::recorded(nvr)?;
    let mut last = clock::ms_since(start);
    // A stream of 8 Mbit/s that is silent for this long does not come back.
    while clock::ms_since(start) - last < 1500.0 {
        anyhow::ensure!(
            clock::ms_since(start) < 15_000.0,
            "the stream goes on after the quarantine"
        );
        clock::pause(Duration::from_millis(20));
        let more = programs::recorded(nvr)?;
        if more != bytes {
            (bytes, last) = (more, clock::ms_since(start));
        }
    }
    Ok(last)
}
