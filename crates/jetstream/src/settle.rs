//! What the writer does when something has gone wrong: it finds out what landed of all that was on its way, makes room where there is
//! none, and has the rest sent again. Never sends any of it itself.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use taper_queue::Error;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    api::{ANSWER, Link, Trouble},
    owner,
    record::{Meta, Owner},
    reserve,
    standing::{away, full},
    writer::{Flying, Kind, Writer},
};

/// Questions that are asked at once.
const AT_ONCE: usize = 64;
/// How long a stream must be missing before it is believed.
const GONE: Duration = Duration::from_secs(5);
/// How long a stream must have less than it acknowledged before that is believed: whoever has just begun to lead it may still come to it.
const BEHIND: Duration = Duration::from_secs(15);
/// How much longer an answer is waited for each time.
const LOOK: Duration = Duration::from_millis(500);
/// Longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

impl Writer {
    /// Finds out what landed of all that is on its way, and has the rest sent again. Returns when the stream can be written again; an
    /// error when it will not be, by us.
    // long because: the order of these questions is the argument that nothing lands twice, or after it was said that it did not
    pub(crate) async fn settle_down(&mut self, why: &str) -> Result<(), Error> {
        tracing::debug!(why, open = self.open.len(), "what is on its way is looked for");
        self.open.clear();
        self.weight = 0;
        let (begun, mut tries, mut missing, mut behind) = (Instant::now(), 0_u32, None, None);
        'again: loop {
            if tries > 0 {
                sleep(PAUSE.min(Duration::from_millis(20) * 2_u32.saturating_pow(tries.min(10)))).await;
            }
            tries += 1;
            // Nobody is left who could ask, or hear.
            if tries > 1 && self.commands.is_closed() {
                return Err(Error::Stopped);
            }
            if tries > 3 && begun.elapsed() > ANSWER {
                self.standing.set_away(Some(why.to_owned()));
            }
            // Answers to what was given up; none at all any more when the server does not let us in.
            while let Some(answer) = self.acks.next().now_or_never() {
                if answer.is_none() {
                    return Err(self.refused());
                }
            }
            self.disconnects.mark_unchanged();
            // Nobody answers while nobody leads the stream; whoever then does is asked soon.
            let looked = timeout(ANSWER.min(LOOK * tries), self.link.look()).await;
            let (mut last, leader) = match looked.unwrap_or_else(|_| Err(self.link.silent())) {
                Ok(stream) => (stream.state.last_seq, stream.leader().map(str::to_owned)),
                Err(trouble) => {
                    tracing::debug!(%trouble, "the stream cannot be looked at");
                    if !self.link.is_connected() || begun.elapsed() > ANSWER {
                        self.standing.set_away(Some(trouble.to_string()));
                    }
                    let since = *missing.get_or_insert_with(Instant::now);
                    if !trouble.is_no_stream() {
                        missing = None;
                    } else if since.elapsed() >= GONE {
                        return Err(self.gone("is gone; whoever removed it has removed the calls"));
                    }
                    continue;
                }
            };
            missing = None;
            if last < self.reached {
                if behind.get_or_insert_with(Instant::now).elapsed() < BEHIND {
                    continue;
                }
                let lost = self.reached - last;
                return Err(self.gone(&format!(
                    "has lost its last {lost} messages: its server went down before they were synced to disk"
                )));
            }
            behind = None;
            // After the look, so that what another owner wrote before it is seen, and what it writes later makes `last` wrong.
            match self.is_ours().await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(lost) => return Err(lost),
            }
            let used_up = last > self.ceiling;
            while last <= self.ceiling {
                let subject = self.link.subject("fence");
                let count = (AT_ONCE as u64).min(self.ceiling - last + 1);
                let writes = (0..count).map(|n| self.link.write(&subject, &Meta::Fence, last + n));
                for written in join_all(writes).await {
                    match written {
                        Ok(seq) if seq == last + 1 => last = seq,
                        Err(no) if no.is_full() => {
                            self.standing.set_full(&self.link, &no);
                            self.make_room(true).await;
                            continue 'again;
                        }
                        Err(Trouble::Away(why)) => {
                            self.standing.set_away(Some(why));
                            continue 'again;
                        }
                        // Something of ours that was still under way, or another platform: looked at anew.
                        _ => continue 'again,
                    }
                }
            }
            // Whoever took the stream before that has seen to it that nothing of ours lands any more.
            if !used_up && !self.is_ours().await? {
                continue;
            }
            let Ok(landed) = look_for(&self.link, &self.owner.epoch, self.sent()).await else { continue };
            // Else it may have been answered by somebody who has not come to all of it yet.
            if leader.is_some() && !self.link.look().await.is_ok_and(|now| now.leader() == leader.as_deref()) {
                continue;
            }
            (self.last, self.reached) = (last, last);
            // Before anybody is told, who may come again at once.
            self.standing.set_away(None);
            self.sort(landed).await;
            return Ok(());
        }
    }

    /// Whether the stream says that it is ours; false when it does not answer, an error when it says otherwise.
    async fn is_ours(&mut self) -> Result<bool, Error> {
        let found = owner::newest(&self.link, self.said.load(SeqCst)).await;
        match found.map(|found| found.and_then(|stored| stored.meta())) {
            Err(_) => Ok(false),
            Ok(Some(Meta::Owner(owner))) if owner.epoch == self.owner.epoch => {
                self.unsaid = None;
                Ok(true)
            }
            Ok(Some(Meta::Owner(owner))) => Err(self.taken(&owner)),
            // As above: whoever leads since a moment ago may not have come to it yet.
            Ok(_) if self.unsaid.get_or_insert_with(Instant::now).elapsed() < GONE => Ok(false),
            Ok(_) => Err(self.gone("does not say any more whose it is: was it emptied?")),
        }
    }

    /// What was sent whole, by its number and its subjects; nothing for what was not.
    fn sent(&self) -> Vec<Option<(u64, Vec<String>)>> {
        let whole = |flying: &Flying| flying.sent == flying.write.messages.len();
        let subjects = |flying: &Flying| flying.write.messages.iter().map(|message| message.subject.clone()).collect();
        self.flight.iter().map(|flying| whole(flying).then(|| (flying.number, subjects(flying)))).collect()
    }

    /// Tells of what landed, and has the rest sent again.
    async fn sort(&mut self, landed: Vec<Option<u64>>) {
        let refused = self.refused.take();
        let no_room = refused.as_ref().is_some_and(|(_, no)| no.is_full());
        let flight = std::mem::take(&mut self.flight);
        let later = std::mem::take(&mut self.again);
        let (mut last, mut pause, mut room) = (None, false, None);
        for (mut flying, landed) in flight.into_iter().zip(landed) {
            let no = refused.as_ref().filter(|(number, _)| *number == flying.number).map(|(_, no)| no);
            if let Some(seq) = landed {
                self.landed(flying.write, seq);
                continue;
            }
            let kind = &flying.write.kind;
            if no.is_some() && !matches!(kind, Kind::Reserve) {
                room = Some(matches!(kind, Kind::Room));
            }
            match (kind, no) {
                (kind, _) if kind.has_left() => {}
                // Written again in a while.
                (Kind::Reserve, _) => flying.write.fail(full(&self.link)),
                (Kind::Call(_), _) if no_room => flying.write.fail(full(&self.link)),
                (Kind::Call(_), Some(no)) => {
                    flying.write.fail(away(&format!("the stream {} does not take it: {no}", self.link.stream)));
                }
                (kind, no) => {
                    (flying.sent, flying.acked) = (0, 0);
                    if let Some(no) = no.filter(|_| !no_room) {
                        pause = true;
                        let why = format!("the stream {} takes nothing: {no}", self.link.stream);
                        self.standing.set_away(Some(why));
                    }
                    match kind {
                        Kind::Room => self.again.push_front(flying),
                        // Others may do with less.
                        _ if no.is_some() && no_room => last = Some(flying),
                        _ => self.again.push_back(flying),
                    }
                }
            }
        }
        self.again.extend(later);
        self.again.extend(last);
        if let Some((_, no)) = refused.filter(|_| no_room) {
            self.standing.set_full(&self.link, &no);
            if let Some(last_piece) = room {
                pause |= !self.make_room(last_piece).await;
            }
        }
        if pause {
            sleep(PAUSE).await;
        }
    }

    /// Gives up a piece of the reserve; false when there is none.
    async fn make_room(&mut self, last: bool) -> bool {
        let known = self.standing.reserve.get();
        let piece = match known {
            Some(reserve) => reserve.take(last),
            None => reserve::any(&self.link).await,
        };
        let Some(piece) = piece else { return false };
        let gone = self.link.delete(piece, false).await;
        if let (Err(_), Some(reserve)) = (&gone, known) {
            reserve.back(piece);
        }
        if self.standing.is_pressed() {
            self.standing.pressed.notify_one();
        }
        gone.is_ok()
    }

    pub(crate) fn refused(&self) -> Error {
        Error::Lost(format!(
            "the NATS server {} does not let the platform in any more; correct the login in the queue's address and start taper again",
            self.link.servers
        ))
    }

    fn gone(&self, what: &str) -> Error {
        let Link { stream, servers, .. } = &self.link;
        Error::Lost(format!(
            "the queue's stream {stream} at {servers} {what}; start taper again to go on with what is there; if that says the same, restart the NATS server in good order (SIGTERM), for it to read its files anew"
        ))
    }

    fn taken(&self, by: &Owner) -> Error {
        let Link { stream, servers, .. } = &self.link;
        let what = if by.id == self.owner.id {
            "another process of this same platform (a copy of its data directory?)".to_owned()
        } else {
            format!("the platform {} on {}", by.id, by.host)
        };
        Error::Lost(format!(
            "{what} has taken over the queue's stream {stream} at {servers}; give each platform a stream of its own (?stream=NAME)"
        ))
    }
}

