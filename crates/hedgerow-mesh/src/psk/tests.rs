use super::*;

const MS: Duration = Duration::from_millis(1);

fn device(number: u8) -> DeviceId {
    DeviceId([number; 16])
}

fn key(number: u8) -> X25519Public {
    X25519Public([number; 32])
}

/// Two ends and what lies on the way between them.
struct Pair {
    ends: [Exchanges; 2],
    /// What each end accepts beside what it uses, as its tunnel would hold it.
    slots: [(Option<Psk>, Option<Psk>); 2],
    way: VecDeque<(usize, Vec<u8>)>,
    /// Everything that was ever sent.
    heard: Vec<(usize, Vec<u8>)>,
    now: Mono,
    sets: usize,
    failed: usize,
}

impl Pair {
    fn new(mode: PostQuantum) -> Self {
        let mut ends = [1, 2].map(|seed| Exchanges::new([seed; 32], mode));
        let now = Mono::ZERO + Duration::from_secs(1000);
        for (number, end) in (1..).zip(&mut ends) {
            end.handle_own(device(number), key(number), now);
            end.handle_peer(device(3 - number), key(3 - number), now);
        }
        Self {
            ends,
            slots: [(None, None), (None, None)],
            way: VecDeque::new(),
            heard: Vec::new(),
            now,
            sets: 0,
            failed: 0,
        }
    }

    fn peer_of(end: usize) -> DeviceId {
        device(if end == 0 { 2 } else { 1 })
    }

    fn session(&mut self, with_psk: bool) {
        let now = self.now;
        for (end, machine) in self.ends.iter_mut().enumerate() {
            machine.handle_session(Self::peer_of(end), with_psk, now);
        }
        self.drain();
    }

    fn drain(&mut self) {
        for end in 0..2 {
            while let Some(output) = self.ends[end].poll() {
                match output {
                    Output::Send { content, .. } => {
                        self.heard.push((end, content.clone()));
                        self.way.push_back((1 - end, content));
                    }
                    Output::Set { psk, what, .. } => {
                        self.sets += 1;
                        let slot = &mut self.slots[end];
                        match what {
                            PskUse::Accept => slot.1 = Some(psk),
                            PskUse::Use | PskUse::UseNow => {
                                let before = slot.0.replace(psk);
                                slot.1 = before;
                            }
                        }
                        self.each_accepts_what_the_other_uses();
                    }
                    Output::Failed { .. } => self.failed += 1,
                }
            }
        }
    }

    fn each_accepts_what_the_other_uses(&self) {
        for end in 0..2 {
            let used = &self.slots[1 - end].0;
            let (own, second) = &self.slots[end];
            assert!(own == used || second == used, "end {end} is locked out");
        }
    }

    fn deliver(&mut self) -> Option<Result<(), Refused>> {
        let (to, content) = self.way.pop_front()?;
        let result = self.hand(to, &content);
        Some(result)
    }

    fn hand(&mut self, to: usize, content: &[u8]) -> Result<(), Refused> {
        let now = self.now;
        let result = self.ends[to].handle_message(Self::peer_of(to), content, now);
        self.drain();
        result
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        for end in &mut self.ends {
            end.handle_timeout(self.now);
        }
        self.drain();
    }

    /// Delivers all of it at once and reliably.
    fn settle(&mut self) {
        while let Some(result) = self.deliver() {
            result.unwrap();
        }
    }

    fn agree(&mut self) -> Psk {
        self.session(false);
        self.settle();
        let [(first, _), (second, _)] = &self.slots;
        assert!(first.is_some());
        assert_eq!(first, second, "both ends have the same key");
        first.clone().unwrap()
    }
}

#[test]
fn both_ends_agree_in_four_messages_that_fit() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    pair.agree();
    assert_eq!(pair.heard.len(), 4);
    let most = hedgerow_model::message::MESSAGE_BYTES_MAX;
    assert!(pair.heard.iter().all(|(_, content)| content.len() <= most));
    let who: Vec<usize> = pair.heard.iter().map(|(end, _)| *end).collect();
    assert_eq!(who, [0, 1, 0, 1], "the smaller id begins");
}

#[test]
fn the_key_depends_on_everything() {
    let psk = |devices: [u8; 2], keys: [u8; 2]| {
        let parties = Parties {
            devices: devices.map(device),
            keys: keys.map(key),
        };
        let secret = |n| Zeroizing::new([n; 32]);
        let x = |n: u8| x25519_dalek::StaticSecret::from([n; 32]);
        let beginner = Beginner::new(parties, [7; 8], (&secret(1), &secret(2)), x(3));
        let (answerer, answered) =
            Answerer::answer(&parties, &[7; 8], &beginner.key(), (&secret(4), x(5))).unwrap();
        let agreed = beginner
            .finish(&answered.ciphertext, &answered.x25519, &answered.check)
            .unwrap();
        let theirs = answerer.finish(&beginner.x25519(), &agreed.finish).unwrap();
        assert_eq!(theirs.psk, agreed.psk);
        *agreed.psk.expose()
    };
    let base = psk([1, 2], [3, 4]);
    for other in [psk([1, 9], [3, 4]), psk([9, 2], [3, 4])] {
        assert_ne!(base, other, "other devices");
    }
    for other in [psk([1, 2], [9, 4]), psk([1, 2], [3, 9])] {
        assert_ne!(base, other, "other WireGuard keys");
    }
}

