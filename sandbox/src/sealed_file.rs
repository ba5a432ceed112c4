//! Files whose bytes can't change any more: memfds with every content seal, and read-only maps of them.

use rustix::io::Errno;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A memfd sealed against writing, growing, shrinking and further seals.
#[derive(Debug)]
pub struct SealedFile {
    descriptor: OwnedFd,
    len: u64,
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
        let _ = descriptor;
        todo!()
    }
    /// A fresh sealed memfd with these bytes. Not inside the filter.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<SealedFile, SealedFileError> {
        let _ = (name, bytes);
        todo!()
    }
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Maps the whole of it, read-only and shared: no copy. The map outlives the descriptor.
    pub fn map(&self) -> Result<Map, SealedFileError> {
        todo!()
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
pub struct Map {}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        todo!()
    }
}
