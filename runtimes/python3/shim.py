"""Taper's Python runtime: loads one function of the user's and serves the call protocol on an inherited socket.

Owns the handler conventions and the worker processes. Never here: HTTP, deadlines' policy, anything of the sandbox.
docs/runtime-contract.md is the contract; it runs on CPython 3.8 and later, started with `-S`.

The C modules are imported by their own names: `import os, json, socket` would double the time from start to readiness
with what only they need (re, enum, collections, selectors). A function that imports them pays for them itself.
"""

import _io
import _signal
import _socket
import builtins
import gc
import posix
import sys
from _struct import Struct
from time import monotonic, sleep, time

HEAD, DATA, END, CANCEL, FAULT, WHOLE = 1, 2, 3, 4, 5, 6
MAX_PAYLOAD = 1 << 20
# A frame with a head: the payload's length, the kind; milliseconds or status, length of the body, length of the text.
OPENING = Struct(">IBIQI")
UNKNOWN = (1 << 64) - 1
LISTEN_FD, CONTROL_FD = 3, 4
PEEK = _socket.MSG_PEEK | _socket.MSG_DONTWAIT

TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
JSON = "application/json"
LINES = "application/x-ndjson"

# How long after its deadline the kernel kills a worker whose call still runs.
DEADLINE_GRACE = 0.5
# A worker that ends without having taken a call is started again later each time; after so many in so long, never.
MAX_DEATHS, DEATHS_WITHIN = 5, 10.0


def _codec():
    """JSON in C without the `json` package, which would import `re`; the package where an interpreter has none."""
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner

        class Plain:
            strict, object_hook, object_pairs_hook, parse_float, parse_int, memo = False, None, None, float, int, {}
            parse_constant = float

        def default(value):
            raise TypeError("a value of type %s is not JSON" % type(value).__name__)

        scan = make_scanner(Plain)
        encode = make_encoder({}, default, encode_basestring_ascii, None, ":", ",", False, False, False)
        loads, dumps = (lambda text: scan(text, 0)[0]), (lambda value: "".join(encode(value, 0)))
        if loads(dumps({"a": [1, 2.5, None, "\u00e9"]})) == {"a": [1, 2.5, None, "\u00e9"]}:
            return loads, dumps
    except Exception:
        pass
    import json

    return json.loads, lambda value: json.dumps(value, separators=(",", ":"), allow_nan=False)


loads, dumps = _codec()


class Gone(Exception):
    """The platform closed the connection, or broke the protocol: the connection is of no further use."""


class Cancelled(Exception):
    """The caller left while its reply was being streamed."""


class Wire:
    """One connection: frames in, frames out."""

    def __init__(self, sock):
        self.sock, self.buffer, self.at = sock, b"", 0

    def head(self):
        """How a call begins: (milliseconds, text of the head, what is there of the body, whether that is all of it). Without
        a text: a CANCEL. Nothing: the end of the connection."""
        if self.at == len(self.buffer):
            data = self.receive(65536, 0)
            if len(data) >= OPENING.size:
                size, kind, limit, _, text = OPENING.unpack_from(data)
                if kind == WHOLE and size == len(data) - 5 and text <= size - 16:
                    text += 21
                    return limit, data[21:text], data[text:], True
            self.buffer, self.at = data, 0
        frame = self.frame()
        if frame is None:
            return None
        kind, payload = frame
        if kind == CANCEL:
            return 0, None, None, True
        if kind not in (HEAD, WHOLE):
            raise Gone("a frame of kind %d between calls" % kind)
        size, text = len(payload), int.from_bytes(payload[12:16], "big")
        if size < 16 or text > size - 16:
            raise Gone("a head of %d bytes in a frame of %d" % (text, size))
        return int.from_bytes(payload[:4], "big"), payload[16 : 16 + text], payload[16 + text :], kind == WHOLE

    def frame(self):
        """The next (kind, payload), or None at the end."""
        while len(self.buffer) - self.at < 5:
            more = self.receive(65536, 0)
            if not more:
                if len(self.buffer) > self.at:
                    raise Gone("the stream ends within a frame")
                return None
            self.buffer, self.at = (self.buffer[self.at :] + more if self.at < len(self.buffer) else more), 0
        start = self.at + 5
        size, kind = int.from_bytes(self.buffer[self.at : start - 1], "big"), self.buffer[start - 1]
        if size > MAX_PAYLOAD or not HEAD <= kind <= WHOLE or (kind == CANCEL and size):
            raise Gone("a frame of kind %d with %d bytes" % (kind, size))
        stop = start + size
        if stop <= len(self.buffer):
            self.at = stop
            return kind, self.buffer[start:stop]
        pieces = [self.buffer[start:]]
        missing = size - len(pieces[0])
        self.buffer, self.at = b"", 0
        while missing:
            piece = self.receive(missing, _socket.MSG_WAITALL)
            if not piece:
                raise Gone("the stream ends within a frame")
            pieces.append(piece)
            missing -= len(piece)
        return kind, b"".join(pieces)

    def receive(self, size, flags):
        try:
            return self.sock.recv(size, flags)
        except ConnectionError as error:
            raise Gone(str(error)) from None

    def body(self, first):
        """The whole request body, which begins so; or None when the caller left before it was whole."""
        pieces = [first]
        while True:
            frame = self.frame()
            if frame is None:
                raise Gone("the stream ends within a request")
            kind, payload = frame
            if kind == DATA:
                pieces.append(payload)
            elif kind == END:
                return b"".join(pieces)
            elif kind == CANCEL:
                return None
            else:
                raise Gone("a frame of kind %d within a request" % kind)

    def left(self):
        """Whether the caller left. Between a whole request and its reply nothing else can come."""
        if self.at < len(self.buffer):
            return True
        try:
            self.sock.recv(1, PEEK)
            return True
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Gone(str(error)) from None


