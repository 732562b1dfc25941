//! A front end of the reference VMM that speaks Firecracker's API and has its command line, so that programs that
//! drive that VMM drive this one. It uses the library's public API and nothing else; what clients rely on beside the
//! API (texts, log lines, names of metrics, exit statuses) stands in files of its own here.

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

mod api;
mod arguments;
pub mod editor;
mod files;
mod forks;
pub mod http;
mod logger;
mod machine;
mod metrics;
pub mod mmds;
mod note;
mod run;
mod saved;
pub mod seccomp;
mod signals;
mod sockets;
mod terminal;
mod texts;
mod version;

pub use run::main;
