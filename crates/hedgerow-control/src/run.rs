//! `run`: everything in one process until it is told to stop.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hedgerow_identity::certificate::LeafFacts;
use hedgerow_model::event::{Event, EventKind};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::Config;
use crate::control::{Controller, load_trust};
use crate::hub::dirty;
use crate::init::{controller_id, own_names, write_controller};
use crate::keys::{self, Layout, chain_from_pem};
use crate::listen::Door;
use crate::notify::Notify;
use crate::refusal::Refusal;
use crate::root_file::unpem;
use crate::store::Store;
use crate::tls::Tls;
use crate::{disk, journal};

/// How often a beacon is made.
const BEACON_EVERY: Duration = Duration::from_secs(300);
/// How often certificates, manifests and lists are looked after.
const UPKEEP_EVERY: Duration = Duration::from_secs(60);
/// How often what may be forgotten is forgotten.
const RETENTION_EVERY: Duration = Duration::from_secs(3600);
/// How long sessions may take to say goodbye.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// Shortest time between two rounds of names.
const NAMES_EVERY: Duration = Duration::from_secs(1);
/// Sessions that a round of names may address in one second.
const NAMES_PER_SECOND: usize = 500;

/// Runs until a signal.
pub(crate) async fn run(config_file: &Path) -> anyhow::Result<()> {
    let clock = Clock::start();
    let config = Config::load(config_file).map_err(anyhow::Error::msg)?;
    let layout = Layout::new(&config.dir);
    let _lock = hold(&layout)?;
    close(&layout)?;
    raise_descriptor_limit();
    let store = open(&layout).await?;
    let (notes, waiting) = journal::channel();
    let writer = tokio::spawn(journal::run(store.clone(), waiting));
    let listen = config.listen;
    let control = Controller::load(config, clock, store.clone(), notes).await?;
    control.renew_beacon()?;
    let control = Arc::new(control);
    look_after_own_certificate(&control)?;
    let (chain, key) = own_certificate(&layout)?;
    let tls = Arc::new(Tls::new(&chain, &key).context("cannot use the controller's certificate")?);
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; is the port taken, or the address not of this machine?")
    })?;
    let (stop, stopped) = watch::channel(false);
    let door = Arc::new(Door::new(control.clone(), tls.clone()));
    let accepting = tokio::spawn(door.run(listener, stopped.clone()));
    let chores = spawn_chores(&control, &tls, &stopped);
    let notify = Notify::from_environment();
    notify.ready(&format!("listening on {listen}"));
    distrust(&control);
    tracing::info!(%listen, revision = %control.snapshot().revision, "ready");
    until_told_to_stop(&control, &notify).await?;
    notify.stopping();
    tracing::info!("stopping");
    stop.send_replace(true);
    control.hub.raise_all(dirty::STOP);
    wind_down(&control, accepting, chores).await;
    drop(control);
    // The writer ends when the last sender is gone; a session that hangs must not keep us.
    drop(tokio::time::timeout(STOP_WITHIN, writer).await);
    store.close().await;
    Ok(())
}

/// Says so when the clock is behind the day this program was made.
fn distrust(control: &Controller) {
    if control.clock.now().wall_is_trusted {
        return;
    }
    tracing::warn!(
        "the clock is behind the day this program was made: set the clock (is there a time server?). \
         Agents are served; revocations stay, and what is issued meanwhile may be refused"
    );
    control.event(Event::new(control.clock.wall(), EventKind::ClockUntrusted));
}

