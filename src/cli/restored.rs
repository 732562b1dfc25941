//! How a restored VM gets its memory, as the command line says it.

use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use vmm_reference::{Error, SavedMemory};

/// What `--memory` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum RestoredMemory {
    /// A page is read when the guest touches it.
    #[default]
    Lazy,
    /// All is read before the guest goes on.
    Prefault,
    /// Another process brings a page when the guest touches it, and listens on this socket.
    Uffd(PathBuf),
    /// The same, and this open descriptor is a socket that is connected to it.
    UffdDescriptor(RawFd),
}

impl FromStr for RestoredMemory {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let handler = match text {
            "lazy" => return Ok(Self::Lazy),
            "prefault" => return Ok(Self::Prefault),
            _ => text.strip_prefix("uffd=").unwrap_or_default(),
        };
        match handler.strip_prefix("fd=") {
            Some(number) => match number.parse() {
                Ok(number @ 0..) => Ok(Self::UffdDescriptor(number)),
                _ => Err("fd= takes the number of an open descriptor"),
            },
            None if !handler.is_empty() => Ok(Self::Uffd(handler.into())),
            None => Err("it is lazy, prefault, uffd=SOCKET or uffd=fd=N"),
        }
    }
}

impl RestoredMemory {
    /// The process that brings memory, if one does.
    pub(super) fn connect(&self) -> Result<Option<SavedMemory>, Error> {
        match self {
            Self::Lazy | Self::Prefault => Ok(None),
            Self::UffdDescriptor(fd) => SavedMemory::uffd_on(*fd).map(Some),
            Self::Uffd(path) => match UnixStream::connect(path) {
                Ok(socket) => Ok(Some(SavedMemory::Uffd(socket))),
                Err(source) => Err(Error::Refused {
                    field: "memory".into(),
                    value: format!("uffd={}", path.display()),
                    source,
                    cure: "start the handler of page faults first, and name the socket that it listens on"
                        .to_owned(),
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_or_a_socket() {
        let read = |text: &str| text.parse::<RestoredMemory>();
        assert_eq!(read("uffd=fd=3"), Ok(RestoredMemory::UffdDescriptor(3)));
        assert_eq!(read("uffd=/s"), Ok(RestoredMemory::Uffd("/s".into())));
        let wrong = [
            "",
            "uffd",
            "uffd=",
            "uffd=fd=",
            "uffd=fd=-1",
            "uffd=fd=x",
            "later",
        ];
        for text in wrong {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
