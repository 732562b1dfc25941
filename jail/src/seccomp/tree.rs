//! Filters as programs for the kernel's classic BPF (Documentation/networking/filter.rst): first the architecture, then a
//! tree over the numbers of calls, whose leaves look at arguments.
//!
//! The kernel runs a filter for each number that there is when it is installed, to know which calls need no further look: the
//! crate seccompiler puts one call behind the other, and a tree takes a third of the time of that.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

use super::rules::Only;

/// BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_AND | BPF_K, BPF_JMP | BPF_JA, BPF_JMP | BPF_JEQ | BPF_K,
/// BPF_JMP | BPF_JGE | BPF_K, BPF_RET | BPF_K.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Where struct seccomp_data has these (include/uapi/linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// So many calls stand one behind the other at the end of a branch: fewer instructions than a branch for each.
const FEW: usize = 4;
/// Instructions that a program may have (BPF_MAXINSNS).
const MOST: usize = 4096;

/// Why there is no program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TreeError {
    #[error("a call has no value that would be allowed")]
    NoValue,
    #[error("there is no argument of that number")]
    Argument,
    #[error("a call has too many alternatives")]
    Alternatives,
    #[error("there are too many calls")]
    Calls,
}

/// What is allowed of a call: any of these.
pub(super) type Calls = BTreeMap<u16, Vec<Only>>;

fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn give(verdict: u32) -> sock_filter {
    step(RETURN, 0, 0, verdict)
}

/// The program for an architecture, by its AUDIT_ARCH number. A call of another one ends the process.
pub(super) fn program(calls: &Calls, arch: u32) -> Result<BpfProgram, TreeError> {
    let calls = calls
        .iter()
        .map(|(number, only)| Ok((u32::from(*number), look(only)?)))
        .collect::<Result<Vec<_>, TreeError>>()?;
    let mut program = vec![
        step(LOAD, 0, 0, ARCH),
        step(EQUAL, 1, 0, arch),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, 0, 0, NUMBER),
    ];
    branch(&calls, &mut program)?;
    if program.len() > MOST {
        return Err(TreeError::Calls);
    }
    Ok(program)
}

