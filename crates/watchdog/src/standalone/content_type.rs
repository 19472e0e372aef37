//! What kind of content bytes or a file's name speak of, where nobody has said it.
//!
//! Never here: reading them.

/// By the first bytes, for what a browser would show or run; else plain text, or bytes without a kind.
pub(crate) fn sniffed(body: &[u8]) -> &'static str {
    const SIGNS: &[(&[u8], &str)] = &[
        (b"%PDF-", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"\x1f\x8b\x08", "application/x-gzip"),
        (b"PK\x03\x04", "application/zip"),
        (b"\0asm", "application/wasm"),
        (b"OggS\0", "application/ogg"),
    ];
    const MARKUP: &[&str] =
        &["<!doctype html", "<html", "<head", "<body", "<script", "<title", "<table", "<div", "<h1", "<p>", "<!--"];
    if let Some((_, kind)) = SIGNS.iter().find(|(sign, _)| body.starts_with(sign)) {
        return kind;
    }
    if body.starts_with(b"RIFF") && body.get(8..12) == Some(b"WEBP") {
        return "image/webp";
    }
    let start = &body[..body.len().min(512)];
    let text = start.trim_ascii_start();
    if text.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    let begins = |sign: &&str| text.get(..sign.len()).is_some_and(|head| head.eq_ignore_ascii_case(sign.as_bytes()));
    if MARKUP.iter().any(begins) {
        return "text/html; charset=utf-8";
    }
    // What no text has: control characters other than line ends, tabs, form feeds and the terminal's escape.
    let binary = |b: &u8| matches!(b, 0..=8 | 11 | 14..=26 | 28..=31);
    if start.iter().any(binary) { "application/octet-stream" } else { "text/plain; charset=utf-8" }
}

/// By the end of a file's name.
pub(crate) fn of_name(name: &str) -> Option<&'static str> {
    Some(match name.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_names_are_told_apart() {
        for (body, kind) in [
            (&b""[..], "text/plain; charset=utf-8"),
            (b"hello\n", "text/plain; charset=utf-8"),
            ("grüße".as_bytes(), "text/plain; charset=utf-8"),
            (b"\n <!DOCTYPE HTML><p>", "text/html; charset=utf-8"),
            (b"<?xml version", "text/xml; charset=utf-8"),
            (b"\x89PNG\r\n\x1a\n..", "image/png"),
            (b"RIFF....WEBPVP8", "image/webp"),
            (b"a\0b", "application/octet-stream"),
        ] {
            assert_eq!(sniffed(body), kind, "{body:?}");
        }
        assert_eq!(
            (of_name("a/B.HTML"), of_name("x"), of_name("x.unheard")),
            (Some("text/html; charset=utf-8"), None, None)
        );
    }
}
