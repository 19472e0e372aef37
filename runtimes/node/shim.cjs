// Second part of Taper's Node runtime, in one file with the first where it runs: the call protocol and the handler conventions.
// Never here: HTTP, deadlines' policy, anything of the sandbox. One event loop serves any number of connections;
// docs/runtime-contract.md is the contract. Runs on Node 18 and later.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { inspect } = require('node:util');

const HEAD = 1, DATA = 2, END = 3, CANCEL = 4, FAULT = 5, WHOLE = 6;
const MAX_PAYLOAD = 1 << 20;
// Before the text of a head: milliseconds or status (4 bytes), length of the body (8), length of the text (4).
const FIXED = 16;
const LISTEN_FD = 3, CONTROL_FD = 4;

const TEXT = 'text/plain; charset=utf-8';
const BYTES = 'application/octet-stream';
const JSON_TYPE = 'application/json';
const LINES = 'application/x-ndjson';

// Replies up to this size leave as one write; larger bodies are not copied.
const INLINE = 64 * 1024;

/** Takes frames off a stream of chunks. */
class Decoder {
  constructor() {
    this.chunks = [];
    this.size = 0;
  }

  push(chunk) {
    this.chunks.push(chunk);
    this.size += chunk.length;
  }

  /** The next {kind, payload}, or null when more bytes are needed; throws on what the protocol does not know. */
  next() {
    if (this.size < 5) return null;
    if (this.chunks[0].length < 5) this.join();
    const first = this.chunks[0];
    const length = first.readUInt32BE(0);
    const kind = first[4];
    if (length > MAX_PAYLOAD || kind < HEAD || kind > WHOLE || (kind === CANCEL && length > 0)) {
      throw new Error(`a frame of kind ${kind} with ${length} bytes`);
    }
    if (this.size < 5 + length) return null;
    if (first.length < 5 + length) this.join();
    const whole = this.chunks[0];
    const payload = whole.subarray(5, 5 + length);
    if (whole.length === 5 + length) this.chunks.shift();
    else this.chunks[0] = whole.subarray(5 + length);
    this.size -= 5 + length;
    return { kind, payload };
  }

  join() {
    this.chunks = [Buffer.concat(this.chunks, this.size)];
  }
}

function pack(kind, payload) {
  const frame = Buffer.allocUnsafe(5 + payload.length);
  frame.writeUInt32BE(payload.length, 0);
  frame[4] = kind;
  payload.copy(frame, 5);
  return frame;
}

/** A frame with a head; the length is null while nobody knows it. */
function packHead(kind, number, length, text, body) {
  const cut = Buffer.byteLength(text);
  const frame = Buffer.allocUnsafe(5 + FIXED + cut + body.length);
  frame.writeUInt32BE(FIXED + cut + body.length, 0);
  frame[4] = kind;
  frame.writeUInt32BE(number, 5);
  frame.writeUInt32BE(length === null ? 0xffffffff : Math.floor(length / 2 ** 32), 9);
  frame.writeUInt32BE(length === null ? 0xffffffff : length % 2 ** 32, 13);
  frame.writeUInt32BE(cut, 17);
  frame.write(text, 21);
  body.copy(frame, 21 + cut);
  return frame;
}

/** The head of a call. Its text is taken apart when something of it is asked for. */
class Head {
  #payload;
  #cut;
  #fields = null;

