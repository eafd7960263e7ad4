use serde_json::json;

use super::*;

fn peer(role: &str, path: &str, bytes: u64) -> Value {
    json!({
        "labels": { "role": role }, "session": path != "none", "path": path, "post_quantum": true,
        "round_trip_seconds": 0.002, "loss_ratio": 0.5, "received_bytes": bytes, "sent_bytes": 1,
    })
}

#[test]
fn numbers_come_out_as_prometheus_reads_them() {
    let status = json!({
        "version": "1.2\"3",
        "uplink": { "connected": true },
        "table": { "counters": { "spoofed": { "packets": 3, "bytes": 120 } } },
        "mesh": {
            "refused": { "replayed": 2 },
            "tunnel": { "sent_packets": 5, "dropped_forged": 7, "cookies_sent": 1, "reports_dropped": 0 },
            "peers": [peer("plc", "direct", 10), peer("plc", "none", 5), peer("camera", "relayed", 1)],
        },
        "names": { "resolver": { "questions": { "answered": 9 } } },
    });
    let text = text(&status);
    for line in [
        "hedgerow_agent_info{version=\"1.2\\\"3\"} 1",
        "# TYPE hedgerow_uplink_connected gauge",
        "hedgerow_uplink_connected 1",
        "hedgerow_table_packets_total{counter=\"spoofed\"} 3",
        "hedgerow_mesh_refused_total{reason=\"replayed\"} 2",
        "hedgerow_tunnel_packets_total{direction=\"sent\"} 5",
        "# TYPE hedgerow_tunnel_dropped_total counter",
        "hedgerow_tunnel_dropped_total{reason=\"forged\"} 7",
        "hedgerow_tunnel_dropped_total{reason=\"report\"} 0",
        "hedgerow_tunnel_events_total{event=\"cookies_sent\"} 1",
        "hedgerow_peers{class=\"plc\",path=\"direct\"} 1",
        "hedgerow_peers{class=\"plc\",path=\"none\"} 1",
        "hedgerow_peers{class=\"camera\",path=\"relayed\"} 1",
        "hedgerow_peers_bytes{class=\"plc\",direction=\"received\"} 15",
        "hedgerow_peers_round_trip_seconds_max{class=\"plc\"} 0.002",
        "hedgerow_resolver_questions_total{outcome=\"answered\"} 9",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    // Each family stands together, once.
    let heads: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
    assert_eq!(heads.iter().collect::<BTreeSet<_>>().len(), heads.len());
}

#[test]
fn attack_labels_of_peers_make_a_bounded_number_of_series() {
    let peers: Vec<Value> = (0..500)
        .map(|n| peer(&format!("r{n:03}"), "direct", 1))
        .collect();
    let text = text(&json!({ "mesh": { "peers": peers } }));
    let rows = text
        .lines()
        .filter(|l| l.starts_with("hedgerow_peers{"))
        .count();
    assert_eq!(rows, CLASSES_MAX + 1);
    let rest = 500 - CLASSES_MAX;
    assert!(text.contains(&format!(
        "hedgerow_peers{{class=\"other\",path=\"direct\"}} {rest}"
    )));
    let long = text_of_long_class();
    assert!(long.contains("class=\"none\""), "{long}");
}

fn text_of_long_class() -> String {
    text(&json!({ "mesh": { "peers": [peer(&"x".repeat(65), "direct", 1)] } }))
}

/// Writes the reference page from the families above and the reasons that the crates name.
fn reference_page() -> String {
    let mut page = String::from(
        "# Metrics\n\nGenerated from the agent's families; a test compares it. `hedgerow-agent metrics` prints them in the text format of \
         Prometheus. With\n`metrics.textfile` in `agent.toml` the agent writes them every 15 s to a file, whole each time, that node_exporter's textfile \
         collector reads.\n\nA family without a number is left out. Counters begin at zero with the agent. At most 24 values of the peers' label \
         `role` have a series\nof their own (`class`); peers of further ones count as `other`, peers without the label as `none`.\n\n\
         | metric | type | labels | what |\n|---|---|---|---|\n",
    );
    for family in FAMILIES {
        let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
        let kind = format!("{:?}", family.kind).to_lowercase();
        page += &format!(
            "| `{}` | {kind} | {} | {} |\n",
            family.name,
            labels.join(", "),
            family.help
        );
    }
    page += "\n## Reasons\n\n";
    let stats = hedgerow_linux::tunnel::Stats::default();
    let names: Vec<&str> = stats.iter().map(|(name, _)| name).collect();
    let of = |family: &str| {
        let found = names
            .iter()
            .map(|n| tunnel_series(n))
            .filter(|(f, _)| *f == family);
        found
            .filter_map(|(_, value)| Some(format!("`{}`", value?)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let refusals = hedgerow_mesh::Refusal::ALL.iter().map(|r| format!("`{r}`"));
    let outcomes = hedgerow_mesh::names::Outcome::ALL
        .iter()
        .map(|o| format!("`{o}`"));
    for (family, values) in [
        (
            "hedgerow_tunnel_dropped_total",
            of("hedgerow_tunnel_dropped_total"),
        ),
        (
            "hedgerow_tunnel_events_total",
            of("hedgerow_tunnel_events_total"),
        ),
        (
            "hedgerow_relay_dropped_total",
            of("hedgerow_relay_dropped_total"),
        ),
        (
            "hedgerow_mesh_refused_total",
            refusals.collect::<Vec<_>>().join(", "),
        ),
        (
            "hedgerow_resolver_questions_total",
            outcomes.collect::<Vec<_>>().join(", "),
        ),
    ] {
        page += &format!("- `{family}`: {values}\n");
    }
    page
}

/// Update it with `UPDATE_EXPECT=1 cargo test --workspace metrics`.
#[test]
fn the_reference_page_names_every_family_and_reason() {
    expect_test::expect_file!["../../../../docs/reference/metrics.md"].assert_eq(&reference_page());
}
