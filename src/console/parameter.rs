//! What a kernel is told of its consoles, by the parameter `console=` (Linux
//! Documentation/admin-guide/serial-console.rst): of those that a command line names, the last one is /dev/console,
//! where init and most logins are. A platform's default names its serial console.

use crate::VmConfig;

/// The virtio console of a Linux guest.
const VIRTIO: &str = "console=hvc0";

/// A Linux guest's main console, by its kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MainConsole<'a> {
    /// The command line names none, so that the guest prints nothing.
    None,
    /// The virtio console, by this name.
    Virtio(&'a str),
    /// Another one, by this name.
    Other(&'a str),
}

impl<'a> MainConsole<'a> {
    /// The one that a command line names.
    ///
    /// ```
    /// use vmm_reference::MainConsole;
    ///
    /// let found = MainConsole::of("console=hvc0 quiet console=ttyS0");
    /// assert_eq!(found, MainConsole::Other("ttyS0"));
    /// ```
    #[must_use]
    pub fn of(cmdline: &'a str) -> Self {
        let mut named = cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix("console="));
        match named.next_back() {
            None => Self::None,
            Some(name) if name.starts_with("hvc") => Self::Virtio(name),
            Some(name) => Self::Other(name),
        }
    }
}

impl VmConfig {
    /// What is added to the command line. With a virtio console and no command line of the user's, that one is
    /// named behind the platform's own.
    pub(crate) fn append_with_console(&self) -> Option<String> {
        let append = self.append.as_deref();
        if !self.console || self.cmdline.is_some() {
            return append.map(str::to_owned);
        }
        Some(match append {
            None => VIRTIO.to_owned(),
            Some(append) => format!("{VIRTIO} {append}"),
        })
    }
}
