//! The virtio devices, with the drivers of stock kernels.

mod copies;
mod forks;
mod guest;
mod memory;
mod snapshots;
mod user;

use self::copies::{copies, equal_copies};
use self::forks::forks;
use self::guest::Guest;
use self::memory::memory;
use self::snapshots::{Saved, snapshots};
use self::user::ordinary_user;
use super::architecture::Architecture;
use super::case::{Case, expect, expect_all};
use super::scope::Scope;
use crate::step::Result;

/// On PCI the devices that stock drivers use most, disks by themselves on one architecture only. The full lab has all,
/// on both transports.
pub(super) fn cases(arch: &Architecture, scope: Scope, everything: bool) -> Result<Vec<Case>> {
    let (pci, mmio) = (Guest::new(arch, "pci")?, Guest::new(arch, "mmio")?);
    let mut cases = Vec::new();
    if scope == Scope::Full {
        for guest in [&pci, &mmio] {
            // One look at several queues is enough, see `verify`.
            let vcpus = if guest.transport == "pci" { 4 } else { 1 };
            cases.extend(disks(guest, vcpus));
            cases.push(verify(guest, 60));
            cases.push(pauses(guest, 200));
            cases.push(snapshots(guest, 1, 25, Saved::Whole));
            cases.push(snapshots(guest, 4, 3, Saved::Whole));
            if arch.tells_changes {
                cases.push(snapshots(guest, 1, 6, Saved::WithLayers));
            }
            cases.push(forks(guest, 1, 20));
            cases.push(forks(guest, 2, 3));
            let all = if arch.lean.is_empty() {
                &["auto"]
            } else {
                arch.lean
            };
            cases.extend(all.iter().map(|lean| copies(guest, lean)));
            cases.extend(others(arch, guest));
        }
        cases.push(equal_copies(&mmio));
        cases.push(ordinary_user(&pci));
        return Ok(cases);
    }
    // A disk and the network are busy in it, too.
    cases.push(pauses(&pci, 10));
    cases.push(ordinary_user(&pci));
    // Machines that are saved: micro-guests, here and on the host's own KVM.
    if everything {
        cases.extend(disks(&pci, 2));
    }
    Ok(cases)
}

/// What a kernel has drivers for, for a slow machine.
pub(super) fn once(arch: &Architecture) -> Result<Vec<Case>> {
    let guest = Guest::new(arch, "pci")?;
    let mut cases: Vec<_> = disks(&guest, 1).into();
    cases.extend([network(&guest), restart(&guest), power_button(&guest)]);
    Ok(cases)
}

/// Everything but disks.
fn others(arch: &Architecture, guest: &Guest) -> Vec<Case> {
    let mut cases: Vec<_> = [network, sockets, memory, host_faults, console, restart]
        .map(|case| case(guest))
        .into();
    if arch.has_power_button {
        cases.push(power_button(guest));
    }
    if arch.has_pvpanic {
        cases.push(panic(guest));
    }
    cases
}

// Guests end with `stty echo` before `poweroff -f`: it waits until the terminal has all that was printed, which the
// kernel's own last line overtakes otherwise.

/// Disks, and what goes on in another process, on both transports, for a machine that is otherwise known.
pub(super) fn briefly(arch: &Architecture, machine: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for transport in ["pci", "mmio"] {
        let guest = Guest {
            prefix: format!("{machine}, "),
            ..Guest::new(arch, transport)?
        };
        cases.extend([verify(&guest, 2), snapshots(&guest, 2, 2, Saved::Whole)]);
    }
    Ok(cases)
}

