//! What README and the guides tell people to type, typed: on machines with systemd, in the order of
//! the documents. A command that no test runs fails here.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod machine;
mod text;

use machine::{Lan, Machine};
use text::Commands;

/// What the demonstration's and this suite's own runs stand for.
const ELSEWHERE: [&str; 2] = ["cargo xtask demo", "cargo xtask test"];
const INSTALL: &str = "install -m 755 target/release/hedgerow-control target/release/hedgerow-agent \
                       target/release/hedgerow /usr/bin/";

/// Boots machines of these names, numbered from 1.
fn boot<const N: usize>(lan: &Lan, names: [&str; N]) -> [Machine; N] {
    let mut number = 0;
    names
        .map(|name| {
            number += 1;
            Machine::start(lan, name, number)
        })
        .map(Machine::booted)
}

/// Creates a token as the document says, and pastes its line on a device.
fn enroll(control: &Machine, create: &str, device: &Machine) {
    let line = control.ok(create);
    device.ok(line.trim());
}

#[test]
fn the_readme_works_as_it_says() {
    let commands = Commands::of(&["README.md"]);
    let readme = |text: &str| commands.take("README.md", text);
    ELSEWHERE.iter().for_each(|c| drop(readme(c)));
    for word in
        readme("cargo build --release -p hedgerow-control -p hedgerow-agent -p hedgerow-cli")
            .split(" -p ")
            .skip(1)
    {
        assert!(text::root().join("crates").join(word).exists(), "{word}");
    }
    readme("apt-get install --yes gcc libc6-dev");

    let lan = Lan::new("r");
    let [control, sensor, collector] = boot(&lan, ["control", "sensor-1", "collector-1"]);
    readme(INSTALL);
    for machine in [&control, &sensor, &collector] {
        machine.ok(INSTALL);
    }
    control.ok(&readme(
        "hedgerow-control init --trust-domain plant.example --endpoint control.plant.example:7443",
    ));
    let controller = control.background(&readme("hedgerow-control run"));
    control.until("hedgerow status", "revision");
    control.ok(&readme("hedgerow site create plant-1 --tz Europe/Paris"));
    let create = readme("hedgerow token create --site plant-1 --labels role=sensor --ttl 1h");
    enroll(&control, &create, &sensor);
    enroll(&control, &create.replace("sensor", "collector"), &collector);
    let run = readme("hedgerow-agent run");
    let _agents = [sensor.background(&run), collector.background(&run)];
    sensor.until("hedgerow-agent status", "verified in the kernel");
    collector.until("hedgerow-agent status", "verified in the kernel");

    control.ok(&readme(
        "sed 's/, underlay: enforce//' examples/plant.yaml > plant.yaml",
    ));
    control.ok(&readme("hedgerow policy check plant.yaml"));
    control.ok(&readme("hedgerow policy plan plant.yaml"));
    control.ok(&readme("hedgerow policy apply plant.yaml --wait 30s"));
    let said = control.ok(&readme("hedgerow explain sensor-1 collector-1 mqtts"));
    assert!(said.contains("r-mqtt"), "{said}");
    control.ok(&readme("hedgerow status"));

    let _broker = collector.background("socat TCP6-LISTEN:8883,fork,reuseaddr,ipv6only=0 EXEC:cat");
    sensor.until(
        "echo 21.5 | socat -T 2 - TCP:collector-1.plant-1:8883",
        "21.5",
    );
    sensor.ok(&readme("hedgerow-agent check"));
    let peers = sensor.ok(&readme("hedgerow-agent peers"));
    assert!(peers.contains("collector-1.plant-1"), "{peers}");
    sensor.ok(&readme("hedgerow-agent off"));
    control.until("hedgerow events", "enforcement_disabled");
    drop(controller);
    commands.assert_all_ran();
}

/// What makes systemd-resolved the resolver of a machine.
const RESOLVED: &str = "dpkg --fsys-tarfile /var/cache/hedgerow-lab/systemd-resolved_*.deb \
                        | tar -x -C / --keep-directory-symlink \
                        && useradd --system --no-create-home systemd-resolve \
                        && systemctl reload dbus && systemctl daemon-reload \
                        && systemctl start systemd-resolved \
                        && rm -f /etc/resolv.conf && echo nameserver 127.0.0.53 > /etc/resolv.conf";

