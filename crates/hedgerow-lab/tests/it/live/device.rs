//! A device of a plot: a namespace, an agent under its supervisor, and programs that talk.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::process::Signal;
use hedgerow_lab::{clock, process, supervise};
use serde_json::Value;

use super::disks::SmallDisk;
use super::plot::{Monotonic, Plot, Said, program, strs, timed};

/// How long an agent may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long a stream may take to move on.
const MOVE: Duration = Duration::from_secs(20);

/// A device.
pub(crate) struct Device<'p> {
    plot: &'p Plot,
    /// Its name.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its files.
    pub(crate) directory: PathBuf,
    /// The file that its clock is read from, and whether its monotonic clock follows.
    clock: (PathBuf, Monotonic),
    /// The supervisor's pid; 0 while there is none.
    supervisor: AtomicU32,
}

impl<'p> Device<'p> {
    /// Plugs a device in and writes its agent's configuration.
    pub(crate) fn plug(plot: &'p Plot, name: &str, site: &str, host: u8) -> Result<Self> {
        let underlay = Ipv4Addr::new(10, 77, if site == "s1" { 1 } else { 2 }, host);
        let device = Self::unplugged(plot, name)?;
        plot.plug(&device.namespace, underlay.into())?;
        Ok(device)
    }

    /// Makes a device that hangs on no wire yet, and writes its agent's configuration.
    pub(crate) fn unplugged(plot: &'p Plot, name: &str) -> Result<Self> {
        let namespace = plot.namespace(name);
        plot.lab.namespace(&namespace)?;
        let directory = plot.lab.path(&format!("agents/{name}/agent.toml"))?;
        let directory = directory.with_file_name("");
        fs::create_dir_all(directory.join("service"))?;
        let (shown, hosts) = (directory.display(), format!("/etc/netns/{namespace}/hosts"));
        fs::write(&hosts, "127.0.0.1 localhost\n")?;
        fs::write(
            directory.join("agent.toml"),
            format!(
                "version = 1\n\n[paths]\nstate = \"{shown}state\"\nrun = \"{shown}run\"\n\n\
                 [names]\nhosts_file = \"{hosts}\"\n"
            ),
        )?;
        Ok(Self {
            plot,
            name: name.to_owned(),
            namespace,
            directory,
            clock: (plot.clock(), plot.clocks),
            supervisor: AtomicU32::new(0),
        })
    }

    /// Runs the agent's program for one order.
    pub(crate) fn agent(&self, words: &[&str]) -> Result<Said> {
        self.agent_with(words, None)
    }

    /// Runs the agent's program for one order, with something on its standard input.
    pub(crate) fn agent_with(&self, words: &[&str], input: Option<&str>) -> Result<Said> {
        let argv = self.argv()?;
        self.plot.run(&self.namespace, &strs(&argv, words), input)
    }

    /// Enrolls with a token for a role, and starts the agent.
    pub(crate) fn enroll(&self, site: &str, role: &str) -> Result<()> {
        let (name, labels) = (&*self.name, format!("role={role}"));
        let words = ["--site", site, "--name", name, "--labels", &labels];
        let token = self.plot.token(&words)?;
        self.agent_with(&["enroll"], Some(&token))?.done()?;
        self.start()
    }

    fn argv(&self) -> Result<Vec<String>> {
        let mut argv = timed(&program("hedgerow-agent")?, &self.clock.0, self.clock.1)?;
        let config = self.directory.join("agent.toml");
        argv.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
        Ok(argv)
    }

    /// Gives the device a clock of its own from its agent's next start.
    pub(crate) fn own_clock(&mut self, file: PathBuf, monotonic: Monotonic) {
        self.clock = (file, monotonic);
    }

    /// Ends agent and supervisor at once, and everything in the device's kernel that is Hedgerow's.
    pub(crate) fn cut_power(&self) -> Result<()> {
        let supervisor = self.supervisor.swap(0, Ordering::SeqCst);
        ensure!(supervisor != 0, "it was not started");
        let agent = self.service()?.pid.context("the agent does not run")?;
        for pid in [supervisor, agent] {
            process::signal(pid, Signal::KILL);
            process::wait_end(pid, Duration::from_secs(5))?;
        }
        // The kernel closes the owner's socket a moment after its process has ended.
        clock::wait_for("the table to be free", Duration::from_secs(10), || {
            self.run(&["nft", "delete", "table", "inet", "hedgerow"])?
                .done()
                .map(Some)
        })?;
        self.run(&["ip", "link", "delete", "hedgerow0"])?.done()?;
        Ok(())
    }

    /// Starts the agent under its supervisor; returns when it is ready.
    pub(crate) fn start(&self) -> Result<()> {
        self.start_in(&[])
    }

    /// As [`Self::start`], with the state directory on a disk of `kib` KiB.
    pub(crate) fn start_on_small_disk(&self, kib: u32) -> Result<SmallDisk> {
        let state = self.directory.join("state");
        self.start_in(&SmallDisk::words(&state, kib)?)?;
        Ok(SmallDisk::of(
            self.supervisor.load(Ordering::SeqCst),
            &state,
        ))
    }

