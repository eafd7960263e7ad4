//! The lab's way to the controller: its REST interface, asked by `curl` with the operator's
//! certificate from inside the controller's namespace.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::matrix::{Addresses, Pair, Verdict, own_program};
use crate::plant::{self, CENTRAL, CENTRAL_ADDRESS, CENTRAL_PORT, DEVICES, SITES, TRUST_DOMAIN};
use crate::plant::{in_namespace, in_namespace_with};
use crate::{clock, process, supervise};

/// The controller.
#[derive(Debug)]
pub(crate) struct Central<'l> {
    lab: &'l Lab,
    /// Its files: store, keys, the operator's bundle.
    directory: PathBuf,
    /// Its supervisor's files.
    service: PathBuf,
}

/// How long nothing may change before the fleet counts as settled.
const CALM: Duration = Duration::from_millis(300);

/// What the controller predicts, pair by pair.
pub(crate) type Prediction = BTreeMap<(String, String, String), Verdict>;

/// Returns the path of a program that was built beside the lab.
///
/// # Errors
///
/// When it was not built.
pub(crate) fn program(name: &str) -> Result<String> {
    let path = Path::new(&own_program()?).with_file_name(name);
    if !path.exists() {
        bail!(
            "{} is not built: run cargo build --workspace --bins",
            path.display()
        );
    }
    Ok(path.to_string_lossy().into_owned())
}

impl<'l> Central<'l> {
    /// Makes the trust domain and starts the controller; returns when it answers.
    ///
    /// # Errors
    ///
    /// When a program fails or the controller does not answer in time.
    pub(crate) fn found(lab: &'l Lab) -> Result<Self> {
        let central = Self {
            lab,
            directory: lab.path("central/files")?,
            service: lab.path("central/service")?,
        };
        fs::create_dir_all(&central.service)?;
        let endpoint = format!("{CENTRAL_ADDRESS}:{CENTRAL_PORT}");
        in_namespace(
            CENTRAL,
            &[
                &program("hedgerow-control")?,
                "init",
                "--trust-domain",
                TRUST_DOMAIN,
                "--endpoint",
                &endpoint,
                "--listen",
                &endpoint,
                "--dir",
                &central.directory.to_string_lossy(),
                "--operator",
                "admin",
            ],
        )?;
        central.start()?;
        for (site, zone) in SITES {
            central.post("sites", &json!({"name": site, "zone": zone}))?;
        }
        Ok(central)
    }

    /// Starts the controller under a supervisor; returns when it answers.
    ///
    /// # Errors
    ///
    /// When it does not answer in time.
    pub(crate) fn start(&self) -> Result<()> {
        let config = self.directory.join("control.toml");
        self.lab.start(
            CENTRAL,
            "central",
            &[
                &own_program()?,
                "supervise",
                "--directory",
                &self.service.to_string_lossy(),
                "--",
                &program("hedgerow-control")?,
                "run",
                "--config",
                &config.to_string_lossy(),
            ],
        )?;
        self.wait()
    }

