//! The replay's answers, byte for byte, and its refusals.

use taper_autoscaler::{Error, replay};

const POLICY: &str = r#"{"targetValue": 70, "totalValue": 100, "targetBurstCapacity": 211, "maxScaleUpRate": 1000, "maxScaleDownRate": 2, "panicThreshold": 2.0, "stableWindow": 60, "scaleDownDelay": 0, "reachable": true, "activationScale": 1}"#;

fn run(input: &str) -> Result<String, (String, Error)> {
    let mut output = Vec::new();
    let result = replay(input.as_bytes(), &mut output);
    let output = String::from_utf8(output).expect("the answers are text");
    match result {
        Ok(()) => Ok(output),
        Err(error) => Err((output, error)),
    }
}

fn refusal(input: &str) -> String {
    run(input).expect_err("refused").1.to_string()
}

#[test]
fn a_burst_and_its_end() {
    let input = format!(
        r#"{{"policy": {POLICY}, "ready": 0, "epoch": 1700000000}}
{{"at": 0, "ready": 0, "stable": null, "panic": null}}
{{"at": 2, "ready": 0, "stable": 10, "panic": 10}}
{{"at": 4, "ready": 1, "stable": 80, "panic": 150}}

{{"at": 6, "ready": 3, "stable": 60, "panic": 30}}
{{"at": 64, "ready": 3, "stable": 5, "panic": 5}}
{{"at": 64.5, "ready": 3, "stable": 5, "panic": 5}}
{{"at": 66, "ready": 3, "stable": 5, "panic": null}}"#
    );
    // By hand: 10/70 → 1. 80/70 → 2 and 150/70 → 3 on one instance, a panic of 3. It holds up to and with 4 + 60.
    // Excess: ready × 100 − 211 − panic; before the first decision that of one instance without load.
    assert_eq!(
        run(&input).expect("well formed"),
        r#"{"at":0,"valid":false,"want":-1,"excessBurstCapacity":-111,"panicking":false}
{"at":2,"valid":true,"want":1,"excessBurstCapacity":-221,"panicking":false}
{"at":4,"valid":true,"want":3,"excessBurstCapacity":-261,"panicking":true}
{"at":6,"valid":true,"want":3,"excessBurstCapacity":59,"panicking":true}
{"at":64,"valid":true,"want":3,"excessBurstCapacity":84,"panicking":true}
{"at":64.5,"valid":true,"want":1,"excessBurstCapacity":84,"panicking":false}
{"at":66,"valid":false,"want":1,"excessBurstCapacity":84,"panicking":false}
"#
    );
}

#[test]
fn a_restart_with_a_delay() {
    // Built with four ready: a panic of 4 until after 6 s. Then the delay of four seconds, two slots from an odd epoch.
    let input = r#"{"policy": {"targetValue": 10, "targetBurstCapacity": 0, "stableWindow": 6, "scaleDownDelay": 4}, "ready": 4, "epoch": 1001}
{"at": 0, "ready": 4, "stable": 1, "panic": 1}
{"at": 6, "ready": 4, "stable": 1, "panic": 1}
{"at": 7, "ready": 4, "stable": 1, "panic": 1}
{"at": 8.5, "ready": 4, "stable": 1, "panic": 1}
{"at": 9, "ready": 4, "stable": 1, "panic": 1}
{"at": 11, "ready": 2, "stable": 0, "panic": 0}
{"at": 13, "ready": 2, "stable": 0, "panic": 0}
"#;
    // Slots: 1001 → 500, 1007 → 503, 1008 and 1009.5 → 504, 1010 → 505, 1012 → 506, 1014 → 507.
    assert_eq!(
        run(input).expect("well formed"),
        r#"{"at":0,"valid":true,"want":4,"excessBurstCapacity":0,"panicking":true}
{"at":6,"valid":true,"want":4,"excessBurstCapacity":0,"panicking":true}
{"at":7,"valid":true,"want":4,"excessBurstCapacity":0,"panicking":false}
{"at":8.5,"valid":true,"want":4,"excessBurstCapacity":0,"panicking":false}
{"at":9,"valid":true,"want":2,"excessBurstCapacity":0,"panicking":false}
{"at":11,"valid":true,"want":2,"excessBurstCapacity":0,"panicking":false}
{"at":13,"valid":true,"want":1,"excessBurstCapacity":0,"panicking":false}
"#
    );
}

