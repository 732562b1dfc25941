//! Signals: they end a guest, or press its power button where the machine has one.

use super::*;

#[test]
fn signals_end_a_running_guest_with_status_0() {
    for name in not_ignored(["TERM", "INT", "HUP"]) {
        let kernel = kernel(&[print("up"), vec![0xeb, 0xfe]].concat());
        let mut child = vmm(&[&option("kernel", kernel.path()), "--vcpus=2"])
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "up");
        signal(&child, name);
        assert_eq!(wait(&mut child).code(), Some(0), "{name}");
    }
}

#[test]
fn signals_that_were_ignored_stay_ignored() {
    let kernel = kernel(&computing());
    let arguments = format!("--kernel={}", kernel.path().display());
    let mut child = through_shell("trap '' HUP INT", &arguments);
    read_until(child.stdout.as_mut().unwrap(), "up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    let is_caught = |signal: u32| caught >> (signal - 1) & 1 == 1;
    // SIGHUP, SIGINT, SIGTERM.
    assert_eq!([1, 2, 15].map(is_caught), [false, false, true]);
    signal(&child, "TERM");
    assert_eq!(wait(&mut child).code(), Some(0));
}

/// A guest that prints `up`, waits for its power button and prints `button`.
fn waits_for_the_button() -> Vec<u8> {
    // mov dx, 0x603; in al, dx; test al, 1; jz back
    let poll = vec![0x66, 0xba, 0x03, 0x06, 0xec, 0xa8, 0x01, 0x74, 0xfb];
    [print("up"), poll, print("button")].concat()
}

#[test]
fn sigterm_presses_the_power_button_and_the_guest_powers_off() {
    // mov dx, 0x600; mov al, SLP_EN | S5; out dx, al
    let power_off = vec![0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];
    let kernel = kernel(&[waits_for_the_button(), power_off].concat());
    let mut child = vmm(&[&option("kernel", kernel.path())]).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "up");
    signal(&child, "TERM");
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "button");
    assert!(ended.stderr.contains("asked to power off"), "{ended:?}");
    assert!(!ended.stderr.contains("the VM ends"), "{ended:?}");
}

#[test]
fn a_guest_that_does_not_power_off_has_a_bounded_time_and_a_second_signal_ends_it() {
    let spin = vec![0xeb, 0xfe];
    let notices = kernel(&[waits_for_the_button(), spin].concat());
    let start = |timeout: &str| {
        let timeout = format!("--shutdown-timeout={timeout}");
        let mut child = vmm(&[&option("kernel", notices.path()), &timeout])
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "up");
        signal(&child, "TERM");
        child
    };
    let says = |ended: &crate::common::Ended, text| {
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert!(ended.stderr.contains(text), "{text}: {ended:?}");
    };
    says(&finish(start("4")), "the guest has not powered off in time");
    // Its time would be longer than any test may take.
    let mut child = start("100000");
    read_until(child.stdout.as_mut().unwrap(), "button");
    // R71: another one at once is the same one, a second later it is not.
    while child.try_wait().unwrap().is_none() {
        signal(&child, "TERM");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    says(&finish(child), "the guest is asked to power off");
    // Nobody is asked.
    let ended = finish(start("0"));
    assert!(!ended.stderr.contains("asked"), "{ended:?}");

    let busy = kernel(&computing());
    let mut child = vmm(&[&option("kernel", busy.path())]).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "up");
    signal(&child, "TERM");
    says(&finish(child), "takes no notice of its power button");
}
