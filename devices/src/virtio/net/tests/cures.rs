//! Taps that cannot be had: each reason has its cure, and none takes an interface away.

use super::*;
use crate::virtio::testing::{drop_network_rights, logged, refuse};

fn ip(arguments: &str) -> bool {
    let output = output(Command::new("ip").args(arguments.split(' ')));
    output.is_ok_and(|output| output.status.success())
}

/// Whether this test has a network of its own and may change it.
fn ready() -> bool {
    let ready = own_network() && ip("link set lo up");
    if !ready {
        assert!(std::env::var_os("CI").is_none(), "no network namespaces");
        eprintln!("skipped: no network namespaces, or no ip(8)");
    }
    ready
}

fn config(name: &str, queues: u16) -> NetConfig {
    NetConfig {
        tap: Some(name.to_owned()),
        queues,
        ..NetConfig::default()
    }
}

#[track_caller]
fn says(config: &NetConfig, cause: &str, cure: &str) {
    let error = Net::open(config).err().unwrap();
    let (is_cause, is_cure) = (error.to_string(), error.cure());
    assert!(is_cause.contains(cause), "{is_cause}");
    assert!(is_cure.contains(cure), "{is_cure}");
    for word in [" del", "delete", "--force"] {
        assert!(!is_cure.contains(word), "{is_cause}: {is_cure}");
    }
}

#[test]
fn r64_a_name_that_is_no_tap_s_is_never_to_be_deleted() {
    if !ready() {
        return;
    }
    // What only looks like a network card: a bridge, a pair of virtual cables, an interface for packets.
    if ip("link add eth0 type veth peer name eth1") {
        says(&config("eth0", 1), "driver veth", "choose another name");
        says(
            &config("eth0", 1),
            "no tap device",
            "ip tuntap add eth0-tap mode tap",
        );
        assert!(interface::index("eth0").unwrap().is_some(), "it stays");
    }
    if ip("tuntap add tun0 mode tun") {
        says(&config("tun0", 1), "a tun device", "choose another name");
    }
    says(&config("lo", 1), "no tap device", "choose another name");
}

#[test]
fn r64_queues_that_a_tap_is_not_made_for() {
    if !ready()
        || !ip("tuntap add single0 mode tap")
        || !ip("tuntap add multi0 mode tap multi_queue")
    {
        return;
    }
    says(&config("single0", 2), "made for one queue", "queues=1");
    says(&config("multi0", 1), "multi_queue", "queues=2");
    let (_, log) = logged(|| Net::open(&config("multi0", 2)).unwrap());
    assert!(
        log.iter()
            .any(|line| line.contains("ip link set multi0 up")),
        "{log:?}"
    );
    Net::open(&config("single0", 1)).unwrap();
}

#[test]
fn r64_a_tap_in_use_names_who_has_it() {
    if !ready() {
        return;
    }
    let _first = Net::open(&config("busy0", 1)).unwrap();
    says(
        &config("busy0", 1),
        "in use by this process",
        "a tap device of its own",
    );
}

#[test]
fn r64_without_rights_the_command_is_said_and_a_stranger_s_tap_is_left_alone() {
    if !ready() || !ip("tuntap add theirs mode tap user 12345") {
        return;
    }
    assert!(ip("tuntap add ours mode tap user 0 multi_queue"));
    drop_network_rights();
    says(
        &config("none", 1),
        "CAP_NET_ADMIN",
        "sudo ip tuntap add none mode tap user $USER &&",
    );
    says(&config("none", 2), "CAP_NET_ADMIN", "multi_queue");
    says(&config("theirs", 1), "another user", "`ip tuntap` shows");
    says(
        &config("theirs", 1),
        "another user",
        "ip tuntap add theirs-tap mode tap",
    );
    Net::open(&config("ours", 2)).unwrap();
}

#[test]
fn r64_a_host_without_taps_is_one_without_dev_net_tun() {
    let of = |errno| NetError::of_tun(io::Error::from_raw_os_error(errno));
    for (errno, cure) in [
        (libc::ENOENT, "modprobe tun"),
        (libc::ENOENT, "--device /dev/net/tun"),
        (libc::ENODEV, "modprobe tun"),
        (libc::EACCES, "chmod 666 /dev/net/tun"),
        (libc::EPERM, "--cap-add NET_ADMIN"),
        (libc::EMFILE, "ulimit -n"),
    ] {
        let error = of(errno);
        assert!(error.cure().contains(cure), "{error}: {}", error.cure());
    }
    refuse(&[libc::SYS_openat], libc::ENOENT);
    says(&config("vm0", 1), "/dev/net/tun", "modprobe tun");
}

#[test]
fn a_name_that_is_too_long_is_no_name() {
    says(
        &config("a-name-of-16-byte", 1),
        "1 to 15 bytes",
        "shorter name",
    );
}

/// R65: /sys shows the network namespace that it was mounted in, which is not this test's.
#[test]
fn r65_a_tap_is_looked_up_in_this_process_network_namespace() {
    if !ready() || !ip("tuntap add inside mode tap") {
        return;
    }
    let sys = std::path::Path::new("/sys/class/net/inside");
    assert!(!sys.exists(), "/sys is the old one");
    // It is there and down: it is not ours to switch on, but worth a word.
    let (device, log) = logged(|| Net::open(&config("inside", 1)).unwrap());
    assert!(!interface::is_up("inside").unwrap());
    assert!(log.iter().any(|line| line.contains("is down")), "{log:?}");
    drop(device);
    // What /sys shows of elsewhere is not there: made and switched on.
    let elsewhere = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let elsewhere = elsewhere.filter_map(|entry| entry.file_name().into_string().ok());
    let name = elsewhere
        .into_iter()
        .find(|name| interface::index(name).unwrap().is_none());
    let Some(name) = name else {
        eprintln!("skipped in part: /sys shows no other interface");
        return;
    };
    let (_device, log) = logged(|| Net::open(&config(&name, 1)).unwrap());
    assert!(interface::is_up(&name).unwrap(), "{name}: {log:?}");
}
