//! The internet checksum (RFC 1071), fast: it is made or checked over every byte that passes.

use super::{PROTOCOL_TCP, PROTOCOL_UDP, Transport};

/// A sum under way, in the machine's own byte order: the ones' complement sum does not care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even position; an odd last one counts as if a zero followed.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        // 64 KiB of 32-bit words stay far below 64 bits: without a carry the loop runs in vectors.
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum = self.0;
        for word in words {
            sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            sum = sum.wrapping_add(u64::from(u16::from_ne_bytes(*pair)));
        }
        if let Some(last) = odd.first() {
            sum = sum.wrapping_add(u64::from(u16::from_ne_bytes([*last, 0])));
        }
        Self(sum)
    }

    /// Adds one number of the packet.
    #[must_use]
    pub fn with_u16(self, number: u16) -> Self {
        self.with(&number.to_be_bytes())
    }

    /// Adds the pseudo-header: `addresses` are source and destination as they stand in the IP header.
    #[must_use]
    pub fn pseudo(self, addresses: &[u8], transport: Transport, len: usize) -> Self {
        let protocol = match transport {
            Transport::Tcp => PROTOCOL_TCP,
            Transport::Udp => PROTOCOL_UDP,
        };
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.with(addresses)
            .with(&len.to_be_bytes())
            .with_u16(protocol.into())
    }

    /// Returns the sum in 16 bits, as the kernel wants it where it finishes a checksum itself.
    pub fn partial(self) -> [u8; 2] {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::try_from(sum).unwrap_or(0).to_ne_bytes()
    }

    /// Returns the checksum as it stands in a header.
    pub fn finish(self) -> [u8; 2] {
        self.partial().map(|b| !b)
    }

    /// Returns the checksum of UDP, where zero means "none".
    pub fn finish_udp(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }

    /// Returns whether a sum over a packet with its checksum in it says that nothing was damaged.
    pub fn holds(self) -> bool {
        self.partial() == [0xff, 0xff]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 says it.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum >> 16 > 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(!sum & 0xffff).unwrap().to_be_bytes()
    }

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().with(&bytes).partial(), [0xdd, 0xf2]);
    }

    #[test]
    fn the_longest_packet_of_ones_does_not_overflow() {
        let ones = vec![0xff; 65_535];
        assert_eq!(Sum::default().with(&ones).finish(), plain(&ones));
    }

    proptest! {
        #[test]
        fn equals_the_plain_sum(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::default().with(&bytes).finish(), plain(&bytes));
        }

        #[test]
        fn a_packet_with_its_checksum_holds_and_a_damaged_one_does_not(
            bytes in prop::collection::vec(any::<u8>(), 20..1500), at in 0usize..20, bit in 0u8..8,
        ) {
            let mut bytes = bytes;
            bytes[..2].fill(0);
            let sum = Sum::default().with(&bytes).finish();
            bytes[..2].copy_from_slice(&sum);
            prop_assert!(Sum::default().with(&bytes).holds());
            bytes[at] ^= 1 << bit;
            prop_assert!(!Sum::default().with(&bytes).holds());
        }
    }
}
