//! The one file or folder of the host that a program is started for, and how it gets into the program's root.

use super::{EnterError, Layer, os};
use crate::enter::privileges::last_errno;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, mkdirat, open, openat2,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the program finds it.
pub const GRANTED: &str = "/granted";
/// The same, while the new root is still mounted over the stepping stone.
const PLACE: &CStr = c"/proc/granted";

/// Places that are the host's own and never given.
const OWN: [&str; 3] = ["/proc", "/sys", "/dev"];
/// File systems that are the kernel's own wherever they are mounted: proc, sysfs, devpts, cgroup, cgroup2, debugfs,
/// tracefs, securityfs, bpf, selinuxfs, configfs, mqueue, nsfs (`linux/magic.h`).
const OWN_FILE_SYSTEMS: [u32; 13] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0xf97c_ff8c,
    0x6265_6570,
    0x1980_0202,
    0x6e73_6673,
];

/// The longest path in bytes: the kernel's PATH_MAX without the zero byte.
const PATH_BYTES_MAX: usize = 4095;
/// Tries to open a part of the path while others rename something on the host.
const TRIES_MAX: usize = 64;

/// What the program may do with its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootAccess {
    /// Read files, list folders.
    Read,
    /// The same, and make, replace and remove files. No folders, links or devices.
    Write,
}

/// What the kernel calls a file or folder by, while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// What was opened, as its descriptor says, before any layer but the first was on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoot {
    /// The path that was opened.
    pub path: String,
    /// For what.
    pub access: RootAccess,
    /// A folder; else a regular file with one name.
    pub is_folder: bool,
    /// Which one.
    pub id: FileId,
    /// The owner's uid, outside.
    pub owner: u32,
    /// Bytes of a file; of a folder what the file system says.
    pub size: u64,
    /// Last change of contents, in seconds since 1970.
    pub modified: i64,
    /// The folders that it is in, from `/` on.
    pub above: Vec<FileId>,
}

/// Why a root is not given to a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootFault {
    /// It does not begin with `/`.
    #[error("it is not absolute")]
    Relative,
    /// `..`, `.`, a doubled or last `/`, a zero byte, or the whole host.
    #[error("it must name one file or folder below `/`, without `.`, `..`, empty parts or zero bytes")]
    NotPlain,
    /// More than PATH_MAX.
    #[error("it has more than {PATH_BYTES_MAX} bytes")]
    TooLong,
    /// A part of it is a symbolic link.
    #[error("`{}` is a symbolic link: name the place that it leads to", .0.display())]
    Symlink(PathBuf),
    /// `/proc`, `/sys`, `/dev`, or a file system of the kernel's own.
    #[error("it is the host's own")]
    HostsOwn,
    /// A FIFO, a socket, a device.
    #[error("it is neither a folder nor a regular file")]
    NotAFile,
    /// A file where the sound server's socket should be.
    #[error("it is no socket")]
    NotASocket,
    /// A file with other names elsewhere.
    #[error("the file has {0} names")]
    HardLink(u64),
    /// Another file or folder has taken its name since it was opened.
    #[error("it was replaced meanwhile")]
    Changed,
    /// The host refused.
    #[error("`{}`: {call} failed ({error})", path.display())]
    Os {
        /// Which part of it.
        path: PathBuf,
        /// Which system call.
        call: &'static str,
        /// Its error.
        error: Errno,
    },
}

impl HostRoot {
    /// Opens every part of the path from the part above it, and looks what is there.
    pub(super) fn look(path: &str, access: RootAccess) -> Result<HostRoot, RootFault> {
        let found = walk(path)?;
        let facts = &found.facts;
        let kind = FileType::from_raw_mode(facts.st_mode);
        if is_own(&found.opened).map_err(failed(path, "fstatfs"))? {
            return Err(RootFault::HostsOwn);
        }
        match kind {
            FileType::Directory => {}
            FileType::RegularFile if facts.st_nlink == 1 => {}
            FileType::RegularFile => return Err(RootFault::HardLink(facts.st_nlink)),
            _ => return Err(RootFault::NotAFile),
        }
        Ok(HostRoot {
            path: path.to_owned(),
            access,
            is_folder: kind == FileType::Directory,
            id: id(facts),
            owner: facts.st_uid,
            size: u64::try_from(facts.st_size).unwrap_or(0),
            modified: facts.st_mtime,
            above: found.above,
        })
    }

