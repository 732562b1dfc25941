//! The file of filters that `seccompiler-bin` makes and `--seccomp-filter` reads. Numbers are in little-endian order.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 4 | the version of the format, [`VERSION`] |
//! | 4 | the architecture: AUDIT_ARCH of include/uapi/linux/audit.h |
//! | 4 | how many programs follow, at most [`MOST_PROGRAMS`] |
//! | 4, and as many as it says | a name: its length, at most [`LONGEST_NAME`], and itself; names are in their order, each once |
//! | 4, and 8 times as many | a program: its length, at most [`LONGEST_PROGRAM`], and its instructions, each a struct sock_filter |
//! | 8 | SipHash-2-4 with a key of zeros of all before |

use std::collections::BTreeMap;
use std::hash::Hasher;

use siphasher::sip::SipHasher24;

/// What such a file begins with.
pub const MAGIC: [u8; 8] = *b"VMMBPF\r\n";
/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// The most programs of a file.
pub const MOST_PROGRAMS: usize = 16;
/// The longest name of a program, in bytes.
pub const LONGEST_NAME: usize = 32;
/// The most instructions of a program (BPF_MAXINSNS).
pub const LONGEST_PROGRAM: usize = 4096;
/// The longest file, in bytes.
pub const LONGEST: usize =
    MAGIC.len() + 12 + MOST_PROGRAMS * (4 + LONGEST_NAME + 4 + 8 * LONGEST_PROGRAM) + CHECKSUM;
const CHECKSUM: usize = 8;

/// Programs by their names, for one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// AUDIT_ARCH of include/uapi/linux/audit.h.
    pub architecture: u32,
    /// Instructions, each a struct sock_filter: its code in the lowest 16 bits, then two jumps with 8 bits each, then its
    /// value.
    pub programs: BTreeMap<String, Vec<u64>>,
}

/// Why bytes are no such file, or programs make none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// It begins otherwise.
    #[error("it is no file of seccompiler-bin: make one of the JSON file with it")]
    Magic,
    /// Another version.
    #[error(
        "it has version {0} and this program reads {VERSION}: make it anew with the seccompiler-bin beside it"
    )]
    Version(u32),
    /// It ends too early.
    #[error("it ends in the middle: make it anew with seccompiler-bin")]
    Short,
    /// It goes on behind its end.
    #[error("{0} bytes follow its end: make it anew with seccompiler-bin")]
    Long(usize),
    /// It was changed.
    #[error("its checksum is not that of its content: make it anew with seccompiler-bin")]
    Checksum,
    /// A number is too large.
    #[error("{what} is {value}, and {most} is the most")]
    Most {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: usize,
        /// The limit.
        most: usize,
    },
    /// A name is not of printable ASCII characters, or has none.
    #[error("the name {0:?} is not of printable ASCII characters")]
    Name(String),
    /// Names are not in their order.
    #[error("the name {0:?} is there twice, or not in its order")]
    Order(String),
    /// A program has no instructions.
    #[error("the filter {0:?} has no instructions")]
    Empty(String),
}

/// What is left to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], ContainerError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(ContainerError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ContainerError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| ContainerError::Short)
    }

    fn number(&mut self) -> Result<u32, ContainerError> {
        self.array().map(u32::from_le_bytes)
    }

    fn count(&mut self, what: &'static str, most: usize) -> Result<usize, ContainerError> {
        let value = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        at_most(what, value, most)
    }
}

fn at_most(what: &'static str, value: usize, most: usize) -> Result<usize, ContainerError> {
    match value <= most {
        true => Ok(value),
        false => Err(ContainerError::Most { what, value, most }),
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = SipHasher24::new();
    hasher.write(bytes);
    hasher.finish().to_le_bytes()
}

const PROGRAMS: &str = "the number of filters";
const NAME: &str = "the length of a name";
const PROGRAM: &str = "the number of a filter's instructions";

impl Programs {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// When they are none of such a file.
    pub fn read(bytes: &[u8]) -> Result<Self, ContainerError> {
        at_most("the length of the file", bytes.len(), LONGEST)?;
        let mut rest = Rest(bytes);
        if rest.array() != Ok(MAGIC) {
            return Err(ContainerError::Magic);
        }
        // What follows may be different in another version.
        let version = rest.number()?;
        if version != VERSION {
            return Err(ContainerError::Version(version));
        }
        let architecture = rest.number()?;
        let mut programs = BTreeMap::new();
        for _ in 0..rest.count(PROGRAMS, MOST_PROGRAMS)? {
            let len = rest.count(NAME, LONGEST_NAME)?;
            let name = String::from_utf8_lossy(rest.take(len)?).into_owned();
            check_name(&name)?;
            let len = rest.count(PROGRAM, LONGEST_PROGRAM)?;
            if len == 0 {
                return Err(ContainerError::Empty(name));
            }
            let mut program = Vec::new();
            for _ in 0..len {
                program.push(u64::from_le_bytes(rest.array()?));
            }
            if programs
                .last_key_value()
                .is_some_and(|(last, _)| *last >= name)
            {
                return Err(ContainerError::Order(name));
            }
            programs.insert(name, program);
        }
        let content = bytes.len() - rest.0.len();
        let sum: [u8; CHECKSUM] = rest.array()?;
        if !rest.0.is_empty() {
            return Err(ContainerError::Long(rest.0.len()));
        }
        match bytes.get(..content).map(checksum) == Some(sum) {
            true => Ok(Self {
                architecture,
                programs,
            }),
            false => Err(ContainerError::Checksum),
        }
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// When the programs are more, or longer, than a file may have.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ContainerError> {
        let number = |what, value: usize, most| {
            let value = at_most(what, value, most)?;
            // The limits are far below.
            Ok(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes())
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.architecture.to_le_bytes());
        bytes.extend(number(PROGRAMS, self.programs.len(), MOST_PROGRAMS)?);
        for (name, program) in &self.programs {
            check_name(name)?;
            if program.is_empty() {
                return Err(ContainerError::Empty(name.clone()));
            }
            bytes.extend(number(NAME, name.len(), LONGEST_NAME)?);
            bytes.extend(name.bytes());
            bytes.extend(number(PROGRAM, program.len(), LONGEST_PROGRAM)?);
            bytes.extend(program.iter().flat_map(|step| step.to_le_bytes()));
        }
        bytes.extend(checksum(&bytes));
        Ok(bytes)
    }
}

fn check_name(name: &str) -> Result<(), ContainerError> {
    match !name.is_empty() && name.chars().all(|letter| letter.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(ContainerError::Name(name.to_owned())),
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