/// The program that refuses calls with these numbers, but for what is allowed of each, and lets through all others. Those of
/// another architecture it does not, of which x32 has the number of this one and a bit in its own. One call is behind the
/// other: it is short, and there is one.
pub(super) fn refusing(calls: &Calls, arch: u32) -> Result<BpfProgram, TreeError> {
    const X32: u32 = 0x4000_0000;
    let mut program = vec![
        step(LOAD, 0, 0, ARCH),
        step(EQUAL, 1, 0, arch),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, 0, 0, NUMBER),
        step(AT_LEAST, 0, 1, X32),
        give(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let (whole, partly): (Vec<_>, Vec<_>) = calls.iter().partition(|(_, but)| but.is_empty());
    let looks = partly
        .iter()
        .map(|(_, but)| look(but))
        .collect::<Result<Vec<_>, _>>()?;
    // Behind the numbers are the verdict on all others, the looks, and the verdicts again.
    let mut look_at = program.len() + calls.len() + 1;
    let allowed = look_at + looks.iter().map(Vec::len).sum::<usize>();
    let over = |from: usize, to: usize| u8::try_from(to - from - 1).map_err(|_| TreeError::Calls);
    for (number, _) in whole {
        let refused = over(program.len(), allowed + 1)?;
        program.push(step(EQUAL, refused, 0, u32::from(*number)));
    }
    for ((number, _), look) in partly.iter().zip(&looks) {
        let to = if look.is_empty() { allowed } else { look_at };
        let to = over(program.len(), to)?;
        program.push(step(EQUAL, to, 0, u32::from(**number)));
        look_at += look.len();
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    for look in looks.iter().flatten() {
        program.push(match look.code {
            EQUAL => step(EQUAL, over(program.len(), allowed)?, 0, look.k),
            _ => step(look.code, 0, 0, look.k),
        });
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    program.push(give(libc::SECCOMP_RET_TRAP));
    Ok(program)
}

fn branch(calls: &[(u32, BpfProgram)], program: &mut BpfProgram) -> Result<(), TreeError> {
    if calls.len() <= FEW {
        match few(calls, program) {
            // Too far to jump: half of them.
            Err(TreeError::Alternatives) if calls.len() > 1 => {}
            done => return done,
        }
    }
    let (below, above) = calls.split_at(calls.len() / 2);
    let middle = above.first().map_or(0, |(number, _)| *number);
    let at = program.len();
    program.extend([step(AT_LEAST, 0, 1, middle), step(JUMP, 0, 0, 0)]);
    branch(below, program)?;
    let over = u32::try_from(program.len() - at - 2).map_err(|_| TreeError::Calls)?;
    // Where one instruction reaches over what is below, it is one.
    match u8::try_from(over) {
        Ok(near) => {
            program.remove(at + 1);
            program[at] = step(AT_LEAST, near, 0, middle);
        }
        Err(_) => program[at + 1] = step(JUMP, 0, 0, over),
    }
    branch(above, program)
}

/// What becomes of each of these calls, and of any other that comes here: their numbers, their looks at arguments, and
/// the end, where a call is allowed.
fn few(calls: &[(u32, BpfProgram)], program: &mut BpfProgram) -> Result<(), TreeError> {
    let begin = program.len();
    let looks: usize = calls.iter().map(|(_, look)| look.len()).sum();
    let end = begin + calls.len() + 1 + looks;
    let jump =
        |from: usize, to: usize| u8::try_from(to - from - 1).map_err(|_| TreeError::Alternatives);
    let mut steps = BpfProgram::with_capacity(end + 1 - begin);
    let mut look_at = begin + calls.len() + 1;
    for (at, (number, look)) in calls.iter().enumerate() {
        let to = if look.is_empty() { end } else { look_at };
        steps.push(step(EQUAL, jump(begin + at, to)?, 0, *number));
        look_at += look.len();
    }
    steps.push(give(libc::SECCOMP_RET_TRAP));
    for look in calls.iter().flat_map(|(_, look)| look) {
        let here = begin + steps.len();
        steps.push(match look.code {
            EQUAL => step(EQUAL, jump(here, end)?, 0, look.k),
            _ => step(look.code, 0, 0, look.k),
        });
    }
    steps.push(give(libc::SECCOMP_RET_ALLOW));
    program.extend(steps);
    Ok(())
}

/// How a call is looked at further, with a comparison for each value that is allowed. Empty: it is allowed.
fn look(only: &[Only]) -> Result<BpfProgram, TreeError> {
    let fails = only.iter().find_map(|only| match only {
        Only::Fails(errno) => Some(libc::SECCOMP_RET_ERRNO | u32::from(*errno)),
        _ => None,
    });
    if let Some(verdict) = fails {
        return Ok(vec![give(verdict)]);
    }
    if only.iter().any(|only| matches!(only, Only::Any)) {
        return Ok(Vec::new());
    }
    let mut look = Vec::new();
    for only in only {
        let Only::Bits {
            argument,
            mask,
            values,
        } = only
        else {
            continue;
        };
        if values.is_empty() {
            return Err(TreeError::NoValue);
        }
        if *argument > 5 {
            return Err(TreeError::Argument);
        }
        // The lower half comes first on all of these architectures.
        look.push(step(LOAD, 0, 0, ARGUMENTS + 8 * u32::from(*argument)));
        if *mask != u32::MAX {
            look.push(step(AND, 0, 0, *mask));
        }
        look.extend(values.iter().map(|value| step(EQUAL, 0, 0, *value)));
    }
    look.push(give(libc::SECCOMP_RET_TRAP));
    Ok(look)
}
