//! The controller as a program: real TLS, real files, a scripted agent.
#![expect(
    clippy::disallowed_methods,
    reason = "the test starts the program and reads the clock"
)]

#[cfg(test)]
mod agent;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod beginnings;
#[cfg(test)]
mod central;

use std::time::Duration;

use agent::Device;
use central::Central;
use hedgerow_identity::enroll::Token;
use hedgerow_identity::enroll::wire::{EnrollReply, RefusalCode};
use hedgerow_model::address::Overlay;
use hedgerow_model::packet::{Direction, LiveFlow};
use hedgerow_model::resource::ResourceKind;
use hedgerow_model::service::Protocol;
use hedgerow_model::statement::{PeerQuery, Revoked};
use hedgerow_sync::agent::Output;
use hedgerow_sync::message::{Command, Flows};
use serde_json::json;

const POLICY: &str = "\
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: two-roles }
labels:
  role: { values: [sensor, collector] }
segments:
  all: { select: any, mode: enforce }
rules:
  - { id: r-mqtt, from: \"role=sensor\", to: \"role=collector\", same: [site], service: mqtts }
defaults: { deny: both }
";

fn fleet(central: &Central) -> (Device, Device) {
    central.post("sites", &json!({"name": "s1", "zone": "Europe/Berlin"}));
    let sensor = central.enroll(json!({"site": "s1", "labels": {"role": "sensor"}, "name": "a"}));
    let collector =
        central.enroll(json!({"site": "s1", "labels": {"role": "collector"}, "name": "b"}));
    (sensor, collector)
}

#[test]
fn init_refuses_to_overwrite_and_leaves_private_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let central = Central::new();
    let mut again = central.command(&["init", "--trust-domain", "x.example", "--endpoint", "h:1"]);
    let again = again.arg("--dir").arg(&central.dir).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("never overwrites"));
    let mut waiting = vec![central.dir.clone()];
    while let Some(path) = waiting.pop() {
        let metadata = std::fs::metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
}

