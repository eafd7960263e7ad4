//! The reach matrix: every source × destination × service, tried with real connections, all at the
//! same time, and looked at from both ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::plant::{self, DEVICES, Device, Protocol, SERVICES, Service};
use crate::probe::{Answer, End, Order, Try};
use crate::{clock, witness};

/// How long a connection may take before it counts as not reached: four times what the slowest
/// allowed one was seen to need, first packet and introduction included.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// A question: from whom to whom with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pair {
    /// Who begins.
    pub(crate) from: &'static str,
    /// To whom.
    pub(crate) to: &'static str,
    /// With what.
    pub(crate) service: &'static str,
}

/// What a policy says of a pair, at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Verdict {
    /// Whether the sender's own kernel lets it out.
    pub(crate) sender: bool,
    /// Whether the receiver's kernel lets it in.
    pub(crate) receiver: bool,
}

impl Verdict {
    /// Both ends allow it.
    pub(crate) const ALLOW: Self = Self {
        sender: true,
        receiver: true,
    };
    /// Both ends deny it.
    pub(crate) const DENY: Self = Self {
        sender: false,
        receiver: false,
    };
}

/// What came of a pair in one network, at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Found {
    /// How it ended for the sender.
    pub(crate) end: End,
    /// Whether the receiver's programs could see it.
    pub(crate) arrived: bool,
}

/// Addresses that a network gives each device.
pub(crate) type Addresses = BTreeMap<&'static str, IpAddr>;

/// What one network let through.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    /// Every pair that was tried.
    pub(crate) found: BTreeMap<Pair, Found>,
    /// How long it took altogether, in seconds.
    pub(crate) seconds: f64,
}

/// A pair that did not end as expected.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Mismatch {
    /// Who began.
    pub(crate) from: &'static str,
    /// To whom.
    pub(crate) to: &'static str,
    /// With what.
    pub(crate) service: &'static str,
    /// What was predicted.
    pub(crate) predicted: Verdict,
    /// What was found.
    pub(crate) found: Found,
}

impl Matrix {
    /// Compares with `predict`, pair by pair and at both ends.
    pub(crate) fn mismatches(&self, predict: impl Fn(&Pair) -> Verdict) -> Vec<Mismatch> {
        let wrong = self.found.iter().filter_map(|(pair, found)| {
            let predicted = predict(pair);
            (!agrees(predicted, *found)).then_some(Mismatch {
                from: pair.from,
                to: pair.to,
                service: pair.service,
                predicted,
                found: *found,
            })
        });
        wrong.collect()
    }

    /// Returns how many pairs reached their destination.
    pub(crate) fn reached(&self) -> usize {
        let reached = self.found.values().filter(|f| f.end == End::Reached);
        reached.count()
    }
}

/// Returns whether what was found is what the verdict means: reached takes both ends; at the
/// receiver something is seen exactly if both ends let the first packet through.
fn agrees(predicted: Verdict, found: Found) -> bool {
    let through = predicted.sender && predicted.receiver;
    (found.end == End::Reached) == through && found.arrived == through
}

/// Every pair of two different devices with every service.
pub(crate) fn pairs()
-> impl Iterator<Item = (Pair, &'static Device, &'static Device, &'static Service)> {
    let ordered = DEVICES.iter().flat_map(|from| {
        DEVICES
            .iter()
            .filter(move |to| to.name != from.name)
            .map(move |to| (from, to))
    });
    ordered.flat_map(|(from, to)| {
        SERVICES.iter().map(move |service| {
            let pair = Pair {
                from: from.name,
                to: to.name,
                service: service.name,
            };
            (pair, from, to, service)
        })
    })
}