    /// As [`Self::start`], with words that run the supervisor.
    pub(crate) fn start_in(&self, wrapper: &[String]) -> Result<()> {
        let argv = self.argv()?;
        let service = self.directory.join("service");
        drop(fs::remove_file(service.join("hold")));
        drop(fs::remove_file(service.join("state.json")));
        let log = format!("agent-{}", self.name);
        let words = strs(&argv, &["run"]);
        let plot = self.plot;
        let supervisor = plot.supervise((&self.name, &log), &service, wrapper, &words)?;
        self.supervisor.store(supervisor, Ordering::SeqCst);
        self.wait_ready()
    }

    /// Ends agent and supervisor in good order.
    pub(crate) fn stop(&self) -> Result<()> {
        let supervisor = self.supervisor.swap(0, Ordering::SeqCst);
        ensure!(supervisor != 0, "it was not started");
        process::signal(supervisor, Signal::TERM);
        process::wait_end(supervisor, Duration::from_secs(15))
    }

    /// Waits until the agent says that it is ready.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        clock::wait_for(&format!("{}'s agent to be ready", self.name), READY, || {
            let state = self.service()?;
            ensure!(
                state.ready,
                "started {} times, {}",
                state.starts,
                state.status
            );
            Ok(Some(()))
        })
    }

    /// Returns what the supervisor knows.
    pub(crate) fn service(&self) -> Result<supervise::State> {
        supervise::state(&self.directory.join("service/state.json"))
    }

    /// Kills the agent without warning, and keeps it dead until [`Self::revive`].
    pub(crate) fn kill_for_good(&self) -> Result<()> {
        fs::write(self.directory.join("service/hold"), "")?;
        let pid = self.service()?.pid.context("the agent does not run")?;
        process::signal(pid, Signal::KILL);
        process::wait_end(pid, Duration::from_secs(5))
    }

    /// Lets the agent be started again; returns when it is ready.
    pub(crate) fn revive(&self) -> Result<()> {
        fs::remove_file(self.directory.join("service/hold"))?;
        self.wait_ready()
    }

    /// Kills the agent without warning; returns when the supervisor knows, which starts it again.
    pub(crate) fn kill(&self) -> Result<()> {
        let pid = self.service()?.pid.context("the agent does not run")?;
        process::signal(pid, Signal::KILL);
        process::wait_end(pid, Duration::from_secs(5))?;
        clock::wait_for("the supervisor to notice", Duration::from_secs(10), || {
            Ok((self.service()?.pid != Some(pid)).then_some(()))
        })
    }

    /// Returns what the agent says of itself.
    pub(crate) fn status(&self) -> Result<Value> {
        let text = self.agent(&["status", "--json"])?.done()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Returns an overlay address: IPv6, or the IPv4 one.
    pub(crate) fn overlay(&self, family: u8) -> Result<String> {
        let status = self.status()?;
        let all = status["device"]["addresses"]
            .as_array()
            .context("no addresses")?;
        let mut texts = all.iter().filter_map(Value::as_str);
        let found = texts.find(|a| a.contains(':') == (family == 6));
        Ok(found.context("no such address")?.to_owned())
    }

    /// Returns the peer that the agent's status lists under `name`, when there is one.
    pub(crate) fn peer(&self, name: &str) -> Result<Option<Value>> {
        let status = self.status()?;
        let peers = status["mesh"]["peers"].as_array().context("no peers")?;
        Ok(peers.iter().find(|p| p["name"] == name).cloned())
    }

    /// Runs a tool on the device.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<Said> {
        self.plot.run(&self.namespace, argv, None)
    }

    /// Starts a program that stays; returns its pid. What it prints is in [`Self::printed`].
    pub(crate) fn spawn(&self, log: &str, argv: &[&str]) -> Result<u32> {
        let log = format!("{}-{log}", self.name);
        self.plot.lab.start(&self.namespace, &log, argv)
    }

    /// Starts the agent's program for an order that may take its time; returns its pid.
    pub(crate) fn spawn_agent(&self, log: &str, words: &[&str]) -> Result<u32> {
        let argv = self.argv()?;
        self.spawn(log, &strs(&argv, words))
    }

    /// Adds to the agent's configuration, for its next start.
    pub(crate) fn configure(&self, text: &str) -> Result<()> {
        let path = self.directory.join("agent.toml");
        let old = fs::read_to_string(&path)?;
        Ok(fs::write(&path, old + text)?)
    }

    /// Returns the agent's program as words for a shell.
    pub(crate) fn command(&self) -> Result<String> {
        Ok(self.argv()?.join(" "))
    }

    /// Returns how many bytes a program of [`Self::spawn`] has printed.
    pub(crate) fn printed(&self, log: &str) -> Result<u64> {
        Ok(fs::metadata(self.log_file(log)?).map_or(0, |m| m.len()))
    }

    /// Returns the file that a program of [`Self::spawn`] prints into.
    pub(crate) fn log_file(&self, log: &str) -> Result<PathBuf> {
        self.plot.lab.path(&format!("logs/{}-{log}.log", self.name))
    }

    /// Starts an echo server on port 9000, and on 8080 a web server whose page never ends.
    pub(crate) fn serve(&self) -> Result<()> {
        let listen = |port: u16| format!("TCP6-LISTEN:{port},ipv6only=0,reuseaddr,fork");
        let page = "printf 'HTTP/1.0 200 OK\\r\\n\\r\\n'; while echo tick; do sleep 0.1; done";
        let web = self.directory.join("page.sh");
        fs::write(&web, page)?;
        let page = format!("EXEC:sh {}", web.display());
        self.spawn("echo", &["socat", &listen(9000), "EXEC:cat"])?;
        self.spawn("web", &["socat", &listen(8080), &page])?;
        clock::wait_for("the programs to listen", Duration::from_secs(20), || {
            let open = self.run(&["ss", "--no-header", "-ltn"])?.done()?;
            let all = open.contains(":9000 ") && open.contains(":8080 ");
            Ok(all.then_some(()))
        })
    }

    /// Tries a new connection with `nc`: whether it stands within three seconds.
    pub(crate) fn reaches(&self, address: &str, port: u16) -> Result<bool> {
        let port = port.to_string();
        Ok(self.run(&["nc", "-z", "-w", "3", address, &port])?.code == Some(0))
    }

    /// Waits until a new connection stands.
    pub(crate) fn wait_reaches(&self, address: &str, port: u16) -> Result<()> {
        let what = format!("{} to reach {address} on {port}", self.name);
        clock::wait_for(&what, Duration::from_secs(40), || {
            Ok(self.reaches(address, port)?.then_some(()))
        })
    }

    /// Waits until a new connection does not stand any more.
    pub(crate) fn wait_cut(&self, address: &str, port: u16) -> Result<()> {
        let what = format!("{} not to reach {address} on {port}", self.name);
        clock::wait_for(&what, Duration::from_secs(40), || {
            Ok((!self.reaches(address, port)?).then_some(()))
        })
    }

    /// Starts a conversation with the echo server: `nc`, which says something ten times a second and
    /// prints what comes back. It never connects a second time.
    pub(crate) fn talk(&self, address: &str) -> Result<Stream<'_, 'p>> {
        let script = "while :; do echo tick; sleep 0.1; done | nc \"$0\" 9000";
        self.stream("talk", &["bash", "-c", script, address])
    }

    /// Starts reading the web server's page with `curl`, which never connects a second time.
    pub(crate) fn download(&self, address: &str) -> Result<Stream<'_, 'p>> {
        let url = match address.contains(':') {
            true => format!("http://[{address}]:8080/"),
            false => format!("http://{address}:8080/"),
        };
        let argv = ["curl", "--silent", "--show-error", "--no-buffer", &url];
        self.stream("download", &argv)
    }

    fn stream(&self, log: &'static str, argv: &[&str]) -> Result<Stream<'_, 'p>> {
        let pid = self.spawn(log, argv)?;
        let stream = Stream {
            device: self,
            pid,
            log,
        };
        stream.moves()?;
        Ok(stream)
    }

    /// Returns the kernel's table without counters, elements that expire, and its owner's name.
    pub(crate) fn table(&self) -> Result<String> {
        let argv = ["nft", "--stateless", "list", "table", "inet", "hedgerow"];
        let listed = self.run(&argv)?;
        let lines = listed.out.lines().filter(|l| !l.contains(" expires "));
        let lines: Vec<&str> = lines
            .map(|l| l.split(" # progname").next().unwrap_or(l))
            .collect();
        Ok(lines.join("\n"))
    }

    /// Returns what the agent has logged.
    pub(crate) fn logged(&self) -> Result<String> {
        let path = self
            .plot
            .lab
            .path(&format!("logs/agent-{}.log", self.name))?;
        Ok(fs::read_to_string(path)?)
    }
}

/// A connection that a program holds open.
pub(crate) struct Stream<'d, 'p> {
    device: &'d Device<'p>,
    pid: u32,
    log: &'static str,
}

impl Stream<'_, '_> {
    /// Waits until more has arrived over it than now.
    pub(crate) fn moves(&self) -> Result<()> {
        let before = self.device.printed(self.log)?;
        clock::wait_for(&format!("{} to move on", self.log), MOVE, || {
            ensure!(self.is_open(), "it has ended");
            Ok((self.device.printed(self.log)? > before).then_some(()))
        })
    }

    /// Waits until nothing has arrived for two seconds.
    pub(crate) fn stops(&self) -> Result<()> {
        clock::wait_for(&format!("{} to stop", self.log), MOVE, || {
            let before = self.device.printed(self.log)?;
            clock::pause(Duration::from_secs(2));
            Ok((self.device.printed(self.log)? == before).then_some(()))
        })
    }

    /// Returns whether the program still holds the connection.
    pub(crate) fn is_open(&self) -> bool {
        process::start_time(self.pid).is_some()
    }
}
