//! The server's home folder: every file of ours is opened below one descriptor of it.

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, ResolveFlags, fstat, fsync, mkdirat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The home folder, held open so that its path is needed no more after the start.
#[derive(Debug)]
pub(crate) struct Home {
    directory: OwnedFd,
    path: PathBuf,
}

/// Why something in the home could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeError {
    /// The folder itself.
    #[error("{path}: {source}; make it with `ringfence init --home {path}`")]
    Missing {
        /// As given.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A file or folder in it.
    #[error("{path}: {source}")]
    File {
        /// Full path, for the operator.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is longer than it may be.
    #[error("{path} is longer than {max} bytes")]
    TooLong {
        /// Full path.
        path: PathBuf,
        /// The bound.
        max: usize,
    },
    /// Another server has this home.
    #[error("another server runs on {path}; stop it first (its pid is in run/server.pid)")]
    Locked {
        /// The home.
        path: PathBuf,
    },
}

/// Held for as long as the server runs.
#[derive(Debug)]
pub(crate) struct HomeLock(#[expect(dead_code, reason = "the lock lives as long as its descriptor")] OwnedFd);

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

impl Home {
    /// Opens the folder.
    pub(crate) fn open(path: &Path) -> Result<Self, HomeError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|source| HomeError::Missing { path: path.to_owned(), source })?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Its path as the operator gave it, for messages and for clients.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock that keeps a second server away.
    pub(crate) fn lock(&self) -> Result<HomeLock, HomeError> {
        let name = "run/server.pid";
        let file = self.open_below(name, OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o644))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(HomeError::Locked { path: self.path.clone() }),
            Err(error) => return Err(self.failed(name, error)),
        }
        let mut file = File::from(file);
        file.set_len(0).map_err(|source| self.io(name, source))?;
        writeln!(file, "{}", std::process::id()).map_err(|source| self.io(name, source))?;
        Ok(HomeLock(file.into()))
    }

    /// Opens the folder `name`, made with `mode` if it is missing.
    pub(crate) fn folder(&self, name: &str, mode: u32) -> Result<OwnedFd, HomeError> {
        let made = match mkdirat(&self.directory, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(self.failed(name, error)),
        };
        let folder = self.open_below(name, DIRECTORY, Mode::empty())?;
        if made {
            // The umask, which keeps sockets closed between bind and chmod, has had its say in mkdir.
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))
                .map_err(|error| self.failed(name, error))?;
        }
        Ok(folder)
    }

    /// Device and inode of the home folder.
    pub(crate) fn identity(&self) -> Result<(u64, u64), HomeError> {
        let facts = fstat(&self.directory).map_err(|error| self.failed(".", error))?;
        Ok((facts.st_dev, facts.st_ino))
    }

    /// Opens a folder that must be there.
    pub(crate) fn existing_folder(&self, name: &str) -> Result<OwnedFd, HomeError> {
        self.open_below(name, DIRECTORY, Mode::empty())
    }

    /// Names in a folder, sorted.
    pub(crate) fn names(&self, folder: &str) -> Result<Vec<String>, HomeError> {
        let descriptor = self.existing_folder(folder)?;
        let entries = rustix::fs::Dir::read_from(&descriptor).map_err(|error| self.failed(folder, error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.failed(folder, error))?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The bytes of a file of at most `max` bytes; `None` if there is none.
    pub(crate) fn read(&self, name: &str, max: usize) -> Result<Option<Vec<u8>>, HomeError> {
        let file =
            match openat2(&self.directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
                Ok(file) => File::from(file),
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(self.failed(name, error)),
            };
        let mut bytes = Vec::new();
        let limit = u64::try_from(max).expect("a bound fits in 64 bits") + 1;
        file.take(limit).read_to_end(&mut bytes).map_err(|source| self.io(name, source))?;
        if bytes.len() > max {
            return Err(HomeError::TooLong { path: self.path.join(name), max });
        }
        Ok(Some(bytes))
    }

    /// Replaces a file as one step: a temporary file, fsync, rename, fsync of the folder.
    pub(crate) fn replace(&self, folder: &str, name: &str, bytes: &[u8], mode: u32) -> Result<(), HomeError> {
        let directory = self.existing_folder(folder)?;
        let temporary = format!(".{name}.new");
        let full = format!("{folder}/{name}");
        let write = || -> Result<(), std::io::Error> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let mut file =
                File::from(openat2(&directory, &temporary, flags, Mode::from_raw_mode(mode), BENEATH)?);
            file.write_all(bytes)?;
            file.sync_all()?;
            renameat(&directory, &temporary, &directory, name)?;
            fsync(&directory)?;
            Ok(())
        };
        write().map_err(|source| self.io(&full, source))
    }

    /// Whether a file of the home can be written in place.
    pub(crate) fn overwritable(&self, name: &str) -> Result<(), HomeError> {
        self.open_below(name, OFlags::WRONLY, Mode::empty()).map(drop)
    }

    /// Writes a file that is there in place, durably, but not as one step: a folder that is not ours allows no other way.
    pub(crate) fn overwrite(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        let mut file = File::from(self.open_below(name, OFlags::WRONLY, Mode::empty())?);
        let length = u64::try_from(bytes.len()).expect("a length fits in 64 bits");
        let written =
            file.write_all(bytes).and_then(|()| file.set_len(length)).and_then(|()| file.sync_all());
        written.map_err(|source| self.io(name, source))
    }

    /// Removes a file, so that it is not there again after a power cut.
    pub(crate) fn remove_durably(&self, folder: &str, name: &str) -> Result<(), HomeError> {
        let directory = self.existing_folder(folder)?;
        self.remove(directory.as_fd(), name)?;
        fsync(&directory).map_err(|error| self.failed(folder, error))
    }

    /// Removes what a former server left under this name.
    pub(crate) fn remove(&self, folder: BorrowedFd<'_>, name: &str) -> Result<(), HomeError> {
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    /// Removes an empty folder, so that it is not there again after a power cut.
    pub(crate) fn remove_folder(&self, folder: &str, name: &str) -> Result<(), HomeError> {
        let directory = self.existing_folder(folder)?;
        match unlinkat(&directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => fsync(&directory).map_err(|error| self.failed(folder, error)),
            Err(error) => Err(self.failed(&format!("{folder}/{name}"), error)),
        }
    }

    fn open_below(&self, name: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, HomeError> {
        openat2(&self.directory, name, flags | OFlags::CLOEXEC, mode, BENEATH)
            .map_err(|error| self.failed(name, error))
    }

    fn failed(&self, name: &str, error: Errno) -> HomeError {
        self.io(name, error.into())
    }

    fn io(&self, name: &str, source: std::io::Error) -> HomeError {
        HomeError::File { path: self.path.join(name), source }
    }
}

impl AsFd for Home {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// A path for calls that take only paths, such as `bind`: through the descriptor, so that neither the length of the
/// home's path nor a folder above it that we may not search matters.
pub(crate) fn path_below(folder: BorrowedFd<'_>, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}
