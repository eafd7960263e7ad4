//! What is done on the controller's own machine, with its keys at hand.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hedgerow_identity::key::{PublicKey, SigningKey as _, SoftwareP256, SoftwareP384};
use hedgerow_identity::trust::{Trust, sign_manifest};
use hedgerow_model::id::{OperatorName, Revision};
use hedgerow_model::statement::{Issuer, Manifest};
use rcgen::KeyPair;

use crate::clock::Clock;
use crate::config::Config;
use crate::control::{Controller, load_trust};
use crate::disk;
use crate::init::{ISSUER_DAYS, write_operator};
use crate::issue::{self, FreshKey};
use crate::journal;
use crate::keys::{self, Layout};
use crate::root_file;
use crate::run::{hold, open};
use crate::service::devices::Ending;
use crate::store::add_manifest;

/// Makes a new certificate for an operator.
pub(crate) async fn renew(
    config_file: &Path,
    name: &OperatorName,
    clock: Clock,
) -> anyhow::Result<PathBuf> {
    let config = Config::load(config_file).map_err(anyhow::Error::msg)?;
    let layout = Layout::new(&config.dir);
    let store = open(&layout).await?;
    let trust = load_trust(&store).await?;
    store.close().await;
    let now = clock.wall();
    let authority = keys::load_authority(&layout, &trust, now, config.longest_secs())?;
    let root = trust.manifest().roots.first().context("no root")?;
    write_operator(&layout, &config, &authority, name, &root.certificate, now)?;
    Ok(layout.operator("operator.pem"))
}

/// Makes a new issuing certificate and the manifest that names it beside the old one.
pub(crate) async fn renew_issuer(
    config_file: &Path,
    root_key: &Path,
    passphrase: &str,
    clock: Clock,
) -> anyhow::Result<u64> {
    let config = Config::load(config_file).map_err(anyhow::Error::msg)?;
    let layout = Layout::new(&config.dir);
    let sealed =
        disk::read_text(root_key).with_context(|| format!("cannot read {}", root_key.display()))?;
    let pkcs8 = root_file::open(&sealed, passphrase)
        .with_context(|| format!("cannot open {}", root_key.display()))?;
    let root = SoftwareP384::from_pkcs8_der(&pkcs8)?;
    let store = open(&layout).await?;
    let trust = load_trust(&store).await?;
    let now = clock.wall();
    let (manifest, key) = next_manifest(&config, &trust, &root, &pkcs8, now)?;
    let signed = sign_manifest(&manifest, &[&root])?;
    let mut checked = trust.clone();
    checked
        .adopt_manifest(&signed)
        .context("the new manifest does not verify")?;
    let id = SoftwareP256::from_pkcs8_pem(&key.pem)?.key_id();
    // The key comes first: a manifest in the store names only keys that are there.
    disk::write(&layout.key(&keys::issuer_file(id.0)), key.pem.as_bytes())?;
    let version = manifest.version;
    let mut change = store
        .change("operator", "manifest", &version.to_string(), now)
        .await?;
    add_manifest(&mut change.tx, version, &signed).await?;
    change.commit().await?;
    store.close().await;
    Ok(version)
}

/// Revokes a device with the controller's keys at hand, while no controller runs, and writes the signed
/// list to `out`. The revocation is in the store before: a controller that starts again has it.
pub(crate) async fn revoke(
    config_file: &Path,
    (device, reason): (&str, &str),
    out: &Path,
    clock: Clock,
) -> anyhow::Result<Revision> {
    let config = Config::load(config_file).map_err(anyhow::Error::msg)?;
    let layout = Layout::new(&config.dir);
    let _alone =
        hold(&layout).context("a running controller revokes by `hedgerow device revoke`")?;
    let store = open(&layout).await?;
    let (notes, waiting) = journal::channel();
    let writer = tokio::spawn(journal::run(store.clone(), waiting));
    let control = Controller::load(config, clock, store.clone(), notes).await?;
    let (_, revision) = control
        .end_device("operator", device, Ending::Revoked, reason)
        .await?;
    let snapshot = control.snapshot();
    let list = snapshot.standing.revocations().context("no list")?;
    disk::write(&std::path::absolute(out)?, list.bytes()).with_context(|| {
        format!(
            "{device} is revoked, but the list cannot be written to {}",
            out.display()
        )
    })?;
    drop(control);
    // The event is written by then.
    writer.await?;
    store.close().await;
    Ok(revision)
}

fn next_manifest(
    config: &Config,
    trust: &Trust,
    root: &SoftwareP384,
    pkcs8: &[u8],
    now: hedgerow_model::Wall,
) -> anyhow::Result<(Manifest, FreshKey)> {
    let old = trust.manifest();
    let known = old
        .roots
        .iter()
        .find(|r| PublicKey::P384(r.key) == root.public_key())
        .context("this is not a root key of this trust domain")?;
    let pair = KeyPair::try_from(pkcs8)?;
    let key = FreshKey::p256()?;
    let end = now.secs() + ISSUER_DAYS * 86_400;
    let domain = &config.trust_domain;
    let der = issue::issuing(domain, &key.pair, &known.certificate, pair, now, end)?;
    let mut manifest = Manifest {
        version: old.version + 1,
        previous: Some(trust.payload_digest()),
        issued_secs: now.secs(),
        ..old.clone()
    };
    // Leaves of an issuer that has ended cannot be valid either.
    manifest.issuers.retain(|i| {
        let grace = config.grace_secs().max(180 * 86_400);
        i.not_after_secs + grace > now.secs()
    });
    manifest.issuers.push(Issuer {
        key: SoftwareP256::from_pkcs8_pem(&key.pem)?.public(),
        certificate: der,
        site: None,
        not_after_secs: end,
    });
    manifest.issuers.sort_by_key(|i| i.key);
    Ok((manifest, key))
}
