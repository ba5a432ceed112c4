//! Giving up root for good, and the server's own descriptor limit.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::CString;

/// Why root was not given up.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// No such user.
    #[error("there is no user `{0}`: make it with `useradd --system {0}`, or name another with --user")]
    UnknownUser(String),
    /// The user is root itself.
    #[error("`{0}` is root: name another user with --user")]
    IsRoot(String),
    /// Root came back after it was given up.
    #[error("root could be taken back after it was given up")]
    Reversible,
    /// The host refused.
    #[error("{call} failed")]
    Os {
        /// Which call.
        call: &'static str,
        /// Its error.
        #[source]
        source: Errno,
    },
}

/// Becomes this user, with its primary group only, and checks that there is no way back. Early in `main`, before any
/// thread, as root.
pub fn drop_to_user(name: &str) -> Result<(), DropError> {
    let (uid, gid) = look_up(name)?;
    if uid == 0 || gid == 0 {
        return Err(DropError::IsRoot(name.to_owned()));
    }
    // SAFETY: an empty list is read from nowhere.
    os("setgroups", unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: three numbers.
    os("setresgid", unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: three numbers.
    os("setresuid", unsafe { libc::setresuid(uid, uid, uid) })?;
    check_no_way_back()?;
    // The change of uid made /proc/self root's. What the server reads there is its own, and any server of this user
    // that was not started as root is as open.
    // SAFETY: two numbers.
    os("prctl", unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })
}

/// Raises the soft limit of open descriptors to the hard one and returns it; `u64::MAX` where there is none.
pub fn raise_nofile() -> Result<u64, Errno> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Far above what a line of a user database takes, in bytes.
const USER_BYTES: usize = 64 * 1024;

fn look_up(name: &str) -> Result<(u32, u32), DropError> {
    let unknown = || DropError::UnknownUser(name.to_owned());
    let c_name = CString::new(name).map_err(|_| unknown())?;
    let mut space = vec![0; USER_BYTES];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends with a zero byte, and entry, space and found are ours, with their true sizes.
    let error = unsafe {
        libc::getpwnam_r(c_name.as_ptr(), entry.as_mut_ptr(), space.as_mut_ptr(), space.len(), &mut found)
    };
    if found.is_null() {
        return match error {
            0 | libc::ENOENT | libc::ESRCH => Err(unknown()),
            error => Err(DropError::Os { call: "getpwnam_r", source: Errno::from_raw_os_error(error) }),
        };
    }
    // SAFETY: `found` is not null, so the call filled `entry`.
    let entry = unsafe { entry.assume_init() };
    Ok((entry.pw_uid, entry.pw_gid))
}

fn check_no_way_back() -> Result<(), DropError> {
    // SAFETY: a number; if it succeeds, which it must not, the error below ends the program.
    let uid_back = unsafe { libc::setresuid(0, 0, 0) } == 0;
    // SAFETY: as above.
    let gid_back = unsafe { libc::setresgid(0, 0, 0) } == 0;
    if uid_back || gid_back { Err(DropError::Reversible) } else { Ok(()) }
}

fn os(call: &'static str, returned: i32) -> Result<(), DropError> {
    if returned == 0 {
        return Ok(());
    }
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(DropError::Os { call, source: Errno::from_raw_os_error(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_strangers_are_refused_before_anything_changes() {
        assert!(matches!(drop_to_user("root"), Err(DropError::IsRoot(_))));
        assert!(matches!(drop_to_user("no-such-user"), Err(DropError::UnknownUser(_))));
        assert!(matches!(drop_to_user("nul\0byte"), Err(DropError::UnknownUser(_))));
    }

    #[test]
    fn the_soft_limit_of_descriptors_becomes_the_hard_one() {
        raise_nofile().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
