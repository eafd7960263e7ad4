use hedgerow_model::id::{DeviceName, Revision};
use hedgerow_model::statement::{RevocationList, SiteConfig, Ticket, X25519Public};
use minicbor::bytes::ByteVec;
use proptest::prelude::*;

use super::wire::*;
use super::*;
use crate::certificate::SpiffeId;
use crate::error::{RefusedCertificate, RefusedManifest};
use crate::key::SoftwareP256;
use crate::statement::{sign_config, sign_revocations, sign_ticket};
use crate::testing::{DAY, NOW, Plant, TestRng, now, p256, site, throw_at};

const EXPORTER: [u8; 32] = [5; 32];

fn token(plant: &Plant) -> Token {
    let endpoints = vec!["control.example:7443".to_owned(), "[fd00::1]:7443".into()];
    Token::generate(endpoints, plant.manifest.genesis, &mut TestRng(9)).unwrap()
}

fn request(token: &Token, key: &SoftwareP256, exporter: &[u8; 32]) -> EnrollRequest {
    let csr = crate::csr::make(key).unwrap();
    EnrollRequest {
        token: Some(token.id()),
        signature: Some(ByteVec::from(token.sign(exporter, &csr).unwrap())),
        csr,
        introduction_key: X25519Public([3; 32]),
        agent_version: "0.1.0".into(),
        hostname: "Cam_12.plant.example".into(),
        name: None,
    }
}

fn server_leaf(plant: &Plant, path: &str) -> Vec<u8> {
    let mut leaf = plant.leaf();
    leaf.uri = format!("spiffe://plant.example{path}");
    plant.certify(&leaf, &plant.issuer)
}

const CONTROLLER: &str = "/controller/a4dqobyha4dqobyha4dqobyha4";

fn hello(plant: &Plant) -> Hello {
    Hello {
        manifest_chain: vec![plant.signed.clone().into()],
    }
}

fn issued(plant: &Plant, ticket: &Ticket) -> Issued {
    let config = SiteConfig {
        revision: Revision::default(),
        site: ticket.site.clone(),
        zone: "Europe/Berlin".into(),
        controllers: vec!["control.example:7443".into()],
        management: vec![],
        pools: vec![],
        suffix: "hedgerow.internal".into(),
        grace_secs: 30 * DAY,
    };
    Issued {
        device: ticket.id,
        chain: vec![plant.certify(&plant.leaf(), &plant.issuer).into()],
        ticket: sign_ticket(ticket, &plant.issuer).unwrap(),
        manifest_chain: vec![plant.signed.clone().into()],
        revocations: sign_revocations(&RevocationList::default(), &plant.revocation).unwrap(),
        config: sign_config(&config, &plant.policy).unwrap(),
    }
}

fn accept(plant: &Plant, issued: &Issued) -> Result<Enrolled, EnrollError> {
    let key = p256(50).public();
    let introduction = X25519Public([3; 32]);
    accept_issued(issued, plant.trust.clone(), &key, &introduction, now())
}

#[test]
fn a_token_survives_being_pasted() {
    let plant = Plant::new();
    let token = token(&plant);
    let text = token.text();
    assert!(
        text.starts_with("hgt1.") && text.len() < 250,
        "{}",
        text.len()
    );
    let again = Token::parse(&format!("  {}\n", *text)).unwrap();
    assert_eq!(again.id(), token.id());
    assert_eq!(again.public_key(), token.public_key());
    assert_eq!(again.endpoints(), token.endpoints());
    assert_eq!(again.genesis(), plant.manifest.genesis);
    let id = token.id();
    assert_eq!(id.to_string().parse::<TokenId>().unwrap(), id);
}

/// Tokens are printed and pasted: their form is part of the protocol.
#[test]
fn the_text_of_a_token_never_moves() {
    let endpoints = vec!["control.example:7443".to_owned()];
    let token = Token::generate(endpoints, Digest::default(), &mut TestRng(9)).unwrap();
    expect_test::expect!["hgt1.hEg78m9kl2Pty1ggEJI0ke0Nqu-bC7MhTQuv_o0QHN6S83EijDGKrAVEmuuBdGNvbnRyb2wuZXhhbXBsZTo3NDQzWCAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"].assert_eq(&token.text());
}

#[test]
fn a_damaged_token_is_named_and_never_repeated() {
    let plant = Plant::new();
    let text = token(&plant).text();
    let why = |text: &str| Token::parse(text).err().unwrap();
    assert_eq!(why(text.trim_start_matches("hgt1.")), TokenError::Prefix);
    assert_eq!(
        why(text.get(..text.len() - 9).unwrap()),
        TokenError::Damaged
    );
    assert_eq!(why(&format!("{}AAAA", *text)), TokenError::Damaged);
    assert_eq!(
        why(&format!("hgt1.{}", "A".repeat(3000))),
        TokenError::TooLong
    );
    for error in [TokenError::Prefix, TokenError::Damaged] {
        assert!(!error.to_string().contains(text.get(10..20).unwrap()));
    }
}

