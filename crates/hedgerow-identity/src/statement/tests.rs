use std::collections::BTreeMap;
use std::sync::LazyLock;

use hedgerow_model::id::{DeviceName, LabelKey, LabelValue, Labels, Revision};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{Revocation, Revoked, X25519Public};
use proptest::prelude::*;

use super::*;
use crate::error::EnvelopeError;
use crate::testing::{DAY, NOW, Plant, ed25519, malleate_p256, now, now_at, p256, site, throw_at};

static PLANT: LazyLock<Plant> = LazyLock::new(Plant::new);

fn standing() -> Standing {
    Standing::new(Some(site("s1")))
}

fn refused(plant: &Plant, ticket: &Ticket, issuer: &dyn SigningKey) -> RefusedTicket {
    let bytes = sign_ticket(ticket, issuer).unwrap();
    plant
        .trust
        .verify_ticket(&bytes, &standing(), now())
        .unwrap_err()
}

#[test]
fn a_ticket_is_believed_and_keeps_its_bytes() {
    let plant = Plant::new();
    let ticket = plant.verified_ticket();
    assert_eq!(*ticket, plant.ticket());
    assert_eq!(ticket.bytes(), plant.signed_ticket());
    assert_eq!(ticket.signer(), plant.issuer.key_id());
}

#[test]
fn the_largest_ticket_that_can_be_made_fits_its_bound() {
    let plant = Plant::new();
    let mut ticket = plant.ticket();
    let long = "n".repeat(63);
    ticket.name = long.parse().unwrap();
    ticket.site = long.parse().unwrap();
    let labels: Vec<String> = (0..16)
        .map(|i| format!("k{i:02}={}", "v".repeat(7)))
        .collect();
    ticket.labels = labels.join(",").parse().unwrap();
    ticket.epoch = u64::MAX;
    ticket.not_after_secs = u64::MAX;
    let signed = sign_ticket(&ticket, &plant.issuer).unwrap();
    assert!(signed.len() <= TICKET_BYTES_MAX, "{} B", signed.len());
}

#[test]
fn a_ticket_with_six_labels_fits_in_300_bytes() {
    let plant = Plant::new();
    let mut ticket = plant.ticket();
    ticket.labels = "role=camera,zone=hall-3,line=7,model=cam3,owner=ot,crit=low"
        .parse()
        .unwrap();
    let signed = sign_ticket(&ticket, &plant.issuer).unwrap();
    assert!(signed.len() <= 300, "{} B", signed.len());
}

#[test]
fn a_site_issuer_signing_for_another_site_is_refused() {
    let plant = Plant::new();
    let mut ticket = plant.ticket();
    assert!(
        plant
            .trust
            .verify_ticket(
                &sign_ticket(&ticket, &plant.site_issuer).unwrap(),
                &standing(),
                now()
            )
            .is_ok()
    );
    ticket.site = site("s2");
    let verdict = refused(&plant, &ticket, &plant.site_issuer);
    assert!(matches!(verdict, RefusedTicket::OtherSite { .. }));
}

#[test]
fn addresses_outside_the_issuers_reach_are_refused() {
    let plant = Plant::new();
    let elsewhere = |addresses| Ticket {
        addresses,
        ..plant.ticket()
    };
    let other_site = elsewhere(plant.addresses(2));
    let verdict = refused(&plant, &other_site, &plant.site_issuer);
    assert!(matches!(verdict, RefusedTicket::AddressOutOfScope { .. }));
    let mut v4 = plant.addresses(1);
    v4.v4 = Some([100, 80, 4, 1].into());
    let verdict = refused(&plant, &elsewhere(v4), &plant.site_issuer);
    assert!(matches!(verdict, RefusedTicket::AddressOutOfScope { .. }));
    for bad in [
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [224, 0, 0, 1],
        [169, 254, 0, 1],
    ] {
        let mut addresses = plant.addresses(1);
        addresses.v4 = Some(bad.into());
        let verdict = refused(&plant, &elsewhere(addresses), &plant.issuer);
        assert!(matches!(verdict, RefusedTicket::AddressOutOfScope { .. }));
    }
    let mut addresses = plant.addresses(1);
    addresses.v6 = "fd00::1".parse().unwrap();
    let verdict = refused(&plant, &elsewhere(addresses), &plant.issuer);
    assert!(matches!(verdict, RefusedTicket::AddressOutOfScope { .. }));
}

#[test]
fn a_stranger_cannot_issue_and_a_device_cannot_either() {
    let plant = Plant::new();
    for key in [p256(50), p256(99)] {
        let verdict = refused(&plant, &plant.ticket(), &key);
        assert!(matches!(verdict, RefusedTicket::UnknownIssuer { .. }));
    }
}

