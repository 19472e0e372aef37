//! How much processor time a tree of processes has used, where no control group counts it.
//!
//! Every process has the time of its children that ended; those whose parents ended first are the first process's. So the
//! sum over those that live is the time of all there ever were. It never changes anything.

use std::fs;

use rustix::process::Pid;

/// What the kernel tells programs times in, whatever its own clock does: 1/100 s on all that runs functions.
const TICK: u64 = 10_000_000;
/// The most processes that are looked at.
const MOST: usize = 10_000;

/// Of `first` and everything that descends from it, in nanoseconds. Only as exact as a tick.
pub(crate) fn of_tree(first: Pid) -> Option<u64> {
    let mut ticks = ticks(first.as_raw_nonzero().get())?;
    let mut left = vec![first.as_raw_nonzero().get()];
    let mut seen = 0;
    while let Some(pid) = left.pop() {
        seen += 1;
        if seen > MOST {
            return None;
        }
        // A process may start another from any of its threads. What ends meanwhile is counted by its parent.
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let Ok(children) = fs::read_to_string(thread.path().join("children")) else { continue };
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                ticks += self::ticks(child).unwrap_or(0);
                left.push(child);
            }
        }
    }
    Some(ticks.saturating_mul(TICK))
}

/// Its own time and that of its children which it has seen end (proc(5): the fields 14 to 17 of `stat`).
fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').skip(11).take(4).map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn what_ended_counts_as_what_lives_does() {
        let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        // One that has ended and one that waits for its input, below a shell that does nothing itself.
        let script = format!("sh -c '{burn}'; sh -c '{burn}; echo $$; read x'; true");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let (input, mut said) = (child.stdin.take(), String::new());
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut said).expect("says");
        let pid = |number: i32| Pid::from_raw(number).expect("not 0");
        let outer = pid(i32::try_from(child.id()).expect("small"));
        let (all, one) =
            (of_tree(outer).expect("there"), of_tree(pid(said.trim().parse().expect("a pid"))).expect("there"));
        assert!(one > 0 && all > one, "{one} of {all}");
        drop(input);
        child.wait().expect("ends");
        assert_eq!(of_tree(outer), None, "it is gone");
    }
}