#[test]
fn a_token_names_controllers_by_host_and_port() {
    let make = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
        Token::generate(endpoints, Digest::default(), &mut TestRng(1)).is_ok()
    };
    assert!(make(&["10.0.0.1:7443", "[::1]:1", "a-b.example:65535"]));
    let bad = [
        "host",
        "host:0",
        "host:65536",
        ":1",
        "a b:1",
        "[x]:1",
        "::1:1",
        "h\n:1",
        "u@h:1",
    ];
    for bad in bad {
        assert!(!make(&[bad]), "{bad:?}");
    }
    assert!(!make(&[]) && !make(&["a:1"; 9]));
}

#[test]
fn a_request_holds_on_its_own_connection_for_its_own_key() {
    let plant = Plant::new();
    let token = token(&plant);
    let public = token.public_key();
    let good = request(&token, &p256(50), &EXPORTER);
    assert_eq!(verify_request(&good, &public, &EXPORTER), Ok(()));
    let mut other_key = good.clone();
    other_key.csr = crate::csr::make(&p256(51)).unwrap();
    let mut other_token = good.clone();
    other_token.token = Some(TokenId([0; 8]));
    let unsigned = EnrollRequest {
        signature: None,
        ..good
    };
    for bad in [other_key, other_token, unsigned] {
        let verdict = verify_request(&bad, &public, &EXPORTER);
        assert_eq!(verdict, Err(EnrollError::BadSignature));
    }
}

#[test]
fn an_enrollment_replayed_on_another_connection_is_refused() {
    let plant = Plant::new();
    let token = token(&plant);
    let good = request(&token, &p256(50), &EXPORTER);
    let verdict = verify_request(&good, &token.public_key(), &[6; 32]);
    assert_eq!(verdict, Err(EnrollError::BadSignature));
}

#[test]
fn a_token_for_another_root_set_sends_nothing() {
    let (ours, theirs) = (Plant::with_seed(1), Plant::with_seed(2));
    let leaf = server_leaf(&theirs, CONTROLLER);
    let genesis = token(&ours).genesis();
    let verdict = accept_hello(&hello(&theirs), genesis, &leaf, now());
    assert!(matches!(
        verdict,
        Err(EnrollError::Manifest(RefusedManifest::WrongGenesis { .. }))
    ));
}

#[test]
fn a_man_in_the_middle_with_our_manifest_and_his_own_leaf_is_refused() {
    let (ours, theirs) = (Plant::with_seed(1), Plant::with_seed(2));
    let leaf = server_leaf(&theirs, CONTROLLER);
    let genesis = token(&ours).genesis();
    let verdict = accept_hello(&hello(&ours), genesis, &leaf, now());
    let unknown = EnrollError::Server(RefusedCertificate::UnknownIssuer);
    assert_eq!(verdict.err(), Some(unknown));
    let device = ours.certify(&ours.leaf(), &ours.issuer);
    let verdict = accept_hello(&hello(&ours), genesis, &device, now());
    assert!(matches!(
        verdict,
        Err(EnrollError::Server(RefusedCertificate::WrongPurpose { .. }))
    ));
    let leaf = server_leaf(&ours, CONTROLLER);
    assert!(accept_hello(&hello(&ours), genesis, &leaf, now()).is_ok());
}

#[test]
fn an_issued_identity_is_believed_as_a_whole() {
    let plant = Plant::new();
    let enrolled = accept(&plant, &issued(&plant, &plant.ticket())).unwrap();
    assert_eq!(*enrolled.ticket, plant.ticket());
    let named = SpiffeId::Device {
        site: site("s1"),
        id: plant.ticket().id,
    };
    assert_eq!(*enrolled.identity.id(), named);
    assert_eq!(enrolled.standing.site(), Some(&site("s1")));
    assert_eq!(enrolled.config.grace_secs, 30 * DAY);
}

#[test]
fn an_issued_identity_that_contradicts_itself_is_refused() {
    let plant = Plant::new();
    let ticket = plant.ticket();
    let disagrees = |what, ticket: Ticket| {
        let verdict = accept(&plant, &issued(&plant, &ticket)).err();
        assert_eq!(verdict, Some(EnrollError::Disagrees { what }));
    };
    disagrees(
        "identity",
        Ticket {
            id: hedgerow_model::id::DeviceId([8; 16]),
            ..ticket.clone()
        },
    );
    disagrees(
        "identity",
        Ticket {
            site: site("s2"),
            ..ticket.clone()
        },
    );
    disagrees(
        "introduction key",
        Ticket {
            introduction_key: X25519Public([4; 32]),
            ..ticket.clone()
        },
    );
    disagrees(
        "addresses",
        Ticket {
            addresses: plant.addresses(2),
            ..ticket.clone()
        },
    );
    disagrees(
        "end of validity",
        Ticket {
            not_after_secs: NOW + 6 * DAY,
            ..ticket.clone()
        },
    );
    let foreign = Ticket {
        identity_key: p256(51).public(),
        ..ticket.clone()
    };
    assert!(matches!(
        accept(&plant, &issued(&plant, &foreign)),
        Err(EnrollError::Ticket(_))
    ));
    let mut bare = issued(&plant, &ticket);
    bare.chain.clear();
    assert!(accept(&plant, &bare).is_err());
}

