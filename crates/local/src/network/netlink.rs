//! The few requests to the kernel's interface list that a sandbox's link needs.
//!
//! Owns the bytes of rtnetlink (rtnetlink(7)): links, IPv4 addresses and routes. It never decides which; and it is written out
//! here because pid 1 of a sandbox uses it too, where nothing larger belongs. One request is one system call out and one back.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

use crate::sandbox::Route;

/// The loopback link is the first of every network namespace.
const LOOPBACK: u32 = 1;
/// `VETH_INFO_PEER` of `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
/// `RTNH_F_ONLINK` of `linux/rtnetlink.h`: the gateway needs no route of its own.
const ON_LINK: u32 = 4;
/// `IFLA_INET6_ADDR_GEN_MODE` and `IN6_ADDR_GEN_MODE_NONE` of `linux/if_link.h`.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const HEADER: usize = 16;
/// Requests in one message. The answers to all of them must find room in the socket.
const AT_ONCE: usize = 64;

/// A conversation with the kernel about the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

/// A link of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
}

/// An IPv4 network: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network4 {
    pub(crate) address: Ipv4Addr,
    pub(crate) bits: u8,
}

impl Network4 {
    /// The network that holds `address`.
    pub(crate) fn of(address: Ipv4Addr, bits: u8) -> Network4 {
        let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
        Network4 { address: Ipv4Addr::from_bits(address.to_bits() & mask), bits: bits.min(32) }
    }

    /// Whether any address lies in both.
    pub(crate) fn overlaps(self, other: Network4) -> bool {
        let bits = self.bits.min(other.bits);
        Network4::of(self.address, bits) == Network4::of(other.address, bits)
    }
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Netlink> {
        // No protocol is protocol 0, which is the interface list.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Netlink { socket })
    }

    /// Brings loopback up, which also gives it its addresses.
    pub(crate) fn raise_loopback(&self) -> io::Result<()> {
        self.ask(Request::raise(LOOPBACK))
    }

    /// The index of the link called `name`.
    pub(crate) fn index(&self, name: &str) -> io::Result<u32> {
        let request = Request::new(libc::RTM_GETLINK, 0).body(&link_body(0, 0)).text(libc::IFLA_IFNAME, name);
        let replies = self.exchange(request)?;
        let found = replies.iter().find_map(|reply| parse_link(reply));
        found.map(|link| link.index).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Makes a pair of links: `name` here, already up, and `peer` in the network namespace of process `pid`.
    pub(crate) fn make_pair(&self, name: &str, peer: &str, pid: u32) -> io::Result<()> {
        let other = Request::new(0, 0)
            .body(&link_body(0, 0))
            .text(libc::IFLA_IFNAME, peer)
            .attribute(libc::IFLA_NET_NS_PID, &pid.to_ne_bytes());
        let data = Request::nest(VETH_INFO_PEER, other.payload());
        let kind = Request::nest(libc::IFLA_INFO_KIND, b"veth");
        let info: Vec<u8> = [kind, Request::nest(libc::IFLA_INFO_DATA, &data)].concat();
        let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            .body(&link_body(0, libc::IFF_UP))
            .text(libc::IFLA_IFNAME, name)
            .attribute(libc::IFLA_LINKINFO, &info);
        self.ask(request)
    }

    /// Removes a link, and with it the other end of its pair.
    pub(crate) fn delete(&self, link: u32) -> io::Result<()> {
        self.ask(Request::new(libc::RTM_DELLINK, 0).body(&link_body(link, 0)))
    }

    /// All links of this namespace.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP).body(&link_body(0, 0));
        Ok(self.exchange(request)?.iter().filter_map(|reply| parse_link(reply)).collect())
    }

