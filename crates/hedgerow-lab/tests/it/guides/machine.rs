//! A machine with systemd: this host's own files under a layer that is thrown away, booted in a
//! network namespace and control groups of its own.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::text;
use crate::agreement::namespace::{ip, tool};

const PREFIX: &str = "hgt-guide";
/// Where the machines see the project.
const PROJECT: &str = "/srv/hedgerow";
const BOOT_WITHIN: Duration = Duration::from_secs(90);
/// How long what a command says may take to become true.
const SAYS_WITHIN: Duration = Duration::from_secs(30);
/// No command of a guide takes longer.
const COMMAND_WITHIN: &str = "60";

/// What a command said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) err: String,
}

/// Tries until there is a result or `limit` is over.
#[expect(
    clippy::disallowed_methods,
    reason = "the machines are other programs: there is nothing to wait on"
)]
fn within<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        let result = attempt();
        if result.is_some() {
            return result;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    None
}

/// The wire that all machines of a test share.
pub(super) struct Lan {
    name: String,
}

impl Lan {
    pub(super) fn new(test: &str) -> Self {
        assert!(
            hedgerow_linux::process::is_root(),
            "this test boots machines: run it as root"
        );
        sweep();
        let name = format!("{PREFIX}-{}-{test}", std::process::id());
        ip(&format!("netns add {name}"));
        let lan = Self { name };
        ip(&format!("-n {} link add lan type bridge", lan.name));
        ip(&format!("-n {} link set lan up", lan.name));
        lan
    }
}

/// Removes the namespaces of tests that were killed.
fn sweep() {
    let Ok(names) = fs::read_dir("/run/netns") else {
        return;
    };
    for name in names.map(|n| n.unwrap().file_name().into_string().unwrap()) {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(
                tool("ip", "iproute2")
                    .args(["netns", "del", &name])
                    .status(),
            );
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        drop(
            tool("ip", "iproute2")
                .args(["netns", "del", &self.name])
                .status(),
        );
    }
}

/// One machine.
pub(super) struct Machine {
    name: String,
    full: String,
    /// Its files' upper layer, and the mount points, on this host.
    folder: PathBuf,
    nspawn: Child,
    leader: u32,
}

/// Boots a machine: the caller's mount namespace is private, so that the layers go with it.
const BOOT: &str = r#"
set -e
for hierarchy in systemd unified ''; do
    group="/sys/fs/cgroup/$hierarchy"
    [ -e "$group/cgroup.procs" ] || continue
    mkdir -p "$group/$FULL"
    echo $$ > "$group/$FULL/cgroup.procs"
