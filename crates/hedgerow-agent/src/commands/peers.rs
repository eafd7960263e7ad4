//! `peers`, `paths` and `trace`: the mesh as this device sees it.

use serde_json::{Value, json};

use super::table::{bytes, columns, percent, seconds, text, yes};

/// Returns the peers of a status.
pub(super) fn list(status: &Value) -> Vec<&Value> {
    let peers = status.pointer("/mesh/peers").and_then(Value::as_array);
    peers.into_iter().flatten().collect()
}

/// Returns `name.site` of a peer.
pub(super) fn full_name(peer: &Value) -> String {
    format!("{}.{}", text(peer, "name"), text(peer, "site"))
}

/// Returns the peer that somebody calls `name`: `device`, `device.site` or the full name.
pub(super) fn find<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let lower = name.to_ascii_lowercase();
    let suffix = status.pointer("/names/suffix").and_then(Value::as_str);
    let short = suffix.and_then(|s| lower.strip_suffix(s)).unwrap_or(&lower);
    let short = short.trim_end_matches('.');
    let own_site = status.pointer("/device/site").and_then(Value::as_str);
    let full = match (short.contains('.'), own_site) {
        (false, Some(site)) => format!("{short}.{site}"),
        _ => short.to_owned(),
    };
    list(status).into_iter().find(|p| full_name(p) == full)
}

/// Writes the table of peers.
pub(super) fn peers_text(status: &Value) -> String {
    let peers = list(status);
    if peers.is_empty() {
        return "no peers: a peer is there once a packet was sent to it or came from it".to_owned();
    }
    let heading = [
        "PEER",
        "PATH",
        "ADDRESS",
        "ROUND TRIP",
        "LOSS",
        "SESSION",
        "RECEIVED",
        "SENT",
        "PQ",
        "LABELS",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for peer in peers {
        let labels = peer.get("labels").and_then(Value::as_object);
        let labels: Vec<String> = labels
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        rows.push(vec![
            full_name(peer),
            path_of(peer),
            text(peer, "address"),
            seconds(peer, "round_trip_seconds"),
            percent(peer, "loss_ratio"),
            seconds(peer, "session_seconds"),
            bytes(peer, "received_bytes"),
            bytes(peer, "sent_bytes"),
            yes(peer, "post_quantum"),
            labels.join(","),
        ]);
    }
    columns(&rows)
}

fn path_of(peer: &Value) -> String {
    match (
        peer.get("session"),
        peer.get("path").and_then(Value::as_str),
    ) {
        (Some(Value::Bool(true)), Some("relayed")) => {
            let relay = peer.get("relay").and_then(Value::as_str);
            let by = relay.map_or("relayed".to_owned(), |relay| format!("relayed by {relay}"));
            format!("{by}{}", over(peer))
        }
        (Some(Value::Bool(true)), Some(path)) => format!("{path}{}", over(peer)),
        _ => "no session".to_owned(),
    }
}

/// Says what a way goes over when that is not UDP.
fn over(way: &Value) -> &'static str {
    match way.get("carrier").and_then(Value::as_str) {
        Some("tls") => " over tls",
        _ => "",
    }
}