#[test]
fn the_api_wants_an_operator_and_says_what_is_wrong() {
    let central = Central::started();
    let (status, answer) = central.ask_without_certificate("status");
    assert_eq!(
        (status, &answer["error"]["code"]),
        (401, &json!("certificate_required"))
    );
    let (status, _) = central.ask("GET", "nothing", "");
    assert_eq!(status, 404);
    let (status, answer) = central.ask("POST", "sites", r#"{"name":"s1","colour":1}"#);
    assert_eq!(
        (status, &answer["error"]["code"]),
        (422, &json!("invalid_request"))
    );
    let (status, answer) = central.ask("POST", "policy/check", "apiVersion: nonsense\nx: 1\n");
    assert_eq!(
        (status, &answer["error"]["code"]),
        (422, &json!("policy_invalid"))
    );
    let findings = answer["error"]["details"].as_array().unwrap();
    assert!(findings.len() >= 2 && findings.iter().all(|f| f["line"].is_u64()));
    let before = central.get("policy")["revision"].clone();
    let (status, _) = central.ask("POST", "policy/apply", "kind: Policy\n");
    assert_eq!(
        (status, central.get("policy")["revision"].clone()),
        (422, before)
    );
    let (status, answer) = central.ask("POST", "sites", &"x".repeat(5 << 20));
    assert_eq!(
        (status, &answer["error"]["code"]),
        (422, &json!("body_refused"))
    );
}

#[test]
fn a_token_works_once_for_one_key_on_its_own_connection() {
    let central = Central::started();
    central.post("sites", &json!({"name": "s1"}));
    let wish = json!({"site": "s1", "labels": {"role": "sensor"}, "name": "a"});
    let token = Token::parse(&central.token(wish)).unwrap();
    let (key, introduction) = (agent::new_key(), agent::new_introduction_key());

    let other = central.enroll_raw(&token, &key, introduction, agent::Cheat::OtherExporter);
    assert_eq!(refusal(&other), Some(RefusalCode::BadSignature));
    let first = central.enroll_raw(&token, &key, introduction, agent::Cheat::None);
    let again = central.enroll_raw(&token, &key, introduction, agent::Cheat::None);
    match (&first, &again) {
        (EnrollReply::Issued(a), EnrollReply::Issued(b)) => {
            assert_eq!(
                (a.device, &a.ticket, &a.chain),
                (b.device, &b.ticket, &b.chain)
            );
        }
        other => panic!("{other:?}"),
    }
    let thief = central.enroll_raw(&token, &agent::new_key(), introduction, agent::Cheat::None);
    assert_eq!(refusal(&thief), Some(RefusalCode::TokenSpent));
    central.until("an event says that the token was reused", || {
        central.has_event("token_reused")
    });

    let unknown = Token::generate(
        token.endpoints().to_vec(),
        token.genesis(),
        &mut agent::Random,
    );
    let unknown = unknown.unwrap();
    let reply = central.enroll_raw(&unknown, &key, introduction, agent::Cheat::None);
    assert_eq!(refusal(&reply), Some(RefusalCode::TokenUnknown));
    central.until("an event says that it was refused", || {
        central.has_event("enrollment_refused")
    });
}

#[test]
fn a_controller_of_another_root_is_not_believed() {
    let (ours, theirs) = (Central::started(), Central::started());
    ours.post("sites", &json!({"name": "s1"}));
    let token = Token::parse(&ours.token(json!({"site": "s1"}))).unwrap();
    assert!(agent::hello(theirs.port, token.genesis()).is_err());
    assert!(agent::hello(ours.port, token.genesis()).is_ok());
}

#[test]
fn an_operator_approves_exactly_the_key_that_waits() {
    let central = Central::started();
    central.post("sites", &json!({"name": "s1"}));
    let (key, introduction) = (agent::new_key(), agent::new_introduction_key());
    let EnrollReply::Pending { fingerprint, .. } = central.enroll_without(&key, introduction)
    else {
        panic!("not pending");
    };
    assert_eq!(
        central.get("pending")["pending"][0]["fingerprint"],
        json!(fingerprint)
    );
    let path = format!("devices/{fingerprint}/approve");
    let (status, _) = central.ask("POST", &path, "{}");
    assert_eq!(status, 422, "nothing says which site");
    let body = json!({"site": "s1", "labels": {"role": "sensor"}, "name": "approved"});
    assert_eq!(central.post(&path, &body)["name"], json!("approved"));
    let issued = central.enroll_without(&key, introduction);
    assert!(matches!(issued, EnrollReply::Issued(_)), "{issued:?}");
    for _ in 0..10 {
        central.enroll_without(&agent::new_key(), introduction);
    }
    let full = central.enroll_without(&agent::new_key(), introduction);
    assert_eq!(refusal(&full), Some(RefusalCode::Busy));
}

#[test]
fn a_policy_reaches_the_kernel_of_everyone_and_time_is_told() {
    let central = Central::started();
    let (mut sensor, mut collector) = fleet(&central);
    let (mut a, mut b) = (sensor.connect(&central), collector.connect(&central));
    a.until("the first program", |u| u.holds(ResourceKind::Program));
    b.until("the first program", |u| u.holds(ResourceKind::Program));
    let before = a.revision();

    let apply = central.ask_later("POST", "policy/apply?wait=10", POLICY);
    a.until("the new program", |u| u.revision() > before && u.is_idle());
    b.until("the new program", |u| u.revision() > before && u.is_idle());
    a.settle(Duration::from_millis(200));
    b.settle(Duration::from_millis(200));
    let (status, answer) = apply.join().unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        (&answer["connected"], &answer["verified"]),
        (&json!(2), &json!(2)),
        "{answer}"
    );
    assert!(answer["last_verified_ms"].as_f64().unwrap() < 10_000.0);
    assert!(a.has_rule("r-mqtt"));
    a.until("the collector's name", |u| u.names() == ["b"]);
    assert!(b.names().is_empty(), "the collector begins nothing");

    let rows = central.get("reach?services=mqtts,ssh")["rows"].clone();
    let row = |service: &str| {
        let mut rows = rows.as_array().unwrap().iter();
        rows.find(|r| r["from"] == "a.s1" && r["service"] == service)
            .unwrap()["passes"]
            .clone()
    };
    assert_eq!((row("mqtts"), row("ssh")), (json!(true), json!(false)));
    let explained = central.get("explain?from=a&to=b&service=mqtts");
    assert_eq!(explained["explanations"][0]["passes"], json!(true));
    let back = central.post("policy/rollback", &json!({}));
    assert!(
        back["plan"]["rules_removed"]
            .as_array()
            .unwrap()
            .contains(&json!("r-mqtt"))
    );
    a.until("the old program again", |u| !u.has_rule("r-mqtt"));
    let history = central.get("policy/history")["revisions"].clone();
    assert_eq!(history[0]["parent"], history[1]["hash"]);
}

