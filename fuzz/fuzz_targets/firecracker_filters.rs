//! Files for `seccompiler-bin` and of it: of any bytes, programs within their limits or an error; what is read is written
//! as it was, and what was made of JSON is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_firecracker::seccomp::compile::compile;
use vmm_firecracker::seccomp::container::{
    LONGEST_PROGRAM, MAGIC, MOST_PROGRAMS, Programs, VERSION,
};

fn check(programs: &Programs) {
    assert!(programs.programs.len() <= MOST_PROGRAMS);
    let lengths = programs.programs.values().map(Vec::len);
    assert!(lengths.max().unwrap_or_default() <= LONGEST_PROGRAM);
}

fuzz_target!(|data: &[u8]| {
    if let Ok(programs) = Programs::read(data) {
        check(&programs);
        assert_eq!(programs.to_bytes().as_deref(), Ok(data));
    }
    // With a beginning that seldom comes about.
    let whole = [&MAGIC[..], &VERSION.to_le_bytes(), data].concat();
    if let Ok(programs) = Programs::read(&whole) {
        check(&programs);
    }
    if let Ok(programs) = compile(data, "x86_64", data.len().is_multiple_of(2)) {
        check(&programs);
        if let Ok(bytes) = programs.to_bytes() {
            assert_eq!(Programs::read(&bytes), Ok(programs));
        }
    }
});
