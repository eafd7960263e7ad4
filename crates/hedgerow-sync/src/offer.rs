//! Resources on offer: hashed and encoded once, shared by every session that sends them.

use std::sync::Arc;

use hedgerow_model::id::Revision;
use hedgerow_model::resource::{Resource, ResourceHead, ResourceKind};
use hedgerow_model::wire;

use minicbor::encode::{self, Encode, Encoder};

use crate::message::{ToAgent, Update};
use crate::outbox::{Message, Piece};

/// A resource on offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    head: ResourceHead,
    /// The resource as it travels. Its content stands at the end.
    encoded: Vec<u8>,
    content_at: usize,
}

impl Offer {
    /// Hashes and encodes the resource.
    pub fn new(resource: Resource) -> Arc<Self> {
        let head = resource.head();
        let mut encoded = wire::encode(&resource);
        encoded.shrink_to_fit();
        Arc::new(Self {
            head,
            content_at: encoded.len().saturating_sub(resource.bytes.len()),
            encoded,
        })
    }

    /// Returns what it is, without its content.
    pub fn head(&self) -> ResourceHead {
        self.head
    }

    /// Returns the signed statement.
    pub fn content(&self) -> &[u8] {
        self.encoded.get(self.content_at..).unwrap_or_default()
    }

    /// Returns the resource.
    pub fn to_resource(&self) -> Resource {
        Resource {
            kind: self.head.kind,
            version: self.head.version,
            bytes: self.content().to_vec(),
        }
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        &self.encoded
    }
}

/// An update whose resources are not copied.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) revision: Revision,
    pub(crate) previous: Option<Revision>,
    pub(crate) partial: bool,
    pub(crate) set: Vec<Arc<Offer>>,
    pub(crate) remove: Vec<ResourceKind>,
}

impl Shared {
    /// Returns the message [`ToAgent::Update`]. Resources go between the bytes of an update without
    /// any, where the list of them is.
    pub(crate) fn message(self) -> Message {
        let empty = |remove| {
            wire::encode(&ToAgent::Update(Update {
                revision: self.revision,
                previous: self.previous,
                partial: self.partial,
                set: Vec::new(),
                remove,
            }))
        };
        let tail = wire::encode(&self.remove);
        let mut head = empty(self.remove);
        // What follows an empty list of resources: the key of the kinds to remove, and they.
        let tail = head.split_off(head.len().saturating_sub(tail.len() + 1));
        head.pop();
        head.append(&mut wire::encode(&ListOf(self.set.len())));
        let shared = self.set.into_iter().map(Piece::Shared);
        let pieces = [Piece::Own(head)].into_iter().chain(shared);
        Message::new(pieces.chain([Piece::Own(tail)]))
    }
}

/// The beginning of a list of so many.
struct ListOf(usize);

impl<C> Encode<C> for ListOf {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(self.0 as u64)?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(kind: ResourceKind, bytes: usize) -> Arc<Offer> {
        let version = Revision {
            timeline: 3,
            number: bytes as u64,
        };
        Offer::new(Resource {
            kind,
            version,
            bytes: vec![7; bytes],
        })
    }

    #[test]
    fn a_shared_update_is_the_update_to_the_byte() {
        let revision = |number| Revision {
            timeline: 1,
            number,
        };
        let sizes = [0, 23, 24, 255, 256, 70_000];
        for previous in [None, Some(revision(70_000))] {
            for count in 0..=sizes.len() {
                for remove in [vec![], vec![ResourceKind::Program, ResourceKind::Names]] {
                    let kinds = ResourceKind::ALL.into_iter().zip(sizes).take(count);
                    let set: Vec<_> = kinds.map(|(kind, size)| offer(kind, size)).collect();
                    let update = Update {
                        revision: revision(9),
                        previous,
                        partial: previous.is_none(),
                        set: set.iter().map(|o| o.to_resource()).collect(),
                        remove: remove.clone(),
                    };
                    let shared = Shared {
                        revision: update.revision,
                        previous,
                        partial: update.partial,
                        set,
                        remove,
                    };
                    let bytes = shared.message().to_vec();
                    assert!(bytes == wire::encode(&ToAgent::Update(update)));
                }
            }
        }
    }
}
