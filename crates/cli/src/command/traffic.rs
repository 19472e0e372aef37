//! `taper traffic NAME`: shows how a function's calls are spread over its revisions, and has them spread anew.

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use http::Method;
use serde_json::{Value, json};
use taper_model::{
    Name, RevisionId,
    traffic::{Sticky, Traffic as Target},
};

use crate::{
    client::Client,
    context::Global,
    output::{self, harmless},
    shares,
};

/// The word for whatever revision is the newest ready one.
const LATEST: &str = "latest";

/// A function, and what its calls are to do.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper traffic hello                                who gets how much, as a picture\n  \
                        taper traffic hello latest=10 hello-00003=90       a tenth to the newest, the rest to 3\n  \
                        taper traffic hello --tag canary=4                 an address of its own, and no share\n  \
                        taper traffic hello --untag canary --tag canary=5  the same name for another\n  \
                        taper traffic hello --mirror latest=5              copies of 5 % of the calls\n  \
                        taper traffic hello --sticky cookie=seen           a caller stays with its revision\n  \
                        taper traffic hello --reset                        everything to the newest that is ready\n\n\
                        What is not named stays, but for the shares: they are said all together, and must sum to 100."
)]
pub(crate) struct Traffic {
    /// The function
    name: String,
    /// A share: latest=10, hello-00003=90 or 3=90; all of them together
    #[arg(value_name = "TARGET=PERCENT")]
    shares: Vec<String>,
    /// A name for a revision, with an address of its own; may be given several times
    #[arg(long, value_name = "TAG=REV")]
    tag: Vec<String>,
    /// Take a tag away; may be given several times
    #[arg(long, value_name = "TAG")]
    untag: Vec<Name>,
    /// Copy so many percent of the calls to a revision and drop its answers; 0 ends it
    #[arg(long, value_name = "REV=PERCENT")]
    mirror: Vec<String>,
    /// What keeps a caller with a revision: header=NAME, cookie=NAME or none
    #[arg(long, value_name = "header=X|cookie=Y|none", value_parser = sticky)]
    sticky: Option<Sticky>,
    /// Everything to the newest ready revision: no shares, tags, mirrors or stickiness
    #[arg(long, conflicts_with_all = ["shares", "tag", "untag", "mirror", "sticky"])]
    reset: bool,
}

/// What one revision gets, or `latest`.
#[derive(Debug, PartialEq)]
struct Entry {
    /// None: `latest`.
    revision: Option<String>,
    percent: u8,
    mirror: u8,
    tags: Vec<Name>,
}

