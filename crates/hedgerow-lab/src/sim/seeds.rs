//! Many seeds, on all cores: progress, the time left, and the command that repeats a failure.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use hedgerow_model::Mono;

use super::figures::Figures;
use super::{Broken, Outcome, Shape, run};
use crate::clock;
use crate::screen::Screen;

/// Which seeds to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Order {
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Devices of each plant.
    #[arg(long, default_value_t = 24)]
    nodes: usize,
    /// Simulated minutes.
    #[arg(long, default_value_t = 16)]
    minutes: u64,
    /// The commit to name when a seed fails.
    #[arg(long, default_value = "COMMIT", hide = true)]
    commit: String,
    /// Breaks a part on purpose: the run must find that.
    #[arg(long = "break", value_enum)]
    broken: Option<Broken>,
    /// Writes one JSON object per seed.
    #[arg(long)]
    json: bool,
}

impl Order {
    /// Runs them; returns whether all was done, and clean.
    ///
    /// # Errors
    ///
    /// When a plant cannot be made.
    pub(crate) fn run(&self) -> Result<bool> {
        let first = Shape {
            seed: self.from,
            nodes: self.nodes,
            length: Duration::from_secs(self.minutes * 60),
            broken: self.broken,
        };
        many(Screen::of(self.json), first, self.seeds, &self.commit)
    }
}

/// What became of all seeds so far.
struct Tally<'a> {
    screen: Screen,
    commit: &'a str,
    seeds: u64,
    start: Instant,
    done: u64,
    failed: Vec<u64>,
    figures: Figures,
}

/// Runs some seeds; a failure prints the command that repeats it. Ctrl-C ends it with what was done so far.
///
/// # Errors
///
/// When a plant cannot be made.
fn many(screen: Screen, first: Shape, seeds: u64, commit: &str) -> Result<bool> {
    let stop = AtomicBool::new(false);
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut tally = Tally {
        screen,
        commit,
        seeds,
        start: clock::now(),
        done: 0,
        failed: Vec::new(),
        figures: Figures::default(),
    };
    screen.say(&format!(
        "{seeds} seeds from {}, {} devices for {} min each; Ctrl-C ends with what was done",
        first.seed,
        first.nodes,
        first.length.as_secs() / 60
    ));
    let interrupted = interrupt()?;
    std::thread::scope(|scope| {
        let (results, outcomes) = mpsc::channel();
        for _ in 0..cores.min(usize::try_from(seeds).unwrap_or(cores)) {
            let results = results.clone();
            let (stop, next) = (&stop, &next);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = first.seed.saturating_add(number);
                    let shape = Shape { seed, ..first };
                    let outcome = one(screen, shape, seeds == 1, stop);
                    if results.send(outcome).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        let result = loop {
            if interrupted.try_recv().is_ok() {
                stop.store(true, Ordering::Relaxed);
            }
            match outcomes.recv_timeout(LOOKS_EVERY) {
                Ok(Ok(Some(outcome))) => tally.add(&outcome),
                Ok(Ok(None)) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Err(error)) => break Err(error),
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
            }
        };
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(tally.end())
}

/// How often it is looked whether Ctrl-C was pressed.
const LOOKS_EVERY: Duration = Duration::from_millis(200);

/// Runs one seed on this thread; `None` when it was stopped.
fn one(screen: Screen, shape: Shape, alone: bool, stop: &AtomicBool) -> Result<Option<Outcome>> {
    run(shape, |at| {
        let mins = at.since(Mono::ZERO).as_secs() / 60;
        if alone && mins.is_multiple_of(10) {
            screen.say(&format!("  seed {}: {mins} min simulated", shape.seed));
        }
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
}

/// Returns where a message comes when somebody presses Ctrl-C.
fn interrupt() -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        let pressed = runtime.block_on(tokio::signal::ctrl_c());
        if pressed.is_ok() {
            // The run may have ended meanwhile.
            sender.send(()).unwrap_or_default();
        }
    });
    Ok(receiver)
}

impl Tally<'_> {
    fn add(&mut self, outcome: &Outcome) {
        self.done += 1;
        self.figures.add(&outcome.figures);
        let (shape, seed) = (outcome.shape, outcome.shape.seed);
        let secs = clock::ms_since(self.start) / 1000.0;
        self.screen.say(&format!(
            "[{}/{}] seed {seed}: {}; {} events, {} datagrams, {} packets, at most {} peers; trace {:016x}; {} left",
            self.done,
            self.seeds,
            if outcome.found == 0 { "clean" } else { "FAILED" },
            outcome.events,
            outcome.datagrams,
            outcome.packets,
            outcome.peers_most,
            outcome.trace,
            left(secs, self.done, self.seeds),
        ));
        if self.seeds == 1 || outcome.found > 0 {
            outcome.tell(self.screen);
        }
        self.screen.object(&serde_json::json!({
            "seed": seed, "nodes": shape.nodes, "found": outcome.found, "findings": outcome.findings,
            "events": outcome.events, "trace": format!("{:016x}", outcome.trace),
            "failover": outcome.figures.failover.json(), "urgent": outcome.figures.urgent.json(),
        }));
        if outcome.found > 0 {
            self.failed.push(seed);
            outcome
                .findings
                .iter()
                .for_each(|f| self.screen.say(&format!("  {f}")));
            self.screen.say(&format!(
                "  {} findings; again: git checkout {} && cargo xtask sim --seeds 1 --from {seed} --nodes {} --minutes {}",
                outcome.found,
                self.commit,
                shape.nodes,
                shape.length.as_secs() / 60
            ));
        }
    }

    /// Says what all came to; returns whether all was done, and clean.
    fn end(&self) -> bool {
        if self.seeds > 1 {
            self.screen.say(&self.figures.text());
        }
        self.screen.say(&format!(
            "{} of {} seeds in {:.0} s, {} failed{}{}",
            self.done,
            self.seeds,
            clock::ms_since(self.start) / 1000.0,
            self.failed.len(),
            if self.failed.is_empty() { "" } else { ": " },
            self.failed
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        ));
        self.done == self.seeds && self.failed.is_empty()
    }
}

/// Says how long the rest takes if it goes on like this.
fn left(secs: f64, done: u64, seeds: u64) -> String {
    let so_far = Duration::from_secs_f64(secs.max(0.0));
    let rest = u32::try_from(seeds.saturating_sub(done)).unwrap_or(u32::MAX);
    let each = so_far / u32::try_from(done).unwrap_or(u32::MAX).max(1);
    let rest = each.saturating_mul(rest).as_secs();
    format!("about {} min {} s", rest / 60, rest % 60)
}
