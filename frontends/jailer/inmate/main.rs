//! What the tests of the jailer jail: tells what it sees from inside, then waits for the end of its input, or, with
//! `--stay`, for a signal. `--attack ROOT TARGET` is what a hostile user does from outside.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, what, root, target] = arguments.as_slice()
        && what == "--attack"
    {
        println!("up");
        attack(Path::new(root), Path::new(target));
    }
    println!("arguments {:?}", std::env::args().collect::<Vec<_>>());
    println!("environment {}", std::env::vars_os().count());
    println!("pid {}", std::process::id());
    println!("folder {:?}", std::env::current_dir());
    let mut names: Vec<_> = fs::read_dir("/")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    println!("root {names:?}");
    // Ways out that worked elsewhere.
    for path in [
        "/proc/self",
        "/sys/kernel",
        "/../../../../etc/passwd",
        "/old_root",
    ] {
        println!("{path} {}", fs::exists(path).unwrap_or(false));
    }
    for path in ["/dev/kvm", "/dev/net/tun", "/dev/urandom"] {
        let opened = fs::File::options().read(true).write(true).open(path);
        println!("{path} {}", opened.is_ok());
    }
    println!("told");
    if std::env::args().any(|argument| argument == "--stay") {
        loop {
            std::thread::park();
        }
    }
    // How the input ends does not matter.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Exchanges what is below a jail's folder for links, as fast as it can. What fails, fails: the jailer may be at work.
fn attack(root: &Path, target: &Path) -> ! {
    let below = |name: &str| root.join(name);
    let (dev, aside, run) = (below("dev"), below("aside"), below("run"));
    loop {
        // A folder, for the time that the jailer may need to come to it, then a link to somewhere else.
        let _ = fs::create_dir_all(dev.join("net"));
        let _ = fs::create_dir(&run);
        for (name, device) in [("kvm", "kvm"), ("net/tun", "tun"), ("urandom", "kvm")] {
            let _ = fs::remove_file(dev.join(name));
            let _ = symlink(target.join(device), dev.join(name));
            let _ = fs::remove_file(dev.join(name));
            let _ = fs::hard_link(target.join(device), dev.join(name));
            let _ = fs::remove_file(dev.join(name));
        }
        let _ = fs::rename(&dev, &aside);
        let _ = symlink(target, &dev);
        let _ = fs::remove_file(&dev);
        let _ = fs::rename(&aside, &dev);
        let _ = fs::remove_dir(&run);
        let _ = symlink(target, &run);
        let _ = fs::remove_file(&run);
        let program = below("firecracker");
        let _ = fs::remove_file(&program);
        let _ = symlink(target.join("kvm"), &program);
        let _ = fs::remove_file(&program);
    }
}
