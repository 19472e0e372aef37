//! What a function's own server answers: read whole and in pieces it is the same reply, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_local::read_for_fuzzing as read;

fuzz_target!(|data: &[u8]| {
    let Some((&[size, flags], text)) = data.split_first_chunk() else { return };
    let head = flags & 1 == 1;
    let pieces: Vec<&[u8]> = text.chunks(usize::from(size).max(1)).collect();
    let (whole, pieces) = (read(&[text], head), read(&pieces, head));
    match (whole, pieces) {
        (Some((one, first)), Some((two, second))) => {
            assert_eq!((one.status(), one.headers(), first), (two.status(), two.headers(), second));
        }
        (whole, pieces) => assert!(whole.is_none() && pieces.is_none(), "the pieces make a difference"),
    }
});
