use hedgerow_model::statement::Revoked;
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};

use super::*;
use crate::key::{SigningKey as _, SoftwareP256};
use crate::testing::{Criticality, DAY, Leaf, NOW, Plant, now, now_at, p256, site, throw_at};

fn standing() -> Standing {
    Standing::new(Some(site("s1")))
}

fn check_as(
    plant: &Plant,
    leaf: &Leaf,
    issuer: &SoftwareP256,
    purpose: Purpose<'_>,
) -> Result<PeerIdentity, RefusedCertificate> {
    let der = plant.certify(leaf, issuer);
    check_leaf(&der, &plant.trust, &standing(), purpose, now())
}

fn refused(edit: impl Fn(&mut Leaf)) -> RefusedCertificate {
    let plant = Plant::new();
    let mut leaf = plant.leaf();
    edit(&mut leaf);
    check_as(&plant, &leaf, &plant.issuer, Purpose::Device).unwrap_err()
}

fn uri(path: &str) -> String {
    format!("spiffe://plant.example{path}")
}

type Edit = fn(&mut Leaf);

const ID: &str = "a4dqobyha4dqobyha4dqobyha4";

#[test]
fn a_device_is_who_its_leaf_says() {
    let plant = Plant::new();
    for issuer in [&plant.issuer, &plant.site_issuer] {
        let peer = check_as(&plant, &plant.leaf(), issuer, Purpose::Device).unwrap();
        assert_eq!(peer.device(), Some((DeviceId([7; 16]), &site("s1"))));
        assert_eq!(peer.access(), Access::Full);
        assert_eq!(peer.key(), p256(50).public());
        assert_eq!(peer.issuer(), issuer.key_id());
        assert_eq!(peer.facts().not_after_secs(), NOW + 7 * DAY);
        assert_eq!(
            peer.spki_digest(),
            p256(50).public_key().spki_digest().unwrap()
        );
    }
}

#[test]
fn identities_have_one_spelling() {
    let domain = TrustDomain::new("plant.example").unwrap();
    for path in [
        format!("/site/s1/device/{ID}"),
        format!("/site/s1/manager/{ID}"),
        format!("/controller/{ID}"),
        "/operator/admin".to_owned(),
    ] {
        let id = SpiffeId::from_uri(&uri(&path), &domain).unwrap();
        assert_eq!(id.to_string(), path);
        assert_eq!(id.uri(&domain), uri(&path));
    }
    let bad = [
        uri(""),
        uri("/"),
        uri("/site/s1"),
        uri(&format!("/site/s1/device/{ID}/")),
        uri(&format!("/site/s1/device/{}", ID.to_uppercase())),
        uri(&format!("/site/S1/device/{ID}")),
        uri(&format!("/site/s1/gateway/{ID}")),
        uri("/operator/../controller"),
        uri(&format!("/controller/{ID}?a")),
        uri(&format!("//controller/{ID}")),
        format!("spiffe://plant.example.evil/controller/{ID}"),
        format!("spiffe://plant.exampl/controller/{ID}"),
        format!("https://plant.example/controller/{ID}"),
        format!("SPIFFE://plant.example/controller/{ID}"),
    ];
    for text in bad {
        assert_eq!(SpiffeId::from_uri(&text, &domain), None, "{text}");
    }
}

#[test]
fn a_leaf_that_omits_its_dns_name_is_refused() {
    let rule = |edit: fn(&mut Leaf)| {
        let verdict = refused(edit);
        assert!(
            matches!(verdict, RefusedCertificate::Names { .. }),
            "{verdict}"
        );
    };
    rule(|leaf| leaf.dns.clear());
    rule(|leaf| leaf.dns.push("cam-12.s1.hedgerow.internal".into()));
    rule(|leaf| leaf.dns = vec!["cam-12.s2.hedgerow.internal".into()]);
    rule(|leaf| leaf.dns = vec!["localhost".into()]);
    rule(|leaf| leaf.addresses.clear());
}

