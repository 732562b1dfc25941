use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use vm_memory::{Bytes, GuestAddress};

use super::erase::UNMAP;
use super::request::SECTOR;
use super::*;
use crate::virtio::testing::{DATA, Driver, INDIRECT, NEXT, WRITE, close, queues, ram};

mod bounds;
mod counted;
mod in_flight;
mod limits;
mod replace;
mod resets;
mod shape;

const SECTORS: u64 = 64;
/// Where a request's header, data and status lie.
const HEADER_AT: u64 = DATA;
const DATA_AT: u64 = DATA + 0x1000;
const STATUS_AT: u64 = DATA + 0x800;

/// Every test runs on both. User-mode emulation knows no io_uring; the lab has it everywhere.
fn engines() -> Vec<BlkEngine> {
    match Uring::new(1) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            eprintln!("io_uring skipped: {error}");
            vec![BlkEngine::Sync]
        }
        _ => vec![BlkEngine::Sync, BlkEngine::IoUring],
    }
}

struct Bench {
    disk: Block,
    queues: Queues,
    driver: Driver,
    file: tempfile::NamedTempFile,
}

fn options(path: &Path, read_only: bool) -> BlkConfig {
    BlkConfig {
        path: path.to_owned(),
        read_only,
        serial: "test-disk".to_owned(),
        ..BlkConfig::default()
    }
}

fn bench(engine: BlkEngine, read_only: bool) -> Bench {
    bench_with(|config| BlkConfig {
        engine,
        read_only,
        ..config
    })
}

fn bench_with(change: impl FnOnce(BlkConfig) -> BlkConfig) -> Bench {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..SECTORS {
        let byte = u8::try_from(sector).unwrap();
        file.write_all(&[byte; 512]).unwrap();
    }
    let ram = ram();
    Bench {
        disk: Block::open(&change(options(file.path(), false))).unwrap(),
        queues: queues(&ram, 1),
        driver: Driver::new(&ram),
        file,
    }
}

impl Bench {
    fn header(&self, kind: u32, sector: u64) {
        let [low, high] = [sector & u64::from(u32::MAX), sector >> 32];
        let words = [
            kind,
            0,
            u32::try_from(low).unwrap(),
            u32::try_from(high).unwrap(),
        ];
        self.driver.put(HEADER_AT, words);
        self.driver.put(STATUS_AT, 0xffu8);
    }

    /// Runs a request of these buffers; gives the status and the length in the used ring.
    fn run(&mut self, buffers: &[(u64, u32, bool)]) -> (u8, u32) {
        self.driver.request(buffers);
        let used = self.driver.serve(&mut self.disk, &mut self.queues);
        assert_eq!(used.len(), 1);
        (self.driver.get(STATUS_AT), used[0].1)
    }

    /// A request with one data buffer.
    fn request(&mut self, kind: u32, sector: u64, len: u32, writable: bool) -> (u8, u32) {
        self.header(kind, sector);
        self.run(&[
            (HEADER_AT, 16, false),
            (DATA_AT, len, writable),
            (STATUS_AT, 1, true),
        ])
    }

    fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        self.file
            .reopen()
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        content
    }
}

/// VIRTIO_BLK_S_OK, _IOERR, _UNSUPP.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

#[test]
fn sectors_are_read_and_written_in_place() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 1024, true), (OK, 1025));
        assert_eq!(bench.driver.get::<[u8; 2]>(DATA_AT + 511), [3, 4]);
        bench.driver.put(DATA_AT, 0xaa_u8);
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 63, 512, false), (OK, 1));
        let content = bench.content();
        assert_eq!((content[62 * 512], content[63 * 512]), (62, 0xaa));
        assert_eq!(content.len() as u64, SECTORS * SECTOR);
        assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, true), (OK, 1));
    }
}

