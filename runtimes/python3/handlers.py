# Second part of Taper's Python runtime, in one file with the others where it runs: finds and loads the user's function, calls
# it as its convention has it, and sends what it returned. Never here: how frames are read, which process a call runs in.

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
        return flask_like(awaited(value) if hasattr(value, "__await__") else value)

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


def awaited(value):
    """What comes of something that is to be awaited. The tasks that it makes know whose they are, for as long as they live."""
    token = CALL.set(running)
    try:
        return event_loop().run_until_complete(value)
    finally:
        CALL.reset(token)


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
    steps = items.__aiter__()
    try:
        while True:
            try:
                yield awaited(steps.__anext__())
            except StopAsyncIteration:
                return
    finally:
        if hasattr(steps, "aclose"):
            awaited(steps.aclose())


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
            value = awaited(value)
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
