//! The schedule beside a plain list, and rule by rule.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

const OPEN: Bounds = Bounds {
    function_calls: 100_000,
    namespace_calls: 2_000_000,
    namespace_bytes: 1 << 40,
    calls: 2_000_000,
    bytes: 1 << 40,
    function_workers: 1_000_000,
    workers: 1_000_000,
    running_bytes: 1 << 40,
};

fn named(name: &str) -> FunctionName {
    FunctionName::parse(name).unwrap()
}

fn open(_: &FunctionName) -> Limits {
    Limits::default()
}

fn run(schedule: &mut Schedule, now: u64) -> Ticket {
    match schedule.next(now, &open) {
        Next::Run(ticket) => ticket,
        wait => panic!("{wait:?}"),
    }
}

/// All that may run now.
fn all(schedule: &mut Schedule, now: u64, limits: &dyn Fn(&FunctionName) -> Limits) -> Vec<Ticket> {
    let next = || match schedule.next(now, limits) {
        Next::Run(ticket) => Some(ticket),
        Next::Wait(_) => None,
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn namespaces_take_turns_and_their_functions_within() {
    let mut schedule = Schedule::new(OPEN);
    let names = ["a.one", "b.one", "c.one", "d.one", "x.two"].map(named);
    for (seq, function) in (0..).zip(names.iter().cycle().take(500)) {
        schedule.restore(function, (0, seq), 1, None, 0);
    }
    let mut ran = BTreeMap::new();
    for _ in 0..160 {
        let ticket = run(&mut schedule, 0);
        schedule.ended(&ticket, 0);
        *ran.entry(ticket.function.to_string()).or_insert(0) += 1;
    }
    let ran: Vec<_> = ran.into_iter().collect();
    let expect = [("a.one", 20), ("b.one", 20), ("c.one", 20), ("d.one", 20), ("x.two", 80)];
    assert_eq!(ran, expect.map(|(name, times)| (name.to_owned(), times)), "each namespace had half");
}

#[test]
fn a_backlog_delays_nobody_else() {
    // Also where all workers are busy with it.
    for workers in [1, 1_000_000] {
        let mut schedule = Schedule::new(Bounds { workers, ..OPEN });
        for seq in 0..10_000 {
            schedule.restore(&named("big"), (0, seq), 1, None, 0);
        }
        run(&mut schedule, 0);
        for (seq, name) in [(10_000, "small"), (10_001, "small.other")] {
            schedule.restore(&named(name), (0, seq), 1, None, 0);
        }
        let mut next: Vec<_> = all(&mut schedule, 0, &open).iter().take(3).map(|ticket| ticket.key.1).collect();
        next.retain(|seq| *seq >= 10_000);
        assert_eq!(next.len(), 2, "{workers} workers");
    }
}

#[test]
fn workers_bound_all_but_the_first_of_each() {
    let mut schedule = Schedule::new(Bounds { workers: 3, ..OPEN });
    let names: Vec<_> = (0..5).map(|n| named(&format!("f{n}"))).collect();
    for (seq, function) in (0..).zip(names.iter().cycle().take(50)) {
        schedule.restore(function, (0, seq), 1, None, 0);
    }
    let first = all(&mut schedule, 0, &open);
    assert_eq!(first.len(), 5, "one of each");
    schedule.ended(&first[0], 0);
    let next = run(&mut schedule, 0);
    assert_eq!(next.function, names[0]);
    assert_eq!(schedule.next(0, &open), Next::Wait(None));
    first[1..].iter().chain([&next]).for_each(|ticket| schedule.ended(ticket, 0));
    assert_eq!(all(&mut schedule, 0, &open).len(), 5);
}

/// Who came first has the places, and leaves others more than one at a time all the same.
#[test]
fn however_much_runs_a_few_of_each_may() {
    let mut schedule = Schedule::new(Bounds { workers: 1000, function_workers: 100, ..OPEN });
    let mut seqs = 0..;
    let mut push = |schedule: &mut Schedule, function: &str, calls| {
        for seq in seqs.by_ref().take(calls) {
            schedule.restore(&named(function), (0, seq), 1, None, 0);
        }
    };
    for n in 0..10 {
        push(&mut schedule, &format!("slow{n}"), 200);
    }
    assert_eq!(all(&mut schedule, 0, &open).len(), 1000);
    push(&mut schedule, "late.other", 100);
    let late = all(&mut schedule, 0, &open);
    assert_eq!(late.len(), 8);
    schedule.ended(&late[0], 0);
    assert_eq!(run(&mut schedule, 0).function, named("late.other"));
    // Those that nothing runs of come first, and there is room left for them.
    for n in 0..1000 {
        push(&mut schedule, &format!("more{n}.third"), 10);
    }
    let more = all(&mut schedule, 0, &open);
    assert_eq!((more.len(), schedule.total().running), (5000 - 1008, 5000));
    let first: std::collections::HashSet<_> = more[..1000].iter().map(|ticket| &ticket.function).collect();
    assert_eq!(first.len(), 1000);
    push(&mut schedule, "last.fourth", 2);
    assert_eq!(all(&mut schedule, 0, &open).len(), 1);
}

#[test]
fn ten_thousand_run_and_no_more() {
    let mut schedule = Schedule::new(Bounds { workers: 3, ..OPEN });
    for seq in 0..10_050 {
        schedule.restore(&named(&format!("f{seq}")), (0, seq), 1, None, 0);
    }
    let running = all(&mut schedule, 0, &open);
    assert_eq!(running.len(), 10_000);
    schedule.ended(&running[7], 0);
    assert_eq!(all(&mut schedule, 0, &open).len(), 1);
}

#[test]
fn what_runs_weighs_no_more_than_it_may() {
    let mut schedule = Schedule::new(Bounds { running_bytes: 10, ..OPEN });
    let (a, b) = (named("a"), named("b"));
    for (seq, (function, size)) in (0..).zip([(&a, 4), (&a, 8), (&a, 1), (&b, 50), (&b, 1)]) {
        schedule.restore(function, (0, seq), size, None, 0);
    }
    let running = all(&mut schedule, 0, &open);
    // The first of each, however heavy it is. What is light does not pass by what is heavy for ever.
    assert_eq!(running.iter().map(|ticket| ticket.key.1).collect::<Vec<_>>(), [0, 3]);
    schedule.ended(&running[1], 0);
    assert_eq!(run(&mut schedule, 0).key.1, 4);
    assert_eq!(schedule.next(0, &open), Next::Wait(None));
    schedule.ended(&running[0], 0);
    assert_eq!(all(&mut schedule, 0, &open).len(), 2);
    assert_eq!(schedule.weighs, 10);
}

#[test]
fn a_function_at_its_bound_is_passed_over_until_one_ends() {
    let mut schedule = Schedule::new(Bounds { function_workers: 2, ..OPEN });
    let f = named("f");
    for seq in 0..3 {
        schedule.restore(&f, (0, seq), 1, None, 0);
    }
    let (first, _) = (run(&mut schedule, 0), run(&mut schedule, 0));
    assert_eq!(schedule.next(0, &open), Next::Wait(None));
    schedule.ended(&first, 0);
    assert_eq!(run(&mut schedule, 0).key, (0, 2));
}

#[test]
fn who_is_paused_goes_on_when_told_so() {
    let mut schedule = Schedule::new(OPEN);
    let (f, most) = (named("f"), Cell::new(0));
    let limits = |_: &FunctionName| Limits { concurrency: Some(most.get()), ..Limits::default() };
    for seq in 0..5 {
        schedule.restore(&f, (0, seq), 1, None, 0);
    }
    assert!(all(&mut schedule, 0, &limits).is_empty());
    for (new, begin) in [(2, 2), (1, 0), (4, 2)] {
        most.set(new);
        assert!(all(&mut schedule, 0, &limits).is_empty(), "nobody looks before");
        schedule.reconsider(0);
        assert_eq!(all(&mut schedule, 0, &limits).len(), begin, "at most {new}");
    }
}

#[test]
fn attempts_begin_at_their_rate() {
    // Attempts of the first ten seconds, and at once.
    for (rate, ten, burst) in [(10.0, 109, 10), (1.0, 10, 1), (0.5, 5, 1), (2.5, 27, 2), (0.0, 0, 0), (f64::NAN, 0, 0)]
    {
        let mut schedule = Schedule::new(OPEN);
        let f = named("f");
        let limits = |_: &FunctionName| Limits { rate: Some(rate), ..Limits::default() };
        for seq in 0..200 {
            schedule.restore(&f, (0, seq), 1, None, 0);
        }
        let (mut now, mut began, mut first) = (1_000_000, 0, None);
        while now < 1_010_000 {
            let run = all(&mut schedule, now, &limits);
            run.iter().for_each(|ticket| schedule.ended(ticket, now));
            began += run.len();
            first = first.or(Some(began));
            let Next::Wait(at) = schedule.next(now, &limits) else { panic!("all that may have begun") };
            let Some(at) = at else { break };
            assert!(at > now, "nobody is woken for nothing");
            now = at;
        }
        assert_eq!((began, first), (ten, Some(burst)), "at {rate} per second");
    }
}

/// Else whoever calls slowly would have no bound.
#[test]
fn a_rate_is_remembered_while_nothing_waits() {
    let mut schedule = Schedule::new(OPEN);
    let (f, limits) = (named("f"), |_: &FunctionName| Limits { rate: Some(1.0), ..Limits::default() });
    let mut began = Vec::new();
    for now in (0..10_000).step_by(100) {
        schedule.restore(&f, (now, now.cast_signed()), 1, None, now);
        for ticket in all(&mut schedule, now, &limits) {
            began.push(now);
            schedule.ended(&ticket, now);
        }
        if schedule.total().waiting > 0 {
            schedule.cancelled(&f, (now, now.cast_signed()), now);
        }
    }
    assert_eq!(began, (0..10_000).step_by(1000).collect::<Vec<_>>());
    assert_eq!(schedule.next(20_000, &limits), Next::Wait(None));
    assert!(schedule.lines.is_empty() && schedule.resting.is_empty(), "and forgotten then");
}

#[test]
fn bounds_are_held_and_room_comes_back() {
    let mut schedule = Schedule::new(Bounds { function_calls: 2, calls: 3, bytes: 10, ..OPEN });
    let (a, b, all) = (named("a"), named("b"), Limits::default());
    let (none, many) = (Limits { calls: Some(0), ..all }, Limits { calls: Some(9), ..all });
    assert_eq!(schedule.reserve(&a, 1, &none), Err(Passed::FunctionCalls(0)));
    schedule.reserve(&a, 1, &all).unwrap();
    schedule.reserve(&a, 1, &many).unwrap();
    assert_eq!(schedule.reserve(&a, 1, &many), Err(Passed::FunctionCalls(2)));
    assert_eq!(schedule.reserve(&b, 9, &all), Err(Passed::Bytes));
    schedule.reserve(&b, 8, &all).unwrap();
    assert_eq!(schedule.reserve(&b, 0, &all), Err(Passed::Calls));
    schedule.leave(&b, 8, 0);
    schedule.leave(&a, 1, 0);
    assert_eq!(schedule.total(), Backlog { waiting: 1, running: 0, bytes: 1 });
    schedule.reserve(&b, 9, &all).unwrap();
}

#[test]
fn what_is_being_settled_is_nobody_elses() {
    let mut schedule = Schedule::new(OPEN);
    let f = named("f");
    schedule.restore(&f, (0, 1), 1, None, 0);
    let ticket = run(&mut schedule, 0);
    assert!(schedule.settle(&ticket) && !schedule.settle(&ticket));
    assert!(!schedule.give_back(&ticket, 0));
    assert_eq!(schedule.next(0, &open), Next::Wait(None), "its end is on its way to the disk");
    schedule.not_settled(&ticket, 0);
    let again = run(&mut schedule, 0);
    assert!(again != ticket && !schedule.settle(&ticket), "the first lease is spent");
    schedule.ended(&again, 0);
    assert_eq!((schedule.total(), schedule.lines.len()), (Backlog::default(), 0));
}

/// What may happen to calls, in any order.
#[derive(Debug, Clone)]
enum Step {
    Push { function: u8, due: u64, size: u64, order: Option<u8> },
    Lease,
    End(usize),
    Again(usize, u64),
    Drop(usize),
    Cancel(usize),
    Move(usize, u64),
    Wait(u64),
    Limit(u8, Option<u64>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let order = proptest::option::weighted(0.6, 0..3_u8);
    prop_oneof![
        4 => (0..4_u8, 0..50_u64, 1..5_u64, order)
            .prop_map(|(function, due, size, order)| Step::Push { function, due, size, order }),
        6 => Just(Step::Lease),
        2 => any::<usize>().prop_map(Step::End),
        2 => (any::<usize>(), 0..50_u64).prop_map(|(at, due)| Step::Again(at, due)),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => (any::<usize>(), 0..50_u64).prop_map(|(at, due)| Step::Move(at, due)),
        2 => (0..20_u64).prop_map(Step::Wait),
        1 => (0..4_u8, proptest::option::of(0..3_u64)).prop_map(|(function, most)| Step::Limit(function, most)),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Clone)]
struct Call {
    function: FunctionName,
    key: Key,
    size: u64,
    order: Option<String>,
}

impl Call {
    fn goes_with(&self, other: &Self) -> bool {
        self.order.is_some() && (&self.function, &self.order) == (&other.function, &other.order)
    }
}

/// Lists that are searched from end to end.
#[derive(Default)]
struct Plain {
    waiting: Vec<Call>,
    running: Vec<(Ticket, Call)>,
}

impl Plain {
    /// Those whose turn it is: of an order key the first one, if none of it runs.
    fn ready(&self) -> impl Iterator<Item = &Call> {
        self.waiting.iter().filter(|call| {
            let before = self.waiting.iter().any(|other| other.goes_with(call) && other.key.1 < call.key.1);
            !before && !self.running.iter().any(|(_, other)| other.goes_with(call))
        })
    }

    fn first(&self, function: &FunctionName) -> Option<&Call> {
        self.ready().filter(|call| call.function == *function).min_by_key(|call| call.key)
    }

    fn running(&self, function: &FunctionName) -> u64 {
        self.running.iter().filter(|(_, call)| call.function == *function).count() as u64
    }

    fn weighs(&self) -> u64 {
        self.running.iter().map(|(_, call)| call.size).sum()
    }
}

proptest! {
    /// Beside lists that are searched from end to end: nothing is lost, leased twice, early, out of order, or beyond a bound; and nothing waits
    /// that could run.
    // long because: one arm for each step, and what is asserted after it.
    #[test]
    fn as_a_plain_list_would(steps in proptest::collection::vec(step(), 0..250)) {
        let bounds = Bounds { function_workers: 2, workers: 4, running_bytes: 8, ..OPEN };
        let mut schedule = Schedule::new(bounds);
        let names = ["a", "b", "c.x", "d.x"].map(named);
        let mut limits: HashMap<FunctionName, Option<u64>> = HashMap::new();
        let (mut now, mut seqs, mut plain) = (0, 0, Plain::default());
        for step in steps {
            match step {
                Step::Push { function, due, size, order } => {
                    seqs += 1;
                    let (function, key) = (names[usize::from(function)].clone(), (now + due, seqs));
                    let order = order.map(|order| order.to_string());
                    schedule.restore(&function, key, size, order.as_deref(), now);
                    plain.waiting.push(Call { function, key, size, order });
                }
                Step::Lease => {
                    let most = |f: &FunctionName| limits.get(f).copied().flatten();
                    let next = schedule.next(now, &|f| Limits { concurrency: most(f), ..Limits::default() });
                    let free = |f: &FunctionName| plain.running(f) < most(f).unwrap_or(2);
                    let all_busy = plain.running.len() >= 4;
                    match next {
                        Next::Run(ticket) => {
                            let f = &ticket.function;
                            let call = plain.first(f).cloned().expect("one of those that wait");
                            prop_assert_eq!(ticket.key, call.key);
                            prop_assert!(call.key.0 <= now && free(f));
                            prop_assert!(plain.running(f) == 0 || (!all_busy && plain.weighs() + call.size <= 8));
                            plain.waiting.retain(|other| other.key != call.key);
                            plain.running.push((ticket, call));
                        }
                        Next::Wait(at) => {
                            let able = || names.iter().filter(|f| free(f)).filter_map(|f| plain.first(f));
                            let due: Vec<_> = able().filter(|call| call.key.0 <= now).collect();
                            prop_assert!(due.iter().all(|call| plain.running(&call.function) > 0), "{:?} could run", due);
                            let heavy = due.iter().any(|call| plain.weighs() + call.size > 8);
                            prop_assert!(due.is_empty() || all_busy || heavy, "{:?} could run", due);
                            if let Some(later) = able().map(|call| call.key.0).filter(|at| *at > now).min() {
                                prop_assert!(at.is_some_and(|at| at <= later), "{:?}, and {} is due", at, later);
                            }
                            prop_assert!(at.is_none_or(|at| at > now));
                        }
                    }
                }
                Step::End(at) if !plain.running.is_empty() => {
                    let (ticket, _) = plain.running.remove(at % plain.running.len());
                    schedule.ended(&ticket, now);
                }
                Step::Again(at, due) if !plain.running.is_empty() => {
                    let (ticket, call) = plain.running.remove(at % plain.running.len());
                    schedule.again(&ticket, now + due, now);
                    plain.waiting.push(Call { key: (now + due, call.key.1), ..call });
                }
                Step::Drop(at) if !plain.running.is_empty() => {
                    let (ticket, call) = plain.running.remove(at % plain.running.len());
                    prop_assert!(schedule.give_back(&ticket, now));
                    plain.waiting.push(call);
                }
                Step::Cancel(at) if !plain.waiting.is_empty() => {
                    let call = plain.waiting.remove(at % plain.waiting.len());
                    schedule.cancelled(&call.function, call.key, now);
                }
                Step::Cancel(at) if !plain.running.is_empty() => {
                    let (ticket, call) = plain.running.remove(at % plain.running.len());
                    let token = schedule.begin(&ticket, &Place::default(), now).expect("it runs");
                    schedule.cancelled(&call.function, call.key, now);
                    prop_assert!(token.is_cancelled() && !schedule.settle(&ticket));
                }
                Step::Move(at, due) if !plain.waiting.is_empty() => {
                    let at = at % plain.waiting.len();
                    let call = &mut plain.waiting[at];
                    schedule.moved(&call.function, call.key, now + due, now);
                    call.key.0 = now + due;
                }
                Step::Wait(ms) => now += ms,
                Step::Limit(function, most) => {
                    limits.insert(names[usize::from(function)].clone(), most);
                    schedule.reconsider(now);
                }
                // The process died: what ran waits again, and all come in the order of their acceptance.
                Step::Reopen => {
                    schedule = Schedule::new(bounds);
                    plain.waiting.extend(plain.running.drain(..).map(|(_, call)| call));
                    plain.waiting.sort_by_key(|call| call.key.1);
                    for call in &plain.waiting {
                        schedule.restore(&call.function, call.key, call.size, call.order.as_deref(), now);
                    }
                }
                _ => {}
            }
            let (waiting, running) = (plain.waiting.len() as u64, plain.running.len() as u64);
            let bytes = plain.weighs() + plain.waiting.iter().map(|call| call.size).sum::<u64>();
            prop_assert_eq!(schedule.total(), Backlog { waiting, running, bytes });
            prop_assert_eq!(schedule.weighs, plain.weighs());
            let all = || plain.waiting.iter().chain(plain.running.iter().map(|(_, call)| call));
            let namespaces: BTreeSet<_> = all().map(|call| call.function.namespace.clone()).collect();
            prop_assert_eq!(schedule.spaces.len(), namespaces.len());
            for namespace in namespaces {
                let has = schedule.spaces[&namespace];
                let of = || all().filter(|call| call.function.namespace == namespace);
                let bytes = of().map(|call| call.size).sum::<u64>();
                prop_assert_eq!((has.waiting + has.running, has.bytes), (of().count() as u64, bytes));
            }
            if waiting + running == 0 {
                prop_assert!(schedule.lines.is_empty() && schedule.ordered.is_empty() && schedule.timers.is_empty());
            }
        }
    }
}
