//! What this machine adds to the lifeline: its name and time servers, and who may ask them.

use std::net::IpAddr;

use hedgerow_linux::{cgroup, disk, sessions};
use hedgerow_model::Now;
use hedgerow_model::packet::Direction;
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::Askers;
use serde_json::{Value, json};

use crate::config::Config;
use crate::state::State;

/// Most connections that are shown; the rest is left out.
const SHOWN_MAX: usize = 16;
/// Longest list of name servers that is read, in bytes.
const RESOLV_CONF_BYTES_MAX: usize = 64 << 10;

/// Returns the name servers that programs of this machine ask.
pub(crate) fn name_servers(config: &Config) -> Vec<IpAddr> {
    let text = disk::read_bounded(&config.resolv_conf, RESOLV_CONF_BYTES_MAX);
    let text = text.ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let addresses = text.lines().filter_map(|line| {
        let address = line.strip_prefix("nameserver").map(str::trim);
        address?.parse().ok()
    });
    addresses.collect()
}

/// Returns whose sockets may ask them: ours, by the control group that the service manager gave us.
pub(crate) fn askers() -> Askers {
    match cgroup::own() {
        Ok(group) => Askers::Group(group),
        Err(reason) => {
            tracing::warn!(
                %reason,
                "the lifeline is by address: where the underlay is enforced, any program may ask \
                 the name and time servers"
            );
            Askers::Anybody
        }
    }
}

/// Says what is kept open by the table in force, for `status` and `check`.
pub(super) fn status(state: &State, now: Now) -> Value {
    let (Some(table), _) = state.table() else {
        return Value::Null;
    };
    let lifeline = &table.lifeline;
    let askers = match lifeline.askers {
        Askers::Nobody => "nobody",
        Askers::Group(_) => "agent",
        Askers::Anybody => "anybody",
    };
    let reason = match lifeline.askers {
        Askers::Anybody => cgroup::own().err().map(|reason| reason.to_string()),
        Askers::Nobody | Askers::Group(_) => None,
    };
    let in_force = table.underlay_mode == Mode::Enforce;
    json!({
        "trial_seconds_left": state.trial_left(now.mono).map(|left| left.as_secs()),
        "sessions_at_stake": sessions_at_stake(state, now),
        "servers": lifeline.servers,
        "askers": askers,
        "askers_reason": reason,
        "by_address": in_force && lifeline.askers == Askers::Anybody,
        "management": lifeline.management.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "controllers": lifeline.controllers,
    })
}

/// Returns the connections that end when the underlay is enforced, as words.
fn sessions_at_stake(state: &State, now: Now) -> Vec<String> {
    let list = sessions::established().unwrap_or_default();
    let at_stake = state.sessions_at_stake(&list, now).into_iter();
    at_stake
        .take(SHOWN_MAX)
        .map(|s| match s.direction {
            Direction::In => format!("{} to {}", s.far, s.near),
            Direction::Out => format!("{} from {}", s.far, s.near),
        })
        .collect()
}
