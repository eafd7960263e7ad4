//! A fleet of simulated agents: how much a controller needs for them, and how fast it is.

pub(crate) mod device;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hedgerow_identity::enroll::Token;
use hedgerow_model::id::Revision;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;

use self::device::{Device, News};
use crate::central::Central;
use crate::lab::Lab;
use crate::plant::{CENTRAL, CENTRAL_ADDRESS, CENTRAL_PORT};
use crate::screen::Screen;
use crate::{clock, matrix, plant, process};

/// Enrollments at the same time.
const ENROLL_AT_ONCE: usize = 64;
/// News of one agent that nobody has counted yet; beyond it the agents wait.
const NEWS_PER_AGENT_MAX: usize = 8;
/// How long a fleet may take for one thing.
const PATIENCE: Duration = Duration::from_secs(900);
const ROLES: [&str; 8] = [
    "sensor",
    "collector",
    "camera",
    "nvr",
    "scada",
    "plc",
    "ops",
    "contractor",
];
const POLICY: &str = include_str!("../../../examples/plant.yaml");

/// Measures a controller with `agents` simulated ones.
///
/// # Errors
///
/// When a program fails or the fleet does not settle in time.
pub(crate) fn run(screen: Screen, agents: usize, json: bool) -> Result<bool> {
    allow_descriptors(agents)?;
    let lab = Lab::open("fleet")?;
    lab.wipe()?;
    lab.namespace(CENTRAL)?;
    // Everything stays in one namespace: what is measured is the controller, not the wires.
    let address = format!("{CENTRAL_ADDRESS}/32");
    plant::in_namespace(CENTRAL, &["ip", "address", "add", &address, "dev", "lo"])?;
    plant::in_namespace(
        CENTRAL,
        &["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000"],
    )?;
    plant::in_namespace(CENTRAL, &["sysctl", "-qw", "net.core.somaxconn=8192"])?;
    screen.say("Starting a controller.");
    let central = Central::found(&lab)?;
    central.apply(POLICY)?;
    let tokens = tokens(&central, agents)?;
    let own = matrix::own_program()?;
    let order = json!({"agents": agents, "tokens": tokens}).to_string();
    let file = lab.path("fleet/order.json")?;
    fs::write(&file, order)?;
    let inside = format!("{}:{}", central.pid()?, file.display());
    screen.say(&format!("Enrolling {agents} devices."));
    // The fleet itself runs where the controller can be reached.
    let mut words = vec![
        "ip",
        "netns",
        "exec",
        CENTRAL,
        &own,
        "fleet-inside",
        &inside,
    ];
    words.extend(json.then_some("--json"));
    let status = process::command(&words)?.status()?;
    lab.close();
    Ok(status.success())
}

/// Makes one token per role, good for its share of the fleet.
fn tokens(central: &Central<'_>, agents: usize) -> Result<Vec<String>> {
    let share = agents.div_ceil(ROLES.len());
    ROLES
        .iter()
        .map(|role| {
            let made = central.post(
                "tokens",
                &json!({"site": "s1", "labels": {"role": role}, "ttl_secs": 86_400, "count": share}),
            )?;
            let text = made.get("token").and_then(Value::as_str);
            Ok(text.with_context(|| format!("no token in {made}"))?.to_owned())
        })
        .collect()
}

/// Raises the limit of open files as far as this machine lets us; too low a limit is an error.
fn allow_descriptors(agents: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = u64::try_from(agents)?.saturating_mul(3) / 2 + 1000;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|n| n >= wanted) {
        return Ok(());
    }
    let maximum = now.maximum.map(|m| m.max(wanted));
    let limit = Rlimit {
        current: Some(wanted),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).with_context(|| {
        format!(
            "{agents} agents need {wanted} open files: raise the limit, e.g. ulimit -n {wanted}"
        )
    })
}

/// The part that runs inside of the controller's namespace.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn inside(screen: Screen, order: &str) -> Result<bool> {
    let (pid, file) = order.split_once(':').context("pid:file")?;
    let order: Value = serde_json::from_slice(&fs::read(file)?)?;
    let agents = order
        .get("agents")
        .and_then(Value::as_u64)
        .context("agents")?;
    let tokens: Vec<String> =
        serde_json::from_value(order.get("tokens").context("tokens")?.clone())?;
    let controller = Controller { pid: pid.parse()? };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(
        screen,
        controller,
        usize::try_from(agents)?,
        &tokens,
    ))?;
    Ok(true)
}

