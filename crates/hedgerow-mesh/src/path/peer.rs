//! One peer's routes: tried together, compared, replaced.

use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;

use super::candidates::judge;
use super::route::{LINK_REST_MAX, PUNCH_PAUSES, REST_MAX, Route, Standing};
use super::wire::{Candidates, PathMessage, Probe, Reply};
use super::{
    ACTIVE_FOR, Common, Dropped, KEEP_EVERY, LOST_AFTER, MESSAGES_PER_SECOND, Output,
    RELAY_LOST_AFTER, ROUTES_MAX, RouteStatus, STANDBY_EVERY, SUSPICION_EVERY, Why,
};
use crate::budget::Bucket;

/// When a list of candidates is said again: nothing acknowledges it.
const TELL_PAUSES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(2),
];
/// A path that was proven this recently is not suspected for being heard around.
const PROVEN_LATELY: Duration = Duration::from_secs(1);
/// So many lost probes in a row make a suspected path dead.
const MISSES_DEAD: u32 = 2;
/// So many make one that nothing is sent by rest.
const MISSES_STANDBY: u32 = 3;
/// The pause after a lost probe of a path that is not suspected.
const DOUBT_EVERY: Duration = Duration::from_millis(250);
/// The longest pause between two rounds of probes while no path answers.
const ROUND_MAX: Duration = Duration::from_secs(1);
/// Another path must be better by a fifth, and by this.
const BETTER_BY: Duration = Duration::from_millis(2);
/// So many silences in a row on a path whose short probes are answered mean that it loses long packets.
const SILENCES_MAX: u32 = 4;
/// At most one search for that in so long.
const SEARCH_EVERY: Duration = Duration::from_secs(60);

/// The path in use may be dead.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Mono,
    next: Mono,
    rounds: u32,
}

/// How often packets went unanswered on a path that answers probes.
#[derive(Debug, Clone, Copy, Default)]
struct Silences {
    count: u32,
    searched_at: Option<Mono>,
}

pub(super) struct Peer {
    device: DeviceId,
    current: Path,
    routes: Vec<Route>,
    is_kept: bool,
    active_until: Mono,
    trouble: Option<Trouble>,
    /// The parent was told that no path answers.
    is_lost: bool,
    silences: Silences,
    next_number: u32,
    /// Of the peer's last list.
    heard_generation: u64,
    told_generation: u64,
    tell: Option<(usize, Mono)>,
    mtu: Option<u16>,
    bucket: Bucket,
}

