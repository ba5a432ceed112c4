//! Whether this host can hold the sandbox at all: the hard floors, checked before anything is spawned.

use crate::Missing;

/// A host that passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Landlock's ABI.
    pub landlock_abi: u32,
    /// What this kernel lacks above the floor, each covered by another layer.
    pub missing: Vec<Missing>,
}

/// A floor that is not there; the text says which, why, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreflightError {
    /// filled below
    #[error("not a host")]
    NotAHost,
}

/// Checks the hard floors: Landlock ABI 2, seccomp with KILL_PROCESS, unprivileged user namespaces that can mount.
pub fn preflight() -> Result<Host, PreflightError> {
    todo!()
}
