//! The network of instances: who reaches what, and how it is taken down again.
//!
//! Owns the policies, the links of instances, and everything that `up` changes on the host's network: one nftables table, links
//! that begin with the platform's prefix, and the forwarding switch. It never decides which function has which policy.
//!
//! # How
//!
//! As root, each instance has a point-to-point link of its own (a veth pair): an address from a private block that the host does
//! not use, and the platform's end as its only neighbour. There is no bridge, so instances share nothing. The table decides by
//! the link's name what may pass, drops whatever is addressed to the host itself, and translates the rest to the host's address.
//! Routes inside the instance close the same places once more (of the host, the addresses it had at the start), for the case
//! that somebody flushes the host's ruleset.
//! As an ordinary user `pasta` carries connections, where it is installed. Where neither can be, outbound is `none`, and why
//! is in [`Network::outbound`].
//!
//! # Caveats
//!
//! Only IPv4 leaves an instance. When the host's ruleset is flushed while the platform runs, instances lose their way out until
//! the next start. Resolvers are read from the host once, at the start. A host whose own rules drop what
//! it forwards (Docker's do) drops it for instances too: a rule of ours cannot overrule them. Where forwarding was off, turning
//! it off again at the end also turns off what somebody set for single interfaces meanwhile.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use self::links::{Link, Links};
use self::netlink::Netlink;
use self::pasta::{Pasta, Tether};
use crate::Error;
use crate::sandbox::{Binding, Mark, Route};

/// What a function may reach. [`Policy::Host`] must be parked with
/// [`NetworkSpace::Host`](crate::sandbox::NetworkSpace::Host).
pub use taper_model::function::Network as Policy;

mod addresses;
mod links;
mod names;
pub(crate) mod netlink;
mod pasta;
mod routes;
mod rules;

/// What the network needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The platform's data directory, whose mark the table and the links carry.
    pub data: PathBuf,
    /// The file that names the host's resolvers.
    pub resolv_conf: PathBuf,
}

impl Config {
    /// The defaults over a data directory.
    pub fn new(data: impl Into<PathBuf>) -> Config {
        Config { data: data.into(), resolv_conf: "/etc/resolv.conf".into() }
    }
}

/// How instances get out, and what was changed on the host for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "by")]
pub enum Outbound {
    /// Links and a packet filter, as root.
    #[serde(rename_all = "camelCase")]
    Links {
        /// The nftables table, of the family `inet`.
        table: String,
        /// What the names of our links begin with.
        links: String,
        /// The addresses of instances.
        block: String,
        /// Whether forwarding (`net.ipv4.ip_forward`) was off and is on because of us.
        forwarding_turned_on: bool,
        /// How names are resolved.
        names: String,
    },
    /// A `pasta` process per instance, as an ordinary account.
    #[serde(rename_all = "camelCase")]
    Pasta {
        /// The program.
        program: PathBuf,
        /// How names are resolved.
        names: String,
    },
    /// Nothing leaves.
    None {
        /// What is missing.
        why: String,
        /// What the operator can do about it.
        mend: String,
    },
}

/// The network of all instances of one platform. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    way: Way,
    outbound: Outbound,
    /// The host's own.
    resolv_conf: String,
}

#[derive(Debug)]
enum Way {
    Links(Links),
    Pasta(Pasta),
    None,
}

/// The address of an instance on its point-to-point link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    /// The instance's own address.
    pub own: Ipv4Addr,
    /// The other end, which is its only way out and not itself to be reached.
    pub gateway: Ipv4Addr,
}

/// One instance's place on the network. Dropping it gives it back: the link goes with the instance, or a moment later.
#[derive(Debug)]
pub struct Lease {
    hold: Hold,
    resolv_conf: String,
}

#[derive(Debug)]
enum Hold {
    Link(Link),
    Tether { _process: Tether, routes: Vec<Route> },
    Nothing,
}

