//! Links of instances, made as root: a thread that talks to the kernel, and the table and switch around it.
//!
//! Owns the life of one platform's links. The kernel makes and removes links one at a time under one lock, so one thread does it
//! for all. Removing one holds that lock for some 10 ms while the kernel waits for every processor, and a link goes by itself with
//! its instance's namespace, many at once; so what is given back is only looked at when nothing else is to be done. The other end
//! of a link is born in the instance's namespace and set up there before anybody waits for it; a thread that enters one never
//! comes back, it ends.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::addresses::{Loan, Pool, block_at, choose};
use super::names::{Forwarder, Resolvers};
use super::netlink::{Netlink, Request};
use super::routes::Surroundings;
use super::rules::{self, Rules};
use super::{Address, Config, Kept, Outbound, Policy, Refusal};
use crate::sandbox::{Mark, Route};
use crate::{Error, Generation};

/// How long nothing must have been asked for before links given back are looked at, and how many may wait for that.
const QUIET: Duration = Duration::from_millis(300);
const MOST_RETIRED: usize = 512;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The links of one platform.
#[derive(Debug)]
pub(super) struct Links {
    jobs: mpsc::Sender<Job>,
    resolv_conf: String,
    program: PathBuf,
    generation: Generation,
    _forwarder: Option<Forwarder>,
    /// Those of instances that have outlived another platform, until they are taken over.
    kept: Mutex<HashMap<u32, Made>>,
    /// Also noted in the table, for others; kept here for when somebody has flushed the ruleset.
    forwarding_was_off: bool,
}

/// One link. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Link {
    made: Option<Made>,
    mark: Mark,
    jobs: mpsc::Sender<Job>,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    index: u32,
    /// Of its policy, in its name.
    letter: char,
    loan: Loan,
    gateway: Ipv4Addr,
}

impl Made {
    /// The name of the platform's end.
    fn name(mark: &Mark, letter: char, number: u32) -> String {
        format!("{}{letter}{number:x}", rules::prefix(mark))
    }
}

enum Job {
    Make {
        policy: Policy,
        pid: u32,
        answer: oneshot::Sender<io::Result<Made>>,
    },
    /// Given back, soon to be gone with its namespace.
    Retire(Made),
    /// To be removed now.
    Remove(Made, oneshot::Sender<()>),
    RemoveAll(oneshot::Sender<io::Result<()>>),
}

/// What was found and done at the start.
struct Ground {
    program: PathBuf,
    rules: Rules,
    netlink: Netlink,
    host: Vec<Ipv4Addr>,
    pool: Pool,
    kept: HashMap<u32, Made>,
}

impl Links {
    pub(super) async fn start(
        generation: &Generation,
        resolv_conf: &str,
        config: &Config,
    ) -> Result<(Links, Outbound), Refusal> {
        let (life, left, keeper) = (generation.clone(), config.kept.clone(), config.keeper);
        let ground = tokio::task::spawn_blocking(move || {
            let turn = exclusively().map_err(|why| refusal(format!("{FORWARDING}: {why}"), ""))?;
            Ok((turn, Ground::prepare(&life, &left, keeper)?))
        });
        let (turn, ground) = ground.await.map_err(|why| refusal(why.to_string(), ""))??;
        let Ground { program, mut rules, netlink, host, pool, kept } = ground;

        let known = Resolvers::parse(resolv_conf);
        let reachable = known.reachable(&host);
        let (mut forwarder, mut servers, mut names) = (None, reachable.clone(), "the host's resolvers".to_owned());
        if reachable.is_empty() && !known.servers.is_empty() {
            match Forwarder::start(rules.gateway, known.servers.clone()) {
                Ok(started) => {
                    forwarder = Some(started);
                    servers = vec![rules.gateway];
                    names = format!("a forwarder of the platform at {}", rules.gateway);
                }
                Err(why) => {
                    names = format!("not at all: the host's resolvers are its own, and port 53 is taken: {why}");
                }
            }
        } else if reachable.is_empty() {
            names = "not at all: the host has no resolver".to_owned();
        }
        rules.resolvers = reachable;
        rules.forwarder = forwarder.is_some();
        let (text, path) = (rules.text(), program.clone());
        let loaded =
            tokio::task::spawn_blocking(move || rules::load(&path, &text).and_then(|()| forwarding(true))).await;
        if let Ok(Err(why)) = loaded {
            // Without its rules nothing may be connected.
            let _ = rules::remove(&program, &rules.mark);
            return Err(refusal(why.to_string(), "look at what the message names, and start again"));
        }
        drop(turn);

        let outbound = Outbound::Links {
            table: rules::table(&rules.mark),
            links: rules::prefix(&rules.mark),
            block: format!("{}/{}", rules.block.address, rules.block.bits),
            forwarding_turned_on: rules.forwarding_was_off,
            names,
        };
        let forwarding_was_off = rules.forwarding_was_off;
        let (jobs, work) = mpsc::channel();
        let mark = rules.mark;
        let surroundings = Surroundings {
            host,
            closed: vec![rules.block],
            resolvers: rules.resolvers,
            via: Some(rules.gateway),
            ..Surroundings::default()
        };
        let routes = |policy| {
            let mut routes = surroundings.routes(policy);
            // The gateway lies in the closed block, and is only spoken to where it answers for names.
            routes.extend(forwarder.is_some().then_some(Route::Open { address: rules.gateway, via: None }));
            routes
        };
        let (open, public) = (routes(Policy::Open), routes(Policy::Public));
        std::thread::Builder::new()
            .name("taper-links".to_owned())
            .spawn(move || Worker { netlink, pool, mark, open, public, retired: Vec::new() }.run(&work))
            .map_err(|why| refusal(why.to_string(), ""))?;
        let resolv_conf = known.with_servers(&servers);
        let generation = generation.clone();
        let kept = Mutex::new(kept);
        let links = Links { jobs, resolv_conf, program, generation, kept, _forwarder: forwarder, forwarding_was_off };
        Ok((links, outbound))
    }

