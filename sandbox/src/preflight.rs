//! Whether this host can hold the sandbox at all: the hard floors, checked before anything is spawned.

use crate::Missing;
use crate::enter::{ABI_MIN, abi, missing, try_in_child};
use rustix::io::Errno;

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
    /// Landlock is off or too old.
    #[error(
        "Landlock has ABI {0} here (0: it is off) and workers need {ABI_MIN}: run Linux 5.19 or later with `landlock` \
         in the kernel's `lsm=` list; in a container, allow the landlock_* calls (packaging/README.md)"
    )]
    Landlock(u32),
    /// seccomp is off or can't kill a process.
    #[error(
        "the kernel has no seccomp filters that kill a process ({0}): it must be built with CONFIG_SECCOMP_FILTER; in \
         a container, allow the seccomp call (packaging/README.md)"
    )]
    Seccomp(Errno),
    /// Namespaces can't be made or used.
    #[error(
        "workers can't have namespaces of their own ({call}: {error}): {}",
        namespace_advice(*error)
    )]
    Namespaces {
        /// What failed.
        call: &'static str,
        /// How.
        error: Errno,
    },
}

fn namespace_advice(error: Errno) -> &'static str {
    match error {
        Errno::NOSPC | Errno::USERS => {
            "raise user.max_user_namespaces (`sysctl user.max_user_namespaces`), which is 0 or used up"
        }
        _ => {
            "on Ubuntu load the AppArmor profile packaging/apparmor/ringfence; on Debian before 11 set \
             kernel.unprivileged_userns_clone=1; in a container use packaging/container (packaging/README.md)"
        }
    }
}

/// Checks the hard floors: Landlock ABI 2, seccomp with KILL_PROCESS, unprivileged user namespaces that can mount.
/// After the drop of root, since it forks and tries.
pub fn preflight() -> Result<Host, PreflightError> {
    let landlock_abi = abi();
    if landlock_abi < ABI_MIN {
        return Err(PreflightError::Landlock(landlock_abi));
    }
    can_kill_by_filter().map_err(PreflightError::Seccomp)?;
    try_in_child().map_err(|(call, error)| PreflightError::Namespaces { call, error })?;
    Ok(Host { landlock_abi, missing: missing(landlock_abi) })
}

fn can_kill_by_filter() -> Result<(), Errno> {
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one number from `action`.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if answer == 0 {
        return Ok(());
    }
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let refusals = [
            (PreflightError::Landlock(1), "lsm="),
            (PreflightError::Seccomp(Errno::NOSYS), "CONFIG_SECCOMP_FILTER"),
            (PreflightError::Namespaces { call: "unshare", error: Errno::NOSPC }, "user.max_user_namespaces"),
            (PreflightError::Namespaces { call: "unshare", error: Errno::PERM }, "AppArmor"),
        ];
        for (refusal, advice) in refusals {
            assert!(refusal.to_string().contains(advice), "{refusal}");
        }
    }
}
