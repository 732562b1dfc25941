//! A guest that writes to a disk goes on, and so does the saved one, which has a copy of the disk.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::{SMALL, Wanderer};
use crate::common::{finish, vmm};
use crate::{SECTOR, TRANSPORTS, disk, passed, sectors, start_virtio};

#[test]
fn the_copy_of_a_disk_is_what_it_was_when_its_guest_stood_still() {
    let mut expected = vec![0; 256 * SECTOR];
    expected[16 * SECTOR..80 * SECTOR].copy_from_slice(&sectors(16, 64));
    for (round, transport) in (0..4).zip(TRANSPORTS.into_iter().cycle()) {
        let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&sectors(0, 64)));
        let engine = ["io_uring", "sync"][round / 2];
        // So slow that it is saved between two of its writes.
        let disks = [
            format!(
                "--blk={},serial=micro-1,engine={engine},iops=8,iops-burst=1",
                first.path().display()
            ),
            format!("--blk={},ro,engine={engine}", second.path().display()),
        ];
        let mut wanderer = Wanderer::new(|control| {
            let arguments = [&*disks[0], &*disks[1], control, SMALL];
            start_virtio("virtio_blk", transport, &arguments)
        });
        let (saved, copy) = (wanderer.path("saved"), wanderer.path("copy"));
        wanderer.has_opened();
        let blk = format!("--blk=id=blk0,copy={copy}");
        // It ends at some time: the last one that was saved stays.
        let mut at_that_time = Vec::new();
        while wanderer.ctl(&["pause"]) {
            let now = fs::read(first.path()).unwrap();
            let _ = fs::remove_file(&copy);
            if !wanderer.ctl(&["snapshot", &saved, &blk]) {
                break;
            }
            assert!(fs::read(&copy).unwrap() == now);
            at_that_time = now;
            if !wanderer.ctl(&["resume"]) {
                break;
            }
            if at_that_time.iter().any(|byte| *byte != 0) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        passed(wanderer.child.finish());
        assert!(fs::read(first.path()).unwrap() == expected);
        assert!(Path::new(&copy).exists(), "it is over before it was saved");
        // The one that it was has not written there, and this one goes on from where it was.
        assert!(fs::read(&copy).unwrap() == at_that_time);
        passed(finish(vmm(&["restore", &saved]).spawn().unwrap()));
        assert!(fs::read(&copy).unwrap() == expected);
    }
}
