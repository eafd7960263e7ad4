//! Asking relays who has an address: what a device does when its memory and its controller cannot tell.
//!
//! A relay answers from its own peers and memories. Nothing in an answer is believed before the ticket
//! verified; a relay that lies costs one check of a signature, and the others are heard as well.
//!
//! # Invariants
//!
//! - Only a relay that was asked is heard, once per question.
//! - What one device asks is bounded, at the asker and at the relay.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hedgerow_identity::statement::TICKET_BYTES_MAX;
use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};
use hedgerow_model::statement::PeerQuery;
use minicbor::Encoder;

use crate::budget::{Bucket, Rate};
use crate::content::{MalformedContent, Reader};
use crate::path::RELAYS_MAX;
use crate::timers::Timers;

/// Most endpoints in one answer; a longer list is refused.
pub const ANSWER_ENDPOINTS_MAX: usize = 8;
/// Most relays asked about one device.
pub const ASKED_MAX: usize = 3;
/// Most questions at once; a further one is answered with "unknown".
pub const QUESTIONS_MAX: usize = 1024;
/// Most devices whose questions are counted; when more ask, all share what is left.
pub const ASKERS_MAX: usize = 10_000;
/// How long relays may take.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Questions of one device that a relay answers.
pub const QUESTIONS: Rate = Rate {
    per_second: 20,
    burst: 200,
};

const ASK: u8 = 0;
const ANSWER: u8 = 1;

/// A message of kind `Lookup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupMessage {
    /// Who is this?
    Ask {
        /// Pairs the answer with the question.
        number: u32,
        /// Whom it is about.
        query: PeerQuery,
    },
    /// What this device knows.
    Answer {
        /// As in the question.
        number: u32,
        /// Nothing when it does not know.
        found: Option<Found>,
    },
}

/// A device as a relay knows it. Nothing in it is believed before the ticket verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The signed ticket.
    pub ticket: Vec<u8>,
    /// Where it may be reached; at most [`ANSWER_ENDPOINTS_MAX`].
    pub endpoints: Vec<Underlay>,
    /// Relays it is registered with; at most [`RELAYS_MAX`].
    pub relays: Vec<DeviceId>,
}

impl LookupMessage {
    /// Encodes the content of a message of kind `Lookup`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut e = Encoder::new(&mut out);
        // Writing into memory does not fail.
        drop(self.write(&mut e));
        out
    }

    fn write(
        &self,
        e: &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        match self {
            Self::Ask { number, query } => e.array(3)?.u8(ASK)?.u32(*number)?.encode(query)?.ok(),
            Self::Answer { number, found } => match found {
                None => e.array(2)?.u8(ANSWER)?.u32(*number)?.ok(),
                Some(found) => {
                    e.array(5)?.u8(ANSWER)?.u32(*number)?;
                    e.bytes(&found.ticket)?.encode(&found.endpoints)?;
                    e.encode(&found.relays)?.ok()
                }
            },
        }
    }

    /// Decodes the content of a message. Elements appended by a later version are ignored.
    ///
    /// # Errors
    ///
    /// For anything else, and for parts above their bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedContent> {
        let (kind, mut r) = Reader::open(bytes)?;
        let message = match kind {
            ASK => Self::Ask {
                number: r.value()?,
                query: r.value()?,
            },
            ANSWER => Self::Answer {
                number: r.value()?,
                found: Found::read(&mut r)?,
            },
            _ => return Err(MalformedContent),
        };
        r.close()?;
        Ok(message)
    }
}

