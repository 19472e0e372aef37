# Third part of Taper's Python runtime, in one file with the others where it runs: the processes. The workers that serve calls,
# with their log, and the master that forks and replaces them. Never here: what a handler is given or may return.

def log_stream(fd):
    """A stream of the log, for bytes.

    A line that a call writes begins with a mark and the call's id. Every write to the pipe ends a line and is no longer than a
    pipe takes at once, so that nothing of another process can get into it. A line that is to go on has a tab after the id; the
    platform puts it together. What does not end a line yet is kept: until it does, or is flushed, or its call ends, or another
    call writes.

    All of it in one function: this is what a `print` costs, and variables are found faster than attributes."""
    # The call that wrote last, its label, and what of its line is kept here; and the calls of whose lines some was sent.
    last, label, kept, begun = None, b"", [], set()

    def write(data):
        global unended
        if type(data) is not bytes:
            data = bytes(data)
        call = writer(running)
        if call is not last:
            turn_to(call)
        if call is None:
            put(data)
        elif data[-1:] == b"\n":
            send(data)
        elif data:
            end = data.rfind(b"\n") + 1
            if end:
                send(data[:end])
            kept.append(data[end:])
            unended = True
            if len(data) > PIPE or len(kept) > 99:
                flush()
        return len(data)

    def turn_to(call):
        nonlocal last, label
        flush()
        last = call
        if call is not None:
            label = b"\x1e[%b] " % call._text.partition(b"\n")[0]

    def flush():
        if kept:
            send(b"")
            begun.add(last)

    def end(call):
        """Ends the line that a call has begun. What it has set going may begin another."""
        if call is not last:
            turn_to(call)
        if kept or call in begun:
            send(b"\n")
        begun.clear()

    def forget():
        """Leaves what is kept to the process that this one is a fork of."""
        nonlocal last
        kept.clear()
        last = None

    def send(data):
        """Writes what was kept and this, which ends a line; or nothing, and then it is a beginning."""
        while kept:  # one by one: other threads add to it
            data = kept.pop() + data
        whole, text = data[-1:] == b"\n", label + data
        if whole:
            if begun:
                begun.discard(last)
            if text.find(b"\n") + 1 < len(text):
                text = text[:-1].replace(b"\n", b"\n" + label) + b"\n"
            if len(text) <= PIPE:
                return put(text)
        gathered, size, goes_on = b"", PIPE - len(label) - 1, label[:-1] + b"\t"
        lines = data.split(b"\n")
        for line in lines[:-1] if whole else lines:
            for at in range(0, len(line), size) or (0,):
                piece = (label if whole and at + size >= len(line) else goes_on) + line[at : at + size] + b"\n"
                if len(gathered) + len(piece) > PIPE:
                    put(gathered)
                    gathered = b""
                gathered += piece
        put(gathered)

    def put(data):
        at = posix.write(fd, data)
        while at < len(data):
            at += posix.write(fd, data[at:])

    class Stream(_io._RawIOBase):
        closed = False

        def fileno(self):
            return fd

        def writable(self):
            return True

        def isatty(self):
            return posix.isatty(fd)

    for function in (write, flush, end, forget):
        setattr(Stream, function.__name__, staticmethod(function))
    return Stream()


# What a pipe takes in one piece, whoever else writes to it (PIPE_BUF).
PIPE = 4096
# The call that runs; and, in whatever takes its context along, the call that has set it going, or nothing where that was the
# start: tasks take it along, threads do not.
running, CALL = None, ContextVar("call")
writer = CALL.get
# The streams of the log; and whether a call has begun a line there.
streams, unended = (), False


def in_fork():
    """A process that the function forks may outlive the call, and does not hear of its end: it writes for none."""
    global running, writer
    running, writer = None, {}.get
    for stream in streams:
        stream.forget()


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
        posix.register_at_fork(after_in_child=in_fork)
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
        global running, unended
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
        finally:
            try:
                sys.stdout.flush()
                if unended:
                    unended = False
                    for stream in streams:
                        stream.end(call)
            except Exception:
                pass
            running = None


def prepare():
    """Makes the process what user code expects, and returns the runtime's own settings."""
    global streams
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
            stream = log_stream(fd)
            streams += (stream,)
            # Nothing waits in standard error's own text: of the two only the other is flushed after every call.
            how = {"line_buffering": True, "write_through": name == "stderr"}
            setattr(sys, name, _io.TextIOWrapper(stream, out.encoding, out.errors, **how))
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
        token = CALL.set(None)
        try:
            invoke = load(self.spec, self.convention)
        except BaseException as error:
            posix.write(word, dumps(describe(error, self.spec)).encode()[:60000])
            raise SystemExit(1) from None
        CALL.reset(token)
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
