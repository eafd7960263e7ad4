//! Attacks, each by its name. Whoever fails gets silence, and is counted.

use hedgerow_identity::key::SigningKey as _;
use hedgerow_identity::statement::sign_binding;
use proptest::prelude::*;
use x25519_dalek::PublicKey;

use super::super::*;
use super::world::*;
use crate::introduction::{self, Ask, PROLOGUE};
use crate::noise::Initiator;
use crate::output::Output;

const SECOND: Duration = Duration::from_secs(1);

fn attacker() -> Underlay {
    Underlay("203.0.113.66:4444".parse().unwrap())
}

/// What an attacker puts into a question.
struct Forged<'a> {
    ticket: &'a [u8],
    binding: &'a [u8],
    key: IntroductionSecret,
    timestamp_ms: u64,
}

impl Forged<'_> {
    /// Seals it for a node; everything about the outside is right.
    fn seal(&self, world: &mut World, to: usize) -> Vec<u8> {
        let ask = Ask {
            ticket: self.ticket.to_vec(),
            binding: self.binding.to_vec(),
            timestamp_ms: self.timestamp_ms,
            responder: world.id(to),
            known: (0, 0),
        };
        let responder = PublicKey::from(world.nodes[to].device.introduction.public().0);
        let ephemeral = x25519_dalek::StaticSecret::from(world.rng.bytes::<32>());
        let mut noise = Vec::new();
        let keys = (&self.key.secret, &responder);
        let payload = ask.encode().unwrap();
        Initiator::start(PROLOGUE, keys, ephemeral, &payload, &mut noise).unwrap();
        introduction::introduce(&responder, &noise)
    }
}

/// Delivers bytes to node 0 and asserts silence, no peer, and the reason.
fn refused(world: &mut World, bytes: &[u8], reason: Refusal) {
    let before = (
        world.sent_by(0),
        world.refused(0, reason),
        world.nodes[0].tunnel.clone(),
    );
    world.deliver(attacker(), 0, bytes);
    world.run(SECOND);
    assert_eq!(
        world.refused(0, reason),
        before.1 + 1,
        "{:?}",
        world.refusals(0)
    );
    assert_eq!(world.sent_by(0), before.0, "silence");
    assert_eq!(world.nodes[0].tunnel, before.2);
}

fn forged<'a>(device: &'a Device, world: &World) -> Forged<'a> {
    Forged {
        ticket: &device.ticket,
        binding: &device.binding,
        key: device.introduction.clone(),
        timestamp_ms: world.now_of(0).wall.0,
    }
}

#[test]
fn a_stranger_without_a_ticket() {
    let mut world = World::new(1, 1);
    let stranger = Forged {
        ticket: b"no ticket",
        binding: b"no binding",
        key: IntroductionSecret::from_bytes([7; 32]),
        timestamp_ms: world.now_of(0).wall.0,
    };
    let bytes = stranger.seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::InvalidTicket);
}

#[test]
fn a_stranger_who_does_not_know_our_key_costs_a_hash() {
    let mut world = World::new(2, 2);
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let bytes = forged(&device, &world).seal(&mut world, 1);
    refused(&mut world, &bytes, Refusal::WrongCheck);
    assert_eq!(world.nodes[0].mesh.status().work, Work::default());
}

#[test]
fn a_ticket_of_another_trust_domain() {
    let mut world = World::new(3, 1);
    let other = Domain::new("other.example", &mut Rng(98));
    let device = Device::new(&other, 9, &mut Rng(99));
    let bytes = forged(&device, &world).seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::ForeignTicket);
}

#[test]
fn an_old_wider_ticket_after_the_epoch_was_raised() {
    let mut world = World::new(4, 1);
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let list = world.domain.revocations(1, &[], &[(device.body.id, 2)]);
    world.nodes[0].standing.adopt_revocations(list).unwrap();
    let bytes = forged(&device, &world).seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::SupersededTicket);
}