#[test]
fn systemd_resolved_asks_the_agent_for_peers_and_nobody_after_it() {
    let lan = Lan::new("n");
    let [control, sensor, collector] = boot(&lan, ["control", "sensor-1", "collector-1"]);
    for machine in [&control, &sensor, &collector] {
        machine.ok(INSTALL);
    }
    sensor.ok(RESOLVED);
    control.ok(
        "hedgerow-control init --trust-domain plant.example --endpoint control.plant.example:7443",
    );
    let _controller = control.background("hedgerow-control run");
    control.until("hedgerow status", "revision");
    control.ok("hedgerow site create plant-1 --tz Europe/Paris");
    let create = "hedgerow token create --site plant-1 --labels role=sensor --ttl 1h";
    for (role, machine) in [("sensor", &sensor), ("collector", &collector)] {
        enroll(&control, &create.replace("sensor", role), machine);
        // systemd-resolved reads the hosts file as well: what it knows then is from us.
        machine.ok(
            "mkdir -p /etc/hedgerow && printf 'version = 1\\n[names]\\nhosts_file = \"\"\\n' > /etc/hedgerow/agent.toml",
        );
        machine.ok(UNITS);
        machine.ok(ENABLE);
        machine.until("hedgerow-agent status", "verified in the kernel");
    }
    control.ok("sed 's/, underlay: enforce//' examples/plant.yaml > plant.yaml");
    control.ok("hedgerow policy apply plant.yaml --wait 30s");

    let name = "collector-1.plant-1.hedgerow.internal";
    let found = sensor.until(
        &format!("resolvectl query -4 --cache=no {name}"),
        &format!("{name}: 100."),
    );
    let address = after(&found, &format!("{name}:"));
    let said = sensor.ok(&format!("getent ahostsv4 {name}"));
    assert!(said.starts_with(&address), "{said}");
    let said = sensor.ok(&format!("resolvectl query --cache=no {address}"));
    assert!(said.contains(name), "{said}");
    let checked = sensor.until("hedgerow-agent check", "systemd-resolved asks it");
    assert!(checked.contains("no hosts file"), "{checked}");
    let strange = sensor.run("resolvectl query --cache=no nobody.plant-1.hedgerow.internal");
    assert!(
        strange.code != 0 && strange.err.contains("not found"),
        "{strange:?}"
    );

    // A resolver that is switched off is asked no more, and after `off` there is nothing left of it.
    let domains = "resolvectl domain; echo done";
    sensor.ok("echo 'resolver = \"\"' >> /etc/hedgerow/agent.toml");
    sensor.ok("systemctl restart hedgerow-agent");
    sensor.until(
        "resolvectl domain | grep -q hedgerow.internal || echo gone",
        "gone",
    );
    sensor.ok("sed -i '/resolver/d' /etc/hedgerow/agent.toml");
    sensor.ok("systemctl restart hedgerow-agent");
    sensor.until(domains, "hedgerow.internal");
    sensor.ok("hedgerow-agent off");
    let left = sensor.ok(domains);
    assert!(!left.contains("hedgerow"), "{left}");
}

/// What stands in the guides about one plant, from its first hour to its removal.
const GUIDES: [&str; 7] = [
    "docs/operate/README.md",
    "docs/operate/first-site.md",
    "docs/operate/mesh.md",
    "docs/operate/quarantine.md",
    "docs/operate/cut-off.md",
    "docs/operate/backup-restore.md",
    "docs/operate/uninstall.md",
];
const UNITS: &str = "cp packaging/systemd/hedgerow-boot.service packaging/systemd/hedgerow-agent.service \
                     /etc/systemd/system/";
const ENABLE: &str = "systemctl enable --now hedgerow-boot hedgerow-agent";
const BACKUP: &str = "hedgerow-control backup /srv/backup/hedgerow-2026-11-21";

/// The machines and documents of one run.
struct Plant {
    commands: Commands,
    control: Machine,
    sensor: Machine,
    collector: Machine,
    plc: Machine,
    camera: Machine,
}

