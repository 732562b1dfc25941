//! What the command line says when it is used wrongly: field, value, cause and cure.

mod kernels;

use crate::common::{file, finish, option, refused, vmm};

#[test]
fn r42_memory_and_initrd_must_fit() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let kernel = option("kernel", kernel.path());
    refused(
        &["--guest-memory=8"],
        &[
            "--guest-memory=8M: too little",
            "cure: give at least 16 MiB",
        ],
    );
    refused(&["--guest-memory=0"], &["--guest-memory="]);
    refused(
        &["--guest-memory=lots"],
        &["--guest-memory", "1024, 512M or 2G"],
    );
    refused(&["--guest-memory=16777215T"], &["guest-memory"]);
    let initrd = tempfile::NamedTempFile::new().unwrap();
    initrd.as_file().set_len(64 << 20).unwrap();
    let initrd = option("initrd", initrd.path());
    refused(
        &[&kernel, &initrd, "--guest-memory=32"],
        &[&initrd, "67108864 bytes", "cure:"],
    );
}

#[test]
fn vcpus_and_options_are_checked() {
    refused(&["--vcpus=0"], &["--vcpus", "it is 1 to as many"]);
    refused(
        &["--vcpus=100000"],
        &["--vcpus=100000", "this host offers 1 to"],
    );
    // One kind of machine on one architecture has fewer vCPUs than others.
    let pc = ["plan", "--arch=x86_64", "--lean=off"];
    let most = [&pc[..], &["--vcpus=255"]].concat();
    assert!(finish(vmm(&most).spawn().unwrap()).status.success());
    refused(
        &[&pc[..], &["--vcpus=300"]].concat(),
        &[
            "--vcpus=300: ",
            "I/O APIC",
            "lean=off",
            "255 vCPUs",
            "cure: give 1 to 255 vCPUs, or --lean=auto",
        ],
    );
    refused(&["--on-reboot=maybe"], &["--on-reboot", "exit, restart"]);
    refused(&["--serial=tty"], &["--serial", "stdio, null or file=PATH"]);
    refused(
        &["--serial=file=/nonexistent/x"],
        &["--serial=file=/nonexistent/x"],
    );
    refused(&["--kernl=x"], &["--kernel"]);
}

#[test]
fn r42_the_command_line_has_a_limit() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let long = "x".repeat(100_000);
    refused(
        &[&option("kernel", kernel.path()), "--append", &long],
        &[
            "100032 bytes of kernel command line",
            "at most 2047",
            "cure: shorten --append=TEXT or --cmdline=TEXT",
        ],
    );
}

