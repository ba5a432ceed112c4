//! Unpacks an archive whose digest was pinned and compared: only the files that the catalog names, at their lengths.

use super::{fetch, writing};
use crate::error::CliError;
use crate::output::Output;
use ringfence_models::{Archive, CatalogFile, Draft};
use std::io::{Cursor, Read};
use zip::ZipArchive;

/// The most entries of an archive.
const ENTRIES_MAX: usize = 10_000;

/// Copies the catalog's files from the archive into the draft.
pub(super) fn unpack(
    bytes: &[u8],
    archive: &Archive,
    draft: &mut Draft,
    output: &Output,
) -> Result<(), CliError> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| broken(archive, error))?;
    if zip.len() > ENTRIES_MAX {
        return Err(broken(archive, "it has too many entries"));
    }
    let total = archive.files.iter().map(|file| file.bytes).sum();
    let bar = fetch::progress(output, total, "unpacking");
    for file in &archive.files {
        let path = format!("{}{}", archive.folder, file.name);
        let entry = zip.by_name(&path).map_err(|error| broken(archive, format!("{path}: {error}")))?;
        if entry.size() != file.bytes {
            return Err(wrong_length(archive, file));
        }
        // The length that an archive states is not what unpacking gives.
        let mut reader = bar.wrap_read(entry).take(file.bytes + 1);
        let before = draft.bytes();
        draft.add(&file.name, &mut reader).map_err(|error| writing(draft.name(), error))?;
        if draft.bytes() - before != file.bytes {
            return Err(wrong_length(archive, file));
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn wrong_length(archive: &Archive, file: &CatalogFile) -> CliError {
    broken(archive, format!("{} does not have {} bytes", file.name, file.bytes))
}

fn broken(archive: &Archive, source: impl Into<crate::error::Source>) -> CliError {
    CliError::Failed {
        subject: archive.file.clone(),
        code: "archive_broken",
        source: source.into(),
        advice: "this version's catalog and the archive do not fit together; report it".to_owned(),
    }
}
