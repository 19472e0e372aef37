//! Expressions against the plainest reading of the specification: values that are owned, trees that are walked, patterns that are tried.

use proptest::prelude::*;

use super::{super::like::Pattern, *};

/// A value in the plainest form.
#[derive(Debug, Clone, PartialEq)]
enum Plain {
    Text(String),
    Number(i32),
    Truth(bool),
}

/// An expression as a tree without any precedence.
#[derive(Debug, Clone)]
enum Tree {
    Is(Plain),
    Attribute(&'static str),
    Exists(&'static str),
    Unary(&'static str, Box<Tree>),
    Binary(Box<Tree>, &'static str, Box<Tree>),
    Like(Box<Tree>, String, bool),
    In(Box<Tree>, Vec<Tree>, bool),
    Call(&'static str, Vec<Tree>),
}

type Answer = Result<Plain, Kind>;

fn text(value: &Plain) -> String {
    match value {
        Plain::Text(text) => text.clone(),
        Plain::Number(number) => number.to_string(),
        Plain::Truth(truth) => truth.to_string(),
    }
}

fn number(value: &Plain) -> Result<i32, Kind> {
    match value {
        Plain::Text(text) => text.parse().map_err(|_| Kind::Cast),
        Plain::Number(number) => Ok(*number),
        Plain::Truth(truth) => Ok(i32::from(*truth)),
    }
}

fn truth(value: &Plain) -> Result<bool, Kind> {
    match value {
        Plain::Text(text) => text.to_lowercase().parse().map_err(|_| Kind::Cast),
        Plain::Number(number) => Ok(*number != 0),
        Plain::Truth(truth) => Ok(*truth),
    }
}

/// Whether `left` is `right`, in the type of `like`.
fn same(left: &Plain, right: &Plain, like: &Plain) -> Result<bool, Kind> {
    Ok(match like {
        Plain::Text(_) => text(left) == text(right),
        Plain::Number(_) => number(left)? == number(right)?,
        Plain::Truth(_) => truth(left)? == truth(right)?,
    })
}

/// What matches a pattern, by trying.
fn naive(pattern: &[char], value: &[char]) -> bool {
    match (pattern, value) {
        ([], rest) => rest.is_empty(),
        (['%', more @ ..], _) => (0..=value.len()).any(|skip| naive(more, &value[skip..])),
        (['_', more @ ..], [_, rest @ ..]) => naive(more, rest),
        (['\\', c @ ('%' | '_'), more @ ..], [first, rest @ ..]) => c == first && naive(more, rest),
        // A pattern's escape without a text left.
        (['\\', '%' | '_', ..], []) => false,
        ([c, more @ ..], [first, rest @ ..]) => c == first && naive(more, rest),
        (_, []) => false,
    }
}

fn like(pattern: &str, value: &str) -> bool {
    naive(&pattern.chars().collect::<Vec<_>>(), &value.chars().collect::<Vec<_>>())
}

fn answer(tree: &Tree) -> Answer {
    Ok(match tree {
        Tree::Is(value) => value.clone(),
        Tree::Attribute(name) => match event().get(name) {
            None => return Err(Kind::MissingAttribute),
            Some(crate::event::Value::String(text)) => Plain::Text(text.clone()),
            Some(crate::event::Value::Integer(number)) => Plain::Number(*number),
            Some(crate::event::Value::Boolean(truth)) => Plain::Truth(*truth),
        },
        Tree::Exists(name) => Plain::Truth(event().get(name).is_some()),
        Tree::Unary("NOT", tree) => Plain::Truth(!truth(&answer(tree)?)?),
        Tree::Unary(_, tree) => match number(&answer(tree)?)? {
            i32::MIN => return Err(Kind::Math),
            other => Plain::Number(-other),
        },
        Tree::Binary(left, operator, right) => return binary(&answer(left)?, operator, right),
        Tree::Like(tree, pattern, negated) => Plain::Truth(like(pattern, &text(&answer(tree)?)) != *negated),
        Tree::In(tree, set, negated) => {
            let value = answer(tree)?;
            for element in set {
                let element = answer(element)?;
                if same(&value, &element, &value)? {
                    return Ok(Plain::Truth(!negated));
                }
            }
            Plain::Truth(*negated)
        }
        Tree::Call(name, arguments) => {
            let values = arguments.iter().map(answer);
            let first = || answer(&arguments[0]);
            match *name {
                "LENGTH" => Plain::Number(text(&first()?).chars().count() as i32),
                "CONCAT" => Plain::Text(values.map(|v| v.map(|v| text(&v))).collect::<Result<String, Kind>>()?),
                "LOWER" => Plain::Text(text(&first()?).to_lowercase()),
                "IS_INT" => Plain::Truth(number(&first()?).is_ok()),
                "INT" => Plain::Number(number(&first()?)?),
                _ => return Err(Kind::MissingFunction),
            }
        }
    })
}

fn binary(left: &Plain, operator: &str, right: &Tree) -> Answer {
    match operator {
        "AND" => return Ok(Plain::Truth(truth(left)? && truth(&answer(right)?)?)),
        "OR" => return Ok(Plain::Truth(truth(left)? || truth(&answer(right)?)?)),
        "XOR" => return Ok(Plain::Truth(truth(left)? ^ truth(&answer(right)?)?)),
        _ => {}
    }
    let right = answer(right)?;
    match operator {
        "=" => return Ok(Plain::Truth(same(left, &right, &right)?)),
        "!=" | "<>" => return Ok(Plain::Truth(!same(left, &right, &right)?)),
        _ => {}
    }
    let (left, right) = (i64::from(number(left)?), i64::from(number(&right)?));
    let result = match operator {
        "<" => return Ok(Plain::Truth(left < right)),
        "<=" => return Ok(Plain::Truth(left <= right)),
        ">" => return Ok(Plain::Truth(left > right)),
        ">=" => return Ok(Plain::Truth(left >= right)),
        "/" | "%" if right == 0 => return Err(Kind::Math),
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        "/" => left / right,
        "%" => left % right,
        other => panic!("no operator {other}"),
    };
    i32::try_from(result).map(Plain::Number).map_err(|_| Kind::Math)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "\\'"))
}

/// The tree as text, with parentheses around everything that has parts.
fn written(tree: &Tree) -> String {
    let inner = |tree: &Tree| match tree {
        Tree::Is(_) | Tree::Attribute(_) | Tree::Call(..) => written(tree),
        other => format!("({})", written(other)),
    };
    let list = |trees: &[Tree]| trees.iter().map(written).collect::<Vec<_>>().join(", ");
    let not = |negated: &bool| if *negated { "NOT " } else { "" };
    match tree {
        Tree::Is(Plain::Text(text)) => quoted(text),
        Tree::Is(other) => text(other),
        Tree::Attribute(name) => (*name).to_owned(),
        Tree::Exists(name) => format!("EXISTS {name}"),
        Tree::Unary(operator, tree) => format!("{operator} {}", inner(tree)),
        Tree::Binary(left, operator, right) => format!("{} {operator} {}", inner(left), inner(right)),
        Tree::Like(tree, pattern, negated) => format!("{} {}LIKE {}", inner(tree), not(negated), quoted(pattern)),
        Tree::In(tree, set, negated) => format!("{} {}IN ({})", inner(tree), not(negated), list(set)),
        Tree::Call(name, arguments) => format!("{name}({})", list(arguments)),
    }
}

const OPERATORS: [&[&str]; 4] =
    [&["*", "/", "%"], &["+", "-"], &["=", "!=", "<>", "<", "<=", ">", ">="], &["AND", "OR", "XOR"]];

fn operator() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(OPERATORS.concat())
}

fn leaf() -> impl Strategy<Value = Tree> {
    let name = || proptest::sample::select(vec!["id", "number", "digits", "truth", "word", "missing"]);
    prop_oneof![
        prop_oneof![any::<i32>(), -3..4].prop_map(|n| Tree::Is(Plain::Number(n))),
        any::<bool>().prop_map(|truth| Tree::Is(Plain::Truth(truth))),
        prop_oneof!["-?[0-9]{1,3}", "true|FALSE", "[ab'\"é%_]{0,4}"].prop_map(|text| Tree::Is(Plain::Text(text))),
        name().prop_map(Tree::Attribute),
        name().prop_map(Tree::Exists),
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    leaf().prop_recursive(5, 40, 4, |inner| {
        let boxed = || inner.clone().prop_map(Box::new);
        let several = |range| proptest::collection::vec(inner.clone(), range);
        prop_oneof![
            1 => (proptest::sample::select(vec!["NOT", "-"]), boxed()).prop_map(|(o, t)| Tree::Unary(o, t)),
            4 => (boxed(), operator(), boxed()).prop_map(|(l, o, r)| Tree::Binary(l, o, r)),
            1 => (boxed(), r"([0-9a-etru%_']|\\[%_]){0,5}", any::<bool>()).prop_map(|(t, p, n)| Tree::Like(t, p, n)),
            1 => (boxed(), several(1..4), any::<bool>()).prop_map(|(t, s, n)| Tree::In(t, s, n)),
            1 => several(0..4).prop_map(|all| Tree::Call("CONCAT", all)),
            1 => (proptest::sample::select(vec!["LENGTH", "LOWER", "IS_INT", "INT", "NOPE"]), several(1..2))
                .prop_map(|(name, one)| Tree::Call(name, one)),
        ]
    })
}

/// What an expression yields, for comparison.
fn yielded(text: &str) -> (Plain, Option<Kind>) {
    let (event, expression) = (event(), Expression::parse(text).unwrap_or_else(|e| panic!("{text}: {e}")));
    assert_eq!(expression.to_string(), text);
    let Evaluated { value, error } = expression.evaluate(&event);
    let plain = match value {
        Scalar::String(text) => Plain::Text(text.into_owned()),
        Scalar::Integer(number) => Plain::Number(number),
        Scalar::Boolean(truth) => Plain::Truth(truth),
    };
    (plain, error.map(|failure| failure.kind()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_yields_what_the_specification_says(tree in tree()) {
        let text = written(&tree);
        prop_assume!(text.len() <= LONGEST);
        let (value, error) = yielded(&text);
        match answer(&tree) {
            Ok(wanted) => prop_assert_eq!((value, error), (wanted, None), "{}", text),
            Err(kind) => {
                let zero = match &tree {
                    Tree::Unary("-", _) | Tree::Binary(_, "+" | "-" | "*" | "/" | "%", _) => Plain::Number(0),
                    Tree::Call("LENGTH" | "INT", _) => Plain::Number(0),
                    Tree::Call("CONCAT" | "LOWER", _) => Plain::Text(String::new()),
                    _ => Plain::Truth(false),
                };
                prop_assert_eq!((value, error), (zero, Some(kind)), "{}", text);
            }
        }
    }

    #[test]
    fn a_row_of_operators_is_read_by_precedence_and_from_the_left(
        first in leaf(), rest in proptest::collection::vec((operator(), leaf()), 0..8),
    ) {
        let flat = rest.iter().fold(written(&first), |text, (operator, leaf)| format!("{text} {operator} {}", written(leaf)));
        // Those that bind closest get their parentheses first.
        let (mut values, mut between): (Vec<String>, Vec<&str>) = (vec![written(&first)], Vec::new());
        for (operator, leaf) in &rest {
            between.push(operator);
            values.push(written(leaf));
        }
        for level in OPERATORS {
            while let Some(at) = between.iter().position(|operator| level.contains(operator)) {
                let right = values.remove(at + 1);
                values[at] = format!("({} {} {right})", values[at], between.remove(at));
            }
        }
        prop_assert_eq!(yielded(&flat), yielded(&values[0]), "{}", flat);
    }

    #[test]
    fn patterns_match_what_they_say(pattern in r"[ab%_\\]{0,9}", value in r"[ab%_\\]{0,9}") {
        prop_assert_eq!(Pattern::new(&pattern).matches(&value), like(&pattern, &value), "{} {}", pattern, value);
    }

    #[test]
    fn long_patterns_match_what_they_say(
        pattern in r"[ab_é]{50,140}", many in proptest::collection::vec(0..140_usize, 0..3), value in r"[abé]{50,150}", fit in any::<bool>(),
    ) {
        // A text made after the pattern, as one drawn at random never matches.
        let value: String = if fit { pattern.chars().map(|c| if c == '_' { 'b' } else { c }).collect() } else { value };
        let mut pattern: Vec<char> = pattern.chars().collect();
        for at in many {
            pattern.insert(at.min(pattern.len()), '%');
        }
        let value: Vec<char> = value.chars().collect();
        let text = |chars: &[char]| chars.iter().collect::<String>();
        prop_assert_eq!(Pattern::new(&text(&pattern)).matches(&text(&value)), naive(&pattern, &value));
    }

    #[test]
    fn nothing_that_is_written_breaks_the_reader(text in r#"(\PC|[\n\t]){0,60}"#) {
        if let Ok(expression) = Expression::parse(&text) {
            let _ = (expression.evaluate(&event()), expression.check());
        }
    }

    #[test]
    fn nor_any_row_of_its_words(words in proptest::collection::vec(proptest::sample::select(vec![
        "AND", "or", "XOR", "NOT", "LIKE", "EXISTS", "IN", "TRUE", "id", "number", "my_", "x", "(", ")", "(", ")", ",", "*", "/", "%", "+", "-",
        "=", "!=", "<>", "<", ">=", "'a%'", "'_\\'", "\"b\"", "0", "2147483648", "LEFT(", "CONCAT(", "SUBSTRING(", "-7",
    ]), 0..24)) {
        let text = words.join(" ");
        match Expression::parse(&text) {
            Ok(expression) => {
                let _ = (expression.evaluate(&event()), expression.check());
            }
            Err(error) => prop_assert!(!error.0.is_empty()),
        }
    }
}
