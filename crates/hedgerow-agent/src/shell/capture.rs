//! `hedgerow-agent capture`: inner packets of a peer into a file that tcpdump and Wireshark read.
//!
//! The copies come from the kernel, so the tunnel does not know of it. The agent does: it says whose
//! addresses they are, and records who began and how it ended.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow_linux::capture::{Capture, CaptureError, PACKET_BYTES_MAX};
use hedgerow_model::event::{Event, EventKind};
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;

use super::clock;
use super::local::{self, Request};
use super::run::Daemon;
use crate::config::Config;
use crate::failure::{Failure, chain};

/// Captures at once; one more is refused, so that `status` and `off` always find a place.
const CAPTURES_MAX: usize = 2;
/// Packets taken in one go before signals and time are looked at.
const BATCH: usize = 256;
/// Links without a header: the packet begins with its IP header.
const LINKTYPE_RAW: u32 = 101;
const FILE_HEADER_BYTES: u64 = 24;
const PACKET_HEADER_BYTES: u64 = 16;

/// What to capture, and when to stop.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Of whom; everybody when absent.
    pub(crate) peer: Option<String>,
    /// Where to; `-` is standard output.
    pub(crate) file: PathBuf,
    /// After how many packets.
    pub(crate) count: u64,
    /// After how long.
    pub(crate) within: Duration,
    /// After how many bytes of the file.
    pub(crate) bytes_max: u64,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    packets: u64,
    bytes: u64,
    dropped: u64,
    ended: &'static str,
}

impl Summary {
    /// Writes it for people.
    pub(crate) fn text(&self) -> String {
        let Self {
            packets,
            bytes,
            dropped,
            ended,
        } = self;
        let dropped = match dropped {
            0 => String::new(),
            n => format!(", {n} dropped because the file took them too slowly"),
        };
        format!("{packets} packets, {bytes} bytes{dropped}; ended: {ended}")
    }

    /// Writes it for programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "packets": self.packets,
            "bytes": self.bytes,
            "dropped": self.dropped,
            "ended": self.ended,
        })
    }
}

/// A file in the format that everything reads (libpcap 2.4, microseconds).
struct Pcap<W: Write> {
    out: W,
    bytes: u64,
}

impl<W: Write> Pcap<W> {
    fn begin(mut out: W) -> io::Result<Self> {
        let longest = u32::try_from(PACKET_BYTES_MAX).unwrap_or(u32::MAX);
        out.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
        out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        out.write_all(&longest.to_le_bytes())?;
        out.write_all(&LINKTYPE_RAW.to_le_bytes())?;
        // A reader at the other end of a pipe waits for this.
        out.flush()?;
        let bytes = FILE_HEADER_BYTES;
        Ok(Self { out, bytes })
    }

    fn packet(&mut self, at: Duration, packet: &[u8]) -> io::Result<()> {
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let seconds = u32::try_from(at.as_secs() & 0xffff_ffff).unwrap_or_default();
        for word in [seconds, at.subsec_micros(), length, length] {
            self.out.write_all(&word.to_le_bytes())?;
        }
        self.out.write_all(packet)?;
        self.bytes += PACKET_HEADER_BYTES + u64::from(length);
        Ok(())
    }
}

/// Returns source and destination of a packet.
fn ends(packet: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::from(octets))
    };
    let v6 = |at: usize| {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::from(octets))
    };
    match packet.first()? >> 4 {
        4 => Some([v4(12)?, v4(16)?]),
        6 => Some([v6(8)?, v6(24)?]),
        _ => None,
    }
}

/// Captures until something ends it.
///
/// # Errors
///
/// When the agent does not run or does not know the peer, the file cannot be written, or this is not
/// root.
pub(crate) async fn run(config: &Config, order: &Order) -> Result<Summary, Failure> {
    let capture = Capture::open(&config.interface).map_err(|e| refused(&e))?;
    let out = open(&order.file)?;
    let request = Request::Capture {
        peer: order.peer.clone(),
        seconds: order.within.as_secs(),
    };
    let (answer, held) = local::hold(config, &request).await?;
    let addresses: Option<BTreeSet<IpAddr>> = order.peer.as_ref().map(|_| {
        let list = answer.get("addresses").and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.filter_map(|t| t.parse().ok()).collect()
    });
    let written = record(capture, out, addresses.as_ref(), order).await;
    let summary = written.map_err(|error| {
        Failure::environment(
            format!("cannot go on capturing: {error}"),
            "see whether the disk is full and the agent runs",
        )
    })?;
    held.end(&summary.json()).await;
    Ok(summary)
}

#[expect(
    deprecated,
    reason = "the descriptor is owned by what is registered, which is all that the unsafe successor asks for"
)]
async fn record(
    mut capture: Capture,
    out: Box<dyn Write>,
    addresses: Option<&BTreeSet<IpAddr>>,
    order: &Order,
) -> io::Result<Summary> {
    let mut file = Pcap::begin(out)?;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let (mut packets, mut ended) = (0, None);
    let waiting = AsyncFd::new(capture.as_fd().try_clone_to_owned()?)?;
    let until = tokio::time::sleep(order.within);
    tokio::pin!(until);
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    while ended.is_none() {
        let mut ready = tokio::select! {
            biased;
            _ = interrupt.recv() => { ended = Some("interrupted"); break }
            _ = terminate.recv() => { ended = Some("interrupted"); break }
            () = &mut until => { ended = Some("time is over"); break }
            ready = waiting.readable() => ready?,
        };
        for _ in 0..BATCH {
            let Some(length) = capture.read(&mut buffer)? else {
                ready.clear_ready();
                break;
            };
            let packet = buffer.get(..length).unwrap_or_default();
            let is_wanted = addresses.is_none_or(|wanted| {
                ends(packet).is_some_and(|ends| ends.iter().any(|a| wanted.contains(a)))
            });
            if !is_wanted {
                continue;
            }
            if file.bytes + PACKET_HEADER_BYTES + packet.len() as u64 > order.bytes_max {
                ended = Some("the file is as long as it may be");
                break;
            }
            file.packet(clock::since_epoch(), packet)?;
            packets += 1;
            if packets >= order.count {
                ended = Some("as many packets as wanted");
                break;
            }
        }
        file.out.flush()?;
    }
    file.out.flush()?;
    Ok(Summary {
        packets,
        bytes: file.bytes,
        dropped: capture.dropped(),
        ended: ended.unwrap_or("interrupted"),
    })
}

