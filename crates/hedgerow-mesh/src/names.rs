//! Names of peers: one question in, one answer out.
//!
//! ```text
//!  question ─▶ Zone ─▶ below the suffix ─────▶ A, AAAA, "no such name", "no such type"
//!                 ├──▶ inside an overlay pool ▶ PTR, "no such name"
//!                 └──▶ anything else ─────────▶ REFUSED: nothing is forwarded
//! ```
//!
//! # Invariants
//!
//! - An answer names only this device and those that the controller's signed list names for it.
//! - No question reaches another server, so nobody learns from here what a program asks.
//! - Bytes that are no question get no answer; a damaged question gets an error of its own length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::name::ToLabelIter as _;
use domain::base::{
    Message, MessageBuilder, Name, ParsedName, Question, Rtype, Serial, StaticCompressor, Ttl,
};
use domain::rdata::{A, Aaaa, Ptr, Soa};
use hedgerow_model::address::{Overlay, OverlayAddresses, Prefix};
use hedgerow_model::statement::{NameEntry, Names, SiteConfig, Ticket};

#[cfg(test)]
mod tests;

/// How long an answer may be kept, in seconds. Addresses stay with a device; this bounds how long a
/// name that the policy took away is still found.
pub const TTL_SECS: u32 = 30;
/// How long "no such name" may be kept, in seconds: a device that joins is found soon.
pub const NEGATIVE_TTL_SECS: u32 = 5;
/// Longest question that is read, in bytes; a longer one gets no answer.
pub const QUESTION_BYTES_MAX: usize = 1232;
/// Longest answer to a question by UDP that allows for it, in bytes: no fragments anywhere.
pub const UDP_BYTES_MAX: u16 = 1232;
/// Longest answer to a question by UDP that says nothing (RFC 1035, 2.3.4).
pub const PLAIN_UDP_BYTES_MAX: u16 = 512;
/// Most domains that [`Zone::domains`] names; a pool that would need more is left out.
pub const DOMAINS_MAX: usize = 40;

/// What an OPT record without options takes.
const OPT_BYTES: usize = 11;

type Owned = Name<Vec<u8>>;
type Target = StaticCompressor<Vec<u8>>;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: the answer is cut to what the other takes.
    Udp,
    /// A stream: the answer is whole.
    Tcp,
}

/// What became of a question; the spelling is stable, for counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It has an answer.
    Answered,
    /// The name is there, the type is not.
    NoData,
    /// There is no such name.
    NoName,
    /// It is about something else.
    Refused,
    /// It is damaged, or asks in a way that is not spoken here.
    Malformed,
    /// It is no question: silence.
    Dropped,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] = [
        Self::Answered,
        Self::NoData,
        Self::NoName,
        Self::Refused,
        Self::Malformed,
        Self::Dropped,
    ];

    /// Returns the stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoData => "no_data",
            Self::NoName => "no_name",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Dropped => "dropped",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known by name, as of one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    suffix: Owned,
    own: NameEntry,
    names: Option<Arc<Names>>,
    pools: Vec<Prefix>,
    serial: u32,
}

/// What is said to a question about us.
struct Said {
    outcome: Outcome,
    records: Vec<Record>,
    /// The zone that the answer is of.
    apex: Owned,
}

enum Record {
    Address(Overlay),
    Pointer(Owned),
    Authority,
}

impl Zone {
    /// Takes what holds now. There is none where the configuration's suffix is no domain name.
    pub fn new(config: &SiteConfig, own: &Ticket, names: Option<Arc<Names>>) -> Option<Self> {
        let serial = names.as_ref().map_or(config.revision, |n| n.revision);
        Some(Self {
            suffix: config.suffix.parse().ok()?,
            own: NameEntry {
                id: own.id,
                name: own.name.clone(),
                site: own.site.clone(),
                addresses: own.addresses,
            },
            names,
            pools: config.pools.clone(),
            // Only its change matters, and nobody transfers the zone.
            serial: u32::try_from(serial.number & u64::from(u32::MAX)).unwrap_or_default(),
        })
    }

    /// Adds a pool whose addresses have names here.
    #[must_use]
    pub fn with_pool(mut self, pool: Prefix) -> Self {
        if !self.pools.contains(&pool) {
            self.pools.push(pool);
        }
        self
    }

