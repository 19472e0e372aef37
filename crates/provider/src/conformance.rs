//! The suite that every provider passes. A provider's test gives a [`Fixture`]; each function here is one promise of
//! [`Provider`], named by what it asserts. Nothing here sleeps: everything waits for events with a bound.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::StreamExt;
use taper_model::{BoxStream, Call, CallId, InstanceId, Revision, call, fault::Cause};
use tokio::time::{Instant, timeout};

use crate::{Event, Instance, Progress, Provider};

/// What a provider's test hands to the suite.
pub struct Fixture {
    /// The provider under test.
    pub provider: Arc<dyn Provider>,
    /// A revision that answers every call with the bytes of its body.
    pub echo: Arc<Revision>,
    /// A revision that can never start.
    pub broken: Arc<Revision>,
    /// The longest that a start or a stop may take.
    pub patience: Duration,
    /// How many things of the revision's instances are left on the host (processes, cgroups, mounts, sockets, files).
    pub left: Box<dyn Fn(&Revision) -> usize + Send + Sync>,
}

/// Runs every promise, one after another.
///
/// # Panics
/// At the first promise that does not hold, naming it.
pub async fn run(fixture: &Fixture) {
    opens_with_reset(fixture).await;
    scales_up_and_serves(fixture).await;
    is_idempotent(fixture).await;
    stops_the_spare(fixture).await;
    a_late_watcher_sees_what_is_ready(fixture).await;
    a_broken_revision_fails_with_words(fixture).await;
    leaves_nothing(fixture).await;
}

/// A revision's events, and what is ready according to them.
struct Watch<'a> {
    fixture: &'a Fixture,
    events: BoxStream<'static, Event>,
    ready: Vec<Instance>,
}

impl<'a> Watch<'a> {
    async fn open(fixture: &'a Fixture) -> Self {
        let mut events = fixture.provider.watch();
        match timeout(fixture.patience, events.next()).await.expect("a watch opens in time") {
            Some(Event::Reset(ready)) => Self { fixture, events, ready },
            other => panic!("a watch opens with Reset, not {other:?}"),
        }
    }

    async fn next(&mut self) -> Event {
        let event =
            timeout(self.fixture.patience, self.events.next()).await.expect("an event in time").expect("an open watch");
        match &event {
            Event::Ready(i) => {
                assert!(self.ready.iter().all(|r| r.id != i.id), "{} is Ready twice", i.id);
                self.ready.push(i.clone());
            }
            Event::Gone { id, .. } => {
                let before = self.ready.len();
                self.ready.retain(|r| r.id != *id);
                assert_eq!(self.ready.len() + 1, before, "{id} is Gone without having been Ready");
            }
            Event::Reset(all) => self.ready.clone_from(all),
            Event::Unready { id, .. } => panic!("{id} is Unready, although nothing probes it"),
            Event::Draining { .. } | Event::Failed { .. } => {}
        }
        event
    }

    async fn until_ready(&mut self, count: usize) {
        while self.ready.len() != count {
            if let Event::Failed { why, .. } = self.next().await {
                panic!("the echo revision failed to start: {why}");
            }
        }
    }
}

async fn echo(instance: &Instance, text: &'static str) {
    let call = Call {
        terms: Default::default(),
        id: CallId::random(),
        revision: instance.revision.clone(),
        deadline: Instant::now() + Duration::from_secs(30),
        request: http::Request::post("/").body(call::full(text)).expect("a request"),
    };
    let reply = instance.run.invoke(call).await.expect("the echo revision answers");
    assert_eq!(reply.status(), 200);
    let mut body = reply.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)).await
    {
        if let Ok(data) = frame.expect("a whole body").into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    assert_eq!(bytes, text.as_bytes(), "{} answers with the bytes of the body", instance.id);
}

async fn opens_with_reset(f: &Fixture) {
    assert!(Watch::open(f).await.ready.is_empty(), "nothing is ready before anything was applied");
}