/// Writes every way to some peers.
pub(super) fn paths_text(status: &Value, peers: &[&Value]) -> String {
    let mut blocks = Vec::new();
    for peer in peers {
        let heading = ["  ADDRESS", "KIND", "STATE", "ROUND TRIP", "LOSS", "MTU"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for route in routes(peer) {
            let mark = match route.get("in_use") == Some(&Value::Bool(true)) {
                true => '*',
                false => ' ',
            };
            let kind = match route.get("relay").and_then(Value::as_str) {
                Some(relay) => format!("relayed by {relay}{}", over(route)),
                None => format!("{}{}", text(route, "kind"), over(route)),
            };
            rows.push(vec![
                format!("{mark} {}", text(route, "address")),
                kind,
                text(route, "state"),
                seconds(route, "round_trip_seconds"),
                percent(route, "loss_ratio"),
                text(route, "mtu"),
            ]);
        }
        let table = columns(&rows);
        blocks.push(format!(
            "{}\n{table}\n  {}",
            full_name(peer),
            why(status, peer)
        ));
    }
    match blocks.is_empty() {
        true => "no peers".to_owned(),
        false => blocks.join("\n\n"),
    }
}

fn routes(peer: &Value) -> Vec<&Value> {
    let routes = peer.get("routes").and_then(Value::as_array);
    routes.into_iter().flatten().collect()
}

/// Says in a sentence why the path to a peer is what it is.
pub(super) fn why(status: &Value, peer: &Value) -> String {
    let is = |value: &Value, key: &str, wanted: &str| {
        value.get(key).and_then(Value::as_str) == Some(wanted)
    };
    let routes = routes(peer);
    let direct: Vec<&&Value> = routes.iter().filter(|r| is(r, "kind", "direct")).collect();
    let alive = |list: &[&&Value]| list.iter().filter(|r| is(r, "state", "alive")).count();
    if peer.get("session") != Some(&Value::Bool(true)) {
        return "No session: the next packet looks for a way.".to_owned();
    }
    if is(peer, "carrier", "tls") {
        let way = match is(peer, "path", "relayed") {
            true => format!("Through {}, over TLS", text(peer, "relay")),
            false => "Over TLS".to_owned(),
        };
        return format!(
            "{way}: nothing answers over UDP, which a firewall blocks; it is tried again."
        );
    }
    if is(peer, "path", "relayed") {
        let tried = direct.len();
        let relay = text(peer, "relay");
        return match (tried, alive(&direct)) {
            (0, _) => {
                format!("Through {relay}: no address of the peer is known to send to straight.")
            }
            (_, 0) => format!(
                "Through {relay}: none of {tried} direct addresses answers, so a NAT or a firewall stands between; they are tried again."
            ),
            _ => format!("Through {relay}: measured better than the direct way."),
        };
    }
    let others = routes.len().saturating_sub(1);
    let standby = match others {
        0 => "no other way is known".to_owned(),
        1 => "one other way is known".to_owned(),
        n => format!("{n} other ways are known"),
    };
    let observed = status.pointer("/mesh/observed").and_then(Value::as_array);
    let nat = match observed.is_some_and(|list| !list.is_empty()) {
        true => " Peers see this device behind a NAT.",
        false => "",
    };
    format!("Straight to the peer, which answers there; {standby}.{nat}")
}

/// Makes the hops to a peer; `ping` is the answer of its agent.
pub(super) fn trace(status: &Value, peer: &Value, ping: &Value) -> Value {
    let own = |path: &str| {
        let list = status.pointer(path).and_then(Value::as_array);
        list.into_iter().flatten().cloned().collect::<Vec<_>>()
    };
    let mut hops = vec![json!({
        "hop": "this device",
        "name": format!("{}.{}", plain(status, "/device/name"), plain(status, "/device/site")),
        "addresses": own("/mesh/own"),
    })];
    let seen = own("/mesh/observed");
    if !seen.is_empty() {
        hops.push(json!({ "hop": "nat", "name": "as peers see this device", "addresses": seen }));
    }
    if peer.get("path").and_then(Value::as_str) == Some("relayed") {
        let name = text(peer, "relay");
        let relay = list(status).into_iter().find(|p| full_name(p) == name);
        hops.push(json!({
            "hop": "relay",
            "name": name,
            "addresses": [text(peer, "address")],
            "round_trip_seconds": relay.and_then(|r| r.get("round_trip_seconds")),
        }));
    }
    hops.push(json!({
        "hop": "peer",
        "name": full_name(peer),
        "addresses": match peer.get("path").and_then(Value::as_str) {
            Some("relayed") => json!([]),
            _ => json!([text(peer, "address")]),
        },
        "round_trip_seconds": ping.get("round_trip_seconds"),
    }));
    let back = ping.get("path").and_then(Value::as_str);
    let there = ping.get("path_there").and_then(Value::as_str);
    json!({ "hops": hops, "path_there": there, "path_back": back, "why": why(status, peer) })
}

/// Writes the hops.
pub(super) fn trace_text(trace: &Value) -> String {
    let hops = trace.get("hops").and_then(Value::as_array);
    let mut rows = Vec::new();
    for (n, hop) in hops.into_iter().flatten().enumerate() {
        let addresses = hop.get("addresses").and_then(Value::as_array);
        let addresses: Vec<&str> = addresses
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        rows.push(vec![
            format!("{}", n + 1),
            text(hop, "hop"),
            text(hop, "name"),
            addresses.join(", "),
            seconds(hop, "round_trip_seconds"),
        ]);
    }
    format!(
        "{}\nThe question went {}, its answer came {}.\n{}",
        columns(&rows),
        text(trace, "path_there"),
        text(trace, "path_back"),
        text(trace, "why"),
    )
}

fn plain(value: &Value, path: &str) -> String {
    let found = value.pointer(path).and_then(Value::as_str);
    found.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({
            "device": { "name": "sensor-1", "site": "plant-1" },
            "names": { "suffix": "hedgerow.internal" },
            "mesh": {
                "own": ["10.0.0.5:7117"],
                "observed": ["198.51.100.7:4711"],
                "peers": [
                    {
                        "name": "plc-1", "site": "plant-2", "session": true, "path": "relayed",
                        "relay": "relay-1.dmz", "address": "203.0.113.9:7117", "post_quantum": true,
                        "round_trip_seconds": 0.0042, "loss_ratio": 0.01, "session_seconds": 61.0,
                        "received_bytes": 2048, "sent_bytes": 100, "labels": { "role": "plc" },
                        "routes": [
                            { "address": "192.0.2.1:7117", "kind": "direct", "state": "resting" },
                            { "address": "203.0.113.9:7117", "kind": "relayed", "relay": "relay-1.dmz",
                              "state": "alive", "in_use": true, "round_trip_seconds": 0.0042, "mtu": 1380 },
                        ],
                    },
                    {
                        "name": "relay-1", "site": "dmz", "session": true, "path": "direct",
                        "address": "203.0.113.9:7117", "round_trip_seconds": 0.0019,
                        "routes": [{ "address": "203.0.113.9:7117", "kind": "direct", "state": "alive", "in_use": true }],
                    },
                    { "name": "cam-1", "site": "plant-1", "session": false },
                ],
            },
        })
    }

    #[test]
    fn the_table_has_a_row_for_each_peer() {
        expect_test::expect![[r#"
            PEER           PATH                    ADDRESS           ROUND TRIP  LOSS   SESSION  RECEIVED  SENT   PQ   LABELS
            plc-1.plant-2  relayed by relay-1.dmz  203.0.113.9:7117  4.20 ms     1.0 %  61 s     2.0 KiB   100 B  yes  role=plc
            relay-1.dmz    direct                  203.0.113.9:7117  1.90 ms     -      -        -         -      -
            cam-1.plant-1  no session              -                 -           -      -        -         -      -"#]]
        .assert_eq(&peers_text(&status()));
    }

    #[test]
    fn every_way_is_listed_with_its_state_and_the_reason() {
        let status = status();
        let peer = find(&status, "PLC-1.plant-2.hedgerow.internal").unwrap();
        expect_test::expect![[r#"
            plc-1.plant-2
              ADDRESS           KIND                    STATE    ROUND TRIP  LOSS  MTU
              192.0.2.1:7117    direct                  resting  -           -     -
            * 203.0.113.9:7117  relayed by relay-1.dmz  alive    4.20 ms     -     1380
              Through relay-1.dmz: none of 1 direct addresses answers, so a NAT or a firewall stands between; they are tried again."#]]
        .assert_eq(&paths_text(&status, &[peer]));
    }

    #[test]
    fn a_trace_names_each_hop_with_its_round_trip() {
        let status = status();
        let peer = find(&status, "plc-1.plant-2").unwrap();
        let ping =
            json!({ "round_trip_seconds": 0.0043, "path": "relayed", "path_there": "relayed" });
        expect_test::expect![[r#"
            1  this device  sensor-1.plant-1          10.0.0.5:7117      -
            2  nat          as peers see this device  198.51.100.7:4711  -
            3  relay        relay-1.dmz               203.0.113.9:7117   1.90 ms
            4  peer         plc-1.plant-2                                4.30 ms
            The question went relayed, its answer came relayed.
            Through relay-1.dmz: none of 1 direct addresses answers, so a NAT or a firewall stands between; they are tried again."#]]
        .assert_eq(&trace_text(&trace(&status, peer, &ping)));
    }

    #[test]
    fn a_short_name_is_of_the_own_site() {
        let status = status();
        assert!(find(&status, "cam-1").is_some());
        assert!(find(&status, "plc-1").is_none());
        assert!(peers_text(&json!({})).starts_with("no peers"));
    }
}
