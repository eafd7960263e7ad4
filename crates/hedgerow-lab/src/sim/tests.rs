use std::time::Duration;

use super::reference::Expected;
use super::*;

fn shape(seed: u64, nodes: usize, minutes: u64) -> Shape {
    Shape {
        seed,
        nodes,
        length: Duration::from_secs(minutes * 60),
    }
}

fn clean(shape: Shape) -> Outcome {
    let outcome = run(shape, |_| {}).unwrap();
    assert!(
        outcome.found == 0,
        "seed {}, {} devices: {:#?}",
        shape.seed,
        shape.nodes,
        outcome.findings
    );
    outcome
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let one = run(shape(7, 40, 15), |_| {}).unwrap();
    let again = run(shape(7, 40, 15), |_| {}).unwrap();
    assert_eq!(one, again);
    let other = run(shape(8, 40, 15), |_| {}).unwrap();
    assert_ne!(one.trace, other.trace);
}

#[test]
fn small_plants_keep_to_the_reference_whatever_breaks() {
    for seed in 1..=8 {
        let outcome = clean(shape(seed, 30, 28));
        assert!(outcome.judged(Expected::Reaches) > 0, "nothing was judged");
    }
}

#[test]
fn a_thousand_devices_keep_to_the_reference_for_an_hour() {
    let outcome = clean(shape(1, 1000, 60));
    assert!(outcome.judged(Expected::Reaches) > 1000);
    assert!(outcome.judged(Expected::Refused) > 10);
}