#[test]
fn plan_prints_what_the_options_give() {
    let arguments = [
        "plan",
        "--guest-memory=5G",
        "--overcommit",
        "--vcpus=3",
        "--append=quiet",
        "--json",
    ];
    let ended = finish(vmm(&arguments).spawn().unwrap());
    let plan: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let ram: u64 = plan["ram"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["len_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!((ram, &plan["vcpus"]), (5 << 30, &serde_json::json!(3)));
    assert!(plan["cmdline"].as_str().unwrap().ends_with(" quiet"));
    let ended = finish(vmm(&["plan", "--cmdline=mine"]).spawn().unwrap());
    assert!(
        ended.stdout.ends_with("command line\n  mine\n"),
        "{}",
        ended.stdout
    );
}

#[test]
fn plan_checks_the_files_too() {
    refused(
        &["plan", "--kernel=/nonexistent"],
        &["--kernel=/nonexistent:"],
    );
    refused(&["plan", "--initrd=/tmp"], &["--initrd=/tmp: a directory"]);
    let text = file(b"no kernel at all");
    refused(
        &["plan", &option("kernel", text.path())],
        &["no known kernel format"],
    );
}

#[test]
fn disks_are_checked_by_name() {
    refused(
        &["--blk=/nonexistent"],
        &[
            "--blk=/nonexistent: there is no such file",
            "cure:",
            "truncate",
        ],
    );
    refused(
        &["--blk=/dev/null"],
        &["--blk=/dev/null: it is a character device"],
    );
    refused(&["--blk="], &["--blk", "write PATH"]);
    refused(&["--blk=path=x,rw"], &["--blk", "\"rw\""]);
    let disk = file(&[0; 4096]);
    let path = disk.path().display();
    refused(
        &[&format!("--blk={path}"), &format!("--blk={path},ro")],
        &[
            "in use as a disk already by this process",
            "cure:",
            "an image of its own",
        ],
    );
    // The cure does not ask for what is there.
    refused(
        &[&format!("--blk={path},ro"), &format!("--blk={path}")],
        &["in use as a disk already", "cure: add ,ro to read along"],
    );
    let odd = file(&[0; 1000]);
    let named = option("blk", odd.path());
    let plan = finish(vmm(&["plan", &named]).spawn().unwrap());
    assert!(plan.stderr.contains("1000 bytes"), "{}", plan.stderr);
    assert!(plan.stderr.contains("the whole sector"), "{}", plan.stderr);
    let empty = file(&[]);
    let plan = finish(
        vmm(&["plan", &option("blk", empty.path())])
            .spawn()
            .unwrap(),
    );
    assert_eq!(
        plan.status.code(),
        Some(0),
        "a place for another file: {plan:?}"
    );
    refused(&["plan", "--blk=/nonexistent"], &["--blk=/nonexistent"]);
    let twice = option("blk", disk.path());
    refused(
        &["plan", &twice, &twice],
        &["in use as a disk already", "cure:"],
    );
    // A plan locks nothing: another VM may have the disk.
    let held = std::fs::File::open(disk.path()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let plan = finish(vmm(&["plan", &twice]).spawn().unwrap());
    assert_eq!(plan.stdout.matches("virtio block device").count(), 1);
    let readers = format!("--blk={path},ro");
    let plan = finish(vmm(&["plan", &readers, &readers]).spawn().unwrap());
    assert_eq!(plan.stdout.matches("virtio block device").count(), 2);
}

#[test]
fn devices_that_cannot_be_are_refused() {
    refused(
        &["--balloon=target=0"],
        &["--balloon", "left with no memory"],
    );
    refused(
        &["--net=vm0", "--net=tap=vm0,queues=2"],
        &["--net=vm0: another network device has it already", "cure:"],
    );
    refused(&["--net=fd=7", "--net=fd=7"], &["--net=fd=7: another"]);
    refused(&["--net=vm%d"], &["--net", "no /, : or %"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = format!("file={}", file.path().display());
    refused(
        &[&format!("--serial={path}"), &format!("--console={path}")],
        &[
            "--console=file=",
            ": --serial=file=",
            "names the same path",
            "cure: name two paths",
        ],
    );
    for wrong in ["d,,ro", "d,", ",d"] {
        refused(
            &[&format!("--blk={wrong}")],
            &["--blk", "between two commas"],
        );
    }
    refused(
        &["--blk=d,ro="],
        &["--blk", "ro=", "it is empty; ro alone means on"],
    );
    refused(
        &["--net=vm0,mtu="],
        &["--net", "mtu=", "it is empty; give a value"],
    );
}

#[test]
fn a_console_that_the_kernel_does_not_use_is_said() {
    let said = |arguments: &[&str]| {
        let ended = finish(vmm(&[&["plan"], arguments].concat()).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stderr
    };
    for quiet in [
        &["--append=quiet"][..],
        &["--console"],
        &["--console", "--append=quiet console=hvc0"],
        &["--console=null", "--cmdline=console=ttyS0"],
    ] {
        assert_eq!(said(quiet), "", "{quiet:?}");
    }
    let other = said(&["--console", "--append=console=ttyS0"]);
    assert!(other.contains("console=ttyS0 last") && other.contains("write console=hvc0"));
    let missing = said(&["--append=console=hvc0"]);
    assert!(missing.contains("console=hvc0 last") && missing.contains("add --console"));
    let none = said(&["--cmdline=quiet"]);
    assert!(none.contains("has no console="), "{none}");
}

#[test]
fn plan_shows_machines_of_every_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tree.dtb");
    let dump = option("dump-dtb", &path);
    let arguments = ["plan", "--arch=aarch64", "--vcpus=3", "--guest-memory=1G"];
    let ended = finish(vmm(&arguments).arg(&dump).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    for text in [
        "aarch64 machine: 3 vCPUs, 1024 MiB",
        "PL011",
        "console=ttyAMA0",
    ] {
        assert!(ended.stdout.contains(text), "{text}: {}", ended.stdout);
    }
    let tree = std::fs::read(&path).unwrap();
    assert!(tree.starts_with(&[0xd0, 0x0d, 0xfe, 0xed]));
    let cpus = tree.windows(5).filter(|name| name == b"cpu@2").count();
    assert_eq!(cpus, 1);

    let ended = finish(vmm(&["plan", "--arch=x86_64"]).spawn().unwrap());
    assert!(ended.stdout.contains("x86_64 machine: 1 vCPUs, 256 MiB"));
    refused(
        &["plan", "--arch=x86_64", &dump],
        &["--arch=x86_64: x86_64 does not boot kernels", "device tree"],
    );
    refused(&["plan", "--arch=vax"], &["vax", "aarch64"]);
}

#[test]
fn what_the_command_line_asks_in_vain_is_said() {
    let remarks = |arguments: &[&str]| {
        let plan = [&["plan", "--json"], arguments].concat();
        let ended = finish(vmm(&plan).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let plan: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        plan["remarks"].to_string()
    };
    for arch in ["x86_64", "aarch64"] {
        let on = |text, transport| {
            let (arch, append) = (format!("--arch={arch}"), format!("--append={text}"));
            remarks(&[&arch, &append, transport])
        };
        let (pci, mmio) = ("--transport=pci", "--transport=mmio");
        assert_eq!(on("quiet", pci), "null");
        assert!(on("pci=nomsi", pci).contains("no interrupts but messages"));
        assert!(on("pci=off", pci).contains("does not look"));
        assert_eq!(on("pci=nomsi", mmio), "null");
        if arch == "x86_64" {
            assert!(on("acpi=off", mmio).contains("use transport=pci"));
            assert!(!on("acpi=off", pci).contains("finds none"));
            assert!(on("acpi=off", pci).contains("CONFIG_X86_MPPARSE"));
            assert!(!on("acpi=off", mmio).contains("CONFIG_X86_MPPARSE"));
            assert!(on("acpi=off", mmio).contains("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"));
            assert!(on("acpi=off", pci).contains("cannot power off"));
        } else {
            assert_eq!(on("acpi=off", mmio), "null");
        }
    }
    let ended = finish(vmm(&["--append=pci=nomsi"]).spawn().unwrap());
    for said in ["pci=nomsi: devices on the PCI bus", "use --transport=mmio"] {
        assert!(ended.stderr.contains(said), "{ended:?}");
    }
    // Without a device on the bus it is nobody's business.
    assert_eq!(remarks(&["--append=pci=nomsi", "--rng=off"]), "null");
    let lean = remarks(&["--arch=x86_64", "--append=acpi=off", "--lean=on"]);
    assert!(lean.contains("interval timer"), "{lean}");
}

#[test]
fn doctor_finds_this_host_fit() {
    let ended = finish(vmm(&["doctor"]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("this host can run VMs"));
}

#[test]
fn r62_no_output_overwrites_what_the_vm_reads() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let before = std::fs::read(kernel.path()).unwrap();
    let disk = file(&[7; 4096]);
    let (named, disk_option) = (option("kernel", kernel.path()), option("blk", disk.path()));
    let timeline = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(timeline.path(), "of an earlier run").unwrap();
    let timeline_option = option("boot-timeline", timeline.path());
    for (field, path) in [("kernel", kernel.path()), ("disk", disk.path())] {
        let serial = format!("--serial=file={}", path.display());
        let text = format!("it is the {field} of this VM as well");
        refused(
            &[&named, &disk_option, &timeline_option, &serial],
            &["--serial=", &text, "cure: name another file"],
        );
    }
    assert_eq!(std::fs::read(kernel.path()).unwrap(), before);
    assert_eq!(std::fs::read(disk.path()).unwrap(), [7; 4096]);
    let kept = std::fs::read_to_string(timeline.path()).unwrap();
    assert_eq!(kept, "of an earlier run", "nothing has started");
    let tree = option("dump-dtb", kernel.path());
    refused(&["plan", &named, "--arch=aarch64", &tree], &["--dump-dtb="]);
    assert_eq!(std::fs::read(kernel.path()).unwrap(), before);
}

#[test]
fn r63_output_that_cannot_be_written_is_an_error() {
    for arguments in [
        &["plan"][..],
        &["plan", "--json"],
        &["doctor"],
        &["--dump-config"],
    ] {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let child = vmm(arguments).stdout(full).spawn().unwrap();
        let ended = finish(child);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains("cannot write to standard output"),
            "{ended:?}"
        );
    }
}

#[test]
fn files_that_never_end_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo.json");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    refused(
        &[&option("config", &fifo)],
        &["--config=", "no regular file"],
    );
    refused(
        &[&option("boot-timeline", &fifo)],
        &["--boot-timeline=", "nobody reads", "start the reader first"],
    );
    let facts = option("facts", &fifo);
    refused(
        &["plan", "--arch=aarch64", &facts],
        &["--facts=", "no regular file"],
    );
    let endless = folder.path().join("endless.json");
    std::os::unix::fs::symlink("/dev/zero", &endless).unwrap();
    refused(&[&option("config", &endless)], &["no regular file"]);
}
