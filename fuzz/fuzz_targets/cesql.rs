//! Expressions: whatever is accepted keeps its text, yields a value of its type for an event that has the attributes and for one that has
//! not, and says the same as a filter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_model::event::{
    Attributes, Event, Filter,
    cesql::{Expression, Scalar},
};

fn event(more: bool) -> Event {
    let mut attributes = Attributes::new();
    for name in ["id", "source", "type"] {
        attributes.insert(name.into(), "a/b".into());
    }
    attributes.insert("specversion".into(), "1.0".into());
    if more {
        attributes.insert("a".into(), "aéa%_b".into());
        attributes.insert("b".into(), true.into());
        attributes.insert("n".into(), i32::MIN.into());
    }
    Event::new(attributes, None).expect("an event")
}

fuzz_target!(|text: &str| {
    let Ok(expression) = Expression::parse(text) else { return };
    assert_eq!(expression.to_string(), text);
    let _ = expression.check();
    let filter = Filter::Cesql(expression.clone());
    for event in [event(true), event(false)] {
        let said = expression.evaluate(&event);
        let passes = said.error.is_none() && said.value == Scalar::Boolean(true);
        assert_eq!(filter.matches(&event), passes);
        let verdict = filter.explain(&event);
        assert_eq!(verdict.passes, passes);
        let boolean = matches!(said.value, Scalar::Boolean(_));
        assert_eq!(verdict.failures.len(), usize::from(said.error.is_some() || !boolean));
        for failure in verdict.failures {
            assert!(!failure.to_string().is_empty());
        }
    }
});
