//! The machine alone, and two of them against each other.

mod fixture;
mod gossip;
mod pair;

use hedgerow_linux::sessions::Session;
use hedgerow_model::event::EventKind;
use hedgerow_model::packet::Direction;
use hedgerow_model::program::{DeviceState, Mode};
use hedgerow_model::resource::ResourceKind;
use hedgerow_model::statement::Revoked;

use self::fixture::{Domain, Machine, POLICY, UNDERLAY, WIDER, at, rev};
use super::*;

#[test]
fn before_the_first_program_the_overlay_is_closed() {
    let domain = Domain::new();
    let mut machine = Machine::new(&domain, "sensor-1", "role=sensor");
    machine.state.handle_start(at(0));
    let first = machine.state.poll().unwrap();
    let Step::Load(table) = first else {
        panic!("the table comes before everything else: {first:?}");
    };
    assert!(table.peers.is_empty() && table.profiles.is_empty());
    assert_eq!(table.underlay_mode, Mode::Observe);
}

#[test]
fn an_update_is_stored_loaded_read_back_and_only_then_acknowledged() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let update = domain.update(
        2,
        None,
        [domain.config(2), domain.program(2, POLICY, &machine)],
    );
    machine.state.handle_update(update, at(1));
    let names = machine.run(at(1));
    let wanted = ["store", "hosts", "load", "verify", "acknowledge verified"];
    assert!(is_in_order(&names, &wanted), "{names:?}");
    assert_eq!(machine.state.verified().unwrap().revision, rev(2));
    assert!(machine.events().contains(&EventKind::PolicyApplied));
}

#[test]
fn an_update_that_changes_nothing_here_is_verified_without_a_load() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.adopt(&domain, 2, [domain.program(2, POLICY, &machine)]);
    machine
        .state
        .handle_update(domain.update(3, Some(2), []), at(2));
    assert_eq!(machine.run(at(2)), ["store", "acknowledge verified"]);
    assert_eq!(machine.state.verified().unwrap().revision, rev(3));
}

#[test]
fn what_does_not_hold_refuses_the_whole_update() {
    let domain = Domain::new();
    let stranger = Domain::seeded(9);
    let other = Machine::new(&domain, "plc-1", "role=plc");
    let build = || {
        let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
        let first = [
            domain.states(5, &[]),
            domain.revocations(5, &[]),
            domain.config(5),
            domain.program(5, POLICY, &machine),
        ];
        machine.adopt(&domain, 5, first);
        machine
    };
    let machine = build();
    let mut torn = domain.program(6, POLICY, &machine);
    torn.bytes.pop();
    let cases = [
        ("another domain's key", stranger.states(6, &[])),
        (
            "a role's key for another role",
            domain.states_by_wrong_role(6),
        ),
        ("truncated", torn),
        ("older states", domain.states(4, &[])),
        ("older revocations", domain.revocations(4, &[])),
        ("older configuration", domain.config(4)),
        ("older program", domain.program(4, POLICY, &machine)),
        (
            "a program for another class",
            domain.program(6, POLICY, &other),
        ),
        (
            "another device's ticket",
            domain.ticket_resource(&other, 9, "role=plc"),
        ),
        (
            "a ticket of an older epoch",
            domain.ticket_resource(&machine, 0, "role=sensor"),
        ),
        ("no manifest of ours", stranger.manifest()),
    ];
    for (what, bad) in cases {
        let mut machine = build();
        let before = machine.state.holdings();
        let good = domain.states(7, &[(machine.id(), DeviceState::Quarantine)]);
        let kind = bad.kind;
        let set = if kind == ResourceKind::States {
            vec![bad]
        } else {
            vec![good, bad]
        };
        machine
            .state
            .handle_update(domain.update(7, Some(5), set), at(3));
        assert_eq!(machine.run(at(3)), ["acknowledge rejected"], "{what}");
        assert_eq!(machine.state.holdings(), before, "{what}");
        assert_eq!(machine.state.own_state(), None, "{what}");
        assert!(
            machine.events().contains(&EventKind::ResourceRefused),
            "{what}"
        );
    }
}

