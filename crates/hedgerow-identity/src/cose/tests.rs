use coset::{CborSerializable as _, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _};

use super::*;
use crate::testing::{as_dyn, ed25519, malleate_p256, p256, p384, throw_at};

fn by_coset(payload: &[u8], of: ContentType, key: &dyn SigningKey) -> Vec<u8> {
    let algorithm = match key.algorithm() {
        Algorithm::Es256 => coset::iana::Algorithm::ES256,
        Algorithm::Es384 => coset::iana::Algorithm::ES384,
        Algorithm::EdDsa => coset::iana::Algorithm::EdDSA,
    };
    let header = HeaderBuilder::new()
        .algorithm(algorithm)
        .key_id(key.key_id().0.to_vec())
        .build();
    CoseSign1Builder::new()
        .protected(header)
        .payload(payload.to_vec())
        .create_signature(of.as_str().as_bytes(), |m| key.sign(m).unwrap())
        .build()
        .to_tagged_vec()
        .unwrap()
}

#[test]
fn every_envelope_is_the_one_that_coset_makes() {
    let keys = (p256(1), p384(2), ed25519(3));
    for key in [as_dyn(&keys.0), as_dyn(&keys.1), as_dyn(&keys.2)] {
        for of in ContentType::ALL {
            for payload in [&b""[..], b"payload", &[7; 300]] {
                let ours = sign(payload, of, key).unwrap();
                assert_eq!(ours, by_coset(payload, of, key));
                assert!(ours.len() <= payload.len() + ENVELOPE_BYTES_MAX);
                let theirs = coset::CoseSign1::from_tagged_slice(&ours).unwrap();
                theirs
                    .verify_signature(of.as_str().as_bytes(), |sig, data| {
                        key.public_key().verify(data, sig)
                    })
                    .unwrap();
            }
        }
    }
}

#[test]
fn a_statement_of_one_kind_is_none_of_another() {
    let key = ed25519(3);
    let signed = sign(b"payload", ContentType::States, &key).unwrap();
    for of in ContentType::ALL {
        let verdict = Envelope::decode(&signed)
            .unwrap()
            .verify(&key.public_key(), of);
        assert_eq!(verdict.is_ok(), of == ContentType::States, "{of:?}");
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let key = ed25519(3);
    let signed = sign(b"payload", ContentType::States, &key).unwrap();
    for bit in 0..signed.len() * 8 {
        let mut bytes = signed.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let verdict =
            Envelope::decode(&bytes).and_then(|e| e.verify(&key.public_key(), ContentType::States));
        assert!(verdict.is_err(), "bit {bit}");
    }
}

#[test]
fn other_spellings_of_an_envelope_are_refused() {
    let key = ed25519(3);
    let signed = sign(b"payload", ContentType::States, &key).unwrap();
    let mut trailing = signed.clone();
    trailing.push(0);
    let untagged = signed[1..].to_vec();
    let mut unprotected = signed.clone();
    let at = signed.iter().position(|b| *b == 0xa0).unwrap();
    unprotected.splice(at..=at, [0xa1, 0x05, 0x05]);
    let untagged_by_coset = coset::CoseSign1::from_tagged_slice(&signed)
        .unwrap()
        .to_vec()
        .unwrap();
    for bytes in [trailing, untagged, unprotected, untagged_by_coset] {
        assert_eq!(Envelope::decode(&bytes), Err(EnvelopeError::Malformed));
    }
}

#[test]
fn a_malleated_envelope_is_refused() {
    let key = p256(1);
    let signed = sign(b"payload", ContentType::Ticket, &key).unwrap();
    let (head, signature) = signed.split_at(signed.len() - 64);
    let other = [head, &malleate_p256(signature)].concat();
    let verdict =
        Envelope::decode(&other).and_then(|e| e.verify(&key.public_key(), ContentType::Ticket));
    let named = key.key_id();
    assert_eq!(verdict, Err(EnvelopeError::BadSignature { named }));
}

#[test]
fn a_key_store_may_answer_with_either_spelling() {
    struct HighS(crate::key::SoftwareP256);
    impl SigningKey for HighS {
        fn public_key(&self) -> PublicKey {
            self.0.public_key()
        }
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
            Ok(malleate_p256(&self.0.sign(message)?))
        }
    }
    let high = sign(b"payload", ContentType::Ticket, &HighS(p256(1))).unwrap();
    let low = sign(b"payload", ContentType::Ticket, &p256(1)).unwrap();
    assert_eq!(high, low);
}

#[test]
fn hostile_envelopes_never_panic() {
    let key = ed25519(3);
    let base = sign(b"payload", ContentType::States, &key).unwrap();
    throw_at(base.clone(), 2000, |bytes| {
        if let Ok(envelope) = Envelope::decode(bytes) {
            let verdict = envelope.verify(&key.public_key(), ContentType::States);
            assert!(verdict.is_err() || bytes == base);
        }
    });
}
