//! One thing that is done in a machine, and how it is judged.

use std::fmt;
use std::time::Instant;

use super::machine::Machine;
use crate::step::Result;

/// What is done: a command line of the machine's shell, with a dialogue, and what its output has to be.
/// It ends with status 0.
pub(super) struct Case {
    pub(super) name: String,
    /// Whether it needs the case before it.
    pub(super) follows: bool,
    command: String,
    dialogue: Vec<(String, String)>,
    judge: Box<Judge>,
}

type Judge = dyn Fn(&str) -> Result<()> + Send;

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

impl Case {
    /// Of each pair of the dialogue, the first text is waited for, then the second one is typed.
    pub(super) fn new(
        name: impl Into<String>,
        command: impl Into<String>,
        dialogue: &[(&str, &str)],
        judge: impl Fn(&str) -> Result<()> + Send + 'static,
    ) -> Self {
        let owned = |&(wait_for, text): &(&str, &str)| (wait_for.to_owned(), text.to_owned());
        Self {
            name: name.into(),
            follows: false,
            command: command.into(),
            dialogue: dialogue.iter().map(owned).collect(),
            judge: Box::new(judge),
        }
    }

    /// This case, which needs the one before it.
    pub(super) fn follows(mut self) -> Self {
        self.follows = true;
        self
    }

    /// This case on a machine that a command has made something else of.
    pub(super) fn on(mut self, what: &str, command: &str) -> Self {
        self.name = format!("{what}: {}", self.name);
        self.command.insert_str(0, command);
        self
    }

    /// Whether it uses a file of the machine.
    pub(super) fn uses(&self, file: &str) -> bool {
        self.command.contains(file)
    }

    /// Runs it, and says how long that took.
    pub(super) fn run(&self, machine: &mut Machine) -> Result<()> {
        let (name, start) = (&self.name, Instant::now());
        let (status, output) = machine.run(&self.command, &self.dialogue)?;
        let result = match status {
            0 => (self.judge)(&output),
            _ => Err(format!("exit status {status}").into()),
        };
        result.map_err(|error| machine.failure(&format!("{name}: {error}")))?;
        let took = start.elapsed().as_secs_f64();
        println!("    {}: {name}: passed, {took:.1} s", machine.name());
        Ok(())
    }
}

/// What has to hold.
pub(super) fn expect(holds: bool, what: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(format!("not as expected: {what}").into())
    }
}

/// The texts that the output has to contain.
pub(super) fn expect_all(output: &str, texts: &[impl AsRef<str>]) -> Result<()> {
    texts
        .iter()
        .map(AsRef::as_ref)
        .try_for_each(|text| expect(output.contains(text), text))
}
