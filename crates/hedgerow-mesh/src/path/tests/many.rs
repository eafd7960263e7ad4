//! Ways that fail and addresses that many peers see: what is done stays little.

use super::*;

#[test]
fn a_way_that_fails_again_and_again_is_not_taken_for_being_shorter() {
    let mut pair = through_two_relays();
    // The nearer relay passes on what comes for three seconds of five.
    for _ in 0..40 {
        pair.cut(relayed(1), relayed(2));
        pair.silence(0);
        pair.run(ms(2000));
        pair.link(relayed(1), relayed(2), ms(15));
        pair.run(ms(3000));
    }
    let moves = pair.moves(0);
    let dead = moves.iter().filter(|(_, why)| *why == Why::Dead).count();
    assert!((2..=8).contains(&dead), "{moves:?}");
}

#[test]
fn a_way_that_failed_once_is_taken_again_at_once() {
    let mut pair = through_two_relays();
    pair.cut(relayed(1), relayed(2));
    pair.silence(0);
    pair.run(ms(2000));
    assert_eq!(pair.current[0], relayed(7));
    pair.link(relayed(1), relayed(2), ms(15));
    pair.run(ms(5000));
    assert_eq!(pair.current[0], relayed(1));
}

#[test]
fn a_nat_that_maps_by_destination_shows_each_address_as_news_once() {
    let mut paths = Paths::new([1; 32], 1420);
    let seen = |n: u16| Underlay(([198, 51, 100, 1], 20_000 + n).into());
    let news = |paths: &mut Paths| (0..40).filter(|n| paths.common.observe(seen(*n))).count();
    assert_eq!(news(&mut paths), 40);
    assert_eq!(news(&mut paths), 0, "each peer says the same again");
    assert_eq!(paths.own_candidates().len(), OBSERVED_MAX);
}
