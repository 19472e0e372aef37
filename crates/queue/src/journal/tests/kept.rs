//! What the embedded queue keeps, for how long, and how much of it.

use super::*;

/// What is to be told has a bound, and each namespace half of it: whoever fills it has his calls with callbacks refused, and no other's.
#[tokio::test]
async fn what_is_owed_has_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { deliveries: 4, ..Config::default() };
    let back =
        |function: &str| Entry { callback: Some("https://example.com/back".parse().unwrap()), ..entry(function, b"x") };
    let record = crate::Parcel::Record { to: Default::default(), condition: crate::Condition::Success };
    let done = async |journal: &Journal, parcels: &[crate::Parcel]| {
        let end = Settled { parcels: parcels.to_vec(), ..settled(Verdict::Done, 200, b"") };
        journal.settle(&lease(journal).await, end).await.unwrap();
    };
    let mut journal = open(&dir, config.clone());
    // What was accepted is told of: it was promised.
    for _ in 0..3 {
        journal.push(back("f.greedy")).await.unwrap();
    }
    for n in 1..=3 {
        done(&journal, &[crate::Parcel::Callback, record.clone()]).await;
        // The first has room for both; then there is none for records.
        assert_eq!((journal.stats().parcels, journal.stats().given_up), (1 + n, n - 1));
    }
    drop(journal);
    journal = open(&dir, config);
    let text = journal.push(back("g.greedy")).await.unwrap_err().to_string();
    assert!(
        text.contains("4 callbacks and records (queue.deliveries in the") && text.contains("of all calls"),
        "{text}"
    );
    assert_eq!(journal.stats().refused, 1);
    journal.push(entry("g.greedy", b"without one")).await.unwrap();
    for _ in 0..2 {
        let mut delivery = journal.outbox().await.unwrap();
        journal.delivered(&mut delivery, Tried::Delivered).await.unwrap();
    }
    let text = journal.push(back("g.greedy")).await.unwrap_err().to_string();
    assert!(text.contains("of namespace greedy has reached its bound of 2 "), "{text}");
    done(&journal, std::slice::from_ref(&record)).await;
    assert_eq!((journal.stats().parcels, journal.stats().given_up), (2, 1));
    // Others have the other half.
    journal.push(back("f.other")).await.unwrap();
    done(&journal, &[crate::Parcel::Callback, record.clone()]).await;
    assert_eq!((journal.stats().parcels, journal.stats().given_up), (4, 1));
    for _ in 0..4 {
        let mut delivery = journal.outbox().await.unwrap();
        journal.delivered(&mut delivery, Tried::Delivered).await.unwrap();
    }
    journal.push(back("g.greedy")).await.expect("there is room again");
}

#[tokio::test]
async fn bytes_that_are_kept_have_it_looked_for_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, Config { results_bytes: 1 << 20, ..Config::default() });
    let body = vec![7; LARGE];
    for _ in 0..60 {
        journal.push(entry("f", b"x")).await.unwrap();
        journal.settle(&lease(&journal).await, settled(Verdict::Done, 200, &body)).await.unwrap();
    }
    settle_down(&journal).await;
    let page = Page { size: 1000, ..Page::default() };
    let there = journal.list(Filter::default(), page).await.unwrap().invocations.len();
    assert!((10..=21).contains(&there), "{there}: of six times as much as may be kept");
}

#[tokio::test]
async fn a_key_holds_while_its_call_waits() {
    static NOW: AtomicU64 = AtomicU64::new(1_000_000_000);
    let dir = tempfile::tempdir().unwrap();
    let journal =
        Journal::open_at(&dir.path().join("queue"), Config::default(), unlimited(), || NOW.load(Relaxed)).unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    let keyed = || Entry { idempotency_key: Some("k".into()), due: Due::After(week), ..entry("f", b"x") };
    let first = journal.push(keyed()).await.unwrap();
    NOW.fetch_add(6 * 24 * 3_600_000, Relaxed);
    let second = journal.push(keyed()).await.unwrap();
    assert_eq!((first.repeated, second.repeated, &second.id), (false, true, &first.id));
    NOW.fetch_add(2 * 24 * 3_600_000, Relaxed);
    let runs = lease(&journal).await;
    assert!(journal.push(keyed()).await.unwrap().repeated, "it runs");
    journal.settle(&runs, settled(Verdict::Done, 200, b"")).await.unwrap();
    assert!(!journal.push(keyed()).await.unwrap().repeated, "it was accepted longer ago than anything is kept");
}

/// Whoever sends again what was damaged has it run, and what is dead of it can be run again.
#[tokio::test]
async fn a_damaged_body_can_be_sent_again() {
    let (dir, journal) = fresh();
    let damaged = journal.push(entry("f", &[2; LARGE])).await.unwrap().id;
    let file = fs::read_dir(dir.path().join("queue/bodies")).unwrap().next().unwrap().unwrap().path();
    let mut half = fs::read(&file).unwrap();
    half[LARGE / 2] ^= 1;
    fs::write(&file, half).unwrap();
    // Reading it finds that out.
    assert!(journal.get(&damaged).await.unwrap().unwrap().entry.body.is_empty());
    let again = journal.push(entry("g", &[2; LARGE])).await.unwrap().id;
    let mut ran = [lease(&journal).await, lease(&journal).await].map(|lease| {
        assert!(lease.entry.body == [2; LARGE][..]);
        lease.entry.id.clone()
    });
    ran.sort_by_key(|id| *id == again);
    assert_eq!(ran, [damaged, again]);
    drop(journal);
    assert_eq!(bodies(&dir), 2);
    drop(open(&dir, Config::default()));
    assert_eq!(bodies(&dir), 1, "what was set aside goes at a start");
}
