//! The kernel's firewall table: loaded whole, changed by the element, read back and compared.
//!
//! ```text
//!  Ruleset ──layout──▶ messages ──one transaction──▶ table inet hedgerow
//!                         │                               │ dump
//!                         └──canonical──▶ expected  ≟  found ◀──canonical
//! ```
//!
//! # Invariants
//!
//! - The kernel changes from one whole ruleset to the next in one step; a refused load leaves the
//!   previous one in force.
//! - The table belongs to the socket in [`Table`]: no other process can change, delete or flush it
//!   while the socket is open here or in the service manager, and it outlives both (`owner`,
//!   `persist`; Linux 6.9). Where the kernel lacks these flags the table is [`Ownership::Plain`]:
//!   it enforces the same and outlives the process too, but any root process can change or flush it,
//!   which [`Table::verify`] notices and [`Table::load`] mends.
//! - No other table is changed or depended on; [`foreign`] reads them on request. Our base chains run
//!   after connection tracking and after other firewalls' filter chains (priority 10): what another
//!   table drops stays dropped.
//! - What is refused is counted under the name of its rule or reason.
//!
//! # Not here
//!
//! Deciding what a ruleset says (`hedgerow-policy`), and when to load, verify or mend (the agent).
//!
//! A limit's bucket holds its burst and what its rate gives in one second: the kernel counts so.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use hedgerow_model::address::Overlay;
use hedgerow_model::id::Digest;
use hedgerow_model::ruleset::{ControlGroup, PEERS_MAX, ProfileId, Ruleset};
use hedgerow_model::{Mono, Now, Wall};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::netlink::{ACK, Request, Socket, be32, be64, find, messages, text};
use canonical::Canon;
use loaded::Loaded;
use wire::{SUBSYSTEM, TABLE, TABLE_OWNER, TABLE_PERSIST, message};

mod canonical;
mod error;
pub mod foreign;
mod layout;
mod loaded;
mod matching;
mod ranges;
pub mod samples;
mod underlay;
mod wire;

pub use error::NftError;

/// Under which name the table's socket is stored with the service manager.
pub const DESCRIPTOR_NAME: &str = "nftables";
/// Elements are added and deleted so many at a time, because an attribute ends at 64 KiB.
const ELEMENTS_PER_MESSAGE_MAX: usize = 500;
const READ_BYTES_MAX: usize = 64 * 1024;

/// Who may change the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Only the holder of the socket; it outlives the holder.
    Owned,
    /// Any process with `CAP_NET_ADMIN`: the kernel lacks the flags.
    Plain,
}

/// What stood in the kernel when the table was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A table whose owner had died; it is owned again.
    Orphan,
    /// A table without owner; the next load makes it owned.
    Plain,
    /// The table of the socket that was handed over.
    Ours,
}

/// Packets and bytes under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

/// The result of comparing the kernel's table with what was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verification {
    /// The hash of what was loaded and updated since.
    pub expected: Digest,
    /// The hash of what the kernel has.
    pub found: Digest,
    /// Objects that the kernel should have and has not.
    pub missing: usize,
    /// Objects that the kernel has and should not.
    pub surplus: usize,
}

impl Verification {
    /// Returns whether the kernel enforces what was loaded.
    pub fn is_intact(&self) -> bool {
        self.missing == 0 && self.surplus == 0
    }
}

fn socket(action: &'static str) -> impl Fn(Errno) -> NftError {
    move |e| match e {
        Errno::PERM | Errno::ACCESS => NftError::NotPermitted,
        e => NftError::Socket {
            action,
            source: e.into(),
        },
    }
}

/// The kernel table of one device.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    found: Found,
    ownership: Option<Ownership>,
    loaded: Option<Loaded>,
    counted: BTreeMap<String, Counter>,
    /// Reads what stood in the kernel when the table was opened.
    reading: Option<JoinHandle<Result<Canon, NftError>>>,
}

