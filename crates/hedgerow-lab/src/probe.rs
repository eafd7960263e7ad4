//! One end of a probe each: `probe` tries connections, `respond` answers them. Both run inside a
//! namespace and speak JSON with the lab.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{clock, process};

/// How many connections of one device are tried at the same time.
const PARALLEL_MAX: usize = 128;

/// What a prober is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// How long a connection may take: longer counts as not reached.
    pub(crate) timeout_ms: u64,
    /// What to try.
    pub(crate) tries: Vec<Try>,
}

/// One connection to try.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Try {
    /// Comes back in the answer.
    pub(crate) id: usize,
    /// To whom.
    pub(crate) address: IpAddr,
    /// `tcp`, `udp` or `ping`.
    pub(crate) protocol: String,
    /// Port; 0 for ping.
    pub(crate) port: u16,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// From the order.
    pub(crate) id: usize,
    /// How it ended.
    pub(crate) end: End,
    /// How long it took, in milliseconds.
    pub(crate) ms: f64,
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// There was an answer.
    Reached,
    /// The kernel said no at once: refused, unreachable, not permitted.
    Refused,
    /// Nothing came within the timeout.
    TimedOut,
}

/// Reads an order from standard input, carries it out and writes the answers.
///
/// # Errors
///
/// When the order cannot be read.
pub(crate) fn probe() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let order: Order = serde_json::from_str(&text).context("cannot read the order")?;
    let answers = runtime()?.block_on(carry_out(order));
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &answers)?;
    out.flush()?;
    Ok(())
}

async fn carry_out(order: Order) -> Vec<Answer> {
    let limit = Duration::from_millis(order.timeout_ms);
    let gate = Arc::new(Semaphore::new(PARALLEL_MAX));
    let mut set = JoinSet::new();
    for one in order.tries {
        let gate = Arc::clone(&gate);
        set.spawn(async move {
            let _permit = gate.acquire().await;
            let start = clock::now();
            let end = match one.protocol.as_str() {
                "tcp" => tcp(&one, limit).await,
                "udp" => udp(&one, limit).await,
                _ => ping(&one, limit).await,
            };
            Answer {
                id: one.id,
                end,
                ms: clock::ms_since(start),
            }
        });
    }
    set.join_all().await
}

async fn tcp(one: &Try, limit: Duration) -> End {
    let target = SocketAddr::new(one.address, one.port);
    match tokio::time::timeout(limit, TcpStream::connect(target)).await {
        Ok(Ok(_stream)) => End::Reached,
        Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => End::TimedOut,
        Ok(Err(_)) => End::Refused,
        Err(_) => End::TimedOut,
    }
}

async fn udp(one: &Try, limit: Duration) -> End {
    let exchange = async {
        let any: IpAddr = if one.address.is_ipv4() {
            [0; 4].into()
        } else {
            [0u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect((one.address, one.port)).await?;
        let mut answer = [0u8; 64];
        loop {
            socket.send(b"<14>probe: are you there?").await?;
            // Asked again, for a datagram may get lost where a TCP segment would be sent again.
            let wait = Duration::from_millis(700);
            if let Ok(received) = tokio::time::timeout(wait, socket.recv(&mut answer)).await {
                return received;
            }
        }
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(Ok(_)) => End::Reached,
        Ok(Err(_)) => End::Refused,
        Err(_) => End::TimedOut,
    }
}

/// Runs `ping`: refused when it ends early without an answer.
async fn ping(one: &Try, limit: Duration) -> End {
    let address = one.address.to_string();
    let seconds = limit.as_secs().max(1).to_string();
    // Asks every half second until one answer, an error or the deadline.
    let argv = [
        "ping", "-n", "-q", "-c", "1", "-i", "0.5", "-w", &seconds, &address,
    ];
    let Ok(command) = process::command(&argv) else {
        return End::Refused;
    };
    let start = clock::now();
    let mut command = tokio::process::Command::from(command);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let text = match tokio::time::timeout(limit + Duration::from_secs(2), command.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    let answered = text
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"))
        .is_some_and(|n| n != "0");
    match answered {
        true => End::Reached,
        false if clock::now().duration_since(start) < limit / 2 => End::Refused,
        false => End::TimedOut,
    }
}

/// Answers on ports until killed: TCP with a line, UDP with what came.
///
/// # Errors
///
/// When a port is taken.
pub(crate) fn respond(tcp: &[u16], udp: &[u16]) -> Result<()> {
    runtime()?.block_on(async {
        let mut set: JoinSet<Result<()>> = JoinSet::new();
        for port in tcp {
            let listener = TcpListener::bind(("::", *port))
                .await
                .with_context(|| format!("tcp/{port}"))?;
            set.spawn(answer_tcp(listener));
        }
        for port in udp {
            let socket = UdpSocket::bind(("::", *port))
                .await
                .with_context(|| format!("udp/{port}"))?;
            set.spawn(answer_udp(socket));
        }
        while let Some(ended) = set.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn answer_tcp(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, from) = listener.accept().await?;
        tokio::spawn(async move {
            let mut scratch = [0u8; 512];
            let greeting = format!("lab responder to {from}\n");
            if stream.write_all(greeting.as_bytes()).await.is_ok() {
                // Until the other end closes, so that nobody sees a reset.
                while matches!(stream.read(&mut scratch).await, Ok(n) if n > 0) {}
            }
        });
    }
}

async fn answer_udp(socket: UdpSocket) -> Result<()> {
    let mut datagram = [0u8; 1500];
    loop {
        // An ICMP error for an earlier answer shows up here and concerns nobody.
        if let Ok((n, from)) = socket.recv_from(&mut datagram).await
            && let Some(content) = datagram.get(..n.min(64))
        {
            drop(socket.send_to(content, from).await);
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}
