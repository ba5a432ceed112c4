//! How an exec'd program locks itself in: every layer but the last in `enter`, the system call filter in `seal`.

use crate::{Denial, Policy};
use std::os::fd::OwnedFd;

/// A layer of the sandbox, in the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// A closed environment and only the descriptors that belong to the program.
    Descriptors,
    /// User, mount, pid, net, ipc, uts and cgroup namespaces, with an empty read-only root.
    Namespaces,
    /// Resource limits.
    Rlimits,
    /// A memory cgroup; only where [`crate::SpawnRequest::cgroup`] named one.
    Cgroup,
    /// No new privileges, not dumpable, no capabilities, dies with its parent.
    Privileges,
    /// Landlock.
    Landlock,
    /// The system call filter.
    Seccomp,
}

/// Something that this kernel's Landlock can't do. [`Missing::compensation`] says what covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// ABI 3: truncation.
    LandlockTruncate,
    /// ABI 4: TCP bind and connect.
    LandlockTcp,
    /// ABI 5: ioctl on devices.
    LandlockIoctlDevice,
    /// ABI 6: abstract unix sockets and signals.
    LandlockScopes,
    /// ABI 9: pathname unix sockets.
    LandlockUnixSockets,
}

impl Missing {
    /// A stable name for status pages, such as `landlock_tcp`.
    pub fn name(self) -> &'static str {
        todo!()
    }
    /// What covers it, in a phrase.
    pub fn compensation(self) -> &'static str {
        todo!()
    }
}

/// Why the sandbox could not be entered or sealed. The program must end.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// placeholder until filled
    #[error("the environment holds a variable that the server does not set")]
    Environment,
}

/// Inside every layer but the filter, as pid 2 of its own namespaces.
#[derive(Debug)]
pub struct Entered {}

/// Every layer is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// In the order in which they were applied.
    pub layers: Vec<Layer>,
    /// Landlock's ABI on this kernel.
    pub landlock_abi: u32,
    /// What this kernel lacks.
    pub missing: Vec<Missing>,
}

/// Applies every layer but the filter and returns in pid 2 of new namespaces; the calling process and pid 1 stay
/// behind and only wait. The first call of an exec'd program's `main`, before it starts a thread or opens anything.
///
/// # Errors
/// Any layer that can't be applied. Nothing is left out.
pub fn enter(policy: &Policy) -> Result<Entered, EnterError> {
    let _ = policy;
    todo!()
}

impl Entered {
    /// The link to the server (descriptor 3), a blocking `SOCK_SEQPACKET` socket.
    ///
    /// # Panics
    /// On the second call: the link has one owner.
    pub fn link(&mut self) -> OwnedFd {
        todo!()
    }

    /// Sets `RLIMIT_DATA` (private writable memory, thread stacks included, in bytes): the backstop behind the
    /// counting allocator. It must lie well above the lease.
    pub fn limit_data(&mut self, bytes: u64) -> Result<(), EnterError> {
        let _ = bytes;
        let _: Option<Denial> = None;
        todo!()
    }

    /// Applies the system call filter to every thread. Call it when all pool threads have run a job: one that is
    /// still starting would be killed.
    pub fn seal(self) -> Result<Sealed, EnterError> {
        todo!()
    }
}
