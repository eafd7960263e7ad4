//! WireGuard's times and counts (paper §6), and what follows from them as pure functions.

use std::time::Duration;

use super::session::Side;

/// Messages after which a new session is begun.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages after which a session carries nothing more.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Age at which the initiator of a session begins a new one when it sends.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Age at which the responder does, should the initiator not have.
///
/// Off-spec: the paper leaves rekeying to the initiator. After two simultaneous handshakes each side
/// may send in the session of which it is the responder, and neither would rekey.
pub const REKEY_AFTER_TIME_RESPONDER: Duration = Duration::from_secs(150);
/// Age after which a session carries nothing more.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// How long handshakes are tried.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Time between two tries.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two tries with different keys during a key rotation.
pub const OTHER_KEY_TIMEOUT: Duration = Duration::from_secs(1);
/// Random time added to each try, so that two peers do not stay in step.
pub const REKEY_JITTER_MS_MAX: u64 = 333;
/// Silence after received data that is broken by a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after sent data that means the session is dead.
pub const NO_REPLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long after the last message in a session one in its successor shows that the peer has left it: above what
/// the network holds a packet back.
pub const LEFT_AFTER: Duration = Duration::from_secs(10);
/// Shortest interval of [`super::PeerConfig::keepalive`]; a shorter one is raised to it.
pub const PERSISTENT_KEEPALIVE_MIN: Duration = Duration::from_secs(1);
/// Time between two initiations of one peer; earlier ones are dropped and counted.
pub const INITIATION_INTERVAL_MIN: Duration = Duration::from_millis(20);
/// How long a cookie is good for, at either end.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// Returns whether a session is so old, or so used, that sending in it begins a new one.
pub(super) fn rekey_on_send(side: Side, age: Duration, counter: u64) -> bool {
    let limit = match side {
        Side::Initiator => REKEY_AFTER_TIME,
        Side::Responder => REKEY_AFTER_TIME_RESPONDER,
    };
    counter >= REKEY_AFTER_MESSAGES || age >= limit
}

/// Returns whether a session is so old that receiving in it begins a new one, in time for an answer.
pub(super) fn rekey_on_receive(side: Side, age: Duration) -> bool {
    side == Side::Initiator && age >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
}

/// Returns which pair of keys the handshake's `attempt` uses, out of `pairs`, and the time until the
/// next attempt: short before other keys are tried, long before the same again.
pub(super) fn attempt(attempt: usize, pairs: usize) -> (usize, Duration) {
    let pairs = pairs.max(1);
    let pair = attempt % pairs;
    let wait = if pair + 1 < pairs {
        OTHER_KEY_TIMEOUT
    } else {
        REKEY_TIMEOUT
    };
    (pair, wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_timer_table() {
        use Side::{Initiator, Responder};
        let secs = Duration::from_secs;
        for (side, age, counter, on_send, on_receive) in [
            (Initiator, 0, 0, false, false),
            (Initiator, 119, 5, false, false),
            (Initiator, 120, 5, true, false),
            (Initiator, 164, 5, true, false),
            (Initiator, 165, 5, true, true),
            (Responder, 120, 5, false, false),
            (Responder, 149, 5, false, false),
            (Responder, 150, 5, true, false),
            (Responder, 179, 5, true, false),
            (Initiator, 1, REKEY_AFTER_MESSAGES - 1, false, false),
            (Initiator, 1, REKEY_AFTER_MESSAGES, true, false),
            (Responder, 1, REKEY_AFTER_MESSAGES, true, false),
        ] {
            assert_eq!(
                rekey_on_send(side, secs(age), counter),
                on_send,
                "{side:?} {age}"
            );
            assert_eq!(
                rekey_on_receive(side, secs(age)),
                on_receive,
                "{side:?} {age}"
            );
        }
    }

    #[test]
    fn tunnel_attempts_go_through_the_keys_before_they_wait() {
        assert_eq!(attempt(0, 1), (0, REKEY_TIMEOUT));
        assert_eq!(attempt(7, 1), (0, REKEY_TIMEOUT));
        assert_eq!(attempt(0, 2), (0, OTHER_KEY_TIMEOUT));
        assert_eq!(attempt(1, 2), (1, REKEY_TIMEOUT));
        assert_eq!(attempt(2, 2), (0, OTHER_KEY_TIMEOUT));
        assert_eq!(attempt(3, 0), (0, REKEY_TIMEOUT));
    }
}
