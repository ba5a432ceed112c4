//! The link between the server and `ringfence-fileguard`, and the sockets on which single files are served.
//!
//! ```text
//! fileguard                           server
//!                             <-  the path       its bytes as they are, before anything else and no message
//!   Hello{digest}             ->
//!   Root{..}                  ->                 what was opened, from the descriptor; an approver is shown this
//!   Sealed{layers}            ->                 every layer is on; the server checks it in /proc
//!                             <-  Start          folders of the server's own, refused with all below them
//!                             <-  Open + socket  the first message with a client's words in it
//!   Opened                    ->                 after Opened the file is served on that socket
//!                             <-  Snapshot
//!   Snapshot + memfd          ->
//!                             <-  List
//!   Listed                    ->                 or Refused, as instead of Opened and Snapshot
//!                             <-  Close          the socket is closed; what was not committed is gone
//!   Closed                    ->                 the last of each opened file, also where the other end hung up
//! ```
//!
//! Killing the program is the revocation of every file at once. A message that does not decode, a number that is in use
//! already, an `Open` without exactly one descriptor or a message before `Start` ends it: nothing is repaired.
//!
//! On a file's socket ([`FileLink`]) each request is answered by one reply, in order. Up to [`FILE_STEPS_MAX`] requests may
//! be sent before their replies are read; one more is answered by [`FileRefusal::TooMany`] and ends the file.
//!
//! The server passes one end of a fresh [`crate::connected_pair`] for each file; fileguard makes its end non-blocking.

use crate::{CarriesBytes, Layer, Link};
use serde::{Deserialize, Serialize};

/// The most folders that are refused with all below them.
pub const EXCLUDED_MAX: usize = 16;
/// The most files that are open at a time in one fileguard.
pub const OPEN_FILES_MAX: usize = 256;
/// The longest path below a root in bytes; the kernel's PATH_MAX, which counts the zero byte.
pub const FILE_PATH_BYTES_MAX: usize = 4095;
/// The longest name of a file or folder in bytes, as the kernel has it.
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// The most entries of one page of a listing. With the longest names they fit in a message.
pub const LIST_ENTRIES_MAX: u32 = 200;
/// The most entries of a folder that is listed at all; a larger one is refused as [`FileRefusal::TooMany`].
pub const LIST_FOLDER_ENTRIES_MAX: usize = 65_536;
/// The most bytes of one step on a file's socket: whole pages, so that a file read from its start is copied along its pages.
pub const FILE_STEP_BYTES_MAX: usize = 60 * 1024;
/// The most requests on one file's socket whose replies have not been read.
pub const FILE_STEPS_MAX: usize = 8;
/// The largest file that a snapshot is made of, in bytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
/// The largest file that is written, in bytes.
pub const WRITE_BYTES_MAX: u64 = 1 << 40;

/// What a fileguard's own memory comes to at most, in bytes: windows of writes of all open files, and room. For the limit
/// under which it is started.
pub const FILEGUARD_DATA_BYTES_MAX: u64 = 256 << 20;

/// The server's end of a fileguard's link.
pub type FileguardLink = Link<ToFileguard, FromFileguard>;
/// Fileguard's end.
pub type FileguardSideLink = Link<FromFileguard, ToFileguard>;
/// The end of a file's socket that reads or writes the file.
pub type FileLink = Link<FileRequest, FileReply>;
/// Fileguard's end of it.
pub type FileSideLink = Link<FileReply, FileRequest>;

