//! What a sandboxed program may do, parsed from a reviewed data file with one right and its reason a line.

/// A parsed policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {}

/// The line of a policy file that is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy line {line}: {fault}")]
pub struct PolicyError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: PolicyFault,
}

/// What can be wrong with a line of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// No `# reason` after the right.
    #[error("the right has no reason")]
    NoReason,
}

impl Policy {
    /// The policy of `ringfence-worker` on the CPU device.
    pub fn worker_cpu() -> Policy {
        todo!()
    }

    /// Parses a policy file. Unknown names, rights that others cover and rights without a reason are refused.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let _ = text;
        todo!()
    }
}