    /// Returns the suffix, without a dot at its end.
    pub fn suffix(&self) -> String {
        self.suffix.to_string().trim_end_matches('.').to_owned()
    }

    /// Returns how many names there are, this device's own among them.
    pub fn len(&self) -> usize {
        1 + self.names.as_ref().map_or(0, |n| n.entries.len())
    }

    /// Returns whether there is no name, which is never so: this device has one.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the domains that are answered here: the suffix, then those of the pools. A pool whose
    /// end is not at a label, and that would need more than [`DOMAINS_MAX`] of them, is left out.
    pub fn domains(&self) -> Vec<String> {
        let mut out = vec![self.suffix()];
        for pool in &self.pools {
            let domains = reverse_domains(*pool);
            if out.len() + domains.len() <= DOMAINS_MAX {
                out.extend(domains);
            }
        }
        out
    }

    /// Returns the entry called `name`, which is `device`, `device.site` or the full name.
    pub fn find(&self, name: &str) -> Option<&NameEntry> {
        let name = name.to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        let name = name
            .strip_suffix(&self.suffix())
            .map_or(name, |n| n.trim_end_matches('.'));
        match name.split_once('.') {
            Some((device, site)) => self.entry(device, site),
            None => self.entry(name, self.own.site.as_str()),
        }
    }

    /// Answers a question; no bytes where silence is the answer.
    pub fn answer(&self, question: &[u8], transport: Transport) -> (Outcome, Option<Vec<u8>>) {
        answer(Some(self), question, transport)
    }

    fn entry(&self, device: &str, site: &str) -> Option<&NameEntry> {
        if (self.own.name.as_str(), self.own.site.as_str()) == (device, site) {
            return Some(&self.own);
        }
        let entries = &self.names.as_ref()?.entries;
        let key = |e: &NameEntry| (e.site.as_str(), e.name.as_str()).cmp(&(site, device));
        entries.get(entries.binary_search_by(key).ok()?)
    }

    fn has_site(&self, site: &str) -> bool {
        let mut listed = self.names.iter().flat_map(|n| &n.entries);
        self.own.site.as_str() == site || listed.any(|e| e.site.as_str() == site)
    }

    fn at(&self, address: IpAddr) -> Option<&NameEntry> {
        let listed = self.names.iter().flat_map(|n| &n.entries);
        std::iter::once(&self.own)
            .chain(listed)
            .find(|e| e.addresses.contains(Overlay(address)))
    }

    /// Says what is known of a name; nothing when it is none of ours.
    fn say(&self, name: &ParsedName<&[u8]>, rtype: Rtype) -> Option<Said> {
        if name.ends_with(&self.suffix) {
            let labels = labels_before(name, self.suffix.label_count());
            return Some(self.say_forward(&labels, rtype));
        }
        self.say_reverse(name, rtype)
    }

    /// `labels` are those before the suffix, the last one first.
    fn say_forward(&self, labels: &[String], rtype: Rtype) -> Said {
        let said = |outcome, records| Said {
            outcome,
            records,
            apex: self.suffix.clone(),
        };
        match labels {
            [] if rtype == Rtype::SOA => said(Outcome::Answered, vec![Record::Authority]),
            [] => said(Outcome::NoData, Vec::new()),
            [site] if self.has_site(site) => said(Outcome::NoData, Vec::new()),
            [site, device] => match self.entry(device, site) {
                None => said(Outcome::NoName, Vec::new()),
                Some(entry) => {
                    let records = addresses(entry.addresses, rtype);
                    let outcome = match records.is_empty() {
                        true => Outcome::NoData,
                        false => Outcome::Answered,
                    };
                    said(outcome, records)
                }
            },
            _ => said(Outcome::NoName, Vec::new()),
        }
    }

