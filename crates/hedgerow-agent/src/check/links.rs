//! Links over TLS: whether a relay can take those of devices whose UDP is blocked.

use serde_json::Value;

use super::Finding;
use crate::config::Config;
use crate::shell::local::{Request, ask};

const NAME: &str = "relay_port";
const REMEDY: &str = "stop the program that has the port (`ss -ltnp`), or set mesh.relay_listen to another, and mesh.relay_port to the \
     same on all devices; until then devices whose UDP is blocked do not get in here";

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let status = ask(config, &Request::Status).await.ok().flatten();
    // Without an agent nobody knows whether this device is a relay; `uplink` says that there is none.
    status
        .and_then(|status| judge(&status))
        .into_iter()
        .collect()
}

/// Says where links are taken; nothing of a device that takes none.
fn judge(status: &Value) -> Option<Finding> {
    let text = |path: &str| status.pointer(path).and_then(Value::as_str);
    if let Some(trouble) = text("/mesh/links/error") {
        let message = format!("this relay takes no links over TLS: {trouble}");
        return Some(Finding::error(NAME, message, REMEDY));
    }
    let address = text("/mesh/links/listens")?;
    Some(Finding::ok(
        NAME,
        format!("links over TLS are taken at {address}"),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Severity;
    use super::*;

    #[test]
    fn a_port_that_another_program_has_is_an_error_with_a_remedy() {
        let of = |links: Value| judge(&json!({ "mesh": { "links": links } }));
        assert_eq!(
            of(json!({ "listens": null, "error": null })),
            None,
            "no relay"
        );
        let taken = of(json!({ "listens": null, "error": "[::]:443: Address already in use" }));
        let taken = taken.unwrap();
        assert_eq!(taken.severity, Severity::Error);
        assert!(taken.message.contains("[::]:443: Address already in use"));
        assert!(taken.remedy.contains("ss -ltnp") && taken.remedy.contains("mesh.relay_listen"));
        let well = of(json!({ "listens": "[::]:443", "error": null })).unwrap();
        assert_eq!(well.severity, Severity::Ok);
        assert!(well.message.contains("[::]:443"));
    }
}
