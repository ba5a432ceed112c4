//! The root and the way from a name to a descriptor below it. The only place where anything is opened by name.

use crate::path::BelowRoot;
use crate::refusal;
use ringfence_protocol::{FileRefusal, Identity};
use ringfence_sandbox::{FileId, HostRoot, RootAccess};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Tries of one call while others rename something on the host.
const CALL_TRIES_MAX: usize = 64;
/// Tries of one name that is another object when it is opened than when it was looked at.
const NAME_TRIES_MAX: usize = 8;

/// Below the descriptor, over no symbolic link of any kind, on its mount.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The granted root.
#[derive(Debug)]
pub struct Root {
    place: Place,
    /// Whether it was granted for writing.
    writable: bool,
    /// Whose its files must be, as this process counts.
    owner: u32,
    /// The root and what it is in.
    own: Vec<Identity>,
    excluded: Vec<Identity>,
}

#[derive(Debug)]
enum Place {
    /// All below a folder.
    Folder(OwnedFd),
    /// One name in a folder.
    Name { folder: OwnedFd, name: String },
    /// One file, opened for reading, and what it is called.
    File { file: Rc<OwnedFd>, name: String },
}

/// A regular file that is open, with what was seen of it.
#[derive(Clone, Debug)]
pub struct Opened {
    /// For reading, at no offset of its own.
    pub file: Rc<OwnedFd>,
    /// As `fstat` of that descriptor says.
    pub facts: Facts,
}

/// What `fstat` says of a regular file that may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which one.
    pub identity: Identity,
    /// Bytes.
    pub size: u64,
    /// Last change of contents, in seconds since 1970 and nanoseconds.
    pub modified: (i64, u64),
    /// Permission bits, without set-uid and its like.
    pub mode: u32,
}

/// A folder in which one name is written.
#[derive(Debug)]
pub struct Target {
    /// For reading, which is what files are made in and flushed by.
    pub folder: OwnedFd,
    /// Which one it is.
    pub folder_identity: Identity,
    /// The name in it.
    pub name: String,
    /// What has the name now.
    pub old: Option<Seen>,
}

/// A file that was looked at, and not opened to be read. While it is held, no other file can be the same object.
#[derive(Debug)]
pub struct Seen {
    /// What was seen.
    pub facts: Facts,
    _held: OwnedFd,
}

impl Root {
    /// Opens what was mounted for this program. Its files must be this user's. Before the filter is on.
    ///
    /// # Errors
    /// The user that the program runs as may not read it.
    pub fn open(host: &HostRoot, place: &str, owner: u32) -> Result<Self, Errno> {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| openat(CWD, place, flags, Mode::empty());
        let name = || host.name().to_owned();
        let place = match (host.is_folder, host.shows_folder_above()) {
            (true, _) => Place::Folder(open(folder)?),
            (false, true) => Place::Name { folder: open(folder)?, name: name() },
            (false, false) => Place::File { file: Rc::new(open(file)?), name: name() },
        };
        Ok(Self {
            place,
            writable: host.access == RootAccess::Write,
            owner,
            own: host.above.iter().chain([&host.id]).map(identity_of).collect(),
            excluded: Vec::new(),
        })
    }

