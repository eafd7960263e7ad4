//! Names: of devices, sites, labels, trust domains, rules.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::base32;

/// Longest name of a device, site, label, rule or schedule, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest trust domain, in bytes (SPIFFE allows 255; certificates must hold it several times).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 100;
/// Most labels on one device.
pub const LABELS_MAX: usize = 16;
/// Most bytes in all keys and values of one device's labels together, so that a ticket stays small.
pub const LABELS_BYTES_MAX: usize = 160;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: {rule}")]
pub struct NameError {
    /// What it should have named.
    pub what: &'static str,
    /// The text as given.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

/// A device's permanent identity: 128 random bits chosen by the controller at enrollment, never
/// reused. Spelt as 26 characters of base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub [u8; 16]);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DeviceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        base32::decode(text).map(Self).ok_or_else(|| NameError {
            what: "device id",
            text: text.to_owned(),
            rule: "it takes 26 characters of a-z and 2-7",
        })
    }
}

impl<C> Encode<C> for DeviceId {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for DeviceId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let bytes = d.bytes()?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_e| decode::Error::message("device id is not 16 bytes"))
    }
}

/// Checks the shape shared by names: lower-case DNS labels, `a-z0-9` and inner `-`.
fn dns_label(text: &str) -> Result<(), &'static str> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err("it takes 1 to 63 characters");
    }
    if !text.bytes().all(inner) {
        return Err("it takes a-z, 0-9 and - only");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it must not begin or end with -");
    }
    Ok(())
}

/// Like [`dns_label`], and `_`, `.` and upper case inside: label values come from asset lists.
fn label_text(text: &str) -> Result<(), &'static str> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err("it takes 1 to 63 characters");
    }
    if !text.bytes().all(ok) {
        return Err("it takes letters, digits, -, _ and . only");
    }
    Ok(())
}

fn domain_text(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX {
        return Err("it takes 1 to 100 characters");
    }
    text.split('.').try_for_each(dns_label)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks `text` and makes the name.
            ///
            /// # Errors
            ///
            /// Says which rule the text breaks.
            pub fn new(text: &str) -> Result<Self, NameError> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(rule) => Err(NameError { what: $what, text: text.to_owned(), rule }),
                }
            }

            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                Self::new(d.str()?).map_err(decode::Error::message)
            }
        }
    };
}

name!(
    /// A trust domain, e.g. `plant.example`: the namespace of every identity under one root set.
    TrustDomain, "trust domain", domain_text
);
name!(
    /// A site's name, unique in its trust domain; a DNS label.
    SiteName, "site name", dns_label
);
name!(
    /// A device's name, unique in its site; a DNS label.
    DeviceName, "device name", dns_label
);
name!(
    /// An operator's name, unique in its trust domain; a DNS label.
    OperatorName, "operator name", dns_label
);
name!(
    /// A label's key, e.g. `role`. The keys `name`, `site`, `id`, `segment` and `state` are built in
    /// and cannot be assigned.
    LabelKey, "label key", dns_label
);
name!(
    /// A label's value, e.g. `sensor`.
    LabelValue, "label value", label_text
);
name!(
    /// The id of a rule, guardrail, segment, schedule or service, as written in the policy file.
    RuleId, "rule id", dns_label
);

/// Keys that selectors give a meaning of their own; no device carries a label with such a key.
pub const RESERVED_LABEL_KEYS: [&str; 5] = ["name", "site", "id", "segment", "state"];

/// The labels of one device: at most [`LABELS_MAX`], in [`LABELS_BYTES_MAX`] bytes altogether.
///
/// Sorted by key, in one piece: a hub holds thousands of these.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(Box<[(LabelKey, LabelValue)]>);

impl Labels {
    /// Checks number, size and reserved keys.
    ///
    /// # Errors
    ///
    /// Says which bound the set breaks.
    pub fn new(map: BTreeMap<LabelKey, LabelValue>) -> Result<Self, NameError> {
        let bytes: usize = map
            .iter()
            .map(|(k, v)| k.as_str().len() + v.as_str().len())
            .sum();
        let reserved = map
            .keys()
            .any(|k| RESERVED_LABEL_KEYS.contains(&k.as_str()));
        let labels = Self(map.into_iter().collect());
        let rule = if labels.0.len() > LABELS_MAX {
            "a device takes at most 16 labels"
        } else if bytes > LABELS_BYTES_MAX {
            "a device's labels take at most 160 bytes altogether"
        } else if reserved {
            "the keys name, site, id, segment and state are built in"
        } else {
            return Ok(labels);
        };
        Err(NameError {
            what: "label set",
            text: labels.to_string(),
            rule,
        })
    }

