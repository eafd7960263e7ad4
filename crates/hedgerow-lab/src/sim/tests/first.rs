//! How many round trips the first packet takes, and what strict peers go through in hours: on links whose
//! delay is known, and in time that is simulated, so exact.

use super::super::figures::Stream;
use super::super::judge::STREAMS_FROM;
use super::super::packet::Packet;
use super::super::plant::Kind;
use super::*;

/// A relay at the office, and two that never met at two sites.
fn strangers(is_strict: bool) -> World {
    let collector = |site| Member {
        is_strict,
        ..Member::new(Kind::Collector, site)
    };
    let members = vec![Member::new(Kind::Relay, 0), collector(1), collector(2)];
    let mut world = quiet(plant(3, members), Vec::new(), None);
    world.streams = vec![Stream::new(1, 2)];
    // Everyone has told the controller where it is, and has its relay.
    pass(&mut world, Duration::from_secs(45));
    world
}

fn round_trip(world: &World, a: usize, b: usize) -> Duration {
    world.network.latency(a, b) * 2
}

/// Sends one packet; returns when it came. `count` tells it from those before.
fn packet_takes(world: &mut World, count: u32) -> Duration {
    let sent = world.now;
    world.streams[0].heard = None;
    world
        .say(Packet {
            from: 1,
            to: 2,
            origin: 1,
            is_answer: false,
            serial: STREAMS_FROM,
            count,
        })
        .unwrap();
    let end = sent + Duration::from_secs(10);
    while world.streams[0].heard.is_none() {
        assert!(world.next(end).unwrap(), "nothing came");
    }
    assert_eq!(world.outcome.findings, Vec::<String>::new());
    world.streams[0].heard.unwrap().since(sent)
}

/// Introduction and handshake are a round trip each; the packet then takes half of one.
fn introduced_in(world: &World) -> Duration {
    round_trip(world, 1, 2) * 5 / 2
}

#[test]
fn a_first_packet_takes_one_round_trip_to_the_controller_and_two_to_the_peer() {
    let mut world = strangers(false);
    let took = packet_takes(&mut world, 1);
    assert_eq!(took, RESOLVED_IN + introduced_in(&world));
    let next = packet_takes(&mut world, 2);
    assert_eq!(next, round_trip(&world, 1, 2) / 2, "a session lives");
}

#[test]
fn without_a_controller_it_takes_one_round_trip_to_a_relay_instead() {
    let mut world = strangers(false);
    world.controller.is_up = false;
    let took = packet_takes(&mut world, 1);
    let asked = round_trip(&world, 0, 1);
    assert_eq!(took, asked + introduced_in(&world));
}

#[test]
fn to_whom_the_disk_names_nobody_is_asked() {
    let mut world = strangers(false);
    packet_takes(&mut world, 1);
    // The session ends, the peer is forgotten, the record stays.
    pass(&mut world, Duration::from_secs(1500));
    assert!(world.nodes[1].status().unwrap().peers.len() <= 1);
    world.controller.is_up = false;
    let took = packet_takes(&mut world, 2);
    assert_eq!(took, introduced_in(&world));
}

#[test]
fn between_strict_devices_the_exchange_and_a_handshake_under_its_key_come_before() {
    let mut world = strangers(true);
    let took = packet_takes(&mut world, 1);
    let round = round_trip(&world, 1, 2);
    assert_eq!(took, RESOLVED_IN + introduced_in(&world) + round * 3);
}

#[test]
fn strict_peers_renew_their_key_every_hour_and_lose_no_packet() {
    let mut world = strangers(true);
    packet_takes(&mut world, 1);
    for count in 2..=300 {
        pass(&mut world, Duration::from_secs(30));
        let took = packet_takes(&mut world, count);
        assert_eq!(took, round_trip(&world, 1, 2) / 2, "at {:?}", world.now);
    }
    let agreed = |here: usize, there: usize| {
        let id = world.nodes[there].device.id;
        world.nodes[here].agreed[&id].clone()
    };
    let (one, other) = (agreed(1, 2), agreed(2, 1));
    assert!(one.len() >= 3, "{} keys in two and a half hours", one.len());
    assert_eq!(one, other, "both use the same keys");
    let distinct: BTreeSet<[u8; 32]> = one.iter().copied().collect();
    assert_eq!(distinct.len(), one.len(), "each time another");
}
