//! The packet filter: one nftables table that carries the platform's mark.
//!
//! Owns the text of the rules and the talk with the `nft` program, at the start and the end only. What may pass is decided by the
//! name of the link a packet comes from, which an instance cannot choose; the table stays as it is while instances
//! come and go. It never touches a rule or a table that is not ours.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::netlink::Network4;
use crate::sandbox::Mark;

/// The private and special networks that the policy `public` does not reach (IANA's special-purpose registry).
pub(super) const PRIVATE: [(Ipv4Addr, u8); 9] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
];
/// What no policy reaches: this host, loopback, link-local (where clouds keep their credentials), multicast, broadcast.
pub(super) const NEVER: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
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
}

/// The tables of platforms on this host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Ours, left by a platform that was killed.
    pub(super) own: bool,
    pub(super) others: usize,
    pub(super) forwarding_was_off: bool,
    /// The blocks of the others.
    pub(super) blocks: Vec<Network4>,
}

/// The beginning of the names of this platform's links; the next letter tells the policy.
pub(super) fn prefix(mark: &Mark) -> String {
    format!("tp{}", mark.as_str())
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
        format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{was_off}  chain {note} {{ }}\n  \
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

/// Removes our table, if it is there. Blocks.
pub(super) fn remove(program: &Path, mark: &Mark) -> io::Result<()> {
    let table = table(mark);
    load(program, &format!("table inet {table}\ndelete table inet {table}\n"))
}

/// Finds the tables of platforms on this host. Blocks.
pub(super) fn find(program: &Path, mark: &Mark) -> io::Result<Tables> {
    run(program, &["list", "chains", "inet"], "").map(|text| parse(&text, mark))
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
fn parse(text: &str, mark: &Mark) -> Tables {
    let own = table(mark);
    let mut found = Tables::default();
    let mut current = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table inet ").and_then(|rest| rest.strip_suffix(" {")) {
            current = name.strip_prefix("taper_").is_some().then(|| name.to_owned());
            match &current {
                Some(name) if *name == own => found.own = true,
                Some(_) => found.others += 1,
                None => {}
            }
        } else if let (Some(table), Some(rest)) = (&current, line.strip_prefix("chain ")) {
            let chain = rest.split_whitespace().next().unwrap_or_default();
            found.forwarding_was_off |= chain == WAS_OFF;
            if *table != own {
                found.blocks.extend(read_block_note(chain));
            }
        }
    }
    found
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
        Rules { mark: mark(), block, gateway, resolvers: Vec::new(), forwarder: false, forwarding_was_off: true }
    }

    #[test]
    fn links_are_named_within_what_the_kernel_takes() {
        assert!(format!("{}p3fff", prefix(&mark())).len() <= 15);
    }

    #[test]
    fn resolvers_are_let_through_before_private_networks_are_not() {
        let mut rules = rules();
        assert!(!rules.text().contains("dport 53"));
        rules.resolvers = vec![Ipv4Addr::new(192, 168, 1, 1)];
        let text = rules.text();
        let (allowed, refused) = (text.find("192.168.1.1").expect("there"), text.find("192.168.0.0/16").expect("there"));
        assert!(allowed < refused);
        rules.forwarder = true;
        assert_eq!(rules.text().matches("ip daddr 10.77.64.1").count(), 2);
    }

    #[test]
    fn what_was_written_into_a_table_is_found_in_it() {
        let own = table(&mark());
        let text = format!(
            "table inet filter {{\n\tchain forwarding_was_off {{\n\t}}\n}}\ntable inet {own} {{\n\tchain {WAS_OFF} {{\n\t}}\n\
             \tchain block_10_77_64_0_18 {{\n\t}}\n}}\ntable inet taper_ffff {{\n\tchain block_10_99_0_0_18 {{\n\t}}\n\tchain \
             block_x {{\n\t}}\n\tchain forward {{\n\t\ttype filter hook forward priority -10; policy accept;\n\t}}\n}}\n"
        );
        let found = parse(&text, &mark());
        let block = Network4 { address: Ipv4Addr::new(10, 99, 0, 0), bits: 18 };
        assert_eq!(found, Tables { own: true, others: 1, forwarding_was_off: true, blocks: vec![block] });
        assert_eq!(parse("", &mark()), Tables::default());
    }

    #[test]
    fn the_block_of_a_table_is_its_note() {
        assert_eq!(read_block_note(&block_note(rules().block)), Some(rules().block));
    }
}
