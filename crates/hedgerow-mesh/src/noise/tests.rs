use super::*;

fn secret(byte: u8) -> StaticSecret {
    StaticSecret::from([byte; 32])
}

/// Another implementation of the same protocol reads what we write, and the other way round.
#[test]
fn both_messages_agree_with_another_implementation() {
    let params: snow::params::NoiseParams = "Noise_IK_25519_ChaChaPoly_BLAKE2s".parse().unwrap();
    let (ours, theirs) = (secret(1), secret(2));
    let mut buffer = [0u8; 512];

    let mut peer = snow::Builder::new(params.clone())
        .local_private_key(theirs.as_bytes())
        .unwrap()
        .prologue(b"prologue")
        .unwrap()
        .build_responder()
        .unwrap();
    let mut first = Vec::new();
    let keys = (&ours, &PublicKey::from(&theirs));
    let initiator = Initiator::start(b"prologue", keys, secret(3), b"hello", &mut first).unwrap();
    let n = peer.read_message(&first, &mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"hello");
    let n = peer.write_message(b"welcome", &mut buffer).unwrap();
    assert_eq!(
        initiator.finish(&buffer[..n]).unwrap().as_slice(),
        b"welcome"
    );

    let mut peer = snow::Builder::new(params)
        .local_private_key(theirs.as_bytes())
        .unwrap()
        .remote_public_key(PublicKey::from(&ours).as_bytes())
        .unwrap()
        .prologue(b"prologue")
        .unwrap()
        .build_initiator()
        .unwrap();
    let n = peer.write_message(b"hello", &mut buffer).unwrap();
    let opening = Opening::start(b"prologue", &ours, &buffer[..n]).unwrap();
    let (responder, payload) = opening.payload(&ours).unwrap();
    assert_eq!(payload.as_slice(), b"hello");
    assert_eq!(responder.initiator(), PublicKey::from(&theirs).to_bytes());
    let mut second = Vec::new();
    responder
        .answer(&secret(4), b"welcome", &mut second)
        .unwrap();
    let n = peer.read_message(&second, &mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"welcome");
}

#[test]
fn a_point_of_small_order_opens_nothing() {
    let mut message = vec![0u8; FIRST_OVERHEAD];
    assert!(Opening::start(b"", &secret(1), &message).is_err());
    message[0] = 1;
    assert!(Opening::start(b"", &secret(1), &message).is_err());
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let (ours, theirs) = (secret(1), secret(2));
    let mut first = Vec::new();
    let keys = (&ours, &PublicKey::from(&theirs));
    let initiator = Initiator::start(b"p", keys, secret(3), b"hello", &mut first).unwrap();
    let open = |bytes: &[u8]| {
        Opening::start(b"p", &theirs, bytes)?
            .payload(&theirs)
            .map(|(responder, _)| responder)
    };
    let mut second = Vec::new();
    open(&first)
        .unwrap()
        .answer(&secret(4), b"welcome", &mut second)
        .unwrap();
    for i in 0..first.len() {
        let mut bad = first.clone();
        bad[i] ^= 1;
        assert!(open(&bad).is_err(), "byte {i}");
        assert!(open(&first[..i]).is_err(), "cut at {i}");
    }
    for i in 0..second.len() {
        let mut bad = second.clone();
        bad[i] ^= 1;
        assert!(initiator.finish(&bad).is_err(), "byte {i}");
        assert!(initiator.finish(&second[..i]).is_err(), "cut at {i}");
    }
    assert!(initiator.finish(&second).is_ok());
}

#[test]
fn the_mark_of_an_answer_is_known_to_both_ends_and_no_other() {
    let (ours, theirs) = (secret(1), secret(2));
    let mut first = Vec::new();
    let keys = (&ours, &PublicKey::from(&theirs));
    let initiator = Initiator::start(b"p", keys, secret(3), b"hello", &mut first).unwrap();
    let opening = Opening::start(b"p", &theirs, &first).unwrap();
    let (responder, _) = opening.payload(&theirs).unwrap();
    assert_eq!(initiator.mark(b"x"), responder.mark(b"x"));
    assert_ne!(initiator.mark(b"x"), responder.mark(b"y"));
}
