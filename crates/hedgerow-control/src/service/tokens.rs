//! Enrollment tokens.

use std::time::Duration;

use hedgerow_identity::enroll::{Token, TokenId};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceName, Labels, SiteName};
use zeroize::Zeroizing;

use crate::control::Controller;
use crate::entropy::SystemRandom;
use crate::refusal::{Kind, Refusal};
use crate::store::tokens::{self, TokenRecord};

/// Shortest and longest life of a token.
const TTL_SECS: std::ops::RangeInclusive<u64> = 60..=90 * 86_400;
/// Most uses of one token.
const USES_MAX: u64 = 100_000;

/// What a token shall be good for.
#[derive(Debug, Clone)]
pub(crate) struct TokenWish {
    /// The site it enrolls into.
    pub(crate) site: SiteName,
    /// The labels it gives.
    pub(crate) labels: Labels,
    /// The name it gives.
    pub(crate) name: Option<DeviceName>,
    /// An operator must approve each use.
    pub(crate) approve: bool,
    /// How many keys may use it.
    pub(crate) count: u64,
    /// How long it lives.
    pub(crate) ttl: Duration,
}

impl Controller {
    /// Makes a token; its text is returned once and not kept.
    pub(crate) async fn create_token(
        &self,
        actor: &str,
        wish: TokenWish,
    ) -> Result<(TokenRecord, Zeroizing<String>), Refusal> {
        if !TTL_SECS.contains(&wish.ttl.as_secs()) {
            return Err(Refusal::invalid(
                format!("a token's life of {} s is out of range", wish.ttl.as_secs()),
                "choose 1 minute to 90 days",
            ));
        }
        if wish.count == 0 || wish.count > USES_MAX || (wish.name.is_some() && wish.count != 1) {
            return Err(Refusal::invalid(
                format!("a token for {} uses", wish.count),
                "choose 1 to 100000 uses; a token with a name has exactly one",
            ));
        }
        let snapshot = self.snapshot();
        if !snapshot.sites.contains_key(&wish.site) {
            return Err(Refusal::no_site(wish.site.as_str()));
        }
        let now = self.clock.wall();
        let token = Token::generate(
            self.config.endpoints.clone(),
            snapshot.trust.genesis(),
            &mut SystemRandom,
        )
        .map_err(|e| Refusal::invalid(e.to_string(), "check endpoints in control.toml"))?;
        let record = TokenRecord {
            id: token.id().0,
            public_key: token.public_key(),
            site: wish.site,
            labels: wish.labels,
            name: wish.name,
            approve: wish.approve,
            uses_max: wish.count,
            used: 0,
            created: now,
            created_by: actor.to_owned(),
            expires: now + wish.ttl,
            revoked: None,
        };
        let id = token.id().to_string();
        let mut change = self.store.change(actor, "token_create", &id, now).await?;
        tokens::create(&mut change.tx, &record).await?;
        change.commit().await?;
        self.event(
            Event::new(now, EventKind::TokenChanged)
                .detail("action", "created")
                .detail("token", id)
                .detail("site", &record.site)
                .detail("by", actor),
        );
        Ok((record, token.text()))
    }

    /// Ends a token.
    pub(crate) async fn revoke_token(&self, actor: &str, id: TokenId) -> Result<(), Refusal> {
        let now = self.clock.wall();
        let text = id.to_string();
        let mut change = self.store.change(actor, "token_revoke", &text, now).await?;
        if !tokens::revoke(&mut change.tx, &id.0, now).await? {
            return Err(Refusal::new(
                Kind::NotFound,
                "token_not_found",
                format!("there is no living token `{text}`"),
                "`hedgerow token list` shows them",
            ));
        }
        change.commit().await?;
        self.event(
            Event::new(now, EventKind::TokenChanged)
                .detail("action", "revoked")
                .detail("token", text)
                .detail("by", actor),
        );
        Ok(())
    }
}
