//! Events by example.

use super::*;

fn attributes(more: &[(&str, Value)]) -> Attributes {
    let required = [("id", "1"), ("source", "/shop"), ("specversion", "1.0"), ("type", "order.placed")];
    let mut all: Attributes = required.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
    all.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    all
}

fn refused(more: &[(&str, Value)]) -> String {
    Event::new(attributes(more), None).expect_err("it is refused").0
}

#[test]
fn an_event_says_what_it_was_given() {
    let more =
        [("subject", "orders/7".into()), ("tries", 3.into()), ("paid", true.into()), ("dataschema", "urn:x".into())];
    let mut event = Event::new(attributes(&more), Some(Bytes::from_static(b"{}"))).unwrap();
    assert_eq!((event.id(), event.source(), event.kind()), ("1", "/shop", "order.placed"));
    assert_eq!((event.subject(), event.time(), event.dataschema()), (Some("orders/7"), None, Some("urn:x")));
    assert_eq!(event.datacontenttype(), None);
    assert_eq!(event.data().unwrap().as_ref(), b"{}");
    assert_eq!((event.get("tries"), event.get("none")), (Some(&Value::Integer(3)), None));
    let names: Vec<&str> = event.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["dataschema", "id", "paid", "source", "specversion", "subject", "tries", "type"]);
    let texts: Vec<String> = ["id", "paid", "tries"].map(|name| event.get(name).unwrap().to_string()).into();
    assert_eq!(texts, ["1", "true", "3"]);
    assert_eq!(serde_json::to_string(event.get("tries").unwrap()).unwrap(), "3");

    event.set("tries", 4).unwrap();
    event.set("time", "2026-04-26T14:48:09Z").unwrap();
    assert_eq!((event.get("tries"), event.time()), (Some(&Value::Integer(4)), Some("2026-04-26T14:48:09Z")));
    let before = event.clone();
    assert_eq!(event.set("id", "").unwrap_err().0, "id: `` is empty; one character or more is needed");
    assert_eq!(
        event.set("Tries", 5).unwrap_err().0,
        "`Tries`: the name of an attribute contains 'T'; only a-z and 0-9 are allowed"
    );
    assert_eq!(event, before);
    assert_eq!(Event::new(event.clone().into_parts().0, event.data().cloned()).unwrap(), event);
}

#[test]
fn required_attributes_are_required() {
    for name in REQUIRED {
        let mut all = attributes(&[]);
        all.remove(name);
        assert_eq!(
            Event::new(all, None).unwrap_err().0,
            format!("{name}: the attribute is missing; an event has id, source, specversion, type")
        );
    }
    assert!(Event::new(attributes(&[]), None).is_ok());
}