/// Whether this kernel has what the table needs: a specimen with every kind of object is tried and
/// taken back, unless a table of ours shows that it has.
///
/// # Errors
///
/// When nftables, one of its expressions or the right to use it is missing; the error names it.
pub fn probe() -> Result<Ownership, NftError> {
    let mut table = Table::connect(None)?;
    match table.look() {
        // Trying something out costs tens of milliseconds, and here stands what was to be tried.
        Err(NftError::OwnedByAnother) => return Ok(Ownership::Owned),
        Ok(Found::Plain) if table.is_orphan()? => return Ok(Ownership::Owned),
        Ok(Found::Absent) => {
            let content = layout::layout(&layout::specimen(), Wall(0))?;
            let all: Vec<_> = std::iter::once(wire::table(TABLE, 0, ""))
                .chain(content)
                .collect();
            table.transact(&all, Ending::Abandon)?;
        }
        Ok(_) | Err(_) => {}
    }
    table.supported()
}

/// Says whether this kernel tells packets apart by the control group of their socket.
///
/// # Errors
///
/// When the kernel could not be asked.
pub fn knows_group(group: ControlGroup) -> Result<bool, NftError> {
    let mut table = Table::connect(None)?;
    let name = format!("hedgerow-probe-{}", std::process::id());
    let rule = wire::Rule::of_table(&name, "probe");
    let rule = matching::of_group(rule, group).then(&wire::Target::Accept);
    let specimen = [
        wire::table(&name, 0, ""),
        wire::chain_of_table(&name, "probe", None),
        rule.request(),
    ];
    match table.transact(&specimen, Ending::Abandon) {
        Ok(()) => Ok(true),
        Err(NftError::Refused { .. }) => Ok(false),
        Err(e) => Err(e),
    }
}

/// What becomes of a transaction that the kernel accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit,
    /// It is checked and taken back: without its end mark the kernel does not commit it.
    Abandon,
}

impl Table {
    /// Opens the table through the socket that was `handed` over from before a restart, or a new
    /// one. An orphaned table is owned again at once.
    ///
    /// # Errors
    ///
    /// When netlink cannot be used or another live process owns the table.
    pub fn open(handed: Option<OwnedFd>) -> Result<Self, NftError> {
        let mut table = Self::connect(handed)?;
        table.found = table.look()?;
        if table.found == Found::Plain && table.is_orphan()? {
            let adopt = wire::table(TABLE, TABLE_OWNER | TABLE_PERSIST, "");
            table.transact(&[adopt], Ending::Commit)?;
            table.found = Found::Orphan;
        }
        if matches!(table.found, Found::Orphan | Found::Ours) {
            // What stands there shows what the kernel knows.
            table.ownership = Some(Ownership::Owned);
        }
        Ok(table)
    }

    /// Opens the table without asking for ownership, as on a kernel that has none.
    ///
    /// # Errors
    ///
    /// See [`Table::open`].
    pub fn open_plain() -> Result<Self, NftError> {
        let mut table = Self::connect(None)?;
        table.found = table.look()?;
        table.ownership = Some(Ownership::Plain);
        Ok(table)
    }

    fn connect(handed: Option<OwnedFd>) -> Result<Self, NftError> {
        let socket = match handed {
            Some(fd) => Socket::from_fd(fd),
            None => Socket::open(Some(NETFILTER)).map_err(|source| NftError::Socket {
                action: "open a socket",
                source,
            })?,
        };
        Ok(Self {
            socket,
            found: Found::Absent,
            ownership: None,
            loaded: None,
            counted: BTreeMap::new(),
            reading: None,
        })
    }

    /// Returns what stood in the kernel when the table was opened.
    pub fn found(&self) -> Found {
        self.found
    }

    /// Returns who may change the table; known after the first load, and at once for an owned one.
    pub fn ownership(&self) -> Option<Ownership> {
        self.ownership
    }

    /// Returns the generation in force, if it was loaded through this value.
    pub fn generation(&self) -> Option<u64> {
        self.loaded.as_ref().map(|l| l.generation)
    }

