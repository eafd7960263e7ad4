//! What may a device do? The policy language, its meaning, and its compiled form.
//!
//! ```text
//!              ┌─▶ Vec<Diagnostic>
//!  file ─▶ parse ─▶ Policy ─┬─▶ compile(class) ─▶ Program ─▶ Resolver(own, now) ─▶ Profile, Ruleset
//!                           └─▶ evaluate(flow) ─▶ Outcome: the meaning, written a second time
//! ```
//!
//! # Invariants
//!
//! - Everything is a pure function: the same policy and facts give the same bytes on every machine.
//! - A policy with any error compiles to nothing.
//! - An empty selector selects nothing; everything is spelt `any`.
//! - The evaluator is the reference. It shares no decision with the compiler and the resolver, and a
//!   property test holds the two together.
//! - What cannot be known (time, zone) is read the strict way: windows that allow are closed, windows
//!   that deny are in force.
//!
//! # Not here
//!
//! Kernel tables (`hedgerow-linux`), signatures (`hedgerow-identity`), revisions and who may change
//! what (`hedgerow-control`).
//!
//! Start reading at [`compile`] for the compiled form, at [`evaluate`] for the meaning.
#![forbid(unsafe_code)]

mod check;
mod compile;
mod diagnostic;
mod evaluate;
mod explain;
mod facts;
mod fit;
mod internet;
mod parse;
mod plan;
mod policy;
mod reach;
mod resolve;
mod satisfy;
mod trial;
mod window;

#[cfg(test)]
mod agreement;

pub use compile::{class_matches, class_of, compared, compile};
pub use diagnostic::{Diagnostic, Severity};
pub use evaluate::{Decision, End, Flow, Outcome, Ruling, Step, evaluate};
pub use explain::{EndTrace, Explanation, explain, tier_name};
pub use facts::{Facts, Kind, World};
pub use fit::{UnfitProgram, fits};
pub use parse::{API_VERSION, POLICY_BYTES_MAX, has_errors, parse};
pub use plan::{Plan, plan};
pub use policy::{BUILTIN_SERVICES, Policy};
pub use reach::{Reach, ReachChange, ReachRow, predict};
pub use resolve::{LocalEnvironment, Resolver, TooLarge, names_for};
pub use trial::{TestResult, test};

#[cfg(test)]
mod tests;
