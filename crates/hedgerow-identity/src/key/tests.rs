use super::*;
use crate::testing::{as_dyn, ed25519, malleate_p256, p256, p384, rcgen_key, throw_at};

#[test]
fn keys_survive_their_files() {
    let (a, b, c) = (p256(1), p384(2), ed25519(3));
    let again = SoftwareP256::from_pkcs8_pem(&a.to_pkcs8_pem().unwrap()).unwrap();
    assert_eq!(again.public_key(), a.public_key());
    let again = SoftwareP384::from_pkcs8_pem(&b.to_pkcs8_pem().unwrap()).unwrap();
    assert_eq!(again.public_key(), b.public_key());
    let again = SoftwareEd25519::from_pkcs8_pem(&c.to_pkcs8_pem().unwrap()).unwrap();
    assert_eq!(again.public_key(), c.public_key());
    assert!(SoftwareP256::from_pkcs8_pem(&b.to_pkcs8_pem().unwrap()).is_err());
    assert!(SoftwareEd25519::from_pkcs8_pem(&a.to_pkcs8_pem().unwrap()).is_err());
}

#[test]
fn another_library_reads_our_keys_and_sees_the_same_public_half() {
    let keys: [(Vec<u8>, PublicKey); 3] = [
        (
            p256(1).to_pkcs8_der().unwrap().to_vec(),
            p256(1).public_key(),
        ),
        (
            p384(2).to_pkcs8_der().unwrap().to_vec(),
            p384(2).public_key(),
        ),
        (ed25519(3).to_pkcs8_der().to_vec(), ed25519(3).public_key()),
    ];
    for (der, public) in keys {
        let theirs = rcgen::PublicKeyData::subject_public_key_info(&rcgen_key(&der));
        assert_eq!(theirs, public.to_spki().unwrap());
        assert_eq!(PublicKey::from_spki(&theirs).unwrap(), public);
        let mut trailing = theirs;
        trailing.push(0);
        assert!(PublicKey::from_spki(&trailing).is_err());
    }
}

#[test]
fn a_signature_holds_for_its_key_and_message_only() {
    let keys = (p256(1), p384(2), ed25519(3));
    let keys: [&dyn SigningKey; 3] = [as_dyn(&keys.0), as_dyn(&keys.1), as_dyn(&keys.2)];
    let other: [PublicKey; 3] = [
        p256(9).public_key(),
        p384(9).public_key(),
        ed25519(9).public_key(),
    ];
    for (key, other) in keys.into_iter().zip(other) {
        let signature = key.sign(b"message").unwrap();
        assert_eq!(signature.len(), key.algorithm().signature_bytes());
        let public = key.public_key();
        assert_eq!(public.verify(b"message", &signature), Ok(()));
        assert!(public.verify(b"messagf", &signature).is_err());
        assert!(other.verify(b"message", &signature).is_err());
        for at in 0..signature.len() {
            let mut flipped = signature.clone();
            flipped[at] ^= 1;
            assert!(public.verify(b"message", &flipped).is_err(), "byte {at}");
        }
        let mut longer = signature;
        longer.push(0);
        assert!(public.verify(b"message", &longer).is_err());
    }
}

#[test]
fn a_malleated_signature_is_refused() {
    let key = p256(1);
    let signature = key.sign(b"message").unwrap();
    let other = malleate_p256(&signature);
    assert_eq!(
        key.public_key().verify(b"message", &other),
        Err(BadSignature)
    );
    assert_eq!(
        normalize(Algorithm::Es256, other).unwrap(),
        signature,
        "a key store may use either spelling"
    );
    let key = p384(1);
    let signature = key.sign(b"message").unwrap();
    let parsed = p384::ecdsa::Signature::from_slice(&signature).unwrap();
    let (r, s) = parsed.split_scalars();
    let other = p384::ecdsa::Signature::from_scalars(r, -s)
        .unwrap()
        .to_vec();
    assert_eq!(
        key.public_key().verify(b"message", &other),
        Err(BadSignature)
    );
}

#[test]
fn an_ed25519_key_of_small_order_signs_nothing() {
    // With the neutral element as key, R = 0 and s = 0 hold for any message unless refused.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let key = PublicKey::Ed25519(Ed25519Public(neutral));
    assert!(key.verify(b"anything", &signature).is_err());
}

/// RFC 6979 A.2.5, message "sample", SHA-256; `s` brought to its lower half.
#[test]
fn signing_is_the_deterministic_one_of_rfc_6979() {
    let scalar: Vec<u8> = hex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721");
    let secret = p256::ecdsa::SigningKey::from_slice(&scalar).unwrap();
    let der = secret.to_pkcs8_der().unwrap();
    let key = SoftwareP256::from_pkcs8_der(der.as_bytes()).unwrap();
    let signature = key.sign(b"sample").unwrap();
    let r = hex("efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716");
    assert_eq!(signature[..32], r[..]);
    assert_eq!(key.public_key().verify(b"sample", &signature), Ok(()));
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

#[test]
fn hostile_key_bytes_never_panic() {
    throw_at(p256(1).public_key().to_spki().unwrap(), 300, |bytes| {
        PublicKey::from_spki(bytes).ok();
        SoftwareP256::from_pkcs8_der(bytes).ok();
        SoftwareP384::from_pkcs8_der(bytes).ok();
        SoftwareEd25519::from_pkcs8_der(bytes).ok();
        if let Ok(text) = std::str::from_utf8(bytes) {
            SoftwareP256::from_pkcs8_pem(text).ok();
            SoftwareEd25519::from_pkcs8_pem(text).ok();
        }
        p256(1).public_key().verify(b"m", bytes).ok();
        let mut raw = [0; 33];
        raw.iter_mut().zip(bytes).for_each(|(a, b)| *a = *b);
        let key = PublicKey::P256(P256Public(raw));
        key.to_spki().ok();
        key.verify(b"m", bytes).ok();
    });
}
