//! What a classic process learns of its request: OpenFaaS's `Http_*` variables.
//!
//! Never here: the function's own environment, which stays as it is beside them.

use std::{borrow::Cow, ffi::CString};

use crate::wire::Call;

const PREFIX: &[u8] = b"Http_";

/// The variables of one request. The platform's words come before a header of the same name; of a repeated header the
/// first value counts.
pub(crate) fn of(call: &Call<'_>) -> Vec<CString> {
    let mut variables = Variables(Vec::with_capacity(call.headers.len() + 8));
    let length = call.content_length.map_or_else(|| "-1".to_owned(), |n| n.to_string());
    variables.add("Method".bytes(), &call.method);
    variables.add("ContentLength".bytes(), &length);
    variables.add("Content-Length".bytes(), &length);
    if !call.query.is_empty() {
        variables.add("Query".bytes(), &call.query);
    }
    if call.content_length.is_none() {
        variables.add("Transfer-Encoding".bytes(), "chunked");
    }
    // The path is decoded, as in OpenFaaS; unless that would cut the variable short.
    let path = decoded(&call.path);
    variables.add("Path".bytes(), if path.contains('\0') { &call.path } else { &path });
    for (name, value) in &call.headers {
        // `Proxy:` would become Http_Proxy, which libraries that ignore case take for a proxy to use ("httpoxy").
        if !name.eq_ignore_ascii_case("proxy") {
            variables.add(canonical(name), value);
        }
    }
    variables.0
}

struct Variables(Vec<CString>);

impl Variables {
    /// In one allocation each: there are a dozen to a call.
    fn add(&mut self, name: impl ExactSizeIterator<Item = u8>, value: &str) {
        let mut text = Vec::with_capacity(PREFIX.len() + name.len() + "=".len() + value.len() + "\0".len());
        text.extend_from_slice(PREFIX);
        text.extend(name.map(|byte| if byte == b'-' { b'_' } else { byte }));
        text.push(b'=');
        if self.0.iter().any(|known| known.to_bytes().starts_with(&text)) {
            return;
        }
        text.extend_from_slice(value.as_bytes());
        // A NUL cannot come from HTTP, and cannot be in an environment.
        self.0.extend(CString::new(text));
    }
}

/// A header's name in Go's canonical form (`x-call-id` → `X-Call-Id`).
pub(crate) fn canonical(name: &str) -> impl ExactSizeIterator<Item = u8> {
    let mut upper = true;
    name.bytes().map(move |byte| {
        let byte = if upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        upper = byte == b'-';
        byte
    })
}

pub(crate) fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let bytes = path.as_bytes();
    let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|_| path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(path: &str, query: &str, length: Option<u64>, headers: &[(&str, &str)]) -> Vec<String> {
        let call = Call {
            id: "1".into(),
            method: "PUT".into(),
            path: path.into(),
            query: query.into(),
            headers: headers.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            deadline_ms: 1,
            function: "f".into(),
            namespace: "n".into(),
            revision: "r".into(),
            content_length: length,
        };
        of(&call).into_iter().map(|v| v.into_string().unwrap()).collect()
    }

    #[test]
    fn a_request_as_openfaas_shows_it() {
        let headers = [
            ("host", "h.example"),
            ("x-call-id", "7"),
            ("x-foo", "a=b"),
            ("x-foo", "second"),
            ("content-type", "text/plain"),
        ];
        assert_eq!(
            variables("/a/b%20c", "x=1&y=%202", Some(3), &headers),
            [
                "Http_Method=PUT",
                "Http_ContentLength=3",
                "Http_Content_Length=3",
                "Http_Query=x=1&y=%202",
                "Http_Path=/a/b c",
                "Http_Host=h.example",
                "Http_X_Call_Id=7",
                "Http_X_Foo=a=b",
                "Http_Content_Type=text/plain",
            ]
        );
    }

    #[test]
    fn an_unknown_length_is_chunked_and_an_empty_query_absent() {
        assert_eq!(
            variables("/", "", None, &[]),
            [
                "Http_Method=PUT",
                "Http_ContentLength=-1",
                "Http_Content_Length=-1",
                "Http_Transfer_Encoding=chunked",
                "Http_Path=/"
            ]
        );
    }

    #[test]
    fn a_header_cannot_speak_for_the_platform_nor_set_a_proxy() {
        let got = variables(
            "/%00x%zz%4",
            "",
            Some(0),
            &[("method", "EVIL"), ("content-length", "99"), ("path", "/x"), ("proxy", "http://evil")],
        );
        assert_eq!(got, ["Http_Method=PUT", "Http_ContentLength=0", "Http_Content_Length=0", "Http_Path=/%00x%zz%4"]);
    }
}