#[test]
fn a_plan_names_the_live_sessions_it_would_cut_and_never_takes_silence_for_none() {
    let central = Central::started();
    let (mut sensor, mut collector) = fleet(&central);
    let to = Overlay(collector.address().into());
    let (mut a, b) = (sensor.connect(&central), collector.connect(&central));
    central.ask("POST", "policy/apply", POLICY);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    a.until("the policy", |u| u.has_rule("r-mqtt"));
    let plan = central.ask_later(
        "POST",
        "policy/plan",
        &POLICY.replace("service: mqtts", "service: ssh"),
    );
    let wanted = a.expect("the question", |o| matches!(o, Output::FlowsWanted(_)));
    let Output::FlowsWanted(id) = wanted else {
        panic!("{wanted:?}");
    };
    let flow = |port, count| LiveFlow {
        peer: to,
        direction: Direction::Out,
        protocol: Protocol::Tcp,
        port,
        count,
    };
    // What neither policy lets through is not cut by the new one.
    let flows = vec![flow(8883, 3), flow(22, 1), flow(443, 9)];
    let left_out = 2;
    let answer = Flows {
        id,
        flows,
        left_out,
    };
    a.session.flows(answer).unwrap();
    a.settle(Duration::from_millis(100));
    let (status, answer) = plan.join().unwrap();
    assert_eq!(status, 200, "{answer}");
    let cut = json!([{"from": "a.s1", "to": "b.s1", "service": "tcp/8883", "sessions": 3}]);
    let want = json!({
        "cut": cut, "left_out": 2, "devices_asked": 2, "devices_answered": 1, "devices_not_asked": 0,
    });
    assert_eq!(answer["live"], want, "b was asked and said nothing");

    b.close();
    a.close();
    let gone = || {
        central
            .ask("POST", "policy/plan", &POLICY.replace("mqtts", "ssh"))
            .1
    };
    central.until("both are gone", || {
        gone()["live"]["devices_not_asked"] == json!(2)
    });
}

#[test]
fn a_relay_is_told_which_policy_is_the_newest_and_no_other_device_is() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let labels = json!({"role": "gateway", "relay": "yes"});
    let mut relay = central.enroll(json!({"site": "s1", "labels": labels, "name": "r"}));
    let trust = relay.trust().clone();
    let (mut a, mut r) = (sensor.connect(&central), relay.connect(&central));
    let has_head = |o: &Output| matches!(o, Output::Beacon(_, Some(_)));
    let head = |output: Output| {
        let Output::Beacon(_, Some(bytes)) = output else {
            panic!("{output:?}");
        };
        trust.verify_bundle_head(&bytes).unwrap().into_inner()
    };
    let first = head(r.expect("the head at the beginning", has_head));
    r.until("the first program", |u| u.holds(ResourceKind::Program));
    a.until("the first program", |u| u.holds(ResourceKind::Program));
    let before = r.revision();
    let with_relays = POLICY.replace("[sensor, collector]", "[sensor, collector, gateway]");
    let with_relays = with_relays.replace("segments:", "  relay: { values: [\"yes\"] }\nsegments:");
    let applied = central.ask_later("POST", "policy/apply", &with_relays);
    let second = head(r.expect("the head of the new policy", has_head));
    r.until("the new program", |u| u.revision() > before && u.is_idle());
    a.until("the new program", |u| u.revision() > before && u.is_idle());
    let (status, answer) = applied.join().unwrap();
    assert_eq!(status, 200, "{answer}");
    assert!(second.revision > first.revision);
    assert_eq!(r.revision(), Some(second.revision));
    let history = central.get("policy/history")["revisions"].clone();
    assert_eq!(history[0]["hash"], json!(second.hash.to_string()));
    a.settle(Duration::from_millis(200));
    assert!(!a.has(has_head));
}

