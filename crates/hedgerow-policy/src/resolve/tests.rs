use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::packet::Packet;

use super::*;
use crate::compile::compile;
use crate::tests::{MONDAY_TEN, PLANT, at, device, file, policy};

const HOUR: Duration = Duration::from_secs(3600);

fn packet(direction: Direction, port: u16) -> Packet {
    Packet {
        direction,
        protocol: Protocol::Tcp,
        port,
    }
}

#[test]
fn an_open_window_ends_by_itself_and_an_untrusted_clock_closes_it() {
    let policy = policy(PLANT);
    let (camera, ops) = (
        device(1, "cam", "s1", "role=camera"),
        device(2, "ops", "s1", "role=ops"),
    );
    let program = compile(&policy, &camera).unwrap();
    let resolver = Resolver::new(&program, &camera, "Europe/Berlin", at(MONDAY_TEN));
    let profile = resolver.profile(&ops);
    let closes = MONDAY_TEN + 8 * HOUR;
    assert_eq!(
        profile.inbound,
        [Entry {
            ports: Ports::tcp(443),
            verdict: Verdict::Accept,
            until: Some(closes)
        }]
    );
    assert_eq!(resolver.next_change(), Some(closes));
    assert_eq!(
        profile.decide(&packet(Direction::In, 443), closes),
        Verdict::Deny(DEFAULT)
    );

    let blind = Now {
        mono: Mono::ZERO,
        wall: MONDAY_TEN,
        wall_is_trusted: false,
    };
    let untrusted = Resolver::new(&program, &camera, "Europe/Berlin", blind);
    assert!(untrusted.profile(&ops).is_closed() && untrusted.next_change().is_none());
    let nowhere = Resolver::new(&program, &camera, "Mars/Olympus", at(MONDAY_TEN));
    assert!(
        nowhere.profile(&ops).is_closed(),
        "a zone that nobody knows"
    );
}

#[test]
fn windows_follow_the_sites_clock_through_its_changes() {
    let text = file(
        "schedules: { night: { days: [sat], from: \"22:00\", to: \"06:00\", tz: site } }\n\
         rules: [ { id: r, from: \"role=a\", to: \"role=b\", service: ssh, when: night } ]\n",
    );
    let policy = policy(&text);
    let (own, peer) = (
        device(1, "b", "s1", "role=b"),
        device(2, "a", "s1", "role=a"),
    );
    let program = compile(&policy, &own).unwrap();
    // Saturday 22:00 and Sunday 06:00 in Berlin; the clock goes forward, then back, in between.
    for (opens, hours) in [(1_774_731_600, 7), (1_792_872_000, 9), (1_774_126_800, 8)] {
        let opens = Wall::from_secs(opens);
        let before = Resolver::new(&program, &own, "Europe/Berlin", at(Wall(opens.0 - 1)));
        assert_eq!(before.next_change(), Some(opens));
        assert!(before.profile(&peer).is_closed());
        let open = Resolver::new(&program, &own, "Europe/Berlin", at(opens));
        assert_eq!(
            open.next_change(),
            Some(opens + hours * HOUR),
            "{hours} hours"
        );
        assert!(!open.profile(&peer).is_closed());
    }
}

#[test]
fn a_deny_window_closes_in_time_without_the_agent() {
    let text = file(
        "schedules: { night: { days: [mon], from: \"20:00\", to: \"22:00\", tz: site } }\n\
         rules:\n  - { id: r, from: \"role=a\", to: \"role=b\", service: any }\n  \
         - { id: d, deny: { from: \"role=a\", to: \"role=b\", service: ssh }, when: night }\n",
    );
    let policy = policy(&text);
    let (own, peer) = (
        device(1, "b", "s1", "role=b"),
        device(2, "a", "s1", "role=a"),
    );
    let program = compile(&policy, &own).unwrap();
    let profile = Resolver::new(&program, &own, "Europe/Berlin", at(MONDAY_TEN)).profile(&peer);
    let ssh = packet(Direction::In, 22);
    let begins = MONDAY_TEN + 10 * HOUR;
    assert_eq!(profile.decide(&ssh, MONDAY_TEN), Verdict::Accept);
    assert!(matches!(profile.decide(&ssh, begins), Verdict::Deny(_)));
    assert_eq!(
        profile.decide(&packet(Direction::In, 23), begins),
        Verdict::Accept
    );
}

#[test]
fn limits_bind_at_the_receiver_only() {
    let policy = policy(PLANT);
    let (camera, nvr) = (
        device(1, "cam", "s1", "role=camera"),
        device(2, "nvr", "s1", "role=nvr"),
    );
    for (own, peer, direction, limited) in [
        (&nvr, &camera, Direction::In, true),
        (&camera, &nvr, Direction::Out, false),
    ] {
        let program = compile(&policy, own).unwrap();
        let resolver = Resolver::new(&program, own, "UTC", at(MONDAY_TEN));
        let verdict = resolver
            .profile(peer)
            .decide(&packet(direction, 554), MONDAY_TEN);
        assert_eq!(
            verdict,
            if limited {
                Verdict::Limited(0)
            } else {
                Verdict::Accept
            }
        );
        assert_eq!(resolver.limits().len(), usize::from(limited));
    }
    let program = compile(&policy, &nvr).unwrap();
    let resolver = Resolver::new(&program, &nvr, "UTC", at(MONDAY_TEN));
    let limit = Limit {
        bytes_per_second: 1_000_000,
        burst_bytes: 100_000,
    };
    assert_eq!(resolver.limits(), [limit]);
}

