//! Ways that whoever gave them takes back.

use super::*;

#[test]
fn a_way_that_was_taken_back_is_left_although_it_still_answers() {
    let mut pair = through_two_relays();
    pair.with(0, |p, device, now| {
        p.handle_closed(device, &[relayed(1)], now);
    });
    pair.run(ms(300));
    assert_eq!(pair.current[0], relayed(7));
    pair.run(Duration::from_secs(10));
    assert_eq!(pair.current[0], relayed(7));
    let left = pair.paths[0].routes(device(1));
    assert!(
        left.iter().all(|route| route.path != relayed(1)),
        "{left:?}"
    );
}

#[test]
fn a_way_that_was_taken_back_is_left_also_while_nobody_speaks() {
    let mut pair = through_two_relays();
    pair.run(ACTIVE_FOR * 2);
    pair.with(0, |p, device, now| {
        p.handle_closed(device, &[relayed(1)], now);
    });
    pair.run(ms(1000));
    assert_eq!(pair.current[0], relayed(7));
}

#[test]
fn the_only_way_is_taken_back_and_others_are_asked_for_until_one_is_found() {
    let mut pair = Pair::through_relay();
    pair.run(ACTIVE_FOR * 2);
    pair.cut(relayed(1), relayed(2));
    pair.with(0, |p, device, now| {
        p.handle_closed(device, &[relayed(1)], now);
    });
    let asked = |pair: &Pair| {
        let trouble = Output::Trouble { device: device(1) };
        pair.log[0].iter().filter(|o| **o == trouble).count()
    };
    assert_eq!(asked(&pair), 1, "at once");
    pair.run(Duration::from_secs(10));
    assert!((3..=5).contains(&asked(&pair)), "{}", asked(&pair));
    pair.link(relayed(7), relayed(8), ms(30));
    pair.with(0, |p, device, now| {
        p.handle_known(device, &[relayed(7)], now);
    });
    pair.run(ms(300));
    assert_eq!(pair.current, [relayed(7), relayed(8)]);
    let before = asked(&pair);
    pair.run(Duration::from_secs(30));
    assert_eq!(asked(&pair), before, "it is found");
}

#[test]
fn ways_that_are_taken_back_together_are_none_around_each_other() {
    let mut pair = through_two_relays();
    let moves = pair.moves(0);
    pair.with(0, |p, device, now| {
        p.handle_closed(device, &[relayed(1), relayed(7)], now);
    });
    pair.run(ms(1000));
    assert_eq!(pair.moves(0), moves);
}

#[test]
fn a_way_that_was_taken_back_and_given_again_is_good_again() {
    let mut pair = Pair::through_relay();
    pair.run(ms(500));
    pair.with(0, |p, device, now| {
        p.handle_closed(device, &[relayed(1)], now);
        p.handle_known(device, &[relayed(1)], now);
    });
    pair.run(LOST_AFTER * 2);
    assert!(!pair.log[0].contains(&Output::Lost { device: device(1) }));
    assert!(pair.paths[0].answers(device(1)));
}