/// What the kernel calls one file or folder by, while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// From the server to a fileguard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToFileguard {
    /// The first message, once.
    Start {
        /// Folders that are refused with all below them; at most [`EXCLUDED_MAX`].
        excluded: Vec<Identity>,
        /// For the digests of what is served.
        digest_key: [u8; 32],
    },
    /// Opens a file. Exactly one descriptor comes along: a SEQPACKET socket on which that file is served from then on.
    Open {
        /// The server's number for it; legal until [`FromFileguard::Closed`] or `Refused`.
        number: u32,
        /// Below the root, with `/`. Where the root is a file, its own name.
        path: String,
        /// What for.
        access: FileAccess,
        /// No step after this time of CLOCK_BOOTTIME, in milliseconds.
        until_boot_ms: u64,
        /// The most bytes that may be read or written over the socket, all steps together. For a write also the longest
        /// that the file may become.
        bytes_max: u64,
    },
    /// Asks for the bytes of a file as they are now, as a sealed memfd.
    Snapshot {
        /// The server's number for this answer.
        number: u32,
        /// As in `Open`.
        path: String,
        /// The most bytes that the file may have; at most [`SNAPSHOT_BYTES_MAX`] counts.
        bytes_max: u64,
    },
    /// Asks for one page of one folder.
    List {
        /// The server's number for this answer.
        number: u32,
        /// As in `Open`; empty for the root itself.
        path: String,
        /// Names that sort after this one; empty for the first page.
        after: String,
        /// At most so many; at most [`LIST_ENTRIES_MAX`] counts.
        entries_max: u32,
    },
    /// Ends an open file. One that has just ended by itself is no fault.
    Close {
        /// Which.
        number: u32,
    },
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileAccess {
    /// Its bytes are read. It must exist.
    Read,
    /// New contents are written, which take the old file's place at [`FileRequest::Commit`] and not before. It need not
    /// exist; its folder must.
    Write,
}

/// From a fileguard to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromFileguard {
    /// The first message.
    Hello {
        /// [`crate::DIGEST`] of its build.
        digest: String,
    },
    /// The root, as the descriptor that was opened says.
    Root {
        /// A file or a folder.
        kind: RootKind,
        /// Which one.
        identity: Identity,
        /// Its owner's uid, as the host counts.
        owner: u32,
        /// Bytes of a file; of a folder what the file system says.
        size: u64,
        /// Last change of its contents, in seconds since 1970.
        modified: i64,
        /// The path that was opened: absolute, without a link in it.
        path: String,
    },
    /// Every layer is on.
    Sealed {
        /// In the order in which they were applied.
        layers: Vec<Layer>,
        /// Landlock's ABI on this kernel.
        landlock_abi: u32,
    },
    /// A file is served on its socket.
    Opened {
        /// Which.
        number: u32,
        /// Its bytes now; 0 for one that is written and not there yet.
        size: u64,
        /// Last change of its contents, in seconds since 1970; 0 for one that is not there yet.
        modified: i64,
    },
    /// The bytes of a file, in the sealed memfd that comes along.
    Snapshot {
        /// Which.
        number: u32,
        /// How many.
        size: u64,
        /// Their BLAKE3 under the key of the start.
        digest: [u8; 32],
    },
    /// A page of a folder.
    Listed {
        /// Which.
        number: u32,
        /// Sorted by the bytes of their names.
        entries: Vec<FileEntry>,
        /// Whether more come after these.
        more: bool,
        /// Entries of the whole folder whose names are no UTF-8; they can't be named and are left out.
        unnamed: u32,
    },
    /// An open file has ended.
    Closed {
        /// Which; free again.
        number: u32,
        /// Bytes read or written over its socket.
        bytes: u64,
        /// Their BLAKE3 under the key of the start, in the order in which they were read or written: of a file that was read
        /// or written once from its start to its end that of the file.
        digest: [u8; 32],
        /// Why.
        end: FileEnd,
    },
    /// `Open`, `Snapshot` or `List` did not come about.
    Refused {
        /// Which.
        number: u32,
        /// Why.
        refusal: FileRefusal,
    },
}

/// What a root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RootKind {
    /// A regular file with one name.
    File,
    /// A folder, with all that is below it on its own file system.
    Folder,
}

