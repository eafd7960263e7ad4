//! `init`: a new trust domain, complete or not at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hedgerow_identity::certificate::{LEAF_ADDRESSES_MAX, SpiffeId};
use hedgerow_identity::key::{SigningKey as _, SoftwareEd25519, SoftwareP256, SoftwareP384};
use hedgerow_identity::trust::{Trust, root_set_digest, sign_manifest};
use hedgerow_model::Wall;
use hedgerow_model::base32;
use hedgerow_model::id::{DeviceId, Digest, OperatorName, TrustDomain};
use hedgerow_model::statement::{Issuer, Manifest, Role, RoleKey, Root};
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PublicKeyData as _};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::config::{Config, RawCertificates, RawConfig, RawFleet, RawLimits, split_endpoint};
use crate::control::fact;
use crate::disk;
use crate::entropy::{self, SystemRandom};
use crate::issue::{self, Authority, FreshKey, Subject};
use crate::keys::{self, Layout, chain_pem, role_file};
use crate::root_file;
use crate::store::{Store, add_manifest, set_fact};

/// Life of the first issuing certificate.
pub(crate) const ISSUER_DAYS: u64 = 365;

/// What `init` is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Names in SPIFFE ids.
    pub(crate) trust_domain: TrustDomain,
    /// How agents and operators reach the controller.
    pub(crate) endpoints: Vec<String>,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// The state directory.
    pub(crate) dir: PathBuf,
    /// The first operator.
    pub(crate) operator: OperatorName,
    /// The root key's passphrase; made up when absent.
    pub(crate) passphrase: Option<Zeroizing<String>>,
}

/// What `init` made, for the person who ran it.
pub(crate) struct Made {
    /// Where things are.
    pub(crate) layout: Layout,
    /// What tokens pin.
    pub(crate) genesis: String,
    /// The root key's passphrase, when it was made up: shown once.
    pub(crate) passphrase: Option<Zeroizing<String>>,
}

/// `cli.toml`.
#[derive(Debug, Serialize)]
struct CliToml {
    url: String,
    certificate: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

/// Makes a trust domain in a directory that is not there yet.
pub(crate) async fn init(wish: Wish, clock: Clock) -> anyhow::Result<Made> {
    refuse_to_overwrite(&wish.dir)?;
    let parent = wish.dir.parent().context("--dir needs a parent")?;
    disk::create_dir(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let name = wish.dir.file_name().context("--dir needs a name")?;
    let unfinished = parent.join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        base32::encode(&entropy::bytes::<5>())
    ));
    let made = build(&wish, &unfinished, clock.wall()).await;
    let finished = made.and_then(|made| {
        // An empty directory gives way; anything else was refused above and is again here.
        std::fs::rename(&unfinished, &wish.dir)
            .with_context(|| format!("cannot create {}", wish.dir.display()))?;
        Ok(made)
    });
    if finished.is_err() && unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).context("cannot clean up")?;
    }
    let (genesis, passphrase) = finished?;
    Ok(Made {
        layout: Layout::new(&wish.dir),
        genesis,
        passphrase,
    })
}

fn refuse_to_overwrite(dir: &Path) -> anyhow::Result<()> {
    let found = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(e).with_context(|| format!("cannot look into {}", dir.display())),
    };
    if found {
        bail!(
            "{} is not empty: init makes a new trust domain and never overwrites one; \
             choose another --dir, or move this one away",
            dir.display()
        );
    }
    Ok(())
}

