//! Links to relays over TLS: for a device that no relay can be reached from by UDP.
//!
//! ```text
//!  no relay over UDP for LINK_AFTER ─▶ Open, the best relays first ─▶ an address on this machine
//!  a relay over UDP for LINK_SPARE_FOR ─▶ Close
//! ```
//!
//! A link carries the mesh's datagrams as they are, so the tunnel sees only another address of the relay: one on
//! this machine, behind which the parent passes them on. Nothing is trusted for coming by one.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;

use super::HOME_RELAYS;
use crate::random::Random;

/// So long no relay is reached over UDP before links are opened: two introductions and a probe fit in.
pub const LINK_AFTER: Duration = Duration::from_secs(5);
/// So long a relay is reached over UDP before links are closed.
pub const LINK_SPARE_FOR: Duration = Duration::from_secs(30);
/// Links at once, as many as a device has home relays; further relays wait until one fails.
pub const LINKS_MAX: usize = HOME_RELAYS;
/// The shortest pause before a relay is connected to again that failed; each next is twice as long.
pub const LINK_AGAIN_MIN: Duration = Duration::from_secs(2);
/// The longest.
pub const LINK_AGAIN_MAX: Duration = Duration::from_secs(300);
/// A link by which the relay was not reached for so long has failed.
pub const LINK_USED_WITHIN: Duration = Duration::from_secs(20);
/// Addresses of one relay that are tried; further ones are left out.
pub const LINK_ADDRESSES_MAX: usize = 4;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkOutput {
    /// Connect to this relay.
    Open(DeviceId),
    /// Part from it.
    Close(DeviceId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Opening,
    /// It stands, with its address on this machine, and was last seen to be of use then.
    Open(Underlay, Mono),
}

#[derive(Debug)]
struct Link {
    stage: Stage,
    failures: u32,
    retry_at: Mono,
}

/// Which links there should be; see the module.
pub struct Links {
    is_allowed: bool,
    links: BTreeMap<DeviceId, Link>,
    /// Where relays are said to be.
    addresses: BTreeMap<DeviceId, Vec<Underlay>>,
    /// Since when no relay is reached over UDP.
    without_since: Option<Mono>,
    /// Since when one is.
    with_since: Option<Mono>,
    wake_at: Mono,
    random: Random,
    output: VecDeque<LinkOutput>,
}

impl Links {
    /// Begins without a link, and without leave to open any.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            is_allowed: false,
            links: BTreeMap::new(),
            addresses: BTreeMap::new(),
            without_since: None,
            with_since: None,
            wake_at: Mono::NEVER,
            random: Random::new(seed),
            output: VecDeque::new(),
        }
    }

    /// Allows or forbids links.
    pub fn handle_allowed(&mut self, is_allowed: bool) {
        self.is_allowed = is_allowed;
    }

    /// Returns whether links may be opened.
    pub fn is_allowed(&self) -> bool {
        self.is_allowed
    }

    /// Takes where somebody says that a relay is.
    pub fn handle_addresses(&mut self, relay: DeviceId, addresses: &[Underlay]) {
        if !addresses.is_empty() {
            self.addresses.insert(relay, addresses.to_vec());
        }
    }

    /// Takes every known relay, the best first, and where its tunnel goes when it has one; decides.
    pub fn handle_relays(&mut self, relays: &[(DeviceId, Option<Underlay>)], now: Mono) {
        self.wake_at = Mono::NEVER;
        let known = |device: &DeviceId| relays.iter().any(|(relay, _)| relay == device);
        self.addresses.retain(|device, _| known(device));
        let gone: Vec<DeviceId> = self.links.keys().filter(|d| !known(d)).copied().collect();
        for device in gone {
            self.close(device, now);
            self.links.remove(&device);
        }
        if !self.is_allowed || relays.is_empty() {
            return;
        }
        self.note_use(relays, now);
        let over_udp = relays
            .iter()
            .any(|(_, to)| to.is_some_and(|to| !to.is_loopback()));
        if over_udp {
            self.without_since = None;
            let since = *self.with_since.get_or_insert(now);
            self.spare(since, now);
        } else {
            self.with_since = None;
            let since = *self.without_since.get_or_insert(now);
            match now.since(since) >= LINK_AFTER {
                true => self.open(relays, now),
                false => self.wake_at = since + LINK_AFTER,
            }
        }
    }

    /// The link to a relay stands: datagrams sent to `at` reach it.
    pub fn handle_opened(&mut self, relay: DeviceId, at: Underlay, now: Mono) {
        if let Some(link) = self.links.get_mut(&relay)
            && link.stage == Stage::Opening
        {
            link.stage = Stage::Open(at, now);
        }
    }

    /// A link to a relay is over, or could not be opened.
    pub fn handle_ended(&mut self, relay: DeviceId, now: Mono) {
        let Some(link) = self.links.get_mut(&relay) else {
            return;
        };
        if link.stage != Stage::Idle {
            link.stage = Stage::Idle;
            self.back_off(relay, now);
        }
    }

    /// This machine's addresses changed: what stands may be dead, what failed may work.
    pub fn handle_network_changed(&mut self, now: Mono) {
        let all: Vec<DeviceId> = self.links.keys().copied().collect();
        for device in all {
            self.close(device, now);
            if let Some(link) = self.links.get_mut(&device) {
                link.failures = 0;
                link.retry_at = now;
            }
        }
    }

    /// Returns the address on this machine by which a relay is reached.
    pub fn at(&self, relay: DeviceId) -> Option<Underlay> {
        match self.links.get(&relay)?.stage {
            Stage::Open(at, _) => Some(at),
            Stage::Idle | Stage::Opening => None,
        }
    }

    /// Returns where somebody says that a relay is.
    pub fn addresses(&self, relay: DeviceId) -> &[Underlay] {
        self.addresses.get(&relay).map_or(&[], Vec::as_slice)
    }

    /// Returns the next thing to do.
    pub fn poll(&mut self) -> Option<LinkOutput> {
        self.output.pop_front()
    }

    /// Returns when [`Self::handle_relays`] has something to decide.
    pub fn deadline(&self) -> Mono {
        self.wake_at
    }

    /// Notes which links lead to their relays, and gives up those that do not.
    fn note_use(&mut self, relays: &[(DeviceId, Option<Underlay>)], now: Mono) {
        let mut useless = Vec::new();
        for (device, link) in &mut self.links {
            let Stage::Open(_, used_at) = &mut link.stage else {
                continue;
            };
            // One that is reached by another way as well is spare, and not useless.
            let is_reached = relays.iter().any(|(d, to)| d == device && to.is_some());
            if is_reached {
                *used_at = now;
                link.failures = 0;
            } else if now.since(*used_at) >= LINK_USED_WITHIN {
                useless.push(*device);
            } else {
                self.wake_at = self.wake_at.min(*used_at + LINK_USED_WITHIN);
            }
        }
        for device in useless {
            self.close(device, now);
            self.back_off(device, now);
        }
    }

    /// Closes every link once a relay has been reached over UDP for a while.
    fn spare(&mut self, since: Mono, now: Mono) {
        let has_links = self.links.values().any(|l| l.stage != Stage::Idle);
        if now.since(since) >= LINK_SPARE_FOR {
            let all: Vec<DeviceId> = self.links.keys().copied().collect();
            for device in all {
                self.close(device, now);
            }
            self.links.clear();
        } else if has_links {
            self.wake_at = self.wake_at.min(since + LINK_SPARE_FOR);
        }
    }

    /// Opens as many links as there may be, to the best relays that are not paused.
    fn open(&mut self, relays: &[(DeviceId, Option<Underlay>)], now: Mono) {
        let active = self.links.values().filter(|l| l.stage != Stage::Idle);
        let mut room = LINKS_MAX.saturating_sub(active.count());
        for (device, _) in relays {
            let link = self.links.entry(*device).or_insert(Link {
                stage: Stage::Idle,
                failures: 0,
                retry_at: now,
            });
            if link.stage != Stage::Idle || room == 0 {
                continue;
            }
            if link.retry_at > now {
                self.wake_at = self.wake_at.min(link.retry_at);
                continue;
            }
            room -= 1;
            link.stage = Stage::Opening;
            self.output.push_back(LinkOutput::Open(*device));
        }
    }

    fn close(&mut self, device: DeviceId, now: Mono) {
        if let Some(link) = self.links.get_mut(&device)
            && link.stage != Stage::Idle
        {
            link.stage = Stage::Idle;
            link.retry_at = now;
            self.output.push_back(LinkOutput::Close(device));
        }
    }

    fn back_off(&mut self, device: DeviceId, now: Mono) {
        if let Some(link) = self.links.get_mut(&device) {
            let doublings = link.failures.min(10);
            link.failures += 1;
            let pause = (LINK_AGAIN_MIN * 2u32.pow(doublings)).min(LINK_AGAIN_MAX);
            link.retry_at = now + self.random.jitter(pause);
            self.wake_at = self.wake_at.min(link.retry_at);
        }
    }
}