/// Returns the word after `label` at the start of a line.
fn after(text: &str, label: &str) -> String {
    text.lines()
        .find_map(|l| l.trim_start().strip_prefix(label))
        .unwrap_or_else(|| panic!("no {label} in {text}"))
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

impl Plant {
    fn new(lan: &Lan) -> Self {
        let names = ["control", "sensor-1", "collector-1", "plc-1", "camera-7"];
        let [control, sensor, collector, plc, camera] = boot(lan, names);
        for machine in [&control, &sensor, &collector, &plc, &camera] {
            machine.ok(INSTALL);
        }
        Self {
            commands: Commands::of(&GUIDES),
            control,
            sensor,
            collector,
            plc,
            camera,
        }
    }

    /// Runs a command of a document on a machine.
    fn on(&self, machine: &Machine, file: &str, text: &str) -> String {
        machine.ok(&self.commands.take(file, text))
    }

    /// The same, with `value` for the word that the document leaves to its reader.
    fn with(&self, machine: &Machine, at: (&str, &str), word: &str, value: &str) -> String {
        machine.ok(&self.commands.take(at.0, at.1).replace(word, value))
    }

    fn controller(&self) -> String {
        let doc = "first-site.md";
        let on = |text| self.on(&self.control, doc, text);
        let made = on(
            "hedgerow-control init --trust-domain plant.example --endpoint control.plant.example:7443",
        );
        let (_, passphrase) = made.split_once("shown this once:").unwrap();
        let by_hand = self
            .control
            .background(&self.commands.take(doc, "hedgerow-control run"));
        let hash = after(&made, "root hash");
        self.control
            .until(&self.commands.take(doc, "hedgerow status"), &hash);
        drop(by_hand);
        on("cp packaging/systemd/hedgerow-control.service /etc/systemd/system/");
        on("systemctl enable --now hedgerow-control");
        self.control.until("hedgerow status", "revision");
        passphrase.trim().to_owned()
    }

    fn devices(&self) {
        let doc = "first-site.md";
        let on = |text| self.on(&self.control, doc, text);
        on("hedgerow site create plant-1 --tz Europe/Paris");
        let create = self.commands.take(
            doc,
            "hedgerow token create --site plant-1 --labels role=sensor --count 20 --ttl 8h",
        );
        let approved = self.commands.take(
            doc,
            "hedgerow token create --site plant-1 --labels role=plc --approve",
        );
        enroll(&self.control, &create, &self.sensor);
        let as_role = |role: &str| create.replace("sensor", role);
        enroll(&self.control, &as_role("collector"), &self.collector);
        enroll(&self.control, &as_role("camera"), &self.camera);
        let line = self.control.ok(&approved);
        let waiting = self.plc.background(&format!("sh -c '{}'", line.trim()));
        let own = self.commands.take(doc, "hedgerow-agent fingerprint");
        let fingerprint = self.plc.until(&own, "-");
        let fingerprint = fingerprint.trim();
        self.control.until(
            &self.commands.take(doc, "hedgerow device list"),
            fingerprint,
        );
        let approve = (doc, "hedgerow device approve FINGERPRINT");
        self.with(&self.control, approve, "FINGERPRINT", fingerprint);
        waiting.finished();
        let [units, enable] = [UNITS, ENABLE].map(|c| self.commands.take(doc, c));
        let check = self.commands.take(doc, "hedgerow-agent check");
        for device in [&self.sensor, &self.collector, &self.plc, &self.camera] {
            device.ok(&units);
            device.ok(&enable);
            device.until("hedgerow-agent status", "verified in the kernel");
            device.ok(&check);
        }
        on("hedgerow status --all");
        on("hedgerow check");
    }

    /// Step 3: the document's own segments in place of the demonstration's.
    fn simulated(&self) {
        let doc = "first-site.md";
        let on = |text| self.on(&self.control, doc, text);
        let text = std::fs::read_to_string(text::root().join("docs/operate").join(doc)).unwrap();
        let segments: Vec<&str> = text
            .lines()
            .skip_while(|l| l.trim() != "segments:")
            .take_while(|l| !l.is_empty())
            .filter_map(|l| l.strip_prefix("    "))
            .collect();
        assert!(segments.len() >= 3, "{segments:?}");
        let example = std::fs::read_to_string(text::root().join("examples/plant.yaml")).unwrap();
        let (head, rest) = example.split_once("segments:").unwrap();
        let (_, tail) = rest.split_once("\n\n").unwrap();
        let policy = format!("{head}{}\n\n{tail}", segments.join("\n"));
        let write = |policy: &str| {
            self.control
                .ok(&format!("cat > plant.yaml <<'END'\n{policy}\nEND"));
        };
        write(&policy);
        on("hedgerow policy check plant.yaml");
        on("hedgerow policy test plant.yaml");
        on("hedgerow policy plan plant.yaml");
        on("hedgerow policy apply plant.yaml --wait 30s --note \"first, counting only\"");

        // Step 4: what enforcement would refuse is counted, and then refused.
        let _echo = self
            .collector
            .background("socat TCP6-LISTEN:7000,fork,reuseaddr,ipv6only=0 EXEC:cat");
        let say = "echo 21.5 | socat -T 2 - TCP:collector-1.plant-1:7000,connect-timeout=2";
        self.sensor.until(say, "21.5");
        let counted = self.commands.take(doc, "hedgerow-agent status --json");
        self.sensor.until(&counted, "would.default");
        on("hedgerow explain sensor-1 collector-1 mqtt");
        write(&policy.replace("mode: simulate", "mode: enforce"));
        on("hedgerow policy plan plant.yaml");
        on("hedgerow policy apply plant.yaml --wait 30s");
        on("hedgerow status");
        let refused = self.sensor.run(say);
        assert!(refused.code != 0 && refused.out.is_empty(), "{refused:?}");
        let follow = self
            .commands
            .take(doc, "hedgerow events --kind packet_refused --follow");
        self.control.until(
            &format!("timeout 5 {follow} | grep -m 1 packet_refused"),
            "packet_refused",
        );
        on("hedgerow policy rollback");
        self.sensor.until(say, "21.5");
        self.sensor.until(
            &self.commands.take(doc, "hedgerow-agent status --json"),
            "counters",
        );
    }

    /// Step 5: the plant's own network.
    fn underlay(&self) {
        let doc = "first-site.md";
        let reach = "ping -c 1 -W 1 10.77.0.3";
        self.sensor.ok(reach);
        self.control.ok(
            "cp plant.yaml before.yaml && sed -i '/ iot:/s/mode: enforce/&, underlay: enforce/' plant.yaml",
        );
        self.on(&self.sensor, doc, "hedgerow-agent check");
        let plan = self.on(&self.control, doc, "hedgerow policy plan plant.yaml");
        assert!(plan.contains("underlay"), "{plan}");
        self.control
            .ok("hedgerow policy apply plant.yaml --wait 30s");
        let refused = self.sensor.run(reach);
        assert!(refused.code != 0, "{refused:?}");
        self.on(&self.sensor, doc, "hedgerow-agent check");
        self.control
            .ok("mv before.yaml plant.yaml && hedgerow policy apply plant.yaml --wait 30s");
        self.sensor.ok(reach);
    }

    /// The mesh as a sensor sees it.
    fn seen(&self) {
        let doc = "mesh.md";
        let on = |text| self.on(&self.sensor, doc, text);
        on("hedgerow-agent check");
        let pinged = on("hedgerow-agent ping collector-1 -c 3");
        assert!(pinged.contains("3 answered"), "{pinged}");
        for look in [
            "hedgerow-agent peers",
            "hedgerow-agent paths",
            "hedgerow-agent trace collector-1",
        ] {
            let said = on(look);
            assert!(said.contains("collector-1.plant-1"), "{said}");
        }
        // Nobody has consented.
        let bench = self
            .commands
            .take(doc, "hedgerow-agent bench collector-1 --seconds 1");
        let refused = self.sensor.run(&bench);
        assert!(
            refused.code == 1 && refused.err.contains("mesh.bench"),
            "{refused:?}"
        );
        on("hedgerow-agent capture collector-1 -w collector.pcap --seconds 2");
        let named = on("hedgerow-agent check");
        assert!(
            named.contains("the resolver answers at 127.0.0.59:53"),
            "{named}"
        );
        let numbers = on("hedgerow-agent metrics");
        assert!(
            numbers.contains("hedgerow_peers{class=\"collector\""),
            "{numbers}"
        );
    }

    fn kept(&self, passphrase: &str) {
        let doc = "first-site.md";
        let on = |text| self.on(&self.control, doc, text);
        on("hedgerow status");
        on("hedgerow check");
        on("hedgerow-control operator renew");
        let status = on("hedgerow status --json");
        assert!(status.contains("issuer_not_after_secs"), "{status}");
        self.control.ok(&format!(
            "umask 077 && echo {passphrase} > passphrase && here=$PWD \
             && cd /var/lib/hedgerow/control && mv root/root.pem $here"
        ));
        let renew = (
            doc,
            "hedgerow-control issuer renew --root-key root.pem --passphrase-file FILE",
        );
        self.with(&self.control, renew, "FILE", "passphrase");
    }

    fn contained(&self) {
        let doc = "quarantine.md";
        let on = |text| self.on(&self.control, doc, text);
        on("hedgerow device quarantine camera-7.plant-1 --reason \"talks to strangers\"");
        self.camera.until("hedgerow-agent status", "quarantine");
        let shown = on("hedgerow device show camera-7.plant-1");
        assert!(shown.contains("quarantine"), "{shown}");
        on("hedgerow events --device camera-7.plant-1");
        on("hedgerow device release camera-7.plant-1");
        on("hedgerow check");
        let name = "camera-7.plant-1";
        let release = (doc, "hedgerow device release NAME");
        self.with(&self.control, release, "NAME", name);
        on("hedgerow device revoke camera-7.plant-1 --reason \"stolen in hall 3\"");
        on_device_again(self, doc);
        let revoke = (doc, "hedgerow device revoke NAME");
        self.with(&self.control, revoke, "NAME", name);
        let tokens = on("hedgerow token list");
        let token = tokens
            .lines()
            .find(|l| l.contains("role=sensor"))
            .and_then(|l| l.split_whitespace().next())
            .unwrap_or_else(|| panic!("{tokens}"));
        let end = (doc, "hedgerow token revoke TOKEN");
        self.with(&self.control, end, "TOKEN", token);
        let sensors = on("hedgerow device list --labels role=sensor");
        assert!(sensors.contains("sensor-1"), "{sensors}");
    }

    fn cut_off(&self) {
        let doc = "cut-off.md";
        let on = |text| self.on(&self.control, doc, text);
        self.control.ok("systemctl stop hedgerow-control");
        self.on(&self.sensor, doc, "hedgerow-agent status");
        let check = self.commands.take(doc, "hedgerow-agent check");
        let said = self.sensor.run(&check);
        assert!(said.code != 0 && said.out.contains("uplink"), "{said:?}");
        self.revoke_by_hand(doc);
        self.control.ok("systemctl start hedgerow-control");
        self.sensor.until(&check, "session with");
        on("hedgerow status");
        on("hedgerow check");
        on("hedgerow events --kind uplink_lost --limit 100");
        self.on(&self.sensor, doc, "hedgerow-agent off");
        assert!(!self.sensor.ok("nft list tables").contains("hedgerow"));
        self.on(&self.sensor, doc, "systemctl start hedgerow-agent");
        self.sensor
            .until("hedgerow-agent status", "verified in the kernel");
    }

    /// The machines share no files: the list is carried as text.
    fn revoke_by_hand(&self, doc: &str) {
        let revoke = self
            .commands
            .take(doc, "hedgerow-control revoke NAME --out FILE");
        let words = revoke
            .replace("NAME", "plc-1.plant-1")
            .replace("FILE", "list.cbor");
        let list = self.control.ok(&format!("{words} && base64 -w0 list.cbor"));
        let list = list.lines().last().unwrap().trim();
        let import = self
            .commands
            .take(doc, "hedgerow-agent revocations import FILE");
        let import = import.replace("FILE", "list.cbor");
        self.sensor
            .ok(&format!("echo {list} | base64 -d > list.cbor && {import}"));
        let status = self.on(&self.sensor, doc, "hedgerow-agent status --json");
        assert!(status.contains("\"revocations\""), "{status}");
    }

    fn restored(&self) {
        let doc = "backup-restore.md";
        let on = |text| self.on(&self.control, doc, text);
        on("systemctl stop hedgerow-control");
        on("hedgerow-control restore /srv/backup/hedgerow-2026-11-21");
        on("systemctl start hedgerow-control");
        self.control
            .until(&self.commands.take(doc, "hedgerow status"), "revision");
        // Of the time since the backup: a site, which has to be made anew, and the devices in it.
        self.control
            .ok("hedgerow site create plant-1 --tz Europe/Paris");
        self.control
            .until(&self.commands.take(doc, "hedgerow device list"), "sensor-1");
        self.control.until("hedgerow device list", "collector-1");
        on("hedgerow policy apply plant.yaml --wait 30s");
        on("hedgerow check");
        let name = "sensor-1.plant-1";
        self.with(
            &self.control,
            (doc, "hedgerow device show NAME"),
            "NAME",
            name,
        );
        let events = (doc, "hedgerow events --device NAME");
        self.with(&self.control, events, "NAME", name);
        self.on(&self.plc, doc, "hedgerow-agent leave --force");
    }

    fn removed(&self) {
        let doc = "uninstall.md";
        let on = |machine, text| self.on(machine, doc, text);
        on(&self.collector, "hedgerow-agent off");
        on(&self.collector, "systemctl start hedgerow-agent");
        on(&self.sensor, "hedgerow-agent leave");
        on(
            &self.sensor,
            "systemctl disable --now hedgerow-agent hedgerow-boot",
        );
        self.control.ok("systemctl stop hedgerow-control");
        on(&self.collector, "hedgerow-agent leave --force");
        self.control.ok("systemctl start hedgerow-control");
        self.with(
            &self.control,
            (doc, "hedgerow device remove camera-7.plant-1"),
            "camera-7",
            "collector-1",
        );
        on(
            &self.sensor,
            "rm -rf /var/lib/hedgerow/agent /etc/hedgerow/agent.toml",
        );
        let tables = on(&self.sensor, "nft list tables");
        assert!(!tables.contains("hedgerow"), "{tables}");
        on(&self.sensor, "hedgerow-agent off");
        on(
            &self.sensor,
            "rm -f /etc/systemd/system/hedgerow-agent.service /etc/systemd/system/hedgerow-boot.service \
             /usr/bin/hedgerow-agent",
        );
        assert!(!self.sensor.ok("cat /etc/hosts").contains("edgerow"));
        on(&self.control, "systemctl disable --now hedgerow-control");
        on(
            &self.control,
            "rm -rf /var/lib/hedgerow/control /etc/hedgerow",
        );
    }
}

/// A revoked device comes back with a new token.
fn on_device_again(plant: &Plant, doc: &str) {
    plant.on(&plant.camera, doc, "hedgerow-agent leave --force");
    enroll(
        &plant.control,
        "hedgerow token create --site plant-1 --labels role=camera",
        &plant.camera,
    );
    plant.camera.ok("systemctl restart hedgerow-agent");
    plant
        .camera
        .until("hedgerow-agent status", "verified in the kernel");
}

#[test]
fn the_guides_work_as_they_say() {
    let lan = Lan::new("g");
    let plant = Plant::new(&lan);
    let help = |text| plant.on(&plant.sensor, "operate/README.md", text);
    help("hedgerow-agent --help");
    help("hedgerow-control --help");
    let passphrase = plant.controller();
    plant.on(&plant.control, "backup-restore.md", BACKUP);
    plant.devices();
    plant.simulated();
    plant.seen();
    plant.underlay();
    plant.kept(&passphrase);
    plant.contained();
    plant.cut_off();
    plant.restored();
    plant.removed();
    plant.commands.assert_all_ran();
}

#[test]
fn a_device_that_was_away_learns_of_a_new_issuing_key() {
    let lan = Lan::new("i");
    let [control, sensor] = boot(&lan, ["control", "sensor-1"]);
    for machine in [&control, &sensor] {
        machine.ok(INSTALL);
    }
    let made = control.ok(
        "hedgerow-control init --trust-domain plant.example --endpoint control.plant.example:7443",
    );
    let (_, passphrase) = made.split_once("shown this once:").unwrap();
    control.ok(&format!(
        "umask 077 && echo {} > passphrase",
        passphrase.trim()
    ));
    let controller = control.background("hedgerow-control run");
    control.until("hedgerow status", "revision");
    control.ok("hedgerow site create plant-1 --tz UTC");
    let create = "hedgerow token create --site plant-1 --labels role=sensor";
    enroll(&control, create, &sensor);
    let agent = sensor.background("hedgerow-agent run");
    sensor.until("hedgerow-agent status", "verified in the kernel");
    drop(agent);

    // So long a life is covered by the newest issuing key alone, which signs at once.
    drop(controller);
    control.ok(
        "sed -i 's/^controller_days = .*/controller_days = 365/' /var/lib/hedgerow/control/control.toml",
    );
    control.ok(
        "(cd /var/lib/hedgerow/control && cat root/root.pem) > root.pem \
         && hedgerow-control issuer renew --root-key root.pem --passphrase-file passphrase",
    );
    let _controller = control.background("hedgerow-control run");
    control.until("hedgerow status", "revision");
    let _agent = sensor.background("hedgerow-agent run");
    control.until("hedgerow status", "1 connected, 1 of these verified");
    sensor.until("hedgerow-agent check", "session with");
}