    pub(super) fn resolv_conf(&self) -> &str {
        &self.resolv_conf
    }

    /// Makes the link of the instance whose pid 1 is `pid`, and sets up both ends.
    pub(super) async fn make(&self, policy: Policy, pid: u32) -> Result<Link, Error> {
        let (answer, answered) = oneshot::channel();
        let stopped = || io::Error::other("it is being taken down");
        let asked = self.jobs.send(Job::Make { policy, pid, answer });
        let made = match asked {
            Ok(()) => answered.await.unwrap_or_else(|_| Err(stopped())),
            Err(_) => Err(stopped()),
        };
        let made = made.map_err(Error::network("the link of an instance"))?;
        Ok(Link { made: Some(made), mark: self.generation.mark().clone(), jobs: self.jobs.clone() })
    }

    /// Takes over the link with this number.
    pub(super) fn adopt(&self, number: u32) -> Option<Link> {
        let made = self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)?;
        Some(Link { made: Some(made), mark: self.generation.mark().clone(), jobs: self.jobs.clone() })
    }

    /// Notes who else the table belongs to.
    pub(super) async fn kept_by(&self, keeper: u32) -> io::Result<()> {
        let (program, generation) = (self.program.clone(), self.generation.clone());
        let noted = tokio::task::spawn_blocking(move || rules::kept_by(&program, generation.mark(), keeper));
        noted.await.unwrap_or_else(|why| Err(io::Error::other(why)))
    }

    /// Removes every link, the table, and the change of forwarding.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let links = match self.jobs.send(Job::RemoveAll(answer)) {
            Ok(()) => answered.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        };
        let (program, generation, was_off) = (self.program.clone(), self.generation.clone(), self.forwarding_was_off);
        let table = tokio::task::spawn_blocking(move || {
            let _turn = exclusively()?;
            let mark = generation.mark();
            let found = rules::find(&program, mark, |number| generation.lives(number))?;
            rules::remove(&program, mark)?;
            // While another platform needs it, it stays; its table says that it is to be turned off.
            if (was_off || found.forwarding_was_off) && found.others == 0 { forwarding(false) } else { Ok(()) }
        });
        let table = table.await.unwrap_or_else(|why| Err(io::Error::other(why)));
        links.map_err(Error::network("removing links"))?;
        table.map_err(Error::network("removing the table"))
    }
}

impl Link {
    pub(super) fn address(&self) -> Address {
        let unset = Ipv4Addr::UNSPECIFIED;
        self.made.map_or(Address { own: unset, gateway: unset }, |made| Address {
            own: made.loan.address,
            gateway: made.gateway,
        })
    }
}

impl Link {
    /// What whoever takes it over must know.
    pub(super) fn kept(&self) -> Kept {
        self.made.map_or(Kept::Nothing, |made| Kept::Link {
            name: Made::name(&self.mark, made.letter, made.loan.number),
            number: made.loan.number,
            block: Ipv4Addr::from_bits(made.loan.address.to_bits() - made.loan.number),
        })
    }

