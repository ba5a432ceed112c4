//! One page of one folder. Nothing is followed and nothing opened but to look what it is.

use crate::refusal;
use crate::root::{Root, open_below};
use ringfence_protocol::{EntryKind, FileEntry, FileRefusal, LIST_ENTRIES_MAX, LIST_FOLDER_ENTRIES_MAX};
use rustix::fs::{FileType, OFlags, RawDir, fstat};
use std::collections::BinaryHeap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that the kernel fills with names at a time.
const NAMES_BYTES: usize = 32 * 1024;

/// A page.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// Sorted by the bytes of their names.
    pub entries: Vec<FileEntry>,
    /// Whether more come after these.
    pub more: bool,
    /// Entries of the whole folder whose names are no UTF-8.
    pub unnamed: u32,
}

/// Lists what comes after the name `after`, at most `entries_max` of it.
///
/// # Errors
/// Any [`FileRefusal`] that a folder can have; [`FileRefusal::TooMany`] for one that is too large to be sorted.
pub fn list(root: &Root, path: &str, after: &str, entries_max: u32) -> Result<Page, FileRefusal> {
    let folder = root.open_folder(path)?;
    let limit = entries_max.clamp(1, LIST_ENTRIES_MAX) as usize;
    let (mut names, unnamed) = first_names(&folder, after, limit + 1)?;
    let more = names.len() > limit;
    names.truncate(limit);
    let entries = names.into_iter().filter_map(|name| entry(folder.as_fd(), name)).collect();
    Ok(Page { entries, more, unnamed })
}

/// The first names after one, sorted.
fn first_names(folder: &OwnedFd, after: &str, limit: usize) -> Result<(Vec<String>, u32), FileRefusal> {
    let mut space = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut reader = RawDir::new(folder, &mut space);
    // The largest on top, to be given up for a smaller one.
    let mut kept = BinaryHeap::with_capacity(limit + 1);
    let (mut seen, mut unnamed) = (0, 0);
    while let Some(entry) = reader.next() {
        let entry = entry.map_err(refusal::of)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        seen += 1;
        if seen > LIST_FOLDER_ENTRIES_MAX {
            return Err(FileRefusal::TooMany);
        }
        match name.to_str() {
            Ok(name) if name > after => kept.push(name.to_owned()),
            Ok(_) => {}
            Err(_) => unnamed += 1,
        }
        if kept.len() > limit {
            kept.pop();
        }
    }
    Ok((kept.into_sorted_vec(), unnamed))
}

/// `None` for one that is gone by now.
fn entry(folder: BorrowedFd<'_>, name: String) -> Option<FileEntry> {
    let opened = open_below(folder, &name, OFlags::PATH | OFlags::NOFOLLOW);
    let facts = match opened.and_then(|opened| fstat(opened).map_err(refusal::of)) {
        Ok(facts) => facts,
        Err(FileRefusal::NotFound) => return None,
        Err(_) => return Some(FileEntry { name, kind: EntryKind::Other, size: 0, modified_ms: 0 }),
    };
    let (kind, size) = match FileType::from_raw_mode(facts.st_mode) {
        FileType::RegularFile => (EntryKind::File, u64::try_from(facts.st_size).unwrap_or(0)),
        FileType::Directory => (EntryKind::Folder, 0),
        _ => (EntryKind::Other, 0),
    };
    let modified_ms =
        facts.st_mtime.saturating_mul(1_000).saturating_add(facts.st_mtime_nsec as i64 / 1_000_000);
    Some(FileEntry { name, kind, size, modified_ms })
}
