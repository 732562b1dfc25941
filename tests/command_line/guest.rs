//! The whole VMM on /dev/kvm, with guests of a few instructions.

mod signals;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::thread;

use crate::common::pool::HugePagePool;
use crate::common::{
    ENTRY, RESET, echo, finish, kernel, not_ignored, option, print, read_until, run_code, signal,
    vmm, wait,
};

/// Prints `count` times `x`, then resets.
fn chatter(count: u32) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(count.to_le_bytes()); // mov ecx, count
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'x']); // mov dx, 0x3f8; mov al, 'x'
    code.extend([0xee, 0xff, 0xc9, 0x75, 0xfb]); // out dx, al; dec ecx; jnz
    code.extend(RESET);
    code
}

#[test]
fn a_guest_that_resets_ends_with_status_0() {
    let ended = run_code(&[print("reset"), RESET.to_vec()].concat(), &[]);
    assert_eq!(
        (ended.status.code(), ended.stdout.as_str()),
        (Some(0), "reset"),
        "{ended:?}"
    );
}

#[test]
fn r45_a_guest_that_powers_off_ends_with_status_0() {
    // mov dx, 0x600; mov al, SLP_EN | S5; out dx, al; jmp $
    let code = [0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe];
    assert_eq!(run_code(&code, &[]).status.code(), Some(0));
}