    /// Every IPv4 network that this namespace has an address in or a route to, except the default route.
    pub(crate) fn networks(&self) -> io::Result<Vec<Network4>> {
        let addresses = self.exchange(Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP).body(&ifaddr_body()))?;
        let mut route = [0; 12];
        route[0] = family(libc::AF_INET);
        let routes = self.exchange(Request::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP).body(&route))?;
        // Both bodies begin with the family and the number of bits.
        let network = |reply: &Vec<u8>, body, attribute| {
            let bits = *reply.get(1)?;
            let address = attributes(reply.get(body..)?).find(|(kind, _)| *kind == attribute)?.1;
            Some(Network4::of(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?), bits))
        };
        let addresses = addresses.iter().filter_map(|reply| network(reply, 8, libc::IFA_ADDRESS));
        Ok(addresses.chain(routes.iter().filter_map(|reply| network(reply, 12, libc::RTA_DST))).collect())
    }

    /// Every IPv4 address of this namespace, once.
    pub(crate) fn addresses(&self) -> io::Result<Vec<Ipv4Addr>> {
        let replies = self.exchange(Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP).body(&ifaddr_body()))?;
        let own = |reply: &Vec<u8>| {
            let value = attributes(reply.get(8..)?).find(|(kind, _)| *kind == libc::IFA_LOCAL)?.1;
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
        };
        // Every link of a platform has the same one.
        let found: BTreeSet<Ipv4Addr> = replies.iter().filter_map(own).collect();
        Ok(found.into_iter().collect())
    }

    /// Makes several requests in few messages, in their order. The first refusal is told; the others are made all the same.
    pub(crate) fn all(&self, requests: Vec<Request>) -> io::Result<()> {
        let mut refused = Ok(());
        let mut requests = requests.into_iter().map(Request::finish).peekable();
        while requests.peek().is_some() {
            let some: Vec<Vec<u8>> = requests.by_ref().take(AT_ONCE).collect();
            send(&self.socket, &some.concat(), SendFlags::empty())?;
            let mut left = some.len();
            self.read(|kind, body| {
                if i32::from(kind) == libc::NLMSG_ERROR {
                    left -= 1;
                    refused = std::mem::replace(&mut refused, Ok(())).and_then(|()| error(body));
                }
                left == 0
            })?;
        }
        refused
    }

    pub(crate) fn ask(&self, request: Request) -> io::Result<()> {
        self.all(vec![request])
    }

    /// Sends one request and collects the bodies of the answers until the kernel says that they are all.
    fn exchange(&self, request: Request) -> io::Result<Vec<Vec<u8>>> {
        send(&self.socket, &request.finish(), SendFlags::empty())?;
        let (mut answers, mut end) = (Vec::new(), Ok(()));
        self.read(|kind, body| {
            match i32::from(kind) {
                libc::NLMSG_ERROR => end = error(body),
                libc::NLMSG_DONE => {}
                libc::NLMSG_NOOP => return false,
                _ => {
                    answers.push(body.to_vec());
                    return false;
                }
            }
            true
        })?;
        end.map(|()| answers)
    }

    /// Reads messages until one is the last.
    fn read(&self, mut last: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let (length, _) = recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, after)) = split_message(rest) {
                rest = after;
                if last(kind, body) {
                    return Ok(());
                }
            }
        }
    }
}

/// One request.
#[derive(Debug)]
pub(crate) struct Request(Vec<u8>);

impl Request {
    /// Brings a link up.
    pub(crate) fn raise(link: u32) -> Request {
        Request::new(libc::RTM_NEWLINK, 0).body(&link_body(link, libc::IFF_UP))
    }

