use super::*;
use crate::testing::{ed25519, p256, p384, rcgen_key, throw_at};

#[test]
fn a_request_proves_its_key_and_names_nobody() {
    let der = make(&p256(1)).unwrap();
    let request = parse(&der).unwrap();
    assert_eq!(request.key(), p256(1).public());
    assert_eq!(
        request.spki_digest(),
        p256(1).public_key().spki_digest().unwrap()
    );
    assert_eq!(make(&p384(1)), Err(SignError::WrongKind));
    assert_eq!(make(&ed25519(1)), Err(SignError::WrongKind));
}

#[test]
fn another_librarys_request_is_read_and_ours_by_it() {
    let key = rcgen_key(&p256(1).to_pkcs8_der().unwrap());
    let theirs = rcgen::CertificateParams::new(["somebody.else".to_owned()])
        .unwrap()
        .serialize_request(&key)
        .unwrap();
    assert_eq!(parse(theirs.der()).unwrap().key(), p256(1).public());
    let ours = make(&p256(1)).unwrap().into();
    let read = rcgen::CertificateSigningRequestParams::from_der(&ours).unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&read.public_key);
    assert_eq!(spki, p256(1).public_key().to_spki().unwrap());
}

#[test]
fn a_request_for_a_key_that_the_asker_lacks_is_refused() {
    let mut request = CertReq::from_der(&make(&p256(1)).unwrap()).unwrap();
    let other = CertReq::from_der(&make(&p256(2)).unwrap()).unwrap();
    request.info = other.info;
    let der = request.to_der().unwrap();
    assert_eq!(parse(&der), Err(CertificateError::NoProof));
}

#[test]
fn trailing_bytes_after_a_request_are_refused() {
    let mut der = make(&p256(1)).unwrap();
    der.push(0);
    assert_eq!(parse(&der), Err(CertificateError::Malformed));
}

#[test]
fn hostile_requests_never_panic() {
    let base = make(&p256(1)).unwrap();
    throw_at(base.clone(), 500, |bytes| {
        let verdict = parse(bytes);
        assert!(verdict.is_err() || bytes == base);
    });
}
