//! Namespaces of its own, and a root folder with nothing in it.

use super::privileges::last_errno;
use super::{EnterError, Layer};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, write};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{chdir, getgid, getuid, pivot_root};
use std::ffi::CStr;

/// What the program's uid and gid are inside: nobody's.
pub(crate) const INNER_ID: u32 = 65534;

const ALL: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// A folder that every host has to mount the new root over. It is the last thing that is needed of the old one.
const STEPPING_STONE: &CStr = c"/proc";

/// Enters them; the pid namespace begins with the next fork.
pub(super) fn enter() -> Result<(), EnterError> {
    if !has_one_id_and_not_roots() {
        return Err(EnterError::Ids);
    }
    separate().map_err(|(call, source)| EnterError::Os { layer: Layer::Namespaces, call, source })
}

/// Whether a child of this process could enter the namespaces; it ends at once.
pub(crate) fn try_in_child() -> Result<(), (&'static str, Errno)> {
    let (reader, writer) = rustix::pipe::pipe().map_err(|source| ("pipe", source))?;
    // SAFETY: the child makes system calls on its own stack only, and ends without running anything else.
    match unsafe { libc::fork() } {
        -1 => Err(("fork", last_errno())),
        0 => {
            let error = separate().err().map_or(0, |(_, error)| error.raw_os_error());
            let sent = write(&writer, &error.to_ne_bytes());
            // SAFETY: ends the child, without the parent's exit handlers.
            unsafe { libc::_exit(i32::from(sent.is_err())) }
        }
        child => {
            drop(writer);
            answer_of(child, &reader)
        }
    }
}

fn answer_of(child: i32, reader: &std::os::fd::OwnedFd) -> Result<(), (&'static str, Errno)> {
    let mut answer = [0; 4];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(reader, &mut answer));
    let pid = rustix::process::Pid::from_raw(child).expect("fork returns positive pids");
    let reaped = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
    });
    reaped.map_err(|source| ("waitpid", source))?;
    match (read, i32::from_ne_bytes(answer)) {
        (Ok(4), 0) => Ok(()),
        (Ok(4), error) => Err(("unshare, mount or pivot_root", Errno::from_raw_os_error(error))),
        (Ok(_), _) => Err(("unshare", Errno::PIPE)),
        (Err(source), _) => Err(("read", source)),
    }
}

fn separate() -> Result<(), (&'static str, Errno)> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    // SAFETY: no memory is passed.
    if unsafe { libc::unshare(ALL) } != 0 {
        return Err(("unshare", last_errno()));
    }
    write_file(c"/proc/self/setgroups", "deny").map_err(|source| ("write of setgroups", source))?;
    write_map(c"/proc/self/uid_map", uid).map_err(|source| ("write of uid_map", source))?;
    write_map(c"/proc/self/gid_map", gid).map_err(|source| ("write of gid_map", source))?;
    empty_root()
}

/// A read-only tmpfs without a file becomes the root, and the old root goes away with all below it.
fn empty_root() -> Result<(), (&'static str, Errno)> {
    let at = |call| move |source| (call, source);
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).map_err(at("mount (private)"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"ringfence", STEPPING_STONE, c"tmpfs", flags, Some(c"size=4k,nr_inodes=1,mode=555"))
        .map_err(at("mount (tmpfs)"))?;
    chdir(STEPPING_STONE).map_err(at("chdir"))?;
    pivot_root(c".", c".").map_err(at("pivot_root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(at("umount"))?;
    chdir(c"/").map_err(at("chdir"))
}

fn write_map(path: &CStr, outer: u32) -> Result<(), Errno> {
    // No allocation: a forked child of a threaded process may come here.
    let mut line = Line { bytes: [0; 32], len: 0 };
    let fits = std::fmt::Write::write_fmt(&mut line, format_args!("{INNER_ID} {outer} 1"));
    debug_assert!(fits.is_ok(), "three numbers fit");
    write_bytes(path, &line.bytes[..line.len])
}

struct Line {
    bytes: [u8; 32],
    len: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self.bytes[self.len..].get_mut(..text.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

fn write_file(path: &CStr, text: &str) -> Result<(), Errno> {
    write_bytes(path, text.as_bytes())
}

fn write_bytes(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    if write(&file, bytes)? == bytes.len() { Ok(()) } else { Err(Errno::IO) }
}

fn has_one_id_and_not_roots() -> bool {
    let (mut uids, mut gids) = ([0; 3], [0; 3]);
    let [real, effective, saved] = &mut uids;
    // SAFETY: three places for numbers.
    let uids_read = unsafe { libc::getresuid(real, effective, saved) } == 0;
    let [real, effective, saved] = &mut gids;
    // SAFETY: three places for numbers.
    let gids_read = unsafe { libc::getresgid(real, effective, saved) } == 0;
    let single = |ids: [u32; 3]| ids[0] != 0 && ids.iter().all(|id| *id == ids[0]);
    uids_read && gids_read && single(uids) && single(gids)
}
