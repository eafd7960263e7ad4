use std::collections::{BTreeMap, BTreeSet};

use hedgerow_model::path::RelaySession;

use super::*;

mod lies;
mod many;
mod taken_back;

/// Two devices, the network between them, and what their tunnels do.
struct Pair {
    now: Mono,
    paths: [Paths; 2],
    /// By which path each sends; none without a session.
    current: [Path; 2],
    flights: BTreeSet<(Mono, u64, usize, Path, Vec<u8>)>,
    serial: u64,
    /// Which path of one end arrives at the other as which, after how long, how wide.
    links: [BTreeMap<Path, Link>; 2],
    log: [Vec<Output>; 2],
    sent: [u64; 2],
}

#[derive(Clone, Copy)]
struct Link {
    arrives_as: Path,
    delay: Duration,
    carries: usize,
}

fn device(end: usize) -> DeviceId {
    DeviceId([u8::try_from(end).unwrap() + 1; 16])
}

fn direct(text: &str) -> Path {
    Path::direct(Underlay(text.parse().unwrap()))
}

fn relayed(session: u32) -> Path {
    let relay = Underlay("203.0.113.1:7117".parse().unwrap());
    Path::relayed(relay, RelaySession(session))
}

const A: &str = "192.0.2.1:7117";
const B: &str = "192.0.2.2:7117";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Pair {
    fn new() -> Self {
        Self {
            now: Mono::ZERO + ms(1000),
            paths: [Paths::new([1; 32], 1420), Paths::new([2; 32], 1420)],
            current: [relayed(1), relayed(2)],
            flights: BTreeSet::new(),
            serial: 0,
            links: [BTreeMap::new(), BTreeMap::new()],
            log: [vec![], vec![]],
            sent: [0, 0],
        }
    }

    fn link(&mut self, from_a: Path, from_b: Path, delay: Duration) {
        for (end, path, arrives_as) in [(0, from_a, from_b), (1, from_b, from_a)] {
            let link = Link {
                arrives_as,
                delay,
                carries: 1500,
            };
            self.links[end].insert(path, link);
        }
    }

    fn cut(&mut self, from_a: Path, from_b: Path) {
        self.links[0].remove(&from_a);
        self.links[1].remove(&from_b);
    }

    /// Two devices that know each other through a relay.
    fn through_relay() -> Self {
        let mut pair = Self::new();
        pair.link(relayed(1), relayed(2), ms(15));
        pair.establish(relayed(1), relayed(2));
        pair
    }

    /// Two devices side by side that also have a relay.
    fn side_by_side() -> Self {
        let mut pair = Self::new();
        pair.link(relayed(1), relayed(2), ms(15));
        pair.link(direct(B), direct(A), ms(5));
        pair.addresses();
        pair.establish(relayed(1), relayed(2));
        pair.run(ms(2000));
        assert_eq!(pair.current, [direct(B), direct(A)]);
        pair
    }

    fn addresses(&mut self) {
        for (end, text) in [(0, A), (1, B)] {
            let own = vec![Underlay(text.parse().unwrap())];
            self.paths[end].handle_local_addresses(own, &[], self.now);
        }
    }

    fn establish(&mut self, a: Path, b: Path) {
        self.current = [a, b];
        for (end, path) in [(0, a), (1, b)] {
            self.paths[end].handle_established(device(1 - end), path, self.now);
            self.drain(end);
        }
    }

    fn with(&mut self, end: usize, f: impl FnOnce(&mut Paths, DeviceId, Mono)) {
        f(&mut self.paths[end], device(1 - end), self.now);
        self.drain(end);
    }

    fn drain(&mut self, end: usize) {
        while let Some(output) = self.paths[end].poll() {
            self.log[end].push(output.clone());
            match output {
                Output::Send { via, bytes, .. } => {
                    let via = via.unwrap_or(self.current[end]);
                    self.sent[end] += 1;
                    self.fly(end, via, bytes);
                }
                Output::Move { from, to, .. } => {
                    assert_eq!(from, self.current[end]);
                    self.current[end] = to;
                }
                Output::Mtu { .. }
                | Output::Trouble { .. }
                | Output::Lost { .. }
                | Output::Back { .. }
                | Output::Measured { .. }
                | Output::Relays { .. } => {}
            }
        }
    }

    fn fly(&mut self, end: usize, via: Path, bytes: Vec<u8>) {
        if let Some(link) = self.links[end].get(&via)
            && bytes.len() <= link.carries
        {
            self.serial += 1;
            let at = self.now + link.delay;
            self.flights
                .insert((at, self.serial, 1 - end, link.arrives_as, bytes));
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let flight = self.flights.first().map(|f| f.0);
            let due = self.paths.iter().map(Paths::deadline).chain(flight).min();
            let Some(next) = due.filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if flight == Some(next) {
                let (_, _, to, from, bytes) = self.flights.pop_first().unwrap();
                self.arrive(to, from, &bytes);
            } else {
                for end in [0, 1] {
                    self.with(end, |paths, _, now| paths.handle_timeout(now));
                }
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, end: usize, from: Path, bytes: &[u8]) {
        if from != self.current[end] {
            self.with(end, |p, device, now| p.handle_heard(device, from, now));
        }
        let (_, content) = message::decode(bytes).unwrap();
        let content = (content, bytes.len());
        self.with(end, |p, device, now| {
            p.handle_message(device, from, content, now)
        });
    }

    /// What the tunnel says when packets are sent and none comes back.
    fn silence(&mut self, end: usize) {
        self.silence_of(end, ms(100));
    }

    /// The same, when it lasted so long.
    fn silence_of(&mut self, end: usize, waited: Duration) {
        self.with(end, |p, device, now| p.handle_silent(device, waited, now));
    }

    fn moves(&self, end: usize) -> Vec<(Path, Why)> {
        let moves = self.log[end].iter().filter_map(|output| match output {
            Output::Move { to, why, .. } => Some((*to, *why)),
            Output::Send { .. }
            | Output::Mtu { .. }
            | Output::Trouble { .. }
            | Output::Lost { .. }
            | Output::Back { .. }
            | Output::Measured { .. }
            | Output::Relays { .. } => None,
        });
        moves.collect()
    }
}

#[test]
fn neighbours_leave_the_relay_for_the_direct_path() {
    let mut pair = Pair::new();
    pair.link(relayed(1), relayed(2), ms(15));
    pair.link(direct(B), direct(A), ms(14));
    pair.addresses();
    pair.establish(relayed(1), relayed(2));
    pair.run(ms(500));
    assert_eq!(pair.current, [direct(B), direct(A)]);
    assert_eq!(pair.moves(0), [(direct(B), Why::Better)]);
}

#[test]
fn one_slow_first_answer_does_not_keep_two_neighbours_at_the_relay() {
    let mut pair = Pair::new();
    pair.link(relayed(1), relayed(2), ms(3));
    pair.link(direct(B), direct(A), ms(20));
    pair.addresses();
    pair.establish(relayed(1), relayed(2));
    pair.run(ms(150));
    // The machine was busy while the first probes were under way.
    pair.link(direct(B), direct(A), ms(1));
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.current, [direct(B), direct(A)]);
}

#[test]
fn between_a_relay_and_its_guest_the_straight_path_is_taken_however_slow() {
    let mut pair = Pair::new();
    pair.link(relayed(1), relayed(2), ms(2));
    pair.link(direct(B), direct(A), ms(200));
    pair.addresses();
    pair.establish(relayed(1), relayed(2));
    for end in [0, 1] {
        pair.with(end, |p, device, now| p.handle_serves(device, true, now));
    }
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.current, [direct(B), direct(A)]);
}

