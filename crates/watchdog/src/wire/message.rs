//! What the frames that are not bytes of a body say: the heads of CALL and REPLY, the pairs of END, and FAULT. All of it is
//! text whose fields end where the next line begins, since nothing that HTTP lets through has an end of line in it.
//!
//! Never here: bytes of bodies, which travel as they are.

use std::{borrow::Cow, fmt};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Error;

/// Before the text of a head: number (u32), length of the whole body (u64), length of the text (u32).
pub(super) const FIXED: usize = 16;
/// The length of a body that nobody knows yet.
const UNKNOWN: u64 = u64::MAX;

/// The head of one call, platform → runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<'a> {
    /// The call's identity, in every log line about it.
    pub id: Cow<'a, str>,
    /// The HTTP method.
    pub method: Cow<'a, str>,
    /// The path as it came, not decoded; begins with `/`.
    pub path: Cow<'a, str>,
    /// The query as it came, without the `?`; may be empty.
    pub query: Cow<'a, str>,
    /// Headers in their order, names in lower case. A value that is not UTF-8 is given as Latin-1.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Milliseconds until the last byte of the reply must have left.
    pub deadline_ms: u64,
    /// The function's name.
    pub function: Cow<'a, str>,
    /// Its namespace.
    pub namespace: Cow<'a, str>,
    /// The revision that serves the call.
    pub revision: Cow<'a, str>,
    /// The size of the body, where the caller said it.
    pub content_length: Option<u64>,
}

/// What writes the head of a call. [`Call`] is one; who has the parts of a request elsewhere need not collect them first.
pub trait Heading {
    /// Milliseconds until the last byte of the reply must have left.
    fn deadline_ms(&self) -> u64;
    /// The size of the body, where the caller said it.
    fn content_length(&self) -> Option<u64>;
    /// Id, method, path, query, function, namespace, revision, and then each header's name and value.
    fn write(&self, fields: &mut Fields<'_>);
}

/// Fields of a head on their way into its frame.
#[derive(Debug)]
pub struct Fields<'a> {
    text: &'a mut BytesMut,
    count: usize,
}

/// The head of the answer, runtime → platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The size of the body, where the runtime knows it. The platform may hold it to that.
    pub length: Option<u64>,
    /// Headers in their order; names in any case, unchecked.
    pub headers: Pairs,
}

/// Names and values in their order, as one piece of text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pairs(Bytes);

/// Headers that follow a body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trailers {
    /// Names and values, unchecked.
    pub trailers: Pairs,
}

/// Why a call has no (whole) reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of failure.
    pub what: FaultKind,
    /// One line, safe to show to the function's owner: `ValueError: no such city`.
    pub message: String,
    /// More of it: a traceback, or the end of standard error.
    pub detail: Option<String>,
    /// The exit status, where a process had one.
    pub exit: Option<i32>,
}

/// The kinds of failure a runtime can report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The function raised.
    Exception,
    /// The call's process ended with a status other than 0, or by a signal.
    Exit,
    /// The caller left or the deadline passed.
    Cancelled,
    /// The request was larger than the runtime can hold.
    TooLarge,
}

impl<'a> Call<'a> {
    /// Reads the head of a CALL frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        let (deadline, content_length, text) = opened("CALL", payload)?;
        let text = utf8("CALL", text)?;
        let mut fields = text.split('\n').map(Cow::Borrowed);
        let mut next = |name: &str| fields.next().ok_or_else(|| Error::call(format!("CALL without {name}")));
        let (id, method, path, query) = (next("an id")?, next("a method")?, next("a path")?, next("a query")?);
        let (function, namespace, revision) = (next("a function")?, next("a namespace")?, next("a revision")?);
        let mut headers = Vec::new();
        while let Some(name) = fields.next() {
            let value = fields.next().ok_or_else(|| Error::call("CALL: a header without a value"))?;
            headers.push((name, value));
        }
        let deadline_ms = u64::from(deadline);
        Ok(Self { id, method, path, query, headers, deadline_ms, function, namespace, revision, content_length })
    }
}

impl Heading for Call<'_> {
    fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    fn write(&self, fields: &mut Fields<'_>) {
        for field in [&self.id, &self.method, &self.path, &self.query, &self.function, &self.namespace, &self.revision]
        {
            fields.text(field);
        }
        for (name, value) in &self.headers {
            fields.text(name);
            fields.text(value);
        }
    }
}

