//! `plan` says what running would say, and makes nothing.

use crate::common::{file, finish, option, refused, vmm};

/// Every option here keeps a VM from starting.
#[test]
fn plan_refuses_what_running_refuses_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let kernel = crate::common::kernel(&crate::common::RESET);
    let kernel = option("kernel", kernel.path());
    std::fs::write(path("file"), "content").unwrap();
    std::fs::write(path("vm.toml"), "vcpus = 1\n").unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let long = format!("--append={}", "x".repeat(4096));
    let mut arm = vec![0; 4096];
    arm[56..60].copy_from_slice(b"ARM\x64");
    let arm = file(&arm);
    let count = std::fs::read_dir(folder.path()).unwrap().count();
    for arguments in [
        vec![format!("--serial=file={}", path("folder"))],
        vec![format!("--serial=file={}", path("no/file"))],
        vec![format!("--serial=file={}", path("socket"))],
        vec![
            format!("--serial=file={}", path("file")),
            format!("--initrd={}", path("file")),
        ],
        vec![format!("--boot-timeline={}", path("x.txt"))],
        vec![format!("--boot-timeline={}", path("no/x.json"))],
        vec![
            format!("--boot-timeline={}", path("x.json")),
            format!("--serial=file={}", path("x.json")),
        ],
        vec![format!("--initrd={}", path("empty"))],
        vec![format!("--initrd={}", path("no"))],
        vec![option("kernel", arm.path())],
        vec![long],
        vec!["--append=a\nb".to_owned()],
        vec!["--guest-memory=8".to_owned()],
        vec![
            "--guest-memory=65M".to_owned(),
            "--huge-pages=2M".to_owned(),
        ],
        vec![
            "--guest-memory=257M".to_owned(),
            "--huge-pages=1G".to_owned(),
        ],
        // More than any pool has.
        vec![
            "--guest-memory=3T".to_owned(),
            "--huge-pages=2M".to_owned(),
            "--overcommit".to_owned(),
        ],
        vec!["--vcpus=0".to_owned()],
        #[cfg(feature = "virtio-vsock")]
        vec![format!("--vsock=cid=3,path={}", path("file"))],
        #[cfg(feature = "virtio-vsock")]
        vec![format!("--vsock=cid=3,path={}", path("no/socket"))],
        #[cfg(feature = "virtio-vsock")]
        vec![format!("--vsock=cid=3,path={}", path(&"x".repeat(100)))],
        #[cfg(feature = "virtio-net")]
        vec!["--net=fd=999".to_owned()],
        // The first number that a file of the program's own would get.
        #[cfg(feature = "virtio-net")]
        vec![
            "--net=fd=3".to_owned(),
            format!("--serial=file={}", path("made")),
        ],
        #[cfg(feature = "virtio-net")]
        vec!["--net=fd=0".to_owned()],
        #[cfg(feature = "virtio-net")]
        vec!["--net=lo".to_owned()],
        #[cfg(feature = "virtio-net")]
        vec!["--net=vm0,mtu=9000,queue-size=2".to_owned()],
        #[cfg(feature = "virtio-console")]
        vec![format!("--console=file={}", path("no/file"))],
        #[cfg(feature = "config-file")]
        vec![
            format!("--config={}", path("vm.toml")),
            format!("--serial=file={}", path("vm.toml")),
        ],
    ] {
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if !arguments[0].starts_with("--kernel") {
            arguments.push(&kernel);
        }
        let ran = finish(vmm(&arguments).spawn().unwrap());
        arguments.insert(0, "plan");
        let planned = finish(vmm(&arguments).spawn().unwrap());
        assert_ne!(ran.status.code(), Some(0), "{arguments:?}: {ran:?}");
        assert_eq!(
            (planned.status.code(), planned.stderr.lines().next()),
            (ran.status.code(), ran.stderr.lines().next()),
            "{arguments:?}"
        );
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, count, "{arguments:?} made something");
        assert_eq!(std::fs::read(path("file")).unwrap(), b"content");
        assert_eq!(std::fs::read(path("vm.toml")).unwrap(), b"vcpus = 1\n");
    }
    // What is right makes nothing either.
    let right = format!("--serial=file={}", path("new"));
    let timeline = format!("--boot-timeline={}", path("new.json"));
    let planned = finish(vmm(&["plan", &kernel, &right, &timeline]).spawn().unwrap());
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), count);
}

