//! What hosts are called and where they are: asked of the host's resolver, which cannot be called back. A name that it does not find out about
//! takes a thread until it gives up, so there are only so many at a time, and of one function's calls fewer.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
};

use taper_model::FunctionName;
use tokio::{sync::Semaphore, task::spawn_blocking};

/// Most names that are looked up at a time.
const ALL: usize = 64;
/// Most of those that callers of one function, or it itself, have named.
const OF_FUNCTION: usize = 16;

/// Asks the resolver. Blocks.
type Ask = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// Whoever looks names up.
pub(crate) struct Names {
    ask: Ask,
    all: Arc<Semaphore>,
    of: Mutex<HashMap<FunctionName, Arc<Semaphore>>>,
}

impl Names {
    /// As the host does.
    pub(crate) fn new() -> Self {
        Self::asking(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
    }

    fn asking(ask: Ask) -> Self {
        Self { ask, all: Arc::new(Semaphore::new(ALL)), of: Mutex::default() }
    }

    /// Where a host is. For a call of this function.
    ///
    /// # Errors
    /// What the resolver says.
    ///
    /// # Cancel safety
    /// The thread is gone when the resolver has answered, and no sooner.
    pub(crate) async fn find(&self, function: &FunctionName, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let closed = |_| io::Error::other("the platform is ending");
        let own = self.of(function).acquire_owned().await.map_err(closed)?;
        let one = Arc::clone(&self.all).acquire_owned().await.map_err(closed)?;
        let (ask, host) = (self.ask, host.to_owned());
        let found = spawn_blocking(move || {
            let found = ask(&host, port);
            drop((own, one));
            found
        });
        found.await.map_err(io::Error::other)?
    }

    /// What a function's names have. Those of functions that look nothing up are forgotten.
    fn of(&self, function: &FunctionName) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if !of.contains_key(function) {
            of.retain(|_, own| Arc::strong_count(own) > 1);
        }
        Arc::clone(of.entry(function.clone()).or_insert_with(|| Arc::new(Semaphore::new(OF_FUNCTION))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, LazyLock};

    use tokio::task::JoinSet;

    use super::*;

    /// How many are asked about that nothing is found out about, and whether that is over.
    static HANGING: LazyLock<(Mutex<(usize, bool)>, Condvar)> = LazyLock::new(Default::default);

    fn ask(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if host.starts_with("hangs") {
            let (state, changed) = &*HANGING;
            let mut state = state.lock().unwrap();
            state.0 += 1;
            changed.notify_all();
            drop(changed.wait_while(state, |(_, over)| !*over).unwrap());
            return Err(io::Error::other("nobody knows"));
        }
        Ok(vec![SocketAddr::new([127, 0, 0, 1].into(), port)])
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn names_that_nobody_knows_leave_room() {
        let names = Arc::new(Names::asking(ask));
        let [hangs, other] = ["f", "g"].map(|name| FunctionName::parse(name).unwrap());
        let mut asked = JoinSet::new();
        for n in 0..200 {
            let (names, hangs) = (Arc::clone(&names), hangs.clone());
            asked.spawn(async move { names.find(&hangs, &format!("hangs-{n}"), 1).await });
        }
        // All that may are at it.
        let wait = || {
            let (state, changed) = &*HANGING;
            drop(changed.wait_while(state.lock().unwrap(), |(asked, _)| *asked < OF_FUNCTION).unwrap());
        };
        spawn_blocking(wait).await.unwrap();
        assert_eq!(names.find(&other, "a.example", 7).await.unwrap()[0].port(), 7);
        assert_eq!(names.find(&hangs, "::1", 7).await.unwrap()[0].port(), 7, "an address is no name");
        // Who asked has gone: the threads have not.
        asked.shutdown().await;
        assert_eq!((HANGING.0.lock().unwrap().0, names.all.available_permits()), (OF_FUNCTION, ALL - OF_FUNCTION));
        HANGING.0.lock().unwrap().1 = true;
        HANGING.1.notify_all();
        names.find(&hangs, "b.example", 7).await.unwrap();
        drop(names.all.acquire_many(u32::try_from(ALL).unwrap()).await.unwrap());
        assert_eq!(names.of.lock().unwrap().len(), 2);
        names.find(&FunctionName::parse("h").unwrap(), "b.example", 7).await.unwrap();
        assert_eq!(names.of.lock().unwrap().len(), 1, "the others look nothing up");
    }
}
