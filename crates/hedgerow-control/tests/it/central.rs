//! A controller of our own, in a directory of its own, gone afterwards.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hedgerow_identity::enroll::Token;
use hedgerow_identity::enroll::wire::EnrollReply;
use hedgerow_identity::key::SoftwareP256;
use hedgerow_model::id::Digest;
use hedgerow_model::statement::X25519Public;
use serde_json::{Value, json};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::agent::{self, Cheat, Device};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What makes a program see another time.
pub(crate) const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// A controller.
pub(crate) struct Central {
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) passphrase: PathBuf,
    child: Option<Child>,
}

impl Drop for Central {
    fn drop(&mut self) {
        self.stop();
        let backup = self.dir.with_extension("backup");
        drop(std::fs::remove_file(backup));
        drop(std::fs::remove_file(&self.passphrase));
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Central {
    /// Makes a trust domain.
    pub(crate) fn new() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let dir = std::env::temp_dir().join(format!("hgt-control-{}-{port}", std::process::id()));
        let passphrase = dir.with_extension("passphrase");
        std::fs::write(&passphrase, "correct horse battery\n").unwrap();
        let central = Self {
            dir,
            port,
            passphrase,
            child: None,
        };
        let endpoint = format!("127.0.0.1:{port}");
        let made = central
            .command(&[
                "init",
                "--trust-domain",
                "plant.example",
                "--endpoint",
                &endpoint,
            ])
            .args(["--listen", &endpoint, "--passphrase-file"])
            .arg(&central.passphrase)
            .arg("--dir")
            .arg(&central.dir)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        central
    }

    /// Makes a trust domain and runs its controller.
    pub(crate) fn started() -> Self {
        let mut central = Self::new();
        central.start();
        central
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow-control"));
        command.args(words).env("RUST_LOG", "info");
        command
    }

    /// Runs a command of the program to its end; the configuration's path is its last word.
    pub(crate) fn run(&self, words: &[&str]) {
        let done = self
            .command(words)
            .arg(self.dir.join("control.toml"))
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// Runs the controller at another time until its log says `what`; returns the log.
    pub(crate) fn log_in_the_future(&self, offset: &str, what: &str) -> String {
        let path = self.dir.join("log");
        // It renews its own certificate there, which is not valid yet here.
        let own = self.dir.join("keys/controller.pem");
        let certificate = std::fs::read(&own).unwrap();
        let mut child = self
            .command(&["run", "--config"])
            .arg(self.dir.join("control.toml"))
            .env("LD_PRELOAD", FAKETIME)
            .envs([("FAKETIME", offset), ("DONT_FAKE_MONOTONIC", "1")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&path).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let log = loop {
            let log = std::fs::read_to_string(&path).unwrap();
            if log.contains(what) || Instant::now() > end {
                break log;
            }
            pause();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::write(&own, certificate).unwrap();
        log
    }

    /// Sets one of the bounds under `[limits]`.
    pub(crate) fn configure(&self, key: &str, value: usize) {
        let path = self.dir.join("control.toml");
        let mut config: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let limits = config
            .entry("limits")
            .or_insert_with(|| toml::Table::new().into());
        let value = toml::Value::Integer(value.try_into().unwrap());
        limits.as_table_mut().unwrap().insert(key.to_owned(), value);
        std::fs::write(&path, config.to_string()).unwrap();
    }

    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    pub(crate) fn start_with(&mut self, variables: &[(&str, &str)]) {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let child = self
            .command(&["run", "--config"])
            .arg(self.dir.join("control.toml"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.until("the controller answers", || {
            self.try_ask("GET", "sites", "").is_ok()
        });
    }

    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        let end = Instant::now() + Duration::from_secs(10);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                child.kill().unwrap();
            }
            pause();
        }
    }

    /// Has the running controller look at its files and store.
    pub(crate) fn reload(&self) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// Stops, restores a backup over everything, and starts again.
    pub(crate) fn restore(&mut self, file: &std::path::Path) {
        self.stop();
        let done = self
            .command(&["restore"])
            .arg(file)
            .arg("--dir")
            .arg(&self.dir)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        self.start();
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask("POST", path, &body.to_string());
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_ask(method, path, body).unwrap()
    }

    fn try_ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, Value), ureq::Error> {
        call(&self.client(true), self.port, method, path, body)
    }

    /// Asks in another thread, because the answer waits for what this one does.
    pub(crate) fn ask_later(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> JoinHandle<(u16, Value)> {
        let (client, port) = (self.client(true), self.port);
        let (method, path, body) = (method.to_owned(), path.to_owned(), body.to_owned());
        std::thread::spawn(move || call(&client, port, &method, &path, &body).unwrap())
    }

    pub(crate) fn ask_without_certificate(&self, path: &str) -> (u16, Value) {
        call(&self.client(false), self.port, "GET", path, "").unwrap()
    }

    fn client(&self, with_certificate: bool) -> ureq::Agent {
        let text = std::fs::read(self.dir.join("operator/operator.pem")).unwrap();
        let chain: Vec<Certificate<'static>> = parse_pem(&text)
            .map(Result::unwrap)
            .filter_map(|item| {
                let PemItem::Certificate(certificate) = item else {
                    return None;
                };
                Some(certificate)
            })
            .collect();
        let root = std::fs::read(self.dir.join("operator/ca.pem")).unwrap();
        let root = Certificate::from_pem(&root).unwrap();
        let key = PrivateKey::from_pem(&text).unwrap();
        let own = with_certificate.then(|| ClientCert::new_with_certs(&chain, key));
        let tls = TlsConfig::builder()
            .client_cert(own)
            .root_certs(RootCerts::new_with_certs(&[root]))
            .unversioned_rustls_crypto_provider(Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .build();
        ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .into()
    }

    /// Returns whether such an event is stored.
    pub(crate) fn has_event(&self, kind: &str) -> bool {
        let events = self.get("events?limit=1000");
        let events = events["events"].as_array().unwrap();
        events.iter().any(|e| e["kind"] == json!(kind))
    }

    /// Waits for a condition.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "never: {what}\n{}", log());
            pause();
        }
    }

    pub(crate) fn token(&self, mut wish: Value) -> String {
        wish["ttl_secs"] = json!(600);
        self.post("tokens", &wish)["token"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Enrolls a device.
    pub(crate) fn enroll(&self, wish: Value) -> Device {
        let token = Token::parse(&self.token(wish)).unwrap();
        let (key, introduction) = (agent::new_key(), agent::new_introduction_key());
        let (reply, trust) = agent::enroll(
            self.port,
            token.genesis(),
            Some(&token),
            &key,
            introduction,
            Cheat::None,
        );
        Device::new(reply, trust, key, introduction)
    }

    pub(crate) fn enroll_raw(
        &self,
        token: &Token,
        key: &SoftwareP256,
        introduction: X25519Public,
        cheat: Cheat,
    ) -> EnrollReply {
        agent::enroll(
            self.port,
            token.genesis(),
            Some(token),
            key,
            introduction,
            cheat,
        )
        .0
    }

    pub(crate) fn enroll_without(
        &self,
        key: &SoftwareP256,
        introduction: X25519Public,
    ) -> EnrollReply {
        let genesis: Digest = self.get("status")["root_hash"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        agent::enroll(self.port, genesis, None, key, introduction, Cheat::None).0
    }
}

fn call(
    client: &ureq::Agent,
    port: u16,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, Value), ureq::Error> {
    let url = format!("https://127.0.0.1:{port}/api/v1/{path}");
    let mut answer = match method {
        "GET" => client.get(&url).call()?,
        "PUT" => client.put(&url).send(body)?,
        "DELETE" => client.delete(&url).call()?,
        _ => client.post(&url).send(body)?,
    };
    let text = answer.body_mut().read_to_string()?;
    let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok((answer.status().as_u16(), value))
}

/// Lets the other side work; every caller waits for a condition with an end.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
