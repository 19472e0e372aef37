//! The call protocol: frames in any pieces, and what is inside them.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use taper_watchdog::wire::{self, Call, Fault, Kind, Reply, Trailers};

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = wire::decode(&mut buffer) {
        let mut again = BytesMut::new();
        wire::encode(frame.kind, &frame.payload, &mut again).expect("what was read can be written");
        assert_eq!(wire::decode(&mut again).expect("and read").expect("whole").payload, frame.payload);
        let (size, mut taken) = (frame.payload.len(), 0);
        let read = wire::parts(frame, |part| {
            assert_ne!(part.kind, Kind::Whole);
            taken += part.payload.len();
            if let Ok(call) = Call::decode(&part.payload) {
                assert!(part.kind != Kind::Head || call.headers.len() <= size);
            }
            if let Ok(reply) = Reply::decode(&part.payload) {
                assert!((200..=599).contains(&reply.status) && reply.headers.iter().count() <= size);
            }
            let _ = Trailers::decode(&part.payload);
            let _ = Fault::decode(&part.payload);
        });
        assert!(read.is_err() || taken == size, "nothing is lost");
    }
});