#[test]
fn a_table_the_kernel_refuses_is_tried_again_and_the_verdict_waits() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.kernel_works = false;
    machine.adopt(&domain, 2, [domain.program(2, UNDERLAY, &machine)]);
    assert_eq!(machine.state.verified(), None);
    assert!(!machine.log.iter().any(|n| n.starts_with("acknowledge")));
    machine.kernel_works = true;
    machine.state.handle_timeout(at(7));
    machine.run(at(7));
    assert_eq!(machine.state.verified().unwrap().revision, rev(2));
}

/// A power cut after the acknowledgement must not undo what an operator saw confirmed.
#[test]
fn a_revocation_that_the_full_disk_did_not_take_is_in_force_but_never_called_verified() {
    let (domain, mut a, b) = pair::introduced(POLICY);
    a.disk_works = false;
    let list = domain.revocations(8, &[Revoked::Device(b.id())]);
    a.state
        .handle_update(domain.update(8, Some(2), [list]), at(20));
    let names = a.run(at(20));
    assert!(is_in_order(&names, &["remove element", "remove peer"]));
    assert!(!names.iter().any(|n| n.starts_with("acknowledge")));
    assert_eq!(a.state.verified().unwrap().revision, rev(2));
    assert!(a.state.disk_failed());
    let disk_events = |a: &mut Machine| {
        let failed = |k: &EventKind| *k == EventKind::DiskFailed;
        a.events().into_iter().filter(failed).count()
    };
    assert_eq!(disk_events(&mut a), 1);

    let again = a.state.deadline(at(20)).0;
    assert!(again <= at(30).mono, "it is tried again");
    a.state.handle_timeout(at(30));
    assert!(a.run(at(30)).contains(&"store".to_owned()));
    assert_eq!(disk_events(&mut a), 1, "said once");
    a.disk_works = true;
    a.state.handle_timeout(at(40));
    let names = a.run(at(40));
    assert!(is_in_order(&names, &["store", "acknowledge verified"]));
    assert_eq!(a.state.verified().unwrap().revision, rev(8));
    assert!(!a.state.disk_failed());
}

#[test]
fn an_answer_to_an_older_load_is_ignored() {
    let domain = Domain::new();
    let mut machine = Machine::new(&domain, "sensor-1", "role=sensor");
    machine.state.handle_start(at(0));
    machine
        .state
        .handle_loaded(0, Ok(Load::Replaced(Digest::of(b"old"))), at(0));
    assert!(machine.state.table().0.is_none());
}

#[test]
fn a_table_that_somebody_changed_is_mended_and_reported() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let generation = machine.state.table().0.unwrap().generation;
    let reading = Reading::Differs {
        missing: 1,
        surplus: 0,
    };
    machine.state.handle_verified(reading, at(40));
    let names = machine.run(at(40));
    assert!(is_in_order(&names, &["load", "verify"]), "{names:?}");
    assert!(machine.state.table().0.unwrap().generation > generation);
    assert!(machine.events().contains(&EventKind::TableMended));
}

#[test]
fn the_table_is_read_back_regularly() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.state.handle_timeout(at(31));
    assert_eq!(machine.run(at(31)), ["verify"]);
}

#[test]
fn the_first_enforcement_of_the_underlay_is_taken_back_without_a_word() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.adopt(&domain, 2, [domain.program(2, UNDERLAY, &machine)]);
    assert_eq!(machine.underlay(), Mode::Enforce);
    machine.state.handle_heard(at(1));
    machine.state.handle_timeout(at(5));
    assert!(machine.run(at(5)).contains(&"probe".to_owned()));
    machine.state.handle_timeout(at(70));
    machine.run(at(70));
    assert_eq!(machine.underlay(), Mode::Observe);
    assert!(machine.events().contains(&EventKind::UnderlayReverted));

    // The same program is not tried again; another one is.
    machine.adopt(&domain, 3, [domain.states(3, &[])]);
    assert_eq!(machine.underlay(), Mode::Observe);
    machine.adopt(&domain, 4, [domain.program(4, UNDERLAY, &machine)]);
    assert_eq!(machine.underlay(), Mode::Enforce);
}

#[test]
fn an_answer_under_enforcement_confirms_it_for_good() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.adopt(&domain, 2, [domain.program(2, UNDERLAY, &machine)]);
    machine.state.handle_heard(at(9));
    machine.state.handle_timeout(at(100));
    machine.run(at(100));
    assert_eq!(machine.underlay(), Mode::Enforce);
    machine.adopt(&domain, 3, [domain.program(3, WIDER, &machine)]);
    machine.state.handle_timeout(at(900));
    machine.run(at(900));
    assert_eq!(
        machine.underlay(),
        Mode::Enforce,
        "policy is never taken back"
    );
}

