//! Connections that have proven nothing yet: few from one source, so that it keeps nobody else out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// One source takes at most this part of the places, …
const SHARE: usize = 4;
/// … but so many in any case, since a site's devices may all come from one address.
const SHARE_MIN: usize = 16;

/// Places for connections, and turns of those who have one.
#[derive(Debug)]
pub(crate) struct Crowd {
    places: usize,
    turns: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    places: usize,
    by_source: BTreeMap<IpAddr, Source>,
}

#[derive(Debug)]
struct Source {
    places: usize,
    turns: Arc<Semaphore>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    source: IpAddr,
    turns: Arc<Semaphore>,
}

impl Crowd {
    /// Makes so many places, for connections that take up to so many turns at once.
    pub(crate) fn new(places: usize, turns: usize) -> Arc<Self> {
        Arc::new(Self {
            places,
            turns,
            inside: Mutex::default(),
        })
    }

    /// Takes a place, if there is one for this source.
    pub(crate) fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let source = network(source);
        let mut inside = self.inside();
        let free = inside.places < self.places;
        let share = (self.places / SHARE).max(SHARE_MIN);
        let known = inside.by_source.entry(source).or_insert_with(|| Source {
            places: 0,
            turns: Arc::new(Semaphore::new((self.turns / SHARE).max(1))),
        });
        if !free || known.places >= share {
            if known.places == 0 {
                inside.by_source.remove(&source);
            }
            return None;
        }
        known.places += 1;
        let turns = known.turns.clone();
        inside.places += 1;
        Some(Place {
            crowd: self.clone(),
            source,
            turns,
        })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The turns of this place's source.
    pub(crate) fn turns(&self) -> &Semaphore {
        &self.turns
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.crowd.inside();
        inside.places -= 1;
        if let Some(source) = inside.by_source.get_mut(&self.source) {
            source.places -= 1;
            if source.places == 0 {
                inside.by_source.remove(&self.source);
            }
        }
    }
}

/// Returns what one party can have addresses from without effort: a /64 of IPv6.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(a) => Ipv6Addr::from(u128::from(a) >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(crowd: &Arc<Crowd>, source: &str) -> Option<Place> {
        crowd.enter(source.parse().unwrap())
    }

    #[test]
    fn a_source_that_floods_leaves_room_for_others_and_a_turn() {
        let crowd = Crowd::new(100, 8);
        let flood: Vec<_> = (0..200)
            .filter_map(|n| enter(&crowd, &format!("2001:db8::{n:x}")))
            .collect();
        assert_eq!(flood.len(), 25);
        let turns: Vec<_> = flood
            .iter()
            .map_while(|p| p.turns().try_acquire().ok())
            .collect();
        assert_eq!(turns.len(), 2, "a quarter of the turns");
        let other = enter(&crowd, "2001:db8:0:1::1").unwrap();
        assert!(other.turns().try_acquire().is_ok());
    }

    #[test]
    fn places_come_back_and_nothing_is_remembered_of_who_left() {
        let crowd = Crowd::new(32, 4);
        for _ in 0..100 {
            let here: Vec<_> = (0..40)
                .filter_map(|_| enter(&crowd, "::ffff:192.0.2.1"))
                .collect();
            assert_eq!(here.len(), 16);
            assert!(
                enter(&crowd, "192.0.2.1").is_none(),
                "the same in both spellings"
            );
        }
        let sources: Vec<_> = (0..40)
            .filter_map(|n| enter(&crowd, &format!("192.0.2.{n}")))
            .collect();
        assert_eq!(sources.len(), 32);
        drop(sources);
        let inside = crowd.inside();
        assert!(inside.places == 0 && inside.by_source.is_empty());
    }
}
