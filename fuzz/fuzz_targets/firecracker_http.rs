//! Bytes from a client of the front end `firecracker`: requests or a refusal, the same wherever the bytes are cut. Never a
//! panic, and no body beyond its limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_firecracker::http::{Decoder, Request, Step};

const LIMIT: usize = 4096;

/// The requests in bytes that come in parts of this length, and whether one was refused.
fn requests(bytes: &[u8], part: usize) -> (Vec<Request>, bool) {
    let mut decoder = Decoder::new(LIMIT);
    let (mut buffer, mut requests) = (Vec::new(), Vec::new());
    for part in bytes.chunks(part) {
        buffer.extend_from_slice(part);
        loop {
            let (step, used) = decoder.step(&buffer);
            buffer.drain(..used);
            match step {
                Step::More => break,
                Step::Say(_) => {}
                Step::Request(request) => {
                    assert!(request.body.as_ref().is_none_or(|body| body.len() <= LIMIT));
                    assert!(request.path.starts_with('/'));
                    requests.push(request);
                }
                Step::Refused(response) => {
                    assert!(response.close && !response.to_bytes().is_empty());
                    return (requests, true);
                }
            }
        }
    }
    (requests, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((part, bytes)) = data.split_first() else {
        return;
    };
    let whole = requests(bytes, bytes.len().max(1));
    assert_eq!(requests(bytes, usize::from(*part).max(1)), whole);
});
