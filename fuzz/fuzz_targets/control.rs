//! The control channel's messages, both ways.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_watchdog::control::{Order, Report};

fuzz_target!(|data: &[u8]| {
    if let Ok(order) = serde_json::from_slice::<Order>(data) {
        let _ = serde_json::to_vec(&order).expect("an order can be written");
    }
    if let Ok(report) = serde_json::from_slice::<Report>(data) {
        let _ = serde_json::to_vec(&report).expect("a report can be written");
    }
});
