//! The virtio devices, with the drivers of stock kernels.

use super::machine::Machine;
use super::{Architecture, case, expect};
use crate::step::Result;

/// How the guest is started, and the start of its cases' names.
struct Guest {
    command: String,
    transport: &'static str,
}

impl Guest {
    fn new(arch: &Architecture, transport: &'static str) -> Result<Self> {
        let (kernel, _) = arch.guest_kernels.first().ok_or("no kernel")?;
        Ok(Self {
            command: format!(
                "/vmm-reference --kernel=/{kernel} --initrd=/initrd --append=quiet \
                 --transport={transport}"
            ),
            transport,
        })
    }

    fn named(&self, case: &str) -> String {
        format!("{}: {case}", self.transport)
    }
}

/// What is done with a guest.
type Case = fn(&mut Machine, &Guest) -> Result<()>;

/// Runs every device's cases on PCI, and those of disks by registers of their own too; the full lab
/// runs all of them on both.
pub(super) fn run(machine: &mut Machine, arch: &Architecture, full: bool) -> Result<()> {
    for transport in ["pci", "mmio"] {
        let guest = Guest::new(arch, transport)?;
        // One look at several queues is enough, see `verify`.
        disks(machine, &guest, if transport == "pci" { 4 } else { 1 })?;
        verify(machine, &guest, if full { 60 } else { 5 })?;
        if full || transport == "pci" {
            let mut cases: Vec<Case> =
                vec![network, sockets, memory, host_faults, console, restart];
            if arch.has_power_button {
                cases.push(power_button);
            }
            if arch.has_pvpanic {
                cases.push(panic);
            }
            for run in cases {
                // A case finds nothing of those before, least of all its own on the other transport.
                machine.run("rm -rf /tmp/*", &[])?;
                run(machine, &guest)?;
            }
        }
    }
    Ok(())
}

/// Disks, on both transports, for a machine that is otherwise known.
pub(super) fn briefly(machine: &mut Machine, arch: &Architecture) -> Result<()> {
    for transport in ["pci", "mmio"] {
        verify(machine, &Guest::new(arch, transport)?, 2)?;
    }
    Ok(())
}

/// A guest writes to a file system, on several queues; the host checks the file system; the next
/// guest reads it on a disk that it cannot write.
fn disks(machine: &mut Machine, guest: &Guest, vcpus: u32) -> Result<()> {
    let vmm = &guest.command;
    let prepare = "cp /disk.ext4 /tmp/disk; du -k /tmp/disk; seq 1 200000 | md5sum";
    let (_, output) = machine.run(prepare, &[])?;
    let word = |line: usize| {
        let line = output
            .lines()
            .filter(|line| !line.starts_with("@@"))
            .nth(line);
        let word = line.and_then(|line| line.split_whitespace().next());
        word.unwrap_or_default().to_owned()
    };
    let (kib, digest) = (word(0).parse::<u64>()?, word(1));

    let command =
        format!("{vmm} --vcpus={vcpus} --blk=path=/tmp/disk,queues={vcpus},engine=io_uring");
    let write = "mount -t ext4 /dev/vda /mnt && seq 1 200000 > /mnt/data && \
         head -c 12000000 /dev/urandom > /mnt/waste && sync && rm /mnt/waste && sync && \
         fstrim /mnt && echo queues $(ls /sys/block/vda/mq | wc -l); sync; reboot -f\r";
    let dialogue = [("@guest ready\n", write)];
    case(
        machine,
        &guest.named("disks: write, trim"),
        &command,
        &dialogue,
        |output| {
            let queues = format!("queues {vcpus}\n");
            expect(output.contains(&queues), &queues)
        },
    )?;

    // The guest ended without unmounting: the first run replays the journal, the second one finds
    // nothing to do.
    let check = "e2fsck -fp /tmp/disk; e2fsck -fn /tmp/disk && du -k /tmp/disk | sed s/^/used:/";
    case(
        machine,
        &guest.named("disks: file system as the host sees it"),
        check,
        &[],
        |output| {
            let used = output.lines().find_map(|line| line.strip_prefix("used:"));
            let used: u64 = used
                .and_then(|used| used.split_whitespace().next())
                .ok_or("no size")?
                .parse()?;
            expect(used < kib + 6000, "what was trimmed takes no room")
        },
    )?;

    let command = format!("{vmm} --blk=path=/tmp/disk,ro,serial=lab-disk");
    let read = "mount -o ro -t ext4 /dev/vda /mnt; md5sum /mnt/data; cat /sys/block/vda/ro \
        /sys/block/vda/serial; echo x > /dev/vda; poweroff -f\r";
    let dialogue = [("@guest ready\n", read)];
    case(
        machine,
        &guest.named("disks: read only"),
        &command,
        &dialogue,
        |output| {
            expect(output.contains(&digest), "the digest of what was written")?;
            let settings = "\n1\nlab-disk";
            expect(
                output.contains(settings),
                "a read-only disk with a serial number",
            )?;
            expect(output.contains("Operation not permitted"), "no writing")
        },
    )
}