impl Network {
    /// Prepares the network of one platform, after removing what a killed one over the same data directory left.
    ///
    /// It does not fail: where instances cannot be let out, they are not, and [`Network::outbound`] tells why.
    ///
    /// *Assumptions*: nobody else runs over the same data directory.
    pub async fn start(config: &Config) -> Network {
        let resolv_conf = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let found = if rustix::process::geteuid().is_root() {
            Links::start(&config.data, &resolv_conf).await.map(|(links, outbound)| (Way::Links(links), outbound))
        } else {
            Pasta::start(&config.data, &resolv_conf).map(|(pasta, outbound)| (Way::Pasta(pasta), outbound))
        };
        let (way, outbound) = found.unwrap_or_else(|Refusal { why, mend }| (Way::None, Outbound::None { why, mend }));
        Network { shared: Arc::new(Shared { way, outbound, resolv_conf }) }
    }

    /// How instances get out.
    pub fn outbound(&self) -> &Outbound {
        &self.shared.outbound
    }

    /// Connects the parked instance whose pid 1 is `pid`, at any time before its claim; then nothing is left to do at it.
    ///
    /// Where nothing can leave this host's instances, the lease has no address whatever the policy says.
    ///
    /// # Errors
    ///
    /// [`Error::Network`] when the link cannot be made; nothing is left then.
    pub async fn join(&self, policy: Policy, pid: u32) -> Result<Lease, Error> {
        let (hold, resolv_conf) = match (&self.shared.way, policy) {
            (_, Policy::Host) => (Hold::Nothing, self.shared.resolv_conf.as_str()),
            (Way::None, _) | (_, Policy::None) => (Hold::Nothing, ""),
            (Way::Links(links), _) => (Hold::Link(links.make(policy, pid).await?), links.resolv_conf()),
            (Way::Pasta(pasta), _) => {
                let (process, routes) = pasta.make(policy, pid).await?;
                (Hold::Tether { _process: process, routes }, pasta.resolv_conf())
            }
        };
        Ok(Lease { hold, resolv_conf: resolv_conf.to_owned() })
    }

    /// Takes everything down: links, table, forwarding. Instances still running lose their network.
    ///
    /// # Errors
    ///
    /// [`Error::Network`] with the first thing that could not be undone; the rest is.
    pub async fn remove(self) -> Result<(), Error> {
        match &self.shared.way {
            Way::Links(links) => links.remove().await,
            Way::Pasta(_) | Way::None => Ok(()),
        }
    }
}

impl Lease {
    /// The instance's address, if it has one of its own.
    pub fn address(&self) -> Option<Address> {
        match &self.hold {
            Hold::Link(link) => Some(link.address()),
            Hold::Tether { .. } | Hold::Nothing => None,
        }
    }

    /// What belongs into the instance's `/etc/resolv.conf`. Without a network it is empty, and names fail at once.
    pub fn resolv_conf(&self) -> &str {
        &self.resolv_conf
    }

    /// Gives it back, and returns when the link is gone. Only needed when the instance stays.
    pub async fn release(self) {
        if let Hold::Link(link) = self.hold {
            link.remove().await;
        }
    }

    /// Puts what pid 1 must know into what is sent with the claim. A link has been set up before.
    pub fn bind(&self, binding: &mut Binding) {
        if let Hold::Tether { routes, .. } = &self.hold {
            binding.routes.clone_from(routes);
        }
        binding.resolv_conf.clone_from(&self.resolv_conf);
    }
}

/// What the platform with this mark has on the host's network now. Blocks.
pub(crate) fn traces(mark: &Mark) -> Vec<String> {
    let mut found = Vec::new();
    let prefix = rules::prefix(mark);
    let links = Netlink::open().and_then(|netlink| netlink.links()).unwrap_or_default();
    let links = links.iter().filter(|link| link.name.starts_with(&prefix)).count();
    if links > 0 {
        found.push(format!("{links} links {prefix}*"));
    }
    let tables = rules::program().and_then(|program| rules::find(&program, mark).ok());
    if let Some(tables) = tables.filter(|tables| tables.own) {
        found.push(format!("nftables table inet {}", rules::table(mark)));
        if tables.forwarding_was_off {
            found.push("net.ipv4.ip_forward=1".to_owned());
        }
    }
    found
}

/// Where the program is that lets instances out: what loads packet filters for root, `pasta` for others.
pub(crate) fn program() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() { rules::program() } else { pasta::program() }
}

/// Why instances are not let out.
#[derive(Debug)]
struct Refusal {
    why: String,
    mend: String,
}