#[test]
fn labels_states_and_revocation_reach_connected_agents() {
    let central = Central::started();
    let (mut sensor, mut collector) = fleet(&central);
    let (mut a, mut b) = (sensor.connect(&central), collector.connect(&central));
    central.ask("POST", "policy/apply", POLICY);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    b.until("a program", |u| u.holds(ResourceKind::Program));
    let (id, address) = (a.device.id, a.device.address());

    a.session
        .endpoints(
            vec![
                "192.0.2.1:7117"
                    .parse()
                    .map(hedgerow_model::address::Underlay)
                    .unwrap(),
            ],
            vec![],
        )
        .unwrap();
    a.settle(Duration::from_millis(200));
    b.session
        .resolve(7, PeerQuery::Address(Overlay(address.into())))
        .unwrap();
    let Output::Resolved {
        id: 7,
        peer: Some(peer),
    } = b.expect("an answer", |o| matches!(o, Output::Resolved { .. }))
    else {
        panic!("not resolved");
    };
    assert_eq!(peer.endpoints.len(), 1);

    central.ask(
        "PUT",
        "devices/a.s1/labels",
        r#"{"labels":{"role":"collector"}}"#,
    );
    a.until("a new ticket", |u| u.ticket().epoch == 2);
    b.until("the lowest epoch", |u| {
        u.revocations().min_epochs == [(id, 2)]
    });
    central.post("devices/a/quarantine", &json!({"reason": "test"}));
    b.until("the state", |u| u.states().entries.len() == 1);
    central.post("devices/a/release", &json!({}));
    b.until("no state", |u| u.states().entries.is_empty());
    central.post("devices/a/revoke", &json!({"reason": "lost"}));
    b.until("the revocation", |u| {
        u.revocations()
            .entries
            .iter()
            .any(|e| e.what == Revoked::Device(id))
    });
    a.until_closed();
    let refused = sensor.try_connect(&central).err().unwrap();
    assert!(refused.contains("revoked"), "{refused}");
}

#[test]
fn a_reconnect_with_everything_in_hand_costs_no_update_and_a_gap_is_repaired() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let mut a = sensor.connect(&central);
    a.until("names", |u| u.holds(ResourceKind::Names) && u.is_idle());
    a.settle(Duration::from_millis(1500));
    a.close();
    let mut a = sensor.connect(&central);
    a.settle(Duration::from_millis(500));
    assert_eq!(a.updates, 0, "nothing changed");
    a.close();
    sensor.forget(ResourceKind::Program);
    let mut a = sensor.connect(&central);
    a.until("the program again", |u| u.holds(ResourceKind::Program));
    assert_eq!(a.updates, 1);
}

#[test]
fn a_renewal_gives_a_new_certificate_while_the_session_lives() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    let key = agent::new_key();
    a.renew(&key);
    let Output::Renewed(new) = a.expect("a certificate", |o| matches!(o, Output::Renewed(_)))
    else {
        panic!("not renewed");
    };
    // A device cannot keep the issuer busy by renewing in a loop.
    a.renew(&agent::new_key());
    let refused = |o: &Output| {
        matches!(
            o,
            Output::RenewRefused {
                retry_after: Some(_),
                ..
            }
        )
    };
    a.expect("to be told to wait", refused);
    a.close();
    sensor.take(&new, key);
    let mut a = sensor.connect(&central);
    a.until("a session with the new key", |u| {
        u.is_idle() && u.holds(ResourceKind::Program)
    });
}

