//! The HTTP front: which request is the function's, and what every request goes through before it gets there.
//!
//! Never here: how the function is run.

use std::{cell::Cell, convert::Infallible, rc::Rc, str::FromStr, sync::Weak, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::{Body as _, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
};
use hyper_util::rt::TokioTimer;
use taper_model::quantity::Span;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use super::{
    files::Files,
    fork::Fork,
    metrics,
    reply::{Gate, Line, Reply, aside, text},
    settings::{Mode, Settings},
    stream::{Conn, Io},
    upstream::Server,
};

/// The most bytes that a request's head may have.
const MAX_HEAD: usize = 1 << 20;

/// The function, however it is run.
pub(crate) enum Function {
    Fork(Rc<Fork>),
    Http(Rc<Server>),
    Files(Files),
}

/// Everything a request meets.
pub(crate) struct Front {
    pub(crate) settings: Rc<Settings>,
    pub(crate) gate: Rc<Gate>,
    pub(crate) function: Function,
    /// False from the first word of the end.
    pub(crate) healthy: Cell<bool>,
}

impl Front {
    /// Takes connections until told to stop, and then ends when they have ended.
    pub(crate) async fn serve(self: Rc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let for_each = stop.clone();
        loop {
            tokio::select! {
                biased;
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn_local(Rc::clone(&self).converse(stream, for_each.clone()));
                    }
                    // Out of descriptors: the connection stays in the backlog until another has ended.
                    Err(_) => sleep(Duration::from_millis(10)).await,
                },
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn converse(self: Rc<Self>, stream: TcpStream, mut stop: watch::Receiver<bool>) {
        // Small pieces must not wait for the acknowledgement of others; a connection that refuses is about to end anyway.
        let _ = stream.set_nodelay(true);
        let io = Io::new(stream);
        let conn = io.conn();
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.settings.read_timeout).max_header_size(MAX_HEAD);
        http.max_buf_size(MAX_HEAD).title_case_headers(true);
        let service = hyper::service::service_fn(move |request| Rc::clone(&self).answer(request, Weak::clone(&conn)));
        let mut connection = std::pin::pin!(http.serve_connection(io, service).with_upgrades());
        tokio::select! {
            _ = &mut connection => return,
            _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>, conn: Weak<Conn>) -> Result<Reply, Infallible> {
        match request.uri().path() {
            "/_/health" => return self.health(request.method()),
            "/_/ready" => return self.ready().await,
            _ => {}
        }
        if request.method() == Method::CONNECT {
            // It asks for a proxy to somewhere else, which this is not.
            return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "", self.gate.enter(request.method())));
        }
        let most = self.settings.max_inflight;
        if most > 0 && self.gate.in_flight() >= most {
            let mut reply = text(StatusCode::TOO_MANY_REQUESTS, exceeded(most), self.gate.enter(request.method()));
            reply.headers_mut().insert("x-openfaas-internal", HeaderValue::from_static("faas-middleware"));
            return Ok(reply);
        }
        let mut call = self.gate.enter(request.method());
        let deadline = self.limit(request.headers()).map(|limit| call.began + limit);
        Conn::set_until(&conn, deadline);
        if self.settings.mode != Mode::Classic && self.settings.mode != Mode::Static {
            let id = |headers: &HeaderMap| {
                headers.get("x-call-id").and_then(|id| id.to_str().ok()).unwrap_or("none").to_owned()
            };
            call.set_line(Line {
                request: format!("{} {}", request.method(), request.uri().path_and_query().map_or("/", |p| p.as_str())),
                reason: self.settings.mode == Mode::Http,
                id: self.settings.log_callid.then(|| id(request.headers())),
            });
        }
        let old = request.version() == Version::HTTP_10;
        let mut reply = match &self.function {
            Function::Fork(fork) => Rc::clone(fork).answer(request, conn, deadline, call).await,
            Function::Http(server) => Rc::clone(server).pass(request, conn, deadline, call).await,
            Function::Files(files) => files.answer(&request, call),
        };
        if old && reply.body().size_hint().exact().is_none() {
            // HTTP/1.0 has no chunks: the end of such an answer is the end of its connection, whatever its caller asked for.
            // In the caller's version, or hyper would promise to keep it.
            *reply.version_mut() = Version::HTTP_10;
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(reply)
    }

    /// How long this request may take: what is set, and no longer than its caller wants to wait.
    fn limit(&self, headers: &HeaderMap) -> Option<Duration> {
        let wanted = headers.get("x-timeout").and_then(|value| Span::from_str(value.to_str().ok()?).ok());
        self.settings.limit().into_iter().chain(wanted.map(|span| span.0).filter(|d| !d.is_zero())).min()
    }

    fn health(&self, method: &Method) -> Result<Reply, Infallible> {
        if method != Method::GET {
            return aside(StatusCode::METHOD_NOT_ALLOWED, "");
        }
        let locked = self.settings.lock.as_ref().is_none_or(|lock| lock.exists());
        if self.healthy.get() && locked {
            aside(StatusCode::OK, "OK")
        } else {
            aside(StatusCode::SERVICE_UNAVAILABLE, "")
        }
    }

    /// Whether a request that came now would be answered by the function.
    async fn ready(&self) -> Result<Reply, Infallible> {
        let most = self.settings.max_inflight;
        if !self.healthy.get() {
            return aside(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        if most > 0 && self.gate.in_flight() >= most {
            return aside(StatusCode::TOO_MANY_REQUESTS, exceeded(most));
        }
        match &self.function {
            Function::Http(server) => match server.ready().await {
                Ok(status) => aside(status, ""),
                Err(why) => aside(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            Function::Fork(fork) => match fork.find() {
                Ok(_) => aside(StatusCode::OK, ""),
                Err(why) => aside(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            Function::Files(files) if files.is_there() => aside(StatusCode::OK, ""),
            Function::Files(_) => aside(StatusCode::SERVICE_UNAVAILABLE, "the folder of `static_path` is not there\n"),
        }
    }
}

fn exceeded(most: usize) -> String {
    format!("Concurrent request limit exceeded. Max concurrent requests: {most}\n")
}

/// Serves what is counted, and nothing else, for as long as it is polled.
pub(crate) async fn tell(listener: TcpListener, gate: Rc<Gate>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let gate = Rc::clone(&gate);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut reply = Response::new(Full::new(Bytes::new()));
            if request.uri().path() == "/metrics" {
                reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
                *reply.body_mut() = Full::new(gate.metrics.text(gate.in_flight()).into());
            } else {
                *reply.status_mut() = StatusCode::NOT_FOUND;
            }
            std::future::ready(Ok::<_, Infallible>(reply))
        });
        tokio::task::spawn_local(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
            // Whoever scrapes has gone when this fails.
            let _ = http.serve_connection(Io::new(stream), service).await;
        });
    }
}