async fn wind_down(control: &Controller, accepting: JoinHandle<()>, chores: Vec<JoinHandle<()>>) {
    let gone = async {
        while control.hub.connected() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Whoever has not left by then is cut off; agents come back by themselves.
    drop(tokio::time::timeout(STOP_WITHIN, gone).await);
    accepting.abort();
    for chore in chores {
        chore.abort();
    }
}

/// Opens the store that `init` made.
pub(crate) async fn open(layout: &Layout) -> anyhow::Result<Store> {
    let path = layout.store();
    if !path.exists() {
        return Err(Refusal::invalid(
            format!("there is no {}", path.display()),
            "`hedgerow-control init` makes a new controller, `restore` brings one back",
        )
        .into());
    }
    Store::open(&path).await.with_context(|| {
        format!(
            "cannot open {}; nothing in it was changed. On a full disk make room; if the file is \
             damaged, keep it and bring the last backup back with `hedgerow-control restore`",
            path.display()
        )
    })
}

/// Keys and store are for this user alone, whatever a copy or a restore by hand left behind.
fn close(layout: &Layout) -> anyhow::Result<()> {
    let dir = layout.dir().display();
    let opened = disk::close_to_others(layout.dir()).with_context(|| {
        format!(
            "{dir} is open to other users and cannot be closed; run chown -R to this user on it"
        )
    })?;
    for path in opened {
        tracing::warn!(path = %path.display(), "other users could reach this; it is closed now");
    }
    Ok(())
}

/// Takes the state directory for this process alone.
pub(crate) fn hold(layout: &Layout) -> anyhow::Result<File> {
    let dir = layout.dir().display();
    disk::lock(layout.dir()).map_err(|error| {
        let kind = error.kind();
        let why = if kind == ErrorKind::WouldBlock {
            format!("another hedgerow-control uses {dir}; stop it, or name another directory")
        } else if kind == ErrorKind::NotFound {
            format!("there is no {dir}; `hedgerow-control init` makes it, `restore` brings it back")
        } else if kind == ErrorKind::ReadOnlyFilesystem {
            format!("{dir} is mounted read-only; a controller has to write there")
        } else if kind == ErrorKind::StorageFull {
            format!("the disk of {dir} is full; make room")
        } else {
            format!("cannot write in {dir}; it has to belong to the user that runs this")
        };
        anyhow::Error::from(error).context(why)
    })
}

/// An agent is a descriptor: take all that the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let old = getrlimit(Resource::Nofile);
    let new = Rlimit {
        current: old.maximum,
        maximum: old.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, new) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}

async fn until_told_to_stop(control: &Controller, notify: &Notify) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let period = notify.watchdog().unwrap_or(Duration::from_secs(3600));
    let mut watchdog = tokio::time::interval(period);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = watchdog.tick() => {
                let connected = control.hub.connected();
                let revision = control.snapshot().revision;
                notify.alive(&format!("{connected} agents connected, revision {revision}"));
            }
        }
    }
}

fn spawn_chores(
    control: &Arc<Controller>,
    tls: &Arc<Tls>,
    stopped: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(beacons(control.clone(), stopped.clone())),
        tokio::spawn(names(control.clone(), stopped.clone())),
        tokio::spawn(upkeep(control.clone(), tls.clone(), stopped.clone())),
        tokio::spawn(retention(control.clone(), stopped.clone())),
        tokio::spawn(upkeep_on_signal(control.clone(), tls.clone())),
    ]
}

async fn beacons(control: Arc<Controller>, mut stopped: watch::Receiver<bool>) {
    while tokio::time::timeout(BEACON_EVERY, stopped.changed())
        .await
        .is_err()
    {
        match control.renew_beacon() {
            Ok(()) => control.hub.raise_all(dirty::BEACON),
            Err(error) => tracing::error!(%error, "no beacon"),
        }
    }
}

/// Tells sessions about changed names: at once while they are few, in wider steps for many.
async fn names(control: Arc<Controller>, mut stopped: watch::Receiver<bool>) {
    let mut pause = NAMES_EVERY;
    while tokio::time::timeout(pause, stopped.changed())
        .await
        .is_err()
    {
        let told = control.tell_names();
        let seconds = u64::try_from(told / NAMES_PER_SECOND).unwrap_or(60).min(60);
        pause = NAMES_EVERY + Duration::from_secs(seconds);
    }
}

async fn retention(control: Arc<Controller>, mut stopped: watch::Receiver<bool>) {
    loop {
        if let Err(error) = control.retire().await {
            tracing::error!(%error, "what should be forgotten is still there; it is tried again");
        }
        let wait = tokio::time::timeout(RETENTION_EVERY, stopped.changed());
        if wait.await.is_ok() {
            return;
        }
    }
}

async fn upkeep(control: Arc<Controller>, tls: Arc<Tls>, mut stopped: watch::Receiver<bool>) {
    while tokio::time::timeout(UPKEEP_EVERY, stopped.changed())
        .await
        .is_err()
    {
        if let Err(error) = keep_up(&control, &tls).await {
            tracing::error!(
                error = format!("{error:#}"),
                "upkeep failed; it is tried again"
            );
        }
    }
}

/// `systemctl reload`: look now.
async fn upkeep_on_signal(control: Arc<Controller>, tls: Arc<Tls>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::warn!(%error, "no reload by signal");
            return;
        }
    };
    while hangup.recv().await.is_some() {
        if let Err(error) = keep_up(&control, &tls).await {
            tracing::error!(
                error = format!("{error:#}"),
                "upkeep failed; it is tried again"
            );
        }
    }
}