    /// Whether the folder that it is in is mounted in its place: new contents of a file are renamed there.
    pub fn shows_folder_above(&self) -> bool {
        !self.is_folder && self.access == RootAccess::Write
    }

    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().expect("splitting gives at least one part")
    }

    /// Whether what the program finds at [`GRANTED`] is a folder.
    pub(super) fn mounts_folder(&self) -> bool {
        self.is_folder || self.shows_folder_above()
    }

    /// A mount of exactly this object that is at no place yet. Descriptors from before the mount namespace can't be
    /// mounted from in it, so the path is walked again, and has to lead to the same object.
    pub(super) fn tree(&self) -> Result<OwnedFd, EnterError> {
        let found = walk(&self.path).map_err(EnterError::Root)?;
        if id(&found.facts) != self.id {
            return Err(EnterError::Root(RootFault::Changed));
        }
        let mounted = if self.shows_folder_above() { found.parent } else { found.opened };
        let tree = clone_of(&mounted).map_err(os(Layer::Namespaces, "open_tree"))?;
        restrict_mount(&tree)?;
        if self.access == RootAccess::Write {
            allow_writing(&tree)?;
        }
        Ok(tree)
    }

    /// Puts that mount into the new root.
    pub(super) fn show(&self, tree: &OwnedFd) -> Result<(), EnterError> {
        if self.mounts_folder() {
            mkdirat(CWD, PLACE, Mode::RWXU).map_err(os(Layer::Namespaces, "mkdir"))?;
        } else {
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            open(PLACE, create, Mode::RUSR).map(drop).map_err(os(Layer::Namespaces, "open"))?;
        }
        let to = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, c"", CWD, PLACE, to).map_err(os(Layer::Namespaces, "move_mount"))
    }
}

/// What the path of a root leads to.
pub(super) struct Found {
    pub(super) opened: OwnedFd,
    parent: OwnedFd,
    pub(super) facts: Stat,
    /// From `/` to the parent.
    above: Vec<FileId>,
}

pub(super) fn walk(path: &str) -> Result<Found, RootFault> {
    let parts = parts(path)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut opened = open("/", flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed("/", "open"))?;
    let mut facts = fstat(&opened).map_err(failed("/", "fstat"))?;
    let mut parent = None;
    let mut above = Vec::new();
    let mut so_far = PathBuf::from("/");
    for part in parts {
        above.push(id(&facts));
        so_far.push(part);
        let next = open_part(opened.as_fd(), part, flags).map_err(|error| match error {
            Errno::LOOP => RootFault::Symlink(so_far.clone()),
            error => failed(&so_far, "openat2")(error),
        })?;
        facts = fstat(&next).map_err(failed(&so_far, "fstat"))?;
        if FileType::from_raw_mode(facts.st_mode) == FileType::Symlink {
            return Err(RootFault::Symlink(so_far));
        }
        parent = Some(std::mem::replace(&mut opened, next));
    }
    Ok(Found { opened, parent: parent.ok_or(RootFault::NotPlain)?, facts, above })
}

/// The parts of a path that names one place and no other way.
fn parts(path: &str) -> Result<Vec<&str>, RootFault> {
    if path.len() > PATH_BYTES_MAX {
        return Err(RootFault::TooLong);
    }
    let below = path.strip_prefix('/').ok_or(RootFault::Relative)?;
    let parts: Vec<&str> = below.split('/').collect();
    if path.contains('\0') || parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return Err(RootFault::NotPlain);
    }
    let own = |own: &&str| Path::new(path).starts_with(own);
    if OWN.iter().any(own) { Err(RootFault::HostsOwn) } else { Ok(parts) }
}

