//! Datagrams of one length to one peer, sealed side by side and sent with one system call.

use hedgerow_model::address::Underlay;

use super::Stats;
use super::core::{OVERHEAD_BYTES, Sealed};
use super::message::HEADER_BYTES;
use crate::udp::{Sent, Udp};

/// Bytes of one train: below what an IPv4 packet holds.
const TRAIN_BYTES_MAX: usize = 64_000;

/// A train that is being made up. The next packet is read and sealed where it will be sent from.
pub(super) struct Train {
    memory: Vec<u8>,
    used: usize,
    count: usize,
    segment: usize,
    to: Option<Underlay>,
}

impl Train {
    pub(super) fn new(mtu: usize) -> Self {
        Self {
            memory: vec![0; TRAIN_BYTES_MAX + mtu + OVERHEAD_BYTES],
            used: 0,
            count: 0,
            segment: 0,
            to: None,
        }
    }

    /// Returns where the next packet is sealed.
    pub(super) fn place(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.used..).unwrap_or_default()
    }

    /// Returns where the next packet is read: room is left before it and after it.
    pub(super) fn packet_place(&mut self) -> &mut [u8] {
        let end = self
            .memory
            .len()
            .saturating_sub(OVERHEAD_BYTES - HEADER_BYTES);
        self.memory
            .get_mut(self.used + HEADER_BYTES..end)
            .unwrap_or_default()
    }

    /// Adds the datagram that was sealed in [`Train::place`]; sends what is complete.
    pub(super) fn add(&mut self, sealed: Sealed, udp: &Udp, stats: &mut Stats) {
        let fits = self.to == Some(sealed.to) && sealed.len <= self.segment;
        if self.count > 0 && !fits {
            let (start, end) = (self.used, self.used + sealed.len);
            self.depart(udp, stats);
            if end <= self.memory.len() {
                self.memory.copy_within(start..end, 0);
            }
        }
        if self.count == 0 {
            self.to = Some(sealed.to);
            self.segment = sealed.len;
        }
        self.used += sealed.len;
        self.count += 1;
        let is_last = sealed.len < self.segment;
        if is_last || self.count >= udp.train_max() || self.used + self.segment > TRAIN_BYTES_MAX {
            self.depart(udp, stats);
        }
    }

    /// Sends what is there.
    pub(super) fn depart(&mut self, udp: &Udp, stats: &mut Stats) {
        if let (Some(to), Some(bytes)) = (self.to.take(), self.memory.get(..self.used)) {
            let sent = udp.send(to, bytes, self.segment);
            if sent == Sent::Refused && self.count > 1 {
                // The path may not cut trains: each by itself.
                for datagram in bytes.chunks(self.segment) {
                    if udp.send(to, datagram, datagram.len()) != Sent::Yes {
                        stats.dropped_send += 1;
                    }
                }
            } else if sent != Sent::Yes {
                stats.dropped_send += u64::try_from(self.count).unwrap_or(0);
            }
        }
        self.used = 0;
        self.count = 0;
    }
}
