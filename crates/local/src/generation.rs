//! One life of a platform over a data directory: what tells its traces on the host from those of another life.
//!
//! Owns the folder `run` in the data directory, where each life has a folder and a number of its own: sockets, the place where the
//! root is assembled, the folders of instances without isolation; only the platform's account may enter it. The number is in
//! the [`Mark`] that control groups, links and tables carry. Two platforms may live over one directory for a while, as when one
//! replaces the other: neither touches what is the other's. What belongs to a life that is over is removed by the next that begins.
//!
//! # Whose it is
//!
//! Two locks tell, which the kernel lets go when their holders end, however they end: that on a life's folder is the
//! platform's, that on the folder `root` in it the platform's and its spawner's. Nobody begins, sweeps, takes over or removes what
//! is his but in his *turn*, a lock on the data directory itself: the folder `run` is everybody's, and one that ends would
//! take it away from under another that begins.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use crate::sandbox::{Mark, cgroup::Cgroups};
use crate::spawner::{Estate, SOCKET, adopt_from};
use crate::{Error, network};

/// How long others may take to end or for their turn, and how often that is looked at.
const ENDING: Duration = Duration::from_secs(10);
pub(crate) const PAUSE: Duration = Duration::from_millis(2);
/// What the name of a life's folder begins with; its number follows.
const LIFE: &str = "g";

/// The right to begin, to sweep and to take over, which one has at a time. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    data: PathBuf,
    lock: OwnedFd,
}

impl Turn {
    /// Waits for it. Blocks.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when there is no such directory.
    pub(crate) fn take(data: &Path) -> Result<Turn, Error> {
        let data = fs::canonicalize(data).map_err(Error::file(data))?;
        let lock = locked(&data, FlockOperation::LockExclusive).map_err(Error::file(&data))?;
        Ok(Turn { data, lock })
    }

    /// Begins a life: that of a platform that has died, with what its spawner has kept, where `identity` is who may have
    /// that; else a new one. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Generation::begin`].
    pub(crate) fn begin(self, identity: Option<&str>) -> Result<(Generation, Option<Estate>), Error> {
        let run = self.data.join("run");
        make(&run)?;
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).map_err(Error::file(&run))?;
        let found = self.find_place(&run, identity);
        let (place, estate) = found.inspect_err(|_| drop(fs::remove_dir(&run)))?;
        let Place { number, folder, root } = place;
        let (path, mark) = (run.join(format!("{LIFE}{number}")), Mark::of(&self.data).of_life(number));
        let Turn { data, lock } = self;
        let (turn, removed) = (Mutex::new(Some(lock)), AtomicBool::new(false));
        Ok((Generation(Arc::new(Inner { data, number, mark, path, folder, root, turn, removed })), estate))
    }

    fn find_place(&self, run: &Path, identity: Option<&str>) -> Result<(Place, Option<Estate>), Error> {
        let Swept { living, orphan } = sweep(run, &Mark::of(&self.data), identity)?;
        if let Some(Orphan { number, folder, estate }) = orphan {
            let root = estate.lock.try_clone().map_err(Error::file(run))?;
            return Ok((Place { number, folder, root }, Some(estate)));
        }
        let number = (1..=u8::MAX).find(|number| !living.contains(number));
        let number = number.ok_or_else(|| Error::file(run)(io::Error::other("too many platforms use it")))?;
        let path = run.join(format!("{LIFE}{number}"));
        make(&path.join("root"))?;
        // Whoever looks whether it is locked lets go at once.
        let lock = |path: PathBuf| locked(&path, FlockOperation::LockExclusive).map_err(Error::file(path));
        let (folder, root) = (lock(path.clone())?, lock(path.join("root"))?);
        Ok((Place { number, folder, root }, None))
    }
}

/// A number and the two locks of a life.
struct Place {
    number: u8,
    folder: OwnedFd,
    root: OwnedFd,
}

/// One life of a platform over a data directory. When the last clone is dropped its folder is removed, if nothing is in it.
#[derive(Clone, Debug)]
pub struct Generation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data: PathBuf,
    number: u8,
    mark: Mark,
    path: PathBuf,
    /// Locked for as long as the platform lives.
    folder: OwnedFd,
    /// Locked for as long as the platform or its spawner lives.
    root: OwnedFd,
    /// While this life begins.
    turn: Mutex<Option<OwnedFd>>,
    /// Its folder is gone: one with this number is another life's.
    removed: AtomicBool,
}

impl Generation {
    /// Begins a life over the data directory `data`, after removing what lives that are over have left of files and control
    /// groups. It is this life's turn until what it begins with is in its place. Blocks, also while another one begins.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the folder cannot be used; [`Error::Cgroup`] when what was left behind does not end.
    pub fn begin(data: &Path) -> Result<Generation, Error> {
        Turn::take(data)?.begin(None).map(|(begun, _)| begun)
    }

