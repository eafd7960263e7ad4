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
    sensor.ok(&readme("hedgerow-agent off"));
    control.until("hedgerow events", "enforcement_disabled");
    drop(controller);
    commands.assert_all_ran();
}
