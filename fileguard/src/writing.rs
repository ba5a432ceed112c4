//! New contents of a file: invisible until they take the old file's place at once.
//!
//! Where the file system has files without names (`O_TMPFILE`) and the kernel lets one be named later (from 6.10 on), the
//! new contents have no name before the commit. Elsewhere they are under a random name that begins with a dot, which is
//! removed unless the process is killed.

use crate::reading::DigestKey;
use crate::refusal;
use crate::root::{ITSELF, Root, Target, openat2_again};
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use ringfence_protocol::{FileRefusal, WRITE_BYTES_MAX};
use rustix::fs::{Mode, OFlags, RenameFlags, fstat, fsync, linkat, renameat_with};
use rustix::io::{Errno, pwrite};
use std::os::fd::{AsFd, OwnedFd};

/// Names that are tried; a random one is taken once in a universe.
const NAMES_MAX: usize = 4;
/// Rights of a file that is new: its owner's.
const NEW_MODE: u32 = 0o600;

/// A file that is written over its socket.
#[derive(Debug)]
pub struct Writing {
    path: String,
    target: Target,
    contents: Contents,
    bytes_max: u64,
    bytes: u64,
    hash: Box<blake3::Hasher>,
}

/// Where new contents are until the commit.
#[derive(Debug)]
enum Contents {
    /// In a file without a name.
    Nameless(OwnedFd),
    /// In one with a random name.
    Named(Named),
}

/// A random name in the target's folder; dropped, it is removed.
#[derive(Debug)]
struct Named {
    file: OwnedFd,
    folder: Dir,
    name: String,
    keep: bool,
}

impl Drop for Named {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing more can be done where this fails: the name says whose it was.
            let _ = self.folder.remove_file(&self.name);
        }
    }
}

impl Writing {
    /// Makes room for new contents in the target's folder. Nothing is visible under the target's name.
    ///
    /// # Errors
    /// Whatever stands in the way of a file in that folder.
    pub fn new(root: &Root, path: &str, bytes_max: u64, key: &DigestKey) -> Result<Self, FileRefusal> {
        let target = root.open_target(path)?;
        let contents = Contents::make(&target)?;
        Ok(Self {
            path: path.to_owned(),
            target,
            contents,
            bytes_max: bytes_max.min(WRITE_BYTES_MAX),
            bytes: 0,
            hash: Box::new(blake3::Hasher::new_keyed(key)),
        })
    }

    /// Bytes and time of the file that is there now, if one is.
    pub fn old(&self) -> (u64, i64) {
        self.target.old.as_ref().map_or((0, 0), |old| (old.facts.size, old.facts.modified.0))
    }

    /// One step.
    ///
    /// # Errors
    /// More bytes in all, or further from the start, than may be; or the host refuses.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FileRefusal> {
        let length = data.len() as u64;
        let end = offset.checked_add(length).ok_or(FileRefusal::TooLarge)?;
        if end > self.bytes_max || self.bytes + length > self.bytes_max {
            return Err(FileRefusal::TooLarge);
        }
        write_at(self.contents.file(), offset, data).map_err(refusal::of)?;
        self.bytes += length;
        self.hash.update(data);
        Ok(())
    }

    /// Puts the new contents into the target's place, durably; gives their length.
    ///
    /// # Errors
    /// The target or its folder is another than it was, or the host refuses: then the old file is as it was, unless what
    /// failed is the last step, which makes the change durable.
    pub fn commit(&mut self, root: &Root) -> Result<u64, FileRefusal> {
        let file = self.contents.file();
        fsync(file).map_err(refusal::of)?;
        let size = u64::try_from(fstat(file).map_err(refusal::of)?.st_size).unwrap_or(0);
        root.check_unchanged(&self.path, &self.target)?;
        self.contents.replace(&self.target).map_err(|error| match error {
            Errno::EXIST => FileRefusal::Changed,
            error => refusal::of(error),
        })?;
        fsync(&self.target.folder).map_err(refusal::of)?;
        Ok(size)
    }

    /// Bytes written, and their digest in the order in which they were.
    pub fn end(&self) -> (u64, [u8; 32]) {
        (self.bytes, self.hash.finalize().into())
    }
}

impl Contents {
    fn make(target: &Target) -> Result<Self, FileRefusal> {
        let mode = target.old.as_ref().map_or(NEW_MODE, |old| old.facts.mode);
        match Self::nameless(target, Mode::from_raw_mode(mode)) {
            Ok(Some(file)) => Ok(Self::Nameless(file)),
            Ok(None) => Self::named(target, mode),
            Err(error) => Err(refusal::of(error)),
        }
    }

