//! What operators and devices can ask for, below both the API and the sessions.

pub(crate) mod devices;
pub(crate) mod enrollment;
pub(crate) mod live;
pub(crate) mod policy;
pub(crate) mod renewal;
mod retention;
pub(crate) mod sites;
pub(crate) mod tokens;
