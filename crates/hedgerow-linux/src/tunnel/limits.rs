//! What strangers may cost us: budgets, cookies, one meter per source.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;

use super::mac::{self, Cookie};
use super::timers::COOKIE_LIFETIME;

/// Initiations per second without a cookie, and as many at once, where nobody measured what one costs;
/// with more we are under load.
pub const INITIATIONS_PER_SECOND: u32 = 500;
/// The fewest that are answered, however slow the machine.
pub const INITIATIONS_PER_SECOND_MIN: u32 = 100;
/// The most, however fast.
pub const INITIATIONS_PER_SECOND_MAX: u32 = 10_000;
/// One part in so many of a core's time goes to handshakes before a cookie is asked.
const HANDSHAKE_SHARE: u64 = 2;
/// Initiations per second and source address (IPv6: /64) that is proven by a cookie.
pub const SOURCE_INITIATIONS_PER_SECOND: u32 = 50;
/// Source addresses metered; more are refused until some have been quiet for a second.
pub const SOURCES_MAX: usize = 4096;
/// Attempts per second, to all peers together, of handshakes that no packet waits for: what peers cost that
/// went away all at once is bounded, however many they are. Beyond, an attempt is put off.
pub const IDLE_ATTEMPTS_PER_SECOND: u32 = 100;
/// Reports per second about what strangers and liars do.
pub const SUSPICIONS_PER_SECOND: u32 = 10;

/// Returns how many initiations a second this machine answers without a cookie, when answering one takes
/// it `cost`: half of a core's time.
pub(super) fn affordable(cost: Duration) -> u32 {
    let nanos = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX).max(1);
    let count = u32::try_from(1_000_000_000 / HANDSHAKE_SHARE / nanos).unwrap_or(u32::MAX);
    count.clamp(INITIATIONS_PER_SECOND_MIN, INITIATIONS_PER_SECOND_MAX)
}

/// A token bucket that begins full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    burst: u32,
    per_second: u32,
    /// Millionths of tokens missing at `at`.
    missing: u64,
    at: Mono,
}

const TOKEN: u64 = 1_000_000;

impl Bucket {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst,
            per_second,
            missing: 0,
            at: Mono::ZERO,
        }
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, now: Mono) -> bool {
        let micros = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        let refill = micros.saturating_mul(self.per_second.into());
        self.missing = self.missing.saturating_sub(refill);
        self.at = self.at.max(now);
        let free = u64::from(self.burst) * TOKEN;
        let takes = self.missing + TOKEN <= free;
        if takes {
            self.missing += TOKEN;
        }
        takes
    }

    fn is_full(&self, now: Mono) -> bool {
        let micros = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        micros.saturating_mul(self.per_second.into()) >= self.missing
    }
}

/// What to do with an initiation whose mac1 holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Spend the Diffie-Hellman operations.
    Process,
    /// Ask the source to prove its address with this cookie.
    Prove(Cookie),
    /// It had its share.
    Refuse,
}

pub(super) struct Limits {
    unproven: Bucket,
    sources: BTreeMap<IpAddr, Bucket>,
    secret: [u8; 32],
    secret_since: Option<Mono>,
    suspicions: Bucket,
    idle_attempts: Bucket,
}

impl Limits {
    pub(super) fn new(initiations_per_second: u32) -> Self {
        let rate = initiations_per_second;
        Self {
            unproven: Bucket::new(rate, rate),
            sources: BTreeMap::new(),
            secret: [0; 32],
            secret_since: None,
            suspicions: Bucket::new(2 * SUSPICIONS_PER_SECOND, SUSPICIONS_PER_SECOND),
            idle_attempts: Bucket::new(2 * IDLE_ATTEMPTS_PER_SECOND, IDLE_ATTEMPTS_PER_SECOND),
        }
    }

    /// Returns whether the secret of the cookies is due for replacement.
    pub(super) fn secret_is_stale(&self, now: Mono) -> bool {
        self.secret_since
            .is_none_or(|since| now.since(since) >= COOKIE_LIFETIME)
    }

    pub(super) fn set_secret(&mut self, secret: [u8; 32], now: Mono) {
        self.secret = secret;
        self.secret_since = Some(now);
    }

