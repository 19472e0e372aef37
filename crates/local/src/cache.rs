//! Owns the folders that can be made again: unpacked code and installed dependencies, each made once per key, bounded
//! in size, removed least recently used first. It never removes what is in use and never shows what is half made.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use taper_provider::Error;

use crate::Generation;

/// Folders by key, below one folder.
///
/// *Guarantees.* A folder appears under its final name whole or not at all; what a killed process left half made is
/// removed at the next start. A [`Kept`] keeps its folder for as long as it lives, whatever the bound says. Two platforms may
/// use one cache: each finds what the other has made, and neither removes anything while the other is there.
pub(crate) struct Cache {
    dir: PathBuf,
    bound: u64,
    generation: Generation,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<String, Entry>,
    /// What they take together.
    bytes: u64,
    making: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
    /// Counts uses; the least recently used entry has the smallest.
    tick: u64,
    made: u64,
}

struct Entry {
    folder: Arc<Path>,
    bytes: u64,
    used: u64,
}

/// A folder of the cache, in use for as long as a clone of this lives.
#[derive(Debug, Clone)]
pub(crate) struct Kept(Arc<Path>);

impl Kept {
    /// Where the folder's content is.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.join(CONTENT)
    }

    /// The key by which it is found.
    pub(crate) fn key(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

/// A folder being made. Removed with all that is in it unless it was taken into the cache.
pub(crate) struct Draft(PathBuf);

impl Draft {
    /// Where the content belongs.
    pub(crate) fn content(&self) -> PathBuf {
        self.0.join(CONTENT)
    }

    /// Where something may be put on the way to the content. Not there yet, and to be removed again.
    pub(crate) fn beside(&self) -> PathBuf {
        self.0.join("beside")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already when it was taken in. What cannot be removed now is removed at the next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const CONTENT: &str = "content";
const SIZE: &str = "size";
const DRAFT: &str = ".draft-";

impl Cache {
    /// Opens the cache in `dir`, which is made where it is missing. Removes what is half made, and everything when the
    /// machine was restarted since and `durable` is false: contents are not synced then, so a power cut may have left
    /// them torn.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub(crate) fn open(dir: &Path, bound: u64, durable: bool, generation: &Generation) -> Result<Self, Error> {
        let host = |source| Error::Host { what: format!("open the cache in {}", dir.display()), source };
        fs::create_dir_all(dir).map_err(host)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mark = dir.join("boot");
        let trusted = durable || (!boot.is_empty() && fs::read_to_string(&mark).is_ok_and(|text| text == boot));
        let mut entries = Vec::new();
        for found in fs::read_dir(dir).map_err(host)? {
            let found = found.map_err(host)?;
            if !found.file_type().map_err(host)?.is_dir() {
                continue;
            }
            let name = found.file_name().into_string().unwrap_or_default();
            if maker(&name).is_some_and(|number| number != generation.number() && generation.lives(number)) {
                continue;
            }
            match size(&found.path()).filter(|_| trusted && !name.starts_with(DRAFT)) {
                Some(bytes) => {
                    let made = found.metadata().and_then(|m| m.modified()).map_err(host)?;
                    entries.push((made, name, Arc::from(found.path()), bytes));
                }
                // Somebody else may be removing it.
                None => match fs::remove_dir_all(found.path()) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(host(e)),
                    _ => {}
                },
            }
        }
        fs::write(&mark, boot).map_err(host)?;
        entries.sort();
        let mut state = State::default();
        for (_, name, folder, bytes) in entries {
            state.tick += 1;
            state.bytes += bytes;
            state.entries.insert(name, Entry { folder, bytes, used: state.tick });
        }
        let cache = Self { dir: dir.into(), bound, generation: generation.clone(), state: Mutex::new(state) };
        // The bound may be another than it was.
        cache.shrink();
        Ok(cache)
    }

    /// The folder of a key, made by `make` when there is none. Callers with the same key wait for the one that makes
    /// it.
    ///
    /// # Errors
    /// What `make` returned; the next caller tries again.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped call's folder is removed once nothing writes to it any more.
    pub(crate) async fn get<F, M>(&self, key: &str, make: M) -> Result<Kept, Error>
    where
        M: FnOnce(Arc<Draft>) -> F,
        F: Future<Output = Result<(), Error>>,
    {
        if let Some(kept) = self.find(key) {
            return Ok(kept);
        }
        let turn = self.lock().making.entry(key.to_owned()).or_default().clone();
        let _turn = Turn { guard: Some(turn.lock_owned().await), key, cache: self };
        if let Some(kept) = self.find(key).or_else(|| self.discover(key)) {
            return Ok(kept);
        }
        let draft = Arc::new(self.draft()?);
        make(draft.clone()).await?;
        let kept = self.take_in(key, &draft)?;
        self.shrink();
        Ok(kept)
    }

    /// How many bytes the cached folders hold.
    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// The folder of a key, if it is there.
    pub(crate) fn find(&self, key: &str) -> Option<Kept> {
        let mut state = self.lock();
        state.tick += 1;
        let tick = state.tick;
        let entry = state.entries.get_mut(key)?;
        entry.used = tick;
        Some(Kept(entry.folder.clone()))
    }

    /// The folder of a key that another platform has made meanwhile.
    fn discover(&self, key: &str) -> Option<Kept> {
        let folder = self.dir.join(key);
        Some(self.insert(key, folder.clone(), size(&folder)?))
    }

    fn insert(&self, key: &str, folder: PathBuf, bytes: u64) -> Kept {
        let folder: Arc<Path> = folder.into();
        let mut state = self.lock();
        state.tick += 1;
        let used = state.tick;
        state.bytes += bytes;
        state.entries.insert(key.to_owned(), Entry { folder: folder.clone(), bytes, used });
        Kept(folder)
    }

    fn draft(&self) -> Result<Draft, Error> {
        let number = {
            let mut state = self.lock();
            state.made += 1;
            state.made
        };
        let draft = Draft(self.away(number));
        fs::create_dir_all(draft.content())
            .map_err(|source| Error::Host { what: "make a folder in the cache".into(), source })?;
        Ok(draft)
    }

    fn take_in(&self, key: &str, draft: &Draft) -> Result<Kept, Error> {
        let host = |source| Error::Host { what: "take a folder into the cache".into(), source };
        let bytes = weigh(&draft.content()).map_err(host)?;
        fs::write(draft.0.join(SIZE), bytes.to_string()).map_err(host)?;
        let folder = self.dir.join(key);
        match fs::rename(&draft.0, &folder) {
            Ok(()) => Ok(self.insert(key, folder, bytes)),
            // Another platform was sooner; what it made is as good.
            Err(why) => self.discover(key).ok_or_else(|| host(why)),
        }
    }

    /// The name of something that is not in the cache, or not any more.
    fn away(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{DRAFT}{}-{number}", self.generation.number()))
    }

    /// Removes unused folders, least recently used first, until the bound holds. To be called now and then, for what was in use when
    /// the last one was made, or when another platform was there that might use them.
    pub(crate) fn shrink(&self) {
        if self.lock().bytes > self.bound {
            self.generation.alone(|| self.evict());
        }
    }

    fn evict(&self) {
        let mut out = Vec::new();
        {
            let mut state = self.lock();
            // The cache's own handle is one; a second one is a use.
            let idle = state.entries.iter().filter(|(_, e)| Arc::strong_count(&e.folder) == 1);
            let mut idle: Vec<_> = idle.map(|(key, e)| (e.used, key.clone())).collect();
            idle.sort_unstable();
            for (_, key) in idle {
                if state.bytes <= self.bound {
                    break;
                }
                let Some(entry) = state.entries.remove(&key) else { continue };
                state.bytes -= entry.bytes;
                // Renamed under the lock, so that the key can be made again at once.
                state.made += 1;
                let away = self.away(state.made);
                if fs::rename(&entry.folder, &away).is_ok() {
                    out.push(Draft(away));
                }
            }
        }
        // Where there is no runtime nobody minds that it takes a moment.
        if let (false, Ok(runtime)) = (out.is_empty(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(out));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the cache's state is never poisoned")
    }
}

/// The right to make one key's folder; the last one out removes the lock's entry.
struct Turn<'a> {
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
    key: &'a str,
    cache: &'a Cache,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        drop(self.guard.take());
        if state.making.get(self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            state.making.remove(self.key);
        }
    }
}

