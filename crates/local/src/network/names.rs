//! How instances resolve names.
//!
//! Owns the reading of the host's `resolv.conf` and a small forwarder for the hosts whose resolver an instance could not reach:
//! a stub on loopback, a link-local address, one without IPv4. It passes questions and answers on as they are, and
//! never reads one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PORT: u16 = 53;
/// Questions under way at once; more are dropped, and asked again by whoever waits.
const MOST_QUESTIONS: usize = 512;
/// Connections under way at once.
const MOST_STREAMS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(4);
const STREAM_PATIENCE: Duration = Duration::from_secs(20);
const LARGEST: usize = 4096;

/// What the host's `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolvers {
    pub(super) servers: Vec<IpAddr>,
    /// The lines about search domains and options, kept as they are.
    pub(super) rest: Vec<String>,
}

impl Resolvers {
    /// Reads resolv.conf(5).
    pub(super) fn parse(text: &str) -> Resolvers {
        let mut found = Resolvers::default();
        for line in text.lines().map(str::trim) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), Some(server)) => {
                    // A link-local server has a zone after its address.
                    found.servers.extend(server.split('%').next().and_then(|server| server.parse::<IpAddr>().ok()));
                }
                (Some("search" | "domain" | "options"), Some(_)) => found.rest.push(line.to_owned()),
                _ => {}
            }
        }
        found
    }

    /// The servers that an instance can ask by itself: over IPv4, and not on this host, whose own addresses are `host`.
    pub(super) fn reachable(&self, host: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        let usable = |server: &IpAddr| match server {
            IpAddr::V4(server) => {
                let special = server.is_loopback() || server.is_link_local() || server.is_unspecified();
                (!special && !host.contains(server)).then_some(*server)
            }
            IpAddr::V6(_) => None,
        };
        self.servers.iter().filter_map(usable).collect()
    }

    /// A `resolv.conf` with other servers and the same search domains.
    pub(super) fn with_servers(&self, servers: &[Ipv4Addr]) -> String {
        let servers = servers.iter().take(3).map(|server| format!("nameserver {server}\n"));
        servers.chain(self.rest.iter().map(|line| format!("{line}\n"))).collect()
    }
}

/// Answers at `address` by asking the host's own resolvers. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Forwarder {
    _tasks: JoinSet<()>,
}

impl Forwarder {
    /// Binds both sockets. The address need not exist yet: it comes with the first link.
    pub(super) fn start(address: Ipv4Addr, servers: Vec<IpAddr>) -> io::Result<Forwarder> {
        let servers: Arc<[SocketAddr]> = servers.into_iter().map(|server| SocketAddr::new(server, PORT)).collect();
        Forwarder::over(socket(address, SocketType::DGRAM)?, socket(address, SocketType::STREAM)?, &servers)
    }

    fn over(datagrams: OwnedFd, streams: OwnedFd, servers: &Arc<[SocketAddr]>) -> io::Result<Forwarder> {
        let datagrams = UdpSocket::from_std(datagrams.into())?;
        let streams = TcpListener::from_std(streams.into())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(forward_datagrams(Arc::new(datagrams), Arc::clone(servers)));
        tasks.spawn(forward_streams(streams, Arc::clone(servers)));
        Ok(Forwarder { _tasks: tasks })
    }
}

fn socket(address: Ipv4Addr, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_ip_freebind(&socket, true)?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddrV4::new(address, PORT))?;
    if kind == SocketType::STREAM {
        listen(&socket, 128)?;
    }
    Ok(socket)
}

async fn forward_datagrams(socket: Arc<UdpSocket>, servers: Arc<[SocketAddr]>) {
    let room = Arc::new(Semaphore::new(MOST_QUESTIONS));
    let mut buffer = vec![0; LARGEST];
    loop {
        // An error here is about an earlier answer that could not be delivered.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        let question = buffer.get(..length).unwrap_or_default().to_vec();
        let (socket, servers) = (Arc::clone(&socket), Arc::clone(&servers));
        tokio::spawn(async move {
            let _place = place;
            for server in servers.iter() {
                if let Ok(Ok(answer)) = timeout(PATIENCE, ask(*server, &question)).await {
                    // The one who asked may be gone.
                    let _ = socket.send_to(&answer, from).await;
                    return;
                }
            }
        });
    }
}

/// One question to one server, from a port of its own: a connected socket takes answers from nobody else.
async fn ask(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; LARGEST];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn forward_streams(listener: TcpListener, servers: Arc<[SocketAddr]>) {
    let room = Arc::new(Semaphore::new(MOST_STREAMS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: let others finish first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let servers = Arc::clone(&servers);
        tokio::spawn(async move {
            let _place = place;
            for server in servers.iter() {
                if let Ok(Ok(mut upstream)) = timeout(PATIENCE, TcpStream::connect(server)).await {
                    // Whoever breaks off first ends it for both.
                    let _ = timeout(STREAM_PATIENCE, copy_bidirectional(&mut stream, &mut upstream)).await;
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_servers_that_an_instance_reaches_are_given_to_it() {
        let text = "# by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n nameserver 169.254.169.253\n\
                    nameserver 198.51.100.7\nnameserver 2001:db8::1\nsearch a.example b.example\noptions ndots:2\nnameserver x\n";
        let resolvers = Resolvers::parse(text);
        assert_eq!(resolvers.servers.len(), 6);
        let reachable = resolvers.reachable(&[Ipv4Addr::new(198, 51, 100, 7)]);
        assert_eq!(reachable, [Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!(
            resolvers.with_servers(&reachable),
            "nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:2\n"
        );
    }

    /// A server on loopback that answers with the question reversed.
    async fn reversing_server() -> (SocketAddr, JoinSet<()>) {
        let streams = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = streams.local_addr().expect("bound");
        let datagrams = UdpSocket::bind(address).await.expect("binds");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = [0; LARGEST];
            loop {
                let (length, from) = datagrams.recv_from(&mut buffer).await.expect("receives");
                buffer[..length].reverse();
                datagrams.send_to(&buffer[..length], from).await.expect("sends");
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = streams.accept().await.expect("accepts");
                let mut text = [0; 3];
                stream.read_exact(&mut text).await.expect("reads");
                text.reverse();
                stream.write_all(&text).await.expect("writes");
            }
        });
        (address, tasks)
    }

    #[tokio::test]
    async fn questions_reach_the_first_server_that_answers_over_both_transports() {
        let (server, _tasks) = reversing_server().await;
        let free = |kind| {
            let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
            let socket = socket.expect("makes");
            bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("binds");
            socket
        };
        let (datagrams, streams) = (free(SocketType::DGRAM), free(SocketType::STREAM));
        listen(&streams, 8).expect("listens");
        let place = |socket: &OwnedFd| -> SocketAddr {
            rustix::net::getsockname(socket).expect("bound").try_into().expect("an internet address")
        };
        let (udp, tcp) = (place(&datagrams), place(&streams));
        // Nothing listens at the first: the kernel says so at once.
        let dead: SocketAddr = (Ipv4Addr::LOCALHOST, 1).into();
        let _forwarder = Forwarder::over(datagrams, streams, &[dead, server].into()).expect("starts");

        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        client.send_to(b"abc", udp).await.expect("sends");
        let mut answer = [0; 8];
        let (length, _) = client.recv_from(&mut answer).await.expect("receives");
        assert_eq!(&answer[..length], b"cba");

        let mut stream = TcpStream::connect(tcp).await.expect("connects");
        stream.write_all(b"xyz").await.expect("writes");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("reads");
        assert_eq!(answer, b"zyx");
    }
}
