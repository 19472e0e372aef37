//! Mode `http`: the function is a server of its own, and requests are passed on to it over kept connections.
//!
//! Never here: a second try of a request of which a byte may have reached the function.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    rc::Rc,
    sync::Weak,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderName, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::Signal,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, unix::pipe},
    sync::watch,
    task::spawn_local,
    time::{Instant, Sleep, sleep, sleep_until, timeout, timeout_at},
};

use super::{
    fork::{COLLECT, Unread},
    journal::{Journal, Stream},
    reply::{self, Broken, Call, Content, Reply},
    settings::{Settings, Upstream},
    stream::Conn,
};
use crate::{
    process::Process,
    reap::{Children, Exit},
    spawn::Program,
};

/// How long an unused connection to the function is kept; shorter than any server's own patience.
const KEEP: Duration = Duration::from_millis(500);

/// The most unused connections that are kept.
const MOST_KEPT: usize = 100;

/// How often a server that has never listened is tried.
const TRY: Duration = Duration::from_millis(5);

/// How long a server is asked for its readiness.
const PROBE: Duration = Duration::from_secs(5);

/// What belongs to one connection and not to the request (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The function's server.
pub(crate) struct Server {
    settings: Rc<Settings>,
    to: Upstream,
    pool: Rc<Pool>,
    /// It has taken a connection once; before that, it is waited for.
    listened: Cell<bool>,
    ended: watch::Receiver<Option<Exit>>,
    journal: Rc<Journal>,
}

/// Connections between two requests, the one used last at the end.
#[derive(Default)]
struct Pool {
    idle: RefCell<VecDeque<(Instant, SendRequest<Upload>)>>,
    swept: Cell<bool>,
}

/// A connection that is in use.
pub(crate) struct Lease {
    sender: SendRequest<Upload>,
    pool: Rc<Pool>,
}

impl Lease {
    /// The answer has been read to its end: the connection can serve another request.
    pub(crate) fn end(lease: &mut Option<Self>) {
        if let Some(Self { sender, pool }) = lease.take().filter(|lease| !lease.sender.is_closed()) {
            pool.keep(sender);
        }
    }
}

impl Pool {
    fn take(&self) -> Option<SendRequest<Upload>> {
        self.idle.borrow_mut().pop_back().map(|(_, sender)| sender)
    }

    fn keep(self: &Rc<Self>, sender: SendRequest<Upload>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MOST_KEPT {
            idle.pop_front();
        }
        idle.push_back((Instant::now(), sender));
        if !self.swept.replace(true) {
            spawn_local(Rc::clone(self).sweep());
        }
    }

    /// Lets go of what was not used for [`KEEP`], until nothing is kept.
    async fn sweep(self: Rc<Self>) {
        loop {
            let Some(oldest) = self.idle.borrow().front().map(|(since, _)| *since) else { break };
            sleep_until(oldest + KEEP).await;
            let now = Instant::now();
            self.idle.borrow_mut().retain(|(since, _)| *since + KEEP > now);
        }
        self.swept.set(false);
    }
}

/// The head of an answer, the connection it comes from, and the caller's end of a change of protocol.
type Answered = (Response<Incoming>, Lease, Option<OnUpgrade>);

/// Why there is no answer.
enum Failure {
    /// The caller's body did not come.
    Unread(Unread),
    /// Its time was up.
    Late,
    /// The function could not be reached, or broke off.
    Broken(String),
}

impl Server {
    /// Starts the function. The receiver says when it has ended.
    pub(crate) fn start(
        settings: Rc<Settings>,
        to: Upstream,
        children: &Children,
        journal: Rc<Journal>,
    ) -> Result<(Rc<Self>, Running), String> {
        let program = Program::find(&settings.command, &settings.env).map_err(|failed| failed.message)?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
        let errors = Rc::clone(&journal);
        let mut process = Process::launch(
            settings.command.join(" "),
            &program,
            &[],
            &[(writer.as_fd(), 1)],
            children,
            |stderr, _| spawn_local(errors.relay(stderr, Stream::Err)),
        )
        .map_err(|failed| failed.message)?;
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(|e| e.to_string())?;
        spawn_local(Rc::clone(&journal).relay(reader, Stream::Out));
        let (tell, ended) = watch::channel(None);
        let (order, mut orders) = watch::channel(None);
        spawn_local(async move {
            loop {
                tokio::select! {
                    exit = process.ended() => {
                        // Whatever it has left behind in its group.
                        process.signal(Signal::KILL);
                        tell.send_replace(Some(exit));
                        return;
                    }
                    changed = orders.changed() => match *orders.borrow_and_update() {
                        Some(signal) if changed.is_ok() => process.signal(signal),
                        _ => std::future::pending().await,
                    },
                }
            }
        });
        let server =
            Self { settings, to, pool: Rc::default(), listened: Cell::new(false), ended: ended.clone(), journal };
        Ok((Rc::new(server), Running { order, ended }))
    }