#[test]
fn a_changed_lifeline_is_on_trial_again_and_the_old_one_stays_open() {
    let (domain, mut machine) = confirmed();
    let moved = domain.config_with(3, "198.51.100.7:7443");
    machine
        .state
        .handle_update(domain.update(3, Some(2), [moved]), at(20));
    machine.run(at(20));
    machine.state.handle_timeout(at(100));
    machine.run(at(100));
    assert!(machine.events().contains(&EventKind::UnderlayReverted));
    assert_eq!(
        machine.underlay(),
        Mode::Enforce,
        "only the change is undone"
    );
    let lifeline = &machine.state.table().0.unwrap().lifeline;
    let has = |text: &str| lifeline.controllers.contains(&text.parse().unwrap());
    assert!(has("192.0.2.1:7443") && has("198.51.100.7:7443"));
}

/// A machine whose enforcement of the underlay the controller has confirmed.
fn confirmed() -> (Domain, Machine) {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let set = [
        domain.config_with(2, "central.example:7443"),
        domain.program(2, UNDERLAY, &machine),
    ];
    machine.adopt(&domain, 2, set);
    machine.state.handle_heard(at(9));
    machine.run(at(9));
    (domain, machine)
}

#[test]
fn attack_cutting_the_link_and_the_names_does_not_undo_underlay_enforcement() {
    let (_domain, mut machine) = confirmed();
    let name = || "central.example:7443".to_owned();
    let address = |text: &str| vec![text.parse().unwrap()];
    let found = [(name(), address("203.0.113.9:7443"))];
    // The first answer, no answer, an empty answer, a forged one.
    let answers = [
        BTreeMap::from(found),
        BTreeMap::new(),
        BTreeMap::from([(name(), Vec::new())]),
        BTreeMap::from([(name(), address("198.51.100.66:1"))]),
    ];
    for (found, n) in answers.into_iter().zip(1..) {
        machine.state.handle_addresses(found, at(n * 100));
        machine.run(at(n * 100));
        let lifeline = &machine.state.table().0.unwrap().lifeline;
        assert_eq!(lifeline.controllers.len(), 2, "{n}");
        machine.state.handle_timeout(at(n * 100 + 90));
        machine.run(at(n * 100 + 90));
        assert_eq!(machine.underlay(), Mode::Enforce, "{n}");
    }
    assert!(!machine.events().contains(&EventKind::UnderlayReverted));
}

#[test]
fn manifests_from_outside_a_session_count_when_the_roots_signed_them() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let manifests = |m: &Machine| {
        let mark = m
            .state
            .holdings()
            .marks
            .get(&ResourceKind::Manifest)
            .copied();
        (m.state.trust().manifest().version, mark.map(|r| r.number))
    };

    let forged = [
        Domain::seeded(9).renewed_chain(),
        vec![domain.renewed_chain()[1][..90].to_vec()],
        vec![Vec::new()],
    ];
    for chain in forged {
        machine.state.handle_manifests(&chain, at(1));
        assert_eq!(manifests(&machine), (1, None));
        assert!(machine.events().contains(&EventKind::ResourceRefused));
    }

    let chain = domain.renewed_chain();
    machine.state.handle_manifests(&chain, at(2));
    assert_eq!(manifests(&machine), (2, Some(2)));
    let steps = machine.run(at(2));
    assert!(steps.contains(&"store".to_owned()), "{steps:?}");

    // An old chain, or the same once more, changes nothing.
    for chain in [&chain[..1], &chain] {
        machine.state.handle_manifests(chain, at(3));
        assert_eq!(manifests(&machine), (2, Some(2)));
        assert!(machine.run(at(3)).is_empty());
    }
}

