//! Which private addresses the instances of this platform have.
//!
//! Owns the choice of a block that nothing on this host uses, and the lending of single addresses out of it. No I/O.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use super::netlink::Network4;

/// Leading bits of a platform's block: 16,384 addresses.
pub(super) const BLOCK_BITS: u8 = 18;
const BLOCK_SIZE: u32 = 1 << (32 - BLOCK_BITS as u32);
/// The blocks lie in 10.64.0.0 to 10.255.255.255, where few hand-made networks begin.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const BLOCKS: u32 = 192 * 4;

/// Chooses a block that overlaps nothing in `taken`, beginning the search at a place that depends on `seed`.
pub(super) fn choose(seed: u32, taken: &[Network4]) -> Option<Network4> {
    (0..BLOCKS)
        .map(|step| (seed.wrapping_add(step)) % BLOCKS)
        .map(|block| Ipv4Addr::from_bits(FIRST.to_bits() + block * BLOCK_SIZE))
        .map(|address| Network4 { address, bits: BLOCK_BITS })
        .find(|block| !taken.iter().any(|network| network.overlaps(*block)))
}

/// The block that begins at this address.
pub(super) fn block_at(address: Ipv4Addr) -> Network4 {
    Network4::of(address, BLOCK_BITS)
}

/// Lends the addresses of one block. The first belongs to the platform's end of every link.
#[derive(Debug)]
pub(super) struct Pool {
    block: Network4,
    lent: HashSet<u32>,
    last: u32,
}

impl Pool {
    pub(super) fn new(block: Network4) -> Pool {
        Pool { block, lent: HashSet::new(), last: 1 }
    }

    /// The platform's end.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.block.address.to_bits() + 1)
    }

    /// Lends the address after the one lent last, so that one given back is not soon another instance's: the kernel
    /// may still be tracking connections of it.
    pub(super) fn lend(&mut self) -> Option<Loan> {
        // The first is the network's own, the second the gateway's, and the last is the broadcast address.
        let usable = BLOCK_SIZE - 3;
        let number =
            (0..usable).map(|step| 2 + (self.last - 1 + step) % usable).find(|number| !self.lent.contains(number))?;
        self.last = number;
        self.lent.insert(number);
        Some(Loan { number, address: Ipv4Addr::from_bits(self.block.address.to_bits() + number) })
    }

    /// Lends an address that somebody has had for long.
    pub(super) fn keep(&mut self, number: u32) -> Option<Loan> {
        let fits = (2..BLOCK_SIZE - 1).contains(&number) && self.lent.insert(number);
        self.last = self.last.max(number);
        fits.then(|| Loan { number, address: Ipv4Addr::from_bits(self.block.address.to_bits() + number) })
    }

    pub(super) fn give_back(&mut self, loan: Loan) {
        self.lent.remove(&loan.number);
    }
}

/// One address, lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loan {
    /// Its place in the block, which also names the link.
    pub(super) number: u32,
    pub(super) address: Ipv4Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_overlaps_nothing_that_is_there() {
        let all_of_ten = Network4 { address: Ipv4Addr::new(10, 0, 0, 0), bits: 8 };
        assert_eq!(choose(0, &[all_of_ten]), None);
        let first = choose(0, &[]).expect("a block");
        assert_eq!((first.address, first.bits), (FIRST, BLOCK_BITS));
        let second = choose(0, &[first]).expect("a block");
        assert!(!second.overlaps(first));
        assert_eq!(choose(BLOCKS - 1, &[]).map(|block| block.address), Some(Ipv4Addr::new(10, 255, 192, 0)));
        assert!(choose(u32::MAX, &[]).is_some());
    }

    #[test]
    fn an_address_has_one_borrower_and_is_rested_before_the_next() {
        let mut pool = Pool::new(choose(0, &[]).expect("a block"));
        let (first, second) = (pool.lend().expect("one"), pool.lend().expect("two"));
        assert_ne!(first, second);
        assert!(first.address > pool.gateway());
        pool.give_back(first);
        assert_ne!(pool.lend().expect("three"), first);
    }

    #[test]
    fn what_was_lent_before_is_not_lent_again() {
        let mut pool = Pool::new(choose(0, &[]).expect("a block"));
        let kept = pool.keep(7).expect("it fits");
        assert_eq!((kept.number, pool.keep(7), pool.keep(1), pool.keep(BLOCK_SIZE - 1)), (7, None, None, None));
        let mut others = std::iter::from_fn(|| pool.lend());
        assert!(others.all(|loan| loan.number != 7));
        pool.give_back(kept);
        assert_eq!(pool.lend(), Some(kept));
    }

    #[test]
    fn the_pool_ends_and_begins_again() {
        let mut pool = Pool::new(choose(0, &[]).expect("a block"));
        let all: Vec<_> = std::iter::from_fn(|| pool.lend()).collect();
        assert_eq!(all.len(), 16_384 - 3);
        assert!(all.iter().all(|loan| loan.address != pool.gateway() && loan.number < BLOCK_SIZE - 1));
        let one = all[77];
        pool.give_back(one);
        assert_eq!(pool.lend(), Some(one));
        assert_eq!(pool.lend(), None);
    }
}