    /// Passes a request on.
    pub(crate) async fn pass(
        self: Rc<Self>,
        request: Request<Incoming>,
        conn: Weak<Conn>,
        deadline: Option<Instant>,
        call: Call,
    ) -> Reply {
        let until = self.settings.read_timeout.map(|limit| call.began + limit);
        let (head, exchange) = (request.method() == Method::HEAD, self.exchange(request, until));
        let outcome = match deadline {
            Some(deadline) => timeout_at(deadline, exchange).await.unwrap_or(Err(Failure::Late)),
            None => exchange.await,
        };
        let (response, lease, client) = match outcome {
            Ok(answered) => answered,
            Err(failure) => return self.failed(failure, call),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match client {
                Some(client) => switched(response, client, &conn, call),
                None => self.failed(Failure::Broken("it switches protocols unasked".to_owned()), call),
            };
        }
        let (mut parts, incoming) = response.into_parts();
        strip(&mut parts.headers);
        parts.headers.insert("x-duration-seconds", call.duration());
        let late = deadline.filter(|_| !incoming.is_end_stream() && !head).map(|d| Box::pin(sleep_until(d)));
        reply::reply(parts.status, parts.headers, Content::Upstream { incoming, lease: Some(lease), late }, call)
    }

    fn failed(&self, failure: Failure, call: Call) -> Reply {
        let status = match failure {
            Failure::Unread(Unread(status, why)) => {
                self.journal.say(why);
                status
            }
            Failure::Late => {
                self.journal
                    .say("Upstream HTTP request stopped: its time was up (exec_timeout, write_timeout or X-Timeout)");
                StatusCode::GATEWAY_TIMEOUT
            }
            Failure::Broken(why) => {
                self.journal.say(format_args!("Upstream HTTP request error: {why}"));
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let timed = call.duration();
        let mut reply = reply::text(status, "", call);
        reply.headers_mut().insert("x-duration-seconds", timed);
        reply.headers_mut().insert("x-openfaas-internal", HeaderValue::from_static("of-watchdog"));
        reply
    }

    /// The request as the function gets it, and the caller's end of a change of protocol.
    async fn prepared(
        &self,
        mut request: Request<Incoming>,
        until: Option<Instant>,
    ) -> Result<(Request<Upload>, Option<OnUpgrade>), Failure> {
        let upgraded = is_upgrade(request.headers());
        let client = upgraded.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, incoming) = request.into_parts();
        let protocol = parts.headers.get(header::UPGRADE).cloned().filter(|_| upgraded);
        let trailers = parts.headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        strip(&mut parts.headers);
        // hyper has answered it with 100 as soon as the body is read.
        parts.headers.remove(header::EXPECT);
        if let Some(protocol) = protocol {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            parts.headers.insert(header::UPGRADE, protocol);
        } else if trailers {
            parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if !parts.headers.contains_key(header::HOST)
            && let Ok(host) = HeaderValue::from_str(&self.to.authority)
        {
            parts.headers.insert(header::HOST, host);
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri =
            format!("{}{path}", self.to.prefix).parse().map_err(|e| Failure::Broken(format!("{path}: {e}")))?;
        let mut upload =
            Upload { from: Source::Caller(incoming), late: until.map(|until| Box::pin(sleep_until(until))) };
        if upload.is_end_stream() {
            upload = Upload { from: Source::Memory(None), late: None };
        } else if self.settings.buffer_body {
            upload = upload.collect().await?;
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let mut request = Request::new(upload);
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (parts.method, uri, parts.headers);
        *request.version_mut() = Version::HTTP_11;
        Ok((request, client))
    }

    async fn exchange(&self, request: Request<Incoming>, until: Option<Instant>) -> Result<Answered, Failure> {
        let (mut request, client) = self.prepared(request, until).await?;
        loop {
            let (mut sender, kept) = match self.pool.take() {
                Some(sender) => (sender, true),
                None => (self.connect().await?, false),
            };
            if sender.ready().await.is_err() && kept {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease { sender, pool: Rc::clone(&self.pool) }, client)),
                // Nothing of it was sent: the function had closed a connection that was kept.
                Err(mut error) => match error.take_message() {
                    Some(back) if kept => request = back,
                    _ => {
                        let error = error.into_error();
                        if error.is_user() {
                            return Err(Failure::Unread(Unread(StatusCode::BAD_REQUEST, LATE_BODY.to_owned())));
                        }
                        let inner = std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default();
                        return Err(Failure::Broken(format!("{error}{inner}")));
                    }
                },
            }
        }
    }

    /// A fresh connection. A server that has never listened is waited for: it is about to.
    async fn connect(&self) -> Result<SendRequest<Upload>, Failure> {
        let stream = loop {
            match self.reach().await {
                Ok(stream) => break stream,
                Err(why) if self.listened.get() || self.ended.borrow().is_some() => return Err(Failure::Broken(why)),
                Err(_) => sleep(TRY).await,
            }
        };
        let mut client = http1::Builder::new();
        client.title_case_headers(true);
        let (sender, connection) =
            client.handshake(TokioIo::new(stream)).await.map_err(|e| Failure::Broken(e.to_string()))?;
        // What breaks it is told to its request.
        spawn_local(async move { connection.with_upgrades().await.is_ok() });
        Ok(sender)
    }

    async fn reach(&self) -> Result<TcpStream, String> {
        let mut why = String::new();
        for address in &self.to.addresses {
            match connected(*address).await {
                Ok(stream) => {
                    self.listened.set(true);
                    return Ok(stream);
                }
                Err(error) => why = format!("connecting to {address}: {error}"),
            }
        }
        Err(why)
    }

    /// What the function says to its `ready_path`, or 200 when it takes connections.
    pub(crate) async fn ready(&self) -> Result<StatusCode, String> {
        if self.ended.borrow().is_some() {
            return Err("the function has ended".to_owned());
        }
        let ask = async {
            let stream = self.reach().await?;
            let Some(path) = &self.settings.ready_path else { return Ok(StatusCode::OK) };
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("asking `{path}`: {e}"))?;
            let connection = spawn_local(connection);
            let request = Request::get(format!("{}{path}", self.to.prefix))
                .header(header::HOST, &self.to.authority)
                .header(header::USER_AGENT, "taper-watchdog")
                .body(Upload { from: Source::Memory(None), late: None });
            let asked = async {
                let request = request.map_err(|e| e.to_string())?;
                sender.send_request(request).await.map_err(|e| e.to_string())
            };
            let answer = asked.await;
            connection.abort();
            answer.map(|answer| answer.status()).map_err(|e| format!("asking `{path}`: {e}"))
        };
        timeout(PROBE, ask).await.unwrap_or_else(|_| Err(format!("no answer within {} s", PROBE.as_secs())))
    }
}

async fn connected(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The function's process as its end is waited for.
pub(crate) struct Running {
    order: watch::Sender<Option<Signal>>,
    ended: watch::Receiver<Option<Exit>>,
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        self.order.send_replace(Some(signal));
    }

    pub(crate) async fn ended(&mut self) -> Exit {
        match self.ended.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            _ => Exit::Signal(libc::SIGKILL),
        }
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE) && tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// The words of `Connection`.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',').map(str::trim))
}

