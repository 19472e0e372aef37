//! gRPC while the program below it changes: streams live on, on the revision and the process where they began, until they end or their grace
//! does; new calls go to what is new, and none fails. What clients keep to: whoever is told that a connection ends opens another one.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{SendRequest, handshake},
};
use http::{HeaderMap, Request};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use crate::platform::{PATIENCE, Platform};

/// A service with a unary method and one that streams both ways. Each message comes back with who answers before it.
const SERVICE: &str = r#"
const http2 = require("http2");
const me = "@ " + process.env.TAPER_INSTANCE + " ";
const message = (data) => {
  const bytes = Buffer.concat([Buffer.from(me), data]);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
};
const server = http2.createServer();
server.on("stream", (stream, headers) => {
  const type = { ":status": 200, "content-type": "application/grpc" };
  if (!["/echo.Echo/Unary", "/echo.Echo/Both"].includes(headers[":path"])) {
    return stream.respond({ ...type, "grpc-status": "12" }, { endStream: true });
  }
  stream.respond(type, { waitForTrailers: true });
  stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
  stream.on("error", () => {});
  let seen = Buffer.alloc(0);
  stream.on("data", (data) => {
    seen = Buffer.concat([seen, data]);
    while (seen.length >= 5 && seen.length >= 5 + seen.readUInt32BE(1)) {
      const end = 5 + seen.readUInt32BE(1);
      stream.write(message(seen.subarray(5, end)));
      seen = seen.subarray(end);
    }
  });
  stream.on("end", () => stream.end());
});
server.listen(process.env.PORT, "127.0.0.1");
"#;

/// A message as it is on the wire: not compressed, its length, itself.
fn framed(message: &str) -> Bytes {
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0][..], &length, message.as_bytes()].concat().into()
}

/// A client with one connection at a time. What a server has not begun, as it says when it leaves (RFC 9113, section 6.8), is sent again as all
/// gRPC clients do; anything else has failed.
struct Client {
    address: String,
    sender: Mutex<SendRequest<Bytes>>,
    connections: AtomicU64,
}

impl Client {
    async fn connect(platform: &Platform) -> Arc<Self> {
        let address = platform.address().to_owned();
        let sender = Mutex::new(Self::open(&address).await);
        Arc::new(Self { address, sender, connections: AtomicU64::new(1) })
    }

    async fn open(address: &str) -> SendRequest<Bytes> {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (sender, connection) = handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }

    /// Begins a call of a method, by the name that the function's host gives it.
    async fn send(&self, method: &str) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        loop {
            let mut sender = self.sender.lock().await;
            let request = Request::post(format!("http://g.default.localhost/echo.Echo/{method}"));
            let request = request.header("content-type", "application/grpc").header("te", "trailers");
            // Where a connection takes no calls any more, nothing of this one has left.
            match timeout(PATIENCE, sender.clone().ready()).await.expect("a place in time") {
                Ok(mut ready) => match ready.send_request(request.body(()).expect("a request"), false) {
                    Ok(sent) => return sent,
                    Err(error) => assert!(error.is_go_away(), "{error:?}"),
                },
                Err(error) => assert!(error.is_go_away(), "{error:?}"),
            }
            *sender = Self::open(&self.address).await;
            self.connections.fetch_add(1, Relaxed);
        }
    }

    /// One message there, one back: the revision and the instance that answered.
    async fn unary(&self) -> Result<(String, String), String> {
        let failed = |error: h2::Error| format!("unary: {error:?}");
        let answer = loop {
            let (answer, mut feed) = self.send("Unary").await;
            let sent = feed.send_data(framed("hello"), true);
            match timeout(PATIENCE, answer).await.expect("an answer in time") {
                Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {}
                answer => break sent.and(answer).map_err(failed)?,
            }
        };
        if answer.status() != 200 {
            return Err(format!("unary: {answer:?}"));
        }
        let (said, trailers) = rest(answer.into_body()).await.map_err(failed)?;
        let status = trailers.get("grpc-status").map(|v| v.as_bytes().to_vec());
        let said = String::from_utf8_lossy(said.get(5..).unwrap_or_default()).into_owned();
        match said.split(' ').collect::<Vec<_>>()[..] {
            [version, instance, "hello"] if status.as_deref() == Some(b"0") => Ok((version.into(), instance.into())),
            _ => Err(format!("unary: gRPC status {status:?}, and {said:?}")),
        }
    }

    async fn stream(&self) -> Stream {
        let (answer, feed) = self.send("Both").await;
        let answer = timeout(PATIENCE, answer).await.expect("an answer in time").expect("a stream");
        assert_eq!(answer.status(), 200, "{answer:?}");
        Stream { feed, answer: answer.into_body(), seen: Vec::new() }
    }
}

