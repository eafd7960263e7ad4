//! Network namespaces that go away with the test, also when it panics or was killed.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use hedgerow_model::address::OverlayAddresses;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PREFIX: &str = "hgt-agree";

/// The interface that stands in for the tunnel.
pub(super) const TUNNEL: &str = "hedgerow0";

/// Returns a command, or fails with the Debian package that has it.
#[expect(
    clippy::disallowed_methods,
    reason = "the lab drives programs we did not write"
)]
pub(crate) fn tool(program: &str, package: &str) -> Command {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|d| Path::new(d).join(program).exists());
    assert!(found, "{program} is missing: apt-get install {package}");
    Command::new(program)
}

/// Runs `ip` with these words; it has to succeed.
pub(crate) fn ip(args: &str) {
    let output = tool("ip", "iproute2")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {error}");
}

/// One network namespace.
pub(super) struct Namespace {
    name: String,
}

impl Namespace {
    fn new(role: &str) -> Self {
        assert!(
            hedgerow_linux::process::is_root(),
            "this test changes a kernel's firewall in namespaces: run it as root"
        );
        let name = format!("{PREFIX}-{}-{role}", std::process::id());
        ip(&format!("netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    fn ip(&self, args: &str) {
        ip(&format!("-n {} {args}", self.name));
    }

    /// Runs `work` on a thread inside the namespace; threads, programs and sockets that it starts
    /// are inside too.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), kind).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut command = tool("ip", "iproute2");
        drop(command.args(["netns", "del", &self.name]).output());
    }
}

/// Deletes what killed runs left behind.
fn sweep() {
    let list = std::fs::read_dir("/run/netns").into_iter().flatten();
    for name in list.filter_map(|e| e.ok()?.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|n| n.split('-').nth(1));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(
                tool("ip", "iproute2")
                    .args(["netns", "del", &name])
                    .output(),
            );
        }
    }
}

/// Devices whose tunnels are one wire.
pub(super) struct Wire {
    pub(super) devices: Vec<Namespace>,
    _middle: Namespace,
}

impl Wire {
    pub(super) fn new(count: usize) -> Self {
        sweep();
        let middle = Namespace::new("wire");
        middle.ip("link add wire type bridge");
        middle.ip("link set wire up");
        let devices: Vec<Namespace> = (0..count)
            .map(|number| {
                let device = Namespace::new(&format!("d{number}"));
                device.ip(&format!(
                    "link add {TUNNEL} address {} type veth peer name to{number} netns {}",
                    hardware(number),
                    middle.name
                ));
                device.ip(&format!("link set {TUNNEL} addrgenmode none"));
                middle.ip(&format!("link set to{number} master wire up"));
                device.ip(&format!("link set {TUNNEL} up"));
                let own = addresses(number);
                device.ip(&format!("addr add {}/48 dev {TUNNEL} nodad", own.v6));
                device.ip(&format!("addr add {}/12 dev {TUNNEL}", own.v4.unwrap()));
                device
            })
            .collect();
        // A tunnel asks nobody for neighbours: they are written down.
        for (own, device) in devices.iter().enumerate() {
            for peer in (0..count).filter(|p| *p != own) {
                for address in addresses(peer).iter() {
                    device.ip(&format!(
                        "neigh replace {} lladdr {} dev {TUNNEL} nud permanent",
                        address.0,
                        hardware(peer)
                    ));
                }
            }
        }
        Self {
            devices,
            _middle: middle,
        }
    }
}

fn hardware(number: usize) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

/// Returns the overlay addresses of one device.
pub(super) fn addresses(number: usize) -> OverlayAddresses {
    let number = u8::try_from(number + 1).unwrap();
    OverlayAddresses {
        v6: Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, number.into()),
        v4: Some(Ipv4Addr::new(100, 80, 0, number)),
    }
}

/// Returns them as a list.
pub(super) fn both(number: usize) -> Vec<IpAddr> {
    addresses(number).iter().map(|a| a.0).collect()
}