/// 400 runs in which each message may be lost, doubled or overtaken.
#[test]
fn lost_doubled_and_reordered_messages_end_in_one_key() {
    let mut random = Random::new([9; 32]);
    for _ in 0..400 {
        let mut pair = Pair::new(PostQuantum::Prefer);
        pair.session(false);
        for _ in 0..200 {
            while let Some((to, content)) = pair.way.pop_front() {
                match random.bytes()[0] % 8 {
                    0 | 1 => {}
                    2 => pair.way.push_back((to, content)),
                    3 => {
                        let _seen = pair.hand(to, &content);
                        let _again = pair.hand(to, &content);
                    }
                    _ => {
                        let _seen = pair.hand(to, &content);
                    }
                }
            }
            pair.wait(500 * MS);
        }
        let [(first, _), (second, _)] = &pair.slots;
        assert!(first.is_some() && first == second);
    }
}

#[test]
fn a_reflected_message_is_refused() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    pair.session(false);
    let (_, begin) = pair.way.pop_front().unwrap();
    assert_eq!(pair.hand(0, &begin), Err(Refused::NotTheirs));
    pair.hand(1, &begin).unwrap();
    let (_, answer) = pair.way.pop_front().unwrap();
    assert_eq!(pair.hand(1, &answer), Err(Refused::Unasked));
    pair.hand(0, &answer).unwrap();
    let (_, finish) = pair.way.pop_front().unwrap();
    assert_eq!(pair.hand(0, &finish), Err(Refused::Unasked));
    assert_eq!(pair.slots[0].0, None, "nothing is used before the end");
}

#[test]
fn a_forged_byte_anywhere_is_refused_and_the_true_one_still_counts() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    pair.session(false);
    for step in 0..4 {
        let (to, content) = pair.way.pop_front().unwrap();
        if step > 0 {
            // A forged key in the first message is another key; the exchange then fails at the answer.
            for at in (2..content.len()).step_by(41).chain([content.len() - 1]) {
                let mut forged = content.clone();
                forged[at] ^= 0x10;
                let refused = pair.hand(to, &forged).unwrap_err();
                assert!(
                    matches!(
                        refused,
                        Refused::Forged | Refused::Unasked | Refused::Malformed
                    ),
                    "step {step} byte {at}: {refused:?}"
                );
                assert!(pair.way.is_empty(), "nothing is answered");
            }
        }
        pair.hand(to, &content).unwrap();
    }
    assert_eq!(pair.slots[0].0, pair.slots[1].0);
}

#[test]
fn an_answer_to_another_key_is_refused() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    pair.session(false);
    let (_, begin) = pair.way.pop_front().unwrap();
    let Ok(Message::Begin { exchange, .. }) = Message::decode(&begin) else {
        panic!("not a beginning");
    };
    let other = Beginner::new(
        Parties {
            devices: [device(1), device(2)],
            keys: [key(1), key(2)],
        },
        exchange,
        (&Zeroizing::new([8; 32]), &Zeroizing::new([8; 32])),
        x25519_dalek::StaticSecret::from([8; 32]),
    );
    let forged = Message::Begin {
        exchange,
        key: &other.key(),
    };
    pair.hand(1, &forged.encode()).unwrap();
    let (_, answer) = pair.way.pop_front().unwrap();
    assert_eq!(pair.hand(0, &answer), Err(Refused::Forged));
    assert_eq!(pair.hand(1, &begin), Err(Refused::Forged), "one key a name");
}

#[test]
fn an_old_exchange_played_again_changes_nothing() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    let old = pair.agree();
    let recorded = std::mem::take(&mut pair.heard);
    pair.wait(RENEW_EVERY * 6 / 5);
    pair.settle();
    let new = pair.slots[0].0.clone().unwrap();
    assert_ne!(old, new, "renewed after an hour");
    let sets = pair.sets;
    for (from, content) in &recorded {
        let _refused_or_answered = pair.hand(1 - from, content);
        for _ in 0..pair.way.len() {
            let (to, content) = pair.way.pop_front().unwrap();
            let _refused = pair.hand(to, &content);
        }
    }
    assert_eq!(pair.sets, sets, "no key is set");
    assert_eq!(pair.slots[0].0, Some(new.clone()));
    assert_eq!(pair.slots[1].0, Some(new));
}

