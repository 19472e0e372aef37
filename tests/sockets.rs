//! What lives long: WebSockets and event streams, through everything that takes instances away. Old ones stay where they are until they
//! end; new ones land on the new revision.

use std::time::Duration;

use crate::{
    platform::{Platform, now},
    streams::{Raw, frame, websocket_with},
};

const TICKS: &str = "
import time
def handle(event, context):
    def ticks():
        while True:
            yield 'data: @\\n\\n'
            time.sleep(0.1)
    return {'statusCode': 200, 'headers': {'content-type': 'text/event-stream'}, 'body': ticks()}
";

/// Whose calls may take two seconds, and what lives longer half an hour.
const FUNCTIONS: &str = "
apiVersion: taper.dev/v1alpha1
kind: Function
metadata: {name: s}
spec: {source: ./s, mode: http, command: [python3, server.py], timeout: 2s, grace: 30m, scale: {max: 3}}
---
apiVersion: taper.dev/v1alpha1
kind: Function
metadata: {name: t}
spec: {source: ./t.py, timeout: 2s, grace: 30m, concurrency: 16, scale: {max: 3}}
";

/// A WebSocket, and the revision that it was opened to.
struct Socket {
    raw: Raw,
    revision: String,
}

impl Socket {
    fn open(platform: &Platform) -> Self {
        let (raw, head) = websocket_with(platform, "w");
        let revision =
            head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("x-taper-revision: ").map(str::to_owned));
        Self { raw, revision: revision.unwrap_or_else(|| panic!("it does not say who answers: {head}")) }
    }

    fn echo(&mut self) {
        self.raw.send(frame(1, b"hello"));
        assert_eq!(self.raw.exactly(7), b"\x81\x05hello", "of {}", self.revision);
    }
}

#[test]
fn sockets_and_event_streams_live_through_updates_and_an_upgrade() {
    across(Duration::from_millis(400), 6);
}

/// For a quiet machine: `cargo test --release -p taper-cli --test e2e sockets -- --ignored`.
#[test]
#[ignore = "takes ten minutes"]
fn sockets_and_event_streams_live_for_ten_minutes() {
    across(Duration::from_secs(20), 30);
}

fn across(pause: Duration, turns: u32) {
    // For as long as this takes, sockets stay with the process that took them.
    let mut platform = Platform::start_configured("gateway: {handOverDrain: 30m}\n");
    let deploy = |platform: &Platform, version: u32| {
        platform.file("s/server.py", &format!("{}\n# {version}\n", include_str!("server.py")));
        platform.file("t.py", &TICKS.replace('@', &version.to_string()));
        let manifest = platform.file("all.yaml", FUNCTIONS);
        platform.ok(&["deploy", "-f", &manifest]);
    };
    deploy(&platform, 1);
    let (mut version, mut sockets, mut streams) = (1, Vec::new(), Vec::new());
    for turn in 0..turns {
        sockets.push(Socket::open(&platform));
        let newest = sockets.last().expect("just opened");
        assert_eq!(newest.revision, format!("s-{version:05}"), "a new socket lands on the new revision");
        let mut stream = Raw::ask(&platform, "GET", "/function/t", "Accept: text/event-stream\r\n");
        stream.until(&format!("data: {version}\n\n"));
        streams.push((stream, version));
        match turn % 3 {
            0 => {
                version += 1;
                deploy(&platform, version);
            }
            1 => drop(platform.ok(&["scale", "s", "3"])),
            _ => platform.upgrade(),
        }
        let begun = now();
        while begun.elapsed() < pause {
            sockets.iter_mut().for_each(Socket::echo);
            streams.iter_mut().for_each(|(stream, of)| drop(stream.until(&format!("data: {of}\n\n"))));
        }
    }
    for socket in &mut sockets {
        socket.raw.send(frame(8, &1000u16.to_be_bytes()));
        assert_eq!(socket.raw.exactly(4), b"\x88\x02\x03\xe8");
    }
}