fn open(path: &Path) -> Result<Box<dyn Write>, Failure> {
    if path == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(Failure::operator(
                "packets are no text for a terminal",
                "name a file, or pipe it: `hedgerow-agent capture NAME -w - | tcpdump -nr -`",
            ));
        }
        return Ok(Box::new(BufWriter::new(io::stdout())));
    }
    // What is inside is nobody else's.
    let opened: io::Result<File> = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    match opened {
        Ok(file) => Ok(Box::new(BufWriter::new(file))),
        Err(error) => Err(Failure::operator(
            format!("cannot write {}: {error}", path.display()),
            "name a file in a folder that is there and takes writes",
        )),
    }
}

fn refused(error: &CaptureError) -> Failure {
    let text = chain(error);
    match error {
        CaptureError::NotPermitted => Failure::operator(text, "use sudo"),
        CaptureError::Link(_) => Failure::environment(
            text,
            "start the agent: `systemctl start hedgerow-agent`; it makes the tunnel's interface",
        ),
        CaptureError::Other { .. } => Failure::environment(text, "see `hedgerow-agent check`"),
    }
}

impl Daemon {
    /// Records that somebody looks at packets; returns whose addresses they are.
    pub(super) fn begin_capture(&mut self, peer: Option<String>, seconds: u64) -> Value {
        if self.captures >= CAPTURES_MAX {
            return json!({
                "error": format!("{CAPTURES_MAX} captures are under way"),
                "remedy": "end one of them, or capture `all` and sort it afterwards",
            });
        }
        let found = match &peer {
            None => None,
            Some(name) => match self.find(name) {
                Ok(found) => Some(found),
                Err(answer) => return answer,
            },
        };
        self.captures += 1;
        let now = self.clock.now();
        let mut event = Event::new(now.wall, EventKind::CaptureStarted)
            .detail("of", peer.as_deref().unwrap_or("all"))
            .detail("seconds_max", seconds);
        if let Some(found) = &found {
            event = event.peer(found.device);
        }
        tracing::info!(
            of = peer.as_deref().unwrap_or("all"),
            "packets are captured"
        );
        self.state.event(event);
        let addresses = found.iter().flat_map(|f| f.addresses.iter());
        json!({ "addresses": addresses.map(|a| a.to_string()).collect::<Vec<_>>() })
    }

    /// Records how it ended; nothing is known when the command was killed.
    pub(super) fn end_capture(&mut self, peer: Option<&str>, report: Option<&Value>) -> Value {
        self.captures = self.captures.saturating_sub(1);
        let now = self.clock.now();
        let mut event =
            Event::new(now.wall, EventKind::CaptureEnded).detail("of", peer.unwrap_or("all"));
        for key in ["packets", "bytes", "dropped"] {
            if let Some(count) = report.and_then(|r| r.get(key)).and_then(Value::as_u64) {
                event = event.detail(key, count);
            }
        }
        self.state.event(event);
        Value::Null
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_header_that_readers_look_for() {
        let mut bytes = Vec::new();
        let mut file = Pcap::begin(&mut bytes).unwrap();
        file.packet(Duration::from_micros(1_800_000_000_000_007), &[0x45, 1, 2])
            .unwrap();
        assert_eq!(file.bytes, 24 + 16 + 3);
        assert_eq!(bytes.len(), 24 + 16 + 3);
        assert_eq!(bytes[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(bytes[16..24], [0xff, 0xff, 0, 0, 101, 0, 0, 0]);
        assert_eq!(
            bytes[24..32],
            [&1_800_000_000_u32.to_le_bytes()[..], &[7, 0, 0, 0]].concat()
        );
        assert_eq!(bytes[32..], [3, 0, 0, 0, 3, 0, 0, 0, 0x45, 1, 2]);
    }

    #[test]
    fn packets_are_told_apart_by_both_ends_and_damaged_ones_are_nobodys() {
        let mut v4 = vec![0; 20];
        v4[0] = 0x45;
        v4[12..20].copy_from_slice(&[100, 80, 0, 1, 100, 80, 0, 2]);
        let text = |packet: &[u8]| ends(packet).map(|e| e.map(|a| a.to_string()));
        assert_eq!(
            text(&v4),
            Some(["100.80.0.1".to_owned(), "100.80.0.2".to_owned()])
        );
        let mut v6 = vec![0; 40];
        v6[0] = 0x60;
        (v6[23], v6[39]) = (1, 2);
        assert_eq!(text(&v6), Some(["::1".to_owned(), "::2".to_owned()]));
        assert_eq!(text(&v6[..39]), None);
        assert_eq!(text(&[]), None);
        assert_eq!(text(&[0; 60]), None);
    }
}
