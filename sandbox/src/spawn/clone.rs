//! The clone itself: what the child does between sharing its parent's memory and exec.

use super::{SpawnError, User};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// All that the child needs, made before it runs: it must not allocate.
pub(super) struct Plan {
    program: RawFd,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// What goes to descriptors 0 to 4.
    descriptors: [RawFd; 5],
    cgroup: Option<RawFd>,
    rights: Rights,
    parent: i32,
    /// The call that failed in the child, and its error number.
    failure: Option<(&'static str, i32)>,
}

/// What the child gives up before exec.
pub(super) struct Rights {
    pub(super) user: Option<User>,
    pub(super) data_bytes_max: Option<u64>,
}

impl Plan {
    /// The plan borrows what it is given without saying so: it must be run while all of it lives.
    pub(super) fn new(
        program: &OwnedFd,
        arguments: &[CString],
        environment: &[CString],
        descriptors: &[OwnedFd; 5],
        cgroup: Option<&OwnedFd>,
        rights: Rights,
    ) -> Plan {
        Plan {
            program: program.as_raw_fd(),
            arguments: pointers(arguments),
            environment: pointers(environment),
            descriptors: descriptors.each_ref().map(AsRawFd::as_raw_fd),
            cgroup: cgroup.map(AsRawFd::as_raw_fd),
            rights,
            parent: std::process::id().cast_signed(),
            failure: None,
        }
    }
}

fn pointers(words: &[CString]) -> Vec<*const c_char> {
    words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Starts the child; returns its pid and pidfd once it has exec'd.
pub(super) fn run(mut plan: Plan) -> Result<(i32, OwnedFd), SpawnError> {
    let stack = Stack::new().map_err(super::os("mmap of a stack"))?;
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let blocked = Signals::block();
    // SAFETY: the child gets a stack of its own. It shares this memory, but this thread stands still until it has
    // exec'd or ended, so `plan` and `stack` outlive it; it touches nothing else (see `child`). No handler runs in it:
    // signals are blocked until every handler is the default.
    let pid =
        unsafe { libc::clone(child, stack.top(), flags, (&raw mut plan).cast::<c_void>(), &raw mut pidfd) };
    let error = last_errno();
    drop(blocked);
    if pid < 0 {
        return Err(SpawnError::Os { call: "clone", source: error });
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let Some((call, error)) = plan.failure else { return Ok((pid, pidfd)) };
    // SAFETY: reaps the child that has just ended; a null status is allowed.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    Err(SpawnError::Os { call, source: Errno::from_raw_os_error(error) })
}

/// Runs in the child: system calls on prepared numbers and pointers, until exec replaces it.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `run` passes a plan that lives until this process has exec'd or ended, and waits meanwhile.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    let call = become_program(plan);
    plan.failure = Some((call, last_errno().raw_os_error()));
    // SAFETY: ends this process without the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

/// Returns only when something failed: the name of the call whose error is in errno.
fn become_program(plan: &Plan) -> &'static str {
    // SAFETY: numbers only, and pointers into `plan`, whose lists end with null. Descriptors 0 to 4 of this process
    // are overwritten, the sources lie above; the parent's own table is another.
    unsafe {
        if libc::setsid() < 0 {
            return "setsid";
        }
        if let Some(processes) = plan.cgroup
            && libc::write(processes, c"0".as_ptr().cast(), 1) != 1
        {
            return "write of cgroup.procs";
        }
        if let Some(bytes) = plan.rights.data_bytes_max {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            if libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) != 0 {
                return "setrlimit";
            }
        }
        if let Some(user) = plan.rights.user
            && let Some(call) = become_user(user)
        {
            return call;
        }
        // After the change of user, which takes the signal back.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return "prctl";
        }
        if libc::getppid() != plan.parent {
            libc::_exit(127);
        }
        for (number, source) in (0..).zip(plan.descriptors) {
            if libc::dup2(source, number) != number {
                return "dup2";
            }
        }
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        if libc::syscall(libc::SYS_close_range, 5, libc::c_uint::MAX, flags) != 0 {
            return "close_range";
        }
        reset_signals();
        let (arguments, environment) = (plan.arguments.as_ptr(), plan.environment.as_ptr());
        libc::syscall(
            libc::SYS_execveat,
            plan.program,
            c"".as_ptr(),
            arguments,
            environment,
            libc::AT_EMPTY_PATH,
        );
        "execveat"
    }
}

/// The name of the call that failed, if one did. The raw calls change this thread alone: the C library's would look for
/// the parent's threads, whose memory this still is.
///
/// # Safety
/// Only in the child.
unsafe fn become_user(user: User) -> Option<&'static str> {
    let (uid, gid) = (user.uid, user.gid);
    // SAFETY: numbers only; an empty list of groups needs no pointer.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) != 0 {
            return Some("setgroups");
        }
        if libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0 {
            return Some("setresgid");
        }
        (libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0).then_some("setresuid")
    }
}

/// Every signal to its default, and none blocked. Those that the kernel or the C library keep for themselves refuse.
///
/// # Safety
/// Only in the child: its table of handlers is its own.
unsafe fn reset_signals() {
    // SAFETY: a zeroed sigaction is the default handler with an empty mask; the sets are ours.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=libc::SIGRTMAX() {
            libc::sigaction(signal, &default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Blocks every signal of this thread while it lives.
struct Signals(libc::sigset_t);

impl Signals {
    fn block() -> Signals {
        // SAFETY: both sets are ours; with valid sets and a valid request the call can't fail.
        unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
                (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Signals(before)
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Room for a few frames of a debug build, above a page that no one may touch.
const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;

struct Stack(*mut c_void);

impl Stack {
    fn new() -> Result<Stack, Errno> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new map at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), GUARD_BYTES + STACK_BYTES, rights, MapFlags::PRIVATE)
        }?;
        let stack = Stack(start);
        // SAFETY: the first page of the map above, which nothing uses yet.
        unsafe { mprotect(start, GUARD_BYTES, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// Stacks grow down from here; a page boundary, so aligned.
    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the map.
        unsafe { self.0.byte_add(GUARD_BYTES + STACK_BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the map that `new` made; the child that ran on it has exec'd or ended.
        let unmapped = unsafe { munmap(self.0, GUARD_BYTES + STACK_BYTES) };
        debug_assert!(unmapped.is_ok(), "a map of ours can be unmapped");
    }
}

fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}
