//! Against boringtun, another implementation of the protocol, in memory.

use boringtun::noise::{Tunn, TunnResult};

use super::pair::*;
use crate::tunnel::{Command, PresharedKey, Report};

/// boringtun behind our node's face; it reads the real clock, we do not.
struct Boring {
    tunn: Tunn,
    delivered: Vec<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl Boring {
    fn new(own: u8, peer: u8, psk: Option<[u8; 32]>) -> Self {
        let own = x25519_dalek::StaticSecret::from(*secret(own).expose());
        let peer = x25519_dalek::PublicKey::from(secret(peer).public().0);
        Self {
            tunn: Tunn::new(own, peer, psk, None, 7, None),
            delivered: vec![],
            sent: vec![],
        }
    }

    fn send(&mut self, packet: &[u8]) {
        let mut buffer = vec![0; 2000];
        let result = self.tunn.encapsulate(packet, &mut buffer);
        Self::note(&mut self.sent, &mut self.delivered, result);
    }

    fn rekey(&mut self) {
        let mut buffer = vec![0; 2000];
        let result = self.tunn.format_handshake_initiation(&mut buffer, true);
        Self::note(&mut self.sent, &mut self.delivered, result);
    }

    fn receive(&mut self, datagram: &[u8]) {
        let mut input = datagram;
        loop {
            let mut buffer = vec![0; 2000];
            let result = self.tunn.decapsulate(None, input, &mut buffer);
            if !Self::note(&mut self.sent, &mut self.delivered, result) {
                return;
            }
            input = &[];
        }
    }

    /// Returns whether boringtun wants to be called again.
    fn note(sent: &mut Vec<Vec<u8>>, delivered: &mut Vec<Vec<u8>>, result: TunnResult<'_>) -> bool {
        match result {
            TunnResult::WriteToNetwork(bytes) => {
                sent.push(bytes.to_vec());
                return true;
            }
            TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
                delivered.push(bytes.to_vec());
            }
            TunnResult::Done => {}
            TunnResult::Err(e) => panic!("boringtun: {e:?}"),
        }
        false
    }
}

fn carry(a: &mut Node, b: &mut Boring, now: hedgerow_model::Now) {
    let at_b = Node::new(2).at;
    while !(a.sent.is_empty() && b.sent.is_empty()) {
        for (to, bytes) in std::mem::take(&mut a.sent) {
            assert_eq!(to, at_b);
            b.receive(&bytes);
        }
        for bytes in std::mem::take(&mut b.sent) {
            a.receive(at_b, &bytes, now);
        }
    }
}

fn both_ways(a: &mut Node, b: &mut Boring, now: hedgerow_model::Now) {
    for (one, two) in [(v6(1), v6(2)), (v4(1), v4(2))] {
        for len in [0, 1, 15, 16, 17, 1360] {
            let (there, back) = (
                packet(one, two, &vec![1; len]),
                packet(two, one, &vec![2; len]),
            );
            a.send(&there, now);
            b.send(&back);
            carry(a, b, now);
            assert_eq!(std::mem::take(&mut b.delivered), [there]);
            assert_eq!(a.got(), [back]);
        }
    }
}

fn node(psk: Option<[u8; 32]>) -> Node {
    let mut a = Node::new(1);
    let mut config = Node::new(2).config();
    config.psk = psk.map(PresharedKey::from_bytes);
    a.tell(Command::SetPeer(config), at(0));
    a
}

#[test]
fn tunnel_initiates_to_boringtun_and_rekeys() {
    for psk in [None, Some([9; 32])] {
        let (mut a, mut b) = (node(psk), Boring::new(2, 1, psk));
        a.send(&packet(v6(1), v6(2), b"first"), at(1));
        carry(&mut a, &mut b, at(1));
        assert_eq!(b.delivered.len(), 1);
        b.delivered.clear();
        both_ways(&mut a, &mut b, at(2));
        both_ways(&mut a, &mut b, at(130));
        assert_eq!(a.core.stats().handshakes_done, 2, "rekeyed by age");
        both_ways(&mut a, &mut b, at(131));
    }
}

#[test]
fn tunnel_responds_to_boringtun_and_to_its_rekey() {
    for psk in [None, Some([9; 32])] {
        let (mut a, mut b) = (node(psk), Boring::new(2, 1, psk));
        let first = packet(v4(2), v4(1), b"first");
        b.send(&first);
        carry(&mut a, &mut b, at(1));
        assert_eq!(a.got(), [first]);
        assert!(matches!(a.said()[..], [Report::Established { .. }]));
        both_ways(&mut a, &mut b, at(2));
        b.rekey();
        carry(&mut a, &mut b, at(3));
        both_ways(&mut a, &mut b, at(4));
        assert_eq!(a.core.stats().handshakes_done, 2);
        assert_eq!(a.core.stats().handshakes_begun, 0);
    }
}

#[test]
fn tunnel_answers_boringtun_s_rekey_after_our_key_has_rotated() {
    let (mut a, mut b) = (node(None), Boring::new(2, 1, None));
    b.send(&packet(v6(2), v6(1), b"x"));
    carry(&mut a, &mut b, at(1));
    a.got();
    a.rotate(50, at(2));
    b.rekey();
    carry(&mut a, &mut b, at(3));
    assert_eq!(a.core.stats().handshakes_done, 2);
    both_ways(&mut a, &mut b, at(4));
}