    /// Decides about an initiation. The secret is fresh.
    pub(super) fn admit(&mut self, from: Underlay, message: &[u8], now: Mono) -> Admission {
        if self.unproven.take(now) {
            return Admission::Process;
        }
        let cookie = mac::cookie(&self.secret, from.0);
        if !mac::mac2_holds(message, &cookie) {
            return Admission::Prove(cookie);
        }
        if self.source_has_budget(from, now) {
            Admission::Process
        } else {
            Admission::Refuse
        }
    }

    /// Returns whether one more report about strangers and liars may be made.
    pub(super) fn may_report(&mut self, now: Mono) -> bool {
        self.suspicions.take(now)
    }

    /// Returns whether a handshake that nothing waits for may be attempted now.
    pub(super) fn may_attempt_idle(&mut self, now: Mono) -> bool {
        self.idle_attempts.take(now)
    }

    fn source_has_budget(&mut self, from: Underlay, now: Mono) -> bool {
        let source = network(from.0.ip());
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let rate = SOURCE_INITIATIONS_PER_SECOND;
        self.sources
            .entry(source)
            .or_insert_with(|| Bucket::new(rate, rate))
            .take(now)
    }
}

/// One meter per IPv4 address and per IPv6 /64, for a host has a whole one.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64)).into(),
    }
}

/// Returns whether a cookie received `at` may still be used.
pub(super) fn cookie_is_fresh(at: Mono, now: Mono) -> bool {
    now.since(at) < COOKIE_LIFETIME - Duration::from_secs(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn tunnel_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(3, 2);
        let at = |ms| Mono(Duration::from_millis(ms));
        let taken: Vec<bool> = [0, 0, 0, 0, 499, 500, 501, 10_000, 10_000, 10_000, 10_000]
            .map(|ms| bucket.take(at(ms)))
            .into();
        let expected = [
            true, true, true, false, false, true, false, true, true, true, false,
        ];
        assert_eq!(taken, expected);
        assert!(!bucket.take(at(0)), "time that goes back gives nothing");
    }

    #[test]
    fn slow_machines_answer_fewer_and_none_answers_nobody() {
        let counts = [0, 100, 1000, 100_000].map(|us| affordable(Duration::from_micros(us)));
        assert_eq!(counts, [10_000, 5000, 500, 100]);
    }

    #[test]
    fn tunnel_under_load_a_cookie_is_asked_and_then_counted_per_source() {
        let mut limits = Limits::new(INITIATIONS_PER_SECOND);
        let now = Mono(SECOND);
        limits.set_secret([7; 32], now);
        let from = Underlay("192.0.2.1:5".parse().unwrap());
        let mut message = [1; 148];
        for _ in 0..INITIATIONS_PER_SECOND {
            assert_eq!(limits.admit(from, &message, now), Admission::Process);
        }
        let Admission::Prove(cookie) = limits.admit(from, &message, now) else {
            panic!("not under load");
        };
        let keys = mac::MacKeys::of(&hedgerow_model::statement::X25519Public([9; 32]));
        keys.sign(&mut message, Some(&cookie));
        for _ in 0..SOURCE_INITIATIONS_PER_SECOND {
            assert_eq!(limits.admit(from, &message, now), Admission::Process);
        }
        assert_eq!(limits.admit(from, &message, now), Admission::Refuse);
        // A cookie is for one address and port.
        let other = Underlay("192.0.2.1:6".parse().unwrap());
        assert!(matches!(
            limits.admit(other, &message, now),
            Admission::Prove(_)
        ));
        // And for one secret.
        assert!(!limits.secret_is_stale(now + SECOND));
        assert!(limits.secret_is_stale(now + COOKIE_LIFETIME));
        limits.set_secret([8; 32], now);
        assert!(matches!(
            limits.admit(from, &message, now),
            Admission::Prove(_)
        ));
    }

    #[test]
    fn tunnel_sources_are_bounded_and_quiet_ones_make_room() {
        let mut limits = Limits::new(INITIATIONS_PER_SECOND);
        let now = Mono(SECOND);
        for n in 0..SOURCES_MAX {
            let ip = Ipv6Addr::from((n as u128) << 64);
            assert!(limits.source_has_budget(Underlay((ip, 1).into()), now));
        }
        let late = Underlay(("ffff::1".parse::<Ipv6Addr>().unwrap(), 1).into());
        assert!(!limits.source_has_budget(late, now));
        assert!(limits.source_has_budget(late, now + SECOND));
        assert!(limits.sources.len() < SOURCES_MAX);
    }
}
