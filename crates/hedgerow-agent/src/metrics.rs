//! The agent's numbers in the text format that Prometheus reads, made of what `status` says.
//!
//! Labels are bounded: reasons are enums, and of the values of `role` that peers carry, the first
//! [`CLASSES_MAX`] have a series of their own. The device is no label: whoever collects knows whom it asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

#[cfg(test)]
mod tests;

/// Most classes of peers with series of their own; peers of further ones count as `other`.
pub(crate) const CLASSES_MAX: usize = 24;
/// Longest class, in bytes; label values of tickets are shorter.
const CLASS_BYTES_MAX: usize = 64;

/// How a family's numbers behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// One family of series.
struct Family {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family {
        name,
        kind: Kind::Counter,
        labels,
        help,
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Gauge,
        labels,
        help,
    }
}

/// Every family, in the order in which they are printed.
const FAMILIES: &[Family] = &[
    gauge(
        "hedgerow_agent_info",
        &["version"],
        "1; the version is in the label",
    ),
    gauge(
        "hedgerow_agent_resident_bytes",
        &[],
        "memory that the agent occupies",
    ),
    gauge(
        "hedgerow_uplink_connected",
        &[],
        "1 with a session with a controller",
    ),
    gauge(
        "hedgerow_certificate_not_after_seconds",
        &[],
        "when the certificate ends, in seconds since 1970",
    ),
    gauge(
        "hedgerow_clock_trusted",
        &[],
        "1 when the system clock is believed",
    ),
    gauge(
        "hedgerow_disk_failed",
        &[],
        "1 when the state directory takes no writes",
    ),
    gauge(
        "hedgerow_events_waiting",
        &[],
        "events that the controller has not stored yet",
    ),
    gauge("hedgerow_table_loaded", &[], "1 with a table in the kernel"),
    gauge(
        "hedgerow_table_intact",
        &[],
        "1 when the last reading found the table as it was loaded",
    ),
    gauge(
        "hedgerow_table_peers",
        &[],
        "addresses of peers in the kernel's table",
    ),
    counter(
        "hedgerow_table_packets_total",
        &["counter"],
        "packets by the counter of the kernel's table; begins anew when a table is loaded",
    ),
    counter("hedgerow_table_bytes_total", &["counter"], "bytes of them"),
    gauge(
        "hedgerow_peers",
        &["class", "path"],
        "peers by the value of their label `role` and by path: direct, relayed, or none without a session",
    ),
    gauge(
        "hedgerow_peers_post_quantum",
        &["class"],
        "peers whose session has a post-quantum key",
    ),
    gauge(
        "hedgerow_peers_grace",
        &["class"],
        "peers whose ticket has expired and is in grace",
    ),
    gauge(
        "hedgerow_peers_round_trip_seconds_max",
        &["class"],
        "the longest round trip to a peer, as last measured",
    ),
    gauge(
        "hedgerow_peers_loss_ratio_max",
        &["class"],
        "the greatest loss on the way to a peer, as last measured",
    ),
    gauge(
        "hedgerow_peers_bytes",
        &["class", "direction"],
        "inner bytes exchanged with the peers there are now",
    ),
    gauge(
        "hedgerow_mesh_remembered",
        &[],
        "devices once met, in the cache on disk",
    ),
    counter(
        "hedgerow_mesh_refused_total",
        &["reason"],
        "messages refused, by reason",
    ),
    counter(
        "hedgerow_mesh_datagrams_dropped_total",
        &[],
        "datagrams of the mesh that the tunnel had no room for",
    ),
    counter(
        "hedgerow_tunnel_packets_total",
        &["direction"],
        "inner packets sealed and sent, opened and delivered",
    ),
    counter(
        "hedgerow_tunnel_bytes_total",
        &["direction"],
        "bytes of them",
    ),
    counter(
        "hedgerow_tunnel_dropped_total",
        &["reason"],
        "packets, datagrams and messages that the tunnel dropped, by reason",
    ),
    counter(
        "hedgerow_tunnel_events_total",
        &["event"],
        "everything else that the tunnel counts",
    ),
    gauge(
        "hedgerow_relay_sides",
        &[],
        "sides of sessions that this device passes on as a relay: two for each session",
    ),
    counter(
        "hedgerow_relay_frames_total",
        &[],
        "frames passed on as a relay",
    ),
    counter("hedgerow_relay_bytes_total", &[], "bytes of them"),
    counter(
        "hedgerow_relay_dropped_total",
        &["reason"],
        "frames not passed on as a relay: not from where their side is (place), above a session's rate (session), \
         above the rate of all with too much waiting (queue), waited too long (delay)",
    ),
    gauge(
        "hedgerow_links",
        &["side"],
        "links over TLS that stand: to relays, and from devices where this device is a relay",
    ),
    counter(
        "hedgerow_link_datagrams_total",
        &["direction"],
        "datagrams that links over TLS carried",
    ),
    counter("hedgerow_link_bytes_total", &["direction"], "bytes of them"),
    counter(
        "hedgerow_link_dropped_total",
        &["reason"],
        "datagrams that links over TLS dropped, by reason",
    ),
    counter(
        "hedgerow_link_refused_total",
        &["reason"],
        "connections that got no link, by reason",
    ),
    gauge("hedgerow_names", &[], "names that the resolver knows"),
    gauge(
        "hedgerow_resolver_answers",
        &[],
        "1 when the resolver has its address",
    ),
    counter(
        "hedgerow_resolver_questions_total",
        &["outcome"],
        "questions to the resolver, by outcome",
    ),
];

