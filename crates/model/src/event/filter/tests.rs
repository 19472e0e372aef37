//! Filters by example, from the text that people write.

use super::{
    super::{Attributes, cesql::Kind},
    *,
};

fn event() -> Event {
    let mut attributes = Attributes::new();
    for (name, value) in [
        ("id", "7".into()),
        ("source", "https://shop.example/orders".into()),
        ("specversion", "1.0".into()),
        ("type", "order.placed".into()),
        ("tries", 12.into()),
        ("paid", true.into()),
    ] {
        attributes.insert(name.into(), value);
    }
    Event::new(attributes, None).unwrap()
}

fn read(text: &str) -> Filter {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn events_pass_or_do_not() {
    for (text, passes) in [
        (r#"{"exact": {"type": "order.placed"}}"#, true),
        (r#"{"exact": {"type": "Order.placed"}}"#, false),
        (r#"{"exact": {"type": "order"}}"#, false),
        (r#"{"exact": {"type": "order.placed", "id": "8"}}"#, false),
        (r#"{"exact": {"type": "order.placed", "id": "7"}}"#, true),
        (r#"{"exact": {"subject": "x"}}"#, false),
        (r#"{"exact": {"tries": "12", "paid": "true"}}"#, true),
        (r#"{"prefix": {"type": "order."}}"#, true),
        (r#"{"prefix": {"type": "placed"}}"#, false),
        (r#"{"prefix": {"tries": "1"}}"#, true),
        (r#"{"prefix": {"subject": "x"}}"#, false),
        (r#"{"suffix": {"type": ".placed", "source": "/orders"}}"#, true),
        (r#"{"suffix": {"type": "order."}}"#, false),
        (r#"{"all": [{"prefix": {"type": "order."}}, {"suffix": {"type": ".placed"}}]}"#, true),
        (r#"{"all": [{"prefix": {"type": "order."}}, {"suffix": {"type": ".sent"}}]}"#, false),
        (r#"{"any": [{"prefix": {"type": "x"}}, {"suffix": {"type": ".placed"}}]}"#, true),
        (r#"{"any": [{"prefix": {"type": "x"}}, {"suffix": {"type": "y"}}]}"#, false),
        (r#"{"not": {"exact": {"type": "order.placed"}}}"#, false),
        (r#"{"not": {"exact": {"subject": "x"}}}"#, true),
        (r#"{"cesql": "type LIKE 'order.%' AND tries > 3"}"#, true),
        (r#"{"sql": "paid"}"#, true),
        (r#"{"sql": "NOT paid"}"#, false),
        (r#"{"cesql": "subject = 'x'"}"#, false),
        (r#"{"not": {"cesql": "subject = 'x'"}}"#, true),
        (r#"{"cesql": "tries"}"#, false),
    ] {
        let filter = read(text);
        filter.validate("filter").unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(filter.matches(&event()), passes, "{text}");
        assert_eq!(filter.explain(&event()).passes, passes, "{text}");
        let printed = serde_json::to_string(&filter).unwrap();
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(json(&printed), json(&text.replace("\"sql\"", "\"cesql\"")));
        assert_eq!(read(&printed), filter);
    }
}

#[test]
fn errors_of_expressions_are_told() {
    let (event, filter) = (
        event(),
        read(
            r#"{"any": [{"cesql": "subject = 'x'"}, {"cesql": "tries / 0 = 1"}, {"cesql": "id"}, {"cesql": "paid"}, {"cesql": "nothing"}]}"#,
        ),
    );
    let verdict = filter.explain(&event);
    assert!(verdict.passes);
    let said: Vec<(Kind, String)> = verdict.failures.iter().map(|f| (f.kind(), f.to_string())).collect();
    assert_eq!(
        said,
        [
            (Kind::MissingAttribute, "the event has no attribute `subject`".to_owned()),
            (Kind::Math, "division by zero".to_owned()),
            (Kind::Generic, "the expression yields a string and no boolean: `7`".to_owned()),
        ]
    );
}

#[test]
fn what_a_filter_may_not_say() {
    for (text, said) in [
        (r#"{"exact": {}}"#, "f.exact: no attribute is named; write `type: order.placed` or the like"),
        (r#"{"all": []}"#, "f.all: the list is empty; give it one filter or more"),
        (
            r#"{"not": {"any": [{"exact": {"a": "b"}}, {"any": []}]}}"#,
            "f.not.any[1].any: the list is empty; give it one filter or more",
        ),
        (r#"{"prefix": {"type": ""}}"#, "f.prefix.type: the text is empty; one character or more is needed"),
        (
            r#"{"suffix": {"Type": "x"}}"#,
            "f.suffix: `Type`: the name of an attribute contains 'T'; only a-z and 0-9 are allowed",
        ),
        (r#"{"exact": {"": "x"}}"#, "f.exact: ``: the name of an attribute is empty"),
        (
            r#"{"all": [{"sql": "SIZE(id) = 1"}]}"#,
            "f.all[0].cesql: column 1: there is no function SIZE; there are ABS, BOOL, CONCAT, CONCAT_WS, INT, IS_BOOL, IS_INT, LEFT, LENGTH, LOWER, RIGHT, STRING, SUBSTRING, TRIM, UPPER",
        ),
        (
            r#"{"sql": "LENGTH(id)"}"#,
            "f.cesql: the expression yields an integer of 32 bits, so no event would pass; compare it with something",
        ),
    ] {
        assert_eq!(read(text).validate("f").unwrap_err().0, said);
    }
    let long = Filter::Exact([("type".to_owned(), "x".repeat(LONGEST + 1))].into());
    assert_eq!(long.validate("f").unwrap_err().0, "f.exact.type: the text has 4097 bytes; at most 4096 are allowed");
}

#[test]
fn what_is_no_filter() {
    for (text, said) in [
        (
            r#"{"like": {"type": "x"}}"#,
            "unknown variant `like`, expected one of `exact`, `prefix`, `suffix`, `all`, `any`, `not`, `cesql`",
        ),
        (r#"{"exact": {"tries": 3}}"#, "invalid type: integer `3`, expected a string"),
        (r#"{"sql": "type LIKE id"}"#, "cesql: column 11: found `id`, expected a string in quotes"),
        (
            r#"{"exact": {"a": "b"}, "prefix": {"a": "b"}}"#,
            "the filter has more than one dialect; write each as a filter of its own, or several as a list in `all`",
        ),
        (r#"{}"#, "the filter is empty; write `exact: {type: order.placed}` or the like"),
        (r#""paid""#, "expected a filter, such as `exact: {type: order.placed}`"),
    ] {
        let error = serde_json::from_str::<Filter>(text).expect_err(text).to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn filters_are_bounded() {
    let one = || read(r#"{"exact": {"a": "b"}}"#);
    let nested = |times: usize| (0..times).fold(one(), |filter, _| Filter::Not(Box::new(filter)));
    assert!(nested(DEEPEST - 1).validate("f").is_ok());
    let said = nested(DEEPEST).validate("f").unwrap_err().0;
    assert_eq!(said, format!("f{}: filters stand deeper in each other than 16; write them flatter", ".not".repeat(16)));

    // Each counts twice: the filter and its attribute.
    let mut filters: Vec<Filter> = (0..MOST_FILTERS / 2).map(|_| one()).collect();
    validate(&filters, "spec.filters").unwrap();
    validate(&[], "spec.filters").unwrap();
    filters.push(one());
    let said = validate(&filters, "spec.filters").unwrap_err().0;
    assert_eq!(said, "spec.filters[128]: there are more than 256 filters and attributes; write fewer");
    assert!(Filter::All(filters).validate("f").is_err());
}