    fn say_reverse(&self, name: &ParsedName<&[u8]>, rtype: Rtype) -> Option<Said> {
        let asked = Reverse::parse(name)?;
        let pool = self.pools.iter().find(|p| asked.is_inside(p))?;
        let apex = domain_of(&asked.digits, asked.family, asked.family.labels(*pool))?;
        let (outcome, records) = match asked.whole() {
            None if asked.has_more => (Outcome::NoName, Vec::new()),
            None => (Outcome::NoData, Vec::new()),
            Some(address) => match self.at(address) {
                None => (Outcome::NoName, Vec::new()),
                Some(_) if asked.has_more => (Outcome::NoName, Vec::new()),
                Some(entry) if matches!(rtype, Rtype::PTR | Rtype::ANY) => {
                    let full = format!("{}.{}.{}", entry.name, entry.site, self.suffix);
                    let pointer = full.parse().ok().map(Record::Pointer);
                    (Outcome::Answered, pointer.into_iter().collect())
                }
                Some(_) => (Outcome::NoData, Vec::new()),
            },
        };
        Some(Said {
            outcome,
            records,
            apex,
        })
    }

    fn authority(&self, apex: &Owned) -> Soa<Owned> {
        let ttl = Ttl::from_secs(TTL_SECS);
        let hostmaster = format!("hostmaster.{apex}");
        Soa::new(
            apex.clone(),
            hostmaster.parse().unwrap_or_else(|_| apex.clone()),
            Serial(self.serial),
            ttl,
            ttl,
            ttl,
            Ttl::from_secs(NEGATIVE_TTL_SECS),
        )
    }
}

/// Answers a question; without a zone everything is refused, for nothing is known yet.
pub fn answer(
    zone: Option<&Zone>,
    question: &[u8],
    transport: Transport,
) -> (Outcome, Option<Vec<u8>>) {
    let dropped = (Outcome::Dropped, None);
    if question.len() > QUESTION_BYTES_MAX {
        return dropped;
    }
    let message = match Message::from_octets(question) {
        Ok(message) if !message.header().qr() => message,
        _ => return dropped,
    };
    match reply(zone, &message, transport) {
        Ok((outcome, bytes)) => (outcome, Some(bytes)),
        // The message is smaller than any limit: not even its header fits no buffer.
        Err(PushError::LimitExceeded | PushError::CountOverflow | PushError::ShortBuf) => dropped,
    }
}

fn reply(
    zone: Option<&Zone>,
    message: &Message<&[u8]>,
    transport: Transport,
) -> Result<(Outcome, Vec<u8>), PushError> {
    if message.header().opcode() != Opcode::QUERY {
        return bare(message, Rcode::NOTIMP);
    }
    let (Ok(question), Ok(_)) = (message.sole_question(), message.additional()) else {
        return bare(message, Rcode::FORMERR);
    };
    let edns = message.opt();
    let limit = match (transport, &edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_UDP_BYTES_MAX,
        (Transport::Udp, Some(opt)) => opt
            .udp_payload_size()
            .clamp(PLAIN_UDP_BYTES_MAX, UDP_BYTES_MAX),
    };
    let edns = edns.map(|opt| opt.version());
    if edns.is_some_and(|version| version > 0) {
        let mut out = started(message, Rcode::NOERROR, limit)?.additional();
        push_opt(&mut out, OptRcode::BADVERS)?;
        return Ok((Outcome::Malformed, finished(out)));
    }
    let said = zone
        .filter(|_| matches!(question.qclass(), Class::IN | Class::ANY))
        .and_then(|zone| Some((zone, zone.say(question.qname(), question.qtype())?)));
    let Some((zone, said)) = said else {
        let mut out = started(message, Rcode::REFUSED, limit)?.additional();
        if edns.is_some() {
            push_opt(&mut out, OptRcode::REFUSED)?;
        }
        return Ok((Outcome::Refused, finished(out)));
    };
    let reserved = edns.map_or(0, |_| OPT_BYTES);
    let mut out = spoken(
        message,
        (zone, &said, &question),
        usize::from(limit) - reserved,
    )?;
    if edns.is_some() {
        out.clear_push_limit();
        let rcode = out.header().rcode();
        push_opt(&mut out, rcode.into())?;
    }
    Ok((said.outcome, finished(out)))
}

