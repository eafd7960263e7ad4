//! Relays that pass on what shows that they work, and little else.

use super::*;

fn other(session: u32) -> Path {
    let relay = Underlay("203.0.113.2:7117".parse().unwrap());
    Path::relayed(relay, RelaySession(session))
}

/// Two devices with two sessions by one relay, and one by another that is further away.
fn by_two_sessions_and_another_relay() -> Pair {
    let mut pair = Pair::through_relay();
    for (a, b, delay) in [(relayed(3), relayed(4), 15), (other(7), other(8), 30)] {
        pair.link(a, b, ms(delay));
        for (end, path) in [(0, a), (1, b)] {
            pair.with(end, |p, device, now| p.handle_known(device, &[path], now));
        }
    }
    pair.run(ms(1000));
    pair
}

/// What a tunnel says of packets that go unanswered, one silence twice as long as the one before.
fn unanswered(pair: &mut Pair, end: usize) {
    for waited in [100, 200, 400, 800] {
        pair.silence_of(end, ms(waited));
        pair.run(ms(500));
    }
}

#[test]
fn a_relay_that_answers_every_probe_and_swallows_packets_is_left_and_so_it_is_by_the_peer() {
    let mut pair = by_two_sessions_and_another_relay();
    unanswered(&mut pair, 0);
    assert_eq!(pair.moves(0), [(other(7), Why::Dead)]);
    assert_eq!(pair.moves(1), [(other(8), Why::Followed)]);
    // It is nearer, and goes on answering.
    for _ in 0..60 {
        for end in [0, 1] {
            pair.with(end, |p, device, now| p.handle_active(device, now));
        }
        pair.run(Duration::from_secs(5));
    }
    assert_eq!(pair.current, [other(7), other(8)]);
    // The other one swallows too, says the tunnel: there is no third.
    unanswered(&mut pair, 0);
    assert_eq!(pair.current, [other(7), other(8)]);
    // It dies: one that may swallow is better than none.
    pair.cut(other(7), other(8));
    pair.silence(0);
    pair.run(ms(1500));
    assert!([relayed(1), relayed(3)].contains(&pair.current[0]));
}

#[test]
fn a_slow_peer_and_a_straight_path_are_no_reason_to_leave() {
    let mut pair = through_two_relays();
    // Each packet is answered at last: no silence is longer than the first.
    for _ in 0..40 {
        pair.silence(0);
        pair.run(ms(500));
    }
    assert_eq!(pair.moves(0), []);
    let mut pair = Pair::side_by_side();
    let before = pair.moves(0);
    unanswered(&mut pair, 0);
    unanswered(&mut pair, 0);
    assert_eq!(pair.moves(0), before);
}

#[test]
fn a_relay_that_drops_long_packets_of_every_session_is_left_by_both_ends() {
    let mut pair = by_two_sessions_and_another_relay();
    for (end, sessions) in [(0, [1, 3]), (1, [2, 4])] {
        for path in sessions.map(relayed) {
            pair.links[end].get_mut(&path).unwrap().carries = 400;
        }
    }
    // Each finds out by itself, and tells the other to follow where it knows better.
    for end in [0, 1, 0, 1, 0, 1, 0, 1] {
        pair.silence(end);
        pair.run(ms(150));
    }
    pair.run(ms(1000));
    assert_eq!(pair.current, [other(7), other(8)]);
}
