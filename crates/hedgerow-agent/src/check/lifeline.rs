//! What stays open when the underlay is enforced, and what of this machine does not.

use std::net::IpAddr;

use serde_json::Value;

use super::Finding;
use crate::config::Config;
use crate::shell::lifeline;
use crate::shell::local::{Request, ask};

const NAME: &str = "lifeline";

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let status = ask(config, &Request::Status).await.ok().flatten();
    let mut findings: Vec<Finding> = status.iter().filter_map(askers).collect();
    findings.extend(status.iter().filter_map(sessions));
    findings.extend(status.iter().filter_map(trial));
    findings.extend(resolver(&lifeline::name_servers(config)));
    findings
}

/// Who may ask the name and time servers, as the running agent's table has it.
fn askers(status: &Value) -> Option<Finding> {
    let text = |path: &str| status.pointer(path).and_then(Value::as_str);
    match text("/lifeline/askers")? {
        "anybody" => {
            let reason = text("/lifeline/askers_reason").unwrap_or("no control group of its own");
            Some(Finding::warning(
                NAME,
                format!(
                    "the lifeline is by address: where the underlay is enforced, any program may \
                     ask the name and time servers ({reason})"
                ),
                "run the agent as a service of its own on a system with control groups version 2, \
                 as packaging/systemd/hedgerow-agent.service does",
            ))
        }
        _ => Some(Finding::ok(
            NAME,
            "of this device's programs, the lifeline lets only the agent ask the name and time \
             servers",
        )),
    }
}

/// Connections that enforcing the underlay would end; the operator's own may be among them.
fn sessions(status: &Value) -> Option<Finding> {
    let list = status.pointer("/lifeline/sessions_at_stake")?.as_array()?;
    let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    if list.is_empty() {
        return None;
    }
    Some(Finding::warning(
        "underlay",
        format!(
            "enforcing the underlay would end {} connections: {}",
            list.len(),
            list.join(", ")
        ),
        "put the addresses that you manage devices from into `[fleet] management` of the controller \
         or `lifeline.management` here, and write rules for the rest",
    ))
}

fn trial(status: &Value) -> Option<Finding> {
    let left = status.pointer("/lifeline/trial_seconds_left")?.as_u64()?;
    Some(Finding::warning(
        "underlay",
        format!("the underlay's enforcement is on trial, and taken back in {left} s"),
        "it stays as soon as the controller is heard: see `uplink`",
    ))
}

/// The agent asks a program of this machine, whose own questions are not the agent's.
fn resolver(servers: &[IpAddr]) -> Option<Finding> {
    let local = servers.iter().find(|a| a.is_loopback())?;
    if !servers.iter().all(IpAddr::is_loopback) {
        return None;
    }
    Some(Finding::warning(
        NAME,
        format!(
            "names are asked of a program on this machine ({local}): where the underlay is \
             enforced, what it asks itself is a matter of policy"
        ),
        "before the underlay is enforced, write a rule from this device to its name servers \
         (docs/operate/first-site.md), or name the controllers by address",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Severity;
    use super::*;

    #[test]
    fn a_lifeline_by_address_is_named_with_its_reason() {
        let status = |askers: &str| json!({ "lifeline": { "askers": askers, "askers_reason": "no cgroup2" } });
        let finding = askers(&status("anybody")).unwrap();
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.message.contains("by address") && finding.message.contains("no cgroup2"));
        assert_eq!(askers(&status("agent")).unwrap().severity, Severity::Ok);
        assert_eq!(askers(&json!({ "lifeline": null })), None);
    }

    #[test]
    fn what_enforcement_would_end_and_a_trial_are_said() {
        let status = |sessions: Value, left: Value| json!({ "lifeline": { "sessions_at_stake": sessions, "trial_seconds_left": left } });
        let bad = status(json!(["192.0.2.7:51514 to 10.0.0.1:22"]), json!(42));
        let finding = sessions(&bad).unwrap();
        assert!(finding.message.contains("192.0.2.7:51514 to 10.0.0.1:22"));
        assert!(trial(&bad).unwrap().message.ends_with("in 42 s"));
        let good = status(json!([]), Value::Null);
        assert!(sessions(&good).is_none() && trial(&good).is_none());
    }

    #[test]
    fn a_resolver_on_this_machine_is_a_matter_of_policy() {
        let list = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let finding = resolver(&list(&["127.0.0.53"])).unwrap();
        assert!(finding.message.contains("127.0.0.53"));
        assert_eq!(resolver(&list(&["127.0.0.53", "10.0.0.53"])), None);
        assert_eq!(resolver(&[]), None);
    }
}
