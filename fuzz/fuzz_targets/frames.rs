//! The call protocol: frames in any pieces, and what is inside them.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use taper_watchdog::wire::{self, Call, Fault, Reply, Trailers};

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = wire::decode(&mut buffer) {
        let mut again = BytesMut::new();
        wire::encode(frame.kind, &frame.payload, &mut again).expect("what was read can be written");
        assert_eq!(wire::decode(&mut again).expect("and read").expect("whole").payload, frame.payload);
        let _ = Call::decode(&frame.payload);
        let _ = Reply::decode(&frame.payload);
        let _ = Trailers::decode(&frame.payload);
        let _ = Fault::decode(&frame.payload);
    }
});
