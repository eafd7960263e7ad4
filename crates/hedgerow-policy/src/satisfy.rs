//! Whether some device, or some pair of devices, can match: for checks, not for decisions.
//!
//! A selector becomes a disjunction of boxes; a box bounds every attribute by itself, so that boxes
//! are cut with one another attribute by attribute. Exact for labels, whose values are declared.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_model::program::Attribute;

use crate::policy::{Policy, Segment, Selector};

/// Most boxes of one selector; one that needs more is refused as too intricate.
pub(crate) const BOXES_MAX: usize = 1024;

/// The values that one attribute may have; none is its absence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bound {
    /// One of these.
    Among(BTreeSet<Option<String>>),
    /// Anything but these.
    Outside(BTreeSet<Option<String>>),
}

impl Bound {
    fn and(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Among(a), Self::Among(b)) => Self::Among(a & b),
            (Self::Among(a), Self::Outside(b)) | (Self::Outside(b), Self::Among(a)) => {
                Self::Among(a - b)
            }
            (Self::Outside(a), Self::Outside(b)) => Self::Outside(a | b),
        }
    }

    fn not(&self) -> Self {
        match self {
            Self::Among(a) => Self::Outside(a.clone()),
            Self::Outside(a) => Self::Among(a.clone()),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Among(a) if a.is_empty())
    }
}

/// A bound for every attribute; one that is missing is free.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Region(pub(crate) BTreeMap<Attribute, Bound>);

/// A selector needs too many boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooIntricate;

impl Region {
    /// Returns what lies in both, if anything can.
    pub(crate) fn and(&self, other: &Self, policy: &Policy) -> Option<Self> {
        let mut both = self.clone();
        for (attribute, bound) in &other.0 {
            both.narrow(attribute, bound, policy)?;
        }
        Some(both)
    }

    /// Narrows one attribute; none when nothing is left.
    pub(crate) fn narrow(
        &mut self,
        attribute: &Attribute,
        bound: &Bound,
        policy: &Policy,
    ) -> Option<()> {
        let bound = match self.0.get(attribute) {
            Some(old) => old.and(bound),
            None => bound.clone(),
        };
        let bound = spelt(attribute, &bound, policy);
        let some = !bound.is_empty();
        self.0.insert(attribute.clone(), bound);
        some.then_some(())
    }
}

/// Where the values are declared, what is outside some is among the others. Devices may carry
/// values that a policy does not declare, but those match like the absence of any of them, save for
/// the bare key: so one undeclared value stands for all.
fn spelt(attribute: &Attribute, bound: &Bound, policy: &Policy) -> Bound {
    let (Attribute::Label(key), Bound::Outside(gone)) = (attribute, bound) else {
        return bound.clone();
    };
    let declared = policy.vocabulary.get(key).into_iter().flatten();
    let all = declared.map(|v| Some(v.as_str().to_owned()));
    let all = all.chain([None, Some(UNDECLARED.to_owned())]);
    Bound::Among(all.filter(|v| !gone.contains(v)).collect())
}

/// Cannot be a label value: it holds a character that those exclude.
pub(crate) const UNDECLARED: &str = "?";

/// Returns the boxes of `selector`, empty when nothing can match.
pub(crate) fn regions(selector: &Selector, policy: &Policy) -> Result<Vec<Region>, TooIntricate> {
    expand(selector, true, policy, &policy.segments)
}

fn expand(
    selector: &Selector,
    holds: bool,
    policy: &Policy,
    segments: &[Segment],
) -> Result<Vec<Region>, TooIntricate> {
    let one = |attribute: &Attribute, bound: Bound| {
        let bound = if holds { bound } else { bound.not() };
        let mut region = Region::default();
        let some = region.narrow(attribute, &bound, policy);
        Ok(some.map(|()| region).into_iter().collect())
    };
    let all = |yes: bool| {
        Ok(if yes {
            vec![Region::default()]
        } else {
            Vec::new()
        })
    };
    match selector {
        Selector::Any => all(holds),
        Selector::Nothing => all(!holds),
        Selector::Is(a, v) => one(a, Bound::Among([Some(v.clone())].into())),
        Selector::In(a, vs) => one(a, Bound::Among(vs.iter().cloned().map(Some).collect())),
        Selector::Has(a) => one(a, Bound::Outside([None].into())),
        Selector::Segment(i) => match segments.get(*i) {
            Some(segment) => expand(&segment.select, holds, policy, segments),
            None => all(!holds),
        },
        Selector::Not(inner) => expand(inner, !holds, policy, segments),
        Selector::And(a, b) | Selector::Or(a, b) => {
            let left = expand(a, holds, policy, segments)?;
            let right = expand(b, holds, policy, segments)?;
            let joined = matches!(selector, Selector::And(..)) == holds;
            let mut found: Vec<Region> = if joined {
                left.iter()
                    .flat_map(|a| right.iter().filter_map(|b| a.and(b, policy)))
                    .take(BOXES_MAX + 1)
                    .collect()
            } else {
                left.into_iter().chain(right).collect()
            };
            found.sort();
            found.dedup();
            if found.len() > BOXES_MAX {
                return Err(TooIntricate);
            }
            Ok(found)
        }
    }
}

/// Returns whether one device can match both.
pub(crate) fn meet(a: &[Region], b: &[Region], policy: &Policy) -> bool {
    a.iter()
        .any(|a| b.iter().any(|b| a.and(b, policy).is_some()))
}

/// Returns whether `from` and `to` can be two devices that share the attributes in `same`.
pub(crate) fn joined(from: &Region, to: &Region, same: &[Attribute], policy: &Policy) -> bool {
    let (mut from, mut to) = (from.clone(), to.clone());
    same.iter().all(|attribute| {
        let present = Bound::Outside([None].into());
        let shared =
            to.0.get(attribute)
                .cloned()
                .unwrap_or_else(|| present.clone());
        from.narrow(attribute, &present, policy)
            .and_then(|()| from.narrow(attribute, &shared, policy))
            .is_some()
            && from
                .0
                .get(attribute)
                .cloned()
                .is_some_and(|b| to.narrow(attribute, &b, policy).is_some())
    })
}
