use foca::Member as FocaMember;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn device(number: u16) -> DeviceId {
    let mut id = [9; 16];
    id[..2].copy_from_slice(&number.to_be_bytes());
    DeviceId(id)
}

/// Some relays and a network between them.
struct World {
    members: Vec<Option<Membership>>,
    way: BTreeMap<(Mono, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
    random: Random,
    loss_percent: u8,
    now: Mono,
    downs: Vec<(usize, DeviceId)>,
    deaf: Option<usize>,
}

impl World {
    fn new(count: u16, seed: u8) -> Self {
        let members = (0..count)
            .map(|n| {
                let own = Member {
                    device: device(n),
                    boot: 1000,
                };
                let [high, low] = n.to_be_bytes();
                let mut bytes = [seed; 32];
                (bytes[0], bytes[1]) = (high, low);
                Some(Membership::new(own, bytes))
            })
            .collect();
        Self {
            members,
            way: BTreeMap::new(),
            sent: 0,
            random: Random::new([seed; 32]),
            loss_percent: 0,
            now: Mono::ZERO + SECOND,
            downs: Vec::new(),
            deaf: None,
        }
    }

    fn join(&mut self) {
        let count = self.members.len();
        for n in 1..count {
            let first = u16::try_from(n / 2).unwrap();
            if let Some(member) = &mut self.members[n] {
                member.handle_session(device(first), self.now);
            }
            self.drain(n);
        }
    }

    fn drain(&mut self, n: usize) {
        let Some(member) = &mut self.members[n] else {
            return;
        };
        while let Some(output) = member.poll() {
            match output {
                Output::Send {
                    device: to,
                    content,
                } => {
                    assert!(content.len() <= MESSAGE_BYTES_MAX);
                    let [high, low] = *to.0.first_chunk().unwrap();
                    let to = usize::from(u16::from_be_bytes([high, low]));
                    self.sent += 1;
                    let lost = self.random.bytes()[0] % 100 < self.loss_percent;
                    let delay = 20 + u64::from(self.random.bytes()[0]) / 2;
                    if !lost {
                        let at = self.now + Duration::from_millis(delay);
                        self.way.insert((at, self.sent), (n, to, content));
                    }
                }
                Output::Down { device } => self.downs.push((n, device)),
                Output::Up { .. } => {}
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timers = self.members.iter().enumerate();
            let timer = timers
                .filter_map(|(n, m)| Some((m.as_ref()?.deadline().0, n)))
                .min();
            let arrival = self.way.first_key_value().map(|(k, _)| k.0);
            let timer_at = timer.map_or(Mono::NEVER, |(at, _)| at);
            let next = timer_at.min(arrival.unwrap_or(Mono::NEVER));
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, (from, to, content)) = self.way.pop_first().unwrap();
                let from = device(u16::try_from(from).unwrap());
                if let Some(member) = self.members[to].as_mut().filter(|_| self.deaf != Some(to)) {
                    let _refused = member.handle_message(from, &content, self.now);
                }
                self.drain(to);
            } else if let Some((_, n)) = timer {
                if let Some(member) = &mut self.members[n] {
                    member.handle_timeout(self.now);
                }
                self.drain(n);
            }
        }
    }

    fn knows(&self, n: usize) -> usize {
        self.members[n].as_ref().map_or(0, |m| m.status().len())
    }
}

#[test]
fn relays_find_each_other_and_notice_one_that_is_gone() {
    let mut world = World::new(20, 1);
    world.join();
    world.run(SECOND * 300);
    for n in 0..20 {
        assert_eq!(world.knows(n), 19, "member {n}");
    }
    assert!(world.downs.is_empty(), "nobody is called down");
    world.members[7] = None;
    world.run(SECOND * 300);
    for n in (0..20).filter(|n| *n != 7) {
        assert_eq!(world.knows(n), 18, "member {n}");
    }
    assert!(world.downs.iter().all(|(_, gone)| *gone == device(7)));
}

#[test]
fn a_member_that_starts_anew_is_taken_back_at_once() {
    let mut world = World::new(6, 2);
    world.join();
    world.run(SECOND * 120);
    world.members[3] = None;
    world.run(SECOND * 300);
    assert_eq!(world.knows(0), 4);
    let own = Member {
        device: device(3),
        boot: 2000,
    };
    let mut again = Membership::new(own, [77; 32]);
    again.handle_session(device(0), world.now);
    world.members[3] = Some(again);
    world.drain(3);
    world.run(SECOND * 30);
    assert!((0..6).all(|n| world.knows(n) == 5));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = World::new(12, 3);
        world.loss_percent = 10;
        world.join();
        world.run(SECOND * 200);
        (world.sent, world.downs.len())
    };
    assert_eq!(run(), run());
}