done
mount -t tmpfs tmpfs "$FOLDER"
mkdir "$FOLDER/up" "$FOLDER/work" "$FOLDER/root"
mount -t overlay -o "lowerdir=/,upperdir=$FOLDER/up,workdir=$FOLDER/work" overlay "$FOLDER/root"
root="$FOLDER/root"
rm -rf "$root/etc/hedgerow" "$root/var/lib/hedgerow" "$root$HOME/.config/hedgerow"
# Nothing that this host starts by itself, another firewall for instance.
rm -rf "$root"/etc/systemd/system/*.wants
rm -f "$root"/etc/systemd/system/hedgerow-* "$root"/usr/bin/hedgerow*
mkdir -p "$root$PROJECT/target/release" "$root/srv/backup"
cp -r "$SOURCE/packaging" "$SOURCE/examples" "$root$PROJECT/"
cp "$PROGRAMS/hedgerow" "$PROGRAMS/hedgerow-agent" "$PROGRAMS/hedgerow-control" "$root$PROJECT/target/release/"
printf '127.0.0.1 localhost\n%s control.plant.example\n' "$CONTROL" > "$root/etc/hosts"
echo "$HOST" > "$root/etc/hostname"
systemd-machine-id-setup --root="$root" >/dev/null 2>&1 || true
exec systemd-nspawn --quiet --directory="$root" --machine="$FULL" --hostname="$HOST" --register=no --keep-unit \
    --network-namespace-path="/run/netns/$FULL" --capability=all --bind=/dev/net/tun --link-journal=no \
    --timezone=off --resolv-conf=off --console=pipe /lib/systemd/systemd
"#;

impl Machine {
    /// Boots a machine called `name` at 10.77.0.`number` on `lan`; 1 is the controller.
    pub(super) fn start(lan: &Lan, name: &str, number: u8) -> Self {
        let full = format!("{}-{number}", lan.name);
        ip(&format!("netns add {full}"));
        let inner = format!("hg{}n{number}", std::process::id());
        let wired = [
            format!("-n {full} link set lo up"),
            format!(
                "-n {} link add {inner} type veth peer name eth0 netns {full}",
                lan.name
            ),
            format!("-n {} link set {inner} master lan up", lan.name),
            format!("-n {full} addr add 10.77.0.{number}/24 dev eth0"),
            format!("-n {full} link set eth0 up"),
        ];
        wired.iter().for_each(|step| ip(step));
        let folder = std::env::temp_dir().join(&full);
        fs::create_dir_all(&folder).unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_hedgerow-lab"))
            .parent()
            .unwrap();
        drop(tool("systemd-nspawn", "systemd-container"));
        // A test that is killed takes its machines along.
        let nspawn = tool("setpriv", "util-linux")
            .args(["--pdeathsig", "KILL", "unshare", "--mount"])
            .args(["--propagation", "private", "sh", "-c", BOOT])
            .env("FULL", &full)
            .env("HOST", name)
            .env("FOLDER", &folder)
            .env("SOURCE", text::root())
            .env("PROJECT", PROJECT)
            .env("PROGRAMS", programs)
            .env("CONTROL", "10.77.0.1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            name: name.to_owned(),
            full,
            folder,
            nspawn,
            leader: 0,
        }
    }

    /// Waits until its systemd has started everything.
    pub(super) fn booted(mut self) -> Self {
        let mut last = String::new();
        let up = within(BOOT_WITHIN, || {
            if let Some(status) = self.nspawn.try_wait().unwrap() {
                let mut said = String::new();
                let pipe = self.nspawn.stderr.as_mut().unwrap();
                pipe.read_to_string(&mut said).unwrap();
                panic!("{}: the machine ended with {status}: {said}", self.name);
            }
            self.leader = child_of(self.nspawn.id())?;
            let said = self.run("systemctl is-system-running");
            last = format!("{said:?}");
            matches!(said.out.trim(), "running" | "degraded").then_some(())
        });
        assert!(
            up.is_some(),
            "{}: not up within {BOOT_WITHIN:?}: {last}",
            self.name
        );
        self
    }

    fn inside(&self, command: &str) -> Command {
        let mut enter = tool("nsenter", "util-linux");
        enter
            .args(["--target", &self.leader.to_string(), "--all"])
            .args(["env", "-i", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"])
            .args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(["timeout", "--kill-after=5", COMMAND_WITHIN, "sh", "-c"])
            .arg(format!("cd {PROJECT} && {command}"))
            .stdin(Stdio::null());
        enter
    }

    /// Runs a command line as root, in the project's folder.
    pub(super) fn run(&self, command: &str) -> Said {
        let output = self.inside(command).output().unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command line that has to succeed; returns its standard output.
    pub(super) fn ok(&self, command: &str) -> String {
        let said = self.run(command);
        assert!(
            said.code == 0,
            "{}: {command}: exit {}\n{}{}\n{}",
            self.name,
            said.code,
            said.out,
            said.err,
            self.journal(),
        );
        said.out
    }

    /// Starts a command line that goes on until it is dropped.
    pub(super) fn background(&self, command: &str) -> Running {
        let child = self
            .inside(&format!("exec {command}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Running(child)
    }

    /// Repeats a command line until it succeeds and says `wanted`.
    pub(super) fn until(&self, command: &str, wanted: &str) -> String {
        let mut last = None;
        let said = within(SAYS_WITHIN, || {
            let said = self.run(command);
            let good = said.code == 0 && said.out.contains(wanted);
            let out = said.out.clone();
            last = Some(said);
            good.then_some(out)
        });
        said.unwrap_or_else(|| {
            panic!(
                "{}: {command}: no {wanted:?} in time: {last:?}\n{}",
                self.name,
                self.journal()
            )
        })
    }

    fn journal(&self) -> String {
        self.run("journalctl --no-pager --lines=40 --unit='hedgerow*'")
            .out
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The leader is the machine's first process: with it go all others, the layers and nspawn.
        if self.leader != 0 {
            drop(
                tool("kill", "procps")
                    .args(["-KILL", &self.leader.to_string()])
                    .status(),
            );
        } else {
            drop(self.nspawn.kill());
        }
        drop(self.nspawn.wait());
        drop(
            tool("ip", "iproute2")
                .args(["netns", "del", &self.full])
                .status(),
        );
        for hierarchy in ["systemd", "unified", ""] {
            let group = Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.full);
            if group.exists() {
                drop(
                    tool("find", "findutils")
                        .arg(&group)
                        .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                        .stderr(Stdio::null())
                        .status(),
                );
            }
        }
        drop(fs::remove_dir(&self.folder));
    }
}

/// A command that goes on.
pub(super) struct Running(Child);

impl Running {
    /// Waits for its end, which has to be a success.
    pub(super) fn finished(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_some() {
            return;
        }
        // The child is `nsenter`; `timeout` below it passes the signal on, as Ctrl-C would.
        if let Some(inner) = child_of(self.0.id()).or(Some(self.0.id())) {
            drop(
                tool("kill", "procps")
                    .args(["-INT", &inner.to_string()])
                    .status(),
            );
        }
        drop(self.0.wait());
    }
}

fn child_of(parent: u32) -> Option<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    fs::read_to_string(path)
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}