impl Traffic {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let name = global.function(&self.name)?;
        let (client, path) = (Client::new(global)?, Client::function_path(&name));
        let mut function = client.json(Method::GET, &path, None)?;
        if let Some(body) = self.change(&name.name, &function["spec"])? {
            function = client.json(Method::PUT, &format!("{path}/traffic"), Some(&body))?;
        }
        if output::machine(&function, global.output)? {
            return Ok(());
        }
        output::line(&format!("{:<12} {name}", "Function"))?;
        shares::lines(&function, true).iter().try_for_each(|line| output::line(&shares::labelled(line)))
    }

    /// What is to be said anew; nothing where nothing is asked for.
    fn change(&self, name: &Name, spec: &Value) -> Result<Option<Value>> {
        if self.reset {
            return Ok(Some(json!({"traffic": []})));
        }
        if self.shares.is_empty()
            && self.tag.is_empty()
            && self.untag.is_empty()
            && self.mirror.is_empty()
            && self.sticky.is_none()
        {
            return Ok(None);
        }
        let read = |field: &str| spec.get(field).cloned().unwrap_or_default();
        let now: Option<Vec<Target>> =
            serde_json::from_value(read("traffic")).context("the platform's `spec.traffic` is of another version")?;
        let kept: Option<Sticky> =
            serde_json::from_value(read("sticky")).context("the platform's `spec.sticky` is of another version")?;
        let traffic = self.merge(name, now.unwrap_or_default())?;
        let sticky = match &self.sticky {
            None => kept,
            Some(sticky) => Some(sticky.clone()).filter(|s| *s != Sticky::default()),
        };
        let mut body = json!({"traffic": traffic});
        if let Some(sticky) = sticky {
            body["sticky"] = json!(sticky);
        }
        Ok(Some(body))
    }

    /// What is asked for, on top of what is.
    fn merge(&self, name: &Name, now: Vec<Target>) -> Result<Vec<Target>> {
        let mut entries = Vec::new();
        if now.is_empty() {
            entry(&mut entries, None).percent = 100;
        }
        for target in now {
            let of = entry(&mut entries, target.revision);
            of.percent = of.percent.saturating_add(target.percent.unwrap_or(0));
            of.mirror = of.mirror.max(target.mirror.unwrap_or(0));
            of.tags.extend(target.tag);
        }
        if !self.shares.is_empty() {
            entries.iter_mut().for_each(|e| e.percent = 0);
        }
        let mut said = Vec::new();
        for text in &self.shares {
            let (revision, percent) = part(name, text, "")?;
            if said.contains(&revision) {
                bail!("`{}`: {} is named twice; say its whole share once", harmless(text), shown(revision.as_deref()));
            }
            entry(&mut entries, revision.clone()).percent = percent;
            said.push(revision);
        }
        for tag in &self.untag {
            if !entries.iter().any(|e| e.tags.contains(tag)) {
                bail!("--untag {tag}: no revision of {name} has this tag");
            }
            entries.iter_mut().for_each(|e| e.tags.retain(|t| t != tag));
        }
        for text in &self.tag {
            let (tag, revision) =
                text.split_once('=').ok_or_else(|| anyhow!("--tag {}: write TAG=REV", harmless(text)))?;
            let tag = Name::new(tag).map_err(|e| anyhow!("--tag: {e}"))?;
            let revision = target(name, revision).with_context(|| format!("--tag {}", harmless(text)))?;
            match entries.iter().find(|e| e.tags.contains(&tag)) {
                Some(other) if other.revision == revision => {}
                Some(other) => bail!(
                    "--tag {tag}: the tag is taken, by {}; to move it, write `--untag {tag} --tag {}`",
                    shown(other.revision.as_deref()),
                    harmless(text)
                ),
                None => entry(&mut entries, revision).tags.push(tag),
            }
        }
        for text in &self.mirror {
            let (revision, percent) = part(name, text, "--mirror ")?;
            entry(&mut entries, revision).mirror = percent;
        }
        Ok(entries.into_iter().flat_map(Entry::targets).collect())
    }
}

impl Entry {
    /// As the manifest says it: one target for each tag, and the shares with the first.
    fn targets(self) -> Vec<Target> {
        let Self { revision, percent, mirror, tags } = self;
        let some = |percent: u8| (percent > 0).then_some(percent);
        let of = |percent, mirror, tag| Target {
            latest: revision.is_none(),
            revision: revision.clone(),
            percent: some(percent),
            mirror: some(mirror),
            tag,
        };
        let mut tags = tags.into_iter();
        let first = of(percent, mirror, tags.next());
        let has = first.percent.is_some() || first.mirror.is_some() || first.tag.is_some();
        has.then_some(first).into_iter().chain(tags.map(|tag| of(0, 0, Some(tag)))).collect()
    }
}

/// The entry of a revision, made where there is none.
fn entry(entries: &mut Vec<Entry>, revision: Option<String>) -> &mut Entry {
    let at = entries.iter().position(|e| e.revision == revision).unwrap_or_else(|| {
        entries.push(Entry { revision, percent: 0, mirror: 0, tags: Vec::new() });
        entries.len() - 1
    });
    &mut entries[at]
}

/// `latest=10`, `hello-00003=90`, `3=90%`.
fn part(name: &Name, text: &str, flag: &str) -> Result<(Option<String>, u8)> {
    let (who, percent) = text
        .split_once('=')
        .ok_or_else(|| anyhow!("{flag}{}: write REV=PERCENT, such as latest=10", harmless(text)))?;
    let revision = target(name, who).with_context(|| format!("{flag}{}", harmless(text)))?;
    let percent = percent.strip_suffix('%').unwrap_or(percent);
    let percent: u8 = percent.parse().map_err(|_| {
        anyhow!("{flag}{}: `{}` is not a whole percentage of 0 to 100", harmless(text), harmless(percent))
    })?;
    Ok((revision, percent))
}

/// A revision as typed, by its whole name; nothing for `latest`. Whether there is one of that number the platform knows.
fn target(name: &Name, typed: &str) -> Result<Option<String>> {
    if typed == LATEST {
        return Ok(None);
    }
    match RevisionId::number_in(name, typed) {
        Some(number) => Ok(Some(format!("{name}-{number:05}"))),
        None => bail!(
            "`{}` is neither `{LATEST}` nor a revision; write {name}-00001 or 1, as `taper revisions {name}` shows them",
            harmless(typed)
        ),
    }
}