#[test]
fn a_path_that_died_with_the_one_in_use_is_not_taken_for_better() {
    let mut pair = through_two_relays();
    // A second session at the first relay, as near as the first.
    pair.link(relayed(3), relayed(4), ms(15));
    for (end, path) in [(0, relayed(3)), (1, relayed(4))] {
        pair.with(end, |p, device, now| p.handle_known(device, &[path], now));
    }
    pair.run(ms(2000));
    pair.cut(relayed(1), relayed(2));
    pair.cut(relayed(3), relayed(4));
    pair.silence(0);
    pair.run(ms(1500));
    assert_eq!(pair.moves(0), [(relayed(7), Why::Dead)]);
}

#[test]
fn a_far_worse_direct_path_is_not_taken() {
    let mut pair = Pair::new();
    pair.link(relayed(1), relayed(2), ms(5));
    pair.link(direct(B), direct(A), ms(150));
    pair.addresses();
    pair.establish(relayed(1), relayed(2));
    pair.run(Duration::from_secs(30));
    assert_eq!(pair.current, [relayed(1), relayed(2)]);
}

#[test]
fn a_cut_path_is_replaced_within_the_goal() {
    for waited in [0, 7, 40_000, 85_000] {
        let mut pair = Pair::side_by_side();
        pair.run(ms(waited));
        pair.cut(direct(B), direct(A));
        // The tunnel reports after 100 ms of sending into silence.
        pair.run(ms(100));
        pair.silence(0);
        pair.silence(1);
        pair.run(ms(400));
        assert_eq!(pair.current, [relayed(1), relayed(2)], "after {waited} ms");
        assert_eq!(pair.moves(0).last().unwrap().1, Why::Dead);
    }
}