/// Of several simulated refusals the first in the file is counted.
#[test]
fn the_first_simulated_rule_is_counted() {
    let text = file(
        "rules:\n  - { id: d1, deny: { from: \"role=a\", service: ssh }, mode: simulate }\n  \
         - { id: d2, deny: { from: \"role=a\" }, mode: simulate }\n  \
         - { id: r, from: \"role=a\", to: \"role=b\", service: any }\n",
    );
    let policy = policy(&text);
    let (own, peer) = (
        device(1, "b", "s1", "role=b"),
        device(2, "a", "s1", "role=a"),
    );
    let program = compile(&policy, &own).unwrap();
    let resolver = Resolver::new(&program, &own, "UTC", at(MONDAY_TEN));
    let profile = resolver.profile(&peer);
    let counted = |port| {
        let verdict = profile.decide(&packet(Direction::In, port), MONDAY_TEN);
        let Verdict::WouldDeny(r) = verdict else {
            panic!("{verdict:?}");
        };
        resolver.rule_names()[usize::from(r.0)].clone()
    };
    assert_eq!(
        (counted(22), counted(23)),
        ("d1".to_owned(), "d2".to_owned())
    );
}

fn environment(own: OverlayAddresses) -> LocalEnvironment {
    LocalEnvironment {
        generation: 7,
        tunnel: "hedgerow0".to_owned(),
        own,
        pools: vec!["100.80.0.0/12".parse().unwrap()],
        lifeline: Lifeline::default(),
    }
}

fn addresses(n: u16) -> OverlayAddresses {
    OverlayAddresses {
        v6: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n),
        v4: None,
    }
}

#[test]
fn equal_peers_share_a_profile() {
    let policy = policy(PLANT);
    let own = device(1, "plc", "s1", "role=plc");
    let program = compile(&policy, &own).unwrap();
    let resolver = Resolver::new(&program, &own, "UTC", at(MONDAY_TEN));
    let peers: BTreeMap<_, _> = (2..200u8)
        .map(|n| {
            let role = ["scada", "sensor", "ops"][usize::from(n % 3)];
            let facts = device(n, &format!("d{n}"), "s1", &format!("role={role}"));
            (facts.id, (facts, addresses(u16::from(n))))
        })
        .collect();
    let ruleset = resolver.ruleset(&peers, environment(addresses(1))).unwrap();
    assert_eq!((ruleset.peers.len(), ruleset.profiles.len()), (198, 2));
    assert_eq!(ruleset.generation, 7);
}

#[test]
fn the_underlay_is_nested_prefixes_narrowest_first() {
    let text = file(
        "segments: { g: { select: \"role=a\", mode: enforce, underlay: enforce } }\n\
         guardrails:\n  - { id: g1, deny: { from: \"role=a\", to: internet }, except: [ r1 ] }\n\
         rules:\n  - { id: r1, from: \"role=a\", to: 9.9.9.0/24, service: dns }\n  \
         - { id: r2, from: 10.0.0.0/8, to: \"role=a\", service: ssh }\n",
    );
    let policy = policy(&text);
    let own = device(1, "a", "s1", "role=a");
    let program = compile(&policy, &own).unwrap();
    let resolver = Resolver::new(&program, &own, "UTC", at(MONDAY_TEN));
    let ruleset = resolver
        .ruleset(&BTreeMap::new(), environment(addresses(1)))
        .unwrap();
    let told: String = ruleset
        .underlay
        .iter()
        .map(|r| {
            let UnderlayTarget::Prefixes(prefixes) = &r.target else {
                panic!()
            };
            let ports: Vec<String> = r.ports.iter().map(ToString::to_string).collect();
            let first = prefixes[0];
            format!(
                "{:?} {first} +{} {ports:?} {:?}\n",
                r.direction,
                prefixes.len() - 1,
                r.verdict
            )
        })
        .collect();
    expect_test::expect![[r#"
        In 10.0.0.0/8 +0 ["tcp/22"] Accept
        In 10.0.0.0/8 +0 [] Deny(RuleRef(0))
        Out 0.0.0.0/8 +38 [] Deny(RuleRef(0))
        Out 9.9.9.0/24 +0 ["tcp/53", "udp/53"] Accept
        Out 9.9.9.0/24 +0 [] Deny(RuleRef(4))
        Out 0.0.0.0/0 +1 [] Deny(RuleRef(4))
    "#]]
    .assert_eq(&told);
}

#[test]
fn a_ruleset_beyond_its_bound_is_refused_as_a_whole() {
    let rule = |n: usize| {
        format!("  - {{ id: r-{n}, from: name=d{n}, to: \"role=a\", service: [tcp/1, tcp/{n}] }}\n")
    };
    let rules: String = (10..20).map(rule).collect();
    let policy = policy(&file(&format!("rules:\n{rules}")));
    let own = device(1, "x", "s1", "role=a");
    let program = compile(&policy, &own).unwrap();
    let resolver = Resolver::new(&program, &own, "UTC", at(MONDAY_TEN));
    let peers: BTreeMap<_, _> = (10..20u8)
        .map(|n| {
            let facts = device(n, &format!("d{n}"), "s1", "");
            (facts.id, (facts, addresses(u16::from(n))))
        })
        .collect();
    let env = || environment(addresses(1));
    let whole = resolver.bounded(&peers, env(), 20).unwrap();
    assert_eq!(whole.profiles.len(), 10);
    let refused = resolver.bounded(&peers, env(), 19).unwrap_err();
    let wanted = TooLarge {
        what: "profile entries",
        count: 20,
        max: 19,
    };
    assert_eq!(refused, wanted);
    assert_eq!(resolver.ruleset(&peers, env()).unwrap(), whole);
}