/// What a whole folder of a cache says it takes.
fn size(folder: &Path) -> Option<u64> {
    fs::read_to_string(folder.join(SIZE)).ok()?.parse().ok()
}

/// The number of the platform whose draft has this name.
fn maker(name: &str) -> Option<u8> {
    name.strip_prefix(DRAFT)?.split_once('-')?.0.parse().ok()
}

/// The bytes that a tree's regular files take, without following links.
fn weigh(tree: &Path) -> io::Result<u64> {
    let mut total = 0;
    let mut folders = vec![tree.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for found in fs::read_dir(folder)? {
            let found = found?;
            let meta = found.metadata()?;
            if meta.is_dir() {
                folders.push(found.path());
            } else {
                // An empty file still costs something.
                total += meta.len().max(512);
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn fill(draft: Arc<Draft>, bytes: usize) -> Result<(), Error> {
        fs::write(draft.content().join("file"), vec![b'x'; bytes]).unwrap();
        Ok(())
    }

    /// A data directory, and the one life over it. The cache is a folder in it.
    fn begin() -> (tempfile::TempDir, Generation, PathBuf) {
        let data = tempfile::tempdir().unwrap();
        let generation = Generation::begin(data.path()).unwrap();
        generation.settled();
        let dir = data.path().join("cache");
        (data, generation, dir)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_type().unwrap().is_dir())
            .map(|e| e.file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn made_once_and_found_after_a_restart() {
        let (_data, life, dir) = begin();
        let cache = Cache::open(&dir, 1 << 20, false, &life).unwrap();
        let count = AtomicUsize::new(0);
        let make = || {
            cache.get("a", |draft| async {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                fill(draft, 1000).await
            })
        };
        let (a, b, c) = tokio::join!(make(), make(), make());
        assert_eq!(count.load(Ordering::Relaxed), 1);
        for kept in [a, b, c] {
            assert_eq!(fs::read(kept.unwrap().path().join("file")).unwrap().len(), 1000);
        }
        assert!(cache.lock().making.is_empty(), "no lock is left behind");
        fs::create_dir_all(dir.join(".draft-77/content")).unwrap();
        let again = Cache::open(&dir, 1 << 20, false, &life).unwrap();
        assert_eq!(again.bytes(), 1000);
        assert_eq!(names(&dir), ["a"], "what was half made is removed");
    }

    #[tokio::test]
    async fn a_restarted_machine_trusts_only_what_is_durable() {
        let (_data, life, dir) = begin();
        let cache = Cache::open(&dir, 1 << 20, true, &life).unwrap();
        cache.get("a", |draft| fill(draft, 10)).await.unwrap();
        fs::write(dir.join("boot"), "another boot").unwrap();
        assert!(Cache::open(&dir, 1 << 20, true, &life).unwrap().bytes() > 0);
        fs::write(dir.join("boot"), "another boot").unwrap();
        assert_eq!(Cache::open(&dir, 1 << 20, false, &life).unwrap().bytes(), 0);
    }

    #[tokio::test]
    async fn failures_and_dropped_calls_leave_nothing() {
        let (_data, life, dir) = begin();
        let cache = Cache::open(&dir, 1 << 20, false, &life).unwrap();
        let failed = cache
            .get("a", |draft| async move {
                fill(draft, 10).await?;
                Err(Error::Prepare("no".into()))
            })
            .await;
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert!(names(&dir).is_empty());
        {
            let never = cache.get("a", |draft| async move {
                fill(draft, 10).await?;
                std::future::pending().await
            });
            tokio::pin!(never);
            assert!(futures_util::poll!(never.as_mut()).is_pending());
            assert_eq!(names(&dir).len(), 1);
        }
        assert!(names(&dir).is_empty());
        cache.get("a", |draft| fill(draft, 10)).await.unwrap();
    }

    #[tokio::test]
    async fn the_bound_spares_what_is_in_use() {
        let (_data, life, dir) = begin();
        let cache = Cache::open(&dir, 2500, false, &life).unwrap();
        let a = cache.get("a", |draft| fill(draft, 1000)).await.unwrap();
        drop(cache.get("b", |draft| fill(draft, 1000)).await.unwrap());
        drop(cache.get("c", |draft| fill(draft, 1000)).await.unwrap());
        assert_eq!(cache.bytes(), 2000, "b went: a is in use, c is newer");
        assert!(cache.find("b").is_none());
        assert!(a.path().join("file").exists());
        drop(a);
        drop(cache.find("a"));
        drop(cache.get("d", |draft| fill(draft, 1000)).await.unwrap());
        assert!(cache.find("c").is_none(), "c is now the least recently used");
        assert!(cache.find("a").is_some());

        let (a, d) = (cache.find("a").unwrap(), cache.find("d").unwrap());
        let e = cache.get("e", |draft| fill(draft, 1000)).await.unwrap();
        assert_eq!(cache.bytes(), 3000, "all are in use");
        drop((d, e));
        cache.shrink();
        assert_eq!(cache.bytes(), 2000, "what was in use then goes now");
        assert!(cache.find("d").is_none() && a.path().join("file").exists());
        drop((a, cache));
        assert_eq!(Cache::open(&dir, 1500, false, &life).unwrap().bytes(), 1000, "another bound holds at once");
    }

    #[tokio::test]
    async fn two_platforms_share_what_they_make_and_remove_nothing_of_each_other() {
        let (data, first, dir) = begin();
        let one = Cache::open(&dir, 1500, false, &first).unwrap();
        drop(one.get("a", |draft| fill(draft, 1000)).await.unwrap());
        let half = one.draft().unwrap();
        let second = Generation::begin(data.path()).unwrap();
        let two = Cache::open(&dir, 1500, false, &second).unwrap();
        second.settled();
        assert!(half.content().exists(), "what the other is making");
        // Both make the same, and one of them more: each has all, over the bound.
        let (b, again) = tokio::join!(
            one.get("b", |draft| fill(draft, 1000)),
            two.get("b", |draft| async {
                drop(one.get("b", |draft| fill(draft, 1000)).await.unwrap());
                fill(draft, 1000).await
            })
        );
        assert_eq!(b.unwrap().path(), again.unwrap().path());
        two.get("c", |draft| fill(draft, 1000)).await.unwrap();
        let nothing = async |_| -> Result<(), Error> { panic!("it is there") };
        assert!(one.get("c", nothing).await.unwrap().path().join("file").exists());
        one.shrink();
        assert_eq!((one.bytes(), two.bytes()), (3000, 3000));
        assert_eq!(names(&dir), [".draft-1-2", "a", "b", "c"].map(String::from));
        drop((two, second));
        drop(half);
        one.shrink();
        assert_eq!(one.bytes(), 1000);
        assert!(one.find("c").is_some() && one.find("a").is_none());
    }
}