/// An answer of ours; what does not fit is left out, and the answer marked as cut.
fn spoken(
    message: &Message<&[u8]>,
    (zone, said, question): (&Zone, &Said, &Question<ParsedName<&[u8]>>),
    limit: usize,
) -> Result<AdditionalBuilder<Target>, PushError> {
    let rcode = match said.outcome {
        Outcome::NoName => Rcode::NXDOMAIN,
        Outcome::Answered
        | Outcome::NoData
        | Outcome::Refused
        | Outcome::Malformed
        | Outcome::Dropped => Rcode::NOERROR,
    };
    let mut answers = started(message, rcode, u16::MAX)?;
    answers.set_push_limit(limit);
    answers.header_mut().set_aa(true);
    let (owner, ttl) = (question.qname(), Ttl::from_secs(TTL_SECS));
    for record in &said.records {
        let pushed = match record {
            Record::Address(Overlay(IpAddr::V4(a))) => answers.push((owner, ttl, A::new(*a))),
            Record::Address(Overlay(IpAddr::V6(a))) => answers.push((owner, ttl, Aaaa::new(*a))),
            Record::Pointer(name) => answers.push((owner, ttl, Ptr::new(name))),
            Record::Authority => answers.push((owner, ttl, zone.authority(&said.apex))),
        };
        if pushed.is_err() {
            return Ok(cut(answers));
        }
    }
    if !said.records.is_empty() {
        return Ok(answers.additional());
    }
    let mut authority = answers.authority();
    let negative = Ttl::from_secs(NEGATIVE_TTL_SECS);
    if authority
        .push((&said.apex, negative, zone.authority(&said.apex)))
        .is_err()
    {
        return Ok(cut(authority.answer()));
    }
    Ok(authority.additional())
}

fn cut(answers: AnswerBuilder<Target>) -> AdditionalBuilder<Target> {
    let mut answers = answers.rewind_into();
    answers.header_mut().set_tc(true);
    answers.additional()
}

/// An error about a message whose question cannot be repeated.
fn bare(message: &Message<&[u8]>, rcode: Rcode) -> Result<(Outcome, Vec<u8>), PushError> {
    let mut out = builder()?;
    let header = out.header_mut();
    header.set_id(message.header().id());
    header.set_qr(true);
    header.set_opcode(message.header().opcode());
    header.set_rd(message.header().rd());
    header.set_rcode(rcode);
    Ok((Outcome::Malformed, finished(out.additional())))
}

fn builder() -> Result<MessageBuilder<Target>, PushError> {
    let target = StaticCompressor::new(Vec::with_capacity(usize::from(PLAIN_UDP_BYTES_MAX)));
    MessageBuilder::from_target(target).map_err(PushError::from)
}

fn started(
    message: &Message<&[u8]>,
    rcode: Rcode,
    limit: u16,
) -> Result<AnswerBuilder<Target>, PushError> {
    let mut out = builder()?;
    out.set_push_limit(usize::from(limit));
    out.start_answer(message, rcode)
}

fn push_opt(out: &mut AdditionalBuilder<Target>, rcode: OptRcode) -> Result<(), PushError> {
    out.opt(|opt| {
        opt.set_udp_payload_size(UDP_BYTES_MAX);
        opt.set_rcode(rcode);
        Ok(())
    })
}

fn finished(out: AdditionalBuilder<Target>) -> Vec<u8> {
    out.finish().into_target()
}

fn addresses(addresses: OverlayAddresses, rtype: Rtype) -> Vec<Record> {
    let fits = |a: &Overlay| match rtype {
        Rtype::A => a.0.is_ipv4(),
        Rtype::AAAA => a.0.is_ipv6(),
        _ => rtype == Rtype::ANY,
    };
    addresses.iter().filter(fits).map(Record::Address).collect()
}

/// Returns the labels of a name but for the last `tail`, the last one first, in lower case.
fn labels_before(name: &ParsedName<&[u8]>, tail: usize) -> Vec<String> {
    let mut labels: Vec<String> = name
        .iter_labels()
        .map(|l| String::from_utf8_lossy(l.as_slice()).to_ascii_lowercase())
        .collect();
    labels.truncate(labels.len().saturating_sub(tail));
    labels.reverse();
    labels
}

