use std::collections::BTreeMap;

use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::message;
use hedgerow_model::path::Path;

use super::*;
use crate::path::{Output, PathMessage, Paths, Reply};

/// Far more than a budget lasts for.
const PEERS: u16 = 4000;

fn at(ms: u64) -> Mono {
    Mono(Duration::from_millis(ms))
}

fn device(n: u16) -> DeviceId {
    let [high, low] = n.to_be_bytes();
    DeviceId([high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

fn path(n: u16, port: u16) -> Path {
    let [high, low] = n.to_be_bytes();
    Path::direct(Underlay(([192, 168, high, low], port).into()))
}

/// Answers a message that is a probe.
fn answer(paths: &mut Paths, output: &Output, by: Path, ms: u64) {
    let Output::Send { device, bytes, .. } = output else {
        return;
    };
    let (_, content) = message::decode(bytes).unwrap();
    if let Ok(PathMessage::Probe(probe)) = PathMessage::decode(content) {
        let reply = PathMessage::Reply(Reply {
            number: probe.number,
            token: probe.token,
            size: probe.size,
            seen: None,
        });
        let reply = reply.encode();
        paths.handle_message(*device, by, (&reply, reply.len()), at(ms));
    }
}

/// All of them answered once, and are never heard of again.
fn silent_peers() -> Paths {
    let mut paths = Paths::new([7; 32], 1420);
    for n in 0..PEERS {
        let ms = 1000 + u64::from(n);
        paths.handle_established(device(n), path(n, 1), at(ms));
        while let Some(output) = paths.poll() {
            answer(&mut paths, &output, path(n, 1), ms + 1);
        }
    }
    paths
}

/// Lets time pass; returns how many messages each peer was sent in each second. `each` hears of every output.
fn run(
    paths: &mut Paths,
    (from, to): (u64, u64),
    mut each: impl FnMut(&mut Paths, &Output, u64),
) -> BTreeMap<u64, usize> {
    let mut sent = BTreeMap::new();
    for ms in from..to {
        if paths.deadline() <= at(ms) {
            paths.handle_timeout(at(ms));
        }
        while let Some(output) = paths.poll() {
            if matches!(output, Output::Send { .. }) {
                *sent.entry(ms / 1000).or_default() += 1;
            }
            each(paths, &output, ms);
        }
    }
    sent
}

#[test]
fn thousands_that_fall_silent_at_once_cost_a_bounded_amount() {
    let mut paths = silent_peers();
    let mut lost = 0;
    let sent = run(&mut paths, (5000, 90_000), |_, output, _| {
        lost += usize::from(matches!(output, Output::Lost { .. }));
    });
    // Beside the rounds each peer is told twice where we are, asked how long packets may be, and probed once,
    // by which its silence is found out.
    let all: usize = sent.values().sum();
    assert!(all <= usize::from(PEERS) * 7 + 64 * 85 + 256, "{all}");
    let late = sent
        .range(40..80)
        .map(|(_, n)| *n)
        .max()
        .unwrap_or_default();
    assert!(late <= 64 + 8, "{late} in a second");
    assert!((16..=16 + 85).contains(&lost), "{lost} looked for");
}

#[test]
fn a_peer_to_which_packets_go_is_not_put_off_for_those_to_which_none_do() {
    let mut paths = silent_peers();
    let me = PEERS - 1;
    let (mine, other) = (device(me), path(me, 2));
    run(&mut paths, (5000, 40_000), |_, _, _| {});
    // A second way that answers: it is found at once among all that do not.
    paths.handle_silent(mine, Duration::from_millis(100), at(40_000));
    paths.handle_known(mine, &[other], at(40_000));
    let mut moved = None;
    run(&mut paths, (40_001, 42_000), |paths, output, ms| {
        if let Output::Send { device, via, .. } = output
            && (*device, *via) == (mine, Some(other))
        {
            answer(paths, output, other, ms);
        } else if let Output::Move { device, to, .. } = output
            && *device == mine
        {
            assert_eq!(*to, other);
            moved.get_or_insert(ms - 40_000);
        }
    });
    assert!(moved.is_some_and(|ms| ms <= 500), "{moved:?}");
}

#[test]
fn whoever_is_put_off_waits_longer_each_time_up_to_a_bound() {
    assert_eq!(put_off(true, 1), PUT_OFF * 2);
    assert_eq!(put_off(true, 40), PUT_OFF_WANTED_MAX);
    assert_eq!(put_off(false, 40), PUT_OFF_IDLE_MAX);
    let mut pace = Pace::new();
    let burst = usize::try_from(IDLE_PROBES.burst).unwrap();
    assert_eq!(pace.take(false, burst + 5, at(0)), burst);
    assert_eq!(pace.take(false, 1, at(0)), 0);
    assert_eq!(pace.take(true, 3, at(0)), 3, "a budget of their own");
    assert_eq!(pace.take(false, 500, at(1000)), 64);
}
