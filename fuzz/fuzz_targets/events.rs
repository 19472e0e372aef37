//! Events over HTTP: a message of any headers and bytes is events or is refused, and what is written of an event is read as the same one.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use taper_trigger::message::{Mode, read, write};

fuzz_target!(|data: &[u8]| {
    // Lines of headers, an empty one, the body.
    let (mut headers, mut rest) = (HeaderMap::new(), data);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let Ok((mode, events)) = read(&headers, rest.to_vec().into(), 8) else { return };
    assert!(events.len() <= 8 && (mode == Mode::Batched || events.len() == 1));
    for event in events {
        let mut written = HeaderMap::new();
        write(&event, &mut written);
        let body = event.data().cloned().unwrap_or_default();
        let (mode, again) = read(&written, body, 1).expect("what was written is read");
        assert_eq!(mode, Mode::Binary);
        // Numbers and booleans are text there, and an empty body is no data.
        assert_eq!((again[0].id(), again[0].source(), again[0].kind()), (event.id(), event.source(), event.kind()));
        for (name, value) in event.iter() {
            let again = again[0].get(name).map(|again| again.text().trim().to_owned());
            assert_eq!(again.as_deref(), Some(value.text().trim()), "{name}");
        }
    }
});
