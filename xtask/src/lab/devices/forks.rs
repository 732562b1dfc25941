//! A machine that becomes two again and again, while its guest works.

use std::iter;

use super::guest::Guest;
use crate::lab::case::{Case, expect, expect_all};

/// What Linux says once its driver has made its random numbers anew (drivers/char/random.c).
const SAID: &str = "crng reseeded due to virtual machine fork";
/// The host's end of every tap, so that the guest's neighbour stays the same.
const MAC: &str = "02:00:00:00:00:01";
/// By so many seconds may the clock of a fork differ from the host's, which is looked at when the fork has ended.
const LATE: u64 = 10;

/// A guest whose disk and network are busy is forked so many times. Each fork, in a network of its own, goes on with the work,
/// then checks its disk, its network and its clock, and draws random bytes.
pub(super) fn forks(guest: &Guest, vcpus: u32, times: usize) -> Case {
    const BYTES: u64 = 200_000;
    let vmm = &guest.command;
    let peer = "(while :; do agent echo tcp:0.0.0.0:5000; done) > /dev/null 2>&1 &";
    let fork = format!(
        "ip link set lo up; \
         /vmm-reference ctl /tmp/c fork --control=/tmp/f --serial=file=/tmp/said --net=id=net0,tap=vm0 \
         --blk=id=blk0,copy=/tmp/disk$n --blk=id=blk1,copy=/tmp/flag$n || exit 1; \
         ip link set vm0 address {MAC}; ip link set vm0 up; ip addr add 10.9.0.1/24 dev vm0; {peer} \
         sleep 1; printf fork | dd of=/tmp/flag$n conv=notrunc,fsync; \
         while [ -e /tmp/f ]; do sleep 0.2; done; echo; echo @host \\$(date +%s); cat /tmp/said; kill \\$!"
    );
    let disturb = format!(
        "until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; \
         for n in $(seq {times}); do unshare -n sh -c \"{fork}\" || break; rm -f /tmp/disk$n /tmp/flag$n /tmp/said; done; \
         printf done | dd of=/tmp/flag conv=notrunc,fsync"
    );
    let command = format!(
        "truncate -s 64M /tmp/disk; truncate -s 1M /tmp/flag; \
         unshare -n sh -c 'ip link set lo up; \
         (until ip link set vm0 address {MAC} && ip addr add 10.9.0.1/24 dev vm0; do sleep 0.2; done) 2> /dev/null & \
         {peer} peer=$!; ({disturb}) & /watch /tmp/c & watch=$!; \
         {vmm} --vcpus={vcpus} --blk=/tmp/disk --blk=/tmp/flag --net=vm0 --control=/tmp/c; status=$?; \
         kill $peer $watch; exit $status'"
    );
    let work = format!(
        "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; \
         agent check tcp:10.9.0.1:5000 {BYTES}; printf go | dd of=/dev/vdb conv=fsync; \
         while :; do word=$(dd if=/dev/vdb bs=512 count=1 iflag=direct 2> /dev/null | head -c 4 | tr -d '\\0'); \
         case $word in done|fork) break;; esac; \
         agent verify /dev/vda 1 && ping -c 1 -W 10 10.9.0.1 > /dev/null || {{ echo @failed; break; }}; done; \
         [ $word = fork ] && for n in $(seq 100); do dmesg | grep -q '{SAID}' && break; sleep 0.2; done; \
         agent verify /dev/vda 1; agent check tcp:10.9.0.1:5000 {BYTES}; \
         echo @drawn $(head -c 16 /dev/urandom | od -An -tx1); echo @clock $(date +%s); \
         echo $word ended; stty echo; poweroff -f\r"
    );
    // Each fork is waited for by itself: all of them take longer than a silent machine may.
    let forks = iter::repeat_n(("\nfork ended\n", ""), times);
    let dialogue: Vec<_> = iter::once(("@guest ready\n", work.as_str()))
        .chain(forks)
        .collect();
    let name = format!("forks, {vcpus} vCPUs");
    guest.case(&name, &command, &dialogue, move |output| {
        expect_all(output, &["\ndone ended\n", "forked: process "])?;
        let count = output.matches("\nfork ended\n").count();
        expect(count == times, &format!("{times} forks, not {count}"))?;
        // What is typed is echoed.
        let is_fault =
            |line: &str| line.starts_with("@agent failed") || line.starts_with("@failed");
        expect(!output.lines().any(is_fault), "no fault")?;
        let checked = format!("@agent checked tcp:10.9.0.1:5000 {BYTES}\n");
        // Once before they were forked.
        let count = output.matches(&checked).count();
        expect(count == times + 2, &format!("{count} networks checked"))?;
        let values = |name: &'static str| {
            let lines = output.lines();
            lines.filter_map(move |line| line.trim_start().strip_prefix(name))
        };
        let mut drawn: Vec<_> = values("@drawn ").collect();
        let count = drawn.len();
        drawn.sort_unstable();
        drawn.dedup();
        expect(
            count == times + 1 && drawn.len() == count,
            "random bytes of their own",
        )?;
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or_default();
        // Each fork's clock comes behind the host's.
        for fork in output.split("\n@host ").skip(1) {
            let host = number(fork.lines().next().unwrap_or_default());
            let clock = fork.lines().find_map(|line| line.strip_prefix("@clock "));
            let clock = number(clock.unwrap_or_default());
            expect(
                host.abs_diff(clock) <= LATE,
                &format!("the host's time {host}, not {clock}"),
            )?;
        }
        Ok(())
    })
}