#[test]
fn attack_a_version_that_no_signature_covers_is_refused() {
    let domain = Domain::new();
    let build = |n: u64, machine: &Machine| {
        [
            domain.revocations(n, &[]),
            domain.states(n, &[]),
            domain.config(n),
            domain.names(n, machine, &[]),
            domain.program(n, POLICY, machine),
            domain.ticket_resource(machine, n, "role=sensor"),
            domain.manifest(),
        ]
    };
    for i in 0..7 {
        let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
        let mut resource = build(3, &machine)[i].clone();
        resource.version.number = u64::MAX;
        let update = domain.update(2, None, [resource]);
        machine.state.handle_update(update, at(1));
        assert_eq!(machine.run(at(1)), ["acknowledge rejected"], "{i}");
        assert!(machine.state.holdings().marks.is_empty(), "{i}");
        let whole = build(4, &machine);
        machine.adopt(&domain, 4, whole);
        assert_eq!(machine.state.holdings().revision, Some(rev(4)), "{i}");
    }
}

#[test]
fn attack_taking_the_program_away_opens_nothing() {
    let (domain, mut machine) = confirmed();
    let mut update = domain.update(3, Some(2), []);
    update.remove = vec![ResourceKind::Program];
    machine.state.handle_update(update, at(20));
    machine.run(at(20));
    assert_eq!(machine.underlay(), Mode::Enforce);
    assert!(machine.events().contains(&EventKind::ResourceRefused));
    let heads = machine.state.holdings().heads;
    assert!(heads.iter().any(|h| h.kind == ResourceKind::Program));
}

#[test]
fn losing_or_gaining_trust_in_the_clock_is_looked_at_at_once() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let mut later = at(2);
    later.wall_is_trusted = false;
    assert!(machine.state.deadline(at(2)).0 > at(2).mono);
    assert_eq!(machine.state.deadline(later).0, later.mono);
    machine.state.handle_timeout(later);
    machine.run(later);
    assert!(machine.state.deadline(later).0 > later.mono);
    assert!(machine.events().contains(&EventKind::ClockUntrusted));
}

#[test]
fn the_own_quarantine_reaches_the_own_table() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.adopt(&domain, 2, [domain.program(2, POLICY, &machine)]);
    let states = domain.states(3, &[(machine.id(), DeviceState::Quarantine)]);
    machine.adopt(&domain, 3, [states]);
    assert_eq!(machine.state.own_state(), Some(DeviceState::Quarantine));
    machine.adopt(&domain, 4, [domain.states(4, &[])]);
    assert_eq!(machine.state.own_state(), None);
}

#[test]
fn stored_resources_are_verified_again_and_bad_ones_left_out() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.adopt(
        &domain,
        2,
        [domain.program(2, POLICY, &machine), domain.config(2)],
    );
    let mut stored = machine.state.stored();
    assert_eq!(stored.revision, Some(rev(2)));
    for resource in &mut stored.resources {
        if resource.kind == ResourceKind::Config {
            resource.bytes[30] ^= 1;
        }
    }
    let (again, complaints) = machine.reborn(stored);
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    let kinds: Vec<_> = again.holdings().heads.iter().map(|h| h.kind).collect();
    assert_eq!(kinds, [ResourceKind::Program]);
    assert_eq!(again.holdings().revision, Some(rev(2)));
}

#[test]
fn names_go_to_the_hosts_file_and_the_resolver_with_their_site_and_suffix() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let names = domain.names(3, &machine, &[("collector-1", 77)]);
    machine.adopt(&domain, 3, [domain.config(3), names]);
    let written = machine.hosts.last().unwrap();
    let list: Vec<&String> = written.values().flatten().collect();
    assert!(
        list.contains(&&"collector-1.s1.hedgerow.internal".to_owned()),
        "{list:?}"
    );
    let zone = machine.zone.as_ref().unwrap();
    assert!(zone.find("collector-1.s1").is_some());
    assert!(zone.find("sensor-1.s1").is_some(), "our own");
    assert!(zone.find("collector-2.s1").is_none());
}

#[test]
fn losing_and_finding_the_controller_is_said_once_each() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.state.handle_uplink_down("refused", at(1));
    machine.state.handle_uplink_up(at(2));
    machine.state.handle_uplink_down("gone", at(3));
    machine.state.handle_uplink_down("refused", at(4));
    machine.state.handle_uplink_up(at(5));
    let events = machine.events();
    let count = |kind| events.iter().filter(|k| **k == kind).count();
    assert_eq!(count(EventKind::UplinkLost), 1);
    assert_eq!(count(EventKind::UplinkRestored), 1);
}

