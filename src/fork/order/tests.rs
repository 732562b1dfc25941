//! Which forks are refused for what they share, and which are not.

#![allow(clippy::unwrap_used)]

use crate::{BlkConfig, NetConfig, VsockConfig};

use super::*;
use crate::snapshot::memory::identity;

fn file() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

fn order(config: &VmConfig, wish: &ForkWish) -> Result<Order, String> {
    let files = (0..wish.descriptors()).map(|_| file()).collect();
    let shared = |_: &str| Ok(File::from(file()).into());
    Order::new(wish.clone(), files, config, shared, Taken::default())
        .map_err(|error| error.to_string())
}

fn disk(id: &str, name: &str) -> ForkedDisk {
    ForkedDisk {
        device: id.to_owned(),
        name: name.to_owned(),
        content: DiskContent::File,
        twice: false,
    }
}

fn tap(id: &str) -> ForkedTap {
    ForkedTap::new(id, None)
}

fn said(refused: Result<Order, String>, text: &str) {
    let refused = refused.unwrap_err();
    assert!(refused.contains(text), "{refused}");
}

#[test]
fn what_cannot_be_shared_has_to_be_its_own() {
    let mut read_only = BlkConfig::new("/b");
    read_only.read_only = true;
    let config = VmConfig::default()
        .with_disk(BlkConfig::new("/a"))
        .with_disk(read_only);
    let mut wish = ForkWish::default();
    said(order(&config, &wish), "the disk blk0 may be written");
    wish.blk = vec![disk("blk0", "/c")];
    let order_of_disks = order(&config, &wish).unwrap();
    assert_eq!(order_of_disks.shared.len(), 1);
    let config = config
        .with_net(NetConfig::default().with_tap("tap0"))
        .with_vsock(VsockConfig::new(3, "/v"));
    said(order(&config, &wish), "net0 needs another tap device");
    wish.net = vec![tap("net0")];
    said(order(&config, &wish), "vsock0 needs another socket");
    wish.vsock = Some("/w".to_owned());
    let mut whole = order(&config, &wish).unwrap();
    assert_eq!(whole.descriptors().count(), 4);
    assert_eq!(whole.given().taps.len(), 1);
    // For direct I/O, a file comes twice.
    let once = wish.descriptors();
    wish.blk[0].twice = true;
    assert_eq!(wish.descriptors(), once + 1);
    let twice = order(&config, &wish).unwrap();
    assert!(twice.disks[0].file.again.is_some());
    assert_eq!(twice.descriptors().count(), 5);
    wish.blk[0].twice = false;
    // It may be said that it is shared, of a disk that is only read.
    wish.shared = vec!["blk1".to_owned()];
    assert_eq!(order(&config, &wish).unwrap().shared.len(), 1);
    wish.blk.clear();
    wish.shared = vec!["blk0".to_owned()];
    said(order(&config, &wish), "the disk blk0 may be written");
}

/// Disks without a lock too, and whatever their names are.
#[test]
fn a_file_that_is_written_to_is_one_disk_of_one_guest() {
    let mut read_only = BlkConfig::new("/b");
    read_only.read_only = true;
    let config = VmConfig::default()
        .with_disk(BlkConfig::new("/a"))
        .with_disk(BlkConfig::new("/b"))
        .with_disk(read_only.clone())
        .with_disk(read_only);
    let taken = [file(), file(), file(), file()];
    let again = |fd: &OwnedFd| fd.try_clone().unwrap();
    let order = |files: Vec<OwnedFd>| {
        let ids = ["blk0", "blk1", "blk2", "blk3"];
        let wish = ForkWish {
            blk: ids
                .iter()
                .take(files.len())
                .map(|id| disk(id, "/n"))
                .collect(),
            ..ForkWish::default()
        };
        let shared = |id: &str| {
            let place = ids.iter().position(|known| *known == id).unwrap();
            Ok(File::from(again(&taken[place])).into())
        };
        Order::new(wish, files, &config, shared, Taken::default())
            .map_err(|error| error.to_string())
    };
    for (place, id) in ["blk0", "blk1", "blk2"].into_iter().enumerate() {
        let text = format!("the fork's disk blk1 and is in use as the VM's disk {id}");
        said(order(vec![file(), again(&taken[place])]), &text);
    }
    let two = "two disks of the fork, blk0 and";
    let new = file();
    said(
        order(vec![again(&new), again(&new)]),
        &format!("{two} blk1"),
    );
    said(
        order(vec![again(&new), file(), again(&new)]),
        &format!("{two} blk2"),
    );
    // Those that are only read may be the same, the VM's too.
    assert!(order(vec![file(), file(), again(&new), again(&new)]).is_ok());
    assert!(order(vec![file(), file(), again(&taken[0]), again(&taken[2])]).is_ok());
}

