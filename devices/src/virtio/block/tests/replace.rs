//! Another file behind a disk.

use rustix::fs::{OFlags, fcntl_getfl};

use super::*;
use crate::ChangeError;
use crate::descriptor::DiskFile;

/// A file of so many sectors, each full of a byte.
fn image(sectors: usize, byte: u8) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![byte; sectors * 512]).unwrap();
    file
}

fn opened(file: &tempfile::NamedTempFile) -> File {
    let file = File::options().read(true).write(true).open(file.path());
    file.unwrap()
}

fn open(file: &tempfile::NamedTempFile) -> DiskFile {
    opened(file).into()
}

fn capacity(disk: &Block) -> u64 {
    let mut sectors = [0; 8];
    disk.config().read(0, &mut sectors);
    u64::from_le_bytes(sectors)
}

#[test]
fn another_file_is_read_and_written_and_the_old_one_left_alone_and_unlocked() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        let old = bench.content();
        let new = image(40, 7);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true), (OK, 513));
        let generation = bench.disk.config().generation();
        let file = open(&new);
        bench
            .disk
            .replace_file(file, "new", Some(&mut bench.queues))
            .unwrap();
        assert_eq!(capacity(&bench.disk), 40);
        assert_ne!(bench.disk.config().generation(), generation);
        assert_ne!(
            bench.queues.interrupt_reasons() & 2,
            0,
            "the driver is told"
        );
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 39, 512, true), (OK, 513));
        assert_eq!(bench.driver.get::<u8>(DATA_AT), 7);
        bench.driver.put(DATA_AT, [9u8; 32]);
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, 512, false), (OK, 1));
        assert_eq!(std::fs::read(new.path()).unwrap()[0], 9);
        assert_eq!(bench.content(), old);
        // The locks went along.
        close(Block::open(&options(bench.file.path(), false)).unwrap());
        let taken = Block::open(&options(new.path(), false));
        assert!(matches!(taken, Err(BlockError::InUse { .. })));
    }
}

#[test]
fn requests_beyond_a_smaller_file_fail_and_a_disk_without_a_driver_takes_any_size() {
    let mut bench = bench(BlkEngine::Auto, false);
    let small = image(1, 1);
    bench
        .disk
        .replace_file(open(&small), "small", None)
        .unwrap();
    assert_eq!(capacity(&bench.disk), 1);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 512, true), (OK, 513));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true), (IOERR, 1));
}

#[test]
fn a_disk_without_sectors_gets_some_and_loses_them_again() {
    for engine in engines() {
        let (first, none, some) = (image(0, 0), image(0, 0), image(4, 7));
        let config = BlkConfig {
            engine,
            ..options(first.path(), false)
        };
        let mut bench = bench(engine, false);
        bench.disk = Block::open(&config).unwrap();
        for (file, sectors) in [(&none, 0), (&some, 4), (&none, 0), (&some, 4)] {
            bench.queues.interrupt_reasons();
            let file = open(file);
            bench
                .disk
                .replace_file(file, "new", Some(&mut bench.queues))
                .unwrap();
            assert_eq!(capacity(&bench.disk), sectors);
            assert_ne!(bench.queues.interrupt_reasons() & 2, 0, "it is told");
            let (status, used) = if sectors == 0 { (IOERR, 1) } else { (OK, 513) };
            for sector in [0, 3] {
                let read = bench.request(VIRTIO_BLK_T_IN, sector, 512, true);
                assert_eq!(read, (status, used), "{sector} of {sectors}");
            }
            let written = bench.request(VIRTIO_BLK_T_OUT, 0, 512, false);
            assert_eq!(written, (status, 1));
            let flushed = bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, false);
            assert_eq!(flushed, (OK, 1));
        }
        assert_eq!(none.as_file().metadata().unwrap().len(), 0);
    }
}

