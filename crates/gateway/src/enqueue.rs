//! A call whose caller does not wait: its body is read whole, within bounds of size, of time, and of what all such bodies hold
//! together; the queue has it on disk before the caller hears 202. Never runs a call: the queue's own workers do.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, header, request};
use http_body_util::BodyExt;
use taper_model::{CallId, Cause, Fault, FunctionName, Stage};
use taper_queue::{Accepted, Entry, Queue};
use tokio::time::{Instant, timeout_at};

use crate::{
    Context,
    accept::{self, Arrival, Request, Response},
    cors, forward, headers, host,
    limit::Gate,
    record::Record,
    reply,
    route::Door,
    routes::Found,
    timeout::{Broken, Transfer},
    upload::Upload,
};

/// Most bytes of bodies that are being read, or written to the disk, at a time.
pub(crate) const HELD: u64 = 256 << 20;

/// Whether a request to `/function/…` asks not to wait.
pub(crate) fn asked(request: &Request) -> bool {
    let says = || request.headers().get(headers::ASYNC);
    request.body().record.seen().later && says().is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true"))
}

/// Accepts a call for later, or cancels one.
pub(crate) async fn answer(context: &Context, request: Request) -> Response {
    let _writes = context.writes.token();
    let (head, Arrival { upload, mut record }) = request.into_parts();
    let queue = match queue(context) {
        Ok(queue) => queue,
        Err(fault) => return reply::fault(record, &fault, false),
    };
    let direct = record.door() == Door::Async;
    if direct && head.method == Method::DELETE {
        return match cancel(queue, head.uri.path()).await {
            Ok(()) => reply::accepted(record, None, false),
            Err(fault) => reply::fault(record, &fault, false),
        };
    }
    match enqueue(context, queue, head, upload, &mut record).await {
        Ok((location, repeated)) => reply::accepted(record, location.as_deref(), repeated),
        Err(fault) => reply::fault(record, &fault, false),
    }
}

/// Takes calls on that come by another way than a request for them: the resource API. What may be asked is the same. Cheap to clone.
#[derive(Clone)]
pub struct Accept(Weak<Context>);

impl Accept {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self(Arc::downgrade(context))
    }

    /// Puts a call of this function into the queue; the path is the function's own.
    ///
    /// # Errors
    /// Why it was not accepted.
    ///
    /// # Cancel safety
    /// The call is accepted or not, never by half.
    pub async fn accept(&self, name: &FunctionName, request: http::Request<Bytes>) -> Result<Accepted, Fault> {
        let over = || Fault::new(Stage::Accept, Cause::ShuttingDown, "the platform is shutting down; try again");
        let context = self.0.upgrade().ok_or_else(over)?;
        let queue = queue(&context)?;
        let (mut head, body) = request.into_parts();
        served(&head.method, &reply::METHODS)?;
        let found = context.routes[0].named(&context, name)?;
        accept::fits(&context, &head.uri, head.headers.iter().map(accept::size).sum())?;
        let max = context.config.max_async_body;
        if body.len() as u64 > max {
            return Err(forward::too_large(max));
        }
        headers::foreign(&mut head.headers, found.host.clone());
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let mut entry = read(&found, head, target)?;
        found.gate.as_ref().map_or(Ok(()), Gate::accept)?;
        put(&mut entry, body);
        queue.push(entry).await.map_err(taper_queue::Error::fault)
    }
}

fn queue(context: &Context) -> Result<&dyn Queue, Fault> {
    let text = "asynchronous calls are not served; use /function/NAME";
    context.queue.as_deref().ok_or_else(|| Fault::new(Stage::Route, Cause::NotFound, text))
}

fn served(method: &Method, allowed: &[Method]) -> Result<(), Fault> {
    if allowed.contains(method) {
        return Ok(());
    }
    let text = format!("functions are not called asynchronously with {method} here");
    Err(Fault::new(Stage::Route, Cause::Method, text))
}

/// The platform's own host as whoever asked this reaches it, to be put before a path of the API: nothing where the request came by it, and none where it is
/// not known. On a host of a function's own that path would lead into the function.
fn home(context: &Context, head: &request::Parts, record: &Record) -> Option<String> {
    let named = headers::host(&head.uri, &head.headers);
    let text = named.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("");
    if record.door() != Door::Routed || context.routes[0].is_nobodys(context, text) {
        return Some(String::new());
    }
    let host = host::read(text).ok()?;
    let domain = context.templates.above(&host)?;
    let port = text.split_once(':').map_or(String::new(), |(_, port)| format!(":{port}"));
    let scheme = if record.link().is_secure() || cors::relayed(&head.headers) { "https" } else { "http" };
    Some(format!("{scheme}://{domain}{port}"))
}

