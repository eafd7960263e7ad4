use std::net::SocketAddr;

use hedgerow_model::address::Underlay;

use super::*;

const A: DeviceId = DeviceId([1; 16]);
const B: DeviceId = DeviceId([2; 16]);

fn at(micros: u64) -> Mono {
    Mono(Duration::from_micros(micros))
}

fn path() -> Path {
    let address: SocketAddr = "192.0.2.1:7117".parse().unwrap();
    Path::direct(Underlay(address))
}

/// Two machines and the messages between them: each takes `delay` and every `lose`th is lost.
struct Pair {
    now: Mono,
    ends: [Measure; 2],
    /// When it comes, to which end, what.
    wire: Vec<(Mono, usize, Vec<u8>)>,
    delay: Duration,
    lose: usize,
    sent: usize,
    answers: Vec<(u64, Answer)>,
}

impl Pair {
    fn new(consents: bool, delay: Duration, lose: usize) -> Self {
        Self {
            now: at(1),
            ends: [Measure::new(false), Measure::new(consents)],
            wire: Vec::new(),
            delay,
            lose,
            sent: 0,
            answers: Vec::new(),
        }
    }

    fn drain(&mut self) {
        for from in 0..2 {
            while let Some(output) = self.ends[from].poll() {
                match output {
                    Output::Answer(id, answer) => self.answers.push((id, answer)),
                    Output::Send(_, bytes) => {
                        self.sent += 1;
                        if self.lose == 0 || !self.sent.is_multiple_of(self.lose) {
                            self.wire.push((self.now + self.delay, 1 - from, bytes));
                        }
                    }
                }
            }
        }
    }

    fn run(&mut self) {
        for _ in 0..5_000_000 {
            self.drain();
            if !self.answers.is_empty() {
                return;
            }
            let next = self.wire.first().map_or(Mono::NEVER, |(at, ..)| *at);
            let timer = self.ends.iter().map(Measure::deadline).min().unwrap();
            assert!(
                next.min(timer) < Mono::NEVER,
                "nobody does anything any more"
            );
            self.now = self.now.max(next.min(timer));
            if next <= timer {
                let (_, to, bytes) = self.wire.remove(0);
                let from = if to == 0 { B } else { A };
                self.ends[to].handle_message(from, path(), &bytes, self.now);
            } else {
                self.ends
                    .iter_mut()
                    .for_each(|e| e.handle_timeout(self.now));
            }
        }
        panic!("no end");
    }

