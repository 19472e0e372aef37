//! What the lanes promise, on a paused clock: a model of receivers that answer after some time or never.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::mpsc,
};

use super::*;

/// What waits, by its number, and where it says that it has a place.
struct Waiting(u32, mpsc::Sender<(u32, Place<Waiting>)>);

impl Waits for Waiting {
    fn go(self, place: Place<Self>) {
        let Self(number, tell) = self;
        drop(tell.send((number, place)));
    }
}

/// A delivery that is under way.
struct Going {
    place: Place<Waiting>,
    begun: Instant,
    until: Instant,
}

/// Deliveries by their number, to receivers that take so long.
struct World {
    lanes: Lanes<Waiting>,
    tell: mpsc::Sender<(u32, Place<Waiting>)>,
    told: mpsc::Receiver<(u32, Place<Waiting>)>,
    asked: Vec<(Ask, Duration)>,
    going: BTreeMap<u32, Going>,
    /// When each first began, and when it was delivered.
    first: BTreeMap<u32, Duration>,
    done: BTreeMap<u32, Duration>,
    start: Instant,
    most: usize,
}

const NEVER: Duration = Duration::from_secs(100_000);

fn ask(function: &str, receiver: &str, callback: bool) -> Ask {
    let function = FunctionName::parse(function).unwrap();
    let receiver = (!receiver.is_empty()).then(|| receiver.to_owned());
    Ask { function, callback, large: false, receiver }
}

impl World {
    fn new() -> Self {
        let (tell, told) = mpsc::channel();
        let (asked, going, first, done) = Default::default();
        Self { lanes: Lanes::new(), tell, told, asked, going, first, done, start: Instant::now(), most: 0 }
    }

    /// One more is to be delivered, to a receiver that takes so long.
    fn deliver(&mut self, ask: Ask, takes: Duration) -> u32 {
        let number = u32::try_from(self.asked.len()).unwrap();
        self.asked.push((ask, takes));
        self.enter(number);
        number
    }

    fn enter(&mut self, number: u32) {
        let (ask, tell) = (self.asked[number as usize].0.clone(), self.tell.clone());
        match self.lanes.enter(ask, || Waiting(number, tell)) {
            Some(place) => self.begin(number, place),
            None => self.given(),
        }
    }

    fn begin(&mut self, number: u32, mut place: Place<Waiting>) {
        let (until, begun) = (place.begin(), Instant::now());
        self.first.entry(number).or_insert(begun - self.start);
        assert!(self.going.insert(number, Going { place, begun, until }).is_none(), "{number} goes twice");
        self.most = self.most.max(self.going.len());
    }

    fn given(&mut self) {
        while let Ok((number, place)) = self.told.try_recv() {
            self.begin(number, place);
        }
    }

    /// What happens next happens; false when nothing will.
    async fn step(&mut self) -> bool {
        let asked = &self.asked;
        let ends = |number: &u32, going: &Going| going.until.min(going.begun + asked[*number as usize].1);
        let Some((at, number)) = self.going.iter().map(|(number, going)| (ends(number, going), *number)).min() else {
            return false;
        };
        tokio::time::sleep_until(at).await;
        let takes = self.asked[number as usize].1;
        let mut going = self.going.remove(&number).unwrap();
        if at >= going.begun + takes {
            self.done.insert(number, at - self.start);
            going.place.end();
        } else if let Some(until) = going.place.slower() {
            going.until = until;
            self.going.insert(number, going);
            self.given();
            return true;
        } else {
            going.place.end();
            drop(going);
            self.given();
            // It is tried again.
            if at - self.start < Duration::from_secs(3600) {
                self.enter(number);
            }
            return true;
        }
        drop(going);
        self.given();
        true
    }

    /// Until that was delivered.
    async fn until_done(&mut self, number: u32) -> Duration {
        while !self.done.contains_key(&number) {
            assert!(self.step().await, "{number} waits where nothing goes");
        }
        self.done[&number]
    }
}

const SOON: Duration = Duration::from_millis(50);

/// Those who wait for a receiver that hangs, however many, wait in lanes that others are not in.
#[tokio::test(start_paused = true)]
async fn a_new_receiver_is_not_held_up_by_those_that_hang() {
    for (hanging, functions, longest) in [(12, 1, 0.1), (40, 1, 0.1), (96, 4, 1.1), (300, 1, 7.0), (300, 30, 4.0)] {
        let mut world = World::new();
        for n in 0..hanging {
            // Several for each of them.
            for _ in 0..5 {
                world.deliver(ask(&format!("f{}", n % functions), &format!("hangs-{n}"), true), NEVER);
            }
        }
        let new = world.deliver(ask("f0", "new", true), SOON);
        let took = world.until_done(new).await.as_secs_f64();
        assert!(took <= longest, "{hanging} of {functions}: {took} s");
        // Once they are known, nobody new waits for any of them, of whichever function.
        while world.start.elapsed() < Duration::from_secs(60) {
            assert!(world.step().await);
        }
        for (function, receiver) in [("f0", "newer"), ("other", "newest"), ("f0", "new")] {
            let (before, number) = (world.start.elapsed(), world.deliver(ask(function, receiver, true), SOON));
            assert_eq!(
                world.until_done(number).await - before,
                SOON,
                "{hanging} of {functions}: {function} {receiver}"
            );
        }
        assert!(world.most <= 96 + 32 * 4, "{}", world.most);
    }
}

