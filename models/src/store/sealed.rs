//! Memory that is filled once and then can't be changed by anybody.

use super::StoreError;
use crate::kind::FileName;
use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

/// The seals that a worker asks for before it maps the bytes.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// A memfd that is being filled; nobody else has its descriptor yet, and it is never mapped.
pub(super) struct Memfd {
    file: File,
    name: FileName,
}

impl Memfd {
    /// An empty one, which can't be executed.
    pub(super) fn create(name: &FileName) -> Result<Self, StoreError> {
        let fd = create(name.as_str()).map_err(|source| StoreError::new(name, source))?;
        Ok(Self { file: fd.into(), name: name.clone() })
    }

    /// Adds bytes.
    pub(super) fn write(&mut self, block: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(block).map_err(|source| StoreError::new(&self.name, source))
    }

    /// Makes what was written final.
    pub(super) fn seal(self) -> Result<OwnedFd, StoreError> {
        let fd = OwnedFd::from(self.file);
        let sealed = fcntl_add_seals(&fd, SEALS).and_then(|()| seek(&fd, rustix::fs::SeekFrom::Start(0)));
        sealed.map_err(|source| StoreError::new(&self.name, source))?;
        Ok(fd)
    }
}

fn create(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(Errno::INVAL) => {
            let fd = memfd_create(name, flags)?;
            fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
            Ok(fd)
        }
        made => made,
    }
}
