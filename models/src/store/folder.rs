//! Opening what lies below a folder: never through a link, never outside it, never blocking.

use super::{PackageError, StoreError};
use crate::bundle::{FILES_MAX, Resource};
use crate::digest::{Digest, Hasher};
use crate::kind::FileName;
use crate::refusal::{NotRegular, Refusal};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// Bytes that are read, hashed and copied at a time; they stay in a core's cache.
const BLOCK_BYTES: usize = 1024 * 1024;
/// The most entries that one folder of a package is looked at for.
const ENTRIES_MAX: usize = 1024;
/// How deep the folders of a package are.
const FOLDER_DEPTH_MAX: usize = 1;

/// Below the folder, on its file system, through no link of any kind.
const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

/// A name in a folder.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    /// Whether the folder says that it is one; only a hint.
    pub(super) is_folder: bool,
}

/// A plain file with one name and an allowed length, open for reading once.
pub(super) struct SourceFile {
    file: File,
    name: FileName,
}

impl Folder {
    /// Opens a folder that the operator named.
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Opens a folder below this one; it may be a mount of its own.
    pub(super) fn folder(&self, name: &str) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.0, name, flags, Mode::empty(), BELOW).map(Self)
    }

    /// What lies at a path below this folder, opened for its facts only: not for reading, so that nothing waits.
    pub(super) fn look_at(&self, path: &str) -> Result<OwnedFd, Errno> {
        openat2(&self.0, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), BELOW)
    }

    /// At most `entries_max` entries, `.` and `..` left out.
    pub(super) fn entries(&self, entries_max: usize) -> Result<Vec<Entry>, Errno> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if entries.len() == entries_max {
                return Err(Errno::TOOBIG);
            }
            let is_folder = entry.file_type() == FileType::Directory;
            entries.push(Entry { name: OsString::from_vec(name.to_vec()), is_folder });
        }
        Ok(entries)
    }

    /// A file of at most `bytes_max` bytes; longer ones are cut one byte above, so that the reader sees it.
    pub(super) fn read_small(&self, name: &str, bytes_max: usize) -> Result<Vec<u8>, Errno> {
        let file = openat2(&self.0, name, FILE_FLAGS, Mode::empty(), BELOW | ResolveFlags::NO_XDEV)?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(bytes_max).expect("a limit fits in 64 bits") + 1;
        File::from(file).take(limit).read_to_end(&mut bytes).map_err(errno)?;
        Ok(bytes)
    }

    /// Names of what lies in a package, folders left out; at most [`FILES_MAX`].
    pub(super) fn names(&self) -> Result<Vec<String>, PackageError> {
        let mut names = self.names_below("", FOLDER_DEPTH_MAX)?;
        names.sort();
        if names.len() > FILES_MAX { Err(Refusal::FolderTooLarge.into()) } else { Ok(names) }
    }

    fn names_below(&self, prefix: &str, depth_max: usize) -> Result<Vec<String>, PackageError> {
        let mut names = Vec::new();
        for entry in self.bounded_entries(prefix)? {
            let name = format!("{prefix}{}", entry.name.to_string_lossy());
            if !entry.is_folder {
                names.push(name);
                continue;
            }
            let deeper = depth_max.checked_sub(1).ok_or(Refusal::FolderTooLarge)?;
            let folder = self.folder(&entry.name.to_string_lossy()).map_err(|error| opening(&name, error))?;
            names.extend(folder.names_below(&format!("{name}/"), deeper)?);
        }
        Ok(names)
    }

    fn bounded_entries(&self, prefix: &str) -> Result<Vec<Entry>, PackageError> {
        match self.entries(ENTRIES_MAX) {
            Err(Errno::TOOBIG) => Err(Refusal::FolderTooLarge.into()),
            entries => Ok(entries.map_err(|source| StoreError::new(prefix, source))?),
        }
    }

    /// Refuses what lies in the package and is not listed; opens no file of it.
    pub(super) fn refuse_unlisted(&self, listed: &[Resource]) -> Result<(), PackageError> {
        self.refuse_unlisted_below("", listed)
    }

    fn refuse_unlisted_below(&self, prefix: &str, listed: &[Resource]) -> Result<(), PackageError> {
        for entry in self.bounded_entries(prefix)? {
            let name = format!("{prefix}{}", entry.name.to_string_lossy());
            if entry.name.to_str().is_some() && listed.iter().any(|file| file.name.as_str() == name) {
                continue;
            }
            let inner = format!("{name}/");
            // Ends: each step takes one more part of a listed name.
            if !listed.iter().any(|file| file.name.as_str().starts_with(&inner)) {
                return Err(Refusal::FileUnlisted(name).into());
            }
            let folder = self.folder(&entry.name.to_string_lossy()).map_err(|error| opening(&name, error))?;
            folder.refuse_unlisted_below(&inner, listed)?;
        }
        Ok(())
    }

    /// Opens a file of the package.
    pub(super) fn open_file(&self, name: &FileName) -> Result<SourceFile, PackageError> {
        let opened =
            openat2(&self.0, name.as_str(), FILE_FLAGS, Mode::empty(), BELOW | ResolveFlags::NO_XDEV);
        let file = opened.map_err(|error| opening(name.as_str(), error))?;
        let stat = fstat(&file).map_err(|source| StoreError::new(name, source))?;
        let bytes_max = name.kind().bytes_max();
        if let Some(found) = not_regular(FileType::from_raw_mode(stat.st_mode), stat.st_nlink) {
            return Err(Refusal::NotRegular { file: name.to_string(), found }.into());
        }
        if u64::try_from(stat.st_size).is_ok_and(|bytes| bytes > bytes_max) {
            return Err(Refusal::FileTooLarge { file: name.to_string(), bytes_max }.into());
        }
        Ok(SourceFile { file: file.into(), name: name.clone() })
    }
}

