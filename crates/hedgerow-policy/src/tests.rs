//! What the tests share, and the sample plant from one end to the other.

use std::fmt::Write as _;

use expect_test::expect;
use hedgerow_model::id::DeviceId;
use hedgerow_model::service::{Ports, Protocol};
use hedgerow_model::{Mono, Now, Wall};

use crate::{End, Facts, Flow, Policy, World, explain, parse, plan, predict, test};

pub(crate) const PLANT: &str = include_str!("../tests/data/plant.yaml");
/// Monday, 2026-03-30, 10:00 in Berlin.
pub(crate) const MONDAY_TEN: Wall = Wall::from_secs(1_774_857_600);

/// Parses a policy that must be without findings.
pub(crate) fn policy(text: &str) -> Policy {
    let (policy, findings) = parse(text, "p.yaml");
    let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
    policy.unwrap()
}

/// A header and `rest`.
pub(crate) fn file(rest: &str) -> String {
    format!(
        "apiVersion: hedgerow.policy/v1\nkind: Policy\n\
         labels: {{ role: {{ values: [a, b, c] }}, zone: {{ values: [x, y] }} }}\n{rest}"
    )
}

pub(crate) fn device(number: u8, name: &str, site: &str, labels: &str) -> Facts {
    Facts {
        id: DeviceId([number; 16]),
        name: name.parse().unwrap(),
        site: site.parse().unwrap(),
        labels: labels.parse().unwrap(),
        state: None,
        zone: Some("Europe/Berlin".to_owned()),
    }
}

pub(crate) fn at(wall: Wall) -> Now {
    Now {
        mono: Mono::ZERO,
        wall,
        wall_is_trusted: true,
    }
}

fn plant() -> World {
    let devices = [
        ("sensor-1", "s1", "sensor"),
        ("sensor-2", "s2", "sensor"),
        ("collector-1", "s1", "collector"),
        ("cam-1", "s1", "camera"),
        ("nvr-1", "s1", "nvr"),
        ("scada-1", "s1", "scada"),
        ("plc-1", "s1", "plc"),
        ("plc-2", "s2", "plc"),
        ("ops-1", "s1", "ops"),
    ];
    World::new(
        devices
            .iter()
            .zip(1u8..)
            .map(|((name, site, role), n)| device(n, name, site, &format!("role={role}"))),
    )
}

fn flow(world: &World, from: &str, to: &str, service: Ports) -> Flow {
    let end = |name| End::Device(world.find(name).unwrap().id);
    Flow {
        from: end(from),
        to: end(to),
        protocol: service.protocol,
        port: service.first,
    }
}

#[test]
fn the_plant_passes_its_own_tests_with_and_without_devices() {
    let policy = policy(PLANT);
    for world in [plant(), World::default()] {
        for result in test(&policy, &world) {
            assert!(result.passed, "{result:?}");
        }
    }
}

/// The file that newcomers start from holds before, while and after its fleet enrolls.
#[test]
fn the_example_passes_its_own_tests_with_any_part_of_a_fleet() {
    let policy = policy(include_str!("../../../examples/plant.yaml"));
    let fleet: Vec<Facts> = plant().devices().cloned().collect();
    for count in 0..=fleet.len() {
        let some = World::new(fleet.iter().take(count).cloned());
        let results = test(&policy, &some);
        assert!(!results.is_empty());
        for result in results {
            assert!(result.passed, "{count} devices: {result:?}");
        }
    }
}

