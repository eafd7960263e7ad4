//! Times as people write and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hedgerow_model::Wall;

/// A span as an argument: `90`, `90s`, `15m`, `8h`, `30d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a time span; write 90s, 15m, 8h or 30d");
        let split = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_e| wrong())?;
        let seconds = match unit {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        let span = number.checked_mul(seconds).ok_or_else(wrong)?;
        Ok(Self(Duration::from_secs(span)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&short(self.0))
    }
}

/// Writes a span in its largest fitting unit: `45 s`, `12 min`, `5 h`, `3 d`.
pub(crate) fn short(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Writes an instant in UTC, to the second: `2026-03-30T07:59:00Z`.
pub(crate) fn utc(at: Wall) -> String {
    let (days, rest) = (at.secs() / 86_400, at.secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Returns the date that lies `days` after 1970-01-01, by the Gregorian calendar.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let moved_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * moved_month + 2) / 5 + 1;
    let month = if moved_month < 10 {
        moved_month + 3
    } else {
        moved_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_spelt_in_utc() {
        assert_eq!(utc(Wall::from_secs(0)), "1970-01-01T00:00:00Z");
        assert_eq!(utc(Wall::from_secs(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(utc(Wall::from_secs(1_774_857_540)), "2026-03-30T07:59:00Z");
        assert_eq!(utc(Wall::from_secs(4_107_542_399)), "2100-02-28T23:59:59Z");
        assert_eq!(utc(Wall::from_secs(4_107_542_400)), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn spans_are_read_and_written() {
        for (text, seconds) in [("90", 90), ("15m", 900), ("8h", 28_800), ("30d", 2_592_000)] {
            assert_eq!(
                text.parse(),
                Ok(Span(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        for wrong in [
            "",
            "m",
            "1w",
            "-1s",
            "1.5h",
            "99999999999999999999d",
            "9999999999999999999d",
        ] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert_eq!(short(Duration::from_secs(7199)), "119 min");
    }
}
