use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::message;
use hedgerow_model::path::RelaySession;

use super::*;

fn id(number: u8) -> DeviceId {
    DeviceId([number; 16])
}

fn at(number: u8) -> Underlay {
    Underlay(format!("192.0.2.{number}:7117").parse().unwrap())
}

struct Node {
    server: Server,
    client: Client,
    /// What its tunnel passes on.
    table: BTreeMap<RelaySession, (DeviceId, (DeviceId, RelaySession))>,
    opened: Vec<(DeviceId, hedgerow_model::path::Path)>,
    closed: Vec<DeviceId>,
    home: Vec<DeviceId>,
    asked: BTreeMap<DeviceId, usize>,
}

/// Relays have numbers from 100 on; all tunnels that are asked for come about.
struct World {
    now: Mono,
    nodes: BTreeMap<DeviceId, Node>,
    dead: BTreeSet<DeviceId>,
    says: Vec<(DeviceId, DeviceId, Vec<u8>)>,
}

fn is_relay(device: DeviceId) -> bool {
    device.0[0] >= 100
}

impl World {
    fn new(devices: &[u8]) -> Self {
        let mut world = Self {
            now: Mono::ZERO + Duration::from_secs(10),
            nodes: BTreeMap::new(),
            dead: BTreeSet::new(),
            says: vec![],
        };
        for number in devices {
            let mut server = Server::new([*number; 32]);
            server.handle_role(*number >= 100);
            let node = Node {
                server,
                client: Client::new([*number + 1; 32]),
                table: BTreeMap::new(),
                opened: vec![],
                closed: vec![],
                home: vec![],
                asked: BTreeMap::new(),
            };
            world.nodes.insert(id(*number), node);
        }
        world
    }

    fn node(&mut self, number: u8) -> &mut Node {
        self.nodes.get_mut(&id(number)).unwrap()
    }

    /// Tells a device of a relay.
    fn know(&mut self, device: u8, relay: u8) {
        let now = self.now;
        self.node(device).client.handle_relay(id(relay), true, now);
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            let devices: Vec<DeviceId> = self.nodes.keys().copied().collect();
            for device in devices {
                self.drain(device);
            }
            for (from, to, bytes) in std::mem::take(&mut self.says) {
                self.arrive(from, to, &bytes);
            }
        }
    }

    fn drain(&mut self, device: DeviceId) {
        let now = self.now;
        loop {
            let node = self.nodes.get_mut(&device).unwrap();
            if let Some(output) = node.client.poll() {
                match output {
                    ClientOutput::Ask { relay } => {
                        *node.asked.entry(relay).or_default() += 1;
                        if !self.dead.contains(&relay) {
                            node.client.handle_tunnel(relay, at(relay.0[0]), now);
                        }
                    }
                    ClientOutput::Home { relays } => node.home = relays,
                    ClientOutput::Say { relay, bytes } => self.says.push((device, relay, bytes)),
                    ClientOutput::Opened { device, path } => node.opened.push((device, path)),
                    ClientOutput::Closed { device, .. } => node.closed.push(device),
                    ClientOutput::Suspect { .. } | ClientOutput::Moved { .. } => {}
                }
            } else if let Some(output) = node.server.poll() {
                match output {
                    ServerOutput::Say { device: to, bytes } => self.says.push((device, to, bytes)),
                    ServerOutput::Set { session, from, to } => {
                        node.table.insert(session, (from, to));
                    }
                    ServerOutput::Forget { session } => {
                        node.table.remove(&session);
                    }
                }
            } else {
                return;
            }
        }
    }

    fn arrive(&mut self, from: DeviceId, to: DeviceId, bytes: &[u8]) {
        if self.dead.contains(&from) || self.dead.contains(&to) {
            return;
        }
        let (_, content) = message::decode(bytes).unwrap();
        let message = RelayMessage::decode(content).unwrap();
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&to) else {
            return;
        };
        deliver(
            &mut node.server,
            &mut node.client,
            (from, is_relay(from)),
            message,
            now,
        );
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let due = self
                .nodes
                .values()
                .map(|n| n.client.deadline().min(n.server.deadline()));
            let Some(next) = due.min().filter(|next| *next <= end) else {
                break;
            };
            let now = self.now.max(next);
            self.now = now;
            for node in self.nodes.values_mut() {
                node.client.handle_timeout(now);
                node.server.handle_timeout(now);
            }
            self.settle();
        }
        self.now = end;
    }

    /// Follows a frame from a device's session through the relays; returns who gets it, as what.
    fn follow(
        &self,
        device: u8,
        path: hedgerow_model::path::Path,
    ) -> Option<(DeviceId, RelaySession)> {
        let mut sender = id(device);
        let mut session = path.relay.unwrap();
        let mut relay = self.nodes.keys().copied().find(|d| at(d.0[0]) == path.to)?;
        for _ in 0..4 {
            let (from, (to, number)) = self.nodes.get(&relay)?.table.get(&session)?;
            if *from != sender {
                return None;
            }
            if !is_relay(*to) {
                return Some((*to, *number));
            }
            (sender, relay, session) = (relay, *to, *number);
        }
        None
    }

    fn want(&mut self, from: u8, to: u8, hints: &[u8]) {
        let hints: Vec<DeviceId> = hints.iter().map(|n| id(*n)).collect();
        let now = self.now;
        self.node(from).client.handle_want(id(to), &hints, now);
        self.settle();
    }
}

