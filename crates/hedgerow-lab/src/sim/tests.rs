use std::collections::BTreeSet;
use std::time::Duration;

use super::faults::Fault;
use super::network::Weather;
use super::plant::{Member, Place, Plant};
use super::random::Random;
use super::reference::Expected;
use super::*;

mod broken;
mod first;

/// A plant that nobody drew: open sites, and who stands where.
fn plant(sites: usize, members: Vec<Member>) -> Plant {
    Plant {
        places: vec![Place::Open; sites],
        members,
        flows: Vec::new(),
        blocked: BTreeSet::new(),
    }
}

/// A world in which nothing goes wrong and nothing is drawn that matters.
fn quiet(plant: Plant, faults: Vec<(Mono, Fault)>, broken: Option<Broken>) -> World {
    let shape = Shape {
        broken,
        ..shape(5, plant.members.len(), 0)
    };
    let mut world = World::of(shape, plant, Some(faults), Random::new(5)).unwrap();
    world.network.weather = Weather::STILL;
    world.controller.answers_in = (RESOLVED_IN, Duration::ZERO);
    world
}

/// One round trip to the controller in a quiet world.
const RESOLVED_IN: Duration = Duration::from_millis(60);

fn pass(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.next(end).unwrap() {}
    world.now = end;
}

fn shape(seed: u64, nodes: usize, minutes: u64) -> Shape {
    Shape {
        seed,
        nodes,
        length: Duration::from_secs(minutes * 60),
        broken: None,
    }
}

fn clean(shape: Shape) -> Outcome {
    let outcome = run(shape, |_| ControlFlow::Continue(())).unwrap().unwrap();
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
    let traced = |seed| {
        let outcome = run(shape(seed, 12, 16), |_| ControlFlow::Continue(()));
        outcome.unwrap().unwrap()
    };
    let one = traced(7);
    let again = traced(7);
    assert_eq!(one, again);
    let other = traced(8);
    assert_ne!(one.trace, other.trace);
}

#[test]
fn small_plants_keep_to_the_reference_whatever_breaks() {
    let mut judged = BTreeMap::new();
    for seed in 1..=4 {
        let outcome = clean(shape(seed, 24, 16));
        for (expected, count) in outcome.judged {
            *judged.entry(expected).or_default() += count;
        }
    }
    for expected in [
        Expected::Reaches,
        Expected::ReachesRelayed,
        Expected::ReachesOverTwo,
        Expected::Refused,
    ] {
        let count: u64 = judged.get(&expected).copied().unwrap_or_default();
        assert!(count > 0, "nothing was judged to be {expected:?}");
    }
}

#[test]
fn how_late_the_one_learns_whom_a_list_revokes_is_no_figure() {
    let mut world = World::new(shape(3, 24, 16)).unwrap();
    let must = |node: &usize| reference::must_learn(&world.plant, &world.circumstances, *node);
    let some: Vec<usize> = (0..24).filter(must).take(2).collect();
    world.circumstances.revoked.insert(some[0]);
    world.learns(some[0]);
    assert_eq!(world.outcome.figures.urgent.len(), 0);
    world.learns(some[1]);
    assert_eq!(world.outcome.figures.urgent.len(), 1);
}

#[test]
fn a_large_plant_keeps_to_the_reference() {
    let outcome = clean(shape(3, 80, 16));
    assert!(outcome.judged(Expected::Reaches) > 40);
    assert!(outcome.judged(Expected::ReachesRelayed) > 5);
}
