use std::collections::VecDeque;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use expect_test::{expect, expect_file};
use hedgerow_model::{Fault, Wall};
use serde_json::{Value, json};

use crate::api::{Api, Body, Request};
use crate::args::Args;
use crate::error::CliError;
use crate::shell::{Shell, Style, Surroundings};

/// Answers in order, and notes what was asked.
#[derive(Default)]
struct Fake {
    answers: VecDeque<Result<Value, CliError>>,
    asked: Vec<String>,
}

impl Api for Fake {
    fn call(&mut self, request: Request) -> Result<Value, CliError> {
        let query: Vec<String> = request
            .query
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{}", query.join("&"))
        };
        let body = match &request.body {
            Body::None => String::new(),
            Body::Json(value) => format!(" {value}"),
            Body::Yaml(text) => format!(" <{} bytes of YAML>", text.len()),
        };
        self.asked.push(format!(
            "{:?} {}{query}{body}",
            request.method, request.path
        ));
        // A wait asks again and again: the last answer stands.
        if let (1, "status", Some(Ok(last))) = (
            self.answers.len(),
            request.path.as_str(),
            self.answers.front(),
        ) {
            return Ok(last.clone());
        }
        self.answers
            .pop_front()
            .expect("more requests than answers")
    }
}

struct Still(Wall);

impl Surroundings for Still {
    fn now(&self) -> Wall {
        self.0
    }
    fn pause(&mut self, span: Duration) {
        self.0 = self.0 + span;
    }
    fn read_text(&mut self, file: &str) -> Result<String, CliError> {
        match file {
            "plant.yaml" => Ok("kind: Policy\n".to_owned()),
            _ => Err(CliError::invalid(
                format!("cannot read {file}: no such file"),
                "check the path",
            )),
        }
    }
}