/// By whatever name; and it is locked from then on.
#[test]
fn a_file_that_a_console_writes_is_nothing_else() {
    let taken = file();
    let config = VmConfig::default()
        .with_disk(BlkConfig::new("/a"))
        .with_console();
    let again = |fd: &OwnedFd| fd.try_clone().unwrap();
    let number = |fd: &OwnedFd| identity(&File::from(again(fd))).unwrap();
    let (kernel, log) = (file(), file());
    let order = |disk_file: OwnedFd, serial: OwnedFd, console: OwnedFd| {
        let wish = ForkWish {
            blk: vec![disk("blk0", "/n")],
            serial: Some("/s".to_owned()),
            console: Some("/c".to_owned()),
            ..ForkWish::default()
        };
        let shared = |_: &str| Ok(File::from(again(&taken)).into());
        let others = Taken {
            images: &[number(&kernel)],
            outputs: &[("serial", number(&log))],
        };
        let files = vec![disk_file, serial, console];
        Order::new(wish, files, &config, shared, others).map_err(|error| error.to_string())
    };
    let new = file();
    let disk_text = "serial=file=/s: it is the VM's disk blk0";
    said(order(file(), again(&taken), file()), disk_text);
    let text = "console=file=/c: it is the fork's disk blk0";
    said(order(again(&new), file(), again(&new)), text);
    said(order(file(), again(&kernel), file()), "the VM reads it");
    let text = "console=file=/c: the VM itself writes it, as its serial; name another file";
    said(order(file(), file(), again(&log)), text);
    let text = "serial of the fork writes it as well; name two files";
    said(order(file(), again(&new), again(&new)), text);
    let null = || OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
    assert!(order(file(), null(), null()).is_ok());
    let named = tempfile::NamedTempFile::new().unwrap();
    let open = || OwnedFd::from(named.reopen().unwrap());
    let first = order(file(), open(), file()).unwrap();
    said(order(file(), open(), file()), "another VM writes it");
    drop(first);
    assert!(order(file(), open(), file()).is_ok());
}

#[test]
fn a_tap_device_has_as_many_queues_as_the_network_device() {
    let net = NetConfig::default().with_tap("tap0").with_queues(3);
    let config = VmConfig::default().with_net(net);
    let with = |queues| ForkWish {
        net: vec![tap("net0").with_queues(queues)],
        ..ForkWish::default()
    };
    for queues in [0, 1, 4] {
        let text = format!("has queues=3, and its tap device in the fork has queues={queues}");
        said(order(&config, &with(queues)), &text);
    }
    let order = order(&config, &with(3)).unwrap();
    assert_eq!(order.descriptors().count(), 3);
}

#[test]
fn what_the_machine_has_not_is_refused() {
    let config = VmConfig::default().with_disk(BlkConfig::new("/a"));
    let blk = |disks| ForkWish {
        blk: disks,
        ..ForkWish::default()
    };
    let mine = || disk("blk0", "/c");
    said(
        order(&config, &blk(vec![mine(), disk("x", "/d")])),
        "no device has the id \"x\"",
    );
    said(
        order(&config, &blk(vec![mine(), mine()])),
        "blk0 is named twice",
    );
    said(
        order(&config, &blk(vec![disk("blk0", "c")])),
        "no absolute path",
    );
    let mut wish = blk(vec![mine()]);
    wish.shared = vec!["blk0".to_owned()];
    said(order(&config, &wish), "blk0 is named twice");
    wish.shared = vec!["rng0".to_owned()];
    said(order(&config, &wish), "rng0 is a device of the kind rng");
    wish.shared.clear();
    wish.net = vec![tap("rng0")];
    said(order(&config, &wish), "rng0 is a device of the kind rng");
    wish.net.clear();
    wish.vsock = Some("/v".to_owned());
    said(order(&config, &wish), "it has no vsock device");
    wish.vsock = None;
    wish.console = Some("/o".to_owned());
    said(order(&config, &wish), "it has no virtio console");
}

#[test]
fn memory_that_both_would_write_to_is_refused() {
    let mut config = VmConfig::default();
    assert!(check_memory(&config, false).is_ok());
    assert!(check_memory(&config, true).is_err());
    config.memory_backing = MemoryBacking::Shared;
    assert!(check_memory(&config, false).is_err());
}
