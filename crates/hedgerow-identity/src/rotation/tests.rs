use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn up(age: Duration, seed: u64) -> Rotation {
    let mut rotation = Rotation::new(age, seed, Mono::ZERO);
    rotation.handle_uplink(Uplink::Up, Mono::ZERO);
    rotation
}

fn drain(rotation: &mut Rotation) -> Vec<Output> {
    std::iter::from_fn(|| rotation.poll()).collect()
}

/// Advances to the deadline and returns when that was.
fn fire(rotation: &mut Rotation) -> Mono {
    let (at, _) = rotation.deadline();
    rotation.handle_timeout(at);
    at
}

#[test]
fn renewal_is_due_after_a_day_give_or_take_a_tenth_and_spreads() {
    let due: Vec<Duration> = (0..200)
        .map(|seed| up(Duration::ZERO, seed).deadline().0.0)
        .collect();
    let (low, high) = (RENEW_EVERY * 9 / 10, RENEW_EVERY * 11 / 10);
    assert!(due.iter().all(|d| (low..=high).contains(d)));
    let early = due.iter().filter(|d| **d < RENEW_EVERY).count();
    assert!((50..150).contains(&early), "{early} of 200 are early");
}

#[test]
fn a_renewal_goes_through_disk_and_acceptance() {
    let mut rotation = up(Duration::ZERO, 1);
    let at = fire(&mut rotation);
    assert_eq!(drain(&mut rotation), [Output::Request]);
    rotation.handle_issued(at);
    assert_eq!(drain(&mut rotation), [Output::StoreNext]);
    rotation.handle_stored(at);
    assert_eq!(drain(&mut rotation), [Output::TryNext]);
    rotation.handle_accepted(at);
    assert_eq!(drain(&mut rotation), [Output::Promote]);
    assert!(rotation.deadline().0 >= at + RENEW_EVERY * 9 / 10);
}

#[test]
fn without_an_issuer_nothing_is_asked_and_afterwards_it_is_asked_soon() {
    let mut rotation = Rotation::new(HOUR * 30, 1, Mono::ZERO);
    rotation.handle_timeout(Mono::ZERO + HOUR);
    assert_eq!(drain(&mut rotation), []);
    assert_eq!(rotation.deadline().0, Mono::NEVER);
    let back = Mono::ZERO + HOUR * 500;
    rotation.handle_uplink(Uplink::Up, back);
    assert_eq!(drain(&mut rotation), [], "not all at once");
    let at = fire(&mut rotation);
    assert!(at >= back && at <= back + RETRY_FIRST);
    assert_eq!(drain(&mut rotation), [Output::Request]);
}

#[test]
fn links_that_come_and_go_do_not_put_a_renewal_off() {
    let mut rotation = up(HOUR * 30, 3);
    fire(&mut rotation);
    let mut now = Mono::ZERO;
    for round in 0..40 {
        rotation.handle_uplink(Uplink::Down, now);
        now = now + Duration::from_secs(60);
        rotation.handle_uplink(Uplink::Up, now);
        let at = fire(&mut rotation);
        assert!(
            at <= now + RETRY_FIRST,
            "round {round}: {at:?} after {now:?}"
        );
    }
}

#[test]
fn silence_and_refusals_back_off_up_to_a_quarter_of_an_hour() {
    let mut rotation = up(HOUR * 30, 7);
    let mut longest = Duration::ZERO;
    fire(&mut rotation);
    for round in 0..40 {
        assert_eq!(drain(&mut rotation), [Output::Request], "round {round}");
        let asked = rotation.deadline().0;
        if round % 2 == 0 {
            rotation.handle_refused(asked);
        } else {
            fire(&mut rotation);
        }
        let again = fire(&mut rotation);
        longest = longest.max(again.since(asked));
        assert!(again.since(asked) <= RETRY_MAX, "round {round}");
    }
    assert!(longest > RETRY_MAX / 2);
}

#[test]
fn a_new_certificate_that_the_server_refuses_is_dropped() {
    let mut rotation = up(HOUR * 30, 1);
    let at = fire(&mut rotation);
    rotation.handle_issued(at);
    rotation.handle_stored(at);
    rotation.handle_refused(at);
    let outputs = drain(&mut rotation);
    assert_eq!(outputs.last(), Some(&Output::DropNext));
    fire(&mut rotation);
    assert_eq!(drain(&mut rotation), [Output::Request]);
}

