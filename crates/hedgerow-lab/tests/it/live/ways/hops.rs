//! Two relays, one behind the other: the floor sees the gateway of its hall alone, the far site its own.
//!
//! ```text
//!   floor ── gateway ── router ── hub ── far
//! ```

use anyhow::Result;
use hedgerow_lab::clock;

use super::super::plot::Plot;
use super::{Pulse, join, measured, on_the_way, policy, relay, wait_way};

#[test]
fn two_devices_meet_over_two_relays_of_which_each_sees_one() -> Result<()> {
    let plot = Plot::open_in_real_time("hops")?;
    plot.apply(&policy())?;
    let _gateway = relay(&plot, "gateway", "s1")?;
    let _hub = relay(&plot, "hub", "s2")?;
    // Controller and relay: nothing else is there for either device.
    let alone: String = [("10.77.1.11", "10.77.1.51"), ("10.77.2.11", "10.77.2.51")]
        .iter()
        .map(|(device, relay)| {
            let others = format!("!= {{ 10.77.0.2, {relay} }} drop");
            format!("ip saddr {device} ip daddr {others}\nip daddr {device} ip saddr {others}\n")
        })
        .collect();
    on_the_way(&plot, "alone", &alone)?;
    let floor = plot.device("floor", "s1", 11)?;
    let far = plot.device("far", "s2", 11)?;
    join(&plot, &floor, "s1", "role=left")?;
    join(&plot, &far, "s2", "role=left")?;
    floor.serve()?;
    far.serve()?;
    let (to_far, to_floor) = (far.overlay(6)?, floor.overlay(6)?);

    let start = clock::now();
    floor.wait_reaches(&to_far, 9000)?;
    measured("first connection over two relays", clock::ms_since(start));
    wait_way(&floor, "far", |w| {
        w == "relayed by gateway.s1 at 10.77.1.51:7117"
    })?;
    wait_way(&far, "floor", |w| {
        w == "relayed by hub.s2 at 10.77.2.51:7117"
    })?;
    far.wait_reaches(&to_floor, 9000)?;
    let pulse = Pulse::start(&floor, "pulse", &to_far)?;
    let (there, back) = (floor.talk(&to_far)?, far.talk(&to_floor)?);
    for _ in 0..3 {
        there.moves()?;
        back.moves()?;
    }
    pulse.end("over two relays")?;
    Ok(())
}
