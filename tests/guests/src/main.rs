//! The guest of `tests/micro_guests.rs`: runs the test that the command line names, `test=NAME`. Without a name it is the
//! guest of clients (`tests/virtio/client.rs`).

#![no_std]
#![no_main]

mod tests;

use guest::{exit, option, println};

guest::entry!(main);

fn main() {
    let name = option("test").unwrap_or_default();
    match tests::ALL.iter().find(|(test, _)| *test == name) {
        Some((_, run)) => run(),
        None => {
            println!("test={name}: no such test");
            exit(2)
        }
    }
}
