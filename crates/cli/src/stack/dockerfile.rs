//! A Dockerfile of OpenFaaS's kind, read for what it would run: its last stage's variables, command and watchdog. Nothing is built: what
//! only a build would make is refused, with the mend.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use taper_model::{FunctionSpec, Mode, Runtime};

use crate::pack::Packed;

/// What a Dockerfile comes to.
#[derive(Debug)]
pub(super) struct Read {
    /// How it runs.
    pub(super) spec: FunctionSpec,
    /// The variables it sets.
    pub(super) env: BTreeMap<String, String>,
    /// What of it is not done.
    pub(super) notes: Vec<String>,
}

/// One stage, or what is inherited of it.
#[derive(Default, Clone)]
struct Stage {
    env: BTreeMap<String, String>,
    folder: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    port: Option<u16>,
    /// From a folder of the context to one of the image.
    copies: Vec<(String, String)>,
    runs: bool,
}

/// The words of an `fprocess`: split at white space, as the watchdogs do it.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Reads a Dockerfile. `files` are those beside it, `process` is what the stack file has in place of its `fprocess`.
pub(super) fn read(text: &str, files: &[Packed], process: Option<Vec<String>>) -> Result<Read> {
    let stage = last_stage(text)?;
    let classic_watchdog = text.contains("classic-watchdog");
    let said =
        |names: [&str; 2]| names.iter().find_map(|n| stage.env.get(*n)).map(|v| words(v)).filter(|w| !w.is_empty());
    let process = process.or_else(|| said(["function_process", "fprocess"]));
    let mode = stage.env.get("mode").map(|m| m.trim());
    let whole = || [stage.entrypoint.clone(), stage.command.clone()].concat();
    let is_watchdog = |word: &String| {
        matches!(word.rsplit('/').next(), Some("fwatchdog" | "of-watchdog" | "classic-watchdog" | "taper-watchdog"))
    };
    let (mode, command) = match (mode, process) {
        (Some("static"), _) => {
            bail!("`mode=static` is not served here; deploy a server, with `fprocess` and `mode=http`")
        }
        (Some("http"), Some(process)) => (Mode::Http, process),
        (Some("http"), None) => {
            bail!("`mode=http` without `fprocess`: nothing says what to run; add `ENV fprocess=\"…\"`")
        }
        (_, Some(process)) => (Mode::Classic, process),
        // No watchdog: the container itself is the server.
        (None, None) if !whole().is_empty() && !whole().iter().any(is_watchdog) => (Mode::Http, whole()),
        (_, None) => bail!("nothing says what to run; add `ENV fprocess=\"…\"`, or `fprocess` to the stack file"),
    };
    let command = placed(command, &stage, files)?;
    let runtime = match command[0].rsplit('/').next() {
        Some(program) if program.starts_with("python") => Runtime::Python3,
        Some("node" | "nodejs") => Runtime::Node,
        _ => Runtime::Binary,
    };
    let combine =
        classic_watchdog && !stage.env.get("combine_output").is_some_and(|v| matches!(v.as_str(), "false" | "0"));
    let mut env = stage.env;
    // The platform has its own.
    ["PATH", "HOME", "fprocess", "function_process", "mode"].iter().for_each(|name| drop(env.remove(*name)));
    if let (Mode::Http, Some(port), false) = (mode, stage.port.filter(|p| *p != 8080), env.contains_key("upstream_url"))
    {
        env.insert("upstream_url".into(), format!("http://127.0.0.1:{port}"));
    }
    let notes = if stage.runs {
        vec!["the Dockerfile's RUN lines are not run: what they install must be on this machine, in requirements.txt or in package.json".into()]
    } else {
        Vec::new()
    };
    let spec = FunctionSpec {
        runtime: Some(runtime),
        mode: Some(mode),
        command,
        combine_output: (mode == Mode::Classic && combine).then_some(true),
        ..FunctionSpec::default()
    };
    Ok(Read { spec, env, notes })
}

