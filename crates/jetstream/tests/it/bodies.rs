//! What one message cannot hold, and what is left of it afterwards.

use std::time::Duration;

use taper_model::invocation::Destination;
use taper_queue::{
    Condition, Entry, Filter, Page, Parcel, Queue, State, Tried, Verdict,
    conformance::{entry, settled},
};

use crate::{
    open, run_all,
    server::{Server, is_installed},
};

/// Messages that a stream holds.
async fn held(client: &async_nats::Client, expect: u64) -> u64 {
    let mut count = 0;
    // What nobody needs is removed beside everything else.
    for _ in 0..200 {
        let answer = client.request("$JS.API.STREAM.INFO.TAPER", "".into()).await.unwrap();
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        count = info["state"]["messages"].as_u64().unwrap();
        if count == expect {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_many_messages_is_one_body_and_leaves_nothing() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let (address, home) = (server.address(), server.home("home"));
    let queue = open(&address, &home).await;
    let body: Vec<u8> = (0..6_u32 << 20).map(|n| (n % 251) as u8).collect();
    let head = "h".repeat(900 << 10);
    let mut large = entry("f", &body);
    large.headers.insert("x-large", head.parse().unwrap());
    let again = Entry { id: taper_queue::invocation_id(), ..large.clone() };
    let (first, second) = (large.id.clone(), again.id.clone());
    queue.push(large).await.unwrap();
    queue.push(again).await.unwrap();
    queue.close().await;
    let queue = open(&address, &home).await;
    let lease = queue.lease().await.unwrap();
    assert!(lease.entry.id == first && lease.entry.body == body && lease.entry.headers["x-large"] == head);
    // The answer is too much for one message, too; it is owed to somebody who sees what was asked.
    let answer = vec![b'a'; 1 << 20];
    let mut end = settled(Verdict::Done, 200, &answer);
    end.parcels = vec![Parcel::Record { to: Destination::default(), condition: Condition::Success }];
    queue.settle(&lease, end).await.unwrap();
    let mut delivery = queue.outbox().await.unwrap();
    assert!(delivery.details.entry.body == body && delivery.details.answer.as_ref().unwrap().body == answer);
    queue.delivered(&mut delivery, Tried::Delivered).await.unwrap();
    let details = queue.get(&first).await.unwrap().unwrap();
    assert!(details.entry.body.is_empty() && details.entry.headers["x-large"] == head);
    assert_eq!((details.answer.unwrap().body, details.invocation.state), (answer.clone().into(), State::Done));
    // A dead letter keeps its body, over a restart and a second life.
    let lease = queue.lease().await.unwrap();
    queue.settle(&lease, settled(Verdict::Bury("no".into()), 500, &answer)).await.unwrap();
    drop(lease);
    queue.close().await;
    let queue = open(&address, &home).await;
    let details = queue.get(&second).await.unwrap().unwrap();
    assert!(details.entry.body == body && details.answer.unwrap().body == answer);
    queue.retry(&second).await.unwrap();
    assert_eq!(run_all(&queue).await, [second.to_string()]);
    let client = async_nats::connect(server.at("")).await.unwrap();
    // Whose the stream is, a fence, and the reserve; what became of the first call, in two messages; and of the second one, in one.
    assert_eq!(held(&client, 1 + 1 + 8 + 2 + 1).await, 13);
    assert_eq!(queue.purge(Filter::default()).await.unwrap(), 2);
    // That they are forgotten stays for a while.
    assert_eq!(held(&client, 1 + 1 + 8 + 1).await, 11);
    assert!(queue.list(Filter::default(), Page::default()).await.unwrap().invocations.is_empty());
}