#[test]
fn r45_a_triple_fault_ends_with_status_3_and_a_report() {
    // lidt [0]; ud2
    let fault = vec![0x0f, 0x01, 0x1c, 0x25, 0, 0, 0, 0, 0x0f, 0x0b];
    let ended = run_code(&[print("before"), fault].concat(), &[]);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    for part in [
        "the guest crashed: vCPU 0: triple fault",
        "rip 0000000000100",
        "code 0f 0b",
        "before",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn a_panic_that_the_guest_tells_of_ends_with_status_3_and_what_it_said_last() {
    // mov dx, 0x604; mov al, PANICKED; out dx, al; jmp $
    let tell = vec![0x66, 0xba, 0x04, 0x06, 0xb0, 0x01, 0xee, 0xeb, 0xfe];
    let ended = run_code(
        &[print("last words"), tell].concat(),
        &["--on-reboot=restart"],
    );
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    for part in [
        "the guest crashed: vCPU 0: its kernel panicked",
        "last words",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn r45_a_crash_has_one_line_with_its_cause_before_the_report_whatever_is_logged() {
    let crash = [0x0f, 0x0b];
    for level in ["off", "error", "warn", "info", "trace"] {
        let ended = run_code(&crash, &["--log-level", level]);
        assert_eq!(ended.status.code(), Some(3), "{ended:?}");
        let lines: Vec<_> = ended.stderr.lines().collect();
        let says = |line: &&&str| line.contains("the guest crashed: vCPU 0: triple fault");
        assert_eq!(lines.iter().filter(says).count(), 1, "{level}: {ended:?}");
        let place = |text| lines.iter().position(|line| line.contains(text));
        if let Some(report) = place("rip ") {
            assert!(place("the guest crashed") < Some(report), "{ended:?}");
        } else {
            assert!(["off", "error"].contains(&level), "{ended:?}");
        }
    }
}

#[test]
fn an_instruction_that_kvm_cannot_interpret_is_named_with_its_cure() {
    // movabs rbx, an address without RAM; fld qword [rbx]: no KVM interprets x87 loads.
    let mut code = vec![0x48, 0xbb];
    code.extend(0xd000_0000u64.to_le_bytes());
    code.extend([0xdd, 0x03]);
    let ended = run_code(&code, &[]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for part in [
        "error: vCPU 0 stopped: KVM internal error, suberror 1: an instruction that it cannot interpret",
        "cure: ",
        "`vmm-reference doctor`",
        "code dd 03",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn a_lean_machine_has_neither_interval_timer_nor_pics() {
    // in al, port; mov dx, 0x3f8; out dx, al
    let read = |port| {
        [
            vec![0xe4, port, 0x66, 0xba, 0xf8, 0x03, 0xee],
            RESET.to_vec(),
        ]
        .concat()
    };
    // A guest that waits for the timer's second channel is let go.
    assert_eq!(run_code(&read(0x61), &["--lean=on"]).stdout, " ");
    for port in [0x40, 0x20, 0xa0] {
        let code = read(port);
        // Where nothing is, all bits are ones, which is no text.
        for (lean, value) in [("--lean=off", "\0"), ("--lean=on", "\u{fffd}")] {
            let ended = run_code(&code, &[lean]);
            assert_eq!(ended.stdout, value, "{lean}, {port:#x}: {ended:?}");
        }
    }
}

#[test]
fn r25_string_output_prints_every_element() {
    let text = b"string output";
    let data = ENTRY + 26;
    let mut code = vec![0x48, 0xbe]; // mov rsi, data
    code.extend(data.to_le_bytes());
    code.push(0xb9); // mov ecx, len
    code.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e]); // mov dx, 0x3f8; rep outsb
    code.extend(RESET);
    code.extend(text);
    assert_eq!(run_code(&code, &[]).stdout, "string output");
}

#[test]
fn r25_unmapped_reads_give_all_ones_at_any_alignment() {
    let mut code = Vec::new();
    for address in [0xd000_0000u64, 0xd000_0001, 0xd000_0ffd, 0xfebf_ffff] {
        code.extend([0x48, 0xbb]); // mov rbx, address
        code.extend(address.to_le_bytes());
        // mov rax, [rbx]; mov [rbx], rax; inc rax; jz over the ud2 that crashes the guest
        code.extend([
            0x48, 0x8b, 0x03, 0x48, 0x89, 0x03, 0x48, 0xff, 0xc0, 0x74, 0x02, 0x0f, 0x0b,
        ]);
    }
    // mov dx, 0x501; in eax, dx; inc eax; jz over ud2
    code.extend([
        0x66, 0xba, 0x01, 0x05, 0xed, 0xff, 0xc0, 0x74, 0x02, 0x0f, 0x0b,
    ]);
    code.extend(print("ones"));
    code.extend(RESET);
    let ended = run_code(&code, &[]);
    assert_eq!(
        (ended.status.code(), ended.stdout.as_str()),
        (Some(0), "ones"),
        "{ended:?}"
    );
}

#[test]
fn input_from_a_pipe_reaches_the_guest_and_its_end_does_not_end_the_guest() {
    let kernel = kernel(&echo());
    let mut child = vmm(&[&option("kernel", kernel.path())])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Longer than the UART's FIFO and the VMM's buffer.
    let text = "0123456789".repeat(1000) + "q";
    let sent = text.clone();
    thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(ended.stdout, text);
}

#[test]
fn input_may_be_a_regular_file_or_dev_null() {
    let kernel = kernel(&echo());
    let mut input = tempfile::NamedTempFile::new().unwrap();
    input.write_all(b"from a fileq").unwrap();
    let file = File::open(input.path()).unwrap();
    let child = vmm(&[&option("kernel", kernel.path())])
        .stdin(file)
        .spawn()
        .unwrap();
    assert_eq!(finish(child).stdout, "from a fileq");
    // /dev/null is at its end at once; the guest goes on all the same.
    assert_eq!(
        run_code(&[print("on"), RESET.to_vec()].concat(), &[]).stdout,
        "on"
    );
}

#[test]
fn r3_a_reader_that_stalls_does_not_stall_the_guest() {
    let kernel = kernel(&chatter(150_000));
    // Nobody reads stdout: the pipe takes 64 KiB, the ring another 64 KiB, the rest is dropped.
    let mut child = vmm(&[&option("kernel", kernel.path())]).spawn().unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    let ended = finish(child);
    assert!(ended.stderr.contains("were dropped"), "{}", ended.stderr);
    // The pipe counts in pages, and not every page is full.
    assert!(
        (16 << 10..=64 << 10).contains(&ended.stdout.len()),
        "{}",
        ended.stdout.len()
    );
}

#[test]
fn r32_a_reader_that_goes_away_does_not_end_the_guest() {
    let kernel = kernel(&chatter(10_000));
    let mut child = vmm(&[&option("kernel", kernel.path())]).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn a_fifo_that_nobody_reads_is_named_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    for console in ["serial", "console"] {
        let option = format!("--{console}=file={}", fifo.display());
        let ended = run_code(&chatter(10), &[&option]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(
            ended
                .stderr
                .contains("a FIFO or a socket that nobody reads"),
            "{ended:?}"
        );
        assert!(ended.stderr.contains("start the reader first"), "{ended:?}");
    }
}

#[test]
fn r44_r32_a_full_disk_or_a_size_limit_costs_output_and_never_the_guest() {
    let code = chatter(20_000);
    let ended = run_code(&code, &["--serial=file=/dev/full"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("console output is closed: No space"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("the file system is full"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.matches("is closed").count(), 1, "{ended:?}");
    // All of it: the first write failed.
    let lost = "20000 bytes of console output were dropped: the output was closed";
    assert!(ended.stderr.contains(lost), "{ended:?}");

    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(&code);
    // The shell's limit counts blocks of 512 or 1024 bytes.
    let command = format!(
        "ulimit -f 4; exec {} --kernel={} --serial=file={}",
        env!("CARGO_BIN_EXE_vmm-reference"),
        kernel.path().display(),
        folder.path().join("console").display()
    );
    let child = std::process::Command::new("sh")
        .args(["-c", &command])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("console output is closed: File too large"),
        "{ended:?}"
    );
}

#[test]
fn r43_a_command_line_without_a_console_is_mentioned() {
    let ended = run_code(&RESET, &["--cmdline=quiet"]);
    assert!(ended.stderr.contains("no console="), "{ended:?}");
    assert!(
        !run_code(&RESET, &["--append=quiet"])
            .stderr
            .contains("no console=")
    );
}

#[test]
fn serial_output_goes_where_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let code = [print("to a file"), RESET.to_vec()].concat();
    let ended = run_code(&code, &[&format!("--serial=file={}", path.display())]);
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "to a file");
    assert_eq!(run_code(&code, &["--serial=null"]).stdout, "");
}

/// The VMM started by a shell, after its commands `before`.
fn through_shell(before: &str, arguments: &str) -> Child {
    let vmm = env!("CARGO_BIN_EXE_vmm-reference");
    std::process::Command::new("sh")
        .args(["-c", &format!("{before}; exec {vmm} {arguments}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A guest that prints `up` and computes.
fn computing() -> Vec<u8> {
    [print("up"), vec![0xeb, 0xfe]].concat()
}

#[test]
fn a_start_that_fails_half_way_ends_with_an_error() {
    let kernel = kernel(&computing());
    let arguments = format!(
        "--kernel={} --vcpus=2 --shutdown-timeout=0",
        kernel.path().display()
    );
    let mut codes = Vec::new();
    // Between too few files for anything and enough, each number fails somewhere else.
    for files in 4..48 {
        let mut child = through_shell(&format!("ulimit -n {files}"), &arguments);
        let mut seen = [0; 2];
        if child.stdout.as_mut().unwrap().read_exact(&mut seen).is_ok() {
            signal(&child, "TERM");
        }
        let ended = finish(child);
        let code = ended.status.code().unwrap();
        if ended.stderr.contains("loading shared libraries") {
            // Whoever runs the tests left files open to them: the program did not even start.
            continue;
        }
        assert!(
            code == 0 || ended.stderr.contains("error: "),
            "{files}: {ended:?}"
        );
        codes.push(code);
    }
    assert!(
        codes.starts_with(&[1]) && codes.ends_with(&[0]),
        "{codes:?}"
    );
}

#[test]
fn a_full_stderr_changes_no_exit_status() {
    let crash = kernel(&[0x0f, 0x0b]);
    for (arguments, code) in [
        ("--kernel=/nonexistent".to_owned(), 2),
        (format!("--kernel={}", crash.path().display()), 3),
    ] {
        let child = through_shell("exec 2>/dev/full", &arguments);
        assert_eq!(finish(child).status.code(), Some(code), "{arguments}");
    }
    // R63: what was asked for was not written.
    let child = through_shell("exec 1>/dev/full", "doctor");
    assert_eq!(finish(child).status.code(), Some(1));
}

#[test]
fn a_refused_start_leaves_the_last_log_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    std::fs::write(&path, "the last run's longer output").unwrap();
    let serial = format!("--serial=file={}", path.display());
    let refused = finish(vmm(&["--kernel=/nonexistent", &serial]).spawn().unwrap());
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "the last run's longer output"
    );
    run_code(&[print("new"), RESET.to_vec()].concat(), &[&serial]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
}

#[test]
fn two_vms_may_share_their_input() {
    let kernel = kernel(&[print("up"), echo()].concat());
    let (reader, mut writer) = std::io::pipe().unwrap();
    let start = || {
        let mut child = vmm(&[&option("kernel", kernel.path())])
            .stdin(reader.try_clone().unwrap())
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "up");
        child
    };
    let mut children = [start(), start()];
    // Both are woken by every byte, and one of them gets it.
    for _ in 0..20 {
        writer.write_all(b"x").unwrap();
    }
    for child in &mut children {
        signal(child, "TERM");
        assert_eq!(wait(child).code(), Some(0));
    }
}

#[test]
fn open_descriptors_stand_where_paths_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::copy(
        kernel(&[print("up"), crate::common::RESET.to_vec()].concat()).path(),
        path("kernel"),
    )
    .unwrap();
    for name in ["initrd", "disk", "reading"] {
        std::fs::write(path(name), [1; 4096]).unwrap();
    }
    // By then they have no name any more.
    let before = format!(
        "cd {}; exec 3<kernel 4<initrd 5<>disk 6>log 7<reading; rm kernel initrd disk reading",
        folder.path().display()
    );
    let arguments = "--kernel=/dev/fd/3 --initrd=/proc/self/fd/4 --blk=/dev/fd/5 --blk=/dev/fd/7,ro \
        --serial=file=/dev/fd/6 --on-reboot=exit";
    let ended = finish(through_shell(&before, arguments));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(std::fs::read(path("log")).unwrap(), b"up");
    std::fs::write(path("reading"), [1; 4096]).unwrap();
    for (arguments, text) in [
        (
            "--kernel=/dev/fd/9",
            "--kernel=/dev/fd/9: Bad file descriptor",
        ),
        ("--blk=/dev/fd/9", "--blk=/dev/fd/9"),
        (
            "--blk=/dev/fd/7",
            "the file is not open for reading and writing",
        ),
        (
            "--vsock=cid=3,path=/dev/fd/7",
            "no Unix stream socket that listens",
        ),
        ("--control=/dev/fd/7", "no Unix stream socket that listens"),
    ] {
        let before = format!("exec 7<{}", path("reading").display());
        let ended = finish(through_shell(&before, arguments));
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(text), "{text}: {ended:?}");
    }
}

#[test]
fn r58_the_last_output_waits_for_a_slow_reader() {
    use std::io::Read;
    // More than a pipe holds: mov ecx, BYTES; mov dx, 0x3f8; mov al, 'x'; out dx, al; loop to the out.
    const BYTES: u32 = 70_000;
    let [a, b, c, d] = BYTES.to_le_bytes();
    let mut code = vec![
        0xb9, a, b, c, d, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xe2, 0xfd,
    ];
    code.extend(crate::common::RESET);
    let kernel = kernel(&code);
    let start = || vmm(&[&option("kernel", kernel.path())]).spawn().unwrap();

    let mut child = start();
    let mut stdout = child.stdout.take().unwrap();
    // Longer than the guest needs, and than a reader is waited for that somebody outside has no time for.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    let ended = finish(child);
    assert_eq!(text.len(), BYTES as usize, "{ended:?}");
    assert!(!ended.stderr.contains("dropped"), "{ended:?}");

    // A signal ends the wait, and what is lost is counted.
    let mut child = start();
    let stdout = child.stdout.take().unwrap();
    // The pipe is full when it takes no more.
    let mut seen = 0;
    loop {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let there = rustix::io::ioctl_fionread(&stdout).unwrap();
        if there == seen && there > 1 << 14 {
            break;
        }
        seen = there;
    }
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(500));
        signal(&child, "INT");
    }
    let ended = finish(child);
    assert!(
        ended
            .stderr
            .contains(" bytes of console output were dropped"),
        "{ended:?}"
    );
    drop(stdout);
}

/// Looks whether memory at 8 MiB is zero, says so, writes to it and resets.
fn is_fresh() -> Vec<u8> {
    // mov edi, 8 MiB; cmp qword [rdi], 0
    let mut code = vec![0xbf, 0, 0, 0x80, 0, 0x48, 0x83, 0x3f, 0];
    let good = [print("0"), vec![0x48, 0xff, 0x07], RESET.to_vec()].concat(); // inc qword [rdi]
    code.extend([0x75, u8::try_from(good.len()).unwrap()]); // jnz
    code.extend(good);
    code.extend(print("used"));
    code.extend([0xeb, 0xfe]);
    code
}

#[test]
fn every_kind_of_memory_runs_a_guest_and_is_fresh_after_each_restart() {
    let kernel = kernel(&is_fresh());
    let kernel = option("kernel", kernel.path());
    // As many as the guest needs: a restart has to give them back first.
    let pool = HugePagePool::with(8);
    for backing in ["anonymous", "shared"] {
        for pages in ["off", "transparent", "2M"] {
            if pages == "2M" && pool.is_none() {
                continue;
            }
            let options = [
                &kernel,
                "--guest-memory=16M",
                &format!("--memory-backing={backing}"),
                &format!("--huge-pages={pages}"),
                "--on-reboot=restart",
                "--shutdown-timeout=0",
            ];
            let mut child = vmm(&options).stdout(Stdio::piped()).spawn().unwrap();
            read_until(child.stdout.as_mut().unwrap(), "0000");
            signal(&child, "TERM");
            assert_eq!(wait(&mut child).code(), Some(0), "{options:?}");
        }
    }
}
