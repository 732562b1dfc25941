//! Takes from a process what it does not need, so that it is worth nothing to somebody who has taken it over.
//!
//! Nothing here knows what the process does. It has everything open that it needs when it calls
//! [`Jail::enter`], and one thread; what it starts afterwards, it starts inside. Each thread then gives up the system
//! calls that are not in the [`Table`]s of its [`Role`] ([`Filter::install`]).
//!
//! In order: [`Ahead::start`], to have namespaces made beside whatever comes next; [`prepare`] once, before there are
//! threads; [`Cgroup::join`]; [`Jail::enter`], which gives a [`Report`];
//! then, in each thread as it begins, the filter of its role. Where there are to be filters alone, [`Jail::enter`] is
//! left out.
//!
//! | part | what it takes | what it needs |
//! |---|---|---|
//! | [`Part::UserNamespace`] | every right that the user has beyond the process | the host allows user namespaces, or root |
//! | [`Part::Root`] | every file, but for folders of sockets that were named | the same |
//! | [`Part::Network`], [`Part::Ipc`], [`Part::HostName`] | network, System V objects and message queues, the host's name | the same |
//! | [`Part::Capabilities`] | capabilities, and ways to get any (no_new_privs) | nothing |
//! | [`Part::Limits`] | core dumps, more open files, larger files | nothing |
//! | [`Part::Files`] | every file once more, and TCP | Landlock: Linux 5.13; for TCP 6.7 |
//! | [`Part::Signals`] | signals to, and abstract sockets of, processes outside | Landlock: Linux 6.12 |
//! | [`Part::SystemCalls`] | system calls, thread by thread | seccomp filters |
//!
//! There is no PID namespace: it would need another process, and a process that is forked from this one outlives it.
//! Signals are held back by Landlock and by filters instead.

mod ahead;
mod capabilities;
mod cgroup;
mod descriptors;
mod enter;
mod error;
mod landlock;
mod namespaces;
mod report;
pub mod roles;
mod root;
mod seccomp;

pub use ahead::Ahead;
pub use cgroup::{Cgroup, CgroupError};
pub use enter::{Jail, Limits, Sandbox, User};
pub use error::{JailError, Refusal};
pub use report::{Level, Part, Report};
pub use seccomp::{
    Call, Filter, FilterError, Only, Role, Rule, Table, Violation, architecture, prepare, warm_up,
};
