//! Whose a line of the log is: what the language runtimes say of it, whatever a function writes and however.

use taper_runtimes::Runtime;
use taper_watchdog::wire::{Call, Exchange};
use tokio::task::JoinSet;

use crate::instance::{Answer, Instance, Output, Pieces, call, eventually};

/// What a pipe takes in one piece.
const PIPE: usize = 4096;

async fn python(source: &str, workers: u32) -> Instance {
    let instance = Instance::parked(&[("hello.py", source)]);
    instance.start(instance.handler_claim(Runtime::Python3, "hello.handle", workers)).await;
    instance
}

async fn node(source: &str) -> Instance {
    let instance = Instance::parked(&[("hello.js", source)]);
    instance.start(instance.handler_claim(Runtime::Node, "hello", 50)).await;
    instance
}

fn of<'a>(id: &'a str, path: &'a str) -> Call<'a> {
    Call { id: id.into(), ..call(path, "") }
}

async fn said(instance: &Instance, id: &str, path: &str) -> String {
    instance.call(&of(id, path), b"").await.text().to_owned()
}

/// The whole lines of a stream, each with its call, as the platform makes them of its pieces.
fn lines(text: &str) -> Vec<(String, String)> {
    let (mut open, mut lines) = (Vec::<(String, String)>::new(), Vec::new());
    // Whoever reads may have read half a line.
    let text = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    for line in text.lines() {
        assert!(line.len() < PIPE, "{} bytes: others could write into it", line.len() + 1);
        let Some((before, label)) = line.split_once("\u{1e}[") else {
            lines.push((String::new(), line.to_owned()));
            continue;
        };
        if !before.is_empty() {
            lines.push((String::new(), before.to_owned()));
        }
        let end = label.find(|c: char| !c.is_ascii_graphic()).unwrap();
        let (id, text) = (label[..end].strip_suffix(']').unwrap(), &label[end + 1..]);
        let begun = open.iter().position(|(whose, _)| whose == id).map(|at| open.remove(at).1).unwrap_or_default();
        let line = (id.to_owned(), begun + text);
        if label[end..].starts_with('\t') { open.push(line) } else { lines.push(line) }
    }
    lines.extend(open.into_iter().map(|(id, text)| (id, text + " …")));
    lines
}

/// The lines of a stream once this call has said this, without those of no call.
async fn of_calls(output: &Output, id: &str, last: &str) -> Vec<(String, String)> {
    let last = (id.to_owned(), last.to_owned());
    let whole = |text: &str| text.ends_with('\n') && lines(text).contains(&last);
    let text = eventually(|| Some(output.text()).filter(|text| whole(text))).await;
    lines(&text).into_iter().filter(|(id, _)| !id.is_empty()).collect()
}

/// Those of this one alone.
async fn of_call(output: &Output, id: &str, last: &str) -> Vec<String> {
    let all = of_calls(output, id, last).await;
    all.into_iter().filter(|(whose, _)| whose == id).map(|(_, text)| text).collect()
}

fn owned(lines: &[(&str, &str)]) -> Vec<(String, String)> {
    lines.iter().map(|(id, text)| ((*id).to_owned(), (*text).to_owned())).collect()
}

