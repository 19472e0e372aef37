//! Whose a stream is: one platform's at a time. Who has it says so every few seconds; who has not said so for a while has it no longer.
//! This is what keeps platforms apart that behave; what keeps out one that was away and does not know it yet is that every write names the
//! message it follows (see `writer`), so that no clock decides over a call.

use std::{fs, io::Write as _, path::Path, time::Duration};

use taper_model::{CallId, clock};
use tokio::time::{Instant, sleep};

use crate::{
    ELECTION, Error,
    api::{Link, Stored, Trouble},
    record::{Meta, Owner},
    reserve,
};

/// How often an owner says that it is there.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(4);
/// How long it is believed.
const LEASE: Duration = Duration::from_secs(30);
/// Claims that others may be faster with, and the pause between them: what somebody wrote right before he died may land late.
const TRIES: usize = 40;
const PAUSE: Duration = Duration::from_millis(100);

/// Who we are: the id that is kept in the data directory, so that a platform which was killed has its stream back at once.
pub(crate) fn identity(dir: &Path) -> Result<Owner, Error> {
    let path = dir.join("owner");
    let io = |doing| taper_medium::Error::io(doing, &path);
    let mut file = taper_medium::private_file(&path)?;
    let mut id = fs::read_to_string(&path).map_err(io("read"))?.trim().to_owned();
    if CallId::given(&id).is_err() {
        id = CallId::random().to_string();
        file.set_len(0).and_then(|()| writeln!(file, "{id}")).and_then(|()| file.sync_all()).map_err(io("write"))?;
        taper_medium::sync_dir(dir)?;
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    let host = host.unwrap_or_else(|_| "an unknown host".into());
    let epoch = CallId::random().as_str().replace('-', "");
    Ok(Owner { id, host, epoch, at: clock::unix_ms(), free: false })
}

/// Takes the stream; the number of the message that says so.
pub(crate) async fn claim(link: &Link, mine: &Owner) -> Result<u64, Error> {
    let subject = link.subject("owner");
    let mut waited = None;
    let begun = Instant::now();
    // A cluster may just choose who leads it.
    let passing = |trouble: &Trouble| trouble.is_passing() && begun.elapsed() < ELECTION;
    let mut tries = 0;
    while tries < TRIES {
        let (last, found) = match whose(link).await {
            Err(trouble) if passing(&trouble) => {
                sleep(PAUSE).await;
                continue;
            }
            whose => whose.map_err(|trouble| Error::answer(link, &trouble))?,
        };
        tries += 1;
        if let Some(theirs) = found.as_ref().and_then(|stored| other(stored, mine)) {
            let seq = found.as_ref().map_or(0, |stored| stored.seq);
            let until = theirs.at.saturating_add(u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX));
            // One that says it once more is there, whatever its clock and ours say.
            if clock::unix_ms() < until || waited.is_some_and(|before| before != seq) {
                let until = until.max(clock::unix_ms());
                return Err(Error::Owned {
                    stream: link.stream.clone(),
                    servers: link.servers.clone(),
                    id: theirs.id,
                    host: theirs.host,
                    until: clock::rfc3339(until),
                });
            }
            if waited.is_none() {
                waited = Some(seq);
                sleep(HEARTBEAT + Duration::from_secs(1)).await;
                continue;
            }
        }
        match link.write(&subject, &Meta::Owner(mine.clone()), last).await {
            Ok(seq) => return Ok(seq),
            // Somebody was faster, or it was ourselves and only the answer was lost.
            Err(trouble) if trouble.is_wrong_last() || passing(&trouble) => sleep(PAUSE).await,
            // What the one before us has kept for hard times.
            Err(trouble) if trouble.is_full() => match reserve::any(link).await {
                Some(piece) => link.delete(piece, false).await.map_err(|trouble| Error::answer(link, &trouble))?,
                None => return Err(Error::answer(link, &trouble)),
            },
            Err(trouble) => return Err(Error::answer(link, &trouble)),
        }
    }
    Err(Error::Unreachable { servers: link.servers.clone(), why: "others claim its stream all the time".into() })
}

/// The stream's last message, and, not older than that, the one that says whose it is.
async fn whose(link: &Link) -> Result<(u64, Option<Stored>), Trouble> {
    let last = link.look().await?.state.last_seq;
    let known = link.last(&link.subject("owner")).await?.map_or(1, |stored| stored.seq);
    Ok((last, newest(link, known).await?))
}

/// The newest message that says whose the stream is, from that number on. Each is looked at: what servers take for the last of a subject
/// has been seen to be an older one, or none, after they were killed (2.9.10).
pub(crate) async fn newest(link: &Link, from: u64) -> Result<Option<Stored>, Trouble> {
    let subject = link.subject("owner");
    let (mut from, mut newest) = (from, None);
    while let Some(stored) = link.next(&subject, from).await? {
        from = stored.seq + 1;
        newest = Some(stored);
    }
    Ok(newest)
}

/// Who else has it.
fn other(stored: &Stored, mine: &Owner) -> Option<Owner> {
    match stored.meta() {
        Some(Meta::Owner(owner)) if !owner.free && owner.id != mine.id => Some(owner),
        _ => None,
    }
}
