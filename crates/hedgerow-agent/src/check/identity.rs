//! The certificate: there, and for how long.

use hedgerow_identity::certificate::LeafFacts;

use super::Finding;
use crate::config::Config;
use crate::shell::clock::Clock;
use crate::shell::identity::Identities;
use crate::shell::store::Store;

const DAY_SECS: u64 = 86_400;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    const NAME: &str = "certificate";
    let store = Store::peek(&config.state);
    let identities = match Identities::read(&store) {
        Ok(identities) => identities,
        Err(failure) => return vec![Finding::error(NAME, failure.message, failure.remedy)],
    };
    let leaf = identities.current().chain.first();
    let Some(facts) = leaf.and_then(|der| LeafFacts::parse(der).ok()) else {
        return vec![Finding::error(
            NAME,
            "the certificate cannot be read",
            "restore the state directory from a backup, or enroll again",
        )];
    };
    let now = Clock::start(store.floor()).now().wall.secs();
    let end = facts.not_after_secs();
    vec![if end < now {
        Finding::error(
            NAME,
            format!("expired {} days ago", (now - end) / DAY_SECS),
            "let the agent reach a controller: it renews by itself; what is enforced does not weaken",
        )
    } else {
        let days = (end - now) / DAY_SECS;
        Finding::ok(NAME, format!("valid for {days} more days"))
    }]
}