#[test]
fn buffers_may_be_cut_anywhere() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        bench.header(VIRTIO_BLK_T_IN, 1);
        let cut = [
            (HEADER_AT, 5, false),
            (HEADER_AT + 5, 11, false),
            (DATA_AT, 100, true),
            (DATA_AT + 100, 412, true),
            (STATUS_AT, 1, true),
        ];
        assert_eq!(bench.run(&cut), (OK, 513));
        assert_eq!(bench.driver.get::<[u8; 2]>(DATA_AT + 99), [1, 1]);
        // The status may be the end of the data buffer.
        bench.header(VIRTIO_BLK_T_IN, 2);
        bench
            .driver
            .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
        let used = bench.driver.serve(&mut bench.disk, &mut bench.queues);
        assert_eq!(used, [(0, 513)]);
        assert_eq!(bench.driver.get::<[u8; 2]>(DATA_AT + 511), [2, OK]);
    }
}

#[test]
fn a_request_may_have_hundreds_of_buffers() {
    for engine in engines() {
        const BUFFERS: u16 = 320;
        const LEN: u32 = 64;
        let mut bench = bench(engine, false);
        bench.header(VIRTIO_BLK_T_IN, 5);
        let table = DATA + 0x2_0000;
        let driver = &mut bench.driver;
        driver.descriptor_at(table, 0, HEADER_AT, 16, NEXT, 1);
        for index in 0..BUFFERS {
            let at = DATA_AT + u64::from(index) * u64::from(LEN);
            driver.descriptor_at(table, index + 1, at, LEN, WRITE | NEXT, index + 2);
        }
        driver.descriptor_at(table, BUFFERS + 1, STATUS_AT, 1, WRITE, 0);
        driver.descriptor(0, table, 16 * u32::from(BUFFERS + 2), INDIRECT, 0);
        driver.offer(0);
        let used = bench.driver.serve(&mut bench.disk, &mut bench.queues);
        let len = LEN * u32::from(BUFFERS);
        assert_eq!(used, [(0, len + 1)]);
        assert_eq!(bench.driver.get::<u8>(STATUS_AT), OK);
        for sector in 0..u64::from(len) / SECTOR {
            let byte: u8 = bench.driver.get(DATA_AT + sector * SECTOR + 100);
            assert_eq!(u64::from(byte), sector + 5);
        }
    }
}

#[test]
fn nothing_beyond_the_disk_is_touched() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        let before = bench.content();
        for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
            for (kind, writable) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
                assert_eq!(
                    bench.request(kind, sector, 1024, writable),
                    (IOERR, 1),
                    "{sector}"
                );
            }
        }
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, 511, false), (IOERR, 1));
        assert_eq!(bench.content(), before);
    }
}

#[test]
fn r17_a_read_only_disk_refuses_every_write() {
    for engine in engines() {
        let mut bench = bench(engine, true);
        let before = bench.content();
        bench.driver.put(DATA_AT, [1u32, 0, 1, 0]);
        for kind in [
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_DISCARD,
            VIRTIO_BLK_T_WRITE_ZEROES,
        ] {
            let len = if kind == VIRTIO_BLK_T_OUT { 512 } else { 16 };
            assert_eq!(bench.request(kind, 0, len, false), (IOERR, 1));
        }
        assert_eq!(bench.content(), before);
        assert_ne!(bench.disk.features() & 1 << VIRTIO_BLK_F_RO, 0);
    }
}

#[test]
fn r16_ranges_are_zeroed_inside_the_disk_only() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        let range = |sector: u32, count: u32, flags: u32| [sector, 0, count, flags];
        for (kind, flags) in [
            (VIRTIO_BLK_T_DISCARD, 0),
            (VIRTIO_BLK_T_WRITE_ZEROES, 0),
            (VIRTIO_BLK_T_WRITE_ZEROES, UNMAP),
        ] {
            bench
                .file
                .as_file()
                .write_all_at(&[7; 1024], 8 * SECTOR)
                .unwrap();
            bench.driver.put(DATA_AT, range(8, 2, flags));
            assert_eq!(bench.request(kind, 0, 16, false), (OK, 1));
            let content = bench.content();
            assert_eq!(
                (content[8 * 512], content[10 * 512 - 1], content[10 * 512]),
                (0, 0, 10)
            );
            for wrong in [
                range(63, 2, flags),
                range(u32::MAX, u32::MAX, flags),
                range(0, 1 << 23, flags),
            ] {
                bench.driver.put(DATA_AT, wrong);
                assert_eq!(bench.request(kind, 0, 16, false), (IOERR, 1));
            }
            bench.driver.put(DATA_AT, range(0, 1, 2));
            assert_eq!(bench.request(kind, 0, 16, false), (UNSUPP, 1));
            assert_eq!(
                bench.request(kind, 0, 15, false),
                (IOERR, 1),
                "a range that is cut off"
            );
        }
        assert_eq!(bench.content().len() as u64, SECTORS * SECTOR);
    }
}