/// Returns the hosts to connect to, each once.
pub fn hosts<'a>(addresses: impl IntoIterator<Item = &'a Underlay>) -> Vec<IpAddr> {
    let mut out: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let host = address.0.ip().to_canonical();
        if !out.contains(&host) && out.len() < LINK_ADDRESSES_MAX {
            out.push(host);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: DeviceId = DeviceId([1; 16]);
    const FAR: DeviceId = DeviceId([2; 16]);
    const THIRD: DeviceId = DeviceId([3; 16]);

    fn at(secs: u64) -> Mono {
        Mono(Duration::from_secs(secs))
    }

    fn underlay(text: &str) -> Underlay {
        Underlay(text.parse().unwrap())
    }

    fn links() -> Links {
        let mut links = Links::new([7; 32]);
        links.handle_allowed(true);
        links
    }

    fn drain(links: &mut Links) -> Vec<LinkOutput> {
        std::iter::from_fn(|| links.poll()).collect()
    }

    const NONE: [(DeviceId, Option<Underlay>); 3] = [(NEAR, None), (FAR, None), (THIRD, None)];

    #[test]
    fn links_are_opened_to_the_best_relays_after_a_while_without_udp() {
        let mut links = links();
        links.handle_relays(&NONE, at(0));
        assert_eq!((drain(&mut links), links.deadline()), (vec![], at(5)));
        links.handle_relays(&NONE, at(5));
        let both = vec![LinkOutput::Open(NEAR), LinkOutput::Open(FAR)];
        assert_eq!(drain(&mut links), both);
        links.handle_relays(&NONE, at(6));
        assert_eq!(drain(&mut links), vec![], "as many as there may be");
        // One cannot be connected to: the next has its turn at once.
        links.handle_ended(NEAR, at(6));
        links.handle_relays(&NONE, at(6));
        assert_eq!(drain(&mut links), vec![LinkOutput::Open(THIRD)]);
    }

    #[test]
    fn without_leave_or_with_a_relay_over_udp_nothing_is_opened() {
        let mut links = Links::new([7; 32]);
        for secs in [0, 5, 50] {
            links.handle_relays(&NONE, at(secs));
        }
        assert_eq!(drain(&mut links), vec![]);
        links.handle_allowed(true);
        let reached = [(NEAR, None), (FAR, Some(underlay("192.0.2.1:7117")))];
        for secs in [60, 70, 100] {
            links.handle_relays(&reached, at(secs));
        }
        assert_eq!((drain(&mut links), links.deadline()), (vec![], Mono::NEVER));
    }

    #[test]
    fn links_are_left_once_udp_has_worked_for_a_while() {
        let mut links = links();
        let link = underlay("127.71.0.1:4000");
        links.handle_relays(&NONE[..1], at(0));
        links.handle_relays(&NONE[..1], at(5));
        links.handle_opened(NEAR, link, at(6));
        assert_eq!((drain(&mut links).len(), links.at(NEAR)), (1, Some(link)));
        links.handle_relays(&[(NEAR, Some(link))], at(100));
        assert_eq!(drain(&mut links), vec![], "a tunnel by the link is no UDP");
        let over_udp = [(NEAR, Some(underlay("192.0.2.1:7117")))];
        links.handle_relays(&over_udp, at(110));
        assert_eq!((drain(&mut links), links.deadline()), (vec![], at(140)));
        // It failed again meanwhile: the link is kept.
        links.handle_relays(&[(NEAR, Some(link))], at(120));
        links.handle_relays(&over_udp, at(121));
        links.handle_relays(&over_udp, at(150));
        assert_eq!(drain(&mut links), vec![]);
        links.handle_relays(&over_udp, at(151));
        assert_eq!(drain(&mut links), vec![LinkOutput::Close(NEAR)]);
        assert_eq!(links.at(NEAR), None);
    }

    #[test]
    fn a_relay_that_takes_no_link_is_tried_ever_less_and_at_once_on_another_network() {
        let mut links = links();
        let one = &NONE[..1];
        let (mut now, mut pauses) = (at(0), vec![]);
        links.handle_relays(one, now);
        for _ in 0..12 {
            now = links.deadline();
            links.handle_relays(one, now);
            assert_eq!(drain(&mut links), vec![LinkOutput::Open(NEAR)]);
            links.handle_ended(NEAR, now);
            links.handle_relays(one, now);
            pauses.push(links.deadline().since(now));
        }
        assert!(pauses[0] <= LINK_AGAIN_MIN * 5 / 4);
        assert!(pauses[11] >= LINK_AGAIN_MAX * 3 / 4 && pauses[11] <= LINK_AGAIN_MAX * 5 / 4);
        links.handle_network_changed(now);
        links.handle_relays(one, now);
        assert_eq!(drain(&mut links), vec![LinkOutput::Open(NEAR)]);
    }

    #[test]
    fn a_link_that_leads_to_no_relay_is_given_up() {
        let mut links = links();
        let one = &NONE[..1];
        links.handle_relays(one, at(0));
        links.handle_relays(one, at(5));
        links.handle_opened(NEAR, underlay("127.71.0.1:4000"), at(5));
        drain(&mut links);
        links.handle_relays(one, at(24));
        assert_eq!(drain(&mut links), vec![]);
        links.handle_relays(one, at(25));
        assert_eq!(drain(&mut links), vec![LinkOutput::Close(NEAR)]);
        assert!(links.deadline() > at(25), "after a pause");
        // The parent says so too; that is the same failure.
        links.handle_ended(NEAR, at(25));
        assert!(links.deadline() <= at(25) + LINK_AGAIN_MIN * 5 / 4);
    }

    #[test]
    fn a_relay_forgotten_loses_its_link() {
        let mut links = links();
        links.handle_relays(&NONE, at(0));
        links.handle_relays(&NONE, at(5));
        drain(&mut links);
        links.handle_relays(&NONE[1..], at(6));
        let outputs = drain(&mut links);
        assert_eq!(outputs, [LinkOutput::Close(NEAR), LinkOutput::Open(THIRD)]);
    }

    #[test]
    fn a_host_is_connected_to_once() {
        let list = ["192.0.2.1:1", "[::ffff:192.0.2.1]:2", "[2001:db8::1]:1"].map(underlay);
        let found = hosts(&list);
        assert_eq!(found.len(), 2);
    }
}
