//! Files whose bytes can't change any more: memfds with every content seal, and read-only maps of them.

use rustix::fs::{
    FileType, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// What a sealed file must have.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// A memfd sealed against writing, growing, shrinking and further seals.
#[derive(Debug)]
pub struct SealedFile {
    descriptor: OwnedFd,
    len: usize,
}

/// Why a descriptor is not taken as a sealed file.
#[derive(Debug, thiserror::Error)]
pub enum SealedFileError {
    /// No memfd, or one that lacks seals.
    #[error("the descriptor is not a memfd with all seals")]
    NotSealed,
    /// The host refused.
    #[error("{call} failed")]
    Os {
        /// Which system call.
        call: &'static str,
        /// Its error.
        #[source]
        source: Errno,
    },
}

impl SealedFile {
    /// Takes a descriptor if it is sealed. Works inside the filter.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<SealedFile, SealedFileError> {
        match fcntl_get_seals(&descriptor) {
            Ok(seals) if seals.contains(SEALS) => {}
            Ok(_) | Err(Errno::INVAL) => return Err(SealedFileError::NotSealed),
            Err(source) => return Err(SealedFileError::Os { call: "fcntl", source }),
        }
        // rustix makes the raw fstat call, which the filter allows; the C library's goes by a path.
        let facts = fstat(&descriptor).map_err(|source| SealedFileError::Os { call: "fstat", source })?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
            return Err(SealedFileError::NotSealed);
        }
        let len = usize::try_from(facts.st_size).map_err(|_| SealedFileError::NotSealed)?;
        Ok(SealedFile { descriptor, len })
    }

    /// A fresh sealed memfd with these bytes. Not inside the filter.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<SealedFile, SealedFileError> {
        let mut filling = Filling::create(name)?;
        filling.write(bytes)?;
        filling.seal()
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maps the whole of it, read-only and shared: no copy. The map outlives the descriptor.
    pub fn map(&self) -> Result<Map, SealedFileError> {
        if self.len == 0 {
            return Ok(Map { start: NonNull::dangling(), len: 0 });
        }
        // SAFETY: a new map at an address of the kernel's choice; no Rust object lies there.
        let start = unsafe {
            mmap(std::ptr::null_mut(), self.len, ProtFlags::READ, MapFlags::SHARED, &self.descriptor, 0)
        };
        let start = start.map_err(|source| SealedFileError::Os { call: "mmap", source })?;
        Ok(Map { start: NonNull::new(start.cast()).expect("mmap never returns null"), len: self.len })
    }
}

/// A memfd that is filled piece by piece and sealed when it is whole. Inside the filter where a policy lets files be made.
#[derive(Debug)]
pub struct Filling {
    descriptor: OwnedFd,
    len: usize,
}

impl Filling {
    /// An empty one.
    ///
    /// # Errors
    /// The host refuses.
    pub fn create(name: &str) -> Result<Filling, SealedFileError> {
        let descriptor =
            create(name).map_err(|source| SealedFileError::Os { call: "memfd_create", source })?;
        Ok(Filling { descriptor, len: 0 })
    }

    /// Adds these bytes at its end.
    ///
    /// # Errors
    /// The host refuses.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SealedFileError> {
        self.len += bytes.len();
        while !bytes.is_empty() {
            // write and not mmap: a writable map that still lives makes the seal fail.
            let written = rustix::io::write(&self.descriptor, bytes)
                .map_err(|source| SealedFileError::Os { call: "write", source })?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// What was written, with every seal.
    ///
    /// # Errors
    /// The host refuses.
    pub fn seal(self) -> Result<SealedFile, SealedFileError> {
        fcntl_add_seals(&self.descriptor, SEALS)
            .map_err(|source| SealedFileError::Os { call: "fcntl", source })?;
        Ok(SealedFile { descriptor: self.descriptor, len: self.len })
    }
}

/// A memfd to be filled: as long as it may become and sealed against growing, so that nobody who holds it can take more
/// memory than that. What is not written takes none.
#[derive(Debug)]
pub struct Place {
    descriptor: OwnedFd,
    bytes_max: u64,
}

impl Place {
    /// An empty one for at most `bytes_max` bytes. Not inside the filter.
    ///
    /// # Errors
    /// The host refuses.
    pub fn create(name: &str, bytes_max: u64) -> Result<Place, SealedFileError> {
        let os = |call| move |source| SealedFileError::Os { call, source };
        let descriptor = create(name).map_err(os("memfd_create"))?;
        ftruncate(&descriptor, bytes_max).map_err(os("ftruncate"))?;
        fcntl_add_seals(&descriptor, SealFlags::GROW).map_err(os("fcntl"))?;
        Ok(Place { descriptor, bytes_max })
    }