/// For files: a FIFO or a device does not make us wait, a terminal does not become ours.
const FILE_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

impl SourceFile {
    /// Reads the file to its end, gives each block to `sink` and returns the length and digest of exactly those blocks.
    pub(super) fn digest(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(u64, Digest), PackageError> {
        let bytes_max = self.name.kind().bytes_max();
        let mut block = vec![0; BLOCK_BYTES];
        let (mut hasher, mut bytes) = (Hasher::default(), 0);
        loop {
            let count = self.read(&mut block)?;
            if count == 0 {
                return Ok((bytes, hasher.finish()));
            }
            bytes += count as u64;
            // It may have grown since it was opened.
            if bytes > bytes_max {
                return Err(Refusal::FileTooLarge { file: self.name.to_string(), bytes_max }.into());
            }
            hasher.update(&block[..count]);
            sink(&block[..count])?;
        }
    }

    fn read(&mut self, block: &mut [u8]) -> Result<usize, StoreError> {
        loop {
            match self.file.read(block) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => return read.map_err(|source| StoreError::new(&self.name, source)),
            }
        }
    }
}

impl From<OwnedFd> for Folder {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the kernel's refusal to open something says about it.
pub(super) fn opening(name: &str, error: Errno) -> PackageError {
    let not_regular = |found| Refusal::NotRegular { file: name.to_owned(), found }.into();
    match error {
        Errno::NOENT => Refusal::FileMissing(name.to_owned()).into(),
        Errno::LOOP => not_regular(NotRegular::Symlink),
        Errno::NOTDIR => not_regular(NotRegular::NotAFolder),
        Errno::XDEV => not_regular(NotRegular::OtherFileSystem),
        Errno::NXIO | Errno::NODEV => not_regular(NotRegular::Special),
        source => StoreError::new(name, source).into(),
    }
}

fn not_regular(found: FileType, names: u64) -> Option<NotRegular> {
    match found {
        FileType::RegularFile if names == 1 => None,
        // None: removed since it was opened; its bytes are still compared.
        FileType::RegularFile if names == 0 => None,
        FileType::RegularFile => Some(NotRegular::HardLink),
        FileType::Directory => Some(NotRegular::Folder),
        FileType::Symlink => Some(NotRegular::Symlink),
        FileType::Fifo => Some(NotRegular::Fifo),
        FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
            Some(NotRegular::Special)
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
