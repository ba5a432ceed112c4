//! Steps of a file that is read.

use crate::refusal;
use crate::root::Opened;
use ringfence_protocol::{ChunkBytes, FileRefusal, FileReply};
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};
use std::os::fd::{AsFd, BorrowedFd};

/// Under which digests of what is served are made.
pub type DigestKey = [u8; 32];

/// A file that is read over its socket.
#[derive(Debug)]
pub struct Reading {
    opened: Opened,
    bytes_max: u64,
    bytes: u64,
    hash: Box<blake3::Hasher>,
}

impl Reading {
    /// No byte is read yet.
    pub fn new(opened: Opened, bytes_max: u64, key: &DigestKey) -> Self {
        Self { opened, bytes_max, bytes: 0, hash: Box::new(blake3::Hasher::new_keyed(key)) }
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
        self.hash.update(&data);
        Ok(FileReply::Bytes { offset, data: ChunkBytes(data) })
    }

    /// Bytes read, and their digest in the order in which they were.
    pub fn end(&self) -> (u64, [u8; 32]) {
        (self.bytes, self.hash.finalize().into())
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
