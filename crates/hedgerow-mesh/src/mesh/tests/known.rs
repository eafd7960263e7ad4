//! What a device tells others about a third.

use super::super::*;
use super::world::*;
use crate::items::ItemKind;
use crate::lookup::Found;

fn known(world: &mut World, query: PeerQuery) -> Option<Found> {
    let mut found = None;
    world.with(0, |mesh, view| found = mesh.known_as(query, view));
    found
}

#[test]
fn a_lookup_is_answered_with_the_devices_freshest_signed_word() {
    let mut world = World::new(1, 1);
    let absent = Device::new(&world.domain, 9, &mut world.rng);
    let query = PeerQuery::Device(absent.body.id);
    let relay = DeviceId([7; 16]);
    let at = |text: &str| Underlay(text.parse().unwrap());
    assert_eq!(known(&mut world, query), None);
    // What comes late is not what was said last.
    for (sequence, endpoint) in [
        (NOON - 60, "192.0.2.92:7117"),
        (NOON - 120, "192.0.2.91:7117"),
    ] {
        let record = absent.record(sequence, endpoint, relay);
        world.with(0, |mesh, view| {
            mesh.handle_item(ItemKind::Endpoints, &record, view)
                .unwrap();
        });
    }
    let found = known(&mut world, query).unwrap();
    assert_eq!(found.endpoints, [at("192.0.2.92:7117")]);
    assert_eq!(
        (found.relays, found.ticket),
        (vec![relay], absent.ticket.clone())
    );
    // What is remembered comes after what the device says.
    world.with(0, |mesh, _| {
        mesh.handle_memory(Memory {
            device: absent.body.id,
            addresses: absent.body.addresses,
            introduction_key: absent.body.introduction_key,
            ticket: absent.ticket.clone(),
            endpoints: vec![at("192.0.2.90:7117"), at("192.0.2.92:7117")],
            heard_ms: 0,
            live: false,
            relays: Some(vec![DeviceId([6; 16])]),
        });
    });
    let both = vec![at("192.0.2.92:7117"), at("192.0.2.90:7117")];
    let v6 = Overlay(absent.body.addresses.v6.into());
    for query in [query, PeerQuery::Address(v6)] {
        let found = known(&mut world, query).unwrap();
        assert_eq!((&found.endpoints, found.relays), (&both, vec![relay]));
    }
    // A record that has ended says nothing any more.
    world.now = world.now + Duration::from_secs(2 * 3600);
    let found = known(&mut world, query).unwrap();
    assert_eq!(found.relays, [DeviceId([6; 16])]);
    assert_eq!(found.endpoints[0], at("192.0.2.90:7117"));
}

#[test]
fn nobody_is_told_an_address_on_this_machine() {
    let mut world = World::new(2, 2);
    let device = world.id(1);
    world.want(0, 1);
    world.run(Duration::from_secs(1));
    let link = Path::direct(Underlay("127.71.0.1:4000".parse().unwrap()));
    world.with(0, |mesh, view| {
        mesh.handle_session(device, Session::Established(link), view);
    });
    let found = known(&mut world, PeerQuery::Device(device)).unwrap();
    assert!(
        found.endpoints.iter().all(|e| !e.is_loopback()),
        "{found:?}"
    );
    let remembered = &world.nodes[0].disk[&device].endpoints;
    assert!(
        remembered.iter().all(|e| !e.is_loopback()),
        "{remembered:?}"
    );
}
