//! What waits to be sent: bounded, cut into frames, most urgent first.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::frame::{self, BULK_PART_BYTES_MAX, Channel, PART_BYTES_MAX};
use crate::offer::Offer;

/// Most messages that wait on one channel.
pub(crate) const MESSAGES_MAX: usize = 64;

/// The channel is full; the message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// An encoded message, part of which other sessions send too.
#[derive(Debug)]
pub(crate) struct Message {
    pieces: Vec<Piece>,
    len: usize,
}

/// Consecutive bytes of a message.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Of this message alone.
    Own(Vec<u8>),
    /// A resource.
    Shared(Arc<Offer>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(offer) => offer.encoded(),
        }
    }
}

impl Message {
    /// Puts a message together.
    pub(crate) fn new(pieces: impl Iterator<Item = Piece>) -> Self {
        let pieces: Vec<Piece> = pieces.collect();
        Self {
            len: pieces.iter().map(|p| p.bytes().len()).sum(),
            pieces,
        }
    }

    /// Appends up to `most` bytes from `begin` on to `out`.
    fn copy(&self, begin: usize, most: usize, out: &mut Vec<u8>) {
        let (mut skip, mut left) = (begin, most);
        for piece in &self.pieces {
            let bytes = piece.bytes();
            let from = bytes.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(bytes.len());
            let now = from.get(..left).unwrap_or(from);
            out.extend_from_slice(now);
            left -= now.len();
            if left == 0 {
                return;
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.copy(0, self.len, &mut out);
        out
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            len: bytes.len(),
            pieces: vec![Piece::Own(bytes)],
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    lanes: [Lane; 4],
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Message>,
    /// How much of the first message has left.
    sent: usize,
}

impl Outbox {
    /// Takes an encoded message.
    pub(crate) fn push(
        &mut self,
        channel: Channel,
        message: impl Into<Message>,
    ) -> Result<(), Full> {
        let lane = self.lanes.get_mut(channel.index()).ok_or(Full)?;
        if lane.waiting.len() >= MESSAGES_MAX {
            return Err(Full);
        }
        lane.waiting.push_back(message.into());
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
        let message = self.waiting.front()?;
        let left = message.len.saturating_sub(self.sent);
        let now = left.min(part_max);
        let more = now < left;
        let mut frame = frame::begin(channel, now, more);
        message.copy(self.sent, now, &mut frame);
        if more {
            self.sent += now;
        } else {
            self.sent = 0;
            self.waiting.pop_front();
            if self.waiting.is_empty() {
                // An idle session holds no memory for what it might send.
                self.waiting = VecDeque::new();
            }
        }
        Some(frame)
    }
}
