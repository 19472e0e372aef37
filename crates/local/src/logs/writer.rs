//! Owns the one thread that changes anything on the disk: it opens, writes, rotates and removes log files, one job after
//! another, each in its turn where another platform uses the same folder. Nobody waits for it but those who ask to.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use taper_model::{FunctionName, Name, clock};
use tokio::{sync::oneshot, time::Instant};

use super::{Shared, book::Book};

/// How often logs to which nobody writes are looked at.
const SWEEP: Duration = Duration::from_secs(3600);

/// Something to be done on the disk.
pub(super) enum Job {
    /// Write what waits in a book.
    Write(Arc<Book>),
    /// Open a book's files, and say whether that could be done.
    Open(Arc<Book>, oneshot::Sender<std::io::Result<()>>),
    /// End a book, if there is one, and remove the folder.
    Forget(Option<Arc<Book>>, PathBuf),
    /// End a book; its files stay.
    Close(Arc<Book>),
    /// Nothing more comes after what came before this; say when that is done.
    End(mpsc::Sender<()>),
}

/// The right to change something, which one platform has at a time.
struct Turn<'a>(&'a File);

impl<'a> Turn<'a> {
    fn take(folder: &'a File) -> Self {
        // Where the file system knows no locks there is no second platform either.
        let _ = folder.lock();
        Self(folder)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Does jobs until the end.
pub(super) fn run(shared: &Shared, jobs: &mpsc::Receiver<Job>) {
    let mut next = Instant::now();
    loop {
        if next <= Instant::now() {
            let _turn = Turn::take(&shared.folder);
            sweep(shared, clock::unix_ms());
            next = Instant::now() + SWEEP;
        }
        let job = jobs.recv_timeout(next.saturating_duration_since(Instant::now()));
        let _turn = Turn::take(&shared.folder);
        match job {
            Ok(Job::Write(book)) => book.write(),
            Ok(Job::Open(book, told)) => drop(told.send(book.open())),
            Ok(Job::Forget(book, folder)) => {
                let remove = || drop(fs::remove_dir_all(&folder));
                match book {
                    Some(book) => book.close(remove),
                    None => remove(),
                }
            }
            Ok(Job::Close(book)) => book.close(|| ()),
            Ok(Job::End(told)) => {
                let _ = told.send(());
                return;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Removes what is too old or too much of every function's, whether anybody has its log open or not.
pub(super) fn sweep(shared: &Shared, now_ms: u64) {
    for namespace in folders(&shared.dir) {
        for folder in folders(&namespace) {
            let open = named(&namespace, &folder).and_then(|function| shared.opened(&function));
            let book = open.unwrap_or_else(|| shared.book_in(folder.clone()));
            match book.open() {
                Ok(()) => book.expire(now_ms),
                Err(e) => tracing::warn!(folder = %folder.display(), error = %e, "a log cannot be opened"),
            }
        }
        // Only where it is empty.
        let _ = fs::remove_dir(&namespace);
    }
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn named(namespace: &Path, folder: &Path) -> Option<FunctionName> {
    let name = |path: &Path| path.file_name()?.to_str()?.parse::<Name>().ok();
    Some(FunctionName { namespace: name(namespace)?, name: name(folder)? })
}
