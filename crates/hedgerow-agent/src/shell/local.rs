//! The control socket: one line of JSON asks, one line answers. For root on this machine alone.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hedgerow_linux::disk;
use hedgerow_model::Fault;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::run::Input;
use crate::config::Config;
use crate::failure::Failure;

/// Longest request and answer, in bytes.
const REQUEST_BYTES_MAX: u64 = 4096;
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// How long an answer may take; leaving asks the controller.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long a connection is served until its answer; the longest measurement takes 20 s.
const SERVED_WITHIN: Duration = Duration::from_secs(45);
/// How soon accepting is tried again after it failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long a connection may be held after its answer.
const HOLD_MAX: Duration = Duration::from_secs(3700);
/// Connections served at once; a further one waits in the kernel.
const CONNECTIONS_MAX: usize = 8;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How things stand.
    Status,
    /// Take table and tunnel away and end.
    Off,
    /// Take a signed list from a file.
    Import {
        /// Which.
        file: std::path::PathBuf,
    },
    /// Tell the controller that the device leaves, then as `Off`.
    Leave {
        /// Leave also when the controller cannot be told.
        force: bool,
    },
    /// Ask a peer's agent for an answer inside the tunnel.
    Ping {
        /// Which.
        peer: String,
    },
    /// Measure throughput to a peer's agent and back inside the tunnel.
    Bench {
        /// Which.
        peer: String,
        /// For how long each way.
        seconds: u32,
    },
    /// Packets are copied as long as the connection stays; its next line says how it went.
    Capture {
        /// Of whom; everybody when absent.
        peer: Option<String>,
        /// For how long at most.
        seconds: u64,
    },
    /// That ended.
    CaptureEnded {
        /// Of whom.
        peer: Option<String>,
        /// Packets, bytes, dropped, where the command could say so.
        report: Option<serde_json::Value>,
    },
}

impl Request {
    /// What follows when whoever asked is done with what the answer gave it.
    fn sequel(&self, report: Option<serde_json::Value>) -> Option<Self> {
        match self {
            Self::Capture { peer, .. } => Some(Self::CaptureEnded {
                peer: peer.clone(),
                report,
            }),
            Self::Status
            | Self::Off
            | Self::Import { .. }
            | Self::Leave { .. }
            | Self::Ping { .. }
            | Self::Bench { .. }
            | Self::CaptureEnded { .. } => None,
        }
    }

    /// How long the answer may take.
    fn patience(&self) -> Duration {
        match self {
            Self::Bench { seconds, .. } => {
                ANSWER_WITHIN + 2 * Duration::from_secs(u64::from(*seconds))
            }
            Self::Status
            | Self::Off
            | Self::Import { .. }
            | Self::Leave { .. }
            | Self::Ping { .. }
            | Self::Capture { .. }
            | Self::CaptureEnded { .. } => ANSWER_WITHIN,
        }
    }
}

/// Opens the socket and serves it until the agent ends.
///
/// # Errors
///
/// When the socket cannot be made.
pub(crate) fn serve(config: &Config, inputs: mpsc::Sender<Input>) -> Result<(), Failure> {
    disk::create_private_dir(&config.run)?;
    let path = config.socket();
    disk::remove(&path)?;
    let failed = |e: std::io::Error| {
        Failure::environment(
            format!("no control socket at {}: {e}", path.display()),
            "set paths.run to a directory on a local file system, with a short path",
        )
    };
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
    tokio::spawn(async move {
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let stream = accept(|| listener.accept()).await.0;
            let inputs = inputs.clone();
            tokio::spawn(async move {
                let _place = place;
                let served = answer(stream, &inputs);
                // Who asks and goes away gets no answer.
                let served = tokio::time::timeout(SERVED_WITHIN, served).await;
                if let Ok(Ok(Some((request, reader)))) = served {
                    follow(&request, reader, &inputs).await;
                }
            });
        }
    });
    Ok(())
}

/// Accepts the next connection. A failure, as when no descriptors are left, is no reason to stop, and
/// none to keep the processor busy: there is a pause before the next try.
async fn accept<T, F: Future<Output = std::io::Result<T>>>(mut next: impl FnMut() -> F) -> T {
    let mut is_said = false;
    loop {
        match next().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::warn!(%error, "the control socket accepts no connection");
                }
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

type Reader = BufReader<tokio::io::Take<tokio::net::unix::OwnedReadHalf>>;

/// Answers one request. Returns it with its connection when that has a sequel.
async fn answer(
    stream: UnixStream,
    inputs: &mpsc::Sender<Input>,
) -> std::io::Result<Option<(Request, Reader)>> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES_MAX));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let mut sequel = None;
    let value = match serde_json::from_str::<Request>(&line) {
        Err(e) => serde_json::json!({ "error": format!("not a request: {e}") }),
        Ok(request) => {
            let (reply, receiver) = oneshot::channel();
            let asked = request.clone();
            if inputs.send(Input::Local(request, reply)).await.is_err() {
                return Ok(None);
            }
            match receiver.await {
                Ok(value) => {
                    let has_sequel = value.get("error").is_none() && asked.sequel(None).is_some();
                    sequel = has_sequel.then_some((asked, reader));
                    value
                }
                Err(_) => serde_json::json!({ "error": "the agent ended" }),
            }
        }
    };
    writer.write_all(format!("{value}\n").as_bytes()).await?;
    writer.shutdown().await?;
    Ok(sequel)
}

