//! Mode `classic`: a process per call. The watchdog serves the call protocol itself: body to standard input, standard
//! output to the reply.
//!
//! Never here: what HTTP makes of a failure. A call's processes end with the call: its whole process group is killed.

mod environment;

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream, unix::pipe},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Error,
    control::{Claim, Failed},
    log::{Lines, Log, Tail},
    reap::{Children, Exit, kill_group},
    spawn::Program,
    wire::{Call, Fault, FaultKind, FrameReader, FrameWriter, Kind, Reply, split},
};

/// How long output that a left-over process holds open is waited for after the call's own process has ended.
const LINGER: Duration = Duration::from_millis(100);

/// How often a call whose process does not read its input looks whether its caller is still there.
const LOOK: Duration = Duration::from_millis(250);

/// How much is read from a pipe at once: what a pipe holds.
const READ: usize = 64 * 1024;

/// What serves the calls of a classic function.
#[derive(Debug)]
pub(crate) struct Classic {
    program: Program,
    content_type: Option<String>,
    hold: usize,
    early_hold: usize,
    combine: bool,
    log: Log,
    children: Children,
}

impl Classic {
    /// Finds the command; a function whose command is missing is not ready.
    pub(crate) fn prepare(claim: &Claim, log: Log, children: Children) -> Result<Self, Failed> {
        Ok(Self {
            program: Program::find(&claim.command, &claim.env)?,
            content_type: claim.env.get("content_type").filter(|t| !t.is_empty()).cloned(),
            hold: usize::try_from(claim.max_reply_hold).unwrap_or(usize::MAX),
            early_hold: usize::try_from(claim.max_early_hold).unwrap_or(usize::MAX),
            combine: claim.combine_output,
            log,
            children,
        })
    }

    /// Serves connections until told to stop; then ends when the calls under way have ended.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let for_each = stop.clone();
        loop {
            tokio::select! {
                // In this order: what has arrived before the stop is still taken.
                biased;
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (classic, stop) = (Arc::clone(&self), for_each.clone());
                        // A broken connection has told its platform by being closed.
                        connections.spawn_local(async move { classic.converse(stream, stop).await.is_ok() });
                    }
                    // Out of descriptors: the connection stays in the backlog until a call has ended.
                    Err(_) => sleep(Duration::from_millis(10)).await,
                },
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn converse(&self, stream: UnixStream, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
        let (mut reader, mut writer) = split(stream);
        loop {
            let frame = tokio::select! {
                biased;
                frame = reader.next() => frame?,
                _ = stop.wait_for(|stop| *stop) => None,
            };
            match frame {
                Some(frame) if frame.kind == Kind::Head => {
                    let call = Call::decode(&frame.payload)?;
                    self.pass(&call, &mut reader, &mut writer).await?;
                }
                // It crossed the end of the call that it was meant for.
                Some(frame) if frame.kind == Kind::Cancel => {}
                Some(frame) => return Err(Error::call(format!("{:?} between calls", frame.kind))),
                None => return Ok(()),
            }
        }
    }

    /// One call, from its head to the rest of its connection.
    async fn pass(&self, call: &Call<'_>, reader: &mut FrameReader, writer: &mut FrameWriter) -> Result<(), Error> {
        let began = Instant::now();
        self.log.line(&call.id, "Forking fprocess.").await;
        let mut request = Request::arrived(reader)?;
        let mut answer = Answer {
            writer,
            hold: self.hold,
            early_hold: self.early_hold,
            whole: Rc::clone(&request.ended),
            held: BytesMut::new(),
            begun: false,
            bytes: 0,
        };
        let (over, tail) = match self.start(call, &mut request) {
            Ok(running) => self.run(call, began, running, &mut request, &mut answer).await,
            Err(error) => (Over::Unstarted(error), Tail::default()),
        };
        match over {
            Over::Ended(Exit::Status(0)) => answer.finish(self.content_type.as_deref()),
            Over::Closed(error) => return Err(error),
            Over::Ended(exit) => answer.fail(FaultKind::Exit, exit.to_string(), &tail, exit.status())?,
            Over::Unstarted(error) => answer.fail(FaultKind::Exit, error.to_string(), &tail, None)?,
            Over::Left => {
                answer.fail(FaultKind::Cancelled, "the caller left; the process was killed".into(), &tail, None)?;
            }
            Over::Late => {
                let message = format!("the deadline passed after {} ms; the process was killed", call.deadline_ms);
                answer.fail(FaultKind::Cancelled, message, &tail, None)?;
            }
        }
        answer.writer.flush().await?;
        let line = format!("Wrote {} Bytes - Duration: {:.6}s", answer.bytes, began.elapsed().as_secs_f64());
        self.log.line(&call.id, &line).await;
        request.drain().await
    }

