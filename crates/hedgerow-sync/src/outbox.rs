//! What waits to be sent: bounded, cut into frames, most urgent first.

use std::collections::VecDeque;

use crate::frame::{self, BULK_PART_BYTES_MAX, Channel, PART_BYTES_MAX};

/// Most messages that wait on one channel.
pub(crate) const MESSAGES_MAX: usize = 64;

/// The channel is full; the message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    lanes: [Lane; 4],
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Vec<u8>>,
    /// How much of the first message has left.
    sent: usize,
}

impl Outbox {
    /// Takes an encoded message.
    pub(crate) fn push(&mut self, channel: Channel, message: Vec<u8>) -> Result<(), Full> {
        let lane = self.lanes.get_mut(channel.index()).ok_or(Full)?;
        if lane.waiting.len() >= MESSAGES_MAX {
            return Err(Full);
        }
        lane.waiting.push_back(message);
        Ok(())
    }

    /// Returns how many messages wait on `channel`.
    pub(crate) fn waiting(&self, channel: Channel) -> usize {
        self.lanes
            .get(channel.index())
            .map_or(0, |lane| lane.waiting.len())
    }

    /// Returns the next frame, most urgent first.
    pub(crate) fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.lanes
            .iter_mut()
            .zip(Channel::ALL)
            .find_map(|(lane, channel)| lane.next_frame(channel))
    }
}

impl Lane {
    fn next_frame(&mut self, channel: Channel) -> Option<Vec<u8>> {
        let part_max = match channel {
            Channel::Bulk => BULK_PART_BYTES_MAX,
            Channel::Policy | Channel::Command | Channel::Telemetry => PART_BYTES_MAX,
        };
        let rest = self.waiting.front()?.get(self.sent..)?;
        let (now, more) = match rest.split_at_checked(part_max) {
            Some((now, later)) if !later.is_empty() => (now, true),
            _ => (rest, false),
        };
        let frame = frame::part(channel, now, more);
        if more {
            self.sent += now.len();
        } else {
            self.sent = 0;
            self.waiting.pop_front();
            if self.waiting.is_empty() {
                self.waiting = VecDeque::new();
            }
        }
        Some(frame)
    }
}
