//! What a server has that was killed, and what is left to be removed when a platform is.

use async_nats::{Client, HeaderMap};
use taper_jetstream::{Error, JetStream};
use taper_model::clock;
use taper_queue::{
    Config, Filter, Page, Queue, State, Verdict,
    conformance::{entry, settled, unlimited},
};

use crate::{
    open, run_all,
    server::{Server, is_installed},
};

/// The part of a body that belongs to no call.
const PART: usize = 1_000_000;

async fn ask(client: &Client, verb: &str, with: String) -> serde_json::Value {
    let answer = client.request(format!("$JS.API.{verb}.TAPER"), with.into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Writes `count` of them; `from` is the first one's number.
async fn fill(client: &Client, from: u32, count: u32) {
    for number in from..from + count {
        let subject = format!("TAPER.body.{number:032x}.0");
        client.request(subject, vec![b'x'; PART].into()).await.unwrap();
    }
}

/// Servers that keep one message of each subject have been seen to take back what was replaced when they are killed, to remove what had
/// replaced it instead, and to find neither by its subject (2.9.10, from the tenth file on).
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_kept_one_message_of_a_subject_is_taken_over_and_whose_it_is_is_found() {
    if !is_installed() {
        return;
    }
    let mut server = Server::start();
    let (address, home) = (server.address(), server.home("home"));
    let queue = open(&address, &home).await;
    let call = entry("f", b"x");
    queue.push(call.clone()).await.unwrap();
    queue.close().await;
    let client = async_nats::connect(server.at("")).await.unwrap();
    let mut config = ask(&client, "STREAM.INFO", String::new()).await["config"].clone();
    config["max_msgs_per_subject"] = 1.into();
    assert!(ask(&client, "STREAM.UPDATE", config.to_string()).await["error"].is_null());
    // Its owner is there, and has just said so.
    let id = std::fs::read_to_string(home.join("owner")).unwrap();
    let owner = || {
        let owner = serde_json::json!({ "owner":
            { "id": id.trim(), "host": "there", "epoch": "e", "at": clock::unix_ms(), "free": false } });
        HeaderMap::from_iter([("Taper".parse().unwrap(), owner.to_string().parse().unwrap())])
    };
    fill(&client, 0, 10).await;
    client.request_with_headers("TAPER.owner", owner(), "".into()).await.unwrap();
    client.request("TAPER.fence", "".into()).await.unwrap();
    fill(&client, 10, 90).await;
    // The first to be replaced has the server write down which are; the last one is too soon after it.
    for _ in 0..3 {
        client.publish("TAPER.fence", "".into()).await.unwrap();
    }
    client.request_with_headers("TAPER.owner", owner(), "".into()).await.unwrap();
    server.kill();
    server.again();
    let client = async_nats::connect(server.at("")).await.unwrap();
    let last = ask(&client, "STREAM.MSG.GET", r#"{"last_by_subj":"TAPER.owner"}"#.into()).await;
    println!("the server finds its owner: {}", last["error"].is_null());
    let other = JetStream::open(&address, &server.home("other"), Config::default(), unlimited()).await.map(drop);
    assert!(matches!(&other, Err(Error::Owned { id: theirs, .. }) if theirs == id.trim()), "{other:?}");
    let queue = open(&address, &home).await;
    assert_eq!(ask(&client, "STREAM.INFO", String::new()).await["config"]["max_msgs_per_subject"], -1);
    queue.push(entry("f", b"y")).await.unwrap();
    queue.close().await;
    server.kill();
    server.again();
    let queue = open(&address, &home).await;
    assert_eq!((queue.stats().depth, &run_all(&queue).await[0]), (2, &call.id.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_purged_never_runs_again_however_soon_the_platform_dies() {
    const CALLS: u64 = 600;
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let (address, home) = (server.address(), server.home("home"));
    let queue = open(&address, &home).await;
    let pushed = (0..CALLS).map(|_| queue.push(entry("f", b"x")));
    futures_util::future::try_join_all(pushed).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..CALLS {
        leases.push(queue.lease().await.unwrap());
    }
    let ends = leases.iter().map(|lease| queue.settle(lease, settled(Verdict::Done, 200, b"")));
    futures_util::future::try_join_all(ends).await.unwrap();
    assert_eq!(queue.purge(Filter::default()).await.unwrap(), CALLS);
    // Not closed: as it is when its process is killed.
    drop(leases);
    drop(queue);
    let queue = open(&address, &home).await;
    let left = queue.list(Filter { state: Some(State::Waiting), ..Filter::default() }, Page::default()).await.unwrap();
    assert_eq!((queue.stats().depth, left.invocations.len()), (0, 0));
}
