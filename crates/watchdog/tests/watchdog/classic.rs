//! Mode `classic`: a process per call.

use std::time::Duration;

use taper_runtimes::Mode;
use taper_watchdog::{
    Error,
    control::Claim,
    wire::{Call, Event, Exchange, FaultKind},
};
use tokio::time::{Instant, timeout};

use crate::instance::{Answer, Instance, PATIENCE, Pieces, call, call_within, eventually, is_alive, noise, pid_in};

async fn classic(files: &[(&str, &str)], command: &[&str]) -> Instance {
    let instance = Instance::parked(files);
    instance.start(instance.claim(Mode::Classic, command)).await;
    instance
}

#[tokio::test]
async fn bodies_of_any_size_come_back_exactly() {
    let instance = classic(&[], &["cat"]).await;
    let mut connection = instance.connect().await;
    for size in [0, 1, 4095, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 10 << 20] {
        let body = noise(size);
        let mut exchange = Exchange::start(connection, &call("/", ""), Pieces::of(&body)).unwrap();
        let answer = Answer::of(&mut exchange).await.unwrap();
        assert!(answer.fault.is_none() && answer.body == body, "{size} bytes");
        // What was held to the end has a length. More than the bound is held only if all of it came before the request's end.
        let length = answer.reply.unwrap().length;
        assert!(length == Some(size as u64) || (size > 1 << 20 && length.is_none()), "{size} bytes, {length:?}");
        connection = exchange.into_idle().expect("one connection serves them all");
    }
}

#[tokio::test]
async fn calls_run_beside_each_other() {
    let instance = classic(
        &[("meet.sh", "#!/bin/sh\ntouch $$.here; until [ $(ls *.here | wc -l) -ge 8 ]; do sleep 0.01; done; cat\n")],
        &["./meet.sh"],
    )
    .await;
    let answers = (0..8_u8).map(|n| {
        let instance = &instance;
        async move { (n, instance.post(&[n]).await.body) }
    });
    for (n, body) in join_all(answers).await {
        assert_eq!(body, [n]);
    }
}

async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut all = true;
        for (future, done) in &mut pending {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => all = false,
                }
            }
        }
        if all { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pending.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn a_process_sees_its_request_and_nothing_of_the_platform() {
    let instance = classic(&[], &["env"]).await;
    let request = Call { content_length: Some(0), ..call("/a%20b", "x=1") };
    let answer = instance.call(&request, b"").await;
    let mut lines: Vec<_> = answer.text().lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "GREETING=hi",
            "Http_ContentLength=0",
            "Http_Content_Length=0",
            "Http_Host=h.example",
            "Http_Method=POST",
            "Http_Path=/a b",
            "Http_Query=x=1",
            "Http_X_Multi=a",
            "PATH=/usr/local/bin:/usr/bin:/bin",
        ]
    );
}

#[tokio::test]
async fn a_process_has_the_standard_descriptors_alone_and_default_signals() {
    let script = "#!/bin/sh\nls -v /proc/$$/fd; grep -E 'Sig(Ign|Blk)' /proc/self/status; ps -o pgid= -p $$; echo $$\n";
    let instance = classic(&[("look.sh", script)], &["sh", "look.sh"]).await;
    let answer = instance.post(b"x").await;
    let lines: Vec<_> = answer.text().lines().map(str::trim).collect();
    let shells_own = lines.iter().position(|l| l.starts_with("Sig")).unwrap();
    // The shell itself holds its script open as 10 (dash) or 255 (bash).
    assert_eq!(lines[..3], ["0", "1", "2"]);
    assert!(lines[3..shells_own].iter().all(|fd| ["10", "255"].contains(fd)), "{lines:?}");
    for line in &lines[shells_own..shells_own + 2] {
        // 32 and 33 are the C library's own, and nobody else's to set: they are as whoever started the watchdog has left them.
        let signals = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap() & !(0b11 << 31);
        assert_eq!(signals, 0, "{line}");
    }
    assert_eq!(lines[lines.len() - 2], lines[lines.len() - 1], "it leads a process group");
}

#[tokio::test]
async fn an_exit_status_is_a_failure_with_the_last_words() {
    let instance =
        classic(&[("bad.sh", "#!/bin/sh\necho half; echo \"bad input\" >&2; exit 3\n")], &["./bad.sh"]).await;
    let answer = instance.post(b"").await;
    let fault = answer.fault();
    assert_eq!((fault.what, fault.message.as_str(), fault.exit), (FaultKind::Exit, "exit status 3", Some(3)));
    assert_eq!(fault.detail.as_deref(), Some("bad input"));
    let log = instance.err.wait_for("Duration").await;
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines[..2], ["[call-1] Forking fprocess.", "[call-1] bad input"]);
    assert!(lines[2].starts_with("[call-1] Wrote 5 Bytes - Duration: 0.") && lines[2].ends_with('s'), "{log}");
}