#[test]
fn a_ticket_of_another_trust_domain_is_refused() {
    let (ours, theirs) = (Plant::with_seed(1), Plant::with_seed(2));
    let bytes = theirs.signed_ticket();
    let verdict = ours.trust.verify_ticket(&bytes, &standing(), now());
    assert!(matches!(verdict, Err(RefusedTicket::UnknownIssuer { .. })));
}

#[test]
fn a_ticket_does_not_outlive_its_issuer() {
    let plant = Plant::new();
    let mut ticket = plant.ticket();
    ticket.not_after_secs = NOW + 90 * DAY + 1;
    let verdict = refused(&plant, &ticket, &plant.issuer);
    assert!(matches!(verdict, RefusedTicket::OutlivesIssuer { .. }));
}

#[test]
fn everything_under_a_revoked_issuer_is_refused() {
    let plant = Plant::new();
    let bytes = plant.signed_ticket();
    let spki = plant.issuer.public_key().spki_digest().unwrap();
    for what in [Revoked::Issuer(plant.issuer.key_id()), Revoked::Key(spki)] {
        let standing = plant.standing_without(std::slice::from_ref(&what));
        let verdict = plant.trust.verify_ticket(&bytes, &standing, now());
        assert_eq!(verdict, Err(RefusedTicket::Revoked { what }));
    }
    let standing = plant.standing_without(&[Revoked::Issuer(plant.site_issuer.key_id())]);
    assert!(plant.trust.verify_ticket(&bytes, &standing, now()).is_ok());
}

#[test]
fn a_device_is_revoked_by_id_by_key_and_by_site() {
    let plant = Plant::new();
    let ticket = plant.verified_ticket();
    let spki = p256(50).public_key().spki_digest().unwrap();
    let by = [
        Revoked::Device(ticket.id),
        Revoked::Key(spki),
        Revoked::Site(site("s1")),
    ];
    for what in by {
        let standing = plant.standing_without(std::slice::from_ref(&what));
        let verdict = plant.trust.verify_ticket(ticket.bytes(), &standing, now());
        assert_eq!(verdict, Err(RefusedTicket::Revoked { what: what.clone() }));
        let verdict = plant.trust.recheck_ticket(&ticket, &standing, now());
        assert_eq!(verdict, Err(RefusedTicket::Revoked { what }));
    }
    let standing = plant.standing_without(&[Revoked::Site(site("s2"))]);
    assert_eq!(
        plant.trust.recheck_ticket(&ticket, &standing, now()),
        Ok(())
    );
}

#[test]
fn an_old_wider_ticket_is_refused_after_the_epoch_rose() {
    let plant = Plant::new();
    let ticket = plant.verified_ticket();
    let mut list = plant.revocations(1, &[]).into_inner();
    list.min_epochs = vec![(ticket.id, 4)];
    let signed = sign_revocations(&list, &plant.revocation).unwrap();
    let mut standing = standing();
    standing
        .adopt_revocations(plant.trust.verify_revocations(&signed).unwrap())
        .unwrap();
    let old = RefusedTicket::OldEpoch {
        epoch: 3,
        minimum: 4,
    };
    let verdict = plant.trust.verify_ticket(ticket.bytes(), &standing, now());
    assert_eq!(verdict, Err(old.clone()));
    assert_eq!(
        plant.trust.recheck_ticket(&ticket, &standing, now()),
        Err(old)
    );
    let narrower = Ticket {
        epoch: 4,
        ..plant.ticket()
    };
    let bytes = sign_ticket(&narrower, &plant.issuer).unwrap();
    assert!(plant.trust.verify_ticket(&bytes, &standing, now()).is_ok());
}

#[test]
fn a_ticket_in_1970_is_valid_and_in_2200_it_is_dead() {
    let plant = Plant::new();
    let bytes = plant.signed_ticket();
    let at = |secs| plant.trust.verify_ticket(&bytes, &standing(), now_at(secs));
    assert!(
        at(0).is_ok(),
        "a clock that is behind cannot have seen its end"
    );
    let validity = Validity::Dead;
    let not_after_secs = NOW + 7 * DAY;
    assert_eq!(
        at(7_258_118_400),
        Err(RefusedTicket::Expired {
            not_after_secs,
            validity
        })
    );
    let own = plant
        .trust
        .verify_own_ticket(&bytes, &p256(50).public(), Some(plant.ticket().id));
    assert!(own.is_ok(), "our own ticket is ours however old it is");
}