/// How addresses of a family are spelt as names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn zone(self) -> &'static str {
        match self {
            Self::V4 => "in-addr.arpa",
            Self::V6 => "ip6.arpa",
        }
    }

    /// Bits of one label, and how many labels an address has.
    fn shape(self) -> (u8, usize) {
        match self {
            Self::V4 => (8, 4),
            Self::V6 => (4, 32),
        }
    }

    fn of(pool: Prefix) -> Self {
        match pool.address() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// How many labels it takes to be inside a pool or outside.
    fn labels(self, pool: Prefix) -> usize {
        usize::from(pool.bits().div_ceil(self.shape().0))
    }

    fn digit(self, label: &str) -> Option<u8> {
        let value = match self {
            Self::V4 => label.parse().ok()?,
            Self::V6 => u8::from_str_radix(label, 16).ok()?,
        };
        // One spelling each: no sign, no leading zero.
        (self.spell(value) == label && (self == Self::V4 || value < 16)).then_some(value)
    }

    fn spell(self, digit: u8) -> String {
        match self {
            Self::V4 => digit.to_string(),
            Self::V6 => format!("{digit:x}"),
        }
    }

    /// Makes an address of its leading digits; the others are zero.
    fn address(self, digits: &[u8]) -> IpAddr {
        let (bits, count) = self.shape();
        let mut value: u128 = 0;
        for n in 0..count {
            value = (value << bits) | u128::from(digits.get(n).copied().unwrap_or(0));
        }
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(value).unwrap_or_default())),
            Self::V6 => IpAddr::V6(Ipv6Addr::from(value)),
        }
    }

    fn digits(self, address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().iter().flat_map(|o| [o >> 4, o & 15]).collect(),
        }
    }
}

/// A name below `in-addr.arpa` or `ip6.arpa`.
struct Reverse {
    family: Family,
    /// The most significant first; perhaps not all of them.
    digits: Vec<u8>,
    /// There are labels that are no digits of an address.
    has_more: bool,
}

impl Reverse {
    fn parse(name: &ParsedName<&[u8]>) -> Option<Self> {
        let labels = labels_before(name, 1);
        let family = match labels.get(..2)? {
            [arpa, zone] if arpa == "arpa" && zone == "in-addr" => Family::V4,
            [arpa, zone] if arpa == "arpa" && zone == "ip6" => Family::V6,
            _ => return None,
        };
        let labels = labels.get(2..).unwrap_or_default();
        let digits: Vec<u8> = labels
            .iter()
            .take(family.shape().1)
            .map_while(|l| family.digit(l))
            .collect();
        Some(Self {
            family,
            has_more: digits.len() < labels.len(),
            digits,
        })
    }

    /// Whether it is inside a pool whatever labels stand before it.
    fn is_inside(&self, pool: &Prefix) -> bool {
        self.family == Family::of(*pool)
            && self.digits.len() >= self.family.labels(*pool)
            && pool.contains(self.family.address(&self.digits))
    }

    fn whole(&self) -> Option<IpAddr> {
        let is_whole = self.digits.len() == self.family.shape().1;
        is_whole.then(|| self.family.address(&self.digits))
    }
}

/// Spells the domain of the first `count` digits.
fn domain_of(digits: &[u8], family: Family, count: usize) -> Option<Owned> {
    let labels: Vec<String> = digits
        .get(..count)?
        .iter()
        .rev()
        .map(|d| family.spell(*d))
        .collect();
    let text = match labels.is_empty() {
        true => family.zone().to_owned(),
        false => format!("{}.{}", labels.join("."), family.zone()),
    };
    text.parse().ok()
}

/// Returns the domains that together are a pool, all of it and nothing else.
fn reverse_domains(pool: Prefix) -> Vec<String> {
    let family = Family::of(pool);
    let (bits, _) = family.shape();
    let count = family.labels(pool);
    let spare = u32::try_from(count).unwrap_or(0) * u32::from(bits) - u32::from(pool.bits());
    let mut digits = family.digits(pool.address());
    let Some(last) = count.checked_sub(1) else {
        return vec![family.zone().to_owned()];
    };
    let first = digits.get(last).copied().unwrap_or(0);
    let mut out = Vec::new();
    for n in 0..1_u16 << spare {
        if let (Some(digit), Ok(n)) = (digits.get_mut(last), u8::try_from(n)) {
            *digit = first.saturating_add(n);
        }
        let domain = domain_of(&digits, family, count);
        out.extend(domain.map(|d| d.to_string().trim_end_matches('.').to_owned()));
    }
    out
}