def pack(kind, payload):
    return len(payload).to_bytes(4, "big") + bytes((kind,)) + payload


def pack_data(data):
    if len(data) <= MAX_PAYLOAD:
        return pack(DATA, data) if data else b""
    return b"".join(pack(DATA, data[at : at + MAX_PAYLOAD]) for at in range(0, len(data), MAX_PAYLOAD))


END_FRAME = pack(END, b"")

# The text of the heads of replies without headers of their own.
SIMPLE = {kind: ("content-type\n" + kind if kind else "").encode() for kind in (None, TEXT, BYTES, JSON)}


class Headers(dict):
    """A request's headers: a dict with lower-case names that is asked in any case."""

    __slots__ = ()

    def __getitem__(self, name):
        return dict.__getitem__(self, name.lower())

    def __contains__(self, name):
        return dict.__contains__(self, name.lower())

    def get(self, name, default=None):
        return dict.get(self, name.lower(), default)


def _headers(names, values):
    headers = Headers(zip(names, values))
    if len(headers) != len(names):
        headers.clear()
        for name, value in zip(names, values):
            seen = dict.get(headers, name)
            joint = "; " if name == "cookie" else ", "
            dict.__setitem__(headers, name, value if seen is None else seen + joint + value)
    return headers


def _unquote(text):
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    first, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
    out = [first]
    for piece in rest:
        try:
            out.append(bytes.fromhex(piece[:2].decode("ascii")) + piece[2:])
        except ValueError:
            out.append(b"%" + piece)
    return b"".join(out).decode("utf-8", "replace")


class Query(dict):
    """A request's parameters: the first value of each; `getlist` has all of one, as where Flask serves."""

    __slots__ = ("all",)

    def __init__(self, text):
        self.all = {}
        for part in text.split("&"):
            if part:
                name, _, value = part.partition("=")
                name, value = _unquote(name), _unquote(value)
                self.setdefault(name, value)
                self.all.setdefault(name, []).append(value)

    def getlist(self, name):
        return list(self.all.get(name, ()))

    def to_dict(self, flat=True):
        return dict(self if flat else self.all)


class Event:
    """The request: body (bytes), headers, method, path and query_string as they came, query (decoded). What is not asked for
    is not made."""

    __slots__ = ("body", "method", "path", "query_string", "query", "_call", "_headers")

    def __init__(self, call, body):
        self._call, self._headers, self.body = call, None, body

    @property
    def headers(self):
        if self._headers is None:
            fields = self._call._told()
            self._headers = _headers(fields[7::2], fields[8::2])
        return self._headers

    @headers.setter
    def headers(self, headers):
        self._headers = headers

    def __getattr__(self, name):
        if name == "query":
            value = Query(self.query_string)
        elif name in ("method", "path", "query_string"):
            value = self._call._told()[("method", "path", "query_string").index(name) + 1]
        else:
            raise AttributeError("an event has no `%s`" % name)
        setattr(self, name, value)
        return value


