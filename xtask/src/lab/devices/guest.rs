//! A guest with devices: how it is started, and what its cases are called.

use crate::lab::architecture::Architecture;
use crate::lab::case::Case;
use crate::step::Result;

/// How the guest is started, and the start of its cases' names.
pub(super) struct Guest {
    pub(super) command: String,
    pub(super) prefix: String,
    pub(super) transport: &'static str,
}

impl Guest {
    pub(super) fn new(arch: &Architecture, transport: &'static str) -> Result<Self> {
        let (kernel, _) = arch.guest_kernels.first().ok_or("no kernel")?;
        Ok(Self {
            command: format!(
                "/vmm-reference --kernel=/{kernel} --initrd=/initrd --append=quiet \
                 --transport={transport}"
            ),
            prefix: String::new(),
            transport,
        })
    }

    /// A case that finds nothing of those before, least of all its own on the other transport.
    pub(super) fn case(
        &self,
        name: &str,
        command: &str,
        dialogue: &[(&str, &str)],
        judge: impl Fn(&str) -> Result<()> + Send + 'static,
    ) -> Case {
        let name = self.named(name);
        Case::new(name, format!("rm -rf /tmp/*; {command}"), dialogue, judge)
    }

    /// A case that needs the one before it.
    pub(super) fn after(
        &self,
        name: &str,
        command: &str,
        dialogue: &[(&str, &str)],
        judge: impl Fn(&str) -> Result<()> + Send + 'static,
    ) -> Case {
        Case::new(self.named(name), command, dialogue, judge).follows()
    }

    pub(super) fn named(&self, name: &str) -> String {
        format!("{}{}: {name}", self.prefix, self.transport)
    }
}
