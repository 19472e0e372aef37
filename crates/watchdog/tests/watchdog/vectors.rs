//! `docs/runtime-contract.vectors.json`: what the watchdog, Python and Node read in the same bytes, and what they write.

use std::process::Command;

use bytes::BytesMut;
use serde_json::{Value, json};
use taper_runtimes::{Runtime, interpreters};
use taper_watchdog::{
    Error,
    wire::{self, Call, Fault, FaultKind, Frame, Kind, Reply, Trailers},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/runtime-contract.vectors.json");
const RUNTIMES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtimes");

fn vectors() -> Vec<Value> {
    let vectors: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    assert!(vectors.len() > 30);
    vectors
}

fn bytes_of(vector: &Value) -> Vec<u8> {
    unhex(vector["hex"].as_str().unwrap())
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn said(part: &Frame) -> Value {
    let kind = match part.kind {
        Kind::Head => "head",
        Kind::Data => "data",
        Kind::End => "end",
        Kind::Cancel => "cancel",
        Kind::Fault => "fault",
        Kind::Whole => "whole",
    };
    json!([kind, hex(&part.payload)])
}

/// What the parts say that say something, as the vectors have it.
fn meant(part: &Frame, direction: &str) -> Option<Value> {
    let pairs = |pairs: &wire::Pairs| pairs.iter().map(|(k, v)| json!([k, v])).collect::<Vec<_>>();
    let read = match part.kind {
        Kind::Head if direction == "to the runtime" => Call::decode(&part.payload).map(|c| {
            json!({"call": {
                "id": c.id, "method": c.method, "path": c.path, "query": c.query, "function": c.function,
                "namespace": c.namespace, "revision": c.revision, "headers": c.headers, "deadlineMs": c.deadline_ms,
                "contentLength": c.content_length,
            }})
        }),
        Kind::Head => Reply::decode(&part.payload)
            .map(|r| json!({"reply": {"status": r.status, "length": r.length, "headers": pairs(&r.headers)}})),
        Kind::Fault => Fault::decode(&part.payload).map(|f| {
            let what = match f.what {
                FaultKind::Exception => "exception",
                FaultKind::Exit => "exit",
                FaultKind::Cancelled => "cancelled",
                FaultKind::TooLarge => "tooLarge",
            };
            json!({"fault": {"what": what, "exit": f.exit, "message": f.message, "detail": f.detail}})
        }),
        Kind::End if !part.payload.is_empty() => {
            Trailers::decode(&part.payload).map(|end| json!({"trailers": pairs(&end.trailers)}))
        }
        _ => return None,
    };
    Some(read.unwrap_or_else(|error| json!({"error": error.to_string()})))
}

#[test]
fn rust_reads_the_vectors() {
    for vector in vectors() {
        let mut buffer = BytesMut::from(&bytes_of(&vector)[..]);
        let mut parts = Vec::new();
        let end = loop {
            match wire::decode(&mut buffer) {
                Ok(Some(frame)) => {
                    if wire::parts(frame, |part| parts.push(part)).is_err() {
                        break "broken";
                    }
                }
                Ok(None) if buffer.is_empty() => break "clean",
                Ok(None) => break "partial",
                Err(_) => break "broken",
            }
        };
        assert_eq!(parts.iter().map(said).collect::<Value>(), vector["parts"], "{}", vector["name"]);
        assert_eq!(end, vector["end"], "{}", vector["name"]);
        let Some(means) = vector["means"].as_array() else { continue };
        let direction = vector["direction"].as_str().unwrap();
        let read: Vec<Value> = parts.iter().filter_map(|part| meant(part, direction)).collect();
        assert_eq!(read.len(), means.len(), "{}", vector["name"]);
        for (read, means) in read.iter().zip(means) {
            match means["error"].as_str() {
                Some(words) => assert!(read["error"].as_str().unwrap().contains(words), "{read} {means}"),
                None => assert_eq!(read, means),
            }
        }
    }
}

#[tokio::test]
async fn a_connection_reads_the_vectors() {
    for vector in vectors() {
        // At once, and byte by byte.
        for size in [usize::MAX, 1] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (mut reader, _writer) = wire::split(ours);
            let (bytes, mut parts) = (bytes_of(&vector), Vec::new());
            let read = async {
                loop {
                    match reader.next().await {
                        Ok(Some(part)) => parts.push(said(&part)),
                        Ok(None) => return "clean",
                        Err(Error::Closed) => return "partial",
                        Err(_) => return "broken",
                    }
                }
            };
            let write = async {
                for piece in bytes.chunks(size.min(bytes.len().max(1))) {
                    theirs.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                theirs.shutdown().await.unwrap();
            };
            let (end, ()) = tokio::join!(read, write);
            assert_eq!((json!(parts), json!(end)), (vector["parts"].clone(), vector["end"].clone()), "{vector}");
        }
    }
}

#[tokio::test]
async fn rust_writes_the_vectors() {
    let mut written = 0;
    for vector in vectors() {
        let (bytes, direction) = (bytes_of(&vector), vector["direction"].as_str().unwrap());
        let means = &vector["means"][0];
        if vector["end"] != "clean" || means.is_null() || means["error"].is_string() {
            continue;
        }
        let parts: Vec<Frame> = {
            let (mut buffer, mut parts) = (BytesMut::from(&bytes[..]), Vec::new());
            while let Some(frame) = wire::decode(&mut buffer).unwrap() {
                wire::parts(frame, |part| parts.push(part)).unwrap();
            }
            parts
        };
        if parts.iter().any(|part| part.kind == Kind::End && !part.payload.is_empty()) {
            continue; // Nothing of ours writes trailers.
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (_reader, mut writer) = wire::split(ours);
        let mut begun = 0;
        for part in &parts {
            let queued = match part.kind {
                Kind::Head if direction == "to the runtime" => writer.call(&Call::decode(&part.payload).unwrap()),
                Kind::Head => writer.reply(&Reply::decode(&part.payload).unwrap()),
                Kind::Fault => writer.fault(&Fault::decode(&part.payload).unwrap()),
                Kind::Data => {
                    writer.data(&part.payload);
                    Ok(())
                }
                Kind::End => {
                    writer.end();
                    Ok(())
                }
                Kind::Cancel | Kind::Whole => unreachable!("not among these"),
            };
            queued.unwrap();
            begun += usize::from(part.kind == Kind::Head);
        }
        writer.flush().await.unwrap();
        drop((_reader, writer));
        let mut out = Vec::new();
        theirs.read_to_end(&mut out).await.unwrap();
        assert_eq!(hex(&out), vector["hex"].as_str().unwrap(), "{}", vector["name"]);
        written += begun;
    }
    assert!(written >= 8, "{written}");
}

/// What a runtime prints: one line for each vector. Of a head its number and its text, of a call that can be read what the function sees.
fn expected() -> String {
    let mut out = String::new();
    for vector in vectors() {
        for part in vector["parts"].as_array().unwrap() {
            let (kind, payload) = (part[0].as_str().unwrap(), part[1].as_str().unwrap());
            match kind {
                "head" => {
                    out += &format!("head:{}:{} ", u32::from_str_radix(&payload[..8], 16).unwrap(), &payload[32..]);
                }
                _ => out += &format!("{kind}:{payload} "),
            }
        }
        out += &format!("{}\n", vector["end"].as_str().unwrap());
        if let Some(call) = vector["means"][0].get("call") {
            let text = |name: &str| call[name].as_str().unwrap().to_owned();
            let mut headers: Vec<(String, String)> = Vec::new();
            for pair in call["headers"].as_array().unwrap() {
                let (name, value) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
                match headers.iter_mut().find(|(known, _)| known == name) {
                    Some((_, joint)) => *joint += &format!(", {value}"),
                    None => headers.push((name.to_owned(), value.to_owned())),
                }
            }
            let fields = ["id", "method", "path", "query", "function", "namespace", "revision"].map(text);
            let headers = headers.iter().map(|(name, value)| format!("{name}={value}"));
            out += &format!("{}\n", fields.into_iter().chain(headers).collect::<Vec<_>>().join("|"));
        }
    }
    for name in
        ["a whole reply", "a whole reply without headers and body", "a reply with a name twice and an empty value"]
    {
        let vectors = vectors();
        let vector = vectors.iter().find(|vector| vector["name"] == name).unwrap();
        out += &format!("{}\n", vector["hex"].as_str().unwrap());
    }
    out
}

#[test]
fn python_reads_and_writes_the_vectors() {
    let program = r#"
import json, socket, sys
shim = {"__name__": "shim"}
for part in "shim", "handlers":
    exec(open("%s/python3/%s.py" % (sys.argv[1], part)).read(), shim)
kinds = {2: "data", 3: "end", 4: "cancel", 5: "fault"}
for vector in json.load(open(sys.argv[2])):
    ours, theirs = socket.socketpair()
    theirs.sendall(bytes.fromhex(vector["hex"]))
    theirs.close()
    wire, out, within = shim["Wire"](ours), "", False
    while True:
        try:
            if within or (wire.at == len(wire.buffer) == 0 and vector["parts"][:1] and vector["parts"][0][0] in ("data", "end", "fault")):
                frame = wire.frame()
                if frame is None:
                    out += "clean"
                    break
                out += "%s:%s " % (kinds[frame[0]], frame[1].hex())
                within = frame[0] not in (3, 4)
                continue
            head = wire.head()
        except shim["Gone"] as error:
            out += "partial" if "ends within" in str(error) else "broken"
            break
        if head is None:
            out += "clean"
            break
        limit, text, body, whole = head
        if text is None:
            out += "cancel: "
            continue
        out += "head:%d:%s " % (limit, text.hex()) + ("data:%s " % body.hex() if body else "") + ("end: " if whole else "")
        within = not whole
    print(out)
    if "call" in vector.get("means", [{}])[0]:
        call = shim["Context"](text, 0)
        event = shim["Event"](call, b"")
        fields = [call.call_id, event.method, event.path, event.query_string, call.function, call.namespace, call.revision]
        print("|".join(fields + ["%s=%s" % pair for pair in event.headers.items()]))
for value in ["hello", {"statusCode": 204}, {"statusCode": 599, "headers": [("Set-Cookie", ["a=1", "b=2"]), ("x", "")]}]:
    ours, theirs = socket.socketpair()
    shim["respond"](shim["Wire"](ours), value)
    print(theirs.recv(65536).hex())
"#;
    assert_eq!(printed(Runtime::Python3, &["-X", "utf8", "-c"], program), expected());
}

#[test]
fn node_reads_and_writes_the_vectors() {
    let program = r#"
const parts = ['log', 'shim'].map((part) => require('fs').readFileSync(`${process.argv[1]}/node/${part}.cjs`, 'utf8'));
const shim = new (require('module'))('shim');
shim._compile(parts.join('\n'), 'shim.cjs');
const { Decoder, Head, Event, Connection } = shim.exports;
const kinds = { 2: 'data', 3: 'end', 4: 'cancel', 5: 'fault' };
const vectors = JSON.parse(require('fs').readFileSync(process.argv[2], 'utf8'));
for (const vector of vectors) {
  // Byte by byte: the decoder must not care how the stream was cut.
  const decoder = new Decoder();
  let [out, head] = ['', null];
  try {
    for (const byte of Buffer.from(vector.hex, 'hex')) {
      decoder.push(Buffer.from([byte]));
      for (let frame; (frame = decoder.next()) !== null;) {
        if (frame.kind !== 1 && frame.kind !== 6) {
          out += `${kinds[frame.kind]}:${frame.payload.toString('hex')} `;
          continue;
        }
        head = new Head(frame.payload);
        const text = frame.payload.subarray(16, frame.payload.length - head.body.length);
        out += `head:${head.deadlineMs}:${text.toString('hex')} `;
        if (head.body.length > 0) out += `data:${head.body.toString('hex')} `;
        if (frame.kind === 6) out += 'end: ';
      }
    }
    out += decoder.size === 0 ? 'clean' : 'partial';
  } catch {
    out += 'broken';
  }
  console.log(out);
  if (vector.means?.[0].call) {
    const event = new Event(head, Buffer.alloc(0));
    const fields = [head.id, event.method, event.path, event.queryString, head.function, head.namespace, head.revision];
    console.log([...fields, ...Object.entries(event.headers).map(([name, value]) => `${name}=${value}`)].join('|'));
  }
}
const headers = [['Set-Cookie', ['a=1', 'b=2']], ['x', '']];
for (const value of ['hello', { statusCode: 204 }, { statusCode: 599, headers }]) {
  const written = [];
  const socket = { on() { return this; }, write: (bytes) => written.push(bytes), destroyed: false };
  const connection = new Connection(socket, { invoke: () => value, begun() {}, ended() {} });
  connection.take(Buffer.from(vectors.find((vector) => vector.name === 'a whole call with a body').hex, 'hex'));
  process.on('exit', () => console.log(Buffer.concat(written).toString('hex')));
}
"#;
    assert_eq!(printed(Runtime::Node, &["-e"], program), expected());
}

fn printed(runtime: Runtime, flags: &[&str], program: &str) -> String {
    let output = Command::new(interpreters(runtime)[0]).args(flags).args([program, RUNTIMES, FILE]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
