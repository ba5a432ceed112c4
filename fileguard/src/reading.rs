//! Steps of a file that is read.

use crate::refusal;
use crate::root::Opened;
use ringfence_protocol::{ChunkBytes, FileRefusal, FileReply};
use rustix::buffer::spare_capacity;
use rustix::fs::fstat;
use rustix::io::{Errno, pread};
use sha2::{Digest, Sha256};
use std::os::fd::{AsFd, BorrowedFd};

/// A file that is read over its socket.
#[derive(Debug)]
pub struct Reading {
    opened: Opened,
    bytes_max: u64,
    bytes: u64,
    digest: Option<InOrder>,
}

/// SHA-256 of steps, as long as each begins where the one before ended.
#[derive(Debug, Default)]
pub struct InOrder {
    hash: Sha256,
    next: u64,
}

impl InOrder {
    /// Adds a step; `None` where it is out of order.
    pub fn with(mut self, offset: u64, data: &[u8]) -> Option<Self> {
        // A window asks on behind the end.
        if data.is_empty() {
            return Some(self);
        }
        if offset != self.next {
            return None;
        }
        self.hash.update(data);
        self.next += data.len() as u64;
        Some(self)
    }

    /// The digest, if it is of so many bytes.
    pub fn of_whole(self, size: u64) -> Option<[u8; 32]> {
        (self.next == size).then(|| self.hash.finalize().into())
    }
}

impl Reading {
    /// No byte is read yet.
    pub fn new(opened: Opened, bytes_max: u64, digest: bool) -> Self {
        Self { opened, bytes_max, bytes: 0, digest: digest.then(InOrder::default) }
    }

    /// One step. Without an error it is a reply that may be sent.
    ///
    /// # Errors
    /// More bytes than may be read in all, or the host refuses.
    pub fn read(&mut self, offset: u64, length: usize) -> Result<FileReply, FileRefusal> {
        let data = read_at(self.opened.file.as_fd(), offset, length).map_err(refusal::of)?;
        let bytes = self.bytes + data.len() as u64;
        if bytes > self.bytes_max {
            return Err(FileRefusal::TooLarge);
        }
        self.bytes = bytes;
        self.digest = self.digest.take().and_then(|digest| digest.with(offset, &data));
        Ok(FileReply::Bytes { offset, data: ChunkBytes(data) })
    }

    /// Bytes read, and their digest if they were the whole file as it is now.
    pub fn end(self) -> (u64, Option<[u8; 32]>) {
        let size = fstat(&self.opened.file).ok().and_then(|facts| u64::try_from(facts.st_size).ok());
        (self.bytes, self.digest.zip(size).and_then(|(digest, size)| digest.of_whole(size)))
    }
}

/// As many bytes from there on as there are, up to `length`.
///
/// # Errors
/// The host refuses.
pub fn read_at(file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut data = Vec::with_capacity(length);
    while data.len() < length {
        let Some(at) = offset.checked_add(data.len() as u64).filter(|at| i64::try_from(*at).is_ok()) else {
            break;
        };
        match pread(file, spare_capacity(&mut data), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(data)
}
