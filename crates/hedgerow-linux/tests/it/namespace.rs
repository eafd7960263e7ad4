//! Network namespaces that go away with the test, also when it panics or was killed.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PREFIX: &str = "hgt-linux";

/// Returns a command, or fails with the Debian package that has it.
#[expect(
    clippy::disallowed_methods,
    reason = "tests drive programs we did not write"
)]
pub(crate) fn tool(program: &str) -> Command {
    let package = match program {
        "nft" => "nftables",
        "ip" => "iproute2",
        "ping" => "iputils-ping",
        "conntrack" => "conntrack",
        "ufw" => "ufw",
        "firewalld" => "firewalld",
        "iptables" | "ip6tables" => "iptables",
        "dbus-run-session" => "dbus-daemon",
        other => panic!("no package is known for {other}"),
    };
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|d| Path::new(d).join(program).exists());
    assert!(found, "{program} is missing: apt-get install {package}");
    Command::new(program)
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(program: &str, args: &str) -> String {
    let output = tool(program)
        .args(args.split_whitespace())
        .output()
        .unwrap();
    checked(&format!("{program} {args}"), &output)
}

fn checked(what: &str, output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One network namespace.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            hedgerow_linux::process::is_root(),
            "these tests change a kernel's firewall in namespaces: run them as root"
        );
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}-{role}", std::process::id());
        run("ip", &format!("netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` on a thread inside the namespace. Sockets opened there stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(path).unwrap();
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

    pub(crate) fn ip(&self, args: &str) -> String {
        run("ip", &format!("-n {} {args}", self.name))
    }

    /// Runs `nft` inside.
    pub(crate) fn nft(&self, args: &[&str]) -> Output {
        tool("ip")
            .args(["netns", "exec", &self.name, "nft"])
            .args(args)
            .output()
            .unwrap()
    }

    /// Runs a script inside, with mounts of its own; returns the process, its ends held open.
    pub(crate) fn script(&self, wrapper: &[&str], script: &str, words: &[&str]) -> Child {
        tool("ip")
            .args(["netns", "exec", &self.name])
            .args(wrapper)
            .args(["sh", "-c", script, "sh"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a script inside to its end; it must succeed.
    pub(crate) fn script_ok(&self, script: &str, words: &[&str]) -> String {
        let child = self.script(&[], script, words);
        checked(
            &format!("{script} {words:?}"),
            &child.wait_with_output().unwrap(),
        )
    }

    /// Runs `nft` inside; it must succeed.
    pub(crate) fn nft_ok(&self, args: &[&str]) -> String {
        drop(tool("nft"));
        checked(&format!("nft {args:?}"), &self.nft(args))
    }

    /// Starts this test program again inside, to run one test as a process of its own.
    pub(crate) fn spawn_test(&self, test: &str, variable: &str) -> Child {
        self.spawn_test_in(None, test, variable)
    }

    /// As [`Self::spawn_test`], in a control group from its first moment on.
    #[expect(
        clippy::disallowed_methods,
        reason = "a process that can be killed is the point"
    )]
    pub(crate) fn spawn_test_in(&self, group: Option<&Path>, test: &str, variable: &str) -> Child {
        let name = self.name.clone();
        let enter = match group {
            Some(group) => format!("echo $$ > {}/cgroup.procs && ", group.display()),
            None => String::new(),
        };
        self.run(|| {
            Command::new("sh")
                .args(["-c", &format!("{enter}exec \"$@\""), "sh"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(variable, name)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(tool("ip").args(["netns", "del", &self.name]).output());
    }
}

/// Deletes what killed runs left behind.
fn sweep() {
    let list = std::fs::read_dir("/run/netns").into_iter().flatten();
    for name in list.filter_map(|e| e.ok()?.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|n| n.split('-').nth(1));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(tool("ip").args(["netns", "del", &name]).output());
        }
    }
}

/// The interface that stands in for the tunnel.
pub(crate) const TUNNEL: &str = "hedgerow0";

/// A device under test and a machine that plays its peers, joined twice: by the stand-in for the
/// tunnel and by an underlay link.
pub(crate) struct Lab {
    pub(crate) device: Namespace,
    pub(crate) peers: Namespace,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self {
            device: Namespace::new("device"),
            peers: Namespace::new("peers"),
        };
        for link in [TUNNEL, "under0"] {
            lab.device.ip(&format!(
                "link add {link} type veth peer name {link} netns {}",
                lab.peers.name
            ));
            for side in [&lab.device, &lab.peers] {
                side.ip(&format!("link set {link} addrgenmode none"));
                side.ip(&format!("link set {link} up"));
            }
        }
        lab.device
            .ip(&format!("addr add {}/48 dev {TUNNEL} nodad", own6()));
        lab.device
            .ip(&format!("addr add {}/12 dev {TUNNEL}", own4()));
        for number in 1..=8 {
            lab.peers
                .ip(&format!("addr add {}/48 dev {TUNNEL} nodad", peer6(number)));
            lab.peers
                .ip(&format!("addr add {}/12 dev {TUNNEL}", peer4(number)));
        }
        lab.device.ip("addr add fd99::1/64 dev under0 nodad");
        lab.device.ip("addr add 192.0.2.1/24 dev under0");
        lab.peers.ip("addr add fd99::2/64 dev under0 nodad");
        lab.peers.ip("addr add 192.0.2.2/24 dev under0");
        // The stand-in is no point-to-point link: neighbours are written down, not asked for.
        lab.neighbours();
        lab
    }

    fn neighbours(&self) {
        let address = |n: &Namespace| {
            let text = n.ip(&format!("-o link show {TUNNEL}"));
            let mut words = text.split_whitespace().skip_while(|w| *w != "link/ether");
            words.nth(1).unwrap().to_owned()
        };
        let (device, peers) = (address(&self.device), address(&self.peers));
        for own in [own6(), own4()] {
            self.peers.ip(&format!(
                "neigh replace {own} lladdr {device} dev {TUNNEL} nud permanent"
            ));
        }
        for number in 1..=8 {
            for peer in [peer6(number), peer4(number)] {
                self.device.ip(&format!(
                    "neigh replace {peer} lladdr {peers} dev {TUNNEL} nud permanent"
                ));
            }
        }
    }
}

pub(crate) fn own6() -> IpAddr {
    Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0xa).into()
}

pub(crate) fn own4() -> IpAddr {
    Ipv4Addr::new(100, 80, 0, 10).into()
}

pub(crate) fn peer6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 1, number.into()).into()
}

pub(crate) fn peer4(number: u8) -> IpAddr {
    Ipv4Addr::new(100, 80, 1, number).into()
}
