//! The plant's own programs: mosquitto, socat, pymodbus, openssl, sshd, and their clients. None of
//! them is ours, and none of them knows of Hedgerow.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::Lab;
use crate::plant::{self, DEVICES, Device, Protocol, SERVICES, in_namespace};
use crate::{clock, matrix, process};

/// A Modbus/TCP server with a hundred holding registers, on all addresses.
const MODBUS_SERVER: &str = "
import asyncio
from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartAsyncTcpServer
block = ModbusSequentialDataBlock(0, [17] * 100)
context = ModbusServerContext(slaves=ModbusSlaveContext(hr=block, ir=block), single=True)
asyncio.run(StartAsyncTcpServer(context=context, address=('', 502)))
";

/// Which network the clients use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// The plant's own, before Hedgerow.
    Underlay,
    /// Hedgerow's.
    Overlay,
}

impl Network {
    /// Returns the name of `device` in this network.
    pub(crate) fn name(self, device: &Device) -> String {
        match self {
            Self::Underlay => device.plant_name(),
            Self::Overlay => device.overlay_name(),
        }
    }
}

/// Makes what the programs need to start: keys, certificates, configuration.
///
/// # Errors
///
/// When a file cannot be written or a tool refuses.
pub(crate) fn prepare(lab: &Lab) -> Result<()> {
    let key = shown(&lab.path("plant/tls.key")?);
    let certificate = shown(&lab.path("plant/tls.crt")?);
    process::run(&[
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=plant",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ])?;
    fs::write(
        lab.path("plant/mosquitto.conf")?,
        format!(
            "listener 8883\ncertfile {certificate}\nkeyfile {key}\nallow_anonymous true\n\
             user root\npersistence false\nlog_dest stdout\n"
        ),
    )?;
    for name in ["host", "ops"] {
        let file = shown(&lab.path(&format!("plant/ssh_{name}"))?);
        process::run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &file])?;
    }
    // sshd separates its privileges here, and the service that makes it may never have run.
    lab.foreign_directory("/run/sshd")?;
    fs::write(
        lab.path("plant/sshd_config")?,
        format!(
            "Port 22\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n\
             MaxStartups 200\nLogLevel ERROR\n",
            shown(&lab.path("plant/ssh_host")?),
            shown(&lab.path("plant/ssh_ops.pub")?),
        ),
    )?;
    fs::write(lab.path("plant/modbus.py")?, MODBUS_SERVER)?;
    Ok(())
}

/// Starts the programs of a device, and the lab's responder on every other port of the matrix.
/// Returns when all of them listen.
///
/// # Errors
///
/// When one cannot be started or does not listen within ten seconds.
pub(crate) fn start(lab: &Lab, device: &Device) -> Result<()> {
    let namespace = device.namespace();
    for service in device.provides {
        let argv = server(lab, service)?;
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        lab.start(&namespace, &format!("{}-{service}", device.name), &words)?;
    }
    if device.provides.contains(&"mqtts") {
        listen_to_sensors(lab, device)?;
    }
    let own = matrix::own_program()?;
    let mut argv = vec![own, "respond".to_owned()];
    for service in SERVICES
        .iter()
        .filter(|s| !device.provides.contains(&s.name))
    {
        match service.protocol {
            Protocol::Tcp => argv.extend(["--tcp".to_owned(), service.port.to_string()]),
            Protocol::Udp => argv.extend(["--udp".to_owned(), service.port.to_string()]),
            Protocol::Ping => {}
        }
    }
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    lab.start(&namespace, &format!("{}-responder", device.name), &words)?;
    clock::wait_for(
        &format!("the programs of {} to listen", device.name),
        Duration::from_secs(10),
        || {
            let open = in_namespace(&namespace, &["ss", "--no-header", "-ltun"])?;
            let all = SERVICES.iter().filter(|s| s.protocol != Protocol::Ping);
            let missing = all
                .filter(|s| !open.lines().any(|l| l.contains(&format!(":{} ", s.port))))
                .map(|s| s.name)
                .collect::<Vec<_>>();
            anyhow::ensure!(
                missing.is_empty(),
                "nothing answers on {}",
                missing.join(", ")
            );
            Ok(Some(()))
        },
    )
}

fn server(lab: &Lab, service: &str) -> Result<Vec<String>> {
    let file = |name: &str| lab.path(&format!("plant/{name}")).map(|p| shown(&p));
    let words: Vec<String> = match service {
        "mqtts" => words(&["mosquitto", "-c", &file("mosquitto.conf")?]),
        "rtsp" => words(&[
            "socat",
            "-u",
            "TCP6-LISTEN:554,ipv6only=0,reuseaddr,fork",
            "OPEN:/dev/null",
        ]),
        "modbus" => words(&["/usr/bin/python3", &file("modbus.py")?]),
        "https" => words(&[
            "openssl",
            "s_server",
            "-quiet",
            "-www",
            "-accept",
            "443",
            "-cert",
            &file("tls.crt")?,
            "-key",
            &file("tls.key")?,
        ]),
        "ssh" => words(&["/usr/sbin/sshd", "-D", "-e", "-f", &file("sshd_config")?]),
        other => anyhow::bail!("no program provides {other}"),
    };
    Ok(words)
}

fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|&w| w.to_owned()).collect()
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Writes all that sensors publish into a file, as the collector's own application would.
fn listen_to_sensors(lab: &Lab, device: &Device) -> Result<()> {
    let namespace = device.namespace();
    clock::wait_for("the broker", Duration::from_secs(10), || {
        let open = in_namespace(&namespace, &["ss", "--no-header", "-ltn"])?;
        Ok(open.contains(":8883 ").then_some(()))
    })?;
    let certificate = shown(&lab.path("plant/tls.crt")?);
    lab.start(
        &namespace,
        "collected",
        &[
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            "8883",
            "--cafile",
            &certificate,
            "--insecure",
            "-t",
            "plant/#",
        ],
    )?;
    Ok(())
}

/// Publishes a reading, and returns when the collector's application has it, in milliseconds.
///
/// # Errors
///
/// When it is refused or does not arrive.
pub(crate) fn publish(lab: &Lab, from: &Device, network: Network, reading: &str) -> Result<f64> {
    let start = clock::now();
    let collector = plant::find("collector").context("no collector")?;
    let certificate = shown(&lab.path("plant/tls.crt")?);
    in_namespace(
        &from.namespace(),
        &[
            "timeout",
            "10",
            "mosquitto_pub",
            "-h",
            &network.name(collector),
            "-p",
            "8883",
            "--cafile",
            &certificate,
            "--insecure",
            "-q",
            "1",
            "-t",
            "plant/reading",
            "-m",
            reading,
        ],
    )?;
    let log = lab.path("logs/collected.log")?;
    clock::wait_for(
        "the reading at the collector",
        Duration::from_secs(5),
        || Ok(fs::read_to_string(&log)?.contains(reading).then_some(())),
    )?;
    Ok(clock::ms_since(start))
}

/// Reads a register, and returns its value.
///
/// # Errors
///
/// When the client fails or says something unexpected.
pub(crate) fn read_register(from: &Device, to: &Device, network: Network) -> Result<u16> {
    let text = in_namespace(
        &from.namespace(),
        &[
            "timeout",
            "10",
            "mbpoll",
            "-m",
            "tcp",
            "-1",
            "-q",
            "-t",
            "4",
            "-r",
            "5",
            &network.name(to),
        ],
    )?;
    let value = text.lines().find_map(|l| l.strip_prefix("[5]:"));
    let value = value.with_context(|| format!("mbpoll said {text:?}"))?;
    value.trim().parse().context("a register")
}

/// Fetches the camera's page, and returns the HTTP status.
///
/// # Errors
///
/// When `curl` fails.
pub(crate) fn fetch(from: &Device, to: &Device, network: Network) -> Result<String> {
    let url = format!("https://{}/", network.name(to));
    in_namespace(
        &from.namespace(),
        &[
            "curl",
            "--silent",
            "--show-error",
            "--insecure",
            "--max-time",
            "10",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            &url,
        ],
    )
}

/// Logs in with ssh, and returns the answer of a command.
///
/// # Errors
///
/// When `ssh` fails.
pub(crate) fn log_in(lab: &Lab, from: &Device, to: &Device, network: Network) -> Result<String> {
    let key = shown(&lab.path("plant/ssh_ops")?);
    let target = format!("root@{}", network.name(to));
    let text = in_namespace(
        &from.namespace(),
        &[
            "ssh",
            "-i",
            &key,
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ConnectTimeout=10",
            &target,
            "echo",
            "logged-in",
        ],
    )?;
    Ok(text.trim().to_owned())
}

/// Starts the camera's stream to the recorder: as much as TCP can carry.
///
/// # Errors
///
/// When it cannot be started.
pub(crate) fn stream(lab: &Lab, from: &Device, to: &Device, network: Network) -> Result<u32> {
    let target = format!("TCP:{}:554,connect-timeout=10", network.name(to));
    lab.start(
        &from.namespace(),
        "stream",
        &["socat", "-u", "OPEN:/dev/zero", &target],
    )
}

/// Returns how many bytes the recorder has got over streams that are open now.
///
/// # Errors
///
/// When `ss` fails.
pub(crate) fn recorded(recorder: &Device) -> Result<u64> {
    let text = in_namespace(
        &recorder.namespace(),
        &[
            "ss",
            "--no-header",
            "-tin",
            "state",
            "established",
            "sport",
            "=",
            ":554",
        ],
    )?;
    let counts = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("bytes_received:")?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// Measures what arrives at the recorder for `time`, in Mbit/s.
///
/// # Errors
///
/// When `ss` fails.
pub(crate) fn recorded_mbit(recorder: &Device, time: Duration) -> Result<f64> {
    let (start, before) = (clock::now(), recorded(recorder)?);
    clock::pause(time);
    let bytes = recorded(recorder)?.saturating_sub(before);
    let seconds = clock::now().duration_since(start).as_secs_f64();
    let bits = u32::try_from(bytes.saturating_mul(8) / 1000).unwrap_or(u32::MAX);
    Ok((f64::from(bits) / 1000.0 / seconds * 100.0).round() / 100.0)
}

/// Starts everything that stays.
///
/// # Errors
///
/// As [`start`].
pub(crate) fn start_all(lab: &Lab) -> Result<()> {
    let all: Vec<&Device> = DEVICES.iter().collect();
    matrix::at_once(&all, |device| start(lab, device))?;
    Ok(())
}
