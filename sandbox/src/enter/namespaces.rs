//! Namespaces of its own, and a root folder with nothing in it.

use super::audio::HostAudio;
use super::privileges::last_errno;
use super::{EnterError, Given, HostRoot, Layer, devices};
use crate::policy::{PathAccess, PathRight, Paths};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, open};
use rustix::io::{Errno, write};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, getgid, getuid, pivot_root};
use std::ffi::CStr;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What the program's uid and gid are inside: nobody's.
pub(crate) const INNER_ID: u32 = 65534;
/// The same where it is given files of the host. An owner that has no number inside reads as nobody, so the program's
/// own files must not.
pub(crate) const OWNER_ID: u32 = 1;

const ALL: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// A folder that every host has to mount the new root over. It is the last thing that is needed of the old one.
const STEPPING_STONE: &CStr = c"/proc";

/// Enters them; the pid namespace begins with the next fork. Returns the paths that are there.
pub(super) fn enter(rights: &[PathRight], given: &Given) -> Result<Vec<Visible>, EnterError> {
    let os = |(call, source)| EnterError::Os { layer: Layer::Namespaces, call, source };
    if !has_one_id_and_not_roots() {
        return Err(EnterError::Ids);
    }
    let (root, audio) = (given.root(), given.audio());
    if rights.is_empty() && root.is_none() && audio.is_none_or(HostAudio::is_empty) {
        return separate().map(|()| Vec::new()).map_err(os);
    }
    let mut paths = rights.iter().map(Visible::of).collect::<Result<Vec<_>, _>>()?.concat();
    paths.extend(audio.into_iter().flat_map(|audio| audio.visible.clone()));
    separate_ids(if root.is_some() { OWNER_ID } else { INNER_ID }).map_err(os)?;
    root_with(&paths, root, audio)?;
    Ok(paths)
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
    separate_ids(INNER_ID)?;
    empty_root()
}

fn separate_ids(inner: u32) -> Result<(), (&'static str, Errno)> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    // SAFETY: no memory is passed.
    if unsafe { libc::unshare(ALL) } != 0 {
        return Err(("unshare", last_errno()));
    }
    write_file(c"/proc/self/setgroups", "deny").map_err(|source| ("write of setgroups", source))?;
    write_map(c"/proc/self/uid_map", inner, uid).map_err(|source| ("write of uid_map", source))?;
    write_map(c"/proc/self/gid_map", inner, gid).map_err(|source| ("write of gid_map", source))
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

/// The same with a few paths of the old root, each read-only and at its place, and with what the program was given.
fn root_with(
    paths: &[Visible],
    root: Option<&HostRoot>,
    audio: Option<&HostAudio>,
) -> Result<(), EnterError> {
    let os = |call| move |source| EnterError::Os { layer: Layer::Namespaces, call, source };
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).map_err(os("mount (private)"))?;
    // Before the new root covers a folder of the old one that some of them are in.
    let trees = paths.iter().map(Visible::tree).collect::<Result<Vec<_>, _>>()?;
    let granted = root.map(|root| root.tree().map(|tree| (root, tree))).transpose()?;
    let audio = audio.map(|audio| audio.trees().map(|trees| (audio, trees))).transpose()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"ringfence", STEPPING_STONE, c"tmpfs", flags, Some(c"size=256k,nr_inodes=128,mode=755"))
        .map_err(os("mount (tmpfs)"))?;
    for (path, tree) in paths.iter().zip(&trees) {
        path.show(tree)?;
    }
    if let Some((root, tree)) = &granted {
        root.show(tree)?;
    }
    if let Some((audio, trees)) = &audio {
        audio.show(trees)?;
    }
    mount_remount(STEPPING_STONE, flags | MountFlags::RDONLY, c"").map_err(os("mount (read-only)"))?;
    chdir(STEPPING_STONE).map_err(os("chdir"))?;
    pivot_root(c".", c".").map_err(os("pivot_root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(os("umount"))?;
    chdir(c"/").map_err(os("chdir"))
}

/// A path of the host that the program sees.
#[derive(Clone, Debug)]
pub(super) struct Visible {
    pub(super) path: PathBuf,
    pub(super) access: PathAccess,
    pub(super) folder: bool,
}

impl Visible {
    /// Those of a right that are there.
    fn of(right: &PathRight) -> Result<Vec<Self>, EnterError> {
        let there = |path: &PathBuf| Some((path.clone(), std::fs::metadata(path).ok()?));
        let mut found: Vec<_> = right.paths.all().iter().filter_map(there).collect();
        if found.is_empty() {
            return Err(EnterError::NoPath(right.paths.all().to_vec()));
        }
        if matches!(right.paths, Paths::First(_)) {
            found.truncate(1);
        }
        found.into_iter().map(|(path, metadata)| Self::checked(path, &metadata, right.access)).collect()
    }

    fn checked(path: PathBuf, metadata: &Metadata, access: PathAccess) -> Result<Self, EnterError> {
        if let PathAccess::Device(number) = access {
            devices::check(&path, metadata, number)?;
        }
        Ok(Self { path, access, folder: metadata.is_dir() })
    }

    /// A mount of it that is at no place yet.
    fn tree(&self) -> Result<OwnedFd, EnterError> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, &self.path, flags).map_err(self.failed("open_tree"))
    }

    /// Puts it below the stepping stone.
    fn show(&self, tree: &OwnedFd) -> Result<(), EnterError> {
        let io = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let below = self.path.strip_prefix("/").expect("a policy's paths are absolute");
        let place = Path::new("/proc").join(below);
        let parent = if self.folder { Some(place.as_path()) } else { place.parent() };
        std::fs::create_dir_all(parent.expect("it is below the root"))
            .map_err(io)
            .map_err(self.failed("mkdir"))?;
        if !self.folder {
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            drop(open(&place, create, Mode::RUSR).map_err(self.failed("open"))?);
        }
        let to = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, c"", CWD, &place, to).map_err(self.failed("move_mount"))?;
        let is_device = matches!(self.access, PathAccess::Device(_));
        let device = if is_device { MountFlags::empty() } else { MountFlags::NODEV };
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | device | locked(&place);
        mount_remount(&place, flags, c"").map_err(self.failed("mount (read-only)"))?;
        if is_device { devices::try_open(&self.path, &place) } else { Ok(()) }
    }

    fn failed(&self, call: &'static str) -> impl Fn(Errno) -> EnterError {
        move |source| EnterError::Path { path: self.path.clone(), call, source }
    }
}

/// Flags of the host's mount that a user namespace can't take off.
fn locked(place: &Path) -> MountFlags {
    let Ok(now) = rustix::fs::statvfs(place) else { return MountFlags::empty() };
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    pairs.into_iter().filter(|(has, _)| now.f_flag.contains(*has)).map(|(_, flag)| flag).collect()
}

fn write_map(path: &CStr, inner: u32, outer: u32) -> Result<(), Errno> {
    // No allocation: a forked child of a threaded process may come here.
    let mut line = Line { bytes: [0; 32], len: 0 };
    let fits = std::fmt::Write::write_fmt(&mut line, format_args!("{inner} {outer} 1"));
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