#[tokio::test]
async fn combined_output_is_all_in_the_reply() {
    let instance = Instance::parked(&[("both.sh", "#!/bin/sh\necho one; echo two >&2; read word; exit ${word:-0}\n")]);
    instance.start(Claim { combine_output: true, ..instance.claim(Mode::Classic, &["./both.sh"]) }).await;
    assert_eq!(instance.post(b"").await.text(), "one\ntwo\n");
    let answer = instance.post(b"4\n").await;
    assert_eq!(answer.fault().detail.as_deref(), Some("one\ntwo"));
    assert!(!instance.err.wait_for("Duration").await.contains("two"));
}

#[tokio::test]
async fn a_signal_is_named() {
    let instance = classic(&[("die.sh", "#!/bin/sh\nkill -SEGV $$\n")], &["./die.sh"]).await;
    let answer = instance.post(b"").await;
    assert!(answer.fault().message.starts_with("killed by signal 11 (SIGSEGV)"), "{:?}", answer.fault());
}

#[tokio::test]
async fn a_content_type_of_the_function_is_sent() {
    let instance = Instance::parked(&[]);
    let mut claim = instance.claim(Mode::Classic, &["cat"]);
    claim.env.insert("content_type".into(), "image/png".into());
    instance.start(claim).await;
    assert_eq!(instance.post(b"x").await.header("Content-Type"), Some("image/png"));
}

#[tokio::test]
async fn the_deadline_kills_the_whole_group() {
    let instance = classic(&[("slow.sh", "#!/bin/sh\nsleep 600 &\necho $! > child\nwait\n")], &["./slow.sh"]).await;
    let began = Instant::now();
    let answer = instance.call(&call_within(300), b"").await;
    assert_eq!(answer.fault().what, FaultKind::Cancelled);
    assert!(answer.fault().message.contains("300 ms") && began.elapsed() < Duration::from_secs(5));
    let sleeper = pid_in(&instance, "child").await;
    eventually(|| (!is_alive(sleeper)).then_some(())).await;
    // The next call is not touched by it.
    assert_eq!(instance.call(&call_within(300), b"").await.fault().what, FaultKind::Cancelled);
}

#[tokio::test]
async fn a_grandchild_that_holds_the_output_does_not_hold_the_call() {
    let script = "#!/bin/sh\nsleep 600 &\necho $! > child\necho done\n";
    let instance = classic(&[("leave.sh", script)], &["./leave.sh"]).await;
    let began = Instant::now();
    assert_eq!(instance.post(b"").await.text(), "done\n");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let sleeper = pid_in(&instance, "child").await;
    eventually(|| (!is_alive(sleeper)).then_some(())).await;
}

#[tokio::test]
async fn output_that_follows_the_exit_closely_is_kept() {
    let script = "#!/bin/sh\n(while kill -0 $$ 2>/dev/null; do :; done; echo late) &\necho early\n";
    let instance = classic(&[("late.sh", script)], &["./late.sh"]).await;
    assert_eq!(instance.post(b"").await.text(), "early\nlate\n");
}

#[tokio::test]
async fn a_gigabyte_waits_for_its_reader_without_being_held() {
    let instance = classic(&[], &["head", "-c", "1073741824", "/dev/zero"]).await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let mut seen = 0_u64;
    while seen < 3 << 20 {
        match timeout(PATIENCE, exchange.event()).await.unwrap().unwrap() {
            Event::Data(bytes) => seen += bytes.len() as u64,
            Event::Reply(reply) => assert_eq!(reply.length, None),
            other => panic!("{other:?}"),
        }
    }
    // Nobody reads on: the watchdog must stand still, not collect.
    let pid = instance.child.id();
    let stable = eventually({
        let mut last = (u64::MAX, 0);
        move || {
            let now = written(pid);
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
            (last.1 > 20).then_some(now)
        }
    })
    .await;
    assert!(stable < 64 << 20, "{stable} bytes were written to a reader that stopped");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak: u64 =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 32 * 1024, "{peak} kB");
    while seen < 1 << 30 {
        match timeout(PATIENCE, exchange.event()).await.unwrap().unwrap() {
            Event::Data(bytes) => seen += bytes.len() as u64,
            other => panic!("{other:?} after {seen}"),
        }
    }
    assert!(matches!(exchange.event().await.unwrap(), Event::End(_)));
}