#[test]
fn two_devices_at_one_relay_are_joined_both_ways() {
    let mut world = World::new(&[1, 2, 100]);
    world.know(1, 100);
    world.know(2, 100);
    world.want(1, 2, &[]);
    let (to, path) = world.node(1).opened[0];
    assert_eq!(to, id(2));
    let (from, back) = world.node(2).opened[0];
    assert_eq!(from, id(1));
    assert_eq!(world.follow(1, path), Some((id(2), back.relay.unwrap())));
    assert_eq!(world.follow(2, back), Some((id(1), path.relay.unwrap())));
    // Asking again gives the same session.
    world.want(1, 2, &[]);
    assert_eq!(world.node(1).opened.last().unwrap().1, path);
    assert_eq!(world.node(100).server.status().sessions, 1);
}

#[test]
fn two_who_want_each_other_share_one_session() {
    let mut world = World::new(&[1, 2, 100]);
    world.know(1, 100);
    world.know(2, 100);
    world.want(1, 2, &[]);
    world.want(2, 1, &[]);
    assert_eq!(world.node(100).server.status().sessions, 1);
    let (_, path) = world.node(1).opened[0];
    let (from, back) = *world.node(2).opened.last().unwrap();
    assert_eq!(from, id(1));
    assert_eq!(world.follow(2, back), Some((id(1), path.relay.unwrap())));
    assert_eq!(world.node(2).client.paths_to(id(1)), [back]);
}

#[test]
fn nobody_is_joined_who_did_not_register() {
    let mut world = World::new(&[1, 2, 100]);
    world.know(1, 100);
    world.want(1, 2, &[]);
    assert_eq!(world.node(1).opened, []);
    let refused = world.node(1).client.status().refused;
    assert_eq!(refused[&Verdict::NotRegistered], 1);
    assert!(world.node(100).table.is_empty());
}

#[test]
fn a_session_works_only_from_the_device_it_was_given_to() {
    let mut world = World::new(&[1, 2, 3, 100]);
    for device in [1, 2, 3] {
        world.know(device, 100);
    }
    world.want(1, 2, &[]);
    let (_, path) = world.node(1).opened[0];
    assert_eq!(world.follow(3, path), None, "a stolen number");
    // Nor can another close or keep it.
    let session = path.relay.unwrap();
    for message in [
        RelayMessage::Close { session },
        RelayMessage::Keep {
            sessions: vec![session],
        },
    ] {
        let now = world.now;
        world
            .node(100)
            .server
            .handle_message(id(3), false, message, now);
        world.settle();
    }
    assert!(world.follow(1, path).is_some());
}