/// One part below an opened folder. The kernel gives up with EAGAIN where something on the host is renamed meanwhile.
fn open_part(folder: BorrowedFd<'_>, part: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES_MAX {
        match openat2(folder, part, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

fn failed(path: impl AsRef<Path>, call: &'static str) -> impl Fn(Errno) -> RootFault {
    move |error| RootFault::Os { path: path.as_ref().to_owned(), call, error }
}

pub(super) fn id(facts: &Stat) -> FileId {
    FileId { device: facts.st_dev, inode: facts.st_ino }
}

pub(super) fn is_own(opened: &OwnedFd) -> Result<bool, Errno> {
    let kind = fstatfs(opened)?.f_type;
    // Magic numbers are 32 bits, which some are stored as negative.
    Ok(OWN_FILE_SYSTEMS.iter().any(|own| i64::from(*own) == kind & 0xffff_ffff))
}

/// Of this object alone where the kernel allows it. A mount that hides something below it comes along, or what it hides
/// would be seen; the program crosses no mount (`RESOLVE_NO_XDEV`).
pub(super) fn clone_of(opened: &OwnedFd) -> Result<OwnedFd, Errno> {
    let alone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::from_bits_retain(AtFlags::EMPTY_PATH.bits());
    match open_tree(opened, c"", alone) {
        Err(Errno::INVAL) => open_tree(opened, c"", alone | OpenTreeFlags::AT_RECURSIVE),
        cloned => cloned,
    }
}

/// For the whole tree: no programs, no devices, no set-uid, no writing.
pub(super) fn restrict_mount(tree: &OwnedFd) -> Result<(), EnterError> {
    let none =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    set_attributes(tree.as_fd(), libc::AT_RECURSIVE, none, 0).map_err(os(Layer::Namespaces, "mount_setattr"))
}

/// For the root itself, if that is what it is for.
fn allow_writing(tree: &OwnedFd) -> Result<(), EnterError> {
    match set_attributes(tree.as_fd(), 0, 0, libc::MOUNT_ATTR_RDONLY) {
        // The host's own mount is read-only: writing is refused, as it would be there.
        Err(Errno::PERM) => Ok(()),
        cleared => cleared.map_err(os(Layer::Namespaces, "mount_setattr")),
    }
}

fn set_attributes(tree: BorrowedFd<'_>, depth: i32, set: u64, clear: u64) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: an open descriptor, an empty path, and a structure of ours with its true size, which is only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | depth,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(path: &str) -> Option<RootFault> {
        HostRoot::look(path, RootAccess::Read).err()
    }

    #[test]
    fn a_path_that_could_mean_something_else_is_refused() {
        assert_eq!(fault("usr"), Some(RootFault::Relative));
        assert_eq!(fault(""), Some(RootFault::Relative));
        for path in ["/", "//", "/usr/", "/usr//lib", "/usr/../etc", "/usr/./lib", "/..", "/usr\0/lib", "/."]
        {
            assert_eq!(fault(path), Some(RootFault::NotPlain), "{path:?}");
        }
        assert_eq!(fault(&"/a".repeat(2048)), Some(RootFault::TooLong));
        for path in ["/proc", "/proc/self", "/sys/kernel", "/dev/null", "/dev"] {
            assert_eq!(fault(path), Some(RootFault::HostsOwn), "{path}");
        }
        let missing = fault("/usr/no-such-folder/below");
        assert!(matches!(missing, Some(RootFault::Os { error: Errno::NOENT, .. })), "{missing:?}");
    }

    #[test]
    fn links_pipes_and_second_names_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let at = |name: &str| base.join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(base.join("folder")).unwrap();
        std::fs::write(base.join("folder/file"), "four").unwrap();
        std::os::unix::fs::symlink(base.join("folder"), base.join("link")).unwrap();
        std::fs::write(base.join("twice"), "").unwrap();
        std::fs::hard_link(base.join("twice"), base.join("again")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
        let link = base.join("link");
        assert_eq!(fault(&at("link")), Some(RootFault::Symlink(link.clone())));
        assert_eq!(fault(&at("link/file")), Some(RootFault::Symlink(link)));
        assert_eq!(fault(&at("twice")), Some(RootFault::HardLink(2)));
        assert_eq!(fault(&at("socket")), Some(RootFault::NotAFile));
        let file = HostRoot::look(&at("folder/file"), RootAccess::Write).unwrap();
        assert!(!file.is_folder && file.size == 4 && file.name() == "file" && file.shows_folder_above());
        let parent = HostRoot::look(&at("folder"), RootAccess::Read).unwrap();
        assert!(parent.is_folder && !parent.shows_folder_above());
        assert_eq!(file.above.last(), Some(&parent.id));
    }
}
