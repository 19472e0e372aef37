//! What a policy closes, as routes inside an instance's own namespace.
//!
//! Owns the list; it is set before the function begins, by whoever makes the link, and where that is `pasta` by pid 1, which then gives
//! up the right to set any. For `pasta` it is all that holds a policy; beside the packet filter it is the second fence, which stays when somebody flushes the host's ruleset. No I/O.

use std::net::Ipv4Addr;

use super::Policy;
use super::netlink::Network4;
use crate::sandbox::Route;

/// The private and special networks that the policy `public` does not reach (IANA's special-purpose registry).
pub(super) const PRIVATE: [(Ipv4Addr, u8); 9] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
];
/// What no policy reaches: this host, loopback, link-local (where clouds keep their credentials), multicast, broadcast.
pub(super) const NEVER: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// What there is to close and to leave open.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// The host's own addresses.
    pub(super) host: Vec<Ipv4Addr>,
    /// Networks that are routed inside the instance, as `pasta` copies the host's.
    pub(super) routed: Vec<Network4>,
    /// Networks that nobody may reach besides.
    pub(super) closed: Vec<Network4>,
    /// Resolvers that also `public` may ask.
    pub(super) resolvers: Vec<Ipv4Addr>,
    /// The way to them; `None` when they are to be asked as neighbours.
    pub(super) via: Option<Ipv4Addr>,
}

impl Surroundings {
    /// The routes that make `policy` hold.
    pub(super) fn routes(&self, policy: Policy) -> Vec<Route> {
        let close = |network: &Network4| Route::Closed { address: network.address, bits: network.bits };
        let known = |(address, bits): &(Ipv4Addr, u8)| Network4::of(*address, *bits);
        let mut routes: Vec<Route> =
            NEVER.iter().map(known).chain(self.closed.iter().copied()).map(|one| close(&one)).collect();
        routes.extend(self.host.iter().filter(|one| !one.is_loopback()).map(|one| close(&Network4::of(*one, 32))));
        if policy == Policy::Public {
            routes.extend(PRIVATE.iter().map(|one| close(&known(one))));
            // A longer prefix wins: what is routed in there is closed by its halves.
            let private = |network: &&Network4| PRIVATE.iter().any(|one| known(one).overlaps(**network));
            for network in self.routed.iter().filter(|network| network.bits < 32).filter(private) {
                let (bits, half) = (network.bits + 1, network.address.to_bits() | 1 << (31 - network.bits));
                routes.extend(
                    [network.address, Ipv4Addr::from_bits(half)].map(|address| Route::Closed { address, bits }),
                );
            }
            routes.extend(self.resolvers.iter().map(|address| Route::Open { address: *address, via: self.via }));
        }
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 1, 5), Ipv4Addr::LOCALHOST];

    fn closed(address: Ipv4Addr, bits: u8) -> Route {
        Route::Closed { address, bits }
    }

    #[test]
    fn the_host_is_closed_whatever_the_policy() {
        let surroundings = Surroundings { host: HOST.to_vec(), ..Surroundings::default() };
        for policy in [Policy::Open, Policy::Public] {
            let routes = surroundings.routes(policy);
            assert!(routes.contains(&closed(HOST[0], 32)));
            assert!(routes.contains(&closed(Ipv4Addr::new(169, 254, 0, 0), 16)));
        }
    }

    #[test]
    fn the_hosts_own_network_is_closed_by_halves_and_its_resolver_is_not() {
        let network = Network4::of(Ipv4Addr::new(192, 168, 1, 77), 24);
        let resolver = Ipv4Addr::new(192, 168, 1, 1);
        let (routed, resolvers) = (vec![network], vec![resolver]);
        let surroundings = Surroundings { routed, resolvers, ..Surroundings::default() };
        let routes = surroundings.routes(Policy::Public);
        assert!(routes.contains(&closed(network.address, 25)));
        assert!(routes.contains(&closed(Ipv4Addr::new(192, 168, 1, 128), 25)));
        assert!(routes.contains(&Route::Open { address: resolver, via: None }));
        assert!(!surroundings.routes(Policy::Open).contains(&closed(network.address, 25)));
    }
}
