//! Room that is kept for hard times: messages of nothing, which are removed one by one when the stream, or its server, takes no more. So
//! the ends of calls can still be written, by which those calls make room; while a piece is missing, no new calls are accepted.
//!
//! Never writes or removes anything: see `writer` and `settle`, which do.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use crate::api::Link;

/// Pieces of the reserve.
pub(crate) const PIECES: usize = 8;
/// Bytes of one.
const PIECE: usize = 512 << 10;
/// How long calls that end have for making room by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// A piece is at most such a part of what a stream may hold.
const SHARE: u64 = 64;

/// A piece of a stream that is not read yet.
pub(crate) async fn any(link: &Link) -> Option<u64> {
    link.next(&link.subject("reserve.*"), 1).await.ok().flatten().map(|piece| piece.seq)
}

/// The pieces that are there.
pub(crate) struct Reserve {
    /// Bytes of a piece.
    pub(crate) piece: usize,
    pieces: Mutex<Pieces>,
}

#[derive(Default)]
struct Pieces {
    /// By their numbers in the stream.
    there: Vec<u64>,
    /// Those that are being written.
    coming: usize,
    /// Since when there was no room for something, and not all of it there.
    short: Option<Instant>,
}

impl Reserve {
    /// For a stream of this configuration, whose messages hold so many bytes at most; these pieces were found in it. Returns those that
    /// are too many.
    pub(crate) fn new(config: &Value, part: usize, mut there: Vec<u64>) -> (Self, Vec<u64>) {
        let most = config["max_bytes"].as_u64().filter(|most| *most > 0).map(|most| most / SHARE);
        let piece = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(PIECE).min(PIECE).min(part);
        let more = there.split_off(there.len().min(PIECES));
        (Self { piece, pieces: Mutex::new(Pieces { there, ..Pieces::default() }) }, more)
    }

    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There was no room for something. Says whether that is new.
    pub(crate) fn set_short(&self) -> bool {
        let mut pieces = self.lock();
        let known = pieces.short.is_some();
        pieces.short.get_or_insert_with(Instant::now);
        !known
    }

    /// Whether there is no room for what is new.
    pub(crate) fn is_short(&self) -> bool {
        self.lock().short.is_some()
    }

    /// Whether room has to be made: so little is left, or calls that end have not made enough.
    pub(crate) fn is_low(&self) -> bool {
        let pieces = self.lock();
        pieces.short.is_some_and(|since| pieces.there.len() <= PIECES / 2 || since.elapsed() >= GRACE)
    }

    /// Whether nothing is left for a call's end.
    pub(crate) fn is_used_up(&self) -> bool {
        let pieces = self.lock();
        pieces.short.is_some() && pieces.there.len() <= 1
    }

    /// A piece to be removed. The last one is for what makes room.
    pub(crate) fn take(&self, last: bool) -> Option<u64> {
        let mut pieces = self.lock();
        if pieces.there.len() > usize::from(!last) { pieces.there.pop() } else { None }
    }

    /// It could not be removed.
    pub(crate) fn back(&self, piece: u64) {
        self.lock().there.push(piece);
    }

    /// How many pieces are to be written now.
    pub(crate) fn missing(&self) -> usize {
        let mut pieces = self.lock();
        if pieces.coming > 0 {
            return 0;
        }
        pieces.coming = PIECES.saturating_sub(pieces.there.len());
        if pieces.coming == 0 {
            // All of it is there, because what was to be removed could not be: whoever comes next sees whether there is room.
            pieces.short = None;
        }
        pieces.coming
    }

    /// One was written, or could not be. Says whether there is room again for what is new.
    pub(crate) fn written(&self, piece: Option<u64>) -> bool {
        let mut pieces = self.lock();
        pieces.coming = pieces.coming.saturating_sub(1);
        pieces.there.extend(piece);
        pieces.there.len() == PIECES && pieces.short.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_piece_is_for_what_makes_room() {
        let (reserve, more) = Reserve::new(&json!({"max_bytes": -1}), 1 << 20, (1..=10).collect());
        assert_eq!((reserve.piece, more, reserve.missing()), (PIECE, vec![9, 10], 0));
        assert!(!reserve.is_short() && reserve.set_short() && !reserve.set_short() && reserve.is_short());
        assert!(!reserve.is_low());
        let taken: Vec<u64> = std::iter::from_fn(|| reserve.take(false)).collect();
        assert_eq!(taken, [8, 7, 6, 5, 4, 3, 2]);
        assert!(reserve.is_low() && reserve.is_used_up());
        assert_eq!((reserve.take(true), reserve.take(true)), (Some(1), None));
        reserve.back(1);
        // What is being written is not written twice.
        assert_eq!((reserve.missing(), reserve.missing()), (7, 0));
        (0..6).for_each(|n| assert!(!reserve.written(Some(20 + n))));
        assert!(!reserve.written(None) && reserve.is_short());
        assert_eq!(reserve.missing(), 1);
        assert!(reserve.written(Some(30)) && !reserve.is_short(), "there is room again");
        // A piece that could not be removed is no reason to be short for ever.
        assert!(reserve.set_short());
        let piece = reserve.take(false).unwrap();
        reserve.back(piece);
        assert_eq!((reserve.missing(), reserve.is_short()), (0, false));
    }

    #[test]
    fn a_small_stream_has_small_pieces() {
        for (most, part, piece) in
            [(json!(640_000), 1 << 20, 10_000), (json!(-1), 4000, 4000), (json!(null), 1 << 20, PIECE)]
        {
            assert_eq!(Reserve::new(&json!({"max_bytes": most}), part, Vec::new()).0.piece, piece);
        }
    }
}
