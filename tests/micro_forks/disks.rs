//! Disks of forks: copies, with requests on their way, and other files.

use std::fs;

use super::{Family, SMALL};
use crate::{SECTOR, TRANSPORTS, disk, sectors, start_virtio};

#[test]
fn a_disk_is_copied_for_each_fork_while_its_driver_works() {
    let mut expected = vec![0; 256 * SECTOR];
    expected[16 * SECTOR..80 * SECTOR].copy_from_slice(&sectors(16, 64));
    for transport in TRANSPORTS {
        for engine in ["io_uring", "sync"] {
            let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&sectors(0, 64)));
            // So slow that it is forked between two of its requests.
            let disks = [
                format!(
                    "--blk={},serial=micro-1,engine={engine},iops=30,iops-burst=1",
                    first.path().display()
                ),
                format!("--blk={},ro,engine={engine}", second.path().display()),
            ];
            let mut family = Family::new(|control| {
                let arguments = [&*disks[0], &*disks[1], control, SMALL];
                start_virtio("virtio_blk", transport, &arguments)
            });
            let mut copies = Vec::new();
            while copies.len() < 5 {
                let copy = family.path(&format!("copy{}", copies.len()));
                if !family.forks(&[&format!("--blk=id=blk0,copy={copy}")]) {
                    break;
                }
                copies.push(copy);
            }
            assert!(!copies.is_empty(), "it is over before it was forked");
            family.forks_pass();
            for copy in &copies {
                assert!(fs::read(copy).unwrap() == expected, "{copy}");
            }
            let lines = family.passes();
            assert_eq!(lines.last().unwrap(), "the second one is read-only");
            assert!(fs::read(first.path()).unwrap() == expected);
        }
    }
}

#[test]
fn a_fork_with_another_file_has_that_one() {
    let mut expected = vec![0; 256 * SECTOR];
    expected[16 * SECTOR..80 * SECTOR].copy_from_slice(&sectors(16, 64));
    let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&sectors(0, 64)));
    let disks = [
        format!("--blk={},serial=micro-1,iops=30", first.path().display()),
        format!("--blk={},ro", second.path().display()),
    ];
    let mut family = Family::new(|control| {
        let arguments = [&*disks[0], &*disks[1], control, SMALL];
        start_virtio("virtio_blk", TRANSPORTS[0], &arguments)
    });
    let control = family.path("control");
    assert!(super::ctl(&control, &["pause"]).status.success());
    let other = family.path("other");
    fs::copy(first.path(), &other).unwrap();
    let at_pause = fs::read(first.path()).unwrap();
    let wrong = disk(&[0; SECTOR]);
    for (blk, said) in [
        (
            "id=blk1,path=/dev/null".to_owned(),
            "the disk blk0 may be written",
        ),
        (
            format!("id=blk0,path={}", wrong.path().display()),
            "sectors of 512 bytes",
        ),
        ("id=blk0,path=/dev/null".to_owned(), "/dev/null"),
        // The VM has it.
        (format!("id=blk0,path={}", first.path().display()), "in use"),
    ] {
        let new = format!("--control={}", family.path("refused"));
        let refused = super::ctl(&control, &["fork", &new, &format!("--blk={blk}")]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
        assert!(!std::path::Path::new(&family.path("refused")).exists());
    }
    assert!(family.forks(&[&format!("--blk=id=blk0,path={other}")]));
    family.forks_pass();
    assert!(fs::read(&other).unwrap() == expected);
    // It has stood still meanwhile.
    assert!(fs::read(first.path()).unwrap() == at_pause);
    assert!(super::ctl(&control, &["resume"]).status.success());
    family.passes();
    assert!(fs::read(first.path()).unwrap() == expected);
}