#[test]
fn a_copied_disk_is_held_and_both_are_flagged() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let mut copy = sensor.copied();
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    let mut b = copy.connect(&central);
    b.expect("being held", |o| matches!(o, Output::Held(_)));
    b.settle(Duration::from_millis(300));
    assert_eq!(b.updates, 0, "a held session gets nothing");
    central.until("both are flagged", || {
        central.get("devices/a")["flagged"] == json!(true) && central.has_event("key_copied")
    });
    a.settle(Duration::from_millis(100));
    assert!(a.session.is_open(), "the earlier one goes on");
}

#[test]
fn of_two_living_sessions_with_one_identity_the_later_is_held() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let mut copy = sensor.copied();
    copy.age(5);
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    let mut b = copy.connect(&central);
    b.expect("being held", |o| matches!(o, Output::Held(_)));
    assert!(
        !central.has_event("key_copied"),
        "the first may be gone: nothing is proven yet"
    );
    a.speak();
    a.settle(Duration::from_millis(300));
    central.until("both are flagged", || {
        central.get("devices/a")["flagged"] == json!(true) && central.has_event("key_copied")
    });
    b.settle(Duration::from_millis(100));
    assert_eq!(b.updates, 0, "a held session gets nothing");
    b.close();
    drop(a);

    // After the first is gone and an operator decided, the device is served again.
    let mut sensor = sensor.copied();
    sensor.age(20);
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
}

#[test]
fn a_restored_backup_loses_no_revocation_and_takes_its_devices_back() {
    let mut central = Central::started();
    let (mut sensor, mut collector) = fleet(&central);
    let file = central.dir.with_extension("backup");
    central.run(&["backup", file.to_str().unwrap(), "--config"]);

    // After the backup: a new device, a label change, a revocation.
    let mut late =
        central.enroll(json!({"site": "s1", "labels": {"role": "sensor"}, "name": "late"}));
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    central.ask(
        "PUT",
        "devices/a.s1/labels",
        r#"{"labels":{"role":"collector"}}"#,
    );
    central.post("devices/b/revoke", &json!({"reason": "stolen"}));
    a.until("the revocation", |u| {
        !u.revocations().entries.is_empty() && u.ticket().epoch == 2
    });
    let revision = a.revision().unwrap();
    a.close();

    central.restore(&file);
    let mut a = sensor.connect(&central);
    a.until("the new timeline", |u| {
        u.revision() > Some(revision) && u.is_idle()
    });
    assert!(a.revision().unwrap().timeline > revision.timeline);
    let entries = &a.revocations().entries;
    assert!(
        entries
            .iter()
            .any(|e| e.what == Revoked::Device(collector.id)),
        "lost"
    );
    assert_eq!(a.ticket().epoch, 2);
    assert_eq!(
        central.get("devices/a.s1")["labels"]["role"],
        json!("collector")
    );
    assert!(collector.try_connect(&central).is_err(), "still revoked");
    let mut l = late.connect(&central);
    l.until("being known again", |u| u.holds(ResourceKind::Program));
    assert_eq!(
        central.get("devices/late.s1")["id"],
        json!(late.id.to_string())
    );
    assert!(central.has_event("store_restored"));
}