/// Waits until whoever asked is done, or gone, and says so to the loop.
async fn follow(request: &Request, mut reader: Reader, inputs: &mpsc::Sender<Input>) {
    let mut line = String::new();
    // A connection that breaks is one that ended.
    drop(tokio::time::timeout(HOLD_MAX, reader.read_line(&mut line)).await);
    if let Some(sequel) = request.sequel(serde_json::from_str(&line).ok()) {
        let (reply, _) = oneshot::channel();
        // Nobody listens any more only when the agent ends.
        drop(inputs.send(Input::Local(sequel, reply)).await);
    }
}

/// Asks the running agent; `None` when none runs.
///
/// # Errors
///
/// When one runs and does not answer, or refuses.
pub(crate) async fn ask(
    config: &Config,
    request: &Request,
) -> Result<Option<serde_json::Value>, Failure> {
    Ok(exchange(config, request).await?.map(|(value, _)| value))
}

/// A connection that is kept after its answer.
pub(crate) struct Held(UnixStream);

impl Held {
    /// Says how it went, and ends it.
    pub(crate) async fn end(mut self, report: &serde_json::Value) {
        // An agent that has ended records nothing more.
        drop(self.0.write_all(format!("{report}\n").as_bytes()).await);
    }
}

/// Asks the running agent for something that lasts as long as the connection.
///
/// # Errors
///
/// As [`ask`], and when no agent runs.
pub(crate) async fn hold(
    config: &Config,
    request: &Request,
) -> Result<(serde_json::Value, Held), Failure> {
    let (value, stream) = exchange(config, request)
        .await?
        .ok_or_else(|| nobody(config))?;
    Ok((value, Held(stream)))
}

/// No agent runs.
pub(crate) fn nobody(config: &Config) -> Failure {
    Failure::environment(
        format!("no agent answers at {}", config.socket().display()),
        "start it: `systemctl start hedgerow-agent`, or see `hedgerow-agent check`",
    )
}

async fn exchange(
    config: &Config,
    request: &Request,
) -> Result<Option<(serde_json::Value, UnixStream)>, Failure> {
    let path = config.socket();
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(Failure::operator(
                format!("not permitted to ask the agent at {}", path.display()),
                "run as root",
            ));
        }
        Err(_) => return Ok(None),
    };
    let failed = |text: String| {
        Failure::environment(
            format!("the agent does not answer: {text}"),
            "see its log, and restart it if it hangs",
        )
    };
    let line = serde_json::to_string(request).map_err(|e| failed(e.to_string()))?;
    let exchange = async {
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut text = String::new();
        let mut reader = BufReader::new((&mut stream).take(ANSWER_BYTES_MAX));
        reader.read_line(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(request.patience(), exchange)
        .await
        .map_err(|_elapsed| failed("time is over".to_owned()))?
        .map_err(|e| failed(e.to_string()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| failed(e.to_string()))?;
    let text = |key| value.get(key).and_then(serde_json::Value::as_str);
    match text("error") {
        Some(error) => {
            let is_operators = value.get("exit_code") == Some(&serde_json::json!(1));
            let fault = match is_operators {
                true => Fault::Operator,
                false => Fault::Environment,
            };
            let remedy = text("remedy").unwrap_or("see `hedgerow-agent status`");
            Err(Failure::new(fault, error, remedy))
        }
        None => Ok(Some((value, stream))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_descriptors_pauses_the_control_socket_and_does_not_end_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let clock = crate::shell::clock::Clock::start(None);
        let began = clock.now().mono;
        let mut tries = 0;
        let accepted = runtime.block_on(accept(|| {
            tries += 1;
            std::future::ready(match tries {
                1..=3 => Err(std::io::Error::from_raw_os_error(24)),
                _ => Ok("a connection"),
            })
        }));
        assert_eq!(accepted, "a connection");
        let took = clock.now().mono.since(began);
        assert!(took >= 3 * ACCEPT_AGAIN, "it never spins: {took:?}");
    }
}
