//! Looks at the whole from time to time, and knows how it should be: what may last for a moment is wrong when it lasts longer.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use taper_model::{Function, InstanceId, Name, RevisionId, RevisionState};
use taper_store::{Snapshot, Store};
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

use crate::{
    ledger::{Book, Parked, What, generation},
    plan::{DEPLOY_TIMEOUT, NAMES},
    traffic::TAKES_OVER,
    world::World,
};

const EVERY: Duration = Duration::from_millis(250);
/// The autoscaler's tick, the sample before it, and everything that may be late.
const REACTION: Duration = Duration::from_secs(4);

/// A call that waits beside an instance with a free slot.
type Starving = BTreeSet<(usize, InstanceId)>;

/// Looks until it is aborted.
pub(crate) async fn watch(world: Arc<World>) {
    let mut before = Starving::new();
    loop {
        sleep(EVERY).await;
        // Whatever else happens in this moment has happened.
        for _ in 0..8 {
            yield_now().await;
        }
        before = look(&world, &before);
    }
}

fn look(world: &World, before: &Starving) -> Starving {
    let snapshot = Arc::clone(&world.store.snapshot().borrow());
    let mut book = world.ledger.open();
    book.adopt(&snapshot);
    if world.door().is_none() {
        return Starving::new();
    }
    if world.has_lost_control() {
        book.wrong("nothing panics", "the control plane or a feed has ended");
    }
    verdicts_are_given(&mut book);
    book.bad_rollouts_are_stopped();
    what_is_over_ends(world, &mut book);
    for (index, name) in NAMES.iter().enumerate() {
        let function = snapshot.functions.values().find(|f| f.name.name.as_str() == *name).cloned();
        held_at_zero(world, &mut book, index, function.as_deref());
        if let Some(function) = function {
            what_waits_is_scaled_for(world, &mut book, &function);
            at_rest(world, &mut book, index, &function, false);
        }
    }
    let starving = starving(&book);
    for (call, id) in starving.intersection(before) {
        book.wrong("nobody waits while a slot is free", &format!("call {call} waits beside {id}"));
    }
    starving
}

/// When a run ends, every function must be at rest.
pub(crate) fn everything_rests(world: &World) {
    let snapshot: Arc<Snapshot> = Arc::clone(&world.store.snapshot().borrow());
    let mut book = world.ledger.open();
    book.note("everything should be at rest");
    for (index, name) in NAMES.iter().enumerate() {
        if let Some(function) = snapshot.functions.values().find(|f| f.name.name.as_str() == *name) {
            at_rest(world, &mut book, index, function, true);
            if function.shift.is_some() {
                book.wrong("a rollout comes to its end", NAMES[index]);
            }
        }
    }
    let calls = book.calls.iter().filter(|(_, c)| c.ended.is_none()).map(|(n, _)| *n).collect::<Vec<_>>();
    if !calls.is_empty() {
        book.wrong("every call ends", &format!("{calls:?} have not"));
    }
}

/// The last time that something befell a generation.
fn last_trouble(book: &Book, generation: usize) -> Option<Instant> {
    book.troubles.iter().rev().find(|t| t.generation.is_none_or(|g| g == generation)).map(|t| t.at)
}

/// From when on nothing but the platform decides what becomes of a generation, `since` being when that should have begun.
fn calm(book: &Book, number: usize, since: Instant) -> Instant {
    let calm = last_trouble(book, number).unwrap_or(since).max(since);
    let restarted = book.had(number, book.started + Duration::from_millis(1), &[What::Restart]);
    // Starts of another life of the platform are not seen before they end.
    if restarted { calm + book.made[number].kind.start() } else { calm }
}