#[test]
fn an_old_wider_ticket_while_we_know_a_newer_one() {
    let mut world = World::new(5, 2);
    let old = world.nodes[1].device.ticket.clone();
    let device = &mut world.nodes[1].device;
    device.body.epoch = 2;
    device.sign(&world.domain);
    world.renew(1);
    world.want(1, 0);
    world.run(SECOND);
    assert!(world.linked(0, 1));
    let device = &world.nodes[1].device;
    let timestamp_ms = world.now_of(0).wall.0;
    let (binding, key) = (device.binding.clone(), device.introduction.clone());
    let bytes = Forged {
        ticket: &old,
        binding: &binding,
        key,
        timestamp_ms,
    }
    .seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::SupersededTicket);
}

#[test]
fn a_revoked_device() {
    let mut world = World::new(6, 1);
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let list = world.domain.revocations(1, &[device.body.id], &[]);
    world.nodes[0].standing.adopt_revocations(list).unwrap();
    let bytes = forged(&device, &world).seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::Revoked);
}

#[test]
fn a_replayed_introduction() {
    let mut world = World::new(7, 2);
    world.want(1, 0);
    world.run(SECOND);
    let question = world.sent[0].2.clone();
    refused(&mut world, &question, Refusal::Replayed);
    let work = world.nodes[0].mesh.status().work;
    refused(&mut world, &question, Refusal::Replayed);
    assert_eq!(
        world.nodes[0].mesh.status().work.signatures,
        work.signatures,
        "no signature"
    );

    world.reboot(0);
    world.nodes[0].log.clear();
    world.run(Duration::from_secs(5));
    refused(&mut world, &question, Refusal::Replayed);
}

#[test]
fn a_replayed_introduction_moves_no_endpoint() {
    let mut world = World::new(8, 2);
    world.want(1, 0);
    world.run(SECOND);
    world.establish(0, 1);
    let before = world.nodes[0].tunnel.clone();
    // A fresh one this time, taken off the wire before it arrived and sent from elsewhere.
    let device = &world.nodes[1].device;
    let fresh = Forged {
        ticket: &device.ticket.clone(),
        binding: &device.binding.clone(),
        key: device.introduction.clone(),
        timestamp_ms: world.now_of(0).wall.0 + 5,
    };
    let bytes = fresh.seal(&mut world, 0);
    world.deliver(attacker(), 0, &bytes);
    assert_eq!(world.nodes[0].tunnel, before);
    let answers = world.sent.iter().filter(|(_, to, _)| *to == attacker());
    assert!(answers.clone().count() <= 1, "at most one answer");
    assert!(
        answers
            .clone()
            .all(|(_, _, answer)| answer.len() <= bytes.len())
    );
}

#[test]
fn a_reflected_introduction() {
    let mut world = World::new(9, 2);
    world.want(0, 1);
    world.run(SECOND);
    let question = world.sent[0].2.clone();
    refused(&mut world, &question, Refusal::WrongCheck);
    let answer = world.sent.last().unwrap().2.clone();
    assert_eq!(answer[0], INTRODUCED);
    refused(&mut world, &answer, Refusal::Unasked);
    let mut turned = question;
    turned[0] = INTRODUCED;
    refused(&mut world, &turned, Refusal::Malformed);
}

#[test]
fn an_answer_reflected_to_its_sender() {
    let mut world = World::new(10, 2);
    world.want(1, 0);
    world.run(SECOND);
    let answer = world.sent.last().unwrap().2.clone();
    refused(&mut world, &answer, Refusal::Unasked);
}

#[test]
fn an_introduction_in_our_own_name() {
    let mut world = World::new(11, 1);
    let device = &world.nodes[0].device;
    let (ticket, binding) = (device.ticket.clone(), device.binding.clone());
    let key = device.introduction.clone();
    let timestamp_ms = world.now_of(0).wall.0;
    let own = Forged {
        ticket: &ticket,
        binding: &binding,
        key,
        timestamp_ms,
    };
    let bytes = own.seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::Ourselves);
    let address = world.address(0);
    world.with(0, |mesh, view| mesh.handle_wanted(address, view));
    assert!(world.sent.is_empty());
}