/// The rest of a body, and its trailers.
async fn rest(mut body: RecvStream) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = timeout(PATIENCE, body.data()).await.expect("its end in time").transpose()? {
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    let trailers = timeout(PATIENCE, body.trailers()).await.expect("trailers in time")?;
    Ok((all, trailers.unwrap_or_default()))
}

/// A call that streams both ways.
struct Stream {
    feed: SendStream<Bytes>,
    answer: RecvStream,
    seen: Vec<u8>,
}

impl Stream {
    /// A message there and the one that comes back for it.
    async fn says(&mut self, word: &str) -> String {
        self.feed.send_data(framed(word), false).expect("it is read");
        loop {
            let length = self.seen.get(1..5).map(|head| u32::from_be_bytes(head.try_into().expect("four")) as usize);
            if let Some(end) = length.map(|length| 5 + length).filter(|end| self.seen.len() >= *end) {
                let message: Vec<u8> = self.seen.drain(..end).collect();
                return String::from_utf8(message[5..].to_vec()).expect("text");
            }
            let data = timeout(PATIENCE, self.answer.data()).await.expect("a message in time");
            let data = data.expect("it goes on").expect("it does not break");
            self.answer.flow_control().release_capacity(data.len()).expect("it was taken");
            self.seen.extend_from_slice(&data);
        }
    }

    /// The client has no more to say: what the service says at the end.
    async fn ends(mut self) {
        self.feed.send_data(Bytes::new(), true).expect("it is read");
        let (said, trailers) = rest(self.answer).await.expect("it does not break");
        assert_eq!((&said[..], trailers["grpc-status"].as_bytes()), (&b""[..], &b"0"[..]));
    }

    /// How it breaks, which it is about to.
    async fn breaks(mut self) -> h2::Error {
        match timeout(PATIENCE, self.answer.data()).await.expect("it ends in time") {
            Some(Err(error)) => error,
            other => panic!("it broke off as if it were whole: {other:?}"),
        }
    }
}

/// Unary calls that go on, several at a time, until they are stopped; what answered, and what went wrong.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<(BTreeSet<String>, Vec<String>)>>,
}

impl Load {
    fn begin(client: &Arc<Client>) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let one = || {
            let (client, stop, calls) = (Arc::clone(client), Arc::clone(&stop), Arc::clone(&calls));
            tokio::spawn(async move {
                let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
                while !stop.load(Relaxed) {
                    match client.unary().await {
                        Ok((version, _)) => drop(seen.insert(version)),
                        Err(error) => wrong.push(error),
                    }
                    calls.fetch_add(1, Relaxed);
                }
                (seen, wrong)
            })
        };
        let tasks = (0..4).map(|_| one()).collect();
        Self { stop, calls, tasks }
    }

    /// Some more calls than until now.
    async fn some(&self) {
        let enough = self.calls.load(Relaxed) + 40;
        let some = async {
            while self.calls.load(Relaxed) < enough {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, some).await.expect("calls are answered");
    }

    /// Which versions answered. None of the calls failed.
    async fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Relaxed);
        let mut seen = BTreeSet::new();
        for task in self.tasks {
            let (versions, wrong) = task.await.expect("it does not panic");
            assert_eq!(wrong, [""; 0], "of {} calls", self.calls.load(Relaxed));
            seen.extend(versions);
        }
        seen
    }
}