/// Random reads and writes on each engine for so many seconds, each block checked. On one vCPU: guests
/// with several crash sooner in the emulated x86_64 machine (docs/architecture.md, known limits).
fn verify(machine: &mut Machine, guest: &Guest, seconds: u32) -> Result<()> {
    let command = format!(
        "truncate -s 64M /tmp/uring /tmp/sync; {} --blk=path=/tmp/uring,engine=io_uring \
         --blk=path=/tmp/sync,engine=sync",
        guest.command
    );
    let verify =
        format!("agent verify /dev/vda {seconds}; agent verify /dev/vdb {seconds}; poweroff -f\r");
    let dialogue = [("@guest ready\n", verify.as_str())];
    let name = guest.named("disks: verify");
    case(machine, &name, &command, &dialogue, |output| {
        for disk in ["/dev/vda", "/dev/vdb"] {
            let line = format!("@agent verified {disk} with ");
            expect(output.contains(&line), &line)?;
        }
        Ok(())
    })
}

/// Data through a tap in both directions, in a network namespace of its own.
fn network(machine: &mut Machine, guest: &Guest) -> Result<()> {
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
         agent check tcp:10.9.0.1:5000 {BYTES}; agent echo tcp:0.0.0.0:5001; sleep 1; poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", talk.as_str())];
    case(
        machine,
        &guest.named("network"),
        &command,
        &dialogue,
        |output| {
            for text in [
                "02:00:00:00:00:09\n1400\n".to_owned(),
                "queues 2\n".to_owned(),
                "2 packets received".to_owned(),
                format!("@agent checked tcp:10.9.0.1:5000 {BYTES}\n"),
                format!("@agent checked tcp:10.9.0.2:5001 {BYTES}\n"),
            ] {
                expect(output.contains(&text), &text)?;
            }
            Ok(())
        },
    )
}

/// Data through sockets of the host and of the guest; a client that goes away in the middle.
fn sockets(machine: &mut Machine, guest: &Guest) -> Result<()> {
    let vmm = &guest.command;
    const BYTES: u64 = 1_000_000;
    let command = format!(
        "agent echo unix:/tmp/v_5000 & agent check hybrid:/tmp/v:5001 {BYTES} & \
         {vmm} --vsock=cid=7,path=/tmp/v; status=$?; ls /tmp/v; (exit $status)"
    );
    let talk = format!(
        "agent check vsock:2:5000 {BYTES}; agent echo vsock:0:5001; \
         agent refused vsock:2:5002; sleep 1; poweroff -f\r"
    );
    let dialogue = [("@guest ready\n", talk.as_str())];
    case(
        machine,
        &guest.named("sockets"),
        &command,
        &dialogue,
        |output| {
            for text in [
                format!("@agent checked vsock:2:5000 {BYTES}\n"),
                format!("@agent echoed {BYTES}\n"),
                format!("@agent checked hybrid:/tmp/v:5001 {BYTES}\n"),
                "@agent refused by vsock:2:5002\n".to_owned(),
                "ls: /tmp/v: No such file".to_owned(),
            ] {
                expect(output.contains(&text), &text)?;
            }
            Ok(())
        },
    )
}

/// The balloon takes what is above its target, what the guest frees goes back to the host, and
/// random bytes come.
fn memory(machine: &mut Machine, guest: &Guest) -> Result<()> {
    let vmm = &guest.command;
    // The guest says through a disk when its memory is in use; the host, when it has that back.
    let command = format!(
        "truncate -s 1M /tmp/used; \
         (until head -c 2 /tmp/used | grep -q go; do sleep 0.2; done; \
          resident() {{ awk '/^VmRSS/ {{ print $2 }}' /proc/$(pidof vmm-reference)/status; }}; \
          before=$(resident); until [ $(resident) -lt $((before - 40000)) ]; do sleep 0.2; done; \
          echo given back) & \
         {vmm} --guest-memory=256 --balloon=target=192,free-page-reporting --blk=/tmp/used"
    );
    let use_and_free = "cat /sys/class/misc/hw_random/rng_current; \
        echo random $(head -c 100 /dev/hwrng | wc -c); \
        until [ $(awk '/^balloon_inflate/ { print $2 }' /proc/vmstat) -ge 16384 ]; do sleep 0.2; done; \
        echo inflated; mount -t tmpfs none -o size=80M /mnt; head -c 64000000 /dev/urandom > /mnt/waste; \
        printf go | dd of=/dev/vda conv=fsync; sleep 1; rm /mnt/waste\r";
    let dialogue = [
        ("@guest ready\n", use_and_free),
        ("given back\n", "poweroff -f\r"),
    ];
    case(
        machine,
        &guest.named("balloon and entropy"),
        &command,
        &dialogue,
        |output| {
            expect(output.contains("virtio_rng.0\n"), "the entropy source")?;
            expect(output.contains("random 100\n"), "random bytes")?;
            expect(output.contains("inflated\n"), "less memory for the guest")
        },
    )
}