#[test]
fn the_plants_matrix_is_what_the_rules_say() {
    let services = [
        Ports::tcp(8883),
        Ports::tcp(554),
        Ports::tcp(443),
        Ports::tcp(502),
        Ports::ICMP_ECHO,
    ];
    let world = plant();
    let rows = predict(&policy(PLANT), &world, &services, MONDAY_TEN, true);
    assert_eq!(rows.len(), 9 * 8 * services.len());
    let mut told = String::new();
    for row in rows.iter().filter(|r| r.passes) {
        let name = |id| world.get(id).unwrap().name.to_string();
        let limit = row
            .limit
            .map_or(String::new(), |l| format!(" {} B/s", l.bytes_per_second));
        writeln!(
            told,
            "{} → {} {} {}{limit}",
            name(row.from),
            name(row.to),
            row.service,
            row.rule
        )
        .unwrap();
    }
    expect![[r#"
        sensor-1 → collector-1 tcp/8883 r-mqtt
        cam-1 → nvr-1 tcp/554 r-rtsp 1000000 B/s
        scada-1 → plc-1 tcp/502 r-scada
        ops-1 → cam-1 tcp/443 r-cam-admin
    "#]]
    .assert_eq(&told);
}

#[test]
fn an_explanation_names_every_tier_asked() {
    let (policy, world) = (policy(PLANT), plant());
    let mut told = String::new();
    for (from, to, service) in [
        ("scada-1", "plc-1", Ports::tcp(502)),
        ("scada-1", "plc-2", Ports::tcp(502)),
        ("ops-1", "cam-1", Ports::tcp(443)),
        ("cam-1", "nvr-1", Ports::tcp(554)),
    ] {
        let flow = flow(&world, from, to, service);
        let sunday = Wall(MONDAY_TEN.0 - 24 * 3_600_000);
        told += &explain(&policy, &world, &flow, sunday, true).to_string();
    }
    expect![[r#"
        scada-1.s1 → plc-1.s1 on tcp/502 passes: r-scada, the rule allows it
          scada-1.s1 sends: lets it pass
            20 guardrail g-plc: refuses, but excepts what r-scada allows
            50 org       r-scada: the rule allows it
          plc-1.s1 receives: lets it pass
            20 guardrail g-plc: refuses, but excepts what r-scada allows
            50 org       r-scada: the rule allows it
        scada-1.s1 → plc-2.s2 on tcp/502 is refused: g-plc, the rule refuses it
          scada-1.s1 sends: refuses it
            20 guardrail g-plc: the rule refuses it
          plc-2.s2 receives: refuses it
            20 guardrail g-plc: the rule refuses it
        ops-1.s1 → cam-1.s1 on tcp/443 is refused: default, no rule allows it
          ops-1.s1 sends: refuses it
            20 guardrail –: is silent
            50 org       r-cam-admin: speaks of it, but its window is closed
            60 site      –: is silent
            90 default   default: no rule allows it
          cam-1.s1 receives: refuses it
            20 guardrail –: is silent
            50 org       r-cam-admin: speaks of it, but its window is closed
            60 site      –: is silent
            90 default   default: no rule allows it
        cam-1.s1 → nvr-1.s1 on tcp/554 passes: r-rtsp, the rule allows it
          cam-1.s1 sends: lets it pass
            20 guardrail –: is silent
            50 org       r-rtsp: the rule allows it
          nvr-1.s1 receives: lets it pass
            20 guardrail –: is silent
            50 org       r-rtsp: the rule allows it
            at most 8000 kbit/s from this source
    "#]]
    .assert_eq(&told);
}

#[test]
fn odd_questions_get_answers_that_make_sense() {
    let (policy, world) = (policy(PLANT), plant());
    let known = End::Device(world.find("ops-1").unwrap().id);
    let stranger = End::Device(DeviceId([0xee; 16]));
    let address = |text: &str| End::Address(text.parse().unwrap());
    let mut told = String::new();
    for (from, to, service) in [
        (stranger, known, Ports::tcp(22)),
        (known, stranger, Ports::tcp(22)),
        (known, known, Ports::tcp(22)),
        (End::Controller, End::Controller, Ports::ICMP_ECHO),
        (address("192.0.2.1"), address("::1"), Ports::udp(0)),
        (known, End::Controller, Ports::tcp(u16::MAX)),
        (End::Controller, known, Ports::tcp(22)),
        (address("8.8.8.8"), known, Ports::tcp(22)),
    ] {
        let flow = Flow {
            from,
            to,
            protocol: service.protocol,
            port: service.first,
        };
        told += &explain(&policy, &world, &flow, MONDAY_TEN, false).to_string();
    }
    let nobody = explain(
        &policy,
        &World::default(),
        &flow(&world, "ops-1", "cam-1", Ports::tcp(1)),
        Wall(0),
        true,
    );
    told += &nobody.to_string();
    expect![[r#"
        53xo53xo53xo53xo53xo53xo5y → ops-1.s1 on tcp/22 is refused: no device 53xo53xo53xo53xo53xo53xo5y is known
        ops-1.s1 → 53xo53xo53xo53xo53xo53xo5y on tcp/22 is refused: no device 53xo53xo53xo53xo53xo53xo5y is known
        ops-1.s1 → ops-1.s1 on tcp/22 passes: a device's own programs reach each other without policy
        controller → controller on icmp-echo is refused: neither end is a device of the mesh
        192.0.2.1 → ::1 on udp/0 is refused: neither end is a device of the mesh
        ops-1.s1 → controller on tcp/65535 passes: lifeline, a device always reaches its controllers
          ops-1.s1 sends: lets it pass
             0 lifeline  lifeline: a device always reaches its controllers
        controller → ops-1.s1 on tcp/22 passes: default, no rule allows it, and the segment is observed
          ops-1.s1 receives: lets it pass
            20 guardrail –: is silent
            50 org       –: is silent
            60 site      –: is silent
            90 default   default: no rule allows it, and the segment is observed
        8.8.8.8 → ops-1.s1 on tcp/22 passes: default, no rule allows it, and the segment is observed
          ops-1.s1 receives: lets it pass
            20 guardrail –: is silent
            50 org       –: is silent
            60 site      –: is silent
            90 default   default: no rule allows it, and the segment is observed
        beeqscijbeeqscijbeeqscijbe → aqcaibaeaqcaibaeaqcaibaeaq on tcp/1 is refused: no device beeqscijbeeqscijbeeqscijbe is known
    "#]].assert_eq(&told);
}

#[test]
fn a_quarantined_device_reaches_nothing_and_nothing_reaches_it() {
    let policy = policy(PLANT);
    let contained = plant()
        .devices()
        .cloned()
        .map(|f| match f.name.as_str() {
            "scada-1" => f.in_state(Some(hedgerow_model::program::DeviceState::Quarantine)),
            _ => f,
        })
        .collect::<Vec<_>>();
    let world = World::new(contained);
    let scada = world.find("scada-1").unwrap().id;
    let all = [Ports::tcp(502), Ports::tcp(22), Ports::ICMP_ECHO];
    for row in predict(&policy, &world, &all, MONDAY_TEN, true) {
        if row.from == scada || row.to == scada {
            assert!(!row.passes);
            assert_eq!(row.rule, "quarantine");
        }
    }
    let to_controller = Flow {
        from: End::Device(scada),
        to: End::Controller,
        protocol: Protocol::Tcp,
        port: 7443,
    };
    assert!(crate::evaluate(&policy, &world, &to_controller, MONDAY_TEN, true).passes());
}

#[test]
fn a_plan_shows_what_is_gained_and_lost_and_refuses_on_a_failing_test() {
    let old = policy(PLANT);
    let text = PLANT
        .replace("same: [site], service: modbus }", "service: modbus }")
        .replace("service: https, when: shift }", "service: [https, ssh] }")
        .replace(
            "from: \"role=sensor\", to: \"role=collector\"",
            "from: \"role=plc\", to: \"role=collector\"",
        );
    let new = policy(&text);
    let change = plan(Some(&old), &new, &plant());
    assert!(change.is_refused());
    expect![[r#"
        8 devices affected, 7 programs, 0 rules added, 0 removed, 3 changed
        + role=ops → role=camera (other site) on tcp/22: always, was never
        + role=ops → role=camera (other site) on tcp/443: always, was in windows
        + role=ops → role=camera (same site) on tcp/22: always, was never
        + role=ops → role=camera (same site) on tcp/443: always, was in windows
        + role=plc → role=collector (same site) on tcp/8883: always, was never
        + role=scada → role=plc (other site) on tcp/502: always, was never
        - role=sensor → role=collector (same site) on tcp/8883: never, was always
        FAIL role=ops → role=camera on https: deny (line 28): ops-1.s1 → cam-1.s1 on tcp/443: passes by r-cam-admin (the rule allows it)
        ok   role=ops → role=camera on https: allow
        ok   role=scada → role=plc on modbus: allow
        ok   role=ops → role=plc on any: deny
        ok   role=camera → any on any: only builtin/controller
        ok   role=sensor never reaches segment=ot
    "#]].assert_eq(&change.to_string());
    let nothing = plan(Some(&old), &old, &plant());
    assert_eq!(
        (
            nothing.gained.len(),
            nothing.lost.len(),
            nothing.devices_affected
        ),
        (0, 0, 0)
    );
    let first = plan(None, &old, &plant());
    assert!(!first.is_refused() && first.devices_affected == 9);
    let lost: Vec<_> = first
        .lost
        .iter()
        .map(|c| (c.from.as_str(), c.to.as_str()))
        .collect();
    let internet = [("role=plc", "internet"), ("role=scada", "internet")];
    assert_eq!(lost, internet, "the one refusal in the underlay");
}

#[test]
fn a_failing_invariant_names_the_pair() {
    let text = PLANT.replace("invariant: \"role=sensor", "invariant: \"role=scada");
    let results = test(&policy(&text), &plant());
    let failed: Vec<_> = results.iter().filter(|r| !r.passed).collect();
    expect![[r#"
        [
            TestResult {
                title: "role=scada never reaches segment=ot",
                line: 36,
                passed: false,
                detail: "scada-1.s1 → plc-1.s1 on tcp/502: r-scada allows it",
            },
        ]
    "#]]
    .assert_debug_eq(&failed);
}

/// Every example of the language reference is what it says it is.
#[test]
fn every_example_of_the_reference_parses() {
    let reference = include_str!("../../../docs/spec/policy.md");
    let mut blocks = 0;
    for (number, block) in reference.split("```yaml").enumerate().skip(1) {
        let (kind, rest) = block.split_once('\n').unwrap();
        let (body, _) = rest.split_once("```").unwrap();
        let mut text = String::new();
        if !body.contains("apiVersion:") {
            text += "apiVersion: hedgerow.policy/v1\nkind: Policy\n";
            for (section, default) in [
                (
                    "labels:",
                    "labels: { role: { values: [sensor, camera, collector, plc, scada, ops, update-mirror] }, zone: { values: [hall-1, hall-2] } }\n",
                ),
                (
                    "schedules:",
                    "schedules: { shift: { days: [mon], from: \"08:00\", to: \"18:00\", tz: site } }\n",
                ),
                ("services:", "services: { modbus: [ tcp/502 ] }\n"),
                (
                    "segments:",
                    "segments: { ot: { select: \"role in (plc, scada)\", mode: enforce } }\n",
                ),
            ] {
                if !body.lines().any(|l| l.starts_with(section)) {
                    text += default;
                }
            }
        }
        text += body;
        let (policy, findings) = parse(&text, "reference");
        let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
        match kind.trim() {
            "" => assert!(
                policy.is_some() && told.is_empty(),
                "example {number}: {told:?}\n{text}"
            ),
            "refused" => assert!(policy.is_none(), "example {number} is accepted\n{text}"),
            other => panic!("a block of kind {other}"),
        }
        blocks += 1;
    }
    assert!(blocks >= 12, "{blocks} examples");
}

#[test]
fn tests_hold_while_the_fleet_is_only_partly_enrolled() {
    let policy = policy(include_str!("../../../examples/plant.yaml"));
    let lone = device(1, "sensor-1", "hall", "role=sensor");
    let apart = device(2, "collector-1", "yard", "role=collector");
    for fleet in [vec![], vec![lone.clone()], vec![lone, apart]] {
        let failed: Vec<_> = test(&policy, &World::new(fleet))
            .into_iter()
            .filter(|r| !r.passed)
            .collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
}

#[test]
fn a_plan_warns_of_what_ends_where_the_underlay_becomes_enforced() {
    let observed = "mode: enforce }";
    let old = policy(&PLANT.replace(", underlay: enforce", ""));
    let enforced = |more: &str| {
        let text = PLANT.replace(", underlay: enforce", "");
        let text = text.replacen(observed, "mode: enforce, underlay: enforce }", 1);
        policy(&text.replace("\nrules:\n", &format!("\nrules:\n{more}")))
    };
    let warnings = |new: &Policy| plan(Some(&old), new, &plant()).warnings.join("\n");
    assert_eq!(warnings(&old), "");
    let bare = enforced("");
    let said = warnings(&bare);
    let parts = [
        "becomes enforced on",
        "ask a name server (dns)",
        "ask a time server (ntp)",
    ];
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
    let kept = plan(Some(&bare), &bare, &plant());
    assert!(kept.warnings.is_empty(), "it was so before");
    let rule = |service: &str| {
        format!(
            "  - {{ id: r-ask, from: \"role in (plc, scada)\", to: 10.20.0.53/32, service: {service} }}\n"
        )
    };
    let said = warnings(&enforced(&rule("dns")));
    assert!(
        !said.contains("name server") && said.contains("time server"),
        "{said}"
    );
    let said = warnings(&enforced(&rule("[dns, ntp]")));
    assert_eq!(said.lines().count(), 1, "{said}");
}
