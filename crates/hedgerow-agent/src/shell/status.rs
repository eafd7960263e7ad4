//! What `hedgerow-agent status` shows: gathered in the loop, printed by the command.

use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use hedgerow_identity::certificate::LeafFacts;
use hedgerow_identity::clock::ClockState;
use hedgerow_linux::nft::Ownership;
use hedgerow_linux::process;
use hedgerow_linux::tunnel::Command;
use hedgerow_mesh::path::{RouteStatus, Standing};
use hedgerow_mesh::{PeerStatus, Refusal};
use hedgerow_model::Wall;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::{DeviceId, Labels};
use hedgerow_model::path::Path;
use serde_json::{Map, Value, json};

use super::identity::Identity;
use super::lifeline;
use super::relay_link::RelayLinks;
use super::run::Daemon;

/// How long the tunnel's thread may take to list its peers.
const PEERS_WITHIN: Duration = Duration::from_millis(200);

/// Returns when an identity's certificate begins, if it can be read.
pub(crate) fn leaf_begins(identity: &Identity) -> Option<Wall> {
    leaf(identity).map(|facts| Wall::from_secs(facts.not_before_secs()))
}

fn leaf(identity: &Identity) -> Option<LeafFacts> {
    LeafFacts::parse(identity.chain.first()?).ok()
}

/// Gathers everything.
pub(super) fn of(daemon: &mut Daemon) -> Value {
    let now = daemon.clock.now();
    let clock = match daemon.clock.state() {
        ClockState::Trusted => "trusted",
        ClockState::Behind(_) => "behind",
        ClockState::Ahead(_) => "ahead",
    };
    let session = daemon.live.as_ref().filter(|l| l.welcomed);
    let controller = session.map(|l| l.endpoint.clone());
    let verified = daemon.state.verified();
    let facts = leaf(daemon.identities.current());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "resident_bytes": process::resident_bytes(),
        "device": device(daemon),
        "certificate": {
            "not_before": facts.as_ref().map(LeafFacts::not_before_secs),
            "not_after": facts.as_ref().map(LeafFacts::not_after_secs),
            "expired": facts.as_ref().is_some_and(|f| f.not_after_secs() < now.wall.secs()),
        },
        "uplink": {
            "connected": controller.is_some(),
            "controller": controller,
            "last_error": daemon.last_uplink_error,
        },
        "policy": {
            "revision": daemon.state.holdings().revision.map(|r| r.to_string()),
            "verified": verified.map(|v| v.revision.to_string()),
            "missed": daemon.state.missed_policy().map(|r| r.to_string()),
            "table_hash": verified.map(|v| v.table_hash.to_string()),
        },
        "table": table(daemon),
        "lifeline": lifeline::status(&daemon.state, now),
        "mesh": mesh(daemon),
        "names": names(daemon),
        "clock": { "state": clock, "trusted": now.wall_is_trusted, "seconds": now.wall.secs() },
        "events_waiting": daemon.state.spool().len(),
        "disk_failed": daemon.state.disk_failed(),
    })
}

fn device(daemon: &Daemon) -> Value {
    let ticket = daemon.state.ticket();
    json!({
        "id": ticket.id.to_string(),
        "name": ticket.name.as_str(),
        "site": ticket.site.as_str(),
        "trust_domain": daemon.state.trust().trust_domain().as_str(),
        "labels": ticket.labels.to_string(),
        "addresses": ticket.addresses.iter().map(|a| a.to_string()).collect::<Vec<_>>(),
        "epoch": ticket.epoch,
        "state": daemon.state.own_state().map(|s| s.as_str()),
        "held": daemon.state.held(),
    })
}

fn table(daemon: &mut Daemon) -> Value {
    let counters = daemon.table.counters().unwrap_or_default();
    let counters: Map<String, Value> = counters
        .into_iter()
        .filter(|(_, c)| c.packets > 0)
        .map(|(name, c)| (name, json!({ "packets": c.packets, "bytes": c.bytes })))
        .collect();
    let (table, intact) = daemon.state.table();
    json!({
        "loaded": table.is_some(),
        "intact": intact,
        "owned": daemon.table.ownership() == Some(Ownership::Owned),
        "generation": table.map(|t| t.generation),
        "peers": table.map(|t| t.peers.len()),
        "profiles": table.map(|t| t.profiles.len()),
        "underlay": table.map(|t| format!("{:?}", t.underlay_mode).to_lowercase()),
        "counters": counters,
    })
}