#[test]
fn who_only_listens_follows_the_one_that_noticed() {
    let mut pair = Pair::side_by_side();
    pair.cut(direct(B), direct(A));
    pair.run(ms(1500));
    pair.silence(0);
    while pair.current[0] == direct(B) {
        pair.run(ms(1));
    }
    // No later than the first packet on the new way.
    pair.run(ms(15));
    assert_eq!(pair.current, [relayed(1), relayed(2)]);
    assert_eq!(pair.moves(1).last().unwrap().1, Why::Followed);
}

#[test]
fn who_was_told_to_follow_and_did_not_hear_follows_all_the_same() {
    let mut pair = Pair::side_by_side();
    pair.cut(direct(B), direct(A));
    pair.run(ms(1500));
    pair.silence(0);
    while pair.current[0] == direct(B) {
        pair.run(ms(1));
    }
    let told = PathMessage::Moved { swallows: false }.encode();
    pair.flights.retain(|(.., bytes)| *bytes != told);
    pair.run(ms(1500));
    assert_eq!(pair.current, [relayed(1), relayed(2)]);
}

#[test]
fn who_hears_the_other_change_its_way_asks_its_own_at_once() {
    let mut pair = Pair::side_by_side();
    // Both have just proven the way that is cut now.
    for end in [0, 1] {
        pair.silence(end);
    }
    pair.run(ms(50));
    pair.cut(direct(B), direct(A));
    pair.run(ms(150));
    pair.silence(0);
    while pair.current[0] == direct(B) {
        pair.run(ms(10));
    }
    pair.with(1, |p, device, now| p.handle_heard(device, relayed(2), now));
    pair.run(ms(400));
    assert_eq!(pair.current[1], relayed(2));
}

/// Two devices with a session through either of two relays; the first is nearer and in use.
fn through_two_relays() -> Pair {
    let mut pair = Pair::through_relay();
    pair.link(relayed(7), relayed(8), ms(30));
    for (end, path) in [(0, relayed(7)), (1, relayed(8))] {
        pair.with(end, |p, device, now| p.handle_known(device, &[path], now));
    }
    pair.run(ms(2000));
    assert_eq!(pair.current, [relayed(1), relayed(2)]);
    pair
}

#[test]
fn a_way_through_a_relay_that_moved_is_one_way_still() {
    let mut pair = through_two_relays();
    let [before, after] = ["203.0.113.1:7117", "203.0.113.9:7117"];
    let [before, after] = [before, after].map(|text| Underlay(text.parse().unwrap()));
    let new = Path::relayed(after, RelaySession(1));
    pair.link(new, relayed(2), ms(15));
    // It was told of at its new place first.
    pair.with(0, |p, device, now| p.handle_known(device, &[new], now));
    pair.with(0, |p, _, now| p.handle_relay_moved(before, after, now));
    let routes = pair.paths[0].routes(device(1));
    let same = routes.iter().filter(|route| route.path == new);
    assert_eq!(same.count(), 1, "{routes:?}");
    assert_eq!(pair.current[0], new);
}

#[test]
fn a_relay_that_drops_long_packets_and_passes_probes_is_left() {
    let mut pair = through_two_relays();
    for (end, path) in [(0, relayed(1)), (1, relayed(2))] {
        pair.links[end].get_mut(&path).unwrap().carries = 400;
    }
    for _ in 0..4 {
        pair.silence(0);
        pair.run(ms(300));
    }
    pair.run(ms(1000));
    assert_eq!(pair.moves(0), [(relayed(7), Why::Dead)]);
    // It goes on answering short probes, and is not taken again for that.
    for _ in 0..60 {
        pair.with(0, |p, device, now| p.handle_active(device, now));
        pair.run(Duration::from_secs(1));
    }
    assert_eq!(pair.current[0], relayed(7));
}