    /// From now on these folders are refused with all below them.
    pub fn exclude(&mut self, folders: Vec<Identity>) {
        self.excluded = folders;
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// Any [`FileRefusal`] that a name can have.
    pub fn open_file(&self, path: &str) -> Result<Opened, FileRefusal> {
        let path = self.parse(path)?;
        if let Place::File { file, .. } = &self.place {
            let facts = self.facts(file.as_fd())?;
            return Ok(Opened { file: file.clone(), facts });
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..NAME_TRIES_MAX {
            let (folder, name) = path.split_last();
            let seen = self.look_at(self.walk(folder)?.as_fd(), name)?.ok_or(FileRefusal::NotFound)?;
            let file = open_below(self.base()?, path.as_str(), flags)?;
            let facts = self.facts(file.as_fd())?;
            if facts.identity == seen.facts.identity {
                return Ok(Opened { file: Rc::new(file), facts });
            }
        }
        Err(FileRefusal::Changed)
    }

    /// Opens a folder to be listed; the root where the path is empty.
    ///
    /// # Errors
    /// Any [`FileRefusal`] that a name can have.
    pub fn open_folder(&self, path: &str) -> Result<OwnedFd, FileRefusal> {
        self.check_kept_out()?;
        match &self.place {
            Place::Folder(_) if path.is_empty() => self.reopen_folder(None).map(|(folder, _)| folder),
            Place::Folder(_) => {
                self.reopen_folder(Some(BelowRoot::parse(path)?.as_str())).map(|(folder, _)| folder)
            }
            Place::Name { .. } | Place::File { .. } => Err(FileRefusal::NotAFolder),
        }
    }

    /// Opens the folder of a name that is to be written.
    ///
    /// # Errors
    /// Any [`FileRefusal`] that a name can have; [`FileRefusal::ReadOnly`].
    pub fn open_target(&self, path: &str) -> Result<Target, FileRefusal> {
        let path = self.parse(path)?;
        if !self.writable {
            return Err(FileRefusal::ReadOnly);
        }
        let (folder, name) = path.split_last();
        let (folder, folder_identity) = self.reopen_folder(folder)?;
        let old = self.look_at(folder.as_fd(), name)?;
        Ok(Target { folder, folder_identity, name: name.to_owned(), old })
    }

    /// Whether a target's path still leads to the folder that was opened, and the name in it to what was there.
    ///
    /// # Errors
    /// [`FileRefusal::Changed`], or what is in the way now.
    pub fn check_unchanged(&self, path: &str, target: &Target) -> Result<(), FileRefusal> {
        let path = self.parse(path)?;
        let folder = self.walk(path.split_last().0)?;
        let facts = fstat(&folder).map_err(refusal::of)?;
        let unchanged = match (&target.old, self.look_at(folder.as_fd(), &target.name)?) {
            (Some(old), Some(new)) => old.facts.identity == new.facts.identity,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if unchanged && identity(&facts) == target.folder_identity {
            Ok(())
        } else {
            Err(FileRefusal::Changed)
        }
    }

    fn parse(&self, path: &str) -> Result<BelowRoot, FileRefusal> {
        let path = BelowRoot::parse(path)?;
        self.check_kept_out()?;
        match &self.place {
            Place::Name { name, .. } | Place::File { name, .. } if path.as_str() != name => {
                Err(FileRefusal::NotFound)
            }
            Place::Folder(_) | Place::Name { .. } | Place::File { .. } => Ok(path),
        }
    }

    /// The root may lie in a folder that is kept out, or be one.
    fn check_kept_out(&self) -> Result<(), FileRefusal> {
        let kept_out = self.own.iter().any(|own| self.excluded.contains(own));
        if kept_out { Err(FileRefusal::Excluded) } else { Ok(()) }
    }

    fn base(&self) -> Result<BorrowedFd<'_>, FileRefusal> {
        match &self.place {
            Place::Folder(folder) | Place::Name { folder, .. } => Ok(folder.as_fd()),
            Place::File { .. } => Err(FileRefusal::NotAFolder),
        }
    }

    /// Goes down part by part and looks at each folder; `None` is the root.
    fn walk(&self, folder: Option<&str>) -> Result<OwnedFd, FileRefusal> {
        let folders = OFlags::PATH | OFlags::NOFOLLOW;
        let mut now = open_below(self.base()?, ".", folders | OFlags::DIRECTORY)?;
        for part in folder.into_iter().flat_map(|path| path.split('/')) {
            now = open_below(now.as_fd(), part, folders)?;
            let facts = fstat(&now).map_err(refusal::of)?;
            match FileType::from_raw_mode(facts.st_mode) {
                FileType::Directory if self.excluded.contains(&identity(&facts)) => {
                    return Err(FileRefusal::Excluded);
                }
                FileType::Directory => {}
                FileType::Symlink => return Err(FileRefusal::Symlink),
                _ => return Err(FileRefusal::NotAFolder),
            }
        }
        Ok(now)
    }

    /// Walks to a folder, and opens it by its whole path.
    fn reopen_folder(&self, path: Option<&str>) -> Result<(OwnedFd, Identity), FileRefusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        for _ in 0..NAME_TRIES_MAX {
            let held = self.walk(path)?;
            let seen = identity(&fstat(&held).map_err(refusal::of)?);
            let folder = open_below(self.base()?, path.unwrap_or("."), flags)?;
            if identity(&fstat(&folder).map_err(refusal::of)?) == seen {
                return Ok((folder, seen));
            }
        }
        Err(FileRefusal::Changed)
    }

    /// What has this name, if anything; it must be a file that may be given.
    fn look_at(&self, folder: BorrowedFd<'_>, name: &str) -> Result<Option<Seen>, FileRefusal> {
        match open_below(folder, name, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(file) => Ok(Some(Seen { facts: self.facts(file.as_fd())?, _held: file })),
            Err(FileRefusal::NotFound) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Whether a descriptor is of a regular file with one name that belongs to this user.
    ///
    /// # Errors
    /// What it is instead.
    pub fn facts(&self, file: BorrowedFd<'_>) -> Result<Facts, FileRefusal> {
        let facts = fstat(file).map_err(refusal::of)?;
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(FileRefusal::Symlink),
            _ => return Err(FileRefusal::NotAFile),
        }
        match facts.st_nlink {
            // Its only name has been taken away since it was looked up.
            0 => return Err(FileRefusal::NotFound),
            1 => {}
            _ => return Err(FileRefusal::HardLink),
        }
        if facts.st_uid != self.owner {
            return Err(FileRefusal::WrongOwner);
        }
        Ok(Facts {
            identity: identity(&facts),
            size: u64::try_from(facts.st_size).unwrap_or(0),
            modified: (facts.st_mtime, facts.st_mtime_nsec),
            mode: facts.st_mode & 0o777,
        })
    }
}

/// Opens one name, or a whole path, below a folder; close-on-exec.
///
/// # Errors
/// What the kernel found in the way.
pub fn open_below(folder: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, FileRefusal> {
    openat2_again(folder, path, flags, Mode::empty()).map_err(refusal::of)
}

/// The same, where files are made, with the kernel's own words.
pub(crate) fn openat2_again(
    folder: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    for _ in 0..CALL_TRIES_MAX {
        match openat2(folder, path, flags | OFlags::CLOEXEC, mode, RESOLVE) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

fn identity(facts: &Stat) -> Identity {
    Identity { device: facts.st_dev, inode: facts.st_ino }
}

fn identity_of(id: &FileId) -> Identity {
    Identity { device: id.device, inode: id.inode }
}

/// The flags by which a call takes a descriptor itself instead of a path.
pub(crate) const ITSELF: AtFlags = AtFlags::EMPTY_PATH;