fn names(daemon: &Daemon) -> Value {
    let zone = daemon.resolver.zone();
    json!({
        "suffix": zone.as_ref().map(|z| z.suffix()),
        "count": zone.as_ref().map(|z| z.len()),
        "hosts_file": daemon.config.hosts_file,
        "resolver": daemon.resolver.status(),
    })
}

fn mesh(daemon: &Daemon) -> Value {
    let tunnel: Map<String, Value> = daemon
        .tunnel
        .iter()
        .flat_map(|t| t.stats().iter().collect::<Vec<_>>())
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    let mesh = daemon.state.mesh_status();
    // As peers see this device where that is none of its own addresses: a NAT stands between.
    let (whereabouts, homes) = daemon.state.whereabouts();
    let own = &daemon.local_endpoints;
    let relays: Vec<String> = homes
        .iter()
        .map(|home| mesh.peers.iter().find(|p| p.device == *home))
        .map(|p| p.map_or_else(|| "unknown".to_owned(), full_name))
        .collect();
    let refused: Map<String, Value> = Refusal::ALL
        .iter()
        .map(|reason| {
            (
                reason.to_string(),
                json!(mesh.refused.get(reason).unwrap_or(&0)),
            )
        })
        .collect();
    json!({
        "interface": daemon.config.interface,
        "port": daemon.tunnel.as_ref().map(|t| t.port()),
        "own": texts(own),
        "observed": texts(whereabouts.iter().filter(|e| !own.contains(e))),
        "home_relays": relays,
        "remembered": mesh.remembered,
        "datagrams_dropped": daemon.orders.dropped(),
        "refused": refused,
        "peers": peers(daemon),
        "gossip": gossip(daemon),
        "links": daemon.links_status(daemon.clock.now()),
        "tunnel": tunnel,
    })
}

fn labels(daemon: &Daemon, device: DeviceId) -> Map<String, Value> {
    let labels = daemon.state.labels_of(device);
    labels
        .into_iter()
        .flat_map(Labels::iter)
        .map(|(key, value)| (key.as_str().to_owned(), json!(value.as_str())))
        .collect()
}

fn full_name(peer: &PeerStatus) -> String {
    format!("{}.{}", peer.name, peer.site)
}

fn texts<'a>(list: impl IntoIterator<Item = &'a Underlay>) -> Vec<String> {
    list.into_iter().map(ToString::to_string).collect()
}

/// Names of devices by their own place, for whoever is reached through one.
type Places = BTreeMap<Underlay, String>;

fn kind(path: &Path) -> &'static str {
    match path.is_direct() {
        true => "direct",
        false => "relayed",
    }
}

/// Says what carries the datagrams of a path.
fn carrier(path: &Path) -> &'static str {
    match path.to.is_loopback() {
        true => "tls",
        false => "udp",
    }
}

/// Returns where a path leads: of a link, its far end.
fn address(path: &Path, links: &RelayLinks) -> String {
    let far = links.far(path.to).filter(|_| path.to.is_loopback());
    far.map_or_else(|| path.to.to_string(), |far| far.to_string())
}

/// Returns the name of the relay on a path: the peer whose own place that is.
fn relay(path: &Path, places: &Places) -> Option<String> {
    path.relay?;
    let name = places.get(&path.to).cloned();
    Some(name.unwrap_or_else(|| path.to.to_string()))
}

/// Lists the ways to a peer, the one in use first.
fn routes(found: &[RouteStatus], places: &Places, links: &RelayLinks) -> Vec<Value> {
    let mut found: Vec<&RouteStatus> = found.iter().collect();
    found.sort_by_key(|route| (!route.in_use, route.path));
    let shown = found.iter().map(|route| {
        json!({
            "address": address(&route.path, links),
            "carrier": carrier(&route.path),
            "kind": kind(&route.path),
            "relay": relay(&route.path, places),
            "in_use": route.in_use,
            "state": match route.standing {
                Standing::Fresh(_) => "fresh",
                Standing::Alive => "alive",
                Standing::Resting(_) => "resting",
            },
            "round_trip_seconds": route.round_trip.map(|d| d.as_secs_f64()),
            "loss_ratio": f64::from(route.loss_permille) / 1000.0,
            "mtu": route.mtu,
        })
    });
    shown.collect()
}

