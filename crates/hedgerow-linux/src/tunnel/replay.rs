//! The replay window: which counters of a session were seen (algorithm of RFC 6479).

/// Counters below the highest seen for which a message is still accepted.
pub const WINDOW: u64 = BITS - 64;

const BITS: u64 = 2048;
const WORDS: usize = 32;
/// The first memory taken.
const WORDS_MIN: usize = 2;

/// Remembers the counters of one session. Most sessions see few: memory grows with the counters, up to the
/// whole window.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    /// One more than the highest counter seen; 0 before the first.
    next: u64,
    /// A power of two of them, and all of [`WORDS`] before the first is used again.
    words: Box<[u64]>,
}

impl ReplayWindow {
    /// Returns whether nothing was accepted yet.
    pub fn is_unused(&self) -> bool {
        self.next == 0
    }

    /// Returns whether `counter` is new. Asked before the costly authentication.
    pub fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        if self.next - 1 - counter >= WINDOW {
            return false;
        }
        let (word, bit) = self.place(counter);
        self.words.get(word).is_some_and(|w| w & bit == 0)
    }

    /// Marks `counter` as seen and returns whether it was new. Only for authenticated messages.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.is_new(counter) {
            return false;
        }
        if counter >= self.next {
            self.make_room(counter);
            self.clear_between(self.next, counter);
            self.next = counter.saturating_add(1);
        }
        let (word, bit) = self.place(counter);
        if let Some(w) = self.words.get_mut(word) {
            *w |= bit;
        }
        true
    }

    /// Empties the words that `counter` moves into the window. `next` is the first unseen one.
    fn clear_between(&mut self, next: u64, counter: u64) {
        // The word of `next - 1` is in use; the words after it, up to that of `counter`, are stale.
        let first = next.div_ceil(64);
        let last = counter / 64;
        let from = first.max(last.saturating_sub(BITS / 64 - 1));
        for block in from..=last {
            let word = self.place(block.saturating_mul(64)).0;
            if let Some(w) = self.words.get_mut(word) {
                *w = 0;
            }
        }
    }

    /// Takes the memory for `counter`, unless it is there. What was marked stays where it is.
    fn make_room(&mut self, counter: u64) {
        let (had, block) = (self.words.len(), counter / 64);
        if had == WORDS {
            return;
        }
        let words = usize::try_from(block.saturating_add(1)).unwrap_or(WORDS);
        let words = words.min(WORDS).next_power_of_two().max(WORDS_MIN);
        if words > had {
            let mut more = vec![0; words].into_boxed_slice();
            if let Some(marked) = more.get_mut(..had) {
                marked.copy_from_slice(&self.words);
            }
            self.words = more;
        }
    }

    fn place(&self, counter: u64) -> (usize, u64) {
        let last = self.words.len().saturating_sub(1);
        let block = usize::try_from(counter / 64 % BITS).unwrap_or(0);
        (block & last, 1 << (counter % 64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tunnel_replay_table() {
        let mut window = ReplayWindow::default();
        for (counter, fresh) in [
            (0, true),
            (0, false),
            (1, true),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (WINDOW + 9, true),
            (10, true),
            (9, false),
            (WINDOW * 3, true),
            (WINDOW * 2, false),
            (WINDOW * 2 + 1, true),
            (u64::MAX - 1, true),
            (u64::MAX - 1, false),
            (u64::MAX - WINDOW, true),
            (u64::MAX - WINDOW - 1, false),
        ] {
            assert_eq!(window.accept(counter), fresh, "{counter}");
        }
    }

    #[test]
    fn tunnel_a_window_takes_memory_as_counters_come() {
        let mut window = ReplayWindow::default();
        let mut took = |counter| {
            window.accept(counter);
            window.words.len()
        };
        assert_eq!([0, 127, 128, 300].map(&mut took), [2, 2, 4, 8]);
        assert_eq!([5_000, u64::MAX - 1].map(&mut took), [WORDS; 2]);
        assert_eq!(ReplayWindow::default().words.len(), 0);
    }

    proptest! {
        #[test]
        fn tunnel_replay_window_equals_a_set(steps in prop::collection::vec((0u8..4, 0u64..5000), 1..400)) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            let mut top = 0u64;
            for (kind, n) in steps {
                let counter = match kind {
                    0 => top + n % 8,
                    1 => top.saturating_sub(n),
                    2 => top.saturating_sub(n % 64),
                    _ => top + n,
                };
                let old = seen.iter().next_back().is_some_and(|max: &u64| *max >= counter && max - counter >= WINDOW);
                let fresh = !old && !seen.contains(&counter);
                prop_assert_eq!(window.is_new(counter), fresh);
                prop_assert_eq!(window.accept(counter), fresh);
                if fresh {
                    seen.insert(counter);
                }
                top = top.max(counter);
            }
        }
    }
}
