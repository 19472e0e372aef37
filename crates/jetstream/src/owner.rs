//! Whose a stream is: one platform's at a time. Who has it says so every few seconds; who has not said so for a while has it no longer.
//! This is what keeps platforms apart that behave; what keeps out one that was away and does not know it yet is that every write names the
//! message it follows (see `writer`), so that no clock decides over a call.

use std::{fs, io::Write as _, path::Path, time::Duration};

use taper_model::{CallId, clock};
use tokio::time::sleep;

use crate::{
    Error,
    api::{EXPECT_OF_SUBJECT, Link, Stored},
    record::{Meta, Owner},
};

/// How often an owner says that it is there.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(4);
/// How long it is believed.
const LEASE: Duration = Duration::from_secs(30);
/// Claims that others may be faster with.
const TRIES: usize = 5;

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
    for _ in 0..TRIES {
        let found = link.last(&subject).await.map_err(|trouble| Error::answer(link, &trouble))?;
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
        let expect = (EXPECT_OF_SUBJECT, found.map_or(0, |stored| stored.seq));
        match link.write(&subject, &Meta::Owner(mine.clone()), expect).await {
            Ok(seq) => return Ok(seq),
            // Somebody was faster, or it was ourselves and only the answer was lost.
            Err(trouble) if trouble.is_wrong_last() => {}
            Err(trouble) => return Err(Error::answer(link, &trouble)),
        }
    }
    Err(Error::Unreachable { servers: link.servers.clone(), why: "others claim its stream all the time".into() })
}

/// Who else has it.
fn other(stored: &Stored, mine: &Owner) -> Option<Owner> {
    match stored.meta() {
        Some(Meta::Owner(owner)) if !owner.free && owner.id != mine.id => Some(owner),
        _ => None,
    }
}
