//! When a schedule's window is open, for the compiled form.
//!
//! A window is open while the clock on the wall of the site shows a time inside it: on the day the
//! clock goes back it may open twice, on the day it goes forward it may be shorter.

use hedgerow_model::Wall;
use hedgerow_model::program::Schedule;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// Minutes in a day.
const DAY_MINUTES: u16 = 1440;
/// How far ahead boundaries are searched, in days: every weekly window has one within.
const HORIZON_DAYS: i64 = 9;

/// Converts to the calendar's instant; none beyond the year 9999.
pub(crate) fn timestamp(at: Wall) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()
}

fn wall(at: Timestamp) -> Option<Wall> {
    u64::try_from(at.as_millisecond()).ok().map(Wall)
}

/// Returns whether the window is open at `at` in `zone`; none when the calendar does not reach.
pub(crate) fn is_open(schedule: &Schedule, zone: &TimeZone, at: Wall) -> Option<bool> {
    let local = zone.to_datetime(timestamp(at)?);
    let weekday = u32::try_from(local.weekday().to_monday_zero_offset()).ok()?;
    let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).ok()?;
    let opens_on = |day: u32| schedule.days & (1 << (day % 7)) != 0;
    let (from, to) = (schedule.from_minute, schedule.to_minute);
    let today = opens_on(weekday);
    Some(if from < to {
        today && (from..to).contains(&minute)
    } else {
        (today && minute >= from) || (opens_on(weekday + 6) && minute < to)
    })
}

/// Returns the moments after `after`, in order, at which the window may open or close.
pub(crate) fn boundaries(schedule: &Schedule, zone: &TimeZone, after: Wall) -> Vec<Wall> {
    let Some(start) = timestamp(after) else {
        return Vec::new();
    };
    let today = zone.to_datetime(start).date();
    let mut found: Vec<Timestamp> = (-1..=HORIZON_DAYS)
        .filter_map(|n| today.checked_add(jiff::Span::new().days(n)).ok())
        .flat_map(|date| {
            [schedule.from_minute, schedule.to_minute]
                .into_iter()
                .filter_map(move |minute| moment(date, minute))
        })
        .flat_map(|local| {
            let moment = zone.to_ambiguous_timestamp(local);
            [moment.earlier(), moment.later()]
        })
        .flatten()
        .chain(shifts(zone, start))
        .filter(|t| *t > start)
        .collect();
    found.sort_unstable();
    found.dedup();
    let mut was = is_open(schedule, zone, after);
    let walls = found.into_iter().filter_map(wall);
    walls
        .filter(|at| {
            let is = is_open(schedule, zone, *at);
            std::mem::replace(&mut was, is) != is
        })
        .collect()
}

/// The moments within the horizon at which the zone's own offset changes.
fn shifts(zone: &TimeZone, start: Timestamp) -> Vec<Timestamp> {
    let end = start.checked_add(jiff::SignedDuration::from_hours(24 * HORIZON_DAYS));
    zone.following(start)
        .map(|shift| shift.timestamp())
        .take_while(|t| end.as_ref().is_ok_and(|end| t < end))
        .collect()
}

fn moment(date: Date, minute: u16) -> Option<DateTime> {
    let (date, minute) = match minute {
        DAY_MINUTES.. => (date.tomorrow().ok()?, minute - DAY_MINUTES),
        _ => (date, minute),
    };
    let hour = i8::try_from(minute / 60).ok()?;
    let minute = i8::try_from(minute % 60).ok()?;
    Some(date.at(hour, minute, 0, 0))
}
