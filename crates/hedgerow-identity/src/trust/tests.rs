use super::*;
use crate::testing::{NOW, Plant, digest, ed25519, p256, p384, site, throw_at};

type Edit = fn(&mut Manifest);

fn refused(plant: &Plant, manifest: &Manifest) -> RefusedManifest {
    let signed = sign_manifest(manifest, &[&plant.root]).unwrap();
    plant.trust.clone().adopt_manifest(&signed).unwrap_err()
}

#[test]
fn trust_begins_at_the_pinned_root_set_only() {
    let (ours, theirs) = (Plant::with_seed(1), Plant::with_seed(2));
    let refused = Trust::pinned(ours.manifest.genesis, &theirs.signed).unwrap_err();
    assert!(matches!(refused, RefusedManifest::WrongGenesis { .. }));
    let mut lying = theirs.manifest.clone();
    lying.genesis = ours.manifest.genesis;
    let signed = sign_manifest(&lying, &[&theirs.root]).unwrap();
    let refused = Trust::pinned(ours.manifest.genesis, &signed).unwrap_err();
    assert!(matches!(refused, RefusedManifest::WrongGenesis { .. }));
    let mut lying = ours.manifest.clone();
    lying.genesis = theirs.manifest.genesis;
    let signed = sign_manifest(&lying, &[&ours.root]).unwrap();
    let refused = Trust::pinned(ours.manifest.genesis, &signed).unwrap_err();
    assert!(matches!(refused, RefusedManifest::WrongGenesis { .. }));
}

#[test]
fn the_pin_covers_keys_and_certificates_in_any_order() {
    let root = |seed, certificate: &[u8]| Root {
        key: p384(seed).public(),
        certificate: certificate.to_vec(),
    };
    let (a, b) = (root(1, b"a"), root(2, b"b"));
    let pin = root_set_digest(&[a.clone(), b.clone()]);
    assert_eq!(pin, root_set_digest(&[b, a.clone()]));
    assert_ne!(pin, root_set_digest(std::slice::from_ref(&a)));
    assert_ne!(pin, root_set_digest(&[a, root(2, b"c")]));
}

#[test]
fn a_chain_grows_one_version_at_a_time_and_survives_storage() {
    let mut plant = Plant::new();
    let second = sign_manifest(&plant.next_manifest(), &[&plant.root]).unwrap();
    assert_eq!(plant.trust.adopt_manifest(&second), Ok(Adopted::New));
    assert_eq!(plant.trust.adopt_manifest(&second), Ok(Adopted::Known));
    let third = sign_manifest(&plant.next_manifest(), &[&plant.root]).unwrap();
    let mut behind = Trust::pinned(plant.trust.genesis(), &plant.signed).unwrap();
    let gap = behind.adopt_manifest(&third).unwrap_err();
    assert_eq!(gap, RefusedManifest::Gap { have: 1, got: 3 });
    plant.trust.adopt_manifest(&third).unwrap();
    assert_eq!(plant.trust.links_after(1), [second, third]);
    let again = Trust::from_chain(plant.trust.genesis(), &plant.trust.export()).unwrap();
    assert_eq!(again.manifest(), plant.trust.manifest());
    assert_eq!(behind.adopt_chain(&plant.trust.export()), Ok(Adopted::New));
    assert_eq!(behind.manifest().version, 3);
    assert_eq!(
        behind.adopt_chain(&plant.trust.export()),
        Ok(Adopted::Known)
    );
}

#[test]
fn a_rolled_back_manifest_is_refused() {
    let mut plant = Plant::new();
    let second = sign_manifest(&plant.next_manifest(), &[&plant.root]).unwrap();
    plant.trust.adopt_manifest(&second).unwrap();
    let refused = plant.trust.adopt_manifest(&plant.signed).unwrap_err();
    assert_eq!(refused, RefusedManifest::Rollback { have: 2, got: 1 });
    assert_eq!(plant.trust.manifest().version, 2);
}

#[test]
fn a_forked_manifest_is_refused() {
    let mut plant = Plant::new();
    let mut fork = plant.next_manifest();
    fork.issued_secs = NOW + 1;
    let fork = sign_manifest(&fork, &[&plant.root]).unwrap();
    let second = sign_manifest(&plant.next_manifest(), &[&plant.root]).unwrap();
    let mut theirs = plant.trust.clone();
    plant.trust.adopt_manifest(&second).unwrap();
    let refused = plant.trust.adopt_manifest(&fork).unwrap_err();
    assert_eq!(refused, RefusedManifest::Fork { version: 2 });
    let third = sign_manifest(&plant.next_manifest(), &[&plant.root]).unwrap();
    theirs.adopt_manifest(&fork).unwrap();
    let refused = theirs.adopt_manifest(&third).unwrap_err();
    assert_eq!(refused, RefusedManifest::Fork { version: 3 });
}

#[test]
fn the_next_manifest_needs_the_old_roots_and_the_new() {
    let mut plant = Plant::new();
    let new_root = p384(77);
    let mut next = plant.next_manifest();
    next.roots = vec![Root {
        key: new_root.public(),
        certificate: vec![],
    }];
    let only_new = sign_manifest(&next, &[&new_root]).unwrap();
    let few = RefusedManifest::TooFewSignatures { have: 0, need: 1 };
    assert_eq!(plant.trust.adopt_manifest(&only_new).unwrap_err(), few);
    let only_old = sign_manifest(&next, &[&plant.root]).unwrap();
    assert_eq!(plant.trust.adopt_manifest(&only_old).unwrap_err(), few);
    let both = merge_signatures(&only_new, &only_old).unwrap();
    assert_eq!(
        both,
        sign_manifest(&next, &[&plant.root, &new_root]).unwrap()
    );
    assert_eq!(plant.trust.adopt_manifest(&both), Ok(Adopted::New));
    let old_root_alone = sign_manifest(&plant.next_manifest(), &[&plant.root]).unwrap();
    assert_eq!(
        plant.trust.adopt_manifest(&old_root_alone).unwrap_err(),
        few
    );
    assert_eq!(plant.trust.genesis(), plant.manifest.genesis);
}

