use hedgerow_model::resource::root_hash;
use hedgerow_model::statement::PeerQuery;

use super::*;
use crate::controller::{SILENCE_MAX, VERDICT_WITHIN};
use crate::message::{Command, HandUp, Renew, Renewed, ResolvedPeer, ToAgent, Update};
use crate::{SessionError, agent::NotSent};

#[test]
fn a_connection_lost_at_any_step_costs_nothing_but_time() {
    let mut budget = 0;
    loop {
        let mut device = Device::default();
        let first = Wire::connect(&mut device, (rev(4), full_set(4)), budget).run(&mut device);
        let mut second = Wire::connect(&mut device, (rev(5), full_set(5)), budget);
        let whole = second.run(&mut device);
        let mut last = Wire::connect(&mut device, (rev(5), full_set(5)), usize::MAX);
        assert!(last.run(&mut device));
        assert_eq!(device.holdings.revision, Some(rev(5)), "budget {budget}");
        for o in full_set(5) {
            assert_eq!(device.content[&o.head().kind], o.content());
        }
        let (chain, heads) = last.controller.holds();
        assert_eq!(chain, Some(rev(5)));
        assert_eq!(root_hash(heads), root_hash(&device.holdings.heads));
        if first && whole {
            assert!(second.verified(rev(5)));
            return;
        }
        budget += 1;
    }
}

#[test]
fn a_new_revision_is_sent_also_when_nothing_changes_for_this_agent() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    let count = device.seen.len();
    wire.controller.handle_wanted(rev(5), full_set(4));
    assert!(wire.run(&mut device));
    assert!(wire.verified(rev(5)));
    let [agent::Output::Apply(update)] = &device.seen[count..] else {
        panic!("{:?}", &device.seen[count..]);
    };
    assert!(update.set.is_empty() && update.remove.is_empty());
}

#[test]
fn a_slow_agent_gets_the_last_of_many_changes_once() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(1), full_set(1)), usize::MAX);
    assert!(wire.run(&mut device));
    let count = device.seen.len();
    for n in 2..1000 {
        wire.controller.handle_wanted(rev(n), full_set(n));
    }
    assert!(wire.run(&mut device));
    assert_eq!(device.seen.len(), count + 1);
    assert_eq!(device.holdings.revision, Some(rev(999)));
}

#[test]
fn a_gap_is_repaired_with_what_is_missing_only() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    // The device's disk went back behind the session's back.
    let mut older = device.holdings.clone();
    older.revision = Some(rev(3));
    older.heads.retain(|h| h.kind != ResourceKind::Program);
    device.holdings = older.clone();
    wire.agent.handle_holdings(older);
    let count = device.seen.len();
    wire.controller.handle_wanted(rev(5), full_set(4));
    assert!(wire.run(&mut device));
    let [agent::Output::Apply(update)] = &device.seen[count..] else {
        panic!("{:?}", &device.seen[count..]);
    };
    assert_eq!(update.previous, Some(rev(3)));
    assert_eq!(update.set.len(), 1);
    assert_eq!(update.set[0].kind, ResourceKind::Program);
    assert!(wire.seen.contains(&controller::Output::Repaired));
    assert!(wire.verified(rev(5)));
}

#[test]
fn differing_roots_are_found_by_a_ping() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    device
        .holdings
        .heads
        .retain(|h| h.kind != ResourceKind::Names);
    wire.agent.handle_holdings(device.holdings.clone());
    wire.pass(agent::PING_EVERY);
    assert!(wire.run(&mut device));
    assert_eq!(device.holdings.heads.len(), ResourceKind::ALL.len());
}

#[test]
fn what_is_not_wanted_any_more_is_removed_by_name() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    let fewer = |o: &Arc<Offer>| o.head().kind != ResourceKind::Names;
    let rest = full_set(4).into_iter().filter(fewer).collect();
    wire.controller.handle_wanted(rev(5), rest);
    assert!(wire.run(&mut device));
    assert!(!device.content.contains_key(&ResourceKind::Names));
    assert!(device.holdings.marks.contains_key(&ResourceKind::Names));
}