/// The command with the image's paths replaced by those of the folder. Its program must be there.
fn placed(command: Vec<String>, stage: &Stage, files: &[Packed]) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = files.iter().map(|f| f.name.as_str()).collect();
    let in_folder = |word: &str| -> Option<String> {
        let full = if word.starts_with('/') { word.to_owned() } else { join(&stage.folder, word) };
        let full = join("/", &full);
        let candidates = stage.copies.iter().filter_map(|(from, to)| {
            // `COPY file folder/`, `COPY file name`, `COPY folder folder`.
            let rest = full.strip_prefix(to.trim_end_matches('/'))?;
            let name = from.rsplit('/').next().unwrap_or_default();
            let kept = rest.trim_start_matches('/');
            let choices = [join(from, kept), if kept == name { from.clone() } else { String::new() }];
            choices.into_iter().map(|c| join("", &c)).find(|c| known.contains(c.as_str()))
        });
        candidates.into_iter().next().or_else(|| known.contains(join("", word).as_str()).then(|| join("", word)))
    };
    let Some(program) = command.first() else { bail!("nothing says what to run") };
    let of_system = ["/bin/", "/sbin/", "/usr/"].iter().any(|p| program.starts_with(p));
    if program.contains('/') && !of_system && in_folder(program).is_none() {
        bail!(
            "it runs `{program}`, which is not in the folder, and nothing is built here; put the program, built, into the folder \
             and deploy that with a `lang` of your own, or write a `fprocess` that can run as it is"
        );
    }
    // A program without a slash is looked for on the PATH, even where a file is called the same.
    let place = |(i, word): (usize, String)| match in_folder(&word) {
        Some(_) if i == 0 && !word.contains('/') => word,
        Some(file) if i == 0 => format!("./{file}"),
        Some(file) => file,
        None => word,
    };
    Ok(command.into_iter().enumerate().map(place).collect())
}

/// A path below another, without `.`; `..` goes up.
fn join(base: &str, path: &str) -> String {
    let base = if path.starts_with('/') { "/" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')).filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("{}{}", if base.starts_with('/') { "/" } else { "" }, parts.join("/"))
}

fn last_stage(text: &str) -> Result<Stage> {
    let mut named: BTreeMap<String, Stage> = BTreeMap::new();
    let (mut stage, mut name, mut begun) = (Stage { folder: "/".into(), ..Stage::default() }, None, false);
    for (verb, rest) in instructions(text) {
        match verb.as_str() {
            "FROM" => {
                let words: Vec<&str> = rest.split_whitespace().filter(|w| !w.starts_with("--")).collect();
                let earlier = std::mem::replace(&mut stage, Stage { folder: "/".into(), ..Stage::default() });
                if let Some(name) = name.take() {
                    named.insert(name, earlier);
                }
                if let Some(base) = words.first().and_then(|base| named.get(&base.to_lowercase())) {
                    stage = base.clone();
                }
                name = words.get(2).map(|n| n.to_lowercase());
                begun = true;
            }
            "ENV" => {
                for (key, value) in pairs(&rest) {
                    if let Some(value) = expanded(&value, &stage.env) {
                        stage.env.insert(key, value);
                    }
                }
            }
            "WORKDIR" => stage.folder = join(&stage.folder, &unquoted(rest.trim())),
            "ENTRYPOINT" => (stage.entrypoint, stage.command) = (argv(&rest), Vec::new()),
            "CMD" => stage.command = argv(&rest),
            "EXPOSE" => stage.port = rest.split(['/', ' ']).next().and_then(|p| p.parse().ok()).or(stage.port),
            "RUN" => stage.runs = true,
            "COPY" | "ADD" if !rest.contains("--from") => {
                let words: Vec<String> = match rest.trim_start().starts_with('[') {
                    true => argv(&rest),
                    false => rest.split_whitespace().filter(|w| !w.starts_with("--")).map(unquoted).collect(),
                };
                if let Some((to, from)) = words.split_last() {
                    let to = join(&stage.folder, to);
                    stage.copies.extend(from.iter().map(|from| (join("", from.trim_start_matches('/')), to.clone())));
                }
            }
            _ => {}
        }
    }
    if !begun {
        bail!("it has no FROM, so it is not a Dockerfile");
    }
    Ok(stage)
}

/// Instructions with what follows them: comments left out, continued lines joined, here-documents skipped.
fn instructions(text: &str) -> Vec<(String, String)> {
    let escape = text
        .lines()
        .map_while(|l| l.trim().strip_prefix('#'))
        .find_map(|l| l.trim().strip_prefix("escape=")?.chars().next())
        .unwrap_or('\\');
    let (mut found, mut lines) = (Vec::new(), text.lines());
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let mut whole = String::new();
        let mut line = line.trim_end();
        while let Some(continued) = line.strip_suffix(escape) {
            whole.push_str(continued);
            // Comments and empty lines within are not part of it.
            match lines.find(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')) {
                Some(next) => line = next.trim_end(),
                None => line = "",
            }
        }
        whole.push_str(line);
        let whole = whole.trim_start();
        let (verb, rest) = whole.split_once(char::is_whitespace).unwrap_or((whole, ""));
        let verb = verb.to_ascii_uppercase();
        if matches!(verb.as_str(), "RUN" | "COPY" | "ADD") {
            let ends = rest.split("<<").skip(1).map(|w| w.trim_start_matches('-'));
            let ends = ends.map(|w| w.split(|c: char| c.is_whitespace() || c == '>').next().unwrap_or_default());
            for end in
                ends.map(|w| w.trim_matches(['"', '\'']).to_owned()).filter(|w| !w.is_empty()).collect::<Vec<_>>()
            {
                lines.by_ref().find(|l| l.trim() == end);
            }
        }
        found.push((verb, rest.trim().to_owned()));
    }
    found
}

