//! Memory for packets that wait to be sealed: taken once, lent out by number.

/// Super-packets that wait at once.
pub const LARGE_MAX: usize = 40;
/// Bytes of one: header and the longest IP packet.
pub const LARGE_BYTES: usize = 65_536 + 64;
/// Packets of at most [`SMALL_BYTES`] that wait at once.
pub const SMALL_MAX: usize = 768;
/// See [`SMALL_MAX`].
pub const SMALL_BYTES: usize = 2048;

/// The buffers: numbers below [`LARGE_MAX`] are large ones, up to [`Pool::CAPACITY`] small ones.
#[derive(Debug)]
pub struct Pool {
    slots: Vec<Slot>,
    large: Vec<usize>,
    small: Vec<usize>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Empty until it is first needed, and while it is lifted.
    memory: Box<[u8]>,
    len: usize,
}

impl Default for Pool {
    /// Makes a pool. Memory is taken when it is first needed, and then kept.
    fn default() -> Self {
        Self {
            slots: (0..Self::CAPACITY).map(|_| Slot::default()).collect(),
            large: (0..LARGE_MAX).rev().collect(),
            small: (LARGE_MAX..Self::CAPACITY).rev().collect(),
        }
    }
}

impl Pool {
    /// Buffers in all.
    pub const CAPACITY: usize = LARGE_MAX + SMALL_MAX;

    /// Lends a large buffer: the one given back last, which is still in the processor's cache.
    pub fn take_large(&mut self) -> Option<usize> {
        self.large.pop()
    }

    /// Lends the smallest buffer that holds `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<usize> {
        match len <= SMALL_BYTES {
            true => self.small.pop(),
            false => self.large.pop(),
        }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, number: usize) {
        match number < LARGE_MAX {
            true => self.large.push(number),
            false => self.small.push(number),
        }
    }

    /// Returns a buffer's whole room.
    pub fn room(&mut self, number: usize) -> &mut [u8] {
        let Some(slot) = self.slots.get_mut(number) else {
            return Default::default();
        };
        if slot.memory.is_empty() {
            let room = match number < LARGE_MAX {
                true => LARGE_BYTES,
                false => SMALL_BYTES,
            };
            slot.memory = vec![0; room].into_boxed_slice();
        }
        &mut slot.memory
    }

    /// Notes how much of a buffer is in use.
    pub fn set_len(&mut self, number: usize, len: usize) {
        if let Some(slot) = self.slots.get_mut(number) {
            slot.len = len;
        }
    }

    /// Returns what is in a buffer.
    pub fn bytes(&mut self, number: usize) -> &mut [u8] {
        let len = self.slots.get(number).map_or(0, |slot| slot.len);
        self.room(number).get_mut(..len).unwrap_or_default()
    }

    /// Copies what is in one buffer to another.
    pub fn copy(&mut self, from: usize, to: usize) {
        let Some(slot) = self.slots.get_mut(from) else {
            return;
        };
        let source = std::mem::take(&mut slot.memory);
        let bytes = source.get(..slot.len).unwrap_or_default();
        let len = bytes.len();
        if let Some(room) = self.room(to).get_mut(..len) {
            room.copy_from_slice(bytes);
            self.set_len(to, len);
        }
        self.put_back(from, source);
    }

    /// Takes a buffer's memory out, to work on it elsewhere. Its number stays lent out.
    pub fn lift(&mut self, number: usize) -> Box<[u8]> {
        let slot = self.slots.get_mut(number);
        slot.map_or_else(Box::default, |slot| std::mem::take(&mut slot.memory))
    }

    /// Puts back what was lifted.
    pub fn put_back(&mut self, number: usize, memory: Box<[u8]>) {
        if let Some(slot) = self.slots.get_mut(number) {
            slot.memory = memory;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_end() {
        let mut pool = Pool::default();
        let mut taken = vec![];
        while let Some(n) = pool.take_large() {
            taken.push(n);
        }
        while let Some(n) = pool.take(SMALL_BYTES) {
            taken.push(n);
        }
        assert_eq!(taken.len(), Pool::CAPACITY);
        assert_eq!(pool.take(SMALL_BYTES + 1), None);
        for n in &taken {
            let mark = u8::try_from(n % 251).unwrap();
            pool.room(*n).fill(mark);
        }
        for n in &taken {
            let mark = u8::try_from(n % 251).unwrap();
            assert!(pool.room(*n).iter().all(|b| *b == mark));
        }
        pool.give(taken[0]);
        assert_eq!(pool.take_large(), Some(taken[0]));
    }

    #[test]
    fn what_is_copied_is_what_was() {
        let mut pool = Pool::default();
        let (large, small) = (pool.take_large().unwrap(), pool.take(5).unwrap());
        pool.room(large)[..5].copy_from_slice(b"hello");
        pool.set_len(large, 5);
        pool.copy(large, small);
        assert_eq!(pool.bytes(small), b"hello");
    }
}