/// An update as a hostile or restored controller might send it.
fn hostile(device: &mut Device, change: impl Fn(&mut Update)) -> (Vec<agent::Output>, Holdings) {
    let mut wire = Wire::connect(device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(device));
    let count = device.seen.len();
    let mut update = Update {
        revision: rev(5),
        previous: Some(rev(4)),
        partial: false,
        set: vec![offer(ResourceKind::States, 5, 10).to_resource()],
        remove: Vec::new(),
    };
    change(&mut update);
    let bytes = hedgerow_model::wire::encode(&ToAgent::Update(update));
    let frame = crate::frame::whole(crate::frame::Channel::Policy, &bytes).unwrap();
    wire.agent.handle_bytes(&frame, wire.now).unwrap();
    wire.drain_agent(device);
    (device.seen[count..].to_vec(), device.holdings.clone())
}

#[test]
fn an_older_revision_or_resource_is_refused_as_a_whole() {
    type Change = fn(&mut Update);
    let changes: [(&str, Change); 6] = [
        ("revision", |u| u.revision = rev(3)),
        ("timeline", |u| {
            u.revision = Revision {
                timeline: 0,
                number: 99,
            };
        }),
        ("resource", |u| {
            u.set.push(offer(ResourceKind::Program, 3, 9).to_resource());
        }),
        ("twice", |u| {
            let again = u.set[0].clone();
            u.set.push(again);
        }),
        ("set and removed", |u| {
            u.set[0].kind = ResourceKind::Names;
            u.remove = vec![ResourceKind::Names];
        }),
        ("trust removed", |u| {
            u.remove = vec![ResourceKind::Revocations]
        }),
    ];
    for (name, change) in changes {
        let mut device = Device::default();
        let (seen, after) = hostile(&mut device, change);
        assert!(
            matches!(seen.as_slice(), [agent::Output::Refused { .. }]),
            "{name}: {seen:?}"
        );
        assert_eq!(after.revision, Some(rev(4)), "{name}");
        assert_eq!(after.heads.len(), ResourceKind::ALL.len(), "{name}");
    }
}

#[test]
fn an_old_version_is_refused_even_after_its_successor_was_removed() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    let fewer = |o: &Arc<Offer>| o.head().kind != ResourceKind::Program;
    let rest: Vec<_> = full_set(4).into_iter().filter(fewer).collect();
    wire.controller.handle_wanted(rev(5), rest.clone());
    assert!(wire.run(&mut device));
    let mut older = rest;
    older.push(offer(ResourceKind::Program, 3, 9));
    wire.controller.handle_wanted(rev(6), older);
    assert!(wire.run(&mut device));
    assert!(!device.content.contains_key(&ResourceKind::Program));
    assert_eq!(device.holdings.revision, Some(rev(5)));
}

#[test]
fn a_refused_resource_is_not_sent_again_and_holds_up_no_revocation() {
    let mut device = Device::default();
    let bad = offer(ResourceKind::Program, 5, 20);
    device.refuses = Some(bad.content().to_vec());
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    let replace = |set: Vec<Arc<Offer>>, new: &Arc<Offer>| -> Vec<Arc<Offer>> {
        let others = set.into_iter().filter(|o| o.head().kind != new.head().kind);
        others.chain([new.clone()]).collect()
    };
    let wanted = replace(full_set(4), &bad);
    wire.controller.handle_wanted(rev(5), wanted.clone());
    assert!(wire.run(&mut device));
    assert_eq!(
        device.holdings.revision,
        Some(rev(4)),
        "nothing half-applied"
    );

    let count = device.seen.len();
    let revoked = offer(ResourceKind::Revocations, 6, 10);
    let wanted = replace(wanted, &revoked);
    wire.controller.handle_wanted(rev(6), wanted.clone());
    assert!(wire.run(&mut device));
    assert_eq!(
        device.content[&ResourceKind::Revocations],
        revoked.content()
    );
    assert_eq!(device.holdings.revision, Some(rev(4)));
    assert_eq!(device.seen.len(), count + 1, "one partial update");

    let good = offer(ResourceKind::Program, 7, 20);
    wire.controller
        .handle_wanted(rev(7), replace(wanted, &good));
    assert!(wire.run(&mut device));
    assert!(wire.verified(rev(7)));
}

