//! What a sandbox costs a process: the median of many that enter one, in microseconds. `cargo bench -p vmm-jail`; as an
//! ordinary user, too.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use jail::{Ahead, Filter, Jail, Sandbox, roles};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Processes of which the median is taken.
const RUNS: usize = 101;

fn main() -> Result<()> {
    if env::args().any(|argument| argument == "--once") {
        return once();
    }
    for ahead in ["", "--ahead"] {
        println!(
            "{}",
            if ahead.is_empty() {
                "at once"
            } else {
                "made ahead"
            }
        );
        let mut all: Vec<Vec<u64>> = Vec::new();
        let mut names = Vec::new();
        for _ in 0..RUNS {
            let mut command = Command::new(env::current_exe()?);
            let said = command.args(["--once", ahead]).output()?.stdout;
            let said = String::from_utf8(said)?;
            let lines = || said.lines().filter_map(|line| line.split_once(": "));
            names = lines().map(|(_, name)| name.to_owned()).collect();
            all.push(lines().filter_map(|(took, _)| took.parse().ok()).collect());
        }
        for (at, name) in names.iter().enumerate() {
            let mut numbers: Vec<_> = all.iter().filter_map(|run| run.get(at)).collect();
            numbers.sort_unstable();
            let middle = numbers.get(numbers.len() / 2).ok_or("no numbers")?;
            let least = numbers.first().ok_or("no numbers")?;
            println!("{middle:>6} us, at least {least:>5}: {name}");
        }
    }
    Ok(())
}

/// Enters one, and prints what took how long.
fn once() -> Result<()> {
    let jail = Jail::new(Sandbox::Auto);
    // Half of the processes have it made ahead.
    let ahead = env::args().any(|argument| argument == "--ahead").then(|| {
        let begin = Instant::now();
        let ahead = Ahead::start();
        println!("{}: begin ahead", begin.elapsed().as_micros());
        std::thread::sleep(Duration::from_millis(5));
        ahead
    });
    let begin = Instant::now();
    let report = jail.enter(ahead.flatten())?;
    println!("{}: enter ({report})", begin.elapsed().as_micros());
    let begin = Instant::now();
    let filters = roles::ALL
        .iter()
        .map(Filter::new)
        .collect::<std::result::Result<Vec<_>, _>>()?;
    println!(
        "{}: make the filters of {} roles",
        begin.elapsed().as_micros(),
        filters.len()
    );
    for (role, filter) in roles::ALL.iter().zip(filters) {
        let of_thread = std::thread::spawn(move || {
            let begin = Instant::now();
            filter
                .install()
                .map(|()| (begin.elapsed().as_micros(), filter.instructions()))
        });
        let (took, instructions) = of_thread.join().map_err(|_| "a thread panicked")??;
        println!(
            "{took}: install the filter of {}, {instructions} instructions",
            role.name
        );
    }
    Ok(())
}