    /// Waits until the controller answers.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub(crate) fn wait(&self) -> Result<()> {
        clock::wait_for("the controller's answer", Duration::from_secs(20), || {
            self.ask("GET", "sites", None).map(Some)
        })?;
        Ok(())
    }

    /// Kills the controller without warning, and keeps it dead until [`Self::revive`].
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub(crate) fn kill(&self) -> Result<()> {
        fs::write(self.service.join("hold"), "")?;
        let pid = self.pid()?;
        process::signal(pid, Signal::KILL);
        process::wait_end(pid, Duration::from_secs(5))
    }

    /// Lets the controller be started again; returns when it answers.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub(crate) fn revive(&self) -> Result<()> {
        fs::remove_file(self.service.join("hold"))?;
        self.wait()
    }

    /// Returns the controller's pid.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub(crate) fn pid(&self) -> Result<u32> {
        let state = supervise::state(&self.service.join("state.json"))?;
        state.pid.context("the controller does not run")
    }

    /// Revokes a device while the controller is down, and writes the signed list into a file.
    ///
    /// # Errors
    ///
    /// When the controller runs, or does not know the device.
    pub(crate) fn revoke_offline(&self, device: &str, file: &str) -> Result<()> {
        let control = program("hedgerow-control")?;
        let config = self.directory.join("control.toml");
        let config = config.to_string_lossy();
        let words = ["revoke", device, "--out", file, "--config", &config];
        let argv: Vec<&str> = [control.as_str()].into_iter().chain(words).collect();
        in_namespace(CENTRAL, &argv)?;
        Ok(())
    }

    /// Runs the operator tool and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub(crate) fn hedgerow(&self, words: &[&str]) -> Result<String> {
        let (tool, operator) = (
            program("hedgerow")?,
            self.directory.join("operator/cli.toml"),
        );
        let operator = operator.to_string_lossy();
        let argv: Vec<&str> = [tool.as_str(), "--config", &operator]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        in_namespace(CENTRAL, &argv)
    }

    /// Asks for something.
    ///
    /// # Errors
    ///
    /// When the controller refuses or does not answer.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None)
    }

    /// Orders something.
    ///
    /// # Errors
    ///
    /// When the controller refuses or does not answer.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, Some(("application/json", &body.to_string())))
    }

    /// Sets something.
    ///
    /// # Errors
    ///
    /// When the controller refuses or does not answer.
    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask("PUT", path, Some(("application/json", &body.to_string())))
    }

    /// Applies a policy and waits until every connected agent has verified it in its kernel.
    ///
    /// # Errors
    ///
    /// When the controller refuses it or somebody does not verify it within ten seconds.
    pub(crate) fn apply(&self, policy: &str) -> Result<Value> {
        self.ask(
            "POST",
            "policy/apply?wait=15&confirm=true",
            Some(("application/yaml", policy)),
        )
    }

    /// Gives a device another role.
    ///
    /// # Errors
    ///
    /// When the controller refuses.
    pub(crate) fn label(&self, name: &str, role: &str) -> Result<Value> {
        let site = plant::find(name).map_or("s1", |d| d.site);
        self.put(
            &format!("devices/{name}.{site}/labels"),
            &json!({"labels": {"role": role}}),
        )
    }

    /// Applies a policy from inside of the controller's namespace.
    ///
    /// # Errors
    ///
    /// When the controller refuses it.
    pub(crate) fn apply_from(directory: &Path, policy: &str) -> Result<Value> {
        let request = Request {
            method: "POST",
            path: "policy/apply?confirm=true",
            kind: "application/yaml",
        };
        request.send(directory, Some(policy), |argv, body| {
            process::run_with(argv, body)
        })
    }

    fn ask(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<Value> {
        let kind = body.map_or("", |(kind, _)| kind);
        Request { method, path, kind }.send(
            &self.directory,
            body.map(|(_, text)| text),
            |argv, body| in_namespace_with(CENTRAL, argv, body),
        )
    }

    /// Makes a token for one device.
    ///
    /// # Errors
    ///
    /// When the controller refuses.
    pub(crate) fn token(&self, device: &plant::Device) -> Result<String> {
        let labels: BTreeMap<&str, &str> = device
            .labels
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let made = self.post(
            "tokens",
            &json!({
                "site": device.site, "name": device.name, "labels": labels, "ttl_secs": 3600,
            }),
        )?;
        let text = made.get("token").and_then(Value::as_str);
        Ok(text
            .with_context(|| format!("no token in {made}"))?
            .to_owned())
    }

    /// Returns a device's record.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn device(&self, name: &str) -> Result<Value> {
        let site = plant::find(name).map_or("s1", |d| d.site);
        self.get(&format!("devices/{name}.{site}"))
    }

    /// Returns the devices' overlay addresses: IPv6, and IPv4.
    ///
    /// # Errors
    ///
    /// When a device has none.
    pub(crate) fn overlay(&self) -> Result<(Addresses, Addresses)> {
        let (mut v6, mut v4) = (Addresses::new(), Addresses::new());
        for device in &DEVICES {
            let record = self.device(device.name)?;
            let addresses = record.get("addresses").context("no addresses")?;
            let address = |key: &str| -> Result<IpAddr> {
                let text = addresses.get(key).and_then(Value::as_str);
                Ok(text
                    .with_context(|| format!("no {key} of {}", device.name))?
                    .parse()?)
            };
            v6.insert(device.name, address("v6")?);
            v4.insert(device.name, address("v4")?);
        }
        Ok((v6, v4))
    }

    /// Returns who should reach whom, by the policy evaluator.
    ///
    /// # Errors
    ///
    /// When the controller does not say.
    pub(crate) fn predict(&self) -> Result<Prediction> {
        let services: Vec<String> = plant::SERVICES
            .iter()
            .map(|s| match s.protocol {
                plant::Protocol::Tcp => format!("tcp/{}", s.port),
                plant::Protocol::Udp => format!("udp/{}", s.port),
                plant::Protocol::Ping => "icmp-echo".to_owned(),
            })
            .collect();
        let answer = self.get(&format!("reach?services={}", services.join(",")))?;
        let rows = answer
            .get("rows")
            .and_then(Value::as_array)
            .context("no rows in reach")?;
        let mut prediction = Prediction::new();
        for row in rows {
            let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
            let name = |key: &str| text(key).split('.').next().unwrap_or_default().to_owned();
            let yes = |key: &str| row.get(key).and_then(Value::as_str) == Some("allow");
            let index = services.iter().position(|s| s == text("service"));
            let service = index
                .and_then(|i| plant::SERVICES.get(i))
                .context("a service")?;
            prediction.insert(
                (name("from"), name("to"), service.name.to_owned()),
                Verdict {
                    sender: yes("sender"),
                    receiver: yes("receiver"),
                },
            );
        }
        Ok(prediction)
    }

    /// Waits until every device named has verified all that it was told, and for [`CALM`] nothing
    /// more came; returns when the last of them did, in milliseconds after `start`.
    ///
    /// # Errors
    ///
    /// When one has not within `limit`.
    pub(crate) fn settled_since(
        &self,
        names: &[&str],
        start: Instant,
        limit: Duration,
    ) -> Result<f64> {
        let mut calm_since: Option<Instant> = None;
        clock::wait_for("every device's kernel to be verified", limit, || {
            let looked = clock::now();
            let status = self.get("status")?;
            let behind = behind(&status, names);
            if !behind.is_empty() {
                calm_since = None;
                bail!("not yet: {}", behind.join(", "));
            }
            let calm = *calm_since.get_or_insert(looked);
            if looked.duration_since(calm) < CALM {
                return Ok(None);
            }
            let devices = status.get("devices").and_then(Value::as_array);
            let ages = devices
                .into_iter()
                .flatten()
                .filter_map(|d| d.get("verified_age_ms").and_then(Value::as_f64));
            let newest = ages.fold(f64::MAX, f64::min);
            let after = looked.duration_since(start).as_secs_f64() * 1000.0 - newest;
            Ok(Some((after.max(0.0) * 10.0).round() / 10.0))
        })
    }

    /// As [`Self::settled_since`], when nobody asks how long it took.
    ///
    /// # Errors
    ///
    /// When one has not within `limit`.
    pub(crate) fn settled(&self, names: &[&str], limit: Duration) -> Result<()> {
        self.settled_since(names, clock::now(), limit)?;
        Ok(())
    }

    /// Returns events of a kind, newest last.
    ///
    /// # Errors
    ///
    /// When the controller does not answer.
    pub(crate) fn events(&self, kind: &str) -> Result<Vec<Value>> {
        let answer = self.get("events?limit=1000")?;
        let all = answer
            .get("events")
            .and_then(Value::as_array)
            .context("no events")?;
        let is = |event: &&Value| event.get("kind").and_then(Value::as_str) == Some(kind);
        Ok(all.iter().filter(is).cloned().collect())
    }
}