impl Found {
    /// Reads what stands in an answer; nothing when it ends before.
    fn read(r: &mut Reader<'_>) -> Result<Option<Self>, MalformedContent> {
        if r.left() == 0 {
            return Ok(None);
        }
        Ok(Some(Self {
            ticket: r.slice(TICKET_BYTES_MAX)?.to_vec(),
            endpoints: r.values(ANSWER_ENDPOINTS_MAX)?,
            relays: r.values(RELAYS_MAX)?,
        }))
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Say this to a device, inside its tunnel.
    Say {
        /// To whom.
        device: DeviceId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A relay says who it is. Verify it; the question stays open for the others until it is ended by
    /// [`Lookups::end`].
    Found {
        /// Whom it is about.
        query: PeerQuery,
        /// What it says.
        found: Found,
    },
    /// Nobody knew, or nobody was left to ask.
    Unknown {
        /// Whom it was about.
        query: PeerQuery,
    },
}

#[derive(Debug)]
struct Question {
    number: u32,
    /// Who was asked and did not answer yet.
    asked: BTreeSet<DeviceId>,
}

/// Questions to relays and answers as one.
pub struct Lookups {
    questions: BTreeMap<PeerQuery, Question>,
    by_number: BTreeMap<u32, PeerQuery>,
    next_number: u32,
    askers: BTreeMap<DeviceId, Bucket>,
    others: Bucket,
    timers: Timers<PeerQuery>,
    output: VecDeque<Output>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            questions: BTreeMap::new(),
            by_number: BTreeMap::new(),
            next_number: 0,
            askers: BTreeMap::new(),
            others: Bucket::full(QUESTIONS, Mono::ZERO),
            timers: Timers::new(),
            output: VecDeque::new(),
        }
    }
}