/// A guest writes to a file system, on several queues; the host checks the file system; the next
/// guest reads it on a disk that it cannot write.
fn disks(guest: &Guest, vcpus: u32) -> [Case; 3] {
    let vmm = &guest.command;
    let command = format!(
        "cp /disk.ext4 /tmp/disk; du -k /tmp/disk > /tmp/before; seq 1 200000 | md5sum > /tmp/digest; \
         {vmm} --vcpus={vcpus} --blk=path=/tmp/disk,queues={vcpus},engine=io_uring"
    );
    let write = "mount -t ext4 /dev/vda /mnt && seq 1 200000 > /mnt/data && \
         head -c 12000000 /dev/urandom > /mnt/waste && sync && rm /mnt/waste && sync && \
         fstrim /mnt && echo queues $(ls /sys/block/vda/mq | wc -l); sync; stty echo; reboot -f\r";
    let dialogue = [("@guest ready\n", write)];
    let write = guest.case("disks: write, trim", &command, &dialogue, move |output| {
        let queues = format!("queues {vcpus}\n");
        expect(output.contains(&queues), &queues)
    });

    // The guest ended without unmounting: the first run replays the journal, the second one finds
    // nothing to do.
    let check = "e2fsck -fp /tmp/disk; e2fsck -fn /tmp/disk && \
        (sed s/^/before:/ /tmp/before; du -k /tmp/disk | sed s/^/used:/)";
    let check = guest.after(
        "disks: file system as the host sees it",
        check,
        &[],
        |output| {
            let kib = |name: &str| -> Result<u64> {
                let line = output.lines().find_map(|line| line.strip_prefix(name));
                let word = line.and_then(|line| line.split_whitespace().next());
                Ok(word.ok_or("no size")?.parse()?)
            };
            let trimmed = kib("used:")? < kib("before:")? + 6000;
            expect(trimmed, "what was trimmed takes no room")
        },
    );

    let command = format!(
        "sed 's/^/digest: /; s/-$//' /tmp/digest; {vmm} --blk=path=/tmp/disk,ro,serial=lab-disk"
    );
    let read = "mount -o ro -t ext4 /dev/vda /mnt; md5sum /mnt/data; cat /sys/block/vda/ro \
        /sys/block/vda/serial; echo x > /dev/vda; stty echo; poweroff -f\r";
    let dialogue = [("@guest ready\n", read)];
    let read = guest.after("disks: read only", &command, &dialogue, |output| {
        let digest = output
            .lines()
            .find_map(|line| line.strip_prefix("digest: "))
            .ok_or("no digest")?;
        let file = format!("{}  /mnt/data", digest.trim());
        expect_all(
            output,
            &[
                file.as_str(),
                // A read-only disk with a serial number.
                "\n1\nlab-disk",
                "Operation not permitted",
            ],
        )
    });
    [write, check, read]
}

/// Random reads and writes on each engine for so many seconds, each block checked. On one vCPU: guests
/// with several crash sooner in the emulated x86_64 machine (docs/architecture.md, known limits).
fn verify(guest: &Guest, seconds: u32) -> Case {
    let command = format!(
        "truncate -s 64M /tmp/uring /tmp/sync; {} --blk=path=/tmp/uring,engine=io_uring \
         --blk=path=/tmp/sync,engine=sync",
        guest.command
    );
    let verify = format!(
        "agent verify /dev/vda {seconds}; agent verify /dev/vdb {seconds}; stty echo; poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", verify.as_str())];
    guest.case("disks: verify", &command, &dialogue, |output| {
        for disk in ["/dev/vda", "/dev/vdb"] {
            let line = format!("@agent verified {disk} with ");
            expect(output.contains(&line), &line)?;
        }
        Ok(())
    })
}

/// Data through a tap in both directions, in a network namespace of its own.
fn network(guest: &Guest) -> Case {
    let vmm = &guest.command;
    const BYTES: u64 = 1_000_000;
    let command = format!(
        "unshare -n sh -c 'ip link set lo up; \
         (until ip addr add 10.9.0.1/24 dev vm0; do sleep 0.2; done; \
          agent check tcp:10.9.0.2:5001 {BYTES}) 2> /dev/null & \
         agent echo tcp:0.0.0.0:5000 & \
         exec {vmm} --vcpus=2 --net=vm0,queues=2,mac=02:00:00:00:00:09,mtu=1400'"
    );
    let talk = format!(
        "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; \
         cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; \
         echo queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l); ping -c 2 10.9.0.1; \
         agent check tcp:10.9.0.1:5000 {BYTES}; agent echo tcp:0.0.0.0:5001; sleep 1; stty echo; poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", talk.as_str())];
    guest.case("network", &command, &dialogue, |output| {
        expect_all(
            output,
            &[
                "02:00:00:00:00:09\n1400\n".to_owned(),
                "queues 2\n".to_owned(),
                "2 packets received".to_owned(),
                format!("@agent checked tcp:10.9.0.1:5000 {BYTES}\n"),
                format!("@agent checked tcp:10.9.0.2:5001 {BYTES}\n"),
            ],
        )
    })
}

