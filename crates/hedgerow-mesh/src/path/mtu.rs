//! How long an inner packet may be on a path: found by padded probes that the network may not cut.
//!
//! The largest is tried first, because most paths carry it. When it does not come through, what every
//! path carries is next: a path that loses even that is no way for packets, however well it carries short
//! probes. Then the search halves the range between the two.

use std::time::Duration;

use hedgerow_model::Mono;

/// What every path must carry, in bytes of one inner packet; below, the network has to cut datagrams.
pub const MTU_MIN: u16 = 1280;
/// A search ends when the range is this narrow, in bytes.
pub(super) const PRECISION_BYTES: u16 = 8;
/// How often one size is tried before it counts as too long.
pub(super) const TRIES: u8 = 2;
/// How often a finished search begins again, to find that a path has become wider.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// One route's search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Search {
    /// What came through last; absent before anything was tried.
    found: Option<u16>,
    /// The largest size that may still work and the try it is at; absent while resting.
    under_way: Option<UnderWay>,
    done_at: Option<Mono>,
    /// Nothing long came through when it was searched last.
    blocked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UnderWay {
    /// What came through so far.
    works: Option<u16>,
    too_long: u16,
    size: u16,
    tries: u8,
    in_flight: bool,
}

impl Search {
    /// Returns what the search has found, when it is less than `most`.
    pub(crate) fn narrower_than(&self, most: u16) -> Option<u16> {
        self.found.filter(|found| *found < most)
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.under_way.is_none()
    }

    /// Returns whether the path loses what every path must carry. After a while nobody knows.
    pub(crate) fn is_blocked(&self, now: Mono) -> bool {
        self.blocked && self.done_at.is_some_and(|at| now.since(at) < AGAIN_AFTER)
    }

    /// Begins a search when the last is old, or there was none.
    pub(crate) fn begin_when_due(&mut self, most: u16, now: Mono) {
        let due = self.done_at.is_none_or(|at| now.since(at) >= AGAIN_AFTER);
        if due && self.is_resting() {
            self.begin(most);
        }
    }

    /// Begins a search: packets are lost for a reason that short probes do not show.
    pub(crate) fn begin(&mut self, most: u16) {
        self.under_way = Some(UnderWay {
            works: None,
            too_long: most.max(MTU_MIN).saturating_add(1),
            size: most.max(MTU_MIN),
            tries: 0,
            in_flight: false,
        });
    }

    /// Returns the size to probe with next, if a probe is to be sent now.
    pub(crate) fn next_size(&mut self) -> Option<u16> {
        let search = self.under_way.as_mut().filter(|s| !s.in_flight)?;
        search.in_flight = true;
        search.tries += 1;
        Some(search.size)
    }

    /// A probe of this size came through.
    pub(crate) fn came(&mut self, size: u16, now: Mono) {
        if let Some(search) = self.under_way.as_mut().filter(|s| s.size == size) {
            search.works = Some(size);
            self.step(now);
        }
    }

    /// A probe of this size did not.
    pub(crate) fn lost(&mut self, size: u16, now: Mono) {
        let Some(search) = self.under_way.as_mut().filter(|s| s.size == size) else {
            return;
        };
        search.in_flight = false;
        if search.tries >= TRIES {
            search.too_long = size;
            self.step(now);
        }
    }

    fn step(&mut self, now: Mono) {
        let Some(search) = &mut self.under_way else {
            return;
        };
        let left = search.works.map(|w| search.too_long.saturating_sub(w));
        let is_blocked = left.is_none() && search.size <= MTU_MIN;
        if is_blocked || left.is_some_and(|left| left <= PRECISION_BYTES) {
            self.found = Some(search.works.unwrap_or(MTU_MIN));
            self.blocked = is_blocked;
            self.done_at = Some(now);
            self.under_way = None;
            return;
        }
        search.size = match (search.works, left) {
            (Some(works), Some(left)) => works + left / 2,
            _ => MTU_MIN,
        };
        search.tries = 0;
        search.in_flight = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches on a path that carries packets up to `carries`; returns what it found and the cost.
    fn search(most: u16, carries: u16) -> (Option<u16>, u32) {
        let mut search = Search::default();
        search.begin_when_due(most, Mono::ZERO);
        let mut probes = 0;
        while let Some(size) = search.next_size() {
            probes += 1;
            assert_eq!(search.next_size(), None, "one at a time");
            if size <= carries {
                search.came(size, Mono::ZERO);
            } else {
                search.lost(size, Mono::ZERO);
            }
        }
        assert!(search.is_resting());
        (search.narrower_than(most), probes)
    }

    #[test]
    fn a_wide_path_costs_one_probe() {
        assert_eq!(search(1420, 1500), (None, 1));
        assert_eq!(search(1280, 1500), (None, 1));
    }

    #[test]
    fn a_narrow_path_is_found_within_the_precision() {
        for carries in (1280..1420).chain([2000, 8000]) {
            let (found, probes) = search(9000.min(carries + 140), carries);
            let found = found.unwrap_or(9000);
            assert!(found <= carries && carries - found <= PRECISION_BYTES);
            assert!(probes <= 2 * 14, "{probes} probes");
        }
        assert_eq!(search(1420, 600).0, Some(1280), "the network has to cut");
    }

    #[test]
    fn a_path_that_loses_everything_long_is_known_after_two_sizes_and_forgiven_later() {
        let mut search = Search::default();
        search.begin(1420);
        let mut tried = Vec::new();
        while let Some(size) = search.next_size() {
            tried.push(size);
            search.lost(size, Mono::ZERO);
        }
        assert_eq!(tried, [1420, 1420, 1280, 1280]);
        assert!(search.is_blocked(Mono::ZERO));
        assert!(!search.is_blocked(Mono::ZERO + AGAIN_AFTER));
        search.begin(1420);
        search.next_size();
        search.came(1420, Mono::ZERO);
        assert!(
            !search.is_blocked(Mono::ZERO),
            "it carries long packets again"
        );
    }

    #[test]
    fn one_lost_probe_does_not_make_a_path_narrow() {
        let mut search = Search::default();
        search.begin(1420);
        let size = search.next_size().unwrap();
        search.lost(size, Mono::ZERO);
        assert_eq!(search.next_size(), Some(1420), "again");
        search.came(1420, Mono::ZERO);
        assert_eq!(search.narrower_than(1420), None);
        assert!(search.is_resting());
    }

    #[test]
    fn a_path_is_measured_again_after_a_while() {
        let mut search = Search::default();
        search.begin_when_due(1420, Mono::ZERO);
        search.next_size();
        search.came(1420, Mono::ZERO);
        search.begin_when_due(1420, Mono::ZERO + AGAIN_AFTER / 2);
        assert!(search.is_resting());
        search.begin_when_due(1420, Mono::ZERO + AGAIN_AFTER);
        assert!(!search.is_resting());
    }
}