/// Signed items that are held and handed on; the other relays, where this device is one.
fn gossip(daemon: &Daemon) -> Value {
    let status = daemon.state.gossip_status();
    let records = status.items.iter().filter(|i| i.key.subject().is_some());
    let items: Map<String, Value> = status
        .items
        .iter()
        .filter(|item| item.key.subject().is_none())
        .map(|item| {
            let value = json!({ "version": item.version.to_string(), "bytes": item.bytes });
            (item.key.kind().as_str().to_owned(), value)
        })
        .collect();
    let refused: Map<String, Value> = status
        .refused
        .iter()
        .map(|(reason, count)| (reason.to_string(), json!(count)))
        .collect();
    let members: Vec<Value> = status
        .members
        .iter()
        .map(|m| json!({ "id": m.device.to_string(), "suspected": m.is_suspected }))
        .collect();
    json!({
        "items": items,
        "endpoint_records": records.count(),
        "members": members,
        "refused": refused,
    })
}

fn peers(daemon: &Daemon) -> Vec<Value> {
    let (reply, receiver) = sync_channel(1);
    let asked = daemon
        .tunnel
        .as_ref()
        .is_some_and(|t| t.send(Command::ListPeers { reply }).is_ok());
    let traffic = match asked {
        true => receiver.recv_timeout(PEERS_WITHIN).unwrap_or_default(),
        false => Vec::new(),
    };
    let now = daemon.clock.now();
    let peers = daemon.state.mesh_status().peers;
    let direct = |peer: &PeerStatus| peer.endpoint.filter(Path::is_direct);
    let places: Places = peers
        .iter()
        .filter_map(|p| Some((direct(p)?.to, full_name(p))))
        .collect();
    let traffic: BTreeMap<DeviceId, _> = traffic.into_iter().map(|t| (t.device, t)).collect();
    peers
        .iter()
        .map(|peer| {
            let seen = traffic.get(&peer.device);
            let known = daemon.state.routes(peer.device);
            let used = known.iter().find(|r| r.in_use);
            let psk = daemon.state.psk_status(peer.device);
            let agreed = psk.and_then(|p| p.agreed_at);
            json!({
                "id": peer.device.to_string(),
                "name": peer.name.as_str(),
                "site": peer.site.as_str(),
                "labels": labels(daemon, peer.device),
                "addresses": peer.addresses.iter().map(|a| a.to_string()).collect::<Vec<_>>(),
                "endpoint": peer.endpoint.map(|e| e.to_string()),
                "path": peer.endpoint.map(|e| kind(&e)),
                "address": peer.endpoint.map(|e| address(&e, &daemon.links)),
                "carrier": peer.endpoint.map(|e| carrier(&e)),
                "relay": peer.endpoint.and_then(|e| relay(&e, &places)),
                "routes": routes(&known, &places, &daemon.links),
                "round_trip_seconds": used.and_then(|r| r.round_trip).map(|d| d.as_secs_f64()),
                "loss_ratio": used.map(|r| f64::from(r.loss_permille) / 1000.0),
                "session": peer.in_session,
                "key": hexadecimal(&peer.wireguard_key.0),
                "keys_overlap": peer.keys_overlap,
                "psk_age_seconds": agreed.map(|at| now.mono.since(at).as_secs()),
                "psk_failures": psk.map(|p| p.failures),
                "ticket_not_after": peer.ticket_not_after_secs,
                "grace": peer.ticket_not_after_secs < now.wall.secs(),
                "binding_not_after": peer.binding_not_after_secs,
                "post_quantum": seen.map(|s| s.psk),
                "session_seconds": seen.and_then(|s| s.session_age).map(|d| d.as_secs()),
                "received_bytes": seen.map(|s| s.received_bytes),
                "sent_bytes": seen.map(|s| s.sent_bytes),
                "last_received_seconds": seen.and_then(|s| s.last_received).map(|d| d.as_secs()),
            })
        })
        .collect()
}

