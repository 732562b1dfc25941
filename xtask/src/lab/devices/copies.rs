//! Copies of one saved machine: each is told that it is one.

use super::guest::Guest;
use crate::lab::case::{Case, expect};

/// What Linux says once its driver has made its random numbers anew (drivers/char/random.c).
const SAID: &str = "crng reseeded due to virtual machine fork";

/// Two machines go on from one state, one after the other; once its kernel has heard of it, each draws random bytes.
pub(super) fn copies(guest: &Guest, lean: &str) -> Case {
    const COPIES: usize = 2;
    let vmm = &guest.command;
    let save = "until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; \
                /vmm-reference ctl /tmp/c pause && /vmm-reference ctl /tmp/c snapshot /tmp/saved; \
                /vmm-reference ctl /tmp/c stop";
    let command = format!(
        "truncate -s 1M /tmp/flag; ({save}) & \
         {vmm} --lean={lean} --blk=/tmp/flag --control=/tmp/c; \
         for copy in $(seq {COPIES}); do /vmm-reference restore /tmp/saved; status=$?; done; (exit $status)"
    );
    let work = format!(
        "printf go | dd of=/dev/vda conv=fsync; \
         for n in $(seq 100); do dmesg | grep -q '{SAID}' && break; sleep 0.2; done; \
         dmesg | grep '{SAID}'; echo @drawn $(head -c 16 /dev/urandom | od -An -tx1); poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", work.as_str())];
    guest.case(
        &format!("copies, lean={lean}"),
        &command,
        &dialogue,
        |output| {
            let drawn = drawn(output);
            expect(drawn.len() == COPIES, "as many copies")?;
            expect(
                drawn.windows(2).all(|pair| pair[0] != pair[1]),
                "no copy of random bytes",
            )?;
            let told = output.lines().filter(|line| line.ends_with(SAID)).count();
            expect(told == COPIES, "each copy is told")
        },
    )
}

/// Without a generation ID nobody tells copies that they are some: of the random bytes that each draws from the moment on at
/// which it was saved, some are those of the other one. (Later their kernels take others from the processor, each for itself.)
pub(super) fn equal_copies(guest: &Guest) -> Case {
    let vmm = &guest.command;
    let save = "until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; \
                /vmm-reference ctl /tmp/c snapshot /tmp/saved; /vmm-reference ctl /tmp/c stop";
    let command = format!(
        "truncate -s 1M /tmp/flag; ({save}) & \
         {vmm} --vmgenid=off --rng=off --blk=/tmp/flag --control=/tmp/c; \
         for copy in 1 2; do echo; echo @copy; /vmm-reference restore /tmp/saved --blk=id=blk0,changed=ok; \
         status=$?; done; (exit $status)"
    );
    let work = "printf go | dd of=/dev/vda conv=fsync; \
        end=$(($(cut -d. -f1 /proc/uptime) + 20)); \
        while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do \
        echo @drawn $(head -c 16 /dev/urandom | od -An -tx1); done; poweroff -f\r";
    let dialogue = [("@guest ready\n", work)];
    let name = "copies, without a generation ID";
    guest.case(name, &command, &dialogue, |output| {
        let copies: Vec<_> = output.split("\n@copy\n").skip(1).map(drawn).collect();
        let [one, other] = &copies[..] else {
            return expect(false, "two copies");
        };
        expect(
            one.iter().any(|bytes| other.contains(bytes)),
            "the same random bytes",
        )
    })
}

/// What the copies have drawn.
fn drawn(output: &str) -> Vec<&str> {
    let lines = output.lines();
    lines
        .filter_map(|line| line.strip_prefix("@drawn "))
        .collect()
}