async fn keep_up(control: &Controller, tls: &Tls) -> anyhow::Result<()> {
    adopt_new_manifests(control).await?;
    change_issuer(control)?;
    if look_after_own_certificate(control)? {
        let (chain, key) = own_certificate(&control.layout)?;
        tls.replace(&chain, &key)?;
        tracing::info!("the controller's certificate was renewed");
    }
    control.prune().await?;
    Ok(())
}

/// Takes manifests that `issuer renew` has put into the store.
async fn adopt_new_manifests(control: &Controller) -> anyhow::Result<()> {
    let stored = load_trust(&control.store).await?;
    if stored.manifest().version <= control.snapshot().trust.manifest().version {
        return Ok(());
    }
    let version = stored.manifest().version;
    let mut draft = control.draft().await;
    draft.next.set_trust(stored);
    let revision = control.store.revision().await?;
    control.publish(draft, revision);
    control.hub.raise_all(dirty::TRUST);
    tracing::info!(version, "a newer trust manifest is in force");
    Ok(())
}

/// Changes to the issuing key whose turn it is.
fn change_issuer(control: &Controller) -> anyhow::Result<()> {
    let snapshot = control.snapshot();
    let authority = keys::load_authority(
        &control.layout,
        &snapshot.trust,
        control.clock.wall(),
        control.config.longest_secs(),
    )?;
    if authority.issuer_der() == control.authority().issuer_der() {
        return Ok(());
    }
    let until = authority.issuer_not_after();
    control.set_authority(authority);
    control.renew_beacon()?;
    control.hub.raise_all(dirty::BEACON);
    tracing::info!(until, "another issuing key is in use");
    Ok(())
}

/// Renews the controller's own certificate when a third of its life is left, or when it is of an
/// issuer no longer in use, or does not carry the configured endpoints. Returns whether it did.
pub(crate) fn look_after_own_certificate(control: &Controller) -> anyhow::Result<bool> {
    let (authority, snapshot) = (control.authority(), control.snapshot());
    let now = control.clock.wall();
    let current = own_certificate(&control.layout);
    let good = current.as_ref().is_ok_and(|(chain, _)| {
        let same_issuer = chain
            .get(1)
            .is_some_and(|der| der == authority.issuer_der().as_ref());
        let fresh = chain
            .first()
            .and_then(|leaf| LeafFacts::parse(leaf).ok())
            .is_some_and(|f| {
                let life = f.not_after_secs().saturating_sub(f.not_before_secs());
                f.not_after_secs() > now.secs() + life / 3
            });
        let names = own_names(&control.config).unwrap_or_default();
        let reachable = chain
            .first()
            .and_then(|leaf| LeafFacts::parse(leaf).ok())
            .is_some_and(|f| names.iter().all(|a| f.addresses().contains(a)));
        same_issuer && fresh && reachable
    });
    if good {
        return Ok(false);
    }
    let id = controller_id(&control.layout, &snapshot.trust);
    write_controller(&control.layout, &control.config, &authority, id, now)?;
    Ok(true)
}

fn own_certificate(layout: &Layout) -> anyhow::Result<(Vec<Vec<u8>>, Vec<u8>)> {
    let path = layout.key("controller.pem");
    let text = disk::read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = unpem("PRIVATE KEY", &text)
        .with_context(|| format!("{} holds no private key", path.display()))?;
    Ok((chain_from_pem(&text), key))
}

impl Controller {
    /// Lets leave what may leave: revocations whose time is over.
    pub(crate) async fn prune(&self) -> Result<(), Refusal> {
        let now = self.clock.now();
        let standing = self.snapshot().standing.clone();
        let over = standing.revocations().is_some_and(|l| {
            l.entries
                .iter()
                .any(|e| e.drop_after_secs < now.wall.secs())
        });
        if !over || !now.wall_is_trusted {
            return Ok(());
        }
        let mut draft = self.draft().await;
        let mut change = self
            .store
            .change("controller", "prune", "", now.wall)
            .await?;
        crate::store::revocations::prune(&mut change.tx, now.wall.secs()).await?;
        let authority = self.authority();
        let trust = draft.next.trust.clone();
        let signer = crate::sign::Signer {
            authority: &authority,
            trust: &trust,
        };
        let revision = self
            .commit_revocations(&mut draft, change, signer, now.wall)
            .await?;
        self.publish(draft, revision);
        self.hub.raise_all(dirty::TRUST);
        Ok(())
    }
}