    /// The most bytes that it takes.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Its first `len` bytes as a sealed file; the rest is given back. Whoever filled it must have ended, or have no
    /// writable map of it.
    ///
    /// # Errors
    /// `len` is more than it takes, or the host refuses.
    pub fn seal(self, len: u64) -> Result<SealedFile, SealedFileError> {
        let os = |call| move |source| SealedFileError::Os { call, source };
        // Its own length may have been changed by whoever held it; growing fails.
        ftruncate(&self.descriptor, len).map_err(os("ftruncate"))?;
        fcntl_add_seals(&self.descriptor, SEALS).map_err(os("fcntl"))?;
        SealedFile::from_descriptor(self.descriptor)
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Kernels from 6.3 on also seal against exec; below, the filter's ban on executable maps stands alone.
fn create(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        made => made,
    }
}

impl AsFd for SealedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<SealedFile> for OwnedFd {
    fn from(file: SealedFile) -> OwnedFd {
        file.descriptor
    }
}

/// The bytes of a sealed file.
#[derive(Debug)]
pub struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes never change: the map is read-only and the file is sealed against writing and shrinking.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped while `self` lives, and the seals keep every other process from changing or
        // truncating them. An empty map is a dangling, aligned pointer, which an empty slice may have.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `SealedFile::map` mapped exactly this, and no slice of it outlives `self`.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
            debug_assert!(unmapped.is_ok(), "a map of ours can be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open};
    use std::os::fd::AsRawFd;

    fn sealed() -> SealedFile {
        SealedFile::from_bytes("weights", b"some bytes").unwrap()
    }

    fn map_shared(file: &SealedFile, rights: ProtFlags) -> Result<(), Errno> {
        // SAFETY: a new map at an address of the kernel's choice; a failing test leaks it.
        unsafe { mmap(std::ptr::null_mut(), 10, rights, MapFlags::SHARED, file, 0) }.map(|_| ())
    }

    #[test]
    fn a_sealed_file_maps_to_its_bytes_even_after_it_is_closed() {
        let file = SealedFile::from_descriptor(sealed().into()).unwrap();
        assert_eq!(file.len(), 10);
        let map = file.map().unwrap();
        drop(file);
        assert_eq!(&*map, b"some bytes");
    }

    #[test]
    fn an_empty_sealed_file_maps_to_no_bytes() {
        let file = SealedFile::from_bytes("empty", b"").unwrap();
        assert!(file.is_empty());
        assert_eq!(&*file.map().unwrap(), b"");
    }

    #[test]
    fn nothing_changes_a_sealed_file() {
        let file = sealed();
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let again = open(&path, OFlags::RDWR, Mode::empty());
        let attempts = [
            ("write", rustix::io::pwrite(&file, b"x", 0).map(|_| ())),
            ("truncate", ftruncate(&file, 1)),
            ("grow", ftruncate(&file, 100)),
            ("punch a hole", fallocate(&file, hole, 0, 4)),
            (
                "write through a new open",
                again.and_then(|file| rustix::io::pwrite(&file, b"x", 0)).map(|_| ()),
            ),
            ("writable shared map", map_shared(&file, ProtFlags::READ | ProtFlags::WRITE)),
            ("another seal", fcntl_add_seals(&file, SealFlags::FUTURE_WRITE)),
        ];
        for (attempt, outcome) in attempts {
            assert!(outcome.is_err(), "{attempt} succeeded");
        }
        assert_eq!(&*file.map().unwrap(), b"some bytes");
    }

    #[test]
    fn a_place_takes_no_more_than_it_was_made_for() {
        let place = Place::create("place", 8).unwrap();
        let writer = place.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(rustix::io::write(&writer, b"12345678"), Ok(8));
        assert_eq!(rustix::io::write(&writer, b"9"), Err(Errno::PERM));
        assert_eq!(ftruncate(&writer, 9), Err(Errno::PERM));
        let file = place.seal(4).unwrap();
        assert_eq!(&*file.map().unwrap(), b"1234");
        assert!(rustix::io::pwrite(&writer, b"x", 0).is_err());
        assert!(Place::create("place", 8).unwrap().seal(9).is_err());
    }

    #[test]
    fn what_is_not_sealed_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let open_memfd = memfd_create("open", flags).unwrap();
        let half_sealed = memfd_create("half", flags).unwrap();
        fcntl_add_seals(&half_sealed, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK).unwrap();
        let regular = OwnedFd::from(tempfile::tempfile().unwrap());
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        for descriptor in [open_memfd, half_sealed, regular, pipe] {
            let error = SealedFile::from_descriptor(descriptor).unwrap_err();
            assert!(matches!(error, SealedFileError::NotSealed), "{error}");
        }
    }
}
