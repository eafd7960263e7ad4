//! What the lab has put into the machine, and how it goes away again.
//!
//! Everything is written into a manifest before it is made: namespaces, directories under
//! `/etc/netns`, processes with pid and start time. Whoever starts next reads the manifest of a lab
//! that was killed and removes what it names, and nothing else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{clock, process};

/// Namespaces of the lab begin with this, so that nobody takes them for something else.
pub const PREFIX: &str = "hgd-";
/// How often a directory is tried that other labs may be removing.
const MAKE_TRIES: usize = 8;
/// Where labs keep their state.
pub const HOME: &str = "/var/tmp/hedgerow-lab";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Manifest {
    namespaces: BTreeSet<String>,
    directories: BTreeSet<PathBuf>,
    /// Pid and start time.
    processes: BTreeSet<(u32, u64)>,
    #[serde(skip)]
    closed: bool,
}

/// A running lab. Dropping it removes everything that it made.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    manifest: Mutex<Manifest>,
    /// Held while the lab lives; the kernel lets go of it however the lab ends.
    _lock: File,
}

impl Lab {
    /// Takes the machine's one place for a lab called `name`, and removes what an earlier one left.
    ///
    /// # Errors
    ///
    /// When another one is running, or we are not root.
    pub fn open(name: &str) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("the lab makes network namespaces, which takes root: run it with sudo");
        }
        let directory = Path::new(HOME).join(name);
        fs::create_dir_all(HOME).with_context(|| format!("cannot make {HOME}"))?;
        let lock = File::create(directory.with_extension("lock"))?;
        if lock.try_lock().is_err() {
            bail!("another lab called {name} is running on this machine: end it first (Ctrl-C)");
        }
        let left = fs::read_to_string(directory.join("manifest.json"))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok());
        let lab = Self {
            directory,
            manifest: Mutex::new(left.unwrap_or_default()),
            _lock: lock,
        };
        lab.remove_all();
        lab.manifest().closed = false;
        fs::create_dir_all(&lab.directory)?;
        lab.save(&lab.manifest())?;
        Ok(lab)
    }

    /// Returns the directory with the lab's state, logs included.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns a path below the lab's directory, whose parent exists.
    ///
    /// # Errors
    ///
    /// When the parent cannot be made.
    pub fn path(&self, relative: &str) -> Result<PathBuf> {
        let path = self.directory.join(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}", parent.display()))?;
        }
        Ok(path)
    }

    /// Makes a network namespace, with loopback up and a hosts file of its own.
    ///
    /// # Errors
    ///
    /// When `ip` refuses.
    pub fn namespace(&self, name: &str) -> Result<()> {
        let etc = Path::new("/etc/netns").join(name);
        self.record(|m| {
            m.namespaces.insert(name.to_owned());
            m.directories.insert(etc.clone());
        })?;
        // Another lab that ends at this moment removes the empty parent between two steps of ours.
        let made = (0..MAKE_TRIES).find_map(|_| fs::create_dir_all(&etc).ok());
        made.with_context(|| format!("cannot make {}", etc.display()))?;
        process::run(&["ip", "netns", "add", name])?;
        process::run(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        Ok(())
    }

    /// Ends every process of a namespace, and the namespace itself; its hosts file stays.
    ///
    /// # Errors
    ///
    /// When a process does not end, or `ip` refuses.
    pub fn remove_namespace(&self, name: &str) -> Result<()> {
        end_all(name);
        process::run(&["ip", "netns", "delete", name])?;
        Ok(())
    }

    /// Makes a directory outside of the lab's own, which goes with the lab if it was not there.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn foreign_directory(&self, path: &str) -> Result<()> {
        let path = PathBuf::from(path);
        if path.is_dir() {
            return Ok(());
        }
        self.record(|m| {
            m.directories.insert(path.clone());
        })?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
    }

    /// Starts a program that stays, in `namespace`, its output in `logs/<log>.log`. Returns its pid.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or the lab is closing.
    pub fn start(&self, namespace: &str, log: &str, argv: &[&str]) -> Result<u32> {
        let log = self.path(&format!("logs/{log}.log"))?;
        let words: Vec<&str> = ["ip", "netns", "exec", namespace]
            .into_iter()
            .chain(argv.iter().copied())
            .collect();
        let mut manifest = self.manifest();
        if manifest.closed {
            bail!("the lab is closing");
        }
        let mut child = process::spawn(&words, &log)?;
        let pid = child.id();
        if let Some(start) = process::start_time(pid) {
            manifest.processes.insert((pid, start));
            self.save(&manifest)?;
        }
        drop(manifest);
        // Reaps it whenever it ends.
        std::thread::spawn(move || child.wait());
        Ok(pid)
    }

    /// Removes everything that the lab made, logs excepted. Nothing can be started afterwards.
    pub fn close(&self) {
        self.manifest().closed = true;
        self.remove_all();
    }

    /// Returns whether the lab is being removed.
    pub fn is_closed(&self) -> bool {
        self.manifest().closed
    }

    fn remove_all(&self) {
        let found = self.manifest().clone();
        for (pid, start) in &found.processes {
            if process::start_time(*pid) == Some(*start) {
                process::kill(*pid);
            }
        }
        for name in &found.namespaces {
            end_all(name);
            // It may never have been made.
            drop(process::output(&["ip", "netns", "delete", name], None));
        }
        for directory in &found.directories {
            drop(fs::remove_dir_all(directory));
        }
        // Goes if it was ours and nobody else put something in.
        drop(fs::remove_dir("/etc/netns"));
        let mut manifest = self.manifest();
        *manifest = Manifest {
            closed: manifest.closed,
            ..Manifest::default()
        };
        if self.directory.is_dir() {
            drop(self.save(&manifest));
        }
    }

    /// Removes the state of an earlier lab, logs included.
    ///
    /// # Errors
    ///
    /// When the directory cannot be emptied.
    pub fn wipe(&self) -> Result<()> {
        fs::remove_dir_all(&self.directory)?;
        fs::create_dir_all(&self.directory)?;
        self.save(&self.manifest())
    }

    fn record(&self, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut manifest = self.manifest();
        if manifest.closed {
            bail!("the lab is closing");
        }
        change(&mut manifest);
        self.save(&manifest)
    }

    fn save(&self, manifest: &Manifest) -> Result<()> {
        let path = self.directory.join("manifest.json");
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec_pretty(manifest)?)?;
        fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.close();
    }
}

/// Returns the pids of every process in a namespace of ours.
pub fn processes_in(namespace: &str) -> Vec<u32> {
    let listed = process::run(&["ip", "netns", "pids", namespace]).unwrap_or_default();
    listed
        .lines()
        .filter_map(|l| l.trim().parse().ok())
        .collect()
}

/// Kills every process of a namespace, and those that were being started meanwhile.
fn end_all(namespace: &str) {
    if !Path::new("/run/netns").join(namespace).exists() {
        return;
    }
    for _ in 0..40 {
        let pids = processes_in(namespace);
        if pids.is_empty() {
            return;
        }
        pids.into_iter().for_each(process::kill);
        clock::pause(Duration::from_millis(25));
    }
}
