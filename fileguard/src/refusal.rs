//! What a system call's error means for who named a file.

use ringfence_protocol::FileRefusal;
use rustix::io::Errno;

/// The refusal for an error of a call below the root, where `..` and absolute paths were refused before.
pub fn of(error: Errno) -> FileRefusal {
    match error {
        Errno::NOENT => FileRefusal::NotFound,
        Errno::LOOP => FileRefusal::Symlink,
        Errno::XDEV => FileRefusal::OtherMount,
        Errno::NOTDIR => FileRefusal::NotAFolder,
        Errno::ISDIR | Errno::NXIO => FileRefusal::NotAFile,
        Errno::ACCESS | Errno::PERM => FileRefusal::Denied,
        Errno::ROFS => FileRefusal::ReadOnly,
        Errno::NAMETOOLONG => FileRefusal::OutsideRoot,
        Errno::MFILE | Errno::NFILE => FileRefusal::TooMany,
        Errno::FBIG => FileRefusal::TooLarge,
        // Others rename on this host without end.
        Errno::AGAIN => FileRefusal::Changed,
        other => FileRefusal::Os { errno: other.raw_os_error() },
    }
}
