//! What a sandbox costs a process: the median of many that enter one, in microseconds. `cargo bench -p vmm-jail`; as an
//! ordinary user, too.

use std::env;
use std::process::Command;
use std::time::Instant;

use jail::{Filter, Jail, Sandbox, roles};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Processes of which the median is taken.
const RUNS: usize = 101;

fn main() -> Result<()> {
    if env::args().any(|argument| argument == "--once") {
        return once();
    }
    let mut all: Vec<Vec<u64>> = Vec::new();
    let mut names = Vec::new();
    for _ in 0..RUNS {
        let ran = Command::new(env::current_exe()?).arg("--once").output()?;
        let said = String::from_utf8(ran.stdout)?;
        names = said
            .lines()
            .filter_map(|line| Some(line.split_once(": ")?.1.to_owned()))
            .collect();
        let numbers = said
            .lines()
            .filter_map(|line| line.split_once(": ")?.0.parse().ok());
        all.push(numbers.collect());
    }
    for (at, name) in names.iter().enumerate() {
        let mut numbers: Vec<_> = all.iter().filter_map(|run| run.get(at)).collect();
        numbers.sort_unstable();
        let middle = numbers.get(numbers.len() / 2).ok_or("no numbers")?;
        let least = numbers.first().ok_or("no numbers")?;
        println!("{middle:>6} us, at least {least:>5}: {name}");
    }
    Ok(())
}

/// Enters one, and prints what took how long.
fn once() -> Result<()> {
    let begin = Instant::now();
    let report = Jail::new(Sandbox::Auto).enter()?;
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
