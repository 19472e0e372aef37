//! Mode `static`: files from one folder, and nothing from beside it.
//!
//! Never here: following a link that leads out of the folder, or opening what is no file.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    header::{self, HeaderName, HeaderValue},
};

use super::{
    content_type::{of_name, sniffed},
    reply::{Broken, Call, Content, Reply, reply, text},
};
use crate::environment;

/// How much of a file is read at once.
const READ: u64 = 64 * 1024;

/// The most names that a folder's list shows.
const MOST_LISTED: usize = 10_000;

/// The folder.
pub(crate) struct Files {
    root: PathBuf,
}

/// A part of a file that is being sent.
pub(crate) struct Piece {
    file: File,
    left: u64,
}

impl Piece {
    /// What was not sent so far.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes.
    pub(crate) fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        if self.left == 0 {
            return None;
        }
        let mut bytes = Vec::with_capacity(self.left.min(READ) as usize);
        Some(match (&self.file).take(self.left.min(READ)).read_to_end(&mut bytes) {
            Ok(0) | Err(_) => Err(Broken("the file became shorter, or could not be read")),
            Ok(n) => {
                self.left -= n as u64;
                Ok(bytes.into())
            }
        })
    }
}

impl Files {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Whether the folder is there.
    pub(crate) fn is_there(&self) -> bool {
        self.root.is_dir()
    }

    /// The file, or the folder, of a request's path.
    pub(crate) fn answer<B>(&self, request: &Request<B>, call: Call) -> Reply {
        let path = request.uri().path();
        let Some(found) = self.find(path) else { return missing(call) };
        let Ok(meta) = found.metadata() else { return missing(call) };
        if !meta.is_dir() && path.ends_with('/') {
            return missing(call);
        }
        if !meta.is_dir() {
            return send(&found, request, call);
        }
        if !path.ends_with('/') {
            let name = path.rsplit('/').next().unwrap_or_default();
            let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
            let mut answer = text(StatusCode::MOVED_PERMANENTLY, "", call);
            let to = HeaderValue::from_str(&format!("./{name}/{query}"));
            answer.headers_mut().extend(to.ok().map(|to| (header::LOCATION, to)));
            return answer;
        }
        match self.find(&format!("{path}index.html")) {
            Some(index) if index.is_file() => send(&index, request, call),
            _ => list(&found, call),
        }
    }

    /// The real place of a path, when it is in the folder.
    fn find(&self, path: &str) -> Option<PathBuf> {
        let decoded = environment::decoded(path);
        let names: Vec<&str> = decoded.split('/').filter(|name| !name.is_empty()).collect();
        if decoded.contains('\0') || names.iter().any(|name| [".", ".."].contains(name)) {
            return None;
        }
        let root = self.root.canonicalize().ok()?;
        let found = names.iter().fold(root.clone(), |path, name| path.join(name)).canonicalize().ok()?;
        found.starts_with(&root).then_some(found)
    }
}

fn missing(call: Call) -> Reply {
    text(StatusCode::NOT_FOUND, "404 page not found\n", call)
}

fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // A pipe or a device must not hold up every other request.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok((file, meta)) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn send<B>(path: &Path, request: &Request<B>, call: Call) -> Reply {
    let Ok((mut file, meta)) = open(path) else { return missing(call) };
    let length = meta.len();
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kind = of_name(&name).unwrap_or_else(|| {
        let mut start = Vec::new();
        let read = (&file).take(512).read_to_end(&mut start).and_then(|_| (&file).rewind());
        if read.is_ok() { sniffed(&start) } else { "application/octet-stream" }
    });
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Whole seconds, as HTTP tells times.
    let modified =
        meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|time| time.as_secs());
    if let Some(seconds) = modified {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        headers.extend(HeaderValue::from_str(&date).ok().map(|date| (header::LAST_MODIFIED, date)));
    }
    let asked = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let since = asked(header::IF_MODIFIED_SINCE)
        .filter(|_| [Method::GET, Method::HEAD].contains(request.method()))
        .and_then(|date| httpdate::parse_http_date(date).ok()?.duration_since(UNIX_EPOCH).ok());
    if let (Some(since), Some(modified)) = (since, modified)
        && modified <= since.as_secs()
    {
        return reply(StatusCode::NOT_MODIFIED, headers, Content::Full(None), call);
    }
    let mut part = (StatusCode::OK, 0, length);
    match asked(header::RANGE).map(|text| range(text, length)) {
        None | Some(Range::Whole) => {}
        Some(Range::Part(from, to)) => {
            part = (StatusCode::PARTIAL_CONTENT, from, to - from + 1);
            headers.extend(content_range(format!("bytes {from}-{to}/{length}")));
        }
        Some(Range::Nothing) => {
            let mut answer = text(StatusCode::RANGE_NOT_SATISFIABLE, "the range lies behind the file's end\n", call);
            answer.headers_mut().extend(content_range(format!("bytes */{length}")));
            return answer;
        }
    }
    let (status, from, left) = part;
    if from > 0 && file.seek(SeekFrom::Start(from)).is_err() {
        return missing(call);
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(left));
    reply(status, headers, Content::File(Piece { file, left }), call)
}

fn content_range(text: String) -> Option<(HeaderName, HeaderValue)> {
    Some((header::CONTENT_RANGE, HeaderValue::from_maybe_shared(Bytes::from(text)).ok()?))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Nothing,
}

/// One range of a file of this length. Several at once are answered with the whole file, as HTTP allows.
fn range(text: &str, length: u64) -> Range {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Range::Whole;
    };
    let (from, to) = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if to < from => return Range::Whole,
        (Ok(from), Ok(to)) => (from, to.min(length.saturating_sub(1))),
        (Ok(from), Err(_)) if to.is_empty() => (from, length.saturating_sub(1)),
        (Err(_), Ok(0)) if from.is_empty() => return Range::Nothing,
        (Err(_), Ok(last)) if from.is_empty() => (length.saturating_sub(last), length.saturating_sub(1)),
        _ => return Range::Whole,
    };
    if from >= length { Range::Nothing } else { Range::Part(from, to) }
}

fn list(folder: &Path, call: Call) -> Reply {
    let Ok(entries) = folder.read_dir() else { return missing(call) };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .take(MOST_LISTED)
        .map(|entry| {
            let end = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
            format!("{}{end}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort_unstable();
    let mut page = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        page.push_str(&format!("<a href=\"./{}\">{}</a>\n", in_address(&name), in_markup(&name)));
    }
    page.push_str("</pre>\n");
    let mut answer = text(StatusCode::OK, page, call);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    answer
}

fn in_address(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn in_markup(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", Range::Part(0, 0)),
            ("bytes=2-", Range::Part(2, 9)),
            ("bytes=2-99", Range::Part(2, 9)),
            ("bytes=-3", Range::Part(7, 9)),
            ("bytes=-99", Range::Part(0, 9)),
            ("bytes=10-", Range::Nothing),
            ("bytes=-0", Range::Nothing),
            ("bytes=5-2", Range::Whole),
            ("bytes=0-1,4-5", Range::Whole),
            ("bytes=x-y", Range::Whole),
            ("lines=0-1", Range::Whole),
        ] {
            assert_eq!(range(text, 10), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Range::Nothing);
    }

    #[test]
    fn names_in_a_list_are_no_markup() {
        assert_eq!(
            (in_address("a b\"<é"), in_markup("<\"&>")),
            ("a%20b%22%3C%C3%A9".into(), "&lt;&#34;&amp;&gt;".into())
        );
    }
}
