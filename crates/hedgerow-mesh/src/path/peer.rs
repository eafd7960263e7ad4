//! One peer's routes: tried together, compared, replaced.

use std::collections::BTreeSet;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;

use super::candidates::judge;
use super::route::{LINK_REST_MAX, REST_MAX, Route, Standing};
use super::wire::{Candidates, PathMessage, Probe, Reply};
use super::{
    ACTIVE_FOR, Common, Dropped, MESSAGES_PER_SECOND, Output, PROBES_PER_SECOND, ROUTES_MAX,
    RouteStatus, WANTED_FOR, Why,
};
use crate::budget::Bucket;

mod probing;

use probing::COMPARE_EVERY;

/// When a list of candidates is said again: nothing acknowledges it.
const TELL_PAUSES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(2),
];
/// How long paths are looked after of a peer that speaks by another one: a relay has no traffic with those
/// that it serves.
const HEARD_FOR: Duration = Duration::from_secs(10);
/// A path that was proven this recently is not suspected for a peer that keeps to another one.
const PROVEN_LATELY: Duration = Duration::from_secs(1);
/// The same for a peer that has just begun to speak by another one: what made it change may be ours too.
const PROVEN_NOW: Duration = Duration::from_millis(100);
/// So many lost probes in a row make a suspected path dead.
const MISSES_DEAD: u32 = 2;
/// What a relayed path costs more to or from a relay: it passes frames on from and to places of their own alone.
const STRAIGHT: Duration = Duration::from_secs(1);
/// Another path must be better by a fifth, and by this.
const BETTER_BY: Duration = Duration::from_millis(2);
/// So many silences in a row on a path whose short probes are answered mean that it loses long packets.
const SILENCES_MAX: u32 = 2;
/// How long a way around is looked for when the path in use is taken back while nothing is sent.
const LEAVE_FOR: Duration = Duration::from_secs(20);
/// At most one search for that in so long.
const SEARCH_EVERY: Duration = Duration::from_secs(30);
/// A silence of this length has three before it, as the tunnel doubles them while no packet comes: on a relayed
/// path that carried probes of every length meanwhile, somebody picks.
const SWALLOWED_AFTER: Duration = Duration::from_millis(800);
/// How long a relay that does is used for the peer only where nothing else answers.
const SWALLOWS_FOR: Duration = Duration::from_secs(600);

/// The path in use may be dead.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Mono,
    next: Mono,
    rounds: u32,
    /// How often in a row there was no budget for a round.
    put_off: u32,
    /// When more paths are wanted again, and how often they were.
    want_at: Mono,
    wanted: u32,
}

impl Trouble {
    fn new(now: Mono) -> Self {
        Self {
            since: now,
            next: now,
            rounds: 0,
            put_off: 0,
            want_at: now,
            wanted: 0,
        }
    }
}

/// How often packets went unanswered on a path that answers probes.
#[derive(Debug, Clone, Copy, Default)]
struct Silences {
    count: u32,
    searched_at: Option<Mono>,
    /// Long probes came through since.
    passed: bool,
}

pub(super) struct Peer {
    device: DeviceId,
    current: Path,
    routes: Vec<Route>,
    is_kept: bool,
    /// One of the two is a relay.
    needs_straight: bool,
    /// When a path was left because it was dead.
    left_at: Mono,
    active_until: Mono,
    /// Packets went to it lately.
    wanted_until: Mono,
    trouble: Option<Trouble>,
    /// The parent was told that no path answers.
    is_lost: bool,
    silences: Silences,
    /// By which other path the peer spoke last.
    heard_by: Option<Path>,
    next_number: u32,
    /// Of the peer's last list.
    heard_generation: u64,
    told_generation: u64,
    tell: Option<(usize, Mono)>,
    mtu: Option<u16>,
    bucket: Bucket,
    /// For probes to the peer.
    budget: Bucket,
}

impl Peer {
    pub(super) fn new(device: DeviceId, path: Path, now: Mono) -> Self {
        Self {
            device,
            current: path,
            routes: Vec::new(),
            is_kept: false,
            needs_straight: false,
            left_at: Mono::ZERO,
            active_until: Mono::ZERO,
            wanted_until: Mono::ZERO,
            trouble: None,
            is_lost: false,
            silences: Silences::default(),
            heard_by: None,
            next_number: 0,
            heard_generation: 0,
            told_generation: 0,
            tell: None,
            mtu: None,
            bucket: Bucket::full(MESSAGES_PER_SECOND, now),
            budget: Bucket::full(PROBES_PER_SECOND, now),
        }
    }

