//! What strangers may make us compute.
//!
//! ```text
//!  well-formed, right check ─▶ source bucket ─▶ opening bucket ─▶ key agreements
//!                                             proven key, fresh ─▶ verifying bucket ─▶ signatures
//! ```
//!
//! Sources share a fixed array of buckets, found by a keyed hash of the address: nothing is inserted,
//! so nothing is evicted and a flood of invented sources takes no memory. Two sources that meet in one
//! bucket share its rate; the key keeps an attacker from aiming at a neighbour.

use std::net::IpAddr;
use std::time::Duration;

use blake2::{Blake2s256, Digest as _};
use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use zeroize::Zeroizing;

/// Buckets that all source addresses share.
pub const SOURCE_BUCKETS: usize = 1024;
/// Introductions from one source (an IPv4 address or an IPv6 /64) that are opened: rate and burst.
pub const PER_SOURCE: Rate = Rate {
    per_second: 20,
    burst: 60,
};
/// Introductions from all sources together that are opened; two key agreements each.
pub const OPENINGS: Rate = Rate {
    per_second: 400,
    burst: 800,
};
/// Introductions from all sources together whose signatures are checked; two signatures each.
pub const VERIFICATIONS: Rate = Rate {
    per_second: 200,
    burst: 400,
};

/// A rate with the amount that may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Sustained.
    pub per_second: u32,
    /// At once, after rest.
    pub burst: u32,
}

const THOUSAND: u64 = 1000;

/// A token bucket, counted in thousandths of a token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    thousandths: u64,
    filled_at: Mono,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Mono) -> Self {
        Self {
            thousandths: u64::from(rate.burst) * THOUSAND,
            filled_at: now,
        }
    }

    pub(crate) fn take(&mut self, rate: Rate, now: Mono) -> bool {
        let passed = now.since(self.filled_at).min(Duration::from_secs(3600));
        let millis = u64::try_from(passed.as_millis()).unwrap_or(0);
        let most = u64::from(rate.burst) * THOUSAND;
        self.thousandths = (self.thousandths + millis * u64::from(rate.per_second)).min(most);
        // Less than a millisecond is not lost: it is counted next time.
        self.filled_at = self.filled_at.max(Mono(
            now.0 - Duration::from_nanos(u64::from(now.0.subsec_nanos() % 1_000_000)),
        ));
        match self.thousandths.checked_sub(THOUSAND) {
            Some(rest) => {
                self.thousandths = rest;
                true
            }
            None => false,
        }
    }
}

/// All buckets of one machine.
pub(crate) struct Budgets {
    key: Zeroizing<[u8; 32]>,
    sources: Vec<Bucket>,
    openings: Bucket,
    verifications: Bucket,
}

/// Which bucket was empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spent {
    Source,
    Global,
}

impl Budgets {
    pub(crate) fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self {
            key,
            sources: vec![Bucket::full(PER_SOURCE, Mono::ZERO); SOURCE_BUCKETS],
            openings: Bucket::full(OPENINGS, Mono::ZERO),
            verifications: Bucket::full(VERIFICATIONS, Mono::ZERO),
        }
    }

    /// Spends one opening of `source` and of all together.
    pub(crate) fn open(&mut self, source: Underlay, now: Mono) -> Result<(), Spent> {
        let index = self.index(source.0.ip());
        let of_source = self
            .sources
            .get_mut(index)
            .is_some_and(|b| b.take(PER_SOURCE, now));
        if !of_source {
            return Err(Spent::Source);
        }
        self.openings
            .take(OPENINGS, now)
            .then_some(())
            .ok_or(Spent::Global)
    }

    /// Spends one check of signatures.
    pub(crate) fn verify(&mut self, now: Mono) -> Result<(), Spent> {
        self.verifications
            .take(VERIFICATIONS, now)
            .then_some(())
            .ok_or(Spent::Global)
    }

    fn index(&self, ip: IpAddr) -> usize {
        let hash = Blake2s256::new().chain_update(self.key.as_slice());
        let hash = match ip.to_canonical() {
            IpAddr::V4(v4) => hash.chain_update([4]).chain_update(v4.octets()),
            IpAddr::V6(v6) => {
                let network = v6.octets();
                hash.chain_update([6])
                    .chain_update(network.first_chunk::<8>().unwrap_or(&[0; 8]))
            }
        };
        let hash: [u8; 32] = hash.finalize().into();
        let wide = hash
            .first_chunk::<2>()
            .map_or(0, |two| u16::from_be_bytes(*two));
        usize::from(wide) % SOURCE_BUCKETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Underlay {
        Underlay(text.parse().unwrap())
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate() {
        let mut budgets = Budgets::new(Zeroizing::new([1; 32]));
        let from = source("192.0.2.1:7117");
        let passed = |budgets: &mut Budgets, now| {
            (0..1000)
                .filter(|_| budgets.open(from, now).is_ok())
                .count()
        };
        let start = Mono::ZERO + Duration::from_secs(100);
        assert_eq!(passed(&mut budgets, start), 60);
        assert_eq!(passed(&mut budgets, start), 0);
        assert_eq!(passed(&mut budgets, start + Duration::from_secs(1)), 20);
        let other = source("[2001:db8::1]:7117");
        assert!(
            budgets.open(other, start + Duration::from_secs(1)).is_ok(),
            "another source"
        );
    }

    #[test]
    fn many_small_steps_fill_as_much_as_one_large_one() {
        let mut bucket = Bucket {
            thousandths: 0,
            filled_at: Mono::ZERO,
        };
        let rate = Rate {
            per_second: 1,
            burst: 10,
        };
        let passed = (0..40_000u64)
            .filter(|i| bucket.take(rate, Mono::ZERO + Duration::from_micros(250 * i)))
            .count();
        assert_eq!(passed, 9);
    }

    #[test]
    fn invented_sources_stop_at_the_global_rate() {
        let mut budgets = Budgets::new(Zeroizing::new([1; 32]));
        let passed = (0..100_000u32)
            .filter(|i| {
                budgets
                    .open(
                        source(&format!("{}:1", std::net::Ipv4Addr::from(*i))),
                        Mono::ZERO,
                    )
                    .is_ok()
            })
            .count();
        assert_eq!(passed, 800);
    }

    #[test]
    fn one_home_network_is_one_source() {
        let budgets = Budgets::new(Zeroizing::new([1; 32]));
        let index = |text: &str| budgets.index(text.parse().unwrap());
        assert_eq!(index("2001:db8::1"), index("2001:db8::ffff:1"));
        assert_eq!(index("::ffff:192.0.2.1"), index("192.0.2.1"));
    }
}