/// Families of one number, and where `status` has it.
const PLAIN: &[(&str, &str)] = &[
    ("hedgerow_agent_resident_bytes", "/resident_bytes"),
    ("hedgerow_uplink_connected", "/uplink/connected"),
    (
        "hedgerow_certificate_not_after_seconds",
        "/certificate/not_after",
    ),
    ("hedgerow_clock_trusted", "/clock/trusted"),
    ("hedgerow_disk_failed", "/disk_failed"),
    ("hedgerow_events_waiting", "/events_waiting"),
    ("hedgerow_table_loaded", "/table/loaded"),
    ("hedgerow_table_intact", "/table/intact"),
    ("hedgerow_table_peers", "/table/peers"),
    ("hedgerow_mesh_remembered", "/mesh/remembered"),
    (
        "hedgerow_mesh_datagrams_dropped_total",
        "/mesh/datagrams_dropped",
    ),
    ("hedgerow_names", "/names/count"),
    ("hedgerow_resolver_answers", "/names/resolver/answers"),
];

/// Numbers of links, with their label, and where `status` has them.
const LINKS: &[(&str, &str, &str)] = &[
    ("hedgerow_links", "ours", "/mesh/links/ours"),
    ("hedgerow_links", "theirs", "/mesh/links/theirs"),
    (
        "hedgerow_link_datagrams_total",
        "received",
        "/mesh/links/received_datagrams",
    ),
    (
        "hedgerow_link_datagrams_total",
        "sent",
        "/mesh/links/sent_datagrams",
    ),
    (
        "hedgerow_link_bytes_total",
        "received",
        "/mesh/links/received_bytes",
    ),
    (
        "hedgerow_link_bytes_total",
        "sent",
        "/mesh/links/sent_bytes",
    ),
];

/// Series of one family: label values, and the number as text.
type Series = Vec<(Vec<String>, String)>;

/// Writes every family that has a number.
pub(crate) fn text(status: &Value) -> String {
    let mut all = collect(status);
    let mut out = String::new();
    for family in FAMILIES {
        let series = all.remove(family.name).unwrap_or_default();
        if series.is_empty() {
            continue;
        }
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String does not fail.
        let _written = writeln!(out, "# HELP {} {}", family.name, family.help);
        let _written = writeln!(out, "# TYPE {} {kind}", family.name);
        for (values, number) in series {
            let labels: Vec<String> = family
                .labels
                .iter()
                .zip(&values)
                .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
                .collect();
            let labels = match labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", labels.join(",")),
            };
            let _written = writeln!(out, "{}{labels} {number}", family.name);
        }
    }
    out
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn number(value: &Value) -> Option<String> {
    match value {
        Value::Bool(is) => Some(u8::from(*is).to_string()),
        Value::Number(n) => Some(n.to_string()),
        Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn collect(status: &Value) -> BTreeMap<&'static str, Series> {
    let mut all: BTreeMap<&'static str, Series> = BTreeMap::new();
    let mut put = |name: &'static str, labels: Vec<String>, value: Option<String>| {
        if let Some(value) = value {
            all.entry(name).or_default().push((labels, value));
        }
    };
    let version = status.get("version").and_then(Value::as_str);
    let info = version.map(|v| vec![v.to_owned()]);
    put(
        "hedgerow_agent_info",
        info.unwrap_or_default(),
        version.map(|_| "1".to_owned()),
    );
    for (name, path) in PLAIN.iter().copied() {
        put(name, Vec::new(), status.pointer(path).and_then(number));
    }
    for (counter, counts) in entries(status, "/table/counters") {
        let at = |key| counts.get(key).and_then(number);
        put(
            "hedgerow_table_packets_total",
            vec![counter.clone()],
            at("packets"),
        );
        put(
            "hedgerow_table_bytes_total",
            vec![counter.clone()],
            at("bytes"),
        );
    }
    for (reason, count) in entries(status, "/mesh/refused") {
        put(
            "hedgerow_mesh_refused_total",
            vec![reason.clone()],
            number(count),
        );
    }
    for (family, label, path) in LINKS {
        put(
            family,
            vec![(*label).to_owned()],
            status.pointer(path).and_then(number),
        );
    }
    for (path, family) in [
        ("/mesh/links/dropped", "hedgerow_link_dropped_total"),
        ("/mesh/links/refused", "hedgerow_link_refused_total"),
    ] {
        for (reason, count) in entries(status, path) {
            put(family, vec![reason.clone()], number(count));
        }
    }
    for (outcome, count) in entries(status, "/names/resolver/questions") {
        put(
            "hedgerow_resolver_questions_total",
            vec![outcome.clone()],
            number(count),
        );
    }
    for (name, count) in entries(status, "/mesh/tunnel") {
        let (family, value) = tunnel_series(name);
        let labels = value.map(str::to_owned).into_iter().collect();
        put(family, labels, number(count));
    }
    for (name, labels, value) in peers(status) {
        put(name, labels, Some(value));
    }
    all
}

