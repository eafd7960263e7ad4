//! Answers to `ping` and `bench`: who waits for which.

use std::collections::BTreeMap;

use hedgerow_mesh::Unreachable;
use hedgerow_mesh::measure::{Answer, Direction, Measured};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::entropy;
use super::run::Daemon;
use super::who::Found;

/// People who wait at once; one more is told to come again.
const WAITING_MAX: usize = 16;

/// Whoever waits for an answer, and about whom.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    next: u64,
    list: BTreeMap<u64, (String, oneshot::Sender<Value>)>,
}

/// What somebody wants measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    RoundTrip,
    /// For so many seconds each way.
    Throughput(u32),
}

impl Daemon {
    /// Begins to measure; the answer follows when it is there.
    pub(super) fn measure(&mut self, name: &str, wish: Wish, reply: oneshot::Sender<Value>) {
        let found = match self.find(name) {
            Ok(found) => found,
            Err(answer) => {
                drop(reply.send(answer));
                return;
            }
        };
        if self.waiting.list.len() >= WAITING_MAX {
            drop(reply.send(json!({
                "error": format!("{WAITING_MAX} measurements are under way"),
                "remedy": "try again in a moment",
            })));
            return;
        }
        let id = self.waiting.next;
        self.waiting.next = id.wrapping_add(1);
        let Found {
            device,
            name,
            addresses,
        } = found;
        self.waiting.list.insert(id, (name, reply));
        let (now, who) = (self.clock.now(), (device, addresses));
        let named = (id, entropy::seed());
        match wish {
            Wish::RoundTrip => self.state.handle_ping(named, who, now),
            Wish::Throughput(seconds) => self.state.handle_bench(named, who, seconds, now),
        }
    }

    /// Hands an answer to whoever waits for it.
    pub(super) fn answer(&mut self, id: u64, answer: &Answer) {
        if let Some((name, reply)) = self.waiting.list.remove(&id) {
            // Who asked may have gone.
            drop(reply.send(spell(&name, answer)));
        }
    }
}

/// Spells an answer about a peer.
fn spell(name: &str, answer: &Answer) -> Value {
    match answer {
        Answer::Pong {
            round_trip,
            path,
            is_relayed_there,
            session_after,
        } => json!({
            "peer": name,
            "answered": true,
            "round_trip_seconds": round_trip.as_secs_f64(),
            "path": if path.is_direct() { "direct" } else { "relayed" },
            "address": path.to.to_string(),
            "path_there": if *is_relayed_there { "relayed" } else { "direct" },
            "session_after_seconds": session_after.map(|d| d.as_secs_f64()),
        }),
        Answer::Measured(measured) => spell_measured(name, measured),
        Answer::Silent => json!({ "peer": name, "answered": false, "reason": "no answer" }),
        Answer::NoSession => json!({
            "peer": name,
            "answered": false,
            "reason": "no session: its agent cannot be reached, or does not run",
        }),
        Answer::Denied => json!({
            "error": format!("{name} does not let its throughput be measured"),
            "remedy": "set `mesh.bench = \"allow\"` in its agent.toml and restart its agent",
            "exit_code": 1,
        }),
        Answer::Busy => json!({
            "error": format!("another measurement is under way here or at {name}"),
            "remedy": "try again when it is over",
        }),
        Answer::Unreachable(why) => {
            let (text, remedy) = explain(*why);
            json!({
                "error": format!("{name} cannot be reached: {text}"),
                "remedy": remedy,
                "exit_code": if *why == Unreachable::NotAdmitted { 1 } else { 4 },
            })
        }
    }
}

fn spell_measured(name: &str, measured: &Measured) -> Value {
    let way = |way: &Direction| {
        json!({
            "bits_per_second": way.bits_per_second().round(),
            "bytes": way.bytes,
            "seconds": way.elapsed.as_secs_f64(),
            "messages_sent": way.sent,
            "messages_received": way.received,
        })
    };
    let times = |sorted: &[std::time::Duration]| {
        let at = |place: usize| sorted.get(place).map(|d| d.as_secs_f64());
        json!({
            "min_seconds": at(0),
            "median_seconds": at(sorted.len() / 2),
            "max_seconds": at(sorted.len().saturating_sub(1)),
            "count": sorted.len(),
        })
    };
    json!({
        "peer": name,
        "there": way(&measured.there),
        "back": way(&measured.back),
        "round_trip_idle": times(&measured.idle),
        "round_trip_loaded": times(&measured.loaded),
    })
}

/// Says why a device cannot be reached, and what to do.
fn explain(why: Unreachable) -> (&'static str, &'static str) {
    match why {
        Unreachable::NotReady => (
            "this device has no ticket and key of its own yet",
            "see `hedgerow-agent status`",
        ),
        Unreachable::Own => ("that is this device", "name another one"),
        Unreachable::Unresolved => (
            "nobody could say whose address it is",
            "see whether a controller is reached: `hedgerow-agent status`",
        ),
        Unreachable::Refused => (
            "its ticket is refused",
            "`hedgerow device show` says whether it was revoked or has expired",
        ),
        Unreachable::NotAdmitted => (
            "policy grants nothing between the two",
            "`hedgerow explain` says which rule would be needed",
        ),
        Unreachable::NoEndpoint => (
            "no place is known where it could be asked",
            "see whether its agent runs, or whether a relay serves both sites",
        ),
        Unreachable::Unanswered => (
            "it does not answer",
            "see whether its agent runs and udp/7117 is open: `hedgerow-agent check` there",
        ),
        Unreachable::Busy => (
            "too many devices are being looked for",
            "try again in a moment",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_failed_says_what_to_do() {
        let denied = spell("plc-1.plant-2", &Answer::Denied);
        assert_eq!(denied["exit_code"], 1);
        assert!(denied["remedy"].as_str().unwrap().contains("mesh.bench"));
        let closed = spell("x", &Answer::Unreachable(Unreachable::NotAdmitted));
        assert!(
            closed["remedy"]
                .as_str()
                .unwrap()
                .contains("hedgerow explain")
        );
        assert_eq!(spell("x", &Answer::Silent)["answered"], false);
        let measured = Measured {
            idle: vec![Duration::from_millis(1), Duration::from_millis(3)],
            ..Measured::default()
        };
        let spelt = spell("x", &Answer::Measured(Box::new(measured)));
        assert_eq!(spelt["round_trip_idle"]["median_seconds"], 0.003);
        assert_eq!(spelt["round_trip_loaded"]["count"], 0);
    }
}