    pub(super) fn may_send(&mut self, now: Mono) -> bool {
        self.bucket.take(MESSAGES_PER_SECOND, now)
    }

    pub(super) fn established(&mut self, path: Path, common: &mut Common, now: Mono) {
        self.current = path;
        self.end_trouble(common);
        self.active_until = self.active_until.max(now + ACTIVE_FOR);
        if let Some(route) = self.route_or_add(path, common, now) {
            route.standing = Standing::Alive;
            route.misses = 0;
            route.is_closed = false;
            route.probe_at = now;
        }
        if self.told_generation != common.generation {
            self.tell_candidates(common, now);
        }
        self.timeout(common, now);
    }

    pub(super) fn kept(&mut self, is_kept: bool, common: &mut Common, now: Mono) {
        let began = is_kept && !std::mem::replace(&mut self.is_kept, is_kept);
        if began {
            self.wake(common, now);
        }
    }

    pub(super) fn serves(&mut self, is_relay: bool) {
        self.needs_straight = is_relay;
    }

    fn cost(&self, route: &Route) -> Duration {
        match self.needs_straight && !route.path.is_direct() {
            true => route.cost() + STRAIGHT,
            false => route.cost(),
        }
    }

    pub(super) fn active(&mut self, common: &mut Common, now: Mono) {
        let was_awake = self.is_awake(now);
        self.active_until = now + ACTIVE_FOR;
        self.wanted_until = now + WANTED_FOR;
        if !was_awake {
            self.wake(common, now);
            if self.is_closed() {
                self.suspect(common, now);
            }
        }
    }

    /// Takes up again what rested with the traffic.
    fn wake(&mut self, common: &mut Common, now: Mono) {
        for route in &mut self.routes {
            route.probe_at = route.probe_at.min(now);
        }
        self.timeout(common, now);
    }

    fn is_awake(&self, now: Mono) -> bool {
        self.is_kept || now < self.active_until
    }

    /// Whether somebody waits for its paths.
    fn is_wanted(&self, now: Mono) -> bool {
        self.is_kept || now < self.wanted_until
    }

    /// Says where this device is, now and twice more.
    pub(super) fn tell_candidates(&mut self, common: &mut Common, now: Mono) {
        self.tell = Some((0, now));
        self.tell_when_due(common, now);
    }

    fn tell_when_due(&mut self, common: &mut Common, now: Mono) {
        while let Some((step, at)) = self.tell.filter(|(_, at)| *at <= now) {
            self.told_generation = common.generation;
            let message = PathMessage::Candidates(common.own_candidates());
            common.send(self.device, None, &message);
            let pause = TELL_PAUSES.get(step + 1);
            self.tell = pause.map(|pause| (step + 1, at.max(now) + *pause));
        }
    }

    /// Tries a way that somebody named.
    pub(super) fn learn(&mut self, path: Path, common: &mut Common, now: Mono) {
        let path = match path.relay {
            Some(_) => path,
            None => match judge(path.to, &common.local, &common.overlay) {
                Ok(to) => Path::direct(to),
                Err(absurd) => {
                    common.drop(Dropped::Candidate(absurd));
                    return;
                }
            },
        };
        self.link(path, common, now);
    }

    /// Tries a way, wherever it leads.
    pub(super) fn link(&mut self, path: Path, common: &mut Common, now: Mono) {
        let awake = self.is_awake(now);
        if let Some(route) = self.route_or_add(path, common, now) {
            route.is_closed = false;
            if !route.is_alive() && awake {
                route.standing = Standing::Fresh(0);
                route.probe_at = now;
            }
        }
        self.timeout(common, now);
    }

    /// A way is taken back. The one in use is left for the first other that answers.
    ///
    /// It is remembered, so that a peer which still speaks by it does not make it a new one.
    pub(super) fn closed(&mut self, paths: &[Path], common: &mut Common, now: Mono) {
        let routes = self.routes.iter_mut();
        for route in routes.filter(|route| paths.contains(&route.path)) {
            route.is_closed = true;
        }
        self.rest_closed(common, now);
        if self.is_closed() {
            self.active_until = self.active_until.max(now + LEAVE_FOR);
            self.choose(common, now);
        }
        if self.is_closed() {
            self.suspect(common, now);
        }
    }

