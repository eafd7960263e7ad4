//! Commands beside the running agent: `load`, `off`, `leave`, `revocations import`, `fingerprint`.

use std::path::Path;
use std::time::Duration;

use hedgerow_linux::link::{self, Link, LinkError};
use hedgerow_linux::nft::{Found, NftError, Table};
use hedgerow_linux::{hosts, process, tun};
use hedgerow_model::Fault;
use hedgerow_model::address::{OverlayAddresses, Prefix};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::Askers;

use super::clock::Clock;
use super::identity::{Identities, fingerprint, not_enrolled};
use super::local::{self, Request};
use super::run::{self, kernel};
use super::store::Store;
use crate::config::Config;
use crate::failure::{Failure, chain};
use crate::state::{Step, closed_ruleset};

/// How long the kernel may take to show the tunnel's interface.
const LINK_WITHIN: Duration = Duration::from_secs(2);

/// Loads the table of the last program from disk alone, before networking. Where the state directory
/// does not say what that is, a closed table is loaded instead: damage must not open a device.
///
/// # Errors
///
/// When the device is not enrolled, the kernel refuses, or the state directory is unusable. In the
/// last case a table is in force all the same, and the message says which.
pub(crate) fn load(config: &Config) -> Result<String, Failure> {
    if let Some(missing) = process::missing().into_iter().next() {
        return Err(run::missing(&missing));
    }
    let mut opened = match run::open_for_load(config) {
        Ok(opened) => opened,
        Err(failure) if failure.fault == Fault::Operator && !Store::is_enrolled(&config.state) => {
            return Err(failure);
        }
        Err(failure) => return Err(close(config, &failure)),
    };
    let now = opened.clock.now();
    opened.state.handle_start(now);
    let mut table = Table::open(None).map_err(|e| kernel(&e))?;
    while let Some(step) = opened.state.poll() {
        if let Step::Load(ruleset) = step {
            let hash = table.load(&ruleset, now).map_err(|e| kernel(&e))?;
            let revision = opened.state.holdings().revision;
            return Ok(match revision {
                Some(revision) => format!("revision {revision} is in force, table {hash}"),
                None => format!("no policy yet: the overlay is closed, table {hash}"),
            });
        }
    }
    Err(Failure::new(
        Fault::Bug,
        "there was no table to load",
        "report this",
    ))
}

/// Puts a closed table into the kernel, unless one of ours is there already: that one was verified
/// when it was loaded.
fn close(config: &Config, failure: &Failure) -> Failure {
    let closed = || -> Result<&'static str, NftError> {
        let mut table = Table::open(None)?;
        if table.found() != Found::Absent {
            return Ok("the kernel's table stays in force");
        }
        let store = Store::peek(&config.state);
        let mode = match store.trial().is_enforced {
            true => Mode::Enforce,
            false => Mode::Observe,
        };
        let mut local = run::local(config, Askers::Nobody);
        let enrollment = store.enrollment().ok().flatten();
        local
            .controllers
            .extend(enrollment.into_iter().flat_map(|e| e.controllers));
        table.load(&closed_ruleset(&local, mode), Clock::start(None).now())?;
        Ok("a table is in force that closes the overlay")
    };
    match closed() {
        Ok(done) => Failure::new(
            failure.fault,
            format!("{}; {done}", failure.message),
            &failure.remedy,
        ),
        Err(error) => kernel(&error),
    }
}

/// Hands a signed list to the running agent.
///
/// # Errors
///
/// When no agent runs, or it does not believe the list.
pub(crate) async fn import(config: &Config, file: &Path) -> Result<String, Failure> {
    let file = std::path::absolute(file)
        .map_err(|e| Failure::operator(format!("{}: {e}", file.display()), "name the file"))?;
    let shown = file.display().to_string();
    let answer = local::ask(config, &Request::Import { file }).await?;
    let answer = answer.ok_or_else(|| {
        Failure::environment(
            format!("no agent answers at {}", config.socket().display()),
            "start it: `systemctl start hedgerow-agent`, or see `hedgerow-agent check`",
        )
    })?;
    let kind = answer.get("imported").and_then(|kind| kind.as_str());
    let kind = kind.unwrap_or("list");
    Ok(match answer.get("news").and_then(|news| news.as_bool()) {
        Some(true) => format!("{kind} of {shown} are in force here, and peers are being told"),
        _ => format!("{kind} of {shown} are no news"),
    })
}