    /// Replaces the whole table by `ruleset` in one transaction.
    ///
    /// # Errors
    ///
    /// When the ruleset is malformed or older than the one in force, or the kernel refuses a part
    /// of it. The previous table stays in force, whole.
    pub fn load(&mut self, ruleset: &Ruleset, now: Now) -> Result<Digest, NftError> {
        if let Some(loaded) = self
            .loaded
            .as_ref()
            .filter(|l| l.generation > ruleset.generation)
        {
            return Err(NftError::Stale {
                got: ruleset.generation,
                loaded: loaded.generation,
            });
        }
        if ruleset.peers.len() > PEERS_MAX {
            let count = ruleset.peers.len();
            return Err(NftError::TooManyPeers { count });
        }
        let content = layout::layout(ruleset, now.wall)?;
        let ownership = self.supported()?;
        let flags = match ownership {
            Ownership::Owned => TABLE_OWNER | TABLE_PERSIST,
            Ownership::Plain => 0,
        };
        let comment = format!("Hedgerow, generation {}", ruleset.generation);
        let mut requests = Vec::with_capacity(content.len() + 2);
        let counted = if self.look()? == Found::Absent {
            BTreeMap::new()
        } else {
            requests.push(wire::delete_table(TABLE));
            self.read_counters()?
        };
        requests.push(wire::table(TABLE, flags, &comment));
        let loaded = Loaded::new(ruleset, &content, now.mono);
        requests.extend(content);
        match self.transact(&requests, Ending::Commit) {
            Err(NftError::Unclear) => {
                let before = self.loaded.replace(loaded);
                if !self.verify(now.mono)?.is_intact() {
                    self.loaded = before;
                    return Err(NftError::Unclear);
                }
            }
            result => {
                result?;
                self.loaded = Some(loaded);
            }
        }
        self.ownership = Some(ownership);
        // The new table counts from zero.
        add_up(&mut self.counted, counted);
        self.expected(now.mono)
    }

    /// Begins to read the table that stands, beside whatever else is to do before [`Self::adopt`].
    pub fn read_ahead(&mut self) {
        if !matches!(self.found, Found::Orphan | Found::Ours) {
            return;
        }
        let read = || Self::connect(None)?.read_back();
        // Without a thread it is read when it is asked for.
        let thread = std::thread::Builder::new().name("table".to_owned());
        self.reading = thread.spawn(read).ok();
    }

    /// Takes the table that stood in the kernel for `ruleset` where it is exactly that: nothing is loaded,
    /// and no packet meets another table. Returns its hash, or none where a load is needed.
    ///
    /// # Errors
    ///
    /// When the ruleset is malformed or the kernel's table cannot be read.
    pub fn adopt(&mut self, ruleset: &Ruleset, now: Now) -> Result<Option<Digest>, NftError> {
        // A table without an owner may change between this look and the next.
        let is_ours = matches!(self.found, Found::Orphan | Found::Ours);
        if self.loaded.is_some() || !is_ours {
            return Ok(None);
        }
        let content = layout::layout(ruleset, now.wall)?;
        let wanted = Loaded::new(ruleset, &content, now.mono);
        let read = self.reading.take().and_then(|thread| thread.join().ok());
        let found = read.unwrap_or_else(|| self.read_back())?;
        let seen = wanted.compare(found, now.mono);
        if !seen.is_intact() {
            return Ok(None);
        }
        self.loaded = Some(wanted);
        Ok(Some(seen.found))
    }

    /// Returns the hash of what should be in force.
    ///
    /// # Errors
    ///
    /// When nothing was loaded yet.
    pub fn expected(&self, now: Mono) -> Result<Digest, NftError> {
        let loaded = self.loaded.as_ref().ok_or(NftError::NotLoaded)?;
        Ok(canonical::combine(&loaded.expected(now)))
    }

    /// Reads the whole table back and compares it with what was loaded.
    ///
    /// # Errors
    ///
    /// When nothing was loaded yet or the table cannot be read.
    pub fn verify(&mut self, now: Mono) -> Result<Verification, NftError> {
        let found = self.read_back()?;
        let loaded = self.loaded.as_ref().ok_or(NftError::NotLoaded)?;
        Ok(loaded.compare(found, now))
    }

    /// Puts one peer into the profile, whatever it had before.
    ///
    /// # Errors
    ///
    /// See [`Table::set_peers`].
    pub fn set_peer(&mut self, address: Overlay, profile: ProfileId) -> Result<(), NftError> {
        self.set_peers(&[(address, Some(profile))])
    }

    /// Takes one peer out; packets of its live sessions stop at once.
    ///
    /// # Errors
    ///
    /// See [`Table::set_peers`].
    pub fn remove_peer(&mut self, address: Overlay) -> Result<(), NftError> {
        self.set_peers(&[(address, None)])
    }