/// Tries every pair in every one of `networks` at the same time, and asks both ends. Devices without
/// an address in a network are left out there, and so are pairs of a source in `absent`.
///
/// # Errors
///
/// When a prober or a witness cannot be asked: that is not a verdict.
pub(crate) fn run(networks: &[&Addresses], absent: &[&str]) -> Result<Vec<Matrix>> {
    let start = clock::now();
    let present: Vec<&Device> = DEVICES
        .iter()
        .filter(|d| !absent.contains(&d.name))
        .collect();
    at_once(&present, |device| witness::forget(&device.namespace()))?;
    let tries = plan(networks, absent);
    let answers = at_once(&present, |device| ask(device, tries.get(device.name)))?;
    let seen = at_once(&present, |device| witness::seen(&device.namespace()))?;
    let seconds = (clock::ms_since(start) / 100.0).round() / 10.0;
    let mut matrices: Vec<Matrix> = networks
        .iter()
        .map(|_| Matrix {
            seconds,
            ..Matrix::default()
        })
        .collect();
    for (device, answers) in &answers {
        let tries = tries.get(device).map(Vec::as_slice).unwrap_or_default();
        for answer in answers {
            let Some((network, pair, service, one)) = tries.get(answer.id) else {
                continue;
            };
            let source = networks.get(*network).and_then(|n| n.get(device));
            let arrived = source.is_some_and(|source| {
                let key = (*source, service.protocol, one.port);
                seen.get(pair.to).is_some_and(|seen| seen.contains(&key))
            });
            if let Some(matrix) = matrices.get_mut(*network) {
                matrix.found.insert(
                    *pair,
                    Found {
                        end: answer.end,
                        arrived,
                    },
                );
            }
        }
    }
    Ok(matrices)
}

type Planned = Vec<(usize, Pair, &'static Service, Try)>;

fn plan(networks: &[&Addresses], absent: &[&str]) -> BTreeMap<&'static str, Planned> {
    let mut planned: BTreeMap<&'static str, Planned> = BTreeMap::new();
    for (network, addresses) in networks.iter().enumerate() {
        for (pair, from, to, service) in pairs() {
            let Some(address) = addresses.get(to.name) else {
                continue;
            };
            if absent.contains(&from.name) || !addresses.contains_key(from.name) {
                continue;
            }
            let tries = planned.entry(from.name).or_default();
            let one = Try {
                id: tries.len(),
                address: *address,
                protocol: match service.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                    Protocol::Ping => "ping",
                }
                .to_owned(),
                port: service.port,
            };
            tries.push((network, pair, service, one));
        }
    }
    planned
}

fn ask(device: &Device, tries: Option<&Planned>) -> Result<Vec<Answer>> {
    let order = Order {
        timeout_ms: u64::try_from(PROBE_TIMEOUT.as_millis())?,
        tries: tries
            .into_iter()
            .flatten()
            .map(|(.., one)| one.clone())
            .collect(),
    };
    let own = own_program()?;
    let text = plant::in_namespace_with(
        &device.namespace(),
        &[&own, "probe"],
        Some(&serde_json::to_string(&order)?),
    )?;
    serde_json::from_str(&text).context("cannot read a prober's answers")
}

/// Returns the path of this very program, for the parts of it that run inside a namespace.
///
/// # Errors
///
/// When the system does not tell.
pub(crate) fn own_program() -> Result<String> {
    let path = std::env::current_exe().context("cannot find our own program")?;
    Ok(path.to_string_lossy().into_owned())
}

/// Does something for every device at the same time.
///
/// # Errors
///
/// The first error, if there is one.
pub(crate) fn at_once<T: Send>(
    devices: &[&Device],
    each: impl Fn(&Device) -> Result<T> + Sync,
) -> Result<BTreeMap<&'static str, T>> {
    std::thread::scope(|scope| {
        let started: Vec<_> = devices
            .iter()
            .map(|device| {
                let each = &each;
                (plant::find(device.name), scope.spawn(move || each(device)))
            })
            .collect();
        let mut all = BTreeMap::new();
        for (device, thread) in started {
            let result = thread
                .join()
                .map_err(|_panic| anyhow::anyhow!("a lab thread panicked"))?;
            let device = device.context("an unknown device")?;
            all.insert(device.name, result.with_context(|| device.name.to_owned())?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_tried_with_every_service_and_none_with_itself() {
        assert_eq!(pairs().count(), 10 * 9 * SERVICES.len());
        assert!(pairs().all(|(pair, ..)| pair.from != pair.to));
    }

    #[test]
    fn a_half_open_pair_is_a_mismatch() {
        let reached = Found {
            end: End::Reached,
            arrived: true,
        };
        let arrived = Found {
            end: End::TimedOut,
            arrived: true,
        };
        let nothing = Found {
            end: End::Refused,
            arrived: false,
        };
        assert!(agrees(Verdict::ALLOW, reached));
        assert!(!agrees(Verdict::ALLOW, arrived) && !agrees(Verdict::ALLOW, nothing));
        assert!(agrees(Verdict::DENY, nothing));
        assert!(!agrees(Verdict::DENY, arrived) && !agrees(Verdict::DENY, reached));
        let ingress_only = Verdict {
            sender: true,
            receiver: false,
        };
        assert!(agrees(ingress_only, nothing) && !agrees(ingress_only, arrived));
    }
}