#[test]
fn a_copied_ticket_and_binding_without_the_introduction_key() {
    let mut world = World::new(12, 2);
    let device = &world.nodes[1].device;
    let (ticket, binding) = (device.ticket.clone(), device.binding.clone());
    let thief = Forged {
        ticket: &ticket,
        binding: &binding,
        key: IntroductionSecret::from_bytes([8; 32]),
        timestamp_ms: world.now_of(0).wall.0,
    };
    let bytes = thief.seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::OtherKey);
}

#[test]
fn a_copied_binding_under_another_device() {
    let mut world = World::new(13, 2);
    let victim = world.nodes[1].device.binding.clone();
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let copied = Forged {
        binding: &victim,
        ..forged(&device, &world)
    };
    let bytes = copied.seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::InvalidBinding);
}

#[test]
fn another_devices_wireguard_key() {
    let mut world = World::new(14, 2);
    world.want(1, 0);
    world.run(SECOND);
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let stolen = world.nodes[0].tunnel[&world.id(1)].key;
    let own = world.nodes[0]
        .device
        .own(&world.domain, world.now_of(0))
        .binding
        .wireguard_key;
    for (wireguard_key, ahead) in [(stolen, 1), (own, 2)] {
        let body = Binding {
            id: device.body.id,
            wireguard_key,
            sequence: NOON,
            not_after_secs: NOON + DAY,
        };
        let binding = sign_binding(&body, &device.identity).unwrap();
        let mut claim = Forged {
            binding: &binding,
            ..forged(&device, &world)
        };
        claim.timestamp_ms += ahead;
        let bytes = claim.seal(&mut world, 0);
        refused(&mut world, &bytes, Refusal::KeyTaken);
    }
}

#[test]
fn a_revoked_devices_wireguard_key_in_an_accomplices_hand() {
    for had_session in [true, false] {
        let mut world = World::new(14, 2);
        world.want(0, 1);
        world.run(SECOND);
        if had_session {
            world.establish(0, 1);
        }
        let (revoked, key) = (world.id(1), world.nodes[0].tunnel[&world.id(1)].key);
        let accomplice = Device::new(&world.domain, 9, &mut Rng(99));
        let body = Binding {
            id: accomplice.body.id,
            wireguard_key: key,
            sequence: NOON,
            not_after_secs: NOON + DAY,
        };
        let binding = sign_binding(&body, &accomplice.identity).unwrap();
        let claim = |world: &mut World, ahead| {
            let mut claim = Forged {
                binding: &binding,
                ..forged(&accomplice, world)
            };
            claim.timestamp_ms += ahead;
            claim.seal(world, 0)
        };
        let bytes = claim(&mut world, 1);
        refused(&mut world, &bytes, Refusal::KeyTaken);
        let list = world.domain.revocations(1, &[revoked], &[]);
        world.nodes[0].standing.adopt_revocations(list).unwrap();
        world.with(0, |mesh, view| mesh.handle_standing_changed(view));
        let bytes = claim(&mut world, 2);
        if had_session {
            refused(&mut world, &bytes, Refusal::KeyTaken);
            continue;
        }
        // Nobody proved to have it: naming a key takes it from nobody.
        world.deliver(attacker(), 0, &bytes);
        world.run(SECOND);
        assert!(world.nodes[0].tunnel.contains_key(&accomplice.body.id));
    }
}

#[test]
fn another_devices_address() {
    let mut world = World::new(15, 2);
    world.want(1, 0);
    world.run(SECOND);
    for number in [1, 2] {
        let device = Device::new(&world.domain, number, &mut Rng(90 + u64::from(number)));
        let bytes = forged(&device, &world).seal(&mut world, 0);
        refused(&mut world, &bytes, Refusal::AddressTaken);
    }
}

