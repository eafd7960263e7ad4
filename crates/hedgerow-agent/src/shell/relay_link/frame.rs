//! Datagrams in a stream: `length u16, big-endian | datagram`, and nothing else.

/// Longest datagram: above the mesh's longest, which is an inner packet of 9000 bytes and what seals it.
pub(super) const DATAGRAM_BYTES_MAX: usize = 9216;
/// Datagrams that wait for the connection, with their lengths; the newest is dropped and counted when it does not fit.
pub(super) const QUEUED_BYTES_MAX: usize = 64 << 10;

const LENGTH_BYTES: usize = 2;
/// Room for a whole datagram behind the rest of another read.
const BUFFER_BYTES: usize = 2 * (LENGTH_BYTES + DATAGRAM_BYTES_MAX);

/// A length that no datagram of the mesh has: what follows cannot be told apart any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {bytes} bytes")]
pub(super) struct TooLong {
    bytes: usize,
}

/// Puts datagrams together from whatever pieces the stream comes in.
pub(super) struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// Returns where the next bytes go; never empty once [`Self::next`] has said that there is no more.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Notes that so many bytes came.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    /// Takes out the next whole datagram. One of length 0 says nothing and is left out.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        loop {
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
                return Ok(None);
            };
            let bytes = usize::from(u16::from_be_bytes(*length));
            if bytes > DATAGRAM_BYTES_MAX {
                return Err(TooLong { bytes });
            }
            if rest.len() < bytes {
                return Ok(None);
            }
            let from = self.start + LENGTH_BYTES;
            self.start = from + bytes;
            if bytes > 0 {
                return Ok(self.buffer.get(from..from + bytes));
            }
        }
    }
}

/// Datagrams on their way into the stream.
#[derive(Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    /// Adds a datagram; `false` when it has no room, or is none of the mesh's.
    pub(super) fn push(&mut self, datagram: &[u8]) -> bool {
        let waiting = self.bytes.len() - self.start;
        let Ok(length) = u16::try_from(datagram.len()) else {
            return false;
        };
        let fits = waiting + LENGTH_BYTES + datagram.len() <= QUEUED_BYTES_MAX;
        if !fits || datagram.is_empty() || datagram.len() > DATAGRAM_BYTES_MAX {
            return false;
        }
        // Moved only when as much was written as is moved.
        if self.start >= waiting {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(datagram);
        true
    }

    /// Returns what is written next.
    pub(super) fn front(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.front().is_empty()
    }

    /// Notes that so many bytes were written.
    pub(super) fn written(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.bytes.len());
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(stream: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, TooLong> {
        let (mut decoder, mut out, mut rest) = (Decoder::new(), vec![], stream);
        while !rest.is_empty() {
            let room = decoder.room();
            assert!(!room.is_empty());
            let n = room.len().min(piece).min(rest.len());
            room[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            decoder.filled(n);
            while let Some(datagram) = decoder.next()? {
                out.push(datagram.to_vec());
            }
        }
        Ok(out)
    }

    #[test]
    fn datagrams_come_out_whole_however_the_stream_is_cut() {
        let datagrams: Vec<Vec<u8>> = [1, 2, 1500, DATAGRAM_BYTES_MAX, 8]
            .iter()
            .enumerate()
            .map(|(n, len)| vec![u8::try_from(n).unwrap(); *len])
            .collect();
        let mut queue = Queue::default();
        assert!(datagrams.iter().all(|d| queue.push(d)));
        for piece in [1, 3, 1000, 40_000] {
            assert_eq!(decode(queue.front(), piece).unwrap(), datagrams, "{piece}");
        }
        let cut = &queue.front()[..queue.front().len() - 1];
        assert_eq!(
            decode(cut, 7).unwrap().len(),
            4,
            "the last one is truncated"
        );
    }

    #[test]
    fn empty_datagrams_say_nothing_and_long_ones_end_the_stream() {
        assert_eq!(decode(&[0, 0, 0, 0, 0, 1, 9], 2).unwrap(), vec![vec![9]]);
        let [high, low] = u16::try_from(DATAGRAM_BYTES_MAX + 1).unwrap().to_be_bytes();
        let bytes = DATAGRAM_BYTES_MAX + 1;
        assert_eq!(decode(&[high, low], 2), Err(TooLong { bytes }));
        let mut queue = Queue::default();
        assert!(!queue.push(&vec![0; bytes]) && !queue.push(&[]) && queue.is_empty());
    }

    #[test]
    fn no_bytes_make_a_datagram_longer_than_it_may_be_or_stop_the_decoder() {
        let mut state = 1u64;
        for _ in 0..2000 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                // Small lengths are likely, so that many datagrams come of it.
                let [high, low, ..] = state.to_be_bytes();
                if high < 200 { 0 } else { low }
            })
            .take(300)
            .collect();
            if let Ok(datagrams) = decode(&bytes, 17) {
                let within = |d: &Vec<u8>| (1..=DATAGRAM_BYTES_MAX).contains(&d.len());
                assert!(datagrams.iter().all(within));
            }
        }
    }

    #[test]
    fn the_newest_datagram_is_dropped_when_a_slow_reader_lets_the_queue_fill() {
        let mut queue = Queue::default();
        let mut taken = 0;
        for n in 0..200u8 {
            taken += usize::from(queue.push(&[n; 1000]));
        }
        assert_eq!(taken, QUEUED_BYTES_MAX / 1002);
        assert!(queue.front().len() <= QUEUED_BYTES_MAX);
        let first = decode(queue.front(), 1000).unwrap();
        assert!(
            first
                .iter()
                .enumerate()
                .all(|(n, d)| usize::from(d[0]) == n)
        );
        // One and a half are written; what is left goes on in the middle.
        queue.written(1503);
        assert!(queue.push(&[250; 400]));
        let mut stream = vec![3, 232];
        stream.extend_from_slice(&vec![1; 499]);
        stream.extend_from_slice(queue.front());
        let rest = decode(&stream, 999).unwrap();
        assert_eq!((rest[0].len(), rest.len()), (1000, taken));
        assert_eq!(rest.last().unwrap(), &[250; 400]);
    }

    #[test]
    fn a_flood_costs_no_more_memory_than_the_bound() {
        let mut queue = Queue::default();
        for n in 0..100_000u32 {
            queue.push(&[7; 1400]);
            if n % 3 == 0 {
                queue.written(1402);
            }
        }
        assert!(
            queue.bytes.len() <= 2 * QUEUED_BYTES_MAX,
            "{}",
            queue.bytes.len()
        );
    }
}
