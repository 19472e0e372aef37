# Last part of Taper's Python runtime, in one file with the others where it runs: how a process is started ahead of a
# function, waits, and becomes one; and where it all begins. Never here: handlers, the call protocol.

# What a runtime that is started ahead loads: what many functions import. Forks of a zygote share it, so it costs each of them
# next to nothing.
COMMON = (
    "abc", "asyncio", "base64", "collections", "contextlib", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal",
    "email.message", "enum", "functools", "gzip", "hashlib", "hmac", "html", "http.client", "inspect", "io", "itertools", "json",
    "logging", "math", "operator", "os", "pathlib", "random", "re", "secrets", "shutil", "socket", "ssl", "string", "struct",
    "subprocess", "tempfile", "textwrap", "threading", "time", "traceback", "types", "typing", "urllib.parse", "urllib.request",
    "uuid", "warnings", "zlib",
)

# A fork of a zygote puts what it is sent at numbers from here on, in the order of sending; its own errors go one below.
HIGH = 64


def preload():
    """Loads what most functions load, as far as there is any, and gives the names by which what is loaded would be imported."""
    bare = set(sys.modules)
    for name in COMMON:
        try:
            __import__(name)
        except ImportError:
            pass
    return {name.partition(".")[0] for name in set(sys.modules) - bare}


def wait(fd):
    """Started ahead of a function: loads what most functions load, and waits for a claim."""
    return stand_by(fd, preload())


def zygote(fd):
    """Loads once what most functions load, and forks whenever it is told to. Gives, in each fork, the names of what is loaded:
    that fork is in its sandbox then, and confined. The zygote itself ends here, when nobody can tell it anything any more."""
    loaded = preload()
    rehearse()
    gc.collect()
    gc.freeze()
    orders = _socket.socket(fileno=fd)
    while True:
        told, beside, _, _ = orders.recvmsg(1 << 16, _socket.CMSG_SPACE(4 * 64))
        if not told:
            posix._exit(0)
        fds = [fd for _, _, data in beside for fd in memoryview(data).cast("i")]
        pid = posix.fork()
        if not pid:
            orders.detach()
            join(loads(told.decode()), fds)
            return loaded
        for fd in fds:
            posix.close(fd)
        posix.waitpid(pid, 0)


def join(order, fds):
    """Goes into a sandbox, with the descriptors that were sent, and gives up what its first process gives up."""
    for at, fd in enumerate([2] + fds, HIGH - 1):
        posix.dup2(fd, at, False)
    posix.closerange(3, HIGH - 1)
    try:
        perform(order["enter"])
        # What enters process ids are the children; and only the orphans of those in there are children of its first process.
        if posix.fork():
            posix._exit(0)
        for group in order["groups"]:
            posix.write(group, b"0")
        _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGCHLD])
        if posix.fork():
            posix._exit(0)
        perform(order["orphaned"])
        if posix.getppid() != 1:
            _signal.sigwait([_signal.SIGCHLD])
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGCHLD])
        posix.setsid()
        posix.dup2(posix.open("/dev/null", posix.O_RDWR), 0)
        for here, there in order["places"]:
            posix.dup2(here, there)
        perform(order["shut"])
    except BaseException as error:
        if getattr(error, "errno", 0) not in (3, 12):  # ESRCH, and in the namespace of its processes ENOMEM: it has ended
            posix.write(HIGH - 1, ("taper zygote: a fork: %s\n" % error).encode())
        posix._exit(1)
    posix.closerange(HIGH - 1, HIGH + len(fds))