    /// Removes it now, and returns when it is gone.
    pub(super) async fn remove(mut self) {
        if let Some(made) = self.made.take() {
            let (answer, answered) = oneshot::channel();
            if self.jobs.send(Job::Remove(made, answer)).is_ok() {
                // No answer means that everything was removed already.
                let _ = answered.await;
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            // When nobody takes jobs any more, everything has been removed already.
            let _ = self.jobs.send(Job::Retire(made));
        }
    }
}

impl Ground {
    /// Looks at the host, sweeps what a killed platform left, and decides what the rules will be. Blocks.
    // long because: the order of looking and sweeping is the content
    fn prepare(generation: &Generation, left: &[Kept], keeper: Option<u32>) -> Result<Ground, Refusal> {
        let mark = generation.mark();
        let capable = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN));
        if !capable {
            return Err(refusal(
                "this account may not make links (no CAP_NET_ADMIN)".to_owned(),
                "start the platform as root",
            ));
        }
        let netlink = Netlink::open().map_err(|why| refusal(format!("the interface list: {why}"), ""))?;
        // Links first: they can be swept even where the program is missing.
        // What is ours by its mark, and not yet made, was left by somebody before.
        let stays = |name: &str, of: &Mark| match of == mark {
            true => left.iter().any(|kept| matches!(kept, Kept::Link { name: kept, .. } if kept == name)),
            false => !of.is_kin(mark) || generation.lives(of.number()),
        };
        remove_links(&netlink, |name, of| !stays(name, of))
            .map_err(|why| refusal(format!("sweeping links: {why}"), ""))?;
        let Some(program) = rules::program() else {
            return Err(refusal("the program nft is not installed".to_owned(), "apt-get install nftables"));
        };
        let tables = rules::find(&program, mark, |number| generation.lives(number))
            .map_err(|why| refusal(why.to_string(), "a kernel with nf_tables and the right to use it are needed"))?;
        // What platforms left that nobody will start again: they hold blocks, and keep forwarding on.
        for dead in &tables.dead {
            let swept = remove_links(&netlink, |_, of| of == dead).and_then(|()| rules::remove(&program, dead));
            if let Err(why) = swept {
                tracing::warn!(%why, table = rules::table(dead), "what a killed platform left could not be removed");
            }
        }
        let off = fs::read_to_string(FORWARDING).map(|text| text.trim() == "0");
        let off = off.map_err(|why| refusal(format!("{FORWARDING}: {why}"), "mount /proc in the container"))?;
        if off && !writable(FORWARDING) {
            return Err(refusal(
                "forwarding is off and /proc/sys is read-only".to_owned(),
                "sysctl -w net.ipv4.ip_forward=1 outside the container, or run the container with --privileged",
            ));
        }
        let mut taken = netlink.networks().map_err(|why| refusal(format!("the host's routes: {why}"), ""))?;
        let mut host = netlink.addresses().map_err(|why| refusal(format!("the host's addresses: {why}"), ""))?;
        taken.extend(&tables.blocks);
        let seed = u32::from_str_radix(mark.as_str(), 16).unwrap_or_default();
        // Addresses that are in use decide; those of another block are lost.
        let before = left.iter().find_map(|kept| if let Kept::Link { block, .. } = kept { Some(*block) } else { None });
        let Some(block) = before.map(block_at).or_else(|| choose(seed, &taken)) else {
            return Err(refusal(
                "no block of private addresses in 10.64.0.0 to 10.255.255.255 is free".to_owned(),
                "remove a route that covers all of them",
            ));
        };
        let (mut pool, mut kept) = (Pool::new(block), HashMap::new());
        let gateway = pool.gateway();
        host.retain(|address| *address != gateway);
        for one in left {
            let Kept::Link { name, number, block: at } = one else { continue };
            let letter = name.chars().nth_back(format!("{number:x}").len()).unwrap_or('o');
            if let (true, Ok(index), Some(loan)) = (*at == block.address, netlink.index(name), pool.keep(*number)) {
                kept.insert(*number, Made { index, letter, loan, gateway });
            }
        }
        let forwarding_was_off = off || tables.forwarding_was_off;
        let (mark, resolvers) = (mark.clone(), Vec::new());
        let rules = Rules { mark, block, gateway, resolvers, forwarder: false, forwarding_was_off, keeper };
        Ok(Ground { program, rules, netlink, host, pool, kept })
    }
}

struct Worker {
    netlink: Netlink,
    pool: Pool,
    mark: Mark,
    /// What is closed in an instance, by its policy.
    open: Vec<Route>,
    public: Vec<Route>,
    retired: Vec<Made>,
}