#[test]
fn a_binding_of_yesterday_after_todays() {
    let mut world = World::new(16, 2);
    let yesterday = world.nodes[1].device.binding.clone();
    let n = &mut world.nodes[1];
    n.device.rotate(NOON + 600, &mut world.rng);
    world.renew(1);
    world.want(1, 0);
    world.run(SECOND);
    let device = &world.nodes[1].device;
    let (ticket, key) = (device.ticket.clone(), device.introduction.clone());
    let timestamp_ms = world.now_of(0).wall.0 + 10;
    let old = Forged {
        ticket: &ticket,
        binding: &yesterday,
        key,
        timestamp_ms,
    };
    let bytes = old.seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::SupersededBinding);
}

#[test]
fn a_ticket_and_a_binding_that_ended() {
    let mut world = World::new(17, 1);
    let mut device = Device::new(&world.domain, 9, &mut Rng(99));
    device.rotate(NOON - 3 * DAY, &mut Rng(97));
    let bytes = forged(&device, &world).seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::InvalidBinding);
    device.body.site = "plant-two".parse().unwrap();
    device.body.not_after_secs = NOON - DAY;
    device.sign(&world.domain);
    let mut late = forged(&device, &world);
    late.timestamp_ms += 1;
    let bytes = late.seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::ExpiredTicket);
}

#[test]
fn a_clock_at_2200_against_a_trusted_one() {
    let mut world = World::new(18, 1);
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let mut far = forged(&device, &world);
    far.timestamp_ms = (NOON + 174 * 365 * DAY) * 1000;
    let bytes = far.seal(&mut world, 0);
    refused(&mut world, &bytes, Refusal::ClockAhead);
}

#[test]
fn a_question_for_another_device_sealed_to_our_key() {
    let mut world = World::new(19, 1);
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let ask = Ask {
        ticket: device.ticket.clone(),
        binding: device.binding.clone(),
        timestamp_ms: world.now_of(0).wall.0,
        responder: DeviceId([1; 16]),
        known: (0, 0),
    };
    let responder = PublicKey::from(world.nodes[0].device.introduction.public().0);
    let mut noise = Vec::new();
    let keys = (&device.introduction.secret, &responder);
    let ephemeral = x25519_dalek::StaticSecret::from([5; 32]);
    Initiator::start(
        PROLOGUE,
        keys,
        ephemeral,
        &ask.encode().unwrap(),
        &mut noise,
    )
    .unwrap();
    let bytes = introduction::introduce(&responder, &noise);
    refused(&mut world, &bytes, Refusal::OtherResponder);
}

#[test]
fn truncated_and_oversized_messages() {
    let mut world = World::new(20, 2);
    world.loss = 100;
    world.want(1, 0);
    let question = world.sent[0].2.clone();
    for length in 0..question.len() {
        let before = world.refused(0, Refusal::Malformed);
        world.deliver(attacker(), 0, &question[..length]);
        assert_eq!(world.refused(0, Refusal::Malformed), before + 1);
    }
    for extra in [1, 100, 65_535] {
        let mut long = question.clone();
        long.resize(question.len() + extra, 0);
        refused(&mut world, &long, Refusal::Malformed);
    }
    assert_eq!(world.nodes[0].mesh.status().work, Work::default());
}

