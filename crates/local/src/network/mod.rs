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
//! it off again at the end also turns off what somebody set for single interfaces meanwhile. Behind `pasta` an address that the host
//! gets after an instance's start is open to that instance: only routes inside close the others, and nobody may set any there later.
//! `pasta` could bind its connections to the link of the default route, but then no other network, as a VPN with the host's
//! resolver in it, would be reached at all, and none when the machine moves to another link.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::links::{Link, Links};
use self::netlink::Netlink;
use self::pasta::{Pasta, Tether};
use crate::sandbox::{Binding, Mark, Route};
use crate::{Error, Generation};

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
#[derive(Clone, Debug)]
pub struct Config {
    /// The platform's data directory.
    pub data: PathBuf,
    /// Whose mark the table and the links carry. `None`: one of its own, from its start to its end.
    pub generation: Option<Generation>,
    /// The file that names the host's resolvers.
    pub resolv_conf: PathBuf,
    /// Who else the table belongs to: as long as this process lives, too, nobody removes it. The spawner.
    pub keeper: Option<u32>,
    /// Leases of instances that have outlived another platform, to be taken over with [`Network::adopt`].
    pub kept: Vec<Kept>,
}

impl Config {
    /// The defaults over a data directory.
    pub fn new(data: impl Into<PathBuf>) -> Config {
        let resolv_conf = "/etc/resolv.conf".into();
        Config { data: data.into(), generation: None, resolv_conf, keeper: None, kept: Vec::new() }
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
    /// Nobody else has to do with it.
    own: Option<Generation>,
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

/// What is to be known of a lease by whoever takes it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kept {
    /// A link: its name, the number of its address, and the first address of the block.
    Link {
        /// The name of the platform's end.
        name: String,
        /// The number of the address in the block.
        number: u32,
        /// The first address of the block.
        block: Ipv4Addr,
    },
    /// A `pasta` process, by the file with its id.
    Tether {
        /// The file.
        file: PathBuf,
    },
    /// The instance is not connected, or has the host's network.
    Nothing,
}

#[derive(Debug)]
enum Hold {
    Link(Link),
    Tether { process: Tether, routes: Vec<Route> },
    Nothing,
}

impl Network {
    /// Prepares the network of one platform, after removing what killed ones have left.
    ///
    /// It does not fail: where instances cannot be let out, they are not, and [`Network::outbound`] tells why.
    pub async fn start(config: &Config) -> Network {
        let resolv_conf = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let mut own = None;
        let found = match &config.generation {
            Some(generation) => Network::way(generation, &resolv_conf, config).await,
            None => {
                let data = config.data.clone();
                match tokio::task::spawn_blocking(move || Generation::begin(&data)).await.map_err(io::Error::other) {
                    Ok(Ok(generation)) => {
                        let found = Network::way(&generation, &resolv_conf, config).await;
                        generation.settled();
                        own = Some(generation);
                        found
                    }
                    Ok(Err(why)) => Err(Refusal { why: why.to_string(), mend: String::new() }),
                    Err(why) => Err(Refusal { why: why.to_string(), mend: String::new() }),
                }
            }
        };
        let (way, outbound) = found.unwrap_or_else(|Refusal { why, mend }| (Way::None, Outbound::None { why, mend }));
        Network { shared: Arc::new(Shared { way, outbound, resolv_conf, own }) }
    }

    async fn way(generation: &Generation, resolv_conf: &str, config: &Config) -> Result<(Way, Outbound), Refusal> {
        if rustix::process::geteuid().is_root() {
            Links::start(generation, resolv_conf, config).await.map(|(links, outbound)| (Way::Links(links), outbound))
        } else {
            Pasta::start(generation.path(), resolv_conf, &config.kept)
                .map(|(pasta, outbound)| (Way::Pasta(pasta), outbound))
        }
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
                (Hold::Tether { process, routes }, pasta.resolv_conf())
            }
        };
        Ok(Lease { hold, resolv_conf: resolv_conf.to_owned() })
    }

    /// Takes over the lease of an instance that has outlived another platform.
    ///
    /// # Errors
    ///
    /// [`Error::Network`] when there is no such link or process any more.
    pub async fn adopt(&self, kept: &Kept) -> Result<Lease, Error> {
        let gone = || Error::network("a lease that was left")(io::Error::other("what it was made of is gone"));
        let hold = match (&self.shared.way, kept) {
            (_, Kept::Nothing) => Hold::Nothing,
            (Way::Links(links), Kept::Link { number, .. }) => Hold::Link(links.adopt(*number).ok_or_else(gone)?),
            (Way::Pasta(pasta), Kept::Tether { file }) => {
                Hold::Tether { process: pasta.adopt(file).ok_or_else(gone)?, routes: Vec::new() }
            }
            _ => return Err(gone()),
        };
        // Its instance has been told long since.
        Ok(Lease { hold, resolv_conf: String::new() })
    }

    /// Has the table belong to another spawner. Where that cannot be said, a start of another platform may remove it if this
    /// one should be killed.
    pub(crate) async fn kept_by(&self, keeper: u32) {
        if let Way::Links(links) = &self.shared.way
            && let Err(why) = links.kept_by(keeper).await
        {
            tracing::warn!(%why, "the packet filter does not say who keeps it");
        }
    }

    /// Takes everything down: links, table, forwarding. Instances still running lose their network.
    ///
    /// # Errors
    ///
    /// [`Error::Network`] with the first thing that could not be undone; the rest is.
    pub async fn remove(self) -> Result<(), Error> {
        let removed = match &self.shared.way {
            Way::Links(links) => links.remove().await,
            Way::Pasta(_) | Way::None => Ok(()),
        };
        self.shared.own.iter().for_each(Generation::remove);
        removed
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

    /// What whoever takes it over must know.
    pub(crate) fn kept(&self) -> Kept {
        match &self.hold {
            Hold::Link(link) => link.kept(),
            Hold::Tether { process, .. } => Kept::Tether { file: process.file().to_owned() },
            Hold::Nothing => Kept::Nothing,
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

/// What platforms over the data directory with this mark have on the host's network now. Blocks.
pub(crate) fn traces(mark: &Mark) -> Vec<String> {
    let mut found = Vec::new();
    let prefix = format!("tp{}", mark.directory());
    let links = Netlink::open().and_then(|netlink| netlink.links()).unwrap_or_default();
    let links = links.iter().filter(|link| link.name.starts_with(&prefix)).count();
    if links > 0 {
        found.push(format!("{links} links {prefix}*"));
    }
    let tables = rules::program().and_then(|program| rules::find(&program, mark, |_| true).ok());
    if let Some(tables) = tables.filter(|tables| !tables.kin.is_empty()) {
        found.extend(tables.kin.iter().map(|kin| format!("nftables table inet {}", rules::table(kin))));
        if tables.forwarding_was_off {
            found.push("net.ipv4.ip_forward=1".to_owned());
        }
    }
    found
}

/// Ends the processes that carried the connections of instances whose folder this is.
pub(crate) fn untether(folder: &Path) {
    pasta::sweep(folder, |_| false);
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