#[test]
fn names_and_texts() {
    for (name, value, said) in [
        ("", "x", "``: the name of an attribute is empty"),
        ("data", "x", "`data`: the name belongs to the event's data; call the attribute otherwise"),
        ("my_ext", "x", "`my_ext`: the name of an attribute contains '_'; only a-z and 0-9 are allowed"),
        ("größe", "x", "`größe`: the name of an attribute contains 'ö'; only a-z and 0-9 are allowed"),
        ("ext", "a\nb", "ext: `a\\nb` contains U+000A; control characters and noncharacters are not allowed"),
        ("ext", "a\u{7f}", "ext: `a\\u{7f}` contains U+007F; control characters and noncharacters are not allowed"),
        ("ext", "ä\u{85}", "ext: `ä\\u{85}` contains U+0085; control characters and noncharacters are not allowed"),
        ("ext", "\u{fdd0}", "ext: `\\u{fdd0}` contains U+FDD0; control characters and noncharacters are not allowed"),
        (
            "ext",
            "\u{1ffff}",
            "ext: `\\u{1ffff}` contains U+1FFFF; control characters and noncharacters are not allowed",
        ),
        ("specversion", "0.3", "specversion: `0.3` is not known here; write `1.0`"),
        ("subject", "", "subject: `` is empty; one character or more is needed"),
    ] {
        assert_eq!(refused(&[(name, value.into())]), said);
    }
    assert_eq!(refused(&[("id", 5.into())]), "id: `5` is no string; write it as one");
    for (name, value) in
        [("ext", ""), ("ext", "größer als 2 €"), ("ext", "\u{fdcf}\u{fffd}"), ("7", "x"), ("subject", " ")]
    {
        Event::new(attributes(&[(name, value.into())]), None).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn addresses() {
    for good in [
        "https://github.com/cloudevents",
        "mailto:a@b.example",
        "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
        "/sensors/1",
        "1-555-123-4567",
        "//host:80/x?y=%20#z",
        "http://[::1]/",
        "?a:b",
        "./1:2",
        "a/b:c",
        "#",
        "coap+tcp://x",
    ] {
        Event::new(attributes(&[("source", good.into())]), None).unwrap_or_else(|e| panic!("{e}"));
    }
    for (bad, why) in [
        ("", "is empty; one character or more is needed"),
        ("a b", "contains ' ', which a URI does not; write it as % and hexadecimal digits"),
        ("/größe", "contains 'ö', which a URI does not; write it as % and hexadecimal digits"),
        ("/a%2", "contains a % that no two hexadecimal digits follow; write %25"),
        ("/a%zz", "contains a % that no two hexadecimal digits follow; write %25"),
        ("1:2", "begins with `1:`, which is no scheme; write `./` before it"),
        (":x", "begins with `:`, which is no scheme; write `./` before it"),
        ("a#b#c", "contains # twice; only one fragment is allowed"),
    ] {
        assert_eq!(refused(&[("source", bad.into())]), format!("source: `{bad}` {why}"));
    }
    assert_eq!(
        refused(&[("dataschema", "/schemas/1".into())]),
        "dataschema: `/schemas/1` has no scheme; write the whole URI, such as https://…"
    );
    assert!(Event::new(attributes(&[("dataschema", "https://x/#a:b".into())]), None).is_ok());
    assert!(Event::new(attributes(&[("dataschema", "/x#a:b".into())]), None).is_err());
}

#[test]
fn times() {
    for good in [
        "2018-04-05T17:31:00Z",
        "2018-04-05t17:31:00.123456789z",
        "2024-02-29T00:00:00+02:00",
        "2016-12-31T23:59:60Z",
        "2000-02-29T23:59:59.0-23:59",
        "0000-01-01T00:00:00-00:00",
    ] {
        Event::new(attributes(&[("time", good.into())]), None).unwrap_or_else(|e| panic!("{e}"));
    }
    for bad in [
        "",
        "now",
        "2018-04-05",
        "2018-04-05 17:31:00Z",
        "2018-04-05T17:31:00",
        "2018-04-05T17:31Z",
        "2018-13-05T17:31:00Z",
        "2018-00-05T17:31:00Z",
        "2018-04-31T17:31:00Z",
        "2018-04-00T17:31:00Z",
        "2023-02-29T17:31:00Z",
        "1900-02-29T17:31:00Z",
        "2018-04-05T24:00:00Z",
        "2018-04-05T17:60:00Z",
        "2018-04-05T17:31:61Z",
        "2018-04-05T17:31:00.Z",
        "2018-04-05T17:31:00.5",
        "2018-04-05T17:31:00+0200",
        "2018-04-05T17:31:00+24:00",
        "2018-04-05T17:31:00+02:60",
        "2018-04-05T17:31:00+2:000",
        "2018-04-05T17:31:00ZZ",
        "+018-04-05T17:31:00Z",
        "2018/04/05T17:31:00Z",
        "2018-04-05T17-31-00Z",
        "2018-04-05T17:31:0５Z",
        "2018-04-05T17:31:00+０2:00",
    ] {
        let said = refused(&[("time", bad.into())]);
        assert!(said.starts_with(&format!("time: `{bad}` is no time of RFC 3339; write it as ")), "{said}");
    }
}

#[test]
fn media_types() {
    for good in [
        "application/json",
        "text/plain; charset=utf-8",
        "TEXT/Plain;CharSet=utf-8",
        "application/cloudevents+json",
        "multipart/mixed; boundary=\"a;\\\"b \"; x=y",
        "text/plain ; a=b",
        "text/plain;",
        "text/plain; a=\"\"",
    ] {
        Event::new(attributes(&[("datacontenttype", good.into())]), None).unwrap_or_else(|e| panic!("{e}"));
    }
    for bad in [
        "",
        "json",
        "/json",
        "text/",
        "text/plain charset=utf-8",
        "text/plain; charset",
        "text/plain; =x",
        "text/plain; a=",
        "text/plain; a=\"b",
        "text/plain; a=\"b\\\"",
        "te xt/plain",
        "text/plain/x",
        "text/plain; a=b/c",
        "text/plain; a=\"b\"c",
    ] {
        let said = refused(&[("datacontenttype", bad.into())]);
        assert!(said.contains("is no media type; write it as "), "{bad}: {said}");
    }
}

#[test]
fn attributes_are_bounded() {
    let many = |count: usize| {
        let mut all = attributes(&[]);
        all.extend((0..count).map(|n| (format!("a{n}"), Value::Integer(0))));
        Event::new(all, None)
    };
    let mut full = many(MOST_ATTRIBUTES - 4).unwrap();
    assert_eq!(full.set("b", 1).unwrap_err().0, "b: the event has 256 attributes already; no more are allowed");
    full.set("a0", 1).unwrap();
    assert_eq!(
        many(MOST_ATTRIBUTES - 3).unwrap_err().0,
        "attributes: the event has 257 of them; at most 256 are allowed"
    );

    let used: usize = attributes(&[]).iter().map(|(name, value)| name.len() + value.text().len()).sum();
    let long = |bytes: usize| Value::String("x".repeat(bytes));
    let room = ATTRIBUTE_BYTES - used - 1;
    let mut full = Event::new(attributes(&[("x", long(room))]), None).unwrap();
    let said = refused(&[("x", long(room + 1))]);
    assert!(said.starts_with("attributes: they have 65537 bytes together; at most 65536 are allowed"), "{said}");
    assert!(full.set("y", "").is_err());
    assert!(full.set("x", long(room + 1)).is_err());
    full.set("x", long(room - 2)).unwrap();
    full.set("y", "1").unwrap();
    assert!(full.set("z", "").is_err());
}

#[test]
fn what_is_refused_is_shown_by_its_beginning() {
    let said = refused(&[("time", "é".repeat(100).into())]);
    assert!(said.starts_with(&format!("time: `{}…` is no time", "é".repeat(64))), "{said}");
}