#[test]
fn a_lying_controller_opens_nothing() {
    let mut world = World::new(21, 3);
    let address = world.address(1);
    let lie = Resolved {
        ticket: world.nodes[2].device.ticket.clone(),
        endpoints: vec![attacker()],
        relays: vec![],
    };
    let query = PeerQuery::Address(address);
    world.with(0, |mesh, view| {
        mesh.handle_resolved(query, Some(lie.clone()), view)
    });
    assert!(world.nodes[0].log.is_empty(), "not asked");

    let n = &world.nodes[0];
    let now = world.now_of(0);
    let (mut mesh, standing) = (Mesh::new([3; 32]), n.standing.clone());
    let view = View {
        trust: &world.domain.trust,
        standing: &standing,
        now,
    };
    mesh.handle_own(n.device.own(&world.domain, now), view)
        .unwrap();
    mesh.handle_wanted(address, view);
    assert_eq!(mesh.poll(), Some(Output::Resolve { query }));
    mesh.handle_resolved(query, Some(lie), view);
    let outputs: Vec<Output> = std::iter::from_fn(|| mesh.poll()).collect();
    assert!(
        outputs
            .iter()
            .all(|o| matches!(o, Output::Refused { .. } | Output::Reject { .. }))
    );
}

#[test]
fn a_flood_from_one_source_costs_its_budget() {
    let mut world = World::new(22, 1);
    let device = Device::new(&world.domain, 9, &mut Rng(99));
    let bytes = forged(&device, &world).seal(&mut world, 0);
    for _ in 0..5000 {
        world.deliver(attacker(), 0, &bytes);
    }
    let work = world.nodes[0].mesh.status().work;
    assert!(work.agreements <= 2 * 60 + 2, "{work:?}");
    assert!(
        work.signatures <= 2,
        "one fresh, the rest replays: {work:?}"
    );
    let reported = world.nodes[0]
        .log
        .iter()
        .filter(|o| matches!(o, Output::Refused { .. }));
    assert!(reported.count() <= 3, "events are sampled");
}

#[test]
fn a_flood_from_everywhere_costs_a_bounded_number_of_signatures() {
    let mut world = World::new(23, 1);
    let fake = Domain::new("other.example", &mut Rng(98));
    let device = Device::new(&fake, 9, &mut Rng(99));
    let mut timestamp_ms = world.now_of(0).wall.0;
    let messages: Vec<Vec<u8>> = (0..1500u32)
        .map(|i| {
            timestamp_ms += 1;
            let mut seed = [0; 32];
            seed[..4].copy_from_slice(&i.to_be_bytes());
            let key = IntroductionSecret::from_bytes(seed);
            Forged {
                ticket: &device.ticket,
                binding: &device.binding,
                key,
                timestamp_ms,
            }
            .seal(&mut world, 0)
        })
        .collect();
    for (i, bytes) in (0u32..).zip(&messages) {
        let from = Underlay(std::net::SocketAddr::new(
            std::net::Ipv4Addr::from(i * 7919).into(),
            1,
        ));
        world.deliver(from, 0, bytes);
    }
    let work = world.nodes[0].mesh.status().work;
    assert!(work.signatures <= 400, "{work:?}");
    assert!(work.agreements <= 2 * 800, "{work:?}");
    assert_eq!(work.answers, 0);
    assert!(world.sent.is_empty());

    // A second later an honest device gets through.
    world.run(SECOND);
    let honest = Device::new(&world.domain, 9, &mut Rng(97));
    let bytes = forged(&honest, &world).seal(&mut world, 0);
    world.deliver(Underlay("192.0.2.200:7117".parse().unwrap()), 0, &bytes);
    assert_eq!(world.nodes[0].mesh.status().work.answers, 1);
}

#[test]
fn nothing_of_ticket_or_labels_is_on_the_wire_in_clear() {
    let mut world = World::new(24, 2);
    world.want(0, 1);
    world.run(SECOND);
    assert!(world.linked(0, 1));
    let contains = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
    for (_, _, bytes) in &world.sent {
        for node in &world.nodes {
            let body = &node.device.body;
            let parts: [&[u8]; 8] = [
                body.name.as_str().as_bytes(),
                body.site.as_str().as_bytes(),
                b"sensor",
                b"hall-three",
                &body.id.0,
                &body.introduction_key.0,
                &body.identity_key.0[1..],
                &body.addresses.v6.octets(),
            ];
            assert!(parts.iter().all(|part| !contains(bytes, part)));
        }
    }
    let [first, second] = [0, 1].map(|node| world.nodes[node].device.identity.public_key());
    assert_ne!(first, second);
}

