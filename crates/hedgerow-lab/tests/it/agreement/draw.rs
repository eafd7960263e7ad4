//! Policies and devices drawn from a seed: the same seed, the same plant, on every machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use hedgerow_model::Wall;
use hedgerow_model::id::DeviceId;
use hedgerow_model::program::DeviceState;
use hedgerow_policy::{Facts, Policy, Severity, parse};

/// How many devices a plant has.
pub(super) const DEVICES: usize = 4;

/// Choices that follow from a seed alone.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64: any seed will do, and neighbouring seeds have nothing in common.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.below(u64::try_from(choices.len()).unwrap());
        choices[usize::try_from(index).unwrap()]
    }

    pub(super) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn selector(&mut self) -> &'static str {
        self.pick(&[
            "any",
            "any",
            "role=a",
            "role=b",
            "role in (a, b)",
            "zone=x",
            "zone",
            "site=s1",
            "name=d1",
            "segment=g1",
            "role=a or zone=x",
            "not role=c",
            "not (zone=y and role=b)",
        ])
    }

    /// An allow rule names its destinations, never what they are not.
    fn destination(&mut self) -> &'static str {
        self.pick(&[
            "any",
            "any",
            "role=a",
            "role=b",
            "role in (b, c)",
            "zone=y",
            "name=d2",
            "segment=g2",
        ])
    }

    fn service(&mut self) -> &'static str {
        self.pick(&[
            "web",
            "modbus",
            "range",
            "ping",
            "any",
            "[web, ping]",
            "udp/53",
        ])
    }

    fn flows(&mut self, deny: bool) -> String {
        let from = self.selector();
        let to = if deny {
            self.selector()
        } else {
            self.destination()
        };
        let mut text = format!(
            "from: \"{from}\", to: \"{to}\", service: {}",
            self.service()
        );
        if self.chance(3) {
            let same = self.pick(&["site", "site", "zone", "site, zone"]);
            write!(text, ", same: [{same}]").unwrap();
        }
        text
    }

    fn schedule(&mut self) -> String {
        let days = self.pick(&["mon, tue, wed, thu, fri", "sat, sun", "sun", "mon, wed"]);
        let (from, to) = self.pick(&[("08:00", "18:00"), ("22:00", "06:00"), ("00:00", "24:00")]);
        let zone = self.pick(&["site", "site", "Asia/Kolkata"]);
        format!("{{ days: [{days}], from: \"{from}\", to: \"{to}\", tz: {zone} }}")
    }

    fn rule(&mut self, id: usize, limits: bool) -> String {
        let deny = self.chance(4);
        let flows = self.flows(deny);
        let mut text = format!("  - {{ id: r{id}, ");
        if deny {
            let mode = self.pick(&["", ", mode: observe", ", mode: simulate", ", mode: enforce"]);
            write!(text, "deny: {{ {flows} }}{mode}").unwrap();
        } else {
            text += &flows;
            if limits {
                text += ", limit: { rate: 64 kbit/s, per: source }";
            }
        }
        if self.chance(4) {
            write!(text, ", when: {}", self.pick(&["w1", "w2"])).unwrap();
        }
        if self.chance(4) {
            text += ", tier: site";
        }
        text + " }\n"
    }

    fn guardrail(&mut self, id: usize, rules: &[String]) -> String {
        let deny = !self.chance(4);
        let word = if deny { "deny" } else { "allow" };
        let mut text = format!("  - {{ id: g{id}, {word}: {{ {} }}", self.flows(deny));
        let allows: Vec<usize> = rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| !rule.contains("deny"))
            .map(|(index, _)| index)
            .collect();
        if deny && !allows.is_empty() {
            write!(text, ", except: [ r{} ]", self.pick(&allows)).unwrap();
        }
        if self.chance(4) {
            text += ", when: w1";
        }
        text + " }\n"
    }

    /// Writes a policy file. Its rules may contradict each other; [`accepted`] mends that.
    pub(super) fn policy(&mut self) -> String {
        // All rules or none, so that no two differ in their limit.
        let limits = self.chance(2);
        let modes = ["enforce", "enforce", "simulate", "observe"];
        let (m1, m2) = (self.pick(&modes), self.pick(&modes));
        let (w1, w2) = (self.schedule(), self.schedule());
        let mut text = format!(
            "apiVersion: hedgerow.policy/v1\nkind: Policy\n\
             labels: {{ role: {{ values: [a, b, c] }}, zone: {{ values: [x, y] }} }}\n\
             services: {{ web: [tcp/443], modbus: [tcp/502], range: [tcp/400-410, udp/50-53], \
             ping: [icmp-echo] }}\n\
             schedules: {{ w1: {w1}, w2: {w2} }}\n\
             segments:\n  g1: {{ select: \"role=a\", mode: {m1} }}\n  \
             g2: {{ select: \"role=b and not segment=g1\", mode: {m2} }}\n",
        );
        let count = self.pick(&[4, 6, 8, 12]);
        let rules: Vec<String> = (0..count).map(|i| self.rule(i, limits)).collect();
        if !self.chance(3) {
            text += "guardrails:\n";
            for id in 0..self.pick(&[1, 2]) {
                text += &self.guardrail(id, &rules);
            }
        }
        text += "rules:\n";
        text.extend(rules);
        let (a, b) = (self.destination(), self.service());
        let c = self.destination();
        writeln!(
            text,
            "states: {{ quarantine: {{ allow: [ {{ to: \"{a}\", service: {b} }}, \
             {{ from: \"{c}\", service: web }} ] }} }}"
        )
        .unwrap();
        text
    }

    /// Draws the devices. At most one is contained, so that the rules have their say.
    pub(super) fn devices(&mut self) -> Vec<Facts> {
        let mut devices: Vec<Facts> = (0..DEVICES)
            .map(|i| {
                let role = self.pick(&["role=a", "role=b", "role=b", "role=c"]);
                let zone = self.pick(&["", ",zone=x", ",zone=y"]);
                let (site, clock) =
                    self.pick(&[("s1", "Europe/Berlin"), ("s2", "America/New_York")]);
                Facts {
                    id: DeviceId([u8::try_from(i).unwrap(); 16]),
                    name: format!("d{i}").parse().unwrap(),
                    site: site.parse().unwrap(),
                    labels: format!("{role}{zone}").parse().unwrap(),
                    state: None,
                    zone: Some(clock.to_owned()),
                }
            })
            .collect();
        if self.chance(2) {
            let state = self.pick(&[
                DeviceState::Quarantine,
                DeviceState::Quarantine,
                DeviceState::Onboarding,
            ]);
            devices[DEVICES - 1].state = Some(state);
        }
        devices
    }

    /// A minute of the nine days around the European clock change of 2026-03-29.
    pub(super) fn time(&mut self) -> Wall {
        Wall::from_secs(1_774_396_800 + self.below(9 * 24 * 60) * 60)
    }
}

/// Leaves out the lines that are refused, which only rules that contradict others may be.
pub(super) fn accepted(mut text: String) -> (Policy, String) {
    loop {
        let (policy, findings) = parse(&text, "drawn");
        if let Some(policy) = policy {
            return (policy, text);
        }
        let errors = findings.iter().filter(|d| d.severity == Severity::Error);
        let mut refused = BTreeSet::new();
        for error in errors {
            let index = usize::try_from(error.line).unwrap() - 1;
            let line = text.lines().nth(index).unwrap_or_default();
            assert!(line.starts_with("  - {"), "{error}\n{text}");
            refused.insert(index);
        }
        let kept = text.lines().enumerate();
        let kept: Vec<&str> = kept
            .filter(|(i, _)| !refused.contains(i))
            .map(|(_, line)| line)
            .collect();
        let followed = |i: usize| kept.get(i + 1).is_some_and(|l| l.starts_with("  "));
        let whole = (0..kept.len()).filter(|i| !kept[*i].ends_with("s:") || followed(*i));
        text = whole.map(|i| kept[i]).collect::<Vec<_>>().join("\n") + "\n";
    }
}