async fn build(
    wish: &Wish,
    dir: &Path,
    now: Wall,
) -> anyhow::Result<(String, Option<Zeroizing<String>>)> {
    let raw = RawConfig {
        version: 1,
        dir: wish.dir.clone(),
        listen: wish.listen,
        endpoints: wish.endpoints.clone(),
        trust_domain: wish.trust_domain.to_string(),
        limits: RawLimits::default(),
        certificates: RawCertificates::default(),
        fleet: RawFleet::default(),
    };
    let config = Config::check(raw.clone()).map_err(anyhow::Error::msg)?;
    let layout = Layout::new(dir);
    layout.create()?;

    let root = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
    let root_pkcs8 = Zeroizing::new(root.serialize_der());
    let signing_root = SoftwareP384::from_pkcs8_der(&root_pkcs8)?;
    let root_der = issue::root(&wish.trust_domain, &root, now)?;
    let given = wish.passphrase.clone();
    let passphrase = given.clone().unwrap_or_else(make_passphrase);
    let sealed = root_file::seal(&root_pkcs8, &passphrase, entropy::bytes(), entropy::bytes())?;
    disk::write(&layout.root_key(), sealed.as_bytes())?;

    let issuing = FreshKey::p256()?;
    let end = now.secs() + ISSUER_DAYS * 86_400;
    let issuer_der = issue::issuing(&wish.trust_domain, &issuing.pair, &root_der, root, now, end)?;
    let issuer = SoftwareP256::from_pkcs8_pem(&issuing.pem)?;
    let file = keys::issuer_file(issuer.key_id().0);
    disk::write(&layout.key(&file), issuing.pem.as_bytes())?;

    let roots = vec![Root {
        key: signing_root.public(),
        certificate: root_der.clone(),
    }];
    let genesis = root_set_digest(&roots);
    let manifest = Manifest {
        version: 1,
        trust_domain: wish.trust_domain.clone(),
        previous: None,
        issued_secs: now.secs(),
        roots,
        threshold: 1,
        issuers: vec![Issuer {
            key: issuer.public(),
            certificate: issuer_der.clone(),
            site: None,
            not_after_secs: end,
        }],
        role_keys: make_role_keys(&layout)?,
        genesis,
    };
    let signed = sign_manifest(&manifest, &[&signing_root])?;
    let trust = Trust::pinned(genesis, &signed).context("the new manifest does not verify")?;
    let authority = keys::load_authority(&layout, &trust, now, config.longest_secs())?;
    write_controller(&layout, &config, &authority, None, now)?;
    write_operator(&layout, &config, &authority, &wish.operator, &root_der, now)?;
    write_store(&layout, &genesis, &signed).await?;
    disk::write(&layout.config(), toml::to_string(&raw)?.as_bytes())?;
    Ok((genesis.to_string(), given.is_none().then_some(passphrase)))
}

async fn write_store(layout: &Layout, genesis: &Digest, manifest: &[u8]) -> anyhow::Result<()> {
    let store = Store::open(&layout.store()).await?;
    let mut tx = store.note().await?;
    set_fact(&mut tx, fact::GENESIS, &genesis.0).await?;
    add_manifest(&mut tx, 1, manifest).await?;
    tx.commit().await?;
    store.close().await;
    Ok(())
}

fn make_role_keys(layout: &Layout) -> anyhow::Result<Vec<RoleKey>> {
    let roles = [
        Role::Policy,
        Role::Revocation,
        Role::Update,
        Role::Checkpoint,
    ];
    let mut out = Vec::new();
    for role in roles {
        let key = SoftwareEd25519::generate(&mut SystemRandom);
        disk::write(&layout.key(role_file(role)), key.to_pkcs8_pem()?.as_bytes())?;
        out.push(RoleKey {
            role,
            key: key.public(),
        });
    }
    out.sort_by_key(|k| (k.role, k.key));
    Ok(out)
}

fn hosts(config: &Config) -> anyhow::Result<Vec<String>> {
    let split = |e: &String| split_endpoint(e).map_err(anyhow::Error::msg);
    config.endpoints.iter().map(|e| Ok(split(e)?.0)).collect()
}

/// Returns the addresses that the controller's certificate names: its own machine's loopback, and
/// those that agents and operators use.
pub(crate) fn own_names(config: &Config) -> anyhow::Result<Vec<IpAddr>> {
    let mut out: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for address in hosts(config)?.iter().filter_map(|h| h.parse().ok()) {
        if !out.contains(&address) && out.len() < LEAF_ADDRESSES_MAX {
            out.push(address);
        }
    }
    Ok(out)
}