    /// Whether the path in use was taken back.
    fn is_closed(&self) -> bool {
        let mut routes = self.routes.iter();
        routes.any(|route| route.path == self.current && route.is_closed)
    }

    fn rest_closed(&mut self, common: &mut Common, now: Mono) {
        let current = self.current;
        let closed = self.routes.iter_mut().filter(|route| route.is_closed);
        for route in closed.filter(|route| route.path != current) {
            route.rest(REST_MAX, |mean| common.random.jitter(mean), now);
        }
    }

    pub(super) fn relay_moved(&mut self, from: Underlay, to: Underlay, common: &mut Common) {
        let moved = |path: Path| match path.relay {
            Some(_) if path.to == from => Path { to, ..path },
            Some(_) | None => path,
        };
        let before = self.current;
        self.current = moved(before);
        for route in &mut self.routes {
            route.path = moved(route.path);
        }
        let mut known = BTreeSet::new();
        self.routes.retain(|route| known.insert(route.path));
        if self.current != before {
            common.output.push_back(Output::Move {
                device: self.device,
                from: before,
                to: self.current,
                why: Why::Better,
            });
        }
    }

    /// The addresses of this device changed: what worked may not, what did not may.
    pub(super) fn network_changed(&mut self, common: &mut Common, now: Mono) {
        if !self.is_awake(now) {
            return;
        }
        for route in &mut self.routes {
            if !route.is_alive() {
                route.standing = Standing::Fresh(0);
            }
            route.probe_at = now;
        }
        self.tell_candidates(common, now);
        self.suspect(common, now);
    }

    /// A NAT before this device gave it another address: whoever sends to the former one reaches nobody, and
    /// a relay passes nothing on. What is said now shows them the new one.
    pub(super) fn rebound(&mut self, common: &mut Common, now: Mono) {
        if !self.is_awake(now) {
            return;
        }
        if let Some(route) = self.route(self.current) {
            route.probe_at = now;
        }
        self.tell_candidates(common, now);
    }

    /// Packets go unanswered: is the path dead?
    pub(super) fn silent(&mut self, waited: Duration, common: &mut Common, now: Mono) {
        self.active_until = now + ACTIVE_FOR;
        self.wanted_until = now + WANTED_FOR;
        self.silences.count += 1;
        let lately = self.silences.searched_at;
        if self.silences.count > SILENCES_MAX
            && lately.is_none_or(|at| now.since(at) >= SEARCH_EVERY)
        {
            self.silences.searched_at = Some(now);
            self.silences.passed = false;
            let most = common.mtu;
            if let Some(route) = self.route(self.current) {
                route.mtu.begin(most);
            }
        } else if self.silences.passed && waited >= SWALLOWED_AFTER {
            self.silences.passed = false;
            self.swallowed(now);
        }
        if self.is_blocked(now) {
            self.try_others(now);
        }
        self.suspect(common, now);
    }

    /// What goes by the relayed path in use does not arrive, though probes do.
    fn swallowed(&mut self, now: Mono) {
        let relay = self.current.to;
        if self.current.is_direct() {
            return;
        }
        let of_relay = |r: &&mut Route| !r.path.is_direct() && r.path.to == relay;
        for route in self.routes.iter_mut().filter(of_relay) {
            route.swallows_until = now + SWALLOWS_FOR;
        }
        self.try_others(now);
    }

    /// The path in use is bad though it answers: does another answer now?
    fn try_others(&mut self, now: Mono) {
        let current = self.current;
        let others = self.routes.iter_mut().filter(|r| r.path != current);
        for route in others.filter(|r| !r.is_closed) {
            route.probe_at = now;
        }
    }