#[test]
fn refusals_name_the_line() {
    let head = format!(r#"{{"policy": {POLICY}, "ready": 0, "epoch": 0}}"#);
    let after = |line: &str| refusal(&format!("{head}\n\n{line}\n"));

    assert!(refusal("").starts_with("replay, line 1: there is none; the first line is"));
    assert!(refusal("{").starts_with("replay, line 1: EOF while parsing an object (column 1)"));
    assert!(refusal(r#"{"policy": {}, "ready": 0}"#).contains("line 1: missing field `epoch`"));
    assert!(refusal(r#"{"policy": {"target": 7}, "ready": 0, "epoch": 0}"#).contains("line 1: unknown field `target`"));
    assert_eq!(
        refusal(r#"{"policy": {"targetValue": 0}, "ready": 0, "epoch": 0}"#),
        "replay, line 1: `policy.targetValue` is 0; it must be more than 0"
    );
    assert_eq!(
        refusal(r#"{"policy": {"stableWindow": -1}, "ready": 0, "epoch": 0}"#),
        "replay, line 1: `policy.stableWindow` is -1; it must be seconds, 0 or more"
    );
    assert!(refusal(r#"{"policy": {}, "ready": 0, "epoch": 1e300}"#).contains("line 1: `epoch` is 1"));
    assert!(after(r#"{"at": 0, "ready": 0, "stable": 1}"#).contains("line 3: missing field `panic`"));
    assert!(
        after(r#"{"at": 0, "ready": 0, "stable": 1, "panic": 1, "rps": 1}"#).contains("line 3: unknown field `rps`")
    );
    assert!(
        after(r#"{"at": 0, "ready": -1, "stable": 1, "panic": 1}"#).contains("line 3: invalid value: integer `-1`")
    );
    assert!(after(r#"{"at": -1, "ready": 0, "stable": 1, "panic": 1}"#).contains("line 3: `at` is -1"));
    assert!(after(r#"{"at": 0, "ready": 0, "stable": 1e999, "panic": 1}"#).contains("line 3: number out of range"));
    assert!(after(r#"{"at": 0, "ready": 0, "stable": "1", "panic": 1}"#).contains("line 3: invalid type: string"));
    assert!(after(&" ".repeat(70_000)).contains("line 3: longer than 65536 bytes"));
    assert!(refusal(r#"{"policy": {}, "ready": 0, "epoch": 0} {}"#).contains("line 1: trailing characters"));
}

#[test]
fn what_came_before_a_refusal_is_answered() {
    let moment = |at| format!(r#"{{"at": {at}, "ready": 1, "stable": 7, "panic": 7}}"#);
    let input = format!("{{\"policy\": {{}}, \"ready\": 0, \"epoch\": 0}}\n{}\n{}\n", moment(2), moment(1));
    let (output, error) = run(&input).expect_err("time runs backwards");
    assert_eq!(output, "{\"at\":2,\"valid\":true,\"want\":1,\"excessBurstCapacity\":-118,\"panicking\":false}\n");
    assert_eq!(
        error.to_string(),
        "replay, line 3: `at` is before that of the line above; a replay runs forward in time"
    );
}

#[test]
fn bytes_that_are_not_text_are_refused() {
    let mut output = Vec::new();
    let error = replay(&b"\xff\xfe{}\n"[..], &mut output).expect_err("not JSON");
    assert!(error.to_string().starts_with("replay, line 1: expected value"), "{error}");
}

#[test]
fn a_writer_that_fails_is_reported() {
    let input =
        "{\"policy\": {}, \"ready\": 0, \"epoch\": 0}\n{\"at\": 0, \"ready\": 0, \"stable\": null, \"panic\": null}\n";
    let error = replay(input.as_bytes(), &mut [0u8; 4][..]).expect_err("there is room for four bytes");
    assert!(error.to_string().starts_with("replay, line 2: its answer cannot be written"), "{error}");
}

#[test]
fn a_habit_and_what_follows_from_it() {
    let input = r#"{"worth": 60}
{"begin": 0, "end": 0.5}
{"begin": 300, "end": 300.5}

{"begin": 600, "end": 600.5}
{"begin": 900, "end": 901}
{"begin": 1200, "end": 1200.5}
{"begin": 1201, "end": 1201.25}
{"begin": 1500.5, "end": 1501}"#;
    assert_eq!(
        run(input).expect("well formed"),
        r#"{"begin":0,"idle":null,"start":"cold","keep":60.0,"ahead":null,"because":"too few calls to know more"}
{"begin":300,"idle":299.5,"start":"cold","keep":60.0,"ahead":null,"because":"too few calls to know more"}
{"begin":600,"idle":299.5,"start":"cold","keep":60.0,"ahead":null,"because":"too few calls to know more"}
{"begin":900,"idle":299.5,"start":"cold","keep":2.0,"ahead":[297.0,302.0],"because":"the last calls came after 299s each"}
{"begin":1200,"idle":299.0,"start":"ahead","keep":2.0,"ahead":[297.0,302.0],"because":"the last calls came after 299s each"}
{"begin":1201,"idle":0.5,"start":"warm","keep":2.0,"ahead":[297.0,302.0],"because":"the last calls came after 299s each"}
{"begin":1500.5,"idle":299.25,"start":"ahead","keep":2.0,"ahead":[297.0,302.0],"because":"the last calls came after 299s each"}
"#
    );
    for (line, words) in [
        (r#"{"begin": 5}"#, "line 3: missing field `end`"),
        (r#"{"begin": 5, "end": 6, "at": 7}"#, "line 3: unknown field `at`"),
        (r#"{"begin": 1, "end": 6}"#, "line 3: `begin` is before that of the line above"),
        (r#"{"begin": 5, "end": 4}"#, "or after `end`"),
        (r#"{"begin": -5, "end": 4}"#, "`begin` is -5; it must be seconds"),
    ] {
        let text = refusal(&format!("{{\"worth\": 60}}\n{{\"begin\": 2, \"end\": 3}}\n{line}"));
        assert!(text.contains(words), "{text}");
    }
    assert!(refusal(r#"{"worth": -1}"#).contains("`worth` is -1"));
    assert!(refusal(r#"{"worth": 60, "policy": {}}"#).contains("unknown field `policy`"));
}