def perform(calls):
    """Makes system calls by their numbers. What is a list of bytes is their address."""
    import ctypes

    syscall, kept = ctypes.CDLL(None, use_errno=True).syscall, []

    def memory(data):
        kept.append(ctypes.create_string_buffer(bytes(data), len(data)))
        return ctypes.addressof(kept[-1])

    for number, arguments in calls:
        words = []
        for one in arguments:
            if isinstance(one, dict):  # struct sock_fprog: how many instructions, and where
                code = one["filter"]
                one = list((len(code) // 8).to_bytes(2, sys.byteorder) + bytes(6) + memory(code).to_bytes(8, sys.byteorder))
            words.append(ctypes.c_ulong(memory(one) if isinstance(one, list) else one))
        if syscall(ctypes.c_long(number), *words) < 0:
            raise OSError(ctypes.get_errno(), "system call %d: %s" % (number, posix.strerror(ctypes.get_errno())))


def stand_by(fd, loaded):
    """Forks the first worker, waits until that is told what to be, and becomes it as well. Gives the master, or the worker.

    The worker hears it first and passes it on. Where it is the only one it says itself that it is ready, and the master sleeps
    until the first call has its reply: each process that wakes up before takes the processor from the one that is waited for."""
    gc.collect()
    gc.freeze()
    (ours, word), (hears, tells), (sleeps, wakes) = posix.pipe(), posix.pipe(), posix.pipe()
    pid = posix.fork()
    if not pid:
        for other in (ours, hears, sleeps):
            posix.close(other)
        posix.set_inheritable(CONTROL_FD, False)
        try:
            rehearse()
        except Exception:  # without it the first call is slower
            pass
        posix.write(word, b"W")
        return become_worker(whole(fd), loaded, word, tells, wakes)
    for other in (word, tells, wakes):
        posix.close(other)
    stopped = []
    _signal.signal(_signal.SIGTERM, lambda *_: stopped.append(True))
    posix.read(ours, 1)
    try:
        posix.write(CONTROL_FD, dumps({"here": posix.getpid()}).encode() + b"\n")
    except BrokenPipeError:  # the claim was there already, and the worker is ready
        pass
    whole(sleeps)
    told, words = whole(hears), {pid: ours}
    if told:
        posix.close(fd)
    else:  # it died, or nobody wants it
        words.clear()
        posix.close(ours)
        told = whole(fd)
    declined = become(told, loaded)
    if declined:
        posix.write(CONTROL_FD, dumps({"declined": declined}).encode() + b"\n")
        posix._exit(0)
    master = Master(prepare(), words)
    _signal.signal(_signal.SIGTERM, master.stop)
    master.stopping, master.herald = bool(stopped), bool(words) and master.count == 1
    return master


def become_worker(told, loaded, word, tells, wakes):
    """Becomes the first worker of what it is told, and passes that on. It must be there before the first call, which may be
    the end of this process; but the master need not wake up for it before the reply."""
    declined = become(told, loaded)  # the master says so
    master = None if declined else Master(prepare(), control=False)
    posix.set_blocking(tells, False)
    try:
        sent = posix.write(tells, told)
    except BlockingIOError:
        sent = 0
    asleep = sent == len(told) and not declined and master.count == 1
    if not asleep:
        posix.close(wakes)
        posix.set_blocking(tells, True)
    while sent < len(told):
        sent += posix.write(tells, told[sent:])
    posix.close(tells)
    if declined:
        posix._exit(0)
    worker = master.worker(word)
    if master.count == 1:
        posix.write(CONTROL_FD, dumps({"ready": True}).encode() + b"\n")
    if asleep:

        def serve(wire):
            del worker.serve
            try:
                return worker.serve(wire)
            finally:
                posix.close(wakes)

        worker.serve = serve
    posix.close(CONTROL_FD)
    return worker


def rehearse():
    """Goes through everything once that a first call goes through. After a fork all memory that is written to is copied first,
    and that is most of what a start takes; nothing of this remains but the copies."""
    folder = "/tmp/taper-%d" % posix.getpid()
    posix.mkdir(folder, 0o700)
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, folder)
    try:
        file = posix.open(folder + "/taper_first.py", posix.O_WRONLY | posix.O_CREAT, 0o600)
        posix.write(file, b"def handle(event, context):\n    return event.body\n")
        posix.close(file)
        handle = adapt("taper_first.py", "handle", __import__("taper_first").handle)
        ours, theirs = _socket.socketpair()
        text = b"\nPOST\n/\n\n\n\n"
        ours.send(OPENING.pack(18 + len(text), WHOLE, 60000, 2, len(text)) + text + b"{}")
        Worker(None, handle, None).serve(Wire(theirs))
        ours.recv(65536)
        ours.close()
        theirs.close()
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        sys.dont_write_bytecode = kept
        sys.path.remove(folder)
        sys.path_importer_cache.pop(folder, None)
        sys.modules.pop("taper_first", None)
        posix.unlink(folder + "/taper_first.py")
        posix.rmdir(folder)


def whole(fd):
    """All that comes through a pipe."""
    pieces = []
    while not pieces or pieces[-1]:
        pieces.append(posix.read(fd, 65536))
    posix.close(fd)
    return b"".join(pieces)


def become(told, loaded):
    """Takes on folder and environment. Says why not when it has loaded what the function has modules of its own for: what
    that calls `json` must not be another one because it was there before."""
    if not told:  # nobody wants it any more
        posix._exit(0)
    told = loads(told.decode("utf-8", "surrogatepass"))
    posix.chdir(told["cwd"])
    environment(told["env"])
    hidden = loaded & files(told["cwd"], told["env"].get("TAPER_DEPS") or "/deps")
    return "the function has modules of its own by these names: %s" % ", ".join(sorted(hidden)) if hidden else None


def files(*folders):
    """The names by which something in these folders can be imported."""
    names = set()
    for folder in folders:
        try:
            names.update(name.partition(".")[0] for name in posix.listdir(folder))
        except OSError:
            pass
    return names


def environment(wanted):
    """Replaces the whole environment: the interpreter's own view, that of `os`, and the C library's."""
    for name in list(posix.environ):
        posix.unsetenv(name)
    posix.environ.clear()
    for name, value in wanted.items():
        name, value = name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape")
        posix.putenv(name, value)
        posix.environ[name] = value
    if "TZ" in wanted:
        from time import tzset

        tzset()


if __name__ == "__main__":
    claim, orders = posix.environ.get(b"TAPER_CLAIM_FD"), posix.environ.get(b"TAPER_ORDERS_FD")
    if orders:
        starts = stand_by(int(claim), zygote(int(orders)))
    else:
        starts = wait(int(claim)) if claim else Master(prepare())
    starts.run()
