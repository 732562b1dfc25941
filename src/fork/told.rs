//! What is told of a fork to whoever asked for it.

use std::time::Instant;

use crate::control::answer::Answer;
use crate::control::saving::CopiedDisk;

/// What is told of a fork to whoever asked for it.
#[derive(Debug)]
pub(crate) struct Told {
    /// When it was asked for.
    pub(crate) begin: Instant,
    /// The guest goes on afterwards.
    pub(crate) goes_on: bool,
    pub(crate) copies: Vec<CopiedDisk>,
    /// Whoever waits for it.
    pub(crate) answer: Option<Answer>,
}