    /// The peer speaks by another path than we do. It may have moved, or found that ours is dead.
    pub(super) fn heard(&mut self, from: Path, common: &mut Common, now: Mono) {
        let own = common.local.clone();
        self.active_until = self.active_until.max(now + HEARD_FOR);
        self.wanted_until = self.wanted_until.max(now + HEARD_FOR);
        // One that is being tried needs no further push: two ends would push each other faster and faster.
        let is_tried = |r: &mut Route| matches!(r.standing, Standing::Fresh(_));
        let is_tried = self.route(from).is_some_and(is_tried);
        let Some(route) = self.route_or_add(from, common, now) else {
            return;
        };
        if !route.is_alive() && !route.is_closed && !is_tried {
            route.standing = Standing::Fresh(0);
            route.probe_at = now;
            if from.is_direct() && !own.contains(&from.to) {
                common.send(self.device, Some(from), &PathMessage::Observed(from.to));
            }
        }
        let has_changed = self.heard_by.replace(from) != Some(from);
        let lately = if has_changed {
            PROVEN_NOW
        } else {
            PROVEN_LATELY
        };
        let proven = self.route(self.current).and_then(|r| r.proven_at);
        if proven.is_none_or(|at| now.since(at) >= lately) {
            self.suspect(common, now);
        }
        self.timeout(common, now);
    }

    /// Begins to probe the path in use, and soon all others.
    fn suspect(&mut self, common: &mut Common, now: Mono) {
        let trouble = self.trouble.get_or_insert(Trouble::new(now));
        if trouble.put_off > 0 {
            // It was not wanted when it was put off, and is now.
            (trouble.put_off, trouble.next) = (0, now);
        }
        self.timeout(common, now);
    }

    pub(super) fn message(
        &mut self,
        message: &PathMessage,
        (from, size): (Path, usize),
        common: &mut Common,
        now: Mono,
    ) {
        match message {
            PathMessage::Probe(probe) => self.probed(*probe, (from, size), common, now),
            PathMessage::Reply(reply) => self.replied(*reply, common, now),
            PathMessage::Candidates(list) => {
                // It goes by the path that the peer uses.
                if from != self.current {
                    self.heard(from, common, now);
                }
                self.candidates(list, common, now);
            }
            PathMessage::Observed(seen) => self.seen_at(*seen, from, common, now),
            PathMessage::Moved { swallows } => {
                if *swallows && from.to != self.current.to {
                    self.swallowed(now);
                }
                self.follow(from, common, now);
            }
        }
    }

    fn probed(
        &mut self,
        probe: Probe,
        (from, size): (Path, usize),
        common: &mut Common,
        now: Mono,
    ) {
        // Cut on the way: the long packet did not come whole.
        if size < usize::from(probe.size) {
            common.drop(Dropped::Malformed);
            return;
        }
        let seen = from.is_direct().then_some(from.to);
        let reply = Reply {
            number: probe.number,
            token: probe.token,
            size: probe.size,
            seen,
        };
        common.send(self.device, Some(from), &PathMessage::Reply(reply));
        let awake = self.is_awake(now);
        if let Some(route) = self.route_or_add(from, common, now)
            && matches!(route.standing, Standing::Resting(_))
            && !route.is_closed
            && awake
        {
            route.standing = Standing::Fresh(0);
            route.probe_at = now;
        }
        self.timeout(common, now);
    }

    fn replied(&mut self, reply: Reply, common: &mut Common, now: Mono) {
        let mut routes = self.routes.iter_mut();
        let found = routes.find_map(|route| {
            let sent = route.answered(reply.number, reply.token, now)?;
            Some((route, sent))
        });
        let Some((route, sent)) = found else {
            common.drop(Dropped::Unasked);
            return;
        };
        let (path, is_closed) = (route.path, route.is_closed);
        if sent.size > 0 {
            route.mtu.came(sent.size, now);
        } else if !route.is_alive() {
            route.comes_back();
            route.probe_at = now + COMPARE_EVERY;
        }
        if let Some(round_trip) = route.round_trip
            && self.is_kept
            && path == self.current
        {
            common.output.push_back(Output::Measured {
                device: self.device,
                round_trip,
            });
        }
        let is_over = self.trouble.is_some_and(|t| sent.at >= t.since);
        if path == self.current && is_over && sent.size == 0 && !is_closed {
            self.end_trouble(common);
        } else if path == self.current && sent.size > 0 {
            self.silences.count = 0;
            self.silences.passed = true;
        }
        if let Some(seen) = reply.seen {
            self.seen_at(seen, path, common, now);
        }
        self.choose(common, now);
        self.timeout(common, now);
    }

    /// The peer sees this device there, by this path.
    fn seen_at(&mut self, seen: Underlay, by: Path, common: &mut Common, now: Mono) {
        if !by.is_direct() {
            return;
        }
        match judge(seen, &[], &common.overlay) {
            Ok(seen) => {
                let before = self.route(by).and_then(|r| r.seen.replace(seen));
                common.is_rebound |= before.is_some_and(|before| before != seen);
                if common.observe(seen) {
                    self.tell_candidates(common, now);
                }
            }
            Err(absurd) => common.drop(Dropped::Candidate(absurd)),
        }
    }