#[tokio::test]
async fn python_says_whose_every_line_is() {
    let source = r#"
import asyncio, logging, os, subprocess, sys, threading
logging.basicConfig(format='%(message)s', stream=sys.stdout)
print('at the start, unfinished', end='', flush=True)
async def handle(event, context):
    print('two', 'lines\nof one print')
    print('by parts', end=''); print(' of a line', end='', flush=True); print(', ended')
    sys.stdout.buffer.write(b'no text \xff\x00\r\n')
    sys.stdout.buffer.write(memoryview(b'a view\n'))
    logging.warning('logged')
    thread = threading.Thread(target=print, args=('of a thread',)); thread.start(); thread.join()
    await asyncio.to_thread(print, 'of a thread of the loop')
    await asyncio.gather(*[asyncio.sleep(0, print('of a task')) for _ in range(2)])
    subprocess.run(['echo', 'of a child'])
    if os.fork() == 0:
        print('of a fork', flush=True)
        os._exit(0)
    os.wait()
    print('x' * 20000 + '\n' + 'y' * 4096)
    print('[other] \x1e[other] mine')
    print()
    print('', end='', file=sys.stderr)
    sys.stdout.buffer.write(b'')
    print('without an end', end='')
    return 'x'
"#;
    let instance = python(source, 1).await;
    for id in ["one", "tw]o"] {
        assert_eq!(said(&instance, id, "/").await, "x");
        let seen = of_call(&instance.out, id, "without an end").await;
        let (long, long_too) = ("x".repeat(20_000), "y".repeat(4096));
        let expect = [
            "two lines",
            "of one print",
            "by parts of a line, ended",
            "no text \u{fffd}\0",
            "a view",
            "logged",
            "of a thread",
            "of a thread of the loop",
            "of a task",
            "of a task",
            &long,
            &long_too,
            "[other] \u{1e}[other] mine",
            "",
            "without an end",
        ];
        assert!(seen == expect, "{id}: {:?}", seen.iter().map(|t| &t[..t.len().min(99)]).collect::<Vec<_>>());
    }
    let nobodys = lines(&instance.out.text()).into_iter().filter(|(id, _)| id.is_empty());
    let nobodys: Vec<_> = nobodys.map(|(_, text)| text).collect();
    assert_eq!(nobodys, ["at the start, unfinished", "of a child", "of a fork", "of a child", "of a fork"]);
    assert_eq!(instance.err.text(), "", "nothing is no line");
}

#[tokio::test]
async fn pythons_lines_do_not_run_from_one_call_into_the_next() {
    let source = r#"
import asyncio, io, os, sys
ended = asyncio.Event()
async def late():
    await ended.wait()
    print('what the first set going')
    print('late', end='', file=sys.stderr)
async def handle(event, context):
    if event.path == '/first':
        asyncio.ensure_future(late())
        await asyncio.sleep(0)
    print('out of', event.path, end='')
    print('err of', event.path, end='', file=sys.stderr)
    if event.path == '/second':
        ended.set()
        await asyncio.sleep(0.01)
    if event.path == '/fail':
        raise ValueError('two\nlines')
    if event.path == '/own':
        sys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))
        print('a stream of its own', end='\n')
    return 'x'
"#;
    let instance = python(source, 1).await;
    for path in ["/first", "/second", "/fail", "/own"] {
        let _ = instance.call(&of(&path[1..], path), b"").await;
    }
    instance.out.wait_for("a stream of its own\n").await;
    of_calls(&instance.out, "own", "out of /own").await;
    let seen = lines(&instance.out.text());
    // What waits in a stream when another call's text comes is one line with it: that is all that Python tells of text.
    let mixed = seen.contains(&("first".into(), "out of /secondwhat the first set going".into()));
    for (id, text) in [("first", "out of /first"), ("fail", "out of /fail"), ("own", "out of /own")] {
        assert!(seen.contains(&(id.into(), text.into())), "{text} in {seen:?}");
    }
    assert!(mixed || seen.contains(&("second".into(), "out of /second".into())), "{seen:?}");
    let seen = of_calls(&instance.err, "own", "err of /own").await;
    for expect in [("first", "err of /first"), ("second", "err of /second"), ("fail", "lines"), ("own", "err of /own")]
    {
        assert!(seen.contains(&(expect.0.into(), expect.1.into())), "{expect:?} in {seen:?}");
    }
    assert!(seen.iter().any(|(id, text)| id == "first" && text.starts_with("late")), "{seen:?}");
}