#[test]
fn a_key_is_replaced_daily() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    machine.state.handle_timeout(at(23 * 3600));
    assert!(!machine.run(at(23 * 3600)).contains(&"bind".to_owned()));
    machine.state.handle_timeout(at(24 * 3600));
    assert!(machine.run(at(24 * 3600)).contains(&"bind".to_owned()));
}

#[test]
fn a_new_ticket_asks_for_a_new_binding() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let ticket = domain.ticket_resource(&machine, 5, "role=sensor,zone=a");
    machine
        .state
        .handle_update(domain.update(2, None, [ticket]), at(1));
    assert!(machine.run(at(1)).contains(&"bind".to_owned()));
    assert_eq!(machine.state.ticket().epoch, 5);
}

#[test]
fn who_is_revoked_goes_from_kernel_tunnel_and_connections_in_this_order() {
    let (domain, mut a, b) = pair::introduced(POLICY);
    let list = domain.revocations(8, &[Revoked::Device(b.id())]);
    a.state
        .handle_update(domain.update(8, Some(2), [list]), at(20));
    let names = a.run(at(20));
    let order = [
        "remove element",
        "remove peer",
        "cut",
        "acknowledge verified",
    ];
    assert!(is_in_order(&names, &order), "{names:?}");
    assert!(a.state.table().0.unwrap().peers.is_empty());
    assert!(a.events().contains(&EventKind::PeerRemoved));
}

/// Whether `wanted` occur in `names` in this order, perhaps with others between.
fn is_in_order(names: &[String], wanted: &[&str]) -> bool {
    let mut rest = names.iter();
    wanted.iter().all(|w| rest.any(|n| n == w))
}

#[test]
fn an_operators_session_that_enforcement_would_end_is_said_before() {
    let domain = Domain::new();
    let mut machine = Machine::started(&domain, "sensor-1", "role=sensor");
    let set = [
        domain.config_with(2, "192.0.2.1:7443"),
        domain.program(2, &UNDERLAY.replace(", underlay: enforce", ""), &machine),
    ];
    machine.adopt(&domain, 2, set);
    assert_eq!(machine.underlay(), Mode::Observe);
    let session = |direction, near: &str, far: &str| Session {
        direction,
        near: near.parse().unwrap(),
        far: far.parse().unwrap(),
    };
    let ssh = session(Direction::In, "10.0.0.1:22", "198.51.100.7:51514");
    let kept = [
        session(Direction::Out, "10.0.0.1:40000", "192.0.2.1:7443"),
        session(Direction::Out, "127.0.0.1:40000", "127.0.0.1:22"),
    ];
    let web = session(Direction::Out, "10.0.0.1:40001", "192.0.2.1:80");
    let list = [&kept[..], &[ssh, web]].concat();
    assert_eq!(machine.state.sessions_at_stake(&list, at(9)), [ssh, web]);
    machine.adopt(&domain, 3, [domain.program(3, UNDERLAY, &machine)]);
    assert_eq!(machine.underlay(), Mode::Enforce);
    let left = machine.state.trial_left(at(9).mono).unwrap();
    assert!(left <= Duration::from_secs(60));
    assert!(machine.state.sessions_at_stake(&list, at(9)).is_empty());
    machine.state.handle_heard(at(20));
    assert_eq!(machine.state.trial_left(at(20).mono), None);
}

#[test]
fn name_servers_that_the_network_gives_are_asked_without_a_trial() {
    let (_domain, mut machine) = confirmed();
    let list = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
    let servers = |machine: &Machine| machine.state.table().0.unwrap().lifeline.servers.clone();
    assert!(servers(&machine).is_empty(), "before the network is up");
    machine
        .state
        .handle_name_servers(list(&["10.0.0.53"]), at(20));
    machine.run(at(20));
    assert_eq!(servers(&machine), list(&["10.0.0.53"]));
    assert_eq!(machine.state.trial_left(at(20).mono), None);
    machine.state.handle_name_servers(Vec::new(), at(30));
    machine.run(at(30));
    assert_eq!(
        servers(&machine),
        list(&["10.0.0.53"]),
        "silence narrows nothing"
    );
    machine
        .state
        .handle_name_servers(list(&["10.0.0.54"]), at(40));
    machine.run(at(40));
    assert_eq!(servers(&machine), list(&["10.0.0.54"]));
    machine.state.handle_timeout(at(200));
    machine.run(at(200));
    assert!(!machine.events().contains(&EventKind::UnderlayReverted));
}
