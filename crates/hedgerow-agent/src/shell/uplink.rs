//! One connection to a controller: a task that moves bytes, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use super::enroll;
use super::run::Input;
use super::tls::{self, ConnectError};

/// Frames handed over and not yet written: few, so that an urgent one overtakes the rest.
const FRAMES_MAX: usize = 2;
/// How long a frame may take to leave.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;

/// What became of a connection.
#[derive(Debug)]
pub(crate) enum Report {
    /// It stands, from this address of ours, with this certificate of the server.
    Connected(Option<SocketAddr>, Vec<u8>),
    /// Bytes came.
    Bytes(Vec<u8>),
    /// A frame was written: there is room for another.
    Room,
    /// It does not stand, because we do not know the server's issuer; this is its chain of trust
    /// manifests.
    Manifests(Vec<Vec<u8>>),
    /// It ended, or never stood.
    Closed(String),
}

/// A connection under way. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Connection {
    frames: mpsc::Sender<Vec<u8>>,
    task: tokio::task::JoinHandle<()>,
}

impl Connection {
    /// Begins to connect; reports carry `serial`.
    pub(crate) fn begin(
        endpoint: String,
        config: Arc<ClientConfig>,
        inputs: mpsc::Sender<Input>,
        serial: u64,
    ) -> Self {
        let (frames, receiver) = mpsc::channel(FRAMES_MAX);
        let task = tokio::spawn(async move {
            let reason = match tls::connect(&endpoint, config).await {
                Ok(stream) => carry(stream, receiver, &inputs, serial).await,
                Err(ConnectError::Failed(reason)) => reason,
                Err(ConnectError::UnknownIssuer(reason)) => {
                    ask_for_manifests(&endpoint, &inputs, serial).await;
                    reason
                }
            };
            let report = Input::Uplink(serial, Report::Closed(reason));
            // Nobody listens any more only when the agent ends.
            drop(inputs.send(report).await);
        });
        Self { frames, task }
    }

    /// Hands over frames from `next` while there is room.
    pub(crate) fn fill(&self, mut next: impl FnMut() -> Option<Vec<u8>>) {
        while let Ok(room) = self.frames.try_reserve() {
            match next() {
                Some(frame) => room.send(frame),
                None => return,
            }
        }
    }

    /// Ends the connection after what was handed over is written.
    pub(crate) fn finish(self) -> tokio::task::JoinHandle<()> {
        self.task
    }
}

/// A controller whose issuer we do not know may have been given a new one while we were away.
async fn ask_for_manifests(endpoint: &str, inputs: &mpsc::Sender<Input>, serial: u64) {
    match enroll::manifests(endpoint).await {
        Ok(chain) => {
            // Nobody listens any more only when the agent ends.
            drop(
                inputs
                    .send(Input::Uplink(serial, Report::Manifests(chain)))
                    .await,
            );
        }
        Err(error) => tracing::info!(endpoint, error, "no manifests of an unknown issuer"),
    }
}

/// Moves bytes until the connection ends; returns why.
async fn carry(
    stream: TlsStream<TcpStream>,
    mut frames: mpsc::Receiver<Vec<u8>>,
    inputs: &mpsc::Sender<Input>,
    serial: u64,
) -> String {
    let local = stream.get_ref().0.local_addr().ok();
    let report = |report| inputs.send(Input::Uplink(serial, report));
    let certificates = stream.get_ref().1.peer_certificates();
    let leaf = certificates
        .and_then(|chain| chain.first())
        .map_or_else(Vec::new, |leaf| leaf.to_vec());
    if report(Report::Connected(local, leaf)).await.is_err() {
        return String::new();
    }
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            got = reader.read(&mut buffer) => match got {
                Ok(0) => return "the controller closed the connection".to_owned(),
                Ok(n) => {
                    let bytes = buffer.get(..n).unwrap_or_default().to_vec();
                    if report(Report::Bytes(bytes)).await.is_err() {
                        return String::new();
                    }
                }
                Err(e) => return e.to_string(),
            },
            frame = frames.recv() => {
                let Some(frame) = frame else {
                    // A polite end is a courtesy; the other side copes without.
                    drop(writer.shutdown().await);
                    return "closed by us".to_owned();
                };
                let written = async {
                    writer.write_all(&frame).await?;
                    writer.flush().await
                };
                match tokio::time::timeout(WRITE_WITHIN, written).await {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => return e.to_string(),
                    Err(_elapsed) => return "the controller takes nothing".to_owned(),
                }
                if report(Report::Room).await.is_err() {
                    return String::new();
                }
            }
        }
    }
}