#[test]
fn messages_survive_frames_in_pieces() {
    let plant = Plant::new();
    let message = request(&token(&plant), &p256(50), &EXPORTER);
    let bytes = [frame(&message), frame(&hello(&plant))].concat();
    let mut buffer = FrameBuffer::new(REPLY_BYTES_MAX);
    let mut bodies = Vec::new();
    for byte in bytes {
        buffer.push(&[byte]);
        bodies.extend(buffer.pop().unwrap());
    }
    assert_eq!(bodies.len(), 2);
    assert_eq!(EnrollRequest::decode_body(&bodies[0]), Ok(message));
    assert_eq!(Hello::decode_body(&bodies[1]), Ok(hello(&plant)));
}

#[test]
fn replies_survive_the_wire() {
    let plant = Plant::new();
    let replies = [
        EnrollReply::Issued(Box::new(issued(&plant, &plant.ticket()))),
        EnrollReply::Pending {
            retry_after_secs: 10,
            fingerprint: "abcd-efgh".into(),
        },
        EnrollReply::Refused {
            code: RefusalCode::TokenSpent,
            reason: "the token was used by another device".into(),
        },
    ];
    for reply in replies {
        let framed = frame(&reply);
        assert_eq!(EnrollReply::decode_body(&framed[4..]), Ok(reply));
    }
}

#[test]
fn a_frame_that_is_announced_too_long_is_refused_before_it_comes() {
    let mut buffer = FrameBuffer::new(REQUEST_BYTES_MAX);
    buffer.push(&0xffff_ffffu32.to_be_bytes());
    assert!(buffer.pop().is_err());
}

#[test]
fn broken_bounds_and_trailing_bytes_are_refused() {
    let plant = Plant::new();
    let good = request(&token(&plant), &p256(50), &EXPORTER);
    let decode = |request: &EnrollRequest| EnrollRequest::decode_body(&frame(request)[4..]);
    let long = EnrollRequest {
        hostname: "x".repeat(256),
        ..good.clone()
    };
    assert!(decode(&long).is_err());
    let short = EnrollRequest {
        signature: Some(vec![0; 63].into()),
        ..good.clone()
    };
    assert!(decode(&short).is_err());
    let mut trailing = frame(&good)[4..].to_vec();
    trailing.push(0);
    assert!(EnrollRequest::decode_body(&trailing).is_err());
}

#[test]
fn a_name_is_made_of_a_hostname() {
    let plant = Plant::new();
    let named = |hostname: &str| {
        EnrollRequest {
            hostname: hostname.into(),
            ..request(&token(&plant), &p256(50), &EXPORTER)
        }
        .name_from_hostname()
    };
    assert_eq!(
        named("Cam_12.plant.example"),
        DeviceName::new("cam-12").ok()
    );
    assert_eq!(named("ümlaut"), DeviceName::new("mlaut").ok());
    assert_eq!(named("---"), None);
    assert_eq!(named(""), None);
    assert!(named(&"é".repeat(200)).is_none());
    assert!(named(&"A".repeat(200)).is_some());
}

#[test]
fn hostile_enrollment_bytes_never_panic() {
    let plant = Plant::new();
    let token = token(&plant);
    let message = frame(&request(&token, &p256(50), &EXPORTER))[4..].to_vec();
    throw_at(message, 500, |bytes| {
        if let Ok(request) = EnrollRequest::decode_body(bytes) {
            verify_request(&request, &token.public_key(), &EXPORTER).ok();
            crate::csr::parse(&request.csr).ok();
            request.name_from_hostname();
        }
        Hello::decode_body(bytes).ok();
        let mut buffer = FrameBuffer::new(REQUEST_BYTES_MAX);
        buffer.push(bytes);
        while let Ok(Some(_)) = buffer.pop() {}
    });
    let reply = EnrollReply::Issued(Box::new(issued(&plant, &plant.ticket())));
    throw_at(frame(&reply)[4..].to_vec(), 500, |bytes| {
        if let Ok(EnrollReply::Issued(issued)) = EnrollReply::decode_body(bytes) {
            accept(&plant, &issued).ok();
        }
    });
    throw_at(token.text().as_bytes().to_vec(), 500, |bytes| {
        Token::parse(&String::from_utf8_lossy(bytes)).ok();
        String::from_utf8_lossy(bytes).parse::<TokenId>().ok();
    });
}

proptest! {
    #[test]
    fn tokens_have_one_spelling(seed: u64, cut in any::<prop::sample::Index>(), with: char) {
        let token = Token::generate(
            vec!["a:1".into()],
            Digest::default(),
            &mut TestRng(seed),
        ).unwrap();
        let text = token.text();
        let at = 5 + cut.index(text.len() - 5);
        let mut other: String = text.chars().take(at).collect();
        other.push(with);
        other.extend(text.chars().skip(at + 1));
        if other != *text
            && let Ok(changed) = Token::parse(&other)
        {
            let again = changed.text();
            prop_assert_eq!(again.as_str(), other.trim());
        }
    }
}