/// Takes out what belongs to one connection only.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<String> = tokens(headers).map(str::to_owned).collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// From now on both ends say to each other what they like, for as long as they like.
fn switched(mut response: Response<Incoming>, client: OnUpgrade, conn: &Weak<Conn>, mut call: Call) -> Reply {
    Conn::set_until(conn, None);
    let function = hyper::upgrade::on(&mut response);
    let reply = reply::switched(response.headers(), &mut call);
    spawn_local(async move {
        if let (Ok(client), Ok(function)) = tokio::join!(client, function) {
            let (mut client, mut function) = (TokioIo::new(client), TokioIo::new(function));
            // Either end may break it off; the other then sees the end.
            let _ = copy_bidirectional(&mut client, &mut function).await;
        }
        drop(call);
    });
    reply
}

/// What can go wrong with a body on its way to the function.
const LATE_BODY: &str = "the request's body did not arrive within `read_timeout`, or broke off";

enum Source {
    Caller(Incoming),
    Memory(Option<Bytes>),
}

/// A request's body on its way to the function.
pub(crate) struct Upload {
    from: Source,
    late: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    /// Reads it in full, so that its length is known.
    async fn collect(mut self) -> Result<Self, Failure> {
        let mut body = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let data = frame
                .map_err(|Broken(why)| Failure::Unread(Unread(StatusCode::BAD_REQUEST, why.to_owned())))?
                .into_data()
                .unwrap_or_default();
            body.extend_from_slice(&data);
            if body.len() > COLLECT {
                return Err(Failure::Unread(Unread::too_large()));
            }
        }
        Ok(Self { from: Source::Memory(Some(body.freeze())), late: None })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let incoming = match &mut self.from {
            Source::Memory(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Caller(incoming) => incoming,
        };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(|_| Broken(LATE_BODY)))),
            Poll::Pending => {
                let Some(late) = &mut self.late else { return Poll::Pending };
                ready!(late.as_mut().poll(cx));
                Poll::Ready(Some(Err(Broken(LATE_BODY))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            Source::Caller(incoming) => incoming.is_end_stream(),
            Source::Memory(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            Source::Caller(incoming) => incoming.size_hint(),
            Source::Memory(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}