/// Data through sockets of the host and of the guest; a client that goes away in the middle.
fn sockets(guest: &Guest) -> Case {
    let vmm = &guest.command;
    const BYTES: u64 = 1_000_000;
    let command = format!(
        "agent echo unix:/tmp/v_5000 & agent check hybrid:/tmp/v:5001 {BYTES} & \
         {vmm} --vsock=cid=7,path=/tmp/v; status=$?; ls /tmp/v; (exit $status)"
    );
    let talk = format!(
        "agent check vsock:2:5000 {BYTES}; agent echo vsock:0:5001; \
         agent refused vsock:2:5002; sleep 1; stty echo; poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", talk.as_str())];
    guest.case("sockets", &command, &dialogue, |output| {
        expect_all(
            output,
            &[
                format!("@agent checked vsock:2:5000 {BYTES}\n"),
                format!("@agent echoed {BYTES}\n"),
                format!("@agent checked hybrid:/tmp/v:5001 {BYTES}\n"),
                "@agent refused by vsock:2:5002\n".to_owned(),
                "ls: /tmp/v: No such file".to_owned(),
            ],
        )
    })
}

/// R44: the host's disk is full, a disk's file shrinks, a tap is deleted: the guest sees errors, the
/// log names them, and both go on.
fn host_faults(guest: &Guest) -> Case {
    let vmm = &guest.command;
    // The guest says through a disk when the host shall do its part.
    let command = format!(
        "mkdir -p /small; mount -t tmpfs -o size=4M none /small; \
         truncate -s 64M /small/disk /tmp/shrinks; truncate -s 1M /tmp/flag; \
         (until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; \
          truncate -s 1M /tmp/shrinks; ip link del vm0) & \
         {vmm} --blk=/small/disk --blk=/tmp/shrinks --blk=/tmp/flag --net=vm0"
    );
    let provoke = "ip link set eth0 up; dd if=/dev/urandom of=/dev/vda bs=1M count=16 oflag=direct; \
        printf go | dd of=/dev/vdc conv=fsync; \
        until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.2; done; echo carrier lost; \
        dd if=/dev/vdb of=/dev/null bs=1M skip=32 count=1 iflag=direct; \
        dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct && echo alive; stty echo; poweroff -f\r";
    let dialogue = [("@guest ready\n", provoke)];
    guest.case("r44: faults of the host", &command, &dialogue, |output| {
        expect_all(
            output,
            &[
                "dd: error writing '/dev/vda'",
                "dd: /dev/vdb: Input/output error",
                "the disk /small/disk failed, 1 times so far: No space left on device",
                "the disk /tmp/shrinks failed, 1 times so far: unexpected end of file",
                "the tap device is gone",
                "carrier lost\n",
                "\nalive\n",
            ],
        )
    })
}

/// A shell on hvc0, whose size is the terminal's.
fn console(guest: &Guest) -> Case {
    let vmm = &guest.command;
    let command = format!(
        "truncate -s 1M /tmp/flag; tty=$(tty); stty rows 33 cols 99; \
         (until grep -q resize /tmp/flag; do sleep 0.2; done; stty -F $tty rows 40 cols 100) & \
         {vmm} --console --serial=file=/tmp/serial --blk=/tmp/flag; \
         status=$?; stty rows 0 cols 0; cat /tmp/serial; (exit $status)"
    );
    let dialogue = [
        ("# ", "stty size; cat /sys/class/tty/console/active; tty\r"),
        (
            "/dev/hvc0\n",
            "echo resize | dd of=/dev/vda conv=fsync; \
             until [ \"$(stty size)\" = '40 100' ]; do sleep 0.2; done; echo resized; \
             stty echo; poweroff -f\r",
        ),
    ];
    guest.case("virtio console", &command, &dialogue, |output| {
        expect(output.contains("33 99\n"), "the terminal's size")?;
        expect(output.contains("resized\n"), "the terminal's new size")?;
        expect(
            output.contains("@guest ready"),
            "the serial console beside it",
        )
    })
}