    fn start(&self, call: &Call<'_>, request: &mut Request<'_>) -> io::Result<Running> {
        let variables = environment::of(call);
        let (stdout, out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, err) =
            if self.combine { (None, None) } else { pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (Some(r), Some(w)))? };
        let stdin = request.stdin()?;
        let mut places = Vec::with_capacity(3);
        // Without a body the process gets the watchdog's own standard input, which is /dev/null.
        places.extend(stdin.as_ref().map(|fd| (fd.as_fd(), 0)));
        places.push((out.as_fd(), 1));
        places.push((err.as_ref().unwrap_or(&out).as_fd(), 2));
        let pid = self.program.spawn(&variables, &places)?;
        Ok(Running {
            pid,
            exit: self.children.expect(pid),
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: stderr.map(pipe::Receiver::from_owned_fd).transpose()?,
        })
    }

    /// Carries the call until its process ended, its caller left or its time is up. Nothing of its group is left then.
    async fn run(
        &self,
        call: &Call<'_>,
        began: Instant,
        running: Running,
        request: &mut Request<'_>,
        answer: &mut Answer<'_>,
    ) -> (Over, Tail) {
        let Running { pid, exit, mut stdout, stderr } = running;
        let (mut tail, mut out_tail) = (Tail::default(), Tail::default());
        let (tell, told) = watch::channel(None);
        let carry = async {
            let ended = async {
                let exit = exit.await.unwrap_or(Exit::Signal(libc::SIGKILL));
                tell.send_replace(Some(exit));
                exit
            };
            let output = pump(&mut stdout, pid, told.clone(), async |bytes: &mut BytesMut| {
                if self.combine {
                    out_tail.push(bytes);
                }
                answer.take(bytes, self.content_type.as_deref()).await
            });
            let errors = async {
                let Some(mut stderr) = stderr else { return Ok(()) };
                let mut lines = Lines::of(&call.id);
                pump(&mut stderr, pid, told.clone(), async |bytes: &mut BytesMut| {
                    tail.push(bytes);
                    self.log.write(&lines.push(&bytes.split())).await;
                    Ok(())
                })
                .await?;
                self.log.write(&lines.finish()).await;
                Ok(())
            };
            let (exit, output, errors) = tokio::join!(ended, output, errors);
            match output.and(errors) {
                Ok(()) => Over::Ended(exit),
                Err(error) => Over::Closed(error),
            }
        };
        let deadline = began + Duration::from_millis(call.deadline_ms);
        let over = tokio::select! {
            over = carry => over,
            over = request.feed() => over,
            () = sleep_until(deadline) => Over::Late,
        };
        kill_group(pid, Signal::KILL);
        if self.combine { (over, out_tail) } else { (over, tail) }
    }
}

/// A call's process and what it says.
struct Running {
    pid: Pid,
    exit: oneshot::Receiver<Exit>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
}

/// How a call came to its end.
enum Over {
    Ended(Exit),
    Unstarted(io::Error),
    Left,
    Late,
    /// The connection is gone or broken, and with it the call.
    Closed(Error),
}

/// The request's body on its way into the process.
struct Request<'a> {
    reader: &'a mut FrameReader,
    /// Bytes that have arrived and that the process has not got yet.
    ahead: BytesMut,
    /// END or CANCEL has been read.
    ended: Rc<Cell<bool>>,
    cancelled: bool,
    stdin: Option<pipe::Sender>,
}

impl<'a> Request<'a> {
    /// With what came together with the call's head; a small body is then whole.
    fn arrived(reader: &'a mut FrameReader) -> Result<Self, Error> {
        let mut request = Self { reader, ahead: BytesMut::new(), ended: Rc::default(), cancelled: false, stdin: None };
        while !request.ended.get() && request.ahead.len() < READ {
            match request.reader.take()? {
                Some(frame) => request.admit(frame.kind, &frame.payload)?,
                None => break,
            }
        }
        Ok(request)
    }

    fn admit(&mut self, kind: Kind, payload: &Bytes) -> Result<(), Error> {
        match kind {
            Kind::Data if !self.ended.get() => self.ahead.extend_from_slice(payload),
            Kind::End if !self.ended.get() => self.ended.set(true),
            Kind::Cancel => {
                self.ended.set(true);
                self.cancelled = true;
            }
            kind => return Err(Error::call(format!("{kind:?} within a call"))),
        }
        Ok(())
    }

