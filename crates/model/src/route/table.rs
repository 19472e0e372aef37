//! The rules of one host, as a tree with a level for each segment of their paths. It owns which rule is the most exact one and when two
//! are ambiguous; never what a rule may say: that is checked before.
//!
//! A tree of our own: routers in libraries refuse `/users/{id}` beside `/users/*`, know no methods, and fall back to no other rule
//! when the most exact one is not for the method.

use std::{collections::HashMap, fmt, iter, num::NonZeroU32, sync::Arc};

use super::Bound;

/// The rules of one host. Two are equal when their rules are.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rules: Vec<Arc<Bound>>,
    /// Of each rule the next one for the same paths, which is for other methods.
    next: Vec<Link>,
    nodes: Vec<Node>,
    /// Every segment that is literal somewhere.
    literals: HashMap<Box<str>, u32>,
    /// From a node by a literal segment to the next.
    edges: HashMap<(u32, u32), u32>,
}

/// What a table says of a request.
#[derive(Debug, PartialEq)]
pub enum Found<'a> {
    /// The most exact rule for it. [`Bound::parameters`] has what stands in the place of its parameters.
    Rule(&'a Arc<Bound>),
    /// Its path is served with these methods only.
    Method(Vec<&'a str>),
    /// Nothing.
    Nothing,
}

/// Two rules between which nothing could choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// One of them.
    pub one: Arc<Bound>,
    /// The other.
    pub other: Arc<Bound>,
}

/// Names both, and the mend.
impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} match the same requests; change the path or the methods of one", self.one, self.other)
    }
}

/// A place in the tree. Numbers and two maps in the place of a map in each node: a table of many rules is small, and built quickly.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// By any segment to the next node.
    parameter: Link,
    /// The first rule whose path ends here.
    end: Link,
    /// The first whose path goes on from here with `*`.
    rest: Link,
}

/// A number, or none.
type Link = Option<NonZeroU32>;

impl Table {
    /// The table of these rules, which are all of one host and valid.
    ///
    /// # Errors
    /// The first two between which it could not choose.
    pub fn build(rules: Vec<Arc<Bound>>) -> Result<Self, Conflict> {
        let mut table = Self { next: vec![None; rules.len()], nodes: vec![Node::default()], ..Self::default() };
        for at in 0..rules.len() {
            table.add(&rules, at)?;
        }
        Ok(Self { rules, ..table })
    }

    fn add(&mut self, rules: &[Arc<Bound>], at: usize) -> Result<(), Conflict> {
        let rule = &rules[at];
        let (mut node, mut rest) = (0, false);
        for segment in segments(&rule.path) {
            node = match segment {
                "*" => {
                    rest = true;
                    break;
                }
                _ if is_open(segment) => match self.nodes[node].parameter {
                    Some(next) => next.get() as usize,
                    None => {
                        self.nodes[node].parameter = link(self.nodes.len());
                        self.grow()
                    }
                },
                _ => {
                    let known = self.literals.get(segment).copied();
                    let literal = known.unwrap_or_else(|| {
                        let number = number(self.literals.len());
                        self.literals.insert(segment.into(), number);
                        number
                    });
                    match self.edges.get(&(number(node), literal)) {
                        Some(next) => *next as usize,
                        None => {
                            self.edges.insert((number(node), literal), number(self.nodes.len()));
                            self.grow()
                        }
                    }
                }
            };
        }
        let place = if rest { &mut self.nodes[node].rest } else { &mut self.nodes[node].end };
        // One more than its number, which may be 0.
        let first = std::mem::replace(place, link(at + 1));
        self.next[at] = first;
        let known =
            iter::successors(first, |at| self.next[at.get() as usize - 1]).map(|at| &rules[at.get() as usize - 1]);
        match known.filter(|known| overlap(known, rule)).last() {
            Some(known) => Err(Conflict { one: known.clone(), other: rule.clone() }),
            None => Ok(()),
        }
    }

    /// One node more, and its number.
    fn grow(&mut self) -> usize {
        self.nodes.push(Node::default());
        self.nodes.len() - 1
    }

