//! Three places on disk for an identity, and which of them to use after a start.
//!
//! ```text
//!   issued ─▶ next ── server accepted it ──▶ current ──▶ previous
//! ```
//!
//! A promotion is two renames, `current` to `previous` and `next` to `current`; power may fail
//! between any two steps, and what is found afterwards decides how to go on.

/// One of the three places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// In use.
    Current,
    /// Issued and not accepted by the server yet.
    Next,
    /// In use before.
    Previous,
}

impl Slot {
    /// Every slot, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Current, Self::Next, Self::Previous];

    /// Returns the name of its directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
            Self::Previous => "previous",
        }
    }
}

/// What was found in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Found {
    /// Nothing.
    #[default]
    Nothing,
    /// Something that cannot be used: a file is missing, or key, certificate and ticket disagree.
    Broken,
    /// A key with its certificate and ticket. Age does not matter: expiry never deletes a key.
    Complete,
}

/// What was found on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disk {
    /// In `current`.
    pub current: Found,
    /// In `next`.
    pub next: Found,
    /// In `previous`.
    pub previous: Found,
}

/// What to mend on disk. Doing it twice equals doing it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    /// Rename `next` to `current`: a promotion was cut short.
    FinishPromotion,
    /// Rename `previous` to `current`: the only one left.
    RestorePrevious,
    /// Move what is broken in `current` aside, for a person to look at; keys are never deleted.
    SetCurrentAside,
    /// Remove what is broken in `next`: storing was cut short, and it was never used.
    DropNext,
}

/// What to do after a start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Use the first; when the server refuses it, the next one. Empty: enroll. Named as they are
    /// found, before mending.
    pub order: Vec<Slot>,
    /// Do these in order, before anything is stored.
    pub mend: Vec<Mend>,
    /// A certificate waits to be accepted by the server.
    pub try_next: bool,
}

/// Decides which identity to use, and what to mend.
pub fn decide(disk: Disk) -> Decision {
    let found = |slot| match slot {
        Slot::Current => disk.current,
        Slot::Next => disk.next,
        Slot::Previous => disk.previous,
    };
    let order: Vec<Slot> = Slot::ALL
        .into_iter()
        .filter(|slot| found(*slot) == Found::Complete)
        .collect();
    let mut mend = Vec::new();
    if disk.next == Found::Broken {
        mend.push(Mend::DropNext);
    }
    if disk.current != Found::Complete && !order.is_empty() {
        if disk.current == Found::Broken {
            mend.push(Mend::SetCurrentAside);
        }
        mend.push(match disk.next {
            Found::Complete => Mend::FinishPromotion,
            Found::Nothing | Found::Broken => Mend::RestorePrevious,
        });
    }
    let try_next = disk.current == Found::Complete && disk.next == Found::Complete;
    Decision {
        order,
        mend,
        try_next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: [Found; 3] = [Found::Nothing, Found::Broken, Found::Complete];

    fn disks() -> impl Iterator<Item = Disk> {
        FOUND.into_iter().flat_map(|current| {
            FOUND.into_iter().flat_map(move |next| {
                FOUND.into_iter().map(move |previous| Disk {
                    current,
                    next,
                    previous,
                })
            })
        })
    }

    fn mended(mut disk: Disk, mend: &[Mend]) -> Disk {
        for step in mend {
            match step {
                Mend::FinishPromotion => {
                    disk.current = std::mem::take(&mut disk.next);
                }
                Mend::RestorePrevious => {
                    disk.current = std::mem::take(&mut disk.previous);
                }
                Mend::SetCurrentAside => disk.current = Found::Nothing,
                Mend::DropNext => disk.next = Found::Nothing,
            }
        }
        disk
    }

    #[test]
    fn whatever_is_found_a_complete_identity_is_used_and_none_is_lost() {
        for disk in disks() {
            let decision = decide(disk);
            let complete = [disk.current, disk.next, disk.previous]
                .iter()
                .filter(|f| **f == Found::Complete)
                .count();
            assert_eq!(decision.order.len(), complete, "{disk:?}");
            let after = mended(disk, &decision.mend);
            assert_eq!(after.current == Found::Complete, complete > 0, "{disk:?}");
            let left = [after.current, after.next, after.previous];
            let left = left.iter().filter(|f| **f == Found::Complete).count();
            assert_eq!(left, complete, "{disk:?}");
            assert!(decide(after).mend.is_empty(), "{disk:?}");
        }
    }

    #[test]
    fn power_lost_between_the_renames_of_a_promotion_finishes_it() {
        let disk = Disk {
            current: Found::Nothing,
            next: Found::Complete,
            previous: Found::Complete,
        };
        let decision = decide(disk);
        assert_eq!(decision.order, [Slot::Next, Slot::Previous]);
        assert_eq!(decision.mend, [Mend::FinishPromotion]);
    }

    #[test]
    fn power_lost_before_the_server_accepted_goes_on_with_current() {
        let disk = Disk {
            current: Found::Complete,
            next: Found::Complete,
            previous: Found::Nothing,
        };
        let decision = decide(disk);
        assert_eq!(decision.order, [Slot::Current, Slot::Next]);
        assert!(decision.try_next && decision.mend.is_empty());
    }
}