/// Runs a command line; returns requests, standard output, standard error and exit code.
fn run(line: &str, answers: impl IntoIterator<Item = Result<Value, CliError>>) -> String {
    let words = line.split(' ').map(|word| word.replace('^', " "));
    let args = Args::try_parse_from(words).unwrap_or_else(|e| panic!("{e}"));
    let mut api = Fake {
        answers: answers.into_iter().collect(),
        asked: vec![],
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut system = Still(Wall::from_secs(1_774_857_540));
    let mut shell = Shell {
        api: &mut api,
        out: &mut out,
        err: &mut err,
        style: Style::new(false),
        json: args.json,
        system: &mut system,
        config: None,
    };
    let code = match super::run(args.command, &mut shell) {
        Ok(code) => format!("{code:?}"),
        Err(error) => {
            error.report(args.json, &mut err).unwrap();
            format!("error {}", error.exit_code())
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let asked = api.asked.join("\n");
    format!(
        "{asked}\n-- out\n{}-- err\n{}-- {code}\n",
        text(out),
        text(err)
    )
}

fn device(name: &str, verified: &str, connected: bool) -> Value {
    json!({
        "id": "kapum36fnnqzehvcusio2dgasy", "name": name, "site": "s1", "state": null,
        "flagged": false, "session_held": false, "connected": connected,
        "wanted_revision": "1.8", "verified_revision": verified, "verified": verified == "1.8",
        "verified_age_ms": 4_200, "seen_age_ms": 9_000_000, "rejected": null,
        "labels": {"role": "camera", "zone": "hall-3"},
        "addresses": {"v6": "fdeb:f92e:3284::2", "v4": "100.80.0.2"},
    })
}

fn status(devices: Vec<Value>) -> Value {
    json!({
        "trust_domain": "plant.example", "revision": "1.8", "policy_revision": "1.7",
        "root_hash": "5a".repeat(32), "enrolled": devices.len(), "connected": 2, "verified": 1, "quarantined": 0, "flagged": 0,
        "devices": devices,
    })
}

#[test]
fn the_command_line_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn a_token_is_one_line_to_paste_and_no_argument() {
    let made = json!({"token": "hgt1.AbC-_d", "id": "3f2a", "site": "s1", "labels": {"role": "sensor"},
        "count": 1, "approve": false, "expires_ms": 1_774_861_140_000u64});
    let line = "hedgerow token create --site s1 --labels role=sensor --ttl 1h";
    expect![[r#"
        Post tokens {"approve":false,"count":1,"labels":{"role":"sensor"},"name":null,"site":"s1","ttl_secs":3600}
        -- out
        printf %s hgt1.AbC-_d | hedgerow-agent enroll
        -- err
        Token 3f2a for site s1, good once until 2026-03-30T08:59:00Z. Paste this line on the device, as root:


        Whoever has the line can enroll in its place until then: send it like a password.
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run(line, [Ok(made)]));
}

#[test]
fn a_token_that_could_break_out_of_its_line_is_not_shown() {
    let made = json!({"token": "hgt1.$(reboot)", "id": "3f2a"});
    let shown = run("hedgerow token create --site s1", [Ok(made)]);
    assert!(
        shown.contains("error 3") && !shown.contains("reboot"),
        "{shown}"
    );
}

#[test]
fn tokens_are_listed() {
    let token = |id: &str, status: &str, approve: bool| {
        json!({"id": id, "site": "s1", "labels": {}, "name": null, "approve": approve, "count": 2,
            "used": 1, "status": status, "expires_ms": 1_774_861_140_000u64})
    };
    let tokens = [token("3f2a", "open", true), token("77", "revoked", false)];
    expect![[r#"
        Get tokens
        -- out
        TOKEN  SITE  LABELS  NAME  USED  UNTIL                 STATE
        3f2a   s1    -       -     1/2   2026-03-30T08:59:00Z  open, with approval
        77     s1    -       -     1/2   2026-03-30T08:59:00Z  revoked
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run("hedgerow token list", [Ok(json!({"tokens": tokens}))]));
}

#[test]
fn devices_are_listed_with_those_that_wait() {
    let mut held = device("nvr", "1.7", false);
    held["state"] = "held".into();
    let waiting = json!({"fingerprint": "abcd-efgh", "hostname": "gw-9", "site": null, "labels": {},
        "source": "192.0.2.7:40000", "decision": "waiting", "created_ms": 1_774_857_000_000u64});
    let answers = [
        Ok(json!({"devices": [device("camera", "1.8", true), held]})),
        Ok(json!({"pending": [waiting]})),
    ];
    expect![[r#"
        Get devices?site=s1
        Get pending
        -- out
        DEVICE     LABELS                   IPV6               IPV4        STATE   CONNECTED
        camera.s1  role=camera,zone=hall-3  fdeb:f92e:3284::2  100.80.0.2  normal  yes
        nvr.s1     role=camera,zone=hall-3  fdeb:f92e:3284::2  100.80.0.2  held    no

        Waiting for `hedgerow device approve` or `reject`:

        FINGERPRINT  HOSTNAME  SITE  LABELS  FROM             SINCE
        abcd-efgh    gw-9      -     -       192.0.2.7:40000  2026-03-30T07:50:00Z
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run("hedgerow device list --site s1", answers));
}

#[test]
fn those_that_wait_are_listed_alone() {
    let waiting = |decision: &str| {
        json!({"fingerprint": "abcd-efgh", "hostname": "gw-9", "site": "s1",
            "labels": {"role": "plc"}, "source": "192.0.2.7:40000", "decision": decision,
            "created_ms": 1_774_857_000_000u64})
    };
    let answer = json!({"pending": [waiting("waiting"), waiting("rejected")]});
    expect![[r#"
        Get pending
        -- out
        Waiting for `hedgerow device approve` or `reject`:

        FINGERPRINT  HOSTNAME  SITE  LABELS    FROM             SINCE
        abcd-efgh    gw-9      s1    role=plc  192.0.2.7:40000  2026-03-30T07:50:00Z
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run("hedgerow device list --pending", [Ok(answer)]));
    let none = run(
        "hedgerow device list --pending",
        [Ok(json!({"pending": []}))],
    );
    assert!(none.contains("No device waits for approval."), "{none}");
}

#[test]
fn who_waits_is_approved_with_what_is_given_and_nothing_else() {
    let line = "hedgerow device approve abcd-efgh --site s1 --labels role=plc --name plc-1";
    expect![[r#"
        Post devices/abcd-efgh/approve {"labels":{"role":"plc"},"name":"plc-1","site":"s1"}
        -- out
        abcd-efgh is approved.
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run(line, [Ok(json!({"fingerprint": "abcd-efgh"}))]));
    expect![[r#"
        Post devices/gw-9/approve {}
        -- out
        {
          "device": {
            "fingerprint": "abcd-efgh"
          },
          "rollout": null
        }
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run(
        "hedgerow --json device approve gw-9",
        [Ok(json!({"fingerprint": "abcd-efgh"}))],
    ));
}

#[test]
fn who_waits_is_turned_away() {
    expect![[r#"
        Post devices/gw-9/reject {}
        -- out
        gw-9 is turned away.
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run("hedgerow device reject gw-9", [Ok(json!({}))]));
    let unknown = CliError::new(
        Fault::Operator,
        "unknown_device",
        "no device waits under `gw-9`",
        "`hedgerow device list --pending` shows them",
    );
    expect![[r#"
        Post devices/gw-9/reject {}
        -- out
        -- err
        error: no device waits under `gw-9`
          help: `hedgerow device list --pending` shows them
        -- error 1
    "#]]
    .assert_eq(&run("hedgerow device reject gw-9", [Err(unknown)]));
}

#[test]
fn a_device_is_removed_by_its_name_whatever_is_in_it() {
    expect![[r#"
        Delete devices/camera.s1
        -- out
        camera.s1 is removed.
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run("hedgerow device remove camera.s1", [Ok(json!({}))]));
    let odd = run("hedgerow device remove a/../b", [Ok(json!({}))]);
    assert!(odd.starts_with("Delete devices/a%2F..%2Fb\n"), "{odd}");
}

#[test]
fn quarantine_says_what_is_not_yet_true() {
    let behind = status(vec![
        device("camera", "1.8", true),
        device("nvr", "1.7", true),
        device("plc", "1.7", false),
    ]);
    let answers = [Ok(json!({"state": "quarantine"})), Ok(behind)];
    let shown = run(
        "hedgerow device quarantine camera.s1 --reason talks^to^strangers --wait 1s",
        answers,
    );
    let (asked, rest) = shown.split_once("-- out\n").unwrap();
    assert!(asked.starts_with(
        "Post devices/camera.s1/quarantine {\"reason\":\"talks to strangers\"}\nGet status\n"
    ));
    expect![[r#"
        Quarantine is ordered for camera.s1.
        Verified in the kernel of 1 device.
        Not yet verified by nvr.s1.
        Not connected, still on what they had: plc.s1. They learn of it when they are back.
        -- err
          waiting for nvr.s1
        -- ExitCode(unix_exit_status(4))
    "#]]
    .assert_eq(rest);
}

#[test]
fn labels_not_named_stay() {
    let answers = [Ok(device("camera", "1.8", true)), Ok(json!({}))];
    let shown = run(
        "hedgerow device label camera zone- line=4 --wait 0s",
        answers,
    );
    expect![[r#"
        Get devices/camera
        Put devices/camera/labels {"labels":{"line":"4","role":"camera"}}
        -- out
        camera is now line=4,role=camera.
        -- err
        `hedgerow status` says which devices have verified it.
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&shown);
    let wrong = run("hedgerow device label camera Zone=4 --replace", []);
    assert!(wrong.contains("-- error 1"), "{wrong}");
}

#[test]
fn a_policy_with_mistakes_shows_all_of_them_in_its_own_name() {
    let mut error = CliError::new(
        Fault::Operator,
        "policy_invalid",
        "the policy has 2 errors; the running revision is unchanged",
        "mend them all; each says where it is and what to write",
    );
    error.details = vec![
        json!({"file": "policy.yaml", "line": 3, "column": 7, "severity": "error",
            "field": "rules[0].from", "message": "unknown label `rol`", "remedy": "did you mean `role`?"}),
        json!({"file": "policy.yaml", "line": 9, "column": 1, "severity": "error", "field": "",
            "message": "unknown key `ruls`", "remedy": "did you mean `rules`?"}),
    ];
    expect![[r#"
        Post policy/check <13 bytes of YAML>
        -- out
        -- err
        plant.yaml:3:7: rules[0].from: unknown label `rol`; did you mean `role`?
        plant.yaml:9:1: unknown key `ruls`; did you mean `rules`?
        error: the policy has 2 errors; the running revision is unchanged
          help: mend them all; each says where it is and what to write
        -- error 1
    "#]]
    .assert_eq(&run("hedgerow policy check plant.yaml", [Err(error)]));
}

fn planned(ok: bool) -> Value {
    json!({
        "ok": ok, "rules_added": ["r-new"], "rules_removed": ["r-old"], "rules_changed": [],
        "gained": [{"from": "role=sensor", "to": "role=nvr", "relation": "same site",
            "service": "tcp/554", "before": "refused", "after": "allowed"}],
        "lost": [], "devices_affected": 4, "programs": 8, "rules_max": 12,
        "tests": [{"title": "sensor never reaches plc", "line": 40, "passed": ok, "detail": "s-1 does"}],
        "too_large": [], "warnings": ["names are a matter of policy"], "needs_confirmation": [],
    })
}

#[test]
fn a_plan_shows_who_gains_and_what_fails() {
    expect![[r#"
        Post policy/plan <13 bytes of YAML>
        -- out
        + rule r-new
        - rule r-old
                FROM         TO        SERVICE  WHEN       BEFORE   AFTER
        gained  role=sensor  role=nvr  tcp/554  same site  refused  allowed
        4 devices affected, 8 programs, at most 12 rules in one.
        FAILED  plant.yaml:40: sensor never reaches plc
                s-1 does
        Warning: names are a matter of policy
        This would be refused.
        -- err
        -- ExitCode(unix_exit_status(1))
    "#]]
    .assert_eq(&run(
        "hedgerow policy plan plant.yaml",
        [Ok(planned(false))],
    ));
}

#[test]
fn a_plan_shows_live_sessions_that_would_be_cut_and_says_what_is_unknown() {
    let mut plan = planned(true);
    plan["gained"] = json!([]);
    plan["warnings"] = json!([]);
    plan["live"] = json!({
        "cut": [{"from": "s-1.plant-1", "to": "nvr.plant-1", "service": "tcp/554", "sessions": 3}],
        "left_out": 0, "devices_asked": 3, "devices_answered": 2, "devices_not_asked": 1,
    });
    let shown = run("hedgerow policy plan plant.yaml", [Ok(plan.clone())]);
    for line in [
        "Live sessions that would be cut:",
        "3         s-1.plant-1  nvr.plant-1  tcp/554",
        "Unknown: live sessions of 1 devices that did not answer and 1 that could not be asked.",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    plan["live"] = json!({
        "cut": [], "left_out": 0, "devices_asked": 3, "devices_answered": 3, "devices_not_asked": 0,
    });
    let shown = run("hedgerow policy plan plant.yaml", [Ok(plan)]);
    assert!(
        shown.contains("No live session would be cut (3 devices asked)."),
        "{shown}"
    );
}

#[test]
fn applied_is_not_the_same_as_in_force() {
    let applied = json!({
        "revision": "1.8", "hash": "ab", "connected": 2, "verified": 1, "waiting": 1,
        "last_verified_ms": 41.6, "plan": planned(true),
        "devices": [
            {"id": "a", "name": "camera.s1", "received_ms": 9.0, "verified_ms": 41.6, "rejected": null},
            {"id": "b", "name": "nvr.s1", "received_ms": 9.0, "verified_ms": null, "rejected": null},
        ],
    });
    let now = status(vec![
        device("camera", "1.8", true),
        device("plc", "1.7", false),
    ]);
    expect![[r#"
        Post policy/apply?note=night shift&wait=30&confirm=true <13 bytes of YAML>
        Get status
        -- out
        Revision 1.8 is accepted.
        The last kernel verified it 42 ms after the decision.
        Verified in the kernel of 1 device.
        Not yet verified by nvr.s1.
        Not connected, still on what they had: plc.s1. They learn of it when they are back.
        -- err
          waiting up to 30 s for every connected device's kernel
        -- ExitCode(unix_exit_status(4))
    "#]]
    .assert_eq(&run(
        "hedgerow policy apply plant.yaml --wait 30 --note night^shift --confirm",
        [Ok(applied), Ok(now)],
    ));
}

#[test]
fn tests_that_fail_are_exit_code_1() {
    let tested = json!({"ok": false, "passed": 1, "failed": 1, "tests": [
        {"title": "a reaches b", "line": 3, "passed": true, "detail": ""},
        {"title": "c never reaches d", "line": 4, "passed": false, "detail": "c-1 -> d-2 passes"},
    ]});
    expect![[r#"
        Post policy/test <13 bytes of YAML>
        -- out
        ok      plant.yaml:3: a reaches b
        FAILED  plant.yaml:4: c never reaches d
                c-1 -> d-2 passes
        1 passed, 1 failed
        -- err
        -- ExitCode(unix_exit_status(1))
    "#]]
    .assert_eq(&run("hedgerow policy test plant.yaml", [Ok(tested)]));
}

#[test]
fn an_explanation_is_shown_as_the_evaluator_tells_it() {
    let answer = json!({"revision": "1.7", "at_ms": 0, "explanations": [
        {"passes": false, "text": "camera.s1 -> nvr.s1 tcp/554: refused\n  by r-rtsp\u{1b}[2J"},
    ]});
    expect![[r#"
        Get explain?from=camera.s1&to=nvr.s1&service=rtsp&at=2026-03-30T07:59+02:00
        -- out
        camera.s1 -> nvr.s1 tcp/554: refused
          by r-rtsp�[2J
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run(
        "hedgerow explain camera.s1 nvr.s1 rtsp --at 2026-03-30T07:59+02:00",
        [Ok(answer)],
    ));
}

#[test]
fn status_shows_whoever_is_not_as_it_should_be() {
    let now = status(vec![
        device("camera", "1.8", true),
        device("nvr", "1.7", true),
        device("plc", "1.7", false),
    ]);
    expect![[r#"
        Get status
        -- out
        plant.example: revision 1.8, policy 1.7
        root hash 5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a
        3 devices, 2 connected, 1 of these verified in their kernel, 0 quarantined, 0 flagged

        DEVICE  CONNECTED  IN THE KERNEL  AGE  STATE
        nvr.s1  yes        still 1.7      4 s  normal
        plc.s1  no         still 1.7      2 h  normal
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run("hedgerow status", [Ok(now)]));
}

#[test]
fn events_are_filtered_and_spelt_out() {
    let event = |kind: &str, severity: &str| {
        json!({"seq": 4, "at_ms": 1_774_857_540_000u64, "kind": kind, "severity": severity,
            "device": "kap", "device_name": "camera.s1", "peer": null, "peer_name": null,
            "reporter": null, "details": {"source": "100.80.0.9"}})
    };
    let events = [
        event("address_spoofed", "high"),
        event("agent_started", "informational"),
    ];
    expect![[r#"
        Get events?limit=50
        -- out
        2026-03-30T07:59:00Z  address_spoofed  camera.s1  source=100.80.0.9
        -- err
        -- ExitCode(unix_exit_status(0))
    "#]]
    .assert_eq(&run(
        "hedgerow events --kind address_spoofed",
        [Ok(json!({"events": events, "last": 4}))],
    ));
}

#[test]
fn followed_events_go_on_where_the_last_answer_ended() {
    let event = |seq: u64| {
        json!({"seq": seq, "at_ms": 1_774_857_540_000u64, "kind": "agent_started",
            "severity": "informational", "device": "kap", "device_name": "camera.s1",
            "details": {}})
    };
    let gone = CliError::new(
        Fault::Environment,
        "unreachable",
        "cannot reach x",
        "is it running?",
    );
    let answers = [
        Ok(json!({"events": [event(4)], "last": 4})),
        Ok(json!({"events": [], "last": 4})),
        Ok(json!({"events": [event(5)], "last": 5})),
        Err(gone),
    ];
    expect![[r#"
        Get events?limit=50
        Get events?after=4&limit=50
        Get events?after=4&limit=50
        Get events?after=5&limit=50
        -- out
        2026-03-30T07:59:00Z  agent_started  camera.s1
        2026-03-30T07:59:00Z  agent_started  camera.s1
        -- err
        error: cannot reach x
          help: is it running?
        -- error 4
    "#]]
    .assert_eq(&run("hedgerow events --follow", answers));
}

#[test]
fn a_check_that_finds_something_says_how_to_mend_it() {
    let mut flagged = device("nvr", "1.8", true);
    flagged["flagged"] = true.into();
    let now = status(vec![flagged, device("plc", "1.7", false)]);
    expect![[r#"
        Get status
        -- out
        ok       controller: answers
        error    keys: one key, two sessions: nvr.s1
                 help: find the copy; then `hedgerow device release`, or `revoke` and enroll anew
        warning  uplinks: not connected, still on what they had: plc.s1
                 help: they go on enforcing; check power, link and `hedgerow-agent check` there
        -- err
        -- ExitCode(unix_exit_status(1))
    "#]]
    .assert_eq(&run("hedgerow check --agent-state /nonexistent", [Ok(now)]));
    let down = CliError::new(
        Fault::Environment,
        "unreachable",
        "cannot reach x",
        "is it running?",
    );
    let shown = run(
        "hedgerow --json check --agent-state /nonexistent",
        [Err(down)],
    );
    assert!(
        shown.contains("\"grade\": \"error\"") && shown.contains("status(1)"),
        "{shown}"
    );
}

#[test]
fn json_errors_are_one_line_of_json() {
    let shown = run("hedgerow --json policy apply missing.yaml", []);
    expect![[r#"

        -- out
        -- err
        {"error":{"code":"invalid_request","details":[],"message":"cannot read missing.yaml: no such file","remedy":"check the path"}}
        -- error 1
    "#]]
    .assert_eq(&shown);
}

#[test]
fn json_answers_are_the_controllers() {
    let answer = json!({"sites": [{"name": "s1", "zone": "UTC", "devices": 2}]});
    let shown = run("hedgerow site list --json", [Ok(answer.clone())]);
    let out = shown
        .split("-- out\n")
        .nth(1)
        .unwrap()
        .split("-- err")
        .next()
        .unwrap();
    assert_eq!(serde_json::from_str::<Value>(out).unwrap(), answer);
}

#[test]
fn a_closed_pipe_is_no_error_and_no_panic() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut api = Fake {
        answers: [Ok(json!({"sites": [{"name": "a"}]}))].into(),
        asked: vec![],
    };
    let mut shell = Shell {
        api: &mut api,
        out: &mut Closed,
        err: &mut Vec::new(),
        style: Style::new(false),
        json: false,
        system: &mut Still(Wall::from_secs(0)),
        config: None,
    };
    let args = Args::try_parse_from(["hedgerow", "site", "list"]).unwrap();
    assert!(
        super::run(args.command, &mut shell)
            .unwrap_err()
            .is_closed_pipe()
    );
}

/// The reference page is what `--help` says. Update it with `UPDATE_EXPECT=1 cargo nextest run -p
/// hedgerow-cli`.
#[test]
fn the_reference_page_is_what_help_says() {
    let mut page =
        "# hedgerow\n\nGenerated from the command line's own help; a test compares it.\n"
            .to_owned();
    let mut command = Args::command().term_width(100);
    command.build();
    describe(&mut command, &mut page);
    let trimmed: Vec<&str> = page.lines().map(str::trim_end).collect();
    expect_file!["../../../../docs/reference/cli.md"]
        .assert_eq(&format!("{}\n", trimmed.join("\n")));
}

fn describe(command: &mut clap::Command, page: &mut String) {
    let name = command
        .get_bin_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let inherited = ["config", "json", "help", "version"];
    let mut shown = command.clone();
    if name.contains(' ') {
        let known: Vec<String> = shown
            .get_arguments()
            .map(|arg| arg.get_id().to_string())
            .collect();
        for id in inherited
            .into_iter()
            .filter(|id| known.iter().any(|known| known == id))
        {
            shown = shown.mut_arg(id, |arg| arg.hide(true));
        }
    }
    let help = shown.render_long_help().to_string();
    page.push_str(&format!(
        "\n## {name}\n\n```text\n{}\n```\n",
        help.trim_end()
    ));
    let children = command
        .get_subcommands_mut()
        .filter(|c| c.get_name() != "help");
    children.for_each(|child| describe(child, page));
}