    /// The process's end of a pipe, filled as far as it goes; nothing for an empty body.
    fn stdin(&mut self) -> io::Result<Option<OwnedFd>> {
        if self.ended.get() && self.ahead.is_empty() {
            return Ok(None);
        }
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        while !self.ahead.is_empty() {
            match rustix::io::write(&ours, &self.ahead) {
                Ok(n) => drop(self.ahead.split_to(n)),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if !(self.ended.get() && self.ahead.is_empty()) {
            self.stdin = Some(pipe::Sender::from_owned_fd(ours)?);
        }
        Ok(Some(theirs))
    }

    /// Carries the body on, and then watches for the caller; it ends only when the caller left or broke the protocol.
    async fn feed(&mut self) -> Over {
        loop {
            if self.cancelled {
                return Over::Left;
            }
            if let Some(stdin) = &mut self.stdin {
                while !self.ahead.is_empty() {
                    tokio::select! {
                        wrote = stdin.write_buf(&mut self.ahead) => if wrote.is_err() {
                            // The process wants no more; what still comes is read and dropped.
                            self.stdin = None;
                            break;
                        },
                        // The news that the caller left may be stuck behind a body that nobody reads.
                        () = sleep(LOOK) => if self.reader.is_hung_up() {
                            return Over::Closed(Error::Closed);
                        },
                    }
                }
            }
            if self.stdin.is_none() || self.ended.get() {
                self.ahead.clear();
                self.stdin = None;
            }
            let admitted = match self.reader.next().await {
                Ok(Some(frame)) => self.admit(frame.kind, &frame.payload),
                Ok(None) => Err(Error::Closed),
                Err(error) => Err(error),
            };
            if let Err(error) = admitted {
                return Over::Closed(error);
            }
        }
    }

    /// Reads what is left of the request, so that the next thing on the connection is a call.
    async fn drain(&mut self) -> Result<(), Error> {
        self.stdin = None;
        while !self.ended.get() {
            let frame = self.reader.next().await?.ok_or(Error::Closed)?;
            self.admit(frame.kind, &frame.payload)?;
            self.ahead.clear();
        }
        Ok(())
    }
}

/// The reply on its way out: held back until the exit status is known or it grows too large for that.
struct Answer<'a> {
    writer: &'a mut FrameWriter,
    hold: usize,
    early_hold: usize,
    /// Whether the request's body has arrived in full.
    whole: Rc<Cell<bool>>,
    held: BytesMut,
    begun: bool,
    bytes: u64,
}

impl Answer<'_> {
    /// Takes output. Past the bound it is sent as it comes, no faster than the platform reads.
    async fn take(&mut self, bytes: &mut BytesMut, content_type: Option<&str>) -> Result<(), Error> {
        self.bytes += bytes.len() as u64;
        if self.held.is_empty() {
            self.held = bytes.split();
        } else {
            self.held.unsplit(bytes.split());
        }
        let bound = if self.whole.get() { self.hold } else { self.early_hold };
        if self.begun || self.held.len() > bound {
            self.begin(None, content_type)?;
            self.writer.data(self.held.split().freeze());
            self.writer.flush().await?;
        }
        Ok(())
    }

    fn begin(&mut self, length: Option<u64>, content_type: Option<&str>) -> Result<(), Error> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        let headers = content_type.map(|t| ("content-type".into(), t.to_owned())).into_iter().collect();
        self.writer.reply(&Reply { status: 200, length, headers })
    }

    fn finish(&mut self, content_type: Option<&str>) {
        // A head of one header always fits into a frame.
        let _ = self.begin(Some(self.bytes), content_type);
        self.writer.data(self.held.split().freeze());
        self.writer.end();
    }

    fn fail(&mut self, what: FaultKind, message: String, tail: &Tail, exit: Option<i32>) -> Result<(), Error> {
        let detail = Some(tail.text()).filter(|t| !t.is_empty());
        self.writer.fault(&Fault { what, message, detail, exit })
    }
}

/// Reads a process's output to its end. Once the process itself has ended, a left-over one may keep the pipe open for
/// [`LINGER`]: then the group is killed, and soon after the pipe is given up even if somebody left the group with it.
/// Time spent on a slow taker does not count.
async fn pump(
    pipe: &mut pipe::Receiver,
    group: Pid,
    mut ended: watch::Receiver<Option<Exit>>,
    mut taker: impl AsyncFnMut(&mut BytesMut) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut patience = [LINGER / 2, LINGER].into_iter().collect::<Vec<_>>();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ / 16);
        let over = ended.borrow_and_update().is_some();
        let read = if over {
            let Some(left) = patience.last_mut() else { return Ok(()) };
            let began = Instant::now();
            let read = timeout(*left, pipe.read_buf(&mut buffer)).await;
            *left = left.saturating_sub(began.elapsed());
            match read {
                Ok(read) => read,
                Err(_) => {
                    patience.pop();
                    kill_group(group, Signal::KILL);
                    continue;
                }
            }
        } else {
            tokio::select! {
                biased;
                read = pipe.read_buf(&mut buffer) => read,
                _ = ended.changed() => continue,
            }
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => taker(&mut buffer).await?,
            Err(error) => return Err(Error::io("reading the process's output")(error)),
        }
    }
}