impl Lookups {
    /// Asks relays, the first [`ASKED_MAX`] of them. The end is [`Output::Found`] or
    /// [`Output::Unknown`].
    pub fn handle_question(
        &mut self,
        query: PeerQuery,
        relays: impl Iterator<Item = DeviceId>,
        now: Mono,
    ) {
        if self.questions.contains_key(&query) {
            return;
        }
        let asked: BTreeSet<DeviceId> = relays.take(ASKED_MAX).collect();
        if asked.is_empty() || self.questions.len() >= QUESTIONS_MAX {
            self.output.push_back(Output::Unknown { query });
            return;
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        let ask = LookupMessage::Ask { number, query };
        for device in &asked {
            self.say(*device, &ask);
        }
        self.by_number.insert(number, query);
        self.questions.insert(query, Question { number, asked });
        self.timers.set(query, now + ANSWER_WITHIN);
    }

    /// Takes an answer of a device.
    pub fn handle_answer(&mut self, device: DeviceId, number: u32, found: Option<Found>) {
        let Some(query) = self.by_number.get(&number).copied() else {
            return;
        };
        let Some(question) = self.questions.get_mut(&query) else {
            return;
        };
        if !question.asked.remove(&device) {
            return;
        }
        let was_last = question.asked.is_empty();
        match found {
            Some(found) => self.output.push_back(Output::Found { query, found }),
            None if was_last && self.end(query) => {
                self.output.push_back(Output::Unknown { query });
            }
            None => {}
        }
    }

    /// Ends a question: it is answered. Returns whether it was open.
    pub fn end(&mut self, query: PeerQuery) -> bool {
        self.timers.clear(query);
        let question = self.questions.remove(&query);
        question.is_some_and(|q| self.by_number.remove(&q.number).is_some())
    }

    /// Returns whether a relay may still answer the question.
    pub fn is_open(&self, query: PeerQuery) -> bool {
        self.questions
            .get(&query)
            .is_some_and(|q| !q.asked.is_empty())
    }

    /// Returns whether this device's question is answered, and spends from its budget.
    pub fn may_answer(&mut self, device: DeviceId, now: Mono) -> bool {
        if self.askers.len() >= ASKERS_MAX && !self.askers.contains_key(&device) {
            return self.others.take(QUESTIONS, now);
        }
        let bucket = self.askers.entry(device);
        let bucket = bucket.or_insert_with(|| Bucket::full(QUESTIONS, now));
        bucket.take(QUESTIONS, now)
    }

    /// Answers a device's question.
    pub fn answer(&mut self, device: DeviceId, number: u32, found: Option<Found>) {
        self.say(device, &LookupMessage::Answer { number, found });
    }

    /// The device is no peer any more.
    pub fn handle_gone(&mut self, device: DeviceId) {
        self.askers.remove(&device);
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Mono) {
        while let Some(query) = self.timers.due(now) {
            if self.end(query) {
                self.output.push_back(Output::Unknown { query });
            }
        }
    }

    /// Returns the next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] has something to do.
    pub fn deadline(&self) -> Mono {
        self.timers.first().map_or(Mono::NEVER, |(at, _)| at)
    }

    fn say(&mut self, device: DeviceId, message: &LookupMessage) {
        if let Some(bytes) = message::encode(MessageKind::Lookup, &message.encode()) {
            self.output.push_back(Output::Say { device, bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_model::address::Overlay;

    use super::*;

    fn id(n: u8) -> DeviceId {
        DeviceId([n; 16])
    }

    fn found() -> Found {
        Found {
            ticket: vec![7; TICKET_BYTES_MAX],
            endpoints: vec![Underlay("[2001:db8::1]:65535".parse().unwrap()); ANSWER_ENDPOINTS_MAX],
            relays: vec![id(9); RELAYS_MAX],
        }
    }

    const QUERY: PeerQuery =
        PeerQuery::Address(Overlay(std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)));

    fn drain(lookups: &mut Lookups) -> Vec<Output> {
        std::iter::from_fn(|| lookups.poll()).collect()
    }

    #[test]
    fn the_first_relay_that_knows_is_heard_and_others_after_a_lie() {
        let mut lookups = Lookups::default();
        lookups.handle_question(QUERY, [id(1), id(2), id(3), id(4)].into_iter(), Mono::ZERO);
        assert_eq!(drain(&mut lookups).len(), ASKED_MAX);
        lookups.handle_answer(id(4), 0, Some(found()));
        assert_eq!(drain(&mut lookups), [], "not asked");
        lookups.handle_answer(id(1), 0, Some(found()));
        lookups.handle_answer(id(1), 0, Some(found()));
        let one = Output::Found {
            query: QUERY,
            found: found(),
        };
        assert_eq!(drain(&mut lookups), std::slice::from_ref(&one), "each once");
        // The parent did not believe it.
        lookups.handle_answer(id(2), 0, Some(found()));
        assert_eq!(drain(&mut lookups), [one]);
        assert!(lookups.end(QUERY));
        lookups.handle_answer(id(3), 0, Some(found()));
        assert_eq!(drain(&mut lookups), []);
    }

    #[test]
    fn silence_and_ignorance_end_a_question() {
        let mut lookups = Lookups::default();
        lookups.handle_question(QUERY, [id(1), id(2)].into_iter(), Mono::ZERO);
        drain(&mut lookups);
        lookups.handle_answer(id(1), 0, None);
        assert_eq!(drain(&mut lookups), []);
        lookups.handle_answer(id(2), 0, None);
        assert_eq!(drain(&mut lookups), [Output::Unknown { query: QUERY }]);
        lookups.handle_question(QUERY, [id(1)].into_iter(), Mono::ZERO);
        drain(&mut lookups);
        lookups.handle_timeout(lookups.deadline());
        assert_eq!(drain(&mut lookups), [Output::Unknown { query: QUERY }]);
        lookups.handle_question(QUERY, std::iter::empty(), Mono::ZERO);
        assert_eq!(drain(&mut lookups), [Output::Unknown { query: QUERY }]);
    }

    #[test]
    fn a_device_that_asks_for_everybody_is_slowed_down() {
        let mut lookups = Lookups::default();
        let answered = (0..10_000).filter(|_| lookups.may_answer(id(1), Mono::ZERO));
        assert_eq!(answered.count(), 200);
        assert!(lookups.may_answer(id(2), Mono::ZERO), "another device");
    }

    #[test]
    fn messages_survive_the_wire_and_keep_their_bounds() {
        let answer = |found| LookupMessage::Answer { number: 1, found };
        let ask = LookupMessage::Ask {
            number: u32::MAX,
            query: QUERY,
        };
        for message in [ask, answer(None), answer(Some(found()))] {
            let bytes = message.encode();
            assert!(bytes.len() <= message::MESSAGE_BYTES_MAX, "{}", bytes.len());
            assert_eq!(LookupMessage::decode(&bytes).unwrap(), message);
            for cut in 0..bytes.len() {
                assert!(LookupMessage::decode(&bytes[..cut]).is_err());
            }
        }
        let mut long = found();
        long.ticket.push(1);
        assert!(LookupMessage::decode(&answer(Some(long)).encode()).is_err());
    }
}
