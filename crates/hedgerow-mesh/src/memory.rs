//! Peers once met: what makes two devices find each other again when nobody else answers.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_identity::statement::TICKET_BYTES_MAX;
use hedgerow_model::address::{Overlay, OverlayAddresses, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::statement::X25519Public;
use hedgerow_model::wire::{self, WireError};
use minicbor::{Decode, Encode};

use crate::path::RELAYS_MAX;

/// Most devices remembered. The one unused for longest goes first, with an [`crate::Output::Forget`].
pub const REMEMBERED_MAX: usize = 10_000;
/// Most endpoints remembered of one device; the one unused for longest goes first.
pub const ENDPOINTS_MAX: usize = 8;
/// Most keys of forgotten peers that are still recognised; the smallest key goes first.
const FORGOTTEN_KEYS_MAX: usize = 1024;

/// One record of the disk cache. Nothing in it is believed before its ticket verified again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Memory {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// Its overlay addresses.
    #[n(1)]
    pub addresses: OverlayAddresses,
    /// Its introduction key.
    #[n(2)]
    pub introduction_key: X25519Public,
    /// Its signed ticket.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ticket: Vec<u8>,
    /// Where it was, the latest first; at most [`ENDPOINTS_MAX`].
    #[n(4)]
    pub endpoints: Vec<Underlay>,
    /// The newest timestamp it introduced itself with, so that older ones stay refused.
    #[n(5)]
    pub heard_ms: u64,
    /// Whether it was a peer when this was written: such devices are asked again after a restart.
    #[n(6)]
    pub live: bool,
    /// Relays it was registered with; at most [`RELAYS_MAX`].
    #[n(7)]
    pub relays: Option<Vec<DeviceId>>,
}

impl Memory {
    /// Encodes the record.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Decodes a record.
    ///
    /// # Errors
    ///
    /// [`WireError`] for anything that [`Self::encode`] did not write, and for broken bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let memory: Self = wire::decode_canonical("memory of a peer", bytes)?;
        if memory.ticket.len() > TICKET_BYTES_MAX
            || memory.endpoints.len() > ENDPOINTS_MAX
            || memory.relays().len() > RELAYS_MAX
        {
            return Err(WireError::Malformed {
                what: "memory of a peer",
                reason: "a part is above its bound".to_owned(),
            });
        }
        Ok(memory)
    }

    /// Returns the relays it was registered with.
    pub fn relays(&self) -> &[DeviceId] {
        self.relays.as_deref().unwrap_or_default()
    }

    /// Puts an endpoint in front. Returns whether that changed anything.
    pub(crate) fn found_at(&mut self, endpoint: Underlay) -> bool {
        if self.endpoints.first() == Some(&endpoint) {
            return false;
        }
        self.endpoints.retain(|known| *known != endpoint);
        self.endpoints.insert(0, endpoint);
        self.endpoints.truncate(ENDPOINTS_MAX);
        true
    }
}

/// All records, found by device, address and use.
#[derive(Default)]
pub(crate) struct Memories {
    /// In boxes: a third of the places in a map are empty.
    by_device: BTreeMap<DeviceId, Box<(Memory, u64)>>,
    by_address: BTreeMap<Overlay, DeviceId>,
    by_use: BTreeSet<(u64, DeviceId)>,
    uses: u64,
    forgotten_keys: BTreeMap<X25519Public, DeviceId>,
}

impl Memories {
    pub(crate) fn len(&self) -> usize {
        self.by_device.len()
    }

    pub(crate) fn get(&self, device: DeviceId) -> Option<&Memory> {
        self.by_device.get(&device).map(|kept| &kept.0)
    }

    pub(crate) fn by_address(&self, address: Overlay) -> Option<&Memory> {
        self.get(*self.by_address.get(&address)?)
    }

    /// Visits devices that were peers when their record was written, the latest used first.
    pub(crate) fn live(&self) -> impl Iterator<Item = DeviceId> {
        let latest = self.by_use.iter().rev().map(|(_, device)| *device);
        latest.filter(|device| self.get(*device).is_some_and(|memory| memory.live))
    }