/// Makes a new key and certificate for the controller; `id` stays what it was.
pub(crate) fn write_controller(
    layout: &Layout,
    config: &Config,
    authority: &Authority,
    id: Option<DeviceId>,
    now: Wall,
) -> anyhow::Result<()> {
    let id = id.unwrap_or_else(|| DeviceId(entropy::bytes()));
    let hosts = hosts(config)?;
    let named = hosts.iter().find(|h| h.parse::<IpAddr>().is_err());
    let subject = Subject {
        uri: SpiffeId::Controller { id }.uri(&config.trust_domain),
        dns: named.cloned().unwrap_or_else(|| "localhost".to_owned()),
        addresses: own_names(config)?,
    };
    let key = FreshKey::p256()?;
    let life = Duration::from_secs(config.certificates.controller_days * 86_400);
    let spki = key.pair.subject_public_key_info();
    let chain = authority.leaf(&spki, &subject, now, authority.end_of(now, life))?;
    let both = Zeroizing::new(format!("{}{}", chain_pem(&chain), *key.pem));
    disk::write(&layout.key("controller.pem"), both.as_bytes())?;
    Ok(())
}

/// Makes a new key and certificate for an operator, and the bundle that the tool reads.
pub(crate) fn write_operator(
    layout: &Layout,
    config: &Config,
    authority: &Authority,
    name: &OperatorName,
    root_der: &[u8],
    now: Wall,
) -> anyhow::Result<()> {
    let id = SpiffeId::Operator { name: name.clone() };
    let subject = Subject {
        uri: id.uri(&config.trust_domain),
        dns: format!("{name}.operator.{}", config.suffix),
        addresses: Vec::new(),
    };
    let key = FreshKey::p256()?;
    let life = Duration::from_secs(config.certificates.operator_days * 86_400);
    let spki = key.pair.subject_public_key_info();
    let chain = authority.leaf(&spki, &subject, now, authority.end_of(now, life))?;
    let both = Zeroizing::new(format!("{}{}", chain_pem(&chain), *key.pem));
    // The bundle lies where the configuration says, which init has not moved into place yet.
    let final_layout = Layout::new(&config.dir);
    let operator = final_layout.operator("operator.pem");
    let cli = CliToml {
        url: format!(
            "https://{}",
            config.endpoints.first().map_or("", String::as_str)
        ),
        certificate: operator.clone(),
        key: operator,
        root: final_layout.operator("ca.pem"),
    };
    disk::write(&layout.operator("operator.pem"), both.as_bytes())?;
    let roots = chain_pem(&[root_der.to_vec()]);
    disk::write(&layout.operator("ca.pem"), roots.as_bytes())?;
    disk::write(
        &layout.operator("cli.toml"),
        toml::to_string(&cli)?.as_bytes(),
    )?;
    Ok(())
}

/// 120 random bits in groups that can be read aloud.
fn make_passphrase() -> Zeroizing<String> {
    let text = Zeroizing::new(base32::encode(&entropy::bytes::<15>()));
    let mut out = Zeroizing::new(String::with_capacity(32));
    for (i, c) in text.chars().enumerate() {
        if i > 0 && i.is_multiple_of(4) {
            out.push('-');
        }
        out.push(c);
    }
    out
}

/// Returns the id in the controller's certificate.
pub(crate) fn controller_id(layout: &Layout, trust: &Trust) -> Option<DeviceId> {
    let text = disk::read_text(&layout.key("controller.pem")).ok()?;
    let chain = keys::chain_from_pem(&text);
    let facts = hedgerow_identity::certificate::LeafFacts::parse(chain.first()?).ok()?;
    SpiffeId::from_uri(facts.uri(), trust.trust_domain())?.id()
}