#[test]
#[cfg(all(
    feature = "control",
    feature = "virtio-vsock",
    feature = "virtio-console"
))]
fn two_options_that_name_one_path_are_both_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::os::unix::fs::symlink(folder.path(), path("link")).unwrap();
    let other_way = format!("{}/x.json", path("link"));
    let x = path("x.json");
    let options = |path: &str| {
        [
            format!("--vsock=path={path}"),
            format!("--control={path}"),
            format!("--serial=file={path}"),
            format!("--console=file={path}"),
            format!("--boot-timeline={path}"),
        ]
    };
    let said = |option: &str| option.to_owned();
    for (place, one) in options(&x).iter().enumerate() {
        for (other_place, other) in options(&x).iter().enumerate().skip(place + 1) {
            let given = |option: &str| option.replace("--vsock=path", "--vsock=cid=3,path");
            let (a, b) = (given(one), given(other));
            let text = format!("error: {}: {} names the same path", said(other), said(one));
            for command in [&["plan"][..], &[]] {
                refused(
                    &[command, &[&a, &b]].concat(),
                    &[&text, "cure: name two paths"],
                );
                refused(&[command, &[&b, &a]].concat(), &[&text]);
            }
            // By another way there.
            let b = given(&options(&other_way)[other_place]);
            refused(&["plan", &a, &b], &["names the same path"]);
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
#[cfg(feature = "virtio-blk")]
fn a_disk_that_can_be_written_is_nothing_that_is_read() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let initrd = file(&[0; 4096]);
    let disk = |path: &std::path::Path, more: &str| format!("--blk={}{more}", path.display());
    let (kernel_option, initrd_option) = (
        option("kernel", kernel.path()),
        option("initrd", initrd.path()),
    );
    let all = [&*kernel_option, &*initrd_option];
    for (path, what) in [(kernel.path(), "the kernel"), (initrd.path(), "the initrd")] {
        let said = format!("it is {what} of this VM as well");
        for command in [&["plan"][..], &[]] {
            let wrong = disk(path, "");
            refused(
                &[command, &all, &[&wrong]].concat(),
                &[&wrong, &said, "add ,ro"],
            );
        }
        let right = disk(path, ",ro");
        let planned = finish(
            vmm(&[&["plan"], &all[..], &[&right]].concat())
                .spawn()
                .unwrap(),
        );
        assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    }
}

#[test]
#[cfg(feature = "virtio-net")]
fn a_descriptor_is_looked_at_before_a_file_of_the_program_gets_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let made = format!("--serial=file={}", folder.path().join("made").display());
    for command in [&["plan"][..], &[]] {
        let arguments = [command, &["--net=fd=3", &made]].concat();
        refused(&arguments, &["--net=fd=3: Bad file descriptor", "cure: "]);
        let arguments = [command, &["--net=fd=0", &made]].concat();
        refused(&arguments, &["--net=fd=0: it is no tap device", "cure: "]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // So is what a path stands for.
    for (option, field) in [
        ("--kernel=/dev/fd/3", "--kernel"),
        ("--initrd=/dev/fd/3", "--initrd"),
        ("--serial=file=/dev/fd/3", "--serial=file"),
        #[cfg(feature = "virtio-blk")]
        ("--blk=/proc/self/fd/3", "--blk"),
        #[cfg(feature = "virtio-vsock")]
        ("--vsock=cid=3,path=/dev/fd/3", "--vsock=path"),
        #[cfg(feature = "control")]
        ("--control=/dev/fd/3", "--control"),
    ] {
        for command in [&["plan"][..], &[]] {
            let arguments = [command, &[option]].concat();
            let said = format!("error: {field}=");
            refused(
                &arguments,
                &[&said, "fd/3: Bad file descriptor", "cure: give the number"],
            );
        }
    }
    // Those of another host are not known.
    let planned = finish(
        vmm(&["plan", "--arch=aarch64", "--net=fd=3"])
            .spawn()
            .unwrap(),
    );
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
}

/// Each keeps a VM from starting now, and may not do so later.
#[test]
#[cfg(all(feature = "virtio-blk", feature = "virtio-vsock", feature = "control"))]
fn what_another_program_has_is_a_remark_of_a_plan() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut code = crate::common::print("up\n");
    code.extend([0xeb, 0xfe]);
    let kernel = crate::common::kernel(&code);
    let kernel = option("kernel", kernel.path());
    std::fs::write(path("disk"), [0; 4096]).unwrap();
    let options = [
        format!("--blk={}", path("disk")),
        format!("--vsock=cid=3,path={}", path("vsock")),
        format!("--control={}", path("control")),
        format!("--serial=file={}", path("serial")),
    ];
    let all: Vec<&str> = options
        .iter()
        .map(String::as_str)
        .chain([&*kernel])
        .collect();
    // Whoever runs the tests may have SIGINT ignored.
    let ends = [&all[..], &["--shutdown-timeout=0"]].concat();
    let vm = vmm(&ends).spawn().unwrap();
    while std::fs::read(path("serial")).unwrap_or_default() != b"up\n" {
        std::thread::yield_now();
    }
    for (option, remark) in options.iter().zip([
        "in use as a disk already by process ",
        "another program listens there",
        "another program listens there",
        "another VM writes it",
    ]) {
        let planned = finish(vmm(&["plan", option]).spawn().unwrap());
        assert_eq!(planned.status.code(), Some(0), "{planned:?}");
        let remarks = planned
            .stdout
            .split("\nremarks\n")
            .nth(1)
            .unwrap_or_default();
        assert!(remarks.contains(remark), "{remark}: {planned:?}");
        assert!(remarks.contains("refused as long as"), "{planned:?}");
        refused(&[option, &kernel], &[remark]);
    }
    // The machine of a VM that runs can be looked at.
    let planned = finish(vmm(&[&["plan", "--json"], &*all].concat()).spawn().unwrap());
    let plan: serde_json::Value = serde_json::from_str(&planned.stdout).unwrap();
    assert_eq!(plan["remarks"].as_array().unwrap().len(), 4, "{plan}");
    crate::common::signal(&vm, "TERM");
    assert_eq!(finish(vm).status.code(), Some(0));
    let planned = finish(vmm(&[&["plan"], &*all].concat()).spawn().unwrap());
    assert!(!planned.stdout.contains("remarks"), "{planned:?}");
}

#[test]
fn a_fifo_is_remarked_and_its_reader_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let code = [crate::common::print("up\n"), crate::common::RESET.to_vec()].concat();
    let kernel = crate::common::kernel(&code);
    let kernel = option("kernel", kernel.path());
    let serial = format!("--serial=file={}", fifo.display());
    let timeline = folder.path().join("fifo.json");
    std::os::unix::fs::symlink(&fifo, &timeline).unwrap();
    let timeline = option("boot-timeline", &timeline);
    let remarked = |option: &str| {
        let planned = finish(vmm(&["plan", option]).spawn().unwrap());
        assert_eq!(planned.status.code(), Some(0), "{planned:?}");
        let remark = format!("{option} is a FIFO, and is refused unless somebody reads it then");
        assert!(planned.stdout.contains(&remark), "{planned:?}");
    };
    for option in [&serial, &timeline] {
        remarked(option);
        refused(&[option, &kernel], &["nobody reads"]);
    }
    let reader = std::process::Command::new("cat")
        .arg(&fifo)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    remarked(&serial);
    // It may not be there yet.
    let ran = loop {
        let ran = finish(vmm(&[&serial, &kernel]).spawn().unwrap());
        if ran.status.code() != Some(2) {
            break ran;
        }
    };
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(finish(reader).stdout, "up\n");
}

