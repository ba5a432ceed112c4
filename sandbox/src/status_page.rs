//! The page that a program shares with the server, where it leaves word of why it ended.

use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// An allocation that did not fit in the lease. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory: {wanted} bytes wanted, {used} of {limit} in use")]
pub struct Denial {
    /// The request that was refused.
    pub wanted: u64,
    /// In use at that moment.
    pub used: u64,
    /// The lease.
    pub limit: u64,
}

/// What the page says. All but `wait_status` is the program's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The first denial that was not handled. With the program's death it means out of memory, whatever the signal.
    pub denial: Option<Denial>,
    /// How the program ended, as `waitpid` gave it to the shim. The program itself can't write this.
    pub wait_status: Option<i32>,
    /// Bytes that the counting allocator has handed out and not taken back.
    pub used_bytes: u64,
    /// The most that `used_bytes` has been.
    pub peak_bytes: u64,
}

/// The server's side of the page: made before [`crate::spawn`], read at any time.
#[derive(Debug)]
pub struct StatusPage {
    memfd: OwnedFd,
}

impl StatusPage {
    /// A fresh page: a memfd of fixed size, mapped here.
    pub fn create() -> Result<StatusPage, Errno> {
        todo!()
    }

    /// What it says now.
    pub fn read(&self) -> Status {
        let _ = &self.memfd;
        todo!()
    }
}