/// Which writes have landed, and where: those whose every message is the last of its subject, or was before a later one of ours.
async fn look_for(
    link: &Link,
    epoch: &str,
    sent: Vec<Option<(u64, Vec<String>)>>,
) -> Result<Vec<Option<u64>>, Trouble> {
    let mut landed: Vec<_> = sent.iter().map(|sent| sent.is_some().then_some(0)).collect();
    let messages = |(at, sent): (usize, &'_ Option<(u64, Vec<String>)>)| {
        let (number, subjects) = sent.clone().unwrap_or_default();
        subjects.into_iter().enumerate().map(move |(part, subject)| (at, number, part, subject)).collect::<Vec<_>>()
    };
    let asked: Vec<_> = sent.iter().enumerate().flat_map(messages).collect();
    for some in asked.chunks(AT_ONCE) {
        let looks = some.iter().map(|(.., subject)| link.last(subject));
        for ((at, number, part, _), found) in some.iter().zip(join_all(looks).await) {
            let ours = |write: &str| {
                let (later, of) = write.strip_prefix(epoch)?.strip_prefix('.')?.split_once('.')?;
                let later: u64 = later.parse().ok()?;
                Some(later > *number || later == *number && of.parse() == Ok(*part))
            };
            let found = found?.filter(|stored| stored.write.as_deref().and_then(ours) == Some(true));
            landed[*at] = found.filter(|_| landed[*at].is_some()).map(|stored| stored.seq);
        }
    }
    Ok(landed)
}
