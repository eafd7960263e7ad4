//! Names of peers: who answers them, and who is asked.

use serde_json::Value;

use super::Finding;
use crate::config::Config;
use crate::shell::lifeline;
use crate::shell::local::{Request, ask};

const NAME: &str = "names";

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let status = ask(config, &Request::Status).await.ok().flatten();
    // Without an agent there is nothing to say: `agent` says that.
    let Some(status) = status else {
        return Vec::new();
    };
    let servers = lifeline::name_servers(config);
    let is_first = config.resolver.map(|r| servers.first() == Some(&r.ip()));
    vec![judge(&status, is_first == Some(true))]
}

/// Says what is in force. `is_first` is whether programs ask our resolver before any other.
fn judge(status: &Value, is_first: bool) -> Finding {
    let text = |path: &str| status.pointer(path).and_then(Value::as_str);
    let is = |path: &str| status.pointer(path) == Some(&Value::Bool(true));
    let hosts = text("/names/hosts_file");
    let block = hosts.map_or_else(
        || "no hosts file".to_owned(),
        |path| format!("the managed block of {path}"),
    );
    let Some(address) = text("/names/resolver/address") else {
        return match hosts {
            Some(_) => Finding::ok(NAME, format!("by {block}; the resolver is off")),
            None => Finding::warning(
                NAME,
                "names of peers are not found here: no hosts file and no resolver",
                "set names.resolver or names.hosts_file, or use addresses",
            ),
        };
    };
    if let Some(trouble) = text("/names/resolver/trouble") {
        return Finding::warning(
            NAME,
            format!("the resolver does not answer at {trouble}; names are found by {block}"),
            "free the address (`ss -lnp 'sport = :53'`), or set names.resolver to another, or to \"\"",
        );
    }
    if let Some(trouble) = text("/names/resolver/resolved/trouble") {
        return Finding::warning(
            NAME,
            format!(
                "systemd-resolved does not ask {address}: {trouble}; names are found by {block}"
            ),
            "see `resolvectl status` and `systemctl status systemd-resolved`",
        );
    }
    let asker = match (is("/names/resolver/resolved/asks"), is_first) {
        (true, _) => "systemd-resolved asks it",
        (false, true) => "the list of name servers begins with it",
        (false, false) => "whoever asks it gets an answer",
    };
    Finding::ok(
        NAME,
        format!("the resolver answers at {address}, {asker}; and by {block}"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Severity;
    use super::*;

    #[test]
    fn what_is_in_force_is_said_and_what_is_not_has_a_remedy() {
        let status = |hosts: Value, resolver: Value| json!({ "names": { "hosts_file": hosts, "resolver": resolver } });
        let at = "127.0.0.59:53";
        let cases = [
            (
                json!("/etc/hosts"),
                json!({ "address": at, "resolved": { "asks": true } }),
                "systemd-resolved asks it",
                Severity::Ok,
            ),
            (
                json!("/etc/hosts"),
                json!({ "address": at }),
                "whoever asks",
                Severity::Ok,
            ),
            (
                Value::Null,
                json!({ "address": at, "trouble": "127.0.0.59:53: in use" }),
                "in use; names are found by no hosts file",
                Severity::Warning,
            ),
            (
                Value::Null,
                json!({ "address": at, "resolved": { "trouble": "denied" } }),
                "denied",
                Severity::Warning,
            ),
            (
                json!("/etc/hosts"),
                json!({}),
                "resolver is off",
                Severity::Ok,
            ),
            (Value::Null, json!({}), "not found here", Severity::Warning),
        ];
        for (hosts, resolver, want, severity) in cases {
            let finding = judge(&status(hosts, resolver), false);
            assert!(finding.message.contains(want), "{}", finding.message);
            assert_eq!(finding.severity, severity, "{}", finding.message);
        }
        let first = judge(&status(Value::Null, json!({ "address": at })), true);
        assert!(first.message.contains("begins with it"));
    }
}
