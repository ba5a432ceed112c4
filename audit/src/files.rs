//! The file layer: the few steps that the log is made of, so that tests can let each of them fail.

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, mkdirat, openat2, renameat, unlinkat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Files below one folder, by names with slashes.
pub trait Files {
    /// The bytes of a file; `None` where there is none, an error where there are more than `bytes_max`.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, name: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>>;

    /// Writes a new file and brings its bytes to the disk; not yet its name. Folders on the way are made.
    ///
    /// # Errors
    /// The system's.
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Renames a file within its folder, over another.
    ///
    /// # Errors
    /// The system's.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Brings the names in a file's folder to the disk.
    ///
    /// # Errors
    /// The system's.
    fn sync_folder(&mut self, name: &str) -> io::Result<()>;

    /// Appends to a file that is there.
    ///
    /// # Errors
    /// The system's; a part may have been written then.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Brings what was appended to the disk (fdatasync).
    ///
    /// # Errors
    /// The system's; what was appended may be lost then, whatever a second try says.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// The system's.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Takes a lock for as long as `self` lives; false where somebody else has it.
    ///
    /// # Errors
    /// The system's.
    fn lock(&mut self, name: &str) -> io::Result<bool>;
}

/// What follows from the steps.
pub(crate) trait FilesExt: Files {
    /// Replaces a file as one step: a temporary one, fsync, rename, fsync of the folder.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        self.write(&temporary, bytes)?;
        self.rename(&temporary, name)?;
        self.sync_folder(name)
    }
}

impl<F: Files> FilesExt for F {}

/// Files below a descriptor: no name and no link leads out of it.
#[derive(Debug)]
pub struct Folder {
    directory: OwnedFd,
    /// Files that were appended to: an error of writing back is told to descriptors that were open at the time.
    open: BTreeMap<String, File>,
    locked: Option<OwnedFd>,
}

/// Only the owner reads what is in the audit folder.
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

impl Folder {
    /// Below this descriptor of a folder.
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory, open: BTreeMap::new(), locked: None }
    }

    /// Below the folder at this path.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::new(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// A new, empty file of this name. Folders on the way are made.
    ///
    /// # Errors
    /// The system's.
    pub fn create(&mut self, name: &str) -> io::Result<File> {
        self.make_folders(name)?;
        self.below(name, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC).map(File::from)
    }

    fn below(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let mode = if flags.contains(OFlags::CREATE) { FILE_MODE } else { Mode::empty() };
        Ok(openat2(&self.directory, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, BENEATH)?)
    }

    /// Makes the folders that lead to a file; the names of new ones are on the disk when this returns.
    fn make_folders(&self, name: &str) -> io::Result<()> {
        for (end, _) in name.match_indices('/') {
            match mkdirat(&self.directory, &name[..end], FOLDER_MODE) {
                Ok(()) => rustix::fs::fsync(self.parent(&name[..end])?)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn parent(&self, name: &str) -> io::Result<OwnedFd> {
        self.below(name.rsplit_once('/').map_or(".", |(folder, _)| folder), OFlags::DIRECTORY)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Files for Folder {
    fn read(&self, name: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        // A pipe that somebody put there is not waited for.
        let file = match self.below(name, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => File::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("longer than {bytes_max} bytes"),
            ));
        }
        Ok(Some(bytes))
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(name)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.open.remove(to);
        Ok(renameat(&self.directory, from, &self.directory, to)?)
    }

    fn sync_folder(&mut self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.parent(name)?)?)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if !self.open.contains_key(name) {
            let file = self.below(name, OFlags::WRONLY | OFlags::APPEND)?;
            self.open.insert(name.to_owned(), file.into());
        }
        self.open.get_mut(name).expect("it was just opened").write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.append(name, &[])?;
        self.open[name].sync_data()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match unlinkat(&self.directory, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&mut self, name: &str) -> io::Result<bool> {
        let file = self.below(name, OFlags::RDWR | OFlags::CREATE)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.locked = Some(file),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }
}
