//! A saved machine's state from nowhere, whose checksums fit: read and judged, or refused. Never a panic, and nothing
//! in it is a size that memory is taken for.
#![no_main]

use std::fs::File;
use std::io::Write;

use arch_aarch64::Aarch64;
use arch_riscv64::Riscv64;
use arch_x86_64::X86_64;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use vmm_reference::Snapshot;

/// The container (`src/snapshot/file.rs`): where the number of sections is, where their table begins and how long an
/// entry of it is; in an entry, where the checksum, the offset and the length are.
const COUNT: usize = 20;
const TABLE: usize = 24;
const ENTRY: usize = 48;
const CHECKSUM: usize = 28;
const OFFSET: usize = 32;
const LENGTH: usize = 40;

/// Makes all checksums right, as far as there is a place for them.
fn seal(state: &mut [u8]) -> Option<()> {
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let count = u32::from_le_bytes(state.get(COUNT..TABLE)?.try_into().ok()?);
    let end = TABLE + ENTRY * usize::try_from(count).ok().filter(|count| *count <= 64)?;
    for entry in (TABLE..end).step_by(ENTRY) {
        let (start, len) = (
            number(state, entry + OFFSET)?,
            number(state, entry + LENGTH)?,
        );
        if let Some(section) = state.get(start..start.saturating_add(len)) {
            let checksum = crc32fast::hash(section).to_le_bytes();
            let place = state.get_mut(entry + CHECKSUM..entry + CHECKSUM + 4)?;
            place.copy_from_slice(&checksum);
        }
    }
    let checksum = crc32fast::hash(state.get(..end)?).to_le_bytes();
    state.get_mut(end..end + 4)?.copy_from_slice(&checksum);
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let mut state = data.to_vec();
    seal(&mut state);
    let mut file = File::from(memfd_create("state", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(&state).expect("memory for the file");
    seek(&file, SeekFrom::Start(0)).expect("a file's start");
    if let Ok(snapshot) = Snapshot::read("state", file) {
        assert_eq!(
            snapshot.plan().ram_size(),
            snapshot.config().guest_memory.bytes()
        );
        let files = snapshot.memory_files();
        assert!(files.iter().all(|name| !name.contains('/')));
        // Only a platform can read the rest.
        let _ = snapshot.differences(&mut Aarch64::typical());
        let _ = snapshot.differences(&mut Riscv64::typical());
        let _ = snapshot.differences(&mut X86_64::typical());
    }
});
