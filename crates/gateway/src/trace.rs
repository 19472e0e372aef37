//! The W3C trace context: a caller's is passed on as it is, and a call that comes without one begins a trace of its own, so
//! that what a function does can be joined to the call. The gateway itself sends no spans anywhere.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::RngExt;
use taper_model::call::hex;

/// W3C Trace Context, section 3.2.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C Trace Context, section 3.3.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Whether a header is one of the context.
pub(crate) fn is_part(name: &HeaderName) -> bool {
    *name == TRACEPARENT || *name == TRACESTATE
}

/// Keeps a valid trace context, and puts a new one in the place of none or of a broken one. `any`: whether there is a part of one.
pub(crate) fn pass_on(headers: &mut HeaderMap, any: bool) {
    if !any {
        headers.insert(TRACEPARENT, fresh());
        return;
    }
    let mut given = headers.get_all(&TRACEPARENT).iter();
    let valid = matches!((given.next(), given.next()), (Some(one), None) if well_formed(one.as_bytes()));
    if !valid {
        headers.remove(&TRACESTATE);
        headers.insert(TRACEPARENT, fresh());
    }
}

/// A sampled context: whoever records traces in a function records this call as it would without a caller's context.
fn fresh() -> HeaderValue {
    let random: [u32; 6] = rand::rng().random();
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    for (at, number) in [3, 11, 19, 27, 36, 44].into_iter().zip(random) {
        // Neither id may be zero: no part of one is.
        text[at..at + 8].copy_from_slice(&hex(number.max(1)));
    }
    HeaderValue::from_bytes(&text).expect("hexadecimal digits and dashes")
}

/// `version-trace-parent-flags` in lower-case hexadecimal. Versions to come may append fields; version 0 may not.
fn well_formed(text: &[u8]) -> bool {
    let hex = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|t| t.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    };
    let zero = |range: std::ops::Range<usize>| text[range].iter().all(|b| *b == b'0');
    let shape = hex(0..2) && hex(3..35) && hex(36..52) && hex(53..55);
    let dashes = || [2, 35, 52].iter().all(|at| text[*at] == b'-');
    let end = || text.len() == 55 || (&text[..2] != b"00" && text[55] == b'-');
    shape && dashes() && end() && &text[..2] != b"ff" && !zero(3..35) && !zero(36..52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    #[test]
    fn what_is_well_formed() {
        assert!(well_formed(GOOD.as_bytes()));
        assert!(well_formed(GOOD.replacen("00", "01", 1).as_bytes()));
        assert!(well_formed(format!("{}-more", GOOD.replacen("00", "cc", 1)).as_bytes()));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-00",
        ] {
            assert!(!well_formed(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn kept_or_made() {
        let headers = |pairs: &[(HeaderName, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v))).collect()
        };
        let mut kept = headers(&[(TRACEPARENT, GOOD), (TRACESTATE, "a=1")]);
        pass_on(&mut kept, true);
        assert_eq!((kept[&TRACEPARENT].as_bytes(), kept[&TRACESTATE].as_bytes()), (GOOD.as_bytes(), &b"a=1"[..]));
        let mut new = headers(&[]);
        pass_on(&mut new, false);
        assert!(well_formed(new[&TRACEPARENT].as_bytes()));
        for mut none in [
            headers(&[(TRACESTATE, "a=1")]),
            headers(&[(TRACEPARENT, "x")]),
            headers(&[(TRACEPARENT, GOOD), (TRACEPARENT, GOOD)]),
        ] {
            pass_on(&mut none, true);
            assert!(well_formed(none[&TRACEPARENT].as_bytes()) && none[&TRACEPARENT] != GOOD);
            assert_eq!((none.get_all(TRACEPARENT).iter().count(), none.get(&TRACESTATE)), (1, None));
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..70)) {
            well_formed(&text);
        }
    }
}