#[test]
fn an_expired_ticket_works_in_grace_only_while_cut_off() {
    let plant = Plant::new();
    let bytes = plant.signed_ticket();
    let later = now_at(NOW + 10 * DAY);
    let mut standing = standing();
    assert!(plant.trust.verify_ticket(&bytes, &standing, later).is_ok());
    standing.adopt_beacon(plant.beacon(NOW + 9 * DAY));
    assert!(matches!(
        plant.trust.verify_ticket(&bytes, &standing, later),
        Err(RefusedTicket::Expired {
            validity: Validity::RenewOnly,
            ..
        })
    ));
}

#[test]
fn our_own_ticket_must_name_our_key_and_id() {
    let plant = Plant::new();
    let bytes = plant.signed_ticket();
    let id = plant.ticket().id;
    let own = |key, id| plant.trust.verify_own_ticket(&bytes, &key, id);
    assert!(own(p256(50).public(), Some(id)).is_ok());
    assert!(own(p256(50).public(), None).is_ok());
    let not_ours = Err(RefusedTicket::NotOurs { device: id });
    assert_eq!(own(p256(51).public(), Some(id)), not_ours);
    assert_eq!(own(p256(50).public(), Some(DeviceId([8; 16]))), not_ours);
}

#[test]
fn a_malleated_ticket_is_refused() {
    let plant = Plant::new();
    let signed = plant.signed_ticket();
    let (head, signature) = signed.split_at(signed.len() - 64);
    let other = [head, &malleate_p256(signature)].concat();
    let verdict = plant.trust.verify_ticket(&other, &standing(), now());
    let named = plant.issuer.key_id();
    let bad = EnvelopeError::BadSignature { named };
    assert_eq!(verdict, Err(RefusedTicket::Envelope(bad)));
}

#[test]
fn trailing_bytes_are_refused_inside_and_outside_the_signature() {
    let plant = Plant::new();
    let mut outside = plant.signed_ticket();
    outside.push(0);
    let verdict = plant.trust.verify_ticket(&outside, &standing(), now());
    assert!(matches!(verdict, Err(RefusedTicket::Envelope(_))));
    let mut payload = encode(&plant.ticket());
    payload.push(0);
    let inside = cose::sign(&payload, ContentType::Ticket, &plant.issuer).unwrap();
    let verdict = plant.trust.verify_ticket(&inside, &standing(), now());
    assert!(matches!(verdict, Err(RefusedTicket::Wire(_))));
}

fn binding() -> Binding {
    Binding {
        id: DeviceId([7; 16]),
        wireguard_key: X25519Public([9; 32]),
        sequence: NOW,
        not_after_secs: NOW + 2 * DAY,
    }
}

/// The bytes that travel are part of the protocol; ECDSA here is deterministic.
#[test]
fn the_bytes_of_a_binding_never_move() {
    let bytes = sign_binding(&binding(), &p256(50)).unwrap();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    expect_test::expect!["d2844da20126044884a49cf55c5c72f5a0583e845007070707070707070707070707070707582009090909090909090909090909090909090909090909090909090909090909091a6b49d2001a6b4c750058402a2fd7c8934d81c701bef1e11d4898d376a12f1d29e030de5766da4f86dce34552029dd9ae2d836be2ac7634d7f276e0877521b1fa86b012edaa3cdbab626ed8"].assert_eq(&hex);
}

#[test]
fn a_binding_is_believed_beside_its_ticket_only() {
    let plant = Plant::new();
    let ticket = plant.verified_ticket();
    let verdict = |binding: &Binding, key: u64, at| {
        let bytes = sign_binding(binding, &p256(key)).unwrap();
        assert!(bytes.len() <= 160, "{} B", bytes.len());
        verify_binding(&bytes, &ticket, now_at(at)).map(Verified::into_inner)
    };
    assert_eq!(verdict(&binding(), 50, NOW), Ok(binding()));
    assert!(matches!(
        verdict(&binding(), 51, NOW),
        Err(RefusedBinding::Envelope(_))
    ));
    let other = Binding {
        id: DeviceId([8; 16]),
        ..binding()
    };
    assert!(matches!(
        verdict(&other, 50, NOW),
        Err(RefusedBinding::OtherDevice { .. })
    ));
    assert!(matches!(
        verdict(&binding(), 50, NOW + 2 * DAY + 1),
        Err(RefusedBinding::Expired { .. })
    ));
    let long = Binding {
        not_after_secs: NOW + 2 * DAY + 1,
        ..binding()
    };
    assert!(matches!(
        verdict(&long, 50, NOW),
        Err(RefusedBinding::TooLong { .. })
    ));
}

