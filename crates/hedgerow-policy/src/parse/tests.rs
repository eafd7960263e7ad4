use expect_test::{Expect, expect};

use super::*;
use crate::tests::{PLANT, file};

fn check(text: &str, expected: Expect) {
    let (policy, findings) = parse(text, "p.yaml");
    let told: String = findings.iter().map(|d| format!("{d}\n")).collect();
    assert_eq!(policy.is_none(), has_errors(&findings));
    expected.assert_eq(&told);
}

#[test]
fn json_is_accepted() {
    let text = r#"{"apiVersion": "hedgerow.policy/v1", "kind": "Policy",
        "labels": {"role": {"values": ["a"]}},
        "rules": [{"id": "r", "from": "role=a", "to": "role=a", "service": "tcp/1"}]}"#;
    check(text, expect![[r#""#]]);
    check(PLANT, expect![[r#""#]]);
}

#[test]
fn what_is_not_strict_yaml_is_refused() {
    check(
        "",
        expect![[r#"
        p.yaml:1:1: the file holds no policy; begin with apiVersion: hedgerow.policy/v1
    "#]],
    );
    check(
        "[]\n",
        expect![[r#"
        p.yaml:1:1: not a map; write { key: value, … }
    "#]],
    );
    check(
        &file("rules: [\n"),
        expect![[r#"
        p.yaml:4:8: not YAML: unclosed bracket '['; mend the YAML; what follows was not read
    "#]],
    );
    let text = file(
        "defaults: &anchor { log: none, log: sample/10s }\nmeta: !x { name: yes }\n\
         rules:\n  - *anchor\n  - { <<: 1, id: r }\n---\nx: 1\n",
    );
    check(
        &text,
        expect![[r#"
            p.yaml:4:19: an anchor; write the value out: anchors and aliases are not part of the language
            p.yaml:4:32: the key `log` stands twice, first at 4:21; keep one of the two
            p.yaml:5:10: the tag `!x`; remove it: tags are not part of the language
            p.yaml:5:18: a bare `yes`, which YAML readers take for different things; quote it if it is meant as text
            p.yaml:7:5: an alias; write the value out: anchors and aliases are not part of the language
            p.yaml:8:5: rules[1]: `from` or `to` is missing; say both ends; every device is spelt `any`
            p.yaml:8:5: rules[1]: `service` is missing; name a service, write tcp/502, or any
            p.yaml:8:7: a merge key; write the keys out: merge keys are not part of the language
            p.yaml:9:1: a second document; one file holds one policy: remove what follows `---`
        "#]],
    );
    check(
        &format!("a: {}", "[".repeat(60)),
        expect![[r#"
        p.yaml:1:63: not YAML: unclosed bracket '['; mend the YAML; what follows was not read
    "#]],
    );
    check(
        "a: {? [x] : 1}",
        expect![[r#"
        p.yaml:1:1: `apiVersion` is missing; write apiVersion: hedgerow.policy/v1
        p.yaml:1:1: `kind` is missing; write kind: Policy
        p.yaml:1:1: a: unknown key `a`; known here: apiVersion, kind, meta, labels, services, schedules, segments, guardrails, rules, states, defaults, tests
        p.yaml:1:7: a key that is not text; write a word
    "#]],
    );
}

const MISTAKES: &str = r#"colour: red
services: { web: [tcp/443, tcp/70000], none: [], bad: { l4: [udp/9-1], l7: modbus } }
schedules:
  s1: { days: [mon, someday], from: "8:00", to: "18:00", tz: Mars/Olympus }
  s2: { days: [mon], from: "08:00", to: "08:00", tz: site }
segments:
  g: { select: "role=plc", mode: watch, underlay: simulate }
rules:
  - { id: r1, from: "role=a and", to: "colour=red", service: gopher }
  - { id: r1, from: "role=a", to: "role=z", service: web, extra: 1 }
  - { id: Bad, from: "role=a", service: web, when: never }
  - { id: r3, from: "role=a", to: "role=b", service: web, limit: { rate: fast, per: flow }, tier: top }
  - { id: r4, from: "role=a & role=b", to: "(role=b", service: [] }
  - { id: default, from: "role in a", to: "segment=x", service: web, same: [colour] }
guardrails:
  - { id: g1, deny: { to: "role=a" }, except: [ r9 ] }
  - { id: g2 }
states: { asleep: { allow: [] }, quarantine: { allow: [ { to: any }, { } ] } }
defaults: { deny: inbound, log: all, unknown_device: { state: lost } }
tests:
  - { from: "role=a", to: "role=b", service: web, expect: maybe }
  - { from: "role=a", to: "role=b", service: web, expect: deny, by: magic, at: noon }
  - { invariant: "role=a may reach role=b" }
"#;

#[test]
fn every_mistake_of_a_file_is_told_at_its_place() {
    let text = file(MISTAKES);
    check(
        &text,
        expect![[r#"
            p.yaml:4:1: colour: unknown key `colour`; known here: apiVersion, kind, meta, labels, services, schedules, segments, guardrails, rules, states, defaults, tests
            p.yaml:5:28: services.web: `tcp/70000` is not a protocol and port; write tcp/8883, udp/5000-5100 or icmp-echo
            p.yaml:5:46: services.none: no protocol and port; write [ tcp/8883 ]
            p.yaml:5:62: services.bad.l4: `udp/9-1` ends before it begins; write tcp/8883, udp/5000-5100 or icmp-echo
            p.yaml:5:72: services.bad.l7: not supported yet: verbs of a protocol (l7); remove it until it is
            p.yaml:7:21: schedules.s1.days: `someday` is not known here; write one of: mon, tue, wed, thu, fri, sat, sun
            p.yaml:7:37: schedules.s1.from: `8:00` is not a time of day; write hours and minutes, e.g. "08:00"
            p.yaml:7:62: schedules.s1.tz: there is no time zone `Mars/Olympus`; write site, or an IANA zone, e.g. Europe/Berlin
            p.yaml:8:3: schedules.s2: the window ends when it begins; for a whole day write from: "00:00", to: "24:00"
            p.yaml:10:22: segments.g.select: the label role has no value `plc`; add it under labels.role.values; there are a, b, c
            p.yaml:10:34: segments.g.mode: `watch` is not known here; write one of: observe, simulate, enforce
            p.yaml:10:51: segments.g.underlay: `simulate` is not known here; write one of: observe, enforce
            p.yaml:12:32: rules[0].from: a condition is missing here; write one such as role=sensor
            p.yaml:12:47: rules[0].to: the label `colour` is not declared; declare it under labels; there are role, zone
            p.yaml:12:62: rules[0].service: the service `gopher` is not declared; declare it under services, or write tcp/502 or icmp-echo; there are bad, none, web
            p.yaml:13:41: rules[1].to: the label role has no value `z`; add it under labels.role.values; there are a, b, c
            p.yaml:13:59: rules[1].extra: unknown key `extra`; known here: id, deny, from, to, service, same, when, limit, mode, tier
            p.yaml:14:5: rules[2]: `from` or `to` is missing; say both ends; every device is spelt `any`
            p.yaml:14:11: rules[2].id: `Bad` is not an id; it takes a-z, 0-9 and - only
            p.yaml:14:52: rules[2].when: the schedule `never` is not declared; declare it under schedules; there are s2
            p.yaml:15:74: rules[3].limit.rate: `fast` is not a rate; write a number and bit/s, kbit/s, Mbit/s or Gbit/s, 8 kbit/s to 100 Gbit/s
            p.yaml:15:85: rules[3].limit.per: `flow` is not known here; write one of: source
            p.yaml:15:99: rules[3].tier: `top` is not known here; write one of: org, site
            p.yaml:16:29: rules[4].from: the character `&` in a selector; write conditions such as role=sensor
            p.yaml:16:52: rules[4].to: a parenthesis stays open; close it by `)`
            p.yaml:16:64: rules[4].service: no service; name one, or write any
            p.yaml:17:11: rules[5].id: the id `default` is built in; choose another
            p.yaml:17:35: rules[5].from: `in` without `(`; write key in (a, b)
            p.yaml:17:52: rules[5].to: the segment `x` is not declared; declare it under segments; there are g
            p.yaml:17:77: rules[5].same: `colour` cannot be shared by two devices; write site, or a declared label
            p.yaml:19:49: guardrails[0].except: the exception `r9` is no rule; name one of: none so far
            p.yaml:20:5: guardrails[1]: a guardrail has either `deny` or `allow`; write deny: { to: "role=plc" }
            p.yaml:21:11: states.asleep: `asleep` is not a state; write quarantine or onboarding
            p.yaml:21:57: states.quarantine.allow[0]: `service` is missing; name a service, or write any
            p.yaml:21:70: states.quarantine.allow[1]: either `to` or `from`: the other end is the device itself; write { to: builtin/controller }
            p.yaml:22:19: defaults.deny: `inbound` is not known here; write one of: both
            p.yaml:22:33: defaults.log: `all` is not a way to log refusals; write none, or sample/10s: one refusal per 10 seconds and reason
            p.yaml:22:63: defaults.unknown_device.state: `lost` is not known here; write one of: onboarding, none
            p.yaml:24:59: tests[0].expect: `maybe` is not known here; write one of: allow, deny, only builtin/controller
            p.yaml:25:69: tests[1].by: `magic` cannot have decided; write state, guardrail, default, schedule, or a rule: g1
            p.yaml:25:80: tests[1].at: `noon` is not a time; write date, time and offset, e.g. "2026-03-30T07:59+02:00"
            p.yaml:26:18: tests[2].invariant: not an invariant; write "A never reaches B", or "A never reaches B on SERVICE"
        "#]],
    );
}

#[test]
fn what_is_not_supported_yet_is_refused_at_its_position() {
    let text = file(
        r#"services: { modbus: { l4: [tcp/502], l7: modbus } }
rules:
  - { id: r1, from: group/ops, to: user/amy, service: modbus, l7: { function: [1] }, l7_fail: deny }
  - { id: r2, from: "role=a", to: vendor.example.com, service: modbus }
  - { id: r3, from: "role=a or id/plc-1", to: "role=b", service: modbus }
access: []
delegate: []
imports: []
rollout: {}
"#,
    );
    check(
        &text,
        expect![[r#"
        p.yaml:4:38: services.modbus.l7: not supported yet: verbs of a protocol (l7); remove it until it is
        p.yaml:6:21: rules[0].from: not supported yet: groups (`group/ops`); select devices by a label, e.g. role=ops
        p.yaml:6:36: rules[0].to: not supported yet: users (`user/amy`); select devices by a label, e.g. role=ops
        p.yaml:6:63: rules[0].l7: not supported yet: verbs of a protocol (l7); remove it until it is
        p.yaml:6:86: rules[0].l7_fail: not supported yet: verbs of a protocol (l7); remove it until it is
        p.yaml:7:35: rules[1].to: not supported yet: names of the DNS (`vendor.example.com`); write the addresses, e.g. 192.0.2.0/24
        p.yaml:8:32: rules[2].from: not supported yet: id/… (`id/plc-1`); write name=plc-1, or id= with the device's id
        p.yaml:9:1: access: not supported yet: just-in-time access; remove it until it is
        p.yaml:10:1: delegate: not supported yet: delegation to sites; remove it until it is
        p.yaml:11:1: imports: not supported yet: imports of device profiles (MUD); remove it until it is
        p.yaml:12:1: rollout: not supported yet: staged rollout; remove it until it is
    "#]],
    );
}

#[test]
fn contradictions_and_cycles_are_errors() {
    let text = file(
        r#"segments:
  g1: { select: "segment=g2", mode: enforce }
  g2: { select: "role=a or segment=g1", mode: enforce }
"#,
    );
    check(
        &text,
        expect![[r#"
        p.yaml:5:3: segments.g1.select: the segment `g1` is defined by itself; define it by labels, name, site or id
        p.yaml:6:3: segments.g2.select: the segment `g2` is defined by itself; define it by labels, name, site or id
    "#]],
    );
    let text = file(
        r#"segments:
  g1: { select: "role=a", mode: enforce }
  g2: { select: "zone=x", mode: observe }
  g3: { select: "role=b and not segment=g2", mode: simulate }
rules:
  - { id: r1, from: "role=a", to: "role=b", service: tcp/1-10, limit: { rate: 8 Mbit/s, per: source } }
  - { id: r2, from: "zone=x", to: "role in (b, c)", service: tcp/10 }
  - { id: r3, from: "role=b", to: "role=b", service: tcp/10 }
  - { id: r4, from: "zone=x", to: "role=b", service: tcp/10, tier: site }
  - { id: r5, from: "role=b", to: "role=c", service: tcp/80 }
  - { id: r6, deny: { from: "role=b", to: "role=c" } }
  - { id: r7, from: internet, to: 10.0.0.0/8, service: any }
  - { id: r8, from: "role=a", to: "not role=b", service: tcp/99 }
  - { id: r9, from: "role=a", to: internet, same: [site], service: tcp/98,
      limit: { rate: 8 Mbit/s, per: source } }

"#,
    );
    check(
        &text,
        expect![[r#"
            p.yaml:6:3: segments.g2: a device can be in `g1` and in `g2`, whose modes differ; narrow one, e.g. by `and not segment=g1`
            p.yaml:10:5: rules[1]: contradicts `r1`: both allow a flow in one tier, with different limits; make their ends or services distinct, or their limits equal
            p.yaml:14:5: rules[5]: `r5` allows nothing: `r6` of the same tier refuses all of it; remove one of the two
            p.yaml:15:5: rules[6]: neither end is a device of the mesh; select devices at one end
            p.yaml:16:5: rules[7].to: an allow rule to whatever is not something grows in silence; name the destinations that are meant
            p.yaml:17:5: rules[8].same: an underlay address shares nothing with a device; remove `same`
            p.yaml:17:5: rules[8].limit: no device of the mesh receives, so none can enforce the limit; remove it: limits bind at the receiver
        "#]],
    );
}

/// A mistake of one kind hides none of another.
#[test]
fn mistakes_of_every_kind_are_told_at_once() {
    let text = file(
        r#"services: { web: [tcp/80], web: [tcp/81] }
schedules: { w: { days: [mon], from: "08:00", to: "09:00", tz: Europe/Atlantis } }
rules:
  - { id: r1, from: "role=a", to: "role=b", service: web, limit: { rate: 8 Mbit/s, per: source } }
  - { id: r2, from: "role=a", to: "role=b", service: web, wen: w }
  - { id: r3, from: "role=a", to: "role=b", service: web, limit: { rate: 1 Mbit/s, per: source } }
  - { id: r4, from: "role = = a", to: "rank=b", service: web }
"#,
    );
    check(
        &text,
        expect![[r#"
        p.yaml:4:28: the key `web` stands twice, first at 4:13; keep one of the two
        p.yaml:5:64: schedules.w.tz: there is no time zone `Europe/Atlantis`; write site, or an IANA zone, e.g. Europe/Berlin
        p.yaml:8:5: rules[1]: contradicts `r1`: both allow a flow in one tier, with different limits; make their ends or services distinct, or their limits equal
        p.yaml:8:59: rules[1].wen: unknown key `wen`; known here: id, deny, from, to, service, same, when, limit, mode, tier
        p.yaml:9:5: rules[2]: contradicts `r1`: both allow a flow in one tier, with different limits; make their ends or services distinct, or their limits equal
        p.yaml:9:5: rules[2]: contradicts `r2`: both allow a flow in one tier, with different limits; make their ends or services distinct, or their limits equal
        p.yaml:10:29: rules[3].from: a value is missing here; write key=value
        p.yaml:10:45: rules[3].to: the label `rank` is not declared; declare it under labels; there are role, zone
    "#]],
    );
}

#[test]
fn what_is_legal_but_odd_is_a_warning() {
    let text = file(
        r#"guardrails:
  - { id: g1, deny: { to: "role=a" }, except: [ r2 ] }
rules:
  - { id: r1, from: "", to: "role=a", service: tcp/1 }
  - { id: r2, from: "role=a and role=b", to: "role=a", service: tcp/2 }
  - { id: r3, from: "role=a", to: "role=b", same: [role], service: tcp/3 }
"#,
    );
    check(
        &text,
        expect![[r#"
        p.yaml:5:5: warning: guardrails[0].except: the exception `r2` speaks of other flows; remove it, or mend its selectors
        p.yaml:7:5: warning: rules[0]: no two devices can match both ends; mend the selectors, or remove the rule
        p.yaml:7:22: warning: rules[0].from: an empty selector, which selects nothing; write `any` for every device, or remove the rule
        p.yaml:8:5: warning: rules[1]: no two devices can match both ends; mend the selectors, or remove the rule
        p.yaml:9:5: warning: rules[2]: no two devices can match both ends; mend the selectors, or remove the rule
    "#]],
    );
}

#[test]
fn ports_are_read_strictly() {
    assert_eq!(ports("udp/5000-5100").unwrap().to_string(), "udp/5000-5100");
    for bad in [
        "tcp",
        "tcp/",
        "tcp/+1",
        "tcp/1-",
        "sctp/1",
        "tcp/65536",
        "tcp/2-1",
        "icmp",
    ] {
        assert!(ports(bad).is_err(), "{bad}");
    }
}

/// Small files that would unfold into large ones are refused before they do.
#[test]
fn bombs_are_refused() {
    let first = |text: &str| {
        let (policy, findings) = parse(text, "p.yaml");
        assert!(policy.is_none());
        findings.first().unwrap().message.clone()
    };
    let chain: String = (0..200)
        .map(|i| {
            let below = format!("segment=s{}", i + 1);
            let select = vec![below; 50].join(" or ");
            format!("  s{i}: {{ select: \"{select}\", mode: enforce }}\n")
        })
        .collect();
    let chain = file(&format!(
        "segments:\n{chain}  s200: {{ select: any, mode: enforce }}\n"
    ));
    assert_eq!(first(&chain), "segments nested deeper than 8");
    let fan: String = (0..7)
        .map(|i| {
            let select = vec![format!("segment=s{}", i + 1); 30].join(" and ");
            format!("  s{i}: {{ select: \"{select}\", mode: enforce }}\n")
        })
        .collect();
    let fan = file(&format!(
        "segments:\n{fan}  s7: {{ select: any, mode: enforce }}\n"
    ));
    assert_eq!(first(&fan), "the selector needs more than 512 operations");
    let keys: String = (0..20_000).map(|i| format!("k{i}: 1\n")).collect();
    assert_eq!(first(&keys), "`apiVersion` is missing");
    let rules = "  - {}\n".repeat(5_000);
    assert_eq!(
        first(&file(&format!("rules:\n{rules}"))),
        "5000 items, at most 2000"
    );
    let deep = file(&format!(
        "rules: [{{ id: r, from: \"{}role=a\" }}]\n",
        "(".repeat(2000)
    ));
    assert_eq!(first(&deep), "`from` or `to` is missing");
}