impl Worker {
    fn run(mut self, work: &mpsc::Receiver<Job>) {
        loop {
            let job = if self.retired.is_empty() {
                work.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                work.recv_timeout(QUIET)
            };
            match job {
                Ok(Job::Make { policy, pid, answer }) => {
                    if let Err(Ok(unwanted)) = answer.send(self.make(policy, pid)) {
                        self.retired.push(unwanted);
                    }
                }
                Ok(Job::Retire(made)) => self.retired.push(made),
                Ok(Job::Remove(made, answer)) => {
                    self.remove(made);
                    // Whoever asked may have given up; what was asked for is done all the same.
                    let _ = answer.send(());
                }
                Ok(Job::RemoveAll(answer)) => {
                    let _ = answer.send(remove_links(&self.netlink, |_, of| *of == self.mark));
                    return;
                }
                Err(RecvTimeoutError::Timeout) => self.remove_retired(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.retired.len() > MOST_RETIRED {
                self.remove_retired();
            }
        }
    }

    fn remove_retired(&mut self) {
        for made in std::mem::take(&mut self.retired) {
            self.remove(made);
        }
    }

    fn make(&mut self, policy: Policy, pid: u32) -> io::Result<Made> {
        let (letter, routes) = if policy == Policy::Public { ('p', &self.public) } else { ('o', &self.open) };
        let loan = self.pool.lend().ok_or_else(|| io::Error::other("every address is in use"))?;
        let (name, gateway) = (Made::name(&self.mark, letter, loan.number), self.pool.gateway());
        let index = self.netlink.make_pair(&name, "eth0", pid).and_then(|()| self.netlink.index(&name));
        match index {
            Ok(index) => {
                let made = Made { index, letter, loan, gateway };
                let assigned = self.netlink.ask(Request::assign(index, gateway, loan.address));
                let furnished = assigned.and_then(|()| inside(pid, || furnish(&made, routes)));
                if furnished.is_err() {
                    self.remove(made);
                }
                furnished.map(|()| made)
            }
            Err(why) => {
                self.pool.give_back(loan);
                Err(why)
            }
        }
    }

    fn remove(&mut self, made: Made) {
        match self.netlink.delete(made.index) {
            // It went with its instance's namespace.
            Err(why) if why.raw_os_error() == Some(libc::ENODEV) => {}
            Err(why) => tracing::warn!(%why, "the link of an instance stays until the platform ends"),
            Ok(()) => {}
        }
        self.pool.give_back(made.loan);
    }
}

/// Sets up an instance's end of its link, from within its namespace, and closes there what may not be reached.
fn furnish(made: &Made, routes: &[Route]) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let (link, own) = (netlink.index("eth0")?, made.loan.address);
    // Refused only by a kernel that has no IPv6 to begin with.
    let _ = netlink.ask(Request::no_ipv6(link));
    let up = [Request::assign(link, own, own), Request::raise(link), Request::route_default(link, made.gateway)];
    netlink.all(up.into_iter().chain(routes.iter().map(|route| Request::route(link, route))).collect())
}

/// Does this in the network namespace of a process, on a thread that ends with it.
fn inside(pid: u32, work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let theirs = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    // Whose number is another process's by now is most likely gone; the host's own namespace must not be mistaken for his.
    if theirs.metadata()?.ino() == fs::metadata("/proc/thread-self/ns/net")?.ino() {
        return Err(io::Error::other("its process has no network namespace of its own"));
    }
    std::thread::scope(|scope| {
        let enter = || {
            move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        let thread = std::thread::Builder::new().name("taper-links".to_owned()).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that set it up broke off")))
    })
}

/// Removes links of platforms, by their names and marks.
fn remove_links(netlink: &Netlink, which: impl Fn(&str, &Mark) -> bool) -> io::Result<()> {
    let goes = |name: &str| rules::owner_of(name).is_some_and(|mark| which(name, &mark));
    for link in netlink.links()?.into_iter().filter(|link| goes(&link.name)) {
        match netlink.delete(link.index) {
            Err(why) if why.raw_os_error() == Some(libc::ENODEV) => {}
            answer => answer?,
        }
    }
    Ok(())
}

/// One platform at a time looks at the tables of all and decides about forwarding: else one that leaves could turn off what one
/// that comes has just found on, or neither would turn it off. The switch is its own lock, so nothing lies about for that;
/// it is one per network namespace, as the tables are. Blocks while another platform starts or ends.
fn exclusively() -> io::Result<fs::File> {
    let switch = fs::File::open(FORWARDING)?;
    switch.lock()?;
    Ok(switch)
}

/// Switches the host's IPv4 forwarding, if it is not so already.
fn forwarding(on: bool) -> io::Result<()> {
    let wanted = if on { "1" } else { "0" };
    if fs::read_to_string(FORWARDING)?.trim() == wanted { Ok(()) } else { fs::write(FORWARDING, wanted) }
}

fn writable(file: &str) -> bool {
    rustix::fs::access(file, rustix::fs::Access::WRITE_OK).is_ok()
}

fn refusal(why: String, mend: &str) -> Refusal {
    Refusal { why, mend: mend.to_owned() }
}
