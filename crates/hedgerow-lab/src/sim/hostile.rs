//! What hostile devices do. Each runs the product's machines as everybody does, and breaks its word in one
//! way only, so that what follows from it is known.

use std::time::Duration;

use super::random::Random;

/// In which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hostility {
    /// A relay that puts other numbers on frames and sends them to others.
    Lies,
    /// A relay that drops most of what it should pass on.
    Withholds,
    /// A relay that holds every other frame back.
    Reorders,
    /// A device that begins a handshake with every peer all the time.
    Renegotiates,
    /// A device that sends in the name of another.
    Spoofs(usize),
    /// A device that shows the WireGuard key of another as its own.
    SharesKey(usize),
}

/// What a relay does with one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Sends it on, so much later.
    After(Duration),
    /// Puts this number on it.
    Renumbers(u32),
    /// Sends it to somebody else.
    Misdirects,
    /// Drops it.
    Drops,
}

/// How long a frame is held back, at most.
const HELD_BACK: Duration = Duration::from_millis(400);
/// How often handshakes are begun with everyone.
pub(super) const RENEGOTIATES_EVERY: Duration = Duration::from_secs(7);

impl Hostility {
    pub(super) const ALL: [Self; 6] = [
        Self::Lies,
        Self::Withholds,
        Self::Reorders,
        Self::Renegotiates,
        Self::Spoofs(0),
        Self::SharesKey(0),
    ];

    pub(super) fn is_of_a_relay(self) -> bool {
        matches!(self, Self::Lies | Self::Withholds | Self::Reorders)
    }

    /// Names the victim, where there is one.
    pub(super) fn against(self, victim: usize) -> Self {
        match self {
            Self::Spoofs(_) => Self::Spoofs(victim),
            Self::SharesKey(_) => Self::SharesKey(victim),
            Self::Lies | Self::Withholds | Self::Reorders | Self::Renegotiates => self,
        }
    }

    /// Whether others can count on what this device passes on.
    pub(super) fn serves(self) -> bool {
        !matches!(self, Self::Lies | Self::Withholds)
    }

    pub(super) fn treat(self, random: &mut Random) -> Treatment {
        match self {
            Self::Lies if random.chance(300) => {
                let [a, b, c, d, ..] = random.draw().to_le_bytes();
                Treatment::Renumbers(u32::from_le_bytes([a, b, c, d]))
            }
            Self::Lies if random.chance(300) => Treatment::Misdirects,
            Self::Withholds if random.chance(600) => Treatment::Drops,
            Self::Reorders if random.chance(500) => Treatment::After(random.up_to(HELD_BACK)),
            Self::Lies
            | Self::Withholds
            | Self::Reorders
            | Self::Renegotiates
            | Self::Spoofs(_)
            | Self::SharesKey(_) => Treatment::After(Duration::ZERO),
        }
    }
}