    /// Says that it has swept and taken all that it begins with: others may begin, too.
    pub(crate) fn settled(&self) {
        self.turn().take();
    }

    /// The data directory, canonical.
    pub(crate) fn data(&self) -> &Path {
        &self.0.data
    }

    /// The number, which no other life over this directory has at the same time.
    pub(crate) fn number(&self) -> u8 {
        self.0.number
    }

    /// What the traces of this life carry.
    pub fn mark(&self) -> &Mark {
        &self.0.mark
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Where the spawner assembles the root of all sandboxes. On the host it stays an empty folder.
    pub(crate) fn template(&self) -> PathBuf {
        self.0.path.join("root")
    }

    /// Where an instance listens: through this process's descriptor, since the path of a data directory may be longer than
    /// the 107 bytes that the address of a socket may have.
    pub(crate) fn socket(&self, tag: u64) -> PathBuf {
        // The mark tells its connections from all others in the kernel's list.
        PathBuf::from(format!("/proc/self/fd/{}/{tag}-{}.sock", self.0.folder.as_raw_fd(), self.0.mark.as_str()))
    }

    /// The folder of an instance without isolation.
    pub(crate) fn instance(&self, tag: u64) -> PathBuf {
        self.0.path.join(tag.to_string())
    }

    /// Makes such a folder, with what belongs in it.
    pub(crate) fn furnish(folder: &Path) -> Result<(), Error> {
        ["", "secrets", "tmp"].into_iter().try_for_each(|part| make(&folder.join(part)))
    }

    /// A socket at which a spawner can wait for whoever comes after this platform.
    pub(crate) fn door(&self) -> io::Result<OwnedFd> {
        let _ = fs::remove_file(self.0.path.join(SOCKET));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", self.0.folder.as_raw_fd());
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    }

    /// The lock that is held for as long as this process or its spawner lives.
    pub(crate) fn lock(&self) -> &OwnedFd {
        &self.0.root
    }

    /// Removes what instances of a spawner that has died have left in the folder.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        self.clear_but(&[])
    }

    /// Removes what instances have left in the folder, all but these.
    pub(crate) fn clear_but(&self, tags: &[u64]) -> Result<(), Error> {
        clear(&self.0.path, tags)
    }

    /// Whether the life with this number over the same directory goes on. Only in one's turn the answer stays true.
    pub(crate) fn lives(&self, number: u8) -> bool {
        number == self.0.number || lives(&self.0.data.join("run").join(format!("{LIFE}{number}")))
    }

    /// Whether another platform uses the same directory now.
    pub(crate) fn has_company(&self) -> bool {
        let all = fs::read_dir(self.0.data.join("run")).into_iter().flatten().flatten();
        all.filter_map(|entry| number(&entry.file_name())).any(|number| number != self.0.number && self.lives(number))
    }

