//! The packet filter: one nftables table that carries the platform's mark.
//!
//! Owns the text of the rules and the talk with the `nft` program, at the start and the end only. What may pass is decided by the
//! name of the link a packet comes from, which an instance cannot choose; the table stays as it is while instances
//! come and go. It never touches a rule or a table that is not ours.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::netlink::Network4;
use super::routes::{NEVER, PRIVATE};
use crate::sandbox::Mark;

/// Where distributions put the program; the table can be removed by hand with the same one.
const PROGRAMS: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];
/// A chain without rules that says: forwarding was off before a platform came. It lies in the table so that it is
/// found again after a platform was killed, by the same or by another one.
const WAS_OFF: &str = "forwarding_was_off";

/// What the rules are made of.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) mark: Mark,
    pub(super) block: Network4,
    pub(super) gateway: Ipv4Addr,
    /// Resolvers that also `public` may ask.
    pub(super) resolvers: Vec<Ipv4Addr>,
    /// Whether the platform answers names at the gateway's address.
    pub(super) forwarder: bool,
    pub(super) forwarding_was_off: bool,
    /// A process besides this one that the table belongs to.
    pub(super) keeper: Option<u32>,
}

/// The tables of platforms on this host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Those of platforms over the same data directory, ours among them.
    pub(super) kin: Vec<Mark>,
    /// Those of other platforms that live, as far as can be known.
    pub(super) others: usize,
    /// The marks of platforms that are no more, and left theirs.
    pub(super) dead: Vec<Mark>,
    pub(super) forwarding_was_off: bool,
    /// The blocks of the others.
    pub(super) blocks: Vec<Network4>,
}

/// The beginning of the names of this platform's links; the next letter tells the policy.
pub(super) fn prefix(mark: &Mark) -> String {
    format!("tp{}", mark.as_str())
}

/// Whose a link with this name is.
pub(super) fn owner_of(link: &str) -> Option<Mark> {
    Mark::read(link.strip_prefix("tp")?.get(..8)?)
}

/// The table's name.
pub(super) fn table(mark: &Mark) -> String {
    format!("taper_{}", mark.as_str())
}

impl Rules {
    /// The table, replacing one of the same name.
    pub(super) fn text(&self) -> String {
        let (table, prefix) = (table(&self.mark), prefix(&self.mark));
        let (block, gateway) = (format!("{}/{}", self.block.address, self.block.bits), self.gateway);
        let set = |networks: &[(Ipv4Addr, u8)]| {
            networks.iter().map(|(address, bits)| format!("{address}/{bits}")).collect::<Vec<_>>().join(", ")
        };
        let (never, private) = (set(&NEVER), set(&PRIVATE));
        let resolvers: Vec<String> = self.resolvers.iter().map(Ipv4Addr::to_string).collect();
        let resolvers = if resolvers.is_empty() {
            String::new()
        } else {
            let all = resolvers.join(", ");
            format!("    ip daddr {{ {all} }} udp dport 53 accept\n    ip daddr {{ {all} }} tcp dport 53 accept\n")
        };
        let names = if self.forwarder {
            format!(
                "    iifname \"{prefix}*\" ip daddr {gateway} udp dport 53 accept\n    \
                 iifname \"{prefix}*\" ip daddr {gateway} tcp dport 53 accept\n"
            )
        } else {
            String::new()
        };
        let was_off = if self.forwarding_was_off { format!("  chain {WAS_OFF} {{ }}\n") } else { String::new() };
        let note = block_note(self.block);
        let owners = [Some(std::process::id()), self.keeper].into_iter().flatten();
        let owner = owners.map(|pid| owner_note(&Owner::of(pid))).collect::<Vec<_>>().join(" { }\n  chain ");
        format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{was_off}  chain {note} {{ }}\n  \
             chain {owner} {{ }}\n  \
             chain from_instance {{\n    meta nfproto ipv6 drop\n    ip saddr != {block} drop\n    \
             oifname \"{prefix}*\" drop\n    ip daddr {{ {never} }} drop\n\
             {resolvers}    iifname \"{prefix}p*\" ip daddr {{ {private} }} drop\n    accept\n  }}\n  \
             chain forward {{\n    type filter hook forward priority -10; policy accept;\n    \
             iifname \"{prefix}*\" jump from_instance\n    \
             oifname \"{prefix}*\" ct state established,related accept\n    oifname \"{prefix}*\" drop\n  }}\n  \
             chain input {{\n    type filter hook input priority -10; policy accept;\n{names}    \
             iifname \"{prefix}*\" drop\n  }}\n  \
             chain leave {{\n    type nat hook postrouting priority 100; policy accept;\n    \
             ip saddr {block} oifname != \"{prefix}*\" masquerade\n  }}\n}}\n"
        )
    }
}

/// Where the program is.
pub(crate) fn program() -> Option<PathBuf> {
    PROGRAMS.iter().map(Path::new).find(|path| path.exists()).map(Path::to_owned)
}

/// Loads a ruleset. Blocks.
pub(super) fn load(program: &Path, text: &str) -> io::Result<()> {
    run(program, &["-f", "-"], text).map(drop)
}

/// Notes in a table that it belongs to this process, too. Blocks.
pub(super) fn kept_by(program: &Path, mark: &Mark, keeper: u32) -> io::Result<()> {
    load(program, &format!("table inet {} {{\n  chain {} {{ }}\n}}\n", table(mark), owner_note(&Owner::of(keeper))))
}

/// Removes our table, if it is there. Blocks.
pub(super) fn remove(program: &Path, mark: &Mark) -> io::Result<()> {
    let table = table(mark);
    load(program, &format!("table inet {table}\ndelete table inet {table}\n"))
}

/// Finds the tables of platforms on this host; of those over our own data directory, `lives` tells by its number whether one
/// goes on. Blocks.
pub(super) fn find(program: &Path, mark: &Mark, lives: impl Fn(u8) -> bool) -> io::Result<Tables> {
    let judge = |of: &Mark, owners: &[Owner]| if of.is_kin(mark) { lives(of.number()) } else { anybody(owners) };
    run(program, &["list", "chains", "inet"], "").map(|text| parse(&text, mark, judge))
}

fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", program.display(), words.lines().next().unwrap_or("no reason given"))))
}