#[test]
fn a_path_that_came_back_is_taken_again() {
    let mut pair = Pair::side_by_side();
    pair.cut(direct(B), direct(A));
    pair.silence(0);
    pair.silence(1);
    pair.run(ms(1000));
    assert_eq!(pair.current, [relayed(1), relayed(2)]);
    pair.link(direct(B), direct(A), ms(5));
    for _ in 0..30 {
        pair.run(Duration::from_secs(1));
        pair.with(0, |p, device, now| p.handle_active(device, now));
        pair.with(1, |p, device, now| p.handle_active(device, now));
    }
    assert_eq!(pair.current, [direct(B), direct(A)]);
}

#[test]
fn silence_on_a_path_that_works_changes_nothing() {
    let mut pair = Pair::side_by_side();
    let moves = pair.moves(0).len();
    for _ in 0..100 {
        pair.silence(0);
        pair.run(ms(100));
    }
    assert_eq!(pair.moves(0).len(), moves, "a stream in one direction");
}

#[test]
fn a_dead_path_without_another_asks_for_relays_and_then_says_so() {
    let mut pair = Pair::through_relay();
    pair.run(ms(500));
    pair.cut(relayed(1), relayed(2));
    pair.silence(0);
    pair.run(ms(100));
    let device = device(1);
    assert!(pair.log[0].contains(&Output::Trouble { device }));
    pair.run(LOST_AFTER + ms(1500));
    assert!(pair.log[0].contains(&Output::Lost { device }));
    // A relay was found meanwhile.
    pair.link(relayed(7), relayed(8), ms(10));
    pair.with(0, |p, device, now| {
        p.handle_known(device, &[relayed(7)], now)
    });
    pair.run(ms(300));
    assert_eq!(pair.current[0], relayed(7));
}

#[test]
fn a_nat_that_changes_its_mapping_is_followed() {
    let mut pair = Pair::side_by_side();
    let before = direct(A);
    let after = direct("192.0.2.1:40001");
    // The other end now sees A elsewhere, and what it sends to the former place gets lost.
    pair.cut(direct(B), before);
    pair.link(direct(B), after, ms(5));
    pair.run(ms(1200));
    let bytes = pair.paths[0].common.own_candidates().addresses.len();
    assert!(bytes > 0);
    pair.with(1, |p, device, now| p.handle_heard(device, after, now));
    pair.run(ms(500));
    assert_eq!(pair.current[1], after);
}

#[test]
fn a_relay_without_traffic_follows_a_nat_that_changes_its_mapping() {
    // Which end 0 is behind; end 1 is its relay, and never looks for itself.
    let mut pair = Pair::new();
    let (before, after) = (direct("192.0.2.9:20001"), direct("192.0.2.9:30001"));
    let relay = direct(B);
    pair.addresses();
    pair.link(relay, before, ms(5));
    pair.establish(relay, before);
    pair.with(0, |p, device, now| p.handle_kept(device, true, now));
    pair.run(ACTIVE_FOR * 2);
    pair.cut(relay, before);
    pair.link(relay, after, ms(5));
    pair.run(KEEP_EVERY * 3 / 2 + ms(1000));
    assert_eq!(pair.current[1], after);
    assert_eq!(pair.current[0], relay);
}

#[test]
fn who_is_seen_elsewhere_by_one_peer_tells_all() {
    let mut paths = Paths::new([1; 32], 1420);
    let now = Mono::ZERO;
    for end in [1, 2] {
        let at = direct(&format!("192.0.2.{end}:7117"));
        paths.handle_established(device(end), at, now);
    }
    let from = direct("192.0.2.1:7117");
    let mut told = |seen: &str| {
        while paths.poll().is_some() {}
        let seen = PathMessage::Observed(Underlay(seen.parse().unwrap())).encode();
        paths.handle_message(device(1), from, (&seen, seen.len()), now);
        let mut told = BTreeSet::new();
        while let Some(output) = paths.poll() {
            if let Output::Send { device, bytes, .. } = output
                && matches!(
                    PathMessage::decode(message::decode(&bytes).unwrap().1),
                    Ok(PathMessage::Candidates(_))
                )
            {
                told.insert(device);
            }
        }
        told
    };
    assert_eq!(told("203.0.113.7:20001"), BTreeSet::from([device(1)]));
    assert_eq!(told("203.0.113.7:20001"), BTreeSet::new());
    let all = BTreeSet::from([device(1), device(2)]);
    assert_eq!(told("203.0.113.7:30001"), all);
}

