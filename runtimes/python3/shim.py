"""Taper's Python runtime: loads one function of the user's and serves the call protocol on an inherited socket.

Four parts, one file where it runs: this one (the imports, the call protocol, what a handler is given), handlers.py,
workers.py and ahead.py. Never in any: HTTP, deadlines' policy, anything of the sandbox.
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
from _contextvars import ContextVar
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
            byte = bytes.fromhex(piece[:2].decode("ascii"))
        except ValueError:
            byte = b""
        # No text, and white space, are hexadecimal there.
        out.append(byte + piece[2:] if byte else b"%" + piece)
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


PARAMETER = "x-taper-param-"


def _params(headers):
    """The parameters that the route has found in the path. A plus sign there is one."""
    found = ((name[len(PARAMETER) :], value) for name, value in headers.items() if name.startswith(PARAMETER))
    return {name: _unquote(value.replace("+", "%2B")) for name, value in found}


class Event:
    """The request: body (bytes), headers, method, path and query_string as they came, query and the route's params (decoded).
    What is not asked for is not made."""

    __slots__ = ("body", "method", "path", "query_string", "query", "params", "_call", "_headers")

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
        elif name == "params":
            value = _params(self.headers)
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
