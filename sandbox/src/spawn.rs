//! How the server starts a sandboxed program: a vfork-like clone and exec of an opened executable.

use crate::StatusPage;
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What to start.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// The opened executable; no path is looked up.
    pub program: BorrowedFd<'a>,
    /// Words after the program's name.
    pub arguments: &'a [&'a str],
    /// All of its environment.
    pub environment: Environment,
    /// The program's end of the link.
    pub link: OwnedFd,
    /// Where the program and its shim leave word. One page for one child.
    pub status_page: &'a StatusPage,
    /// The opened folder of a cgroup to join before exec.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The closed list of variables that a program gets; `RUST_BACKTRACE=0` is always set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Environment {
    /// Compute threads, as `RAYON_NUM_THREADS` and `CANDLE_NUM_THREADS`. `None` sets neither.
    pub threads: Option<u16>,
}

/// A started program. Dropping it kills and reaps the program.
#[derive(Debug)]
pub struct Child {
    /// Readable when the program has ended.
    pub pidfd: OwnedFd,
    /// Of the outer process; the program itself is pid 2 of its own namespace and states its pid by its first message.
    pub pid: i32,
    /// What it prints; blocking. At its end all memory of the program is free again.
    pub stdout: OwnedFd,
    /// The same for errors.
    pub stderr: OwnedFd,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
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

/// Starts a program with descriptors 0 null, 1 and 2 bounded pipes, 3 the link, 4 the status page, and nothing else.
/// It dies when the calling *thread* ends, so call it from one that never does.
pub fn spawn(request: SpawnRequest<'_>) -> Result<Child, SpawnError> {
    let _ = request;
    todo!()
}

impl Child {
    /// Waits for the end. Callable again; the answer stays the same.
    pub fn wait(&self) -> Result<Exit, Errno> {
        todo!()
    }
    /// The end, if it has come.
    pub fn try_wait(&self) -> Result<Option<Exit>, Errno> {
        todo!()
    }
    /// Sends SIGKILL to the whole of it. No error if it has ended.
    pub fn kill(&self) -> Result<(), Errno> {
        todo!()
    }
}
