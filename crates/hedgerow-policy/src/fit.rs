//! Whether a program that was received can be resolved as it was meant.

use hedgerow_model::Fault;
use hedgerow_model::program::{
    PREDICATE_OPS_MAX, PROGRAM_FORMAT, PROGRAM_RULES_MAX, Predicate, PredicateOp, Program,
    ProgramRule, Schedule, Services, Target,
};

use crate::resolve::TooLarge;

/// Why a program is refused as a whole. The one in force stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitProgram {
    /// Of a format that this agent does not know.
    #[error("program has format {0}, this agent reads {PROGRAM_FORMAT}")]
    Format(u32),
    /// A bound is broken.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A part has no meaning.
    #[error("program is malformed at {place}: {what}")]
    Malformed {
        /// The rule's or schedule's id.
        place: String,
        /// What has no meaning.
        what: &'static str,
    },
}

impl UnfitProgram {
    /// Returns who has to act: whoever made the program.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }
}

/// Checks a decoded program: format, bounds, order, indices, windows, predicates.
///
/// # Errors
///
/// The first thing that is wrong. A program of the compiler has nothing wrong.
pub fn fits(program: &Program) -> Result<(), UnfitProgram> {
    if program.format != PROGRAM_FORMAT {
        return Err(UnfitProgram::Format(program.format));
    }
    bound("program rules", program.rules.len(), PROGRAM_RULES_MAX)?;
    bound("schedules", program.schedules.len(), PROGRAM_RULES_MAX)?;
    for schedule in &program.schedules {
        let malformed = |what| UnfitProgram::Malformed {
            place: schedule.id.to_string(),
            what,
        };
        window(schedule).map_err(malformed)?;
    }
    let mut tier = 0;
    for rule in &program.rules {
        let malformed = |what| UnfitProgram::Malformed {
            place: rule.id.to_string(),
            what,
        };
        if rule.tier < tier {
            return Err(malformed("rules are not in the order of their tiers"));
        }
        tier = rule.tier;
        if let Target::Peers(predicate) = &rule.target {
            bound("predicate operations", predicate.0.len(), PREDICATE_OPS_MAX)?;
            if !leaves_one(predicate) {
                return Err(malformed("predicate does not leave one value"));
            }
        }
        meaning(rule, program).map_err(malformed)?;
    }
    Ok(())
}

fn bound(what: &'static str, count: usize, max: usize) -> Result<(), TooLarge> {
    if count > max {
        return Err(TooLarge { what, count, max });
    }
    Ok(())
}

fn window(schedule: &Schedule) -> Result<(), &'static str> {
    let days = (1..1 << 7).contains(&schedule.days);
    let times = schedule.from_minute < 1440 && (1..=1440).contains(&schedule.to_minute);
    match (days, times) {
        (true, true) => Ok(()),
        (false, _) => Err("window on no day of the week"),
        (true, false) => Err("window outside the day"),
    }
}

fn meaning(rule: &ProgramRule, program: &Program) -> Result<(), &'static str> {
    let known = |index: u16, len: usize| usize::from(index) < len;
    if rule
        .schedule
        .is_some_and(|s| !known(s, program.schedules.len()))
    {
        return Err("schedule that is not there");
    }
    if rule.except.iter().any(|e| !known(*e, program.rules.len())) {
        return Err("exception that is not there");
    }
    if rule
        .limit
        .is_some_and(|l| l.bytes_per_second == 0 || l.burst_bytes == 0)
    {
        return Err("limit of nothing");
    }
    match &rule.services {
        Services::Only(ports) if ports.iter().any(|p| p.first > p.last) => {
            Err("ports that end before they begin")
        }
        Services::Any | Services::Only(_) => Ok(()),
    }
}

fn leaves_one(predicate: &Predicate) -> bool {
    let depth = predicate.0.iter().try_fold(0usize, |depth, op| match op {
        PredicateOp::Not => (depth >= 1).then_some(depth),
        PredicateOp::And | PredicateOp::Or => (depth >= 2).then(|| depth - 1),
        PredicateOp::True
        | PredicateOp::False
        | PredicateOp::Is(..)
        | PredicateOp::In(..)
        | PredicateOp::Has(_)
        | PredicateOp::SameAsOwn(_)
        | PredicateOp::State(_)
        | PredicateOp::AnyState => Some(depth + 1),
    });
    depth == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;
    use crate::tests::{PLANT, device, policy};

    type Spoil = fn(&mut Program, usize);

    #[test]
    fn a_program_without_meaning_is_refused() {
        let own = device(1, "cam", "s1", "role=camera");
        let good = compile(&policy(PLANT), &own).unwrap();
        assert_eq!(fits(&good), Ok(()));
        let last = good.rules.len() - 1;
        let spoils: [(&str, Spoil); 8] = [
            ("format 9", |p, _| p.format = 9),
            ("order of their tiers", |p, _| p.rules.reverse()),
            ("schedule that is not there", |p, n| {
                p.rules[n].schedule = Some(7)
            }),
            ("exception that is not there", |p, n| {
                p.rules[n].except = vec![u16::MAX]
            }),
            ("no day", |p, _| p.schedules[0].days = 128),
            ("outside the day", |p, _| p.schedules[0].to_minute = 0),
            ("one value", |p, n| {
                p.rules[n].target = Target::Peers(Predicate(vec![PredicateOp::And]));
            }),
            ("predicate operations", |p, n| {
                let ops = vec![PredicateOp::True; PREDICATE_OPS_MAX + 1];
                p.rules[n].target = Target::Peers(Predicate(ops));
            }),
        ];
        for (told, spoil) in spoils {
            let mut bad = good.clone();
            spoil(&mut bad, last);
            let error = fits(&bad).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