    /// Stores a record; returns the device that had to go for it.
    pub(crate) fn put(&mut self, memory: Memory) -> Option<DeviceId> {
        let device = memory.device;
        self.remove(device);
        let full = self.by_device.len() >= REMEMBERED_MAX;
        let oldest = self
            .by_use
            .first()
            .map(|(_, device)| *device)
            .filter(|_| full);
        if let Some(oldest) = oldest {
            self.remove(oldest);
        }
        self.uses += 1;
        self.by_use.insert((self.uses, device));
        for address in memory.addresses.iter() {
            self.by_address.insert(address, device);
        }
        let kept = Box::new((memory, self.uses));
        self.by_device.insert(device, kept);
        oldest
    }

    /// Removes a record; returns whether there was one.
    pub(crate) fn remove(&mut self, device: DeviceId) -> bool {
        let Some(kept) = self.by_device.remove(&device) else {
            return false;
        };
        let (memory, used) = *kept;
        self.by_use.remove(&(used, device));
        for address in memory.addresses.iter() {
            if self.by_address.get(&address) == Some(&device) {
                self.by_address.remove(&address);
            }
        }
        true
    }

    /// Keeps the key of a peer that was forgotten for silence, in case it speaks again.
    pub(crate) fn keep_key(&mut self, key: X25519Public, device: DeviceId) {
        if self.forgotten_keys.len() >= FORGOTTEN_KEYS_MAX {
            self.forgotten_keys.pop_first();
        }
        self.forgotten_keys.insert(key, device);
    }

    /// Takes the device that had a key; the next handshake under it finds nothing.
    pub(crate) fn take_key(&mut self, key: &X25519Public) -> Option<DeviceId> {
        self.forgotten_keys.remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(number: u16) -> Memory {
        let [high, low] = number.to_be_bytes();
        let mut id = [0; 16];
        (id[0], id[1]) = (high, low);
        Memory {
            device: DeviceId(id),
            addresses: OverlayAddresses {
                v6: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number),
                v4: Some(std::net::Ipv4Addr::new(100, 80, high, low)),
            },
            introduction_key: X25519Public([1; 32]),
            ticket: vec![1, 2, 3],
            endpoints: vec![Underlay("192.0.2.1:7117".parse().unwrap())],
            heard_ms: 5,
            live: number.is_multiple_of(2),
            relays: None,
        }
    }

    #[test]
    fn a_full_memory_drops_the_one_unused_for_longest() {
        let mut memories = Memories::default();
        for number in 0..10_000 {
            assert_eq!(memories.put(memory(number)), None);
        }
        assert_eq!(memories.put(memory(0)), None, "a use, not a new one");
        assert_eq!(memories.put(memory(20_000)), Some(memory(1).device));
        assert_eq!(memories.len(), REMEMBERED_MAX);
        let gone = memory(1).addresses.iter().next().unwrap();
        assert_eq!(memories.by_address(gone), None);
        assert_eq!(memories.live().next(), Some(memory(20_000).device));
    }

    #[test]
    fn an_address_that_moved_stays_with_its_new_holder() {
        let mut memories = Memories::default();
        memories.put(memory(1));
        let heir = Memory {
            device: DeviceId([9; 16]),
            ..memory(1)
        };
        memories.put(heir.clone());
        memories.remove(memory(1).device);
        let address = heir.addresses.iter().next().unwrap();
        assert_eq!(memories.by_address(address), Some(&heir));
    }

    #[test]
    fn records_survive_the_disk_and_keep_their_bounds() {
        let one = memory(7);
        assert_eq!(Memory::decode(&one.encode()).unwrap(), one);
        let big = Memory {
            endpoints: vec![one.endpoints[0]; 9],
            ..one
        };
        assert!(Memory::decode(&big.encode()).is_err());
    }
}
