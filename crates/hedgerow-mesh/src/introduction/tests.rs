use proptest::prelude::*;

use super::*;

fn ask() -> Ask {
    Ask {
        ticket: vec![1; TICKET_BYTES_MAX],
        binding: vec![2; BINDING_BYTES_MAX],
        timestamp_ms: u64::MAX,
        responder: DeviceId([3; 16]),
        known: (u64::MAX, u64::MAX),
    }
}

#[test]
fn the_largest_parts_fit() {
    let padded = ask().encode().unwrap();
    assert_eq!(padded.len(), ASK_BYTES);
    assert_eq!(Ask::decode(&padded).unwrap(), ask());

    let answer = Answer {
        binding: vec![2; BINDING_BYTES_MAX],
        ticket: Some(vec![1; TICKET_BYTES_MAX]),
        echo_ms: u64::MAX,
    };
    let padded = answer.encode().unwrap();
    assert_eq!(padded.len(), ANSWER_BYTES);
    assert_eq!(Answer::decode(&padded).unwrap(), answer);
}

#[test]
fn parts_above_their_bound_are_neither_written_nor_read() {
    let big = Ask {
        ticket: vec![1; 1000],
        ..ask()
    };
    assert_eq!(big.encode().err(), Some(Malformed::Content));
    let big = Ask {
        ticket: vec![],
        binding: vec![2; BINDING_BYTES_MAX + 1],
        ..ask()
    };
    assert_eq!(
        Ask::decode(&big.encode().unwrap()).err(),
        Some(Malformed::Content)
    );
}

#[test]
fn padding_has_one_spelling() {
    let small = Ask {
        ticket: vec![],
        binding: vec![],
        ..ask()
    };
    let mut padded = small.encode().unwrap();
    let last = padded.len() - 1;
    padded[last] = 1;
    assert!(Ask::decode(&padded).is_err());
}

#[test]
fn the_check_belongs_to_one_responder_and_every_byte() {
    let key = IntroductionSecret::from_bytes([1; 32]).public;
    let other = IntroductionSecret::from_bytes([2; 32]).public;
    let noise = vec![7; INTRODUCE_BYTES - OUTER_BYTES];
    let message = introduce(&key, &noise);
    assert!(Outer::parse(&message).unwrap().is_for(&key));
    assert!(!Outer::parse(&message).unwrap().is_for(&other));
    for i in 4..message.len() {
        let mut bad = message.clone();
        bad[i] ^= 0x80;
        assert!(!Outer::parse(&bad).unwrap().is_for(&key), "byte {i}");
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        prop_assert!(Outer::parse(&bytes).is_err() || bytes.len() >= INTRODUCED_BYTES);
        prop_assert!(Ask::decode(&bytes).is_err() || bytes.len() == ASK_BYTES);
        prop_assert!(Answer::decode(&bytes).is_err() || bytes.len() == ANSWER_BYTES);
    }
}
