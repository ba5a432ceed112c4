//! Small files that are read whole within a bound, and replaced as one step.

use rustix::fs::{FileType, Mode, OFlags, fstat};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces a file as one step: a temporary one, fsync, rename, fsync of the folder.
///
/// # Errors
/// The system's; the old file is still there then.
pub fn replace(folder: &Path, name: &str, text: &str, mode: u32) -> io::Result<()> {
    let temporary = prepare(folder, name, text, mode)?;
    fs::rename(&temporary, folder.join(name))?;
    sync(folder)
}

/// As [`replace`], where there must be no such file yet.
///
/// # Errors
/// The system's.
pub fn create(folder: &Path, name: &str, text: &str, mode: u32) -> io::Result<()> {
    let temporary = prepare(folder, name, text, mode)?;
    let linked = fs::hard_link(&temporary, folder.join(name));
    fs::remove_file(&temporary)?;
    linked?;
    sync(folder)
}

/// A temporary file with this text, on the disk.
fn prepare(folder: &Path, name: &str, text: &str, mode: u32) -> io::Result<PathBuf> {
    let temporary = folder.join(format!(".{name}.new"));
    // A leftover of a try that was cut off. A new file is never a link to another.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(temporary)
}

/// Renames within a folder, durably.
///
/// # Errors
/// The system's.
pub fn rename(folder: &Path, from: &str, to: &str) -> io::Result<()> {
    fs::rename(folder.join(from), folder.join(to))?;
    sync(folder)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// The system's.
pub fn sync(folder: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).open(folder)?.sync_all()
}

/// A plain file of at most `bytes_max` bytes; longer ones are cut one byte above, which their reader refuses. What
/// another user put in its place, such as a link or a pipe, is not followed and not waited for.
///
/// # Errors
/// The system's; `InvalidInput` for what is no plain file.
pub fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no plain file"));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).expect("a bound fits in 64 bits") + 1;
    File::from(file).take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_over_the_leftover_of_a_cut_off_try() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "old").unwrap();
        fs::write(folder.path().join(".a.new"), "half").unwrap();
        replace(folder.path(), "a", "new", 0o600).unwrap();
        assert_eq!(read(&folder.path().join("a"), 3).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_plain_file_is_neither_followed_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("a"), "four").unwrap();
        assert_eq!(read(&path("a"), 2).unwrap(), b"fou");
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        for wrong in ["link", "pipe", "."] {
            assert!(read(&path(wrong), 2).is_err(), "{wrong}");
        }
    }
}