/// `K=V K2="V 2"`, or the old form `K V`.
fn pairs(rest: &str) -> Vec<(String, String)> {
    let first = rest.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        return rest
            .split_once(char::is_whitespace)
            .map(|(k, v)| (k.to_owned(), unquoted(v.trim())))
            .into_iter()
            .collect();
    }
    let words = shlex::split(rest).unwrap_or_else(|| words(rest));
    words.iter().filter_map(|word| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect()
}

/// A value with the variables in it; nothing when one of them is not known.
fn expanded(value: &str, env: &BTreeMap<String, String>) -> Option<String> {
    let mut unknown = false;
    let (mut out, mut rest) = (String::new(), value);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let braced = rest.strip_prefix('{').and_then(|r| r.split_once('}'));
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (name, after) = braced.unwrap_or((&rest[..end], &rest[end..]));
        match env.get(name) {
            Some(value) => out.push_str(value),
            None => unknown = true,
        }
        rest = after;
    }
    out.push_str(rest);
    (!unknown).then_some(out)
}

/// `["a", "b"]`, or a line for the shell.
fn argv(rest: &str) -> Vec<String> {
    match serde_json::from_str::<Vec<String>>(rest) {
        Ok(words) => words,
        Err(_) if rest.is_empty() => Vec::new(),
        Err(_) => ["sh", "-c", rest].map(String::from).into(),
    }
}