class Context:
    """The call and the function that serves it. The second half are others' names: AWS Lambda's, and OpenFaaS's one."""

    __slots__ = ("_text", "_fields", "_ends")

    def __init__(self, text, ends):
        self._text, self._fields, self._ends = text, None, ends

    def _told(self):
        """The fields of the call's head, taken apart when the first is asked for."""
        if self._fields is None:
            self._fields = self._text.decode().split("\n")
        return self._fields

    call_id = aws_request_id = property(lambda self: self._told()[0])
    function = function_name = property(lambda self: self._told()[4])
    namespace = property(lambda self: self._told()[5])
    revision = function_version = property(lambda self: self._told()[6])

    def remaining_ms(self):
        return max(0, int((self._ends - monotonic()) * 1000))

    @property
    def deadline(self):
        """In seconds since 1970."""
        return time() + self._ends - monotonic()

    get_remaining_time_in_millis = remaining_ms

    @property
    def hostname(self):
        env = posix.environ
        return (env.get(b"HOSTNAME") or env.get(b"TAPER_INSTANCE") or b"localhost").decode("utf-8", "surrogateescape")


class Refused(Exception):
    """The user's code is not a function that can be served; the text says why and what to do."""


def locate(spec):
    """`module.function` or `module` → (its file or None, module, function or None). A file's name may contain dots."""

    def file_of(module):
        for path in (module + ".py", module.replace(".", "/") + ".py", module.replace(".", "/") + "/__init__.py"):
            try:
                posix.stat(path)
                return path
            except OSError:
                pass
        return None

    whole = file_of(spec)
    if whole:
        return whole, spec, None
    module, dot, function = spec.rpartition(".")
    file = file_of(module) if dot else None
    if not file:
        raise Refused("no file for the handler `%s` in %s: expected `file.function`" % (spec, posix.getcwd()))
    return file, module, function


def import_user(file, module, package=""):
    if file == module.replace(".", "/") + ".py" or file.endswith("/__init__.py"):
        name = package + module.replace("/", ".")
        __import__(name)
        return sys.modules[name]
    # A dot within the file's name: not a package's, so it is loaded by its path.
    return import_path(module.replace(".", "_").replace("/", "_"), file)


def import_path(name, file):
    from importlib.machinery import ModuleSpec, SourceFileLoader

    loader = SourceFileLoader(name, posix.getcwd() + "/" + file)
    user = type(sys)(name)
    user.__spec__, user.__loader__, user.__file__ = ModuleSpec(name, loader, origin=loader.path), loader, loader.path
    if file == "__init__.py":
        user.__path__ = user.__spec__.submodule_search_locations = [posix.getcwd()]
    sys.modules[name] = user
    loader.exec_module(user)
    return user


def as_package():
    """Makes the code the package `function`, as OpenFaaS's templates have it: `from .near import it` works there."""
    try:
        posix.stat("__init__.py")
        import_path("function", "__init__.py")
    except OSError:
        package = sys.modules["function"] = type(sys)("function")
        package.__path__ = [posix.getcwd()]
    return "function."


def choose(user, file, module, name):
    """The function to serve: the named one, else `handle`, else `lambda_handler`."""
    for wanted in [name] if name else ["handle", "lambda_handler"]:
        function = getattr(user, wanted, None)
        if callable(function):
            return wanted, function
    defined = [n for n, v in vars(user).items() if callable(v) and not n.startswith("_") and getattr(v, "__module__", None) == user.__name__]
    text = "%s has no function `%s`; it defines: %s" % (file, name or "handle", ", ".join(defined) or "nothing that can be called")
    if not name:
        text += "; name one of them `handle` (event, context), or say which with --handler %s.NAME" % module
    raise Refused(text)


def parameters(function):
    """How many positional parameters a function takes, and how many of them it needs. `inspect` is only for rare cases."""
    bound = 0
    while True:
        if hasattr(function, "__func__"):
            function, bound = function.__func__, 1
        if not hasattr(function, "__code__") and hasattr(type(function).__call__, "__code__"):
            function, bound = type(function).__call__, 1
        code = getattr(function, "__code__", None)
        if code is None:
            break
        if not code.co_flags & 4:
            takes = code.co_argcount - bound
            return takes, takes - len(function.__defaults__ or ())
        if not hasattr(function, "__wrapped__"):
            return 2, code.co_argcount - bound - len(function.__defaults__ or ())
        function, bound = function.__wrapped__, 0
    import inspect

    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = list(inspect.signature(function).parameters.values())
    if any(p.kind == p.VAR_POSITIONAL for p in found):
        return 2, 0
    found = [p for p in found if p.kind in positional]
    return len(found), len([p for p in found if p.default is p.empty])