impl Fields<'_> {
    /// Adds a field. It has no end of line in it: nothing from HTTP has one, and a head that has too many is not sent.
    pub fn text(&mut self, field: &str) {
        if self.count > 0 {
            self.text.put_u8(b'\n');
        }
        self.count += 1;
        self.text.put_slice(field.as_bytes());
    }

    /// The same, where an end of line may be: it becomes a space.
    fn line(&mut self, field: &str) {
        if field.contains('\n') { self.text(&field.replace('\n', " ")) } else { self.text(field) }
    }

    /// Adds a field of bytes that are text as a rule: UTF-8, else Latin-1.
    pub fn bytes(&mut self, field: &[u8]) {
        match std::str::from_utf8(field) {
            Ok(field) => self.text(field),
            Err(_) => self.text(&field.iter().map(|b| char::from(*b)).collect::<String>()),
        }
    }
}

/// Appends what is before a head's text, and the text.
///
/// # Errors
/// [`Error::Malformed`] when a field has an end of line in it, and would be read as two.
pub(super) fn open(
    number: u32,
    length: Option<u64>,
    out: &mut BytesMut,
    write: impl FnOnce(&mut Fields<'_>),
) -> Result<(), Error> {
    out.put_u32(number);
    out.put_u64(length.unwrap_or(UNKNOWN));
    out.put_u32(0);
    let at = out.len();
    let mut fields = Fields { text: out, count: 0 };
    write(&mut fields);
    let count = fields.count;
    let text = &out[at..];
    let size = u32::try_from(text.len()).unwrap_or(u32::MAX);
    if text.iter().filter(|b| **b == b'\n').count() != count.saturating_sub(1) {
        return Err(Error::call("a field of a head has an end of line in it"));
    }
    out[at - 4..at].copy_from_slice(&size.to_be_bytes());
    Ok(())
}

/// Where the head of a payload ends and the body begins.
///
/// # Errors
/// [`Error::Malformed`] when it ends within the head.
pub(super) fn head_of(payload: &[u8]) -> Result<usize, Error> {
    let fixed = payload.first_chunk::<FIXED>().ok_or_else(|| Error::call("a head that is cut off"))?;
    let text = u32::from_be_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
    let end = FIXED.saturating_add(text);
    if end > payload.len() {
        return Err(Error::call(format!("a head of {text} bytes in a frame of {}", payload.len())));
    }
    Ok(end)
}

/// A head's number, length and text.
fn opened<'a>(frame: &str, payload: &'a [u8]) -> Result<(u32, Option<u64>, &'a [u8]), Error> {
    if head_of(payload)? != payload.len() {
        return Err(Error::call(format!("{frame}: bytes after the head")));
    }
    let (mut fixed, text) = payload.split_at(FIXED);
    let (number, length) = (fixed.get_u32(), fixed.get_u64());
    Ok((number, (length != UNKNOWN).then_some(length), text))
}

fn utf8<'a>(frame: &str, text: &'a [u8]) -> Result<&'a str, Error> {
    std::str::from_utf8(text).map_err(|_| Error::call(format!("{frame}: not UTF-8")))
}

impl Reply {
    /// Reads the head of a REPLY frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong, also for a status outside of 200 to 599.
    pub fn decode(payload: &Bytes) -> Result<Self, Error> {
        let (number, length, _) = opened("REPLY", payload)?;
        let status = u16::try_from(number).ok().filter(|status| (200..=599).contains(status));
        let status = status.ok_or_else(|| Error::call(format!("REPLY: {number} is not a final status")))?;
        let mut text = payload.clone();
        text.advance(FIXED);
        Ok(Self { status, length, headers: Pairs::decode("REPLY", text)? })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) -> Result<(), Error> {
        open(self.status.into(), self.length, out, |fields| {
            for (name, value) in self.headers.iter() {
                fields.text(name);
                fields.text(value);
            }
        })
    }
}

impl Pairs {
    /// The pairs, each a name and a value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        // It was looked at when it came.
        let text = std::str::from_utf8(&self.0).unwrap_or_default();
        let mut fields = text.split('\n');
        let mut left = !text.is_empty();
        std::iter::from_fn(move || {
            let pair = if left { Some((fields.next()?, fields.next()?)) } else { None };
            left &= pair.is_some();
            pair
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn decode(frame: &str, text: Bytes) -> Result<Self, Error> {
        let fields = utf8(frame, &text)?;
        if !fields.is_empty() && fields.bytes().filter(|b| *b == b'\n').count() % 2 == 0 {
            return Err(Error::call(format!("{frame}: a header without a value")));
        }
        Ok(Self(text))
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut text = BytesMut::new();
        let mut fields = Fields { text: &mut text, count: 0 };
        for (name, value) in pairs {
            fields.line(name.as_ref());
            fields.line(value.as_ref());
        }
        Self(text.freeze())
    }
}

impl Trailers {
    /// Reads the payload of an END frame; an empty one has no trailers.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong.
    pub fn decode(payload: &Bytes) -> Result<Self, Error> {
        Ok(Self { trailers: Pairs::decode("END", payload.clone())? })
    }
}

impl FaultKind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Exception, "exception"),
        (Self::Exit, "exit"),
        (Self::Cancelled, "cancelled"),
        (Self::TooLarge, "tooLarge"),
    ];
}

