//! What a slot costs: nanoseconds per admit and release, on one thread and on four, on one function and on one each.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use taper_dispatch::{Config, Dispatcher};
use taper_model::{
    BoxFuture, Call, Fault, FunctionName, InstanceId, Invoke, Reply, RevisionId,
    call::{Start, Terms},
};
use taper_provider::{Event, Instance};
use tokio::time::Instant;

const ROUNDS: u32 = 400_000;

struct Never;

impl Invoke for Never {
    fn invoke(&self, _: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        unreachable!("only slots are taken here")
    }
}

fn revision(name: &str) -> RevisionId {
    RevisionId::new(FunctionName::parse(name).expect("a name"), 1)
}

fn dispatcher(functions: &[RevisionId], instances: usize, slots: u32) -> Dispatcher {
    let d = Dispatcher::new(Config::default());
    for revision in functions {
        for n in 0..instances {
            let id = InstanceId::new(&format!("{}-{n}", revision.name()));
            let slots = NonZeroU32::new(slots).expect("slots");
            let run = Arc::new(Never);
            d.learn(Event::Ready(Instance {
                id,
                revision: revision.clone(),
                slots,
                start: Start::Cold,
                phases: Default::default(),
                secrets: Default::default(),
                run,
            }));
        }
    }
    d
}

/// The median over seven runs, in nanoseconds of one thread's time per admit and release.
fn cost(threads: usize, functions: &[RevisionId], instances: usize, slots: u32) -> f64 {
    let d = dispatcher(functions, instances, slots);
    let mut runs: Vec<f64> = (0..7)
        .map(|_| {
            let took: Vec<Duration> = std::thread::scope(|scope| {
                let run = |t: usize| {
                    let (d, revision) = (d.clone(), functions[t % functions.len()].clone());
                    scope.spawn(move || {
                        let runtime =
                            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
                        runtime.block_on(async {
                            let begun = Instant::now();
                            let deadline = begun + Duration::from_secs(600);
                            for _ in 0..ROUNDS {
                                drop(std::hint::black_box(
                                    d.admit(&revision, deadline, Terms::default()).await.expect("a slot"),
                                ));
                            }
                            begun.elapsed()
                        })
                    })
                };
                let running: Vec<_> = (0..threads).map(run).collect();
                running.into_iter().map(|r| r.join().expect("a run")).collect()
            });
            let nanos: f64 = took.iter().map(|t| t.as_nanos() as f64).sum();
            nanos / threads as f64 / f64::from(ROUNDS)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

fn main() {
    let one = [revision("hello")];
    let four = ["hello", "there", "dear", "reader"].map(revision);
    // A number picks one of them, so that its instructions can be counted.
    let only: Option<usize> = std::env::args().skip(1).find_map(|word| word.parse().ok());
    println!("admit + release, ns of one thread's time per call");
    let all = [
        ("1 thread, 1 instance of 100 slots", 1, &one[..], 1, 100),
        ("1 thread, 1,000 instances of 1 slot", 1, &one[..], 1000, 1),
        ("4 threads, one function, 1 instance of 100 slots", 4, &one[..], 1, 100),
        ("4 threads, one function, 1,000 instances of 1 slot", 4, &one[..], 1000, 1),
        ("4 threads, one function, 1 instance of 1 slot (queueing)", 4, &one[..], 1, 1),
        ("4 threads, a function each", 4, &four[..], 1, 100),
    ];
    for (number, (what, threads, functions, instances, slots)) in all.into_iter().enumerate() {
        if only.is_none_or(|only| only == number) {
            println!("{:>8.0}  {what}", cost(threads, functions, instances, slots));
        }
    }
}
