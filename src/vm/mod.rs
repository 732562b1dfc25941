//! The machine: the start-up line, and what runs afterwards. vCPU threads serve exits, the main loop's thread owns
//! the rest.

pub(crate) mod bare;
pub(crate) mod begin;
pub(crate) mod cpu_time;
pub(crate) mod dispatch;
pub(crate) mod empty;
pub(crate) mod engine;
pub(crate) mod exit;
#[cfg(feature = "snapshot")]
mod forking;
pub(crate) mod gate;
pub(crate) mod kick;
pub(crate) mod machine;
pub(crate) mod main_loop;
pub(crate) mod opening;
#[cfg(feature = "snapshot")]
pub(crate) mod parked;
pub(crate) mod planned_for;
pub(crate) mod planning;
pub(crate) mod rehearsal;
mod run;
pub(crate) mod story;
pub(crate) mod vcpu;