    fn candidates(&mut self, list: &Candidates, common: &mut Common, now: Mono) {
        if list.generation < self.heard_generation {
            common.drop(Dropped::Stale);
            return;
        }
        if list.generation == self.heard_generation {
            return;
        }
        self.heard_generation = list.generation;
        for address in &list.addresses {
            self.learn(Path::direct(*address), common, now);
        }
        common.output.push_back(Output::Relays {
            device: self.device,
            relays: list.relays.clone(),
        });
    }

    /// Uses another path when it is better, or the one in use is dead.
    fn choose(&mut self, common: &mut Common, now: Mono) {
        let since = self.trouble.map(|t| t.since);
        let Some(current) = self.routes.iter().find(|r| r.path == self.current) else {
            return;
        };
        let is_blocked = current.is_blocked(now);
        let is_silent = since.is_some() && current.misses >= MISSES_DEAD;
        let is_gone = is_silent || current.is_closed;
        let is_dead = is_blocked || is_gone;
        // One that was taken back says nothing against the others.
        let since = since.filter(|_| !current.is_closed);
        let proven = |route: &&Route| match since {
            Some(since) => route.proven_at.is_some_and(|at| at >= since),
            // What answered before the one in use fell silent may have gone with it.
            None => route.answered_at.is_some_and(|at| at >= self.left_at),
        };
        let others = self.routes.iter().filter(|r| r.path != self.current);
        let best = others
            .filter(|r| r.is_usable(now) || (is_gone && r.answers()))
            .filter(proven)
            .min_by_key(|r| (r.is_blocked(now), r.has_failed(now), self.cost(r), r.path));
        let Some(best) = best else {
            return;
        };
        let (to, cost, has_failed) = (best.path, self.cost(best), best.has_failed(now));
        // Of a relay that is left altogether: another session by it would be no better.
        let left = current.path;
        let swallows = is_blocked && !is_gone && !left.is_direct() && left.to != to.to;
        let current = self.cost(current);
        let why = if is_dead {
            Why::Dead
        } else if since.is_none() && !has_failed && cost + BETTER_BY.max(current / 5) < current {
            Why::Better
        } else {
            return;
        };
        self.move_to(to, why, common, now);
        let most = common.mtu;
        if let Some(route) = self.route(to).filter(|_| is_blocked) {
            // What it carried before says little: it may be another session by the same relay.
            route.mtu.begin(most);
        }
        if why == Why::Dead {
            common.send(self.device, Some(to), &PathMessage::Moved { swallows });
        }
    }

    /// The peer's probe of this path was answered, and ours was not: who only listens would learn that
    /// later, and what it sends meanwhile would be lost.
    fn follow(&mut self, to: Path, common: &mut Common, now: Mono) {
        // One that is known to lose packets is no better for the other's word.
        let is_bad = self.route(to).is_some_and(|r| r.is_blocked(now));
        let is_well = self.route(self.current).is_some_and(|r| r.is_usable(now));
        if to == self.current || (is_bad && is_well) {
            return;
        }
        let Some(route) = self.route_or_add(to, common, now).filter(|r| !r.is_closed) else {
            return;
        };
        route.standing = Standing::Alive;
        route.misses = 0;
        route.probe_at = now;
        self.move_to(to, Why::Followed, common, now);
        if self.is_blocked(now) {
            self.try_others(now);
        }
        self.timeout(common, now);
    }

    fn move_to(&mut self, to: Path, why: Why, common: &mut Common, now: Mono) {
        let from = std::mem::replace(&mut self.current, to);
        self.end_trouble(common);
        self.silences.count = 0;
        self.silences.passed = false;
        self.heard_by = None;
        self.rest_closed(common, now);
        if why != Why::Better {
            self.left_at = now;
            if let Some(route) = self.routes.iter_mut().find(|r| r.path == from) {
                route.failed(now);
                route.rest(REST_MAX, |mean| common.random.jitter(mean), now);
            }
        }
        if to.to.is_loopback() {
            // What rested for minutes is to be tried again soon.
            for route in &mut self.routes {
                route.probe_at = route.probe_at.min(now + LINK_REST_MAX);
            }
        }
        common.output.push_back(Output::Move {
            device: self.device,
            from,
            to,
            why,
        });
        self.tell_mtu(common);
    }