#[test]
fn two_relays_join_devices_of_two_sites_and_no_more() {
    let mut world = World::new(&[1, 2, 100, 101, 102]);
    world.know(1, 100);
    world.know(2, 101);
    world.want(1, 2, &[101]);
    let (_, path) = world.node(1).opened[0];
    let (to, number) = world.follow(1, path).unwrap();
    assert_eq!(to, id(2));
    let back = world.node(2).opened[0].1;
    assert_eq!(back.relay, Some(number));
    assert_eq!(world.follow(2, back), Some((id(1), path.relay.unwrap())));
    // A third relay in the row is refused.
    let connect = Connect {
        number: 9,
        destination: id(2),
        through: Some(id(101)),
        origin: Some(id(1)),
    };
    let now = world.now;
    let server = &mut world.node(102).server;
    server.handle_message(id(100), true, RelayMessage::Connect(connect), now);
    assert_eq!(server.status().verdicts[&Verdict::TooFar], 1);
    // Both hold while they are used, over two hops too, and end when they are not.
    world.run(SESSION_FOR * 3);
    assert!(world.follow(1, path).is_some());
    let _client = world.nodes.remove(&id(1));
    let _client = world.nodes.remove(&id(2));
    world.run(SESSION_FOR * 3);
    for relay in [100, 101] {
        assert!(world.node(relay).table.is_empty());
        assert_eq!(world.node(relay).server.status().sessions, 0);
        assert_eq!(world.node(relay).server.status().registered, 0);
    }
}

#[test]
fn each_try_names_another_relay_of_the_destination() {
    let mut world = World::new(&[1, 2, 100, 101, 102]);
    world.know(1, 100);
    world.know(2, 102);
    world.dead.insert(id(101));
    world.want(1, 2, &[101, 102]);
    assert_eq!(world.node(1).opened, [], "the first one does not answer");
    world.run(Duration::from_secs(1));
    let (_, path) = world.node(1).opened[0];
    assert_eq!(world.follow(1, path).unwrap().0, id(2));
}

#[test]
fn a_second_relay_that_died_is_gone_around() {
    let mut world = World::new(&[1, 2, 100, 101, 102]);
    world.know(1, 100);
    world.know(2, 101);
    world.know(2, 102);
    world.want(1, 2, &[101, 102]);
    let (_, path) = world.node(1).opened[0];
    // Nobody tells the first relay that the second is dead.
    world.dead.insert(id(101));
    world.node(1).client.handle_stuck(id(2));
    world.want(1, 2, &[]);
    world.run(Duration::from_secs(1));
    let (_, other) = *world.node(1).opened.last().unwrap();
    assert_ne!(other, path);
    assert_eq!(world.follow(1, other).unwrap().0, id(2));
    // The one that leads nowhere ends, the other stays.
    world.run(SESSION_FOR * 2);
    assert_eq!(world.node(1).client.paths_to(id(2)), [other]);
    assert!(world.follow(1, other).is_some());
}

#[test]
fn who_tries_two_relays_in_turn_is_joined_by_either_each_time() {
    let mut world = World::new(&[1, 2, 100, 101, 102]);
    world.know(1, 100);
    for relay in [101, 102] {
        world.know(2, relay);
    }
    for (number, through) in [101, 102, 101, 102].into_iter().enumerate() {
        let connect = Connect {
            number: u32::try_from(number).unwrap() + 1_000_000,
            destination: id(2),
            through: Some(id(through)),
            origin: None,
        };
        let now = world.now;
        let server = &mut world.node(100).server;
        server.handle_message(id(1), false, RelayMessage::Connect(connect), now);
        world.settle();
    }
    let status = world.node(100).server.status();
    assert_eq!(status.verdicts, BTreeMap::from([(Verdict::Done, 4)]));
    assert_eq!(status.sessions, 2);
    world.run(SESSION_FOR * 2);
    let status = world.node(100).server.status();
    assert_eq!(status.sessions, 1, "only the last one is renewed");
}

#[test]
fn a_wish_waits_for_the_tunnel_to_the_other_relay() {
    let mut world = World::new(&[1, 2, 100, 101]);
    world.know(1, 100);
    world.know(2, 101);
    // What is said without a session is lost.
    world.dead.insert(id(101));
    world.want(1, 2, &[101]);
    world.dead.clear();
    assert_eq!(world.node(1).opened, []);
    world.node(100).server.handle_relay_live(id(101));
    world.settle();
    let (_, path) = world.node(1).opened[0];
    assert_eq!(world.follow(1, path).unwrap().0, id(2));
}

#[test]
fn a_dead_relay_is_replaced_and_left_alone_for_a_while() {
    let mut world = World::new(&[1, 100, 101, 102]);
    for relay in [100, 101, 102] {
        world.know(1, relay);
    }
    assert_eq!(world.node(1).home.len(), HOME_RELAYS);
    let first = world.node(1).home[0];
    world.dead.insert(first);
    let now = world.now;
    world.node(1).client.handle_tunnel_lost(first, now);
    world.settle();
    let home = world.node(1).home.clone();
    assert!(home.len() == HOME_RELAYS && !home.contains(&first));
    let registered = |w: &World, relay: &DeviceId| w.nodes[relay].server.is_registered(id(1));
    assert!(home.iter().all(|relay| registered(&world, relay)));
}