  constructor(payload) {
    this.#payload = payload;
    this.#cut = payload.length < FIXED ? Infinity : FIXED + payload.readUInt32BE(12);
    if (this.#cut > payload.length) throw new Error('a head that is cut off');
    this.deadlineMs = payload.readUInt32BE(0);
  }

  get fields() { return (this.#fields ??= this.#payload.toString('utf8', FIXED, this.#cut).split('\n')); }
  /** What is there of the body. */
  get body() { return this.#payload.subarray(this.#cut); }

  get id() { return this.fields[0]; }
  get method() { return this.fields[1]; }
  get path() { return this.fields[2]; }
  get query() { return this.fields[3]; }
  get function() { return this.fields[4]; }
  get namespace() { return this.fields[5]; }
  get revision() { return this.fields[6]; }
}

/** The frames of a body, as buffers. */
function packData(data) {
  if (data.length === 0) return [];
  if (data.length <= INLINE) return [pack(DATA, data)];
  const out = [];
  for (let at = 0; at < data.length; at += MAX_PAYLOAD) {
    const piece = data.subarray(at, at + MAX_PAYLOAD);
    const head = Buffer.allocUnsafe(5);
    head.writeUInt32BE(piece.length, 0);
    head[4] = DATA;
    out.push(head, piece);
  }
  return out;
}

const NOTHING = Buffer.alloc(0);
const END_FRAME = pack(END, NOTHING);

/** What the names of headers with the parameters of a route begin with. */
const PARAMETER = 'x-taper-param-';

/** The request: body (Buffer), headers (names in lower case), method, path and queryString as they came, query, params. */
class Event {
  #query = null;
  #params = null;

  constructor(head, body) {
    this.body = body;
    this.headers = headersOf(head.fields);
    this.method = head.method;
    this.path = head.path;
    this.queryString = head.query;
  }

  /** The first value of each parameter, decoded. */
  get query() {
    if (this.#query === null) {
      this.#query = Object.create(null);
      for (const [name, value] of new URLSearchParams(this.queryString)) this.#query[name] ??= value;
    }
    return this.#query;
  }

  /** The parameters that the route has found in the path, decoded. */
  get params() {
    if (this.#params === null) {
      this.#params = Object.create(null);
      const { unescape } = require('node:querystring');
      for (const [name, value] of Object.entries(this.headers)) {
        if (name.startsWith(PARAMETER)) this.#params[name.slice(PARAMETER.length)] = unescape(value);
      }
    }
    return this.#params;
  }
}

function headersOf(fields) {
  const headers = Object.create(null);
  for (let at = 7; at + 1 < fields.length; at += 2) {
    const [name, value] = [fields[at], fields[at + 1]];
    headers[name] = headers[name] === undefined ? value : headers[name] + (name === 'cookie' ? '; ' : ', ') + value;
  }
  return headers;
}

/** The call and the function that serves it. The second part is AWS Lambda's names for the same, the third OpenFaaS's. */
class Context {
  #call;
  #ends;
  #reply = { statusCode: 200, headers: {} };

  constructor(call, ends) {
    this.#call = call;
    this.#ends = ends;
    this.callId = call.head.id;
    this.function = call.head.function;
    this.namespace = call.head.namespace;
    this.revision = call.head.revision;
  }

  /** Aborted when the caller leaves or the deadline passes. */
  get signal() { return this.#call.signal(); }
  /** In milliseconds since 1970. */
  get deadline() { return Date.now() + this.remainingMs(); }
  remainingMs() { return Math.max(0, this.#ends - performance.now()); }

  get awsRequestId() { return this.callId; }
  get functionName() { return this.function; }
  get functionVersion() { return this.revision; }
  getRemainingTimeInMillis() { return this.remainingMs(); }

  status(code) { this.#reply.statusCode = code; return this; }
  headers(headers) { Object.assign(this.#reply.headers, headers); return this; }
  succeed(body) { this.#call.stored = { ...this.#reply, body }; return this.#call.stored; }
  fail(error) { throw error instanceof Error ? error : new Error(String(error)); }
}

class Refused extends Error {}

/** The file and the export that `file.function` or `file` names. A file's name may contain dots. */
function locate(spec) {
  const fileOf = (stem) => {
    for (const base of new Set([stem, stem.replaceAll('.', '/')])) {
      for (const extension of ['.js', '.mjs', '.cjs']) {
        const file = path.resolve(base + extension);
        if (fs.existsSync(file)) return file;
      }
    }
    return null;
  };
  const whole = fileOf(spec);
  if (whole) return { file: whole, name: null };
  const dot = spec.lastIndexOf('.');
  const file = dot > 0 ? fileOf(spec.slice(0, dot)) : null;
  if (!file) throw new Refused(`no file for the handler \`${spec}\` in ${process.cwd()}: expected \`file.function\``);
  return { file, name: spec.slice(dot + 1) };
}

async function importUser(file) {
  if (!file.endsWith('.mjs')) {
    try {
      return require(file);
    } catch (error) {
      // An ES module, by its package or by its syntax; what it is, `import` decides.
      const esm = error?.code === 'ERR_REQUIRE_ESM' || error?.code === 'ERR_REQUIRE_ASYNC_MODULE' ||
        (error instanceof SyntaxError && /import statement|Unexpected token 'export'|import\.meta|await is only valid/.test(error.message));
      if (!esm || file.endsWith('.cjs')) throw error;
    }
  }
  return import(require('node:url').pathToFileURL(file));
}

/** The function to serve: the named export, else `handle`, `handler`, `lambda_handler`, the default export, the module. */
function choose(exported, file, name) {
  const modules = [exported, exported?.default].filter((m) => m !== null && (typeof m === 'object' || typeof m === 'function'));
  for (const wanted of name ? [name] : ['handle', 'handler', 'lambda_handler']) {
    for (const module of modules) if (typeof module[wanted] === 'function') return { name: wanted, call: module[wanted].bind(module), takes: module[wanted].length, own: module[wanted] };
  }
  const whole = modules.findLast((m) => typeof m === 'function');
  if (whole && (!name || name === 'default')) return { name: 'default', call: whole, takes: whole.length, own: whole };
  const defined = [...new Set(modules.flatMap((m) => Object.keys(m)).filter((k) => modules.some((m) => typeof m[k] === 'function')))];
  const base = path.basename(file);
  throw new Refused(`${base} exports no function \`${name ?? 'handle'}\`; it exports: ${defined.join(', ') || 'no function'}` +
    (name ? '' : '; export one as `handle` (event, context), or say which with --handler ' + base.replace(/\.[^.]*$/, '') + '.NAME'));
}

/** What a function that takes a callback gives to it, or returns as a promise. */
function untilCalled(call, ...given) {
  return new Promise((resolve, reject) => {
    const result = call(...given, (error, value) => (error ? reject(error) : resolve(value)));
    if (typeof result?.then === 'function') result.then(resolve, reject);
  });
}

/** The user's function as one that takes the call and its body. */
function adapt({ name, call, takes }) {
  const invoke = takes > 2 ? (event, context) => untilCalled(call, event, context) : call;
  if (name === 'handler' || name === 'lambda_handler') {
    return (one, body) => {
      let event = {};
      try {
        if (body.length > 0) event = JSON.parse(body.toString());
      } catch (error) {
        return { statusCode: 400, body: { error: 'invalid-body', message: `the body is not JSON: ${error.message}` } };
      }
      return invoke(event, new Context(one, one.ends));
    };
  }
  if (takes === 1 && name !== 'default') return (_, body) => invoke(body.toString());
  return (one, body) => invoke(new Event(one.head, body), new Context(one, one.ends));
}

/** The body as OpenFaaS's templates give it: parsed as its content type says, raw where that says nothing of text. */
function parsed(body, headers) {
  if (process.env.RAW_BODY === 'true') return body;
  const type = (headers['content-type'] ?? 'text/plain').split(';', 1)[0].trim().toLowerCase();
  if (type.startsWith('text/')) return body.toString();
  if (type === 'application/json' || type.endsWith('+json')) return body.length > 0 ? JSON.parse(body.toString()) : {};
  if (type === 'application/x-www-form-urlencoded') return valuesOf(body.toString());
  return body;
}

/** Names and values; those of a name that is there again, in an array. An ordinary object, as handlers may expect it. */
function valuesOf(text) {
  const values = {};
  for (const [name, value] of new URLSearchParams(text)) {
    if (name !== '__proto__') values[name] = Object.hasOwn(values, name) ? [values[name], value].flat() : value;
  }
  return values;
}

/** OpenFaaS's event: its query has all values of a parameter. */
class FunctionEvent extends Event {
  #query = null;

  get query() { return (this.#query ??= valuesOf(this.queryString)); }
}

/** OpenFaaS's context: what `status` and `headers` were set to is the head of whatever is answered. */
class FunctionContext extends Context {
  #status = 200;
  #headers = {};
  #call;
  reply = null; // the first answer that was given by hand

  constructor(call, ends) {
    super(call, ends);
    this.#call = call;
  }

  status(code) {
    if (code === undefined) return this.#status;
    this.#status = code;
    return this;
  }

  headers(headers) {
    if (headers === undefined) return this.#headers;
    this.#headers = headers;
    return this;
  }

  succeed(body) { this.reply ??= this.replyOf(body); }

  fail(error) {
    if (this.#status === 200) this.#status = 500;
    log(typeof error === 'string' ? error : stackOf(error), this.#call);
    this.reply ??= this.replyOf(error instanceof Error ? String(error) : error);
  }

  replyOf(body) { return { statusCode: this.#status, headers: this.#headers, body }; }
}

/** A second parameter of this name takes no context: it is the first template's `(body, callback)`. */
const CALLBACK = /^(?:async\b\s*)?(?:function\b[^(]*|[\w$]+\s*)?\(\s*[\w$]+\s*,\s*(?:callback|cb|done|next)\s*\)/;

/** The user's function called in the manner of OpenFaaS's templates. */
function asOpenfaas({ call, takes, own }) {
  const classic = takes === 2 && CALLBACK.test(String(own));
  return async (one, body) => {
    if (classic) return { statusCode: 200, body: await untilCalled(call, body.toString()) };
    const event = new FunctionEvent(one.head, body);
    const context = new FunctionContext(one, one.ends);
    try {
      event.body = parsed(body, event.headers);
    } catch (error) {
      return { statusCode: 400, body: `the body is not JSON: ${error.message}` };
    }
    let done;
    const called = new Promise((resolve) => { done = resolve; });
    const result = call(event, context, (error, value) => {
      if (error) context.fail(error);
      else context.succeed(value);
      done();
    });
    const value = await (takes > 2 && result === undefined && context.reply === null ? called : result);
    return context.reply ?? context.replyOf(value);
  };
}

/** A body and its content type. */
function encode(value) {
  if (typeof value === 'string') return [Buffer.from(value), TEXT];
  if (Buffer.isBuffer(value)) return [value, BYTES];
  if (ArrayBuffer.isView(value)) return [Buffer.from(value.buffer, value.byteOffset, value.byteLength), BYTES];
  if (value instanceof ArrayBuffer) return [Buffer.from(value), BYTES];
  if (value === null || value === undefined) return [Buffer.alloc(0), null];
  const unsayable = typeof value === 'function' || (typeof value === 'number' && !Number.isFinite(value));
  const json = unsayable ? undefined : JSON.stringify(value);
  if (json === undefined) throw new TypeError(`${typeof value === 'number' ? value : `a ${typeof value}`} cannot be sent: return text, bytes, a value that is JSON, {statusCode, headers, body}, or an iterator of these`);
  return [Buffer.from(json), JSON_TYPE];
}

/** {status, headers, body} of what a handler returned. */
function opened(value) {
  const own = value !== null && typeof value === 'object';
  if (!own || !('statusCode' in value || ('status' in value && 'body' in value))) return { status: 200, headers: [], body: value };
  const status = Number(value.statusCode ?? value.status);
  if (!Number.isInteger(status) || status < 200 || status > 599) {
    throw new RangeError(`statusCode must be a whole number from 200 to 599, not ${JSON.stringify(value.statusCode ?? value.status)}`);
  }
  const headers = [];
  const given = value.headers ?? {};
  for (const [name, content] of typeof given[Symbol.iterator] === 'function' ? given : Object.entries(given)) {
    for (const one of Array.isArray(content) ? content : [content]) headers.push([String(name), String(one)]);
  }
  return { status, headers, body: value.isBase64Encoded ? Buffer.from(String(value.body), 'base64') : value.body };
}

/** The text of a reply's head. */
function textOf(headers, contentType) {
  if (contentType && !headers.some(([name]) => name.toLowerCase() === 'content-type')) headers.push(['content-type', contentType]);
  for (const pair of headers) {
    if (pair.some((field) => field.includes('\n'))) throw new TypeError(`a header with a line break: ${JSON.stringify(pair)}`);
  }
  const text = headers.map((pair) => pair.join('\n')).join('\n');
  if (text.length > MAX_PAYLOAD / 4) throw new RangeError(`the reply's headers are over ${MAX_PAYLOAD / 4} characters`);
  return text;
}

/** What streams: async iterables (also Readable and ReadableStream), and iterators such as generators. */
function itemsOf(body) {
  if (body === null || typeof body !== 'object' || ArrayBuffer.isView(body)) return null;
  if (typeof body[Symbol.asyncIterator] === 'function') return body[Symbol.asyncIterator]();
  if (typeof body[Symbol.iterator] === 'function' && typeof body.next === 'function') return body[Symbol.iterator]();
  return null;
}

/** Whatever was thrown, in words. */
const wordsOf = (error) => (error instanceof Error ? `${error.name}: ${error.message}` : `thrown: ${typeof error === 'string' ? error : inspect(error)}`);

/** The same in one line. */
const describe = (error) => wordsOf(error).split('\n', 1)[0];

/** A stack without our own frames, and without those that called us. */
function stackOf(error) {
  const stack = error instanceof Error && typeof error.stack === 'string' ? error.stack : wordsOf(error);
  const lines = [];
  let theirs = false;
  for (const line of stack.split('\n')) {
    const ours = line.includes(__filename);
    if (ours && theirs) break;
    if (!ours && !line.includes('node:internal')) lines.push(line);
    theirs ||= !ours && /^\s+at /.test(line);
  }
  return lines.join('\n');
}

/** One call. It is over once, by its reply, a failure, or its caller. */
class Call {
  #abort = null;
  over = false;
  stored = undefined;
  begun = null; // streams of the log in which its line has no end yet

  constructor(connection, head) {
    this.connection = connection;
    this.head = head;
    this.ends = performance.now() + head.deadlineMs;
    this.timer = setTimeout(() => this.cancel('the deadline passed'), Math.min(head.deadlineMs, 2 ** 31 - 1));
  }

  signal() {
    if (this.#abort === null) {
      this.#abort = new AbortController();
      if (this.over) this.#abort.abort();
    }
    return this.#abort.signal;
  }

  /** Runs the function. */
  begin(invoke, body) {
    if (writers.follows) writers.follow(this, invoke, body);
    else this.run(invoke, body);
  }

  async run(invoke, body) {
    try {
      let value;
      writers.own = this; // as `within` does, for less
      try {
        value = invoke(this, body);
      } finally {
        writers.own = null;
      }
      if (typeof value?.then === 'function') value = await value;
      if (this.over) return;
      const { status, headers, body: content } = opened(value === undefined ? this.stored : value);
      const items = itemsOf(content);
      if (items !== null) await this.stream(status, headers, items);
      else {
        const [data, contentType] = encode(content);
        const text = textOf(headers, contentType);
        if (data.length <= INLINE) this.finish([packHead(WHOLE, status, data.length, text, data)]);
        else this.finish([packHead(HEAD, status, data.length, text, NOTHING), ...packData(data), END_FRAME]);
      }
    } catch (error) {
      if (this.over) return;
      log(stackOf(error), this);
      this.fail('exception', describe(error), stackOf(error));
    }
  }

  async stream(status, headers, items) {
    let begun = false;
    this.signal().addEventListener('abort', () => Promise.resolve(items.return?.()).catch(() => {}), { once: true });
    for (;;) {
      const { value, done } = await writers.within(this, () => items.next());
      if (this.over) return;
      if (done) break;
      let [data, contentType] = encode(value);
      if (contentType === JSON_TYPE) [data, contentType] = [Buffer.concat([data, Buffer.from('\n')]), LINES];
      const frames = packData(data);
      if (!begun) frames.unshift(packHead(HEAD, status, null, textOf(headers, contentType), NOTHING));
      begun = true;
      if (!this.connection.write(frames)) await this.connection.drained();
      if (this.over) return;
    }
    this.finish(begun ? [END_FRAME] : [packHead(HEAD, status, null, textOf(headers, TEXT), NOTHING), END_FRAME]);
  }

  fail(what, message, detail = null) {
    // A message that does not fit into a frame would be lost with its connection.
    const text = `${what}\n\n${message.slice(0, 4096).replaceAll('\n', ' ')}\n${detail === null ? '' : detail.slice(0, 65536)}`;
    this.finish([pack(FAULT, Buffer.from(text))]);
  }

  cancel(why) {
    if (this.over) return;
    this.fail('cancelled', why);
    writers.within(this, () => this.#abort?.abort(new Error(why)));
  }

  finish(frames) {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.timer);
    this.connection.write(frames);
    if (this.begun !== null) endLines(this);
    if (writers.follows) writers.ended();
    this.connection.settle(this);
  }
}

/** One connection: one call at a time. */
class Connection {
  constructor(socket, runtime) {
    this.socket = socket;
    this.runtime = runtime;
    this.decoder = new Decoder();
    this.call = null; // from its head until it is over
    this.body = null; // pieces of the request, until it is whole
    this.refused = false; // the call was over before its request: what is left of that is dropped
    socket.on('data', (chunk) => this.take(chunk));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.close());
  }

  take(chunk) {
    try {
      this.decoder.push(chunk);
      for (let frame; (frame = this.decoder.next()) !== null;) this.admit(frame);
    } catch (error) {
      log(`the call protocol was broken: ${error.message}`);
      this.socket.destroy();
    }
  }

  admit({ kind, payload }) {
    const whole = this.body === null;
    if ((kind === HEAD || kind === WHOLE) && whole && this.call === null) {
      const head = new Head(payload);
      this.refused = false;
      this.call = new Call(this, head);
      this.runtime.begun();
      if (kind === HEAD) this.body = [head.body];
      else this.call.begin(this.runtime.invoke, head.body);
    } else if (kind === DATA && !whole) {
      if (!this.refused) this.body.push(payload);
    } else if (kind === END && !whole) {
      const body = this.body.length === 1 ? this.body[0] : Buffer.concat(this.body);
      this.body = null;
      if (!this.refused) this.call.begin(this.runtime.invoke, body);
    } else if (kind === CANCEL) {
      this.body = null;
      this.call?.cancel('the caller left'); // none: it crossed the end of the call that it was meant for
    } else {
      throw new Error(`a frame of kind ${kind} out of turn`);
    }
  }

  /** Whether the platform keeps up. */
  write(frames) {
    if (this.socket.destroyed) return true;
    const size = frames.reduce((sum, frame) => sum + frame.length, 0);
    if (size <= INLINE) return this.socket.write(frames.length === 1 ? frames[0] : Buffer.concat(frames, size));
    this.socket.cork();
    for (const frame of frames) this.socket.write(frame);
    this.socket.uncork();
    return !this.socket.writableNeedDrain;
  }

  /** Resolves when the platform has read on, or is gone. */
  drained() {
    return new Promise((resolve) => {
      const done = () => {
        this.socket.off('drain', done).off('close', done);
        resolve();
      };
      this.socket.on('drain', done).on('close', done);
    });
  }

  settle() {
    this.call = null;
    this.refused = this.body !== null;
    this.runtime.ended();
  }

  close() {
    this.runtime.connections.delete(this);
    this.call?.cancel('the caller left');
  }
}

/** The process: its listener, its calls, its end. */
class Runtime {
  calls = 0;
  connections = new Set();
  stopping = false;

  constructor(invoke) {
    this.invoke = invoke;
    this.server = net.createServer((socket) => this.connections.add(new Connection(socket, this)));
  }

  listen(fd) {
    return new Promise((resolve, reject) => this.server.once('error', reject).listen({ fd }, resolve));
  }

  begun() { this.calls++; }

  running() { return [...this.connections].map(({ call }) => call).filter((call) => call !== null); }

  ended() {
    this.calls--;
    this.rest();
  }

  /** SIGTERM: what has begun is finished, and what has arrived is read first. */
  stop() {
    this.stopping = true;
    this.server.close(() => process.exit(0));
    setImmediate(() => this.rest());
  }

  rest() {
    if (!this.stopping || this.calls > 0) return;
    for (const { socket } of this.connections) socket.end(() => socket.destroy());
  }
}

// What a runtime that is started ahead loads: what many functions import and what costs little memory.
const COMMON = ['node:buffer', 'node:events', 'node:http', 'node:querystring', 'node:stream', 'node:timers', 'node:url'];

/** Goes through everything once that a first call goes through, which is slow the first time: ES modules, the listener, a call. */
async function rehearse() {
  const folder = fs.mkdtempSync(path.join(require('node:os').tmpdir(), 'taper-'));
  const [file, socket] = [path.join(folder, 'first.mjs'), path.join(folder, 'first.sock')];
  try {
    fs.writeFileSync(file, 'export const handle = (event, context) => event.body;\n');
    const runtime = new Runtime(adapt(choose(await import(require('node:url').pathToFileURL(file)), file, 'handle')));
    await new Promise((resolve, reject) => runtime.server.once('error', reject).listen(socket, resolve));
    await new Promise((resolve, reject) => {
      const caller = net.connect(socket).on('data', () => caller.destroy()).on('error', reject).on('close', resolve);
      caller.write(packHead(WHOLE, 60000, 2, '\nPOST\n/\n\n\n\n', Buffer.from('{}')));
    });
    await new Promise((resolve) => runtime.server.close(resolve));
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** Started ahead of a function: loads what most functions load, waits until it is told what to be, and becomes that. */
async function wait(fd) {
  for (const name of COMMON) require(name);
  await rehearse().catch(() => {}); // without it the first call is slower
  fs.writeSync(Number(process.env.TAPER_CONTROL_FD ?? CONTROL_FD), JSON.stringify({ here: process.pid }) + '\n');
  // Nothing else is to happen before: the whole process stands still in this.
  const told = fs.readFileSync(fd, 'utf8');
  fs.closeSync(fd);
  if (told === '') process.exit(0); // nobody wants it any more
  const { cwd, env } = JSON.parse(told);
  process.chdir(cwd);
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, env);
}

async function main() {
  if (process.env.TAPER_CLAIM_FD) await wait(Number(process.env.TAPER_CLAIM_FD));
  const setting = (name) => {
    const value = process.env[name];
    delete process.env[name];
    return value;
  };
  const listen = Number(setting('TAPER_LISTEN_FD') ?? LISTEN_FD);
  const control = Number(setting('TAPER_CONTROL_FD') ?? CONTROL_FD);
  const spec = setting('TAPER_HANDLER') ?? '';
  const adapted = setting('TAPER_CONVENTION') === 'openfaas' ? asOpenfaas : adapt;
  for (const name of ['TAPER_CONCURRENCY', 'TAPER_DEPS']) setting(name);
  const say = (word) => fs.writeSync(control, JSON.stringify(word) + '\n');

  // A promise that nobody waits for fails alone; it must not take the calls of others with it.
  process.on('unhandledRejection', (error) => log(`unhandled rejection: ${stackOf(error)}`));
  let invoke, runtime = null;
  labelAll(() => runtime?.running());
  try {
    const { file, name } = locate(spec);
    process.argv[1] = file;
    invoke = adapted(choose(await importUser(file), file, name));
  } catch (error) {
    if (error instanceof SyntaxError && !/^\S+:\d+\n/.test(error.stack)) {
      // Where an ES module is wrong only Node itself can print; the watchdog passes on what it says while it dies.
      setImmediate(() => { throw error; });
      return;
    }
    const missing = error instanceof Refused;
    say({ failed: { what: missing ? 'missing' : 'exception', message: missing ? error.message : stackOf(error) } });
    process.exit(1);
  }
  runtime = new Runtime(invoke);
  process.on('SIGTERM', () => runtime.stop());
  await runtime.listen(listen);
  say({ ready: true });
  fs.closeSync(control);
}

if (require.main === module) main();
else module.exports = { Decoder, Head, Event, Connection };