    /// `None` where there are no such files, or none that could be named later.
    fn nameless(target: &Target, mode: Mode) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY;
        let file = match openat2_again(target.folder.as_fd(), ".", flags, mode) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return Ok(None),
            file => file?,
        };
        // A name that is taken is the answer of a kernel that would give one.
        match linkat(&file, c"", &target.folder, c".", ITSELF) {
            Err(Errno::EXIST) => Ok(Some(file)),
            Ok(()) | Err(_) => Ok(None),
        }
    }

    fn named(target: &Target, mode: u32) -> Result<Self, FileRefusal> {
        let os = |error: std::io::Error| refusal::of(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let again = openat2_again(target.folder.as_fd(), ".", OFlags::DIRECTORY, Mode::empty());
        let folder = Dir::from_std_file(again.map_err(refusal::of)?.into());
        let name = random_name().map_err(refusal::of)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        // Where `openat2` says EPERM, cap-std goes on by calls that the filter ends the program for; a folder that lets
        // nobody make files has said so to the try without a name.
        let file = folder.open_with(&name, &options).map_err(os)?.into_std().into();
        Ok(Self::Named(Named { file, folder, name, keep: false }))
    }

    fn file(&self) -> &OwnedFd {
        match self {
            Self::Nameless(file) | Self::Named(Named { file, .. }) => file,
        }
    }

    /// Takes the place of what has the target's name, which must still be what it was, or nothing.
    fn replace(&mut self, target: &Target) -> Result<(), Errno> {
        let folder = &target.folder;
        let flags = if target.old.is_some() { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match self {
            // Fails where something has the name by now.
            Self::Nameless(file) if target.old.is_none() => {
                linkat(&*file, c"", folder, target.name.as_str(), ITSELF)
            }
            Self::Nameless(file) => {
                let name = give_name(file, folder)?;
                renameat_with(folder, name.as_str(), folder, target.name.as_str(), flags).inspect_err(|_| {
                    let _ = rustix::fs::unlinkat(folder, name.as_str(), rustix::fs::AtFlags::empty());
                })
            }
            Self::Named(named) => {
                renameat_with(folder, named.name.as_str(), folder, target.name.as_str(), flags)?;
                named.keep = true;
                Ok(())
            }
        }
    }
}

/// For the moment before it replaces an old file: no call does both at once.
fn give_name(file: &OwnedFd, folder: &OwnedFd) -> Result<String, Errno> {
    for _ in 0..NAMES_MAX {
        let name = random_name()?;
        match linkat(file, c"", folder, name.as_str(), ITSELF) {
            Err(Errno::EXIST) => {}
            linked => return linked.map(|()| name),
        }
    }
    Err(Errno::EXIST)
}

fn random_name() -> Result<String, Errno> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        Errno::from_raw_os_error(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()))
    })?;
    Ok(format!(".ringfence-{:016x}", u64::from_ne_bytes(bytes)))
}

fn write_at(file: &OwnedFd, offset: u64, data: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        match pwrite(file, &data[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_sandbox::{FileId, HostRoot, RootAccess};
    use std::path::Path;

    fn root(folder: &Path) -> Root {
        let host = HostRoot {
            path: "/a/root".to_owned(),
            access: RootAccess::Write,
            is_folder: true,
            id: FileId { device: 0, inode: 0 },
            owner: 0,
            size: 0,
            modified: 0,
            above: vec![],
        };
        Root::open(&host, folder.to_str().unwrap(), rustix::process::getuid().as_raw()).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// As where files can't be made without a name.
    fn with_a_name(root: &Root, path: &str) -> Writing {
        let mut writing = Writing::new(root, path, 100, &[0; 32]).unwrap();
        writing.contents = Contents::named(&writing.target, NEW_MODE).unwrap();
        writing
    }

    #[test]
    fn a_random_name_is_hidden_and_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        let mut writing = with_a_name(&root, "new");
        writing.write(0, b"lost").unwrap();
        assert!(matches!(&names(folder.path())[..], [name] if name.starts_with(".ringfence-")));
        drop(writing);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn contents_under_a_random_name_take_their_place_as_others_do() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        for contents in [b"first", b"other"] {
            let mut writing = with_a_name(&root, "new");
            writing.write(0, contents).unwrap();
            assert_eq!(writing.commit(&root), Ok(5));
            assert_eq!(writing.end(), (5, blake3::keyed_hash(&[0; 32], contents).into()));
            assert_eq!(std::fs::read(folder.path().join("new")).unwrap(), contents);
            assert_eq!(names(folder.path()), ["new"]);
        }
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        for make in [with_a_name, |root: &Root, path: &str| Writing::new(root, path, 100, &[0; 32]).unwrap()]
        {
            let mut writing = make(&root, "new");
            std::fs::write(folder.path().join("new"), "theirs").unwrap();
            // Past the look that a commit begins with, as where it happens just then.
            assert_eq!(writing.contents.replace(&writing.target), Err(Errno::EXIST));
            drop(writing);
            assert_eq!(std::fs::read(folder.path().join("new")).unwrap(), b"theirs");
            std::fs::remove_file(folder.path().join("new")).unwrap();
        }
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