fn written(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|l| l.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_failure_after_the_reply_began_breaks_it() {
    let instance = classic(&[("late.sh", "#!/bin/sh\nhead -c 2000000 /dev/zero; exit 7\n")], &["./late.sh"]).await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let answer = Answer::of(&mut exchange).await.unwrap();
    assert_eq!((answer.status(), answer.fault.unwrap().exit), (200, Some(7)));
}

#[tokio::test]
async fn a_caller_that_leaves_takes_the_process_with_it() {
    let instance = classic(&[("wait.sh", "#!/bin/sh\necho $$ > pid\nsleep 600\n")], &["./wait.sh"]).await;
    let pid_of = async || {
        let pid = pid_in(&instance, "pid").await;
        std::fs::remove_file(instance.folder.path().join("pid")).unwrap();
        pid
    };
    // By CANCEL: the call ends, the connection goes on.
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let pid = tokio::select! { pid = pid_of() => pid, event = exchange.event() => panic!("{event:?}") };
    exchange.cancel();
    let answer = Answer::of(&mut exchange).await.unwrap();
    assert_eq!(answer.fault().what, FaultKind::Cancelled);
    eventually(|| (!is_alive(pid)).then_some(())).await;
    // By closing the connection, also when the process has never read what was sent.
    let request = noise(4 << 20);
    let mut exchange = Exchange::start(exchange.into_idle().unwrap(), &call("/", ""), Pieces::of(&request)).unwrap();
    let pid = tokio::select! { pid = pid_of() => pid, event = exchange.event() => panic!("{event:?}") };
    assert!(is_alive(pid));
    drop(exchange);
    eventually(|| (!is_alive(pid)).then_some(())).await;
    // By CANCEL behind a request that nobody reads.
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(&request)).unwrap();
    let pid = tokio::select! { pid = pid_of() => pid, event = exchange.event() => panic!("{event:?}") };
    exchange.cancel();
    assert!(matches!(Answer::of(&mut exchange).await, Err(Error::Closed)));
    eventually(|| (!is_alive(pid)).then_some(())).await;
    // By a request that breaks off.
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::broken(b"half")).unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().fault().what, FaultKind::Cancelled);
    assert!(exchange.into_idle().is_some());
}

#[tokio::test]
async fn an_answer_need_not_wait_for_the_request() {
    let instance = classic(&[], &["true"]).await;
    let mut exchange =
        Exchange::start(instance.connect().await, &call("/", ""), Pieces::open(&noise(300_000))).unwrap();
    let answer = Answer::of(&mut exchange).await.unwrap();
    assert_eq!(answer.text(), "");
    let connection = exchange.into_idle().expect("the rest of the request is given up, not the connection");
    let mut exchange = Exchange::start(connection, &call("/", ""), Pieces::of(b"")).unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().text(), "");
}

#[tokio::test]
async fn what_breaks_the_protocol_loses_its_connection_alone() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let instance = classic(&[], &["cat"]).await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 0, 3], &[0, 0, 0, 2, 1, b'{', b'}'], &[0, 0, 0, 0, 2]] {
        let mut stream = tokio::net::UnixStream::connect(instance.socket()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.is_empty(), "{bytes:?}");
    }
    assert_eq!(instance.post(b"still here").await.text(), "still here");
}

#[tokio::test]
async fn a_command_that_vanishes_is_named_in_the_fault() {
    let instance = classic(&[("tool", "#!/bin/sh\necho ok\n")], &["./tool"]).await;
    assert_eq!(instance.post(b"").await.text(), "ok\n");
    std::fs::remove_file(instance.folder.path().join("tool")).unwrap();
    let answer = instance.post(b"body").await;
    assert!(answer.fault().message.contains("cannot run `./tool`: No such file or directory"), "{:?}", answer.fault());
}

