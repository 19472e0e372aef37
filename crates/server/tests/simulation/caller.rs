//! A client, and as much of the gateway as lies between it and the dispatcher: the route from the snapshot, the deadline, the
//! reply's body to its end. What a call ends with is judged by `explain`.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use taper_dispatch::Dispatcher;
use taper_model::{
    Call, CallId, Fault, Function, FunctionName, Invoke, Name, Reply, Revision, RevisionState,
    call::{self, Served, Start},
    traffic::WHOLE,
};
use taper_store::Store;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::{
    dice::Dice,
    explain, function,
    ledger::{Parked, generation},
    plan::NAMES,
    world::World,
};

/// Whoever holds a call answers for its deadline; so long after it the gateway does.
const GRACE: Duration = Duration::from_millis(250);

/// What a call ended with.
pub(crate) enum End {
    /// The whole reply.
    Reply {
        status: http::StatusCode,
        text: String,
        start: Option<Start>,
    },
    /// A reply that broke half way.
    Broken,
    /// The deadline passed while the reply came.
    Late,
    Fault(Fault),
    /// The client left.
    Left,
    /// The platform went down.
    Cut,
    /// Nobody answered, not even late.
    Hung,
}

/// Calls a function, when it is time.
pub(crate) async fn call(world: Arc<World>, n: usize) {
    let plan = &world.plan.calls[n];
    sleep_until(world.started + plan.at).await;
    let name = FunctionName::parse(NAMES[plan.function]).expect("a name");
    let snapshot = Arc::clone(&world.store.snapshot().borrow());
    let Some(door) = world.door() else { return world.ledger.open().count("call: nobody listens") };
    let Some(function) = snapshot.function(&name) else { return world.ledger.open().count("call: no such function") };
    let Some((tag, revision)) = route(&world, function, n) else {
        let why = match function.latest().state {
            RevisionState::Failed(_) => "call: no revision could start",
            _ => "call: not ready yet",
        };
        return world.ledger.open().count(why);
    };
    let (generation, deadline) = (generation(&revision), Instant::now() + revision.spec.timeout());
    {
        let mut book = world.ledger.open();
        book.enter(n, plan.function, generation, deadline);
        book.routed(n, function, revision.id.number(), tag.as_ref().map(Name::as_str));
    }
    let call = Call {
        terms: Default::default(),
        id: CallId::given(&n.to_string()).expect("an id"),
        revision: revision.id.clone(),
        deadline,
        request: http::Request::post("/").body(call::full("hello")).expect("a request"),
    };
    let leaves = async {
        match plan.leaves {
            Some(after) => sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! { biased;
        end = converse(&world, &door.dispatcher, call, n) => end,
        () = door.cut.cancelled() => End::Cut,
        () = leaves => End::Left,
        () = sleep_until(deadline + GRACE) => End::Hung,
    };
    conclude(&world, n, &end);
}

/// The revision that a call goes to: mostly by the shares, sometimes by a tag.
fn route(world: &World, function: &Function, n: usize) -> Option<(Option<Name>, Arc<Revision>)> {
    let targets = function.targets();
    let mut dice = Dice::of(world.plan.seed, ("route", n));
    let tagged = targets.tags.get(dice.number(0..=9) as usize).cloned();
    let drawn = targets.draw(dice.number(0..=WHOLE - 1)).cloned();
    let (tag, revision) = match tagged {
        Some((tag, revision)) => (Some(tag), revision),
        None => (None, drawn?),
    };
    let mut book = world.ledger.open();
    if tag.is_some() {
        book.count("call: by its tag");
    }
    if targets.shares.len() > 1 {
        book.count("several revisions share");
    }
    if !targets.shares_in(&revision.id) {
        book.count("a tagged revision is called");
    }
    Some((tag, revision))
}

/// Sends the call, and reads its reply.
async fn converse(world: &World, dispatcher: &Dispatcher, call: Call, n: usize) -> End {
    let deadline = call.deadline;
    let revision = call.revision.clone();
    match dispatcher.invoke(call).await {
        Ok(reply) => match timeout_at(deadline, read(reply)).await {
            Ok(end) => end,
            Err(_) => End::Late,
        },
        Err(fault) => {
            if fault.cause == taper_model::Cause::QueueFull {
                // Asked in the same breath as the refusal: nobody else has run since.
                let waiting = dispatcher.stats().iter().find(|s| s.revision == revision).map_or(0, |s| s.waiting);
                if (waiting as usize) < world.plan.queue {
                    world
                        .ledger
                        .wrong("a queue is full only when it is", &format!("call {n} is refused, {waiting} wait"));
                }
            }
            End::Fault(fault)
        }
    }
}

async fn read(reply: Reply) -> End {
    let status = reply.status();
    let start = reply.extensions().get::<Served>().map(|served| served.start);
    match reply.into_body().collect().await {
        Ok(body) => End::Reply { status, text: String::from_utf8_lossy(&body.to_bytes()).into_owned(), start },
        Err(_) => End::Broken,
    }
}

/// Writes the end of a call down, and judges it.
fn conclude(world: &World, n: usize, end: &End) {
    let snapshot = Arc::clone(&world.store.snapshot().borrow());
    let mut book = world.ledger.open();
    book.adopt(&snapshot);
    let now = Instant::now();
    book.judge_overtakes(now);
    let call = book.calls.get_mut(&n).expect("it has entered");
    call.ended = Some(now);
    let function = call.function;
    book.touch(function);
    let words = match end {
        End::Reply { status, .. } if status.is_server_error() => "bad reply".into(),
        End::Reply { .. } => "reply".into(),
        End::Broken => "broken reply".into(),
        End::Late => "reply cut at the deadline".into(),
        End::Fault(fault) => format!("{:?} at {}", fault.cause, fault.stage.as_str()),
        End::Left => "client left".into(),
        End::Cut => "cut".into(),
        End::Hung => "hung".into(),
    };
    book.count(&format!("call: {words}"));
    let more = if let End::Fault(fault) = end { format!(": {fault}") } else { String::new() };
    book.note(format!("call {n} ends: {words}{more}"));
    if let End::Reply { start: Some(Start::Cold), .. } = end
        && book.functions[function].parked == Parked::Perhaps
    {
        // An instance was started for it, so the function is awake; unless it was set to zero meanwhile.
        book.count("cold starts from a held zero");
    }
    if let Err(how) = explain::explain(&book, &world.plan, n, end) {
        let text = format!("call {n} of generation {}: {words}{more}: {how}", book.calls[&n].generation);
        book.wrong("every fault is explained", &text);
    }
    let generation = book.calls[&n].generation;
    match end {
        End::Left | End::Cut | End::Hung => {}
        End::Reply { status, .. } => book.answered(generation, status.is_server_error()),
        End::Broken | End::Late | End::Fault(_) => book.answered(generation, true),
    }
    let is_bad = world.plan.calls[n].fate < book.made[generation].kind.fails();
    if let End::Reply { status, text, .. } = end
        && (status.is_server_error() != is_bad || !is_bad && *text != function::answer(&world.plan, n))
    {
        book.wrong("no reply is cut short", &format!("call {n} got `{text}`"));
    }
}
