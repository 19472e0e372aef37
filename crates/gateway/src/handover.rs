//! A successor: the sockets that it listens on after us, and the connections that it goes on with. Never opens a socket and never
//! speaks on one.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::{Arc, Weak},
};

use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::TaskTracker;

/// Connections on their way from one gateway to the next, each with its other end's address.
pub(crate) type Passed = (TcpStream, SocketAddr);

/// The sockets that a gateway listens on. What is none is not listened on, or not inherited.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For calls.
    pub http: Option<std::net::TcpListener>,
    /// For calls over TLS.
    pub https: Option<std::net::TcpListener>,
    /// For metrics alone.
    pub metrics: Option<std::net::TcpListener>,
}

/// How a gateway ends.
#[derive(Debug)]
pub enum End {
    /// For good: connections that are idle are closed, and new calls are refused.
    Drain,
    /// A successor listens on clones of our sockets and goes on with what it is sent here: plain HTTP/1.1 connections on which not
    /// one byte of a next request has been read. Nothing is refused; what cannot be handed over ends when its calls have.
    HandOver(mpsc::UnboundedSender<(TcpStream, SocketAddr)>),
}

/// A running gateway's sockets: gives them to a successor, and takes a predecessor's connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Adopt {
    taken: mpsc::UnboundedSender<Passed>,
    open: Arc<Open>,
    writes: TaskTracker,
}

/// What is listened on, for as long as it is.
#[derive(Debug, Default)]
struct Open {
    http: Weak<TcpListener>,
    https: Weak<TcpListener>,
    metrics: Weak<TcpListener>,
}

impl Adopt {
    pub(crate) fn new(
        http: &Arc<TcpListener>,
        https: Option<&Arc<TcpListener>>,
        metrics: Option<&Arc<TcpListener>>,
        writes: TaskTracker,
    ) -> (Self, mpsc::UnboundedReceiver<Passed>) {
        let (taken, takes) = mpsc::unbounded_channel();
        let weak = |listener: Option<&Arc<TcpListener>>| listener.map(Arc::downgrade).unwrap_or_default();
        let open = Open { http: Arc::downgrade(http), https: weak(https), metrics: weak(metrics) };
        (Self { taken, open: Arc::new(open), writes }, takes)
    }

    /// Goes on with a connection that a predecessor has served so far: plain HTTP/1.1, between two requests. A gateway that has not
    /// begun to run serves it when it does; one that has handed over passes it on for as long as it runs; one that drains, or has ended,
    /// closes it.
    pub fn take(&self, stream: TcpStream, peer: SocketAddr) {
        let _ = self.taken.send((stream, peer));
    }

    /// Waits until no change and no call whose caller does not wait is on its way into a store or a queue. More may come as long as requests
    /// do. Cancel safe.
    pub async fn written(&self) {
        self.writes.close();
        self.writes.wait().await;
    }

    /// Clones of the sockets that are listened on now, for a successor; none of them when the gateway has been told to end. What waits in
    /// their backlogs waits until all clones are gone.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn listeners(&self) -> io::Result<Listeners> {
        let clone = |listener: &Weak<TcpListener>| {
            listener.upgrade().map(|l| l.as_fd().try_clone_to_owned().map(Into::into)).transpose()
        };
        let open = &self.open;
        Ok(Listeners { http: clone(&open.http)?, https: clone(&open.https)?, metrics: clone(&open.metrics)? })
    }
}
