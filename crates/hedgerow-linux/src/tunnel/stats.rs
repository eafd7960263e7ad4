//! Counters: plain numbers in the machine, published once per round for readers elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What the tunnel has counted since it started.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The published copy.
        #[derive(Debug, Default)]
        pub(super) struct Shared {
            $($name: AtomicU64,)*
        }

        impl Shared {
            pub(super) fn publish(&self, stats: &Stats) {
                $(self.$name.store(stats.$name, Ordering::Relaxed);)*
            }

            pub(super) fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Stats {
            /// Visits every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

stats! {
    /// Inner packets sealed and sent.
    sent_packets,
    /// Bytes of them.
    sent_bytes,
    /// Inner packets opened and delivered.
    received_packets,
    /// Bytes of them.
    received_bytes,
    /// Handshakes begun by us, retries included.
    handshakes_begun,
    /// Handshakes that gave a session.
    handshakes_done,
    /// Handshakes given up after 90 s.
    handshakes_unanswered,
    /// Cookie replies sent because handshakes came too fast.
    cookies_sent,
    /// Datagrams too short, too long, or of no known type.
    dropped_malformed,
    /// Handshake messages whose first mac is not for any of our keys.
    dropped_bad_mac,
    /// Handshakes that do not decrypt, or under a key no peer has.
    dropped_unknown,
    /// Initiations not newer than the last one.
    dropped_replayed_handshake,
    /// Handshakes refused because their source or all together came too fast.
    dropped_handshake_rate,
    /// Messages for a session we do not have (any more).
    dropped_no_session,
    /// Messages that fail to authenticate.
    dropped_forged,
    /// Transport messages seen before, or too old to tell.
    dropped_replayed,
    /// Inner packets from an address that is not the peer's, or to one that is not ours.
    dropped_spoofed,
    /// What a peer sent inside is no IP packet.
    dropped_inner_malformed,
    /// Packets of our own kernel that are multicast, too long, or not from our address.
    dropped_outgoing,
    /// Packets that waited for a session or a peer and were dropped, too many or too long.
    dropped_waiting,
    /// Waiting packets answered with "administratively prohibited".
    rejected,
    /// Packets of our own kernel dropped from a queue that was full, or for a flow that sends too much.
    dropped_queue,
    /// Packets that came in with a mark of congestion that their ends do not understand.
    dropped_congestion,
    /// Datagrams the kernel did not take: socket full, no route.
    dropped_send,
    /// Inner packets the kernel did not take: interface down.
    dropped_tun,
    /// Mesh datagrams handed up.
    mesh_datagrams,
    /// Messages of peers' agents handed up.
    messages,
    /// Messages to a peer's agent dropped for want of a session, or too long.
    dropped_messages,
    /// Packets dropped because their session has no pre-shared key where one is required.
    dropped_not_secret,
    /// Packets of our own kernel answered with "packet too big".
    too_big,
    /// Frames passed on as a relay.
    relayed_frames,
    /// Bytes of them.
    relayed_bytes,
    /// Frames not passed on: not from where their side is, or to a peer whose place is unknown.
    dropped_relay,
    /// Frames not passed on because their side of a session sent more than it may.
    dropped_relay_session,
    /// Frames that waited and went because more waited than may, of the session of which the most did.
    dropped_relay_queue,
    /// Frames that had waited too long for too long.
    dropped_relay_delay,
    /// Sides of sessions that are passed on: two for each session.
    relay_sides,
    /// Reports dropped because the receiver was full.
    reports_dropped,
}