#[test]
fn narrow_paths_and_black_holes_are_found() {
    let mut pair = Pair::side_by_side();
    for end in [0, 1] {
        assert!(
            !pair.log[end]
                .iter()
                .any(|o| matches!(o, Output::Mtu { .. }))
        );
        for link in pair.links[end].values_mut() {
            link.carries = 1350;
        }
    }
    // Long packets vanish, short probes come through.
    for _ in 0..10 {
        pair.silence(0);
        pair.run(ms(300));
    }
    pair.run(Duration::from_secs(10));
    let found = pair.log[0].iter().rev().find_map(|output| match output {
        Output::Mtu { mtu, .. } => *mtu,
        Output::Send { .. }
        | Output::Move { .. }
        | Output::Trouble { .. }
        | Output::Lost { .. }
        | Output::Back { .. }
        | Output::Measured { .. }
        | Output::Relays { .. } => None,
    });
    assert!((1342..=1350).contains(&found.unwrap()), "{found:?}");
}

#[test]
fn idle_peers_cost_nothing_and_kept_relays_stay_open() {
    let mut pair = Pair::side_by_side();
    pair.run(ACTIVE_FOR * 3);
    let sent = pair.sent;
    pair.run(Duration::from_secs(3600));
    assert_eq!(pair.sent, sent, "idle");
    pair.with(0, |p, device, now| p.handle_kept(device, true, now));
    pair.run(Duration::from_secs(600));
    let kept = pair.sent[0] - sent[0];
    assert!((20..=200).contains(&kept), "{kept} messages in ten minutes");
}

#[test]
fn both_ends_probe_at_the_same_time() {
    // A NAT on both sides: what comes in is dropped before something went out to there.
    let mut pair = Pair::through_relay();
    pair.addresses();
    pair.establish(relayed(1), relayed(2));
    pair.run(ms(60));
    let first = |end: usize, to: Path| {
        pair.log[end]
            .iter()
            .any(|o| matches!(o, Output::Send { via: Some(via), .. } if *via == to))
    };
    assert!(first(0, direct(B)) && first(1, direct(A)));
}

#[test]
fn silence_on_a_far_path_that_works_asks_it_and_the_next_best_alone() {
    let mut pair = Pair::new();
    pair.link(relayed(1), relayed(2), ms(60));
    pair.link(relayed(7), relayed(8), ms(65));
    pair.establish(relayed(1), relayed(2));
    let many: Vec<Path> = (7..20).map(relayed).collect();
    pair.with(0, |p, device, now| p.handle_known(device, &many, now));
    pair.run(Duration::from_secs(3));
    pair.log[0].clear();
    pair.silence(0);
    pair.run(ms(300));
    let probed = pair.log[0].iter().filter_map(|o| {
        let Output::Send { via, bytes, .. } = o else {
            return None;
        };
        let (_, content) = message::decode(bytes)?;
        let probe = matches!(PathMessage::decode(content), Ok(PathMessage::Probe(_)));
        via.filter(|_| probe)
    });
    let probed: Vec<Path> = probed.collect();
    assert_eq!(probed, [relayed(1), relayed(1), relayed(7)]);
}

#[test]
fn probes_of_many_dead_paths_stay_below_what_the_peer_takes() {
    let mut pair = Pair::through_relay();
    let many: Vec<Path> = (10..30).map(relayed).collect();
    pair.with(0, |p, device, now| p.handle_known(device, &many, now));
    pair.cut(relayed(1), relayed(2));
    let begin = pair.log[0].len();
    let others = |pair: &Pair| {
        let sent = pair.log[0].iter().skip(begin);
        let other =
            |o: &&Output| matches!(o, Output::Send { via: Some(via), .. } if *via != relayed(1));
        u32::try_from(sent.filter(other).count()).unwrap()
    };
    for second in 1..=60 {
        // What is found and lost again begins the trouble anew.
        for _ in 0..5 {
            pair.with(0, |p, device, now| {
                p.handle_known(device, &many, now);
                p.handle_silent(device, ms(100), now);
            });
            pair.run(ms(200));
        }
        let most = PROBES_PER_SECOND.burst + second * PROBES_PER_SECOND.per_second;
        assert!(others(&pair) <= most, "{} in {second} s", others(&pair));
    }
}