/// Reads the answer of `nft list chains inet`: tables, and in them the names of their chains.
fn parse(text: &str, mark: &Mark, lives: impl Fn(&Mark, &[Owner]) -> bool) -> Tables {
    let mut found = Tables::default();
    let mut all: Vec<(Mark, Vec<Owner>)> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table inet ").and_then(|rest| rest.strip_suffix(" {")) {
            let of = name.strip_prefix("taper_").and_then(Mark::read);
            inside = of.is_some();
            all.extend(of.map(|of| (of, Vec::new())));
        } else if let (true, Some((of, owners)), Some(rest)) = (inside, all.last_mut(), line.strip_prefix("chain ")) {
            let chain = rest.split_whitespace().next().unwrap_or_default();
            found.forwarding_was_off |= chain == WAS_OFF;
            found.blocks.extend(read_block_note(chain).filter(|_| of != mark));
            owners.extend(Owner::read(chain));
        }
    }
    for (of, owners) in all {
        let living = lives(&of, &owners);
        if of.is_kin(mark) {
            found.kin.push(of.clone());
        }
        match (of == *mark, living) {
            (true, _) => {}
            (false, true) => found.others += 1,
            (false, false) => found.dead.push(of),
        }
    }
    found
}

/// The process that a table belongs to: its pid namespace, its id in there, and when it began, so that a later process
/// with the same id is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    space: u64,
    pid: u32,
    began: u64,
}

impl Owner {
    fn of(pid: u32) -> Owner {
        Owner { space: pid_space(), pid, began: began(pid).unwrap_or_default() }
    }

    /// Another pid namespace cannot be seen from here, so who is in it counts as living.
    fn lives(&self) -> bool {
        self.space != pid_space() || began(self.pid) == Some(self.began)
    }

    fn read(chain: &str) -> Option<Owner> {
        let numbers: Vec<u64> = chain.strip_prefix("owner_")?.split('_').map_while(|one| one.parse().ok()).collect();
        match numbers.as_slice() {
            [space, pid, began] => Some(Owner { space: *space, pid: u32::try_from(*pid).ok()?, began: *began }),
            _ => None,
        }
    }
}

/// Whether one of these lives, or nobody is named.
fn anybody(owners: &[Owner]) -> bool {
    owners.is_empty() || owners.iter().any(Owner::lives)
}

/// The name of an empty chain that tells whose a table is.
fn owner_note(owner: &Owner) -> String {
    format!("owner_{}_{}_{}", owner.space, owner.pid, owner.began)
}

fn pid_space() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino())
}

/// When a process began, in clock ticks since the boot: the 22nd field of `/proc/PID/stat`, counted from behind the name.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// The name of an empty chain that tells other platforms which block is ours.
fn block_note(block: Network4) -> String {
    let [a, b, c, d] = block.address.octets();
    format!("block_{a}_{b}_{c}_{d}_{}", block.bits)
}