#[test]
fn a_new_certificate_that_nobody_answers_for_is_tried_again_and_never_dropped() {
    let mut rotation = Rotation::resume(1, Mono::ZERO);
    assert_eq!(drain(&mut rotation), [Output::TryNext]);
    rotation.handle_uplink(Uplink::Down, Mono::ZERO);
    for _ in 0..20 {
        fire(&mut rotation);
        assert_eq!(drain(&mut rotation), [Output::TryNext]);
    }
}

#[test]
fn a_full_disk_keeps_the_old_certificate() {
    let mut rotation = up(HOUR * 30, 1);
    let at = fire(&mut rotation);
    rotation.handle_issued(at);
    rotation.handle_not_stored(at);
    assert_eq!(
        drain(&mut rotation),
        [Output::Request, Output::StoreNext],
        "no promotion"
    );
    fire(&mut rotation);
    assert_eq!(drain(&mut rotation), [Output::Request]);
}

#[test]
fn a_link_lost_while_asking_asks_again_when_it_is_back() {
    let mut rotation = up(HOUR * 30, 1);
    let at = fire(&mut rotation);
    drain(&mut rotation);
    rotation.handle_uplink(Uplink::Down, at);
    assert_eq!(rotation.deadline().0, Mono::NEVER);
    rotation.handle_issued(at);
    assert_eq!(drain(&mut rotation), [], "an answer from before is stale");
    rotation.handle_uplink(Uplink::Up, at + HOUR);
    fire(&mut rotation);
    assert_eq!(drain(&mut rotation), [Output::Request]);
}

#[test]
fn an_operator_can_ask_at_once() {
    let mut rotation = up(Duration::ZERO, 1);
    rotation.handle_wanted(Mono::ZERO);
    assert_eq!(drain(&mut rotation), [Output::Request]);
    rotation.handle_wanted(Mono::ZERO);
    assert_eq!(drain(&mut rotation), [], "one request at a time");
}

#[derive(Debug, Clone, Copy)]
enum Input {
    Uplink(bool),
    Issued,
    Stored,
    NotStored,
    Accepted,
    Refused,
    Wanted,
    Timeout,
}

fn input() -> impl Strategy<Value = (Input, u32)> {
    let input = prop_oneof![
        any::<bool>().prop_map(Input::Uplink),
        Just(Input::Issued),
        Just(Input::Stored),
        Just(Input::NotStored),
        Just(Input::Accepted),
        Just(Input::Refused),
        Just(Input::Wanted),
        Just(Input::Timeout),
    ];
    (input, 0..100_000u32)
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_promoted_untried_and_time_moves_on(
        seed: u64,
        inputs in prop::collection::vec(input(), 0..80),
    ) {
        let mut rotation = Rotation::new(Duration::ZERO, seed, Mono::ZERO);
        let mut now = Mono::ZERO;
        let (mut requested, mut stored, mut tried) = (false, false, false);
        for (input, seconds) in inputs {
            now = now + Duration::from_secs(seconds.into());
            match input {
                Input::Uplink(true) => rotation.handle_uplink(Uplink::Up, now),
                Input::Uplink(false) => rotation.handle_uplink(Uplink::Down, now),
                Input::Issued => rotation.handle_issued(now),
                Input::Stored => rotation.handle_stored(now),
                Input::NotStored => rotation.handle_not_stored(now),
                Input::Accepted => rotation.handle_accepted(now),
                Input::Refused => rotation.handle_refused(now),
                Input::Wanted => rotation.handle_wanted(now),
                Input::Timeout => rotation.handle_timeout(now),
            }
            while let Some(output) = rotation.poll() {
                match output {
                    Output::Request => requested = true,
                    Output::StoreNext => {
                        prop_assert!(requested);
                        stored = true;
                    }
                    Output::TryNext => {
                        prop_assert!(stored);
                        tried = true;
                    }
                    Output::Promote | Output::DropNext => {
                        prop_assert!(tried);
                        (requested, stored, tried) = (false, false, false);
                    }
                }
            }
            rotation.handle_timeout(now);
            let woken = rotation.deadline().0;
            rotation.handle_timeout(now);
            prop_assert_eq!(rotation.deadline().0, woken, "a second call changes nothing");
            prop_assert!(woken > now || woken == Mono::NEVER || woken.since(now).is_zero());
            while let Some(output) = rotation.poll() {
                match output {
                    Output::Request => requested = true,
                    Output::StoreNext => stored = true,
                    Output::TryNext => tried = true,
                    Output::Promote | Output::DropNext => {}
                }
            }
        }
    }
}