/// Puts the call into the queue; says where its record is, if that can be said, and whether that was there before.
async fn enqueue(
    context: &Context,
    queue: &dyn Queue,
    head: request::Parts,
    upload: Upload,
    record: &mut Record,
) -> Result<(Option<String>, bool), Fault> {
    let allowed = match record.door() {
        Door::Async => &reply::ASYNC_METHODS[..],
        _ => &reply::METHODS[..],
    };
    served(&head.method, allowed)?;
    let found = record.found().cloned().ok_or_else(forward::nowhere)?;
    let max = context.config.max_async_body;
    if upload.announced().is_some_and(|length| length > max) {
        return Err(forward::too_large(max));
    }
    let home = home(context, &head, record);
    let deadline = record.arrived() + found.function.latest().revision.spec.timeout();
    let address = found.address(head.uri.path(), record.link().is_secure());
    if let Some(choice) = &found.choice {
        choice.accept(address)?;
    }
    let pin = address.tag.and_then(|tag| HeaderValue::from_str(tag.as_str()).ok());
    let mut entry = entry(head, &found, record)?;
    if let Some(pin) = pin {
        entry.headers.insert(headers::PIN, pin);
    }
    // It counts as one that comes; how many run at a time is decided when it does.
    found.gate.as_ref().map_or(Ok(()), Gate::accept)?;
    let held = Held { total: &context.held, bytes: 0 };
    let transfer = record.transfer().clone();
    let (body, held) = collect(upload, max, held, deadline, &transfer).await?;
    put(&mut entry, body);
    let (named, namespace) = (entry.correlation.is_some(), entry.function.namespace.clone());
    let accepted = queue.push(entry).await.map_err(taper_queue::Error::fault)?;
    drop(held);
    let location = home.map(|home| format!("{home}/v1/namespaces/{namespace}/invocations/{}", accepted.id));
    if !named {
        record.known_as(accepted.id);
    }
    Ok((location, accepted.repeated))
}

/// The body, and how long it is.
fn put(entry: &mut Entry, body: Bytes) {
    if !body.is_empty() || entry.headers.contains_key(header::CONTENT_LENGTH) {
        entry.headers.insert(header::CONTENT_LENGTH, (body.len() as u64).into());
    }
    entry.body = body;
}

/// The call as the queue keeps it, still without its body.
fn entry(mut head: request::Parts, found: &Found, record: &Record) -> Result<Entry, Fault> {
    let given = head.headers.get(headers::CALL_ID).is_some_and(|v| v.as_bytes() == record.id().as_str().as_bytes());
    headers::inward(&mut head, record, found.host.clone());
    if !given {
        head.headers.remove(headers::CALL_ID);
    }
    // What lasts as long as a connection means nothing later.
    for gone in [header::CONNECTION, header::UPGRADE, header::TE] {
        head.headers.remove(gone);
    }
    let target = forward::seen(found, &head.uri);
    read(found, head, target)
}

/// What the headers say to the queue.
fn read(found: &Found, mut head: request::Parts, target: impl Into<String>) -> Result<Entry, Fault> {
    // Trailers are not kept, so none are announced.
    head.headers.remove(header::TRAILER);
    let mut entry = Entry::read(found.function.name.clone(), head.method, target, head.headers, Bytes::new())
        .map_err(|invalid| Fault::new(Stage::Accept, Cause::Malformed, invalid.to_string()))?;
    entry.headers.insert(headers::MADE, found.function.created_ms.into());
    Ok(entry)
}

/// Reads a body whole. What it holds is given back when the call is on disk, or refused.
async fn collect<'a>(
    upload: Upload,
    max: u64,
    mut held: Held<'a>,
    deadline: Instant,
    transfer: &Transfer,
) -> Result<(Bytes, Held<'a>), Fault> {
    let mut body = upload.limited(max);
    let reading = async {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| match transfer.broken() {
                Some(Broken::TooLarge) => forward::too_large(max),
                _ => forward::malformed(),
            })?;
            if let Ok(data) = frame.into_data() {
                held.take(data.len() as u64)?;
                whole.extend_from_slice(&data);
            }
        }
        Ok(whole.freeze())
    };
    let late =
        || Fault::new(Stage::Accept, Cause::Deadline, "the request's body took longer than the function's timeout");
    let whole = timeout_at(deadline, reading).await.unwrap_or_else(|_| Err(late()))?;
    Ok((whole, held))
}

/// Cancels the call that a path names by its id, for whoever knows that: it is random where a caller made the call. One that another
/// call or a trigger made has an id that can be told from theirs, and is cancelled through the API.
async fn cancel(queue: &dyn Queue, path: &str) -> Result<(), Fault> {
    let id = path.strip_prefix("/async-function/").filter(|id| !id.contains('/')).and_then(|id| CallId::given(id).ok());
    let Some(id) = id else {
        let text = "a call is cancelled with DELETE /async-function/CALL-ID";
        return Err(Fault::new(Stage::Route, Cause::NotFound, text));
    };
    let cancelled = match queue.get(&id).await {
        Ok(Some(call)) if call.entry.origin.is_none() => queue.cancel(&id, "a caller").await,
        Ok(_) => Err(taper_queue::Error::NotFound(id)),
        Err(error) => Err(error),
    };
    cancelled.map_err(taper_queue::Error::fault)
}

/// What one body holds of the bytes that all may hold together.
struct Held<'a> {
    total: &'a AtomicU64,
    bytes: u64,
}

impl Held<'_> {
    fn take(&mut self, bytes: u64) -> Result<(), Fault> {
        self.bytes += bytes;
        if self.total.fetch_add(bytes, Relaxed) + bytes > HELD {
            let text = "too many asynchronous calls arrive at the same time; try again";
            return Err(Fault::new(Stage::Queue, Cause::Limited, text));
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Relaxed);
    }
}
