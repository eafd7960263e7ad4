//! Peers that lie, withhold, flood or pry.

use super::*;

#[test]
fn a_forged_list_is_neither_held_nor_passed_on_and_its_sender_is_not_heard_again() {
    let mut world = World::new(4, 0, 7);
    world.link(0, 1);
    world.link(1, 2);
    world.link(1, 3);
    let other = Domain::new(2);
    let mut forged = world.domain.revocations(9, 2);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let foreign = other.revocations(9, 2);
    for bytes in [&foreign, &forged] {
        let now = world.now;
        // Node 0 holds it, as an attacker's device may.
        let item = other.verify(ItemKind::Revocations, &foreign, now);
        world.nodes[0]
            .items
            .hold(&item, bytes.clone(), Digest::of(bytes));
        let key = item.key();
        world.nodes[0].items.flood(key, None, now);
        world.nodes[0].items.handle_timeout(now);
        world.drain(0);
        world.run(SECOND * 5);
    }
    assert_eq!(world.version(1, ItemKind::Revocations), 0);
    assert_eq!(world.version(2, ItemKind::Revocations), 0);
    assert_eq!(world.refused(1, ItemRefusal::UnknownSigner), 1);
    assert_eq!(world.refused(1, ItemRefusal::Forged), 1);
    assert!(
        world.nodes[2].items.refusals().is_empty(),
        "nothing went on"
    );
    // The honest neighbour is heard all the same.
    let list = world.domain.revocations(1, 1);
    world.give(3, ItemKind::Revocations, &list);
    world.run(SECOND * 5);
    assert_eq!(world.version(2, ItemKind::Revocations), 1);
    let heard = world.refused(1, ItemRefusal::Distrusted);
    let item = world
        .domain
        .verify(ItemKind::States, &world.domain.states(1), world.now);
    let entry = entry_of(&item, &world.domain.states(1));
    world.hand(1, 0, &Message::Announce(vec![entry]));
    assert_eq!(world.refused(1, ItemRefusal::Distrusted), heard + 1);
}

#[test]
fn two_lists_under_one_version_are_reported_and_the_first_stays() {
    let mut world = World::new(3, 0, 8);
    let (one, two) = (
        world.domain.revocations(5, 1),
        world.domain.revocations(5, 2),
    );
    world.give(0, ItemKind::Revocations, &one);
    world.give(2, ItemKind::Revocations, &two);
    world.link(0, 1);
    world.run(SECOND * 5);
    world.link(1, 2);
    world.give(2, ItemKind::States, &world.domain.states(1));
    let item = world.domain.verify(ItemKind::Revocations, &two, world.now);
    world.hand(1, 2, &Message::Announce(vec![entry_of(&item, &two)]));
    world.run(SECOND * 5);
    assert_eq!(world.nodes[1].forked, [item.key()]);
    let held = world.nodes[1].items.bytes(item.key());
    assert_eq!(held, Some(one.as_slice()));
    assert_eq!(world.nodes[1].arrived.len(), 2, "the first, and the states");
}

#[test]
fn a_peer_that_announces_and_withholds_delays_nobody_else() {
    let mut world = World::new(12, 0, 9);
    for other in 1..12 {
        world.link(0, other);
    }
    world.run(SECOND);
    // Ten of eleven peers lie about a list that nobody has.
    for liar in 1..11 {
        let entry = Entry {
            key: ItemKey::of_domain(ItemKind::Revocations).unwrap(),
            version: revision(1000),
            hash: Digest([u8::try_from(liar).unwrap(); 32]),
            size: 4 << 20,
        };
        world.dead.insert(liar);
        world.hand(0, liar, &Message::Announce(vec![entry]));
    }
    let under_way = world.nodes[0].items.sources.values();
    assert!(under_way.filter(|s| s.pull.is_some()).count() <= PULLS_MAX);
    let list = world.domain.revocations(1, 1);
    world.give(11, ItemKind::Revocations, &list);
    world.run(SECOND * 6);
    assert_eq!(world.version(0, ItemKind::Revocations), 1);
    assert!(world.refused(0, ItemRefusal::Withheld) > 0);
}

