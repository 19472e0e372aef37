//! Artifacts: whole or not there, by digest, within their limit, and swept when nobody wants them.

use std::{collections::HashSet, fs, path::Path, time::Duration};

use taper_model::{Digest, clock};
use taper_store::{Artifacts, Error, GRACE, Store, Stored};

use crate::support::{deploy, function, open};

fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir.join("artifacts/sha256")).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn uploaded(artifacts: &Artifacts, content: &[u8]) -> Digest {
    let mut upload = artifacts.begin(content.len() as u64).await.unwrap();
    upload.write(content).await.unwrap();
    upload.finish(Some(Digest::of(content))).await.unwrap()
}

/// Makes an artifact look as if it came this long ago.
fn aged(artifacts: &Artifacts, digest: &Digest, age: Duration) {
    let file = fs::File::open(artifacts.path(digest).unwrap()).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + clock::unix() - age).unwrap();
}

#[tokio::test]
async fn any_size_in_any_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let content: Vec<u8> = (0..1_000_003u32).flat_map(u32::to_le_bytes).collect();
    for size in [0, 1, 255, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, content.len()] {
        for chunk in [1, 1000, 64 << 10, 256 << 10, 5 << 20] {
            if size / chunk > 300_000 {
                continue;
            }
            let content = &content[..size];
            let mut upload = artifacts.begin(size as u64).await.unwrap();
            for bytes in content.chunks(chunk) {
                upload.write(bytes).await.unwrap();
            }
            let digest = upload.finish(None).await.unwrap();
            assert_eq!(digest, Digest::of(content));
            assert_eq!(fs::read(artifacts.path(&digest).unwrap()).unwrap(), content);
        }
    }
    let mut sizes: Vec<_> = artifacts.list().await.unwrap().iter().map(|s| s.size).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 1, 255, 262_143, 262_144, 262_145, 4_000_012], "the same content is one file");
    assert_eq!(artifacts.path(&Digest::of(b"absent")), None);
}

#[tokio::test]
async fn what_is_not_as_announced_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let mut wrong = artifacts.begin(100).await.unwrap();
    wrong.write(b"code").await.unwrap();
    match wrong.finish(Some(Digest::of(b"other"))).await {
        Err(e @ Error::Mismatch { .. }) => assert!(e.to_string().contains(&Digest::of(b"code").to_string()), "{e}"),
        other => panic!("{other:?}"),
    }
    let mut large = artifacts.begin(1 << 20).await.unwrap();
    large.write(&vec![0; 1 << 20]).await.unwrap();
    assert!(matches!(large.write(b"x").await, Err(Error::TooLarge { limit: 1_048_576, .. })));
    assert!(matches!(large.finish(None).await, Err(Error::Ended)), "it does not become an artifact after all");
    let mut left = artifacts.begin(1 << 20).await.unwrap();
    left.write(&vec![0; 1 << 20]).await.unwrap();
    assert_eq!(files(dir.path()).len(), 1);
    drop(left);
    assert_eq!(files(dir.path()), [""; 0]);
    assert_eq!(artifacts.list().await.unwrap(), []);
}

#[test]
fn a_write_that_was_dropped_ends_the_upload() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut upload = Artifacts::open(dir.path()).unwrap().begin(10 << 20).await.unwrap();
        let bytes = vec![0; 10 << 20];
        {
            let mut write = std::pin::pin!(upload.write(&bytes));
            std::future::poll_fn(|cx| {
                assert!(write.as_mut().poll(cx).is_pending(), "ten megabytes take a moment");
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert!(matches!(upload.write(b"").await, Err(Error::Ended)));
        assert!(matches!(upload.finish(None).await, Err(Error::Ended)));
    });
    drop(runtime); // waits for the write that was under way
    assert_eq!(files(dir.path()), [""; 0]);
}

#[tokio::test]
async fn what_a_crash_left_goes_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let kept = uploaded(&Artifacts::open(dir.path()).unwrap(), b"kept").await;
    for name in [".upload-0", ".upload-17", ".upload-"] {
        fs::write(dir.path().join("artifacts/sha256").join(name), "half").unwrap();
    }
    fs::write(dir.path().join("artifacts/sha256/README"), "not ours").unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    assert_eq!(files(dir.path()), [kept.hex(), "README".to_owned()]);
    let listed: Vec<Digest> = artifacts.list().await.unwrap().iter().map(|s: &Stored| s.digest).collect();
    assert_eq!(listed, [kept]);
}

#[tokio::test]
async fn only_what_is_old_and_unwanted_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let [wanted, old, renewed, again, young] =
        [&b"wanted"[..], b"old", b"renewed", b"again", b"young"].map(<[u8]>::to_vec);
    let mut digests = Vec::new();
    for content in [&wanted, &old, &renewed, &again, &young] {
        let digest = uploaded(&artifacts, content).await;
        aged(&artifacts, &digest, GRACE * 2);
        digests.push(digest);
    }
    aged(&artifacts, &digests[4], GRACE / 2);
    let mut deploy = deploy("hello", "1");
    deploy.artifact = Some(digests[0]);
    store.publish(deploy).await.unwrap();
    assert!(artifacts.renew(&digests[2]).await.unwrap());
    assert!(!artifacts.renew(&Digest::of(b"absent")).await.unwrap());
    uploaded(&artifacts, &again).await;

    let snapshot = store.snapshot().borrow().clone();
    assert_eq!(artifacts.sweep(&snapshot).await.unwrap(), [digests[1]]);
    assert_eq!(artifacts.path(&digests[1]), None);
    assert_eq!(artifacts.list().await.unwrap().len(), 4);
    assert_eq!(artifacts.sweep(&snapshot).await.unwrap(), []);

    store.delete(&function("hello")).await.unwrap();
    let snapshot = store.snapshot().borrow().clone();
    assert_eq!(artifacts.sweep(&snapshot).await.unwrap(), [digests[0]]);
    let all = artifacts.remove_unreferenced(&HashSet::from([digests[3]]), Duration::ZERO).await.unwrap();
    assert_eq!(HashSet::from_iter(all), HashSet::from([digests[2], digests[4]]));
    assert_eq!(files(dir.path()), [digests[3].hex()]);
}