    /// Changes peers in one transaction; `None` takes one out. What is already so is left alone.
    ///
    /// # Errors
    ///
    /// When nothing was loaded yet, a profile is unknown, there would be too many peers, or the
    /// kernel refuses, which means that its table is not what was loaded: load again.
    pub fn set_peers(&mut self, changes: &[(Overlay, Option<ProfileId>)]) -> Result<(), NftError> {
        let loaded = self.loaded.as_ref().ok_or(NftError::NotLoaded)?;
        let wanted: BTreeMap<_, _> = changes.iter().copied().collect();
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (address, profile) in &wanted {
            let old = loaded.peers.get(address).copied();
            if old == *profile {
                continue;
            }
            gone.extend(old.map(|old| (*address, old)));
            if let Some(profile) = *profile {
                if !loaded.profiles.contains(&profile) {
                    return Err(NftError::UnknownProfile(profile));
                }
                new.push((*address, profile));
            }
        }
        let count = loaded.peers.len() + new.len() - gone.len();
        if count > PEERS_MAX {
            return Err(NftError::TooManyPeers { count });
        }
        let mut requests = Vec::new();
        for (message, list) in [
            (message::DELETE_ELEMENT, &gone),
            (message::NEW_ELEMENT, &new),
        ] {
            for part in list.chunks(ELEMENTS_PER_MESSAGE_MAX) {
                requests.extend(peer_requests(message, part.iter().copied()));
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        self.transact(&requests, Ending::Commit)?;
        if let Some(loaded) = &mut self.loaded {
            for (address, _) in &gone {
                loaded.peers.remove(address);
            }
            loaded.peers.extend(new);
        }
        Ok(())
    }

    /// Deletes the table; nothing of it stays. Success when there is none.
    ///
    /// # Errors
    ///
    /// When another live process owns it.
    pub fn remove(&mut self) -> Result<(), NftError> {
        if self.look()? != Found::Absent {
            self.transact(&[wire::delete_table(TABLE)], Ending::Commit)?;
        }
        self.loaded = None;
        self.counted.clear();
        Ok(())
    }

    /// Returns every counter, grown over all loads through this value.
    ///
    /// Names are `deny.<rule>`, `would.<rule>`, `limit.<number>`, and reasons such as
    /// `unknown_peer`.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be read.
    pub fn counters(&mut self) -> Result<BTreeMap<String, Counter>, NftError> {
        let mut out = self.counted.clone();
        add_up(&mut out, self.read_counters()?);
        Ok(out)
    }

    /// Reads what the kernel has of us: absent, somebody's or nobody's.
    fn look(&mut self) -> Result<Found, NftError> {
        let port = self.socket.port().ok();
        let request = || wire::request(message::GET_TABLE, 0);
        let table = self
            .socket
            .dump(
                request,
                || None,
                |found, m| {
                    let body = attributes_of(m.body);
                    if find(body, 1).map(text).as_deref() == Some(TABLE) {
                        let flags = find(body, 2).and_then(be32).unwrap_or(0);
                        *found = Some((flags, find(body, 7).and_then(be32)));
                    }
                },
            )
            .map_err(socket("read the tables"))?;
        match table {
            None => Ok(Found::Absent),
            Some((flags, _)) if flags & TABLE_OWNER == 0 => Ok(Found::Plain),
            Some((_, owner)) if owner == port => Ok(Found::Ours),
            Some(_) => Err(NftError::OwnedByAnother),
        }
    }

    /// Returns whether the table has lost its owner: `persist` stays behind alone.
    fn is_orphan(&mut self) -> Result<bool, NftError> {
        let request = || wire::request(message::GET_TABLE, 0);
        self.socket
            .dump(
                request,
                || false,
                |orphan, m| {
                    let body = attributes_of(m.body);
                    let flags = find(body, 2).and_then(be32).unwrap_or(0);
                    *orphan |= find(body, 1).map(text).as_deref() == Some(TABLE)
                        && flags & (TABLE_OWNER | TABLE_PERSIST) == TABLE_PERSIST;
                },
            )
            .map_err(socket("read the tables"))
    }

    /// Finds out whether the kernel knows owned tables, by making one and taking it back.
    fn supported(&mut self) -> Result<Ownership, NftError> {
        if let Some(known) = self.ownership {
            return Ok(known);
        }
        let name = format!("hedgerow-probe-{}", std::process::id());
        let try_with = |table: &mut Self, flags| {
            table.transact(&[wire::table(&name, flags, "")], Ending::Abandon)
        };
        match try_with(self, TABLE_OWNER | TABLE_PERSIST) {
            Ok(()) => Ok(Ownership::Owned),
            Err(NftError::Refused { .. }) => try_with(self, 0).map(|()| Ownership::Plain),
            Err(e) => Err(e),
        }
    }

    fn read_counters(&mut self) -> Result<BTreeMap<String, Counter>, NftError> {
        let request = || in_table(message::GET_OBJECT);
        self.socket
            .dump(request, BTreeMap::new, |out, m| {
                let body = attributes_of(m.body);
                let data = find(body, 4).unwrap_or_default();
                let number = |kind| find(data, kind).and_then(be64).unwrap_or(0);
                let counter = Counter {
                    packets: number(2),
                    bytes: number(1),
                };
                if let Some(name) = ours(body, 1).and_then(|()| find(body, 2)) {
                    out.insert(text(name), counter);
                }
            })
            .or_else(|e| absent(e).map(|()| BTreeMap::new()))
            .map_err(socket("read the counters"))
    }

    fn read_back(&mut self) -> Result<Canon, NftError> {
        let failed = socket("read the table");
        let mut canon = Canon::default();
        let mut sets = Vec::new();
        for (get, new) in [
            (message::GET_CHAIN, message::NEW_CHAIN),
            (message::GET_OBJECT, message::NEW_OBJECT),
            (message::GET_SET, message::NEW_SET),
            (message::GET_RULE, message::NEW_RULE),
        ] {
            let objects = self
                .socket
                .dump(
                    || in_table(get),
                    Vec::new,
                    |list, m| {
                        let body = attributes_of(m.body);
                        list.extend(ours(body, 1).map(|()| body.to_vec()));
                    },
                )
                .or_else(|e| absent(e).map(|()| Vec::new()))
                .map_err(&failed)?;
            for body in objects {
                canon.add(new, &body);
                if new == message::NEW_SET && !is_meter(&body) {
                    sets.extend(find(&body, 2).map(text));
                }
            }
        }
        for set in sets {
            let request = || {
                in_table(message::GET_ELEMENT).attributes(|a| {
                    a.text(2, &set);
                })
            };
            let part = self
                .socket
                .dump(request, Canon::default, |canon, m| {
                    canon.add(message::NEW_ELEMENT, attributes_of(m.body));
                })
                .or_else(|e| absent(e).map(|()| Canon::default()))
                .map_err(&failed)?;
            canon.hashes.extend(part.hashes);
            canon.timed.extend(part.timed);
        }
        Ok(canon)
    }

    /// Sends `requests` as one transaction: all of them take effect, or none.
    fn transact(&mut self, requests: &[Request], ending: Ending) -> Result<(), NftError> {
        let size = requests.iter().map(|r| r.body().len() + 16).sum::<usize>();
        let mut bytes = Vec::with_capacity(size + 64);
        let begin = self.socket.next_sequence();
        wire::batch_mark(wire::BATCH_BEGIN).append_to(&mut bytes, begin, 0);
        let mut sent = BTreeMap::new();
        for (index, request) in requests.iter().enumerate() {
            let sequence = self.socket.next_sequence();
            // One acknowledgement, for the last: more would overflow the socket's buffer.
            let flags = if index + 1 == requests.len() { ACK } else { 0 };
            request.append_to(&mut bytes, sequence, flags);
            sent.insert(sequence, request);
        }
        if ending == Ending::Commit {
            let end = self.socket.next_sequence();
            wire::batch_mark(wire::BATCH_END).append_to(&mut bytes, end, 0);
        }
        self.socket
            .send(&bytes)
            .map_err(socket("send a transaction"))?;
        self.outcome(begin, &sent)
    }

    /// Reads the answers to a transaction: the first error is the cause of the others.
    fn outcome(&self, begin: u32, sent: &BTreeMap<u32, &Request>) -> Result<(), NftError> {
        let mut buffer = vec![0; READ_BYTES_MAX];
        let mut first: Option<(u32, i32)> = None;
        let mut acknowledged = false;
        loop {
            let datagram = match self.socket.read(&mut buffer) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => break,
                Err(Errno::NOBUFS) => return Err(NftError::Unclear),
                Err(e) => return Err(socket("read the outcome")(e)),
            };
            for m in messages(datagram) {
                match m.error() {
                    Some(0) => acknowledged |= sent.contains_key(&m.sequence),
                    Some(n) if first.is_none_or(|(s, _)| m.sequence < s) => {
                        first = Some((m.sequence, n));
                    }
                    Some(_) | None => {}
                }
            }
        }
        match first {
            None if acknowledged => Ok(()),
            None => Err(NftError::Unclear),
            Some((sequence, number)) => {
                let errno = Errno::from_raw_os_error(number);
                let object = sent.get(&sequence).map(|r| describe(r));
                Err(refusal(errno, object.filter(|_| sequence != begin)))
            }
        }
    }
}

impl AsFd for Table {
    /// Returns the owning socket, to be stored with the service manager.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn add_up(totals: &mut BTreeMap<String, Counter>, more: BTreeMap<String, Counter>) {
    for (name, counter) in more {
        let total = totals.entry(name).or_default();
        total.packets = total.packets.saturating_add(counter.packets);
        total.bytes = total.bytes.saturating_add(counter.bytes);
    }
}

fn refusal(errno: Errno, object: Option<String>) -> NftError {
    match (errno, object) {
        (Errno::PERM, None) => NftError::NotPermitted,
        (Errno::PERM, Some(_)) => NftError::OwnedByAnother,
        (e, object) => NftError::Refused {
            object: object.unwrap_or_else(|| "the transaction".to_owned()),
            source: e.into(),
        },
    }
}

/// What is not there has nothing in it.
fn absent(errno: Errno) -> Result<(), Errno> {
    if errno == Errno::NOENT {
        Ok(())
    } else {
        Err(errno)
    }
}

/// Returns a message's attributes: what follows the family and resource id.
fn attributes_of(body: &[u8]) -> &[u8] {
    body.get(4..).unwrap_or_default()
}

fn ours(body: &[u8], table: u16) -> Option<()> {
    (find(body, table).map(text).as_deref() == Some(TABLE)).then_some(())
}

fn in_table(message: u16) -> Request {
    wire::request(message, 0).attributes(|a| {
        a.text(1, TABLE);
    })
}

fn is_meter(set: &[u8]) -> bool {
    find(set, 3)
        .and_then(be32)
        .is_some_and(|flags| flags & wire::SET_DYNAMIC != 0)
}

fn is_peers(request: &Request) -> bool {
    let set = find(attributes_of(request.body()), 2).map(text);
    request.kind() == SUBSYSTEM << 8 | message::NEW_ELEMENT
        && set.is_some_and(|s| s == "peers6" || s == "peers4")
}

/// Returns one message per map.
fn peer_requests(
    message: u16,
    list: impl Iterator<Item = (Overlay, ProfileId)>,
) -> impl Iterator<Item = Request> {
    let mut by_map: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (address, profile) in list {
        let (map, element) = layout::peer_element(address, profile);
        by_map.entry(map).or_default().push(element);
    }
    by_map
        .into_iter()
        .map(move |(map, list)| wire::elements(message, map, &list))
}

/// Says what a message was about, for the error that names it.
fn describe(request: &Request) -> String {
    let body = attributes_of(request.body());
    let name = |kind| find(body, kind).map(text).unwrap_or_default();
    match request.kind() & 0xff {
        message::NEW_TABLE => format!("table {}", name(1)),
        message::DELETE_TABLE => format!("the deletion of table {}", name(1)),
        message::NEW_CHAIN => format!("chain {}", name(3)),
        message::NEW_RULE => format!("a rule of chain {}", name(2)),
        message::NEW_SET => format!("set {}", name(2)),
        message::NEW_OBJECT => format!("counter {}", name(2)),
        message::NEW_ELEMENT => format!("an element of {}", name(2)),
        message::DELETE_ELEMENT => format!("the deletion of an element of {}", name(2)),
        other => format!("message {other}"),
    }
}