#[tokio::test]
async fn orphans_are_reaped_and_known_exits_are_not_stolen() {
    // Each call leaves an orphan that ends after the call; 60 calls on 6 connections.
    let instance = classic(
        &[("orphan.sh", "#!/bin/sh\nsetsid sh -c 'sleep 0.05; exit 9' >/dev/null 2>&1 &\nexec cat\n")],
        &["./orphan.sh"],
    )
    .await;
    for round in 0..10_u8 {
        let instance = &instance;
        let answers = (0..6_u8).map(|n| async move { ([round, n], instance.post(&[round, n]).await.body) });
        for (sent, got) in join_all(answers).await {
            assert_eq!(sent[..], got);
        }
    }
    let watchdog = instance.child.id();
    eventually(|| {
        let path = format!("/proc/{watchdog}/task/{watchdog}/children");
        std::fs::read_to_string(path).unwrap().trim().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn zombies_do_not_accumulate_while_a_call_lasts() {
    let script = "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9; do (setsid true &); done\ntouch left\nuntil [ -e go ]; do sleep 0.01; done\n";
    let instance = classic(&[("long.sh", script)], &["./long.sh"]).await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let watchdog = instance.child.id();
    let reaped = eventually(|| {
        let left = instance.folder.path().join("left").exists();
        let children = std::fs::read_to_string(format!("/proc/{watchdog}/task/{watchdog}/children")).unwrap();
        (left && children.trim().is_empty()).then_some(())
    });
    tokio::select! { () = reaped => {}, event = exchange.event() => panic!("{event:?}") }
    std::fs::write(instance.folder.path().join("go"), "").unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().text(), "");
    // The call's own process is a child of the thread that started it.
    eventually(|| (children_of(watchdog) == 0).then_some(())).await;
}

/// How many children all threads of a process have, zombies included.
fn children_of(process: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let lists = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    lists.map(|list| list.split_whitespace().count()).sum()
}

#[tokio::test]
async fn calls_that_are_given_up_leave_no_zombie() {
    let instance = classic(&[], &["sleep", "600"]).await;
    let watchdog = instance.child.id();
    // Some before their process has started, some after.
    for ms in [0, 1, 2, 5, 20] {
        let answers = (0..12).map(|_| async { instance.call(&call_within(ms), b"").await });
        for answer in join_all(answers).await {
            assert_eq!(answer.fault().what, FaultKind::Cancelled);
        }
    }
    eventually(|| (children_of(watchdog) == 0).then_some(())).await;
}

#[tokio::test]
async fn many_that_wait_hold_up_none_that_does_not() {
    let script = "#!/bin/sh\nread what\ncase $what in wait) touch $$.here; until [ -e go ]; do sleep 0.05; done;; esac\necho $what\n";
    let instance = classic(&[("either.sh", script)], &["./either.sh"]).await;
    let here = || {
        std::fs::read_dir(instance.folder.path())
            .unwrap()
            .filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "here"))
            .count()
    };
    let waiting = (0..64).map(|_| instance.post(b"wait\n"));
    let pass = async {
        eventually(|| (here() == 64).then_some(())).await;
        for _ in 0..20 {
            assert_eq!(instance.post(b"pass\n").await.text(), "pass\n");
        }
        std::fs::write(instance.folder.path().join("go"), "").unwrap();
    };
    let (answers, ()) = tokio::join!(join_all(waiting), pass);
    assert!(answers.iter().all(|answer| answer.text() == "wait\n"));
}

#[tokio::test]
async fn an_environment_that_is_too_large_is_a_failure_that_says_so() {
    let instance = classic(&[], &["cat"]).await;
    let long = "x".repeat(200_000);
    let mut request = call("/", "");
    request.headers.push(("x-long".into(), long.as_str().into()));
    let answer = instance.call(&request, b"body").await;
    let message = &answer.fault().message;
    assert!(message.contains("cannot run `cat`: Argument list too long") && message.contains("headers"), "{message}");
    assert_eq!(instance.post(b"still here").await.text(), "still here");
}

#[tokio::test]
async fn draining_lets_calls_end_and_takes_no_more() {
    let mut instance = classic(
        &[("slow.sh", "#!/bin/sh\necho $$ > pid\nuntil [ -e go ]; do sleep 0.01; done; cat\n")],
        &["./slow.sh"],
    )
    .await;
    let mut idle = instance.connect().await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"last")).unwrap();
    tokio::select! { _ = pid_in(&instance, "pid") => {}, event = exchange.event() => panic!("{event:?}") }
    instance.send(&taper_watchdog::control::Order::Drain { ms: 60_000 }).await;
    let socket = instance.socket();
    eventually(|| std::os::unix::net::UnixStream::connect(&socket).is_err().then_some(())).await;
    eventually(|| (!idle.is_usable()).then_some(())).await;
    std::fs::write(instance.folder.path().join("go"), "").unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().text(), "last");
    assert!(instance.report().await.is_none());
    assert_eq!(instance.end(), 0);
}

#[tokio::test]
async fn a_drain_ends_in_time_whatever_runs() {
    let mut instance =
        classic(&[("hang.sh", "#!/bin/sh\ntrap '' TERM\necho $$ > pid\nwhile :; do sleep 1; done\n")], &["./hang.sh"])
            .await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let pid = tokio::select! { pid = pid_in(&instance, "pid") => pid, event = exchange.event() => panic!("{event:?}") };
    instance.send(&taper_watchdog::control::Order::Drain { ms: 100 }).await;
    assert!(matches!(Answer::of(&mut exchange).await, Err(Error::Closed)));
    assert_eq!(instance.end(), 0);
    assert!(!is_alive(pid));
}