#[test]
fn a_flood_of_announcements_is_bounded_and_counted() {
    let mut world = World::new(2, 2, 10);
    world.link(0, 1);
    let mut random = Random::new([3; 32]);
    for _ in 0..2000 {
        let id = DeviceId(*random.bytes().first_chunk().unwrap());
        let entry = Entry {
            key: ItemKey::of_device(id),
            version: revision(1),
            hash: Digest(*random.bytes()),
            size: 100,
        };
        world.hand(0, 1, &Message::Announce(vec![entry]));
    }
    let node = &world.nodes[0].items;
    let source = &node.sources[&device(1)];
    assert!(source.offers().count() <= OFFERS_MAX);
    assert!(world.refused(0, ItemRefusal::Budget) >= 1700);
    assert!(world.refused(0, ItemRefusal::Full) > 0);
    let too_large = Entry {
        key: ItemKey::of_domain(ItemKind::Beacon).unwrap(),
        version: revision(1),
        hash: Digest([1; 32]),
        size: 100_000,
    };
    world.run(SECOND * 30);
    world.hand(0, 1, &Message::Announce(vec![too_large]));
    assert_eq!(world.refused(0, ItemRefusal::Size), 1);
    let piece = Message::Piece {
        hash: Digest([1; 32]),
        offset: 0,
        bytes: &[1; 100],
    };
    world.hand(0, 1, &piece);
    assert_eq!(world.refused(0, ItemRefusal::Unasked), 1);
}

#[test]
fn endpoint_records_stay_among_relays() {
    let mut world = World::new(8, 3, 11);
    world.plant();
    world.run(SECOND * 5);
    let (own, bytes) = (device(5), world.domain.record(device(5), 55, 10));
    world.give(5, ItemKind::Endpoints, &bytes);
    world.run(SECOND * 10);
    for n in 0..8 {
        assert_eq!(world.has_record(n, own), n < 3 || n == 5, "node {n}");
    }
    // A device that asks for everything gets nothing of others.
    let all = Message::Digest {
        marks: vec![],
        range: ([0; 16], [0xff; 16]),
    };
    let sent = world.sent;
    world.hand(6 % 3, 6, &all);
    let want = Mark {
        key: ItemKey::of_device(own),
        version: Revision::default(),
        tag: [0; 8],
    };
    world.hand(6 % 3, 6, &Message::Want(vec![want]));
    let pull = Message::Pull {
        hash: Digest::of(&bytes),
        offset: 0,
        pieces: 16,
    };
    world.hand(6 % 3, 6, &pull);
    world.run(SECOND * 2);
    assert!(world.sent > sent, "the pull is answered with: gone");
    assert_eq!(world.refused(6, ItemRefusal::Withheld), 1);
    assert!(!world.has_record(6, own));
}

#[test]
fn records_that_relays_missed_come_page_by_page() {
    let mut world = World::new(2, 2, 12);
    for n in 1..=60u8 {
        let bytes = world.domain.record(device(1000 + u16::from(n)), n, 10);
        world.give(0, ItemKind::Endpoints, &bytes);
    }
    world.link(0, 1);
    world.run(DIGEST_EVERY * 8);
    let held = world.nodes[1].items.status();
    assert_eq!(held.len(), 60);
}

#[test]
fn a_device_that_is_revoked_has_no_endpoint_record() {
    let mut world = World::new(2, 2, 13);
    let id = DeviceId([1; 16]);
    let bytes = world.domain.record(id, 44, 10);
    let list = world.domain.revocations(1, 3);
    let list = world.domain.trust.verify_revocations(&list).unwrap();
    world.give(0, ItemKind::Endpoints, &bytes);
    world.domain.standing.adopt_revocations(list).unwrap();
    world.link(0, 1);
    world.run(DIGEST_EVERY * 2);
    assert!(!world.has_record(1, id));
    assert!(world.refused(1, ItemRefusal::UnknownSigner) > 0);
}

#[test]
fn beacons_of_a_busy_issuer_do_not_flood() {
    let mut world = World::new(20, 2, 14);
    world.plant();
    world.run(SECOND * 10);
    for secs in 0..60 {
        let beacon = world.domain.beacon(secs * 10);
        world.give(4, ItemKind::Beacon, &beacon);
        world.run(SECOND * 10);
    }
    let arrived = world.nodes[15].arrived.len();
    assert!((2..=3).contains(&arrived), "{arrived} in ten minutes");
}

#[test]
fn a_message_from_who_has_no_session_is_refused() {
    let mut world = World::new(2, 0, 15);
    world.hand(0, 1, &Message::Want(vec![]));
    assert_eq!(world.refused(0, ItemRefusal::Stranger), 1);
    let view = world.domain.view(world.now);
    world.nodes[0]
        .items
        .handle_session(device(1), false, view.now.mono);
    world.nodes[0]
        .items
        .handle_message(device(1), &[1, 2, 3], view);
    assert_eq!(world.refused(0, ItemRefusal::Malformed), 1);
}
