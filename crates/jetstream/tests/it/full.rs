//! There is no room any more, on the server or in the stream: that is said as of a full disk, nothing is half accepted, and what is there
//! is worked off and makes room.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::Client;
use futures_util::future::{join_all, try_join_all};
use taper_jetstream::{Address, JetStream};
use taper_model::{CallId, Cause};
use taper_queue::{
    Error, Filter, Page, Queue, State, Verdict,
    conformance::{entry, settled},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    open, run_all,
    server::{Cluster, Kept, Server, is_installed},
};

const CALLERS: usize = 8;
const LONG: Duration = Duration::from_secs(60);

/// Pushes until somebody is told that there is no room. Which were accepted, and which refused.
async fn fill(queue: &Arc<JetStream>, size: usize) -> (HashSet<String>, HashSet<String>) {
    let (accepted, refused) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
    join_all((0..CALLERS).map(|_| async {
        loop {
            let call = entry("f", &vec![b'x'; size]);
            let id = call.id.to_string();
            match queue.push(call).await {
                Ok(_) => drop(accepted.lock().unwrap().insert(id)),
                Err(error) => {
                    assert!(matches!(error, Error::Medium(taper_medium::Error::Full { .. })), "{error}");
                    assert_eq!(error.fault().cause, Cause::DiskFull, "as with a disk that is full");
                    refused.lock().unwrap().insert(id);
                    break;
                }
            }
        }
    }))
    .await;
    (accepted.into_inner().unwrap(), refused.into_inner().unwrap())
}

