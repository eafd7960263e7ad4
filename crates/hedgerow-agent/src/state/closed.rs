//! The table of a device that cannot know its policy.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use hedgerow_model::address::OverlayAddresses;
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::{Lifeline, LinkPorts, Ruleset};

use super::Local;

/// Returns a table that lets nothing through on the overlay, made of the configuration alone: neither
/// the device's addresses nor its pools are known. The underlay is closed but for the lifeline where
/// it was so before.
pub(crate) fn closed_ruleset(local: &Local, underlay: Mode) -> Ruleset {
    let controllers = local.controllers.iter().filter_map(|c| c.parse().ok());
    Ruleset {
        generation: 0,
        tunnel: local.tunnel.clone(),
        own: OverlayAddresses {
            v6: Ipv6Addr::UNSPECIFIED,
            v4: None,
        },
        pools: Vec::new(),
        profiles: BTreeMap::new(),
        peers: BTreeMap::new(),
        limits: Vec::new(),
        rule_names: Vec::new(),
        underlay_mode: underlay,
        underlay: Vec::new(),
        lifeline: Lifeline {
            controllers: controllers.collect(),
            mesh_port: local.mesh_port,
            management: local.management.clone(),
            servers: local.all_servers(),
            askers: local.askers,
            // Whether it is a relay is not known, and without an identity there are no links.
            links: LinkPorts::default(),
        },
        sample_seconds: 10,
    }
}
