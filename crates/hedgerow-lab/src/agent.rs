//! A device's agent under its supervisor.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::central::program;
use crate::lab::Lab;
use crate::matrix::own_program;
use crate::plant::{Device, in_namespace, in_namespace_with};
use crate::{clock, process, supervise};

/// How long an agent may go without a sign of life.
const WATCHDOG_SECS: &str = "30";

/// One agent.
#[derive(Debug)]
pub(crate) struct Agent<'l> {
    lab: &'l Lab,
    /// Where it runs.
    namespace: String,
    /// What its logs are called.
    name: String,
    /// Its files.
    pub(crate) directory: PathBuf,
}

impl<'l> Agent<'l> {
    /// Names a device's agent, and writes its configuration.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub(crate) fn of(lab: &'l Lab, device: &Device) -> Result<Self> {
        Self::at(lab, &device.namespace(), device.name, &device.hosts_file())
    }

    /// Names an agent in any namespace.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub(crate) fn at(lab: &'l Lab, namespace: &str, name: &str, hosts: &str) -> Result<Self> {
        let directory = lab.path(&format!("agents/{name}"))?;
        fs::create_dir_all(directory.join("service"))?;
        let shown = directory.display();
        fs::write(
            directory.join("agent.toml"),
            format!(
                "version = 1\n\n[paths]\nstate = \"{shown}/state\"\nrun = \"{shown}/run\"\n\n\
                 [names]\nhosts_file = \"{hosts}\"\n"
            ),
        )?;
        Ok(Self {
            lab,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            directory,
        })
    }

    /// Runs the agent's program for one order, with `input` on its standard input.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub(crate) fn order(&self, words: &[&str], input: Option<&str>) -> Result<String> {
        let (agent, config) = (program("hedgerow-agent")?, self.config());
        let argv: Vec<&str> = [agent.as_str(), "--config", &config]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        in_namespace_with(&self.namespace, &argv, input)
    }

    /// Gets the device its identity.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub(crate) fn enroll(&self, token: &str) -> Result<()> {
        self.order(&["enroll"], Some(token))?;
        Ok(())
    }

    /// Starts the agent under its supervisor; returns the supervisor's pid when the agent is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready in time.
    pub(crate) fn start(&self) -> Result<u32> {
        let service = self.directory.join("service");
        let supervisor = self.lab.start(
            &self.namespace,
            &format!("agent-{}", self.name),
            &[
                &own_program()?,
                "supervise",
                "--directory",
                &service.to_string_lossy(),
                "--watchdog-secs",
                WATCHDOG_SECS,
                "--",
                &program("hedgerow-agent")?,
                "--config",
                &self.config(),
                "run",
            ],
        )?;
        self.wait_ready()?;
        Ok(supervisor)
    }

    /// Waits until the agent says that it is ready.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        let what = format!("the agent of {} to be ready", self.name);
        clock::wait_for(&what, Duration::from_secs(20), || {
            let state = self.service()?;
            anyhow::ensure!(
                state.ready,
                "started {} times, {}",
                state.starts,
                state.status
            );
            Ok(Some(()))
        })
    }

    /// Returns what the supervisor knows.
    ///
    /// # Errors
    ///
    /// When it has not written anything yet.
    pub(crate) fn service(&self) -> Result<supervise::State> {
        supervise::state(&self.directory.join("service/state.json"))
    }

    /// Kills the agent without warning, and keeps it dead until [`Self::revive`].
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub(crate) fn kill(&self) -> Result<()> {
        fs::write(self.directory.join("service/hold"), "")?;
        let pid = self.pid()?;
        process::signal(pid, Signal::KILL);
        process::wait_end(pid, Duration::from_secs(5))
    }

    /// Lets the agent be started again; returns when it is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready in time.
    pub(crate) fn revive(&self) -> Result<()> {
        fs::remove_file(self.directory.join("service/hold"))?;
        self.wait_ready()
    }

    /// Returns the agent's pid.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.service()?
            .pid
            .with_context(|| format!("the agent of {} does not run", self.name))
    }

    /// Returns what the agent says of itself.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.order(&["status", "--json"], None)?,
        )?)
    }

    /// Returns the kernel's table as the kernel shows it, without what changes by itself: counters,
    /// elements with a time, and who holds the owner's socket. Empty when there is none.
    pub(crate) fn table(&self) -> String {
        let argv = ["nft", "--stateless", "list", "table", "inet", "hedgerow"];
        without_times(&in_namespace(&self.namespace, &argv).unwrap_or_default())
    }

    fn config(&self) -> String {
        self.directory
            .join("agent.toml")
            .to_string_lossy()
            .into_owned()
    }
}

/// Leaves out elements that expire and those that packets make (meters), which stand between braces,
/// possibly over several lines.
fn without_times(listed: &str) -> String {
    let mut out = String::new();
    for line in listed.lines() {
        // Who holds the owner's socket at the moment: the agent, or its supervisor for it.
        let line = line.split(" # progname").next().unwrap_or(line);
        let elements = line
            .trim_start()
            .strip_prefix("elements = {")
            .unwrap_or(line);
        let kept: Vec<&str> = elements
            .split(", ")
            .map(|e| e.trim().trim_end_matches(['}', ',']).trim())
            .filter(|e| !e.is_empty() && !e.contains(" expires ") && !e.contains(" limit rate "))
            .collect();
        for element in kept {
            out.push_str(element);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expires_is_left_out_of_a_table() {
        let early = "set x {\n elements = { 1.1.1.1 timeout 5s expires 4s,\n 1.1.1.2 limit rate 10/second burst 16 packets }\n}\nset y {\n elements = { 2.2.2.2, 3.3.3.3 }\n}";
        let later = "set x {\n}\nset y {\n elements = { 2.2.2.2, 3.3.3.3 }\n}";
        let lines = |t: &str| -> Vec<String> {
            without_times(t)
                .lines()
                .filter(|l| !l.is_empty())
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(lines(early), lines(later));
        assert!(lines(later).contains(&"3.3.3.3".to_owned()));
    }
}