#[test]
fn r62_no_output_is_a_file_that_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let facts = folder.path().join("facts.json");
    let planned = finish(
        vmm(&["plan", &option("dump-facts", &facts)])
            .spawn()
            .unwrap(),
    );
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    let before = std::fs::read(&facts).unwrap();
    let arch = format!("--arch={}", std::env::consts::ARCH);
    let (read, tree) = (option("facts", &facts), option("dump-dtb", &facts));
    refused(
        &["plan", &arch, &read, &tree],
        &["--dump-dtb=", "it is the file of --facts as well"],
    );
    let both = folder.path().join("both.json");
    let (one, other) = (option("dump-facts", &both), option("dump-dtb", &both));
    refused(
        &["plan", &one, &other],
        &[&other, &format!("{one} names the same path")],
    );
    assert!(!both.exists());
    assert_eq!(std::fs::read(&facts).unwrap(), before);
}

#[test]
fn r72_memory_that_the_host_lacks_is_refused() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let kernel = option("kernel", kernel.path());
    // More than any host has, and in reach of 36 address bits.
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib = |name: &str| -> u64 {
        let line = meminfo.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    let mib = (kib("MemTotal:") + kib("SwapTotal:")) / 1024 + 1;
    let memory = format!("--guest-memory={mib}");
    for command in [&["plan"][..], &[]] {
        let arguments = [command, &[&kernel, &memory]].concat();
        refused(
            &arguments,
            &[
                "--guest-memory=",
                "of memory and",
                "of swap",
                "cure: give at most",
                "--overcommit",
            ],
        );
        let allowed = [&arguments[..], &["--overcommit"]].concat();
        let ended = finish(vmm(&allowed).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
    // Of another host nothing is known.
    let ended = finish(vmm(&["plan", "--arch=x86_64", &memory]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn what_memory_is_made_of_is_told() {
    let run = |arguments: &[&str]| {
        let ended = finish(vmm(arguments).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stdout
    };
    let page = rustix::param::page_size() as u64;
    let usual = run(&["plan"]);
    let expected = format!("\nanonymous memory in pages of {}K\n", page >> 10);
    assert!(usual.contains(&expected), "{usual}");
    let large = [
        "plan",
        "--memory-backing=shared",
        "--huge-pages=transparent",
    ];
    let text = run(&large);
    assert!(
        text.contains("\nshared memory in transparent huge pages of "),
        "{text}"
    );
    // Of another host's pools nothing is known.
    let other = ["plan", "--arch=x86_64", "--huge-pages=2M"];
    let text = run(&other);
    let expected = "\nanonymous memory in huge pages of 2M, all reserved at the start\n";
    assert!(text.contains(expected), "{text}");
    for (arguments, backing, pages, size) in [
        (&["plan"][..], "anonymous", "off", Some(page)),
        (&other, "anonymous", "2M", Some(2 << 20)),
        (&["plan", "--arch=aarch64"], "anonymous", "off", None),
    ] {
        let text = run(&[arguments, &["--json"]].concat());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["memory_backing"], backing);
        assert_eq!(json["huge_pages"], pages);
        assert_eq!(json["page_size_bytes"].as_u64(), size, "{arguments:?}");
    }
    refused(
        &[
            "plan",
            "--arch=x86_64",
            "--guest-memory=65M",
            "--huge-pages=2M",
        ],
        &[
            "--guest-memory=65M: it is no multiple",
            "cure: give 64M or 66M",
        ],
    );
}

/// Every key of a JSON text, at any depth.
fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                found.push(key.clone());
                keys(value, found);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn json_has_keys_of_one_kind_with_units() {
    let folder = tempfile::tempdir().unwrap();
    let timeline = folder.path().join("timeline.json");
    let facts = folder.path().join("facts.json");
    let kernel = crate::common::kernel(&crate::common::RESET);
    let path = kernel.path().display().to_string();
    let dump = option("dump-facts", &facts);
    let planned = finish(vmm(&["plan", "--json", &dump]).spawn().unwrap());
    let inspected = finish(vmm(&["inspect", &path, "--json"]).spawn().unwrap());
    let arguments = [
        option("kernel", kernel.path()),
        option("boot-timeline", &timeline),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = finish(vmm(&arguments).spawn().unwrap());
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let mut found = Vec::new();
    for text in [
        planned.stdout,
        inspected.stdout,
        std::fs::read_to_string(&timeline).unwrap(),
        std::fs::read_to_string(&facts).unwrap(),
    ] {
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let before = found.len();
        keys(&value, &mut found);
        assert!(found.len() > before, "{text}");
    }
    for key in &found {
        // Names of things (kinds of devices, options of a kernel) are keys of their own.
        let is_name = ["virtio-pci", "virtio-mmio", "io-apic"].contains(&key.as_str());
        assert!(is_name || !key.contains('-'), "{key}");
        for unitless in [
            "len",
            "from",
            "to",
            "size",
            "file_size",
            "memory_size",
            "memory",
            "time",
        ] {
            assert_ne!(key, unitless);
        }
    }
    for key in [
        "len_bytes",
        "file_size_bytes",
        "from_us",
        "to_us",
        "memory_mib",
    ] {
        assert!(found.iter().any(|found| found == key), "{key}: {found:?}");
    }
}

#[test]
fn a_kernel_is_opened_once() {
    use rustix::fs::inotify;
    let kernel = crate::common::kernel(&crate::common::RESET);
    // With its end between two openings, so that they are not counted as one.
    let events_of_a_file = inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE_NOWRITE;
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, kernel.path(), events_of_a_file).unwrap();
    let planned = finish(
        vmm(&["plan", &option("kernel", kernel.path())])
            .spawn()
            .unwrap(),
    );
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let mut opened = 0;
    while let Ok(event) = events.next() {
        opened += usize::from(event.events().contains(inotify::ReadFlags::OPEN));
    }
    assert_eq!(opened, 1);
}

/// What `plan` says of the ids of devices.
#[cfg(all(
    feature = "virtio-blk",
    feature = "virtio-balloon",
    feature = "virtio-vsock",
    feature = "virtio-rng"
))]
#[test]
fn every_virtio_device_has_an_id_and_no_two_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = crate::common::kernel(&crate::common::RESET);
    let kernel = option("kernel", kernel.path());
    let (first, second) = (file(&[0; 512]), file(&[0; 512]));
    let disk = |file: &tempfile::NamedTempFile, id: &str| {
        format!("--blk=path={}{id}", file.path().display())
    };
    let (a, b) = (disk(&first, ",id=root"), disk(&second, ""));
    let vsock = format!("--vsock=cid=3,path={}", folder.path().join("v").display());
    for transport in ["--transport=mmio", "--transport=pci"] {
        let all = [
            "plan",
            &kernel,
            transport,
            &a,
            &b,
            &vsock,
            "--balloon=id=air",
        ];
        let said = |extra: &[&str]| {
            let ended = finish(vmm(&[&all, extra].concat()).spawn().unwrap());
            assert_eq!(ended.status.code(), Some(0), "{ended:?}");
            ended.stdout
        };
        let plan: serde_json::Value = serde_json::from_str(&said(&["--json"])).unwrap();
        let devices = plan["devices"].as_array().unwrap().iter();
        let ids: Vec<_> = devices.filter_map(|device| device["id"].as_str()).collect();
        assert_eq!(ids, ["root", "blk1", "vsock0", "air", "rng0"]);
        // Messages of the functions on the bus, one for each queue and one for the configuration, side by side.
        let messages = plan["devices"].as_array().unwrap().iter();
        let messages: Vec<_> = messages
            .filter_map(|device| device.get("messages"))
            .map(|messages| (messages["first"].as_u64(), messages["count"].as_u64()))
            .map(|(first, count)| (first.unwrap(), count.unwrap()))
            .collect();
        let counts: Vec<_> = messages.iter().map(|(_, count)| *count).collect();
        let on_pci = transport.ends_with("pci");
        assert_eq!(counts, if on_pci { vec![2, 2, 4, 4, 2] } else { vec![] });
        for pair in messages.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
        }
        let text = said(&[]);
        for id in ids {
            assert!(text.contains(&format!("  id {id}\n")), "{text}");
        }
    }
    for (devices, words) in [
        (
            [disk(&first, ",id=a"), disk(&second, ",id=a")],
            [": id=a: ", "the virtio block device before it has this id"],
        ),
        (
            [disk(&first, ",id=blk1"), disk(&second, "")],
            [
                ": id=blk1: ",
                "a virtio block device without an id= has this id",
            ],
        ),
        (
            [disk(&first, ",id=balloon0"), "--balloon".to_owned()],
            [": id=balloon0: ", "a virtio memory balloon without an id="],
        ),
        (
            [disk(&first, ""), "--balloon=id=blk0".to_owned()],
            ["--balloon=id=blk0", "a virtio block device without an id="],
        ),
        (
            [disk(&first, ",id=a b"), "--balloon".to_owned()],
            ["id=\"a b\"", "1 to 96 of A-Z, a-z, 0-9, - and _"],
        ),
    ] {
        let [a, b] = &devices;
        refused(&[&kernel, a, b], &words);
    }
}
