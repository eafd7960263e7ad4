//! Which certificate the next connection shows while a new one waits to be accepted.
//!
//! Whoever cuts the link can end any connection before the controller has said a word. That is no
//! refusal: the controller may have the new key on record already, and dropping the certificate would
//! lose it. So a cut only makes the two certificates take turns; what the controller itself says,
//! under its own certificate, is counted.

/// Refusals by the controller after which a new certificate is given up.
pub(super) const REFUSALS_MAX: u32 = 3;

/// How a connection ended that was never welcomed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwelcome {
    /// The controller said goodbye.
    Refused,
    /// It broke, or nobody answered.
    Cut,
}

/// What to do with the new certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again later.
    Keep,
    /// The controller does not want it.
    GiveUp,
}

/// The machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Preference {
    is_trying: bool,
    shows_next: bool,
    refusals: u32,
}

impl Preference {
    /// Learns that the new certificate shall be tried.
    pub(super) fn handle_try(&mut self) {
        self.is_trying = true;
        self.shows_next = true;
    }

    /// Learns that there is no new certificate any more: promoted, or dropped.
    pub(super) fn handle_settled(&mut self) {
        *self = Self::default();
    }

    /// Learns that a connection ended after the handshake and before a welcome; `was_next` says which
    /// certificate it showed.
    pub(super) fn handle_unwelcome(&mut self, was_next: bool, how: Unwelcome) -> Verdict {
        // The other one has its turn: the device must not stay alone because of a new certificate.
        self.shows_next = self.is_trying && !was_next;
        if was_next && how == Unwelcome::Refused {
            self.refusals = self.refusals.saturating_add(1);
        }
        if self.refusals >= REFUSALS_MAX {
            self.refusals = 0;
            return Verdict::GiveUp;
        }
        Verdict::Keep
    }

    /// Returns whether the next connection shows the new certificate.
    pub(super) fn shows_next(&self) -> bool {
        self.shows_next
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_identity::rotation::{Output, Rotation, Uplink};
    use hedgerow_model::Mono;

    use super::*;

    /// The machine and the rotation it serves, as the daemon joins them.
    struct Device {
        rotation: Rotation,
        preference: Preference,
        dropped: bool,
        promoted: bool,
        now: Mono,
    }

    impl Device {
        fn with_new_certificate() -> Self {
            let mut device = Self {
                rotation: Rotation::resume(7, Mono::ZERO),
                preference: Preference::default(),
                dropped: false,
                promoted: false,
                now: Mono::ZERO,
            };
            device.drain();
            device
        }

        fn drain(&mut self) {
            while let Some(output) = self.rotation.poll() {
                match output {
                    Output::TryNext => self.preference.handle_try(),
                    Output::Promote => {
                        self.promoted = true;
                        self.preference.handle_settled();
                    }
                    Output::DropNext => {
                        self.dropped = true;
                        self.preference.handle_settled();
                    }
                    Output::Request | Output::StoreNext => {}
                }
            }
        }

        /// One connection that ends before a welcome; returns which certificate it showed.
        fn ends(&mut self, how: Unwelcome) -> bool {
            let shown = self.preference.shows_next();
            self.rotation.handle_uplink(Uplink::Down, self.now);
            if self.preference.handle_unwelcome(shown, how) == Verdict::GiveUp {
                self.rotation.handle_refused(self.now);
            }
            self.drain();
            shown
        }

        fn later(&mut self) {
            self.now = self.rotation.deadline().0;
            self.rotation.handle_timeout(self.now);
            self.drain();
        }
    }

    #[test]
    fn cutting_connections_before_the_welcome_never_drops_the_new_certificate() {
        let mut device = Device::with_new_certificate();
        let shown: Vec<bool> = (0..3).map(|_| device.ends(Unwelcome::Cut)).collect();
        assert_eq!(shown, [true, false, true], "both certificates take turns");
        for _ in 0..100 {
            device.ends(Unwelcome::Cut);
            device.later();
            assert!(!device.dropped);
        }
        assert!(device.preference.shows_next(), "and it is tried again");
        device.rotation.handle_accepted(device.now);
        device.drain();
        assert!(device.promoted && !device.preference.shows_next());
    }

    #[test]
    fn a_certificate_that_the_controller_refuses_is_given_up_also_between_cuts() {
        let mut device = Device::with_new_certificate();
        for how in [
            Unwelcome::Refused,
            Unwelcome::Cut,
            Unwelcome::Refused,
            Unwelcome::Refused,
        ] {
            assert!(!device.dropped);
            device.later();
            assert!(device.ends(how));
        }
        assert!(device.dropped);
        assert!(!device.preference.shows_next(), "the current one remains");
    }

    #[test]
    fn refusals_of_the_current_certificate_do_not_count_against_the_new_one() {
        let mut preference = Preference::default();
        preference.handle_try();
        for _ in 0..10 {
            let verdict = preference.handle_unwelcome(false, Unwelcome::Refused);
            assert_eq!(verdict, Verdict::Keep);
        }
        assert!(preference.shows_next());
    }
}