fn unquoted(word: &str) -> String {
    let word = word.trim();
    let inner = ['"', '\''].iter().find_map(|q| word.strip_prefix(*q)?.strip_suffix(*q));
    inner.unwrap_or(word).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str, files: &[&str]) -> Result<(String, Read)> {
        let files: Vec<Packed> =
            files.iter().map(|name| Packed { name: (*name).into(), executable: false, head: Vec::new() }).collect();
        let read = read(text, &files, None)?;
        let spec = &read.spec;
        let shown = format!("{} {} {}", spec.runtime(), spec.mode(), spec.command.join(" "));
        Ok((shown + if spec.combine_output == Some(true) { " +err" } else { "" }, read))
    }

    #[test]
    fn what_runs_is_found() {
        for (text, files, expected) in [
            (
                "FROM ghcr.io/openfaas/classic-watchdog:0.3.9 as watchdog\nFROM alpine\nCOPY --from=watchdog /fwatchdog /usr/bin/fwatchdog\nENV fprocess=\"wc -w\"\nCMD [\"fwatchdog\"]",
                vec![],
                "binary classic wc -w +err",
            ),
            (
                "FROM of-watchdog:1 AS wd\nFROM alpine\nENV fprocess cat\nENTRYPOINT [\"/usr/bin/fwatchdog\"]",
                vec![],
                "binary classic cat",
            ),
            (
                "FROM x\nENV mode=http \\\n  # said\n\n  upstream_url=\"http://127.0.0.1:3000\" fprocess='node index.js'\nRUN npm i",
                vec!["index.js"],
                "node http node index.js",
            ),
            (
                "FROM x\nWORKDIR /home/app/\nCOPY . .\nENV mode=\"http\" fprocess=\"python3 /home/app/index.py\"",
                vec!["index.py"],
                "python3 http python3 index.py",
            ),
            (
                "FROM x\nWORKDIR /srv\nCOPY src/ ./\nCMD [\"./run.sh\", \"/srv/data/x\", \"/etc/passwd\"]",
                vec!["src/run.sh", "src/data/x"],
                "binary http ./src/run.sh src/data/x /etc/passwd",
            ),
            (
                "FROM x\nCOPY app.py /opt/\nENTRYPOINT [\"python3\"]\nCMD [\"/opt/app.py\"]",
                vec!["app.py"],
                "python3 http python3 app.py",
            ),
            (
                "FROM x\nCOPY app.py /opt/main.py\nCMD python3 /opt/main.py",
                vec!["app.py"],
                "binary http sh -c python3 /opt/main.py",
            ),
            ("FROM x\nCOPY app /opt/\nENV fprocess=/opt/app", vec!["app"], "binary classic ./app"),
            (
                "FROM x as base\nENV A=1 fprocess=\"${B}cat\"\nENV fprocess=env\nFROM base\nENV B=${A}2",
                vec![],
                "binary classic env",
            ),
            (
                "# escape=`\nFROM x\nRUN <<EOF\nENV fprocess=wrong\nEOF\nENV `\n  fprocess=tac",
                vec![],
                "binary classic tac",
            ),
        ] {
            assert_eq!(of(text, &files).unwrap().0, expected, "{text}");
        }
        let (_, read) =
            of("FROM x as base\nENV A=1\nFROM base\nENV B=${A}2 PATH=/x:$PATH C=$NONE\nENV fprocess=cat\nRUN x", &[])
                .unwrap();
        assert_eq!(read.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "12".to_owned())].into());
        assert!(read.notes[0].contains("RUN"), "{:?}", read.notes);
        let (_, read) = of("FROM x\nEXPOSE 5000/tcp\nCMD [\"node\", \"x\"]", &[]).unwrap();
        assert_eq!(read.env["upstream_url"], "http://127.0.0.1:5000");
    }

    #[test]
    fn what_cannot_run_is_refused_with_the_mend() {
        for (text, part) in [
            ("", "no FROM"),
            ("FROM x", "ENV fprocess"),
            ("FROM x\nCMD [\"fwatchdog\"]", "ENV fprocess"),
            ("FROM x\nENV mode=static", "static"),
            ("FROM x\nENV mode=http", "without `fprocess`"),
            (
                "FROM go as b\nRUN go build\nFROM x\nCOPY --from=b /app /home/app\nENV fprocess=\"/home/app/handler\"",
                "put the program, built",
            ),
            ("FROM x\nENV fprocess=./handler", "`./handler`, which is not in the folder"),
        ] {
            let error = of(text, &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(text in any::<String>(), lines in proptest::collection::vec(r#"(FROM|ENV|CMD|COPY|RUN|WORKDIR|EXPOSE)( |\$\{?[A-Z]|[a-z=/."'<\[\]\\-]){0,30}"#, 0..8)) {
            let _ = of(&text, &["a", "b/c"]);
            let _ = of(&format!("FROM x\n{}", lines.join("\n")), &["a", "b/c"]);
        }
    }
}
