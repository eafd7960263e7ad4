//! When which path of a peer is probed.

use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::path::Path;

use super::super::route::{LINK_REST_MAX, PUNCH_PAUSES, REST_MAX, Route, SAMPLES_ENOUGH, Standing};
use super::super::wire::{PathMessage, Probe};
use super::super::{
    Common, KEEP_EVERY, LOST_AFTER, Output, PROBES_PER_SECOND, RELAY_LOST_AFTER, STANDBY_EVERY,
    SUSPICION_EVERY, pace,
};
use super::{Peer, Trouble};

/// So many make one that nothing is sent by rest.
const MISSES_STANDBY: u32 = 3;
/// The pause after a lost probe of a path that is not suspected.
const DOUBT_EVERY: Duration = Duration::from_millis(250);
/// The longest pause between two rounds of probes while no path answers.
const ROUND_MAX: Duration = Duration::from_secs(1);
/// How long the first answer is waited for before all other paths are probed.
const FIRST_MAX: Duration = Duration::from_millis(300);
/// The first pause after which more paths are wanted again; each next is twice as long.
const WANT_MIN: Duration = Duration::from_secs(1);
/// The longest.
const WANT_MAX: Duration = Duration::from_secs(15);
/// The pause between the first probes of a straight path that may be better than the relayed one in use.
pub(super) const COMPARE_EVERY: Duration = Duration::from_millis(200);

impl Peer {
    pub(super) fn probe_when_due(&mut self, common: &mut Common, now: Mono) {
        let awake = self.is_awake(now);
        let is_relayed = !self.current.is_direct();
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
            if route.is_closed && !is_current {
                route.probe_at = Mono::NEVER;
                continue;
            }
            if route.is_alive() && route.misses > 0 {
                doubtful |= is_current;
                // The one in use is then probed in rounds.
                if !is_current {
                    route.probe_at = route.probe_at.min(now + DOUBT_EVERY);
                }
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
                    let compares = is_relayed && route.path.is_direct();
                    let mean = match keep {
                        true => KEEP_EVERY,
                        false if compares && route.samples < SAMPLES_ENOUGH => COMPARE_EVERY,
                        false => STANDBY_EVERY,
                    };
                    route.probe_at = now + common.random.jitter(mean);
                    // The one in use is probed in rounds while it is suspected.
                    if !is_current || self.trouble.is_none() {
                        due.push(route.path);
                    }
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
            self.trouble = Some(Trouble::new(now));
            self.trouble_when_due(common, now);
        }
    }

    /// Probes, asks for more paths and says that none is left, as far as the budget goes.
    pub(super) fn trouble_when_due(&mut self, common: &mut Common, now: Mono) {
        if !self.is_awake(now) {
            self.trouble = None;
        }
        let Some(mut trouble) = self.trouble.filter(|t| t.next <= now) else {
            return;
        };
        let (is_closed, is_wanted) = (self.is_closed(), self.is_wanted(now));
        let current = self.current;
        let timeout = self.waits_for_first(trouble, now);
        if !self.probe_round((trouble.rounds, timeout), common, now) {
            trouble.put_off += 1;
            let pause = pace::put_off(is_wanted, trouble.put_off);
            trouble.next = now + common.random.jitter(pause);
            self.trouble = Some(trouble);
            return;
        }
        trouble.put_off = 0;
        let mut others = self.routes.iter().filter(|r| r.path != current);
        let has_other = others.any(|r| r.is_usable(now));
        let is_believed = (trouble.rounds > 0 && timeout.is_none()) || is_closed;
        if is_believed && !has_other && trouble.want_at <= now {
            let device = self.device;
            common.output.push_back(Output::Trouble { device });
            let pause = (WANT_MIN * 2u32.pow(trouble.wanted.min(5))).min(WANT_MAX);
            trouble.want_at = now + pause;
            trouble.wanted += 1;
        }
        let patience = if self.is_kept {
            RELAY_LOST_AFTER
        } else {
            LOST_AFTER
        };
        if now.since(trouble.since) >= patience
            && !self.is_lost
            && common.pace.may_look_for(is_wanted, now)
        {
            self.is_lost = true;
            let device = self.device;
            common.output.push_back(Output::Lost { device });
        }
        trouble.rounds += 1;
        let doublings = trouble.rounds.saturating_sub(4).min(5);
        trouble.next = now + (SUSPICION_EVERY * 2u32.pow(doublings)).min(ROUND_MAX);
        if let Some(at) = timeout.filter(|_| trouble.rounds > 1) {
            trouble.next = trouble.next.max(at);
        }
        self.trouble = Some(trouble);
    }

    /// Probes the path in use alone at first, then with it the one that would be taken, and all once the first
    /// answer is overdue. Returns whether there was budget for any.
    fn probe_round(
        &mut self,
        (round, timeout): (u32, Option<Mono>),
        common: &mut Common,
        now: Mono,
    ) -> bool {
        let (current, is_closed) = (self.current, self.is_closed());
        let standby = self.standby(now);
        let paths = self.routes.iter().filter(|r| !r.is_closed);
        let paths = paths.filter(|r| match (round, timeout) {
            (0, _) => is_closed || r.path == current,
            (_, Some(_)) => r.path == current || Some(r.path) == standby,
            (_, None) => true,
        });
        // Where many are to be probed, those first that may be taken.
        let rank = |r: &Route| (r.path != current, !r.is_alive(), self.cost(r), r.path);
        let mut paths: Vec<_> = paths.map(rank).collect();
        paths.sort();
        let affordable = common.pace.take(self.is_wanted(now), paths.len(), now);
        let has_any = affordable > 0 || paths.is_empty();
        for (.., path) in paths.into_iter().take(affordable) {
            self.probe(path, common, now);
        }
        has_any
    }

    /// Returns until when the path in use may still answer the first probe under suspicion.
    fn waits_for_first(&self, trouble: Trouble, now: Mono) -> Option<Mono> {
        let current = self.routes.iter().find(|r| r.path == self.current)?;
        let measured = current.round_trip.is_some() && current.misses == 0 && !current.is_closed;
        let at = trouble.since + current.timeout().min(FIRST_MAX);
        (measured && at > now).then_some(at)
    }

    /// Returns the path that would be taken if the one in use were dead.
    fn standby(&self, now: Mono) -> Option<Path> {
        let others = self.routes.iter().filter(|r| r.path != self.current);
        let best = others.filter(|r| r.is_usable(now));
        best.min_by_key(|r| (self.cost(r), r.path)).map(|r| r.path)
    }

    pub(super) fn measure_mtu(&mut self, common: &mut Common, now: Mono) {
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

    /// Probes a path, unless it is another than the one in use and the peer was sent many of late.
    pub(super) fn probe(&mut self, path: Path, common: &mut Common, now: Mono) {
        let may = self.budget.take(PROBES_PER_SECOND, now);
        if !may && path != self.current {
            return;
        }
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
}
