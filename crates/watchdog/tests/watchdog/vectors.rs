//! `runtimes/vectors.jsonl`: the three decoders of the call protocol see the same frames in the same bytes.

use std::process::Command;

use bytes::BytesMut;
use taper_runtimes::{Runtime, interpreters};
use taper_watchdog::wire;

const RUNTIMES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtimes");

/// What a decoder prints: one line per vector, its frames as `kind:hex` and how the bytes end.
fn expected() -> String {
    let vectors = std::fs::read_to_string(format!("{RUNTIMES}/vectors.jsonl")).unwrap();
    let mut out = String::new();
    for line in vectors.lines() {
        let vector: serde_json::Value = serde_json::from_str(line).unwrap();
        for frame in vector["frames"].as_array().unwrap() {
            out += &format!("{}:{} ", frame[0], frame[1].as_str().unwrap());
        }
        out += &format!("{}\n", vector["end"].as_str().unwrap());
    }
    assert!(out.lines().count() > 10);
    out
}

#[test]
fn rust_reads_the_vectors() {
    let vectors = std::fs::read_to_string(format!("{RUNTIMES}/vectors.jsonl")).unwrap();
    let mut out = String::new();
    for line in vectors.lines() {
        let vector: serde_json::Value = serde_json::from_str(line).unwrap();
        let hex = vector["hex"].as_str().unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let mut buffer = BytesMut::from(&bytes[..]);
        let end = loop {
            match wire::decode(&mut buffer) {
                Ok(Some(frame)) => {
                    let payload: String = frame.payload.iter().map(|b| format!("{b:02x}")).collect();
                    out += &format!("{}:{payload} ", frame.kind as u8);
                }
                Ok(None) if buffer.is_empty() => break "clean",
                Ok(None) => break "partial",
                Err(_) => break "broken",
            }
        };
        out += &format!("{end}\n");
    }
    assert_eq!(out, expected());
}

#[test]
fn python_reads_the_vectors() {
    let program = r#"
import json, runpy, socket, sys
shim = runpy.run_path(sys.argv[1] + "/python3/shim.py")
for line in open(sys.argv[1] + "/vectors.jsonl"):
    ours, theirs = socket.socketpair()
    theirs.sendall(bytes.fromhex(json.loads(line)["hex"]))
    theirs.close()
    wire, out = shim["Wire"](ours), ""
    while True:
        try:
            frame = wire.frame()
        except shim["Gone"] as error:
            out += "partial" if "ends within" in str(error) else "broken"
            break
        if frame is None:
            out += "clean"
            break
        out += "%d:%s " % (frame[0], frame[1].hex())
    print(out)
"#;
    assert_eq!(printed(Runtime::Python3, "-c", program), expected());
}

#[test]
fn node_reads_the_vectors() {
    let program = r#"
const { Decoder } = require(process.argv[1] + '/node/shim.cjs');
for (const line of require('fs').readFileSync(process.argv[1] + '/vectors.jsonl', 'utf8').trim().split('\n')) {
  // Byte by byte: the decoder must not care how the stream was cut.
  const decoder = new Decoder();
  let out = '';
  try {
    for (const byte of Buffer.from(JSON.parse(line).hex, 'hex')) {
      decoder.push(Buffer.from([byte]));
      for (let frame; (frame = decoder.next()) !== null;) out += `${frame.kind}:${frame.payload.toString('hex')} `;
    }
    out += decoder.size === 0 ? 'clean' : 'partial';
  } catch {
    out += 'broken';
  }
  console.log(out);
}
"#;
    assert_eq!(printed(Runtime::Node, "-e", program), expected());
}

fn printed(runtime: Runtime, flag: &str, program: &str) -> String {
    let output = Command::new(interpreters(runtime)[0]).args([flag, program, RUNTIMES]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