    /// Returns the value of `key`, if the device has it.
    pub fn get(&self, key: &LabelKey) -> Option<&LabelValue> {
        let at = self.0.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Visits the labels in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&LabelKey, &LabelValue)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the labels as a plain map.
    pub fn to_map(&self) -> BTreeMap<LabelKey, LabelValue> {
        self.0.iter().cloned().collect()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.0.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for Labels {
    type Err = NameError;
    /// Reads `key=value,key=value`; a repeated key is an error; the empty text is no labels.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let err = |rule| NameError {
            what: "label set",
            text: text.to_owned(),
            rule,
        };
        let mut map = BTreeMap::new();
        for pair in text.split(',').filter(|_| !text.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or(err("write key=value,key=value"))?;
            let old = map.insert(LabelKey::new(key.trim())?, LabelValue::new(value.trim())?);
            if old.is_some() {
                return Err(err("a key stands twice"));
            }
        }
        Self::new(map)
    }
}

impl<C> Encode<C> for Labels {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.map(self.0.len() as u64)?;
        for (key, value) in self.iter() {
            key.encode(e, ctx)?;
            value.encode(e, ctx)?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Labels {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        let n = d
            .map()?
            .ok_or_else(|| decode::Error::message("labels of indefinite length"))?;
        if n > LABELS_MAX as u64 {
            return Err(decode::Error::message("more than 16 labels"));
        }
        let mut map = BTreeMap::new();
        for _ in 0..n {
            let key = LabelKey::decode(d, ctx)?;
            if map.insert(key, LabelValue::decode(d, ctx)?).is_some() {
                return Err(decode::Error::message("a label key stands twice"));
            }
        }
        Self::new(map).map_err(decode::Error::message)
    }
}

/// A SHA-256 digest, spelt in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Returns the SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let rule = "it takes 64 hexadecimal digits";
        let err = || NameError {
            what: "digest",
            text: text.to_owned(),
            rule,
        };
        let mut out = [0u8; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(err());
        }
        for (slot, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_e| err())?;
            *slot = u8::from_str_radix(pair, 16).map_err(|_e| err())?;
        }
        Ok(Self(out))
    }
}

impl<C> Encode<C> for Digest {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Digest {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let bytes = d.bytes()?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_e| decode::Error::message("digest is not 32 bytes"))
    }
}

/// The order of everything a controller decides: a restore from backup mints a larger timeline, so
/// that no revision number means two things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Revision {
    /// Grows only when the controller's store is restored from a backup.
    #[n(0)]
    pub timeline: u64,
    /// Gap-free within a timeline.
    #[n(1)]
    pub number: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.timeline, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_rule_they_break() {
        assert!(DeviceName::new("cam-12").is_ok());
        for bad in ["", "-a", "a-", "Cam", "a.b", &"x".repeat(64)] {
            assert!(DeviceName::new(bad).is_err(), "{bad}");
        }
        assert!(TrustDomain::new("plant.example").is_ok());
        assert!(TrustDomain::new("plant..example").is_err());
    }

    #[test]
    fn labels_keep_their_bounds_in_text_and_on_the_wire() {
        let labels: Labels = "role=sensor,zone=hall-3".parse().unwrap();
        let bytes = minicbor::to_vec(&labels).unwrap();
        assert_eq!(
            crate::wire::decode_canonical::<Labels>("labels", &bytes).unwrap(),
            labels
        );
        for bad in ["role", "role=a,role=b", "site=x", "Role=x", "role="] {
            assert!(bad.parse::<Labels>().is_err(), "{bad}");
        }
        let many = (0..17)
            .map(|i| format!("k{i}=v"))
            .collect::<Vec<_>>()
            .join(",");
        assert!(many.parse::<Labels>().is_err());
    }
}