    /// Does this if no other platform uses the same directory, and none begins meanwhile.
    pub(crate) fn alone<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let turn = self.turn();
        let _own = match turn.as_ref() {
            Some(_) => None,
            // Somebody begins: not alone, then.
            None => Some(locked(&self.0.data, FlockOperation::NonBlockingLockExclusive).ok()?),
        };
        if self.has_company() { None } else { Some(work()) }
    }

    /// Removes its folder, if nothing is in it any more. For the end, when nothing of this life is left on the host. Blocks while
    /// another one begins.
    pub(crate) fn remove(&self) {
        self.0.remove();
    }

    fn turn(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.0.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remove(&self) {
        let own = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Where there is none to be had, the next one that begins removes what it finds.
        let turn = if own.is_some() { None } else { turn_in(&self.data, ENDING) };
        if (own.is_some() || turn.is_some()) && !self.removed.load(Ordering::Relaxed) {
            self.removed.store(remove(&self.path), Ordering::Relaxed);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What a sweep has found.
struct Swept {
    /// The numbers of those that go on.
    living: Vec<u8>,
    orphan: Option<Orphan>,
}

/// What a platform that has died has left to its spawner.
struct Orphan {
    number: u8,
    folder: OwnedFd,
    estate: Estate,
}

/// Removes what lives that are over have left in `run` and of control groups. Where a spawner has outlived its platform, what it
/// keeps is taken over, or ended.
fn sweep(run: &Path, family: &Mark, identity: Option<&str>) -> Result<Swept, Error> {
    let (mut living, mut dead, mut orphan) = (Vec::new(), Vec::new(), None);
    for entry in fs::read_dir(run).map_err(Error::file(run))?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(number) = number(&name) else {
            // So it was when there was one life at a time.
            dead.extend((name == "root").then_some(path));
            continue;
        };
        if !lives(&path) {
            dead.push(path);
            continue;
        }
        let Ok(folder) = locked(&path, FlockOperation::NonBlockingLockExclusive) else {
            living.push(number);
            continue;
        };
        match heir(&path, &folder, identity.filter(|_| orphan.is_none())) {
            Some(estate) => {
                orphan = Some(Orphan { number, folder, estate });
                living.push(number);
            }
            None if lives(&path) => living.push(number),
            None => dead.push(path),
        }
    }
    Cgroups::sweep_dead(family, &living)?;
    clear(run, &[])?;
    for path in dead {
        clear(&path, &[])?;
        match fs::remove_dir_all(&path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(Error::file(path)(why)),
            _ => {}
        }
    }
    Ok(Swept { living, orphan })
}

/// What the spawner in this folder has kept. Where nobody may have it, it has ended.
fn heir(path: &Path, folder: &OwnedFd, identity: Option<&str>) -> Option<Estate> {
    match adopt_from(folder, identity) {
        Ok(estate) => return Some(estate),
        // Without anybody to adopt for, nobody expects it.
        Err(_) if identity.is_none() => {}
        Err(why) => tracing::info!(%why, "the instances of a platform that has died are not adopted; they end"),
    }
    // It is ending, or its last children are; no event tells when all have let go of its lock.
    for _ in 0..ENDING.as_millis() / PAUSE.as_millis() {
        if !lives(path) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    None
}

/// The turn, as soon as nobody else has it, if that is within so long.
fn turn_in(data: &Path, patience: Duration) -> Option<OwnedFd> {
    for _ in 0..patience.as_millis() / PAUSE.as_millis() {
        match locked(data, FlockOperation::NonBlockingLockExclusive) {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            answer => return answer.ok(),
        }
    }
    None
}

/// Clears up after the life in this folder, by `more` and then of files, if its platform is dead and it is nobody's turn. For its
/// spawner, which still holds its lock. Gives whether there is nothing left to do.
///
/// It waits for neither: whoever has his turn may be waiting for this spawner to end, and takes the platform's lock to know that it
/// is dead; were it held here meanwhile, a dead life would look like one that goes on. Where the data directory itself is gone there is
/// nobody to wait for, and nobody else who would ever do it.
pub(crate) fn bury(folder: &Path, more: impl FnOnce()) -> bool {
    let Some(data) = folder.parent().and_then(Path::parent) else { return true };
    if fs::symlink_metadata(data).is_err_and(|why| why.kind() == io::ErrorKind::NotFound) {
        more();
        return true;
    }
    let locks = locked(data, FlockOperation::NonBlockingLockExclusive)
        .and_then(|turn| Ok((locked(folder, FlockOperation::NonBlockingLockExclusive)?, turn)));
    match locks {
        Err(why) => why.kind() != io::ErrorKind::WouldBlock,
        Ok(_both) => {
            more();
            // What cannot be removed is removed by the next one that begins.
            let _ = clear(folder, &[]);
            remove(folder);
            true
        }
    }
}

/// Removes a life's folder, if nothing of any instance is in it. Gives whether it is gone. Else what tells that it is somebody's
/// stays, too.
fn remove(folder: &Path) -> bool {
    let _ = fs::remove_file(folder.join(SOCKET));
    let empty =
        fs::read_dir(folder).is_ok_and(|mut left| left.all(|one| one.is_ok_and(|one| one.file_name() == "root")));
    if empty {
        let _ = fs::remove_dir(folder.join("root"));
        let _ = fs::remove_dir(folder);
    }
    let _ = folder.parent().map(fs::remove_dir);
    !folder.exists()
}

/// Removes from a folder the sockets and folders of instances but these, and ends what carried their connections.
fn clear(folder: &Path, but: &[u64]) -> Result<(), Error> {
    if but.is_empty() {
        network::untether(folder);
    }
    let entries = match fs::read_dir(folder) {
        // Its spawner may have been sooner, here and below.
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::file(folder))?,
    };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str() else { continue };
        let tag = name.strip_suffix(".sock").map_or(name, |name| name.split_once('-').map_or(name, |(tag, _)| tag));
        if tag.parse::<u64>().is_ok_and(|tag| !but.contains(&tag)) {
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(Error::file(path)(why)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The number of the life whose folder has this name.
fn number(name: &std::ffi::OsStr) -> Option<u8> {
    let number = name.to_str()?.strip_prefix(LIFE)?.parse().ok()?;
    (number > 0).then_some(number)
}

/// Whether somebody of the life in this folder is there.
fn lives(folder: &Path) -> bool {
    match locked(&folder.join("root"), FlockOperation::NonBlockingLockShared) {
        Ok(_) => false,
        Err(why) => why.kind() == io::ErrorKind::WouldBlock,
    }
}

/// A folder, opened and locked.
fn locked(folder: &Path, how: FlockOperation) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(folder, flags, Mode::empty())?;
    loop {
        match flock(open.as_fd(), how) {
            Err(rustix::io::Errno::INTR) => {}
            answer => return answer.map(|()| open).map_err(io::Error::from),
        }
    }
}

fn make(folder: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::file(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    #[test]
    fn two_lives_side_by_side_leave_each_other_alone() {
        let data = tempfile::tempdir().expect("makes");
        let first = Generation::begin(data.path()).expect("begins");
        assert_eq!(first.alone(|| ()), Some(()), "also before it is settled");
        first.settled();
        Generation::furnish(&first.instance(7)).expect("makes");
        let second = Generation::begin(data.path()).expect("begins");
        assert_eq!((first.number(), second.number()), (1, 2));
        assert_ne!(first.mark(), second.mark());
        assert_eq!(first.alone(|| ()), None, "somebody begins");
        second.settled();
        assert!(first.has_company() && second.has_company() && first.alone(|| ()).is_none());
        assert!(first.instance(7).join("tmp").exists());
        drop(second);
        assert!(!first.has_company());
        first.clear().expect("clears");
        drop(first);
        assert_eq!(names(data.path()), Vec::<String>::new());
    }

    #[test]
    fn what_lives_that_are_over_have_left_is_removed_and_the_rest_is_not() {
        let data = tempfile::tempdir().expect("makes");
        let run = data.path().join("run");
        // As an older platform left it, and one whose end nobody saw.
        for folder in ["root", "7/tmp", "g9/root", "g9/4/secrets", "other"] {
            fs::create_dir_all(run.join(folder)).expect("makes");
        }
        for name in ["3.sock", "other.sock", "network.json", "g9/1-0a0b0c09.sock", "1.pasta"] {
            fs::write(run.join(name), "").expect("writes");
        }
        let living = Generation::begin(data.path()).expect("begins");
        assert_eq!(names(&run), ["g1", "network.json", "other", "other.sock"]);
        living.settled();
        drop(living);
        assert_eq!(names(&run), ["network.json", "other", "other.sock"]);
    }

    #[test]
    fn one_that_ends_takes_nothing_away_from_under_another_that_begins() {
        let data = tempfile::tempdir().expect("makes");
        let run = data.path().join("run");
        let first = Generation::begin(data.path()).expect("begins");
        first.settled();
        let turn = Turn::take(data.path()).expect("takes");
        let (tell, told) = std::sync::mpsc::channel();
        let ends = std::thread::spawn(move || {
            drop(first);
            tell.send(()).expect("somebody listens");
        });
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "it has not had its turn");
        assert_eq!(names(&run), ["g1"]);
        drop(turn);
        ends.join().expect("ends");
        assert!(!run.exists());
    }

    #[test]
    fn one_that_has_ended_leaves_its_number_to_the_next() {
        let data = tempfile::tempdir().expect("makes");
        let first = Generation::begin(data.path()).expect("begins");
        first.settled();
        first.remove();
        let second = Generation::begin(data.path()).expect("begins");
        second.settled();
        assert_eq!(second.number(), 1);
        drop(first);
        assert_eq!(names(second.path()), ["root"]);
    }

    #[test]
    fn a_spawner_buries_only_a_dead_platform_and_only_in_its_turn() {
        let data = tempfile::tempdir().expect("makes");
        let path = data.path().join("run/g1");
        fs::create_dir_all(path.join("root")).expect("makes");
        fs::write(path.join("3-0a0b0c01.sock"), "").expect("writes");
        let platform = locked(&path, FlockOperation::LockExclusive).expect("locks");
        assert!(!bury(&path, || panic!("the platform lives")));
        drop(platform);
        let turn = Turn::take(data.path()).expect("takes");
        assert!(!bury(&path, || panic!("it is another's turn")));
        assert_eq!(names(&path), ["3-0a0b0c01.sock", "root"]);
        drop(turn);
        let mut buried = false;
        assert!(bury(&path, || buried = true) && buried);
        assert_eq!(names(data.path()), Vec::<String>::new());
        assert!(bury(&path, || panic!("there is nothing any more")), "nobody would ever end otherwise");
        let (gone, mut buried) = (data.path().join("gone/run/g1"), false);
        assert!(bury(&gone, || buried = true) && buried, "with its directory");
    }

    #[test]
    fn whoever_begins_waits_for_its_turn() {
        let data = tempfile::tempdir().expect("makes");
        let first = Generation::begin(data.path()).expect("begins");
        let folder = data.path().to_owned();
        let (tell, told) = std::sync::mpsc::channel();
        let second = std::thread::spawn(move || {
            let begun = Generation::begin(&folder).map(|second| second.number());
            tell.send(()).expect("somebody listens");
            begun
        });
        assert!(told.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "it has not had its turn");
        first.settled();
        assert_eq!(second.join().expect("ends").expect("begins"), 2);
    }
}
