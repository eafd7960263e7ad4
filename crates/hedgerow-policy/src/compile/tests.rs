use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::tests::{PLANT, device, file, policy};

/// What a class costs does not go with the number of sites.
#[test]
fn ten_thousand_sites_of_eight_roles_are_eight_programs() {
    let policy = policy(PLANT);
    let roles = [
        "sensor",
        "collector",
        "camera",
        "nvr",
        "scada",
        "plc",
        "ops",
        "contractor",
    ];
    let mut members: BTreeMap<Class, (Facts, usize)> = BTreeMap::new();
    for site in 0..10_000 {
        for role in roles {
            let facts = device(0, role, &format!("s{site}"), &format!("role={role}"));
            members
                .entry(class_of(&policy, &facts))
                .or_insert((facts, 0))
                .1 += 1;
        }
    }
    assert_eq!(members.len(), 8);
    assert!(members.values().all(|(_, n)| *n == 10_000));
    let programs: BTreeSet<Vec<u8>> = members
        .values()
        .map(|(f, _)| wire::encode(&compile(&policy, f).unwrap()))
        .collect();
    assert_eq!(programs.len(), 8);
    let elsewhere = device(9, "other", "s77", "role=plc");
    let again = wire::encode(&compile(&policy, &elsewhere).unwrap());
    assert!(
        programs.contains(&again),
        "another site's program is the same to the byte"
    );
}

#[test]
fn a_device_holds_only_rules_that_concern_it() {
    let policy = policy(PLANT);
    let ids = |role: &str| {
        let program = compile(&policy, &device(1, "d", "s1", &format!("role={role}"))).unwrap();
        let own = program.rules.iter().filter(|r| r.tier > tier::STATE);
        let mut ids: Vec<String> = own.map(|r| r.id.to_string()).collect();
        ids.dedup();
        ids
    };
    assert_eq!(ids("sensor"), ["g-plc", "r-mqtt"]);
    assert_eq!(ids("nvr"), ["g-plc", "r-rtsp"]);
    assert_eq!(ids("plc"), ["g-plc", "g-inet", "r-scada"]);
}

#[test]
fn a_ticket_that_disagrees_with_the_class_is_noticed() {
    let policy = policy(PLANT);
    let class = class_of(&policy, &device(1, "d", "s1", "role=plc"));
    assert!(class_matches(&class, &device(2, "e", "s2", "role=plc")));
    assert!(!class_matches(&class, &device(1, "d", "s1", "role=scada")));
    assert!(!class_matches(&class, &device(1, "d", "s1", "")));
    let other = class_of(&policy, &device(1, "d", "s1", "role=printer"));
    assert!(class_matches(&other, &device(2, "e", "s1", "role=gate")));
    assert!(!class_matches(&other, &device(2, "e", "s1", "role=plc")));
}

#[test]
fn a_program_that_is_too_large_is_refused_as_a_whole() {
    let names: Vec<String> = (0..400)
        .map(|i| format!("device-with-a-long-name-{i:030}"))
        .collect();
    let selectors: Vec<String> = names
        .chunks(30)
        .map(|c| format!("name in ({})", c.join(", ")))
        .collect();
    let rules: String = (0..800)
        .map(|i| {
            let to = &selectors[i % selectors.len()];
            format!("  - {{ id: r{i}, from: \"role=a\", to: \"{to}\", service: tcp/1 }}\n")
        })
        .collect();
    let (policy, findings) = crate::parse(&file(&format!("rules:\n{rules}")), "big");
    assert!(findings.is_empty(), "{}", findings[0]);
    let error = compile(&policy.unwrap(), &device(1, "d", "s1", "role=a")).unwrap_err();
    assert_eq!(error.what, "program bytes");
}

#[test]
fn the_spellings_of_states_are_rule_ids() {
    for state in [
        DeviceState::Onboarding,
        DeviceState::Quarantine,
        DeviceState::Held,
    ] {
        assert_eq!(state_id(state).as_str(), state.as_str());
    }
}