/// A guest that checks what it writes to a disk and what comes back through a tap is paused and goes on so many
/// times, at random, and finds nothing wrong.
fn pauses(guest: &Guest, times: u32) -> Case {
    const BYTES: u64 = 200_000;
    let vmm = &guest.command;
    // The guest says through a disk when it works, and ends when that says that the host has done with it.
    let disturb = format!(
        "until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; agent disturb /tmp/c {times}; \
         /vmm-reference ctl /tmp/c metrics; printf done | dd of=/tmp/flag conv=notrunc,fsync"
    );
    let command = format!(
        "truncate -s 64M /tmp/disk; truncate -s 1M /tmp/flag; \
         unshare -n sh -c 'ip link set lo up; \
         (until ip addr add 10.9.0.1/24 dev vm0; do sleep 0.2; done) 2> /dev/null & \
         (while :; do agent echo tcp:0.0.0.0:5000; done) > /dev/null 2>&1 & \
         ({disturb}) & /watch /tmp/c & watch=$!; \
         {vmm} --vcpus=2 --blk=/tmp/disk --blk=/tmp/flag --net=vm0 --control=/tmp/c; status=$?; \
         kill %2 $watch; exit $status'"
    );
    let work = format!(
        "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; \
         agent check tcp:10.9.0.1:5000 {BYTES}; printf go | dd of=/dev/vdb conv=fsync; \
         until dd if=/dev/vdb bs=512 count=1 iflag=direct 2> /dev/null | grep -q done; do \
         agent verify /dev/vda 2 && agent check tcp:10.9.0.1:5000 {BYTES} || break; done; \
         echo rounds ended; stty echo; poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", work.as_str())];
    guest.case("pauses", &command, &dialogue, move |output| {
        expect_all(
            output,
            &[
                format!("@agent disturbed /tmp/c {times} times\n"),
                format!("\n{:20} {times}\n", "pauses"),
                "@agent verified /dev/vda with ".to_owned(),
                format!("@agent checked tcp:10.9.0.1:5000 {BYTES}\n"),
                "rounds ended\n".to_owned(),
            ],
        )?;
        expect(!output.contains("@agent failed"), "no fault")
    })
}

/// A guest with every device reboots: it starts again in the same process and finds its disk, its
/// network device and its console; nothing is left over of the starts before.
fn restart(guest: &Guest) -> Case {
    const STARTS: usize = 3;
    let vmm = &guest.command;
    let command = format!(
        "truncate -s 1M /tmp/flag; \
         {vmm} --on-reboot=restart --blk=/tmp/flag --net=vm0 --vsock=cid=7,path=/tmp/v --balloon"
    );
    // What the process has, as the guest's disk tells the host when to look.
    let look = "(for n in 1 2 3; do until head -c 1 /tmp/flag | grep -q $n; do sleep 0.2; done; \
        pid=$(pidof vmm-reference); echo has:$(ls /proc/$pid/fd | wc -l):$(ls /proc/$pid/task | wc -l); \
        done) & ";
    let boots: Vec<String> = (1..=STARTS)
        .map(|start| {
            let end = if start < STARTS { "reboot" } else { "poweroff" };
            format!(
                "ip link set eth0 up && echo {start} | dd of=/dev/vda conv=fsync && sleep 2; {end} -f\r"
            )
        })
        .collect();
    let dialogue: Vec<_> = boots
        .iter()
        .map(|text| ("@guest ready\n", text.as_str()))
        .collect();
    let command = format!("{look}{command}");
    guest.case("restart", &command, &dialogue, |output| {
        let has: Vec<_> = output
            .lines()
            .filter_map(|line| line.strip_prefix("has:"))
            .collect();
        expect(has.len() == STARTS, "a look at each start")?;
        expect(has.windows(2).all(|pair| pair[0] == pair[1]), "no leaks")
    })
}

/// SIGTERM presses the power button: the kernel's driver tells user space, which powers off.
fn power_button(guest: &Guest) -> Case {
    // The guest says through its disk when it listens.
    let command = format!(
        "truncate -s 1M /tmp/flag; \
         (until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; \
          kill -TERM $(pidof vmm-reference)) & {} --blk=/tmp/flag",
        guest.command
    );
    let listen = "(sleep 1; printf go | dd of=/dev/vda conv=fsync) & \
        head -c 24 /dev/input/event0 | hexdump -v -e '/2 \"%u \"'; echo; stty echo; poweroff -f\r";
    let dialogue = [("@guest ready\n", listen)];
    guest.case("power button", &command, &dialogue, |output| {
        // Two times of 8 bytes, then type EV_KEY, code KEY_POWER, value 1.
        expect(output.contains(" 1 116 1 0 "), "the key")?;
        expect(output.contains("asked to power off"), "the log")
    })
}

/// A kernel that panics ends the VM with the status for a crash, and the log has its last words.
fn panic(guest: &Guest) -> Case {
    let command = format!("{}; [ $? = 3 ]", guest.command);
    let dialogue = [("@guest ready\n", "echo c > /proc/sysrq-trigger\r")];
    guest.case("panic", &command, &dialogue, |output| {
        let report = output.split("the guest crashed").nth(1);
        let last_words = report.is_some_and(|report| report.contains("Kernel panic"));
        expect(last_words, "the panic in the report")
    })
}