/// Deploys a version of the service.
fn deploy(platform: &Platform, version: &str) {
    platform.file("g/server.js", &SERVICE.replace('@', version));
    let dir = platform.dir.path().join("g").display().to_string();
    platform.ok(&["deploy", &dir, "--mode", "http", "--command", "node server.js", "--max", "2"]);
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

#[test]
fn a_new_revision_takes_new_calls_and_leaves_streams_where_they_are() {
    let platform = Platform::start();
    deploy(&platform, "one");
    run(async {
        let client = Client::connect(&platform).await;
        let load = Load::begin(&client);
        let (mut first, mut second) = (client.stream().await, client.stream().await);
        let said = first.says("a").await;
        assert!(said.starts_with("one g-00001-") && said.ends_with(" a"), "{said}");
        assert!(second.says("a").await.starts_with("one "));
        load.some().await;
        tokio::task::block_in_place(|| deploy(&platform, "two"));
        load.some().await;
        // From when the update is there, nothing new goes to what was before.
        for _ in 0..20 {
            assert_eq!(client.unary().await.expect("an answer").0, "two");
        }
        let mut third = client.stream().await;
        assert!(third.says("c").await.starts_with("two g-00002-"));
        assert_eq!(first.says("b").await, said.replace(" a", " b"), "the same instance");
        assert!(second.says("b").await.starts_with("one "));
        for stream in [first, second, third] {
            stream.ends().await;
        }
        assert_eq!(load.end().await, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
        assert_eq!(client.connections.load(Relaxed), 1, "an update of a function ends no connection");
    });
}

#[test]
fn a_newer_platform_takes_new_calls_and_the_old_one_keeps_its_streams() {
    let mut platform = Platform::start();
    deploy(&platform, "one");
    run(async {
        let client = Client::connect(&platform).await;
        let load = Load::begin(&client);
        let mut streams = Vec::new();
        for n in 0..3 {
            let mut stream = client.stream().await;
            let said = stream.says("a").await;
            streams.push((stream, said));
            load.some().await;
            tokio::task::block_in_place(|| platform.upgrade());
            load.some().await;
            // Those of every process before.
            for (stream, said) in &mut streams {
                assert_eq!(stream.says("b").await, said.replace(" a", " b"), "after {} upgrades", n + 1);
            }
        }
        let instances: BTreeSet<&str> = streams.iter().filter_map(|(_, said)| said.split(' ').nth(1)).collect();
        assert_eq!(instances.len(), 3, "each process has its own: {instances:?}");
        // A new revision in the newest process moves none of them either.
        tokio::task::block_in_place(|| deploy(&platform, "two"));
        assert_eq!(client.unary().await.expect("an answer").0, "two");
        for (mut stream, said) in streams {
            assert_eq!(stream.says("c").await, said.replace(" a", " c"));
            stream.ends().await;
        }
        load.end().await;
        assert_eq!(client.connections.load(Relaxed), 4, "one for each process");
    });
}

#[test]
fn a_stream_that_does_not_end_is_cut_when_its_grace_is_over() {
    let mut platform = Platform::start_configured("gateway: {handOverDrain: 1s}\n");
    deploy(&platform, "one");
    let old = platform.pid();
    run(async {
        let client = Client::connect(&platform).await;
        let load = Load::begin(&client);
        let mut stream = client.stream().await;
        stream.says("a").await;
        tokio::task::block_in_place(|| platform.upgrade());
        let error = stream.breaks().await;
        load.some().await;
        assert_eq!(load.end().await, BTreeSet::from(["one".to_owned()]), "{error:?}");
    });
    platform.until("the old process's end", || {
        std::fs::read_to_string(format!("/proc/{old}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
}