    /// Keeps a link from giving itself an IPv6 address when it is brought up.
    pub(crate) fn no_ipv6(link: u32) -> Request {
        let mode = Request::nest(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
        let family = Request::nest(u16::from(family(libc::AF_INET6)), &mode);
        Request::new(libc::RTM_NEWLINK, 0).body(&link_body(link, 0)).attribute(libc::IFLA_AF_SPEC, &family)
    }

    /// Gives a link the address `own`, and a route to `peer`, the one neighbour on it, unless that is the same.
    pub(crate) fn assign(link: u32, own: Ipv4Addr, peer: Ipv4Addr) -> Request {
        let [a, b, c, d] = link.to_ne_bytes();
        Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            .body(&[family(libc::AF_INET), 32, 0, 0, a, b, c, d])
            .attribute(libc::IFA_LOCAL, &own.octets())
            .attribute(libc::IFA_ADDRESS, &peer.octets())
    }

    /// Sends whatever has no other route to `gateway`, which is on the link whatever the routes say.
    pub(crate) fn route_default(link: u32, gateway: Ipv4Addr) -> Request {
        new_route(0, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST, ON_LINK)
            .attribute(libc::RTA_GATEWAY, &gateway.octets())
            .attribute(libc::RTA_OIF, &link.to_ne_bytes())
    }

    /// Refuses whatever is sent to the network, unless a longer prefix says otherwise.
    fn route_nowhere(address: Ipv4Addr, bits: u8) -> Request {
        new_route(bits, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNREACHABLE, 0).attribute(libc::RTA_DST, &address.octets())
    }

    /// What an instance's own table says of one place.
    pub(crate) fn route(link: u32, route: &Route) -> Request {
        match *route {
            Route::Closed { address, bits } => Request::route_nowhere(address, bits),
            Route::Open { address, via } => Request::route_to(link, address, via),
        }
    }

    /// Sends to one address, over `via` or as to a neighbour on the link.
    fn route_to(link: u32, address: Ipv4Addr, via: Option<Ipv4Addr>) -> Request {
        let (scope, flags) = if via.is_some() { (libc::RT_SCOPE_UNIVERSE, ON_LINK) } else { (libc::RT_SCOPE_LINK, 0) };
        let request = new_route(32, scope, libc::RTN_UNICAST, flags).attribute(libc::RTA_DST, &address.octets());
        let request = request.attribute(libc::RTA_OIF, &link.to_ne_bytes());
        match via {
            Some(via) => request.attribute(libc::RTA_GATEWAY, &via.octets()),
            None => request,
        }
    }

    fn new(kind: u16, flags: libc::c_int) -> Request {
        let dump = flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
        let flags = flags | libc::NLM_F_REQUEST | if dump { 0 } else { libc::NLM_F_ACK };
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        Request(bytes)
    }

    fn body(mut self, bytes: &[u8]) -> Request {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        self.0.extend_from_slice(&Request::nest(kind, value));
        self
    }

    fn text(self, kind: u16, value: &str) -> Request {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// One attribute: length, kind, value, padding to four bytes.
    fn nest(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = (value.len() + 4) as u16;
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn payload(&self) -> &[u8] {
        self.0.get(HEADER..).unwrap_or_default()
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// `rtmsg`: family, bits of destination and source, service, table, origin, scope, kind, flags. A route that is there already
/// is replaced.
fn new_route(bits: u8, scope: u8, kind: u8, flags: u32) -> Request {
    let mut body = [0; 12];
    body[0] = family(libc::AF_INET);
    body[1] = bits;
    body[4..8].copy_from_slice(&[libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope, kind]);
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE).body(&body)
}

/// `ifinfomsg`: family, padding, type, index, flags, which flags change.
fn link_body(index: u32, up: libc::c_int) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&up.to_ne_bytes());
    body[12..16].copy_from_slice(&up.to_ne_bytes());
    body
}

/// `ifaddrmsg` that asks for IPv4.
fn ifaddr_body() -> [u8; 8] {
    let mut body = [0; 8];
    body[0] = family(libc::AF_INET);
    body
}

fn parse_link(reply: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(reply.get(4..8)?.try_into().ok()?);
    let name = attributes(reply.get(16..)?).find(|(kind, _)| *kind == libc::IFLA_IFNAME)?.1;
    Some(Link { index, name: String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned() })
}

/// The next message of a datagram: its kind, its body, and what follows.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// An acknowledgement is an error of number zero.
fn error(body: &[u8]) -> io::Result<()> {
    match body.get(..4).and_then(|number| number.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn family(family: libc::c_int) -> u8 {
    family as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        let network = |a, b, c, d, bits| Network4 { address: Ipv4Addr::new(a, b, c, d), bits };
        assert!(network(10, 0, 0, 0, 8).overlaps(network(10, 77, 0, 0, 16)));
        assert!(network(10, 77, 0, 0, 16).overlaps(network(10, 77, 3, 4, 32)));
        assert!(!network(10, 77, 0, 0, 16).overlaps(network(10, 78, 0, 0, 16)));
        assert!(network(0, 0, 0, 0, 0).overlaps(network(192, 0, 2, 1, 32)));
    }

    #[test]
    fn the_kernel_lists_loopback() {
        let netlink = Netlink::open().expect("opens");
        let links = netlink.links().expect("lists");
        assert!(links.contains(&Link { index: LOOPBACK, name: "lo".to_owned() }), "{links:?}");
        assert_eq!(netlink.index("lo").expect("finds"), LOOPBACK);
        assert!(netlink.index("no-such-link").is_err());
        netlink.networks().expect("lists");
    }

    #[test]
    fn more_requests_than_one_message_takes_are_all_answered() {
        let netlink = Netlink::open().expect("opens");
        let asked = (0..2000).map(|_| Request::raise(u32::MAX >> 1)).collect();
        let refused = netlink.all(asked).expect_err("there is no such link");
        // Without the right to do so it is refused for that.
        assert!(matches!(refused.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{refused}");
        netlink.links().expect("nothing is left unread");
    }

    #[test]
    fn cut_messages_are_not_read_past_their_end() {
        assert!(split_message(&[]).is_none());
        assert!(split_message(&[255, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
        assert_eq!(attributes(&[9, 0, 3, 0, 1, 2]).count(), 0);
        assert_eq!(attributes(&[0, 0, 3, 0, 1, 2]).count(), 0);
    }
}
