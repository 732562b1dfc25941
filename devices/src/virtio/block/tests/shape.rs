//! A disk's shape comes from its image or device, never from what the host aligns to.

use super::*;

/// A disk of this many bytes, each with its sector's number.
fn sized(bytes: usize, direct: bool) -> Option<Bench> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..bytes)
        .map(|at| u8::try_from(at / 512 % 251).unwrap())
        .collect();
    file.write_all(&content).unwrap();
    let config = BlkConfig {
        direct,
        ..options(file.path(), false)
    };
    let ram = ram();
    let disk = match Block::open(&config) {
        Err(BlockError::Direct) => {
            eprintln!("skipped: no direct I/O on temporary files");
            return None;
        }
        disk => disk.unwrap(),
    };
    Some(Bench {
        disk,
        queues: queues(&ram, 1),
        driver: Driver::new(&ram),
        file,
    })
}

fn shape_of(disk: &Block) -> (u64, u32) {
    let mut config = [0; 24];
    disk.config().read(0, &mut config);
    let (sectors, _) = config.split_first_chunk().unwrap();
    let block = config.last_chunk().unwrap();
    (u64::from_le_bytes(*sectors), u32::from_le_bytes(*block))
}

fn bytes(driver: &Driver, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let at = GuestAddress(DATA_AT);
    driver.ram.read_slice(&mut bytes, at).unwrap();
    bytes
}

fn fill(driver: &Driver, bytes: &[u8]) {
    let at = GuestAddress(DATA_AT);
    driver.ram.write_slice(bytes, at).unwrap();
}

#[test]
fn r55_direct_io_changes_neither_size_nor_blocks() {
    const BYTES: usize = (1 << 20) + 512;
    for direct in [false, true] {
        let Some(mut bench) = sized(BYTES, direct) else {
            continue;
        };
        assert_eq!(shape_of(&bench.disk), (2049, 512), "direct: {direct}");
        // The last sector, and one in the middle of a block of the host.
        for sector in [2048, 3] {
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, sector, 512, true), (OK, 513));
            let expected = u8::try_from(sector % 251).unwrap();
            assert_eq!(bytes(&bench.driver, 512), [expected; 512]);
        }
        fill(&bench.driver, &[0xab; 512]);
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 2048, 512, false), (OK, 1));
        let content = bench.content();
        assert_eq!(content.len(), BYTES);
        assert_eq!(content[BYTES - 512..], [0xab; 512]);
    }
}

#[test]
fn r55_a_tail_that_is_no_whole_sector_is_there() {
    for direct in [false, true] {
        for engine in engines() {
            let Some(bench) = sized(1000, direct) else {
                continue;
            };
            let config = BlkConfig {
                direct,
                engine,
                ..options(bench.file.path(), false)
            };
            let Bench {
                disk,
                queues,
                driver,
                file,
            } = bench;
            close(disk);
            let disk = Block::open(&config).unwrap();
            let mut bench = Bench {
                disk,
                queues,
                driver,
                file,
            };
            assert_eq!(shape_of(&bench.disk), (2, 512));
            fill(&bench.driver, &[0xff; 1024]);
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 1024, true), (OK, 1025));
            let read = bytes(&bench.driver, 1024);
            assert_eq!(read[..512], [0; 512]);
            assert_eq!(read[512..1000], [1; 488]);
            assert_eq!(read[1000..], [0; 24], "the rest reads as zeros");
            assert_eq!(bench.content().len(), 1000, "reading changes nothing");
            assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 1, 512, false), (OK, 1));
            assert_eq!(bench.content().len(), 1024, "writing completes the sector");
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, 2, 512, true), (IOERR, 1));
        }
    }
}

#[test]
fn r55_a_path_is_opened_once() {
    // What the path means later is another disk.
    let Some(bench) = sized(4096, true) else {
        return;
    };
    let Opened { file, buffered, .. } = Opened::new(&BlkConfig {
        direct: true,
        ..options(bench.file.path(), true)
    })
    .unwrap();
    let inode = |file: &File| rustix::fs::fstat(file).unwrap().st_ino;
    assert_eq!(inode(&file), inode(&buffered.unwrap()));
    let flags = fcntl_getfl(&file).unwrap();
    assert!(flags.contains(OFlags::DIRECT));
}
