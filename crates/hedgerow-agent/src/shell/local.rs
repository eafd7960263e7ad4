//! The control socket: one line of JSON asks, one line answers. For root on this machine alone.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hedgerow_linux::disk;
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
/// How soon accepting is tried again after it failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
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
    /// Tell the controller that the device leaves, then as `Off`.
    Leave {
        /// Leave also when the controller cannot be told.
        force: bool,
    },
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
                let served = answer(stream, inputs);
                // Who asks and goes away gets no answer.
                drop(tokio::time::timeout(ANSWER_WITHIN * 2, served).await);
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

async fn answer(stream: UnixStream, inputs: mpsc::Sender<Input>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(REQUEST_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    let value = match serde_json::from_str::<Request>(&line) {
        Err(e) => serde_json::json!({ "error": format!("not a request: {e}") }),
        Ok(request) => {
            let (reply, receiver) = oneshot::channel();
            if inputs.send(Input::Local(request, reply)).await.is_err() {
                return Ok(());
            }
            match receiver.await {
                Ok(value) => value,
                Err(_) => serde_json::json!({ "error": "the agent ended" }),
            }
        }
    };
    writer.write_all(format!("{value}\n").as_bytes()).await?;
    writer.shutdown().await
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
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_string(&mut text)
            .await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(ANSWER_WITHIN, exchange)
        .await
        .map_err(|_elapsed| failed("time is over".to_owned()))?
        .map_err(|e| failed(e.to_string()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| failed(e.to_string()))?;
    match value.get("error").and_then(serde_json::Value::as_str) {
        Some(error) => Err(Failure::environment(error, "see `hedgerow-agent status`")),
        None => Ok(Some(value)),
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
