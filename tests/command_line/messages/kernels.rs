//! What the command line says of kernels and initrds: which it refuses, and what it finds in one.

use super::*;

#[test]
fn r42_a_kernel_that_is_no_file_is_named() {
    refused(
        &["--kernel=/nonexistent"],
        &["--kernel=/nonexistent: No such file", "cure:"],
    );
    refused(&["--kernel=/tmp"], &["--kernel=/tmp: a directory", "cure:"]);
    refused(&["--kernel=/dev/null"], &["not a regular file"]);
}

#[test]
fn r42_a_fifo_as_kernel_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    refused(&[&option("kernel", &path)], &["not a regular file"]);
    refused(
        &[&option("initrd", &path), &option("kernel", &path)],
        &["not a regular file"],
    );
}

#[test]
fn kernels_that_do_not_boot_here_say_why() {
    let mut arm = vec![0; 4096];
    arm[56..60].copy_from_slice(b"ARM\x64");
    refused(
        &[&option("kernel", file(&arm).path())],
        &["arm64 Image", "x86_64"],
    );
    refused(
        &[&option("kernel", file(b"").path())],
        &["the file is empty"],
    );
    refused(
        &[&option("kernel", file(b"#!/bin/sh\n").path())],
        &["script"],
    );
    refused(
        &[&option("kernel", file(&[0x1f, 0x8b, 8, 0]).path())],
        if cfg!(feature = "packed-kernels") {
            &[
                "the gzip-packed kernel is damaged near byte 4",
                "cure: copy",
            ]
        } else {
            &["packed with gzip", "build with the feature packed-kernels"]
        },
    );
    refused(
        &[&option("kernel", file(b"BZh91AY&SY").path())],
        &["packed with bzip2", "cure: unpack it (bzip2 -dc"],
    );
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = 183;
    refused(
        &[&option("kernel", file(&elf).path())],
        &["arm64 ELF: x86_64", "cure: give a kernel for x86_64"],
    );
    for command in [&["plan"][..], &["inspect"], &[]] {
        let deb = file(b"!<arch>\ndebian-binary   ");
        let named = match command {
            ["inspect"] => deb.path().display().to_string(),
            _ => option("kernel", deb.path()),
        };
        refused(
            &[command, &[&named]].concat(),
            &["a Debian package", "cure: unpack it (dpkg-deb -x"],
        );
    }
}

