//! The filters that are made of tables of system calls.

use std::io;

use seccompiler::{BpfProgram, sock_filter};

use super::calls::{Call, Numbers};
use super::rules::{Role, Table};
use super::tree::{Calls, program, refusing};
use super::violation;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// No system calls are known of this architecture.
    #[error("no system calls are known of the architecture {0}")]
    Architecture(String),
    /// A table cannot become a filter.
    #[error("the tables of {role} make no filter")]
    Compile {
        /// The role.
        role: &'static str,
        /// What the compiler says.
        source: io::Error,
    },
    /// The kernel refuses the filter.
    #[error("the kernel does not take the filter of {role}")]
    Install {
        /// The role.
        role: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The filter of a role, to be installed by each of its threads.
#[derive(Debug, Clone)]
pub struct Filter {
    role: &'static str,
    program: BpfProgram,
}

impl Filter {
    /// The filter of this role on the architecture that the program is built for.
    ///
    /// # Errors
    /// When a table is wrong or the tables are too long.
    pub fn new(role: &Role) -> Result<Self, FilterError> {
        Self::for_arch(role, std::env::consts::ARCH)
    }

    /// The same for any architecture, by the name that `uname -m` has for it.
    ///
    /// # Errors
    /// Also when the architecture is not known.
    pub fn for_arch(role: &Role, arch: &str) -> Result<Self, FilterError> {
        let unknown = || FilterError::Architecture(arch.to_owned());
        let numbers = Numbers::of(arch).ok_or_else(unknown)?;
        let audit = architecture(arch).ok_or_else(unknown)?;
        let mut calls = Calls::new();
        for rule in role.tables.iter().copied().flatten() {
            if let Some(number) = rule.call.number(numbers) {
                calls.entry(number).or_default().push(rule.only);
            }
        }
        let program = program(&calls, audit).map_err(|error| FilterError::Compile {
            role: role.name,
            source: io::Error::other(error),
        })?;
        Ok(Self {
            role: role.name,
            program,
        })
    }

    /// A filter that refuses these calls, and those of a table but for what that allows of them, and lets through all
    /// others, for a thread of the role that is called `role` which does what no table has.
    ///
    /// # Errors
    /// When the architecture is not known, or there are too many calls.
    pub fn refusing(role: &'static str, calls: &[Call], but: Table) -> Result<Self, FilterError> {
        Self::refusing_for_arch(role, calls, but, std::env::consts::ARCH)
    }

    fn refusing_for_arch(
        role: &'static str,
        calls: &[Call],
        but: Table,
        arch: &str,
    ) -> Result<Self, FilterError> {
        let unknown = || FilterError::Architecture(arch.to_owned());
        let numbers = Numbers::of(arch).ok_or_else(unknown)?;
        let audit = architecture(arch).ok_or_else(unknown)?;
        let mut refused = Calls::new();
        for number in calls.iter().filter_map(|call| call.number(numbers)) {
            refused.entry(number).or_default();
        }
        for rule in but {
            if let Some(number) = rule.call.number(numbers) {
                refused.entry(number).or_default().push(rule.only);
            }
        }
        let program = refusing(&refused, audit).map_err(|error| FilterError::Compile {
            role,
            source: io::Error::other(error),
        })?;
        Ok(Self { role, program })
    }

    /// A program that somebody else has made, for threads of the role that is called `role`. Each instruction is a
    /// struct sock_filter (include/uapi/linux/filter.h) as a number: its code in the lowest 16 bits, then the two jumps
    /// with 8 bits each, then its value. The kernel looks at it when it is installed.
    pub fn of_instructions(role: &'static str, instructions: &[u64]) -> Self {
        let program = instructions.iter().map(|instruction| {
            let [a, b, jt, jf, value @ ..] = instruction.to_le_bytes();
            sock_filter {
                code: u16::from_le_bytes([a, b]),
                jt,
                jf,
                k: u32::from_le_bytes(value),
            }
        });
        Self {
            role,
            program: program.collect(),
        }
    }

    /// How long it is: installing takes longer with each instruction.
    pub fn instructions(&self) -> usize {
        self.program.len()
    }

    /// The calling thread may make no other call from here on, nor may threads that it starts: what they may, both
    /// filters allow. [`prepare`](super::prepare) comes before it.
    ///
    /// # Errors
    /// When the kernel refuses it, as one without seccomp does.
    pub fn install(&self) -> Result<(), FilterError> {
        violation::set_role(self.role);
        seccompiler::apply_filter(&self.program).map_err(|error| FilterError::Install {
            role: self.role,
            source: match error {
                seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => source,
                other => io::Error::other(other.to_string()),
            },
        })
    }
}

/// An architecture's number in struct seccomp_data (include/uapi/linux/audit.h), by the name that `uname -m` has for it:
/// its ELF machine, 64 bits, little end. `None` where no system calls are known of it.
pub fn architecture(arch: &str) -> Option<u32> {
    const LITTLE_64: u32 = 0xc000_0000;
    let machine = match arch {
        "x86_64" => 62,
        "aarch64" => 183,
        "riscv64" => 243,
        _ => return None,
    };
    Some(LITTLE_64 | machine)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::seccomp::rules::Rule;

    const ARCHITECTURES: [&str; 3] = ["x86_64", "aarch64", "riscv64"];

    /// A call as the kernel shows it to a filter: struct seccomp_data.
    struct Made {
        number: u32,
        arch: u32,
        arguments: [u64; 6],
    }

    impl Made {
        fn new(arch: &str, call: Call, argument: u64) -> Self {
            let machine = [62, 183, 243];
            let at = ARCHITECTURES.iter().position(|name| *name == arch).unwrap();
            Self {
                number: call.number(Numbers::of(arch).unwrap()).unwrap().into(),
                arch: 0xc000_0000 | machine[at],
                arguments: [argument; 6],
            }
        }

        fn word(&self, offset: u32) -> u32 {
            match offset {
                0 => self.number,
                4 => self.arch,
                _ => {
                    let offset = (offset - 16) as usize;
                    let word = self.arguments[offset / 8] >> (8 * (offset % 8));
                    (word & 0xffff_ffff) as u32
                }
            }
        }
    }

    /// What the kernel would do: the instructions, interpreted.
    fn verdict_of(program: &BpfProgram, made: &Made) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let mut jump = |yes| at += usize::from(if yes { step.jt } else { step.jf });
            match step.code {
                0x20 => a = made.word(step.k),
                0x54 => a &= step.k,
                0x05 => at += step.k as usize,
                0x15 => jump(a == step.k),
                0x35 => jump(a >= step.k),
                0x06 => return step.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn verdict(filter: &Filter, made: &Made) -> u32 {
        verdict_of(&filter.program, made)
    }

    #[test]
    fn a_filter_allows_what_its_tables_have_on_every_architecture() {
        const ROLE: Role = Role {
            name: "test",
            tables: &[
                &[
                    Rule::any(Call::Read, ""),
                    Rule::one_of(Call::Ioctl, 1, &[7, 9], ""),
                ],
                &[
                    Rule::masked(Call::Mmap, 2, 4, &[0], ""),
                    Rule::any(Call::EpollWait, ""),
                ],
            ],
        };
        for arch in ARCHITECTURES {
            let filter = Filter::for_arch(&ROLE, arch).unwrap();
            let of = |call, argument| verdict(&filter, &Made::new(arch, call, argument));
            for (call, argument) in [
                (Call::Read, 4),
                (Call::Ioctl, 7),
                (Call::Ioctl, 9),
                // The kernel takes the lower half of a request, too.
                (Call::Ioctl, 7 | 1 << 32),
                (Call::Mmap, 3),
            ] {
                assert_eq!(of(call, argument), libc::SECCOMP_RET_ALLOW, "{arch} {call}");
            }
            for (call, argument) in [
                (Call::Ioctl, 8),
                (Call::Mmap, 5),
                (Call::Mmap, 4 | 1 << 32),
                (Call::Write, 7),
                (Call::Execve, 0),
            ] {
                assert_eq!(of(call, argument), libc::SECCOMP_RET_TRAP, "{arch} {call}");
            }
        }
    }

    #[test]
    fn each_number_of_a_call_gets_its_own_verdict_however_many_calls_there_are() {
        let all: Vec<_> = (0..1024)
            .filter_map(|number| Call::of_number(number, Numbers::X86_64))
            .collect();
        assert!(all.len() > 100);
        // Every other one, and none of their neighbours.
        for start in [0, 1] {
            for step in [1, 2, 7, 64] {
                let chosen: Vec<_> = all.iter().copied().skip(start).step_by(step).collect();
                let table: Vec<_> = chosen.iter().map(|call| Rule::any(*call, "")).collect();
                let table: &'static [Rule] = table.leak();
                let role = Role {
                    name: "test",
                    tables: vec![table].leak(),
                };
                let filter = Filter::for_arch(&role, "x86_64").unwrap();
                for number in 0..2048_i32 {
                    let made = Made {
                        number: number.cast_unsigned(),
                        arch: 0xc000_003e,
                        arguments: [0; 6],
                    };
                    let call = Call::of_number(number, Numbers::X86_64);
                    let expected = if call.is_some_and(|call| chosen.contains(&call)) {
                        libc::SECCOMP_RET_ALLOW
                    } else {
                        libc::SECCOMP_RET_TRAP
                    };
                    assert_eq!(verdict(&filter, &made), expected, "{number}");
                }
            }
        }
    }

    #[test]
    fn calls_of_other_architectures_end_the_process() {
        const ROLE: Role = Role {
            name: "test",
            tables: &[&[Rule::any(Call::Read, "")]],
        };
        let filter = Filter::for_arch(&ROLE, "x86_64").unwrap();
        let made = Made::new("aarch64", Call::Read, 0);
        assert_eq!(verdict(&filter, &made), libc::SECCOMP_RET_KILL_PROCESS);
        // x32 has the same architecture and a bit in its numbers (Documentation/userspace-api/seccomp_filter.rst).
        let mut made = Made::new("x86_64", Call::Read, 0);
        made.number |= 0x4000_0000;
        assert_eq!(verdict(&filter, &made), libc::SECCOMP_RET_TRAP);
    }

    #[test]
    fn a_call_may_be_what_any_table_allows() {
        const ROLE: Role = Role {
            name: "test",
            tables: &[
                &[
                    Rule::one_of(Call::Ioctl, 1, &[7], ""),
                    Rule::masked(Call::Clone, 0, 0x100, &[0x100], ""),
                    Rule::fails(Call::Clone3, 38, ""),
                ],
                &[
                    Rule::masked(Call::Ioctl, 1, 0xff00, &[0xae00], ""),
                    Rule::any(Call::Clone, ""),
                    Rule::any(Call::Clone3, ""),
                ],
            ],
        };
        for arch in ARCHITECTURES {
            let filter = Filter::for_arch(&ROLE, arch).unwrap();
            let of = |call, argument| verdict(&filter, &Made::new(arch, call, argument));
            for (call, argument) in [(Call::Ioctl, 7), (Call::Ioctl, 0xae80), (Call::Clone, 17)] {
                assert_eq!(of(call, argument), libc::SECCOMP_RET_ALLOW, "{arch} {call}");
            }
            for argument in [8, 0x5412, 0xae] {
                assert_eq!(of(Call::Ioctl, argument), libc::SECCOMP_RET_TRAP, "{arch}");
            }
            assert_eq!(of(Call::Clone3, 0), libc::SECCOMP_RET_ERRNO | 38);
        }
    }

    #[test]
    fn a_program_of_somebody_else_is_what_its_numbers_say() {
        const ROLE: Role = Role {
            name: "test",
            tables: &[&[Rule::one_of(Call::Ioctl, 1, &[7], "")]],
        };
        let made = Filter::for_arch(&ROLE, "x86_64").unwrap();
        let numbers: Vec<_> = (made.program.iter())
            .map(|step| {
                u64::from(step.code)
                    | u64::from(step.jt) << 16
                    | u64::from(step.jf) << 24
                    | u64::from(step.k) << 32
            })
            .collect();
        let given = Filter::of_instructions("other", &numbers);
        assert_eq!((given.program, given.role), (made.program, "other"));
    }

    #[test]
    fn a_filter_that_refuses_calls_lets_through_all_others_of_its_architecture() {
        for arch in ARCHITECTURES {
            const BUT: Table = &[
                Rule::one_of(Call::Unshare, 0, &[7, 9], ""),
                Rule::masked(Call::Clone, 0, 0xf0, &[0], ""),
                Rule::fails(Call::Clone3, 38, ""),
                Rule::any(Call::Brk, ""),
            ];
            let refused = [Call::Execve, Call::Ptrace, Call::Vfork];
            let filter = Filter::refusing_for_arch("test", &refused, BUT, arch).unwrap();
            for (call, argument, expected) in [
                (Call::Unshare, 7, libc::SECCOMP_RET_ALLOW),
                (Call::Unshare, 9, libc::SECCOMP_RET_ALLOW),
                (Call::Unshare, 0, libc::SECCOMP_RET_TRAP),
                (Call::Unshare, 8, libc::SECCOMP_RET_TRAP),
                (Call::Clone, 0x0f, libc::SECCOMP_RET_ALLOW),
                (Call::Clone, 0x1f, libc::SECCOMP_RET_TRAP),
                (Call::Clone3, 0, libc::SECCOMP_RET_ERRNO | 38),
                (Call::Brk, 1, libc::SECCOMP_RET_ALLOW),
            ] {
                let made = Made::new(arch, call, argument);
                assert_eq!(
                    verdict(&filter, &made),
                    expected,
                    "{arch} {call} {argument}"
                );
            }
            for call in [Call::Execve, Call::Ptrace] {
                let made = Made::new(arch, call, 0);
                assert_eq!(verdict(&filter, &made), libc::SECCOMP_RET_TRAP, "{call}");
            }
            for call in [Call::Read, Call::Openat, Call::Execveat, Call::Mmap] {
                let mut made = Made::new(arch, call, 4);
                assert_eq!(verdict(&filter, &made), libc::SECCOMP_RET_ALLOW, "{call}");
                made.number |= 0x4000_0000;
                assert_eq!(verdict(&filter, &made), libc::SECCOMP_RET_KILL_PROCESS);
                made.number = 0;
                made.arch = 0x4000_0003;
                assert_eq!(verdict(&filter, &made), libc::SECCOMP_RET_KILL_PROCESS);
            }
        }
    }

    #[test]
    fn tables_that_allow_more_than_they_say_are_refused() {
        const EMPTY: Role = Role {
            name: "test",
            tables: &[&[Rule::one_of(Call::Ioctl, 1, &[], "")]],
        };
        let error = Filter::new(&EMPTY).unwrap_err();
        assert_eq!(error.to_string(), "the tables of test make no filter");
        assert!(matches!(
            Filter::for_arch(&EMPTY, "m68k"),
            Err(FilterError::Architecture(_))
        ));
    }
}