#[test]
fn a_held_agent_gets_revocations_and_no_gifts() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    wire.controller.hold("key in use twice").unwrap();
    wire.controller.handle_wanted(rev(5), full_set(5));
    assert!(wire.run(&mut device));
    let old = full_set(4);
    let new = full_set(5);
    assert_eq!(device.content[&ResourceKind::States], new[2].content());
    assert_eq!(device.content[&ResourceKind::Program], old[4].content());
    wire.controller.release();
    assert!(wire.run(&mut device));
    assert!(wire.verified(rev(5)));
}

#[test]
fn a_missing_verdict_delays_the_next_update_but_not_for_ever() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    wire.controller.handle_wanted(rev(5), full_set(5));
    let update = wire.controller.next_frame(wire.now).unwrap();
    wire.agent.handle_bytes(&update, wire.now).unwrap();
    let received = wire.agent.next_frame().unwrap();
    wire.controller.handle_bytes(&received, wire.now).unwrap();
    wire.controller.handle_wanted(rev(6), full_set(6));
    assert_eq!(wire.controller.next_frame(wire.now), None);
    assert_eq!(
        wire.controller.deadline(),
        (wire.now + VERDICT_WITHIN, "verdict")
    );
    wire.now = wire.now + VERDICT_WITHIN;
    assert!(wire.controller.next_frame(wire.now).is_some());
}

#[test]
fn silence_ends_both_ends() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    wire.pass(agent::PING_EVERY);
    assert!(wire.agent.next_frame().is_some(), "a ping that gets lost");
    wire.pass(agent::PONG_WITHIN);
    assert!(matches!(wire.agent.poll(), Some(agent::Output::Closed(_))));
    wire.pass(SILENCE_MAX);
    assert!(wire.controller.is_closed());

    let mut dumb = ControllerSession::new(Mono::ZERO);
    dumb.handle_timeout(dumb.deadline().0);
    assert!(dumb.is_closed());
}

#[test]
fn a_living_connection_stays_open_for_a_day_in_few_bytes() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    let mut bytes = 0;
    while wire.now.0 < Duration::from_secs(86_400) {
        wire.now = wire.agent.deadline().0.min(wire.controller.deadline().0);
        wire.pass(Duration::ZERO);
        while let Some(f) = wire.agent.next_frame() {
            bytes += f.len();
            wire.controller.handle_bytes(&f, wire.now).unwrap();
        }
        while let Some(f) = wire.controller.next_frame(wire.now) {
            bytes += f.len();
            wire.agent.handle_bytes(&f, wire.now).unwrap();
        }
    }
    assert!(wire.agent.is_open() && !wire.controller.is_closed());
    assert!(bytes < 250_000, "{bytes} bytes of frames a day");
}

#[test]
fn requests_and_answers_find_each_other() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    let query = PeerQuery::Device(hedgerow_model::id::DeviceId([3; 16]));
    assert_eq!(wire.agent.resolve(1, query), Err(NotSent::NotOpen));
    assert!(wire.run(&mut device));
    device.seen.clear();
    wire.seen.clear();
    wire.agent.resolve(1, query).unwrap();
    let renew = Renew {
        id: 2,
        csr: vec![0; 400],
        introduction_key: X25519Public([1; 32]),
    };
    wire.agent.renew(renew.clone()).unwrap();
    assert!(wire.run(&mut device));
    assert_eq!(
        wire.seen,
        [
            controller::Output::Resolve { id: 1, query },
            controller::Output::Renew(renew)
        ]
    );
    let peer = ResolvedPeer {
        ticket: vec![1; 300],
        endpoints: vec![hedgerow_model::address::Underlay(
            "192.0.2.1:7117".parse().unwrap(),
        )],
        relays: Some(vec![hedgerow_model::id::DeviceId([3; 16])]),
        own_relays: None,
    };
    wire.controller.resolved(1, Some(peer.clone())).unwrap();
    let new = Renewed {
        id: 2,
        chain: vec![vec![1; 500], vec![2; 500]],
        ticket: vec![3; 300],
    };
    wire.controller.renewed(new.clone()).unwrap();
    wire.controller.command(Command::RotateKeys).unwrap();
    wire.controller.events_stored(9).unwrap();
    assert!(wire.run(&mut device));
    assert_eq!(
        device.seen,
        [
            agent::Output::Resolved {
                id: 1,
                peer: Some(peer)
            },
            agent::Output::Renewed(new),
            agent::Output::Command(Command::RotateKeys),
            agent::Output::EventsStored(9)
        ]
    );
}

