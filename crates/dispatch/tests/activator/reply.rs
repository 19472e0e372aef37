//! The slot in the reply: held as long as the body flows, free at its end, its break, or its drop.

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use taper_dispatch::Tunnel;
use taper_model::{Body, BoxError, call::Timing};
use tokio::sync::mpsc;

use super::*;

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

/// A body that is fed by hand.
fn fed() -> (Frames, Body) {
    let (tx, mut rx) = mpsc::unbounded_channel();
    (tx, StreamBody::new(futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx))).boxed_unsync())
}

/// A dispatcher with one instance that answers with this reply.
fn answering(reply: Reply) -> (Dispatcher, RevisionId) {
    let (d, hello) = (dispatcher(), hello());
    let reply = std::sync::Mutex::new(Some(reply));
    d.learn(Event::Ready(instance_that(&hello, "a", 1, move |_| {
        let reply = reply.lock().unwrap().take().unwrap();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(7)).await;
            Ok(reply)
        })
    })));
    (d, hello)
}

async fn reply_of(reply: Reply) -> (Dispatcher, Reply) {
    let (d, hello) = answering(reply);
    let reply = d.invoke(request(&hello, within(60), "")).await.unwrap();
    (d, reply)
}

fn running(d: &Dispatcher) -> u32 {
    counts(d).1
}

