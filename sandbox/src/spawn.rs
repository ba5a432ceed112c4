//! How the server starts a sandboxed program: a vfork-like clone and exec of an opened executable.
//!
//! A fork would copy the page tables of a server with gigabytes of heap (22 ms a gigabyte); a clone that shares the
//! memory until exec does not. The child runs on a stack of its own and makes system calls only.

mod clone;

use crate::StatusPage;
use crate::enter::{LINK, STATUS_PAGE};
use crate::status_page::Pages;
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};
use std::ffi::{CString, NulError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

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
    /// The user to become before exec, with no other groups; only root may. No program is sandboxed as root, so root
    /// must name one here, or become another user itself first.
    pub user: Option<User>,
    /// RLIMIT_DATA in bytes, set before exec, for who can't set it from outside. The program can't raise it.
    pub data_bytes_max: Option<u64>,
}

/// A user and the group to go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Outer uid.
    pub uid: u32,
    /// Outer gid.
    pub gid: u32,
}

/// The closed list of variables that a program gets. Three are always set: no backtrace, which would open files, and no
/// files of compiled shaders, which a driver would look for and keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Environment {
    /// Compute threads, as `RAYON_NUM_THREADS` and `CANDLE_NUM_THREADS`. `None` sets neither.
    pub threads: Option<u16>,
}

/// A started program. Dropping it kills and reaps the program.
#[derive(Debug)]
pub struct Child {
    /// Readable when the program and its namespace are gone.
    pub pidfd: OwnedFd,
    /// Of the outer process; the program itself is pid 2 of its own namespace and states its pid by its first message.
    pub pid: i32,
    /// What it prints; blocking and bounded. At its end every process of it is gone.
    pub stdout: OwnedFd,
    /// The same for errors.
    pub stderr: OwnedFd,
    pages: Arc<Pages>,
    exit: OnceLock<Exit>,
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
    /// An argument has a zero byte in it.
    #[error("an argument holds a zero byte")]
    Argument(#[from] NulError),
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

/// Bytes that wait in standard output or error; a program that writes more than is read waits.
const PIPE_BYTES: usize = 64 * 1024;

/// Starts a program with descriptors 0 null, 1 and 2 bounded pipes, 3 the link, 4 the status page, and nothing else.
/// It dies when the calling *thread* ends, so call it from one that never does.
pub fn spawn(request: SpawnRequest<'_>) -> Result<Child, SpawnError> {
    let null =
        open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(os("open of /dev/null"))?;
    let (stdout, program_stdout) = pipe()?;
    let (stderr, program_stderr) = pipe()?;
    let cgroup = request.cgroup.map(processes_of).transpose()?;
    if cgroup.is_some() {
        request.status_page.pages().write_in_cgroup();
    }
    let descriptors = [
        lifted(null.as_fd())?,
        lifted(program_stdout.as_fd())?,
        lifted(program_stderr.as_fd())?,
        lifted(request.link.as_fd())?,
        lifted(request.status_page.descriptor())?,
    ];
    let program = lifted(request.program)?;
    let arguments = words(request.arguments)?;
    let environment = variables(request.environment);
    let rights = clone::Rights { user: request.user, data_bytes_max: request.data_bytes_max };
    let plan = clone::Plan::new(&program, &arguments, &environment, &descriptors, cgroup.as_ref(), rights);
    let (pid, pidfd) = clone::run(plan)?;
    let pages = request.status_page.pages().clone();
    Ok(Child { pidfd, pid, stdout, stderr, pages, exit: OnceLock::new() })
}

fn os(call: &'static str) -> impl Fn(Errno) -> SpawnError {
    move |source| SpawnError::Os { call, source }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SpawnError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(os("pipe"))?;
    fcntl_setpipe_size(&writer, PIPE_BYTES).map_err(os("fcntl (pipe size)"))?;
    Ok((reader, writer))
}

fn processes_of(cgroup: BorrowedFd<'_>) -> Result<OwnedFd, SpawnError> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    openat(cgroup, "cgroup.procs", flags, Mode::empty()).map_err(os("open of cgroup.procs"))
}

/// A copy above every number that the child puts something else at.
fn lifted(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, SpawnError> {
    fcntl_dupfd_cloexec(descriptor, STATUS_PAGE + 1).map_err(os("fcntl (duplicate)"))
}

fn words(arguments: &[&str]) -> Result<Vec<CString>, NulError> {
    std::iter::once("ringfence").chain(arguments.iter().copied()).map(CString::new).collect()
}

/// For every program: the last two are Mesa's and NVIDIA's.
const ALWAYS: [&str; 3] = ["RUST_BACKTRACE=0", "MESA_SHADER_CACHE_DISABLE=1", "__GL_SHADER_DISK_CACHE=0"];

fn variables(environment: Environment) -> Vec<CString> {
    let threads = environment.threads.into_iter().flat_map(|threads| {
        [format!("CANDLE_NUM_THREADS={threads}"), format!("RAYON_NUM_THREADS={threads}")]
    });
    ALWAYS
        .map(str::to_owned)
        .into_iter()
        .chain(threads)
        .map(|variable| CString::new(variable).expect("names and numbers hold no zero byte"))
        .collect()
}

impl Child {
    /// Waits for the end. Callable again; the answer stays the same.
    pub fn wait(&self) -> Result<Exit, Errno> {
        let ended = self.reap(WaitIdOptions::EXITED)?;
        Ok(ended.expect("without NOHANG there is an answer"))
    }

    /// The end, if it has come.
    pub fn try_wait(&self) -> Result<Option<Exit>, Errno> {
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Ends it all: the program and its shim by SIGKILL, and when they are gone the outer process, which is what
    /// `pidfd` and `wait` tell. No error if it has ended already.
    pub fn kill(&self) -> Result<(), Errno> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Err(Errno::SRCH) => Ok(()),
            sent => sent,
        }
    }

    fn reap(&self, options: WaitIdOptions) -> Result<Option<Exit>, Errno> {
        if let Some(exit) = self.exit.get() {
            return Ok(Some(*exit));
        }
        let Some(status) = retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))? else {
            return Ok(None);
        };
        Ok(Some(*self.exit.get_or_init(|| self.exit_by(&status))))
    }

    /// The shim's word where there is one: it stands for the program, the outer process only for itself.
    fn exit_by(&self, outer: &WaitIdStatus) -> Exit {
        match self.pages.wait_status() {
            Some(status) if libc::WIFSIGNALED(status) => Exit::Signal(libc::WTERMSIG(status)),
            Some(status) => Exit::Code(libc::WEXITSTATUS(status)),
            None => match (outer.exit_status(), outer.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or(0)),
            },
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.get().is_none() {
            let ended = self.signal(Signal::KILL).and_then(|()| self.wait());
            debug_assert!(ended.is_ok(), "a child of ours can be killed and reaped");
        }
    }
}

// The numbers that the child fills are the ones that the program checks.
const _: () = assert!(LINK == 3 && STATUS_PAGE == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn copies_lie_above_the_numbers_that_the_child_fills() {
        let (reader, _writer) = pipe().unwrap();
        assert!(lifted(reader.as_fd()).unwrap().as_raw_fd() > STATUS_PAGE);
    }

    #[test]
    fn an_argument_with_a_zero_byte_is_refused() {
        assert!(words(&["probe", "open\0file"]).is_err());
    }
}
