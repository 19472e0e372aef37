// Taper's Node runtime: loads one function of the user's and serves the call protocol on an inherited socket.
//
// First of two parts, one file where it runs: the log, and whose a line of it is. Never here: the call protocol, handlers.
'use strict';

const { AsyncLocalStorage } = require('node:async_hooks');

/** What a pipe takes in one piece, whoever else writes to it (PIPE_BUF). */
const PIPE = 4096;
const LINE_FEED = 10;

/** Knows whose a line is that is written while many calls run.
 *
 * What a function writes before it first waits for something is its own call's: nothing else runs meanwhile. Later only Node
 * can say whose code runs, and to know it costs every promise something. So it is asked as long as that serves anybody: for the
 * first calls of a process, and for as long as it lives once any call has written something late. */
class Writers {
  own = null; // the call whose code has not waited yet
  follows = true; // whether calls are followed beyond that
  #calls = new AsyncLocalStorage();
  #left = 64; // so many calls more are followed to their ends, unless one writes late
  #late = false;
  #only = null; // the call that ran alone when the first line came late, and nobody had followed it
  #stray = false; // something was written while no call ran

  /** Runs a call, and follows what it sets going. */
  follow(call, invoke, body) {
    return this.#calls.run(call, () => call.run(invoke, body));
  }

  /** A call that was followed has ended. */
  ended() {
    if (this.#left > 0 && --this.#left === 0 && !this.#late) {
      this.#calls.disable();
      this.follows = false;
    }
  }

  /** Runs something of a call's, until it first waits. */
  within(call, what) {
    const outer = this.own;
    this.own = call;
    try {
      return what();
    } finally {
      this.own = outer;
    }
  }

  /** The call of whoever writes; null when it is nobody's, or nobody knows. Of `running` there is nothing while the function is
   * loaded. */
  writer(running) {
    if (this.own !== null) return this.own;
    const known = this.#calls.getStore();
    if (known !== undefined) {
      this.#late = true;
      return known;
    }
    const calls = running();
    if (calls?.length === 0) this.#stray = true;
    else if (calls !== undefined && !this.#late && this.#left === 0) {
      this.#late = this.follows = true;
      if (calls.length === 1 && !this.#stray) this.#only = calls[0];
    }
    return this.#only?.over === false ? this.#only : null;
  }
}

/** Text in lines, each with a label, in writes that a pipe takes whole, so that nothing of another process gets into one. A line
 * that is to go on has a tab after the id; the platform puts it together. */
function labelled(bytes, id) {
  const [ends, goesOn] = [Buffer.from(`\x1e[${id}] `), Buffer.from(`\x1e[${id}]\t`)];
  const most = PIPE - ends.length - 1;
  const [writes, end] = [[], Buffer.of(LINE_FEED)];
  let [gathered, size] = [[], 0];
  for (let at = 0; at < bytes.length;) {
    const feed = bytes.indexOf(LINE_FEED, at);
    const whole = feed >= 0 && feed - at <= most;
    const to = whole ? feed : Math.min(feed < 0 ? bytes.length : feed, at + most);
    const piece = [whole ? ends : goesOn, bytes.subarray(at, to), end];
    const length = ends.length + to - at + 1;
    if (size + length > PIPE) {
      writes.push(Buffer.concat(gathered));
      [gathered, size] = [[], 0];
    }
    gathered.push(...piece);
    size += length;
    at = whole ? feed + 1 : to;
  }
  writes.push(Buffer.concat(gathered));
  return writes;
}

/** Makes a stream of the log label what calls write to it. */
function label(stream, running) {
  const write = stream.write;
  stream.write = function (chunk, encoding, done) {
    const call = writers.writer(running);
    if (call === null || chunk.length === 0 || !(typeof chunk === 'string' || chunk instanceof Uint8Array)) {
      return write.call(stream, chunk, encoding, done);
    }
    if (typeof encoding === 'function') [encoding, done] = [undefined, encoding];
    const text = typeof chunk === 'string' && (encoding ?? 'utf8') === 'utf8' ? chunk : null;
    // One short line is what is mostly written. A character has three bytes at most.
    if (text !== null && text.indexOf('\n') === text.length - 1 && text.length < PIPE / 3 - 150) {
      call.begun?.delete(stream);
      return write.call(stream, `\x1e[${call.head.id}] ${text}`, done);
    }
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    if (bytes[bytes.length - 1] === LINE_FEED) call.begun?.delete(stream);
    else (call.begun ??= new Set()).add(stream);
    const writes = labelled(bytes, call.head.id);
    for (const one of writes.slice(0, -1)) write.call(stream, one);
    return write.call(stream, writes.at(-1), done);
  };
  return stream;
}

/** Ends the lines that a call has begun. */
function endLines(call) {
  for (const stream of call.begun ?? []) writers.within(call, () => stream.write('\n'));
}

/** Has all that is written to the log labelled. The streams are made when somebody asks for them, as without this. */
function labelAll(running) {
  for (const name of ['stdout', 'stderr']) {
    const { get, ...how } = Object.getOwnPropertyDescriptor(process, name);
    let stream = null;
    Object.defineProperty(process, name, { ...how, get: () => (stream ??= label(get.call(process), running)) });
  }
}

/** Writes lines of the runtime's own about a call, or about what has just run. */
function log(text, call = null) {
  const write = () => process.stderr.write(text.trimEnd() + '\n');
  if (call === null) write();
  else writers.within(call, write);
}

const writers = new Writers();