#[tokio::test(start_paused = true)]
async fn the_slot_is_free_at_the_bodys_end() {
    let (frames, body) = fed();
    let (d, mut reply) = reply_of(http::Response::new(body)).await;
    frames.send(Ok(Frame::data("light".into()))).unwrap();
    assert_eq!(reply.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "light");
    assert_eq!(running(&d), 1, "more may come");
    drop(frames);
    assert!(reply.body_mut().frame().await.is_none());
    assert_eq!(running(&d), 0, "the end frees it, while the reply is still in the reader's hands");
    drop(reply);
    assert_eq!(counts(&d), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_slot_is_free_with_the_last_frame_where_that_is_known() {
    let (d, mut reply) = reply_of(http::Response::new(call::full("light"))).await;
    assert_eq!(http_body::Body::size_hint(reply.body()).exact(), Some(5), "the length is still known");
    assert_eq!(running(&d), 1);
    reply.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(running(&d), 0);
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_frees_the_slot_at_once() {
    let (d, reply) = reply_of(http::Response::new(call::empty())).await;
    assert_eq!(running(&d), 0);
    assert_eq!(reply.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_or_is_dropped_frees_the_slot() {
    let (frames, body) = fed();
    let (d, mut reply) = reply_of(http::Response::new(body)).await;
    frames.send(Err(io::Error::other("broke").into())).unwrap();
    assert!(reply.body_mut().frame().await.unwrap().is_err());
    assert_eq!(running(&d), 0);

    let (_frames, body) = fed();
    let (d, reply) = reply_of(http::Response::new(body)).await;
    assert_eq!(running(&d), 1);
    drop(reply);
    assert_eq!(running(&d), 0);
}

/// Notes, when it is dropped, how many calls run at that time.
struct Note(Dispatcher, Arc<AtomicU32>);

impl Drop for Note {
    fn drop(&mut self) {
        self.1.store(running(&self.0), Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn the_instance_learns_that_the_reader_left_before_it_gets_another_call() {
    let (d, hello, noted) = (dispatcher(), hello(), Arc::new(AtomicU32::new(9)));
    let (dispatcher, seen) = (d.clone(), noted.clone());
    d.learn(Event::Ready(instance_that(&hello, "a", 1, move |_| {
        let note = Note(dispatcher.clone(), seen.clone());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(7)).await;
            let body = StreamBody::new(futures_util::stream::poll_fn(move |_| {
                let _held = &note;
                Poll::Pending
            }));
            Ok(http::Response::new(body.boxed_unsync()))
        })
    })));

    // The caller leaves while the call runs: the instance's own future is dropped while the slot is still taken.
    let mut call = d.invoke(request(&hello, within(60), ""));
    assert!(poll(&mut call).is_none());
    drop(call);
    assert_eq!((noted.swap(9, Ordering::SeqCst), running(&d)), (1, 0));

    // The reader leaves in the middle of the body: the same.
    let reply = d.invoke(request(&hello, within(60), "")).await.unwrap();
    drop(reply);
    assert_eq!((noted.load(Ordering::SeqCst), running(&d)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn trailers_come_through() {
    let (frames, body) = fed();
    let (d, reply) = reply_of(http::Response::new(body)).await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    frames.send(Ok(Frame::data("x".into()))).unwrap();
    frames.send(Ok(Frame::trailers(trailers.clone()))).unwrap();
    drop(frames);
    assert_eq!(reply.into_body().collect().await.unwrap().trailers(), Some(&trailers));
    assert_eq!(running(&d), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reply_tells_how_it_came_about() {
    let (d, hello) = answering(http::Response::new(call::full("x")));
    let reply = d.invoke(request(&hello, within(60), "")).await.unwrap();
    let Served { start, timing: Timing { queue, activate, invoke }, phases, repeated } = served(&reply);
    assert!(!repeated);
    assert_eq!((start, phases), (Start::Warm, None));
    assert_eq!((queue, activate), (Duration::ZERO, Duration::ZERO));
    assert!(invoke >= Duration::from_millis(7) && invoke < Duration::from_millis(9), "{invoke:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_keeps_the_slot_after_the_reply() {
    let reply = http::Response::builder().status(101).body(call::empty()).unwrap();
    let (d, mut reply) = reply_of(reply).await;
    let tunnel = reply.extensions_mut().remove::<Tunnel>().unwrap();
    drop(reply);
    assert_eq!(running(&d), 1);
    let direction = tunnel.clone();
    drop(tunnel);
    assert_eq!(running(&d), 1);
    drop(direction);
    assert_eq!(running(&d), 0);

    // Whoever does not know of tunnels frees the slot with the reply.
    let reply = http::Response::builder().status(101).body(call::empty()).unwrap();
    let (d, reply) = reply_of(reply).await;
    drop(reply);
    assert_eq!(running(&d), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_while_the_call_runs_frees_the_slot() {
    let (d, hello) = answering(http::Response::new(call::empty()));
    let mut call = d.invoke(request(&hello, within(60), ""));
    assert!(poll(&mut call).is_none());
    assert_eq!(running(&d), 1);
    drop(call);
    assert_eq!(counts(&d), (0, 0, 1));
}

/// An instance on which so many calls linger, each until its place is taken from here.
#[derive(Clone, Default)]
struct Lingering {
    calls: Arc<AtomicU32>,
    places: Arc<std::sync::Mutex<Vec<Box<dyn Send>>>>,
}

impl Lingering {
    fn end_one(&self) {
        let place = self.places.lock().unwrap().pop().unwrap();
        drop(place);
    }
}

impl Invoke for Lingering {
    fn invoke(&self, _: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        Box::pin(std::future::pending())
    }

    fn lingers(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    fn keep(&self, place: Box<dyn Send>) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        self.places.lock().unwrap().push(place);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_lingers_keeps_its_slot_until_it_is_at_rest() {
    let (d, hello) = (dispatcher(), hello());
    let instance = Lingering::default();
    d.learn(Event::Ready(Instance { run: Arc::new(instance.clone()), ..self::instance(&hello, "a", 1) }));
    let mut call = d.invoke(request(&hello, within(60), ""));
    assert!(poll(&mut call).is_none());
    instance.calls.store(1, Ordering::Relaxed);
    drop(call);
    assert_eq!(counts(&d), (0, 1, 1), "its caller has left, and it runs");
    let mut next = waiting(&d, &hello);
    instance.end_one();
    assert_eq!(on(&granted(&mut next)), "a");
}

#[tokio::test(start_paused = true)]
async fn calls_that_linger_on_an_instance_of_another_platform_keep_their_slots() {
    let (d, hello) = (dispatcher(), hello());
    let instance = Lingering::default();
    instance.calls.store(2, Ordering::Relaxed);
    let ready = Event::Ready(Instance { run: Arc::new(instance.clone()), ..self::instance(&hello, "a", 3) });
    d.learn(ready.clone());
    // That it is there is told again.
    d.learn(ready);
    assert_eq!((counts(&d), instance.lingers()), ((0, 2, 1), 0));
    let (_third, mut fourth) = (admitted(&d, &hello), waiting(&d, &hello));
    instance.end_one();
    let fourth = granted(&mut fourth);
    assert_eq!(counts(&d), (0, 3, 1));
    instance.end_one();
    drop(fourth);
    assert_eq!(counts(&d), (0, 1, 1));
}