#[test]
fn the_serial_number_fits_any_buffer() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, 20, true), (OK, 21));
        assert_eq!(&bench.driver.get::<[u8; 12]>(DATA_AT), b"test-disk\0\0\0");
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, 4, true), (OK, 5));
    }
}

#[test]
fn r14_requests_without_their_parts_are_answered_as_far_as_possible() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        bench.header(VIRTIO_BLK_T_IN, 0);
        assert_eq!(
            bench.run(&[(HEADER_AT, 15, false), (STATUS_AT, 1, true)]),
            (IOERR, 1)
        );
        bench.driver.put(STATUS_AT, 0xffu8);
        assert_eq!(bench.run(&[(STATUS_AT, 1, true)]), (IOERR, 1));
        bench.driver.put(STATUS_AT, 0xffu8);
        assert_eq!(
            bench.run(&[(HEADER_AT, 16, false)]),
            (0xff, 0),
            "no place for an answer"
        );
        assert_eq!(bench.request(99, 0, 0, true), (UNSUPP, 1));
    }
}

#[test]
fn r44_a_file_that_shrinks_under_the_disk_is_an_io_error() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        bench.file.as_file().set_len(512).unwrap();
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true), (IOERR, 1));
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 512, true), (OK, 513));
    }
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let open = |read_only| Block::open(&options(file.path(), read_only));
    let readers = [open(true).unwrap(), open(true).unwrap()];
    assert!(matches!(open(false), Err(BlockError::InUse { .. })));
    close(readers);
    let writer = open(false).unwrap();
    assert!(matches!(open(true), Err(BlockError::InUse { .. })));
    close(writer);
    open(true).unwrap();
}

#[test]
fn r18_what_looks_like_another_format_is_as_raw_as_anything() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        // The head of a qcow2 image that names a backing file, written by the guest.
        bench
            .driver
            .put(DATA_AT, *b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x20");
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, 512, false), (OK, 1));
        let before = bench.content();
        let file = bench.file;
        let again = Block::open(&options(file.path(), false));
        assert!(matches!(again, Err(BlockError::InUse { .. })));
        close(bench.disk);
        let disk = Block::open(&options(file.path(), false)).unwrap();
        assert_eq!(disk.sectors, SECTORS);
        assert_eq!(before[..4], *b"QFI\xfb");
    }
}

#[test]
fn what_is_no_disk_is_refused() {
    let open = |path: &str, read_only| Block::open(&options(Path::new(path), read_only));
    assert!(matches!(open("/dev/null", false), Err(BlockError::Kind(_))));
    assert!(matches!(open("/tmp", true), Err(BlockError::Directory)));
    assert!(matches!(
        open("/nonexistent", true),
        Err(BlockError::Missing { .. })
    ));
}

#[test]
fn the_configuration_has_the_layout_of_the_specification() {
    for engine in engines() {
        let bench = bench(engine, false);
        let mut config = [0; 60];
        bench.disk.config().read(0, &mut config);
        let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(20)), (64, 512), "capacity, block size");
        assert_eq!(word(12), 254, "segments");
        assert_eq!(config[34..36], [1, 0], "queues");
        assert_eq!((word(40), word(52), config[56]), (32, 1, 1));
    }
}

#[test]
fn every_option_reaches_the_guest() {
    let bench = bench_with(|config| BlkConfig {
        queues: 4,
        queue_size: 64,
        discard: false,
        ..config
    });
    assert_eq!(bench.disk.queue_sizes(), [64; 4]);
    let features = bench.disk.features();
    assert_ne!(features & 1 << VIRTIO_BLK_F_MQ, 0);
    assert_eq!(features & 1 << VIRTIO_BLK_F_DISCARD, 0);
    let mut config = [0; 60];
    bench.disk.config().read(0, &mut config);
    assert_eq!((config[12], config[34]), (62, 4), "segments, queues");
    assert_eq!(config[56], 0, "zeroes may not become holes");
}