#[test]
fn live_flows_are_asked_for_and_only_of_agents_that_know_the_question() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    device.seen.clear();
    assert!(wire.controller.ask_flows(7).unwrap());
    assert!(wire.run(&mut device));
    assert_eq!(device.seen, [agent::Output::FlowsWanted(7)]);
    let list = crate::message::Flows {
        id: 7,
        flows: Vec::new(),
        left_out: 0,
    };
    wire.seen.clear();
    wire.agent.flows(list.clone()).unwrap();
    assert!(wire.run(&mut device));
    assert_eq!(wire.seen, [controller::Output::Flows(list)]);

    let mut old = ControllerSession::new(Mono::ZERO);
    let mut hello = decoding::hello();
    hello.capability = 1;
    let bytes = hedgerow_model::wire::encode(&crate::message::ToController::Hello(hello));
    let frame = crate::frame::whole(crate::frame::Channel::Policy, &bytes).unwrap();
    old.handle_bytes(&frame, Mono::ZERO).unwrap();
    old.welcome(welcome(), Mono::ZERO).unwrap();
    assert!(!old.ask_flows(7).unwrap());
}

#[test]
fn what_the_agent_knows_newer_is_handed_up() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    let mut newer = opening(Holdings::default(), 1);
    newer.revocations = rev(9);
    newer.ticket_epoch = 3;
    wire.agent = AgentSession::new(newer, 1, Mono::ZERO);
    assert!(wire.run(&mut device));
    let asked = |k| device.seen.contains(&agent::Output::HandUpWanted(k));
    assert!(asked(ResourceKind::Revocations) && asked(ResourceKind::Ticket));
    assert!(!asked(ResourceKind::Manifest));
    let statement = HandUp {
        kind: ResourceKind::Revocations,
        bytes: vec![7; 1 << 20],
    };
    wire.piece = 4096;
    wire.agent.hand_up(statement.clone()).unwrap();
    assert!(wire.run(&mut device));
    assert!(wire.seen.contains(&controller::Output::HandedUp(statement)));
}

#[test]
fn newer_states_are_handed_up_to_a_controller_that_says_which_it_has() {
    for (ours, theirs, wanted) in [
        (5, Some(rev(4)), true),
        (4, Some(rev(4)), false),
        (5, None, false),
    ] {
        let mut welcome = welcome();
        welcome.states = theirs;
        let mut held = Holdings::default();
        let states = offer(ResourceKind::States, ours, 1);
        held.heads = vec![states.head()];
        let mut session = AgentSession::new(opening(held, 1), 1, Mono::ZERO);
        let mut controller = ControllerSession::new(Mono::ZERO);
        let hello = session.next_frame().unwrap();
        controller.handle_bytes(&hello, Mono::ZERO).unwrap();
        controller.welcome(welcome, Mono::ZERO).unwrap();
        let frame = controller.next_frame(Mono::ZERO).unwrap();
        session.handle_bytes(&frame, Mono::ZERO).unwrap();
        let outputs: Vec<_> = std::iter::from_fn(|| session.poll()).collect();
        let asked = outputs.contains(&agent::Output::HandUpWanted(ResourceKind::States));
        assert_eq!(asked, wanted);
    }
}