#[test]
fn strangers_that_say_nothing_cannot_keep_agents_out() {
    let mut central = Central::new();
    central.configure("waiting_max", 4);
    central.start();
    let (mut sensor, _) = fleet(&central);
    let mut strangers: Vec<_> = (0..8)
        .filter_map(|_| agent::silent_stranger(central.port).ok())
        .collect();
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    let is_closed = |s: &mut dyn std::io::Read| {
        let mut byte = [0; 64];
        loop {
            match s.read(&mut byte) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => {
                    let waits = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
                    return !waits.contains(&e.kind());
                }
            }
        }
    };
    let mut open = 0;
    for stranger in &mut strangers {
        open += usize::from(!is_closed(stranger));
    }
    assert!(open <= 4, "{open} strangers were let in");
    central.until("the strangers are sent away", || {
        strangers.iter_mut().all(|s| is_closed(s))
    });
}

#[test]
fn a_source_that_leaves_handshakes_open_cannot_keep_agents_out() {
    let mut central = Central::new();
    central.configure("waiting_max", 64);
    central.configure("handshakes_max", 4);
    central.start();
    let (mut sensor, _) = fleet(&central);
    // Some say nothing at all, some begin a handshake and stop, and they come again and again.
    let source = [127, 0, 0, 66];
    let crowd: Vec<_> = (0..200)
        .filter_map(|n| agent::half_open(central.port, source, n % 2 == 0))
        .collect();
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    let left = crowd.iter().filter(|s| agent::is_open(s)).count();
    assert!(left <= 16, "{left} of the crowd are still let in");
    a.close();
    central.until("the crowd is sent away", || {
        !crowd.iter().any(agent::is_open)
    });
}

#[test]
fn an_operators_orders_reach_a_connected_device_alone() {
    let central = Central::started();
    let (mut sensor, _collector) = fleet(&central);
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    for (path, order) in [
        ("devices/a/rotate-keys", Command::RotateKeys),
        ("devices/a/reconnect", Command::Reconnect(500)),
    ] {
        central.post(path, &json!({}));
        a.expect("the order", |o| *o == Output::Command(order.clone()));
    }
    let (code, said) = central.ask("POST", "devices/b/reconnect", "");
    assert_eq!(
        (code, &said["error"]["code"]),
        (409, &json!("not_connected")),
        "{said}"
    );
}

#[test]
fn a_device_that_ended_long_ago_is_forgotten_and_others_are_not() {
    let mut central = Central::started();
    let (_sensor, mut collector) = fleet(&central);
    central.post("devices/a/revoke", &json!({"reason": "scrapped"}));
    central.stop();
    // Its certificate, the grace and the time after it have passed.
    let log = central.log_in_the_future("+200d", "forgotten");
    assert!(log.contains("count=1"), "{log}");
    central.start();
    let mut b = collector.connect(&central);
    b.until("a program", |u| u.holds(ResourceKind::Program));
}

#[test]
fn a_device_cannot_resolve_whom_policy_keeps_from_it() {
    let central = Central::started();
    let (mut sensor, mut collector) = fleet(&central);
    let (mut a, mut b) = (sensor.connect(&central), collector.connect(&central));
    a.until("a program", |u| u.holds(ResourceKind::Program));
    b.until("a program", |u| u.holds(ResourceKind::Program));
    assert!(!a.resolves(b.device.id) && !b.resolves(a.device.id));
    let before = (a.revision(), b.revision());
    central.ask("POST", "policy/apply", POLICY);
    a.until("the new program", |u| u.revision() > before.0);
    b.until("the new program", |u| u.revision() > before.1);
    assert!(a.resolves(b.device.id), "the initiator finds the responder");
    assert!(b.resolves(a.device.id), "and the responder the initiator");
}

#[test]
fn a_copy_that_counts_further_does_not_lock_the_device_out() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let mut copy = sensor.copied();
    copy.forge_generation(u64::MAX - 1);
    assert!(copy.try_connect(&central).is_err(), "out of range");
    copy.forge_generation(1000);
    let mut b = copy.connect(&central);
    b.until("a program: nobody else was there", |u| {
        u.holds(ResourceKind::Program)
    });
    b.close();
    let mut a = sensor.connect(&central);
    a.expect("being held", |o| matches!(o, Output::Held(_)));
    a.close();
    central.until("it is flagged", || {
        central.get("devices/a")["flagged"] == json!(true)
    });
    central.post("devices/a/release", &json!({}));
    let mut a = sensor.connect(&central);
    a.until("being served again", |u| u.holds(ResourceKind::Program));
    assert_eq!(central.get("devices/a")["flagged"], json!(false));
}