/// What is not as it should be: where to look, the bad value, what it means.
const WARNINGS: [(&str, bool, &str); 6] = [
    (
        "/uplink/connected",
        false,
        "not connected to a controller: the last policy stays in force",
    ),
    (
        "/table/loaded",
        false,
        "no table in the kernel: nothing is enforced",
    ),
    (
        "/table/intact",
        false,
        "the kernel's table was not as loaded at the last reading",
    ),
    (
        "/lifeline/by_address",
        true,
        "the lifeline is by address: any program may ask the name and time servers",
    ),
    ("/certificate/expired", true, "the certificate has expired"),
    (
        "/disk_failed",
        true,
        "the state directory does not take writes",
    ),
];

/// Writes a status for people: what is not as it should be stands first.
pub(crate) fn text(status: &Value) -> String {
    let show = |path: &str| plain(status.pointer(path));
    let warnings = WARNINGS.iter().filter_map(|(path, bad, warning)| {
        let is_bad = status.pointer(path) == Some(&Value::Bool(*bad));
        is_bad.then(|| format!("Warning: {warning}"))
    });
    let mut lines: Vec<String> = warnings.collect();
    if let Some(trouble) = status.pointer("/mesh/links/error").and_then(Value::as_str) {
        lines.push(format!(
            "Warning: this relay takes no links over TLS: {trouble} (see `hedgerow-agent check`)"
        ));
    }
    if let Some(missed) = status.pointer("/policy/missed").and_then(Value::as_str) {
        lines.push(format!(
            "Warning: the policy is at revision {missed}, as peers hand on: this device gets it when it reaches a controller"
        ));
    }
    if show("/device/held") != "none" {
        lines.push(format!(
            "Warning: held by the controller: {}",
            show("/device/held")
        ));
    }
    lines.push(format!(
        "Device    {}.{} ({})",
        show("/device/name"),
        show("/device/site"),
        show("/device/id")
    ));
    lines.push(format!("Labels    {}", show("/device/labels")));
    lines.push(format!("State     {}", show("/device/state")));
    lines.push(format!("Uplink    {}", show("/uplink/controller")));
    lines.push(format!(
        "Policy    revision {}, verified in the kernel {}",
        show("/policy/revision"),
        show("/policy/verified")
    ));
    lines.push(format!(
        "Table     {} peers, {} profiles, underlay {}",
        show("/table/peers"),
        show("/table/profiles"),
        show("/table/underlay")
    ));
    lines.push(format!("Clock     {}", show("/clock/state")));
    lines.push(format!("Peers     {}", peers_summary(status)));
    lines.join("\n")
}

/// Says how many peers there are and how they are reached; a hub has thousands.
fn peers_summary(status: &Value) -> String {
    let peers = status.pointer("/mesh/peers").and_then(Value::as_array);
    let peers: Vec<&Value> = peers.into_iter().flatten().collect();
    let count = |key: &str, wanted: Value| {
        let fits = |p: &&&Value| p.get(key) == Some(&wanted);
        peers.iter().filter(fits).count()
    };
    let relayed = peers.iter().filter(|p| {
        p.get("session") == Some(&Value::Bool(true)) && p.get("path") == Some(&json!("relayed"))
    });
    let graced = match count("grace", Value::Bool(true)) {
        0 => String::new(),
        n => format!(", {n} whose ticket has expired (in grace)"),
    };
    format!(
        "{}, {} with a session, {} of these through a relay{graced}",
        peers.len(),
        count("session", Value::Bool(true)),
        relayed.count(),
    )
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn plain(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "none".to_owned(),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            value.map(Value::to_string).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_counted_by_how_they_are_reached() {
        let peer = |session: bool, path: &str, grace: bool| json!({ "session": session, "path": path, "grace": grace });
        let peers = [
            peer(true, "direct", false),
            peer(true, "relayed", true),
            peer(false, "relayed", false),
        ];
        let status = json!({ "mesh": { "peers": peers } });
        assert_eq!(
            peers_summary(&status),
            "3, 2 with a session, 1 of these through a relay, 1 whose ticket has expired (in grace)"
        );
    }
}