/// R44: the host's disk is full, a disk's file shrinks, a tap is deleted: the guest sees errors, the
/// log names them, and both go on.
fn host_faults(machine: &mut Machine, guest: &Guest) -> Result<()> {
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
        dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct && echo alive; poweroff -f\r";
    let dialogue = [("@guest ready\n", provoke)];
    case(
        machine,
        &guest.named("r44: faults of the host"),
        &command,
        &dialogue,
        |output| {
            for text in [
                "dd: error writing '/dev/vda'",
                "dd: /dev/vdb: Input/output error",
                "the disk /small/disk failed, 1 times so far: No space left on device",
                "the disk /tmp/shrinks failed, 1 times so far: unexpected end of file",
                "the tap device is gone",
                "carrier lost\n",
                "\nalive\n",
            ] {
                expect(output.contains(text), text)?;
            }
            Ok(())
        },
    )
}

/// A shell on hvc0, whose size is the terminal's.
fn console(machine: &mut Machine, guest: &Guest) -> Result<()> {
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
             poweroff -f\r",
        ),
    ];
    case(
        machine,
        &guest.named("virtio console"),
        &command,
        &dialogue,
        |output| {
            expect(output.contains("33 99\n"), "the terminal's size")?;
            expect(output.contains("resized\n"), "the terminal's new size")?;
            expect(
                output.contains("@guest ready"),
                "the serial console beside it",
            )
        },
    )
}

/// A guest with every device reboots: it starts again in the same process and finds its disk, its
/// network device and its console; nothing is left over of the starts before.
fn restart(machine: &mut Machine, guest: &Guest) -> Result<()> {
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
    case(
        machine,
        &guest.named("restart"),
        &command,
        &dialogue,
        |output| {
            let has: Vec<_> = output
                .lines()
                .filter_map(|line| line.strip_prefix("has:"))
                .collect();
            expect(has.len() == STARTS, "a look at each start")?;
            expect(has.windows(2).all(|pair| pair[0] == pair[1]), "no leaks")
        },
    )
}

/// SIGTERM presses the power button: the kernel's driver tells user space, which powers off.
fn power_button(machine: &mut Machine, guest: &Guest) -> Result<()> {
    // The guest says through its disk when it listens.
    let command = format!(
        "truncate -s 1M /tmp/flag; \
         (until head -c 2 /tmp/flag | grep -q go; do sleep 0.2; done; \
          kill -TERM $(pidof vmm-reference)) & {} --blk=/tmp/flag",
        guest.command
    );
    let listen = "(sleep 1; printf go | dd of=/dev/vda conv=fsync) & \
        head -c 24 /dev/input/event0 | hexdump -v -e '/2 \"%u \"'; echo; poweroff -f\r";
    let dialogue = [("@guest ready\n", listen)];
    let name = guest.named("power button");
    case(machine, &name, &command, &dialogue, |output| {
        // Two times of 8 bytes, then type EV_KEY, code KEY_POWER, value 1.
        expect(output.contains(" 1 116 1 0 "), "the key")?;
        expect(output.contains("asked to power off"), "the log")
    })
}

/// A kernel that panics ends the VM with the status for a crash, and the log has its last words.
fn panic(machine: &mut Machine, guest: &Guest) -> Result<()> {
    let command = format!("{}; [ $? = 3 ]", guest.command);
    let dialogue = [("@guest ready\n", "echo c > /proc/sysrq-trigger\r")];
    let name = guest.named("panic");
    case(machine, &name, &command, &dialogue, |output| {
        let report = output.split("the guest crashed").nth(1);
        let last_words = report.is_some_and(|report| report.contains("Kernel panic"));
        expect(last_words, "the panic in the report")
    })
}
