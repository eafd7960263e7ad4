//! The demonstration: ten acts in one plant.

mod alone;
mod applied;
mod attacked;
mod before;
mod contained;
mod enrolled;
mod meshed;
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use self::stage::Stage;
use crate::lab::Lab;
use crate::screen::Screen;
use crate::{clock, plant, programs, witness};

/// The lab's name: one demonstration at a time on a machine.
pub(crate) const NAME: &str = "demo";

/// How the demonstration runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Ends after the last act instead of staying up.
    pub(crate) once: bool,
    /// The last act.
    pub(crate) until: u8,
}

/// Runs the acts, and cleans up however they end: Ctrl-C included. Returns whether every expectation
/// held.
///
/// # Errors
///
/// When the plant cannot be built or an act cannot be played to its end.
pub(crate) fn run(screen: Screen, options: Options) -> Result<bool> {
    let lab = Arc::new(Lab::open(NAME)?);
    lab.wipe()?;
    let ended = Arc::new(AtomicBool::new(false));
    let stage = {
        let (lab, ended) = (Arc::clone(&lab), Arc::clone(&ended));
        std::thread::spawn(move || {
            let result = play(&lab, screen, options);
            ended.store(true, Ordering::SeqCst);
            if !options.once && !lab.is_closed() {
                stay(&lab, screen, &result);
            }
            result
        })
    };
    let interrupted = wait(&ended, options)?;
    screen.say("\nRemoving the plant.");
    let result = match interrupted && !ended.load(Ordering::SeqCst) {
        true => Ok(Ok(false)),
        false => stage
            .join()
            .map_err(|_panic| anyhow::anyhow!("the stage fell down")),
    };
    lab.close();
    screen.say(&format!(
        "Gone. Logs stay in {}.",
        lab.directory().join("logs").display()
    ));
    result?
}

/// Waits until the acts have ended, or, if they are to stay up, for a signal. Returns whether there
/// was one.
fn wait(ended: &AtomicBool, options: Options) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
        let mut look = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(true),
                _ = terminate.recv() => return Ok(true),
                _ = hang_up.recv() => return Ok(true),
                _ = look.tick() => {
                    if options.once && ended.load(Ordering::SeqCst) {
                        return Ok(false);
                    }
                }
            }
        }
    })
}

fn play(lab: &Lab, screen: Screen, options: Options) -> Result<bool> {
    let start = clock::now();
    screen.say("Building the plant: router, central, two sites, ten devices.");
    plant::wire(lab)?;
    programs::prepare(lab)?;
    for device in &plant::DEVICES {
        witness::install(&device.namespace())?;
    }
    programs::start_all(lab)?;
    screen.say(&format!("Ready after {} ms.", clock::ms_since(start)));
    let mut held = before::play(lab, screen)?;
    if options.until > 1 {
        let (mut stage, enrolled) = enrolled::play(lab, screen)?;
        held &= enrolled;
        held &= acts(&mut stage, options.until)?;
    }
    let seconds = (clock::ms_since(start) / 1000.0).round();
    screen.say(&match held {
        true => format!("\nEvery expectation held ({seconds} s)."),
        false => format!("\nNot every expectation held ({seconds} s): see the lines marked ✗."),
    });
    screen.object(&serde_json::json!({"demo": "ended", "held": held, "seconds": seconds}));
    Ok(held)
}

type Scene = fn(&mut Stage<'_>) -> Result<bool>;

fn acts(stage: &mut Stage<'_>, until: u8) -> Result<bool> {
    let scenes: [(u8, Scene); 8] = [
        (3, applied::policy),
        (4, applied::change),
        (5, contained::play),
        (6, alone::without_central),
        (7, alone::without_agent),
        (8, alone::rebooted),
        (9, attacked::play),
        (10, meshed::play),
    ];
    let mut held = true;
    for (_, scene) in scenes.iter().filter(|(number, _)| *number <= until) {
        held &= scene(stage)?;
    }
    Ok(held)
}

/// Says how to look around while the plant stays up.
fn stay(lab: &Lab, screen: Screen, result: &Result<bool>) {
    if let Err(error) = result {
        screen.say(&format!("\nThe acts ended early: {error:#}"));
    }
    let operator = lab.directory().join("central/files/operator/cli.toml");
    let tool = crate::central::program("hedgerow").unwrap_or_else(|_| "hedgerow".to_owned());
    screen.say(&format!(
        "\nThe plant stays up. Look around, from another terminal, as root:\n\n    \
         alias hedgerow='ip netns exec {central} {tool} --config {operator}'\n    \
         hedgerow status\n    \
         hedgerow device list\n    \
         hedgerow policy show\n    \
         hedgerow explain sensor-1.s1 collector.s1 mqtts\n    \
         hedgerow device quarantine camera.s1\n    \
         hedgerow device release camera.s1\n    \
         ip netns exec hgd-scada mbpoll -m tcp -1 -t 4 -r 5 plc-1.s1.hedgerow.internal\n    \
         ip netns exec hgd-contractor ping plc-2.s2.hedgerow.internal\n    \
         ip netns exec hgd-nvr nft list table inet hedgerow\n\n\
         Ctrl-C removes everything.",
        central = plant::CENTRAL,
        operator = operator.display(),
    ));
}
