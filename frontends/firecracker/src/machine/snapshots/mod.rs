//! Saved machines under Firecracker's calls: what is kept of a configuration, the files, saving and going on.

mod check;
mod create;
mod files;
mod load;
mod note;

pub(super) use self::create::{Saved, create};
pub(super) use self::load::Restored;