#[test]
fn addresses_outside_the_issuers_reach_are_refused() {
    let plant = Plant::new();
    let mut leaf = plant.leaf();
    leaf.addresses = plant.addresses(2).iter().map(|a| a.0).collect();
    let ours = check_as(&plant, &leaf, &plant.issuer, Purpose::Device);
    assert!(ours.is_ok(), "the issuer for all may");
    let theirs = check_as(&plant, &leaf, &plant.site_issuer, Purpose::Device);
    assert!(matches!(
        theirs,
        Err(RefusedCertificate::AddressOutOfScope { .. })
    ));
    let loopback = refused(|leaf| leaf.addresses = vec!["::1".parse().unwrap()]);
    assert!(matches!(
        loopback,
        RefusedCertificate::AddressOutOfScope { .. }
    ));
}

#[test]
fn a_site_issuer_speaks_for_its_site_only() {
    let plant = Plant::new();
    for path in [
        format!("/site/s2/device/{ID}"),
        format!("/controller/{ID}"),
        "/operator/admin".to_owned(),
    ] {
        let mut leaf = plant.leaf();
        leaf.uri = uri(&path);
        let verdict = check_as(&plant, &leaf, &plant.site_issuer, Purpose::Device);
        assert!(
            matches!(verdict, Err(RefusedCertificate::OutOfScope { .. })),
            "{path}"
        );
    }
}

#[test]
fn a_device_that_poses_as_a_server_is_refused() {
    let plant = Plant::new();
    let s1 = site("s1");
    let server = Purpose::Server {
        own_site: Some(&s1),
    };
    let verdict = check_as(&plant, &plant.leaf(), &plant.issuer, server);
    assert!(matches!(
        verdict,
        Err(RefusedCertificate::WrongPurpose { .. })
    ));
}

#[test]
fn a_server_is_a_controller_or_the_manager_of_our_own_site() {
    let plant = Plant::new();
    let (s1, s2) = (site("s1"), site("s2"));
    let leaf = |path: String| {
        let mut leaf = plant.leaf();
        leaf.uri = uri(&path);
        leaf
    };
    let at = |leaf: &Leaf, own_site| {
        check_as(&plant, leaf, &plant.issuer, Purpose::Server { own_site }).is_ok()
    };
    let mut controller = leaf(format!("/controller/{ID}"));
    controller.dns = vec!["control.example".into(), "control".into()];
    controller.addresses = vec!["192.0.2.1".parse().unwrap()];
    assert!(at(&controller, Some(&s1)) && at(&controller, None));
    let manager = leaf(format!("/site/s1/manager/{ID}"));
    assert!(at(&manager, Some(&s1)));
    assert!(!at(&manager, Some(&s2)) && !at(&manager, None));
    assert!(!at(&leaf("/operator/admin".into()), Some(&s1)));
}

#[test]
fn an_operator_is_no_device_and_a_device_no_operator() {
    let plant = Plant::new();
    let mut operator = plant.leaf();
    operator.uri = uri("/operator/admin");
    operator.dns.clear();
    operator.addresses.clear();
    operator.usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let as_what = |leaf, purpose| check_as(&plant, leaf, &plant.issuer, purpose);
    assert!(as_what(&operator, Purpose::Operator).is_ok());
    assert!(as_what(&operator, Purpose::Device).is_err());
    assert!(as_what(&plant.leaf(), Purpose::Operator).is_err());
}

