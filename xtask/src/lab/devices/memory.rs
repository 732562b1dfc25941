//! The balloon, and random bytes.

use super::guest::Guest;
use crate::lab::case::{Case, expect, expect_all};
use crate::step::Result;

/// The balloon takes what is above its target, what the guest frees goes back to the host, the guest tells of its memory
/// and names what it has free, and random bytes come.
pub(super) fn memory(guest: &Guest) -> Case {
    let vmm = &guest.command;
    // The guest says through a disk when its memory is in use; the host, when it has that back and has asked for
    // the rest.
    let command = format!(
        "truncate -s 1M /tmp/used; \
         (until head -c 2 /tmp/used | grep -q go; do sleep 0.2; done; \
          resident() {{ awk '/^VmRSS/ {{ print $2 }}' /proc/$(pidof vmm-reference)/status; }}; \
          before=$(resident); until [ $(resident) -lt $((before - 40000)) ]; do sleep 0.2; done; \
          balloon() {{ /vmm-reference ctl /tmp/c device balloon0 \"$@\"; }}; \
          balloon statistics; balloon hinting start; \
          until balloon hinting status | grep -q 'idle$'; do sleep 0.2; done; balloon hinting status; \
          echo given back) & \
         {vmm} --guest-memory=256 --balloon=target=192,free-page-reporting,free-page-hinting \
         --blk=/tmp/used --control=/tmp/c"
    );
    let use_and_free = "cat /sys/class/misc/hw_random/rng_current; \
        echo random $(head -c 100 /dev/hwrng | wc -c); \
        until [ $(awk '/^balloon_inflate/ { print $2 }' /proc/vmstat) -ge 16384 ]; do sleep 0.2; done; \
        echo inflated; mount -t tmpfs none -o size=80M /mnt; head -c 64000000 /dev/urandom > /mnt/waste; \
        printf go | dd of=/dev/vda conv=fsync; sleep 1; rm /mnt/waste\r";
    let dialogue = [
        ("@guest ready\n", use_and_free),
        ("given back\n", "stty echo; poweroff -f\r"),
    ];
    guest.case("balloon and entropy", &command, &dialogue, |output| {
        expect(output.contains("virtio_rng.0\n"), "the entropy source")?;
        expect_all(
            output,
            &[
                "random 100\n".to_owned(),
                "inflated\n".to_owned(),
                format!("{:24} 65536 KiB\n", "given"),
            ],
        )?;
        let kib = |name: &str| -> Result<u64> {
            let start = format!("\n{name:24} ");
            let behind = output.split(&start).nth(1).ok_or(start)?;
            let number = behind.split_once(" KiB\n").ok_or("no size")?.0;
            Ok(number.parse()?)
        };
        // It has 192 MiB, and at least a quarter of that free; of that it names whole blocks of 4 MiB.
        let [free, total] = [kib("free")?, kib("total")?];
        expect(total < 192 << 10 && free > 48 << 10, "statistics of Linux")?;
        let named = kib("released")?;
        expect(named >= 4 << 10 && named <= total, "pages that are free")
    })
}
