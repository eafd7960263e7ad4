//! A fresh certificate: asked for, checked, stored, tried, promoted or dropped.

use hedgerow_identity::certificate::{Purpose, check_leaf};
use hedgerow_identity::rotation;
use hedgerow_model::Now;
use hedgerow_sync::message::{Renew, Renewed};

use super::entropy;
use super::identity::{Identity, Keys};
use super::run::{Daemon, Renewal};

impl Daemon {
    pub(super) fn rotate(&mut self, output: rotation::Output, now: Now) {
        match output {
            rotation::Output::Request => self.request_renewal(now),
            rotation::Output::StoreNext => self.store_next(now),
            rotation::Output::TryNext => {
                self.preference.handle_try();
                if self.live.as_ref().is_none_or(|live| !live.uses_next) {
                    self.connect_at = now.mono;
                    self.disconnect("connecting with the new certificate");
                }
            }
            rotation::Output::Promote => {
                self.preference.handle_settled();
                if let Err(failure) = self.identities.promote(&self.store) {
                    tracing::error!(%failure, "the new certificate is in use but not in its place");
                }
                self.state.handle_identity_keys(self.identities.keys());
            }
            rotation::Output::DropNext => {
                self.preference.handle_settled();
                if let Err(failure) = self.identities.drop_next(&self.store) {
                    tracing::error!(%failure, "a refused certificate stays on disk");
                }
                self.state.handle_identity_keys(self.identities.keys());
            }
        }
    }

    fn request_renewal(&mut self, now: Now) {
        let id = entropy::seed() >> 1;
        let request = Keys::generate().and_then(|keys| {
            let csr = keys.request()?;
            Ok((keys, csr))
        });
        let sent = match request {
            Ok((keys, csr)) => {
                let introduction_key = keys.introduction_public();
                self.renewal = Some(Renewal {
                    id,
                    keys,
                    answer: None,
                });
                let request = Renew {
                    id,
                    csr,
                    introduction_key,
                };
                matches!(self.session().map(|s| s.renew(request)), Some(Ok(())))
            }
            Err(failure) => {
                tracing::error!(%failure, "no request for a new certificate");
                false
            }
        };
        if !sent {
            self.renewal = None;
            self.rotation.handle_refused(now.mono);
        }
    }

    pub(super) fn renewed(&mut self, new: Renewed, now: Now) {
        let Some(renewal) = self.renewal.as_mut().filter(|r| r.id == new.id) else {
            return;
        };
        let key = renewal.keys.identity.public();
        let trust = self.state.trust();
        let id = self.state.ticket().id;
        let ticket = trust.verify_own_ticket(&new.ticket, &key, Some(id));
        let leaf = new.chain.first().map_or(&[][..], Vec::as_slice);
        let standing = self.state.standing();
        let checked = check_leaf(leaf, trust, standing, Purpose::Device, now);
        let problem = match (&ticket, &checked) {
            (Err(refused), _) => Some(refused.to_string()),
            (_, Err(refused)) => Some(refused.to_string()),
            (Ok(_), Ok(leaf)) if leaf.key() != key => Some("another key".to_owned()),
            (Ok(_), Ok(_)) => None,
        };
        if let Some(problem) = problem {
            tracing::error!(problem, "the new certificate is refused");
            self.renewal = None;
            self.rotation.handle_refused(now.mono);
            return;
        }
        renewal.answer = Some((new.chain, new.ticket));
        self.rotation.handle_issued(now.mono);
    }

    fn store_next(&mut self, now: Now) {
        let Some(renewal) = self.renewal.take() else {
            self.rotation.handle_not_stored(now.mono);
            return;
        };
        let (chain, ticket) = renewal.answer.unwrap_or_default();
        let next = Identity::new(&renewal.keys, chain, ticket);
        match self.identities.store_next(&self.store, next) {
            Ok(()) => {
                self.state.handle_identity_keys(self.identities.keys());
                self.rotation.handle_stored(now.mono);
            }
            Err(failure) => {
                tracing::error!(%failure, "the new certificate is not stored");
                self.rotation.handle_not_stored(now.mono);
            }
        }
    }
}
