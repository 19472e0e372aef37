//! Mode `classic`: a process per call. The watchdog serves the call protocol itself: body to standard input, standard
//! output to the reply.
//!
//! Never here: what HTTP makes of a failure, and the process itself (`forked`).

use std::{cell::Cell, future::poll_fn, io, rc::Rc, sync::Arc, task::Poll, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    Error,
    control::{Claim, Failed, FailedKind},
    environment,
    forked::{AHEAD, Forked, Hold, Over, Stdin},
    log::{Lines, Log, Tail},
    reap::{Children, Exit},
    runners::{Job, Runners},
    spawn::Program,
    wire::{Call, Fault, FaultKind, FrameReader, FrameWriter, Kind, Reply, split},
};

/// What serves the calls of a classic function.
#[derive(Debug)]
pub(crate) struct Classic {
    program: Arc<Program>,
    runners: Runners,
    content_type: Option<String>,
    hold: usize,
    early_hold: usize,
    combine: bool,
    log: Log,
}

impl Classic {
    /// Finds the command; a function whose command is missing is not ready.
    pub(crate) fn prepare(claim: &Claim, log: Log, children: Children) -> Result<Self, Failed> {
        Ok(Self {
            program: Program::find(&claim.command, &claim.env)?.into(),
            runners: Runners::begin(children)
                .map_err(|e| Failed::new(FailedKind::Confine, format!("the thread that starts processes: {e}")))?,
            content_type: claim.env.get("content_type").filter(|t| !t.is_empty()).cloned(),
            hold: usize::try_from(claim.max_reply_hold).unwrap_or(usize::MAX),
            early_hold: usize::try_from(claim.max_early_hold).unwrap_or(usize::MAX),
            combine: claim.combine_output,
            log,
        })
    }

    /// Serves connections until told to stop; then ends when the calls under way have ended.
    pub(crate) async fn serve(self: Rc<Self>, listener: UnixListener, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let for_each = stop.clone();
        loop {
            tokio::select! {
                // In this order: what has arrived before the stop is still taken.
                biased;
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (classic, stop) = (Rc::clone(&self), for_each.clone());
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
        self.log.line(&call.id, format_args!("Forking fprocess.")).await;
        let mut request = Request::arrived(reader)?;
        let mut answer = Answer {
            writer,
            hold: Hold::new(self.hold, self.early_hold, Rc::clone(&request.ended)),
            content_type: self.content_type.as_deref(),
            begun: false,
        };
        let deadline = began.checked_add(Duration::from_millis(call.deadline_ms));
        let (over, tail) = match self.start(call, deadline, &mut request).await {
            Ok(Some(forked)) => self.run(call, deadline, forked, &mut request, &mut answer).await,
            Ok(None) => (Over::Late, Tail::default()),
            Err(error) => {
                answer.fail(FaultKind::Exit, error.to_string(), &Tail::default(), None)?;
                return self.end(call, began, answer, &mut request).await;
            }
        };
        match over {
            Over::Ended(Exit::Status(0)) => answer.finish(),
            Over::Failed(error) | Over::Fed(Stopped::Broken(error)) => return Err(error),
            Over::Ended(exit) => answer.fail(FaultKind::Exit, exit.to_string(), &tail, exit.status())?,
            Over::Fed(Stopped::Left) => {
                answer.fail(FaultKind::Cancelled, "the caller left; the process was killed".into(), &tail, None)?;
            }
            Over::Late => {
                let message = format!("the deadline passed after {} ms; the process was killed", call.deadline_ms);
                answer.fail(FaultKind::Cancelled, message, &tail, None)?;
            }
        }
        self.end(call, began, answer, &mut request).await
    }

    /// The last frames, the last line, and the rest of the request.
    async fn end(
        &self,
        call: &Call<'_>,
        began: Instant,
        answer: Answer<'_>,
        request: &mut Request<'_>,
    ) -> Result<(), Error> {
        request.skim().await?;
        answer.writer.flush().await?;
        let (bytes, took) = (answer.hold.bytes(), began.elapsed().as_secs_f64());
        self.log.line(&call.id, format_args!("Wrote {bytes} Bytes - Duration: {took:.6}s")).await;
        request.drain().await
    }

    /// The call's process; nothing when it was too late for it.
    async fn start(
        &self,
        call: &Call<'_>,
        deadline: Option<Instant>,
        request: &mut Request<'_>,
    ) -> io::Result<Option<Forked>> {
        let job = Job {
            program: Arc::clone(&self.program),
            variables: environment::of(call),
            input: std::mem::take(&mut request.stdin.ahead),
            whole: request.ended.get(),
            combine: self.combine,
            streams: self.hold == 0,
        };
        let start = self.runners.start(job);
        let started = match deadline {
            Some(deadline) => timeout_at(deadline, start).await,
            None => Ok(start.await),
        };
        let Ok(started) = started else { return Ok(None) };
        let mut forked = started?;
        forked.input(&mut request.stdin)?;
        Ok(Some(forked))
    }

    async fn run(
        &self,
        call: &Call<'_>,
        deadline: Option<Instant>,
        forked: Forked,
        request: &mut Request<'_>,
        answer: &mut Answer<'_>,
    ) -> (Over<Error, Stopped>, Tail) {
        let (mut tail, mut out_tail, mut lines) = (Tail::default(), Tail::default(), Lines::of(&call.id));
        let output = async |bytes: &mut BytesMut| {
            if self.combine {
                out_tail.push(bytes);
            }
            answer.take(bytes).await
        };
        let errors = async |bytes: &mut BytesMut| {
            tail.push(bytes);
            self.log.write(&lines.push(&bytes.split())).await;
            Ok(())
        };
        let over = forked.carry(output, errors, request.feed(), deadline).await;
        self.log.write(&lines.finish()).await;
        (over, if self.combine { out_tail } else { tail })
    }
}

/// Why the request's side ended a call.
enum Stopped {
    /// The caller left.
    Left,
    /// The connection is gone or broken, and with it the call.
    Broken(Error),
}

/// The request's body on its way into the process.
struct Request<'a> {
    reader: &'a mut FrameReader,
    stdin: Stdin,
    /// END or CANCEL has been read.
    ended: Rc<Cell<bool>>,
    cancelled: bool,
}

impl<'a> Request<'a> {
    /// With what came together with the call's head; a small body is then whole.
    fn arrived(reader: &'a mut FrameReader) -> Result<Self, Error> {
        let mut request = Self { reader, stdin: Stdin::default(), ended: Rc::default(), cancelled: false };
        while !request.ended.get() && request.stdin.ahead.len() < AHEAD {
            match request.reader.take()? {
                Some(frame) => request.admit(frame.kind, &frame.payload)?,
                None => break,
            }
        }
        Ok(request)
    }