#[test]
fn absurd_candidates_are_counted_and_never_probed() {
    let mut pair = Pair::through_relay();
    pair.addresses();
    let addresses = [
        "127.0.0.1:1",
        "224.0.0.1:1",
        "0.0.0.0:1",
        "192.0.2.1:7117",
        "10.1.1.1:0",
        "198.51.100.7:1",
    ];
    let list = PathMessage::Candidates(Candidates {
        generation: 9,
        addresses: addresses.map(|a| Underlay(a.parse().unwrap())).to_vec(),
        relays: vec![],
    });
    let content = list.encode();
    pair.log[0].clear();
    pair.with(0, |p, device, now| {
        p.handle_message(device, relayed(1), (&content, content.len()), now);
    });
    let probed: BTreeSet<Path> = pair.log[0]
        .iter()
        .filter_map(|o| match o {
            Output::Send { via, .. } => via.filter(Path::is_direct),
            Output::Mtu { .. }
            | Output::Move { .. }
            | Output::Trouble { .. }
            | Output::Lost { .. }
            | Output::Back { .. }
            | Output::Measured { .. }
            | Output::Relays { .. } => None,
        })
        .collect();
    assert_eq!(probed, BTreeSet::from([direct("198.51.100.7:1")]));
    let refused: u64 = pair.paths[0].dropped().values().sum();
    assert_eq!(refused, 5);
}

#[test]
fn made_up_and_repeated_replies_prove_nothing() {
    let mut pair = Pair::through_relay();
    pair.run(ms(1000));
    let forged = PathMessage::Reply(Reply {
        number: 0,
        token: 1,
        size: 0,
        seen: None,
    });
    let content = forged.encode();
    let from = direct("198.51.100.66:1");
    for _ in 0..3 {
        pair.with(0, |p, device, now| {
            p.handle_message(device, from, (&content, content.len()), now);
        });
    }
    assert_eq!(pair.current[0], relayed(1));
    assert_eq!(pair.paths[0].dropped()[&Dropped::Unasked], 3);
}

#[test]
fn a_flood_of_messages_is_bounded_per_peer() {
    let mut pair = Pair::through_relay();
    pair.run(ms(5000));
    pair.log[0].clear();
    for number in 0..10_000u32 {
        let probe = PathMessage::Probe(Probe {
            number,
            token: 0,
            size: 0,
        });
        let content = probe.encode();
        let from = direct(&format!(
            "198.51.100.{}:{}",
            number % 250 + 1,
            1 + number % 999
        ));
        pair.with(0, |p, device, now| {
            p.handle_message(device, from, (&content, content.len()), now);
        });
    }
    let answers = pair.log[0].len();
    assert!(answers <= 600, "{answers} messages out");
    assert!(pair.paths[0].routes(device(1)).len() <= ROUTES_MAX);
    assert!(pair.paths[0].dropped()[&Dropped::Flood] > 9_000);
    assert!(pair.paths[0].dropped()[&Dropped::RoutesFull] > 0);
}

#[test]
fn a_probe_that_was_cut_on_the_way_gets_no_answer() {
    let mut pair = Pair::through_relay();
    pair.run(ms(500));
    pair.log[0].clear();
    let probe = PathMessage::Probe(Probe {
        number: 5,
        token: 5,
        size: 1400,
    });
    let content = probe.encode();
    pair.with(0, |p, device, now| {
        p.handle_message(device, relayed(1), (&content, 1399), now);
    });
    assert_eq!(pair.log[0], []);
}

#[test]
fn messages_survive_the_wire_and_keep_their_bounds() {
    let address = Underlay(A.parse().unwrap());
    let list = |n| {
        PathMessage::Candidates(Candidates {
            generation: u64::MAX,
            addresses: vec![Underlay("[2001:db8::1]:65535".parse().unwrap()); n],
            relays: vec![DeviceId([9; 16]); RELAYS_MAX],
        })
    };
    let reply = Reply {
        number: 1,
        token: 2,
        size: 3,
        seen: Some(address),
    };
    for message in [
        PathMessage::Reply(reply),
        PathMessage::Observed(address),
        PathMessage::Moved { swallows: false },
        PathMessage::Moved { swallows: true },
        list(CANDIDATES_MAX),
    ] {
        let bytes = message.encode();
        assert!(bytes.len() <= message::MESSAGE_BYTES_MAX);
        assert_eq!(PathMessage::decode(&bytes).unwrap(), message);
        for cut in 0..bytes.len() {
            assert!(PathMessage::decode(&bytes[..cut]).is_err());
        }
    }
    assert!(PathMessage::decode(&list(CANDIDATES_MAX + 1).encode()).is_err());
    // A later version appends.
    assert_eq!(
        PathMessage::decode(&[0x85, 0, 1, 2, 3, 0x61, b'x']).unwrap(),
        PathMessage::Probe(Probe {
            number: 1,
            token: 2,
            size: 3
        })
    );
}
