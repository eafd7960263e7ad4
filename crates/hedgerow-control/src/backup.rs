//! Backup and restore: store, keys and configuration in one file.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::Digest;
use hedgerow_model::wire;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::clock::Clock;
use crate::config::{Config, RawConfig};
use crate::control::fact;
use crate::disk;
use crate::entropy;
use crate::keys::Layout;
use crate::run::{hold, open};
use crate::store::{Store, revocations, set_fact, tokens};

/// The format this program writes and reads.
const FORMAT: u32 = 1;
/// Longest name of a file in a backup, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// What a backup file holds.
#[derive(Debug, Encode, Decode)]
struct Archive {
    #[n(0)]
    format: u32,
    /// When it was made, in seconds since 1970.
    #[n(1)]
    made_secs: u64,
    /// Path within the state directory, and content.
    #[n(2)]
    files: Vec<(String, ByteVec)>,
}

/// Writes a backup of a controller that may be running.
pub(crate) async fn backup(config_file: &Path, target: &Path) -> anyhow::Result<()> {
    if target.exists() {
        bail!("{} exists; choose another name", target.display());
    }
    let config = Config::load(config_file).map_err(anyhow::Error::msg)?;
    let layout = Layout::new(&config.dir);
    let copy = layout.dir().join("store").join(format!(
        "backup-{}.db",
        hedgerow_model::base32::encode(&entropy::bytes::<5>())
    ));
    let store = open(&layout).await?;
    let copied = store.copy_into(&copy).await;
    store.close().await;
    let database = copied.map_err(anyhow::Error::from).and_then(|()| {
        disk::read(&copy).with_context(|| format!("cannot read {}", copy.display()))
    });
    if copy.exists() {
        std::fs::remove_file(&copy)?;
    }
    let mut files = vec![("store/hedgerow.db".to_owned(), database?.into())];
    let text = disk::read(config_file)?;
    files.push(("control.toml".to_owned(), text.into()));
    for folder in ["keys", "operator"] {
        let mut names: Vec<_> = std::fs::read_dir(layout.dir().join(folder))?
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .map(|e| e.path())
            .collect();
        names.sort();
        for path in names {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((format!("{folder}/{name}"), disk::read(&path)?.into()));
        }
    }
    let archive = Archive {
        format: FORMAT,
        made_secs: Clock::start().wall().secs(),
        files,
    };
    let body = wire::encode(&archive);
    let mut bytes = b"hedgerow-backup-v1\n".to_vec();
    bytes.extend_from_slice(&Digest::of(&body).0);
    bytes.extend_from_slice(&body);
    let target = std::path::absolute(target)?;
    disk::write(&target, &bytes).with_context(|| format!("cannot write {}", target.display()))
}

/// Fills a state directory from a backup, in a timeline larger than any before. Returns it.
pub(crate) async fn restore(source: &Path, dir: &Path, clock: Clock) -> anyhow::Result<u64> {
    let bytes = disk::read(source).with_context(|| format!("cannot read {}", source.display()))?;
    let archive =
        unpack(&bytes).with_context(|| format!("{} is not a whole backup", source.display()))?;
    let dir = std::path::absolute(dir)?;
    let layout = Layout::new(&dir);
    disk::create_dir(&dir)?;
    let _lock = hold(&layout)?;
    let before = match layout.store().exists() {
        true => {
            let old = Store::open(&layout.store()).await?;
            let revision = old.revision().await?;
            old.close().await;
            set_aside(&layout)?;
            revision.timeline
        }
        false => 0,
    };
    layout.create()?;
    for (name, content) in &archive.files {
        let content = match name.as_str() {
            "control.toml" => moved_config(content, &dir)?,
            _ => content.to_vec(),
        };
        disk::write(&dir.join(name), &content)?;
    }
    let store = Store::open(&layout.store()).await?;
    let timeline = begin_timeline(&store, before, clock).await;
    store.close().await;
    timeline
}

async fn begin_timeline(store: &Store, before: u64, clock: Clock) -> anyhow::Result<u64> {
    let now = clock.now();
    let old = store.revision().await?;
    // The clock makes two restores of one backup differ; the counters make sure that it grows.
    let by_clock = if now.wall_is_trusted {
        now.wall.secs()
    } else {
        0
    };
    let timeline = (old.timeline.max(before) + 1).max(by_clock);
    let mut tx = store.note().await?;
    let list = revocations::list(&mut tx, old, now.wall.secs()).await?;
    let version = revocations::version(&mut tx).await?.unwrap_or(list.version);
    revocations::set_restored(&mut tx, version).await?;
    set_fact(&mut tx, fact::STATES_RESTORED, &wire::encode(&old)).await?;
    // Uses since the backup are not known any more: nobody shall spend one twice.
    let tokens = tokens::revoke_all(&mut tx, now.wall).await?;
    tx.commit().await?;
    // Addresses given out since the backup come back with the tickets that name them.
    let longest = 31 * 86_400 + 365 * 86_400;
    store.close_blocks(now.wall.secs() + longest).await?;
    store.begin_timeline(timeline).await?;
    let event = Event::new(now.wall, EventKind::StoreRestored)
        .detail("backup", old)
        .detail("timeline", timeline)
        .detail("tokens_revoked", tokens);
    store.add_events(&[(None, event)]).await?;
    writeln!(
        std::io::stderr(),
        "{tokens} open enrollment tokens were revoked; `hedgerow token create` makes others"
    )?;
    Ok(timeline)
}

fn unpack(bytes: &[u8]) -> anyhow::Result<Archive> {
    let rest = bytes
        .strip_prefix(b"hedgerow-backup-v1\n")
        .context("it does not begin like one")?;
    let (digest, body) = rest.split_at_checked(32).context("it is cut off")?;
    if Digest::of(body).0 != digest {
        bail!("its checksum does not agree");
    }
    let archive: Archive = minicbor::decode(body).map_err(anyhow::Error::msg)?;
    if archive.format != FORMAT {
        bail!(
            "its format is {}, this program reads {FORMAT}",
            archive.format
        );
    }
    for (name, _) in &archive.files {
        let plain = Path::new(name)
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_)));
        if !plain || name.len() > NAME_BYTES_MAX {
            bail!("it names the file `{name}`");
        }
    }
    Ok(archive)
}

/// Keeps what was there: a restore by mistake can be taken back by hand.
fn set_aside(layout: &Layout) -> anyhow::Result<()> {
    let aside = layout.dir().join(format!(
        "before-restore-{}",
        hedgerow_model::base32::encode(&entropy::bytes::<5>())
    ));
    disk::create_dir(&aside)?;
    for name in ["store", "keys", "operator", "control.toml"] {
        let from = layout.dir().join(name);
        if from.exists() {
            std::fs::rename(&from, aside.join(name))?;
        }
    }
    writeln!(
        std::io::stderr(),
        "what was there is kept in {}",
        aside.display()
    )?;
    Ok(())
}

/// The configuration says where the directory is; that may be another place now.
fn moved_config(content: &[u8], dir: &Path) -> anyhow::Result<Vec<u8>> {
    let text = std::str::from_utf8(content)?;
    let mut raw: RawConfig = toml::from_str(text)?;
    if raw.dir == dir {
        return Ok(content.to_vec());
    }
    raw.dir = dir.to_path_buf();
    Ok(toml::to_string(&raw)?.into_bytes())
}
