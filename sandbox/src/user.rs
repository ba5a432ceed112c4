//! Giving up root for good, and the server's own descriptor limit.

use rustix::io::Errno;

/// Why root was not given up.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// No such user.
    #[error("there is no user `{0}`: make it with `useradd --system {0}`, or name another with --user")]
    UnknownUser(String),
    /// The user is root itself.
    #[error("`{0}` is root; name another user with --user")]
    IsRoot(String),
    /// The host refused.
    #[error("{call} failed")]
    Os {
        /// Which system call.
        call: &'static str,
        /// Its error.
        #[source]
        source: Errno,
    },
}

/// Becomes this user, with its primary group only, and checks that there is no way back. Early in `main`, before any
/// thread, as root.
pub fn drop_to_user(name: &str) -> Result<(), DropError> {
    let _ = name;
    todo!()
}

/// Raises the soft limit of open descriptors to the hard one; returns it.
pub fn raise_nofile() -> Result<u64, Errno> {
    todo!()
}
