//! Datagrams of one length to one peer, sealed side by side and sent with one system call.

use hedgerow_model::address::Underlay;

use super::core::{OVERHEAD_BYTES, Sealed};
use super::message::HEADER_BYTES;
use crate::udp::{Sent, Udp};

/// Bytes of one train: below what an IPv4 packet holds.
const TRAIN_BYTES_MAX: usize = 65_000;

/// What the datagrams of one train have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    to: Underlay,
    /// Traffic class.
    class: u8,
}

/// A train that is being made up. The next packet is written and sealed where it will be sent from.
pub(super) struct Train {
    memory: Vec<u8>,
    used: usize,
    count: usize,
    segment: usize,
    kind: Option<Kind>,
    /// Datagrams the kernel did not take.
    lost: u64,
}

impl Train {
    pub(super) fn new(mtu: usize) -> Self {
        Self {
            memory: vec![0; TRAIN_BYTES_MAX + mtu + OVERHEAD_BYTES],
            used: 0,
            count: 0,
            segment: 0,
            kind: None,
            lost: 0,
        }
    }

    /// Returns where the next packet is sealed.
    pub(super) fn place(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.used..).unwrap_or_default()
    }

    /// Returns where the next packet is written: room is left before it and after it.
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
    pub(super) fn add(&mut self, sealed: Sealed, class: u8, udp: &Udp) {
        let kind = Kind {
            to: sealed.to,
            class,
        };
        let fits = self.kind == Some(kind) && sealed.len <= self.segment;
        if self.count > 0 && !fits {
            let (start, end) = (self.used, self.used + sealed.len);
            self.depart(udp);
            if end <= self.memory.len() {
                self.memory.copy_within(start..end, 0);
            }
        }
        if self.count == 0 {
            self.kind = Some(kind);
            self.segment = sealed.len;
        }
        self.used += sealed.len;
        self.count += 1;
        let is_last = sealed.len < self.segment;
        if is_last || self.count >= udp.train_max() || self.used + self.segment > TRAIN_BYTES_MAX {
            self.depart(udp);
        }
    }

    /// Sends what is there.
    pub(super) fn depart(&mut self, udp: &Udp) {
        if let (Some(kind), Some(bytes)) = (self.kind.take(), self.memory.get(..self.used))
            && udp.send(kind.to, kind.class, bytes, self.segment) != Sent::Yes
        {
            self.lost += u64::try_from(self.count).unwrap_or(0);
        }
        self.used = 0;
        self.count = 0;
    }

    /// Returns how many datagrams the kernel did not take since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
