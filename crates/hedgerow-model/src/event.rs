//! Typed events: what happened, for people and programs. Events are not logs.

use std::collections::BTreeMap;
use std::fmt;

use minicbor::{Decode, Encode};

use crate::id::DeviceId;
use crate::time::Wall;

/// Most details on one event.
pub const EVENT_DETAILS_MAX: usize = 12;
/// Longest detail value, in bytes; longer ones are cut.
pub const EVENT_DETAIL_BYTES_MAX: usize = 240;

/// How much an event matters (OCSF severity).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// For the record.
    Informational,
    /// Worth a look.
    Low,
    /// Worth acting on.
    Medium,
    /// Act now.
    High,
}

macro_rules! events {
    ($($(#[$doc:meta])* $index:literal $name:ident $text:literal $severity:ident;)*) => {
        /// What happened: noun, then past verb.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(index_only)]
        pub enum EventKind {
            $($(#[$doc])* #[n($index)] $name,)*
        }

        impl EventKind {
            /// Every kind, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the stable name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Returns how much it matters.
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity),* }
            }
        }
    };
}

events! {
    /// A device got its identity.
    0 DeviceEnrolled "device_enrolled" Informational;
    /// An enrollment was refused; detail `reason`.
    1 EnrollmentRefused "enrollment_refused" Medium;
    /// A device's certificate and ticket were renewed.
    2 CertificateRenewed "certificate_renewed" Informational;
    /// A token was used a second time, with another key.
    3 TokenReused "token_reused" High;
    /// One key was used by two sessions; both devices' records are flagged.
    4 KeyCopied "key_copied" High;
    /// A device was revoked.
    5 DeviceRevoked "device_revoked" Medium;
    /// A device was removed.
    6 DeviceRemoved "device_removed" Informational;
    /// A device's labels changed.
    7 DeviceRelabelled "device_relabelled" Informational;
    /// A device was quarantined.
    8 DeviceQuarantined "device_quarantined" High;
    /// A device was released from quarantine.
    9 DeviceReleased "device_released" Medium;
    /// A device awaits an operator's approval.
    10 ApprovalRequested "approval_requested" Low;
    /// A policy revision was accepted.
    11 PolicyAccepted "policy_accepted" Informational;
    /// A revision is verified in a device's kernel.
    12 PolicyApplied "policy_applied" Informational;
    /// A device refused a resource; detail `reason`, `resource`.
    13 ResourceRefused "resource_refused" High;
    /// The kernel table differed from what was loaded, and was mended.
    14 TableMended "table_mended" High;
    /// The kernel table was adopted after the agent's restart.
    15 TableAdopted "table_adopted" Informational;
    /// Packets were refused (sampled); details `reason`, `source`, `destination`.
    16 PacketRefused "packet_refused" Low;
    /// A packet carried an overlay address outside the tunnel, or another's inside.
    17 AddressSpoofed "address_spoofed" High;
    /// An introduction was refused; detail `reason`.
    18 IntroductionRefused "introduction_refused" Medium;
    /// A peer was introduced and installed.
    19 PeerInstalled "peer_installed" Informational;
    /// A peer was removed; detail `reason`.
    20 PeerRemoved "peer_removed" Informational;
    /// The controller could not be reached any more.
    21 UplinkLost "uplink_lost" Medium;
    /// The controller is reached again.
    22 UplinkRestored "uplink_restored" Informational;
    /// The agent started; detail `version`.
    23 AgentStarted "agent_started" Informational;
    /// Enforcement was switched off on the device by root.
    24 EnforcementDisabled "enforcement_disabled" High;
    /// A device left of its own accord.
    25 DeviceLeft "device_left" Medium;
    /// The wall clock is behind the trusted-time floor.
    26 ClockUntrusted "clock_untrusted" Medium;
    /// Underlay enforcement was tried and taken back, because the lifeline was lost.
    27 UnderlayReverted "underlay_reverted" High;
    /// Messages were refused before any identity was proven; details `reason`, `count`.
    28 MessageRefused "message_refused" Low;
    /// A session was held until an operator decides.
    29 SessionHeld "session_held" High;
    /// The store was restored from a backup: a new timeline begins.
    30 StoreRestored "store_restored" High;
    /// A site was created.
    31 SiteCreated "site_created" Informational;
    /// A token was created or revoked; detail `action`.
    32 TokenChanged "token_changed" Informational;
    /// An overlay prefix overlaps a local route.
    33 RouteOverlapped "route_overlapped" Medium;
    /// A device's disk did not take what is in force: a reboot would forget it; details `reason`, `revision`.
    34 DiskFailed "disk_failed" High;
    /// A list of names did not take every peer; the others are reached by address; details `site`, `count`.
    35 NamesLeftOut "names_left_out" Low;
    /// Somebody looks at the packets of a peer on a device; details `of`, `seconds_max`.
    36 CaptureStarted "capture_started" Medium;
    /// That ended; details `of`, and `packets`, `bytes`, `dropped` where the command said so.
    37 CaptureEnded "capture_ended" Low;
    /// Datagrams to a peer go another way; details `from`, `to`, `reason` (`better`, `dead`).
    38 PathChanged "path_changed" Informational;
    /// No way to a peer answers.
    39 PathLost "path_lost" Low;
    /// This device registered with a relay and is reached through it.
    40 RelayJoined "relay_joined" Informational;
    /// This device left a relay, because it is dead, out of service, or another is nearer.
    41 RelayLeft "relay_left" Low;
    /// A signer said two things under one version: its key is misused, and what was held stays; details `item`, `version`, `signer`.
    42 ItemForked "item_forked" High;
    /// A peer and this device do not come to a pre-shared key; it is tried again; detail `failures`.
    43 PskFailed "psk_failed" Low;
    /// A peer introduced itself again and again with an older key while another holds a session with its newer one: a disk was copied, or its clock went back; details `times`, `source`, `other`.
    44 KeyDisputed "key_disputed" High;
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Event {
    /// When, by the clock of whoever saw it, in milliseconds since 1970.
    #[n(0)]
    pub at_ms: u64,
    /// What.
    #[n(1)]
    pub kind: EventKind,
    /// Who saw it, or whom an order concerned.
    #[n(2)]
    pub device: Option<DeviceId>,
    /// The other party, if any.
    #[n(3)]
    pub peer: Option<DeviceId>,
    /// Named values; at most [`EVENT_DETAILS_MAX`].
    #[n(4)]
    pub details: BTreeMap<String, String>,
}

impl Event {
    /// Makes an event without details.
    pub fn new(at: Wall, kind: EventKind) -> Self {
        Self {
            at_ms: at.0,
            kind,
            device: None,
            peer: None,
            details: BTreeMap::new(),
        }
    }

    /// Names the device.
    #[must_use]
    pub fn device(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }

    /// Names the other party.
    #[must_use]
    pub fn peer(mut self, peer: DeviceId) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Adds a named value, cut to [`EVENT_DETAIL_BYTES_MAX`]; beyond [`EVENT_DETAILS_MAX`] it is
    /// left out.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl fmt::Display) -> Self {
        if self.details.len() < EVENT_DETAILS_MAX {
            let mut text = value.to_string();
            text.truncate(text.floor_char_boundary(EVENT_DETAIL_BYTES_MAX));
            self.details.insert(key.to_owned(), text);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_the_wire_never_move() {
        for (i, kind) in EventKind::ALL.iter().enumerate() {
            assert_eq!(
                minicbor::to_vec(kind).unwrap(),
                minicbor::to_vec(i as u64).unwrap()
            );
        }
    }

    /// Writes the reference page from the documentation of the kinds above.
    fn reference_page() -> String {
        let mut page = String::from(
            "# Events\n\nGenerated from `EventKind` in `hedgerow-model`; a test compares it. \
             An event has a time, a kind, at most\none device and one peer, and named details. \
             Names and numbers never change their meaning.\n\n\
             | event | number | severity | what happened |\n|---|---|---|---|\n",
        );
        let kinds = include_str!("event.rs")
            .split_once("events! {\n")
            .and_then(|(_, rest)| rest.split_once("\n}"))
            .map_or("", |(kinds, _)| kinds);
        let mut doc = Vec::new();
        for line in kinds.lines().map(str::trim) {
            match line.strip_prefix("/// ") {
                Some(text) => doc.push(text),
                None => {
                    let number = line.split(' ').next().unwrap_or_default();
                    let kind = EventKind::ALL[number.parse::<usize>().unwrap()];
                    let severity = format!("{:?}", kind.severity()).to_lowercase();
                    let what = doc.join(" ");
                    page += &format!("| `{kind}` | {number} | {severity} | {what} |\n");
                    doc.clear();
                }
            }
        }
        page
    }

    /// Update it with `UPDATE_EXPECT=1 cargo nextest run -p hedgerow-model`.
    #[test]
    fn the_reference_page_names_every_kind() {
        let page = reference_page();
        assert_eq!(page.matches("\n| `").count(), EventKind::ALL.len());
        expect_test::expect_file!["../../../docs/reference/events.md"].assert_eq(&page);
    }

    #[test]
    fn details_are_cut_at_their_bound() {
        let event = Event::new(Wall(1), EventKind::AgentStarted).detail("x", "é".repeat(200));
        assert_eq!(event.details["x"].len(), EVENT_DETAIL_BYTES_MAX);
    }
}