/// Until calls are accepted again.
async fn accepted(queue: &JetStream, size: usize) -> String {
    let begun = Instant::now();
    loop {
        match queue.push(entry("g", &vec![b'x'; size])).await {
            Ok(accepted) => return accepted.id.to_string(),
            Err(error) => assert!(begun.elapsed() < LONG, "there is room again by itself: {error}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What is in the stream, but for what is always there: whose it is, a fence, the reserve, and that calls are forgotten. Each message is
/// asked for: what a server that was killed says of how many it has is not always so.
async fn of_calls(client: &Client) -> Vec<String> {
    let ask = async |verb: &str, with: String| {
        let answer = client.request(format!("$JS.API.STREAM.{verb}.TAPER"), with.into()).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&answer.payload).unwrap()
    };
    let state = &ask("INFO", String::new()).await["state"];
    let (first, last) = (state["first_seq"].as_u64().unwrap(), state["last_seq"].as_u64().unwrap());
    let mut left = Vec::new();
    for seq in first..=last {
        let found = ask("MSG.GET", format!(r#"{{"seq":{seq}}}"#)).await;
        let subject = found["message"]["subject"].as_str().unwrap_or_default();
        if ["call", "body", "answer"].contains(&subject.split('.').nth(1).unwrap_or_default()) {
            left.push(format!("{seq} {subject}"));
        }
    }
    left
}

/// `dies`: the server does meanwhile, and comes back. Not where the stream has a limit of bytes: 2.9.10 has again what was removed, and then
/// forgets the oldest messages for it.
async fn is_refused_and_recovers(mut kept: impl Kept, size: usize, dies: bool) {
    let (address, home) = (kept.named("").parse().unwrap(), kept.servers()[0].home("home"));
    let queue = open(&address, &home).await;
    let (mut ours, refused) = fill(&queue, size).await;
    println!("{} of {size} bytes fit", ours.len());
    assert!(ours.len() > 3 && queue.stats().depth == ours.len() as u64);
    for id in &refused {
        assert!(queue.get(&CallId::given(id).unwrap()).await.unwrap().is_none());
    }
    // Those who have seen enough can go, and the platform can be started anew.
    let cancelled = ours.iter().next().unwrap().clone();
    timeout(LONG, queue.cancel(&CallId::given(&cancelled).unwrap(), "whoever")).await.unwrap().unwrap();
    ours.remove(&cancelled);
    assert_eq!(timeout(LONG, queue.purge(Filter::default())).await.unwrap().unwrap(), 1);
    queue.close().await;
    drop(queue);
    let queue = open(&address, &home).await;
    assert_eq!(queue.stats().depth, ours.len() as u64);
    // The server may die while calls end for which there is no room.
    let mut ran = Vec::new();
    let leases = try_join_all((0..3).map(|_| queue.lease())).await.unwrap();
    let ends = leases.iter().map(|lease| queue.settle(lease, settled(Verdict::Done, 200, &[b'a'; 9000])));
    let (ends, ()) = tokio::join!(timeout(LONG, try_join_all(ends)), async {
        if dies {
            kept.servers()[0].kill();
            kept.servers()[0].again();
        }
    });
    ends.expect("they are written").unwrap();
    ran.extend(leases.iter().map(|lease| lease.entry.id.to_string()));
    ran.extend(timeout(LONG, run_all(&queue)).await.expect("what waits is worked off"));
    ours.insert(accepted(&queue, size).await);
    ran.extend(run_all(&queue).await);
    assert_eq!(ran.len(), ours.len(), "each once");
    assert_eq!(ran.into_iter().collect::<HashSet<_>>(), ours, "and none that was refused");
    queue.purge(Filter::default()).await.unwrap();
    queue.close().await;
    drop(queue);
    // What a server that was killed has again goes at the next start. Nothing is left of what was refused.
    let _queue = open(&address, &home).await;
    let (client, begun) = (async_nats::connect(kept.servers()[0].at("")).await.unwrap(), Instant::now());
    loop {
        let left = of_calls(&client).await;
        if left.is_empty() {
            break;
        }
        assert!(begun.elapsed() < LONG, "{left:?} are left");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_full_refuses_calls_and_recovers() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    bounded(&async_nats::connect(server.at("")).await.unwrap(), 1).await;
    // What becomes of a call takes more room than the call.
    is_refused_and_recovers(server, 10, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_full_on_three_servers_does_the_same() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start();
    bounded(&async_nats::connect(cluster.servers[0].at("")).await.unwrap(), 3).await;
    is_refused_and_recovers(cluster, 20_000, false).await;
}

/// A stream that was made for a queue, and may hold 2 MB.
async fn bounded(client: &Client, replicas: u8) {
    let config = serde_json::json!({
        "name": "TAPER", "subjects": ["TAPER.>"], "storage": "file", "discard": "new", "retention": "limits",
        "max_bytes": 2_000_000, "max_msgs_per_subject": -1, "max_msgs": -1, "num_replicas": replicas,
        "allow_direct": true, "allow_rollup_hdrs": true,
    });
    for _ in 0..30 {
        // Three servers take a while to come together.
        let made = timeout(LONG, client.request("$JS.API.STREAM.CREATE.TAPER", config.to_string().into())).await;
        if made.unwrap().is_ok_and(|made| !String::from_utf8_lossy(&made.payload).contains("error")) {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
    panic!("the stream cannot be made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_refuses_calls_and_recovers() {
    if !is_installed() {
        return;
    }
    is_refused_and_recovers(Server::configured("jetstream { max_file_store: 24MB }"), 3_000_000, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_full_refuses_calls_and_recovers() {
    if !is_installed() {
        return;
    }
    let account = "jetstream { }\nno_auth_user: u\naccounts { A { jetstream { max_file: 16MB }, users: [{user: u, password: p}] } }";
    is_refused_and_recovers(Server::configured(account), 300_000, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_answers_take_all_the_room_the_oldest_go_before_their_time() {
    const CALLS: usize = 40;
    if !is_installed() {
        return;
    }
    let server = Server::configured("jetstream { max_file_store: 24MB }");
    let address: Address = server.address();
    let queue = open(&address, &server.home("home")).await;
    for n in 0..CALLS {
        queue.push(entry("f", &[u8::try_from(n).unwrap()])).await.unwrap();
    }
    let mut ran = Vec::new();
    for _ in 0..CALLS {
        let lease = queue.lease().await.unwrap();
        let end = settled(Verdict::Done, 200, &vec![b'a'; 1 << 20]);
        timeout(LONG, queue.settle(&lease, end)).await.expect("there is room for each end").unwrap();
        ran.push(lease.entry.id.clone());
    }
    let kept = queue.list(Filter { state: Some(State::Done), ..Filter::default() }, Page::default()).await.unwrap();
    assert!(kept.invocations.len() < CALLS && queue.stats().depth == 0, "{}", kept.invocations.len());
    assert_eq!(kept.invocations[0].id, ran[CALLS - 1], "the newest is there");
    assert!(queue.get(&ran[0]).await.unwrap().is_none(), "the oldest is not");
    accepted(&queue, 20_000).await;
}
