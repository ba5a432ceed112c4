//! One granted root of the host, a file or a folder, in a process of its own: names below it become bytes or descriptors.
//!
//! ```text
//! main      enters the sandbox with the root, opens it, says what it is, seals itself
//! serve     one thread: the server's link, and the socket of each open file
//! served    one open file: its requests, its window, its end
//! root      from a name to a descriptor       path     names that can't lead elsewhere
//! reading, writing, listing, snapshot         what is done with a descriptor
//! buffers   memory that all of them use in turn
//! ```
//!
//! Ending the process is the revocation: no other process holds a descriptor of what it serves, but for snapshots.
//!
//! # What keeps a name below the root
//! 1. [`path::BelowRoot`] refuses `..`, `.`, absolute paths, empty parts and zero bytes before any system call.
//! 2. [`root::Root`] walks the parts one by one with `openat2` (beneath, no symbolic links, no other mounts) and looks at
//!    each: is it kept out, is it what it must be. Only what is then opened by one `openat2` of the whole path, and is the
//!    same object, is used.
//! 3. The process has nothing else: its mount namespace holds the root alone, Landlock gives rights to it alone, and its
//!    filter lets no other program, socket or mount be made.
//!
//! # What cap-std does here, and what it does not
//! cap-std keeps a path below a folder's descriptor, which is what a file that is not whole yet needs: where a file system
//! has no files without names, [`cap_std::fs::Dir`] makes, and removes, the random name in the target's folder. It does
//! not open what clients name. Its `open` follows symbolic links that stay inside and crosses mounts, opens a second name
//! of a file outside (a hard link) as any other, and waits for ever at a FIFO; its listing asks by path, for which the
//! filter would have to let more calls through. So names go through `openat2` here, with a look at the object between.
//!
//! # A root that is a file
//! To read, that very file is mounted and opened once; whatever takes its name later is not read. To write, new contents
//! have to be renamed over it, so the folder that it is in is mounted, and this program keeps to the one name: a program
//! that was taken over could reach that folder's other files.

pub mod buffers;
pub mod clock;
pub mod listing;
pub mod path;
pub mod reading;
pub mod refusal;
pub mod root;
pub mod serve;
pub mod served;
pub mod snapshot;
pub mod writing;