#[test]
fn a_quarantined_relay_is_left_at_once() {
    let mut world = World::new(&[1, 2, 100, 101]);
    for device in [1, 2] {
        world.know(device, 100);
        world.know(device, 101);
    }
    world.want(1, 2, &[]);
    assert_eq!(world.node(1).client.paths_to(id(2)).len(), 2);
    let now = world.now;
    world.node(1).client.handle_relay_forgotten(id(100), now);
    world.settle();
    assert_eq!(world.node(1).home, [id(101)]);
    assert_eq!(world.node(1).closed, [id(2)]);
    assert_eq!(world.node(1).client.paths_to(id(2)).len(), 1);
}

#[test]
fn a_device_that_is_gone_loses_its_sessions_at_the_relay() {
    let mut world = World::new(&[1, 2, 100]);
    world.know(1, 100);
    world.know(2, 100);
    world.want(1, 2, &[]);
    world.node(100).server.handle_gone(id(2));
    world.settle();
    assert!(world.node(100).table.is_empty());
    assert_eq!(world.node(1).closed, [id(2)]);
    world.want(1, 2, &[]);
    assert!(world.node(100).table.is_empty(), "not registered any more");
}

#[test]
fn one_device_cannot_fill_the_relay() {
    let mut world = World::new(&[1, 100]);
    world.know(1, 100);
    let mut now = world.now;
    let server = &mut world.node(100).server;
    for n in 0..3000u32 {
        now = now + Duration::from_millis(40);
        let [a, b, c, d] = n.to_be_bytes();
        let mut other = [200; 16];
        (other[1], other[2], other[3], other[4]) = (a, b, c, d);
        let open = RelayMessage::Open {
            number: 1,
            sessions: vec![],
        };
        server.handle_message(DeviceId(other), false, open, now);
        let connect = Connect {
            number: n,
            destination: DeviceId(other),
            through: None,
            origin: None,
        };
        server.handle_message(id(1), false, RelayMessage::Connect(connect), now);
        while server.poll().is_some() {}
        server.handle_timeout(now);
    }
    assert!(server.status().sessions <= SIDES_PER_DEVICE_MAX);
    assert!(server.status().verdicts[&Verdict::Full] > 1000);
}

#[test]
fn a_flood_of_wishes_is_bounded() {
    let mut world = World::new(&[1, 100]);
    world.know(1, 100);
    let now = world.now;
    let server = &mut world.node(100).server;
    for n in 0..10_000 {
        let connect = Connect {
            number: n,
            destination: id(7),
            through: Some(id(101)),
            origin: None,
        };
        server.handle_message(id(1), false, RelayMessage::Connect(connect), now);
    }
    let mut said = 0;
    while server.poll().is_some() {
        said += 1;
    }
    assert!(said <= 2 * 500, "{said} messages");
    assert!(server.status().dropped >= 9_000);
}

#[test]
fn a_device_that_is_no_relay_joins_nobody() {
    let mut world = World::new(&[1, 2]);
    let now = world.now;
    let connect = Connect {
        number: 1,
        destination: id(9),
        through: None,
        origin: None,
    };
    let server = &mut world.node(2).server;
    let open = RelayMessage::Open {
        number: 1,
        sessions: vec![],
    };
    server.handle_message(id(1), false, open, now);
    server.handle_message(id(1), false, RelayMessage::Connect(connect), now);
    assert_eq!(server.status().registered, 0);
    assert_eq!(server.status().verdicts[&Verdict::NoRelay], 1);
}

#[test]
fn a_relay_never_reached_is_seldom_asked_while_another_serves_and_soon_when_none_does() {
    let mut world = World::new(&[1, 100, 101]);
    world.dead.insert(id(101));
    world.know(1, 100);
    world.know(1, 101);
    let hour = Duration::from_secs(3600);
    world.run(6 * hour);
    let asked = world.node(1).asked[&id(101)];
    assert!((6..=12).contains(&asked), "{asked} times");
    world.dead = BTreeSet::from([id(100)]);
    let now = world.now;
    world.node(1).client.handle_tunnel_lost(id(100), now);
    world.run(ASK_WITHIN);
    assert_eq!(world.node(1).home, [id(101)]);
    // It was met: its death is no reason to leave it for an hour.
    world.dead = BTreeSet::from([id(101)]);
    let now = world.now;
    world.node(1).client.handle_tunnel_lost(id(101), now);
    world.run(2 * hour);
    assert_eq!(world.node(1).home, [id(100)]);
    world.dead.clear();
    world.run(ASK_AGAIN_MAX * 2);
    assert_eq!(world.node(1).home.len(), 2);
}