impl Peer {
    pub(super) fn new(device: DeviceId, path: Path, now: Mono) -> Self {
        Self {
            device,
            current: path,
            routes: Vec::new(),
            is_kept: false,
            active_until: Mono::ZERO,
            trouble: None,
            is_lost: false,
            silences: Silences::default(),
            next_number: 0,
            heard_generation: 0,
            told_generation: 0,
            tell: None,
            mtu: None,
            bucket: Bucket::full(MESSAGES_PER_SECOND, now),
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

    pub(super) fn active(&mut self, common: &mut Common, now: Mono) {
        let was_awake = self.is_awake(now);
        self.active_until = now + ACTIVE_FOR;
        if !was_awake {
            self.wake(common, now);
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
        if let Some(route) = self.route_or_add(path, common, now)
            && !route.is_alive()
            && awake
        {
            route.standing = Standing::Fresh(0);
            route.probe_at = now;
        }
        self.timeout(common, now);
    }

    pub(super) fn closed(&mut self, path: Path, common: &mut Common, now: Mono) {
        if path == self.current {
            if let Some(route) = self.route(path) {
                route.misses = MISSES_DEAD;
            }
            self.suspect(common, now);
            self.choose(common, now);
        }
        if path != self.current {
            self.routes.retain(|route| route.path != path);
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

    /// Packets go unanswered: is the path dead?
    pub(super) fn silent(&mut self, common: &mut Common, now: Mono) {
        self.active_until = now + ACTIVE_FOR;
        self.silences.count += 1;
        let lately = self.silences.searched_at;
        if self.silences.count > SILENCES_MAX
            && lately.is_none_or(|at| now.since(at) >= SEARCH_EVERY)
        {
            self.silences.searched_at = Some(now);
            let most = common.mtu;
            if let Some(route) = self.route(self.current) {
                route.mtu.begin(most);
            }
        }
        self.suspect(common, now);
    }

    /// The peer speaks by another path than we do. It may have moved, or found that ours is dead.
    pub(super) fn heard(&mut self, from: Path, common: &mut Common, now: Mono) {
        let own = common.local.clone();
        let Some(route) = self.route_or_add(from, common, now) else {
            return;
        };
        if !route.is_alive() {
            route.standing = Standing::Fresh(0);
            route.probe_at = now;
            if from.is_direct() && !own.contains(&from.to) {
                common.send(self.device, Some(from), &PathMessage::Observed(from.to));
            }
        }
        let proven = self.route(self.current).and_then(|r| r.proven_at);
        if proven.is_none_or(|at| now.since(at) >= PROVEN_LATELY) {
            self.suspect(common, now);
        }
        self.timeout(common, now);
    }

    /// Begins to probe the path in use, and soon all others.
    fn suspect(&mut self, common: &mut Common, now: Mono) {
        if self.trouble.is_none() {
            self.trouble = Some(Trouble {
                since: now,
                next: now,
                rounds: 0,
            });
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
            PathMessage::Candidates(list) => self.candidates(list, common, now),
            PathMessage::Observed(seen) => self.seen_at(*seen, common, now),
            PathMessage::Moved => self.follow(from, common, now),
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
        let path = route.path;
        if sent.size > 0 {
            route.mtu.came(sent.size, now);
        } else if !route.is_alive() {
            route.comes_back();
            route.probe_at = now + STANDBY_EVERY;
        }
        if path.is_direct() {
            route.seen = reply.seen;
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
        if path == self.current && is_over && sent.size == 0 {
            self.end_trouble(common);
        } else if path == self.current && sent.size > 0 {
            self.silences.count = 0;
        }
        if let Some(seen) = reply.seen.filter(|_| path.is_direct()) {
            self.seen_at(seen, common, now);
        }
        self.choose(common, now);
        self.timeout(common, now);
    }

    fn seen_at(&mut self, seen: Underlay, common: &mut Common, now: Mono) {
        match judge(seen, &[], &common.overlay) {
            Ok(seen) => {
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
        let is_dead = since.is_some() && current.misses >= MISSES_DEAD;
        let proven = |route: &&Route| match since {
            Some(since) => route.proven_at.is_some_and(|at| at >= since),
            None => route.proven_at.is_some(),
        };
        let others = self.routes.iter().filter(|r| r.path != self.current);
        let best = others
            .filter(|r| r.is_alive() && r.misses == 0)
            .filter(proven)
            .min_by_key(|r| (r.cost(), r.path));
        let Some(best) = best else {
            return;
        };
        let (to, cost) = (best.path, best.cost());
        let why = if is_dead {
            Why::Dead
        } else if since.is_none() && cost + BETTER_BY.max(current.cost() / 5) < current.cost() {
            Why::Better
        } else {
            return;
        };
        self.move_to(to, why, common, now);
        if why == Why::Dead {
            common.send(self.device, Some(to), &PathMessage::Moved);
        }
    }

    /// The peer's probe of this path was answered, and ours was not: who only listens would learn that
    /// later, and what it sends meanwhile would be lost.
    fn follow(&mut self, to: Path, common: &mut Common, now: Mono) {
        if to == self.current {
            return;
        }
        let Some(route) = self.route_or_add(to, common, now) else {
            return;
        };
        route.standing = Standing::Alive;
        route.misses = 0;
        route.probe_at = now;
        self.move_to(to, Why::Followed, common, now);
        self.timeout(common, now);
    }

    fn move_to(&mut self, to: Path, why: Why, common: &mut Common, now: Mono) {
        let from = std::mem::replace(&mut self.current, to);
        self.end_trouble(common);
        self.silences.count = 0;
        if why != Why::Better
            && let Some(route) = self.routes.iter_mut().find(|r| r.path == from)
        {
            route.rest(REST_MAX, |mean| common.random.jitter(mean), now);
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
        for route in &mut self.routes {
            for lost in route.overdue(now) {
                route.mtu.lost(lost.size, now);
            }
        }
        self.choose(common, now);
        self.trouble_when_due(common, now);
        self.probe_when_due(common, now);
        self.measure_mtu(common, now);
    }

    fn probe_when_due(&mut self, common: &mut Common, now: Mono) {
        let awake = self.is_awake(now);
        let rest_max = match self.current.to.is_loopback() {
            true => LINK_REST_MAX,
            false => REST_MAX,
        };
        let mut due: Vec<Path> = Vec::new();
        let mut doubtful = false;
        for route in &mut self.routes {
            if !awake {
                route.probe_at = Mono::NEVER;
                continue;
            }
            let is_current = route.path == self.current;
            if route.is_alive() && route.misses > 0 {
                doubtful |= is_current;
                route.probe_at = route.probe_at.min(now + DOUBT_EVERY);
                if !is_current && route.misses >= MISSES_STANDBY {
                    route.rest(rest_max, |mean| common.random.jitter(mean), now);
                }
            }
            if route.probe_at > now {
                continue;
            }
            match route.standing {
                Standing::Fresh(tries) => match PUNCH_PAUSES.get(tries) {
                    Some(pause) => {
                        route.standing = Standing::Fresh(tries + 1);
                        route.probe_at = now + *pause;
                        due.push(route.path);
                    }
                    None => route.rest(rest_max, |mean| common.random.jitter(mean), now),
                },
                Standing::Alive => {
                    let is_mapped = route.seen.is_none_or(|seen| !common.local.contains(&seen));
                    let keep = is_current && (self.is_kept || is_mapped);
                    let mean = if keep { KEEP_EVERY } else { STANDBY_EVERY };
                    route.probe_at = now + common.random.jitter(mean);
                    due.push(route.path);
                }
                Standing::Resting(_) => {
                    due.push(route.path);
                    route.rest(rest_max, |mean| common.random.jitter(mean), now);
                }
            }
        }
        for path in due {
            self.probe(path, common, now);
        }
        if doubtful && self.trouble.is_none() {
            self.trouble = Some(Trouble {
                since: now,
                next: now,
                rounds: 0,
            });
            self.trouble_when_due(common, now);
        }
    }

    /// Probes the path in use at once, all others with it from the second round on.
    fn trouble_when_due(&mut self, common: &mut Common, now: Mono) {
        if !self.is_awake(now) {
            self.trouble = None;
        }
        let Some(mut trouble) = self.trouble.filter(|t| t.next <= now) else {
            return;
        };
        let only_current = trouble.rounds == 0;
        let current = self.current;
        let paths = self.routes.iter().map(|r| r.path);
        let paths: Vec<Path> = paths.filter(|p| !only_current || *p == current).collect();
        for path in paths {
            self.probe(path, common, now);
        }
        let has_other = self
            .routes
            .iter()
            .any(|r| r.path != current && r.is_alive() && r.misses == 0);
        if trouble.rounds == 1 && !has_other {
            let device = self.device;
            common.output.push_back(Output::Trouble { device });
        }
        let patience = if self.is_kept {
            RELAY_LOST_AFTER
        } else {
            LOST_AFTER
        };
        if now.since(trouble.since) >= patience && !self.is_lost {
            self.is_lost = true;
            let device = self.device;
            common.output.push_back(Output::Lost { device });
        }
        trouble.rounds += 1;
        let doublings = trouble.rounds.saturating_sub(4).min(5);
        trouble.next = now + (SUSPICION_EVERY * 2u32.pow(doublings)).min(ROUND_MAX);
        self.trouble = Some(trouble);
    }

    fn measure_mtu(&mut self, common: &mut Common, now: Mono) {
        if self.trouble.is_some() || !self.is_awake(now) {
            return;
        }
        let (device, current, most) = (self.device, self.current, common.mtu);
        let number = self.next_number;
        let Some(route) = self.route(current).filter(|r| r.round_trip.is_some()) else {
            return;
        };
        route.mtu.begin_when_due(most, now);
        if let Some(size) = route.mtu.next_size() {
            let token = common.token();
            route.sent(number, token, size, now);
            let probe = Probe {
                number,
                token,
                size,
            };
            self.next_number = number.wrapping_add(1);
            common.send_padded(device, current, &PathMessage::Probe(probe), size);
        }
        self.tell_mtu(common);
    }

    fn probe(&mut self, path: Path, common: &mut Common, now: Mono) {
        let (number, token) = (self.next_number, common.token());
        let Some(route) = self.route(path) else {
            return;
        };
        route.sent(number, token, 0, now);
        self.next_number = number.wrapping_add(1);
        let probe = Probe {
            number,
            token,
            size: 0,
        };
        common.send(self.device, Some(path), &PathMessage::Probe(probe));
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
        self.routes.push(Route::new(path, now));
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

    pub(super) fn in_use(&self) -> (Path, Option<Duration>) {
        let route = self.routes.iter().find(|r| r.path == self.current);
        (self.current, route.and_then(|r| r.round_trip))
    }

    pub(super) fn routes(&self, mtu: u16) -> Vec<RouteStatus> {
        let routes = self.routes.iter().map(|route| RouteStatus {
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
