//! One form for what we send and what the kernel shows, so that both can be compared.
//!
//! Every object becomes one hash: attributes sorted by number, without what the kernel adds or
//! counts (handles, use counts, counters' values, time left) and without meters' contents. A rule's
//! hash covers its place in its chain; an element's its set. The table's hash is the hash of all of
//! them in sorted order, because the kernel shows elements in any order.

use std::collections::BTreeMap;

use hedgerow_model::id::Digest;
use sha2::{Digest as _, Sha256};

use super::wire::message;
use crate::netlink::{attributes, be32, be64, find, text};

/// One object's hash.
pub(super) type Hash = [u8; 32];

/// The hashes of a table's objects.
#[derive(Debug, Clone, Default)]
pub(super) struct Canon {
    pub(super) hashes: Vec<Hash>,
    /// Elements that leave by themselves, with the milliseconds they were given.
    pub(super) timed: Vec<(Hash, u64)>,
    rules: BTreeMap<String, u32>,
}

/// Which attributes hold attributes, and which are left out.
struct Schema {
    nested: &'static [(u16, &'static Self)],
    skipped: &'static [u16],
}

const FLAT: Schema = Schema {
    nested: &[],
    skipped: &[],
};
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT` with code and chain.
const DATA: Schema = Schema {
    nested: &[(2, &FLAT)],
    skipped: &[],
};
const CHAIN: Schema = Schema {
    nested: &[(4, &FLAT)],
    // Handle, use count, counters, padding, flags, id, user data.
    skipped: &[2, 6, 8, 9, 10, 11, 12],
};
const SET: Schema = Schema {
    nested: &[],
    // Data length, policy, description, id, collection, user data, padding, handle, type, count.
    skipped: &[7, 8, 9, 10, 12, 13, 14, 16, 19, 20],
};

impl Canon {
    /// Adds what a message of the kernel's or ours describes; `message` is its number within the
    /// subsystem, `body` its attributes.
    pub(super) fn add(&mut self, message: u16, body: &[u8]) {
        match message {
            message::NEW_CHAIN => self.object("chain", body, &CHAIN),
            message::NEW_SET => self.object("set", body, &SET),
            message::NEW_RULE => self.rule(body),
            message::NEW_OBJECT => self.counter(body),
            message::NEW_ELEMENT => self.elements(body),
            _ => {}
        }
    }

    fn object(&mut self, what: &str, body: &[u8], schema: &Schema) {
        let mut bytes = Vec::new();
        put(&mut bytes, what.as_bytes());
        flatten(&mut bytes, body, schema);
        self.hashes.push(Sha256::digest(&bytes).into());
    }

    fn counter(&mut self, body: &[u8]) {
        let mut bytes = Vec::new();
        put(&mut bytes, b"object");
        for kind in [2, 3] {
            put(&mut bytes, find(body, kind).unwrap_or_default());
        }
        self.hashes.push(Sha256::digest(&bytes).into());
    }

    fn rule(&mut self, body: &[u8]) {
        let chain = find(body, 2).map(text).unwrap_or_default();
        let place = self.rules.entry(chain.clone()).or_default();
        let mut bytes = Vec::new();
        put(&mut bytes, b"rule");
        put(&mut bytes, chain.as_bytes());
        put(&mut bytes, &place.to_be_bytes());
        *place += 1;
        for (_, expression) in attributes(find(body, 4).unwrap_or_default()) {
            put_expression(&mut bytes, expression);
        }
        self.hashes.push(Sha256::digest(&bytes).into());
    }

    fn elements(&mut self, body: &[u8]) {
        let set = find(body, 2).unwrap_or_default();
        for (_, element) in attributes(find(body, 3).unwrap_or_default()) {
            let timeout = find(element, 4).and_then(be64);
            let hash = element_hash(set, element, timeout.is_some());
            match timeout {
                Some(ms) => self.timed.push((hash, ms)),
                None => self.hashes.push(hash),
            }
        }
    }
}

fn element_hash(set: &[u8], element: &[u8], timed: bool) -> Hash {
    let value = |kind| {
        find(element, kind)
            .and_then(|d| find(d, 1))
            .unwrap_or_default()
    };
    let mut bytes = Vec::with_capacity(96);
    put(&mut bytes, b"element");
    put(&mut bytes, set);
    put(&mut bytes, value(1));
    put(&mut bytes, value(10));
    flatten(&mut bytes, find(element, 2).unwrap_or_default(), &DATA);
    let flags = find(element, 3).and_then(be32).unwrap_or(0);
    put(&mut bytes, &flags.to_be_bytes());
    bytes.push(u8::from(timed));
    Sha256::digest(&bytes).into()
}

fn put_expression(out: &mut Vec<u8>, expression: &[u8]) {
    let name = find(expression, 1).map(text).unwrap_or_default();
    put(out, name.as_bytes());
    let data = find(expression, 2).unwrap_or_default();
    match name.as_str() {
        "cmp" => flatten(
            out,
            data,
            &Schema {
                nested: &[(3, &DATA)],
                ..FLAT
            },
        ),
        "immediate" => flatten(
            out,
            data,
            &Schema {
                nested: &[(2, &DATA)],
                ..FLAT
            },
        ),
        "bitwise" => flatten(
            out,
            data,
            &Schema {
                nested: &[(4, &DATA), (5, &DATA)],
                ..FLAT
            },
        ),
        "lookup" => flatten(
            out,
            data,
            &Schema {
                skipped: &[4],
                ..FLAT
            },
        ),
        "dynset" => {
            // The kernel shows neither the flag for an expression nor, on older versions, a timeout
            // that was not asked for.
            flatten(
                out,
                data,
                &Schema {
                    skipped: &[2, 6, 7, 8, 9],
                    ..FLAT
                },
            );
            put_expression(out, find(data, 7).unwrap_or_default());
        }
        _ => flatten(out, data, &FLAT),
    }
}

/// Writes a list of attributes in the order of their numbers.
fn flatten(out: &mut Vec<u8>, list: &[u8], schema: &Schema) {
    let mut sorted: Vec<_> = attributes(list)
        .filter(|(kind, _)| !schema.skipped.contains(kind))
        .collect();
    sorted.sort_by_key(|(kind, _)| *kind);
    put(
        out,
        &u32::try_from(sorted.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    for (kind, value) in sorted {
        out.extend_from_slice(&kind.to_be_bytes());
        match schema.nested.iter().find(|(k, _)| *k == kind) {
            Some((_, inner)) => flatten(out, value, inner),
            None => put(out, value),
        }
    }
}

/// Writes a value with its length before it, so that no two lists of values look alike.
fn put(out: &mut Vec<u8>, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
}

/// Returns the hash of all hashes, which must be sorted.
pub(super) fn combine(sorted: &[Hash]) -> Digest {
    Digest(Sha256::digest(sorted.as_flattened()).into())
}

/// Returns how many of `a` are missing in `b` and how many of `b` are not in `a`; both sorted.
pub(super) fn difference(a: &[Hash], b: &[Hash]) -> (usize, usize) {
    let (mut i, mut j, mut missing, mut surplus) = (0, 0, 0, 0);
    loop {
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) if x == y => (i, j) = (i + 1, j + 1),
            (Some(x), Some(y)) if x < y => (i, missing) = (i + 1, missing + 1),
            (Some(_), None) => (i, missing) = (i + 1, missing + 1),
            (_, Some(_)) => (j, surplus) = (j + 1, surplus + 1),
            (None, None) => return (missing, surplus),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_both_ways() {
        let list = |v: &[u8]| v.iter().map(|b| [*b; 32]).collect::<Vec<_>>();
        assert_eq!(difference(&list(&[1, 2, 3]), &list(&[2, 3, 4, 5])), (1, 2));
        assert_eq!(difference(&list(&[1]), &list(&[])), (1, 0));
        assert_eq!(difference(&list(&[]), &list(&[1])), (0, 1));
        assert_ne!(combine(&list(&[1, 2])), combine(&list(&[1])));
    }

    #[test]
    fn hostile_or_damaged_messages_are_hashed_without_harm() {
        let mut canon = Canon::default();
        for message in 0..24 {
            for length in 0..64 {
                canon.add(message, &vec![0xff; length]);
                canon.add(message, &vec![4; length]);
            }
        }
        assert!(!canon.hashes.is_empty());
    }
}