#[test]
fn a_relay_that_does_not_answer_holds_up_no_other() {
    let mut world = World::new(&[1, 100, 101, 102, 103]);
    world.dead = BTreeSet::from([id(101), id(102)]);
    for relay in [100, 101, 102] {
        world.know(1, relay);
    }
    assert_eq!(world.node(1).home, [id(100)]);
    for relay in [101, 102] {
        world.know(1, 103);
        let now = world.now;
        let client = &mut world.node(1).client;
        assert!(client.is_spare(id(relay)));
        client.handle_unanswered(id(relay), now);
        world.settle();
    }
    assert_eq!(world.node(1).home, [id(100), id(103)], "at the same moment");
    assert!(!world.node(1).client.is_spare(id(103)));
    let now = world.now;
    world.node(1).client.handle_unanswered(id(103), now);
    assert_eq!(world.node(1).home.len(), 2, "one with a tunnel stays");
}

#[test]
fn a_relay_that_restarted_is_registered_with_again() {
    let mut world = World::new(&[1, 2, 100]);
    world.know(1, 100);
    world.know(2, 100);
    world.want(1, 2, &[]);
    let mut server = Server::new([77; 32]);
    server.handle_role(true);
    world.node(100).server = server;
    world.node(100).table.clear();
    world.run(OPEN_EVERY * 2);
    assert!(world.nodes[&id(100)].server.is_registered(id(1)));
    assert_eq!(world.node(1).closed, [id(2)], "the former session is none");
}

#[test]
fn a_relay_that_restarted_joins_again_whom_it_had_joined() {
    let mut world = World::new(&[1, 2, 100]);
    world.know(1, 100);
    world.know(2, 100);
    let now = world.now;
    world.node(1).client.handle_want(id(2), &[], now);
    world.settle();
    let before = world.node(1).opened.last().unwrap().1;
    assert!(world.follow(1, before).is_some());
    // It lost everything; its guests have sessions with it again before they missed it.
    let relay = world.node(100);
    (relay.server, relay.table) = (Server::new([7; 32]), BTreeMap::new());
    relay.server.handle_role(true);
    for device in [2, 1] {
        world
            .node(device)
            .client
            .handle_tunnel(id(100), at(100), now);
        world.settle();
    }
    let after = world.node(1).opened.last().unwrap().1;
    assert_ne!(after, before);
    assert_eq!(
        world.follow(1, after).map(|(device, _)| device),
        Some(id(2))
    );
}

#[test]
fn messages_survive_the_wire_and_keep_their_bounds() {
    let session = RelaySession(u32::MAX);
    let many = vec![session; SESSIONS_PER_MESSAGE_MAX];
    let connect = Connect {
        number: 1,
        destination: id(1),
        through: Some(id(2)),
        origin: None,
    };
    for message in [
        RelayMessage::Open {
            number: u32::MAX,
            sessions: many.clone(),
        },
        RelayMessage::Connect(connect),
        RelayMessage::Connected {
            number: 3,
            verdict: Verdict::Done,
            session: Some(session),
        },
        RelayMessage::Incoming {
            session,
            from: id(3),
        },
        RelayMessage::Opened {
            number: 1,
            verdict: Verdict::Full,
        },
        RelayMessage::Close { session },
        RelayMessage::Keep { sessions: many },
    ] {
        let bytes = message.encode();
        assert!(bytes.len() <= message::MESSAGE_BYTES_MAX);
        assert_eq!(RelayMessage::decode(&bytes).unwrap(), message);
        for cut in 0..bytes.len() {
            assert!(RelayMessage::decode(&bytes[..cut]).is_err());
        }
    }
    let keep = RelayMessage::Keep {
        sessions: vec![session; SESSIONS_PER_MESSAGE_MAX + 1],
    };
    assert!(RelayMessage::decode(&keep.encode()).is_err());
}
