//! Every act that a sandboxed program must not get away with, and the probe that tries one under the real policy.

use crate::{Exit, Policy};
use rustix::io::Errno;
use std::process::ExitCode;
use std::str::FromStr;

/// A forbidden act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Opens a file by path.
    OpenFile,
}

/// What became of an attempt that its program survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The system call did what it was asked.
    Succeeded,
    /// It was refused.
    Refused(Errno),
}

/// What must become of an act under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Death by SIGSYS: the filter does not let the call through.
    Killed,
    /// The call gets through and the kernel refuses it with this error.
    Refused(Errno),
}

/// An act that was not stopped in the way that the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Which.
    pub act: Act,
    /// What had to happen.
    pub expected: Expected,
    /// What did.
    pub exit: Exit,
}

impl std::fmt::Display for ProbeFailure {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}

impl std::error::Error for ProbeFailure {}

/// No act has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no act `{0}`")]
pub struct UnknownAct(pub String);

impl Act {
    /// Every act.
    pub const ALL: &[Act] = &[Act::OpenFile];

    /// Its name on the command line, such as `open-file`.
    pub fn name(self) -> &'static str {
        todo!()
    }
    /// Tries it, here and now.
    pub fn attempt(self) -> Outcome {
        todo!()
    }
    /// What must become of it under this policy.
    pub fn expected(self, policy: &Policy) -> Expected {
        let _ = policy;
        todo!()
    }
}

impl FromStr for Act {
    type Err = UnknownAct;
    fn from_str(name: &str) -> Result<Act, UnknownAct> {
        Err(UnknownAct(name.to_owned()))
    }
}

/// The whole of `ringfence-worker probe ACT`: enters, seals, attempts. Code 0 says that the act succeeded, 1 to 133
/// is the errno, 250 that the sandbox could not be entered (the reason is on standard error).
pub fn probe(policy: &Policy, act: Act) -> ExitCode {
    let _ = (policy, act);
    todo!()
}

/// Judges how a probe ended. The failure's text says which act, what happened and what to do.
pub fn judge(policy: &Policy, act: Act, exit: Exit) -> Result<(), ProbeFailure> {
    let _ = (policy, act, exit);
    todo!()
}
