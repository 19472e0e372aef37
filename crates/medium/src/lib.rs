//! What `store` and `queue` stand on: a directory of our own, a database in it, and what a disk can do to either.
//!
//! *Flow.* [`make_private_dir`], [`lock`], [`connect`], [`migrate`]; then whoever called owns what is in the tables.
//!
//! *Guarantees.* Nobody but the owner can read what is made here. A directory has one process at a time. A database that is
//! newer, or not ours, is left untouched.
//!
//! Never here: what the rows mean.

mod database;
mod dir;
mod error;

pub use database::{connect, connect_to_read, fold, migrate, version};
pub use dir::{Lock, lock, make_private_dir, private_file, sync_dir};
pub use error::Error;
