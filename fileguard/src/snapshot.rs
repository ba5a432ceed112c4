//! The bytes of a file as they are now, in a memfd that nobody can change. It can't be called back.

use crate::reading::{DigestKey, read_at};
use crate::refusal;
use crate::root::{Opened, Root};
use ringfence_protocol::{FileRefusal, SNAPSHOT_BYTES_MAX};
use ringfence_sandbox::{Filling, SealedFile, SealedFileError};
use std::os::fd::AsFd;

/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// A sealed copy and its digest.
#[derive(Debug)]
pub struct Snapshot {
    /// The copy.
    pub file: SealedFile,
    /// Of its bytes.
    pub digest: [u8; 32],
}

/// Copies a file whole.
///
/// # Errors
/// Any [`FileRefusal`] that a name can have; too large; [`FileRefusal::Changed`] where it was written meanwhile.
pub fn take(root: &Root, path: &str, bytes_max: u64, key: &DigestKey) -> Result<Snapshot, FileRefusal> {
    let Opened { file, facts } = root.open_file(path)?;
    if facts.size > bytes_max.min(SNAPSHOT_BYTES_MAX) {
        return Err(FileRefusal::TooLarge);
    }
    let mut filling = Filling::create("snapshot").map_err(os)?;
    let mut hash = blake3::Hasher::new_keyed(key);
    let mut piece = Vec::new();
    let mut done = 0;
    while done < facts.size {
        let length = usize::try_from(facts.size - done).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        read_at(file.as_fd(), done, length, &mut piece).map_err(refusal::of)?;
        if piece.is_empty() {
            return Err(FileRefusal::Changed);
        }
        hash.update(&piece);
        filling.write(&piece).map_err(os)?;
        done += piece.len() as u64;
    }
    if root.facts(file.as_fd())? != facts {
        return Err(FileRefusal::Changed);
    }
    Ok(Snapshot { file: filling.seal().map_err(os)?, digest: hash.finalize().into() })
}

fn os(error: SealedFileError) -> FileRefusal {
    match error {
        SealedFileError::Os { source, .. } => refusal::of(source),
        SealedFileError::NotSealed => FileRefusal::Os { errno: rustix::io::Errno::IO.raw_os_error() },
    }
}
