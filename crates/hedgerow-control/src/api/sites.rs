//! Sites.

use axum::Json;
use axum::extract::{Extension, Path, State};
use hedgerow_model::address::site_prefix;
use hedgerow_model::id::SiteName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::Body;
use super::{Caller, ErrorBody, Shared};
use crate::refusal::Refusal;
use crate::snapshot::Snapshot;
use crate::store::sites::SiteRecord;

/// A site to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSite {
    /// A DNS label, unique.
    name: String,
    /// IANA time zone; UTC unless given.
    #[serde(default = "utc")]
    zone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// What can be changed of a site.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SiteChange {
    /// IANA time zone.
    zone: String,
}

/// A site.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SiteView {
    name: String,
    zone: String,
    /// Its overlay IPv6 prefix.
    prefix: String,
    /// How many devices it has.
    devices: usize,
    created_ms: u64,
}

/// Every site.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SiteList {
    sites: Vec<SiteView>,
}

fn view(snapshot: &Snapshot, record: &SiteRecord) -> SiteView {
    let prefix = site_prefix(&snapshot.trust.domain_prefix(), record.number);
    let here = snapshot.living().filter(|d| d.site == record.name);
    SiteView {
        name: record.name.to_string(),
        zone: record.zone.clone(),
        prefix: prefix.to_string(),
        devices: here.count(),
        created_ms: record.created.0,
    }
}

pub(super) fn site_name(text: &str) -> Result<SiteName, Refusal> {
    SiteName::new(text).map_err(|e| Refusal::invalid(e.to_string(), "choose another name"))
}

/// Lists sites.
#[utoipa::path(get, path = "/api/v1/sites", responses((status = 200, body = SiteList)))]
pub(super) async fn list(State(control): State<Shared>) -> Json<SiteList> {
    let snapshot = control.snapshot();
    let sites = snapshot.sites.values().map(|s| view(&snapshot, &s.record));
    Json(SiteList {
        sites: sites.collect(),
    })
}

/// Creates a site.
#[utoipa::path(post, path = "/api/v1/sites", request_body = NewSite,
    responses((status = 200, body = SiteView), (status = 409, body = ErrorBody)))]
pub(super) async fn create(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Body(new): Body<NewSite>,
) -> Result<Json<SiteView>, Refusal> {
    let name = site_name(&new.name)?;
    let record = control.create_site(caller.name(), &name, &new.zone).await?;
    Ok(Json(view(&control.snapshot(), &record)))
}

/// Changes a site's time zone.
#[utoipa::path(put, path = "/api/v1/sites/{site}", request_body = SiteChange,
    params(("site" = String, Path)),
    responses((status = 200, body = SiteView), (status = 404, body = ErrorBody)))]
pub(super) async fn update(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(site): Path<String>,
    Body(change): Body<SiteChange>,
) -> Result<Json<SiteView>, Refusal> {
    let name = site_name(&site)?;
    let record = control
        .set_site_zone(caller.name(), &name, &change.zone)
        .await?;
    Ok(Json(view(&control.snapshot(), &record)))
}
