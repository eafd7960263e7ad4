//! The demonstration: nine acts in one plant.

mod before;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

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
            result
        })
    };
    let interrupted = wait(&ended, options)?;
    if interrupted && !ended.load(Ordering::SeqCst) {
        screen.say("\nInterrupted: removing the plant.");
        lab.close();
        return Ok(false);
    }
    screen.say("\nRemoving the plant.");
    let result = stage
        .join()
        .map_err(|_panic| anyhow::anyhow!("the stage fell down"));
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
    let _ = &mut held;
    let _ = options;
    Ok(held)
}
