//! Enrollment tokens.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, State};
use hedgerow_identity::enroll::TokenId;
use hedgerow_model::id::{DeviceName, LabelKey, LabelValue, Labels};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::Body;
use super::sites::site_name;
use super::{Caller, ErrorBody, Shared};
use crate::refusal::Refusal;
use crate::service::tokens::TokenWish;
use crate::store::tokens::TokenRecord;

/// A token to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// The site it enrolls into.
    site: String,
    /// The labels it gives.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// The name it gives; only with a single use.
    name: Option<String>,
    /// How long it lives, in seconds; an hour unless given.
    #[serde(default = "hour")]
    ttl_secs: u64,
    /// How many devices may use it.
    #[serde(default = "one")]
    count: u64,
    /// An operator must approve each use.
    #[serde(default)]
    approve: bool,
}

fn hour() -> u64 {
    3600
}

fn one() -> u64 {
    1
}

/// A token, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenView {
    id: String,
    site: String,
    labels: BTreeMap<String, String>,
    name: Option<String>,
    approve: bool,
    count: u64,
    used: u64,
    /// `open`, `spent`, `expired` or `revoked`.
    status: &'static str,
    created_ms: u64,
    created_by: String,
    expires_ms: u64,
}

/// A new token.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MadeToken {
    /// The secret text: shown once, not kept here.
    token: String,
    /// What an agent needs to believe this controller without a token.
    root_hash: String,
    /// Where agents go.
    endpoints: Vec<String>,
    /// The rest.
    #[serde(flatten)]
    view: TokenView,
}

/// Every token.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenList {
    tokens: Vec<TokenView>,
}

pub(super) fn labels_of(map: &BTreeMap<String, String>) -> Result<Labels, Refusal> {
    let bad = |e: hedgerow_model::id::NameError| {
        Refusal::invalid(e.to_string(), "write labels as key: value")
    };
    let mut out = BTreeMap::new();
    for (key, value) in map {
        out.insert(
            LabelKey::new(key).map_err(bad)?,
            LabelValue::new(value).map_err(bad)?,
        );
    }
    Labels::new(out).map_err(bad)
}

pub(super) fn label_map(labels: &Labels) -> BTreeMap<String, String> {
    labels
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

pub(super) fn device_name(text: &str) -> Result<DeviceName, Refusal> {
    DeviceName::new(text).map_err(|e| Refusal::invalid(e.to_string(), "choose another name"))
}

fn view(t: &TokenRecord, now_ms: u64) -> TokenView {
    let status = if t.revoked.is_some() {
        "revoked"
    } else if t.used >= t.uses_max {
        "spent"
    } else if t.expires.0 <= now_ms {
        "expired"
    } else {
        "open"
    };
    TokenView {
        id: TokenId(t.id).to_string(),
        site: t.site.to_string(),
        labels: label_map(&t.labels),
        name: t.name.as_ref().map(ToString::to_string),
        approve: t.approve,
        count: t.uses_max,
        used: t.used,
        status,
        created_ms: t.created.0,
        created_by: t.created_by.clone(),
        expires_ms: t.expires.0,
    }
}

/// Lists tokens.
#[utoipa::path(get, path = "/api/v1/tokens", responses((status = 200, body = TokenList)))]
pub(super) async fn list(State(control): State<Shared>) -> Result<Json<TokenList>, Refusal> {
    let now = control.clock.wall().0;
    let tokens = control.store.tokens().await?;
    Ok(Json(TokenList {
        tokens: tokens.iter().map(|t| view(t, now)).collect(),
    }))
}

/// Creates a token; its text is shown once.
#[utoipa::path(post, path = "/api/v1/tokens", request_body = NewToken,
    responses((status = 200, body = MadeToken), (status = 422, body = ErrorBody)))]
pub(super) async fn create(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Body(new): Body<NewToken>,
) -> Result<Json<MadeToken>, Refusal> {
    let wish = TokenWish {
        site: site_name(&new.site)?,
        labels: labels_of(&new.labels)?,
        name: new.name.as_deref().map(device_name).transpose()?,
        approve: new.approve,
        count: new.count,
        ttl: Duration::from_secs(new.ttl_secs),
    };
    let (record, text) = control.create_token(caller.name(), wish).await?;
    Ok(Json(MadeToken {
        token: text.to_string(),
        root_hash: control.snapshot().trust.genesis().to_string(),
        endpoints: control.config.endpoints.clone(),
        view: view(&record, control.clock.wall().0),
    }))
}

/// Ends a token.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", params(("id" = String, Path)),
    responses((status = 200), (status = 404, body = ErrorBody)))]
pub(super) async fn revoke(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let token: TokenId = id.parse().map_err(|_e| {
        Refusal::invalid(
            format!("`{id}` is not a token's id"),
            "`hedgerow token list` shows them",
        )
    })?;
    control.revoke_token(caller.name(), token).await?;
    Ok(Json(serde_json::json!({"id": id, "status": "revoked"})))
}
