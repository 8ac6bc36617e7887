//! Filters of system calls, compiled from [`calls`](super::calls).
//!
//! What a filter does with a call that is not in the list is a choice between two dangers. Killing the process makes a
//! mistake of the list, or a C library that we do not know, take a running container's network away. Refusing the call lets
//! an intruder go on trying. So there are two filters, of which the kernel takes the sterner answer: what is not in the list
//! is refused (`EPERM`), and what only an intruder calls ([`FORBIDDEN`]) ends the process. Under [`Policy::Strict`] all that
//! is not in the list ends it, but for [`REFUSED`].

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Policy;
use super::calls::{Alternatives, Condition, FORBIDDEN, LIST, Process, REFUSED, Use};

/// Compiled filters.
#[derive(Debug)]
pub struct Filters([BpfProgram; 2]);

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Filters {
    /// Those of a process.
    ///
    /// # Errors
    ///
    /// This processor is unknown to the compiler; or a mistake of ours.
    pub fn compile(process: Process, policy: Policy) -> Result<Self, String> {
        let arch =
            TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
        let program = |rules, otherwise, action| {
            SeccompFilter::new(rules, otherwise, action, arch)
                .and_then(BpfProgram::try_from)
                .map_err(|error| error.to_string())
        };
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let whole = |calls: &[libc::c_long]| calls.iter().map(|&call| (call, Vec::new())).collect();
        let allowed = allowed(process).map_err(|error| error.to_string())?;
        let (otherwise, second) = match policy {
            Policy::Strict => {
                let refused: Vec<_> =
                    REFUSED.iter().copied().filter(|call| !allowed.contains_key(call)).collect();
                let second = program(whole(&refused), SeccompAction::Allow, refuse)?;
                let passed = refused.iter().map(|&call| (call, Vec::new()));
                let first: Rules = allowed.into_iter().chain(passed).collect();
                let first = program(first, SeccompAction::KillProcess, SeccompAction::Allow)?;
                return Ok(Self([first, second]));
            }
            Policy::Auto | Policy::None => (
                refuse,
                program(whole(FORBIDDEN), SeccompAction::Allow, SeccompAction::KillProcess)?,
            ),
        };
        Ok(Self([program(allowed, otherwise, SeccompAction::Allow)?, second]))
    }

    /// Puts them in force, for all threads of this process and for ever.
    ///
    /// # Errors
    ///
    /// The kernel has no seccomp filters.
    pub fn apply_to_all_threads(&self) -> Result<(), String> {
        // The first one allows no further ones: it comes last.
        self.0.iter().rev().try_for_each(|program| {
            seccompiler::apply_filter_all_threads(program).map_err(|error| error.to_string())
        })
    }
}

/// The calls of a process with their arguments.
fn allowed(process: Process) -> seccompiler::Result<Rules> {
    let used = LIST.iter().filter(|entry| entry.use_by(process) != Use::No);
    used.map(|entry| Ok((entry.number, rules(entry.only)?))).collect()
}

fn rules(alternatives: Alternatives) -> seccompiler::Result<Vec<SeccompRule>> {
    let rule = |conditions: &&[Condition]| {
        let conditions = conditions.iter().map(condition).collect::<Result<_, _>>()?;
        Ok(SeccompRule::new(conditions)?)
    };
    alternatives.iter().map(rule).collect()
}

fn condition(wanted: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let Condition { argument, mask, value } = *wanted;
    let operator = match mask {
        u32::MAX => SeccompCmpOp::Eq,
        mask => SeccompCmpOp::MaskedEq(mask.into()),
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
}
