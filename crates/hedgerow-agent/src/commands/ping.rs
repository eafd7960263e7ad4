//! `ping` and `bench`: what was measured, in words.

use std::time::Duration;

use serde_json::{Value, json};

use super::table::{seconds, span, text};

/// Round trips that are kept for the summary; of further ones only number and extremes count.
const SAMPLES_MAX: usize = 10_000;

/// What pings have shown so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: u64,
    answered: u64,
    least: Option<f64>,
    greatest: Option<f64>,
    samples: Vec<f64>,
}

impl Tally {
    /// Takes one answer, and says it.
    pub(super) fn add(&mut self, answer: &Value) -> String {
        self.sent += 1;
        let number = self.sent;
        let Some(time) = answer.get("round_trip_seconds").and_then(Value::as_f64) else {
            return format!("{number}: {}", text(answer, "reason"));
        };
        self.answered += 1;
        self.least = Some(self.least.map_or(time, |t| t.min(time)));
        self.greatest = Some(self.greatest.map_or(time, |t| t.max(time)));
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(time);
        }
        let session = match answer.get("session_after_seconds").and_then(Value::as_f64) {
            Some(after) => format!(", session after {}", span(after)),
            None => String::new(),
        };
        format!(
            "{number}: {} answers in {}, {} {}{session}",
            text(answer, "peer"),
            span(time),
            text(answer, "path"),
            text(answer, "address"),
        )
    }

    /// Whether any ping was answered.
    pub(super) fn has_answer(&self) -> bool {
        self.answered > 0
    }

    fn median(&self) -> Option<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    pub(super) fn json(&self, peer: &str) -> Value {
        json!({
            "peer": peer,
            "sent": self.sent,
            "answered": self.answered,
            "min_seconds": self.least,
            "median_seconds": self.median(),
            "max_seconds": self.greatest,
        })
    }

    pub(super) fn text(&self) -> String {
        let lost = self.sent - self.answered;
        let head = format!(
            "{} sent, {} answered, {lost} lost",
            self.sent, self.answered
        );
        match (self.least, self.median(), self.greatest) {
            (Some(least), Some(median), Some(greatest)) => format!(
                "{head}; round trip min {} / median {} / max {}",
                span(least),
                span(median),
                span(greatest)
            ),
            _ => head,
        }
    }
}

/// Writes what `bench` measured.
pub(super) fn bench_text(measured: &Value) -> String {
    let way = |key: &str, words: &str| {
        let way = measured.get(key).unwrap_or(&Value::Null);
        let number = |key: &str| way.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        let (sent, came) = (number("messages_sent"), number("messages_received"));
        let lost = if sent > 0.0 {
            (sent - came) / sent * 100.0
        } else {
            0.0
        };
        format!(
            "{words:<12} {:.1} Mbit/s, {:.1} MB in {}, {lost:.2} % lost",
            number("bits_per_second") / 1e6,
            number("bytes") / 1e6,
            seconds(way, "seconds"),
        )
    };
    let times = |key: &str, words: &str| {
        let times = measured.get(key).unwrap_or(&Value::Null);
        format!(
            "{words:<12} round trip min {} / median {} / max {}",
            seconds(times, "min_seconds"),
            seconds(times, "median_seconds"),
            seconds(times, "max_seconds"),
        )
    };
    [
        format!("to {} and back, agent to agent inside the tunnel", text(measured, "peer")),
        way("there", "there"),
        way("back", "back"),
        times("round_trip_idle", "idle"),
        times("round_trip_loaded", "under load"),
        "The data path of applications is faster than two agents talking: this is what the way carries at least.".to_owned(),
    ]
    .join("\n")
}

/// How long to wait before the next ping.
pub(super) fn pause(interval: f64) -> Duration {
    Duration::try_from_secs_f64(interval).unwrap_or(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_says_each_answer_and_all_together() {
        let mut tally = Tally::default();
        let pong = |time: f64| json!({ "peer": "plc-1.s2", "answered": true, "round_trip_seconds": time, "path": "direct", "address": "10.0.0.1:7117" });
        assert_eq!(
            tally.add(&pong(0.002)),
            "1: plc-1.s2 answers in 2.00 ms, direct 10.0.0.1:7117"
        );
        assert_eq!(
            tally.add(&json!({ "answered": false, "reason": "no answer" })),
            "2: no answer"
        );
        tally.add(&pong(0.004));
        tally.add(&pong(0.003));
        assert_eq!(
            tally.text(),
            "4 sent, 3 answered, 1 lost; round trip min 2.00 ms / median 3.00 ms / max 4.00 ms"
        );
        assert!(tally.has_answer() && !Tally::default().has_answer());
    }

    #[test]
    fn both_directions_are_told() {
        let way = |bits: f64| json!({ "bits_per_second": bits, "bytes": 25_000_000, "seconds": 2.0, "messages_sent": 200, "messages_received": 199 });
        let measured = json!({ "peer": "plc-1.s2", "there": way(1e8), "back": way(2e8), "round_trip_idle": { "median_seconds": 0.001 } });
        let text = bench_text(&measured);
        assert!(
            text.contains("there        100.0 Mbit/s, 25.0 MB in 2 s, 0.50 % lost"),
            "{text}"
        );
        assert!(text.contains("back         200.0 Mbit/s"), "{text}");
        assert!(text.contains("median 1.00 ms"), "{text}");
    }
}