#[test]
fn who_cannot_hear_suspects_itself_first() {
    let mut world = World::new(10, 4);
    world.join();
    world.run(SECOND * 300);
    // Member 4 hears nobody: it loses what is sent to it.
    world.deaf = Some(4);
    world.run(SECOND * 120);
    let deaf = world.members[4].as_ref().unwrap();
    assert!(
        (2..HEALTH_MAX).contains(&deaf.health()),
        "{}",
        deaf.health()
    );
    let called = world.downs.iter().filter(|(n, _)| *n == 4).count();
    assert!(called <= 1, "the deaf one called {called} down");
}

#[test]
fn a_lie_in_another_members_name_is_refused() {
    let mut world = World::new(3, 5);
    world.join();
    world.run(SECOND * 60);
    let (_, (_, to, content)) = loop {
        if let Some(first) = world.way.pop_first() {
            break first;
        }
        let at = world.members.iter().flatten().map(|m| m.deadline().0).min();
        world.now = at.unwrap();
        for n in 0..3 {
            let now = world.now;
            world.members[n].as_mut().unwrap().handle_timeout(now);
            world.drain(n);
        }
    };
    let victim = world.members[to].as_mut().unwrap();
    let liar = device(999);
    assert_eq!(
        victim.handle_message(liar, &content, world.now),
        Err(Refused::Malformed)
    );
    assert_eq!(
        victim.handle_message(liar, &[0x81, 0x01], world.now),
        Err(Refused::Malformed)
    );
}

#[test]
fn a_flood_of_messages_and_of_invented_members_is_bounded() {
    let own = Member {
        device: device(0),
        boot: 1,
    };
    let mut victim = Membership::new(own, [6; 32]);
    let now = Mono::ZERO + SECOND;
    let mut other = Membership::new(
        Member {
            device: device(1),
            boot: 1,
        },
        [7; 32],
    );
    other.handle_session(device(0), now);
    let Some(Output::Send { content, .. }) = other.poll() else {
        panic!("nothing sent");
    };
    let read = (0..1000)
        .filter(|_| victim.handle_message(device(1), &content, now).is_ok())
        .count();
    assert_eq!(read, 100, "its burst");
    for number in 2..2000u16 {
        let mut other = Membership::new(
            Member {
                device: device(number),
                boot: 1,
            },
            [7; 32],
        );
        other.handle_session(device(0), now);
        if let Some(Output::Send { content, .. }) = other.poll() {
            let _refused = victim.handle_message(device(number), &content, now);
        }
    }
    assert!(victim.status().len() <= MEMBERS_MAX);
    assert!(victim.timers.len() <= TIMERS_MAX);
}

#[test]
fn a_relay_that_invents_members_fills_nobodys_memory() {
    let own = |n| Member {
        device: device(n),
        boot: 1,
    };
    let mut victim = Membership::new(own(0), [6; 32]);
    let mut now = Mono::ZERO + SECOND;
    for first in (10..3000u16).step_by(20) {
        let mut liar = Membership::new(own(1), [7; 32]);
        let invented = (first..first + 20).map(|n| FocaMember::alive(own(n)));
        let mut wants = Wants::default();
        liar.swim.apply_many(invented, true, &mut wants).unwrap();
        wants.send.clear();
        liar.swim.announce(own(0), &mut wants).unwrap();
        liar.swim
            .handle_data(&announcement_of(2, own(1)), &mut wants)
            .unwrap();
        for (_, content) in wants.send {
            // The header names another member: only what follows it is of use here.
            let mut e = minicbor::Encoder::new(Vec::new());
            e.array(6).unwrap().u8(9).unwrap();
            e.encode(device(1)).unwrap().u64(1).unwrap().u16(0).unwrap();
            e.encode(device(0)).unwrap().u64(1).unwrap();
            let mut forged = e.into_writer();
            let rest = content.len() - codec::body(&content).len();
            forged.extend(&content[rest..]);
            let _refused = victim.handle_message(device(1), &forged, now);
        }
        now = now + SECOND * 10;
    }
    let known = victim.swim.iter_membership_state().len();
    assert!((20..=MEMBERS_MAX).contains(&known), "{known}");
}

fn announcement_of(n: u16, to: Member) -> Vec<u8> {
    let own = Member {
        device: device(n),
        boot: 1,
    };
    let mut other = Membership::new(own, [8; 32]);
    let mut wants = Wants::default();
    other.swim.announce(to, &mut wants).unwrap();
    wants.send.remove(0).1
}

#[test]
fn hostile_bytes_are_read_or_refused() {
    use proptest::prelude::*;
    let mut runner = proptest::test_runner::TestRunner::default();
    let own = Member {
        device: device(0),
        boot: 1,
    };
    runner
        .run(&prop::collection::vec(any::<u8>(), 0..200), |bytes| {
            let mut victim = Membership::new(own, [6; 32]);
            let _refused = victim.handle_message(device(1), &bytes, Mono::ZERO);
            let _refused = codec::devices(&bytes);
            Ok(())
        })
        .unwrap();
}
