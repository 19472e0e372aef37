//! What a caller may do that means no good, and what must go on meanwhile.

use std::{
    io::{Read, Write},
    time::Duration,
};

use crate::dog::{Caller, Dog, wait_for_death};

#[test]
fn heads_that_cannot_be_are_refused() {
    let dog = Dog::with(&[], &[("fprocess", "env"), ("read_timeout", "5s")]);
    let huge = format!("GET / HTTP/1.1\r\nHost: h\r\nX-Huge: {}\r\n\r\n", "x".repeat(2 << 20));
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(5_000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100_000));
    for (request, statuses) in [
        (huge.as_str(), &[431][..]),
        (&many, &[431]),
        (&long, &[414]),
        ("GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", &[400]),
        ("GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n", &[400]),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", &[400]),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", &[400]),
        ("GET / HTTP/9.9\r\n\r\n", &[400, 505]),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", &[400]),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", &[405]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400]),
    ] {
        let mut caller = Caller::to(dog.port);
        // It may be refused before it was sent.
        let _ = caller.stream.write_all(request.as_bytes());
        let answer = String::from_utf8_lossy(&caller.rest()).into_owned();
        let shown = &request[..request.len().min(60)];
        let told = answer.is_empty() || statuses.iter().any(|s| answer.starts_with(&format!("HTTP/1.1 {s}")));
        assert!(told, "{shown:?}: {answer}");
    }
    let odd = dog.get("/%00%ff%zz/..%2f?a=%00&b");
    assert!(
        odd.text().contains("Http_Path=/%00%ff%zz/..%2f\n") && odd.text().contains("Http_Query=a=%00&b\n"),
        "{odd:?}"
    );
    assert_eq!(dog.get("/_/health").status(), 200);
}

#[test]
fn who_does_not_send_is_not_waited_for() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let modes: &[&[(&str, &str)]] = &[
        &[("mode", "classic"), ("fprocess", "cat")],
        &[("mode", "streaming"), ("fprocess", "cat")],
        &[("mode", "http"), ("fprocess", "sleep 600"), ("upstream_url", &url)],
        &[("mode", "http"), ("fprocess", "sleep 600"), ("upstream_url", &url), ("buffer_http", "true")],
    ];
    for variables in modes {
        let dog = Dog::with(&[], &[variables, &[("read_timeout", "400ms")][..]].concat());
        // Nothing; half a head; a kept connection; half a body, small and large.
        let mut silent = Caller::to(dog.port);
        let mut half = Caller::to(dog.port);
        half.send("GET / HTTP/1.1\r\nHo");
        assert!([&b""[..], b"HTTP/1.1 408"].iter().any(|start| silent.rest().starts_with(start)));
        half.rest();
        for length in [10, 10_000_000] {
            let mut caller = Caller::to(dog.port);
            caller.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nhalf"));
            let answer = caller.answer(false);
            // A function that streams has begun to answer.
            let begun = answer.status() == 200 && !answer.whole && answer.text() == "half";
            assert!(answer.status() == 400 || begun, "{variables:?}, {length}: {answer:?}\n{}", dog.log());
        }
        assert_eq!(dog.get("/_/health").status(), 200);
    }
}

#[test]
fn who_does_not_read_is_not_waited_for() {
    let script = "#!/bin/sh\necho $$ > pid.new; mv pid.new pid\nexec cat /dev/zero\n";
    let dog = Dog::with(
        &[("flood.sh", script)],
        &[("mode", "streaming"), ("fprocess", "./flood.sh"), ("exec_timeout", "1s"), ("healthcheck_interval", "0")],
    );
    let mut caller = Caller::to(dog.port);
    caller.request("GET", "/", &[], b"");
    caller.head();
    let pid = dog.pid_in("pid");
    wait_for_death(pid);
    dog.wait_for_log("GET / - 200");
    // What was on its way can still be read; then the connection is broken.
    let mut rest = Vec::new();
    let _ = caller.stream.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", dog.child.id())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    assert!(peak.parse::<u64>().unwrap() < 40_000, "{peak} kB");
}

#[test]
fn many_connections_that_do_nothing_hold_up_nobody() {
    let dog = Dog::with(&[], &[("fprocess", "cat")]);
    let mut idle: Vec<Caller> = (0..300).map(|_| Caller::to(dog.port)).collect();
    for (n, caller) in idle.iter_mut().enumerate() {
        caller.send(&b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhal"[..n % 50]);
    }
    assert_eq!(dog.post(b"through").text(), "through");
    drop(idle);
    crate::dog::eventually("the end of their requests", || {
        dog.metrics().contains("http_requests_in_flight 0\n").then_some(())
    });
}

#[test]
fn a_half_open_connection_does_not_hold_up_the_end() {
    let mut dog = Dog::with(&[], &[("fprocess", "cat")]);
    let mut half = Caller::to(dog.port);
    half.send("POST / HTTP/1.1\r\nHost: h\r\nCont");
    let kept = {
        let mut kept = Caller::to(dog.port);
        assert_eq!(kept.ask("POST", "/", &[], b"x").text(), "x");
        kept
    };
    let began = tokio::time::Instant::now();
    dog.signal(rustix::process::Signal::TERM);
    assert_eq!(dog.status(), Some(0));
    // The default `write_timeout` is 30 s.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop((half, kept));
}

#[test]
fn what_is_collected_has_a_bound() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let modes: [&[(&str, &str)]; 2] = [
        &[("fprocess", "cat"), ("marshal_request", "true")],
        &[("mode", "http"), ("fprocess", "sleep 600"), ("upstream_url", &url), ("buffer_http", "true")],
    ];
    for variables in modes {
        let dog = Dog::with(&[], variables);
        let mut caller = Caller::to(dog.port);
        caller.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"100000\r\n".to_vec(), vec![0; 1 << 20], b"\r\n".to_vec()].concat();
        // It may be refused before all of it was sent.
        let sent = (0..200).take_while(|_| caller.stream.write_all(&chunk).is_ok()).count();
        assert!((100..200).contains(&sent), "{sent} MiB");
        assert_eq!(dog.get("/_/health").status(), 200);
        assert!(dog.log().contains("over 100 MiB") || dog.metrics().contains("code=\"413\""), "{}", dog.log());
    }
}