    fn end_trouble(&mut self, common: &mut Common) {
        self.trouble = None;
        if std::mem::take(&mut self.is_lost) {
            let device = self.device;
            common.output.push_back(Output::Back { device });
        }
    }

    fn tell_mtu(&mut self, common: &mut Common) {
        let most = common.mtu;
        let mtu = self
            .route(self.current)
            .and_then(|r| r.mtu.narrower_than(most));
        if std::mem::replace(&mut self.mtu, mtu) != mtu {
            let device = self.device;
            common.output.push_back(Output::Mtu { device, mtu });
        }
    }

    /// Does what is due.
    pub(super) fn timeout(&mut self, common: &mut Common, now: Mono) {
        self.tell_when_due(common, now);
        let was_blocked = self.is_blocked(now);
        for route in &mut self.routes {
            for lost in route.overdue(now) {
                route.mtu.lost(lost.size, now);
            }
        }
        if !was_blocked && self.is_blocked(now) {
            self.try_others(now);
        }
        self.choose(common, now);
        self.trouble_when_due(common, now);
        self.probe_when_due(common, now);
        self.measure_mtu(common, now);
    }

    /// Returns whether the path in use loses packets, however well it carries probes.
    fn is_blocked(&self, now: Mono) -> bool {
        let mut routes = self.routes.iter();
        routes.any(|r| r.path == self.current && r.is_blocked(now))
    }

    fn route(&mut self, path: Path) -> Option<&mut Route> {
        self.routes.iter_mut().find(|route| route.path == path)
    }

    /// Returns the route by `path`. A new one takes the place of one that rests.
    fn route_or_add(&mut self, path: Path, common: &mut Common, now: Mono) -> Option<&mut Route> {
        if self.routes.iter().any(|r| r.path == path) {
            return self.route(path);
        }
        if self.routes.len() >= ROUTES_MAX {
            let current = self.current;
            let rests = |r: &Route| matches!(r.standing, Standing::Resting(_));
            let place = self
                .routes
                .iter()
                .position(|r| rests(r) && r.path != current);
            let Some(place) = place else {
                common.drop(Dropped::RoutesFull);
                return None;
            };
            self.routes.remove(place);
        }
        let mut route = Route::new(path, now);
        let is_alike =
            |r: &&Route| !path.is_direct() && !r.path.is_direct() && r.path.to == path.to;
        let alike = self.routes.iter().filter(is_alike);
        // A relay that swallows what goes by one session does so by another.
        route.swallows_until = alike.map(|r| r.swallows_until).max().unwrap_or(Mono::ZERO);
        // Most peers have one or two, and a hub has thousands of peers.
        self.routes.reserve_exact(1);
        self.routes.push(route);
        self.routes.last_mut()
    }

    pub(super) fn deadline(&self) -> Mono {
        let routes = self.routes.iter();
        let routes =
            routes.flat_map(|r| r.outstanding.iter().map(|s| s.lost_at).chain([r.probe_at]));
        let trouble = self.trouble.map(|t| t.next);
        let tell = self.tell.map(|(_, at)| at);
        routes
            .chain(trouble)
            .chain(tell)
            .min()
            .unwrap_or(Mono::NEVER)
    }

    pub(super) fn answers(&self) -> bool {
        !self.is_lost && self.trouble.is_none()
    }

    pub(super) fn is_straight(&self) -> bool {
        self.needs_straight && self.current.is_direct() && self.answers()
    }

    pub(super) fn in_use(&self) -> (Path, Option<Duration>) {
        let route = self.routes.iter().find(|r| r.path == self.current);
        (self.current, route.and_then(|r| r.round_trip))
    }

    pub(super) fn routes(&self, mtu: u16) -> Vec<RouteStatus> {
        let given = self
            .routes
            .iter()
            .filter(|r| !r.is_closed || r.path == self.current);
        let routes = given.map(|route| RouteStatus {
            path: route.path,
            in_use: route.path == self.current,
            standing: route.standing,
            round_trip: route.round_trip,
            loss_permille: route.loss_permille,
            mtu: route.mtu.narrower_than(mtu),
        });
        routes.collect()
    }
}