#[test]
fn a_held_copy_cannot_remove_or_redirect_the_device() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let mut copy = sensor.copied();
    let mut a = sensor.connect(&central);
    a.until("a program", |u| u.holds(ResourceKind::Program));
    let mut b = copy.connect(&central);
    b.expect("being held", |o| matches!(o, Output::Held(_)));
    assert!(!b.resolves(a.device.id));
    b.session.leave().unwrap();
    b.settle(Duration::from_millis(300));
    assert!(!central.has_event("device_left"));
    a.settle(Duration::from_millis(100));
    assert!(a.session.is_open());

    // A second copy takes the place of the first, which is not kept for ever.
    let mut second = b.device.copied();
    let mut c = second.connect(&central);
    c.expect("being held", |o| matches!(o, Output::Held(_)));
    b.until_closed();
}

#[test]
fn a_quarantine_survives_a_day_old_backup() {
    let mut central = Central::started();
    let (mut sensor, mut collector) = fleet(&central);
    let open = central.token(json!({"site": "s1", "labels": {"role": "sensor"}}));
    let file = central.dir.with_extension("backup");
    central.run(&["backup", file.to_str().unwrap(), "--config"]);
    let mut late =
        central.enroll(json!({"site": "s1", "labels": {"role": "sensor"}, "name": "late"}));
    let mut b = collector.connect(&central);
    central.post("devices/a/quarantine", &json!({"reason": "odd"}));
    central.post("devices/late/quarantine", &json!({"reason": "odd"}));
    b.until("both states", |u| {
        u.holds(ResourceKind::States) && u.states().entries.len() == 2
    });
    b.settle(Duration::from_millis(300));
    b.close();

    central.restore(&file);
    let mut b = collector.connect(&central);
    central.until("the quarantine is back", || {
        b.settle(Duration::from_millis(50));
        central.get("devices/a.s1")["state"] == json!("quarantine")
    });
    let mut l = late.connect(&central);
    l.until("being known again", |u| u.holds(ResourceKind::Program));
    assert_eq!(central.get("devices/late.s1")["state"], json!("quarantine"));
    b.until("both states again", |u| u.states().entries.len() == 2);
    drop(l);
    let mut a = sensor.connect(&central);
    a.until("its state", |u| {
        u.holds(ResourceKind::States) && u.states().entries.len() == 2
    });
    let token = Token::parse(&open).unwrap();
    let (key, introduction) = (agent::new_key(), agent::new_introduction_key());
    let spent = central.enroll_raw(&token, &key, introduction, agent::Cheat::None);
    assert_eq!(refusal(&spent), Some(RefusalCode::TokenUnknown));
}

#[test]
fn an_issuing_certificate_is_renewed_under_a_running_fleet() {
    let central = Central::started();
    let (mut sensor, _) = fleet(&central);
    let root = central.dir.join("root/root.pem");
    central.run(&[
        "issuer",
        "renew",
        "--root-key",
        root.to_str().unwrap(),
        "--passphrase-file",
        central.passphrase.to_str().unwrap(),
        "--config",
    ]);
    let mut a = sensor.connect(&central);
    a.until("the old certificate works on", |u| {
        u.holds(ResourceKind::Program)
    });
    central.reload();
    a.until("the new manifest", |u| u.manifest_version() == 2);
    central.run(&["operator", "renew", "--config"]);
    assert_eq!(central.get("status")["manifest"], json!(2));
}

fn refusal(reply: &EnrollReply) -> Option<RefusalCode> {
    match reply {
        EnrollReply::Refused { code, .. } => Some(*code),
        EnrollReply::Issued(_) | EnrollReply::Pending { .. } => None,
    }
}
