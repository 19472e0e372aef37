//! What is in the log.

use std::fs;

use crate::dog::{Caller, Dog, eventually};

/// Without the time at its start, which must be one.
fn untimed(line: &str) -> &str {
    let (time, rest) = line.split_at_checked(20).unwrap_or_else(|| panic!("{line}"));
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000/00/00 00:00:00 ", "{line}");
    rest
}

#[test]
fn classic_says_what_it_does() {
    let dog = Dog::with(
        &[("bad.sh", "#!/bin/sh\nread word; echo out; echo err >&2; exit ${word:-0}\n")],
        &[("fprocess", "./bad.sh"), ("combine_output", "false"), ("debug_headers", "true"), ("content_type", "a/b")],
    );
    dog.ask("POST", "/", &[("X-Foo", "1"), ("x-foo", "2")], b"0\n");
    let rest = dog.wait_for_log("Wrote 4 Bytes - Duration: ");
    assert!(rest.strip_suffix('s').unwrap().parse::<f64>().unwrap() > 0.0);
    let log = dog.log();
    let lines: Vec<&str> = log.lines().map(untimed).collect();
    for line in [
        "Watchdog mode: classic\tfprocess: \"./bad.sh\"",
        "Forking fprocess.",
        "stderr: err",
        "[in] X-Foo=[1 2]",
        "[out] Content-Type=[a/b]",
    ] {
        assert!(lines.contains(&line), "{line}: {lines:?}");
    }
    dog.post(b"4\n");
    dog.wait_for_log("exit status 4");
    let dog = Dog::with(&[], &[("fprocess", "cat"), ("write_debug", "true")]);
    dog.ask("POST", "/p?q", &[], b"shown");
    for words in ["Query  q", "Path  /p", "Out=shown", "Duration: 0."] {
        dog.wait_for_log(words);
    }
    assert!(!dog.log().contains("Wrote"));
}

#[test]
fn a_line_for_each_request() {
    let variables = [("mode", "serializing"), ("fprocess", "cat"), ("log_callid", "true")];
    let dog = Dog::with(&[], &variables);
    dog.ask("POST", "/a%20b?x", &[("X-Call-Id", "id-7")], b"12345678");
    let rest = dog.wait_for_log("POST /a%20b?x - 200 - ContentLength: 8B (0.");
    assert!(rest.ends_with("s) [id-7]"), "{rest}");
    dog.ask("POST", "/", &[], &[b'x'; 1725]);
    assert!(dog.wait_for_log("POST / - 200 - ContentLength: 1.725kB (0.").ends_with("s) [none]"));
}

const TALK: &str = "#!/bin/sh\necho out; echo err >&2; printf 'no end' >&2\nhead -c 100 /dev/zero | tr '\\0' x >&2; echo >&2; exec sleep 600\n";

fn talking(variables: &[(&str, &str)]) -> Dog {
    let own = [("mode", "http"), ("fprocess", "./talk.sh"), ("upstream_url", "http://127.0.0.1:1")];
    Dog::with(&[("talk.sh", TALK)], &[&own, variables].concat())
}

#[test]
fn the_functions_lines_are_marked_and_cut() {
    let dog = talking(&[("log_buffer_size", "30")]);
    dog.wait_for_log("xxxxxxxxxxxxxxxx\n".trim_end());
    let log = eventually("all of it", || Some(dog.log()).filter(|log| log.matches('x').count() >= 100));
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("stderr: ")).map(untimed).collect();
    assert_eq!(lines[0], "stderr: err");
    assert_eq!(lines[1], format!("stderr: no end{}", "x".repeat(24)));
    assert!(lines.len() > 4 && lines[1..].iter().all(|line| line.len() <= "stderr: ".len() + 30), "{lines:?}");
    let out = eventually("its output", || {
        Some(fs::read_to_string(dog.path(".stdout")).unwrap()).filter(|out| !out.is_empty())
    });
    assert_eq!(untimed(out.trim_end()), "stdout: out");
}

#[test]
fn the_functions_lines_can_be_as_they_are() {
    let text = format!("err\nno end{}\n", "x".repeat(100));
    for size in ["65536", "-1"] {
        let dog = talking(&[("prefix_logs", "false"), ("log_buffer_size", size)]);
        eventually("all of it", || dog.log().contains(&text).then_some(()));
        let out = eventually("its output", || {
            Some(fs::read_to_string(dog.path(".stdout")).unwrap()).filter(|out| !out.is_empty())
        });
        assert_eq!(out, "out\n");
    }
    let dog = talking(&[("log_buffer_size", "-1")]);
    eventually("all of it", || dog.log().contains(&format!("{}\n", "x".repeat(100))).then_some(()));
    assert!(dog.log().lines().any(|line| untimed(line) == "stderr: err"));
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let port = crate::dog::free_port();
    let mut command = crate::dog::command(&folder, &[("fprocess", "cat"), ("port", &port.to_string())]);
    let mut child = command.stderr(std::process::Stdio::from(writer)).spawn().unwrap();
    drop(command);
    let mut caller =
        eventually("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(Caller::over));
    // Each says two lines; a pipe takes 64 KiB.
    for n in 0..2_000 {
        assert_eq!(caller.ask("POST", "/", &[], b"x").text(), "x", "{n}");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let status = eventually("its end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    drop(reader);
}
