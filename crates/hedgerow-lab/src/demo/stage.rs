//! What every act after the first one has in hand.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::before;
use crate::agent::Agent;
use crate::central::{Central, Prediction, verdict};
use crate::clock;
use crate::lab::Lab;
use crate::matrix::{self, Addresses, Pair, Verdict};
use crate::plant::{self, DEVICES, Device};
use crate::screen::{Act, Screen};

/// How long the kernels of all devices may take to be verified after a change.
pub(crate) const SETTLE: Duration = Duration::from_secs(30);
/// How long an event may take to show up at the controller.
const EVENT: Duration = Duration::from_secs(45);

/// The plant with Hedgerow in it.
#[derive(Debug)]
pub(crate) struct Stage<'l> {
    /// The lab.
    pub(crate) lab: &'l Lab,
    /// Where results go.
    pub(crate) screen: Screen,
    /// The controller.
    pub(crate) central: Central<'l>,
    /// The agents, by device.
    pub(crate) agents: BTreeMap<&'static str, Agent<'l>>,
    /// Supervisors of the agents, by device.
    pub(crate) supervisors: BTreeMap<&'static str, u32>,
    /// The devices' overlay addresses.
    pub(crate) v6: Addresses,
    /// The same, IPv4.
    pub(crate) v4: Addresses,
    /// The policy in force.
    pub(crate) policy: String,
}

impl<'l> Stage<'l> {
    /// Returns a device's agent.
    ///
    /// # Errors
    ///
    /// When there is no such device.
    pub(crate) fn agent(&self, name: &str) -> Result<&Agent<'l>> {
        self.agents
            .get(name)
            .with_context(|| format!("no agent on {name}"))
    }

    /// Returns a device.
    ///
    /// # Errors
    ///
    /// When there is no such device.
    pub(crate) fn device(&self, name: &str) -> Result<&'static Device> {
        plant::find(name).with_context(|| format!("no device {name}"))
    }

    /// Tries every pair on the overlay, in both families, and on the plant's own network, and
    /// compares with what is expected.
    ///
    /// # Errors
    ///
    /// When the lab itself fails.
    pub(crate) fn compare(
        &self,
        act: &mut Act,
        overlay: impl Fn(&Pair) -> Verdict,
        underlay: Verdict,
    ) -> Result<()> {
        let own = before::underlay();
        let found = matrix::run(&[&self.v6, &self.v4, &own], &[])?;
        let names = ["overlay, IPv6", "overlay, IPv4", "plant's own network"];
        for (index, (matrix, name)) in found.iter().zip(names).enumerate() {
            let wrong = match index {
                2 => matrix.mismatches(|_| underlay),
                _ => matrix.mismatches(&overlay),
            };
            act.matrix(&format!("reach, {name}"), matrix, &wrong, index == 0);
        }
        Ok(())
    }

    /// As [`Self::compare`], with what the controller's evaluator predicts. Returns the prediction.
    ///
    /// # Errors
    ///
    /// When the lab itself fails or the controller does not answer.
    pub(crate) fn compare_predicted(&self, act: &mut Act) -> Result<Prediction> {
        let prediction = self.central.predict()?;
        self.compare(act, |pair| verdict(&prediction, pair), Verdict::DENY)?;
        Ok(prediction)
    }

    /// Records whether the controller has got an event of `kind`.
    pub(crate) fn expect_event(&self, act: &mut Act, kind: &str, device: Option<&str>) {
        self.expect_event_since(act, kind, device, 0, "");
    }

    /// Records whether the controller has got an event of `kind` since that many seconds after 1970,
    /// with `detail` among its details.
    pub(crate) fn expect_event_since(
        &self,
        act: &mut Act,
        kind: &str,
        device: Option<&str>,
        since: u64,
        detail: &str,
    ) {
        let id = device.and_then(|name| self.central.device(name).ok());
        let id = id.and_then(|record| record.get("id")?.as_str().map(str::to_owned));
        let found = clock::wait_for(&format!("an event {kind}"), EVENT, || {
            let events = self.central.events(kind)?;
            let matches = |event: &&Value| {
                let of = |key: &str| event.get(key).and_then(Value::as_str);
                let at = event
                    .get("at_ms")
                    .and_then(Value::as_u64)
                    .unwrap_or_default();
                let details = event.get("details").map(Value::to_string);
                at >= since * 1000
                    && details.unwrap_or_default().contains(detail)
                    && id
                        .as_deref()
                        .is_none_or(|id| of("device") == Some(id) || of("reporter") == Some(id))
            };
            Ok(events.iter().rev().find(matches).cloned())
        });
        let what = match device {
            Some(device) => format!("event {kind} of {device}"),
            None => format!("event {kind}"),
        };
        match found {
            Ok(event) => {
                let details = event
                    .get("details")
                    .map(Value::to_string)
                    .unwrap_or_default();
                act.check(
                    &what,
                    "it is at the controller",
                    &format!("there {details}"),
                    true,
                );
            }
            Err(error) => {
                act.check(
                    &what,
                    "it is at the controller",
                    &format!("{error:#}"),
                    false,
                );
            }
        }
    }

    /// Returns the names of all devices.
    pub(crate) fn all(&self) -> Vec<&'static str> {
        DEVICES.iter().map(|d| d.name).collect()
    }
}
