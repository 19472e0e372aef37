//! The function that is called: the smallest HTTP server that keeps connections alive, a thread for each.
//!
//! Part of the bench, and by itself a program that `rustc` builds without a C library to load at run time. It listens on the
//! Unix socket `$TAPER_SOCKET` when its last argument is `unix`, else on `127.0.0.1:$PORT`.

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    process::exit,
    thread,
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world\n";

#[allow(clippy::disallowed_methods, reason = "a function reads its own environment")]
pub(crate) fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("${name} is not set"));
    if std::env::args().next_back().as_deref() == Some("unix") {
        let listener = UnixListener::bind(variable("TAPER_SOCKET")).expect("$TAPER_SOCKET can be made");
        listener.incoming().flatten().for_each(serve);
    } else {
        let port = variable("PORT").parse().expect("$PORT is a number");
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("$PORT is free");
        for stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            serve(stream);
        }
    }
    exit(1);
}

fn serve(mut stream: impl Read + Write + Send + 'static) {
    let work = move || {
        let mut buffer = [0; 16 * 1024];
        let mut got = 0;
        while let Ok(n @ 1..) = stream.read(&mut buffer[got..]) {
            got += n;
            // Callers send `GET` without a body, one at a time: the head's end is the request's end.
            if buffer[..got].ends_with(b"\r\n\r\n") {
                got = 0;
                if stream.write_all(ANSWER).is_err() {
                    return;
                }
            } else if got == buffer.len() {
                return;
            }
        }
    };
    let _ = thread::Builder::new().stack_size(64 * 1024).spawn(work);
}