def as_openfaas(takes, function):
    """The same in the manner of OpenFaaS's templates: the path is decoded, and the answer is one that Flask would take."""
    raw = posix.environ.get(b"RAW_BODY", b"").lower() in (b"true", b"1")

    def invoke(call, body):
        if takes == 1:
            value = function(body if raw else body.decode("utf-8", "surrogateescape"))
        else:
            event = Event(call, body)
            event.path = _unquote(event.path.replace("+", "%2B"))
            value = function(event, call)
        return flask_like(event_loop().run_until_complete(value) if hasattr(value, "__await__") else value)

    return invoke


def flask_like(value):
    """(body, status), (body, headers), (body, status, headers), and {body, …} without a status, as a whole reply."""
    if isinstance(value, tuple) and len(value) in (2, 3):
        body, *rest = value
        status = rest.pop(0) if len(rest) == 2 or not isinstance(rest[0], (dict, list, tuple)) else 200
        return {"statusCode": status, "headers": rest[0] if rest else None, "body": body}
    if isinstance(value, dict) and "statusCode" not in value and ("body" in value or value.keys() == {"headers"}):
        return {"statusCode": 200, "headers": value.get("headers"), "body": value.get("body")}
    return value


def adapt(file, name, function, openfaas=False):
    """The user's function as one that takes the call and its body."""
    takes, needs = parameters(function)
    if takes == 0 or needs > 2 or (name == "lambda_handler" and takes < 2):
        wanted = "(event, context)" if name == "lambda_handler" else "(event, context), or one that gets the body as text"
        raise Refused("`%s` in %s takes %d parameters; expected %s" % (name, file, needs if needs > 2 else takes, wanted))
    if name == "lambda_handler":
        import json

        def invoke(call, body):
            try:
                event = json.loads(body) if body else {}
            except ValueError as error:
                return {"statusCode": 400, "body": {"error": "invalid-body", "message": "the body is not JSON: %s" % error}}
            return function(event, call)

    elif takes == 1:

        def invoke(_, body):
            # Bytes that are not UTF-8 survive a way through text and back.
            return function(body.decode("utf-8", "surrogateescape"))

    else:

        def invoke(call, body):
            return function(Event(call, body), call)

    if openfaas and name != "lambda_handler":
        invoke = as_openfaas(takes, function)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is not None and code.co_flags & 0x280:
        event_loop()
    return invoke


def load(spec, convention):
    file, module, name = locate(spec)
    openfaas = convention == "openfaas"
    user = import_user(file, module, as_package() if openfaas else "")
    name, function = choose(user, file, module, name)
    return adapt(file, name, function, openfaas)


_loop = None


def event_loop():
    """One loop for a worker's whole life, made before the first call of a function that is `async`."""
    global _loop
    if _loop is None:
        import asyncio

        _loop = asyncio.new_event_loop()
        asyncio.set_event_loop(_loop)
    return _loop


def encode(value):
    """A body and its content type."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape"), TEXT
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), BYTES
    if value is None:
        return b"", None
    if isinstance(value, (dict, list, tuple, int, float)):
        return dumps(value).encode(), JSON
    raise TypeError(
        "a %s cannot be sent: return text, bytes, a value that is JSON, {statusCode, headers, body}, or a generator of these"
        % type(value).__name__
    )


def pulled(items):
    """An async generator's items, one turn of the event loop each."""
    steps, loop = items.__aiter__(), event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(steps.__anext__())
            except StopAsyncIteration:
                return
    finally:
        if hasattr(steps, "aclose"):
            loop.run_until_complete(steps.aclose())


def opened(value):
    """(status, headers, body) of what a handler returned."""
    if not isinstance(value, dict) or not ("statusCode" in value or ("status" in value and "body" in value)):
        return 200, [], value
    status = value["statusCode"] if "statusCode" in value else value["status"]
    if isinstance(status, str) and status.isdigit():
        status = int(status)
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError("statusCode must be a whole number from 200 to 599, not %r" % (status,))
    given, headers = value.get("headers") or {}, []
    for name, content in given.items() if isinstance(given, dict) else given:
        for one in content if isinstance(content, (list, tuple)) else [content]:
            headers.append((str(name), one if isinstance(one, str) else str(one)))
    body = value.get("body")
    if value.get("isBase64Encoded"):
        from binascii import a2b_base64

        body = a2b_base64(body)
    return status, headers, body