#[test]
fn r42_an_initrd_that_is_none_is_named() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let kernel = option("kernel", kernel.path());
    let empty = file(b"");
    let initrd = option("initrd", empty.path());
    let parts = [&*initrd, "the file is empty", "cure: make or copy it again"];
    refused(&["plan", &initrd], &parts);
    refused(&[&kernel, &initrd], &parts);
    refused(
        &[&kernel, "--initrd=/tmp"],
        &["--initrd=/tmp: a directory", "cure: name the image"],
    );
    // The kernel decides, so these are no errors.
    let looks_like = |bytes: &[u8]| {
        let file = file(bytes);
        let initrd = option("initrd", file.path());
        let plan = finish(vmm(&["plan", &initrd]).spawn().unwrap());
        assert_eq!(plan.status.code(), Some(0), "{plan:?}");
        let run = finish(vmm(&[&kernel, &initrd]).spawn().unwrap());
        assert_eq!(run.status.code(), Some(0), "{run:?}");
        let said = |text: &str| {
            let lines = text.lines().filter(|line| line.contains("looks like"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let (plan, run) = (said(&plan.stdout), said(&run.stderr));
        assert_eq!(plan.len(), run.len(), "{run:?}");
        for (plan, run) in plan.iter().zip(&run) {
            assert!(run.contains(plan.trim()), "{plan} {run}");
        }
        plan.join("")
    };
    assert!(looks_like(b"QFI\xfb and so on").contains("a qcow2 disk image"));
    let mut image = vec![0; 4096];
    image[56..60].copy_from_slice(b"ARM\x64");
    assert!(looks_like(&image).contains("a kernel (arm64 Image)"));
    for initrd in [&b"070701 and so on"[..], &[0x1f, 0x8b, 8], b"anything"] {
        assert_eq!(looks_like(initrd), "");
    }
}

#[test]
fn plan_and_inspect_say_whether_a_machine_is_lean_and_why() {
    let plan = |arguments: &[&str]| {
        let plan = [&["plan", "--arch=x86_64", "--json"], arguments].concat();
        let ended = finish(vmm(&plan).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let plan: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let why = plan["lean"]["why"].as_str().unwrap().to_owned();
        let has_ioapic = plan["devices"].to_string().contains("io-apic");
        assert_eq!(plan["lean"]["lean"], has_ioapic, "{plan}");
        (has_ioapic, why)
    };
    let hello = cfg!(feature = "hello-guest");
    assert_eq!(plan(&[]).0, hello);
    assert_eq!(plan(&["--lean=off"]), (false, "as configured".to_owned()));
    assert_eq!(plan(&["--lean=on"]), (true, "as configured".to_owned()));
    let other = crate::common::kernel(&crate::common::RESET);
    let other = option("kernel", other.path());
    assert!(!plan(&[&other]).0);
    assert!(plan(&[&other, "--lean=on"]).0);
    refused(&["--lean=maybe"], &["--lean", "maybe"]);

    #[cfg(feature = "bzimage")]
    {
        // A setup header of protocol 2.15, four sectors of setup code with the version, and a kernel.
        let mut image = vec![0; 5 * 512 + 4096];
        for (offset, bytes) in [
            (0x1f1, &[4][..]),
            (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
            (0x202, b"HdrS\x0f\x02"),
            (0x20e, &[0, 2]),
            (0x211, &[1]),
            (0x232, &[0x20]),
            (0x236, &[1]),
            (0x238, &[0xff, 7]),
            (0x25b, &[1]),
            (0x400, b"6.12.1 (me@here)\0"),
        ] {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        let kernel = file(&image);
        let linux = option("kernel", kernel.path());
        assert_eq!(
            plan(&[&linux]),
            (true, "Linux 6.12 misses nothing".to_owned())
        );
        let off = plan(&[&linux, "--append=acpi=off"]);
        assert_eq!(off, (false, "acpi=off on the command line".to_owned()));
        let path = kernel.path().to_str().unwrap();
        let ended = finish(vmm(&["inspect", path]).spawn().unwrap());
        let line = "machine       lean: Linux 6.12 misses nothing\n";
        assert!(ended.stdout.contains(line), "{ended:?}");
    }
}

#[test]
fn inspect_says_what_a_kernel_is() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let path = kernel.path().to_str().unwrap();
    let inspect = |arguments: &[&str]| {
        let ended = finish(vmm(&[&["inspect"], arguments].concat()).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stdout
    };
    let text = inspect(&[path]);
    for line in [
        "format        x86_64 ELF",
        "entry         0x100000 (64-bit Linux)",
        "no PVH note",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let here = std::env::consts::ARCH == "x86_64";
    assert_eq!(text.contains("nothing in the file speaks against"), here);
    let json: serde_json::Value = serde_json::from_str(&inspect(&[path, "--json"])).unwrap();
    assert_eq!(json["architecture"], "x86_64");
    assert_eq!(json["load_address"], 0x10_0000);

    let mut riscv = vec![0; 4096];
    riscv[56..60].copy_from_slice(b"RSC\x05");
    let text = inspect(&[file(&riscv).path().to_str().unwrap()]);
    assert!(text.contains("problem       it is for riscv64, and this host is"));
    refused(
        &["inspect", "/nonexistent"],
        &["/nonexistent: No such file", "cure:"],
    );
    let script = file(b"no kernel");
    let path = script.path().to_str().unwrap();
    refused(
        &["inspect", path],
        &[path, "no known kernel format", "cure:"],
    );
}