/// Whoever comes anew while others come all the time that hang.
#[tokio::test(start_paused = true)]
async fn nor_by_those_that_keep_coming() {
    let mut world = World::new();
    let (mut n, mut worst) = (0, Duration::ZERO);
    for second in 0..120 {
        while world.start.elapsed() < Duration::from_secs(second) {
            let next = Duration::from_secs(second);
            let due = world.going.iter().any(|(number, going)| {
                going.until.min(going.begun + world.asked[*number as usize].1) <= world.start + next
            });
            if due { assert!(world.step().await) } else { tokio::time::sleep_until(world.start + next).await }
        }
        for _ in 0..40 {
            n += 1;
            world.deliver(ask("f", &format!("hangs-{n}"), true), NEVER);
        }
        let (before, new) = (world.start.elapsed(), world.deliver(ask("f", &format!("new-{second}"), true), SOON));
        worst = worst.max(world.until_done(new).await - before);
    }
    assert!(worst <= Duration::from_millis(1100), "{worst:?}");
}

/// What functions have to tell does not wait for what callers name, what is here for nobody, and what is small not for what is large.
#[tokio::test(start_paused = true)]
async fn lanes_are_apart() {
    let mut world = World::new();
    for n in 0..500 {
        world.deliver(ask("f", &format!("hangs-{n}"), true), NEVER);
        world.deliver(Ask { large: true, ..ask("f", &format!("large-{n}"), true) }, NEVER);
    }
    for ask in [ask("f", "audit", false), ask("f", "", false)] {
        let number = world.deliver(ask, SOON);
        assert_eq!(world.until_done(number).await, world.first[&number] + SOON);
        assert!(world.first[&number] <= SOON);
    }
}

/// One that turns from quick to hanging has its places for a second, and those that take some seconds have places of their own.
#[tokio::test(start_paused = true)]
async fn who_is_known_goes_with_those_who_are_alike() {
    let mut world = World::new();
    let seconds = Duration::from_secs(3);
    for n in 0..8 {
        for (name, takes) in [("quick", SOON), ("steady", seconds)] {
            let number = world.deliver(ask("f", &format!("{name}-{n}"), true), takes);
            world.until_done(number).await;
        }
    }
    // All that were quick hang now.
    for n in 0..8 {
        for _ in 0..10 {
            world.deliver(ask("f", &format!("quick-{n}"), true), NEVER);
        }
    }
    let steady = world.deliver(ask("f", "steady-0", true), seconds);
    let quick = world.deliver(ask("g", "quicker", true), SOON);
    assert_eq!(world.until_done(quick).await - world.first[&quick], SOON);
    world.until_done(steady).await;
    assert!(world.done[&steady] - world.first[&quick] <= seconds, "{:?}", world.done[&steady]);
}

/// Of several that wait for one receiver, and of several receivers and functions, nobody is forgotten, and everything is given back.
#[tokio::test(start_paused = true)]
async fn everything_comes_through() {
    let mut world = World::new();
    for n in 0..2_000_u64 {
        let takes = Duration::from_millis([10, 400, 900, 2_500, 12_000][(n % 5) as usize]);
        let mut asked = ask(&format!("f{}", n % 11), &format!("r{}", n % 35), n % 2 == 0);
        asked.large = n % 13 == 0;
        world.deliver(asked, takes);
    }
    while world.step().await {}
    assert_eq!(world.done.len(), 2_000);
    let held = lock(&world.lanes.0);
    assert!(held.lanes.values().all(Lane::is_empty));
    assert!(held.receivers.values().all(|known| known.going == 0 && known.waits.is_empty()));
}

/// However many places there are in lanes, one receiver has no more than eight.
#[tokio::test(start_paused = true)]
async fn one_receiver_is_not_asked_by_too_many() {
    let mut world = World::new();
    for n in 0..400 {
        world.deliver(ask(&format!("f{n}"), "one", n % 2 == 0), SOON);
    }
    assert_eq!(world.going.len(), TO_RECEIVER);
    while world.step().await {
        assert!(world.going.len() <= TO_RECEIVER);
    }
    assert_eq!(world.done.len(), 400);
}

/// A receiver that is not known gets one of a function's; once it has answered, more.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_answers_gets_more() {
    let mut world = World::new();
    for _ in 0..20 {
        world.deliver(ask("f", "a", true), SOON);
    }
    assert_eq!(world.going.len(), 1, "nobody knows how it is");
    assert!(world.step().await);
    assert_eq!(world.going.len(), 4);
    let order: VecDeque<u32> = world.going.keys().copied().collect();
    assert_eq!(order, [1, 2, 3, 4], "in the order in which they came");
}

/// Far more receivers than are remembered.
#[tokio::test(start_paused = true)]
async fn what_is_known_is_bounded() {
    let mut world = World::new();
    for n in 0..3 * KNOWN {
        let number = world.deliver(ask("f", &format!("r{n}"), true), Duration::ZERO);
        world.until_done(number).await;
    }
    assert!(lock(&world.lanes.0).receivers.len() <= KNOWN + 1);
}