/// Why an open file has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileEnd {
    /// The server closed it.
    Asked,
    /// The other end of its socket is closed.
    HungUp,
    /// Its time is over.
    Expired,
    /// The new contents are in their place; nothing more can be done with it.
    Committed,
    /// The other end sent what does not decode, a descriptor, a step of more than [`FILE_STEP_BYTES_MAX`], or more than
    /// [`FILE_STEPS_MAX`] at a time.
    Illegal,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name there; at most [`FILE_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// What it is. Links are not followed.
    pub kind: EntryKind,
    /// Bytes of a file; 0 of everything else.
    pub size: u64,
    /// Last change of its contents, in milliseconds since 1970; 0 of what could not be looked at.
    pub modified_ms: i64,
}

/// What an entry of a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, a device, a socket, a FIFO: nothing that can be opened.
    Other,
}

/// A request on a file's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// Answered by [`FileReply::Bytes`].
    Read {
        /// From the start of the file.
        offset: u64,
        /// At most [`FILE_STEP_BYTES_MAX`].
        length: u32,
    },
    /// Answered by [`FileReply::Written`].
    Write {
        /// From the start of the file.
        offset: u64,
        /// How many bytes the message carries, at most [`FILE_STEP_BYTES_MAX`].
        length: u32,
    },
    /// Puts what was written into the file's place, durably. Answered by [`FileReply::Committed`].
    Commit,
}

/// A reply on a file's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    /// What is there: as many bytes as were asked for, fewer at the end of the file, none behind it.
    Bytes {
        /// As it was asked for.
        offset: u64,
        /// How many bytes the message carries.
        length: u32,
    },
    /// A step is written and not visible yet.
    Written {
        /// As it was asked for.
        offset: u64,
    },
    /// The file has its new contents.
    Committed {
        /// Its length.
        size: u64,
    },
    /// Not done. The socket is closed after `Expired`, `TooMany`, and `TooLarge` for a step of more than
    /// [`FILE_STEP_BYTES_MAX`]; where it is full, without this word.
    Refused(FileRefusal),
}

impl CarriesBytes for FileRequest {
    fn carried(&self) -> usize {
        match self {
            Self::Write { length, .. } => *length as usize,
            Self::Read { .. } | Self::Commit => 0,
        }
    }
}

impl CarriesBytes for FileReply {
    fn carried(&self) -> usize {
        match self {
            Self::Bytes { length, .. } => *length as usize,
            Self::Written { .. } | Self::Committed { .. } | Self::Refused(_) => 0,
        }
    }
}

/// Why a file is not opened, read, listed or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum FileRefusal {
    /// Nothing has this name.
    #[error("there is no such file")]
    NotFound,
    /// The path is absolute, has a zero byte or a part that is empty, `.` or `..`, or is too long.
    #[error("the path is none below the root")]
    OutsideRoot,
    /// A part of the path is a symbolic link.
    #[error("a symbolic link is in the path")]
    Symlink,
    /// The file has more than one name, so that it may also be somebody's elsewhere.
    #[error("the file has more than one name")]
    HardLink,
    /// It is a folder where a file is needed, a FIFO, a socket or a device.
    #[error("it is no regular file")]
    NotAFile,
    /// A file is named where a folder is needed.
    #[error("it is no folder")]
    NotAFolder,
    /// It is on another mount than the root.
    #[error("another file system is mounted there")]
    OtherMount,
    /// It is one of the folders that are kept out, or below one.
    #[error("this folder is kept out")]
    Excluded,
    /// The file belongs to another user.
    #[error("the file belongs to another user")]
    WrongOwner,
    /// More bytes than may be.
    #[error("more bytes than are allowed")]
    TooLarge,
    /// The time is over.
    #[error("the time is over")]
    Expired,
    /// More open files, entries of a folder or steps than may be.
    #[error("too many at a time")]
    TooMany,
    /// It became another file, or another length, while it was opened, read or replaced.
    #[error("the file was changed meanwhile")]
    Changed,
    /// The root or the file was not granted for writing.
    #[error("it may only be read")]
    ReadOnly,
    /// The file was opened for writing, and is asked to be read.
    #[error("it may only be written")]
    WriteOnly,
    /// The user that the program runs as may not.
    #[error("the system denies it to this user")]
    Denied,
    /// The host refused in another way.
    #[error("the system refused with error {errno}")]
    Os {
        /// Which error.
        errno: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_messages_fit() {
        let entry = FileEntry {
            name: "n".repeat(FILE_NAME_BYTES_MAX),
            kind: EntryKind::Other,
            size: u64::MAX,
            modified_ms: i64::MIN,
        };
        let listed = FromFileguard::Listed {
            number: u32::MAX,
            entries: vec![entry; LIST_ENTRIES_MAX as usize],
            more: true,
            unnamed: u32::MAX,
        };
        let read = FileReply::Bytes { offset: u64::MAX, length: u32::MAX };
        let write = FileRequest::Write { offset: u64::MAX, length: u32::MAX };
        let fits = |bytes: Vec<u8>, carried: usize| assert!(bytes.len() + carried < crate::MESSAGE_BYTES_MAX);
        fits(postcard::to_stdvec(&listed).expect("plain values encode"), 0);
        fits(postcard::to_stdvec(&read).expect("plain values encode"), FILE_STEP_BYTES_MAX);
        fits(postcard::to_stdvec(&write).expect("plain values encode"), FILE_STEP_BYTES_MAX);
    }
}