    fn measured(&mut self) -> Measured {
        self.ends[0].handle_bench(7, B, (99, 1), self.now);
        self.ends[0].handle_session(B, self.now);
        self.run();
        match self.answers.pop() {
            Some((7, Answer::Measured(measured))) => *measured,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_ping_measures_the_round_trip_and_says_the_path() {
    let mut pair = Pair::new(false, Duration::from_millis(3), 0);
    pair.ends[0].handle_ping(1, B, 42, pair.now);
    pair.drain();
    assert!(pair.wire.is_empty(), "it waits for a session");
    pair.now = at(2_001);
    pair.ends[0].handle_session(B, pair.now);
    let stranger = Message::Pong {
        token: 42,
        is_relayed: false,
    };
    pair.ends[0].handle_message(A, path(), &stranger.encode(), pair.now);
    pair.run();
    let pong = Answer::Pong {
        round_trip: Duration::from_millis(6),
        path: path(),
        is_relayed_there: false,
        session_after: Some(Duration::from_millis(2)),
    };
    assert_eq!(pair.answers, [(1, pong)]);
}

#[test]
fn each_way_to_fail_is_told_apart() {
    let ends = |prepare: &dyn Fn(&mut Pair)| {
        let mut pair = Pair::new(false, Duration::from_millis(3), 1);
        pair.ends[0].handle_ping(1, B, 42, pair.now);
        prepare(&mut pair);
        pair.run();
        pair.answers.remove(0).1
    };
    assert_eq!(ends(&|_| {}), Answer::NoSession);
    assert_eq!(
        ends(&|p| p.ends[0].handle_session(B, p.now)),
        Answer::Silent
    );
    let why = Unreachable::NotAdmitted;
    assert_eq!(
        ends(&|p| p.ends[0].handle_unreachable(B, why)),
        Answer::Unreachable(why)
    );
}

#[test]
fn throughput_is_measured_both_ways_and_the_window_fills_the_path() {
    let mut pair = Pair::new(true, Duration::from_millis(5), 0);
    let measured = pair.measured();
    assert_eq!(measured.idle.len(), 10);
    assert!(
        measured
            .idle
            .iter()
            .all(|d| *d == Duration::from_millis(10))
    );
    assert!(measured.loaded.len() >= 5);
    for way in [measured.there, measured.back] {
        // A full window of 1,024 messages in each round trip of 10 ms, but for the beginning.
        assert!(way.bits_per_second() > 0.7e9, "{way:?}");
        assert!((900..=1020).contains(&way.elapsed.as_millis()), "{way:?}");
        assert!(way.sent - way.received <= 1024, "{way:?}");
    }
    assert_eq!(pair.ends[0].deadline(), Mono::NEVER);
    assert_eq!(pair.ends[1].deadline(), Mono::NEVER);
}

#[test]
fn loss_is_counted_and_ends_nothing() {
    let mut pair = Pair::new(true, Duration::from_millis(5), 50);
    let measured = pair.measured();
    for way in [measured.there, measured.back] {
        let lost = f64::from(way.sent - way.received) / f64::from(way.sent);
        assert!((0.005..0.1).contains(&lost), "{way:?}");
    }
}

#[test]
fn without_consent_nothing_is_sent_in_bulk() {
    let mut pair = Pair::new(false, Duration::from_millis(1), 0);
    pair.ends[0].handle_bench(7, B, (99, 1), pair.now);
    pair.ends[0].handle_session(B, pair.now);
    pair.run();
    assert_eq!(pair.answers, [(7, Answer::Denied)]);
    assert!(pair.sent < 30, "{}", pair.sent);
}

#[test]
fn attack_a_second_measurement_waits_until_the_first_is_over() {
    let mut end = Measure::new(true);
    let ask = |end: &mut Measure, device, token| {
        let ask = Message::Ask {
            token,
            seconds: 9999,
            bytes: u64::MAX,
        };
        end.handle_message(device, path(), &ask.encode(), at(0));
        match end.poll() {
            Some(Output::Send(_, bytes)) => Message::decode(&bytes).ok(),
            other => panic!("{other:?}"),
        }
    };
    let verdict = |token, verdict| Some(Message::Verdict { token, verdict });
    assert_eq!(ask(&mut end, A, 1), verdict(1, wire::GRANTED));
    assert_eq!(ask(&mut end, A, 1), verdict(1, wire::GRANTED), "repeated");
    assert_eq!(ask(&mut end, B, 2), verdict(2, wire::BUSY));
    assert_eq!(end.poll(), None);
    // Whoever asked for ever gets ten seconds each way, and what it sends then is nothing.
    assert!(end.deadline() <= at(0) + Duration::from_secs(26));
    end.handle_timeout(end.deadline());
    let data = Message::Data {
        token: 1,
        number: u32::MAX,
    }
    .encode();
    for _ in 0..100 {
        end.handle_message(A, path(), &data, at(30_000_000));
    }
    assert_eq!(end.poll(), None);
    assert_eq!(ask(&mut end, B, 2), verdict(2, wire::GRANTED));
}

#[test]
fn attack_a_flood_of_pings_gets_a_bounded_number_of_answers() {
    let mut end = Measure::new(false);
    let ping = Message::Ping { token: 1 }.encode();
    for _ in 0..10_000 {
        end.handle_message(A, path(), &ping, at(5));
    }
    let mut answers = 0;
    while end.poll().is_some() {
        answers += 1;
    }
    assert_eq!(answers, 50);
    for n in 0..=255_u8 {
        for m in 0..4 {
            let device = DeviceId([n, m, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            end.handle_message(device, path(), &ping, at(6));
        }
    }
    assert!(end.pingers.len() <= PINGERS_MAX);
}

#[test]
fn attack_a_lying_receiver_makes_nobody_send_more_than_a_window() {
    let mut end = Measure::new(true);
    let ask = Message::Ask {
        token: 1,
        seconds: 1,
        bytes: u64::MAX,
    };
    end.handle_message(A, path(), &ask.encode(), at(0));
    end.handle_message(A, path(), &Message::Turn { token: 1 }.encode(), at(0));
    let count = |end: &mut Measure| std::iter::from_fn(|| end.poll()).count();
    assert_eq!(count(&mut end), 1 + 32);
    let lie = Message::Ack {
        token: 1,
        next: u32::MAX,
        received: u32::MAX,
    };
    end.handle_message(A, path(), &lie.encode(), at(1));
    assert_eq!(count(&mut end), 0);
    // What another device says in its name counts for nothing.
    let ack = Message::Ack {
        token: 1,
        next: 32,
        received: 32,
    };
    end.handle_message(B, path(), &ack.encode(), at(1));
    assert_eq!(count(&mut end), 0);
    end.handle_message(A, path(), &ack.encode(), at(1));
    assert_eq!(count(&mut end), 64);
}
