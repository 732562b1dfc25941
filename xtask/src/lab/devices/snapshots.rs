//! A machine that is saved and goes on elsewhere, while its guest works.

use super::guest::Guest;
use crate::lab::case::{Case, expect, expect_all};

/// How a machine is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saved {
    /// All of it.
    Whole,
    /// Every second time what changed since it was restored.
    WithLayers,
}

/// A guest goes on in another process so many times, while its disk and its network are busy: it is paused, saved and
/// ended, and restored.
pub(super) fn snapshots(guest: &Guest, vcpus: u32, times: u32, saved: Saved) -> Case {
    const BYTES: u64 = 200_000;
    let vmm = &guest.command;
    let (name, diff) = match saved {
        Saved::Whole => ("snapshots", ""),
        Saved::WithLayers => (
            "snapshots, with layers",
            "$([ $((round % 2)) = 0 ] && echo --diff)",
        ),
    };
    let disturb = format!(
        "until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; \
         for round in $(seq {times}); do sleep 1; \
         /vmm-reference ctl /tmp/c pause && /vmm-reference ctl /tmp/c snapshot /tmp/saved {diff} && touch /tmp/next && \
         /vmm-reference ctl /tmp/c stop || break; \
         while [ -e /tmp/next ] || ! /vmm-reference ctl /tmp/c status > /dev/null 2>&1; do sleep 0.2; done; \
         done; printf done | dd of=/tmp/flag conv=notrunc,fsync"
    );
    // Each process makes the network device anew, and its address with it.
    let command = format!(
        "truncate -s 64M /tmp/disk; truncate -s 1M /tmp/flag; \
         unshare -n sh -c 'ip link set lo up; \
         (while :; do ip addr add 10.9.0.1/24 dev vm0; sleep 0.2; done) > /dev/null 2>&1 & \
         (while :; do agent echo tcp:0.0.0.0:5000; done) > /dev/null 2>&1 & \
         ({disturb}) & /watch /tmp/c & \
         {vmm} --vcpus={vcpus} --blk=/tmp/disk --blk=/tmp/flag --net=vm0 --control=/tmp/c; status=$?; \
         while [ -e /tmp/next ]; do rm /tmp/next; \
         /vmm-reference restore /tmp/saved --control=/tmp/c; status=$?; done; \
         kill %1 %2 %4; exit $status'"
    );
    let work = format!(
        "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; \
         agent check tcp:10.9.0.1:5000 {BYTES}; printf go | dd of=/dev/vdb conv=fsync; \
         until dd if=/dev/vdb bs=512 count=1 iflag=direct 2> /dev/null | grep -q done; do \
         agent verify /dev/vda 2 && agent check tcp:10.9.0.1:5000 {BYTES} || break; \
         echo @clock $(cut -d. -f1 /proc/uptime) $(date +%s); done; \
         echo rounds ended; stty echo; poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", work.as_str())];
    let name = format!("{name}, {vcpus} vCPUs");
    guest.case(&name, &command, &dialogue, move |output| {
        let count = output.matches("saved to /tmp/saved: ").count();
        expect(
            count == times as usize,
            &format!("{times} saved machines, not {count}"),
        )?;
        if saved == Saved::WithLayers {
            let layers = output.matches(", what changed (layer 2); ").count();
            let expected = times as usize / 2;
            expect(
                layers == expected,
                &format!("{expected} layers, not {layers}"),
            )?;
        }
        expect_all(
            output,
            &[
                "@agent verified /dev/vda with ".to_owned(),
                format!("@agent checked tcp:10.9.0.1:5000 {BYTES}\n"),
                "@clock ".to_owned(),
                "rounds ended\n".to_owned(),
            ],
        )?;
        expect(!output.contains("@agent failed"), "no fault")
    })
}