#[test]
fn a_binding_stored_up_for_later_by_a_thief_is_refused() {
    let plant = Plant::new();
    let ticket = plant.verified_ticket();
    let ahead = Binding {
        sequence: NOW + 30 * DAY,
        not_after_secs: NOW + 32 * DAY,
        ..binding()
    };
    let bytes = sign_binding(&ahead, &p256(50)).unwrap();
    let sequence = ahead.sequence;
    let verdict = verify_binding(&bytes, &ticket, now());
    assert_eq!(verdict, Err(RefusedBinding::Ahead { sequence }));
    let mut lost = now_at(0);
    lost.wall_is_trusted = false;
    assert!(
        verify_binding(&bytes, &ticket, lost).is_ok(),
        "without a clock nothing is known to be ahead"
    );
}

#[test]
fn each_role_signs_what_is_its_own() {
    let plant = Plant::new();
    let list = plant.revocations(1, &[]).into_inner();
    let states = States::default();
    let trust = &plant.trust;
    let by_policy = sign_revocations(&list, &plant.policy).unwrap();
    let refused = trust.verify_revocations(&by_policy).unwrap_err();
    assert!(matches!(refused, RefusedStatement::NotInRole { .. }));
    let by_revocation = sign_states(&states, &plant.revocation).unwrap();
    let refused = trust.verify_states(&by_revocation).unwrap_err();
    assert!(matches!(refused, RefusedStatement::NotInRole { .. }));
    let by_stranger = sign_states(&states, &ed25519(99)).unwrap();
    assert!(trust.verify_states(&by_stranger).is_err());
    let good = sign_states(&states, &plant.policy).unwrap();
    assert!(trust.verify_states(&good).is_ok());
    assert!(trust.verify_program(&good).is_err(), "another kind");
    assert_eq!(
        sign_states(&states, &plant.issuer),
        Err(SignError::WrongKind)
    );
    assert_eq!(
        sign_ticket(&plant.ticket(), &plant.policy),
        Err(SignError::WrongKind)
    );
}

#[test]
fn lists_out_of_order_or_doubled_are_refused_though_signed() {
    let plant = Plant::new();
    let entry = |byte| Revocation {
        what: Revoked::Device(DeviceId([byte; 16])),
        at_secs: NOW,
        drop_after_secs: NOW + DAY,
        reason: String::new(),
    };
    let list = |entries: Vec<Revocation>, min_epochs: Vec<(DeviceId, u64)>| RevocationList {
        entries,
        min_epochs,
        ..RevocationList::default()
    };
    let id = |byte| DeviceId([byte; 16]);
    let long = Revocation {
        reason: "x".repeat(121),
        ..entry(1)
    };
    for bad in [
        list(vec![entry(2), entry(1)], vec![]),
        list(vec![entry(1), entry(1)], vec![]),
        list(vec![], vec![(id(2), 1), (id(1), 1)]),
        list(vec![], vec![(id(1), 1), (id(1), 2)]),
        list(vec![long], vec![]),
    ] {
        let signed = sign_revocations(&bad, &plant.revocation).unwrap();
        let refused = plant.trust.verify_revocations(&signed).unwrap_err();
        assert!(matches!(refused, RefusedStatement::OutOfBounds { .. }));
    }
    let states = States {
        entries: vec![(id(1), DeviceState::Held), (id(1), DeviceState::Quarantine)],
        ..States::default()
    };
    let signed = sign_states(&states, &plant.policy).unwrap();
    assert!(plant.trust.verify_states(&signed).is_err());
}

fn config(site_name: &str) -> SiteConfig {
    SiteConfig {
        revision: Revision::default(),
        site: site(site_name),
        zone: "Europe/Berlin".into(),
        controllers: vec!["control.example:7443".into()],
        management: vec![],
        pools: vec!["100.80.0.0/12".parse().unwrap()],
        suffix: "hedgerow.internal".into(),
        grace_secs: 30 * DAY,
    }
}

#[test]
fn what_is_meant_for_another_site_is_refused() {
    let plant = Plant::new();
    let signed = sign_config(&config("s1"), &plant.policy).unwrap();
    assert!(plant.trust.verify_config(&signed, &site("s1")).is_ok());
    let refused = plant.trust.verify_config(&signed, &site("s2")).unwrap_err();
    assert!(matches!(refused, RefusedStatement::OtherSubject { .. }));
    let names = Names {
        revision: Revision::default(),
        site: site("s1"),
        entries: vec![],
    };
    let signed = sign_names(&names, &plant.policy).unwrap();
    assert!(plant.trust.verify_names(&signed, &site("s1")).is_ok());
    let refused = plant.trust.verify_names(&signed, &site("s2")).unwrap_err();
    assert!(matches!(refused, RefusedStatement::OtherSubject { .. }));
}