fn entries<'a>(status: &'a Value, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let map = status.pointer(path).and_then(Value::as_object);
    map.into_iter().flatten()
}

/// Returns the family and the label of one of the tunnel's counters.
fn tunnel_series(name: &str) -> (&'static str, Option<&str>) {
    let (family, label) = match name {
        "relay_sides" => return ("hedgerow_relay_sides", None),
        "relayed_frames" => return ("hedgerow_relay_frames_total", None),
        "relayed_bytes" => return ("hedgerow_relay_bytes_total", None),
        "dropped_relay" => ("hedgerow_relay_dropped_total", "place"),
        "dropped_relay_session" => ("hedgerow_relay_dropped_total", "session"),
        "dropped_relay_queue" => ("hedgerow_relay_dropped_total", "queue"),
        "dropped_relay_delay" => ("hedgerow_relay_dropped_total", "delay"),
        "sent_packets" => ("hedgerow_tunnel_packets_total", "sent"),
        "received_packets" => ("hedgerow_tunnel_packets_total", "received"),
        "sent_bytes" => ("hedgerow_tunnel_bytes_total", "sent"),
        "received_bytes" => ("hedgerow_tunnel_bytes_total", "received"),
        "reports_dropped" => ("hedgerow_tunnel_dropped_total", "report"),
        _ => match name.strip_prefix("dropped_") {
            Some(reason) => ("hedgerow_tunnel_dropped_total", reason),
            None => ("hedgerow_tunnel_events_total", name),
        },
    };
    (family, Some(label))
}

/// What is summed over the peers of a class.
#[derive(Debug, Default)]
struct Class {
    paths: BTreeMap<&'static str, u64>,
    post_quantum: u64,
    grace: u64,
    round_trip: Option<f64>,
    loss: Option<f64>,
    received: u64,
    sent: u64,
}

fn peers(status: &Value) -> Vec<(&'static str, Vec<String>, String)> {
    let list = status.pointer("/mesh/peers").and_then(Value::as_array);
    let peers: Vec<&Value> = list.into_iter().flatten().collect();
    let named: BTreeSet<&str> = peers.iter().map(|p| class_of(p)).collect();
    let named: BTreeSet<&str> = named.into_iter().take(CLASSES_MAX).collect();
    let mut classes: BTreeMap<&str, Class> = BTreeMap::new();
    for peer in &peers {
        let class = Some(class_of(peer)).filter(|c| named.contains(c));
        classes
            .entry(class.unwrap_or("other"))
            .or_default()
            .add(peer);
    }
    let mut out = Vec::new();
    for (name, class) in classes {
        let mut put = |family, labels: &[&str], value: String| {
            let labels = labels.iter().map(|l| (*l).to_owned());
            out.push((
                family,
                std::iter::once(name.to_owned()).chain(labels).collect(),
                value,
            ));
        };
        for (path, count) in class.paths {
            put("hedgerow_peers", &[path], count.to_string());
        }
        put(
            "hedgerow_peers_post_quantum",
            &[],
            class.post_quantum.to_string(),
        );
        put("hedgerow_peers_grace", &[], class.grace.to_string());
        put(
            "hedgerow_peers_bytes",
            &["received"],
            class.received.to_string(),
        );
        put("hedgerow_peers_bytes", &["sent"], class.sent.to_string());
        if let Some(seconds) = class.round_trip {
            put(
                "hedgerow_peers_round_trip_seconds_max",
                &[],
                seconds.to_string(),
            );
        }
        if let Some(loss) = class.loss {
            put("hedgerow_peers_loss_ratio_max", &[], loss.to_string());
        }
    }
    out
}

fn class_of(peer: &Value) -> &str {
    let role = peer.pointer("/labels/role").and_then(Value::as_str);
    role.filter(|r| r.len() <= CLASS_BYTES_MAX)
        .unwrap_or("none")
}

impl Class {
    fn add(&mut self, peer: &Value) {
        let is = |key| peer.get(key) == Some(&Value::Bool(true));
        let count = |key| peer.get(key).and_then(Value::as_u64).unwrap_or(0);
        let measured = |key| peer.get(key).and_then(Value::as_f64);
        let relayed = peer.get("path").and_then(Value::as_str) == Some("relayed");
        let path = match (is("session"), relayed) {
            (false, _) => "none",
            (true, true) => "relayed",
            (true, false) => "direct",
        };
        *self.paths.entry(path).or_default() += 1;
        self.post_quantum += u64::from(is("post_quantum"));
        self.grace += u64::from(is("grace"));
        self.received = self.received.saturating_add(count("received_bytes"));
        self.sent = self.sent.saturating_add(count("sent_bytes"));
        self.round_trip = greater(self.round_trip, measured("round_trip_seconds"));
        self.loss = greater(self.loss, measured("loss_ratio"));
    }
}

fn greater(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}
