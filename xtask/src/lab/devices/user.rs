//! The VMM as an ordinary user, in the sandbox.

use super::guest::Guest;
use crate::lab::case::{Case, expect, expect_all};
use crate::step::Result;

/// A user without a name, and a group with rights on /dev/kvm.
const USER: u32 = 61_234;
const GROUP: u32 = 61_235;

/// A user who has nothing but /dev/kvm and a tap of their own has the whole sandbox, around a guest with a disk, the
/// network, a console and commands.
pub(super) fn ordinary_user(guest: &Guest) -> Case {
    const BYTES: u64 = 100_000;
    let vmm = &guest.command;
    let as_user = format!("agent as {USER} {GROUP}");
    // Of each thread its name, its user, and what it has given up.
    let look = "for task in /proc/$(pidof vmm-reference)/task/*; do echo thread:$(awk \
        '/^(Name|Uid|CapEff|NoNewPrivs|Seccomp|Seccomp_filters):/ {print $2}' $task/status); done";
    // The guest says through its disk when the host shall look, and hears there that it has.
    let command = format!(
        "chgrp {GROUP} /dev/kvm; chmod 660 /dev/kvm; chmod 666 /dev/net/tun; \
         mkdir /tmp/own; truncate -s 1M /tmp/own/flag; chown -R {USER}:{USER} /tmp/own; \
         agent tap vm0 {USER}; ip addr add 10.9.0.1/24 dev vm0; ip link set vm0 up; \
         (agent echo tcp:0.0.0.0:5000; \
          until head -c 2 /tmp/own/flag | grep -q go; do sleep 0.2; done; \
          {look}; {as_user} /vmm-reference ctl /tmp/own/c status; \
          printf done | dd of=/tmp/own/flag conv=notrunc,fsync) & \
         {as_user} {vmm} --vcpus=2 --sandbox=strict --blk=/tmp/own/flag --net=vm0 --console \
         --serial=file=/tmp/own/serial --control=/tmp/own/c; status=$?; \
         tunctl -d vm0; chmod 600 /dev/kvm; ls -1 /tmp/own; (exit $status)"
    );
    let talk = format!(
        "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; agent check tcp:10.9.0.1:5000 {BYTES}; \
         printf go | dd of=/dev/vda conv=fsync; \
         until dd if=/dev/vda bs=512 count=1 iflag=direct 2> /dev/null | grep -q done; do sleep 0.2; done; \
         echo host has looked; stty echo; poweroff -f\r"
    );
    let dialogue = [("# ", talk.as_str())];
    guest.case(
        "an ordinary user's, in the sandbox",
        &command,
        &dialogue,
        |output| {
            expect_all(
                output,
                &[
                    format!("@agent checked tcp:10.9.0.1:5000 {BYTES}\n"),
                    "sandbox   full\n".to_owned(),
                    "\nhost has looked\n".to_owned(),
                ],
            )?;
            // The control socket is removed at the end.
            expect(output.contains("\nflag\nserial\n"), "what is left")?;
            check_threads(output)
        },
    )
}

fn check_threads(output: &str) -> Result<()> {
    let threads: Vec<Vec<_>> = output
        .lines()
        .filter_map(|line| line.strip_prefix("thread:"))
        // What KVM and io_uring do in the process' name, the kernel does.
        .filter(|line| !line.starts_with("kvm-") && !line.starts_with("iou-"))
        .map(|line| line.split(' ').collect())
        .collect();
    // The main thread, two vCPUs, three devices, commands.
    expect(threads.len() > 6, "a look at the threads")?;
    let user = USER.to_string();
    for thread in threads {
        let name = *thread.first().unwrap_or(&"");
        // Its own filter, and that of the thread that started it.
        let filters = if name == "vmm-reference" { "1" } else { "2" };
        let given_up = [name, &*user, "0000000000000000", "1", "2", filters];
        expect(thread == given_up, &format!("{thread:?} is {given_up:?}"))?;
    }
    Ok(())
}