#[test]
fn a_program_larger_than_programs_are_is_refused_when_decoded() {
    let plant = Plant::new();
    let body = SignedProgramBody {
        revision: Revision::default(),
        program: vec![0; hedgerow_model::program::PROGRAM_BYTES_MAX + 1],
    };
    let signed = sign_program(&body, &plant.policy).unwrap();
    let verified = plant.trust.verify_program(&signed).unwrap();
    assert!(verified.program().is_err());
}

#[test]
fn a_beacon_needs_an_issuer_that_is_ours_and_not_revoked() {
    let plant = Plant::new();
    let beacon = plant.beacon(NOW).into_inner();
    let by_site = sign_beacon(&beacon, &plant.site_issuer).unwrap();
    assert!(plant.trust.verify_beacon(&by_site, &standing()).is_ok());
    let elsewhere = Standing::new(Some(site("s2")));
    assert!(plant.trust.verify_beacon(&by_site, &elsewhere).is_err());
    let revoked = plant.standing_without(&[Revoked::Issuer(plant.site_issuer.key_id())]);
    let refused = plant.trust.verify_beacon(&by_site, &revoked).unwrap_err();
    assert!(matches!(refused, RefusedStatement::RevokedIssuer { .. }));
    let by_device = sign_beacon(&beacon, &p256(50)).unwrap();
    assert!(plant.trust.verify_beacon(&by_device, &standing()).is_err());
}

#[test]
fn hostile_statements_never_panic() {
    let plant = Plant::new();
    let ticket = plant.verified_ticket();
    let base = plant.signed_ticket();
    throw_at(base.clone(), 300, |bytes| {
        let (trust, standing) = (&plant.trust, standing());
        let verdict = trust.verify_ticket(bytes, &standing, now());
        assert!(verdict.is_err() || bytes == base);
        assert!(verify_binding(bytes, &ticket, now()).is_err());
        assert!(trust.verify_revocations(bytes).is_err());
        assert!(trust.verify_states(bytes).is_err());
        assert!(trust.verify_program(bytes).is_err());
        assert!(trust.verify_config(bytes, &site("s1")).is_err());
        assert!(trust.verify_names(bytes, &ticket.site).is_err());
        assert!(trust.verify_beacon(bytes, &standing).is_err());
    });
}

#[test]
fn hostile_payloads_under_good_signatures_never_panic() {
    let plant = Plant::new();
    let trust = &plant.trust;
    throw_at(encode(&plant.ticket()), 40, |payload| {
        let signed = cose::sign(payload, ContentType::Ticket, &plant.issuer).unwrap();
        trust.verify_ticket(&signed, &standing(), now()).ok();
        let signed = cose::sign(payload, ContentType::Config, &plant.policy).unwrap();
        trust.verify_config(&signed, &site("s1")).ok();
    });
    let list = plant.revocations(1, &[Revoked::Device(DeviceId([7; 16]))]);
    throw_at(encode(&*list), 100, |payload| {
        let signed = cose::sign(payload, ContentType::Revocations, &plant.revocation).unwrap();
        trust.verify_revocations(&signed).ok();
        let signed = cose::sign(payload, ContentType::Names, &plant.policy).unwrap();
        trust.verify_names(&signed, &site("s1")).ok();
        let signed = cose::sign(payload, ContentType::Program, &plant.policy).unwrap();
        if let Ok(program) = trust.verify_program(&signed) {
            program.program().ok();
        }
    });
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[a-z]{1,8}", "[a-zA-Z0-9._-]{1,8}", 0..8).prop_filter_map(
        "reserved keys",
        |map| {
            let map: BTreeMap<LabelKey, LabelValue> = map
                .into_iter()
                .map(|(k, v)| (LabelKey::new(&k).unwrap(), LabelValue::new(&v).unwrap()))
                .collect();
            Labels::new(map).ok()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_ticket_that_is_signed_is_believed_as_it_was(
        id: [u8; 16],
        name in "[a-z][a-z0-9]{0,20}",
        labels in labels(),
        epoch: u64,
    ) {
        let plant = &*PLANT;
        let ticket = Ticket {
            id: DeviceId(id),
            name: DeviceName::new(&name).unwrap(),
            labels,
            epoch,
            ..plant.ticket()
        };
        let bytes = sign_ticket(&ticket, &plant.issuer).unwrap();
        let verified = plant.trust.verify_ticket(&bytes, &standing(), now()).unwrap();
        prop_assert_eq!(verified.into_inner(), ticket);
    }
}