async fn scales_up_and_serves(f: &Fixture) {
    let mut watch = Watch::open(f).await;
    f.provider.prepare(&f.echo, Progress::silent()).await.expect("prepare");
    f.provider.apply(&f.echo, 3, &[]).await.expect("apply 3");
    watch.until_ready(3).await;
    let ids: HashSet<InstanceId> = watch.ready.iter().map(|i| i.id.clone()).collect();
    assert_eq!(ids.len(), 3, "ids are unique");
    for instance in &watch.ready {
        assert_eq!(instance.revision, f.echo.id);
        echo(instance, "hello").await;
        echo(instance, "").await;
    }
    f.provider.apply(&f.echo, 0, &[]).await.expect("apply 0");
    watch.until_ready(0).await;
}

async fn is_idempotent(f: &Fixture) {
    let mut watch = Watch::open(f).await;
    for _ in 0..3 {
        f.provider.apply(&f.echo, 2, &[]).await.expect("apply 2");
    }
    watch.until_ready(2).await;
    f.provider.apply(&f.echo, 2, &[]).await.expect("apply 2 again");
    f.provider.apply(&f.echo, 3, &[]).await.expect("apply 3");
    watch.until_ready(3).await;
    for _ in 0..2 {
        f.provider.apply(&f.echo, 0, &[]).await.expect("apply 0");
    }
    watch.until_ready(0).await;
}

async fn stops_the_spare(f: &Fixture) {
    let mut watch = Watch::open(f).await;
    f.provider.apply(&f.echo, 3, &[]).await.expect("apply 3");
    watch.until_ready(3).await;
    let spare = watch.ready[1].id.clone();
    f.provider.apply(&f.echo, 2, std::slice::from_ref(&spare)).await.expect("apply 2");
    watch.until_ready(2).await;
    assert!(watch.ready.iter().all(|i| i.id != spare), "the spare one is stopped");
    for instance in &watch.ready {
        echo(instance, "still here").await;
    }
    let spare = watch.ready[0].id.clone();
    f.provider.apply(&f.echo, 2, std::slice::from_ref(&spare)).await.expect("apply 2 without one of the two");
    while watch.ready.len() != 2 || watch.ready.iter().any(|i| i.id == spare) {
        watch.next().await;
    }
    f.provider.apply(&f.echo, 0, &[]).await.expect("apply 0");
    watch.until_ready(0).await;
}

async fn a_late_watcher_sees_what_is_ready(f: &Fixture) {
    let mut first = Watch::open(f).await;
    f.provider.apply(&f.echo, 1, &[]).await.expect("apply 1");
    first.until_ready(1).await;
    let mut late = Watch::open(f).await;
    assert_eq!(late.ready.len(), 1, "Reset lists what is ready");
    assert_eq!(late.ready[0].id, first.ready[0].id);
    f.provider.apply(&f.echo, 0, &[]).await.expect("apply 0");
    late.until_ready(0).await;
}

async fn a_broken_revision_fails_with_words(f: &Fixture) {
    let mut watch = Watch::open(f).await;
    // A provider may notice while it prepares or while it starts; either way in words, and nothing becomes ready.
    if let Err(e) = f.provider.prepare(&f.broken, Progress::silent()).await {
        assert!(!e.to_string().is_empty());
        return;
    }
    f.provider.apply(&f.broken, 1, &[]).await.expect("apply 1");
    loop {
        match watch.next().await {
            Event::Failed { revision, cause, why } => {
                assert_eq!(revision, f.broken.id);
                assert_eq!(cause, Cause::CannotStart);
                assert!(!why.is_empty(), "a failed start says why");
                break;
            }
            Event::Ready(i) => panic!("{} of the broken revision became ready", i.id),
            _ => {}
        }
    }
    f.provider.apply(&f.broken, 0, &[]).await.expect("apply 0");
}

async fn leaves_nothing(f: &Fixture) {
    for revision in [&f.echo, &f.broken] {
        f.provider.apply(revision, 0, &[]).await.expect("apply 0");
        let until = Instant::now() + f.patience;
        // The end of an instance is announced before its last file is gone: poll the host, with a bound.
        while (f.left)(revision) > 0 {
            assert!(Instant::now() < until, "{} things of {} are left", (f.left)(revision), revision.id);
            tokio::task::yield_now().await;
        }
    }
}