fn read_block_note(chain: &str) -> Option<Network4> {
    let numbers: Vec<u8> = chain.strip_prefix("block_")?.split('_').map_while(|number| number.parse().ok()).collect();
    match numbers.as_slice() {
        [a, b, c, d, bits] if *bits <= 32 => Some(Network4 { address: Ipv4Addr::new(*a, *b, *c, *d), bits: *bits }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark::of(Path::new("/var/lib/taper"))
    }

    fn rules() -> Rules {
        let block = Network4 { address: Ipv4Addr::new(10, 77, 64, 0), bits: 18 };
        let gateway = Ipv4Addr::new(10, 77, 64, 1);
        Rules {
            mark: mark(),
            block,
            gateway,
            resolvers: Vec::new(),
            forwarder: false,
            forwarding_was_off: true,
            keeper: None,
        }
    }

    #[test]
    fn links_are_named_within_what_the_kernel_takes() {
        let name = format!("{}p3fff", prefix(&mark()));
        assert!(name.len() <= 15);
        assert_eq!((owner_of(&name), owner_of("tpo"), owner_of("eth0")), (Some(mark()), None, None));
    }

    #[test]
    fn resolvers_are_let_through_before_private_networks_are_not() {
        let mut rules = rules();
        assert!(!rules.text().contains("dport 53"));
        rules.resolvers = vec![Ipv4Addr::new(192, 168, 1, 1)];
        let text = rules.text();
        let (allowed, refused) =
            (text.find("192.168.1.1").expect("there"), text.find("192.168.0.0/16").expect("there"));
        assert!(allowed < refused);
        rules.forwarder = true;
        assert_eq!(rules.text().matches("ip daddr 10.77.64.1").count(), 2);
    }

    #[test]
    fn what_was_written_into_a_table_is_found_in_it() {
        let own = table(&mark());
        let text = format!(
            "table inet filter {{\n\tchain forwarding_was_off {{\n\t}}\n}}\ntable inet {own} {{\n\tchain {WAS_OFF} {{\n\t}}\n\
             \tchain block_10_77_64_0_18 {{\n\t}}\n}}\ntable inet taper_0000ffff {{\n\tchain block_10_99_0_0_18 {{\n\t}}\n\tchain \
             block_x {{\n\t}}\n\tchain forward {{\n\t\ttype filter hook forward priority -10; policy accept;\n\t}}\n}}\n"
        );
        let found = parse(&text, &mark(), |_, _| true);
        let block = Network4 { address: Ipv4Addr::new(10, 99, 0, 0), bits: 18 };
        let want =
            Tables { kin: vec![mark()], others: 1, dead: Vec::new(), forwarding_was_off: true, blocks: vec![block] };
        assert_eq!(found, want);
        assert_eq!(parse("", &mark(), |_, _| true), Tables::default());
    }

    #[test]
    fn a_table_whose_process_has_ended_is_dead_and_one_that_cannot_be_judged_is_not() {
        let this = Owner::of(std::process::id());
        assert!(this.lives());
        assert_eq!(Owner::read(&owner_note(&this)), Some(this.clone()));
        let later = Owner { began: this.began + 1, ..this.clone() };
        assert!(!later.lives());
        assert!(Owner { space: this.space + 1, ..later.clone() }.lives());
        let table = |mark: &str, note: String| format!("table inet taper_{mark} {{\n\tchain {note} {{\n\t}}\n}}\n");
        let text = table("00000001", owner_note(&this))
            + &table("00000002", owner_note(&later))
            + &table("00000003", "forward".to_owned())
            + &table("x; flush", owner_note(&later))
            + &table("00000004", format!("{} {{\n\t}}\n\tchain {}", owner_note(&later), owner_note(&this)));
        let found = parse(&text, &mark(), |_, owners| anybody(owners));
        assert_eq!((found.others, found.dead), (3, vec![Mark::read("00000002").expect("a mark")]));
    }

    #[test]
    fn another_life_over_the_same_directory_is_judged_by_its_number() {
        let (second, third) = (mark().of_life(2), mark().of_life(3));
        let table = |of: &Mark| format!("table inet {} {{\n\tchain block_10_99_0_0_18 {{\n\t}}\n}}\n", table(of));
        let text = [mark(), second.clone(), third.clone()].iter().map(table).collect::<String>();
        let found = parse(&text, &mark(), |of, _| of.number() != 2);
        assert_eq!((found.others, found.dead), (1, vec![second.clone()]));
        assert_eq!((found.kin, found.blocks.len()), (vec![mark(), second, third], 2));
    }

    #[test]
    fn the_block_of_a_table_is_its_note() {
        assert_eq!(read_block_note(&block_note(rules().block)), Some(rules().block));
    }
}
