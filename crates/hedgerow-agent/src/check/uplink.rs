//! Controllers: reachable from here?

use std::time::Duration;

use super::Finding;
use crate::config::Config;
use crate::shell::local::{Request, ask};
use crate::shell::store::Store;

const CONNECT_WITHIN: Duration = Duration::from_secs(3);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    const NAME: &str = "uplink";
    if let Ok(Some(status)) = ask(config, &Request::Status).await {
        let connected = status.pointer("/uplink/controller");
        if let Some(controller) = connected.and_then(serde_json::Value::as_str) {
            return vec![Finding::ok(NAME, format!("session with {controller}"))];
        }
        let error = status.pointer("/uplink/last_error");
        let error = error
            .and_then(serde_json::Value::as_str)
            .unwrap_or("no attempt yet");
        return vec![Finding::error(
            NAME,
            format!("no session: {error}"),
            "see whether the controller runs and its port is open; the last policy stays in force",
        )];
    }
    let store = Store::peek(&config.state);
    let mut controllers = config.controllers.clone();
    if let Ok(Some(enrollment)) = store.enrollment() {
        controllers.extend(enrollment.controllers);
    }
    let mut findings = vec![Finding::warning(
        "agent",
        "the agent does not run",
        "start it: `systemctl start hedgerow-agent`",
    )];
    for controller in controllers {
        let attempt = tokio::net::TcpStream::connect(&controller);
        findings.push(match tokio::time::timeout(CONNECT_WITHIN, attempt).await {
            Ok(Ok(_)) => Finding::ok(NAME, format!("{controller} answers")),
            Ok(Err(e)) => Finding::error(
                NAME,
                format!("{controller} cannot be reached: {e}"),
                "see whether the controller runs and its port is open from here",
            ),
            Err(_) => Finding::error(
                NAME,
                format!("{controller} does not answer"),
                "see whether a firewall drops TCP to it",
            ),
        });
    }
    findings
}
