//! Certificates from an authority: obtained for hosts that are configured or routed, kept, renewed, and not asked for too often.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use taper_gateway::{Acme, Config, Tls};
use taper_model::{BoxFuture, Call, Fault, Reply, call};
use tempfile::TempDir;

use crate::{authority::Authority, harness::*, tls::shown};

fn config(authority: &Authority, folder: &Path, hosts: &[&str]) -> Config {
    let acme = Acme {
        directory: authority.directory.clone(),
        email: Some("ops@example.com".into()),
        hosts: hosts.iter().map(|&h| h.to_owned()).collect(),
        ca: Some(authority.root.clone()),
        folder: Some(folder.join("kept")),
    };
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { threads: 1, tls: Some(Tls { listen, acme: Some(acme), ..Tls::default() }), ..Config::default() }
}

async fn started(config: Config) -> Platform {
    Platform::with(config, axum::Router::new(), answers).await
}

fn answers(_: Call) -> BoxFuture<'static, Result<Reply, Fault>> {
    Box::pin(async { Ok(Reply::new(call::full("the function"))) })
}

/// Waits until a host is shown another certificate than this.
async fn other(platform: &Platform, host: &str, than: &[u8]) -> Vec<u8> {
    within(async {
        loop {
            let now = shown(platform.secure_address.unwrap(), host).await;
            if now.as_ref() != than {
                return now.to_vec();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

fn all_private(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o777);
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            files += all_private(&path);
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
            files += 1;
        }
    }
    files
}

#[tokio::test]
async fn obtained_for_hosts_that_are_configured_or_routed_and_kept() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::open(folder.path()).await;
    let config = config(&authority, folder.path(), &["shop.example.com"]);
    let platform = started(config.clone()).await;
    let makeshift = shown(platform.secure_address.unwrap(), "shop.example.com").await.to_vec();
    authority.finds(platform.address);
    let shop = other(&platform, "shop.example.com", &makeshift).await;
    assert_eq!(shown(platform.secure_address.unwrap(), "else.example.com").await.as_ref(), &makeshift[..]);
    // A host that every path of leads to a function, and that proves itself all the same; what no authority could prove is let be.
    let rules = ["new.example.com", "*.example.org", "here.localhost"]
        .map(|h| format!(r#"{{"host": "{h}", "function": "hello"}}"#));
    platform.publish.send_replace(routed(&rules.each_ref().map(|rule| ("default", rule.as_str()))).into());
    let new = other(&platform, "new.example.com", &makeshift).await;
    assert!(shop != new);
    assert_eq!(authority.orders(), ["shop.example.com", "new.example.com"]);
    let answer = platform.get("/.well-known/acme-challenge/unknown").await;
    assert!(!answer.text().contains('.') || answer.status != 200, "{answer:?}");
    platform.end().await;
    assert_eq!(all_private(&folder.path().join("kept")), 5, "the account, and two files for each host");

    let again = started(config).await;
    assert_eq!(shown(again.secure_address.unwrap(), "shop.example.com").await.as_ref(), &shop[..], "at once");
    again.publish.send_replace(routed(&[("default", rules[0].as_str())]).into());
    assert_eq!(other(&again, "new.example.com", &makeshift_of(&again).await).await, new);
    assert_eq!((authority.orders().len(), authority.accounts()), (2, 1), "nothing is ordered twice");
}

async fn makeshift_of(platform: &Platform) -> Vec<u8> {
    shown(platform.secure_address.unwrap(), "nobody.example.com").await.to_vec()
}

#[tokio::test]
async fn renewed_when_two_thirds_are_over() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::open(folder.path()).await;
    let config = config(&authority, folder.path(), &["shop.example.com"]);
    authority.gives(70, 90);
    let first = started(config.clone()).await;
    authority.finds(first.address);
    let old = other(&first, "shop.example.com", &makeshift_of(&first).await).await;
    first.end().await;
    authority.gives(0, 90);
    // It was ordered a moment ago: not again for an hour.
    let second = started(config.clone()).await;
    authority.finds(second.address);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(authority.orders().len(), 1);
    second.end().await;
    an_hour_later(folder.path());
    let third = started(config).await;
    authority.finds(third.address);
    assert_eq!(
        shown(third.secure_address.unwrap(), "nobody.example.com").await.as_ref(),
        &makeshift_of(&third).await[..]
    );
    other(&third, "shop.example.com", &old).await;
    assert_eq!((authority.orders().len(), authority.accounts()), (2, 1));
}

/// What is remembered of orders is made an hour older.
fn an_hour_later(folder: &Path) {
    let kept = fs::read_dir(folder.join("kept")).unwrap().next().unwrap().unwrap().path();
    let file = kept.join("shop.example.com.json");
    let mut tried: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    tried["at"] = (tried["at"].as_i64().unwrap() - 3600).into();
    fs::write(file, tried.to_string()).unwrap();
}

#[tokio::test]
async fn a_host_that_cannot_prove_itself_waits() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::open(folder.path()).await;
    let config = config(&authority, folder.path(), &["shop.example.com"]);
    let elsewhere = Platform::start(answers).await;
    authority.finds(elsewhere.address);
    let platform = started(config.clone()).await;
    let kept = || {
        let kept = fs::read_dir(folder.path().join("kept")).unwrap().next().unwrap().unwrap().path();
        let text = fs::read(kept.join("shop.example.com.json")).unwrap_or_default();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default()
    };
    within(async {
        while kept()["failures"] != 1 || authority.orders().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    platform.end().await;
    let begun = kept()["at"].clone();
    let again = started(config).await;
    authority.finds(again.address);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(authority.orders().len(), 1, "not again for an hour");
    assert_eq!((&kept()["failures"], &kept()["at"]), (&1.into(), &begun));
}