#[test]
fn a_peer_that_renegotiates_forever_is_bounded() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    pair.agree();
    let beginner = |n: u16| {
        let mut exchange = [0; 8];
        exchange[..2].copy_from_slice(&n.to_be_bytes());
        let parties = Parties {
            devices: [device(1), device(2)],
            keys: [key(1), key(2)],
        };
        let seed = Zeroizing::new([5; 32]);
        Beginner::new(
            parties,
            exchange,
            (&seed, &seed),
            x25519_dalek::StaticSecret::from([6; 32]),
        )
    };
    let mut answered = 0;
    for n in 0..600 {
        let begin = Message::Begin {
            exchange: beginner(n).exchange,
            key: &beginner(0).key(),
        };
        match pair.hand(1, &begin.encode()) {
            Ok(()) => answered += 1,
            Err(refused) => assert_eq!(refused, Refused::TooOften),
        }
        pair.way.clear();
        pair.now = pair.now + Duration::from_secs(1);
    }
    assert!(answered <= 4 + 10, "{answered} in ten minutes");
    assert!(pair.ends[1].waiting.len() <= 1);
}

#[test]
fn silence_is_met_with_growing_pauses_and_ends_when_the_session_does() {
    for (mode, longest) in [
        (PostQuantum::Prefer, AGAIN_MAX),
        (PostQuantum::Strict, AGAIN_STRICT_MAX),
    ] {
        let mut pair = Pair::new(mode);
        pair.session(false);
        let mut pause = Duration::ZERO;
        for _ in 0..90 {
            pair.way.clear();
            let at = pair.ends[0].deadline().0;
            pause = pause.max(at.since(pair.now));
            let until = at.since(pair.now);
            pair.wait(until);
        }
        assert!(
            pause <= longest * 5 / 4 && pause >= longest * 3 / 4,
            "{pause:?}"
        );
        assert!(pair.failed > 3);
        let sent = pair.heard.len();
        pair.ends[0].handle_idle(device(2));
        pair.wait(AGAIN_MAX * 2);
        assert_eq!(pair.heard.len(), sent);
    }
}

#[test]
fn another_wireguard_key_of_either_side_begins_anew() {
    for rotated in 0..2 {
        let mut pair = Pair::new(PostQuantum::Prefer);
        let before = pair.agree();
        let new = key(77);
        let (own, peer) = (rotated, 1 - rotated);
        let now = pair.now;
        pair.ends[own].handle_own(Pair::peer_of(peer), new, now);
        pair.ends[peer].handle_peer(Pair::peer_of(peer), new, now);
        pair.slots = [(None, None), (None, None)];
        pair.session(false);
        pair.settle();
        let after = pair.slots[0].0.clone().unwrap();
        assert_ne!(before, after);
        assert_eq!(Some(after), pair.slots[1].0);
    }
}

#[test]
fn a_change_of_keys_without_a_new_session_begins_by_itself() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    pair.agree();
    let (new, now) = (key(77), pair.now);
    pair.ends[1].handle_own(device(2), new, now);
    pair.ends[0].handle_peer(device(2), new, now);
    pair.slots = [(None, None), (None, None)];
    pair.wait(AFTER_CHANGE);
    pair.settle();
    assert!(pair.slots[0].0.is_some());
}

#[test]
fn ends_that_know_different_keys_do_not_agree() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    let now = pair.now;
    pair.ends[1].handle_own(device(2), key(77), now);
    pair.session(false);
    pair.deliver().unwrap().unwrap();
    assert_eq!(pair.deliver(), Some(Err(Refused::Forged)));
    assert_eq!(pair.sets, 0);
}

#[test]
fn a_point_of_small_order_is_refused() {
    let mut pair = Pair::new(PostQuantum::Prefer);
    pair.session(false);
    pair.deliver().unwrap().unwrap();
    pair.deliver().unwrap().unwrap();
    let (_, finish) = pair.way.pop_front().unwrap();
    let Ok(Message::Finish {
        exchange, check, ..
    }) = Message::decode(&finish)
    else {
        panic!("not an end");
    };
    let small = Message::Finish {
        exchange,
        x25519: &[0; 32],
        check,
    };
    assert_eq!(pair.hand(1, &small.encode()), Err(Refused::Forged));
}

#[test]
fn answers_that_wait_are_bounded_and_expire() {
    let mut hub = Exchanges::new([3; 32], PostQuantum::Prefer);
    let now = Mono::ZERO + Duration::from_secs(1000);
    hub.handle_own(DeviceId([255; 16]), key(255), now);
    let seed = Zeroizing::new([5; 32]);
    let x = x25519_dalek::StaticSecret::from([6; 32]);
    let parties = Parties {
        devices: [device(1), device(2)],
        keys: [key(1), key(2)],
    };
    let begin = Beginner::new(parties, [1; 8], (&seed, &seed), x).key();
    let content = Message::Begin {
        exchange: [1; 8],
        key: &begin,
    }
    .encode();
    let mut refused = 0;
    for number in 0..1100u16 {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        hub.handle_peer(DeviceId(id), key(1), now);
        let later = now + Duration::from_millis(u64::from(number));
        if hub.handle_message(DeviceId(id), &content, later).is_err() {
            refused += 1;
        }
    }
    assert!(hub.waiting.len() <= ANSWERS_MAX && refused == 0);
    hub.handle_timeout(now + ANSWER_KEPT * 2);
    assert!(hub.waiting.is_empty());
    assert!(hub.peers.values().all(|peer| peer.answering.is_none()));
}
