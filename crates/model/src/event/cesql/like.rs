//! Patterns of `LIKE`. It owns when a text matches one, in a time that grows with the text alone: nothing here goes back in it.

/// A pattern, prepared.
#[derive(Debug)]
pub(super) enum Pattern {
    /// Without `_`: what the text begins with, then what is found one after the other, then what it ends with; `None` without `%`, where
    /// the beginning is all of it.
    Parts { first: Box<str>, middle: Box<[Box<str>]>, last: Option<Box<str>> },
    /// With `_`.
    Automaton(Automaton),
}

/// What patterns are made of.
#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Exactly(char),
    One,
    Many,
}

impl Pattern {
    /// The pattern of this text: `%` for any characters, `_` for one, and a backslash before either for itself.
    pub(super) fn new(text: &str) -> Self {
        let mut chars = text.chars().peekable();
        let mut pieces = Vec::with_capacity(text.len());
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '%' => Piece::Many,
                '_' => Piece::One,
                '\\' => Piece::Exactly(chars.next_if(|next| matches!(next, '%' | '_')).unwrap_or(c)),
                other => Piece::Exactly(other),
            });
        }
        if pieces.contains(&Piece::One) {
            return Self::Automaton(Automaton::new(&pieces));
        }
        let mut parts = pieces.split(|piece| *piece == Piece::Many).map(|part| {
            part.iter().filter_map(|piece| if let Piece::Exactly(c) = piece { Some(*c) } else { None }).collect()
        });
        let first = parts.next().unwrap_or_default();
        let mut middle: Vec<Box<str>> = parts.collect();
        let last = middle.pop();
        middle.retain(|part| !part.is_empty());
        Self::Parts { first, middle: middle.into(), last }
    }

    /// Whether the whole text matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Parts { first, last: None, .. } => text == first.as_ref(),
            Self::Parts { first, middle, last: Some(last) } => {
                // An empty part lies nowhere; comparing with it costs more than with any other.
                let begun = if first.is_empty() { Some(text) } else { text.strip_prefix(first.as_ref()) };
                let rest =
                    if last.is_empty() { begun } else { begun.and_then(|rest| rest.strip_suffix(last.as_ref())) };
                // The first place of each part leaves the most room for the others.
                let after = |rest: &'_ str, part: &str| rest.find(part).map(|at| at + part.len());
                rest.is_some_and(|rest| {
                    let mut from = 0;
                    middle.iter().all(|part| after(&rest[from..], part).map(|end| from += end).is_some())
                })
            }
            Self::Automaton(automaton) => automaton.matches(text),
        }
    }
}

const WORD: usize = u64::BITS as usize;
/// Words of bits that the longest pattern needs: a state more than it has characters.
const WORDS: usize = super::LONGEST / WORD + 1;

/// A pattern as an automaton whose states are bits: in state n, its first n characters (`%` not counted) have been seen. All states
/// advance at once, so a character of the text costs as many steps as the pattern has words of bits, at most.
#[derive(Debug)]
pub(super) struct Automaton {
    /// States that any character leaves where they are: a `%` stands there.
    stay: Box<[u64]>,
    /// States from which any character leads on: a `_` stands there.
    any: Box<[u64]>,
    /// States from which this character leads on, by character and word; words without one are left out.
    on: Box<[(char, usize, u64)]>,
    /// The state in which all has been seen.
    end: usize,
}

impl Automaton {
    fn new(pieces: &[Piece]) -> Self {
        let end = pieces.iter().filter(|piece| **piece != Piece::Many).count();
        let words = end / WORD + 1;
        let (mut stay, mut any) = (vec![0; words], vec![0; words]);
        let mut on: Vec<(char, usize, u64)> = Vec::new();
        let mut state = 0;
        for piece in pieces {
            let (word, bit) = (state / WORD, 1_u64 << (state % WORD));
            match piece {
                Piece::Many => stay[word] |= bit,
                Piece::One => any[word] |= bit,
                Piece::Exactly(c) => on.push((*c, word, bit)),
            }
            state += usize::from(*piece != Piece::Many);
        }
        on.sort_unstable();
        on.dedup_by(|next, kept| {
            let same = (next.0, next.1) == (kept.0, kept.1);
            if same {
                kept.2 |= next.2;
            }
            same
        });
        Self { stay: stay.into(), any: any.into(), on: on.into(), end }
    }

    fn matches(&self, text: &str) -> bool {
        let (word, bit) = (self.end / WORD, 1_u64 << (self.end % WORD));
        let (mut states, mut moved) = ([0_u64; WORDS], [0_u64; WORDS]);
        let (states, moved) = (&mut states[..=word], &mut moved[..=word]);
        states[0] = 1;
        for c in text.chars() {
            for (to, (from, any)) in moved.iter_mut().zip(states.iter().zip(&self.any)) {
                *to = from & any;
            }
            let at = self.on.partition_point(|(other, ..)| *other < c);
            for (_, word, bits) in self.on[at..].iter().take_while(|(other, ..)| *other == c) {
                moved[*word] |= states[*word] & bits;
            }
            let (mut carry, mut alive) = (0, 0);
            for ((state, moved), stay) in states.iter_mut().zip(moved.iter()).zip(&self.stay) {
                *state = (*state & stay) | (moved << 1) | carry;
                carry = moved >> (WORD - 1);
                alive |= *state;
            }
            if alive == 0 {
                return false;
            }
            if states[word] & self.stay[word] & bit != 0 {
                return true;
            }
        }
        states[word] & bit != 0
    }
}
