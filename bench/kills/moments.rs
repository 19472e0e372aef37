//! What is killed, and when: drawn from a seed, so that each run is another one and any can be had again.

use super::Medium;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// The platform, while it works.
    Running,
    /// The platform, and the next one while it starts.
    Starting,
    /// The platform or its successor, while the one replaces the other.
    Upgrading,
    /// An instance of the function.
    Instance,
    /// The server that keeps the calls.
    Server,
}

/// A small generator.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Every moment comes as often as it is in it, in an order of chance.
pub(super) struct Deck {
    pub(super) dice: Dice,
    cards: &'static [Moment],
    left: Vec<Moment>,
}

const JOURNAL: &[Moment] = &[Moment::Running, Moment::Running, Moment::Starting, Moment::Upgrading, Moment::Instance];
const JETSTREAM: &[Moment] = &[Moment::Running, Moment::Starting, Moment::Upgrading, Moment::Instance, Moment::Server];

impl Deck {
    pub(super) fn new(medium: Medium, seed: u64) -> Self {
        let cards = match medium {
            Medium::Journal => JOURNAL,
            Medium::JetStream => JETSTREAM,
        };
        Self { dice: Dice(seed), cards, left: Vec::new() }
    }

    pub(super) fn draw(&mut self) -> Moment {
        if self.left.is_empty() {
            self.left = self.cards.to_vec();
        }
        let at = usize::try_from(self.dice.roll(self.left.len() as u64)).unwrap_or_default();
        self.left.swap_remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_moment_comes_as_often_as_it_should() {
        let mut deck = Deck::new(Medium::Journal, 7);
        let drawn: Vec<Moment> = (0..20).map(|_| deck.draw()).collect();
        for moment in JOURNAL {
            let share = JOURNAL.iter().filter(|m| *m == moment).count();
            assert_eq!(drawn.iter().filter(|m| *m == moment).count(), 4 * share, "{moment:?}");
        }
        let mut same = Deck::new(Medium::Journal, 7);
        assert_eq!(drawn, (0..20).map(|_| same.draw()).collect::<Vec<_>>());
    }
}