fn shown(revision: Option<&str>) -> &str {
    revision.unwrap_or(LATEST)
}

fn sticky(text: &str) -> Result<Sticky, String> {
    match text.split_once('=') {
        Some(("header", name)) if !name.is_empty() => Ok(Sticky { header: Some(name.into()), cookie: None }),
        Some(("cookie", name)) if !name.is_empty() => Ok(Sticky { header: None, cookie: Some(name.into()) }),
        None if text == "none" => Ok(Sticky::default()),
        _ => Err("write header=NAME, cookie=NAME or none".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        traffic: Traffic,
    }

    /// What `taper traffic hello …` makes of a spec, as one line; or what it says against it.
    fn made(words: &str, spec: &Value) -> Result<String, String> {
        let line = Line::try_parse_from(["taper", "hello"].into_iter().chain(words.split_whitespace()));
        let change = line.map_err(|e| e.to_string())?.traffic.change(&Name::new("hello").unwrap(), spec);
        Ok(change.map_err(|e| output::chain(&e))?.unwrap_or_default().to_string())
    }

    #[test]
    fn shares_are_said_together_and_the_rest_stays() {
        let none = json!({});
        let some = json!({"sticky": {"cookie": "c"}, "traffic": [
            {"latest": true, "percent": 90, "mirror": 5}, {"revision": "hello-00001", "percent": 10, "tag": "old"},
            {"revision": "hello-00001", "tag": "older"}]});
        for (words, spec, expect) in [
            ("", &some, "null"),
            ("--reset", &some, r#"{"traffic":[]}"#),
            ("latest=100", &none, r#"{"traffic":[{"latest":true,"percent":100}]}"#),
            ("--tag a=2", &none, r#"{"traffic":[{"latest":true,"percent":100},{"revision":"hello-00002","tag":"a"}]}"#),
            (
                "latest=30% 00002=70 --sticky none",
                &some,
                r#"{"traffic":[{"latest":true,"mirror":5,"percent":30},{"revision":"hello-00001","tag":"old"},{"revision":"hello-00001","tag":"older"},{"percent":70,"revision":"hello-00002"}]}"#,
            ),
            (
                "--untag old --tag old=latest --tag older=1 --mirror latest=0 --mirror 7=9",
                &some,
                r#"{"sticky":{"cookie":"c"},"traffic":[{"latest":true,"percent":90,"tag":"old"},{"percent":10,"revision":"hello-00001","tag":"older"},{"mirror":9,"revision":"hello-00007"}]}"#,
            ),
            (
                "hello-00009=99 --sticky header=X-User",
                &none,
                r#"{"sticky":{"header":"X-User"},"traffic":[{"percent":99,"revision":"hello-00009"}]}"#,
            ),
        ] {
            assert_eq!(made(words, spec).unwrap(), expect, "{words}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        let some = json!({"traffic": [{"latest": true, "percent": 100}, {"revision": "hello-00001", "tag": "old"}]});
        for (words, expect) in [
            ("lastest=10", "`lastest` is neither `latest` nor a revision; write hello-00001"),
            ("other-00001=10", "`other-00001` is neither"),
            ("latest", "latest: write REV=PERCENT"),
            ("latest=", "`` is not a whole percentage"),
            ("latest=ten", "`ten` is not a whole percentage of 0 to 100"),
            ("latest=1.5", "`1.5` is not a whole"),
            ("1=50 hello-00001=50", "hello-00001 is named twice"),
            ("--tag old=2", "--tag old: the tag is taken, by hello-00001; to move it, write `--untag old --tag old=2`"),
            ("--tag new=1 --tag new=2", "taken, by hello-00001"),
            ("--tag Old=2", "try `old`"),
            ("--tag old", "write TAG=REV"),
            ("--untag none", "--untag none: no revision of hello has this tag"),
            ("--mirror x=1", "--mirror x=1: `x` is neither"),
            ("--sticky maybe", "write header=NAME, cookie=NAME or none"),
            ("--reset latest=100", "cannot be used with"),
        ] {
            let said = made(words, &some).unwrap_err();
            assert!(said.contains(expect), "{words}: {said}");
        }
    }
}