#[test]
fn an_agent_without_news_cannot_send_a_large_message() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    let statement = HandUp {
        kind: ResourceKind::Revocations,
        bytes: vec![7; 1 << 20],
    };
    wire.agent.hand_up(statement).unwrap();
    let mut refused = None;
    while let Some(frame) = wire.agent.next_frame() {
        if let Err(e) = wire.controller.handle_bytes(&frame, wire.now) {
            refused = Some(e);
            break;
        }
    }
    assert!(matches!(refused, Some(SessionError::MessageLength { .. })));
    assert!(wire.controller.is_closed());
}

#[test]
fn an_urgent_message_overtakes_a_long_one() {
    let mut device = Device::default();
    let mut wire = Wire::connect(&mut device, (rev(4), full_set(4)), usize::MAX);
    assert!(wire.run(&mut device));
    let event = hedgerow_model::event::Event::new(
        hedgerow_model::Wall(1),
        hedgerow_model::event::EventKind::PacketRefused,
    )
    .detail("reason", "x".repeat(240))
    .detail("source", "y".repeat(240));
    let events = vec![event; 64];
    wire.agent.events(1, events.clone()).unwrap();
    let first = wire.agent.next_frame().unwrap();
    wire.controller.handle_bytes(&first, wire.now).unwrap();
    wire.pass(agent::PING_EVERY);
    let second = wire.agent.next_frame().unwrap();
    assert!(second.len() < 60, "the ping goes between the parts");
    wire.controller.handle_bytes(&second, wire.now).unwrap();
    wire.seen.clear();
    assert!(wire.run(&mut device));
    assert_eq!(wire.seen, [controller::Output::Events { first: 1, events }]);
}

/// A refusal is what the controller says; whoever cuts the link can only make it silent.
#[test]
fn silence_before_the_welcome_is_not_a_refusal() {
    let begin = || AgentSession::new(opening(Holdings::default(), 1), 1, Mono::ZERO);
    let mut cut = begin();
    cut.handle_timeout(Mono::ZERO + agent::WELCOME_WITHIN);
    assert!(matches!(cut.poll(), Some(agent::Output::Closed(_))));

    let mut refusing = ControllerSession::new(Mono::ZERO);
    refusing.bye("revoked");
    let mut refused = begin();
    let frame = refusing.next_frame(Mono::ZERO).unwrap();
    refused.handle_bytes(&frame, Mono::ZERO).unwrap();
    let why = "revoked".to_owned();
    assert_eq!(refused.poll(), Some(agent::Output::Dismissed(why)));
    refused.handle_timeout(Mono::ZERO + agent::WELCOME_WITHIN);
    assert_eq!(refused.poll(), None);
}

#[test]
fn messages_out_of_order_end_the_session() {
    let frame = |m: &ToAgent| {
        let bytes = hedgerow_model::wire::encode(m);
        crate::frame::whole(crate::frame::Channel::Policy, &bytes).unwrap()
    };
    let mut agent = AgentSession::new(opening(Holdings::default(), 1), 1, Mono::ZERO);
    let e = agent.handle_bytes(&frame(&ToAgent::Pong(true)), Mono::ZERO);
    assert!(matches!(e, Err(SessionError::OutOfOrder { .. })));
    let mut agent = AgentSession::new(opening(Holdings::default(), 1), 1, Mono::ZERO);
    let mut strange = welcome();
    strange.capability = 99;
    let e = agent.handle_bytes(&frame(&ToAgent::Welcome(strange)), Mono::ZERO);
    assert!(matches!(e, Err(SessionError::Capability { .. })));
    let mut agent = AgentSession::new(opening(Holdings::default(), 1), 1, Mono::ZERO);
    agent
        .handle_bytes(&frame(&ToAgent::Busy(1500)), Mono::ZERO)
        .unwrap();
    assert_eq!(
        agent.poll(),
        Some(agent::Output::Busy(Duration::from_millis(1500)))
    );
}