#[test]
fn r41_a_flush_and_every_write_without_flushes_reach_the_disk() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), (OK, 1));
        bench.disk.start(0);
        assert!(bench.disk.write_through, "a driver without flushes");
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 3, 512, false), (OK, 1));
        assert_eq!(bench.content()[3 * 512..4 * 512], [0; 512]);
        bench.disk.start(1 << VIRTIO_BLK_F_FLUSH);
        assert!(!bench.disk.write_through);
    }
}

const ONE_BYTE_A_SECOND: crate::config::Limits = crate::config::Limits {
    bw: Some(1),
    bw_burst: Some(1),
    bw_refill: None,
    bw_once: None,
    iops: None,
    iops_burst: None,
    iops_refill: None,
    iops_once: None,
};

#[test]
fn direct_io_takes_any_buffer() {
    // The file system of temporary files may refuse direct I/O as such.
    let open = || {
        bench_with(|config| BlkConfig {
            direct: true,
            ..config
        })
    };
    let Ok(mut bench) = std::panic::catch_unwind(open) else {
        eprintln!("skipped: no direct I/O on temporary files");
        return;
    };
    let block = bench.disk.alignment;
    assert!(block >= 512 && block.is_power_of_two());
    for at in [DATA_AT, DATA_AT + 3] {
        bench.header(VIRTIO_BLK_T_IN, 8);
        let buffers = [
            (HEADER_AT, 16, false),
            (at, 4096, true),
            (STATUS_AT, 1, true),
        ];
        assert_eq!(bench.run(&buffers), (OK, 4097), "at {at:#x}");
        assert_eq!(bench.driver.get::<u8>(at), 8);
        assert_eq!(bench.driver.get::<u8>(at + 4095), 15);
    }
}

#[test]
fn zeroes_are_written_where_the_file_system_cannot_make_them() {
    // tmpfs punches holes but knows no ZERO_RANGE.
    let Ok(mut file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm");
        return;
    };
    file.write_all(&[1; 4096]).unwrap();
    let mut bench = bench_with(|config| BlkConfig {
        path: file.path().to_owned(),
        ..config
    });
    for (first, flags) in [(1, 0), (3, UNMAP)] {
        bench.driver.put(DATA_AT, [first, 0, 1, flags]);
        let kind = VIRTIO_BLK_T_WRITE_ZEROES;
        assert_eq!(bench.request(kind, 0, 16, false), (OK, 1), "{flags}");
        // What had to be written counts; a hole costs nothing.
        assert_eq!(bench.disk.zeroed, if flags == UNMAP { 0 } else { SECTOR });
    }
    let content = std::fs::read(file.path()).unwrap();
    let sectors: Vec<_> = content.chunks(512).map(|sector| sector[100]).collect();
    assert_eq!(sectors, [1, 0, 1, 0, 1, 1, 1, 1]);
}

#[test]
fn r38_empty_buffers_may_lie_anywhere() {
    let end = crate::virtio::testing::RAM as u64;
    for engine in engines() {
        let mut bench = bench(engine, false);
        bench.header(VIRTIO_BLK_T_OUT, 3);
        // A header at the very end of RAM, and buffers without a byte that are nowhere.
        let header: [u32; 4] = bench.driver.get(HEADER_AT);
        bench.driver.put(end - 16, header);
        bench.driver.put(DATA_AT, [0xaaaa_aaaa_u32; 32]);
        let buffers = [
            (u64::MAX, 0, false),
            (end - 16, 16, false),
            (0x7_0000_0000, 0, false),
            (DATA_AT, 512, false),
            (STATUS_AT, 1, true),
            (end, 0, true),
        ];
        assert_eq!(bench.run(&buffers), (OK, 1));
        assert_eq!(bench.content()[3 * 512..3 * 512 + 128], [0xaa; 128]);
    }
}