fn verdicts_are_given(book: &mut Book) {
    let now = Instant::now();
    for number in 0..book.made.len() {
        let made = &book.made[number];
        if made.judged.is_some() || made.over.is_some() {
            continue;
        }
        // It begins when nothing is left of what was deleted before it.
        let before = book.made[..number].iter().filter(|m| m.id.function() == made.id.function());
        let left = before.filter_map(|m| Some(m.gone? + m.shape.timeout)).max();
        let base = left.into_iter().chain(last_trouble(book, number)).fold(made.since, Instant::max);
        let most = if made.kind.is_good() && !book.had(number, made.since, &[What::OrderFailed]) {
            // Under load it is brought to what it will have to carry.
            made.kind.prepare() + made.kind.start() + TAKES_OVER
        } else {
            DEPLOY_TIMEOUT
        };
        if now > base + most + REACTION {
            book.wrong("every deploy gets its verdict in time", &format!("generation {number} has none"));
        }
    }
}

fn what_is_over_ends(world: &World, book: &mut Book) {
    let now = Instant::now();
    for number in 0..book.made.len() {
        let Some(over) = book.made[number].over else { continue };
        if world.stage.is_doubled(book, number) {
            book.made[number].over = Some(now);
        }
        let by = calm(book, number, over + book.made[number].shape.timeout.max(TAKES_OVER)) + REACTION;
        let there = world.stage.there(book, number);
        if now > by && there > 0 {
            book.wrong(
                "what is replaced, failed or deleted ends with its calls",
                &format!("{there} instances of generation {number}"),
            );
        }
    }
}

fn held_at_zero(world: &World, book: &mut Book, index: usize, function: Option<&Function>) {
    let (Parked::Since(since), Some(function)) = (book.functions[index].parked, function) else { return };
    if function.latest().state == RevisionState::Pending {
        return;
    }
    let now = Instant::now();
    for number in 0..book.made.len() {
        if book.function_of(number) != index {
            continue;
        }
        let verdict = book.made[number].judged.unwrap_or(since);
        let by = calm(book, number, since.max(verdict)) + REACTION;
        let there = world.stage.there(book, number);
        if now > by && there > 0 {
            book.wrong("zero by hand holds until the next call", &format!("{there} instances of generation {number}"));
        }
    }
}

/// A call that waits for long is there because there are as many instances as there may be.
fn what_waits_is_scaled_for(world: &World, book: &mut Book, function: &Function) {
    let targets = function.targets();
    let reached = function.revisions.iter().filter(|e| targets.reaches(&e.revision.id));
    for serving in reached.map(|e| generation(&e.revision)) {
        what_waits_has_as_many_as_may_be(world, book, serving);
    }
}

fn what_waits_has_as_many_as_may_be(world: &World, book: &mut Book, serving: usize) {
    let made = &book.made[serving];
    let waiting = book.calls.iter().filter(|(_, c)| c.generation == serving && c.waits() && c.attempts.is_empty());
    let Some((n, oldest)) = waiting.min_by_key(|(_, c)| c.entry) else { return };
    let told = book.functions[oldest.function].told;
    let base = last_trouble(book, serving).unwrap_or(told).max(oldest.arrived).max(told);
    let by = base + made.shape.window + made.kind.start() + REACTION;
    let there = world.stage.fake.count(&made.id);
    if Instant::now() > by && there < made.shape.max as usize {
        let text = format!("call {n} waits since {:?}, {there} instances", oldest.arrived - book.started);
        book.wrong("what waits is scaled for", &text);
    }
}

