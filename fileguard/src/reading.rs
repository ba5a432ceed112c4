//! Steps of a file that is read.

use crate::buffers::Buffers;
use crate::refusal;
use crate::root::Opened;
use ringfence_protocol::{FileRefusal, FileReply};
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

    /// One step. Without an error it is a reply that may be sent, with its bytes.
    ///
    /// # Errors
    /// More bytes than may be read in all, or the host refuses.
    pub fn read(
        &mut self,
        offset: u64,
        length: usize,
        buffers: &mut Buffers,
    ) -> Result<(FileReply, Vec<u8>), FileRefusal> {
        let mut data = std::mem::take(&mut buffers.step);
        read_at(self.opened.file.as_fd(), offset, length, &mut data).map_err(refusal::of)?;
        let bytes = self.bytes + data.len() as u64;
        if bytes > self.bytes_max {
            return Err(FileRefusal::TooLarge);
        }
        self.bytes = bytes;
        let length = u32::try_from(data.len()).expect("a step's length");
        self.hash.update(&data);
        Ok((FileReply::Bytes { offset, length }, data))
    }

    /// Bytes read, and their digest in the order in which they were.
    pub fn end(&self) -> (u64, [u8; 32]) {
        (self.bytes, self.hash.finalize().into())
    }
}

/// As many bytes from there on as there are, up to `length`, in the place of what `data` held.
///
/// # Errors
/// The host refuses.
pub fn read_at(file: BorrowedFd<'_>, offset: u64, length: usize, data: &mut Vec<u8>) -> Result<(), Errno> {
    data.resize(length, 0);
    let mut done = 0;
    while done < length {
        let Some(at) = offset.checked_add(done as u64).filter(|at| i64::try_from(*at).is_ok()) else {
            break;
        };
        match pread(file, &mut data[done..], at) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    data.truncate(done);
    Ok(())
}
