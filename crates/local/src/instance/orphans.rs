//! Calls that an adopted instance still runs for callers who went with the platform before this one.
//!
//! Owns the slots that these hold. Their connections are closed on this side, but a process that cannot be interrupted keeps its end
//! open for as long as it runs the call. The kernel's list of sockets tells which of these there still are.

use std::{collections::HashSet, fs, path::Path, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::call::{Fate, Left, Run};

const TABLE: &str = "/proc/net/unix";
/// How often it is looked whether they have ended; no event tells.
const PAUSE: Duration = Duration::from_millis(20);

/// Withholds a slot for each such call until it has ended. One that has not by `until` will not come to rest: the instance is
/// condemned.
pub(super) fn hold(listener: &Path, run: &Run, count: u32, fate: Arc<Fate>, until: Instant) {
    let Some(name) = listener.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { return };
    let mut left = connections(&fs::read_to_string(TABLE).unwrap_or_default(), &name);
    let most = move |left: usize| u32::try_from(left).unwrap_or(u32::MAX).min(count);
    let Ok(mut held) = run.slots.clone().try_acquire_many_owned(most(left.len())) else { return };
    if left.is_empty() {
        return;
    }
    let lingers = |_| run.left().map(Left::linger);
    let mut lingering: Vec<_> = (0..held.num_permits()).filter_map(lingers).collect();
    tokio::spawn(async move {
        while !left.is_empty() {
            if Instant::now() >= until {
                return fate.condemn("a call of a platform that is no more did not end");
            }
            sleep(PAUSE).await;
            let now = connections(&fs::read_to_string(TABLE).unwrap_or_default(), &name);
            left.retain(|inode| now.contains(inode));
            let free = held.num_permits().saturating_sub(most(left.len()) as usize);
            drop(held.split(free));
            lingering.truncate(held.num_permits());
        }
    });
}

/// The inodes of the connections to the socket with this name, in the kernel's list: number, references, protocol, flags, type, state,
/// inode, path. The socket itself, which accepts them, is none.
fn connections(table: &str, name: &str) -> HashSet<u64> {
    const ACCEPTS: &str = "00010000";
    let of = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (flags, inode) = (fields.nth(3)?, fields.nth(2)?);
        let path = fields.next()?.strip_suffix(name)?;
        (path.ends_with('/') && flags != ACCEPTS).then(|| inode.parse().ok())?
    };
    table.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use taper_model::Invoke;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::call::{Connect, Way, framed::Framed};

    #[test]
    fn connections_are_told_from_their_listener_and_from_others() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 70 /proc/self/fd/9/7-aabbcc01.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 71 /proc/self/fd/9/7-aabbcc01.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 72 /proc/self/fd/9/17-aabbcc01.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 73\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 74 /proc/self/fd/9/7-aabbcc01.sock\n";
        assert_eq!(connections(table, "7-aabbcc01.sock"), HashSet::from([71, 74]));
    }

    #[tokio::test]
    async fn a_slot_is_free_when_the_other_end_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("3-aabbcc02.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let connect = || {
            drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
            listener.accept().unwrap().0
        };
        let (first, second) = (connect(), connect());
        let fate = || Arc::new(Fate::new(taper_model::quantity::Memory(1), crate::call::Processes::PerCall, || 0));
        let run = |slots| {
            let connect: Connect = Arc::new(|| Box::pin(async { Err(std::io::ErrorKind::NotConnected.into()) }));
            let way = Way::Framed(Framed::new(connect, fate(), tokio::runtime::Handle::current()));
            Run { way, slots: Arc::new(Semaphore::new(slots)) }
        };
        let three = run(3);
        hold(&path, &three, 3, fate(), Instant::now() + Duration::from_secs(60));
        assert_eq!((three.slots.available_permits(), three.lingers()), (1, 2));
        drop(first);
        drop(three.slots.acquire_many(2).await.unwrap());
        assert_eq!(three.slots.available_permits(), 2);
        let (condemned, few) = (fate(), run(1));
        hold(&path, &few, 1, condemned.clone(), Instant::now());
        assert!(condemned.condemned().await.contains("did not end"));
        drop(second);
        drop(three.slots.acquire_many(3).await.unwrap());
    }
}
