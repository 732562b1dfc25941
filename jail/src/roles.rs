//! The threads that a virtual machine monitor has, and what each may call.
//!
//! Found by strace(1) in the tests of the commands, of snapshots and restores, with micro-guests that use every
//! device, and in the static build with musl; and by reading what tests seldom reach. A thread has its filter and
//! those of the thread that started it, so the main thread may do what any other may. Calls on descriptors that are
//! open are let through without looking at the descriptor: which ones a thread has, the filter cannot know.
//!
//! All threads share their memory: who has taken over one of them may make another one call what only that may. What
//! the main thread may is what the process may.

mod forks;
mod numbers;
mod opening;
pub mod served;
mod tables;

use crate::seccomp::{Role, Table};
use forks::FORKS_TABLE;
use opening::API_TABLE;
use tables::*;

/// The vCPUs.
pub const VCPU: Role = role("vcpu", &[BASE, VCPU_TABLE]);
/// The worker of a disk.
pub const BLOCK: Role = role("virtio-blk", &[BASE, EVENTS, BLOCK_TABLE]);
/// The worker of a network device.
pub const NET: Role = role("virtio-net", &[BASE, EVENTS, NET_TABLE]);
/// The worker of sockets between host and guest.
pub const VSOCK: Role = role("virtio-vsock", &[BASE, EVENTS, VSOCK_TABLE]);
/// The worker of a console; its other end is the main thread.
pub const CONSOLE: Role = role("virtio-console", &[BASE, EVENTS]);
/// The worker of a balloon.
pub const BALLOON: Role = role("virtio-balloon", &[BASE, EVENTS, BALLOON_TABLE]);
/// The worker of a source of random bytes.
pub const RNG: Role = role("virtio-rng", &[BASE, EVENTS, RNG_TABLE]);
/// The thread that saves a machine.
pub const SAVING: Role = role("snapshot", &[BASE, SAVING_TABLE]);
/// The thread that watches a handler of page faults.
pub const PAGES: Role = role("page-faults", &[BASE, EVENTS, PAGES_TABLE]);
/// The thread of the control socket.
pub const CONTROL: Role = role("control", &[BASE, EVENTS, CONTROL_TABLE]);
/// The thread that raises lines of an interrupt chip, on riscv64.
pub const LINES: Role = role("lines", &[BASE, LINES_TABLE]);
/// The thread that follows job control.
pub const TERMINAL: Role = role("terminal", &[BASE, EVENTS, TERMINAL_TABLE]);
/// The thread that gives signs of life.
pub const NOTIFY: Role = role("notify", &[BASE, NOTIFY_TABLE]);
/// The tables of all threads, the main one's, and more.
macro_rules! main_tables {
    ($($more:ident),*) => {
        &[
            BASE,
            EVENTS,
            VCPU_TABLE,
            BLOCK_TABLE,
            NET_TABLE,
            VSOCK_TABLE,
            BALLOON_TABLE,
            RNG_TABLE,
            SAVING_TABLE,
            PAGES_TABLE,
            CONTROL_TABLE,
            LINES_TABLE,
            TERMINAL_TABLE,
            NOTIFY_TABLE,
            MAIN_TABLE,
            $($more,)*
        ]
    };
}
/// The main thread, which has to be allowed what any thread that it starts is.
pub const MAIN: Role = role("main", main_tables!());
/// The main thread of a machine that may be told to become two: what [`MAIN`] may, and processes.
pub const MAIN_WITH_FORKS: Role = role("main with forks", main_tables!(FORKS_TABLE));
/// The main thread of a monitor that others configure by requests and may tell to become two: its other threads end for
/// that, and the one that answers requests starts from it again.
const MAIN_OF_SERVED: Role = role("main", main_tables!(FORKS_TABLE, API_TABLE));
/// All of them.
pub const ALL: &[Role] = &[
    MAIN,
    MAIN_WITH_FORKS,
    VCPU,
    BLOCK,
    NET,
    VSOCK,
    CONSOLE,
    BALLOON,
    RNG,
    SAVING,
    PAGES,
    CONTROL,
    LINES,
    TERMINAL,
    NOTIFY,
];

const fn role(name: &'static str, tables: &'static [Table]) -> Role {
    Role { name, tables }
}

#[cfg(test)]
mod tests;
