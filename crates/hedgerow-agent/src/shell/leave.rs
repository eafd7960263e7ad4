//! Leaving the trust domain: said to the controller, and believed only when it says so too.

use std::time::Duration;

use hedgerow_model::{Mono, Now};
use hedgerow_sync::AgentSession;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::run::{Daemon, End};

/// How long the controller may take to confirm; the command that asks waits a little longer.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);

/// Whether the device leaves also when nobody confirms it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Insistence {
    /// It stays as it is then.
    OnlyIfConfirmed,
    /// It leaves.
    InAnyCase,
}

/// A wish to leave that the controller was told of.
pub(super) struct Leaving {
    reply: oneshot::Sender<Value>,
    insistence: Insistence,
    until: Mono,
}

/// What the controller made of the wish to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// It said that the device has left.
    Confirmed,
    /// Nothing. Why, for people.
    Nothing(String),
}

/// Returns whether the device leaves, and what whoever asked is told.
fn decide(heard: &Heard, insistence: Insistence) -> (bool, Value) {
    match (heard, insistence) {
        (Heard::Confirmed, _) => (true, json!({ "left": true, "told_controller": true })),
        (Heard::Nothing(_), Insistence::InAnyCase) => {
            (true, json!({ "left": true, "told_controller": false }))
        }
        (Heard::Nothing(why), Insistence::OnlyIfConfirmed) => {
            let error = format!(
                "the controller did not confirm that this device leaves ({why}); nothing was taken \
                 away. Try again, or use --force and remove the device with `hedgerow device remove`"
            );
            (false, json!({ "error": error }))
        }
    }
}

impl Daemon {
    /// Tells the controller that the device leaves.
    pub(super) fn leave(
        &mut self,
        insistence: Insistence,
        reply: oneshot::Sender<Value>,
        now: Now,
    ) {
        if self.leaving.is_some() {
            // Who asked may have gone.
            drop(reply.send(json!({ "error": "the device is leaving already" })));
            return;
        }
        self.leaving = Some(Leaving {
            reply,
            insistence,
            until: now.mono + CONFIRM_WITHIN,
        });
        if !matches!(self.session().map(AgentSession::leave), Some(Ok(()))) {
            self.conclude(Heard::Nothing("it cannot be reached".to_owned()));
        }
    }

    /// Ends a wish to leave, if there is one.
    pub(super) fn conclude(&mut self, heard: Heard) {
        let Some(leaving) = self.leaving.take() else {
            return;
        };
        let (leaves, answer) = decide(&heard, leaving.insistence);
        if leaves {
            self.end = Some(End::Off);
        }
        // Who asked may have gone; what was decided holds all the same.
        drop(leaving.reply.send(answer));
    }

    /// When a wish to leave has waited long enough.
    pub(super) fn leave_until(&self) -> Mono {
        self.leaving.as_ref().map_or(Mono::NEVER, |l| l.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_connection_is_no_confirmation_that_the_device_has_left() {
        let cut = Heard::Nothing("connection reset".to_owned());
        let (leaves, answer) = decide(&cut, Insistence::OnlyIfConfirmed);
        assert!(!leaves);
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains("connection reset") && error.contains("--force"));

        let (leaves, answer) = decide(&cut, Insistence::InAnyCase);
        assert!(leaves);
        assert_eq!(answer["told_controller"], false);

        let (leaves, answer) = decide(&Heard::Confirmed, Insistence::OnlyIfConfirmed);
        assert!(leaves);
        assert_eq!(answer["told_controller"], true);
    }
}