/// When nothing has happened to a function for long enough it is exactly as large as it should be, and everybody knows it.
fn at_rest(world: &World, book: &mut Book, index: usize, function: &Function, must: bool) {
    let is_called = book.calls.values().any(|c| c.function == index && c.ended.is_none());
    let still = if is_called { Duration::ZERO } else { book.functions[index].touched.elapsed() };
    let past = book.started.elapsed().saturating_sub(still);
    let targets = function.targets();
    let is_held = function.scale == Some(0);
    let reached: Vec<(usize, usize)> = function
        .revisions
        .iter()
        .filter(|e| targets.reaches(&e.revision.id))
        .map(|e| {
            let number = generation(&e.revision);
            let keeps = targets.shares_in(&e.revision.id) && !is_held;
            (number, if keeps { book.made[number].shape.min as usize } else { 0 })
        })
        .collect();
    // A person's zero is judged elsewhere.
    for (number, _) in reached.iter().filter(|(_, least)| *least == 0 && !is_held) {
        let there = world.stage.there(book, *number);
        if still > book.made[*number].shape.idle(past) + REACTION && there > 0 {
            book.wrong("an idle function tapers to zero", &format!("{there} instances of generation {number}"));
        }
    }
    let Some(rest) = reached.iter().map(|(n, _)| book.made[*n].shape.rest(past)).max() else { return };
    if still <= rest {
        if must {
            book.wrong("everything comes to rest", &format!("{} was touched {still:?} ago", NAMES[index]));
        }
        return;
    }
    for (number, least) in &reached {
        let id = book.made[*number].id.clone();
        let all = world.stage.fake.ready();
        let mine: Vec<_> = all.iter().filter(|i| i.revision == id).collect();
        let (ready, there) = (mine.len(), world.stage.there(book, *number));
        if (ready, there) != (*least, *least) {
            let text = format!("generation {number}: {ready} ready and {there} in all, not {least}");
            book.wrong("at rest there are exactly as many as should be", &text);
        }
        let newest = |name: &Name| world.store.snapshot().borrow().secret_version(&Name::default_namespace(), name);
        for i in mine {
            if i.secrets.is_empty() || i.secrets.iter().any(|(name, v)| newest(name) != Some(*v)) {
                book.wrong("at rest every instance has the newest secrets", &format!("{}: {:?}", i.id, i.secrets));
            }
        }
    }
    match book.functions[index].parked {
        Parked::No if is_held => book.wrong("a function that was called is not held at zero", NAMES[index]),
        Parked::Since(_) if !is_held => book.wrong("zero by hand holds until the next call", NAMES[index]),
        _ => {}
    }
    everybody_knows(world, book, function, &reached);
}

/// At rest the dispatcher and the control plane know what there is of each generation.
fn everybody_knows(world: &World, book: &mut Book, function: &Function, reached: &[(usize, usize)]) {
    let should = |book: &Book, id: &RevisionId| {
        reached.iter().find(|(n, _)| book.made[*n].id == *id).map_or(0, |(_, least)| *least)
    };
    let stats = world.door().map(|d| d.dispatcher.stats()).unwrap_or_default();
    for s in stats.into_iter().filter(|s| *s.revision.function() == function.name) {
        let should = should(book, &s.revision);
        if (s.waiting, s.running, s.ready as usize, s.leaving) != (0, 0, should, 0) {
            book.wrong("at rest the dispatcher knows what there is", &format!("{s:?}, {should} are ready"));
        }
    }
    let gauges = world.control().map(|c| c.gauges()).unwrap_or_default();
    for g in gauges.into_iter().filter(|g| *g.revision.function() == function.name) {
        let should = should(book, &g.revision);
        if (g.want as usize, g.ready as usize, g.starting, g.draining) != (should, should, 0, 0) {
            book.wrong("at rest the control plane knows what there is", &format!("{g:?}, {should} are ready"));
        }
    }
}

/// Who waits beside whom: nobody may for longer than a moment.
fn starving(book: &Book) -> Starving {
    let waiting = book.calls.iter().filter(|(_, c)| c.waits());
    let beside = |(n, call): (&usize, &crate::passage::Passage)| {
        let n = *n;
        let mine = book.instances.iter().filter(move |(_, i)| i.generation == call.generation);
        let free = mine.filter(|(_, i)| {
            let serves = i.learnt.is_some() && i.out.is_none() && i.stopped.is_none() && i.killed.is_none();
            serves && !i.is_deaf && i.running < i.slots
        });
        free.map(move |(id, _)| (n, id.clone())).collect::<Vec<_>>()
    };
    waiting.flat_map(beside).collect()
}
