//! Names, quantities, digests, call ids: what is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_model::{
    CallId, Digest, FunctionName, Name,
    quantity::{Cpu, Memory, Span},
};

fuzz_target!(|text: &str| {
    if let Ok(name) = Name::new(text) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(name) = FunctionName::parse(text) {
        assert_eq!(FunctionName::parse(&name.to_string()).as_ref(), Ok(&name));
        assert_eq!(FunctionName::parse(&name.openfaas()), Ok(name));
    }
    if let Ok(memory) = text.parse::<Memory>() {
        assert_eq!(memory.to_string().parse(), Ok(memory));
    }
    if let Ok(cpu) = text.parse::<Cpu>() {
        assert_eq!(cpu.to_string().parse(), Ok(cpu));
    }
    if let Ok(span) = text.parse::<Span>() {
        let _ = span.to_string();
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    let _ = CallId::given(text);
});