#[test]
fn one_root_signing_twice_is_one_signature() {
    let keys = [p384(1), p384(2)];
    let mut roots: Vec<Root> = keys
        .iter()
        .map(|key| Root {
            key: key.public(),
            certificate: vec![],
        })
        .collect();
    roots.sort_by_key(|root| root.key);
    let genesis = root_set_digest(&roots);
    let manifest = Manifest {
        threshold: 2,
        roots,
        genesis,
        issuers: vec![],
        ..Plant::new().manifest
    };
    let one = sign_manifest(&manifest, &[&keys[0], &keys[0]]).unwrap();
    let few = RefusedManifest::TooFewSignatures { have: 1, need: 2 };
    assert_eq!(Trust::pinned(genesis, &one).unwrap_err(), few);
    let parts = SignedManifest::decode(&one).unwrap();
    let doubled = join(&[parts.signatures[0].1, parts.signatures[0].1]).unwrap();
    let malformed = Trust::pinned(genesis, &doubled).unwrap_err();
    assert_eq!(malformed, RefusedManifest::Malformed);
    let two = sign_manifest(&manifest, &[&keys[0], &keys[1]]).unwrap();
    assert!(Trust::pinned(genesis, &two).is_ok());
}

#[test]
fn a_manifest_that_breaks_a_bound_is_refused_though_signed() {
    let plant = Plant::new();
    let broken: [(&str, Edit); 9] = [
        ("threshold zero", |m| m.threshold = 0),
        ("threshold too high", |m| m.threshold = 2),
        ("no roots", |m| m.roots.clear()),
        ("issuers out of order", |m| m.issuers.reverse()),
        ("issuer doubled", |m| m.issuers.push(m.issuers[1].clone())),
        ("roles out of order", |m| m.role_keys.reverse()),
        ("one key, two roles", |m| {
            m.role_keys[1].key = m.role_keys[0].key
        }),
        ("issuer outlives certificate", |m| {
            m.issuers[0].not_after_secs += 1;
        }),
        ("another certificate", |m| {
            m.roots[0].certificate = m.issuers[0].certificate.clone();
        }),
    ];
    for (what, edit) in broken {
        let mut next = plant.next_manifest();
        edit(&mut next);
        let refused = refused(&plant, &next);
        assert!(
            matches!(refused, RefusedManifest::OutOfBounds { version: 2, .. }),
            "{what}: {refused}"
        );
    }
}

#[test]
fn a_site_issuer_without_an_address_constraint_is_refused() {
    let plant = Plant::new();
    let mut next = plant.next_manifest();
    for issuer in &mut next.issuers {
        issuer.site = Some(site("s1"));
    }
    assert!(matches!(
        refused(&plant, &next),
        RefusedManifest::OutOfBounds { .. }
    ));
}

#[test]
fn a_manifest_never_changes_its_trust_domain() {
    let plant = Plant::new();
    let mut next = plant.next_manifest();
    next.trust_domain = TrustDomain::new("other.example").unwrap();
    let other = RefusedManifest::OtherDomain { version: 2 };
    assert_eq!(refused(&plant, &next), other);
    let mut next = plant.next_manifest();
    next.genesis = digest(9);
    assert_eq!(refused(&plant, &next), other);
}

#[test]
fn only_roots_sign_manifests() {
    let mut plant = Plant::new();
    for key in [&p256(1) as &dyn SigningKey, &ed25519(2)] {
        let signed = sign_manifest(&plant.next_manifest(), &[key]);
        assert_eq!(signed, Err(SignError::WrongKind));
    }
    let payload = encode(&plant.next_manifest());
    let by_issuer = cose::sign(&payload, ContentType::Manifest, &plant.issuer).unwrap();
    let by_issuer = join(&[by_issuer]).unwrap();
    let refused = plant.trust.adopt_manifest(&by_issuer).unwrap_err();
    let few = RefusedManifest::TooFewSignatures { have: 0, need: 1 };
    assert_eq!(refused, few);
}

#[test]
fn trailing_bytes_after_a_manifest_are_refused() {
    let plant = Plant::new();
    let mut trailing = plant.signed.clone();
    trailing.push(0);
    let refused = Trust::pinned(plant.manifest.genesis, &trailing).unwrap_err();
    assert_eq!(refused, RefusedManifest::Malformed);
}

#[test]
fn hostile_manifests_never_panic_and_change_nothing() {
    let plant = Plant::new();
    throw_at(plant.signed.clone(), 300, |bytes| {
        let mut trust = plant.trust.clone();
        let verdict = trust.adopt_manifest(bytes);
        assert_ne!(verdict, Ok(Adopted::New));
        assert_eq!(trust.export(), plant.trust.export());
        Trust::pinned(plant.manifest.genesis, bytes).ok();
    });
}

#[test]
fn hostile_payloads_under_a_good_signature_never_panic() {
    let plant = Plant::new();
    throw_at(encode(&plant.next_manifest()), 60, |payload| {
        let signed = cose::sign(payload, ContentType::Manifest, &plant.root).unwrap();
        let signed = join(&[signed]).unwrap();
        plant.trust.clone().adopt_manifest(&signed).ok();
    });
}