impl Fault {
    /// Reads the payload of a FAULT frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, Error> {
        let mut fields = utf8("FAULT", payload)?.splitn(4, '\n');
        let (what, exit) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let known = FaultKind::ALL.iter().find(|(_, word)| *word == what);
        let (what, _) = known.ok_or_else(|| Error::call(format!("FAULT: it does not say what: {what:?}")))?;
        let exit = match exit {
            "" => None,
            status => Some(status.parse().map_err(|_| Error::call(format!("FAULT: exit status {status:?}")))?),
        };
        let message = fields.next().ok_or_else(|| Error::call("FAULT without a message"))?;
        let detail = fields.next().filter(|detail| !detail.is_empty()).map(str::to_owned);
        Ok(Self { what: *what, message: message.to_owned(), detail, exit })
    }

    pub(super) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        let mut fields = Fields { text: &mut out, count: 0 };
        fields.text(FaultKind::ALL.iter().find(|(kind, _)| *kind == self.what).map_or("exception", |(_, word)| word));
        fields.text(&self.exit.map(|status| status.to_string()).unwrap_or_default());
        fields.line(&self.message);
        out.put_u8(b'\n');
        out.put_slice(self.detail.as_deref().unwrap_or_default().as_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(heading: &impl Heading) -> Bytes {
        let mut out = BytesMut::new();
        let deadline = u32::try_from(heading.deadline_ms()).unwrap();
        open(deadline, heading.content_length(), &mut out, |fields| heading.write(fields)).unwrap();
        out.freeze()
    }

    fn length() -> impl Strategy<Value = Option<u64>> {
        prop_oneof![Just(None), (0..u64::MAX).prop_map(Some)]
    }

    proptest! {
        #[test]
        fn a_call_survives_the_wire(
            id in "\\PC{1,40}", path in "/\\PC*", query in "\\PC*", deadline_ms in any::<u32>(), content_length in length(),
            headers in prop::collection::vec(("[a-z-]{1,20}", "\\PC*"), 0..20),
        ) {
            let call = Call {
                id: id.into(), method: "POST".into(), path: path.into(), query: query.into(),
                headers: headers.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
                deadline_ms: deadline_ms.into(), function: "f".into(), namespace: "default".into(), revision: "f-00001".into(), content_length,
            };
            let payload = encoded(&call);
            prop_assert_eq!(Call::decode(&payload).unwrap(), call);
        }

        #[test]
        fn a_reply_and_a_fault_survive_the_wire(
            status in 200_u16..600, length in length(), message in "\\PC*", detail in prop::option::of("(?s).+"), exit in any::<Option<i32>>(),
            headers in prop::collection::vec(("\\PC*", "\\PC*"), 0..9),
        ) {
            let reply = Reply { status, length, headers: headers.iter().map(|(k, v)| (k, v)).collect() };
            let mut out = BytesMut::new();
            reply.encode(&mut out).unwrap();
            prop_assert_eq!(Reply::decode(&out.freeze()).unwrap(), reply.clone());
            let pairs: Vec<_> = reply.headers.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(pairs, headers);
            let fault = Fault { what: FaultKind::TooLarge, message, detail, exit };
            prop_assert_eq!(Fault::decode(&fault.encode()).unwrap(), fault);
        }

        #[test]
        fn any_payload_decodes_or_is_refused(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let payload = Bytes::from(payload);
            let _ = (Call::decode(&payload).is_ok(), Reply::decode(&payload).is_ok(), Fault::decode(&payload).is_ok());
            if let Ok(end) = Trailers::decode(&payload) {
                prop_assert_eq!(end.trailers.iter().count() * 2, if payload.is_empty() { 0 } else { payload.split(|b| *b == b'\n').count() });
            }
        }
    }

    #[test]
    fn a_status_that_is_not_final_is_refused() {
        for status in [0, 100, 199, 600, 65535, 65536 + 200] {
            let mut out = BytesMut::new();
            open(status, None, &mut out, |_| {}).unwrap();
            assert!(Reply::decode(&out.freeze()).is_err(), "{status}");
        }
    }

    #[test]
    fn a_field_cannot_become_two() {
        let pairs: Pairs = [("a", "b\nc"), ("", "")].into_iter().collect();
        assert_eq!(pairs.iter().collect::<Vec<_>>(), [("a", "b c"), ("", "")]);
        assert!(open(1, None, &mut BytesMut::new(), |fields| fields.text("a\nb")).is_err());
        let fault = Fault { what: FaultKind::Exit, message: "a\nb".into(), detail: Some("c\nd".into()), exit: None };
        let read = Fault::decode(&fault.encode()).unwrap();
        assert_eq!((&*read.message, read.detail.as_deref()), ("a b", Some("c\nd")));
    }
}
