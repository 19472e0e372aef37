//! `taper doctor`: what this machine can isolate, whether the platform that runs keeps enough ready, and what to do about what is not
//! as it should be.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use http::Method;
use serde_json::{Value, json};
use taper_server::Config;

use crate::{
    client::Client,
    context::Global,
    output::{self, text},
};

/// Fewer starts than this say nothing about the pool.
const ENOUGH: u64 = 10;
/// A pool that may take less than this holds not even two sandboxes with Node.
const LITTLE: u64 = 96 << 20;

/// Which platform is looked at.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper doctor\n  taper doctor --data /srv/taper -o json\n  taper doctor --config taper.yaml\n\n\
                  What the platform keeps ready is asked of the one that runs at --url."
)]
pub(crate) struct Doctor {
    /// The data directory, as `taper up` has it
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The configuration file, as `taper up` has it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Doctor {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(data) = &self.data {
            config.data.clone_from(data);
        }
        let report = taper_server::doctor(&config);
        let mut shown = serde_json::to_value(&report)?;
        if let Some(items) = shown["items"].as_array_mut() {
            let asked = Client::new(global).and_then(|client| client.json(Method::GET, "/v1/pool", None));
            items.extend(match &asked {
                Ok(pool) => judge(pool),
                Err(error) => vec![item("pool", "ok", &format!("not known: {}", output::chain(error)), PURPOSE, None)],
            });
        }
        if output::machine(&shown, global.output)? {
            return Ok(());
        }
        let items = shown["items"].as_array().map_or(&[][..], Vec::as_slice);
        let width = items.iter().map(|i| text(i, "/name").len()).max().unwrap_or(0);
        for item in items {
            let status = text(item, "/status");
            output::line(&format!("{status:<8} {:<width$}  {}", text(item, "/name"), text(item, "/found")))?;
            if status != "ok" {
                output::line(&format!("{:<8} {:<width$}  {}", "", "", text(item, "/means")))?;
            }
            if let Some(mend) = item["mend"].as_str() {
                output::line(&format!("{:<8} {:<width$}  → {mend}", "", ""))?;
            }
        }
        if report.isolation.is_none() {
            bail!(
                "nothing can be isolated here; mend what is missing above, or start the platform with --isolation none"
            );
        }
        Ok(())
    }
}

/// What the pool is for.
const PURPOSE: &str = "a function at zero starts from a sandbox that is there already";

/// A fact in the form of those that the platform's own look at the machine brings.
fn item(name: &str, status: &str, found: &str, means: &str, mend: Option<&str>) -> Value {
    json!({"name": name, "status": status, "found": found, "means": means, "mend": mend})
}

/// Whether what is kept ready is enough: one fact for each kind.
fn judge(pool: &Value) -> Vec<Value> {
    let budget = pool["budget"].as_u64().unwrap_or(0);
    let kinds: Vec<(&String, &Value)> = pool["kinds"].as_object().into_iter().flatten().collect();
    let count = |kind: &Value, field: &str| kind[field].as_u64().unwrap_or(0);
    let memory: u64 = kinds.iter().map(|(_, kind)| count(kind, "memory")).sum();
    let of = format!("{} of at most {}", bytes(memory), bytes(budget));
    if kinds.is_empty() {
        let found = format!("empty, as nothing was deployed or started of late; at most {}", bytes(budget));
        return vec![item("pool", "ok", &found, PURPOSE, None)];
    }
    let mut items = vec![match budget < LITTLE {
        true => {
            item("pool", "weaker", &of, "it has no room for what a language needs", Some("raise local.pool.memory"))
        }
        false => item("pool", "ok", &of, PURPOSE, None),
    }];
    for (name, kind) in kinds {
        let [hits, misses, ready, making, wanted] =
            ["hits", "misses", "ready", "making", "wanted"].map(|field| count(kind, field));
        let starts = hits + misses;
        let share = match starts {
            0 => "no start yet".to_owned(),
            _ => format!("{hits} of {starts} starts from it", hits = hits, starts = starts),
        };
        let size = bytes(count(kind, "memory"));
        let found = format!("{ready} of {wanted} ready, {size}; {share}");
        let tight = memory.saturating_add(count(kind, "memory") / ready.max(1)) > budget;
        let (status, means, mend) = if wanted > 0 && ready + making == 0 {
            let mend = "the platform's log says why none could be made";
            ("weaker", "every start makes its sandbox first", Some(mend))
        } else if starts >= ENOUGH && misses > hits {
            let mend = if tight {
                "raise local.pool.memory: what is ready takes all of it"
            } else {
                "raise local.pool.floor to the number of starts that come at once; local.pool.ceiling bounds all kinds together"
            };
            ("weaker", "most starts find none ready, make their sandbox first and wait for the language", Some(mend))
        } else {
            ("ok", PURPOSE, None)
        };
        items.push(item(&format!("pool: {name}"), status, &found, means, mend));
    }
    items
}

/// Bytes as people read them.
fn bytes(count: u64) -> String {
    let mib = count as f64 / 1_048_576.0;
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(hits: u64, misses: u64, ready: u64, wanted: u64, memory: u64, budget: u64) -> Value {
        let kind = json!({"hits": hits, "misses": misses, "ready": ready, "making": 0, "wanted": wanted, "memory": memory << 20});
        judge(&json!({"kinds": {"python3": kind}, "budget": budget << 20})).pop().unwrap()
    }

    #[test]
    fn the_pool_is_judged_by_what_it_was_good_for() {
        let none = judge(&json!({"kinds": {}, "budget": 1 << 30}));
        assert!(none.len() == 1 && none[0]["status"] == "ok", "{none:?}");
        let well = one(97, 3, 2, 2, 14, 2048);
        assert_eq!((&well["status"], &well["mend"]), (&json!("ok"), &Value::Null));
        assert_eq!(well["found"], "2 of 2 ready, 14 MiB; 97 of 100 starts from it");
        assert_eq!(one(1, 5, 2, 2, 14, 2048)["status"], "ok", "too few to tell");
        let mend = |item: &Value| item["mend"].as_str().map(str::to_owned).unwrap_or_default();
        let small = one(10, 90, 2, 2, 14, 2048);
        assert!(small["status"] == "weaker" && mend(&small).contains("local.pool.floor"), "{small}");
        let tight = one(10, 90, 2, 2, 90, 100);
        assert!(tight["status"] == "weaker" && mend(&tight).contains("local.pool.memory"), "{tight}");
        assert!(mend(&one(3, 0, 0, 0, 0, 2048)).is_empty(), "let go, as nobody needs it now");
        let little = judge(&json!({"kinds": {"bare": {"hits": 1}}, "budget": 8 << 20}));
        assert!(mend(&little[0]).contains("local.pool.memory"), "{little:?}");
        assert!(mend(&one(9, 0, 0, 2, 0, 2048)).contains("log"));
    }
}