struct Request<'r> {
    method: &'r str,
    path: &'r str,
    /// Of the body.
    kind: &'r str,
}

impl Request<'_> {
    fn send(
        &self,
        directory: &Path,
        body: Option<&str>,
        run: impl Fn(&[&str], Option<&str>) -> Result<String>,
    ) -> Result<Value> {
        let Self { method, path, kind } = self;
        let file = |name: &str| {
            directory
                .join("operator")
                .join(name)
                .to_string_lossy()
                .into_owned()
        };
        let url = format!("https://{CENTRAL_ADDRESS}:{CENTRAL_PORT}/api/v1/{path}");
        let (certificate, roots) = (file("operator.pem"), file("ca.pem"));
        let header = format!("Content-Type: {kind}");
        let mut argv = vec![
            "curl",
            "--silent",
            "--show-error",
            "--max-time",
            "50",
            "--request",
            method,
            "--cert",
            &certificate,
            "--cacert",
            &roots,
            "--write-out",
            "\n%{http_code}",
        ];
        if body.is_some() {
            argv.extend(["--header", &header, "--data-binary", "@-"]);
        }
        argv.push(&url);
        let text = run(&argv, body)?;
        let (answer, status) = text
            .trim_end()
            .rsplit_once('\n')
            .unwrap_or(("", text.trim()));
        if !status.starts_with('2') {
            bail!("{method} {path}: {status}: {}", answer.trim());
        }
        match answer.trim() {
            "" => Ok(Value::Null),
            text => serde_json::from_str(text).with_context(|| format!("{path}: {text}")),
        }
    }
}

fn behind(status: &Value, names: &[&str]) -> Vec<String> {
    let devices = status.get("devices").and_then(Value::as_array);
    let verified = |name: &&&str| {
        let mut devices = devices.into_iter().flatten();
        devices.any(|d| {
            d.get("name").and_then(Value::as_str) == Some(name)
                && d.get("verified").and_then(Value::as_bool) == Some(true)
        })
    };
    names
        .iter()
        .filter(|n| !verified(n))
        .map(|n| (*n).to_owned())
        .collect()
}

/// Looks a pair up; what the controller does not mention is denied.
pub(crate) fn verdict(prediction: &Prediction, pair: &Pair) -> Verdict {
    let key = (
        pair.from.to_owned(),
        pair.to.to_owned(),
        pair.service.to_owned(),
    );
    prediction.get(&key).copied().unwrap_or(Verdict::DENY)
}