#[test]
fn a_grown_table_stays_within_its_bound() {
    let mut world = World::new(25, 1);
    world.controller = false;
    for i in 0..3000u16 {
        let [high, low] = i.to_be_bytes();
        let address = Overlay(std::net::Ipv4Addr::new(100, 81, high, low).into());
        world.with(0, |mesh, view| mesh.handle_wanted(address, view));
    }
    assert!(world.nodes[0].mesh.unreachable.len() <= UNREACHABLE_MAX);
    for i in 0..20_000u32 {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&i.to_be_bytes());
        world.nodes[0].mesh.heard(X25519Public(key), u64::from(i));
        if i > 16_600 {
            break;
        }
    }
    assert!(world.nodes[0].mesh.heard.len() <= HEARD_MAX);
}

#[test]
fn questions_nobody_answers_stay_within_their_bound() {
    let world = World::new(26, 1);
    let now = world.now_of(0);
    let n = &world.nodes[0];
    let view = View {
        trust: &world.domain.trust,
        standing: &n.standing,
        now,
    };
    let mut mesh = Mesh::new([3; 32]);
    mesh.handle_own(n.device.own(&world.domain, now), view)
        .unwrap();
    for i in 0..3000u16 {
        let [high, low] = i.to_be_bytes();
        mesh.handle_wanted(
            Overlay(std::net::Ipv4Addr::new(100, 81, high, low).into()),
            view,
        );
    }
    assert_eq!(mesh.status().lookups, LOOKUPS_MAX);
    let outputs: Vec<Output> = std::iter::from_fn(|| mesh.poll()).collect();
    let busy = |o: &&Output| {
        matches!(
            o,
            Output::Reject {
                reason: Unreachable::Busy,
                ..
            }
        )
    };
    assert_eq!(outputs.iter().filter(busy).count(), 3000 - LOOKUPS_MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn garbage_never_panics_and_is_never_answered(
        seed in 0u64..4,
        first in prop::sample::select(vec![0x81u8, 0x82, 0x83, 0xff, 0x80]),
        mut bytes in prop::collection::vec(any::<u8>(), 0..1200),
        exact in any::<bool>(),
    ) {
        let mut world = World::new(seed, 1);
        if exact {
            bytes.resize(if first == INTRODUCED { 1024 } else { 1088 }, 0);
        }
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        world.deliver(attacker(), 0, &bytes);
        prop_assert!(world.sent.is_empty());
        prop_assert!(world.nodes[0].tunnel.is_empty());
    }

    #[test]
    fn a_sealed_question_full_of_garbage_never_panics_and_is_never_answered(
        ticket in prop::collection::vec(any::<u8>(), 0..500),
        binding in prop::collection::vec(any::<u8>(), 0..250),
        timestamp_ms in any::<u64>(),
    ) {
        let mut world = World::new(1, 1);
        let key = IntroductionSecret::from_bytes([7; 32]);
        let bytes = Forged { ticket: &ticket, binding: &binding, key, timestamp_ms }.seal(&mut world, 0);
        world.deliver(attacker(), 0, &bytes);
        prop_assert!(world.sent.is_empty());
        prop_assert!(world.nodes[0].tunnel.is_empty());
    }

    #[test]
    fn a_damaged_question_is_never_answered(at in 0usize..1088, flip in 1u8..) {
        let mut world = World::new(2, 2);
        world.want(1, 0);
        let mut question = world.sent[0].2.clone();
        question[at] ^= flip;
        world.deliver(attacker(), 0, &question);
        prop_assert_eq!(world.sent_by(0), 0);
    }
}