#[tokio::test]
async fn pythons_workers_do_not_mix_their_lines() {
    // Each writes its parts when the other has.
    let source = r#"
import os, time
def handle(event, context):
    me = event.path[1:]
    other = 'b' if me == 'a' else 'a'
    for n in range(20):
        print(me, end='', flush=True)
        open('%s.%d' % (me, n), 'w').close()
        while not os.path.exists('%s.%d' % (other, n)): time.sleep(0.001)
    print(' of', me)
    print(me * 100000)
    return 'x'
"#;
    let instance = python(source, 2).await;
    tokio::join!(said(&instance, "call-a", "/a"), said(&instance, "call-b", "/b"));
    let all = ["a", "b"].map(|me| [me.repeat(20) + " of " + me, me.repeat(100_000)]);
    let seen = eventually(|| {
        let text = instance.out.text();
        Some(lines(&text)).filter(|seen| text.ends_with('\n') && seen.len() == 4 && seen[3].1.len() == 100_000)
    })
    .await;
    for (id, texts) in ["call-a", "call-b"].iter().zip(all) {
        let own: Vec<_> = seen.iter().filter(|(whose, _)| whose == id).map(|(_, text)| text.clone()).collect();
        assert!(own == texts, "{id}: {:?}", own.iter().map(|t| &t[..t.len().min(99)]).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn what_python_has_begun_to_write_when_it_dies_is_not_lost() {
    let source =
        "import os\ndef handle(event, context):\n    print('about to', end=' ', flush=True)\n    os._exit(1)\n";
    let instance = python(source, 1).await;
    let request = of("call-1", "/");
    let mut exchange = Exchange::start(instance.connect().await, &request, Pieces::of(b"")).unwrap();
    assert!(Answer::of(&mut exchange).await.is_err());
    let text = instance.out.wait_for("about").await;
    assert_eq!(lines(&text), owned(&[("call-1", "about to  …")]));
}

#[tokio::test]
async fn node_says_whose_every_line_is() {
    let source = r#"
const { spawnSync } = require('node:child_process');
console.log('at the start');
process.stdout.write('unfinished');
exports.handle = async (event, context) => {
  console.log('two', 'lines\nof one call');
  process.stdout.write('by parts'); await null; process.stdout.write(' of a line'); process.stdout.write(', ended\n');
  process.stdout.write(Buffer.from([0x6e, 0x6f, 0xff, 0x00, 0x0d, 0x0a]));
  process.stdout.write('6865780a', 'hex');
  await new Promise((resolve) => process.stdout.write('told\n', resolve));
  await new Promise((resolve) => process.stdout.write('told too\n', 'utf8', resolve));
  spawnSync('echo', ['of a child'], { stdio: 'inherit' });
  require('node:fs').writeSync(1, 'past all streams\n');
  console.log('x'.repeat(20000) + '\n' + 'y'.repeat(4096));
  console.log('[other] \x1e[other] mine');
  console.log();
  process.stdout.write('');
  process.stdout.write('without an end');
  return 'x';
};
"#;
    let instance = node(source).await;
    for id in ["one", "tw]o"] {
        assert_eq!(said(&instance, id, "/").await, "x");
        let seen = of_call(&instance.out, id, "without an end").await;
        let (long, long_too) = ("x".repeat(20_000), "y".repeat(4096));
        let expect = [
            "two lines",
            "of one call",
            "by parts of a line, ended",
            "no\u{fffd}\0",
            "hex",
            "told",
            "told too",
            &long,
            &long_too,
            "[other] \u{1e}[other] mine",
            "",
            "without an end",
        ];
        assert!(seen == expect, "{id}: {:?}", seen.iter().map(|t| t.get(..99).unwrap_or(t)).collect::<Vec<_>>());
    }
    let nobodys = lines(&instance.out.text()).into_iter().filter(|(id, _)| id.is_empty());
    let nobodys: Vec<_> = nobodys.map(|(_, text)| text).collect();
    let each = ["of a child", "past all streams"];
    assert_eq!(nobodys, [&["at the start", "unfinished"][..], &each[..], &each[..]].concat());
}

/// A function whose calls wait for each other in the middle, and whose lines say whose they are.
const TOGETHER: &str = r#"
let waiting = [], together = 20;
const line = (context, word) => console.log(`${word} ${context.callId}`);
async function* pieces(context) { yield 'a'; await null; line(context, 'piece'); yield 'b'; }
exports.handle = async (event, context) => {
  if (event.path === '/quiet') { await null; return 'x'; }
  line(context, 'begun');
  if (event.path === '/late') { await null; line(context, 'late'); await null; line(context, 'later'); return 'x'; }
  process.stdout.write(`open ${context.callId}`);
  await new Promise((resolve) => { waiting.push(resolve); if (waiting.length === together) waiting.splice(0).map((go) => go()); });
  line(context, ', ended');
  await Promise.all([1, 2].map(async () => { await null; line(context, 'parallel'); }));
  setTimeout(() => line(context, 'after'), 1);
  Promise.reject(new Error(`nobody waits for ${context.callId}`));
  return pieces(context);
};
"#;

/// Calls that run at the same time.
async fn at_once(instance: &Instance, ids: &[String], path: &'static str) {
    let mut calls = JoinSet::new();
    for id in ids {
        let (connection, id) = (instance.connect().await, id.clone());
        calls.spawn(async move {
            let mut exchange = Exchange::start(connection, &of(&id, path), Pieces::of(b"")).unwrap();
            Answer::of(&mut exchange).await.unwrap();
        });
    }
    calls.join_all().await;
}

fn ids(name: &str) -> Vec<String> {
    (0..20).map(|n| format!("{name}-{n}.")).collect()
}

/// Sees that each of these calls has so many lines, all its own.
async fn each_has(instance: &Instance, ids: &[String], count: usize) {
    let seen = eventually(|| {
        let seen = lines(&instance.out.text());
        let has = |id: &String| seen.iter().filter(|(_, text)| text.contains(id)).count() >= count;
        ids.iter().all(has).then_some(seen)
    })
    .await;
    for id in ids {
        for (whose, text) in seen.iter().filter(|(_, text)| text.contains(id)) {
            assert_eq!(whose, id, "{text}");
        }
        assert!(seen.contains(&(id.clone(), format!("open {id}, ended {id}"))), "{id}");
    }
}

#[tokio::test]
async fn node_knows_whose_code_runs_while_many_calls_do() {
    let timer = "setInterval(() => console.log('a timer of the module'), 1).unref();";
    let instance = node(&(TOGETHER.to_owned() + timer)).await;
    // From the first on.
    for round in ["first", "second", "third", "fourth", "fifth"] {
        at_once(&instance, &ids(round), "/").await;
        each_has(&instance, &ids(round), 6).await;
    }
    let text = instance.out.wait_for("a timer of the module\n").await;
    assert!(lines(&text).iter().filter(|(_, text)| text == "a timer of the module").all(|(id, _)| id.is_empty()));
    let seen = eventually(|| {
        let seen = lines(&instance.err.text());
        Some(seen).filter(|seen| seen.iter().filter(|(_, text)| text.contains("fifth")).count() == 20)
    })
    .await;
    for (id, text) in seen.iter().filter(|(_, text)| text.contains("nobody waits")) {
        assert_eq!(*text, format!("unhandled rejection: Error: nobody waits for {id}"));
    }
}

#[tokio::test]
async fn node_follows_a_function_that_writes_late_for_the_first_time_from_then_on() {
    let instance = node(TOGETHER).await;
    // So many that nobody follows them any more.
    for n in 0..10 {
        at_once(&instance, &ids(&format!("quiet-{n}")), "/quiet").await;
    }
    // Nobody follows this one, but it is the only one that runs.
    said(&instance, "only.", "/late").await;
    let late = ("only.".to_owned(), "later only.".to_owned());
    let text = eventually(|| Some(instance.out.text()).filter(|text| lines(text).contains(&late))).await;
    assert!(lines(&text).contains(&("only.".into(), "late only.".into())));
    at_once(&instance, &ids("followed"), "/").await;
    each_has(&instance, &ids("followed"), 6).await;
}

#[tokio::test]
async fn node_says_of_no_line_what_it_does_not_know() {
    let instance = node(TOGETHER).await;
    for n in 0..10 {
        at_once(&instance, &ids(&format!("quiet-{n}")), "/quiet").await;
    }
    // All of them have begun before the first writes late.
    at_once(&instance, &ids("unknown"), "/").await;
    let seen = eventually(|| {
        let seen = lines(&instance.out.text());
        Some(seen).filter(|seen| seen.iter().filter(|(_, text)| text.starts_with("after")).count() == 20)
    })
    .await;
    for (id, text) in seen.iter().filter(|(_, text)| text.contains("unknown")) {
        assert!(id.is_empty() || text.contains(id.as_str()), "{id}: {text}");
    }
    for id in ids("unknown") {
        assert!(seen.contains(&(id.clone(), format!("begun {id}"))), "what comes before the first wait is known");
    }
}
