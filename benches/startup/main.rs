//! How long a start takes, and a whole life, beside the least any VMM must do.
//!
//! Each round runs the VMM and three floor VMMs (one memslot, one vCPU, run; then with irqchip and
//! PIT; then also with the vCPU's CPUID, which every guest kernel needs) as processes of their own,
//! in turn, so that all see the same machine. The guest's first instructions print a byte and ask for
//! a reset. "Linux" is the same guest in a file that says that it is a Linux of a version that boots on a
//! lean machine, and "built-in guest" what runs when no kernel is named. Measured is from spawn to that byte, and from spawn to the end of the process. Prints
//! medians and ratios: `cargo bench --bench startup`.
//!
//! "devices" has a disk, a network device on a tap that is there before (as root, in a network
//! namespace), and sockets. All run in their sandbox, but for the two rows without. `VMM_BENCH_PEER_FIRECRACKER=/path/to/firecracker` adds that VMM with the
//! same guest, twice: as it is and with the same devices.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../common/floor.rs"]
mod floor;
#[path = "../common/namespace.rs"]
mod namespace;
#[path = "../common/timed.rs"]
mod timed;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use common::{RESET, print};
use floor::FLOOR;
use namespace::{Namespace, ip};
use timed::Timed;

const ROUNDS: usize = 100;
const TAP: &str = "bench";
/// The socket for the guest's sockets.
const SOCKET: &str = "vsock";
/// What guests print first: a bell, or the built-in guest's line. A log in front of it has neither.
const FIRST: [&[u8]; 2] = [b"\x07", b"hello from vmm"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let result = match std::env::var(FLOOR) {
        Ok(kind) => floor::run(&kind, &code()),
        Err(_) => in_namespace(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("startup bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn in_namespace() -> Result<()> {
    match namespace::enter()? {
        Namespace::Own => {
            ip(&format!("tuntap add {TAP} mode tap"))?;
            compare(true)
        }
        Namespace::Done => Ok(()),
        Namespace::Refused => {
            println!("without a network device: its namespace needs root and util-linux' unshare");
            compare(false)
        }
    }
}

/// Runs it once.
fn measure(vmm: &mut Timed) -> Result<()> {
    let start = Instant::now();
    let mut child = vmm
        .command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let (mut first_byte, mut said, mut buffer) = (None, Vec::new(), [0; 4096]);
    while let len @ 1.. = stdout.read(&mut buffer)? {
        said.extend_from_slice(&buffer[..len]);
        let is_first = |text: &&[u8]| said.windows(text.len()).any(|found| found == *text);
        if first_byte.is_none() && FIRST.iter().any(is_first) {
            first_byte = Some(start.elapsed());
        }
    }
    let status = child.wait()?;
    vmm.life.push(start.elapsed());
    if !status.success() {
        return Err(format!("{:?} ended with {status}", vmm.command).into());
    }
    vmm.first_byte
        .push(first_byte.ok_or_else(|| format!("{:?}: the guest printed nothing", vmm.command))?);
    Ok(())
}

/// What the guest does.
fn code() -> Vec<u8> {
    [print("\x07"), RESET.to_vec()].concat()
}

/// Our VMM, with arguments separated by blanks.
fn ours(kernel: &Path, arguments: &str) -> Command {
    let mut command = Command::new(common::binary());
    command
        .arg(format!("--kernel={}", kernel.display()))
        .args(arguments.split_whitespace());
    command
}

fn firecracker(
    binary: &Path,
    kernel: &Path,
    folder: &Path,
    devices: Option<(&Path, bool)>,
) -> Result<Command> {
    let mut config = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel, "boot_args": "console=ttyS0" },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 },
    });
    if let Some((disk, net)) = devices {
        config["drives"] = serde_json::json!([{
            "drive_id": "disk",
            "path_on_host": disk,
            "is_root_device": false,
            "is_read_only": false,
        }]);
        if net {
            config["network-interfaces"] =
                serde_json::json!([{ "iface_id": "net", "host_dev_name": TAP }]);
        }
        let path = folder.join(SOCKET);
        config["vsock"] = serde_json::json!({ "guest_cid": 7, "uds_path": path });
    }
    let name = kernel.file_name().unwrap_or_default().display();
    let path = folder.join(format!("{name}-{}.json", devices.is_some()));
    std::fs::write(&path, config.to_string())?;
    let mut command = Command::new(binary);
    command
        // Its log goes where the guest prints, and would come between the guest's bytes.
        .args(["--no-api", "--log-path", "/dev/null", "--config-file"])
        .arg(path);
    Ok(command)
}

fn compare(net: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = common::kernel(&code());
    let linux = common::linux(&code(), "6.12.0");
    let hello = folder.path().join("hello");
    std::fs::write(&hello, vmm_reference::hello_guest().unwrap_or_default())?;
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    let this = std::env::current_exe()?;
    let floor = |kind: &str| {
        let mut command = Command::new(&this);
        command.env(FLOOR, kind);
        command
    };
    let mut devices = format!(
        "--blk={} --vsock=cid=7,path={}",
        disk.display(),
        folder.path().join(SOCKET).display()
    );
    if net {
        devices = format!("{devices} --net={TAP}");
    }
    let mut vmms = vec![
        Timed::new("floor", floor("bare")),
        Timed::new("floor+irqchip", floor("irqchip")),
        Timed::new("floor+irqchip+cpuid", floor("cpuid")),
        Timed::new("vmm", ours(kernel.path(), "")),
        Timed::new("vmm, devices", ours(kernel.path(), &devices)),
        Timed::new("vmm, devices, Linux", ours(linux.path(), &devices)),
    ];
    let built_in = |name, sandbox: &str| {
        let mut command = Command::new(common::binary());
        command.args(devices.split_whitespace()).arg(sandbox);
        Timed::new(name, command)
    };
    vmms.push(Timed::new(
        "vmm, no sandbox",
        ours(kernel.path(), "--sandbox=off"),
    ));
    vmms.push(built_in("vmm, devices, built-in guest", "--sandbox=auto"));
    vmms.push(built_in("the same, no sandbox", "--sandbox=off"));
    if let Some(binary) = std::env::var_os("VMM_BENCH_PEER_FIRECRACKER") {
        let command = |name, kernel, devices| {
            firecracker(binary.as_ref(), kernel, folder.path(), devices)
                .map(|command| Timed::new(name, command))
        };
        vmms.push(command("firecracker", kernel.path(), None)?);
        let devices = Some((disk.as_path(), net));
        vmms.push(command("firecracker, devices", kernel.path(), devices)?);
        vmms.push(command(
            "firecracker, devices, built-in guest",
            &hello,
            devices,
        )?);
    }
    for _ in 0..ROUNDS {
        for vmm in &mut vmms {
            // Left behind by one that does not start where there is a socket.
            let _ = std::fs::remove_file(folder.path().join(SOCKET));
            measure(vmm)?;
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:36} {:>16} {:>7} {:>14} {:>7}",
        "", "first byte", "ratio", "whole life", "ratio"
    )?;
    let base = vmms[1].medians();
    for vmm in &mut vmms {
        let (byte, life) = vmm.medians();
        let (byte_ratio, life_ratio) = (byte / base.0, life / base.1);
        writeln!(
            out,
            "{:36} {byte:13.2} ms {byte_ratio:7.2} {life:11.2} ms {life_ratio:7.2}",
            vmm.name
        )?;
    }
    Ok(())
}
