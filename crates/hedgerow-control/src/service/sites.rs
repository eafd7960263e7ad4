//! Creating sites.

use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::SiteName;

use crate::control::{Controller, fact, site_config};
use crate::hub::dirty;
use crate::refusal::Refusal;
use crate::sign::Signer;
use crate::store::sites::SiteRecord;
use crate::store::{set_fact, sites};

impl Controller {
    /// Creates a site.
    pub(crate) async fn create_site(
        &self,
        actor: &str,
        name: &SiteName,
        zone: &str,
    ) -> Result<SiteRecord, Refusal> {
        check_zone(zone)?;
        let now = self.clock.wall();
        let mut draft = self.draft().await;
        let authority = self.authority();
        let mut change = self
            .store
            .change(actor, "site_create", name.as_str(), now)
            .await?;
        let record = sites::create(&mut change.tx, name, zone, now).await?;
        let trust = draft.next.trust.clone();
        let signer = Signer {
            authority: &authority,
            trust: &trust,
        };
        let config = site_config(&self.config, &trust, &record, change.revision);
        let config = signer.config(&config)?;
        set_fact(&mut change.tx, &fact::config(name), config.bytes()).await?;
        let revision = change.commit().await?;
        draft.next.set_site(record.clone(), &config);
        self.publish(draft, revision);
        self.event(Event::new(now, EventKind::SiteCreated).detail("site", name));
        Ok(record)
    }

    /// Moves a site to another time zone.
    pub(crate) async fn set_site_zone(
        &self,
        actor: &str,
        name: &SiteName,
        zone: &str,
    ) -> Result<SiteRecord, Refusal> {
        check_zone(zone)?;
        let mut draft = self.draft().await;
        let site = draft.next.sites.get(name).cloned();
        let site = site.ok_or_else(|| Refusal::no_site(name.as_str()))?;
        let record = SiteRecord {
            zone: zone.to_owned(),
            ..site.record.clone()
        };
        let authority = self.authority();
        let at = self.clock.wall();
        let mut change = self
            .store
            .change(actor, "site_zone", name.as_str(), at)
            .await?;
        sites::set_zone(&mut change.tx, name, zone).await?;
        let trust = draft.next.trust.clone();
        let signer = Signer {
            authority: &authority,
            trust: &trust,
        };
        let config = site_config(&self.config, &trust, &record, change.revision);
        let config = signer.config(&config)?;
        set_fact(&mut change.tx, &fact::config(name), config.bytes()).await?;
        let revision = change.commit().await?;
        draft.next.set_site(record.clone(), &config);
        self.publish(draft, revision);
        self.hub.raise_all(dirty::CONFIG);
        Ok(record)
    }
}

fn check_zone(zone: &str) -> Result<(), Refusal> {
    match jiff::tz::TimeZone::get(zone) {
        Ok(_) => Ok(()),
        Err(_) => Err(Refusal::invalid(
            format!("`{zone}` is not an IANA time zone"),
            "write one like Europe/Berlin or UTC",
        )),
    }
}