def text_of(headers, content_type):
    """The text of a reply's head."""
    fields, typed = [], not content_type
    for name, value in headers:
        fields += name, value
        typed = typed or name.lower() == "content-type"
    if not typed:
        fields += "content-type", content_type
    text = "\n".join(fields)
    if fields and text.count("\n") != len(fields) - 1:
        raise ValueError("a header with a line break: %r" % [field for field in fields if "\n" in field][0])
    text = text.encode()
    if len(text) > MAX_PAYLOAD // 2:
        raise ValueError("the reply's headers are over %d bytes" % (MAX_PAYLOAD // 2))
    return text


def opening(status, text, length):
    return OPENING.pack(16 + len(text), HEAD, status, length, len(text)) + text


def respond(wire, value):
    """Sends what a handler returned. Raises Gone, Cancelled, or what the user's generator or value raised."""
    kind = type(value)
    if kind is bytes:
        status, text, data = 200, SIMPLE[BYTES], value
    elif kind is str:
        status, text, data = 200, SIMPLE[TEXT], value.encode("utf-8", "surrogateescape")
    else:
        if hasattr(value, "__await__"):
            value = event_loop().run_until_complete(value)
        status, headers, body = opened(value)
        if hasattr(body, "__aiter__"):
            body = pulled(body)
        if hasattr(body, "__next__"):
            return stream(wire, status, headers, body)
        data, content_type = encode(body)
        text = text_of(headers, content_type) if headers else SIMPLE[content_type]
    size, cut = len(data), len(text)
    if size + cut > MAX_PAYLOAD - 16:
        return wire.send(opening(status, text, size) + pack_data(data) + END_FRAME)
    try:
        wire.sock.sendall(OPENING.pack(16 + cut + size, WHOLE, status, size, cut) + text + data)
    except OSError as error:
        raise Gone(str(error)) from None


def is_event_stream(headers):
    return any(name.lower() == "content-type" and one.startswith("text/event-stream") for name, one in headers)


def stream(wire, status, headers, items):
    begun = False
    try:
        for item in items:
            if isinstance(item, (str, bytes, bytearray, memoryview)):
                data, content_type = encode(item)
            else:
                data, content_type = dumps(item).encode() + b"\n", LINES
            first = b"" if begun else opening(status, text_of(headers, content_type), UNKNOWN)
            if not begun and is_event_stream(headers):
                # The timeout bounds how such a reply begins; from then on the platform counts silence instead.
                _signal.setitimer(_signal.ITIMER_REAL, 0)
            begun = True
            wire.send(first + pack_data(data))
            if wire.left():
                raise Cancelled
        wire.send((b"" if begun else opening(status, text_of(headers, TEXT), UNKNOWN)) + END_FRAME)
    finally:
        if hasattr(items, "close"):
            items.close()


def told(error):
    """An exception in one line, and its traceback without our own frames."""
    import traceback

    ours, trace = told.__code__.co_filename, error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == ours:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    said = traceback.format_exception_only(type(error), error)
    # A SyntaxError shows its place first; what others say may have several lines, of which the first counts.
    line = said[-1 if isinstance(error, SyntaxError) else 0].strip().partition("\n")[0]
    return line, text


class Labelled(_io._RawIOBase):
    """A stream of the log. Each line that begins while a call runs begins with the call's id."""

    def __init__(self, fd):
        self.fd, self.within = fd, False

    def fileno(self):
        return self.fd

    def writable(self):
        return True

    def isatty(self):
        return posix.isatty(self.fd)

    def write(self, data):
        text = data = bytes(data)
        if running is not None and data:
            label = b"[%s] " % running._text.partition(b"\n")[0]
            text = data[:-1].replace(b"\n", b"\n" + label) + data[-1:]
            if not self.within:
                text = label + text
        at = 0
        while at < len(text):
            at += posix.write(self.fd, text[at:] if at else text)
        if data:
            self.within = data[-1] != 10
        return len(data)


# The call that runs.
running = None


def log(text):
    try:
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()
    except Exception:
        pass


def fault(what, message, detail=None):
    # What does not fit into a frame would be lost with its connection.
    text = "%s\n\n%s\n%s" % (what, message[:4096].replace("\n", " "), detail[-65536:] if detail else "")
    return pack(FAULT, text.encode("utf-8", "backslashreplace"))


class Worker:
    """One process that serves one connection at a time, one call at a time."""

    def __init__(self, listener, invoke, word):
        self.listener, self.invoke, self.word = listener, invoke, word
        self.stopping, self.busy, self.wire = False, False, None

    def run(self):
        global running
        _signal.signal(_signal.SIGTERM, self.stop)
        while not self.stopping:
            try:
                fd, _ = self.listener._accept()
            except OSError:
                return
            self.wire = Wire(_socket.socket(fileno=fd))
            try:
                while not self.stopping and self.serve(self.wire):
                    pass
            except Gone:
                pass
            finally:
                _signal.setitimer(_signal.ITIMER_REAL, 0)
                running, self.busy = None, False
                self.wire.sock.close()

    def stop(self, *_):
        """SIGTERM: finish the call under way. An idle wait ends by shutting down what it waits for, so that a call that
        has arrived already is still read."""
        self.stopping = True
        if not self.busy:
            for sock in (self.listener, self.wire and self.wire.sock):
                try:
                    sock and sock.shutdown(_socket.SHUT_RD)
                except OSError:
                    pass

    def serve(self, wire):
        """One call; false at the end of the connection."""
        head = wire.head()
        if head is None:
            return False
        limit, text, body, whole = head
        if text is None:  # a CANCEL that crossed the end of the call that it was meant for
            return True
        self.busy = True
        if self.word is not None:
            posix.write(self.word, b"S")
            posix.close(self.word)
            self.word = None
        # Python code cannot be interrupted from outside with its state intact, so a call that overruns takes its worker
        # with it: by the kernel, which needs nobody's cooperation.
        limit /= 1000
        _signal.setitimer(_signal.ITIMER_REAL, limit + DEADLINE_GRACE)
        call = Context(text, monotonic() + limit)
        if not whole:
            body = wire.body(body)
        if body is None:
            wire.send(fault("cancelled", "the caller left before its request was whole"))
        else:
            self.answer(wire, call, body)
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        self.busy = False
        return True

    def answer(self, wire, call, body):
        global running
        running = call
        try:
            respond(wire, self.invoke(call, body))
        except Gone:
            raise
        except Cancelled:
            wire.send(fault("cancelled", "the caller left while the reply was sent"))
        except BaseException as error:  # also SystemExit: it is the call that ends, not the worker
            line, trace = told(error)
            log(trace)
            wire.send(fault("exception", line, trace))
        try:
            sys.stdout.flush()
        except Exception:
            pass
        running = None


def prepare():
    """Makes the process what user code expects, and returns the runtime's own settings."""
    settings = {}
    for name in ("HANDLER", "CONVENTION", "CONCURRENCY", "LISTEN_FD", "CONTROL_FD", "DEPS"):
        key = b"TAPER_" + name.encode()
        settings[name] = posix.environ.pop(key, b"").decode("utf-8", "surrogateescape")
        posix.unsetenv(key)
        if "os" in sys.modules:
            sys.modules["os"].environ.pop(key.decode(), None)
    code, deps = posix.getcwd(), settings["DEPS"] or "/deps"
    sys.path[:1] = [code]  # instead of the shim's own folder
    sys.argv = [code]
    try:
        packages = posix.listdir(deps)
        sys.path.insert(1, deps)
        if any(name.endswith(".pth") for name in packages):
            import site

            site.addsitedir(deps)
    except OSError:
        pass
    if sys.flags.no_site:
        # `-S` saves a third of the bare start; what of `site` functions rely on is made up for here.
        builtins.exit = builtins.quit = sys.exit
        version = "python%d.%d" % sys.version_info[:2]
        for path in ("/lib/%s/site-packages" % version, "/local/lib/%s/dist-packages" % version, "/lib/python3/dist-packages"):
            try:
                posix.stat(sys.prefix + path)
                sys.path.append(sys.prefix + path)
            except OSError:
                pass
    for name, fd in (("stdout", 1), ("stderr", 2)):
        out = getattr(sys, name)
        if out is not None:
            out = _io.TextIOWrapper(Labelled(fd), out.encoding, out.errors, line_buffering=True)
            setattr(sys, name, out)
    return settings


def describe(error, spec):
    """The word of a worker that could not load."""
    if isinstance(error, Refused):
        return {"what": "missing", "message": str(error)}
    return {"what": "exception", "message": told(error)[1]}


class Master:
    """Forks the workers and replaces the dead. It never loads user code: a worker is always forked from the same clean
    state, before any thread, connection or secret of the user's exists, and shares the interpreter's memory."""

    def __init__(self, settings, words=None, control=True):
        self.spec, self.convention = settings["HANDLER"], settings["CONVENTION"]
        self.count = max(1, int(settings["CONCURRENCY"] or 1))
        self.listener = _socket.socket(fileno=int(settings["LISTEN_FD"] or LISTEN_FD))
        self.listener.setblocking(True)
        self.control = int(settings["CONTROL_FD"] or CONTROL_FD)
        for fd in (self.listener.fileno(), self.control)[: 1 + control]:
            posix.set_inheritable(fd, False)
        self.words, self.deaths, self.stopping = words or {}, [], False
        # Whether somebody else has said that the function is ready.
        self.herald = False

    def run(self):
        """As master, until the workers are stopped; as one of the workers, until that one is."""
        _signal.signal(_signal.SIGTERM, self.stop)
        gc.freeze()
        for _ in range(len(self.words), self.count):
            worker = self.fork()
            if worker:
                return worker.run()
        for pid, word in self.words.items():
            first = posix.read(word, 1)
            if first != b"R":
                self.fail(pid, word, first)
            posix.set_blocking(word, False)
        if not self.herald:
            self.say({"ready": True})
        posix.close(self.control)
        self.control = None
        while True:
            try:
                pid, status = posix.waitpid(-1, 0)
            except ChildProcessError:
                return
            word = self.words.pop(pid, None)
            if word is None or self.stopping:
                continue
            self.mourn(pid, word, status)
            worker = self.fork()
            if worker:
                return worker.run()

    def stop(self, *_):
        self.stopping = True

    def fork(self):
        """A new worker: in that worker, itself; in the master, nothing."""
        ours, theirs = posix.pipe()
        pid = posix.fork()
        if pid:
            posix.close(theirs)
            self.words[pid] = ours
            return None
        for fd in [ours, self.control, *self.words.values()]:
            if fd is not None:
                posix.close(fd)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        return self.worker(theirs)

    def worker(self, word):
        """Loads the function, in the process that is to serve it."""
        try:
            invoke = load(self.spec, self.convention)
        except BaseException as error:
            posix.write(word, dumps(describe(error, self.spec)).encode()[:60000])
            raise SystemExit(1) from None
        posix.write(word, b"R")
        return Worker(self.listener, invoke, word)

    def fail(self, pid, word, said):
        """The function cannot start: says why, and ends."""
        more = said
        while more:
            more = posix.read(word, 65536)
            said += more
        try:
            failed = loads(said.decode())
        except Exception:
            failed = {"what": "exit", "message": "the function %s while it was loaded" % ended(posix.waitpid(pid, 0)[1])}
        self.say({"failed": failed})
        raise SystemExit(1)

    def say(self, word):
        posix.write(self.control, dumps(word).encode() + b"\n")

    def mourn(self, pid, word, status):
        """Says why a worker ended; waits, or gives up, when they end without having done anything."""
        try:
            said = posix.read(word, 65536)
        except OSError:
            said = b""
        posix.close(word)
        if posix.WIFSIGNALED(status) and posix.WTERMSIG(status) == _signal.SIGALRM:
            log("worker %d was killed: its call ran past the deadline" % pid)
        else:
            log("worker %d %s" % (pid, ended(status)))
        if said.endswith(b"S"):
            return
        now = monotonic()
        self.deaths = [at for at in self.deaths if at > now - DEATHS_WITHIN] + [now]
        if len(self.deaths) >= MAX_DEATHS:
            log("%d workers ended within %d s without taking a call; giving up" % (MAX_DEATHS, DEATHS_WITHIN))
            raise SystemExit(1)
        sleep(min(1.0, 0.05 * 2 ** len(self.deaths)))


def ended(status):
    if posix.WIFSIGNALED(status):
        return "was killed by signal %d" % posix.WTERMSIG(status)
    return "exited with status %d" % posix.WEXITSTATUS(status)