#[test]
fn a_file_that_cannot_be_the_disk_is_refused_and_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let locked = image(8, 1);
    let _other = Block::open(&options(locked.path(), false)).unwrap();
    let reading = image(8, 1);
    let (pipe, _end) = std::io::pipe().unwrap();
    for engine in engines() {
        let mut bench = bench(engine, false);
        let before = capacity(&bench.disk);
        for (file, cause) in [
            (open(&locked), "in use as a disk already by this process"),
            (File::open(reading.path()).unwrap().into(), "writing"),
            (File::open(folder.path()).unwrap().into(), "directory"),
            (
                File::from(std::os::fd::OwnedFd::from(pipe.try_clone().unwrap())).into(),
                "a FIFO",
            ),
        ] {
            let refused = bench.disk.replace_file(file, "x", Some(&mut bench.queues));
            let Err(ChangeError::Refused(said)) = refused else {
                panic!("{cause}: {refused:?}")
            };
            assert!(said.contains(cause), "{cause}: {said}");
            assert_eq!(capacity(&bench.disk), before);
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 512, true), (OK, 513));
            assert_eq!(bench.driver.get::<u8>(DATA_AT), 3);
        }
    }
    // For reading alone is enough for a disk that is only read.
    let mut bench = bench(BlkEngine::Auto, true);
    let file = File::open(reading.path()).unwrap().into();
    bench.disk.replace_file(file, "r", None).unwrap();
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 512, true), (OK, 513));
}

#[test]
fn a_disk_with_direct_io_keeps_it_with_a_file_that_comes_twice() {
    let (first, new, other) = (image(8, 1), image(16, 7), image(8, 3));
    for engine in engines() {
        let config = BlkConfig {
            engine,
            direct: true,
            ..options(first.path(), false)
        };
        let mut bench = bench(engine, false);
        bench.disk = match Block::open(&config) {
            Err(BlockError::Direct) => {
                eprintln!("skipped: no direct I/O on temporary files");
                return;
            }
            disk => disk.unwrap(),
        };
        let is_direct = |file: &File| fcntl_getfl(file).unwrap().contains(OFlags::DIRECT);
        let (once, reading) = (opened(&new), File::open(new.path()).unwrap());
        for (file, again, cause) in [
            (opened(&new), opened(&other), "of another file"),
            (once.try_clone().unwrap(), once, "opened once for two"),
            (opened(&new), reading, "writing"),
        ] {
            let again = Some(again);
            let refused = bench.disk.replace_file(DiskFile { file, again }, "x", None);
            let Err(ChangeError::Refused(said)) = refused else {
                panic!("{cause}: {refused:?}")
            };
            assert!(said.contains(cause), "{cause}: {said}");
            assert_eq!(bench.disk.path, first.path());
        }
        let again = Some(opened(&new));
        let file = opened(&new);
        bench
            .disk
            .replace_file(DiskFile { file, again }, "new", Some(&mut bench.queues))
            .unwrap();
        assert!(is_direct(&bench.disk.file));
        assert!(!is_direct(bench.disk.buffered.as_ref().unwrap()));
        // Also where it is not aligned.
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 15, 512, true), (OK, 513));
        assert_eq!(bench.driver.get::<u8>(DATA_AT), 7);
        // Whoever shares it has both, too.
        let DiskFile { file, again } = bench.disk.file().unwrap();
        assert!(!is_direct(&file) && is_direct(&again.unwrap()));
        // A disk without direct I/O has no use for the second one.
        let mut plain = Block::open(&options(other.path(), false)).unwrap();
        let (file, again) = (opened(&first), Some(opened(&first)));
        close(std::mem::replace(
            &mut bench.disk,
            Block::open(&options(image(1, 0).path(), false)).unwrap(),
        ));
        plain
            .replace_file(DiskFile { file, again }, "first", None)
            .unwrap();
        assert!(plain.buffered.is_none() && !is_direct(&plain.file));
        close(plain);
    }
}