    fn admit(&mut self, kind: Kind, payload: &Bytes) -> Result<(), Error> {
        match kind {
            Kind::Data if !self.ended.get() => self.stdin.ahead.extend_from_slice(payload),
            Kind::End if !self.ended.get() => self.ended.set(true),
            Kind::Cancel => {
                self.ended.set(true);
                self.cancelled = true;
            }
            kind => return Err(Error::call(format!("{kind:?} within a call"))),
        }
        Ok(())
    }

    /// Carries the body on, and then watches for the caller; it ends only when the caller left or broke the protocol.
    async fn feed(&mut self) -> Stopped {
        loop {
            if self.cancelled {
                return Stopped::Left;
            }
            if !self.stdin.flush(|| self.reader.is_hung_up()).await {
                return Stopped::Broken(Error::Closed);
            }
            if self.ended.get() {
                self.stdin.close();
            }
            let admitted = match self.reader.next().await {
                Ok(Some(frame)) => self.admit(frame.kind, &frame.payload),
                Ok(None) => Err(Error::Closed),
                Err(error) => Err(error),
            };
            if let Err(error) = admitted {
                return Stopped::Broken(error);
            }
        }
    }

    /// Drops what has arrived of a request that the answer did not wait for: the platform keeps the connection if the rest of
    /// what it has sent finds room.
    async fn skim(&mut self) -> Result<(), Error> {
        self.stdin.close();
        while !self.ended.get() {
            let next = poll_fn(|cx| Poll::Ready(self.reader.poll_next(cx))).await;
            let Poll::Ready(frame) = next else { return Ok(()) };
            let frame = frame?.ok_or(Error::Closed)?;
            self.admit(frame.kind, &frame.payload)?;
            self.stdin.ahead.clear();
        }
        Ok(())
    }

    /// Reads what is left of the request, so that the next thing on the connection is a call.
    async fn drain(&mut self) -> Result<(), Error> {
        self.stdin.close();
        while !self.ended.get() {
            let frame = self.reader.next().await?.ok_or(Error::Closed)?;
            self.admit(frame.kind, &frame.payload)?;
            self.stdin.ahead.clear();
        }
        Ok(())
    }
}

/// The reply on its way out.
struct Answer<'a> {
    writer: &'a mut FrameWriter,
    hold: Hold,
    content_type: Option<&'a str>,
    begun: bool,
}

impl Answer<'_> {
    /// Takes output. Past the bound it is sent as it comes, no faster than the platform reads.
    async fn take(&mut self, bytes: &mut BytesMut) -> Result<(), Error> {
        if let Some(now) = self.hold.take(bytes) {
            self.begin(None)?;
            self.writer.data(&now);
            self.writer.flush().await?;
        }
        Ok(())
    }

    fn begin(&mut self, length: Option<u64>) -> Result<(), Error> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        let headers = self.content_type.map(|t| ("content-type", t)).into_iter().collect();
        self.writer.reply(&Reply { status: 200, length, headers })
    }

    fn finish(&mut self) {
        // A head of one header always fits into a frame.
        let _ = self.begin(Some(self.hold.bytes()));
        self.writer.data(&self.hold.rest());
        self.writer.end();
    }

    fn fail(&mut self, what: FaultKind, message: String, tail: &Tail, exit: Option<i32>) -> Result<(), Error> {
        let detail = Some(tail.text()).filter(|t| !t.is_empty());
        self.writer.fault(&Fault { what, message, detail, exit })
    }
}