async fn measure(
    screen: Screen,
    controller: Controller,
    agents: usize,
    tokens: &[String],
) -> Result<()> {
    let to = SocketAddr::from((CENTRAL_ADDRESS, CENTRAL_PORT));
    let before = controller.look()?;
    let start = clock::now();
    let mut devices = enroll(to, agents, tokens).await?;
    let enrolled = clock::ms_since(start);
    let after = controller.look()?;
    report(screen, "enroll", agents, enrolled, before, after);

    devices.iter_mut().for_each(Device::forget);
    let (sender, mut news) = channel(agents.max(1) * NEWS_PER_AGENT_MAX);
    let before = controller.look()?;
    let start = clock::now();
    for device in devices {
        tokio::spawn(device.run(to, start, sender.clone()));
    }
    let revision = all_verified(&mut news, agents, None).await?;
    let connected = clock::ms_since(start);
    let after = controller.look()?;
    report(
        screen,
        "connect from cold",
        agents,
        connected,
        before,
        after,
    );

    // A quiet minute would hide nothing: pings are due every 30 s.
    let before = controller.look()?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    report(
        screen,
        "idle for 30 s",
        agents,
        30_000.0,
        before,
        controller.look()?,
    );

    screen.say("Waiting for a policy change: the fleet's controller applies one.");
    let before = controller.look()?;
    let start = clock::now();
    apply().await?;
    all_verified(&mut news, agents, Some(revision)).await?;
    let verified = clock::ms_since(start);
    report(
        screen,
        "apply to the last acknowledgement",
        agents,
        verified,
        before,
        controller.look()?,
    );
    Ok(())
}

/// Applies a policy in which one rule differs.
async fn apply() -> Result<()> {
    let changed = POLICY.replace("8 Mbit/s", "9 Mbit/s");
    tokio::task::spawn_blocking(move || {
        let lab = fs::canonicalize(format!("{}/fleet", crate::lab::HOME))?;
        Central::apply_from(&lab.join("central/files"), &changed)
    })
    .await??;
    Ok(())
}

async fn enroll(to: SocketAddr, agents: usize, tokens: &[String]) -> Result<Vec<Device>> {
    let gate = Arc::new(Semaphore::new(ENROLL_AT_ONCE));
    let tokens: Vec<Arc<Token>> = tokens
        .iter()
        .map(|text| Ok(Arc::new(Token::parse(text)?)))
        .collect::<Result<_>>()?;
    let mut set: JoinSet<Result<Device>> = JoinSet::new();
    for i in 0..agents {
        let gate = Arc::clone(&gate);
        let token = Arc::clone(tokens.get(i % tokens.len()).context("no token")?);
        set.spawn(async move {
            let _permit = gate.acquire().await?;
            Device::enroll(to, &token, i).await
        });
    }
    let mut devices = Vec::with_capacity(agents);
    while let Some(device) = set.join_next().await {
        devices.push(device??);
    }
    Ok(devices)
}

/// Waits until every device has verified the same revision, newer than `beyond`.
async fn all_verified(
    news: &mut Receiver<News>,
    agents: usize,
    beyond: Option<Revision>,
) -> Result<Revision> {
    let (mut verified, mut lost, mut busy) = (0usize, 0usize, 0usize);
    let mut newest = Revision::default();
    loop {
        let next = tokio::time::timeout(PATIENCE, news.recv()).await;
        match next {
            Ok(Some(News::Verified(revision))) if Some(revision) > beyond => {
                if revision > newest {
                    newest = revision;
                    verified = 0;
                }
                verified += usize::from(revision == newest);
            }
            Ok(Some(News::Lost)) => lost += 1,
            Ok(Some(News::Busy)) => busy += 1,
            Ok(Some(News::Verified(_) | News::Welcomed)) => {}
            Ok(None) => bail!("the fleet is gone"),
            Err(_) => bail!("{verified} of {agents} verified, {lost} lost, {busy} busy"),
        }
        if verified >= agents {
            return Ok(newest);
        }
    }
}

/// The controller's process, as the kernel sees it.
#[derive(Debug, Clone, Copy)]
struct Controller {
    pid: u32,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    cpu_ms: u64,
    /// What the simulated agents themselves used, on the same machine.
    fleet_cpu_ms: u64,
    rss_kib: u64,
    peak_kib: u64,
}

impl Controller {
    fn look(self) -> Result<Look> {
        let pid = self.pid;
        let (rss_kib, peak_kib) = process::resident_kib(pid)?;
        Ok(Look {
            at: clock::now(),
            cpu_ms: cpu_ms(&pid.to_string())?,
            fleet_cpu_ms: cpu_ms("self")?,
            rss_kib,
            peak_kib,
        })
    }
}

/// Returns the time that a process has computed so far.
fn cpu_ms(process: &str) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a process")?;
    let fields = rest.split_whitespace().skip(11).take(2);
    // User and system time, in hundredths of a second.
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks * 10)
}

fn report(screen: Screen, what: &str, agents: usize, ms: f64, before: Look, after: Look) {
    let cpu = after.cpu_ms.saturating_sub(before.cpu_ms);
    let fleet_cpu = after.fleet_cpu_ms.saturating_sub(before.fleet_cpu_ms);
    let (rss, peak) = (after.rss_kib, after.peak_kib);
    screen.say(&format!(
        "  {what}: {ms:.0} ms; controller: {cpu} ms CPU, {rss} KiB resident (peak {peak} KiB), {} KiB more; \
         simulated agents: {fleet_cpu} ms CPU",
        rss.saturating_sub(before.rss_kib),
    ));
    let wall = after.at.duration_since(before.at).as_secs_f64();
    screen.object(&json!({
        "what": what, "agents": agents, "ms": ms, "control_cpu_ms": cpu,
        "fleet_cpu_ms": fleet_cpu, "control_rss_kib": rss,
        "control_peak_kib": peak, "control_rss_growth_kib": rss.saturating_sub(before.rss_kib),
        "wall_seconds": wall,
    }));
}