#[test]
fn a_leaf_that_breaks_the_profile_is_refused() {
    let breaks: [(&str, Edit); 6] = [
        ("an unknown critical extension", |leaf| {
            leaf.unknown = Some(Criticality::Critical);
        }),
        ("an authority", |leaf| leaf.ca = true),
        ("may sign certificates", |leaf| {
            leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }),
        ("no key usage", |leaf| leaf.key_usages.clear()),
        ("no extended key usage", |leaf| leaf.usages.clear()),
        ("no client", |leaf| {
            leaf.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
    ];
    for (what, edit) in breaks {
        let verdict = refused(edit);
        assert!(
            matches!(verdict, RefusedCertificate::Certificate(_)),
            "{what}: {verdict}"
        );
    }
    let verdict = refused(|leaf| leaf.to = leaf.from + 32 * DAY);
    assert!(matches!(verdict, RefusedCertificate::LivesTooLong { .. }));
    let verdict = refused(|leaf| leaf.to = NOW + 90 * DAY + 1);
    assert!(matches!(verdict, RefusedCertificate::OutlivesIssuer { .. }));
    let verdict = refused(|leaf| leaf.uri = format!("spiffe://evil.example/controller/{ID}"));
    assert!(matches!(verdict, RefusedCertificate::OtherDomain { .. }));
}

#[test]
fn a_leaf_of_an_unlisted_issuer_or_another_trust_domain_is_refused() {
    let (ours, theirs) = (Plant::with_seed(1), Plant::with_seed(2));
    for (plant, issuer) in [(&ours, &p256(99)), (&theirs, &theirs.issuer)] {
        let der = plant.certify(&plant.leaf(), issuer);
        let verdict = check_leaf(&der, &ours.trust, &standing(), Purpose::Device, now());
        assert_eq!(verdict, Err(RefusedCertificate::UnknownIssuer));
    }
}

#[test]
fn a_leaf_is_revoked_by_device_key_issuer_and_site() {
    let plant = Plant::new();
    let der = plant.certify(&plant.leaf(), &plant.issuer);
    let check = |standing: &Standing| {
        check_leaf(&der, &plant.trust, standing, Purpose::Device, now()).map(|_| ())
    };
    let by = [
        Revoked::Device(DeviceId([7; 16])),
        Revoked::Key(p256(50).public_key().spki_digest().unwrap()),
        Revoked::Issuer(plant.issuer.key_id()),
        Revoked::Key(plant.issuer.public_key().spki_digest().unwrap()),
        Revoked::Site(site("s1")),
    ];
    for what in by {
        let standing = plant.standing_without(std::slice::from_ref(&what));
        assert_eq!(check(&standing), Err(RefusedCertificate::Revoked { what }));
    }
    let others = [
        Revoked::Device(DeviceId([8; 16])),
        Revoked::Site(site("s2")),
        Revoked::Issuer(plant.site_issuer.key_id()),
    ];
    assert_eq!(check(&plant.standing_without(&others)), Ok(()));
}

#[test]
fn an_extension_that_is_unknown_and_not_critical_changes_nothing() {
    let plant = Plant::new();
    let mut leaf = plant.leaf();
    leaf.unknown = Some(Criticality::NotCritical);
    assert!(check_as(&plant, &leaf, &plant.issuer, Purpose::Device).is_ok());
}

#[test]
fn a_leaf_that_was_changed_after_signing_is_refused() {
    let plant = Plant::new();
    let good = plant.certify(&plant.leaf(), &plant.issuer);
    let address = plant.addresses(1).v6.octets();
    let at = good.windows(16).position(|w| w == address).unwrap();
    let mut forged = good;
    forged[at + 15] ^= 1;
    let verdict = check_leaf(&forged, &plant.trust, &standing(), Purpose::Device, now());
    assert_eq!(verdict, Err(RefusedCertificate::UnknownIssuer));
}

/// The same certificate with the second spelling of its signature.
fn malleated(der: &[u8]) -> Vec<u8> {
    use x509_cert::der::{Decode as _, Encode as _, Tag, asn1};
    let certificate = x509_cert::Certificate::from_der(der).unwrap();
    let raw = certificate.signature().raw_bytes();
    let signature = p256::ecdsa::Signature::from_der(raw).unwrap();
    let (r, s) = signature.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r, -s).unwrap();
    let other = asn1::BitString::from_bytes(other.to_der().as_bytes()).unwrap();
    let body = [
        certificate.tbs_certificate().to_der().unwrap(),
        certificate.signature_algorithm().to_der().unwrap(),
        other.to_der().unwrap(),
    ];
    let body = body.concat();
    let sequence = asn1::AnyRef::new(Tag::Sequence, &body).unwrap();
    sequence.to_der().unwrap()
}

#[test]
fn a_malleated_certificate_does_not_escape_its_revocation() {
    let plant = Plant::new();
    let der = plant.certify(&plant.leaf(), &plant.issuer);
    let other = malleated(&der);
    assert_ne!(other, der);
    let what = Revoked::Key(p256(50).public_key().spki_digest().unwrap());
    let standing = plant.standing_without(std::slice::from_ref(&what));
    for der in [&der, &other] {
        let before = check_leaf(der, &plant.trust, &self::standing(), Purpose::Device, now());
        assert!(before.is_ok(), "either spelling is the same device");
        let verdict = check_leaf(der, &plant.trust, &standing, Purpose::Device, now());
        let what = what.clone();
        assert_eq!(verdict, Err(RefusedCertificate::Revoked { what }));
    }
}

#[test]
fn an_expired_leaf_may_ask_for_renewal_and_nothing_else() {
    let plant = Plant::new();
    let der = plant.certify(&plant.leaf(), &plant.issuer);
    let controller = Standing::new(None);
    let at = |secs, purpose| {
        check_leaf(&der, &plant.trust, &controller, purpose, now_at(secs)).map(|p| p.access())
    };
    let end = NOW + 7 * DAY;
    assert_eq!(at(end, Purpose::Device), Ok(Access::Full));
    assert_eq!(at(end + DAY, Purpose::Device), Ok(Access::RenewOnly));
    assert!(matches!(
        at(end + 181 * DAY, Purpose::Device),
        Err(RefusedCertificate::Expired {
            validity: Validity::Dead,
            ..
        })
    ));
    let cut_off = check_leaf(
        &der,
        &plant.trust,
        &standing(),
        Purpose::Device,
        now_at(end + DAY),
    );
    assert_eq!(cut_off.unwrap().access(), Access::Full, "grace in the site");
}

#[test]
fn an_expired_server_is_refused() {
    let plant = Plant::new();
    let mut leaf = plant.leaf();
    leaf.uri = uri(&format!("/controller/{ID}"));
    let der = plant.certify(&leaf, &plant.issuer);
    let later = now_at(NOW + 8 * DAY);
    let server = Purpose::Server { own_site: None };
    let verdict = check_leaf(&der, &plant.trust, &standing(), server, later);
    assert!(matches!(verdict, Err(RefusedCertificate::Expired { .. })));
}

#[test]
fn a_leaf_that_is_not_valid_yet_tells_the_time() {
    let plant = Plant::new();
    let der = plant.certify(&plant.leaf(), &plant.issuer);
    let verdict = check_leaf(&der, &plant.trust, &standing(), Purpose::Device, now_at(0));
    let peer = verdict.unwrap();
    let mut clock =
        crate::clock::TrustedClock::new(hedgerow_model::Wall(0), None, hedgerow_model::Mono::ZERO);
    let proven = hedgerow_model::Wall::from_secs(peer.facts().not_before_secs());
    assert!(clock.raise(proven, hedgerow_model::Mono::ZERO));
}

#[test]
fn trailing_bytes_after_a_certificate_are_refused() {
    let plant = Plant::new();
    let mut der = plant.certify(&plant.leaf(), &plant.issuer);
    der.push(0);
    assert_eq!(LeafFacts::parse(&der), Err(CertificateError::Malformed));
}

#[test]
fn site_issuers_say_which_addresses_the_site_has() {
    let plant = Plant::new();
    let issuer = plant.trust.issuer(plant.site_issuer.key_id()).unwrap();
    let facts = issuer.facts().unwrap();
    assert_eq!(facts.permitted().len(), 2);
    let own = plant.addresses(1);
    assert!(own.iter().all(|a| plant.trust.may_assign(issuer, a)));
    let other = Overlay(plant.addresses(2).v6.into());
    assert!(!plant.trust.may_assign(issuer, other));
    assert!(
        CaFacts::parse(&plant.certify(&plant.leaf(), &plant.issuer)).is_err(),
        "a leaf is no authority"
    );
}

#[test]
fn hostile_certificates_never_panic() {
    let plant = Plant::new();
    let der = plant.certify(&plant.leaf(), &plant.issuer);
    throw_at(der.clone(), 500, |bytes| {
        let verdict = check_leaf(bytes, &plant.trust, &standing(), Purpose::Device, now());
        assert!(verdict.is_err() || bytes == der);
        CaFacts::parse(bytes).ok();
    });
    let ca = plant.manifest.issuers[1].certificate.clone();
    throw_at(ca, 500, |bytes| {
        CaFacts::parse(bytes).ok();
        LeafFacts::parse(bytes).ok();
        if let Ok(text) = std::str::from_utf8(bytes) {
            SpiffeId::from_uri(text, plant.trust.trust_domain());
        }
    });
}
