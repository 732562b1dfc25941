//! Filters as programs for the kernel's classic BPF (Documentation/networking/filter.rst): first the architecture, then a
//! tree over the numbers of calls, whose leaves look at arguments.
//!
//! The kernel runs a filter for each number that there is when it is installed, to know which calls need no further look: the
//! crate seccompiler puts one call behind the other, and a tree takes a third of the time of that.

use std::collections::{BTreeMap, BTreeSet};

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
        .map(|(number, only)| Ok((*number, leaf(*number, only)?)))
        .collect::<Result<Vec<_>, TreeError>>()?;
    let mut program = vec![
        step(LOAD, 0, 0, ARCH),
        step(EQUAL, 1, 0, arch),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, 0, 0, NUMBER),
    ];
    program.extend(branch(&calls)?);
    if program.len() > MOST {
        return Err(TreeError::Calls);
    }
    Ok(program)
}

/// The program that refuses calls with these numbers and lets through all others, but for those of another architecture, of
/// which x32 has the number of this one and a bit in its own. It is one behind the other: it is short, and there is one.
pub(super) fn refusing(numbers: &BTreeSet<u16>, arch: u32) -> Result<BpfProgram, TreeError> {
    const X32: u32 = 0x4000_0000;
    let mut program = vec![
        step(LOAD, 0, 0, ARCH),
        step(EQUAL, 1, 0, arch),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, 0, 0, NUMBER),
        step(AT_LEAST, 0, 1, X32),
        give(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    for (at, number) in numbers.iter().enumerate() {
        // Over the others and the verdict that lets through.
        let over = u8::try_from(numbers.len() - at).map_err(|_| TreeError::Calls)?;
        program.push(step(EQUAL, over, 0, u32::from(*number)));
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    program.push(give(libc::SECCOMP_RET_TRAP));
    Ok(program)
}

fn branch(calls: &[(u16, BpfProgram)]) -> Result<BpfProgram, TreeError> {
    let (below, above) = match calls {
        [] => return Ok(vec![give(libc::SECCOMP_RET_TRAP)]),
        [(_, leaf)] => return Ok(leaf.clone()),
        more => more.split_at(more.len() / 2),
    };
    let middle = above.first().map_or(0, |(number, _)| u32::from(*number));
    let (below, above) = (branch(below)?, branch(above)?);
    let mut program = match u8::try_from(below.len()) {
        Ok(over) => vec![step(AT_LEAST, over, 0, middle)],
        Err(_) => {
            let over = u32::try_from(below.len()).map_err(|_| TreeError::Calls)?;
            vec![step(AT_LEAST, 0, 1, middle), step(JUMP, 0, 0, over)]
        }
    };
    program.extend(below);
    program.extend(above);
    Ok(program)
}

/// What becomes of a call with this number, and of any other that comes here.
fn leaf(number: u16, only: &[Only]) -> Result<BpfProgram, TreeError> {
    let fails = only.iter().find_map(|only| match only {
        Only::Fails(errno) => Some(libc::SECCOMP_RET_ERRNO | u32::from(*errno)),
        _ => None,
    });
    let is_any = only.iter().any(|only| matches!(only, Only::Any));
    let number = u32::from(number);
    let always = fails.or(is_any.then_some(libc::SECCOMP_RET_ALLOW));
    let refuse = give(libc::SECCOMP_RET_TRAP);
    if let Some(verdict) = always {
        return Ok(vec![step(EQUAL, 0, 1, number), give(verdict), refuse]);
    }
    let mut program = vec![step(EQUAL, 1, 0, number), give(libc::SECCOMP_RET_TRAP)];
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
        program.push(step(LOAD, 0, 0, ARGUMENTS + 8 * u32::from(*argument)));
        if *mask != u32::MAX {
            program.push(step(AND, 0, 0, *mask));
        }
        let alternatives = values.iter().map(|value| step(EQUAL, 0, 0, *value));
        program.extend(alternatives);
    }
    // Each that is true goes to the end, where the call is allowed.
    let end = program.len() + 1;
    for (at, step) in program.iter_mut().enumerate().skip(2) {
        if step.code == EQUAL {
            step.jt = u8::try_from(end - at - 1).map_err(|_| TreeError::Alternatives)?;
        }
    }
    program.push(refuse);
    program.push(give(libc::SECCOMP_RET_ALLOW));
    Ok(program)
}