/// Takes everything of ours out of the kernel and the hosts file.
///
/// # Errors
///
/// When not root, or another process owns the table.
pub(crate) async fn off(config: &Config) -> Result<String, Failure> {
    if local::ask(config, &Request::Off).await?.is_some() {
        wait_end(config).await?;
        return Ok("the agent ended; table, tunnel and names are gone".to_owned());
    }
    if let Ok(store) = Store::open(&config.state) {
        let clock = Clock::start(store.floor());
        let mut spool = store.spool(config.spool_events_max);
        spool.push(Event::new(clock.now().wall, EventKind::EnforcementDisabled));
        store.write_spool(&spool)?;
    }
    let mut table = Table::open(None).map_err(|e| kernel(&e))?;
    undress(config, &mut table)?;
    Ok("table, tunnel and names are gone".to_owned())
}

/// Leaves the trust domain: tells the controller, takes everything back, removes the identity.
///
/// # Errors
///
/// When the controller cannot be told and `force` is not given.
pub(crate) async fn leave(config: &Config, force: bool) -> Result<String, Failure> {
    let told = match local::ask(config, &Request::Leave { force }).await? {
        Some(answer) => {
            wait_end(config).await?;
            answer.get("told_controller") == Some(&serde_json::Value::Bool(true))
        }
        None if force => false,
        None => {
            return Err(Failure::operator(
                "the agent does not run, so the controller cannot be told",
                "start it, or use --force and remove the device with `hedgerow device remove`",
            ));
        }
    };
    let store = Store::open(&config.state)?;
    let mut table = Table::open(None).map_err(|e| kernel(&e))?;
    undress(config, &mut table)?;
    store.remove_identity()?;
    Ok(if told {
        "this device has left; its identity is removed".to_owned()
    } else {
        "the identity is removed; the controller was not told: `hedgerow device remove`".to_owned()
    })
}

/// Returns the fingerprint of the key in use, or of the one that waits for approval.
///
/// # Errors
///
/// When there is neither.
pub(crate) fn own_fingerprint(config: &Config) -> Result<String, Failure> {
    let store = Store::peek(&config.state);
    match Identities::read(&store) {
        Ok(identities) => Ok(fingerprint(&identities.current().keys.identity)),
        Err(_) => match store.pending()? {
            Some(keys) => Ok(fingerprint(&keys.identity)),
            None => Err(not_enrolled()),
        },
    }
}

/// Waits until the agent that was told to end has let go of its state directory.
async fn wait_end(config: &Config) -> Result<(), Failure> {
    const STEP: Duration = Duration::from_millis(50);
    const STEPS: u32 = 200;
    for _ in 0..STEPS {
        if Store::open(&config.state).is_ok() {
            return Ok(());
        }
        tokio::time::sleep(STEP).await;
    }
    Err(Failure::environment(
        "the agent does not end",
        "see its log; the command can be repeated",
    ))
}

/// Gives the tunnel's interface its size, addresses and routes.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn dress_interface(
    config: &Config,
    addresses: &OverlayAddresses,
    pools: &[Prefix],
) -> Result<(), Failure> {
    let dress = || -> Result<(), LinkError> {
        let link = Link::wait(&config.interface, LINK_WITHIN)?;
        link.set_mtu(u32::from(config.mtu))?;
        for address in addresses.iter() {
            link.add_address(address.0, if address.0.is_ipv4() { 32 } else { 128 })?;
        }
        link.set_up()?;
        for pool in pools {
            // First the stop, then the way: nothing leaves in clear between the two.
            link::add_unreachable(*pool)?;
            link.add_route(*pool)?;
        }
        Ok(())
    };
    dress().map_err(|e| link_failure(&e))
}

/// Takes table, interface, routes and names away. Doing it twice equals doing it once.
///
/// # Errors
///
/// When the kernel or the disk refuses; the rest is done all the same.
pub(crate) fn undress(config: &Config, table: &mut Table) -> Result<(), Failure> {
    let results = [
        table.remove().map_err(|e| kernel(&e)),
        tun::remove(&config.interface)
            .map_err(|e| Failure::new(e.fault(), chain(&e), "see whether another program uses it")),
        remove_routes().map_err(|e| link_failure(&e)),
        match &config.hosts_file {
            Some(path) => hosts::write(path, &hosts::Entries::new()).map_err(Failure::from),
            None => Ok(()),
        },
    ];
    results.into_iter().collect()
}

fn remove_routes() -> Result<(), LinkError> {
    let ours = |r: &link::Route| r.protocol == link::ROUTE_PROTOCOL;
    for route in link::routes()?.into_iter().filter(ours) {
        link::remove_unreachable(route.destination)?;
    }
    Ok(())
}

fn link_failure(error: &LinkError) -> Failure {
    Failure::new(
        error.fault(),
        format!("the tunnel's interface: {}", chain(error)),
        "see `hedgerow-agent check`",
    )
}