    /// The rules, in no order.
    pub fn rules(&self) -> &[Arc<Bound>] {
        &self.rules
    }

    /// The most exact rule for a method and a path: segment by segment from the left, a literal one before a parameter before the rest;
    /// then one that names the method before one that does not. Where the most exact one is not for the method, the next
    /// one is asked. The path is compared as it was written. No node of the tree is looked at twice.
    pub fn find(&self, method: &str, path: &str) -> Found<'_> {
        let Some((root, below)) = self.nodes.first().zip(path.strip_prefix('/')) else { return Found::Nothing };
        let mut allowed = Vec::new();
        match self.search(method, (0, root), Some(below), &mut allowed) {
            Some(rule) => Found::Rule(rule),
            None if allowed.is_empty() => Found::Nothing,
            None => {
                if allowed.contains(&"GET") {
                    allowed.push("HEAD");
                }
                allowed.sort_unstable();
                allowed.dedup();
                Found::Method(allowed)
            }
        }
    }

    /// `path` is what follows the slash after the node's segment, if one follows.
    fn search<'a>(
        &'a self,
        method: &str,
        (at, node): (u32, &'a Node),
        path: Option<&str>,
        allowed: &mut Vec<&'a str>,
    ) -> Option<&'a Arc<Bound>> {
        let Some(path) = path else {
            return self.serves(node.end, method, allowed).or_else(|| self.serves(node.rest, method, allowed));
        };
        let (segment, below) = match path.split_once('/') {
            Some((segment, below)) => (segment, Some(below)),
            None => (path, None),
        };
        let go = |at: u32| (at, &self.nodes[at as usize]);
        let literal = self.literals.get(segment).and_then(|literal| self.edges.get(&(at, *literal)));
        let parameter = node.parameter.filter(|_| !segment.is_empty());
        literal
            .and_then(|next| self.search(method, go(*next), below, allowed))
            .or_else(|| parameter.and_then(|next| self.search(method, go(next.get()), below, allowed)))
            .or_else(|| self.serves(node.rest, method, allowed))
    }

    /// The rule that is for a method, of those that begin here. What they are for otherwise is `allowed`.
    fn serves<'a>(&'a self, first: Link, method: &str, allowed: &mut Vec<&'a str>) -> Option<&'a Arc<Bound>> {
        let rules = || {
            iter::successors(first, |at| self.next[at.get() as usize - 1]).map(|at| &self.rules[at.get() as usize - 1])
        };
        let names = |method: &str| rules().find(|r| r.methods.iter().any(|m| m == method));
        let found = names(method)
            .or_else(|| names("GET").filter(|_| method == "HEAD"))
            .or_else(|| rules().find(|r| r.methods.is_empty()));
        if found.is_none() {
            allowed.extend(rules().flat_map(|r| &r.methods).map(String::as_str));
        }
        found
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |table: &Self| {
            let mut rules = table.rules.clone();
            rules.sort_by(|a, b| (&a.path, &a.methods, &a.owner).cmp(&(&b.path, &b.methods, &b.owner)));
            rules
        };
        self.rules.len() == other.rules.len() && (self.rules == other.rules || sorted(self) == sorted(other))
    }
}

/// Whether two rules are for the same method of the same paths, and neither names it more exactly.
fn overlap(one: &Bound, other: &Bound) -> bool {
    match (one.methods.is_empty(), other.methods.is_empty()) {
        (true, true) => true,
        (false, false) => one.methods.iter().any(|m| other.methods.contains(m)),
        _ => false,
    }
}

fn number(at: usize) -> u32 {
    u32::try_from(at).expect("no memory holds so many rules")
}

fn link(at: usize) -> Link {
    NonZeroU32::new(number(at))
}

/// The segments of a path or of a rule's.
pub(super) fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

/// Whether a rule's segment is for others than itself.
pub(super) fn is_open(segment: &str) -> bool {
    segment == "*" || segment.starts_with('{')
}

/// The name of a parameter, if a rule's segment is one.
pub(super) fn parameter(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

#[cfg(test)]
mod tests;
