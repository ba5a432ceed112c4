//! The two processes that stay behind: the outer one, which the server holds, and the shim, pid 1 of the namespace.
//!
//! A pid 1 can't die of its own signals, so the program is pid 2. Both waiters close every descriptor, filter
//! themselves down to waiting, and die with their parent; the shim's end is the end of the namespace.

use super::descriptors::close_from;
use super::privileges::{die_with, last_errno, parent};
use super::{EnterError, Layer, os};
use crate::status_page::Pages;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Forks twice; returns in pid 2 only. The waiters never return, unless something fails before they wait.
pub(super) fn leave_behind(pages: &Pages, filter: &seccompiler::BpfProgram) -> Result<(), EnterError> {
    let outer = pidfd_open(getpid(), PidfdFlags::empty()).map_err(os(Layer::Namespaces, "pidfd_open"))?;
    if let Some(shim) = fork()? {
        wait_for_shim(pages, filter, shim)?;
    }
    die_with(parent())?;
    check_alive(&outer)?;
    if let Some(program) = fork()? {
        wait_for_program(pages, filter, program)?;
    }
    drop(outer);
    die_with(Pid::from_raw(1))?;
    match getpid().as_raw_pid() {
        2 => Ok(()),
        other => Err(EnterError::Pid(other)),
    }
}

/// The child, in the parent.
fn fork() -> Result<Option<Pid>, EnterError> {
    // SAFETY: the process has one thread, so the child may go on as if nothing had happened.
    match unsafe { libc::fork() } {
        -1 => Err(EnterError::Os { layer: Layer::Namespaces, call: "fork", source: last_errno() }),
        child => Ok(Pid::from_raw(child)),
    }
}

/// The outer process is in another pid namespace, where its pid means nothing here: ask its pidfd.
fn check_alive(outer: &OwnedFd) -> Result<(), EnterError> {
    let mut polled = [PollFd::new(outer, PollFlags::IN)];
    let ended = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    if ended.map_err(os(Layer::Privileges, "poll"))? == 0 { Ok(()) } else { Err(EnterError::ParentEnded) }
}

/// The shim's pidfd, for the handler of SIGTERM.
static SHIM: AtomicI32 = AtomicI32::new(-1);

/// The outer process: SIGTERM ends the shim and with it everything, and only when all is gone does this end.
fn wait_for_shim(pages: &Pages, filter: &seccompiler::BpfProgram, shim: Pid) -> Result<(), EnterError> {
    let pidfd = pidfd_open(shim, PidfdFlags::empty()).map_err(os(Layer::Namespaces, "pidfd_open"))?;
    let number = pidfd.into_raw_fd();
    SHIM.store(number, Ordering::Relaxed);
    let handler: extern "C" fn(i32) = end_shim;
    // SAFETY: the handler makes one system call and touches one atomic.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
    close_all_but(number)?;
    seccompiler::apply_filter(filter)?;
    let status = wait_for(shim);
    pages.write_wait_status(status);
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    end(code)
}

extern "C" fn end_shim(_: i32) {
    let (shim, none) = (SHIM.load(Ordering::Relaxed), std::ptr::null::<u8>());
    // SAFETY: numbers and null pointers only. It can only fail when the shim has ended, which is what it is for.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, shim, libc::SIGKILL, none, 0) };
}

/// The shim: writes the program's raw wait status and ends with its code, which ends the namespace.
fn wait_for_program(pages: &Pages, filter: &seccompiler::BpfProgram, program: Pid) -> Result<(), EnterError> {
    close_from(0)?;
    seccompiler::apply_filter(filter)?;
    let status = wait_for(program);
    pages.write_wait_status(status);
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    end(code)
}

fn close_all_but(number: i32) -> Result<(), EnterError> {
    close_from(number + 1)?;
    for other in 0..number {
        // SAFETY: this process uses no other descriptor again, and closing a number that is not open only fails.
        unsafe { libc::close(other) };
    }
    Ok(())
}

fn wait_for(child: Pid) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: `status` is ours.
        let reaped = unsafe { libc::waitpid(child.as_raw_nonzero().get(), &mut status, 0) };
        if reaped == child.as_raw_nonzero().get() {
            return status;
        }
        assert_eq!(
            last_errno(),
            rustix::io::Errno::INTR,
            "the child is ours, so waiting can only be interrupted"
        );
    }
}

fn end(code: i32) -> ! {
    // SAFETY: ends the process at once; the program's exit handlers are not this process's to run.
    unsafe { libc::_exit(code) }
}
